//! Pace: how many requests a minute somebody else lets pass, as configured or learned from refusals.
//!
//! A refusal cuts the rate by a third and closes for a while; from then on it rises slowly, by as much each minute. So
//! what was learned is a rate and a moment, which replicas can tell each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What is left of the rate after a refusal.
const CUT: f64 = 0.7;
/// For how long a refusal that does not say so closes, at first and at most.
const CLOSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What may come at once, in time at the rate.
const BURST: f64 = 1.0;
/// A rate so many times above what is asked for is no limit any more.
const FAR: f64 = 4.0;
const MINUTE: f64 = 60.0;

/// What a pace is told; rates are requests a minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The most, if that is known.
    pub most: Option<u32>,
    /// Whether refusals teach.
    pub learns: bool,
    /// The least that refusals cut to.
    pub least: u32,
    /// How much it rises each minute after a refusal.
    pub recovery: u32,
}

/// What was learned, as replicas tell each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lesson {
    /// The rate of all replicas when it was learned, in requests a second.
    pub base: f64,
    /// How long ago.
    pub age: Duration,
    /// For how long nothing passes.
    pub closed: Duration,
}

/// One pace, for all that share a credential and a function.
pub struct Pace {
    settings: Settings,
    /// Replicas that share it.
    replicas: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Requests that may pass at once.
    tokens: f64,
    /// When that was counted.
    counted: Instant,
    learned: Option<Learned>,
    /// When requests pass again.
    open: Instant,
    /// For how long the next refusal closes.
    pause: Duration,
    passed: Passed,
    /// Nobody was told what was learned last.
    is_news: bool,
}

#[derive(Clone, Copy)]
struct Learned {
    base: f64,
    since: Instant,
}

/// Requests that passed in this minute and the one before.
struct Passed {
    since: Instant,
    count: f64,
    before: f64,
}

impl Pace {
    /// Nothing is learned yet.
    pub fn new(settings: Settings) -> Self {
        let now = Instant::now();
        let passed = Passed { since: now, count: 0.0, before: 0.0 };
        let state =
            State { tokens: 1.0, counted: now, learned: None, open: now, pause: CLOSED.0, passed, is_news: false };
        Self { settings, replicas: AtomicU64::new(1), state: Mutex::new(state) }
    }

    /// What it was told.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Shares it with so many replicas, this one included.
    pub fn set_replicas(&self, replicas: u64) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
    }

    /// Lets a request pass, or says when the next one may.
    pub fn take(&self, now: Instant) -> Result<(), Instant> {
        let mut state = self.state();
        if now < state.open {
            return Err(state.open);
        }
        if let Some(rate) = self.rate(&state, now) {
            let rate = rate / self.replicas.load(Ordering::Relaxed) as f64;
            let earned = (now - state.counted).as_secs_f64() * rate;
            state.tokens = (state.tokens + earned).min((rate * BURST).max(1.0));
            state.counted = now;
            if state.tokens < 1.0 {
                let wait = (1.0 - state.tokens) / rate.max(1e-6);
                return Err(now + Duration::try_from_secs_f64(wait).unwrap_or(CLOSED.1).min(CLOSED.1));
            }
            state.tokens -= 1.0;
        } else {
            (state.tokens, state.counted) = (1.0, now);
        }
        state.passed.add(now, 1.0);
        Ok(())
    }

    /// A request that had been let pass was not sent.
    pub fn give_back(&self, now: Instant) {
        let mut state = self.state();
        state.tokens += 1.0;
        state.passed.add(now, -1.0);
    }

    /// A request that was sent at that time was refused for its rate; for how long to stay away, if that was said.
    pub fn refused(&self, sent: Instant, now: Instant, pause: Option<Duration>) {
        let mut state = self.state();
        let closed = pause.unwrap_or(state.pause).min(CLOSED.1);
        // What was sent before the last cut says nothing of the rate since.
        if !self.settings.learns || state.learned.is_some_and(|learned| sent < learned.since) {
            state.open = state.open.max(now + closed);
            return;
        }
        let replicas = self.replicas.load(Ordering::Relaxed) as f64;
        let seen = state.passed.rate(now) * replicas;
        let rate = self.rate(&state, now).map_or(seen, |rate| rate.min(seen));
        let base = (rate * CUT).max(f64::from(self.settings.least) / MINUTE);
        state.learned = Some(Learned { base, since: now });
        (state.tokens, state.counted) = (0.0, now);
        state.open = now + closed;
        state.pause = (state.pause * 2).min(CLOSED.1);
        state.is_news = true;
    }

    /// A request was taken.
    pub fn accepted(&self, now: Instant) {
        let mut state = self.state();
        if now >= state.open {
            state.pause = CLOSED.0;
        }
        // Far above what anybody asks for, it limits nothing.
        let most = FAR * state.passed.rate(now) * self.replicas.load(Ordering::Relaxed) as f64;
        if state.learned.is_some_and(|learned| learned.at(now, self.settings) > most.max(1.0) && now >= state.open) {
            state.learned = None;
        }
    }

    /// The rate in requests a minute, for all replicas, if there is one; and for how long nothing passes.
    pub fn view(&self, now: Instant) -> (Option<f64>, Duration) {
        let state = self.state();
        (self.rate(&state, now).map(|rate| rate * MINUTE), state.open.saturating_duration_since(now))
    }

    /// What was learned last, and whether nobody was told yet.
    pub fn lesson(&self, now: Instant) -> Option<(Lesson, bool)> {
        let mut state = self.state();
        let learned = state.learned?;
        let closed = state.open.saturating_duration_since(now);
        let lesson = Lesson { base: learned.base, age: now.saturating_duration_since(learned.since), closed };
        Some((lesson, std::mem::take(&mut state.is_news)))
    }

    /// What was learned last did not reach the others.
    pub fn untold(&self) {
        self.state().is_news = true;
    }

    /// Takes in what another replica learned, if that is newer.
    pub fn learn(&self, lesson: Lesson, now: Instant) {
        let mut state = self.state();
        let Some(since) = now.checked_sub(lesson.age) else { return };
        if self.settings.learns && state.learned.is_none_or(|own| own.since < since) {
            state.learned = Some(Learned { base: lesson.base, since });
            state.open = state.open.max(now + lesson.closed.min(CLOSED.1));
        }
    }

    /// Requests a second, of all replicas.
    fn rate(&self, state: &State, now: Instant) -> Option<f64> {
        let most = self.settings.most.map(|most| f64::from(most) / MINUTE);
        let learned = state.learned.map(|learned| learned.at(now, self.settings));
        match (most, learned) {
            (Some(most), Some(learned)) => Some(most.min(learned)),
            (most, learned) => most.or(learned),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    fn at(&self, now: Instant, settings: Settings) -> f64 {
        let age = now.saturating_duration_since(self.since).as_secs_f64();
        self.base + f64::from(settings.recovery) / MINUTE * (age / MINUTE)
    }
}

impl Passed {
    fn add(&mut self, now: Instant, count: f64) {
        self.turn(now);
        self.count = (self.count + count).max(0.0);
    }

    fn turn(&mut self, now: Instant) {
        let age = (now - self.since).as_secs_f64();
        if age >= MINUTE {
            self.before = if age < 2.0 * MINUTE { self.count } else { 0.0 };
            (self.count, self.since) = (0.0, now);
        }
    }

    /// Requests a second: over the minute before where there was one, else over this one so far.
    fn rate(&mut self, now: Instant) -> f64 {
        self.turn(now);
        (self.count / (now - self.since).as_secs_f64().clamp(1.0, MINUTE)).max(self.before / MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace(most: Option<u32>, learns: bool) -> Pace {
        Pace::new(Settings { most, learns, least: 6, recovery: 60 })
    }

    /// Requests that pass within a time, asked for each millisecond.
    fn passes(pace: &Pace, from: Instant, time: Duration) -> usize {
        let steps = u32::try_from(time.as_millis()).unwrap();
        (0..steps).filter(|step| pace.take(from + Duration::from_millis(1) * *step).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stated_rate_is_kept_and_shared() {
        let (now, pace) = (Instant::now(), pace(Some(600), false));
        let count = passes(&pace, now, 10 * SECOND);
        assert!((99..=110).contains(&count), "{count}");
        pace.set_replicas(4);
        let count = passes(&pace, now + 10 * SECOND, 10 * SECOND);
        assert!((24..=28).contains(&count), "{count}");
        // A refusal closes, and teaches nothing.
        pace.refused(now + 20 * SECOND, now + 20 * SECOND, Some(2 * SECOND));
        assert_eq!(pace.take(now + 21 * SECOND), Err(now + 22 * SECOND));
        assert_eq!(pace.view(now + 22 * SECOND), (Some(600.0), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_cuts_what_was_sent_by_a_third_and_it_rises_again() {
        let (now, pace) = (Instant::now(), pace(None, true));
        assert_eq!(passes(&pace, now, SECOND), 1000, "nothing limits");
        let at = now + 2 * SECOND;
        pace.refused(now, at, None);
        let (rate, closed) = pace.view(at);
        assert!((rate.unwrap() - 0.7 * 500.0 * 60.0).abs() < 100.0, "{rate:?}");
        assert_eq!(closed, SECOND);
        // Others that were sent before say nothing new.
        pace.refused(now + SECOND, at + SECOND / 2, None);
        assert!(pace.view(at).0 == rate);
        let later = pace.view(at + 60 * SECOND).0.unwrap();
        assert!((later - rate.unwrap() - 60.0).abs() < 1.0, "{later}");
        // The next refusal closes for longer, and never below the least.
        for _ in 0..40 {
            pace.refused(at + 100 * SECOND, at + 100 * SECOND, None);
        }
        let (rate, closed) = pace.view(at + 100 * SECOND);
        assert!(rate.unwrap() >= 6.0 && closed > SECOND && closed <= 60 * SECOND, "{rate:?} {closed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_far_above_what_is_asked_is_forgotten() {
        let (now, pace) = (Instant::now(), pace(None, true));
        pace.refused(now, now, None);
        assert!(pace.view(now).0.is_some());
        pace.accepted(now + 3600 * SECOND);
        assert_eq!(pace.view(now + 3600 * SECOND).0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_learn_from_each_other_what_is_newer() {
        let (now, one, other) = (Instant::now(), pace(None, true), pace(None, true));
        passes(&one, now, SECOND);
        let at = now + SECOND;
        one.refused(now, at, Some(5 * SECOND));
        let (lesson, is_news) = one.lesson(at).unwrap();
        assert!(is_news && !one.lesson(at).unwrap().1);
        one.untold();
        assert!(one.lesson(at).unwrap().1, "told again");
        other.learn(lesson, at + SECOND);
        assert_eq!(other.take(at + SECOND), Err(at + 6 * SECOND));
        let stale = Lesson { base: 1000.0, age: 50 * SECOND, closed: Duration::ZERO };
        let before = other.view(at + SECOND);
        other.learn(stale, at + 2 * SECOND);
        assert_eq!(other.view(at + SECOND), before);
    }
}
