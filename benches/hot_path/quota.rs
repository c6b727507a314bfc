//! Limits: what a check costs that asks nobody or Redis, and what loading the limits of a large organisation costs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use futures_util::FutureExt as _;
use nimgate::config;
use nimgate::ids::{CallerId, ModelId, PoolName};
use nimgate::proxy::snapshot::Snapshot;
use nimgate::quota::limit::{Asked, Filter, Limit, Metric, Unit};
use nimgate::quota::price::Used;
use nimgate::quota::shared::{self, Courier};
use nimgate::quota::{Book, Estimate, KeySettings, Limiter, Most, OnOutage, Settings};
use nimgate::store::{self, Mode, Store};
use tokio::runtime;
use tokio::sync::watch;

use crate::redis_server::RedisServer;

/// The server of the leased checks, started with the first of them.
static REDIS: Mutex<Option<RedisServer>> = Mutex::new(None);
/// What is to be said when all benches are through.
static REMARKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Ends the server, and says how often a check had to wait.
pub fn finish() -> Vec<String> {
    drop(REDIS.lock().unwrap_or_else(PoisonError::into_inner).take());
    std::mem::take(&mut *REMARKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How many keys and teams there are.
#[derive(Clone, Copy, Debug)]
enum Size {
    TenKeys,
    TenThousandKeysOfThousandTeams,
}

impl Size {
    fn keys_and_teams(self) -> (usize, usize) {
        match self {
            Self::TenKeys => (10, 1),
            Self::TenThousandKeysOfThousandTeams => (10_000, 1000),
        }
    }
}

const SIZES: [Size; 2] = [Size::TenKeys, Size::TenThousandKeysOfThousandTeams];
const ORG: &str = "organisation";
/// Nothing is ever refused.
const PLENTY: u64 = 1_000_000_000_000_000;

/// One of the key, three of the key, or three of each level.
fn limits(count: usize) -> [Vec<Limit>; 3] {
    let limit = |(metric, unit)| Limit { metric, amount: PLENTY, unit, filter: Filter::default(), counts_cached: true };
    let all =
        [(Metric::Requests, Some(Unit::Month)), (Metric::TotalTokens, Some(Unit::Month)), (Metric::Concurrency, None)];
    let three = all.map(limit).to_vec();
    match count {
        1 => [Vec::new(), Vec::new(), three[..1].to_vec()],
        3 => [Vec::new(), Vec::new(), three],
        _ => [three.clone(), three.clone(), three],
    }
}

fn settings(count: usize, size: Size) -> Settings {
    let (keys, teams) = size.keys_and_teams();
    let [org, team, key] = limits(count);
    let name = |at: usize| format!("team-{at}");
    let account = |at: usize| KeySettings {
        id: format!("{:012x}", at * 0x9e37_79b9).into(),
        org: ORG.into(),
        team: name(at % teams),
        limits: key.clone(),
    };
    Settings {
        orgs: HashMap::from([(ORG.to_owned(), org)]),
        teams: (0..teams).map(|at| ((ORG.to_owned(), name(at)), team.clone())).collect(),
        keys: (0..keys).map(account).collect(),
        prices: Arc::from([]),
        estimate: Estimate::default(),
    }
}

/// A limiter, its accounts and what a request is.
struct Checked {
    limiter: Arc<Limiter>,
    book: Book,
    ids: Vec<CallerId>,
    pool: PoolName,
    model: ModelId,
}

impl Checked {
    fn new(limiter: Arc<Limiter>, settings: &Settings, used: usize) -> Self {
        let book = limiter.book(settings);
        // In no order that the processor could foresee.
        let mut ids: Vec<CallerId> = settings.keys.iter().take(used).map(|key| key.id.clone()).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut ids);
        Self { limiter, book, ids, pool: "chat".into(), model: "meta/llama-3.1-8b-instruct".into() }
    }

    /// Everything that one request asks of its limits, from its key to what it has used.
    async fn check(&self, at: usize) -> bool {
        let Some(account) = self.book.account(black_box(&self.ids[at % self.ids.len()])) else { return false };
        let asked = Asked { model: Some(&self.model), pool: &self.pool, api: "nim-llm", operation: "chat" };
        let Ok(mut reservation) = self.limiter.begin(account).await else { return false };
        let most = Most { input: 300, output: 256, video_seconds: 0.0 };
        if reservation.reserve(&asked, most).await.is_err() {
            return false;
        }
        reservation.note(Used { input: 210, output: 147, answered: true, ..Used::default() });
        reservation.settle();
        true
    }
}

fn local(bencher: Bencher<'_, '_>, count: usize, size: Size) {
    let settings = settings(count, size);
    let checked = Checked::new(Arc::new(Limiter::local()), &settings, settings.keys.len());
    let mut at = 0;
    bencher.bench_local(|| {
        at += 1;
        assert_eq!(checked.check(at).now_or_never(), Some(true));
    });
}

/// Begin, reserve and settle, with so many limits in force.
#[divan::bench(args = [1, 3, 9], min_time = 0.3)]
fn check_local(bencher: Bencher<'_, '_>, limits: usize) {
    local(bencher, limits, Size::TenKeys);
}

/// The same with nine limits, among few keys and among many, of which each has its turn.
#[divan::bench(args = SIZES, min_time = 0.3)]
fn check_local_among(bencher: Bencher<'_, '_>, size: Size) {
    local(bencher, 9, size);
}

/// What of that is the memory's at least: each key is looked up in its turn, and of its account nothing is read but how
/// many limits it has. The next look-up waits for that, as the steps of a check wait for each other.
#[divan::bench(args = SIZES, min_time = 0.3)]
fn look_up_among(bencher: Bencher<'_, '_>, size: Size) {
    let settings = settings(9, size);
    let checked = Checked::new(Arc::new(Limiter::local()), &settings, settings.keys.len());
    let mut at = 0;
    bencher.bench_local(|| {
        let account = checked.book.account(black_box(&checked.ids[at % checked.ids.len()]));
        at += account.map_or(0, |account| account.limits().count() / 9);
    });
}

/// A replica that shares through Redis.
struct Sharing {
    limiter: Arc<Limiter>,
    stop: watch::Sender<bool>,
    courier: Option<JoinHandle<()>>,
}

impl Sharing {
    /// `None` where there is no `redis-server`.
    fn start() -> Option<Self> {
        let address = redis()?;
        let sharing = shared::Settings {
            on_outage: OnOutage::Deny,
            budget: Duration::from_millis(500),
            replicas: 1,
            hold: Duration::from_secs(10),
            flush: Duration::from_secs(1),
            usage_days: 1,
        };
        let store = Store::new(store::Settings {
            mode: Mode::Standalone,
            addresses: vec![(address.ip().to_string(), address.port())],
            tls: None,
            username: None,
            password: None,
            sentinel_password: None,
            database: 0,
            prefix: format!("hot{:x}", fastrand::u64(..)),
            connect_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(2),
        });
        let (limiter, courier) = shared::limiter(sharing, store.clone());
        let (stop, stopped) = watch::channel(false);
        let courier = std::thread::spawn(move || carry(store, courier, stopped));
        let sharing = Self { limiter, stop, courier: Some(courier) };
        let begun = Instant::now();
        while sharing.limiter.is_away() != Some(false) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the limits are not shared");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(sharing)
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.courier.take().map(JoinHandle::join);
    }
}

fn redis() -> Option<SocketAddr> {
    let mut redis = REDIS.lock().unwrap_or_else(PoisonError::into_inner);
    if redis.is_none() && RedisServer::is_installed() {
        *redis = Some(RedisServer::start().expect("redis-server starts"));
    }
    redis.as_ref().map(RedisServer::address)
}

fn carry(store: Store, courier: Courier, stopped: watch::Receiver<bool>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::spawn(async move { store.keep().await });
        courier.run(stopped).await;
    });
}

/// Leases are taken beforehand, and grow with the pace: that they are renewed meanwhile is part of the figure.
fn leased(bencher: Bencher<'_, '_>, count: usize, size: Size) {
    let Some(sharing) = Sharing::start() else {
        REMARKS.lock().unwrap_or_else(PoisonError::into_inner).push("no redis-server: leased checks left out".into());
        return;
    };
    let checked = Checked::new(Arc::clone(&sharing.limiter), &settings(count, size), 10);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut at = 0;
    let mut check = || {
        at += 1;
        if checked.check(at).now_or_never() != Some(true) {
            assert!(runtime.block_on(checked.check(at)), "a check failed");
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        check();
    }
    measure(&sharing, &format!("leased, {count} limits, {size:?}"), bencher, check);
}

/// Benches a check, and remarks how often it waited and what all threads spent on it: the courier's are not in its time.
fn measure(sharing: &Sharing, name: &str, bencher: Bencher<'_, '_>, mut check: impl FnMut()) {
    let stats = sharing.limiter.stats();
    let counts = || [&stats.local, &stats.waited, &stats.round_trips].map(|count| count.load(Ordering::Relaxed));
    let (before, cpu, mut checks) = (counts(), cpu(), 0_u32);
    bencher.bench_local(|| {
        checks += 1;
        check();
    });
    let spent = (self::cpu() - cpu).as_secs_f64() * 1e6 / f64::from(checks.max(1));
    let [local, waited, trips] = std::array::from_fn(|at| counts()[at] - before[at]);
    let remark = format!(
        "{name}: {checks} checks, {spent:.2} CPU-µs each with all of its threads; {local} steps asked nobody, \
         {waited} waited; {trips} round trips"
    );
    REMARKS.lock().unwrap_or_else(PoisonError::into_inner).push(remark);
}

/// Time on a CPU of all threads.
fn cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads");
    let nanos = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(nanos).sum())
}

/// As [`check_local`], with limits shared through Redis and leases that suffice.
#[divan::bench(args = [1, 3, 9], min_time = 1)]
fn check_leased(bencher: Bencher<'_, '_>, limits: usize) {
    leased(bencher, limits, Size::TenKeys);
}

/// The same with nine limits: ten keys have requests, and there are no others, or many.
#[divan::bench(args = SIZES, min_time = 1)]
fn check_leased_among(bencher: Bencher<'_, '_>, size: Size) {
    leased(bencher, 9, size);
}

/// The first check of each key: nothing is leased yet, so that each waits for a round trip.
#[divan::bench(sample_count = 5000, sample_size = 1)]
fn check_round_trip(bencher: Bencher<'_, '_>) {
    let Some(sharing) = Sharing::start() else { return };
    let settings = settings(1, Size::TenThousandKeysOfThousandTeams);
    let checked = Checked::new(Arc::clone(&sharing.limiter), &settings, settings.keys.len());
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut at = 0;
    measure(&sharing, "round trip, 1 limit", bencher, || {
        at += 1;
        assert!(runtime.block_on(checked.check(at)), "a check failed");
    });
}

/// Loads a configuration whose keys file holds everybody, up to what requests are checked against.
#[divan::bench(args = SIZES, sample_count = 10, sample_size = 1)]
fn load(bencher: Bencher<'_, '_>, size: Size) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("nimgate.yaml");
    std::fs::write(&config, CONFIG).expect("the configuration is written");
    std::fs::write(directory.path().join("keys.yaml"), keys_file(size)).expect("the keys are written");
    bencher.bench_local(|| {
        let settings = config::load(&config).expect("the configuration loads").proxy;
        Snapshot::build(settings, &Limiter::local(), None).expect("the configuration compiles")
    });
}

const CONFIG: &str = "callers: {keys_file: keys.yaml}\n\
    pools: [{name: chat, api: nim-llm, models: [{id: m}], endpoints: [{url: \"http://127.0.0.1:1\"}]}]\n";

/// Three limits stand on the organisation, on each team and on each key.
fn keys_file(size: Size) -> String {
    const LIMITS: &str = "[{requests: 10, per: second}, {total_tokens: 1000000, per: day}, {concurrency: 10}]";
    let (keys, teams) = size.keys_and_teams();
    let mut text = format!("orgs:\n  - {{name: {ORG}, limits: {LIMITS}}}\nteams:\n");
    for at in 0..teams {
        let _ = writeln!(text, "  - {{org: {ORG}, name: team-{at}, limits: {LIMITS}}}");
    }
    text += "keys:\n";
    for at in 0..keys {
        let (id, team) = (format!("{:012x}", at * 0x9e37_79b9), at % teams);
        let _ = writeln!(
            text,
            "  - {{id: \"{id}\", sha256: \"{at:064x}\", org: {ORG}, team: team-{team}, limits: {LIMITS}}}"
        );
    }
    text
}

/// Compiles the limits of everybody, as each change of one does; nine limits stand over each key.
#[divan::bench(args = SIZES, sample_count = 20)]
fn book(bencher: Bencher<'_, '_>, size: Size) {
    let (settings, limiter) = (settings(9, size), Limiter::local());
    drop(limiter.book(&settings));
    bencher.bench_local(|| limiter.book(black_box(&settings)));
}
