//! Tally: what was admitted in each window, and whether that was right.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::load::{Check, Ending};

/// What a cell's checks came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Each window.
    pub windows: Vec<Window>,
    /// Admitted, in whatever window, beyond what the windows that they lay in allow.
    pub above: u64,
    /// Admitted, but in none of the sums of Redis.
    pub uncharged: u64,
    /// Checks that lay in two windows, so that the sooner with room was taken for theirs.
    pub astride: u64,
    /// Refused because Redis was late or away.
    pub unknown: u64,
    /// Median time of a check that asked nobody and was admitted.
    pub admitted_at_once: Option<Duration>,
    /// Share of all checks that waited for a round trip.
    pub waited: f64,
    /// 99th percentile of the time of those that waited, in microseconds.
    pub waited_p99: u64,
}

/// One window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Checks that came.
    pub offered: u64,
    /// Those admitted.
    pub admitted: u64,
    /// Those refused.
    pub refused: u64,
    /// What Redis has granted in it.
    pub charged: u64,
}

const SECOND: u64 = 1_000_000;

impl Window {
    /// Those refused although there would have been room until the end.
    pub fn refused_wrongly(&self, limit: u64) -> u64 {
        self.refused.min(limit.saturating_sub(self.admitted))
    }
}

impl Tally {
    /// The share of what could have been admitted that was: mean and least over the windows.
    pub fn used(&self, limit: u64) -> (f64, f64) {
        let shares: Vec<f64> = self
            .windows
            .iter()
            .map(|w| w.admitted as f64 / w.offered.max(w.admitted).min(limit).max(1) as f64)
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        (mean, shares.into_iter().fold(f64::INFINITY, f64::min))
    }

    /// The most that any window let through, by what was seen here and by what Redis granted.
    pub fn largest(&self) -> (u64, u64) {
        let most = |of: fn(&Window) -> u64| self.windows.iter().map(of).max().unwrap_or(0);
        (most(|w| w.admitted), most(|w| w.charged))
    }

    /// A sum over the windows.
    pub fn sum(&self, of: impl Fn(&Window) -> u64) -> u64 {
        self.windows.iter().map(of).sum()
    }
}

/// Counts the windows of these seconds. What is above a limit is looked for in all of them.
pub fn count(checks: &[Check], limit: u64, seconds: Range<u64>, charged: &BTreeMap<u64, u64>) -> Tally {
    let mut tally = Tally::default();
    let mut windows: BTreeMap<u64, Window> = BTreeMap::new();
    let second = |time: u64| time / SECOND;
    let mut admitted: Vec<(u64, u64)> = Vec::new();
    let mut at_once = Vec::new();
    let mut waited = Vec::new();
    for check in checks {
        let window = windows.entry(second(check.from)).or_default();
        window.offered += 1;
        match check.ending {
            Ending::Admitted => admitted.push((second(check.from), second(check.to))),
            Ending::Refused => windows.entry(second(check.to)).or_default().refused += 1,
            Ending::Unknown => tally.unknown += 1,
        }
        match check.at_once {
            Some(time) if check.ending == Ending::Admitted => at_once.push(time),
            Some(_) => {}
            None => waited.push(check.to.saturating_sub(check.from)),
        }
    }
    // Those that must count soonest first: then none is above that could have been placed.
    admitted.sort_unstable_by_key(|(from, to)| (*to, *from));
    for (from, to) in admitted {
        tally.astride += u64::from(from != to);
        let room = (from..=to).find(|at| windows.get(at).is_none_or(|w| w.admitted < limit));
        tally.above += u64::from(room.is_none());
        windows.entry(room.unwrap_or(to)).or_default().admitted += 1;
    }
    for (at, window) in &mut windows {
        window.charged = charged.get(at).copied().unwrap_or(0);
    }
    // Checks astride may have been placed one window too soon, so sums over all windows are compared.
    let (all, granted) = windows.values().fold((0, 0), |(a, g), w| (a + w.admitted, g + w.charged));
    tally.uncharged = u64::saturating_sub(all, granted);
    for window in windows.values() {
        let surplus = window.admitted.saturating_sub(window.charged);
        tally.uncharged = tally.uncharged.max(surplus.saturating_sub(tally.astride));
    }
    tally.windows = seconds.map(|at| windows.get(&at).copied().unwrap_or_default()).collect();
    at_once.sort_unstable();
    waited.sort_unstable();
    tally.admitted_at_once = at_once.get(at_once.len() / 2).copied();
    tally.waited = waited.len() as f64 / checks.len().max(1) as f64;
    tally.waited_p99 = waited.get(waited.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0);
    tally
}
