//! A Redis that answers, but refuses what it is asked.

use super::*;

/// For how long a Redis is watched that refuses.
const WATCHED: Duration = Duration::from_secs(3);
/// More connections or lines than that within the time are a storm.
const STORM: usize = 12;

/// Connections that a server has accepted so far, this question's among them.
fn connections(redis: &RedisServer) -> usize {
    let stats = redis.command(&["INFO", "stats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
    line.trim().parse().unwrap()
}

async fn says_shared(gateway: &Gateway) -> f64 {
    gateway.metric("nimgate_quota_shared ").await
}

#[tokio::test]
async fn a_read_only_redis_is_not_stormed() {
    let (redis, master) = (RedisServer::start().await, RedisServer::start().await);
    let backend = simulator(Kind::Llm).await;
    let quotas = "on_outage: local_share, replicas: 2";
    let gateway = replica(&backend, redis.address(), "[{requests: 100000, per: day}]", quotas).start().await;
    until_shared(&gateway).await;
    assert_eq!(chat_once(&gateway).await, 200);
    redis.command(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    until("it follows", async || redis.command(&["INFO", "replication"]).contains("master_link_status:up")).await;
    until_not_shared(&gateway).await;
    let (begun, made, lines) = (Instant::now(), connections(&redis), gateway.output().lines().count());
    while begun.elapsed() < WATCHED {
        assert_ne!(limits(&gateway).await, "shared", "after {:?}", begun.elapsed());
        assert_eq!(says_shared(&gateway).await, 0.0);
        assert_eq!(chat_once(&gateway).await, 200, "its share");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One was the first question's own.
    let made = connections(&redis) - made - 1;
    let lines = gateway.output().lines().count() - lines;
    println!("{made} connections and {lines} lines in {WATCHED:?}");
    assert!(made < STORM && lines < STORM, "{made} connections and {lines} lines:\n{}", gateway.output());
    redis.command(&["REPLICAOF", "NO", "ONE"]);
    until_shared(&gateway).await;
    until("the metric says so", async || says_shared(&gateway).await == 1.0).await;
    assert_eq!(chat_once(&gateway).await, 200);
}

#[tokio::test]
async fn a_redis_that_refuses_writes_is_said_to_be_away() {
    const LIMIT: usize = 40;
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    for (quotas, share) in [("on_outage: deny", 0), ("on_outage: local_share, replicas: 4", LIMIT / 4)] {
        redis.command(&["FLUSHALL"]);
        let setup = replica(&backend, redis.address(), &format!("[{{requests: {LIMIT}, per: day}}]"), quotas);
        let gateway = setup.start().await;
        until_shared(&gateway).await;
        // It has more than that already.
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        until("it is said", async || says_shared(&gateway).await == 0.0 && limits(&gateway).await != "shared").await;
        let mut statuses = BTreeMap::new();
        for _ in 0..LIMIT {
            *statuses.entry(chat_once(&gateway).await).or_insert(0) += 1;
        }
        let refused = if share == 0 { 503 } else { 429 };
        println!("{quotas}: {statuses:?} while writes are refused");
        assert_eq!(statuses.get(&200).copied().unwrap_or(0), share, "{quotas}");
        assert_eq!(statuses.get(&refused).copied(), Some(LIMIT - share), "{quotas}");
        assert_eq!((says_shared(&gateway).await, limits(&gateway).await != "shared"), (0.0, true), "{quotas}");
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
        until("it is said to be back", async || says_shared(&gateway).await == 1.0).await;
        until_shared(&gateway).await;
        let mut used = share;
        until("the limit is used", async || {
            let status = chat_once(&gateway).await;
            used += usize::from(status == 200);
            status == 429 && used == LIMIT
        })
        .await;
    }
}

#[tokio::test]
async fn a_counter_that_redis_refuses_is_held_without_it_and_others_are_shared() {
    const LIMIT: usize = 40;
    const WELL: &str = "ngk_well_0123456789abcdef";
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let limits = format!("[{{requests: {LIMIT}, per: day}}]");
    let setup = replica(&backend, redis.address(), &limits, "on_outage: deny");
    let gateway = setup.key(WELL, &format!("org: well\nlimits: {limits}")).start().await;
    until_shared(&gateway).await;
    let mut used = 1;
    assert_eq!(chat_once(&gateway).await, 200);
    let found = redis.command(&["KEYS", "nimgate:{default}:w:key/limited:requests:day*"]);
    let key = found.trim();
    assert!(!key.is_empty() && !key.contains('\n'), "{key:?}");
    redis.command(&["SET", key, "no hash"]);
    // What was granted before may be used.
    until("its organisation is refused", async || {
        let status = chat_once(&gateway).await;
        used += usize::from(status == 200);
        status == 503
    })
    .await;
    until("it is said", async || says_shared(&gateway).await == 0.0).await;
    // More than any lease: each was granted by Redis.
    for at in 0..LIMIT {
        assert_eq!(gateway.chat(false).key(WELL).send().await.status, 200, "{at}");
    }
    assert_eq!(gateway.chat(false).key(WELL).send().await.status, 429);
    assert_eq!((chat_once(&gateway).await, says_shared(&gateway).await), (503, 0.0));
    redis.command(&["DEL", key]);
    until("it is said to be back", async || says_shared(&gateway).await == 1.0).await;
    until("the limit is used", async || {
        let status = chat_once(&gateway).await;
        used += usize::from(status == 200);
        status == 429
    })
    .await;
    assert_eq!(used, LIMIT);
}
