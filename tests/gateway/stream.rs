//! Event streams: every chunk at once, many at a time, and an end that says why.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::task::JoinSet;

use crate::held::{http, scripted};
use crate::support::*;

/// The next chunk of a stream as text; `None` at its end.
async fn next(body: &mut Incoming) -> Option<String> {
    let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("a chunk in time");
    frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

/// The rest of a stream.
async fn rest(body: &mut Incoming) -> String {
    let mut text = String::new();
    while let Some(chunk) = next(body).await {
        text += &chunk;
    }
    text
}

#[tokio::test]
async fn each_chunk_is_delivered_before_the_next_is_produced() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let response = gateway.chat(true).header("x-sim-gate", "g").begin().await;
    assert_eq!(response.headers()["content-type"].to_str().unwrap().split(';').next(), Some("text/event-stream"));
    let mut body = response.into_body();
    // The backend makes event k only when its gate was opened k times, so an event held back would never come.
    for event in 1..=5 {
        backend.open_gate("g");
        let chunk = next(&mut body).await.expect("an event");
        assert_eq!(chunk.matches("data: ").count(), 1, "event {event}: {chunk}");
    }
    (0..100).for_each(|_| backend.open_gate("g"));
    assert!(rest(&mut body).await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once() {
    let backend = simulator_with(Kind::Llm, |s| s.slots = 2000).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\ntimeouts: {first_event_ms: 0}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).start().await;
    let mut streams = JoinSet::new();
    for _ in 0..1000 {
        let response = gateway.chat(true).header("x-sim-gate", "all").begin().await;
        assert_eq!(response.status(), 200);
        streams.spawn(async move { rest(&mut response.into_body()).await });
    }
    assert_eq!(gateway.metric("nimgate_requests_in_flight").await, 1000.0);
    (0..200).for_each(|_| backend.open_gate("all"));
    let texts = streams.join_all().await;
    assert_eq!(texts.len(), 1000);
    for text in texts {
        assert!(text.ends_with("data: [DONE]\n\n") && text.matches("data: ").count() >= 10, "{text}");
    }
    until("all have ended", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn a_backend_killed_within_a_stream_ends_it_with_a_labelled_error_event() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let response = gateway.chat(true).header("x-sim-gate", "g").header("x-request-id", "killed").begin().await;
    let mut body = response.into_body();
    (0..3).for_each(|_| backend.open_gate("g"));
    let mut text = String::new();
    while text.matches("data: ").count() < 3 {
        text += &next(&mut body).await.expect("an event");
    }
    backend.kill();
    text += &rest(&mut body).await;
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let event: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(event["error"]["code"], "upstream_closed", "{text}");
    assert!(text.ends_with("\n\n") && !text.contains("[DONE]"));
    let record = gateway.record_of("killed").await;
    assert_eq!(
        (&record["error"], &record["blame"], &record["status"]),
        (&"upstream_closed".into(), &"network".into(), &200.into())
    );
}

#[tokio::test]
async fn a_cut_answer_that_is_no_stream_is_cut_here_too() {
    let backend = simulator(Kind::CosmosPredict).await;
    let gateway = Gateway::setup().pool("p", "cosmos-predict", "", &[&backend.url()]).start().await;
    let body = serde_json::json!({ "prompt": "a street" });
    let ask =
        gateway.post("/v1/infer", &body).header("x-sim-answer-bytes", "5000000").header("x-sim-fault", "cut-after=64");
    let response = ask.header("x-request-id", "cut").begin().await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "a cut answer must not look whole");
    assert_eq!(gateway.record_of("cut").await["error"], "upstream_closed");
}

#[tokio::test]
async fn a_stream_that_goes_silent_ends_in_an_error_event() {
    let backend = simulator(Kind::Llm).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\ntimeouts: {between_chunks_ms: 200}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).start().await;
    let response = gateway.chat(true).header("x-sim-fault", "stall-after=2").begin().await;
    let text = rest(&mut response.into_body()).await;
    assert!(text.contains("\"code\":\"upstream_stalled\""), "{text}");
    until("the backend's work is dropped", async || backend.seen().in_flight() == 0).await;
}

#[tokio::test]
async fn the_backends_work_ends_when_the_client_leaves() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    // While it still thinks, and in the middle of a stream.
    for stream in [false, true] {
        let before = backend.seen().cancelled();
        let address = gateway.address;
        let body = chat(stream).to_string();
        let header = if stream { "x-sim-gate: never" } else { "x-sim-gate-headers: never" };
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{header}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, request.as_bytes()).await.unwrap();
        until("the backend works", async || backend.seen().in_flight() > 0).await;
        drop(client);
        until("the work is dropped", async || backend.seen().in_flight() == 0 && backend.seen().cancelled() > before)
            .await;
    }
    until("both are recorded", async || {
        gateway.records().iter().filter(|r| r["error"] == "client_closed").count() == 2
    })
    .await;
}

const ALIVE: &str = "models: [{id: meta/llama-3.1-8b-instruct}]\nstream: {keepalive_ms: 50}";

#[tokio::test]
async fn a_slow_prefill_is_bridged_by_comments_where_that_is_wanted() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().pool("chat", "nim-llm", ALIVE, &[&backend.url()]).start().await;
    // Before the backend's header, and between it and the first event.
    for gate in ["x-sim-gate-headers", "x-sim-gate"] {
        let response = gateway.chat(true).header(gate, gate).header("x-request-id", gate).begin().await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-nimgate-pool"], "chat");
        let mut body = response.into_body();
        for _ in 0..3 {
            assert_eq!(next(&mut body).await.unwrap(), ": working\n\n", "{gate}");
        }
        (0..100).for_each(|_| backend.open_gate(gate));
        let text = rest(&mut body).await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{gate}: {text}");
        let first = text.find("data: ").unwrap();
        assert!(!text[first..].contains(": working") && !text.contains("HTTP/1.1"), "{gate}: {text}");
        let record = gateway.record_of(gate).await;
        assert_eq!((&record["status"], &record["error"]), (&200.into(), &serde_json::Value::Null), "{record}");
    }
    // Who asked for no stream gets none.
    let answer = gateway.chat(false).header("x-sim-fault", "delay=300").send().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
}

#[tokio::test]
async fn a_failure_after_comments_is_told_in_an_event_or_mended_elsewhere() {
    let (bad, good) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    bad.fault("status=500,delay=300").unwrap();
    let gateway = Gateway::setup().pool("chat", "nim-llm", ALIVE, &[&bad.url()]).start().await;
    let answer = gateway.chat(true).header("x-request-id", "told").send().await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with(": working\n\n"), "{}", answer.text());
    assert!(events(&answer.text()).pop().unwrap()["error"].is_object(), "{}", answer.text());
    assert_eq!(gateway.record_of("told").await["error"], "inference_error");
    // Cut before anything of an answer came.
    bad.fault("cut-after=0,delay=300").unwrap();
    let answer = gateway.chat(true).header("x-request-id", "cut").send().await;
    assert!(events(&answer.text()).pop().unwrap()["error"].is_object(), "{}", answer.text());
    // Nothing ran: it may run elsewhere, after the comments.
    bad.fault("status=503,delay=300").unwrap();
    let pool = format!("{ALIVE}\nbalance: {{policy: round_robin}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&bad.url(), &good.url()]).start().await;
    let mut mended = 0;
    for _ in 0..4 {
        let text = gateway.chat(true).send().await.text();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
        mended += usize::from(text.starts_with(": working"));
    }
    assert!(mended > 0, "none met the bad endpoint");
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_overload_told_by_the_first_event_is_tried_elsewhere() {
    const FULL: &str = "data: {\"error\":{\"message\":\"ResourceExhausted: Worker local total request limit reached (16/16)\",\
                        \"type\":\"Service Unavailable\",\"code\":503}}\n\ndata: [DONE]\n\n";
    const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let answers = |events: String| vec![http("200 OK", "content-type: text/event-stream\r\n", events.as_bytes())];
    let (full, asked) = scripted(answers(FULL.into())).await;
    let (full, good) = (format!("http://{full}"), simulator(Kind::Llm).await);
    for alive in ["", "stream: {keepalive_ms: 1}\n"] {
        let before = asked.lock().unwrap().len();
        let pool = format!(
            "{alive}models: [{{id: meta/llama-3.1-8b-instruct}}]\nhealth: {{enabled: false}}\nmetrics: {{enabled: false}}\nbalance: {{policy: round_robin}}"
        );
        let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&full, &good.url()]).start().await;
        let mut attempts = 0;
        for turn in 0..6 {
            let id = format!("turn-{turn}");
            let answer = gateway.chat(true).header("x-request-id", &id).send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(
                answer.text().ends_with("data: [DONE]\n\n") && !answer.text().contains("error"),
                "{}",
                answer.text()
            );
            let record = gateway.record_of(&id).await;
            assert_eq!(record["error"], serde_json::Value::Null);
            attempts += record["attempts"].as_u64().unwrap();
        }
        let met = (asked.lock().unwrap().len() - before) as u64;
        assert!(met > 0 && attempts == 6 + met, "{met} met it, {attempts} attempts");
        gateway.until_idle().await;
    }
    assert!(good.seen().runs().values().all(|runs| *runs <= 2), "once under each of the two gateways");
    // There is nobody else: the status and the words are the backend's.
    let gateway = Gateway::setup().chat(&[&full]).start().await;
    let answer = gateway.chat(true).send().await;
    assert_eq!((answer.status, answer.fault().0), (503, "inference_overloaded"), "{}", answer.text());
    assert!(answer.text().contains("ResourceExhausted"), "{}", answer.text());
    // Something was passed on.
    let (late, _) = scripted(answers(format!("{EVENT}{FULL}"))).await;
    let gateway = Gateway::setup().chat(&[&format!("http://{late}"), &good.url()]).start().await;
    let answer = gateway.chat(true).send().await;
    let text = answer.text();
    assert!(!text.contains("ResourceExhausted") || text.starts_with(EVENT.trim_end()), "{text}");
}
