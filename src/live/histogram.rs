//! Histogram: times in 89 classes, four for each doubling from a quarter of a millisecond to 18 minutes.

use std::time::Duration;

/// Times from here on are told apart, in microseconds: a power of two.
const FIRST: u64 = 1 << FIRST_BIT;
const FIRST_BIT: u32 = 8;
const DOUBLINGS: usize = 22;
const CLASSES: usize = DOUBLINGS * 4 + 1;

/// How many took how long.
#[derive(Clone, Debug)]
pub(super) struct Histogram([u32; CLASSES]);

impl Default for Histogram {
    fn default() -> Self {
        Self([0; CLASSES])
    }
}

impl Histogram {
    pub(super) fn note(&mut self, time: Duration) {
        let class = &mut self.0[class(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))];
        *class = class.saturating_add(1);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (own, more) in self.0.iter_mut().zip(&other.0) {
            *own = own.saturating_add(*more);
        }
    }

    /// The milliseconds within which this share of all ended; none when there are none.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        if all == 0 {
            return None;
        }
        let wanted = share * all as f64;
        let mut before = 0.0;
        for (at, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = f64::from(*count);
            if before + count >= wanted {
                let (from, to) = (edge(at), edge(at + 1));
                let micros = from + (to - from) * ((wanted - before) / count).clamp(0.0, 1.0);
                return Some((micros / 10.0).round() / 100.0);
            }
            before += count;
        }
        None
    }
}

fn class(micros: u64) -> usize {
    if micros < FIRST {
        return 0;
    }
    let bit = micros.ilog2();
    let quarter = (micros >> (bit - 2)) & 3;
    let class = (bit - FIRST_BIT) as usize * 4 + quarter as usize + 1;
    class.min(CLASSES - 1)
}

/// Where a class begins, in microseconds.
fn edge(class: usize) -> f64 {
    match class.checked_sub(1) {
        None => 0.0,
        Some(at) => FIRST as f64 * f64::from(1_u32 << (at / 4).min(31)) * (1.0 + (at % 4) as f64 / 4.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_within_its_class() {
        for micros in (0..40).map(|n| (1.7_f64.powi(n)) as u64) {
            let at = class(micros);
            let is_within = edge(at) <= micros as f64 && ((micros as f64) < edge(at + 1) || at == CLASSES - 1);
            assert!(is_within, "{micros} in {at}");
        }
    }

    #[test]
    fn quantiles_are_within_a_quarter() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=1000).for_each(|ms| histogram.note(Duration::from_millis(ms)));
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let found = histogram.quantile(share).unwrap();
            assert!((found / expected - 1.0).abs() < 0.13, "{share}: {found}");
        }
        let mut both = Histogram::default();
        both.add(&histogram);
        assert_eq!(both.quantile(0.5), histogram.quantile(0.5));
    }
}
