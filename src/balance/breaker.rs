//! Breaker: what an endpoint's answers say of it, and when it is tried again.
//!
//! Three verdicts: a client's mistake says nothing, overload asks for a pause, and only being unavailable opens the
//! breaker. An open one is tried by a single request at a time once its time is over.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When answers change what an endpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures among the last ten answers that open it.
    pub failures: u32,
    /// How long it stays open at first; doubled for each time that its trial fails.
    pub open: Duration,
    /// The longest that it stays open, and the longest pause after overload.
    pub longest: Duration,
    /// How long an endpoint that came back takes to get its full share.
    pub slow_start: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 5,
            open: Duration::from_secs(2),
            longest: Duration::from_secs(30),
            slow_start: Duration::from_secs(5),
        }
    }
}

/// How many of the latest answers count.
pub const WINDOW: u32 = 10;
/// The first pause of an endpoint that says that it is full, and does not say for how long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The least share of an endpoint that came back a moment ago.
const FIRST_SHARE: f64 = 0.1;

/// What a finished attempt says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Good,
    /// It has no room, and says for how long if it does.
    Overloaded(Option<Duration>),
    /// It does not work.
    Unavailable,
    /// Nothing: the client's mistake, or the client left.
    Nothing,
}

/// What an endpoint may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its share.
    Closed,
    /// One request to try it.
    Trial,
    /// Nothing until then, in microseconds.
    Paused(u64),
}

/// The breaker of one endpoint.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
    /// Until when it gets nothing, in microseconds; 0 for an endpoint that is closed.
    until: AtomicU64,
    /// Since when it is back, in microseconds; 0 for one that never was away.
    back: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The latest answers, a bit each, set for failures.
    recent: u32,
    opened: u32,
    overloads: u32,
    is_open: bool,
    in_trial: bool,
}

impl Breaker {
    /// What it may get now.
    pub fn standing(&self, now: u64) -> Standing {
        match self.until.load(Ordering::Acquire) {
            0 => Standing::Closed,
            until if until > now => Standing::Paused(until),
            until => {
                let state = self.lock();
                match (state.is_open, state.in_trial) {
                    (true, true) => Standing::Paused(until),
                    (true, false) => Standing::Trial,
                    (false, _) => Standing::Closed,
                }
            }
        }
    }

    /// Whether the failures of late opened it.
    pub fn is_open(&self) -> bool {
        self.lock().is_open
    }

    /// Notes that a request was sent; says whether it is the trial of an open breaker.
    pub fn sent(&self, now: u64) -> bool {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 || until > now {
            return false;
        }
        let mut state = self.lock();
        state.is_open && !std::mem::replace(&mut state.in_trial, true)
    }

    /// Takes the verdict on a request; `trial` is what [`Breaker::sent`] said of it. Answers whether it opened (true)
    /// or closed (false) by that.
    pub fn judge(&self, verdict: Verdict, trial: bool, settings: &BreakerSettings, now: u64) -> Option<bool> {
        let mut state = self.lock();
        if trial {
            state.in_trial = false;
        }
        match verdict {
            Verdict::Nothing => None,
            Verdict::Good => {
                state.recent <<= 1;
                state.overloads = 0;
                if !state.is_open {
                    self.until.store(0, Ordering::Release);
                    return None;
                }
                // What was sent before it opened may still end well; only the trial says that it is back.
                trial.then(|| {
                    *state = State::default();
                    self.until.store(0, Ordering::Release);
                    self.came_back(now);
                    false
                })
            }
            Verdict::Overloaded(wait) => {
                state.overloads = (state.overloads + 1).min(16);
                let own = FIRST_PAUSE.saturating_mul(1 << (state.overloads - 1).min(10));
                self.pause(wait.unwrap_or(own).min(settings.longest), now);
                None
            }
            Verdict::Unavailable => {
                state.recent = state.recent << 1 | 1;
                let failed = (state.recent & ((1 << WINDOW) - 1)).count_ones();
                if state.is_open && !trial || !state.is_open && failed < settings.failures {
                    return None;
                }
                let was_open = std::mem::replace(&mut state.is_open, true);
                let time = settings.open.saturating_mul(1 << state.opened.min(10)).min(settings.longest);
                state.opened += 1;
                self.pause(time, now);
                (!was_open).then_some(true)
            }
        }
    }

    /// Notes that it came back now, so that it begins with a small share.
    pub fn came_back(&self, now: u64) {
        self.back.store(now.max(1), Ordering::Relaxed);
    }

    /// The share that it gets: less than 1 for a while after it came back.
    pub fn share(&self, settings: &BreakerSettings, now: u64) -> f64 {
        let back = self.back.load(Ordering::Relaxed);
        if back == 0 || settings.slow_start.is_zero() {
            return 1.0;
        }
        let since = Duration::from_micros(now.saturating_sub(back));
        (since.as_secs_f64() / settings.slow_start.as_secs_f64()).clamp(FIRST_SHARE, 1.0)
    }

    /// Leaves it alone for so long.
    pub fn rest(&self, time: Duration, now: u64) {
        self.pause(time, now);
    }

    fn pause(&self, time: Duration, now: u64) {
        // A tenth more or less, so that many gateways do not come back in step.
        let time = time.mul_f64(0.9 + 0.2 * fastrand::f64());
        let until = now.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        self.until.fetch_max(until.max(1), Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn judge(breaker: &Breaker, verdict: Verdict, now: u64) -> Option<bool> {
        let trial = breaker.sent(now);
        breaker.judge(verdict, trial, &BreakerSettings::default(), now)
    }

    #[test]
    fn mistakes_of_clients_change_nothing() {
        let breaker = Breaker::default();
        for _ in 0..1000 {
            assert_eq!(judge(&breaker, Verdict::Nothing, 1), None);
        }
        assert_eq!(breaker.standing(2), Standing::Closed);
    }

    #[test]
    fn overload_pauses_for_what_was_asked_and_never_opens() {
        let breaker = Breaker::default();
        for _ in 0..100 {
            judge(&breaker, Verdict::Overloaded(None), 1);
        }
        assert!(!breaker.is_open());
        assert!(matches!(breaker.standing(2), Standing::Paused(until) if until < 34 * SECOND));
        let asked = Breaker::default();
        judge(&asked, Verdict::Overloaded(Some(Duration::from_secs(3))), 0);
        assert!(matches!(asked.standing(1), Standing::Paused(until) if (2 * SECOND..4 * SECOND).contains(&until)));
        assert_eq!(asked.standing(4 * SECOND), Standing::Closed);
    }

    #[test]
    fn half_of_the_latest_answers_open_it_and_one_good_trial_closes_it() {
        let breaker = Breaker::default();
        let verdicts = [Verdict::Unavailable, Verdict::Good].into_iter().cycle().take(9);
        let changes: Vec<_> = verdicts.filter_map(|verdict| judge(&breaker, verdict, 1)).collect();
        assert_eq!(changes, [true]);
        assert!(matches!(breaker.standing(2), Standing::Paused(_)));
        // What was under way ends well: that says nothing of now.
        assert_eq!(breaker.judge(Verdict::Good, false, &BreakerSettings::default(), 2), None);
        assert_eq!(breaker.standing(3 * SECOND), Standing::Trial);
        assert!(breaker.sent(3 * SECOND) && !breaker.sent(3 * SECOND));
        assert!(matches!(breaker.standing(3 * SECOND), Standing::Paused(_)));
        assert_eq!(breaker.judge(Verdict::Good, true, &BreakerSettings::default(), 3 * SECOND), Some(false));
        assert_eq!(breaker.standing(3 * SECOND), Standing::Closed);
        let share = |now| breaker.share(&BreakerSettings::default(), now);
        assert!(share(3 * SECOND) < 0.2 && share(20 * SECOND) > 0.99);
    }

    #[test]
    fn a_trial_that_fails_doubles_the_time_and_one_that_leaves_frees_its_place() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            judge(&breaker, Verdict::Unavailable, 0);
        }
        let mut now = 0;
        let mut times = Vec::new();
        for _ in 0..6 {
            let Standing::Paused(until) = breaker.standing(now) else { panic!("{now}") };
            times.push((until - now) as f64 / SECOND as f64);
            now = until;
            judge(&breaker, Verdict::Nothing, now);
            assert_eq!(judge(&breaker, Verdict::Unavailable, now), None);
        }
        assert!(times.windows(2).take(3).all(|w| w[1] > w[0] * 1.5), "{times:?}");
        assert!(times[5] < 34.0, "{times:?}");
    }
}
