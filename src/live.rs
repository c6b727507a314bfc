//! Live: what happened of late, for the console and `nimgate top`.
//!
//! It remembers counts and times of each second for five minutes and of every 15 seconds for an hour, who called in the
//! last five minutes, and single requests that failed or stand out. It holds what a record holds, and no more: no header, no
//! query, no body.
//!
//! Each thread counts in a shard of its own, which is emptied into the common rings once in a second, so that
//! requests wait for nobody. Memory is bounded: 34 pools of 0.5 MiB each at most, 16 shards of 100 KiB, and
//! records of 4 KiB, of which there are at most 11 times as many as are kept of each kind.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::ids::{CallerId, PoolName};

mod callers;
mod histogram;
mod recent;
mod series;
#[cfg(test)]
mod tests;

pub use callers::{Callers, Use};
pub use recent::{Kind, Row};
pub use series::{Columns, Step, Sum};

use callers::Interval;
use recent::Recent;
use series::{Rings, Slot};

/// How many single requests of each kind are kept, unless told otherwise.
pub const KEPT: usize = 200;
/// The layers that failures are blamed on, in the order of their counts.
pub const BLAMES: [&str; 6] = ["client", "quota", "gateway", "network", "platform", "inference-service"];

const SHARDS: usize = 16;
/// The most pools that are told apart; requests without one count as one.
const MOST_POOLS: usize = 32;
/// What counts together when there are more.
const OTHER: &str = "other";

/// What is remembered of an ended request. Texts are those of its record.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of a record")]
pub struct Ended<'a> {
    pub request_id: &'a str,
    pub trace: Option<u128>,
    pub nvcf_id: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub caller: Option<&'a CallerId>,
    pub org: Option<&'a str>,
    pub team: Option<&'a str>,
    pub operation: Option<&'a str>,
    pub model: Option<&'a str>,
    pub pool: Option<&'a PoolName>,
    pub endpoint: Option<&'a str>,
    pub status: u16,
    pub grpc: Option<u16>,
    /// Label and blame of its failure.
    pub failure: Option<(&'static str, &'static str)>,
    pub detail: Option<&'a str>,
    pub total: Duration,
    pub first_byte: Option<Duration>,
    pub queued: Option<Duration>,
    pub attempts: u32,
    /// The pool that it should have run in, and why it did not.
    pub spill: Option<(&'a str, &'static str)>,
    pub hedge: Option<&'static str>,
    /// What a cache had of it: the result, items known and asked for.
    pub cache: Option<(&'static str, usize, usize)>,
    /// Tokens of its prompt and of its answer.
    pub tokens: Option<(u64, u64)>,
}

/// What happened of late.
pub struct Live {
    begun: Instant,
    /// The Unix second that is the first here.
    epoch: u64,
    shards: [Shard; SHARDS],
    rings: Mutex<Rings>,
    callers: Mutex<Callers>,
    recent: Recent,
}

/// The counts of some threads, a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Counts>);

/// What was not yet put into the rings.
#[derive(Default)]
struct Counts {
    pools: HashMap<PoolName, Open>,
    callers: Interval,
}

/// The second that is under way for one pool.
struct Open {
    second: u64,
    slot: Box<Slot>,
}

/// One look at what happened.
#[derive(Debug, Serialize)]
pub struct View {
    /// When this process began to count, in Unix seconds: another number tells of a restart.
    pub started: u64,
    /// For how long it has.
    pub uptime_s: f64,
    /// What to ask for next time as `since`.
    pub next: u64,
    /// The counts, step by step.
    pub series: Columns,
    /// The last minute of each pool; requests that reached none have no name.
    pub pools: Vec<Sum>,
    /// Who called in the last five minutes, those with most requests first.
    pub callers: Vec<Use>,
}

impl Live {
    /// Begins to remember, `kept` single requests of each kind.
    pub fn new(kept: usize) -> Self {
        let epoch = u64::try_from(chrono::Utc::now().timestamp()).unwrap_or_default();
        Self {
            begun: Instant::now(),
            epoch,
            shards: Default::default(),
            rings: Mutex::default(),
            callers: Mutex::default(),
            recent: Recent::new(kept),
        }
    }

    /// A request has ended.
    pub fn end(&self, ended: &Ended<'_>) {
        self.end_at(ended, self.begun.elapsed());
    }

    /// A request ended so long after the start.
    fn end_at(&self, ended: &Ended<'_>, since: Duration) {
        let second = self.epoch + since.as_secs();
        let mut counts = lock(&self.shards[shard()].0);
        self.count(&mut counts, ended, second);
        counts.callers.count(ended, second, &self.callers);
        drop(counts);
        self.recent.note(ended, second);
    }

    fn count(&self, counts: &mut Counts, ended: &Ended<'_>, second: u64) {
        let name = ended.pool.map_or("", PoolName::as_str);
        if let Some(open) = counts.pools.get_mut(name) {
            return self.count_in(name, open, ended, second);
        }
        if counts.pools.len() >= MOST_POOLS {
            // Pools come and go with configurations.
            counts.pools.retain(|_, open| open.second + series::LONGEST > second);
        }
        let name = if counts.pools.len() < MOST_POOLS { name } else { OTHER };
        let open = counts.pools.entry(name.into()).or_insert_with(|| Open { second, slot: Box::default() });
        self.count_in(name, open, ended, second);
    }

    fn count_in(&self, name: &str, open: &mut Open, ended: &Ended<'_>, second: u64) {
        if open.second != second {
            lock(&self.rings).add(name, open.second, &open.slot);
            *open.slot = Slot::default();
            open.second = second;
        }
        open.slot.count(ended);
    }

    /// The counts since a moment, of one pool or of all; those of whole steps only.
    pub fn view(&self, step: Step, since: Option<u64>, pool: Option<&str>) -> View {
        self.view_at(step, since, pool, self.begun.elapsed())
    }

    fn view_at(&self, step: Step, since: Option<u64>, pool: Option<&str>, elapsed: Duration) -> View {
        self.gather();
        let now = self.epoch + elapsed.as_secs();
        let rings = lock(&self.rings);
        let series = rings.columns(step, since.unwrap_or(0).max(self.epoch), now, pool);
        let pools = rings.sums(now);
        drop(rings);
        let callers = lock(&self.callers).top(now);
        View { started: self.epoch, uptime_s: elapsed.as_secs_f64(), next: series.end(), series, pools, callers }
    }

    /// Single requests of a kind, the latest first; the slowest first of those that were slow.
    pub fn recent(&self, kind: Kind) -> Vec<std::sync::Arc<Row>> {
        self.recent.rows(kind, self.epoch + self.begun.elapsed().as_secs())
    }

    /// Empties all shards into the rings.
    fn gather(&self) {
        for shard in &self.shards {
            let mut counts = lock(&shard.0);
            for (name, open) in counts.pools.iter_mut().filter(|(_, open)| open.slot.requests > 0) {
                lock(&self.rings).add(name.as_str(), open.second, &open.slot);
                *open.slot = Slot::default();
            }
            counts.callers.empty(&self.callers);
        }
    }
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: Cell<Option<usize>> = const { Cell::new(None) });
    OWN.with(|own| {
        own.get().unwrap_or_else(|| {
            let next = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            own.set(Some(next));
            next
        })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
