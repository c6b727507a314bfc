//! Records: one line and one count per request, and no secret in either.

use crate::support::*;

#[tokio::test]
async fn a_record_tells_what_happened() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    gateway.chat(false).header("x-request-id", "r1").send().await;
    let mut record = gateway.record_of("r1").await;
    for measured in ["time", "client", "first_byte_ms", "total_ms", "request_bytes", "response_bytes"] {
        let value = record.as_object_mut().unwrap().remove(measured).unwrap();
        assert!(!value.is_null() && value != 0, "{measured}");
    }
    let expected = serde_json::json!({
        "request_id": "r1", "method": "POST", "path": "/v1/chat/completions", "http_version": "HTTP/1.1",
        "caller": "test", "org": "default", "team": "default", "api": "nim-llm", "operation": "create_chat_completion",
        "model": "meta/llama-3.1-8b-instruct", "stream": false, "pool": "chat", "endpoint": backend.address().to_string(),
        "attempts": 1, "status": 200, "error": null, "blame": null,
        "input_tokens": 3, "output_tokens": 8, "tokens": "stated", "finish_reason": "length", "spend": null,
    });
    assert_eq!(record, expected);
}

#[tokio::test]
async fn every_request_leaves_exactly_one_record_and_one_count() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let mut ids = Vec::new();
    for at in 0..5 {
        let id = |kind: &str| format!("{kind}-{at}");
        gateway.chat(false).header("x-request-id", &id("good")).send().await;
        gateway.chat(false).anonymous().header("x-request-id", &id("denied")).send().await;
        gateway.chat(false).header("x-sim-fault", "status=500").header("x-request-id", &id("failed")).send().await;
        gateway.get("/v1/models").header("x-request-id", &id("own")).send().await;
        ids.extend(["good", "denied", "failed", "own"].map(id));
    }
    until("all are recorded", async || gateway.records().len() >= ids.len()).await;
    let mut recorded: Vec<String> =
        gateway.records().iter().map(|r| r["request_id"].as_str().unwrap().to_owned()).collect();
    recorded.sort();
    ids.sort();
    assert_eq!(recorded, ids);
    assert_eq!(gateway.metric("nimgate_requests_total").await, 20.0);
    assert_eq!(gateway.metric("nimgate_requests_in_flight").await, 0.0);
}

#[tokio::test]
async fn clients_can_not_make_labels() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    for at in 0..20 {
        let mut body = chat(false);
        body["model"] = format!("made-up-{at}").into();
        gateway.post("/v1/chat/completions", &body).send().await;
        gateway.get(&format!("/made/up/{at}")).send().await;
    }
    let page = gateway.admin("/metrics").await.text();
    assert!(!page.contains("made"), "{page}");
    assert_eq!(page.lines().filter(|l| l.starts_with("nimgate_requests_total")).count(), 2, "{page}");
}
