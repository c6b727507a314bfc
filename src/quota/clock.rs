//! Clock: what time it is for limits, in microseconds since the Unix epoch.
//!
//! One replica takes the system's clock, but follows it only by steps of its own: time goes on evenly between two looks,
//! and a jump is adopted at once and reported. Several replicas take Redis's clock, which each reply brings: the time
//! is never behind Redis's, so that nothing granted in a window is used after its end, and at most one round trip ahead.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A difference between the system's clock and our own that is a jump, not drift.
const JUMP: i64 = 500_000;
/// How often the system's clock is looked at.
const LOOK: u64 = 1_000_000;

/// The time of the limiter.
pub struct Clock {
    origin: Instant,
    /// Epoch time at `origin`, microseconds.
    offset: AtomicI64,
    looked: AtomicU64,
    /// Follows the system's clock; otherwise replies of Redis set it.
    is_local: bool,
}

impl Clock {
    /// A clock that follows the system's, or waits for the first reply of Redis and takes the system's until then.
    pub fn new(is_local: bool) -> Self {
        let origin = Instant::now();
        Self { origin, offset: AtomicI64::new(system()), looked: AtomicU64::new(0), is_local }
    }

    /// Microseconds since the epoch.
    pub fn now(&self) -> u64 {
        let elapsed = self.elapsed(Instant::now());
        let time = elapsed.saturating_add(self.offset.load(Ordering::Relaxed)).max(0).unsigned_abs();
        if self.is_local && elapsed.unsigned_abs().saturating_sub(self.looked.load(Ordering::Relaxed)) > LOOK {
            return self.look(elapsed, time);
        }
        time
    }

    fn elapsed(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(i64::MAX)
    }

    /// Holds the time against the system's clock.
    fn look(&self, elapsed: i64, time: u64) -> u64 {
        let looked = self.looked.load(Ordering::Relaxed);
        // One of those who find that it is time looks; the others go on.
        if self.looked.compare_exchange(looked, elapsed.unsigned_abs(), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return time;
        }
        let system = system();
        let ahead = system.saturating_sub(i64::try_from(time).unwrap_or(i64::MAX));
        if ahead.abs() < JUMP {
            // Drift is followed forwards only: a window that has ended stays ended.
            if ahead > 0 {
                self.offset.fetch_add(ahead, Ordering::Relaxed);
            }
            return time;
        }
        tracing::warn!(seconds = ahead / 1_000_000, "the system's clock jumped; windows of limits follow it");
        self.offset.store(system.saturating_sub(elapsed), Ordering::Relaxed);
        system.max(0).unsigned_abs()
    }

    /// Takes in that Redis's clock read `redis` between `sent` and now.
    pub fn learn(&self, redis: u64, sent: Instant) {
        let now = Instant::now();
        let redis = i64::try_from(redis).unwrap_or(i64::MAX);
        let elapsed = self.elapsed(now);
        let round_trip = i64::try_from(now.saturating_duration_since(sent).as_micros()).unwrap_or(i64::MAX);
        // Redis's clock reads at least `redis` now, and at most so much more as the round trip took.
        let (least, most) = (redis - elapsed, redis.saturating_add(round_trip) - elapsed);
        let held = self.offset.load(Ordering::Relaxed);
        if held < least || held > most {
            self.offset.store(most, Ordering::Relaxed);
        }
    }
}

fn system() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn redis_sets_the_time_and_quicker_replies_sharpen_it() {
        let clock = Clock::new(false);
        let sent = Instant::now() - Duration::from_millis(50);
        clock.learn(1_000_000_000, sent);
        let slow = clock.now();
        assert!((1_000_050_000..1_000_060_000).contains(&slow), "{slow}");
        clock.learn(1_000_010_000, Instant::now() - Duration::from_millis(1));
        let quick = clock.now();
        assert!((1_000_011_000..1_000_020_000).contains(&quick), "{quick}");
        // A slower reply that agrees changes nothing; a jump of Redis's clock is followed.
        clock.learn(1_000_005_000, Instant::now() - Duration::from_millis(40));
        assert!(clock.now() < 1_000_030_000);
        clock.learn(5_000_000, Instant::now());
        assert!(clock.now() < 6_000_000);
    }

    #[test]
    fn a_jump_of_the_systems_clock_is_followed() {
        let clock = Clock::new(true);
        let before = clock.now();
        clock.offset.fetch_sub(3_600_000_000, Ordering::Relaxed);
        assert!(clock.look(0, before - 3_600_000_000).abs_diff(before) < 2_000_000);
        assert!(clock.now().abs_diff(before) < 2_000_000);
    }
}
