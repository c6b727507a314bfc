//! Rate: how much work leaves the pool in a second while it is full.
//!
//! Learned from requests that end while others wait: work per second of a place, times the number of places, so that it
//! follows a pool that grows or shrinks.

use std::time::Duration;

use tokio::time::Instant;

/// What one request adds to what is remembered: the last hundred or so count.
const NEW: f64 = 1.0 / 64.0;
/// Nothing is known before so many requests ended.
const FEWEST: u32 = 8;
/// A pool from which nothing came for as long as so many requests take usually is slower than it was.
const STALL: f64 = 8.0;

/// What is known about the speed of a pool.
#[derive(Default)]
pub(super) struct Rate {
    /// Work of the usual request.
    work: f64,
    /// Seconds that it holds a place.
    held: f64,
    seen: u32,
    /// The last time that a request ended or the line began; none while nobody waits.
    last: Option<Instant>,
}

impl Rate {
    /// Somebody waits from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// Nobody waits any more, so silence means nothing.
    pub(super) fn pause(&mut self) {
        self.last = None;
    }

    /// A request of this cost held a place for so long.
    pub(super) fn learn(&mut self, cost: u64, held: Duration, now: Instant) {
        self.seen = self.seen.saturating_add(1);
        let new = NEW.max(1.0 / f64::from(self.seen));
        self.work += (cost as f64 - self.work) * new;
        self.held += (held.as_secs_f64() - self.held) * new;
        if self.last.is_some() {
            self.last = Some(now);
        }
    }

    /// Units of work per second, if known.
    pub(super) fn drain(&self, capacity: usize, now: Instant) -> Option<f64> {
        if self.seen < FEWEST || capacity == 0 {
            return None;
        }
        let usual = capacity as f64 * self.work / self.held.max(1e-9);
        let silence = self.last.map_or(0.0, |last| (now - last).as_secs_f64());
        Some(usual.min(STALL * self.work / silence.max(1e-9)))
    }

    /// Work of the usual request.
    pub(super) fn usual_work(&self) -> f64 {
        self.work
    }
}
