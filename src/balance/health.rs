//! The health of one endpoint, from probe results, with hysteresis.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many probes in a row change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures in a row that make it unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
}

/// Whether an endpoint takes requests.
#[derive(Debug)]
pub struct Health {
    thresholds: Thresholds,
    healthy: AtomicBool,
    /// Probes in a row that disagree with the state.
    against: Mutex<u32>,
}

impl Health {
    pub(super) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, healthy: AtomicBool::new(true), against: Mutex::new(0) }
    }

    /// Whether it takes requests.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Takes one probe's result; answers the new state when it changed.
    pub fn observe(&self, success: bool) -> Option<bool> {
        let mut against = self.against.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if success == self.is_healthy() {
            *against = 0;
            return None;
        }
        *against += 1;
        let needed = if success { self.thresholds.healthy_after } else { self.thresholds.unhealthy_after };
        if *against < needed {
            return None;
        }
        *against = 0;
        self.healthy.store(success, Ordering::Relaxed);
        Some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_slips_change_nothing() {
        let health = Health::new(Thresholds { unhealthy_after: 3, healthy_after: 2 });
        for probe in [false, false, true, false, false] {
            assert_eq!(health.observe(probe), None);
        }
        assert_eq!(health.observe(false), Some(false));
        assert_eq!((health.observe(true), health.observe(false), health.observe(true)), (None, None, None));
        assert_eq!(health.observe(true), Some(true));
    }
}
