//! Histograms with exponential buckets: fine ones for OpenTelemetry, every so many of them together for the page.
//!
//! The bounds are powers of two and what lies between them, so that both views count the same values exactly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

/// Where a histogram's buckets lie.
#[derive(Debug, PartialEq, Eq)]
pub struct Grid {
    /// Buckets of an octave are two to this power: OpenTelemetry's scale, 0 to 2.
    pub scale: u32,
    /// The power of two below which all values count as one.
    pub low: i32,
    /// The power of two above which all values count as one.
    pub high: i32,
    /// The powers of two that bound buckets on the page: the first, the last and the step.
    pub page: (i32, i32, usize),
    /// How many counts the sum has for one of the unit.
    pub per_unit: u64,
}

/// Seconds, from a cache hit to a generated video: on the page from 1 ms to 17 min, by factors of 2.
pub static SECONDS: Grid = Grid { scale: 2, low: -14, high: 13, page: (-10, 10, 1), per_unit: 1_000_000_000 };
/// Tokens: on the page from 1 to 67 million, by factors of 4, as the conventions advise.
pub static TOKENS: Grid = Grid { scale: 0, low: 0, high: 27, page: (0, 26, 2), per_unit: 1 };

impl Grid {
    fn buckets(&self) -> usize {
        ((self.high - self.low) as usize) << self.scale
    }

    /// The bucket of a value above the lowest bound; bounds belong to the bucket below them.
    fn bucket(&self, value: f64) -> usize {
        const ROOTS: [f64; 3] = [1.189_207_115_002_721, std::f64::consts::SQRT_2, 1.681_792_830_507_429];
        let bits = value.to_bits();
        let octave = ((bits >> 52) & 0x7ff) as i32 - 1023;
        let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
        // In quarters of an octave, rounded up.
        let quarters = match mantissa {
            1.0 => 0,
            m if m <= ROOTS[0] => 1,
            m if m <= ROOTS[1] => 2,
            m if m <= ROOTS[2] => 3,
            _ => 4,
        };
        let above = (octave - self.low) * 4 + quarters;
        let bucket = (above + (4 >> self.scale) - 1) >> (2 - self.scale);
        (bucket.max(1) as usize - 1).min(self.buckets() - 1)
    }

    /// The bounds on the page, in the unit.
    pub fn bounds(&self) -> impl Iterator<Item = f64> + use<> {
        let (first, last, step) = self.page;
        (first..=last).step_by(step).map(|power| 2f64.powi(power))
    }

    /// How many buckets lie below each bound of the page.
    fn below(&self) -> impl Iterator<Item = usize> + use<> {
        let ((first, last, step), low, scale) = (self.page, self.low, self.scale);
        (first..=last).step_by(step).map(move |power| ((power - low) as usize) << scale)
    }
}

/// A value that was seen in a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// The value, in the unit.
    pub value: f64,
    /// The trace.
    pub trace: u128,
    /// The span of it.
    pub span: u64,
    /// When.
    pub at: SystemTime,
}

/// Counts values.
#[derive(Debug)]
pub struct Histogram {
    grid: &'static Grid,
    /// Values at or below the lowest bound.
    low: AtomicU64,
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// The last exemplar below each bound of the page, and above all of them.
    exemplars: OnceLock<Mutex<Vec<Option<Exemplar>>>>,
}

/// The counts of a histogram at a moment.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Where its buckets lie.
    pub grid: &'static Grid,
    /// Values at or below the lowest bound.
    pub low: u64,
    /// Values of each bucket.
    pub buckets: Vec<u64>,
    /// All values together, in the unit.
    pub sum: f64,
    /// At most one for each bucket of the page.
    pub exemplars: Vec<Option<Exemplar>>,
}

impl Histogram {
    /// Empty, on a grid.
    pub fn on(grid: &'static Grid) -> Self {
        let buckets = (0..grid.buckets()).map(|_| AtomicU64::new(0)).collect();
        Self { grid, low: AtomicU64::new(0), buckets, sum: AtomicU64::new(0), exemplars: OnceLock::new() }
    }

    /// Counts a value in the unit, which is none below 0.
    pub fn observe(&self, value: f64, seen_in: Option<(u128, u64)>) {
        if value > 2f64.powi(self.grid.low) {
            self.buckets[self.grid.bucket(value)].fetch_add(1, Ordering::Relaxed);
        } else {
            self.low.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add((value * self.grid.per_unit as f64) as u64, Ordering::Relaxed);
        if let Some((trace, span)) = seen_in {
            let place = self.grid.bounds().take_while(|bound| value > *bound).count();
            let exemplars = self.exemplars.get_or_init(|| Mutex::new(vec![None; self.grid.bounds().count() + 1]));
            let mut exemplars = exemplars.lock().unwrap_or_else(PoisonError::into_inner);
            exemplars[place] = Some(Exemplar { value, trace, span, at: SystemTime::now() });
        }
    }

    /// Its counts now.
    pub fn spread(&self) -> Spread {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let exemplars = self.exemplars.get().map(|e| e.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Spread {
            grid: self.grid,
            low: read(&self.low),
            buckets: self.buckets.iter().map(read).collect(),
            sum: read(&self.sum) as f64 / self.grid.per_unit as f64,
            exemplars: exemplars.unwrap_or_default(),
        }
    }
}

impl Spread {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.low + self.buckets.iter().sum::<u64>()
    }

    /// How many values are at or below each bound of the page.
    pub fn up_to_bounds(&self) -> Vec<u64> {
        let (mut sum, mut done) = (self.low, 0);
        let add = |below: usize| {
            sum += self.buckets[done..below].iter().sum::<u64>();
            done = below;
            sum
        };
        self.grid.below().map(add).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_count_what_is_there() {
        for grid in [&SECONDS, &TOKENS] {
            let mut random = fastrand::Rng::with_seed(7);
            let histogram = Histogram::on(grid);
            let mut values: Vec<f64> = (0..5000).map(|_| 2f64.powf(random.f64() * 45.0 - 17.0)).collect();
            values.extend((-16..30).map(|power| 2f64.powi(power)));
            values.push(0.0);
            values.iter().for_each(|value| histogram.observe(*value, None));
            let spread = histogram.spread();
            assert_eq!(spread.count(), values.len() as u64);
            let counted: Vec<u64> =
                grid.bounds().map(|bound| values.iter().filter(|v| **v <= bound).count() as u64).collect();
            assert_eq!(spread.up_to_bounds(), counted);
            // Every bucket but the last, which takes all above it: (base^i, base^(i+1)].
            let base = 2f64.powf(1.0 / f64::from(1 << grid.scale));
            for (i, count) in spread.buckets[..spread.buckets.len() - 1].iter().enumerate() {
                let low = 2f64.powi(grid.low) * base.powi(i as i32);
                let inside = values.iter().filter(|v| **v > low * (1.0 + 1e-12) && **v <= low * base * (1.0 + 1e-12));
                assert_eq!(*count, inside.count() as u64, "bucket {i}");
            }
        }
    }

    #[test]
    fn an_exemplar_stands_in_its_bucket() {
        let histogram = Histogram::on(&SECONDS);
        histogram.observe(0.5, Some((1, 2)));
        histogram.observe(5000.0, Some((3, 4)));
        histogram.observe(0.3, None);
        let exemplars = histogram.spread().exemplars;
        let bound = SECONDS.bounds().position(|bound| bound == 0.5).unwrap();
        assert_eq!(exemplars[bound].as_ref().map(|e| (e.value, e.trace, e.span)), Some((0.5, 1, 2)));
        assert_eq!(exemplars.last().unwrap().as_ref().map(|e| e.trace), Some(3));
        assert_eq!(exemplars.iter().flatten().count(), 2);
    }
}
