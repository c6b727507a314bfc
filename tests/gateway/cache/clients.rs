//! Real clients read the same vectors from a pool that keeps them and from one that does not.

use serde_json::{Value, json};

use super::{EMBED, MODEL, setup, started};
use crate::sdk::Script;
use crate::support::*;

/// Runs a script against two gateways before one backend: one that keeps vectors, and one that does not.
async fn run(script: &str, backend: &Simulator) -> (Gateway, Value) {
    let plain = format!("models: [{{id: {MODEL}}}]\nhealth: {{enabled: false}}\nmetrics: {{enabled: false}}");
    let plain = Gateway::setup().pool("e", "nim-embedding", &plain, &[&backend.url()]).start().await;
    let kept = started(setup(backend, "")).await;
    let url = format!("http://{}/v1", plain.address);
    let told = Script::start(script, &kept, &[("PLAIN_URL", &url), ("KEY", KEY)]).finish().await;
    (kept, told)
}

/// What OpenAI's SDKs are told of the cache.
async fn openai(script: &str) {
    let backend = simulator(Kind::Embedding).await;
    let hit = "hit; hits=2, misses=0";
    let wanted = json!([
        "miss; hits=0, misses=2",
        hit,
        hit,
        "miss; hits=0, misses=2",
        hit,
        hit,
        "miss; hits=0, misses=1",
        "hit; hits=1, misses=0",
        "partial; hits=3, misses=2",
        "partial; hits=2, misses=1",
    ]);
    assert_eq!(run(script, &backend).await.1, wanted);
    assert_eq!(backend.seen().requests(EMBED), 10 + 5, "of each of these one, and of those with misses another");
}

#[tokio::test]
async fn openai_for_python_reads_equal_vectors() {
    openai("kept.py").await;
}

#[tokio::test]
async fn openai_for_node_reads_equal_vectors() {
    openai("kept.cjs").await;
}

#[tokio::test]
async fn langchain_reads_equal_vectors() {
    let backend = simulator(Kind::Embedding).await;
    let (gateway, _) = run("kept_langchain.py", &backend).await;
    // It shows no headers; the records tell.
    let states = async || {
        let records = gateway.records();
        let kept = records.iter().filter(|record| !record["cache"].is_null());
        kept.map(|record| record["cache"].clone()).collect::<Vec<_>>()
    };
    until("all are recorded", async || states().await.len() == 7).await;
    assert_eq!(states().await, ["miss", "hit", "partial", "miss", "hit", "hit", "hit"]);
}
