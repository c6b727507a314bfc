//! Work: how long an endpoint takes, learned from its own answers.
//!
//! A request is so many units of work: tokens or items, as estimated. The time that one takes is taken to be
//! `a · own work + b · work that was there before it`: `a` is the pace of an endpoint that is not full, `b` what each
//! unit ahead costs. Both are fitted to what ended, the latest weighing most.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What weight an observation keeps when the next one comes.
const KEPT: f64 = 0.92;
/// Observations by which the fit is pulled towards [`PRIOR_SLOTS`].
const PRIOR_WEIGHT: f64 = 4.0;
/// How many requests an unknown endpoint is taken to work on at once without slowing down.
const PRIOR_SLOTS: f64 = 16.0;
/// The least that a unit ahead costs, as a share of a unit's own time: of two that are not full, the emptier one wins.
const LEAST_SLOPE: f64 = 1.0 / 256.0;
/// The least share of the mean time that is not explained by what was ahead.
const LEAST_PACE: f64 = 0.05;
/// Observations after which a fit is trusted by itself.
const TRUSTED: u32 = 3;
/// How much slower than expected one observation may be: a client that reads slowly is not the endpoint's fault.
const LARGEST_STEP: f64 = 4.0;
/// The age at which half of what was learned is believed no more.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// What was learned of one endpoint, or of a pool as a whole.
#[derive(Debug, Default)]
pub struct Pace {
    sums: Mutex<Sums>,
    own: AtomicU64,
    ahead: AtomicU64,
    count: AtomicU64,
    /// When the latest observation came, in microseconds.
    at: AtomicU64,
}

/// Seconds that a unit of work takes, and that each unit ahead adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Seconds for each unit of its own.
    pub own: f64,
    /// Seconds for each unit that is there before.
    pub ahead: f64,
}

impl Fit {
    /// Seconds that a request of `work` takes with `ahead` before it.
    pub fn seconds(&self, work: f64, ahead: f64) -> f64 {
        self.own * work + self.ahead * ahead
    }

    fn mix(self, other: Self, share: f64) -> Self {
        let between = |from: f64, to: f64| from + (to - from) * share;
        Self { own: between(self.own, other.own), ahead: between(self.ahead, other.ahead) }
    }
}

/// Decayed moments of seconds per unit over units ahead per unit.
#[derive(Debug, Default)]
struct Sums {
    n: f64,
    ahead: f64,
    ahead_squared: f64,
    time: f64,
    product: f64,
}

impl Pace {
    /// Learns that a request of `work` with `ahead` before it took `seconds`. Values that can not be are left out.
    pub fn learn(&self, work: f64, ahead: f64, seconds: f64, now: u64) {
        let (x, y) = (ahead / work, seconds / work);
        if !(x.is_finite() && y.is_finite() && x >= 0.0 && y > 0.0) {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.count.load(Ordering::Relaxed) >= u64::from(TRUSTED);
        let most = if known { LARGEST_STEP * sums.fit().seconds(1.0, x) } else { f64::INFINITY };
        let fit = sums.add(x, y.min(most));
        self.own.store(fit.own.to_bits(), Ordering::Relaxed);
        self.ahead.store(fit.ahead.to_bits(), Ordering::Relaxed);
        self.at.store(now, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What was learned, whatever its age; nothing before there is enough.
    pub fn fit(&self) -> Option<Fit> {
        let known = self.count.load(Ordering::Relaxed) >= u64::from(TRUSTED);
        let read = |cell: &AtomicU64| f64::from_bits(cell.load(Ordering::Relaxed));
        known.then(|| Fit { own: read(&self.own), ahead: read(&self.ahead) })
    }

    /// What was learned, drawn towards `usual` as it ages, so that an endpoint that was slow is tried again.
    pub fn fit_at(&self, now: u64, usual: Fit) -> Fit {
        let Some(fit) = self.fit() else { return usual };
        let age = Duration::from_micros(now.saturating_sub(self.at.load(Ordering::Relaxed)));
        if age < HALF_LIFE / 10 {
            return fit;
        }
        fit.mix(usual, 1.0 - (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2())
    }
}

impl Sums {
    fn add(&mut self, x: f64, y: f64) -> Fit {
        self.n = self.n * KEPT + 1.0;
        self.ahead = self.ahead * KEPT + x;
        self.ahead_squared = self.ahead_squared * KEPT + x * x;
        self.time = self.time * KEPT + y;
        self.product = self.product * KEPT + x * y;
        self.fit()
    }

    fn fit(&self) -> Fit {
        let (mean_x, mean_y) = (self.ahead / self.n, self.time / self.n);
        let spread = (self.ahead_squared - mean_x * self.ahead).max(0.0);
        let together = self.product - mean_x * self.time;
        // The prior: a line through the mean that has an endpoint of so many slots.
        let prior = mean_y / (PRIOR_SLOTS + mean_x);
        let slope = (together + PRIOR_WEIGHT * prior) / (spread + PRIOR_WEIGHT);
        let most = mean_y * (1.0 - LEAST_PACE) / mean_x.max(f64::MIN_POSITIVE);
        let ahead = slope.min(most).max(mean_y * LEAST_SLOPE);
        let own = (mean_y - ahead * mean_x).max(mean_y * LEAST_PACE);
        Fit { own, ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taught(observations: impl Iterator<Item = (f64, f64, f64)>) -> Fit {
        let pace = Pace::default();
        for (work, ahead, seconds) in observations {
            pace.learn(work, ahead, seconds, 0);
        }
        pace.fit().unwrap()
    }

    /// Seconds of an endpoint with 8 slots and a second for a unit.
    fn slotted(work: f64, ahead: f64) -> f64 {
        work.max((work + ahead) / 8.0)
    }

    #[test]
    fn an_endpoint_that_is_not_full_costs_its_own_work() {
        let fit = taught((0..100).map(|i| (10.0, f64::from(i % 7) * 10.0, slotted(10.0, 0.0))));
        assert!((0.8..1.2).contains(&fit.own) && fit.ahead < 0.05, "{fit:?}");
    }

    #[test]
    fn a_full_endpoint_costs_what_is_ahead() {
        let fit = taught((0..100).map(|i| {
            let ahead = 160.0 + f64::from(i * 37 % 100);
            (10.0, ahead, slotted(10.0, ahead))
        }));
        let (expected, found) = (slotted(10.0, 300.0), fit.seconds(10.0, 300.0));
        assert!((found / expected - 1.0).abs() < 0.25, "{expected} {found} {fit:?}");
    }

    #[test]
    fn a_change_of_pace_is_learned_within_some_answers_and_nonsense_is_left_out() {
        let pace = Pace::default();
        for _ in 0..100 {
            pace.learn(1.0, 2.0, 1.0, 0);
        }
        for nonsense in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            pace.learn(1.0, 2.0, nonsense, 0);
            pace.learn(0.0, 2.0, nonsense, 0);
        }
        let before = pace.fit().unwrap().seconds(1.0, 2.0);
        for _ in 0..12 {
            pace.learn(1.0, 2.0, 10.0, 0);
        }
        let after = pace.fit().unwrap().seconds(1.0, 2.0);
        assert!((before - 1.0).abs() < 0.1 && after > 5.0, "{before} {after}");
    }

    #[test]
    fn what_is_old_is_believed_less() {
        let pace = Pace::default();
        for _ in 0..10 {
            pace.learn(1.0, 0.0, 10.0, 0);
        }
        let usual = Fit { own: 1.0, ahead: 0.1 };
        let at = |seconds: u64| pace.fit_at(seconds * 1_000_000, usual).own;
        assert!(at(0) > 8.0 && (4.0..7.0).contains(&at(10)) && at(60) < 1.3);
    }
}
