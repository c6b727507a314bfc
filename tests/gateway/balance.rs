//! Pools: load, health, and endpoints that can not be reached.

use crate::support::*;

/// The same requests go anywhere.
const SPREAD: &str = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {interval_ms: 50, unhealthy_after: 2}\n\
                      balance: {affinity: 0}";
const POOL: &str = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {interval_ms: 50, unhealthy_after: 2}";

#[tokio::test]
async fn a_request_goes_on_to_another_endpoint_when_one_can_not_be_reached() {
    let backend = simulator(Kind::Llm).await;
    let dead: Vec<String> = (0..2).map(|_| format!("http://{}", free_address())).collect();
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}\nbalance: {affinity: 0}";
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
    assert_eq!((answer.status, answer.fault()), (502, ("connect_refused", "network")));
}

#[tokio::test]
async fn probes_take_an_endpoint_out_and_bring_it_back() {
    let (steady, flapping) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let strict = POOL.replace("unhealthy_after: 2", "unhealthy_after: 2, try_unhealthy: false");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &strict, &[&steady.url(), &flapping.url()]).start().await;
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
    let pool = format!("{SPREAD}\ntimeouts: {{first_event_ms: 0}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&busy.url(), &idle.url()]).start().await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(gateway.chat(true).header("x-sim-gate", "never").begin().await);
    }
    // Both are compared, so held streams spread evenly.
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

const CHAT: &str = "/v1/chat/completions";

/// The state page's entry of an endpoint of the only pool.
async fn endpoint(gateway: &Gateway, backend: &Simulator) -> serde_json::Value {
    let state = gateway.admin("/state").await.json();
    let endpoints = state["pools"][0]["endpoints"].as_array().unwrap().clone();
    let name = backend.address().to_string();
    endpoints.into_iter().find(|e| e["name"] == name).unwrap()
}

#[tokio::test]
async fn a_pool_has_no_more_in_flight_than_it_may() {
    let backend = simulator(Kind::Llm).await;
    let pool = format!("{POOL}\nbalance: {{max_in_flight: 2}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&backend.url()]).start().await;
    let held = [
        gateway.chat(true).header("x-sim-gate", "never").begin().await,
        gateway.chat(true).header("x-sim-gate", "never").begin().await,
    ];
    let third = async {
        let answer = gateway.chat(false).send().await;
        assert_eq!((answer.status, answer.fault()), (200, ("", "")));
        assert!(!answer.header("x-nimgate-queue-ms").is_empty(), "it waited");
    };
    let release = async {
        gateway.until_waiting("chat", 1).await;
        assert_eq!(backend.seen().in_flight(), 2);
        drop(held);
    };
    tokio::join!(third, release);
    gateway.until_idle().await;
}

#[tokio::test]
async fn when_no_probe_succeeds_requests_are_tried_all_the_same() {
    let backend = simulator(Kind::Llm).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\n\
                health: {path: /no/such/path, interval_ms: 50, unhealthy_after: 1}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).start().await;
    until("it is out", async || gateway.metric("nimgate_endpoint_healthy").await == 0.0).await;
    assert_eq!(gateway.chat(false).send().await.status, 200);
    assert_eq!(gateway.admin("/readyz").await.status, 503);
}

#[tokio::test]
async fn an_endpoint_that_fails_all_work_is_left_out_until_it_works_whatever_its_probes_say() {
    let (good, bad) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let pool =
        format!("{POOL}\nbreaker: {{open_ms: 200, longest_ms: 400, slow_start_ms: 0}}\nbalance: {{affinity: 0}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&good.url(), &bad.url()]).start().await;
    bad.fault_times("status=500", u64::MAX, Some("/v1/chat")).unwrap();
    let is_open = async || endpoint(&gateway, &bad).await["breaker"] == "open";
    until("its breaker opens", async || {
        gateway.chat(false).send().await;
        is_open().await
    })
    .await;
    let page = endpoint(&gateway, &bad).await;
    assert_eq!((&page["healthy"], endpoint(&gateway, &good).await["breaker"].as_str()), (&true.into(), Some("closed")));
    let before = bad.seen().requests(CHAT);
    for _ in 0..40 {
        gateway.chat(false).send().await;
    }
    assert!(bad.seen().requests(CHAT) - before <= 10, "only trials");
    bad.fault("").unwrap();
    until("a trial closes it", async || {
        gateway.chat(false).send().await;
        !is_open().await
    })
    .await;
}

#[tokio::test]
async fn clients_mistakes_and_fullness_open_no_breaker() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().pool("chat", "nim-llm", POOL, &[&backend.url()]).start().await;
    for (fault, status) in [("status=400", 400), ("status=422", 422), ("status=429", 429), ("status=503", 503)] {
        backend.fault_times(fault, 20, Some("/v1/chat")).unwrap();
        for _ in 0..20 {
            assert_eq!(gateway.chat(false).send().await.status, status);
        }
        let page = endpoint(&gateway, &backend).await;
        assert_eq!(page["breaker"], "closed", "{fault}");
        assert_eq!(page["paused_s"].is_null(), status < 429, "{fault}: {page}");
    }
    assert_eq!(gateway.chat(false).send().await.status, 200);
}

#[tokio::test]
async fn a_full_endpoint_is_left_alone_while_others_have_room() {
    let (roomy, full) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().pool("chat", "nim-llm", SPREAD, &[&roomy.url(), &full.url()]).start().await;
    full.fault_times("status=503", u64::MAX, Some("/v1/chat")).unwrap();
    until("it was met", async || {
        gateway.chat(false).send().await;
        !endpoint(&gateway, &full).await["paused_s"].is_null()
    })
    .await;
    let before = full.seen().requests(CHAT);
    let mut refused = 0;
    for _ in 0..50 {
        refused += u32::from(gateway.chat(false).send().await.status == 503);
    }
    assert!(refused <= 5 && full.seen().requests(CHAT) - before <= 5, "{refused}");
    assert_eq!(endpoint(&gateway, &full).await["breaker"], "closed");
}

#[tokio::test]
async fn conversations_go_on_where_they_began() {
    let backends = [simulator(Kind::Llm).await, simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let urls: Vec<String> = backends.iter().map(Simulator::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let gateway = Gateway::setup().pool("chat", "nim-llm", POOL, &urls).start().await;
    let total = |backend: &Simulator| backend.seen().requests(CHAT);
    for conversation in 0..6 {
        let mut messages =
            vec![serde_json::json!({"role": "system", "content": format!("You are number {conversation}.")})];
        let mut places = std::collections::BTreeSet::new();
        for turn in 0..5 {
            messages.push(serde_json::json!({"role": "user", "content": format!("Turn {turn}")}));
            let before: Vec<_> = backends.iter().map(total).collect();
            let body =
                serde_json::json!({"model": "meta/llama-3.1-8b-instruct", "messages": messages, "max_tokens": 2});
            assert_eq!(gateway.post(CHAT, &body).send().await.status, 200);
            messages.push(serde_json::json!({"role": "assistant", "content": "Yes"}));
            places.extend((0..3).find(|i| total(&backends[*i]) > before[*i]));
        }
        assert_eq!(places.len(), 1, "conversation {conversation}: {places:?}");
    }
}

#[tokio::test]
async fn what_endpoints_report_is_read_and_shown() {
    let backend = simulator(Kind::Llm).await;
    let pool = format!("{POOL}\nmetrics: {{interval_ms: 50}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&backend.url()]).start().await;
    let _held = gateway.chat(true).header("x-sim-gate", "never").begin().await;
    until("it is read", async || endpoint(&gateway, &backend).await["report"]["running"] == 1.0).await;
    let report = endpoint(&gateway, &backend).await["report"].clone();
    assert_eq!((&report["waiting"], &report["trusted"]), (&0.0.into(), &false.into()));
}

#[tokio::test]
async fn endpoints_report_with_their_answers_where_they_are_asked_to() {
    let backend = simulator(Kind::Llm).await;
    let pool = format!("{POOL}\nmetrics: {{enabled: true, path: /no/such/page, in_answers: true}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&backend.url()]).start().await;
    assert!(endpoint(&gateway, &backend).await["report"].is_null());
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.header("endpoint-load-metrics")), (200, ""));
    assert_eq!(backend.seen().last_of(CHAT).unwrap().headers["endpoint-load-metrics-format"], "TEXT");
    let report = &endpoint(&gateway, &backend).await["report"];
    assert!(report["kv_usage"].is_number() || report["waiting"].is_number(), "{report}");
}

#[tokio::test]
async fn an_endpoint_that_has_nothing_left_by_its_own_headers_rests() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-ratelimit-remaining-requests: 0\r\n\
                  x-ratelimit-reset-requests: 20s\r\ncontent-length: 2\r\n\r\n{}";
    let (spent, other) = (crate::failure::raw_backend(answer).await, simulator(Kind::Llm).await);
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}\nmetrics: {enabled: false}\n\
                balance: {affinity: 0, policy: round_robin}";
    let gateway =
        Gateway::setup().pool("chat", "nim-llm", pool, &[&format!("http://{spent}"), &other.url()]).start().await;
    for _ in 0..6 {
        assert_eq!(gateway.chat(false).send().await.status, 200);
    }
    assert!(other.seen().requests(CHAT) >= 5, "{:?}", other.seen().by_path());
    let state = gateway.admin("/state").await.json();
    let spent = &state["pools"][0]["endpoints"][0];
    assert_eq!(spent["breaker"], "closed");
    assert!(spent["paused_s"].as_f64().is_some_and(|left| left > 10.0), "{spent}");
}
