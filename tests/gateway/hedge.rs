//! Second attempts beside a slow first one, and copies for another pool.

use serde_json::json;

use crate::support::*;

const EMBED: &str = "/v1/embeddings";
const MODEL: &str = "models: [{id: nvidia/nv-embedqa-e5-v5}]\nhealth: {enabled: false}\nmetrics: {enabled: false}";

fn question(text: &str) -> serde_json::Value {
    json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": [text], "input_type": "query" })
}

fn hedged(more: &str) -> String {
    format!("{MODEL}\nbalance: {{policy: round_robin}}\nhedge: {{enabled: true, budget_percent: 100, {more}}}")
}

/// Answers well until told otherwise, so that the budget of second attempts fills.
async fn fill(gateway: &Gateway) {
    for _ in 0..10 {
        assert_eq!(gateway.post(EMBED, &question("warm")).send().await.status, 200);
    }
}

#[tokio::test]
async fn a_slow_endpoint_is_outrun_by_a_second_one_and_the_loser_is_cancelled() {
    let (slow, quick) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let yaml = hedged("after_ms: 50");
    let gateway = Gateway::setup().pool("e", "nim-embedding", &yaml, &[&slow.url(), &quick.url()]).start().await;
    fill(&gateway).await;
    let plain = gateway.post(EMBED, &question("a b c")).send().await.json();
    slow.fault("hang").unwrap();
    for at in 0..4 {
        let id = format!("hedge-{at}");
        let answer = gateway.post(EMBED, &question("a b c")).header("x-request-id", &id).send().await;
        assert_eq!((answer.status, answer.header("x-request-id")), (200, id.as_str()));
        assert_eq!(answer.json()["data"], plain["data"]);
        assert_eq!(answer.header("x-nimgate-pool"), "e");
    }
    // By turns, half of them began at the slow one.
    until("the losers are cancelled", async || slow.seen().in_flight() == 0).await;
    assert!(gateway.metric("nimgate_hedges_total{pool=\"e\",result=\"won\"}").await >= 1.0);
    let mut won = Vec::new();
    for at in 0..4 {
        won.push(gateway.record_of(&format!("hedge-{at}")).await);
    }
    let hedged: Vec<_> = won.iter().filter(|record| record["hedge"] == "won").collect();
    assert!(!hedged.is_empty(), "{won:?}");
    assert!(hedged.iter().all(|record| record["attempts"] == 2 && record["input_tokens"].as_u64() > Some(0)));
    let quick = quick.address().to_string();
    assert!(hedged.iter().all(|record| record["endpoint"] == quick.as_str()));
    until("no lease is left", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
    let state = gateway.admin("/state").await.json();
    assert_eq!(state["pools"][0]["queue"]["in_flight"], 0);
}

#[tokio::test]
async fn second_attempts_have_a_budget() {
    let (slow, other) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let yaml = hedged("after_ms: 5").replace("budget_percent: 100", "budget_percent: 10");
    let gateway = Gateway::setup().pool("e", "nim-embedding", &yaml, &[&slow.url(), &other.url()]).start().await;
    for sim in [&slow, &other] {
        sim.fault("delay=30").unwrap();
    }
    for _ in 0..60 {
        assert_eq!(gateway.post(EMBED, &question("x")).send().await.status, 200);
    }
    let hedges = gateway.metric("nimgate_hedges_total").await;
    assert!((1.0..=7.0).contains(&hedges), "{hedges}");
}

#[tokio::test]
async fn when_to_hedge_is_learned() {
    let (one, other) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let gateway = Gateway::setup().pool("e", "nim-embedding", &hedged(""), &[&one.url(), &other.url()]).start().await;
    for _ in 0..60 {
        gateway.post(EMBED, &question("x")).send().await;
    }
    one.fault("hang").unwrap();
    for _ in 0..4 {
        assert_eq!(gateway.post(EMBED, &question("x")).send().await.status, 200);
    }
    assert!(gateway.metric("nimgate_hedges_total{pool=\"e\",result=\"won\"}").await >= 1.0);
}

#[tokio::test]
async fn failures_of_hedged_pools_are_told_as_of_others() {
    let (bad, good) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let dead = format!("http://{}", free_address());
    let yaml = hedged("after_ms: 10000");
    let gateway = Gateway::setup().pool("e", "nim-embedding", &yaml, &[&bad.url(), &good.url(), &dead]).start().await;
    bad.fault("status=503").unwrap();
    for _ in 0..6 {
        assert_eq!(gateway.post(EMBED, &question("x")).send().await.status, 200);
    }
    assert!(gateway.metric("nimgate_connect_failures_total").await >= 1.0);
    good.fault("status=503").unwrap();
    let answer = gateway.post(EMBED, &question("x")).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("inference_overloaded", "inference-service")));
    good.fault("status=400").unwrap();
    bad.fault("status=400").unwrap();
    until("endpoints are tried again", async || {
        gateway.post(EMBED, &question("x")).send().await.fault() == ("inference_rejected", "inference-service")
    })
    .await;
    let wrong = gateway.post(EMBED, &json!({ "model": "nvidia/nv-embedqa-e5-v5" })).send().await;
    assert_eq!(wrong.fault(), ("schema_violation", "client"));
}

#[tokio::test]
async fn a_client_that_leaves_a_hedged_request_ends_all_of_it() {
    let (one, other) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let yaml = hedged("after_ms: 20");
    let gateway = Gateway::setup().pool("e", "nim-embedding", &yaml, &[&one.url(), &other.url()]).start().await;
    fill(&gateway).await;
    one.fault("hang").unwrap();
    other.fault("hang").unwrap();
    let asked = gateway.post(EMBED, &question("x")).header("x-request-id", "gone");
    let left = tokio::time::timeout(std::time::Duration::from_millis(300), asked.send()).await;
    assert!(left.is_err(), "it hangs");
    assert_eq!(gateway.record_of("gone").await["error"], "client_closed");
    until("both are cancelled", async || one.seen().in_flight() + other.seen().in_flight() == 0).await;
    until("no lease is left", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn copies_go_to_the_shadow_and_nobody_waits_for_them() {
    let (own, next) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nshadow: {pool: next, percent: 100, max_in_flight: 2}";
    let shadow = "models: [{id: meta/llama-3.1-8b-instruct, backend_model: next}]\nvalidation: 'off'";
    let gateway = Gateway::setup()
        .pool("chat", "nim-llm", pool, &[&own.url()])
        .pool("next", "nim-llm", shadow, &[&next.url()])
        .start()
        .await;
    let answer = gateway.chat(false).header("x-request-id", "copied").send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, "chat"));
    until("the copy has arrived", async || next.seen().requests("/v1/chat/completions") == 1).await;
    let copy = next.seen().last_of("/v1/chat/completions").unwrap();
    assert_eq!(
        (&copy.headers["x-nimgate-shadow"], &copy.headers["x-request-id"]),
        (&"1".parse().unwrap(), &"copied".parse().unwrap())
    );
    assert!(!copy.headers.contains_key("authorization"));
    until("its body has arrived", async || {
        let copy = next.seen().last_of("/v1/chat/completions").unwrap();
        serde_json::from_slice::<serde_json::Value>(&copy.body).is_ok_and(|body| body["model"] == "next")
    })
    .await;
    assert!(!own.seen().last_of("/v1/chat/completions").unwrap().headers.contains_key("x-nimgate-shadow"));
    until("it is counted", async || gateway.metric("nimgate_shadow_requests_total{pool=\"next\"").await == 1.0).await;
    // A shadow that hangs delays nobody, and holds no more than it may.
    next.fault("hang").unwrap();
    for _ in 0..5 {
        assert_eq!(gateway.chat(false).send().await.status, 200);
    }
    until("further copies are dropped", async || {
        gateway.metric("nimgate_shadow_requests_total{pool=\"next\",result=\"dropped\"}").await == 3.0
    })
    .await;
    let counted = async || gateway.metric("nimgate_requests_total{").await;
    until("all are counted", async || counted().await >= 6.0).await;
    assert_eq!(counted().await, 6.0, "copies are no requests of anybody");
}
