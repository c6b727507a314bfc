//! Report: what an endpoint says of its own load, and how far it is believed.
//!
//! An endpoint's own pace already holds what others usually ask of it. So only how its report *differs* from what it
//! usually reports counts, and only once answers were closer to what was expected with it than without it: an endpoint
//! that lies, or whose report never changes, is chosen as if it reported nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What an endpoint says of its own load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Requests that it works on, whoever sent them.
    pub running: Option<f64>,
    /// Requests that wait there.
    pub waiting: Option<f64>,
    /// Requests that it can work on at once.
    pub capacity: Option<f64>,
    /// Use of its KV cache, 0 to 1.
    pub kv_usage: Option<f64>,
}

/// Weight of the latest report in what is usual, and of the latest answer in what was proved.
const LATEST: f64 = 0.1;
/// Answers before a report is believed.
const PROOFS: u32 = 16;
/// How much closer expectations have to be with it.
const CLOSER: f64 = 0.95;
/// For how long proof is good.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// The largest error of one answer that counts, as a share of its time.
const LARGEST_ERROR: f64 = 4.0;

/// What was heard of one endpoint.
#[derive(Debug, Default)]
pub struct Heard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    latest: Option<(Report, u64)>,
    /// Requests of others, as reported last and usually.
    foreign: f64,
    usual: Option<f64>,
    /// Mean errors of what was expected without and with reports.
    errors: (f64, f64),
    proofs: u32,
    proved: u64,
}

impl Heard {
    /// Takes a report, given that `own` of the requests there are this gateway's.
    pub(super) fn hear(&self, report: Report, own: usize, now: u64) {
        let mut state = self.lock();
        if report.running.is_some() || report.waiting.is_some() {
            let all = report.running.unwrap_or(0.0) + report.waiting.unwrap_or(0.0);
            let foreign = (all - own as f64).max(0.0);
            state.foreign = foreign;
            state.usual = Some(state.usual.map_or(foreign, |usual| usual + (foreign - usual) * LATEST));
        }
        state.latest = Some((report, now));
    }

    /// The latest report, with its age.
    pub fn latest(&self, now: u64) -> Option<(Report, Duration)> {
        self.lock().latest.map(|(report, at)| (report, Duration::from_micros(now.saturating_sub(at))))
    }

    /// Whether reports are believed at the moment.
    pub fn is_trusted(&self, now: u64) -> bool {
        self.lock().is_trusted(now)
    }

    /// How many more requests of others there are than usual; 0 when nothing fresh says so.
    pub(super) fn deviation(&self, now: u64, stale_after: Duration) -> f64 {
        self.lock().deviation(now, stale_after)
    }

    /// The deviation, if it is believed.
    pub(super) fn trusted(&self, now: u64, stale_after: Duration) -> f64 {
        let state = self.lock();
        if state.is_trusted(now) { state.deviation(now, stale_after) } else { 0.0 }
    }

    /// Compares what was expected, without and with reports, with what it took.
    pub(super) fn proved(&self, expected: (f64, f64), seconds: f64, now: u64) {
        if (expected.0 - expected.1).abs() <= f64::EPSILON * expected.0.abs() || seconds <= 0.0 {
            return;
        }
        let error = |expected: f64| ((expected - seconds).abs() / seconds).min(LARGEST_ERROR);
        let mut state = self.lock();
        state.errors.0 += (error(expected.0) - state.errors.0) * LATEST;
        state.errors.1 += (error(expected.1) - state.errors.1) * LATEST;
        state.proofs = state.proofs.saturating_add(1);
        state.proved = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_trusted(&self, now: u64) -> bool {
        self.proofs >= PROOFS
            && self.errors.1 < self.errors.0 * CLOSER
            && Duration::from_micros(now.saturating_sub(self.proved)) < GOOD_FOR
    }

    fn deviation(&self, now: u64, stale_after: Duration) -> f64 {
        let fresh = |(_, at): (Report, u64)| Duration::from_micros(now.saturating_sub(at)) <= stale_after;
        match (self.usual, self.latest) {
            (Some(usual), Some(latest)) if fresh(latest) => self.foreign - usual,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_secs(5);

    fn waiting(waiting: f64) -> Report {
        Report { waiting: Some(waiting), ..Report::default() }
    }

    #[test]
    fn a_report_that_never_changes_says_nothing_however_large() {
        let heard = Heard::default();
        for at in 0..100 {
            heard.hear(waiting(10_000.0), 0, at);
        }
        assert!(heard.deviation(100, FRESH).abs() < 1e-9);
    }

    #[test]
    fn it_is_believed_once_it_explains_and_no_longer_than_it_does() {
        let heard = Heard::default();
        heard.hear(waiting(0.0), 0, 0);
        heard.hear(waiting(50.0), 0, 1);
        assert_eq!(heard.trusted(2, FRESH), 0.0);
        (0..20).for_each(|_| heard.proved((1.0, 2.0), 2.0, 2));
        assert!(heard.trusted(2, FRESH) > 40.0);
        assert_eq!(heard.trusted(20_000_000, FRESH), 0.0);
        (0..40).for_each(|_| heard.proved((1.0, 2.0), 1.0, 2));
        assert_eq!(heard.trusted(2, FRESH), 0.0);
    }

    #[test]
    fn what_is_stale_or_absent_counts_as_nothing() {
        let heard = Heard::default();
        assert_eq!(heard.deviation(0, FRESH), 0.0);
        heard.hear(waiting(0.0), 0, 0);
        heard.hear(waiting(50.0), 0, 1);
        assert_eq!(heard.deviation(6_000_000, FRESH), 0.0);
        heard.hear(Report::default(), 0, 6_000_000);
    }
}
