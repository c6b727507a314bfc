//! Pools: load, health, and endpoints that can not be reached.

use crate::support::*;

const POOL: &str = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {interval_ms: 50, unhealthy_after: 2}";

#[tokio::test]
async fn a_request_goes_on_to_another_endpoint_when_one_can_not_be_reached() {
    let backend = simulator(Kind::Llm).await;
    let dead: Vec<String> = (0..2).map(|_| format!("http://{}", free_address())).collect();
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&dead[0], &backend.url(), &dead[1]]).start().await;
    for _ in 0..20 {
        assert_eq!(gateway.chat(false).send().await.status, 200);
    }
    assert_eq!(backend.seen().requests("/v1/chat/completions"), 20);
    assert!(gateway.metric("nimgate_connect_failures_total").await > 0.0);
}

#[tokio::test]
async fn a_pool_without_any_endpoint_says_so() {
    let dead = format!("http://{}", free_address());
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&dead]).start().await;
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.fault()), (502, ("connect_failed", "network")));
}

#[tokio::test]
async fn probes_take_an_endpoint_out_and_bring_it_back() {
    let (steady, flapping) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().pool("chat", "nim-llm", POOL, &[&steady.url(), &flapping.url()]).start().await;
    let healthy = async || gateway.metric("nimgate_endpoint_healthy").await;
    flapping.fault("not-ready").unwrap();
    until("it is out", async || healthy().await == 1.0).await;
    let before = flapping.seen().requests("/v1/chat/completions");
    for _ in 0..10 {
        assert_eq!(gateway.chat(false).send().await.status, 200);
    }
    assert_eq!(flapping.seen().requests("/v1/chat/completions"), before);
    flapping.fault("").unwrap();
    until("it is back", async || healthy().await == 2.0).await;
    steady.fault("not-ready").unwrap();
    flapping.fault("not-ready").unwrap();
    until("all are out", async || healthy().await == 0.0).await;
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("no_healthy_endpoint", "inference-service")));
    assert_eq!(gateway.get("/v1/health/ready").anonymous().send().await.status, 503);
    assert_eq!(gateway.admin("/readyz").await.status, 503);
}

#[tokio::test]
async fn the_less_loaded_endpoint_is_preferred() {
    let (busy, idle) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().pool("chat", "nim-llm", POOL, &[&busy.url(), &idle.url()]).start().await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(gateway.chat(true).header("x-sim-gate", "never").begin().await);
    }
    // With two endpoints power of two sees both, so held streams spread evenly.
    assert_eq!((busy.seen().in_flight(), idle.seen().in_flight()), (5, 5));
    drop(held);
    until("leases are given back", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn a_kept_connection_that_the_backend_closed_costs_no_request() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup()
        .pool(
            "chat",
            "nim-llm",
            "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}",
            &[&backend.url()],
        )
        .start()
        .await;
    for _ in 0..20 {
        assert_eq!(gateway.chat(false).send().await.status, 200);
    }
    assert!(backend.seen().connections() < 5, "connections are kept");
}
