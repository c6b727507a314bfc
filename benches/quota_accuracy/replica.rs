//! A replica, as far as limits are concerned: its limiter, its courier and its connection to Redis.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nimgate::quota::limit::{Filter, Limit, Metric, Unit};
use nimgate::quota::shared::{self, Courier};
use nimgate::quota::{Book, Estimate, KeySettings, Limiter, OnOutage, Settings, Stats};
use nimgate::store::{self, Mode, Store};
use redis::aio::MultiplexedConnection;
use tokio::runtime;
use tokio::sync::watch;

/// The key that all requests come with.
pub const KEY: &str = "accuracy";

/// A replica whose courier runs on a thread of its own, as it does in the gateway.
pub struct Replica {
    /// Its limiter.
    pub limiter: Arc<Limiter>,
    /// Its only key, and that key's limit.
    pub book: Arc<Book>,
    stop: watch::Sender<bool>,
    courier: JoinHandle<()>,
    task: PathBuf,
}

impl Replica {
    /// Starts one that shares a limit.
    pub fn start(redis: SocketAddr, prefix: &str, limit: Limit) -> Result<Self> {
        let sharing = shared::Settings {
            on_outage: OnOutage::Deny,
            // Far above any hiccup of a busy machine: what is late is not to count as an outage.
            budget: Duration::from_millis(500),
            replicas: 1,
            hold: Duration::from_secs(10),
            // Usage is not what is measured.
            flush: Duration::from_secs(3600),
            usage_days: 1,
        };
        let store = Store::new(store::Settings {
            mode: Mode::Standalone,
            addresses: vec![(redis.ip().to_string(), redis.port())],
            tls: None,
            username: None,
            password: None,
            sentinel_password: None,
            database: 0,
            prefix: prefix.to_owned(),
            connect_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(2),
        });
        let (limiter, courier) = shared::limiter(sharing, store.clone());
        let book = Arc::new(limiter.book(&settings(limit)));
        let (stop, stopped) = watch::channel(false);
        let (tell, told) = std::sync::mpsc::channel();
        let courier = std::thread::Builder::new().name("courier".into()).spawn(move || {
            let _ = tell.send(fs::read_link("/proc/thread-self"));
            carry(&store, courier, stopped);
        })?;
        let task = PathBuf::from("/proc").join(told.recv()??);
        Ok(Self { limiter, book, stop, courier, task })
    }

    /// Whether it shares with so many.
    pub fn is_sharing(&self, replicas: usize) -> bool {
        self.limiter.is_away() == Some(false) && self.limiter.replicas() == replicas as u64
    }

    /// The time that its limits go by, in microseconds: that of Redis.
    pub fn now(&self) -> u64 {
        self.limiter.now()
    }

    /// What happened so far.
    pub fn stats(&self) -> &Stats {
        self.limiter.stats()
    }

    /// Time on a CPU of the courier's thread.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.task.join("schedstat"))?;
        Ok(Duration::from_nanos(stat.split(' ').next().context("schedstat")?.parse()?))
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until it has stopped.
    pub fn join(self) -> Result<()> {
        self.courier.join().map_err(|_| anyhow!("the courier panicked"))
    }
}

fn carry(store: &Store, courier: Courier, stopped: watch::Receiver<bool>) {
    let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let kept = store.clone();
        tokio::spawn(async move { kept.keep().await });
        courier.run(stopped).await;
    });
}

/// A limit on requests per second.
pub fn per_second(amount: u64) -> Limit {
    Limit { metric: Metric::Requests, amount, unit: Some(Unit::Second), filter: Filter::default(), counts_cached: true }
}

/// A limit on requests at a time.
pub fn at_a_time(amount: u64) -> Limit {
    Limit { metric: Metric::Concurrency, amount, unit: None, filter: Filter::default(), counts_cached: true }
}

fn settings(limit: Limit) -> Settings {
    Settings {
        orgs: HashMap::from([("org".to_owned(), vec![limit])]),
        teams: HashMap::new(),
        keys: vec![KeySettings { id: KEY.into(), org: "org".into(), team: "team".into(), limits: Vec::new() }],
        prices: Arc::from([]),
        estimate: Estimate::default(),
    }
}

/// What Redis holds as granted, by the second in which the window began.
pub async fn charged(redis: &mut MultiplexedConnection, prefix: &str) -> Result<BTreeMap<u64, u64>> {
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}:*:w:*")).query_async(redis).await?;
    let mut sums = BTreeMap::new();
    for key in keys {
        let second = key.rsplit(':').next().context("a window's key ends in its start")?.parse()?;
        let sum: Option<u64> = redis::cmd("HGET").arg(&key).arg("s").query_async(redis).await?;
        sums.insert(second, sum.unwrap_or(0));
    }
    Ok(sums)
}

/// How many places Redis has given away.
pub async fn held(redis: &mut MultiplexedConnection, key: &str) -> Result<u64> {
    let entries: Vec<String> = redis::cmd("HVALS").arg(key).query_async(redis).await?;
    let count = |entry: &String| entry.split(' ').next().and_then(|count| count.parse::<u64>().ok());
    Ok(entries.iter().filter_map(count).sum())
}

/// The key of the only limit on concurrency.
pub async fn held_key(redis: &mut MultiplexedConnection, prefix: &str) -> Result<String> {
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}:*:h:*")).query_async(redis).await?;
    keys.into_iter().next().context("nothing is held")
}
