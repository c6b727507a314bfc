//! Limits that replicas share through Redis: never above the limit, and what holds while Redis is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;

use crate::redis::*;
use crate::support::*;

const LIMITED: &str = "ngk_limited_0123456789abcdef";

/// A replica of a gateway that shares through Redis at `address`.
fn replica(backend: &Simulator, redis: &str, limits: &str, on_outage: &str) -> Setup {
    replica_with(backend, &format!("addresses: ['{redis}'], timeout_ms: 500"), limits, on_outage)
}

fn replica_with(backend: &Simulator, redis: &str, limits: &str, on_outage: &str) -> Setup {
    // What else is asked of the backend would count as in flight there.
    let quiet = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}\nmetrics: {enabled: false}";
    Gateway::setup()
        .pool("chat", "nim-llm", quiet, &[&backend.url()])
        .key(LIMITED, &format!("limits: {limits}"))
        .top(&format!("redis: {{{redis}}}\nquotas: {{on_outage: {on_outage}, replicas: 4, write_every_ms: 100}}"))
}

/// Waits until a replica shares its limits with so many.
async fn until_shared(gateway: &Gateway, replicas: u64) {
    until("limits are shared", async || {
        let redis = &gateway.admin("/readyz").await.json()["redis"];
        redis["limits"] == "shared" && redis["replicas"].as_u64() == Some(replicas.max(4))
    })
    .await;
}

async fn four(backend: &Simulator, redis: &str, limits: &str, on_outage: &str) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for _ in 0..4 {
        gateways.push(replica(backend, redis, limits, on_outage).start().await);
    }
    for gateway in &gateways {
        until_shared(gateway, 4).await;
    }
    gateways
}

async fn chat_once(gateway: &Gateway) -> Answer {
    gateway.chat(false).key(LIMITED).send().await
}

pub(crate) fn micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// What a run of requests came to.
#[derive(Default)]
struct Tally {
    /// When requests were sent and answered that were admitted, microseconds.
    admitted: Vec<(u64, u64)>,
    refused: u64,
    other: BTreeMap<u16, u64>,
}

/// Sends requests at random from several callers to random replicas, for so long.
async fn load(gateways: &Arc<Vec<Gateway>>, callers: usize, time: Duration) -> Tally {
    let mut set = JoinSet::new();
    let end = Instant::now() + time;
    for _ in 0..callers {
        let gateways = Arc::clone(gateways);
        set.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < end {
                let sent = micros();
                let answer = chat_once(&gateways[fastrand::usize(..gateways.len())]).await;
                match answer.status {
                    200 => tally.admitted.push((sent, micros())),
                    429 => tally.refused += 1,
                    other => *tally.other.entry(other).or_default() += 1,
                }
                tokio::time::sleep(Duration::from_micros(fastrand::u64(..4000))).await;
            }
            tally
        });
    }
    let mut all = Tally::default();
    for tally in set.join_all().await {
        all.admitted.extend(tally.admitted);
        all.refused += tally.refused;
        tally.other.into_iter().for_each(|(status, count)| *all.other.entry(status).or_default() += count);
    }
    all
}

/// How many of what was admitted can not have been admitted within `limit` for each second: a request may count in any
/// second that it was under way in.
pub(crate) fn above(admitted: &[(u64, u64)], limit: usize) -> usize {
    let mut spans: Vec<(u64, u64)> = admitted.iter().map(|(from, to)| (from / 1_000_000, to / 1_000_000)).collect();
    spans.sort_by_key(|(from, to)| (*to, *from));
    let mut used: BTreeMap<u64, usize> = BTreeMap::new();
    let mut above = 0;
    for (from, to) in spans {
        match (from..=to).find(|second| used.get(second).is_none_or(|n| *n < limit)) {
            Some(second) => *used.entry(second).or_default() += 1,
            None => above += 1,
        }
    }
    above
}

#[test]
fn what_is_above_a_limit_is_found() {
    let at = |second: u64| (second * 1_000_000, second * 1_000_000 + 1);
    assert_eq!(above(&[at(1), at(1), at(2)], 2), 0);
    assert_eq!(above(&[at(1), at(1), at(1)], 2), 1);
    // One was under way over the change of seconds.
    assert_eq!(above(&[at(1), at(1), (1_999_999, 2_000_001)], 2), 0);
}

/// The whole seconds within a span of time.
fn whole_seconds(from: u64, to: u64) -> u64 {
    (to / 1_000_000).saturating_sub(from.div_ceil(1_000_000))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_never_admit_more_requests_than_the_limit_and_use_it() {
    const LIMIT: usize = 100;
    let (redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, |s| s.slots = 1000).await);
    let limits = format!("[{{requests: {LIMIT}, per: second}}]");
    let gateways = Arc::new(four(&backend, &redis.address().to_string(), &limits, "deny").await);
    let begun = micros();
    let tally = load(&gateways, 16, Duration::from_secs(6)).await;
    let ended = micros();
    let seconds = whole_seconds(begun, ended);
    let is_whole = |second: u64| second > begun / 1_000_000 && second < ended / 1_000_000;
    let inside = tally.admitted.iter().filter(|(from, _)| is_whole(from / 1_000_000)).count();
    let share = inside as f64 / (seconds as f64 * LIMIT as f64);
    println!("admitted {} in {seconds} whole seconds: {share:.3} of the limit; {:?}", inside, tally.other);
    assert_eq!(above(&tally.admitted, LIMIT), 0);
    assert!(tally.refused > 0 && tally.other.is_empty(), "{:?}", tally.other);
    assert!(share >= 0.97, "{share}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_never_use_more_tokens_than_the_limit_and_use_it() {
    // Each request takes 3 tokens in and 8 out, and reserves 16 and 8.
    const LIMIT: u64 = 3000;
    let (redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, |s| s.slots = 1000).await);
    let limits = format!("[{{output_tokens: {LIMIT}, per: month}}]");
    let gateways = Arc::new(four(&backend, &redis.address().to_string(), &limits, "deny").await);
    let tally = load(&gateways, 16, Duration::from_secs(3)).await;
    // What idled in leases or was reserved has come back: the rest can be had.
    let mut used = tally.admitted.len() as u64 * 8;
    until("the rest is used", async || {
        for gateway in gateways.iter() {
            used += u64::from(chat_once(gateway).await.status == 200) * 8;
        }
        used + 8 > LIMIT
    })
    .await;
    println!("used {used} of {LIMIT}");
    for gateway in gateways.iter() {
        assert_eq!(chat_once(gateway).await.status, 429);
    }
    assert!(used <= LIMIT);
}

#[tokio::test]
async fn what_was_granted_to_a_request_that_another_limit_refused_comes_back() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let address = redis.address().to_string();
    let setup = || {
        let limits = "[{output_tokens: 8, per: month}, {total_tokens: 100000, per: month}]";
        replica(&backend, &address, limits, "deny").admin_token(crate::admin::TOKEN)
    };
    let (one, other) = (setup().start().await, setup().start().await);
    until_shared(&one, 2).await;
    until_shared(&other, 2).await;
    let used = async || {
        let page = crate::admin::ask(&one, "GET", "/keys/limited", None).await.json();
        let limits = page["limits"].as_array().unwrap().iter();
        limits.map(|limit| limit["used"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let answer = chat_once(&one).await.json();
    let tokens = answer["usage"]["total_tokens"].as_u64().unwrap();
    until("idle leases are back", async || used().await == [8, tokens]).await;
    // Redis grants what this one asks for of the second limit, and nothing of the first.
    assert_eq!(chat_once(&other).await.status, 429);
    until("that lease is back", async || used().await == [8, tokens]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_never_run_more_requests_at_a_time_than_the_limit() {
    const LIMIT: u64 = 12;
    let slow = |s: &mut Settings| {
        s.slots = 1000;
        s.time_to_first_token = Duration::from_millis(20);
    };
    let (redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, slow).await);
    let limits = format!("[{{concurrency: {LIMIT}}}]");
    let gateways = Arc::new(four(&backend, &redis.address().to_string(), &limits, "deny").await);
    let (most, sum, looks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (backend, most, sum, looks, stop) =
            (backend.seen().clone(), most.clone(), sum.clone(), looks.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let now = backend.in_flight();
                most.fetch_max(now, Ordering::Relaxed);
                sum.fetch_add(now, Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        })
    };
    let tally = load(&gateways, 40, Duration::from_secs(4)).await;
    stop.store(true, Ordering::Relaxed);
    watcher.await.unwrap();
    let mean = sum.load(Ordering::Relaxed) as f64 / looks.load(Ordering::Relaxed) as f64;
    let most = most.load(Ordering::Relaxed);
    println!("at most {most}, {mean:.2} on average of {LIMIT} at the backend; {} refused", tally.refused);
    assert!(most <= LIMIT && tally.other.is_empty(), "{most} {:?}", tally.other);
    assert!(tally.refused > 0);
    // Every place comes back.
    until("all places are free", async || {
        let mut open = JoinSet::new();
        for at in 0..LIMIT {
            let gateways = Arc::clone(&gateways);
            open.spawn(async move { chat_once(&gateways[at as usize % 4]).await.status });
        }
        open.join_all().await.iter().all(|status| *status == 200)
    })
    .await;
}

/// What a caller that always wants a place came to.
#[derive(Default)]
struct Stays {
    /// When it certainly held one: the backend took `hold` for the answer, so it had begun when that was left until the
    /// answer came, and had not ended before that was over since the request was sent.
    held: Vec<(u64, u64)>,
    statuses: BTreeMap<u16, u64>,
}

/// Asks for places as long as it may: each is held for 100 to 400 ms, and who is refused asks again after a few. Most ask
/// the same replica, for half a second: places then come free at others than those where they are wanted.
async fn hold_places(gateways: &[Gateway], stop: &AtomicBool) -> Stays {
    let mut stays = Stays::default();
    while !stop.load(Ordering::Relaxed) {
        let favourite = (micros() / 500_000) as usize;
        let at = if fastrand::u8(..10) < 9 { favourite } else { fastrand::usize(..) };
        let gateway = &gateways[at % gateways.len()];
        let (hold, sent) = (fastrand::u64(100..=400), micros());
        let fault = format!("delay={hold}");
        let status = gateway.chat(false).key(LIMITED).header("x-sim-fault", &fault).send().await.status;
        *stays.statuses.entry(status).or_default() += 1;
        if status == 200 {
            stays.held.push((micros() - hold * 1000, sent + hold * 1000));
        } else {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(1000..9000))).await;
        }
    }
    stays
}

/// The most of these spans of time that there are at once.
fn most_at_once(spans: &[(u64, u64)]) -> usize {
    let whole = spans.iter().filter(|(from, to)| from < to);
    let mut changes: Vec<(u64, bool)> = whole.flat_map(|(from, to)| [(*from, true), (*to, false)]).collect();
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, begins) in changes {
        now = if begins { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_use_the_places_of_a_limit_and_no_more() {
    const LIMIT: u64 = 24;
    const LOOKS: u32 = 2500;
    let (redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, |s| s.slots = 1000).await);
    let limits = format!("[{{concurrency: {LIMIT}}}]");
    let gateways = Arc::new(four(&backend, &redis.address().to_string(), &limits, "deny").await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..LIMIT + 16 {
        let (gateways, stop) = (Arc::clone(&gateways), Arc::clone(&stop));
        callers.spawn(async move { hold_places(&gateways, &stop).await });
    }
    until("all places are taken", async || backend.seen().in_flight() >= LIMIT).await;
    let client = ::redis::Client::open(format!("redis://{}", redis.address())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let key = redis.command(&["KEYS", "nimgate:*:h:*"]).trim().to_owned();
    // A place is held for longer than the backend works: there are ways to it and back. So `running` is less than what is
    // in use. What Redis has given away may wait for a request at a replica: `given` is more.
    let (mut running, mut given, mut most_given) = (0, 0, 0);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..LOOKS {
        tick.tick().await;
        let held: Vec<String> = ::redis::cmd("HVALS").arg(&key).query_async(&mut connection).await.unwrap();
        let held: u64 = held.iter().map(|entry| entry.split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        (running, given, most_given) = (running + backend.seen().in_flight(), given + held, most_given.max(held));
    }
    stop.store(true, Ordering::Relaxed);
    let (mut held, mut statuses) = (Vec::new(), BTreeMap::new());
    for stays in callers.join_all().await {
        held.extend(stays.held);
        stays.statuses.into_iter().for_each(|(status, count)| *statuses.entry(status).or_insert(0) += count);
    }
    let share = |sum: u64| sum as f64 / f64::from(LOOKS) / LIMIT as f64;
    let most_held = most_at_once(&held);
    println!(
        "running {:.4}, given {:.4} of {LIMIT}; at most {most_held} held, {most_given} given",
        share(running),
        share(given)
    );
    let mut trips = 0.0;
    for gateway in gateways.iter() {
        trips += gateway.metric("nimgate_redis_round_trips_total").await;
    }
    println!("{trips} round trips of all replicas since they started; answers {statuses:?}");
    assert!(statuses.keys().eq(&[200, 429]), "{statuses:?}");
    assert!(most_given <= LIMIT && most_held as u64 <= LIMIT, "{most_given} given, {most_held} held");
    assert!(share(running) >= 0.97, "{}", share(running));
}

/// Breaks the line to Redis in the middle of a load on four replicas, and says how many were admitted in each second.
async fn break_the_line(limit: usize, on_outage: &str) -> (Tally, Vec<u64>, u64) {
    let (redis, backend) = (RedisServer::start().await, simulator_with(Kind::Llm, |s| s.slots = 1000).await);
    let mut line = Line::to(redis.address()).await;
    let limits = format!("[{{requests: {limit}, per: second}}]");
    let gateways = Arc::new(four(&backend, &line.address().to_string(), &limits, on_outage).await);
    let working = {
        let gateways = Arc::clone(&gateways);
        tokio::spawn(async move { load(&gateways, 16, Duration::from_secs(7)).await })
    };
    tokio::time::sleep(Duration::from_millis(1500)).await;
    line.delay(Duration::from_millis(5));
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let cut = micros();
    line.cut().await;
    tokio::time::sleep(Duration::from_millis(2200)).await;
    line.mend().await;
    let mended = micros();
    let tally = working.await.unwrap();
    for gateway in gateways.iter() {
        until_shared(gateway, 4).await;
    }
    let seconds = (cut / 1_000_000..=mended / 1_000_000 + 1).collect();
    (tally, seconds, mended)
}

/// Admitted requests beyond the limit, over all seconds but these, where `most` holds.
fn above_outside(tally: &Tally, limit: usize, broken: &[u64], most: usize) -> (usize, usize) {
    let in_broken =
        |(from, to): &&(u64, u64)| broken.contains(&(from / 1_000_000)) || broken.contains(&(to / 1_000_000));
    let (inside, outside): (Vec<_>, Vec<_>) = tally.admitted.iter().partition(|span| in_broken(span));
    (above(&outside, limit), above(&inside, most))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_denied_nothing_is_above_the_limit_while_redis_is_away() {
    let (tally, ..) = break_the_line(60, "deny").await;
    println!("admitted {}, refused {}, {:?}", tally.admitted.len(), tally.refused, tally.other);
    assert_eq!(above(&tally.admitted, 60), 0);
    assert!(tally.other.keys().eq(&[503]), "{:?}", tally.other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_local_shares_the_limit_holds_but_for_the_seconds_of_change() {
    let (tally, broken, _) = break_the_line(60, "local_share").await;
    println!("admitted {}, refused {}, {:?}", tally.admitted.len(), tally.refused, tally.other);
    assert!(tally.other.is_empty(), "{:?}", tally.other);
    assert_eq!(above_outside(&tally, 60, &broken, 120), (0, 0));
    // While Redis is away for good, the shares make up the limit and no more.
    let middle: Vec<(u64, u64)> = tally
        .admitted
        .iter()
        .filter(|(from, to)| from / 1_000_000 == broken[1] && to / 1_000_000 == broken[1])
        .copied()
        .collect();
    println!("{} in the second wholly without Redis", middle.len());
    assert!(!middle.is_empty());
    assert_eq!(above(&middle, 60), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_allowed_nobody_is_refused_while_redis_is_away() {
    let (tally, broken, _) = break_the_line(30, "allow").await;
    let during = tally.admitted.iter().filter(|(from, _)| from / 1_000_000 == broken[1]).count();
    println!("admitted {during} in the second without Redis");
    assert!(during > 60, "{during}");
    assert!(tally.other.is_empty(), "{:?}", tally.other);
    let outside: Vec<_> = above_outside(&tally, 30, &broken, usize::MAX).0.to_string().chars().collect();
    assert_eq!(outside, ['0']);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_without_its_data_is_told_what_was_used() {
    let (mut redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let limits = "[{requests: 100, per: month}]";
    let gateways = four(&backend, &redis.address().to_string(), limits, "deny").await;
    let mut admitted = 0;
    for at in 0..60 {
        admitted += u64::from(chat_once(&gateways[at % 4]).await.status == 200);
    }
    assert_eq!(admitted, 60);
    redis.restart().await;
    assert_eq!(redis.command(&["DBSIZE"]), "0");
    let mut statuses = BTreeMap::new();
    until("the limit is reached", async || {
        for gateway in &gateways {
            let status = chat_once(gateway).await.status;
            admitted += u64::from(status == 200);
            *statuses.entry(status).or_insert(0) += 1;
        }
        statuses.contains_key(&429)
    })
    .await;
    println!("{admitted} of 100 with a restart between; {statuses:?}");
    for gateway in &gateways {
        until("every replica knows", async || {
            let status = chat_once(gateway).await.status;
            admitted += u64::from(status == 200);
            status == 429
        })
        .await;
    }
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn what_was_used_while_redis_was_away_is_told_when_it_returns() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let mut line = Line::to(redis.address()).await;
    let limits = "[{requests: 100, per: month}]";
    let one = replica(&backend, &line.address().to_string(), limits, "allow").start().await;
    let two = replica(&backend, &redis.address().to_string(), limits, "allow").start().await;
    until_shared(&one, 2).await;
    until_shared(&two, 2).await;
    line.cut().await;
    until("it is away", async || one.admin("/readyz").await.json()["redis"]["limits"] == "away").await;
    for _ in 0..95 {
        assert_eq!(chat_once(&one).await.status, 200);
    }
    line.mend().await;
    until_shared(&one, 2).await;
    // The other replica learns of the 95 from Redis.
    until("they count for the other", async || {
        redis
            .command(&["KEYS", "nimgate:*requests:month*"])
            .lines()
            .any(|key| redis.command(&["HGET", key, "s"]).parse::<u64>().is_ok_and(|sum| sum >= 95))
    })
    .await;
    let mut admitted = 0;
    until("the limit is reached", async || {
        let status = chat_once(&two).await.status;
        admitted += u64::from(status == 200);
        status == 429
    })
    .await;
    assert!(admitted <= 5, "{admitted}");
    // Usage, too, is there once.
    until("usage is written", async || {
        let keys = redis.command(&["KEYS", "nimgate:*usage:2*"]);
        let all = redis.command(&["HGETALL", keys.trim()]);
        let lines: Vec<&str> = all.lines().collect();
        let requests = lines.chunks(2).find(|pair| pair[0].ends_with("\u{1f}requests"));
        requests.is_some_and(|pair| pair[1] == (95 + admitted).to_string())
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_stops_gives_its_leases_back_and_one_that_dies_its_places() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let limits = "[{concurrency: 2}, {requests: 1000, per: month}]";
    let setup = || {
        let quotas = "redis: {addresses: ['ADDRESS'], timeout_ms: 500}\nquotas: {on_outage: deny, hold_ms: 1000}";
        Gateway::setup()
            .chat(&[&backend.url()])
            .key(LIMITED, &format!("limits: {limits}"))
            .top(&quotas.replace("ADDRESS", &redis.address().to_string()))
    };
    let mut dying = setup().start().await;
    let other = setup().start().await;
    for gateway in [&dying, &other] {
        until("shared", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
    }
    let held = dying.chat(true).key(LIMITED).header("x-sim-gate", "g").begin().await;
    let held_too = dying.chat(true).key(LIMITED).header("x-sim-gate", "g").begin().await;
    assert_eq!((held.status().as_u16(), held_too.status().as_u16()), (200, 200));
    assert_eq!(chat_once(&other).await.status, 429);
    // Held for longer than a place lives without renewal.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(chat_once(&other).await.status, 429);
    dying.signal("KILL");
    until("it is dead", async || !dying.is_running()).await;
    until("its places are free", async || chat_once(&other).await.status == 200).await;

    let mut stopping = setup().start().await;
    until("shared", async || stopping.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
    for _ in 0..50 {
        assert_eq!(chat_once(&stopping).await.status, 200);
    }
    stopping.signal("TERM");
    until("it has stopped", async || !stopping.is_running()).await;
    let sum = || -> u64 {
        let keys = redis.command(&["KEYS", "nimgate:*requests:month*"]);
        redis.command(&["HGET", keys.trim(), "s"]).parse().unwrap()
    };
    let used = sum();
    // Two were under way at the one that died, one or more ran at the other.
    println!("{used} counted");
    until("idle leases are back", async || sum() <= 2 + 50 + 30).await;
}

#[tokio::test]
async fn limits_are_shared_through_a_cluster() {
    let (cluster, backend) = (RedisCluster::start().await, simulator(Kind::Llm).await);
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| format!("'{}'", node.address())).collect();
    let redis = format!("mode: cluster, addresses: [{}], timeout_ms: 500", nodes.join(", "));
    shares_ten(&backend, &redis).await;
}

#[tokio::test]
async fn limits_are_shared_through_sentinel_and_survive_a_failover() {
    let (mut sentinel, backend) = (RedisSentinel::start().await, simulator(Kind::Llm).await);
    let address = sentinel.sentinel_urls()[0].trim_start_matches("redis://").to_owned();
    let redis =
        format!("mode: sentinel, master: {}, addresses: ['{address}'], timeout_ms: 500", sentinel.master_name());
    let limits = "[{requests: 40, per: month}]";
    let one = replica_with(&backend, &redis, limits, "deny").start().await;
    let two = replica_with(&backend, &redis, limits, "deny").start().await;
    until_shared(&one, 2).await;
    until_shared(&two, 2).await;
    let mut admitted = 0;
    for gateway in [&one, &two, &one, &two] {
        admitted += u64::from(chat_once(gateway).await.status == 200);
    }
    assert_eq!(admitted, 4);
    sentinel.kill_master();
    for gateway in [&one, &two] {
        until("it says so", async || {
            let status = chat_once(gateway).await.status;
            // What it was granted before still counts.
            admitted += u64::from(status == 200);
            status == 503
        })
        .await;
    }
    sentinel.until_failed_over().await;
    until("the limit is reached", async || {
        for gateway in [&one, &two] {
            admitted += u64::from(chat_once(gateway).await.status == 200);
        }
        admitted >= 40
    })
    .await;
    for gateway in [&one, &two] {
        until("no more", async || chat_once(gateway).await.status == 429).await;
    }
    assert_eq!(admitted, 40);
}

#[tokio::test]
async fn redis_may_want_tls_and_a_user() {
    let backend = simulator(Kind::Llm).await;
    let secure = RedisServer::setup().tls().acl_user("gate", "s3cret-of-redis", "~nimgate:* +@all").start().await;
    let address = secure.address();
    let ca = secure.ca_file();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "s3cret-of-redis\n").unwrap();
    let redis = format!(
        "addresses: ['{address}'], tls: {{ca_file: '{}'}}, username: gate, password: {{file: password}}, timeout_ms: 500",
        ca.display()
    );
    let setup = replica_with(&backend, &redis, "[{requests: 2, per: day}]", "deny");
    let gateway = setup.start_in(directory).await;
    until("shared", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
    for status in [200, 200, 429] {
        assert_eq!(chat_once(&gateway).await.status, status);
    }
    assert!(!gateway.output().contains("s3cret"), "{}", gateway.output());
}

/// Two replicas share ten requests.
async fn shares_ten(backend: &Simulator, redis: &str) {
    let limits = "[{requests: 10, per: month}, {concurrency: 5}]";
    let one = replica_with(backend, redis, limits, "deny").start().await;
    let two = replica_with(backend, redis, limits, "deny").start().await;
    until_shared(&one, 2).await;
    until_shared(&two, 2).await;
    let mut admitted = 0;
    for at in 0..30 {
        admitted += u64::from(chat_once(if at % 2 == 0 { &one } else { &two }).await.status == 200);
    }
    assert_eq!(admitted, 10);
}

#[tokio::test]
async fn a_redis_that_is_wrong_from_the_start_is_as_good_as_away() {
    let backend = simulator(Kind::Llm).await;
    let locked = RedisServer::setup().password("right-one").start().await;
    let noisy = RedisServer::start().await;
    let line = Line::to(noisy.address()).await;
    line.garbage();
    let nobody = free_address();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "wrong-one").unwrap();
    let password = directory.path().join("password");
    for (redis, reason) in [
        (
            format!("addresses: ['{}'], password: {{file: '{}'}}", locked.address(), password.display()),
            "authentication failed",
        ),
        (format!("addresses: ['{}']", locked.address()), "NOAUTH"),
        (format!("addresses: ['{}'], database: 999", noisy.address()), ""),
        (format!("addresses: ['{}']", line.address()), ""),
        (format!("addresses: ['{nobody}']"), "refused"),
    ] {
        let gateway = replica_with(&backend, &redis, "[{requests: 40, per: day}]", "local_share").start().await;
        // A fourth of the limit, as there may be four replicas.
        let mut admitted = 0;
        for _ in 0..15 {
            let answer = chat_once(&gateway).await;
            admitted += u64::from(answer.status == 200);
        }
        assert_eq!(admitted, 10, "{redis}");
        let mut page = serde_json::Value::Null;
        until("it says why", async || {
            page = gateway.admin("/readyz").await.json()["redis"].clone();
            page["reason"] != "not connected yet" && page["up"] == false
        })
        .await;
        assert!(page["reason"].as_str().unwrap().contains(reason), "{page}");
        assert_eq!(gateway.metric("nimgate_quota_shared ").await, 0.0);
        assert!(!gateway.output().contains("wrong-one"), "{}", gateway.output());
    }
}

#[tokio::test]
async fn what_lies_under_our_keys_may_be_of_the_wrong_kind() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let gateway = replica(&backend, &redis.address().to_string(), "[{requests: 40, per: day}]", "local_share");
    redis.command(&["SET", "nimgate:{default}:seq", "not a hash"]);
    let gateway = gateway.start().await;
    let mut admitted = 0;
    for _ in 0..15 {
        admitted += u64::from(chat_once(&gateway).await.status == 200);
    }
    assert_eq!(admitted, 10);
    redis.command(&["DEL", "nimgate:{default}:seq"]);
    let mut refused = 0;
    until("all of the limit is used", async || {
        let status = chat_once(&gateway).await.status;
        admitted += u64::from(status == 200);
        refused += u64::from(status == 429);
        admitted == 40
    })
    .await;
    until("and no more", async || chat_once(&gateway).await.status == 429).await;
}
