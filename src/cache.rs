//! Cache: vectors that were asked for before.
//!
//! A request is taken apart into items; those that are known here or in Redis are not asked again, each of the others is
//! asked once however many want it, and the answer is put together as the backend would have. Knows nothing of HTTP:
//! whoever asks the backend is a [`Backend`]. docs/cache.md tells the rules, docs/decisions/0014 the reasons.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

mod answer;
mod flight;
mod key;
mod local;
mod members;
mod number;
mod purge;
mod question;
mod remote;
mod scan;
mod serve;
mod value;

pub use answer::{Answer, Frame, Sum};
pub use flight::{Awaited, Claim, Flights, Follow, Landed, Lead};
pub use key::{Circumstances, Key, Scope, Space};
pub use members::canonical;
pub use purge::{Purges, Subject};
pub use question::{Item, Question, Rules, Unfit};
pub use remote::{Away, Remote};
pub use serve::{Asked, Backend, Made, Manner, Outcome, Tally, serve};
pub use value::{Encoding, Facts, Form, Value, Vector};

use local::Local;

/// Bytes of answers that were passed on and are not read yet.
const MOST_UNREAD: usize = 64 * 1024 * 1024;

/// How the vectors of a pool are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// For how long.
    pub ttl: Duration,
    /// By how much of that a single vector may end sooner, 0 to 1.
    pub jitter: f64,
    /// Most bytes in this process.
    pub most_bytes: u64,
    /// Whether they are kept in Redis too.
    pub in_redis: bool,
    /// The longest wait for Redis.
    pub budget: Duration,
    /// The largest value.
    pub largest_value: usize,
    /// Whether images and videos are kept by their content.
    pub keeps_media: bool,
    /// Items of the largest request that every backend takes.
    pub batch: usize,
}

/// The vectors of a pool.
pub struct Cache {
    settings: Settings,
    local: Local,
    flights: Flights,
    /// How the backend prints numbers, as far as it was seen.
    usual: AtomicU8,
    /// Items of the largest request that was answered.
    batch: AtomicUsize,
    /// Mean time of a request to the backend, in microseconds.
    pace: AtomicU64,
    /// Bytes of answers that may wait to be read, beside those that their requests wait for.
    unread: Arc<Semaphore>,
    /// What it did so far.
    pub stats: Stats,
}

/// What a cache did so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Items found in this process.
    pub local: AtomicU64,
    /// Items found in Redis.
    pub remote: AtomicU64,
    /// Items that another request was asking for.
    pub shared: AtomicU64,
    /// Items that were asked for.
    pub misses: AtomicU64,
    /// Values that were found and are none.
    pub spoilt: AtomicU64,
    /// Answers of the backend that could not be kept.
    pub unkept: AtomicU64,
    /// Values that Redis was not given, or did not take.
    pub unwritten: Arc<AtomicU64>,
    /// Requests without a request to the backend, and the microseconds that one would have taken.
    pub saved: AtomicU64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Values, in order of the keys.
    pub values: Vec<Option<Value>>,
    /// Why Redis was passed over, if it was.
    pub away: Option<Away>,
}

impl Cache {
    /// An empty one.
    pub fn new(settings: Settings) -> Self {
        Self {
            local: Local::new(settings.most_bytes),
            flights: Flights::default(),
            usual: AtomicU8::new(Form::Bits as u8),
            batch: AtomicUsize::new(settings.batch),
            pace: AtomicU64::new(0),
            unread: Arc::new(Semaphore::new(MOST_UNREAD)),
            stats: Stats::default(),
            settings,
        }
    }

    /// How it was made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Entries and bytes in this process, about.
    pub fn size(&self) -> (u64, u64) {
        self.local.size()
    }

    /// Looks keys up, here and then in Redis.
    pub async fn look_up(&self, remote: Option<&Remote>, keys: &[Key]) -> Found {
        let now = seconds();
        let mut values: Vec<Option<Value>> = keys.iter().map(|key| self.local.get(key, now)).collect();
        add(&self.stats.local, values.iter().flatten().filter(|v| v.form() != Some(Form::Frame)).count());
        let missing: Vec<usize> = (0..keys.len()).filter(|at| values[*at].is_none()).collect();
        let (Some(remote), false) = (remote.filter(|_| self.settings.in_redis), missing.is_empty()) else {
            return Found { values, away: None };
        };
        let wanted: Vec<Key> = missing.iter().map(|at| keys[*at]).collect();
        let got = match remote.get(&wanted, self.settings.budget).await {
            Ok(got) => got,
            Err(away) => return Found { values, away: Some(away) },
        };
        for (at, bytes) in missing.into_iter().zip(got) {
            let Some(bytes) = bytes.map(local::own) else { continue };
            match Value::open(&keys[at], bytes) {
                Some(value) if value.facts().expires > now => {
                    self.local.put(keys[at], &value);
                    add(&self.stats.remote, usize::from(value.form() != Some(Form::Frame)));
                    values[at] = Some(value);
                }
                Some(_) => {}
                None => add(&self.stats.spoilt, 1),
            }
        }
        Found { values, away: None }
    }

    /// Keeps values.
    pub fn insert(&self, remote: Option<&Remote>, values: Vec<(Key, Value)>) {
        let mut values = values;
        values.retain(|(_, value)| value.bytes().len() <= self.settings.largest_value);
        values.iter().for_each(|(key, value)| self.local.put(*key, value));
        if let (Some(remote), false) = (remote.filter(|_| self.settings.in_redis), values.is_empty()) {
            remote.put(&values, seconds(), &self.stats.unwritten);
        }
    }

    /// When something that is kept from now on ends.
    fn expiry(&self) -> u32 {
        let ttl = self.settings.ttl.as_secs_f64() * (1.0 - self.settings.jitter * fastrand::f64());
        seconds().saturating_add((ttl as u32).max(1))
    }

    fn usual(&self) -> Form {
        match self.usual.load(Ordering::Relaxed) {
            1 => Form::Short,
            2 => Form::Wide,
            3 => Form::Double,
            _ => Form::Bits,
        }
    }

    /// Notes how a request to the backend went.
    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(1 << 40);
        let before = self.pace.load(Ordering::Relaxed);
        let mean = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.pace.store(mean, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// Unix seconds.
fn seconds() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
