//! Recent: single requests that failed or stand out.
//!
//! Failures are kept by blame, so that a flood of one hides none of another, and of a flood no more than some of each second
//! are taken. Slow ones are the slowest of each minute.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use super::{BLAMES, Ended, lock};
use crate::ids::{CallerId, PoolName};

/// The most rows of one kind and second.
const EACH_SECOND: u64 = 50;
/// The slowest of a minute.
const SLOWEST: usize = 20;
/// The minutes whose slowest are kept.
const MINUTES: u64 = 5;
/// The longest text of a row, in bytes.
const LONGEST: usize = 256;

/// Why a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It failed.
    Failed,
    /// It was among the slowest.
    Slow,
    /// It waited for a place.
    Queued,
    /// It took more than one attempt.
    Retried,
    /// It ran in another pool than its own.
    Spilled,
    /// A cache had some of it.
    Cached,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 6] = [Self::Failed, Self::Slow, Self::Queued, Self::Retried, Self::Spilled, Self::Cached];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::Queued => "queued",
            Self::Retried => "retried",
            Self::Spilled => "spilled",
            Self::Cached => "cached",
        }
    }
}

/// One request, as its record has it.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of a record")]
pub struct Row {
    pub time: String,
    pub request_id: String,
    pub trace_id: Option<String>,
    pub nvcf_request_id: Option<String>,
    pub method: String,
    pub path: String,
    pub caller: Option<String>,
    pub org: Option<String>,
    pub team: Option<String>,
    pub operation: Option<String>,
    pub model: Option<String>,
    pub pool: Option<String>,
    pub endpoint: Option<String>,
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub error: Option<&'static str>,
    pub blame: Option<&'static str>,
    pub detail: Option<String>,
    pub total_ms: f64,
    pub first_byte_ms: Option<f64>,
    pub queue_ms: Option<f64>,
    pub attempts: u32,
    pub spilled_from: Option<String>,
    pub spill_reason: Option<&'static str>,
    pub hedge: Option<&'static str>,
    pub cache: Option<&'static str>,
    pub cache_hits: Option<usize>,
    pub cache_misses: Option<usize>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// For the order of the slowest.
    #[serde(skip)]
    total: Duration,
}

impl Row {
    fn new(ended: &Ended<'_>) -> Self {
        let text = |text: &str| text[..text.floor_char_boundary(text.len().min(LONGEST))].to_owned();
        let some = |optional: Option<&str>| optional.map(text);
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            time: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            request_id: text(ended.request_id),
            trace_id: ended.trace.map(|trace| format!("{trace:032x}")),
            nvcf_request_id: some(ended.nvcf_id),
            method: text(ended.method),
            path: text(ended.path),
            caller: some(ended.caller.map(CallerId::as_str)),
            org: some(ended.org),
            team: some(ended.team),
            operation: some(ended.operation),
            model: some(ended.model),
            pool: some(ended.pool.map(PoolName::as_str)),
            endpoint: some(ended.endpoint),
            status: ended.status,
            grpc_status: ended.grpc,
            error: ended.failure.map(|(label, _)| label),
            blame: ended.failure.map(|(_, blame)| blame),
            detail: some(ended.detail),
            total_ms: millis(ended.total),
            first_byte_ms: ended.first_byte.map(millis),
            queue_ms: ended.queued.map(millis),
            attempts: ended.attempts,
            spilled_from: ended.spill.map(|(from, _)| text(from)),
            spill_reason: ended.spill.map(|(_, reason)| reason),
            hedge: ended.hedge,
            cache: ended.cache.map(|(result, ..)| result),
            cache_hits: ended.cache.map(|(_, hits, _)| hits),
            cache_misses: ended.cache.map(|(.., misses)| misses),
            input_tokens: ended.tokens.map(|(input, _)| input),
            output_tokens: ended.tokens.map(|(_, output)| output),
            total: ended.total,
        }
    }
}

/// Single requests by kind.
pub(super) struct Recent {
    failed: [Latest; BLAMES.len()],
    /// Queued, retried, spilled, cached.
    others: [Latest; 4],
    slow: Slowest,
}

impl Recent {
    pub(super) fn new(kept: usize) -> Self {
        let latest = || Latest::new(kept);
        Self {
            failed: std::array::from_fn(|_| latest()),
            others: std::array::from_fn(|_| latest()),
            slow: Slowest::default(),
        }
    }

    pub(super) fn note(&self, ended: &Ended<'_>, second: u64) {
        let failed = ended.failure.and_then(|(_, blame)| BLAMES.iter().position(|known| *known == blame));
        let is_cached = ended.cache.is_some_and(|(_, hits, _)| hits > 0);
        let stands_out = [ended.queued.is_some(), ended.attempts > 1, ended.spill.is_some(), is_cached];
        let others = self.others.iter().zip(stands_out).filter(|(_, is)| *is).map(|(latest, _)| latest);
        let mut row = None;
        for latest in failed.map(|at| &self.failed[at]).into_iter().chain(others).filter(|l| l.may_take(second)) {
            latest.take(Arc::clone(row.get_or_insert_with(|| Arc::new(Row::new(ended)))));
        }
        if self.slow.may_take(ended.total, second) {
            self.slow.take(Arc::clone(row.get_or_insert_with(|| Arc::new(Row::new(ended)))), second);
        }
    }

    pub(super) fn rows(&self, kind: Kind, now: u64) -> Vec<Arc<Row>> {
        match kind {
            Kind::Failed => {
                let mut rows: Vec<_> = self.failed.iter().flat_map(Latest::rows).collect();
                rows.sort_by(|a, b| b.time.cmp(&a.time));
                rows
            }
            Kind::Slow => self.slow.rows(now),
            Kind::Queued => self.others[0].rows(),
            Kind::Retried => self.others[1].rows(),
            Kind::Spilled => self.others[2].rows(),
            Kind::Cached => self.others[3].rows(),
        }
    }
}

/// The latest of one kind.
struct Latest {
    most: usize,
    /// The second, and in its lowest bits how many it has given.
    taken: AtomicU64,
    rows: Mutex<VecDeque<Arc<Row>>>,
}

impl Latest {
    fn new(most: usize) -> Self {
        Self { most, taken: AtomicU64::new(0), rows: Mutex::default() }
    }

    /// Whether this second has not given enough yet.
    fn may_take(&self, second: u64) -> bool {
        const BITS: u32 = 8;
        let seen = self.taken.load(Ordering::Relaxed);
        if seen >> BITS == second && seen & ((1 << BITS) - 1) >= EACH_SECOND {
            return false;
        }
        let next = if seen >> BITS == second { seen + 1 } else { second << BITS | 1 };
        // Whoever loses the race is one of many.
        self.taken.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            || self.taken.load(Ordering::Relaxed) & ((1 << BITS) - 1) < EACH_SECOND
    }

    fn take(&self, row: Arc<Row>) {
        let mut rows = lock(&self.rows);
        if rows.len() >= self.most {
            rows.pop_front();
        }
        rows.push_back(row);
    }

    fn rows(&self) -> Vec<Arc<Row>> {
        lock(&self.rows).iter().rev().cloned().collect()
    }
}

/// The slowest of each minute.
#[derive(Default)]
struct Slowest {
    minute: AtomicU64,
    /// Microseconds from which on one is among them.
    from: AtomicU64,
    rows: Mutex<VecDeque<(u64, Vec<Arc<Row>>)>>,
}

impl Slowest {
    fn may_take(&self, total: Duration, second: u64) -> bool {
        let micros = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
        self.minute.load(Ordering::Relaxed) != second / 60 || micros > self.from.load(Ordering::Relaxed)
    }

    fn take(&self, row: Arc<Row>, second: u64) {
        let minute = second / 60;
        let mut minutes = lock(&self.rows);
        if minutes.back().is_none_or(|(latest, _)| *latest < minute) {
            minutes.push_back((minute, Vec::with_capacity(SLOWEST + 1)));
            while minutes.front().is_some_and(|(first, _)| first + MINUTES <= minute) {
                minutes.pop_front();
            }
            self.from.store(0, Ordering::Relaxed);
            self.minute.store(minute, Ordering::Relaxed);
        }
        let Some((_, rows)) = minutes.back_mut() else { return };
        let at = rows.partition_point(|known| known.total >= row.total);
        rows.insert(at, row);
        rows.truncate(SLOWEST);
        if let Some(last) = rows.get(SLOWEST - 1) {
            self.from.store(u64::try_from(last.total.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    fn rows(&self, now: u64) -> Vec<Arc<Row>> {
        let minutes = lock(&self.rows);
        let fresh = minutes.iter().filter(|(minute, _)| minute + MINUTES > now / 60);
        let mut rows: Vec<_> = fresh.flat_map(|(_, rows)| rows.iter().cloned()).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.total));
        rows
    }
}
