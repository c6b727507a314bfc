//! Surprise: how much longer requests take than was expected of them.

use std::sync::atomic::{AtomicU32, Ordering};

/// Buckets of a quarter octave each, from a quarter of the expected time to 64 times it.
const BUCKETS: usize = 32;
const PER_OCTAVE: f64 = 4.0;
const LOWEST: f64 = 0.25;
/// Nothing is said before so many requests were seen.
const FEWEST: u32 = 32;
/// From so many on, the older ones count half.
const MOST: u32 = 4096;

/// The distribution of taken over expected time, recent requests only.
#[derive(Debug, Default)]
pub(super) struct Surprise {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl Surprise {
    /// Learns that a request took so many times what was expected.
    pub(super) fn learn(&self, ratio: f64) {
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        let bucket = ((ratio / LOWEST).log2() * PER_OCTAVE).clamp(0.0, (BUCKETS - 1) as f64) as usize;
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        if self.total.fetch_add(1, Ordering::Relaxed) >= MOST {
            let halve = |count: &AtomicU32| {
                let half = count.load(Ordering::Relaxed) / 2;
                count.store(half, Ordering::Relaxed);
                half
            };
            self.total.store(self.counts.iter().map(halve).sum(), Ordering::Relaxed);
        }
    }

    /// What this share of requests stays below, as a multiple of the expected time.
    pub(super) fn below(&self, share: f64) -> Option<f64> {
        let total = self.total.load(Ordering::Relaxed);
        if total < FEWEST {
            return None;
        }
        let wanted = (f64::from(total) * share).ceil() as u32;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count.load(Ordering::Relaxed);
            seen >= wanted
        });
        Some(LOWEST * ((bucket.unwrap_or(BUCKETS - 1) + 1) as f64 / PER_OCTAVE).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_what_most_stay_below_and_forgets() {
        let surprise = Surprise::default();
        (0..FEWEST - 1).for_each(|_| surprise.learn(1.0));
        assert_eq!(surprise.below(0.95), None);
        (0..1000).for_each(|i| surprise.learn(if i % 100 < 3 { 30.0 } else { 1.0 }));
        let below = surprise.below(0.95).unwrap();
        assert!((1.0..1.3).contains(&below), "{below}");
        assert!(surprise.below(0.99).unwrap() > 29.0);
        (0..20_000).for_each(|_| surprise.learn(8.0));
        let below = surprise.below(0.5).unwrap();
        assert!((8.0..10.0).contains(&below), "{below}");
        [f64::NAN, f64::INFINITY, 0.0, -1.0].into_iter().for_each(|odd| surprise.learn(odd));
    }
}
