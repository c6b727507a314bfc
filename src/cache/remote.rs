//! Remote: values in Redis, which all replicas share.
//!
//! A request waits for it no longer than its budget; after some waits in vain nobody waits for a while. Whatever is
//! wrong with Redis is a miss, never an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use redis::RedisError;
use tokio::sync::Semaphore;

use super::key::Key;
use super::value::Value;
use crate::store::{Link, Store};

/// Looks in vain after which nobody looks for a while.
const PATIENCE: u32 = 3;
/// For how long.
const REST: Duration = Duration::from_secs(1);
/// Writes under way; further ones are not made.
const MOST_WRITES: usize = 64;
/// Values that are written in one go.
const TOGETHER: usize = 128;
/// Writes of one request under way at a time in a cluster, where each value may lie elsewhere. The connection to a node
/// sends what comes at once as a pipeline.
const AT_ONCE: usize = 32;
/// Where the times of purges are.
const PURGES: (&str, &str) = ("cache", "purged");

/// Why Redis was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// There is no connection.
    Absent,
    /// It did not answer in time.
    Slow,
    /// It answered with an error.
    Failed,
}

impl Away {
    /// The word for headers and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Absent => "redis_absent",
            Self::Slow => "redis_slow",
            Self::Failed => "redis_failed",
        }
    }
}

/// Values in Redis.
pub struct Remote {
    store: Store,
    begun: Instant,
    in_vain: AtomicU32,
    /// Until when nobody looks, milliseconds after the beginning.
    rests_until: AtomicU64,
    is_away: AtomicBool,
    writes: Arc<Semaphore>,
}

impl Remote {
    /// In this store.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            begun: Instant::now(),
            in_vain: AtomicU32::new(0),
            rests_until: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            writes: Arc::new(Semaphore::new(MOST_WRITES)),
        }
    }

    /// What is kept under these keys, unread.
    pub async fn get(&self, keys: &[Key], budget: Duration) -> Result<Vec<Option<Vec<u8>>>, Away> {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now < self.rests_until.load(Ordering::Relaxed) {
            return Err(Away::Slow);
        }
        let got = self.look(keys, budget).await;
        match got {
            Ok(_) => self.in_vain.store(0, Ordering::Relaxed),
            Err(Away::Slow) if self.in_vain.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE => {
                self.in_vain.store(0, Ordering::Relaxed);
                self.rests_until.store(now + REST.as_millis() as u64, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        if self.is_away.swap(got.is_err(), Ordering::Relaxed) != got.is_err() {
            match got {
                Ok(_) => tracing::info!("the cache uses Redis again"),
                Err(reason) => tracing::warn!(reason = reason.word(), "the cache passes Redis over"),
            }
        }
        got
    }

    async fn look(&self, keys: &[Key], budget: Duration) -> Result<Vec<Option<Vec<u8>>>, Away> {
        let mut link = self.store.link().ok_or(Away::Absent)?;
        let mut command = redis::cmd("MGET");
        for key in keys {
            command.arg(self.name(key));
        }
        let asked = tokio::time::timeout(budget, command.query_async::<Vec<Option<Vec<u8>>>>(&mut link)).await;
        match asked {
            Err(_) => Err(Away::Slow),
            Ok(Err(error)) => {
                self.failed(&link, &error);
                Err(Away::Failed)
            }
            Ok(Ok(found)) if found.len() == keys.len() => {
                self.store.works(&link);
                Ok(found)
            }
            Ok(Ok(_)) => Err(Away::Failed),
        }
    }

    /// Keeps values until they end, without waiting. Counts those that are not written: too many at once, or Redis is away.
    pub fn put(&self, values: &[(Key, Value)], now: u32, unwritten: &Arc<AtomicU64>) {
        let mut left = values.len() as u64;
        let (Some(link), Ok(permit)) = (self.store.link(), Arc::clone(&self.writes).try_acquire_owned()) else {
            unwritten.fetch_add(left, Ordering::Relaxed);
            return;
        };
        let (store, unwritten) = (self.store.clone(), Arc::clone(unwritten));
        // In a cluster, what is sent together has to lie together.
        let is_cluster = store.is_cluster();
        let (together, at_once) = if is_cluster { (1, AT_ONCE) } else { (TOGETHER, 1) };
        let writes = values.chunks(together).map(|some| {
            let (pipe, mut link, count) = (self.pipe(some, now), link.clone(), some.len() as u64);
            async move { (pipe.query_async::<()>(&mut link).await, count) }
        });
        let writes: Vec<_> = writes.collect();
        tokio::spawn(async move {
            let _permit = permit;
            let mut writes = stream::iter(writes).buffer_unordered(at_once);
            while let Some((written, count)) = writes.next().await {
                let Err(error) = written else {
                    left -= count;
                    continue;
                };
                blame(&store, &link, &error);
                tracing::debug!(reason = %crate::store::describe(&error), "vectors could not be kept in Redis");
                // Other nodes may be there.
                if !is_cluster {
                    break;
                }
            }
            unwritten.fetch_add(left, Ordering::Relaxed);
        });
    }

    fn pipe(&self, values: &[(Key, Value)], now: u32) -> redis::Pipeline {
        let mut pipe = redis::pipe();
        for (key, value) in values {
            let left = value.facts().expires.saturating_sub(now).max(1);
            pipe.cmd("SET").arg(self.name(key)).arg(&value.bytes()[..]).arg("EX").arg(left).ignore();
        }
        pipe
    }

    /// The times of purges, by what was purged.
    pub async fn purges(&self) -> Result<BTreeMap<String, u64>, Away> {
        let mut link = self.store.link().ok_or(Away::Absent)?;
        let asked = redis::cmd("HGETALL").arg(self.store.key(PURGES.0, PURGES.1)).query_async(&mut link).await;
        asked.map_err(|error| self.failed(&link, &error))
    }

    /// Writes times of purges.
    pub async fn purge(&self, times: &[(String, u64)]) -> Result<(), Away> {
        let mut link = self.store.link().ok_or(Away::Absent)?;
        let mut command = redis::cmd("HSET");
        command.arg(self.store.key(PURGES.0, PURGES.1));
        times.iter().for_each(|(what, time)| {
            command.arg(what).arg(time);
        });
        command.query_async::<()>(&mut link).await.map_err(|error| self.failed(&link, &error))
    }

    fn failed(&self, link: &Link, error: &RedisError) -> Away {
        blame(&self.store, link, error);
        Away::Failed
    }

    fn name(&self, key: &Key) -> String {
        self.store.key(&key.address(), "e")
    }
}

/// Has the connection made anew, unless it may be whole: an error that the server worded came over it, and that to a
/// cluster finds its nodes again by itself, while limits use those that are there.
fn blame(store: &Store, link: &Link, error: &RedisError) {
    if error.code().is_none() && !store.is_cluster() {
        store.fail(link, error);
    }
}
