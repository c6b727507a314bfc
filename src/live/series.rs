//! Series: counts and times, step by step, in rings.

use std::collections::HashMap;

use serde::Serialize;

use super::histogram::Histogram;
use super::{BLAMES, Ended, MOST_POOLS, OTHER};
use crate::ids::PoolName;

/// How many seconds are remembered at most.
pub(super) const LONGEST: u64 = 3600;
/// The time over which pools are summed.
const MINUTE: u64 = 60;

/// How long the steps of a series are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// A second, for five minutes.
    #[default]
    Second,
    /// 15 seconds, for an hour.
    Quarter,
}

impl Step {
    /// Its seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Quarter => 15,
        }
    }

    /// How many are remembered.
    fn count(self) -> u64 {
        match self {
            Self::Second => 300,
            Self::Quarter => LONGEST / 15,
        }
    }
}

/// What happened in one step.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) requests: u32,
    failures: [u32; BLAMES.len()],
    total: Histogram,
    first_byte: Histogram,
    input: u64,
    output: u64,
    hits: u64,
    misses: u64,
    queued: u32,
    queued_us: u64,
    retries: u32,
    spills: u32,
}

impl Slot {
    pub(super) fn count(&mut self, ended: &Ended<'_>) {
        self.requests += 1;
        self.total.note(ended.total);
        if let Some(first_byte) = ended.first_byte {
            self.first_byte.note(first_byte);
        }
        if let Some((_, blame)) = ended.failure
            && let Some(at) = BLAMES.iter().position(|known| *known == blame)
        {
            self.failures[at] += 1;
        }
        if let Some((input, output)) = ended.tokens {
            self.input = self.input.saturating_add(input);
            self.output = self.output.saturating_add(output);
        }
        if let Some((_, hits, misses)) = ended.cache {
            self.hits += hits as u64;
            self.misses += misses as u64;
        }
        if let Some(queued) = ended.queued {
            self.queued += 1;
            self.queued_us = self.queued_us.saturating_add(u64::try_from(queued.as_micros()).unwrap_or(u64::MAX));
        }
        self.retries = self.retries.saturating_add(ended.attempts.saturating_sub(1));
        self.spills += u32::from(ended.spill.is_some());
    }

    fn add(&mut self, other: &Self) {
        let Self { requests, failures, total, first_byte, input, output, hits, misses, .. } = other;
        self.requests = self.requests.saturating_add(*requests);
        for (own, more) in self.failures.iter_mut().zip(failures) {
            *own = own.saturating_add(*more);
        }
        self.total.add(total);
        self.first_byte.add(first_byte);
        self.input = self.input.saturating_add(*input);
        self.output = self.output.saturating_add(*output);
        self.hits = self.hits.saturating_add(*hits);
        self.misses = self.misses.saturating_add(*misses);
        self.queued = self.queued.saturating_add(other.queued);
        self.queued_us = self.queued_us.saturating_add(other.queued_us);
        self.retries = self.retries.saturating_add(other.retries);
        self.spills = self.spills.saturating_add(other.spills);
    }

    fn failed(&self) -> u64 {
        self.failures.iter().map(|count| u64::from(*count)).sum()
    }
}

/// Steps of one length, each in the place of the one that is a whole turn older.
struct Ring {
    step: Step,
    slots: Vec<(u64, Option<Box<Slot>>)>,
}

impl Ring {
    fn new(step: Step) -> Self {
        Self { step, slots: (0..step.count()).map(|_| (0, None)).collect() }
    }

    /// The place of a step, which is named by its number.
    fn place(&self, number: u64) -> usize {
        usize::try_from(number % self.step.count()).unwrap_or_default()
    }

    fn add(&mut self, second: u64, more: &Slot) {
        let number = second / self.step.seconds();
        let place = self.place(number);
        let (stamp, slot) = &mut self.slots[place];
        if number < *stamp {
            return;
        }
        let slot = slot.get_or_insert_default();
        if number > *stamp {
            *stamp = number;
            **slot = Slot::default();
        }
        slot.add(more);
    }

    fn get(&self, number: u64) -> Option<&Slot> {
        let (stamp, slot) = &self.slots[self.place(number)];
        slot.as_deref().filter(|_| *stamp == number)
    }
}

/// One pool, or all.
struct Series {
    latest: u64,
    seconds: Ring,
    quarters: Ring,
}

impl Default for Series {
    fn default() -> Self {
        Self { latest: 0, seconds: Ring::new(Step::Second), quarters: Ring::new(Step::Quarter) }
    }
}

impl Series {
    fn add(&mut self, second: u64, slot: &Slot) {
        self.latest = self.latest.max(second);
        self.seconds.add(second, slot);
        self.quarters.add(second, slot);
    }

    fn ring(&self, step: Step) -> &Ring {
        match step {
            Step::Second => &self.seconds,
            Step::Quarter => &self.quarters,
        }
    }
}

/// All pools.
#[derive(Default)]
pub(super) struct Rings {
    all: Series,
    pools: HashMap<PoolName, Series>,
}

impl Rings {
    pub(super) fn add(&mut self, name: &str, second: u64, slot: &Slot) {
        self.all.add(second, slot);
        let has_room = self.pools.contains_key(name) || {
            if self.pools.len() >= MOST_POOLS {
                self.pools.retain(|_, series| series.latest + LONGEST > second);
            }
            self.pools.len() < MOST_POOLS
        };
        let name = if has_room { name } else { OTHER };
        if let Some(series) = self.pools.get_mut(name) {
            return series.add(second, slot);
        }
        self.pools.entry(name.into()).or_default().add(second, slot);
    }

    /// The whole steps from `since` until now.
    pub(super) fn columns(&self, step: Step, since: u64, now: u64, pool: Option<&str>) -> Columns {
        let seconds = step.seconds();
        let end = now / seconds;
        // A step that is not over is not shown, and the one in whose place it is put is gone.
        let first = since.div_ceil(seconds).max(end.saturating_sub(step.count() - 1)).min(end);
        let mut columns = Columns { from: first * seconds, step_s: seconds, ..Columns::default() };
        let series = pool.map_or(Some(&self.all), |name| self.pools.get(name));
        let none = Slot::default();
        for number in first..end {
            let slot = series.and_then(|series| series.ring(step).get(number));
            columns.push(slot.unwrap_or(&none));
        }
        columns
    }

    /// The last minute of each pool.
    pub(super) fn sums(&self, now: u64) -> Vec<Sum> {
        let sum = |(name, series): (&PoolName, &Series)| {
            let mut sum = Slot::default();
            for second in now.saturating_sub(MINUTE)..now {
                if let Some(slot) = series.seconds.get(second) {
                    sum.add(slot);
                }
            }
            let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| sum.total.quantile(share));
            Sum {
                pool: name.to_string(),
                requests: sum.requests,
                failures: sum.failed(),
                tokens: sum.input.saturating_add(sum.output),
                p50_ms,
                p99_ms,
            }
        };
        let is_known = |(_, series): &(&PoolName, &Series)| series.latest + MINUTE >= now;
        let mut sums: Vec<Sum> = self.pools.iter().filter(is_known).map(sum).collect();
        sums.sort_unstable_by(|a, b| a.pool.cmp(&b.pool));
        sums
    }
}

/// The last minute of a pool.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields say it")]
pub struct Sum {
    pub pool: String,
    pub requests: u32,
    pub failures: u64,
    pub tokens: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// Counts, step by step; times in milliseconds, none where nothing ended.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the fields say it")]
pub struct Columns {
    /// The Unix second with which the first step begins.
    pub from: u64,
    pub step_s: u64,
    pub requests: Vec<u32>,
    /// By blame.
    pub failures: Failures,
    pub total_p50: Vec<Option<f64>>,
    pub total_p90: Vec<Option<f64>>,
    pub total_p99: Vec<Option<f64>>,
    pub first_byte_p50: Vec<Option<f64>>,
    pub first_byte_p90: Vec<Option<f64>>,
    pub first_byte_p99: Vec<Option<f64>>,
    pub input_tokens: Vec<u64>,
    pub output_tokens: Vec<u64>,
    pub cache_hits: Vec<u64>,
    pub cache_misses: Vec<u64>,
    pub queued: Vec<u32>,
    /// The mean wait of those that waited.
    pub queue_ms: Vec<Option<f64>>,
    pub retries: Vec<u32>,
    pub spills: Vec<u32>,
}

/// A column for each blame.
#[derive(Clone, Debug, Default)]
pub struct Failures([Vec<u32>; BLAMES.len()]);

impl Serialize for Failures {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(BLAMES.iter().zip(&self.0))
    }
}

impl Columns {
    /// Where the next step begins.
    pub(super) fn end(&self) -> u64 {
        self.from + self.requests.len() as u64 * self.step_s
    }

    fn push(&mut self, slot: &Slot) {
        self.requests.push(slot.requests);
        for (column, count) in self.failures.0.iter_mut().zip(slot.failures) {
            column.push(count);
        }
        let quantiles = |histogram: &Histogram| [0.5, 0.9, 0.99].map(|share| histogram.quantile(share));
        let [p50, p90, p99] = quantiles(&slot.total);
        self.total_p50.push(p50);
        self.total_p90.push(p90);
        self.total_p99.push(p99);
        let [p50, p90, p99] = quantiles(&slot.first_byte);
        self.first_byte_p50.push(p50);
        self.first_byte_p90.push(p90);
        self.first_byte_p99.push(p99);
        self.input_tokens.push(slot.input);
        self.output_tokens.push(slot.output);
        self.cache_hits.push(slot.hits);
        self.cache_misses.push(slot.misses);
        self.queued.push(slot.queued);
        let wait = |_: &u32| (slot.queued_us as f64 / f64::from(slot.queued) / 10.0).round() / 100.0;
        self.queue_ms.push(Some(slot.queued).filter(|queued| *queued > 0).as_ref().map(wait));
        self.retries.push(slot.retries);
        self.spills.push(slot.spills);
    }
}
