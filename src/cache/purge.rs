//! Purge: what was kept before it is not used any more.
//!
//! Nothing is looked for and nothing is deleted: the time of the last purge is part of keys, so that older values are
//! never asked for again, and end by themselves. Replicas agree on the later time, and write back what Redis lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::remote::{Away, Remote};

/// How often replicas look.
const POLL: Duration = Duration::from_millis(250);
/// Most subjects that are remembered; beyond, everything is purged in their place.
const MOST: usize = 10_000;

/// How far clocks may be apart, in microseconds.
const AHEAD: u64 = 3_600_000_000;

/// What a purge is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Everything.
    All,
    /// The vectors of a pool.
    Pool(String),
    /// The vectors of a model, in all pools.
    Model(String),
    /// The vectors of an organisation's callers, where they are not shared with everybody.
    Org(String),
}

impl Subject {
    fn field(&self) -> String {
        match self {
            Self::All => "all".into(),
            Self::Pool(name) => format!("pool:{name}"),
            Self::Model(name) => format!("model:{name}"),
            Self::Org(name) => format!("org:{name}"),
        }
    }
}

/// When what was purged, and Redis, where it is told to others.
#[derive(Default)]
pub struct Purges {
    times: ArcSwap<BTreeMap<String, u64>>,
    changing: Mutex<()>,
    remote: Option<Arc<Remote>>,
}

impl Purges {
    /// None so far.
    pub fn new(remote: Option<Remote>) -> Self {
        Self { remote: remote.map(Arc::new), ..Self::default() }
    }

    /// Values in Redis.
    pub fn remote(&self) -> Option<&Arc<Remote>> {
        self.remote.as_ref()
    }

    /// When what concerns such a request was purged.
    pub fn times(&self, pool: &str, model: &str, org: Option<&str>) -> [u64; 4] {
        let times = self.times.load();
        if times.is_empty() {
            return [0; 4];
        }
        let time = |subject: &Subject| times.get(&subject.field()).copied().unwrap_or_default();
        let org = org.map(|org| time(&Subject::Org(org.to_owned())));
        let [pool, model] = [Subject::Pool(pool.to_owned()), Subject::Model(model.to_owned())].map(|s| time(&s));
        [time(&Subject::All), pool, model, org.unwrap_or_default()]
    }

    /// Purges here, and tells others. Fails when they could not be told; they are as soon as Redis is back.
    pub async fn purge(&self, subject: &Subject) -> Result<(), Away> {
        let full = self.times.load().len() >= MOST;
        let field = if full { Subject::All.field() } else { subject.field() };
        // Later than any before, whatever the clocks of others say.
        let before = self.times.load().get(&field).copied().unwrap_or_default();
        let time = micros().max(before + 1);
        self.take(&BTreeMap::from([(field.clone(), time)]));
        match &self.remote {
            Some(remote) => remote.purge(&[(field, time)]).await,
            None => Ok(()),
        }
    }

    /// Follows what other replicas purge, for ever.
    pub async fn follow(&self) {
        let Some(remote) = &self.remote else { return };
        loop {
            if let Ok(told) = remote.purges().await {
                self.take(&told);
                let own = self.times.load_full();
                let newer = own.iter().filter(|(what, time)| told.get(*what).is_none_or(|told| told < *time));
                let newer: Vec<_> = newer.map(|(what, time)| (what.clone(), *time)).collect();
                if !newer.is_empty() {
                    let _ = remote.purge(&newer).await;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn take(&self, told: &BTreeMap<String, u64>) {
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut times = BTreeMap::clone(&self.times.load());
        // A time that lies far ahead is none: no later purge could be told from it.
        let latest = micros() + AHEAD;
        for (what, time) in told.iter().filter(|(_, time)| **time <= latest).take(2 * MOST) {
            let own = times.entry(what.clone()).or_default();
            *own = (*own).max(*time);
        }
        self.times.store(times.into());
    }
}

/// Microseconds of Unix time.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}
