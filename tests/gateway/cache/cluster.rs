//! Vectors in a Redis Cluster.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

async fn replica(backend: &Simulator, cluster: &RedisCluster) -> Gateway {
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| format!("'{}'", node.address())).collect();
    let redis = format!("redis: {{mode: cluster, addresses: [{}], timeout_ms: 500}}", nodes.join(", "));
    let gateway = started(setup(backend, "").top(&redis)).await;
    until_connected(&gateway).await;
    gateway
}

fn texts(name: &str, count: usize) -> Value {
    (0..count).map(|n| format!("{name} {n}")).collect()
}

/// Waits until a replica has all of a batch, whoever asked it.
async fn until_known(gateway: &Gateway, batch: &Value) {
    until("it has them", async || {
        let ask = gateway.post(EMBED, &body(batch)).header("cache-control", "only-if-cached");
        ask.send().await.status == 200
    })
    .await;
}

#[tokio::test]
async fn batches_lie_on_all_nodes_and_are_shared() {
    let (backend, cluster) = (simulator(Kind::Embedding).await, RedisCluster::start().await);
    let (one, other) = (replica(&backend, &cluster).await, replica(&backend, &cluster).await);
    // More than are written at once.
    let batch = texts("a", 50);
    let first = embed(&one, &batch).await.json();
    let begun = Instant::now();
    until_known(&other, &batch).await;
    println!("50 vectors were shared within {} ms", begun.elapsed().as_millis());
    let kept: Vec<usize> =
        cluster.nodes.iter().map(|node| node.command(&["KEYS", "nimgate:{*}:e"]).lines().count()).collect();
    assert!(kept.iter().sum::<usize>() == 51 && kept.iter().all(|count| *count > 5), "{kept:?}");
    let hit = embed(&other, &batch).await;
    assert_eq!((told(&hit).as_str(), &hit.json()["data"]), ("hit; hits=50, misses=0", &first["data"]));
    // Known in the process, in Redis, and not at all.
    let mut mixed = batch.as_array().unwrap().clone();
    embed(&one, &texts("b", 20)).await;
    until_known(&other, &texts("b", 20)).await;
    mixed.truncate(26);
    mixed.extend((0..24).map(|n| json!(if n % 2 == 0 { format!("b {n}") } else { format!("c {n}") })));
    // Above 19, those of b were never asked either.
    let answer = embed(&other, &json!(mixed)).await;
    assert_eq!(told(&answer), "partial; hits=36, misses=14");
    assert_eq!(answer.json()["data"], uncached(&other, &body(&json!(mixed))).await["data"]);
    let unwritten = "nimgate_cache_unusable_total{pool=\"e\",what=\"unwritten\"}";
    assert_eq!([one.metric(unwritten).await, other.metric(unwritten).await], [0.0, 0.0]);
}

#[tokio::test]
async fn nobody_notices_when_a_node_is_gone() {
    let (backend, mut cluster) = (simulator(Kind::Embedding).await, RedisCluster::start().await);
    let replicas = [replica(&backend, &cluster).await, replica(&backend, &cluster).await];
    let old = texts("old", 32);
    embed(&replicas[0], &old).await;
    until_known(&replicas[1], &old).await;
    let mut longest = Duration::ZERO;
    let mut check = async |name: String| {
        let mut states = Vec::new();
        for replica in &replicas {
            let batch = texts(&name, 32);
            let begun = Instant::now();
            let answer = embed(replica, &batch).await;
            longest = longest.max(begun.elapsed());
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()["data"], uncached(replica, &body(&batch)).await["data"]);
            assert_eq!(told(&embed(replica, &old).await), "hit; hits=32, misses=0", "it is in the process");
            states.push(told(&answer));
        }
        states
    };
    cluster.nodes[1].stop();
    let mut away = 0;
    for n in 0..30 {
        let states = check(format!("gone {n}")).await;
        away += states.iter().filter(|state| state.contains("reason=redis_")).count();
    }
    assert!(away > 0, "a part of each batch was there");
    println!("with a node gone, {away} of 60 batches passed Redis over, and the slowest took {longest:?}");
    // Not a line for each attempt to reach it.
    for replica in &replicas {
        let lines = replica.output().lines().count();
        assert!(lines < 100, "{lines} lines");
    }
    cluster.nodes[1].restart().await;
    cluster.until_sound().await;
    let mut n = 0;
    until("vectors are shared again", async || {
        n += 1;
        let batch = texts(&format!("back {n}"), 32);
        embed(&replicas[0], &batch).await;
        let ask = replicas[1].post(EMBED, &body(&batch)).header("cache-control", "only-if-cached");
        ask.send().await.status == 200
    })
    .await;
}
