//! Limits while Redis is unwell: emptied, set back, killed, refusing, late; and while limits themselves change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::redis::*;
use crate::shared::micros;
use crate::support::*;

mod change;
mod lateness;
mod nonsense;
mod refusal;

const LIMITED: &str = "ngk_limited_0123456789abcdef";

/// A gateway whose key [`LIMITED`] has these limits, which it shares through Redis at `redis`.
fn replica(backend: &Simulator, redis: impl std::fmt::Display, limits: &str, quotas: &str) -> Setup {
    Gateway::setup()
        .chat(&[&backend.url()])
        .key(LIMITED, &format!("limits: {limits}"))
        .top(&format!("redis: {{addresses: ['{redis}'], timeout_ms: 500}}\nquotas: {{{quotas}}}"))
}

async fn chat_once(gateway: &Gateway) -> u16 {
    gateway.chat(false).key(LIMITED).send().await.status
}

/// How `/readyz` says that limits are held.
async fn limits(gateway: &Gateway) -> String {
    let page = gateway.admin("/readyz").await.json();
    page["redis"]["limits"].as_str().unwrap().to_owned()
}

async fn until_shared(gateway: &Gateway) {
    until("limits are shared", async || limits(gateway).await == "shared").await;
}

async fn until_not_shared(gateway: &Gateway) {
    until("limits are said not to be shared", async || limits(gateway).await != "shared").await;
}

async fn until_refused(gateway: &Gateway) {
    until("a limit refuses", async || chat_once(gateway).await == 429).await;
}

/// Callers that ask gateways in turn until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: JoinSet<Vec<Asked>>,
}

/// One request: when it was sent and answered, in microseconds, and how.
#[derive(Clone, Copy, Debug)]
struct Asked {
    sent: u64,
    answered: u64,
    status: u16,
}

impl Load {
    fn on(gateways: &Arc<Vec<Gateway>>, callers: usize) -> Self {
        let mut load = Self { stop: Arc::default(), answered: Arc::default(), callers: JoinSet::new() };
        for caller in 0..callers {
            let (gateways, stop) = (Arc::clone(gateways), Arc::clone(&load.stop));
            let answered = Arc::clone(&load.answered);
            load.callers.spawn(async move {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent = micros();
                    let status = chat_once(&gateways[(caller + all.len()) % gateways.len()]).await;
                    all.push(Asked { sent, answered: micros(), status });
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_micros(fastrand::u64(..4000))).await;
                }
                all
            });
        }
        load
    }

    /// Waits for so many more answers.
    async fn until_answered(&self, more: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        until("requests are answered", async || self.answered.load(Ordering::Relaxed) >= wanted).await;
    }

    async fn end(self) -> Vec<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

/// How many were answered with each status.
fn counts(all: &[Asked]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    all.iter().for_each(|asked| *counts.entry(asked.status).or_default() += 1);
    counts
}

fn admitted(all: &[Asked]) -> usize {
    all.iter().filter(|asked| asked.status == 200).count()
}

/// Uses all of a limit up through one gateway.
async fn use_up(gateway: &Gateway, limit: usize) {
    for at in 0..limit {
        assert_eq!(chat_once(gateway).await, 200, "{at} of {limit}");
    }
    until_refused(gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_went_back_to_an_older_snapshot_is_told_what_was_used() {
    const LIMIT: usize = 20;
    // Its snapshots are those that are asked for.
    let (mut redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let setup =
            replica(&backend, redis.address(), &format!("[{{requests: {LIMIT}, per: day}}]"), "on_outage: deny");
        gateways.push(setup.start().await);
    }
    for gateway in &gateways {
        until_shared(gateway).await;
    }
    let gateways = Arc::new(gateways);
    for gateway in gateways.iter() {
        assert_eq!(chat_once(gateway).await, 200);
    }
    redis.command(&["SAVE"]);
    let mut used = gateways.len();
    until("all of the limit is used", async || {
        for gateway in gateways.iter() {
            used += usize::from(chat_once(gateway).await == 200);
        }
        used == LIMIT
    })
    .await;
    for round in 1..=2 {
        let load = Load::on(&gateways, 4);
        redis.stop();
        for gateway in gateways.iter() {
            until_not_shared(gateway).await;
        }
        redis.restart().await;
        for gateway in gateways.iter() {
            until_shared(gateway).await;
            until_refused(gateway).await;
        }
        load.until_answered(20).await;
        let all = load.end().await;
        println!("round {round}: {used} were used before; {:?}", counts(&all));
        used += admitted(&all);
        assert!(counts(&all).keys().all(|status| [200, 429, 503].contains(status)));
        assert!(used <= LIMIT, "{used} of {LIMIT} after round {round}");
    }
}

/// Uses a limit up through one gateway, empties Redis, and lets a second one start before the first can tell.
async fn flush_and_start(quotas: &str) {
    const LIMIT: usize = 20;
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let mut line = Line::to(redis.address()).await;
    let limits = format!("[{{requests: {LIMIT}, per: day}}]");
    let one = replica(&backend, line.address(), &limits, quotas).start().await;
    until_shared(&one).await;
    use_up(&one, LIMIT).await;
    line.stall();
    redis.command(&["FLUSHALL"]);
    let two = Arc::new(vec![replica(&backend, redis.address(), &limits, quotas).start().await]);
    let load = Load::on(&two, 4);
    until("the second is in Redis", async || redis.command(&["DBSIZE"]) != "0").await;
    // The first has not noticed yet. The second may answer, or wait for what others say.
    let _ = timeout(Duration::from_millis(300), load.until_answered(40)).await;
    line.mend().await;
    for gateway in [&one, &two[0]] {
        until_shared(gateway).await;
    }
    // What the first is asked counts too.
    let mut more = 0;
    for gateway in [&one, &two[0]] {
        until("a limit refuses", async || {
            let status = chat_once(gateway).await;
            more += usize::from(status == 200);
            status == 429
        })
        .await;
    }
    load.until_answered(20).await;
    let all = load.end().await;
    println!("{quotas}: {LIMIT} were used before; {more} more and {:?}", counts(&all));
    assert!(counts(&all).keys().all(|status| [200, 429, 503].contains(status)));
    assert_eq!(admitted(&all) + more, 0, "{quotas}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_grants_nothing_that_was_used() {
    for quotas in ["on_outage: deny", "on_outage: local_share, replicas: 2"] {
        flush_and_start(quotas).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_admits_nothing_above_the_limit() {
    const LIMIT: usize = 10;
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    // Everything else as it comes.
    let setup = || replica(&backend, redis.address(), &format!("[{{requests: {LIMIT}, per: day}}]"), "");
    let running = setup().start().await;
    until_shared(&running).await;
    use_up(&running, LIMIT).await;
    let running = Arc::new(vec![running]);
    let steady = Load::on(&running, 2);
    let mut above = 0;
    for round in 1..=3 {
        let starting = Arc::new(vec![setup().start().await]);
        let load = Load::on(&starting, 8);
        until("it is ready", async || starting[0].admin("/readyz").await.status == 200).await;
        let ready = micros();
        until_shared(&starting[0]).await;
        load.until_answered(50).await;
        let all = load.end().await;
        println!("start {round}: {:?}", counts(&all));
        above += admitted(&all);
        let late: Vec<&Asked> = all.iter().filter(|asked| asked.status == 503 && asked.sent > ready).collect();
        assert!(late.is_empty(), "unavailable though ready: {late:?}");
        assert!(counts(&all).keys().all(|status| [200, 429, 503].contains(status)));
    }
    let all = steady.end().await;
    assert_eq!((above, admitted(&all)), (0, 0), "{LIMIT} were used before");
}

#[tokio::test]
async fn places_come_back_when_redis_stays_away() {
    const HOLD: Duration = Duration::from_secs(1);
    let (mut redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, |s| s.slots = 1000).await);
    let quotas = format!("on_outage: local_share, replicas: 2, hold_ms: {}", HOLD.as_millis());
    let setup = || replica(&backend, redis.address(), "[{concurrency: 4}]", &quotas);
    let (one, two) = (setup().start().await, setup().start().await);
    for gateway in [&one, &two] {
        until_shared(gateway).await;
    }
    let begin = async |gateway: &Gateway, gate: &str| {
        // Each on a connection of its own, which may end as it likes.
        let ask = gateway.chat(true).key(LIMITED).header("connection", "close");
        ask.header("x-sim-gate", gate).begin().await
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(begin(&two, "held").await);
        assert_eq!(held.last().unwrap().status(), 200);
    }
    until_refused(&one).await;
    redis.stop();
    for gateway in [&one, &two] {
        until_not_shared(gateway).await;
    }
    (0..100).for_each(|_| backend.open_gate("held"));
    for response in held {
        answer(response).await;
    }
    let free = Instant::now();
    until("there are places", async || chat_once(&one).await == 200).await;
    println!("places after {:?}", free.elapsed());
    assert!(free.elapsed() < HOLD + Duration::from_secs(5), "{:?}", free.elapsed());
    // Its share, and no more.
    let share = [begin(&one, "never").await, begin(&one, "never").await];
    assert!(share.iter().all(|response| response.status() == 200), "{share:?}");
    assert_eq!(chat_once(&one).await, 429);
}
