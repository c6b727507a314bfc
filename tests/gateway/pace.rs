//! Rates that somebody else lets pass: kept where they are stated, learned from refusals, shared by replicas.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use nimgate::sim::ECHO_FUNCTION;
use serde_json::json;

use crate::held::{http, scripted};
use crate::redis::*;
use crate::support::*;

/// A pool with a function and this YAML.
fn function(backend: &Simulator, yaml: &str) -> Setup {
    let pool = format!(
        "kind: nvcf\nvalidation: off\nfunction: {{id: {ECHO_FUNCTION}}}\ncredential: {{secret: {{file: upstream.key}}}}\n{yaml}"
    );
    Gateway::setup().pool("echo", "cosmos-predict", &pool, &[&backend.url()])
}

async fn start(setup: Setup) -> Gateway {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-upstream-secret").unwrap();
    setup.start_in(directory).await
}

async fn limited(rate: usize) -> Simulator {
    simulator_with(Kind::Nvcf, |settings| settings.rate = Some(rate)).await
}

fn ask(gateway: &Gateway) -> Ask<'_> {
    gateway.post("/v1/infer", &json!({ "prompt": "a" }))
}

/// The statuses of so many requests, twenty at a time.
async fn statuses(gateway: &Gateway, count: usize) -> Vec<u16> {
    let asks = stream::iter(0..count).map(|_| async { ask(gateway).send().await.status });
    asks.buffer_unordered(20).collect().await
}

#[tokio::test]
async fn a_stated_rate_is_kept_and_nobody_is_refused() {
    let backend = limited(25).await;
    let gateway = start(function(&backend, "pace: {per_minute: 600, learn: false}")).await;
    let begun = Instant::now();
    assert_eq!(statuses(&gateway, 40).await, [200; 40]);
    // Ten at once, ten in each second.
    assert!(begun.elapsed() > Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert_eq!(backend.seen().total(), 40, "none was refused there");
    assert_eq!(gateway.pool("echo").await["pace"]["requests_per_minute"], 600.0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_rate_is_learned_from_refusals_and_callers_see_none() {
    let backend = limited(40).await;
    let gateway =
        start(function(&backend, "pace: {recovery_per_minute: 60}\nretry: {attempts: 5, budget_percent: 100}")).await;
    assert_eq!(gateway.pool("echo").await["pace"]["requests_per_minute"], json!(null));
    let seen = statuses(&gateway, 200).await;
    assert_eq!(seen, [200; 200]);
    let refused = backend.seen().total() - 200;
    assert!((1..60).contains(&refused), "{refused} were refused there");
    let pace = gateway.pool("echo").await["pace"]["requests_per_minute"].as_f64();
    println!("{refused} refused, {pace:?} a minute");
    assert!(pace.is_some_and(|pace| pace > 60.0), "{pace:?}");
    gateway.until_idle().await;
}

#[tokio::test]
async fn who_can_not_wait_is_told_when_to_come_back() {
    let backend = limited(0).await;
    let gateway = start(function(&backend, "pace: {least_per_minute: 1}")).await;
    let answer = ask(&gateway).header("x-request-timeout", "0.5").send().await;
    assert_eq!((answer.status, answer.fault()), (429, ("platform_rate_limited", "platform")), "{}", answer.text());
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    // The next one knows, and does not make it worse.
    let asked = backend.seen().total();
    let answer = ask(&gateway).header("x-request-timeout", "0.1").send().await;
    assert_eq!((answer.status, answer.fault().0), (503, "deadline_unmet"), "{}", answer.text());
    assert_eq!(backend.seen().total(), asked);
}

#[tokio::test]
async fn replicas_share_what_one_has_learned() {
    let (redis, backend) = (RedisServer::start().await, limited(5).await);
    let setup = || function(&backend, "pace: {}").top(&format!("redis: {{addresses: ['{}']}}", redis.address()));
    let (one, other) = (start(setup()).await, start(setup()).await);
    let rate = async |gateway: &Gateway| gateway.pool("echo").await["pace"]["requests_per_minute"].as_f64();
    assert_eq!(rate(&other).await, None);
    until("one has learned", async || {
        ask(&one).header("x-request-timeout", "0.5").send().await;
        rate(&one).await.is_some()
    })
    .await;
    until("the other knows", async || rate(&other).await.is_some()).await;
}

#[tokio::test]
async fn who_leaves_while_a_refused_stream_waits_is_noticed() {
    let refusal =
        http("429 Too Many Requests", "retry-after: 40\r\n", br#"{"status":429,"title":"Too Many Requests"}"#);
    let (address, seen) = scripted(vec![refusal]).await;
    let pool = format!(
        "models: [{{id: meta/llama-3.1-8b-instruct}}]\nkind: nvcf\nvalidation: off\nretry: {{attempts: 5, budget_percent: 100}}\n\
         function: {{id: {ECHO_FUNCTION}, invocation: INVOCATION}}\ncredential: {{secret: {{file: upstream.key}}}}"
    );
    for (invocation, stream) in [("direct", true), ("pexec", true), ("pexec", false)] {
        let pool = pool.replace("INVOCATION", invocation);
        let gateway = start(Gateway::setup().pool("llm", "nim-llm", &pool, &[&format!("http://{address}")])).await;
        let asked = seen.lock().unwrap().len();
        let call = gateway.chat(stream).header("x-request-id", "gone").begin();
        tokio::select! {
            answer = call => panic!("it is answered: {:?}", answer.status()),
            () = until("it is refused", async || {
                seen.lock().unwrap().len() > asked && gateway.pool("llm").await["pace"]["closed_s"].as_f64() > Some(0.0)
            }) => {}
        }
        let left = Instant::now();
        assert_eq!(gateway.record_of("gone").await["error"], "client_closed");
        gateway.until_idle().await;
        assert!(left.elapsed() < Duration::from_secs(20), "only once the pool was open: {:?}", left.elapsed());
        assert_eq!(seen.lock().unwrap().len(), asked + 1);
    }
}

#[tokio::test]
async fn a_stream_that_begins_with_a_refusal_for_its_rate_waits_for_its_turn() {
    let events = |events: &str| http("200 OK", "content-type: text/event-stream\r\n", events.as_bytes());
    let refusal =
        events("data: {\"error\":{\"message\":\"Too Many Requests\",\"type\":\"rate_limit\",\"code\":429}}\n\n");
    let done = events("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n");
    let (address, seen) = scripted(vec![refusal.clone(), refusal, done]).await;
    let pool = format!(
        "models: [{{id: meta/llama-3.1-8b-instruct}}]\nkind: nvcf\nretry: {{attempts: 5, budget_percent: 100}}\n\
         function: {{id: {ECHO_FUNCTION}}}\ncredential: {{secret: {{file: upstream.key}}}}"
    );
    let gateway = start(Gateway::setup().pool("llm", "nim-llm", &pool, &[&format!("http://{address}")])).await;
    let answer = gateway.chat(true).header("x-request-id", "waits").send().await;
    assert_eq!((answer.status, seen.lock().unwrap().len()), (200, 3), "{}", answer.text());
    assert!(answer.text().ends_with("data: [DONE]\n\n") && !answer.text().contains("error"), "{}", answer.text());
    let record = gateway.record_of("waits").await;
    assert_eq!((&record["attempts"], &record["error"]), (&json!(3), &json!(null)), "{record}");
    assert!(gateway.pool("llm").await["pace"]["requests_per_minute"].is_number(), "the pace has learned");
    gateway.until_idle().await;
}
