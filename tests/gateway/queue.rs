//! Waiting for a place: whose turn it is, how many may wait, what the waiting client sees, and what a reload changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::input::Wire;
use crate::support::*;

const MODEL: &str = "models: [{id: meta/llama-3.1-8b-instruct}]";
const CHAT: &str = "/v1/chat/completions";

/// A pool with one place.
fn narrow(more: &str) -> String {
    format!("{MODEL}\nhealth: {{enabled: false}}\nbalance: {{max_in_flight: 1}}\n{more}")
}

fn key_text(id: &str) -> String {
    format!("ngk_{id}_0123456789abcdef")
}

/// A pool with one place, and keys with this YAML each.
async fn start(more: &str, keys: &[(&str, &str)]) -> (Simulator, Arc<Gateway>) {
    let backend = simulator(Kind::Llm).await;
    let mut setup = Gateway::setup().pool("chat", "nim-llm", &narrow(more), &[&backend.url()]);
    for (id, yaml) in keys {
        setup = setup.key(&key_text(id), &format!("name: {id}\n{yaml}"));
    }
    (backend, Arc::new(setup.start().await))
}

/// Takes the only place until the gate `held` opens or this is dropped.
async fn hold(gateway: &Gateway) -> Response<Incoming> {
    gateway.chat(true).header("x-sim-gate", "held").header("x-request-id", "held").begin().await
}

fn release(backend: &Simulator) {
    (0..100).for_each(|_| backend.open_gate("held"));
}

/// Asks as the key with this id, in the background.
fn ask(gateway: &Arc<Gateway>, key: &str, id: &str, timeout: Option<&str>) -> JoinHandle<Answer> {
    let (gateway, key, id) = (Arc::clone(gateway), key_text(key), id.to_owned());
    let timeout = timeout.map(str::to_owned);
    tokio::spawn(async move {
        let ask = gateway.chat(false).key(&key).header("x-request-id", &id);
        let ask = if let Some(timeout) = &timeout { ask.header("x-request-timeout", timeout) } else { ask };
        ask.send().await
    })
}

/// Whose requests the backend got, in their order, by the first part of their ids.
fn served(backend: &Simulator) -> Vec<String> {
    let ids = backend.seen().history().into_iter().filter(|seen| seen.path == CHAT);
    let ids = ids.map(|seen| seen.headers["x-request-id"].to_str().unwrap().split('-').next().unwrap().to_owned());
    ids.filter(|who| who != "held").collect()
}

/// Lets these keys queue so many requests each, and returns whose were served in which order.
async fn race(gateway: &Arc<Gateway>, backend: &Simulator, queued: &[(&str, usize)]) -> Vec<String> {
    let held = hold(gateway).await;
    let mut waiting = Vec::new();
    for (key, count) in queued {
        waiting.extend((0..*count).map(|at| ask(gateway, key, &format!("{key}-{at}"), None)));
        gateway.until_waiting("chat", waiting.len() as u64).await;
    }
    release(backend);
    answer(held).await;
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    gateway.until_idle().await;
    served(backend)
}

fn count(served: &[String], who: &str) -> usize {
    served.iter().filter(|found| *found == who).count()
}

#[tokio::test]
async fn keys_share_a_full_pool_by_their_weight_whoever_came_first() {
    let (backend, gateway) = start("", &[("light", "weight: 1"), ("heavy", "weight: 3")]).await;
    let served = race(&gateway, &backend, &[("light", 12), ("heavy", 12)]).await;
    let heavy = count(&served[..12], "heavy");
    assert!((8..=10).contains(&heavy), "{heavy} of the first 12: {served:?}");
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_leaves_the_lower_one_its_share() {
    let (backend, gateway) = start("", &[("low", "priority: low"), ("high", "priority: high")]).await;
    let served = race(&gateway, &backend, &[("low", 4), ("high", 24)]).await;
    assert_eq!(count(&served[..6], "low"), 0, "{served:?}");
    assert!((1..=3).contains(&count(&served[..24], "low")), "{served:?}");
}

#[tokio::test]
async fn a_line_is_bounded_for_each_key_and_for_all() {
    let keys = [("a", ""), ("b", "")];
    let (backend, gateway) = start("queue: {max: 3, max_per_caller: 2}", &keys).await;
    let held = hold(&gateway).await;
    let mut waiting = vec![ask(&gateway, "a", "a-0", None), ask(&gateway, "a", "a-1", None)];
    gateway.until_waiting("chat", 2).await;
    let third = ask(&gateway, "a", "a-2", None).await.unwrap();
    assert_eq!((third.status, third.fault()), (429, ("caller_queue_full", "quota")));
    assert!((1..=60).contains(&third.header("retry-after").parse::<u64>().unwrap()));
    waiting.push(ask(&gateway, "b", "b-0", None));
    gateway.until_waiting("chat", 3).await;
    // The line is full: whoever has less in it takes the place of whoever has more.
    waiting.push(ask(&gateway, "b", "b-1", None));
    let mut refused = 0;
    until("one is refused", async || {
        refused = waiting.iter().filter(|answer| answer.is_finished()).count();
        refused == 1
    })
    .await;
    let queue = gateway.pool("chat").await["queue"].clone();
    assert_eq!((&queue["waiting"], &queue["refused"]["queue_full"]), (&json!(3), &json!(1)), "{queue}");
    assert_eq!(queue["refused"]["caller_queue_full"], 1, "{queue}");
    release(&backend);
    answer(held).await;
    let mut labels = Vec::new();
    for answer in waiting {
        let answer = answer.await.unwrap();
        labels.push((answer.status, answer.fault().0.to_owned()));
        assert!(answer.status == 200 || !answer.header("retry-after").is_empty());
    }
    labels.sort();
    let good = (200, String::new());
    assert_eq!(labels, [good.clone(), good.clone(), good, (503, "queue_full".to_owned())]);
    gateway.until_idle().await;
}

#[tokio::test]
async fn without_a_line_what_finds_no_place_is_refused_at_once() {
    let (backend, gateway) = start("queue: {max: 0}", &[("a", "limits: [{concurrency: 1}]")]).await;
    let held = hold(&gateway).await;
    for at in 0..3 {
        let answer = ask(&gateway, "a", &format!("a-{at}"), None).await.unwrap();
        assert_eq!((answer.status, answer.fault()), (503, ("queue_full", "gateway")));
    }
    release(&backend);
    answer(held).await;
    assert_eq!(ask(&gateway, "a", "a-9", None).await.unwrap().status, 200, "no refusal kept a limit");
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_the_line_frees_its_place_and_its_limits() {
    let limits = "limits: [{concurrency: 1}, {total_tokens: 100000, per: month}]";
    let (backend, gateway) = start("", &[("a", limits), ("b", "")]).await;
    let used = async || {
        let page = gateway.admin("/keys/a").await.json();
        page["limits"].as_array().unwrap().iter().map(|limit| limit["used"].as_u64().unwrap()).sum::<u64>()
    };
    let held = hold(&gateway).await;
    for round in 1..=3 {
        let leaving = ask(&gateway, "a", &format!("a-{round}"), None);
        gateway.until_waiting("chat", 1).await;
        assert!(used().await > 1, "its place and its tokens are reserved");
        assert_eq!(ask(&gateway, "a", "more", None).await.unwrap().fault().0, "concurrency_exceeded");
        leaving.abort();
        gateway.until_waiting("chat", 0).await;
        until("its limits are free", async || used().await == 0).await;
        let record = gateway.record_of(&format!("a-{round}")).await;
        assert_eq!((&record["error"], &record["attempts"]), (&json!("client_closed"), &json!(0)));
        assert_eq!(gateway.pool("chat").await["queue"]["left"], round);
    }
    let stays = ask(&gateway, "b", "b-1", None);
    gateway.until_waiting("chat", 1).await;
    release(&backend);
    answer(held).await;
    assert_eq!(stays.await.unwrap().status, 200);
    gateway.until_idle().await;
    assert_eq!(served(&backend), ["b"], "nothing of those who left ran");
}

#[tokio::test]
async fn a_stream_over_http2_that_is_reset_leaves_the_line() {
    let backend = simulator(Kind::Llm).await;
    let setup = Gateway::setup().pool("chat", "nim-llm", &narrow("queue: {keepalive_ms: 10}"), &[&backend.url()]);
    let gateway = setup.listener("http2_cleartext: true").start().await;
    let held = hold(&gateway).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    for stream in [false, true] {
        let request = Request::post(format!("http://{}{CHAT}", gateway.address))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .body(Full::new(chat(stream).to_string().into()));
        let waiting = tokio::spawn(client.request(request.unwrap()));
        gateway.until_waiting("chat", 1).await;
        waiting.abort();
        let _ = waiting.await;
        gateway.until_waiting("chat", 0).await;
    }
    drop(held);
    gateway.until_idle().await;
    assert_eq!(backend.seen().requests(CHAT), 1);
}

#[tokio::test]
async fn the_wait_is_told_in_answer_record_metrics_and_state() {
    let (backend, gateway) = start("", &[("a", "priority: high")]).await;
    let at_once = gateway.chat(false).header("x-request-id", "at-once").send().await;
    assert_eq!(at_once.header("x-nimgate-queue-ms"), "");
    assert!(gateway.record_of("at-once").await.get("queue_ms").is_none());
    let held = hold(&gateway).await;
    let begun = Instant::now();
    let waiting = ask(&gateway, "a", "a-1", None);
    gateway.until_waiting("chat", 1).await;
    assert_eq!(gateway.metric("nimgate_queue_waiting{pool=\"chat\"}").await, 1.0);
    let queue = gateway.pool("chat").await["queue"].clone();
    let caller = &queue["callers"][0];
    assert_eq!((&caller["key"], &caller["priority"], &caller["waiting"]), (&json!("a"), &json!("high"), &json!(1)));
    assert_eq!((&queue["places"], &queue["in_flight"]), (&json!(1), &json!(1)), "{queue}");
    release(&backend);
    answer(held).await;
    let answer = waiting.await.unwrap();
    let told = answer.header("x-nimgate-queue-ms").parse::<f64>().unwrap();
    let record = gateway.record_of("a-1").await;
    let noted = record["queue_ms"].as_f64().unwrap();
    assert!(noted > 0.0 && told <= noted && noted <= begun.elapsed().as_secs_f64() * 1000.0, "{told} {record}");
    assert_eq!(gateway.metric("nimgate_queue_wait_seconds_count{pool=\"chat\"}").await, 1.0);
    gateway.until_idle().await;
    assert_eq!(gateway.metric("nimgate_queue_waiting").await, 0.0);
}

#[tokio::test]
async fn a_wait_ends_by_the_pools_time_or_by_the_callers() {
    let (_backend, gateway) = start("queue: {timeout_ms: 150}", &[("a", "limits: [{concurrency: 1}]")]).await;
    let held = hold(&gateway).await;
    for (timeout, label) in [(None, "queue_timeout"), (Some("0.05"), "deadline_unmet"), (Some("50"), "queue_timeout")] {
        let id = format!("{label}-{}", timeout.unwrap_or("none"));
        let answer = ask(&gateway, "a", &id, timeout).await.unwrap();
        assert_eq!((answer.status, answer.fault()), (503, (label, "gateway")));
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        let waited = gateway.record_of(&id).await["queue_ms"].as_f64().unwrap();
        let due = if label == "deadline_unmet" { 30.0 } else { 140.0 };
        assert!(waited >= due, "{id} waited {waited} ms");
    }
    for wrong in ["0", "-1", "soon", "1e9", "NaN"] {
        let answer = ask(&gateway, "a", wrong, Some(wrong)).await.unwrap();
        assert_eq!((answer.status, answer.fault().0), (400, "malformed_request"), "{wrong}");
    }
    drop(held);
    gateway.until_idle().await;
}

#[tokio::test]
async fn what_would_wait_too_long_is_refused_at_once_when_the_pools_speed_is_known() {
    let backend = simulator_with(Kind::Llm, |s| s.time_to_first_token = Duration::from_millis(60)).await;
    let setup = Gateway::setup().pool("chat", "nim-llm", &narrow(""), &[&backend.url()]);
    let gateway = Arc::new(setup.key(&key_text("a"), "name: a").start().await);
    race(&gateway, &backend, &[("a", 12)]).await;
    let held = gateway.chat(true).header("x-sim-gate", "never").begin().await;
    let waiting: Vec<_> = (0..6).map(|at| ask(&gateway, "a", &format!("w-{at}"), Some("60"))).collect();
    gateway.until_waiting("chat", 6).await;
    // Six requests of 60 ms and more are before it.
    let answer = ask(&gateway, "a", "late", Some("0.2")).await.unwrap();
    assert_eq!((answer.status, answer.fault().0), (503, "deadline_unmet"));
    let record = gateway.record_of("late").await;
    assert!(record["total_ms"].as_f64().unwrap() < 150.0, "it did not wait for its end: {record}");
    assert_eq!(gateway.pool("chat").await["queue"]["refused"]["too_late"], 1);
    drop(held);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn the_time_to_wait_begins_with_the_wait() {
    let (backend, gateway) = start("queue: {timeout_ms: 300}", &[]).await;
    let mut wire = Wire::to(&gateway).await;
    let whole = wire.post(CHAT, "x-request-id: slow\r\n", &chat(false).to_string());
    let (head, tail) = whole.split_at(whole.len() - 10);
    wire.send(head).await;
    // The upload alone takes longer than the pool's time to wait.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let held = hold(&gateway).await;
    wire.send(tail).await;
    gateway.until_waiting("chat", 1).await;
    release(&backend);
    answer(held).await;
    let answer = wire.answer().await;
    assert_eq!((answer.status, answer.fault().0), (200, ""), "{}", answer.text());
    gateway.until_idle().await;
}

/// Reads a stream until its text holds `what`.
async fn read_until(body: &mut Incoming, what: &str) -> String {
    let mut text = String::new();
    while !text.contains(what) {
        let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("a frame in time");
        let frame = frame.unwrap_or_else(|| panic!("ended without {what}: {text}")).unwrap();
        text += &String::from_utf8_lossy(frame.data_ref().unwrap());
    }
    text
}

async fn rest(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(frame) =
        tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("the stream ends in time")
    {
        bytes.extend_from_slice(frame.expect("a whole stream").data_ref().unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_stream_that_waits_begins_with_comments_and_goes_on_as_any_other() {
    let backend = simulator(Kind::Llm).await;
    let pool = narrow("queue: {keepalive_ms: 10}");
    let setup = Gateway::setup().pool("chat", "nim-llm", &pool, &[&backend.url()]);
    let gateway = setup.listener("http2_cleartext: true").start().await;
    for (http2, version) in [(false, http::Version::HTTP_11), (true, http::Version::HTTP_2)] {
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Full<Bytes>>();
        let gate = format!("held-{http2}");
        let held = gateway.chat(true).header("x-sim-gate", &gate).begin().await;
        let request = Request::post(format!("http://{}{CHAT}", gateway.address))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .header("x-request-id", &gate)
            .body(Full::new(chat(true).to_string().into()));
        let response = client.request(request.unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        assert_eq!(response.headers()["x-request-id"], gate.as_str());
        let mut body = response.into_body();
        let comments = read_until(&mut body, ": waiting for a free endpoint\n\n: waiting").await;
        assert!(comments.lines().all(|line| line.is_empty() || line.starts_with(": ")), "{comments}");
        (0..100).for_each(|_| backend.open_gate(&gate));
        answer(held).await;
        let text = comments + &rest(body).await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let words: Vec<_> = events(&text)
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert!(words.concat().split(' ').count() == 8, "{text}");
        let record = gateway.record_of(&gate).await;
        assert_eq!((&record["status"], &record["error"]), (&json!(200), &Value::Null), "{record}");
        assert!(record["queue_ms"].as_f64().unwrap() >= 10.0 && record["output_tokens"] == 8, "{record}");
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_connection_whose_stream_waited_serves_on() {
    let (backend, gateway) = start("queue: {keepalive_ms: 10}", &[]).await;
    let mut wire = Wire::to(&gateway).await;
    let held = hold(&gateway).await;
    wire.send(wire.post(CHAT, "", &chat(true).to_string())).await;
    gateway.until_waiting("chat", 1).await;
    until("a comment was sent", async || {
        gateway.pool("chat").await["queue"]["callers"][0]["oldest_s"].as_f64().is_some_and(|s| s > 0.03)
    })
    .await;
    release(&backend);
    answer(held).await;
    let text = wire.answer().await.text();
    assert!(text.contains("\r\n: waiting") && text.contains("data: [DONE]"), "{text}");
    wire.send(wire.post(CHAT, "", &chat(false).to_string())).await;
    assert_eq!(wire.answer().await.status, 200);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_failure_after_comments_is_told_in_an_event() {
    let more = "queue: {keepalive_ms: 10, timeout_ms: 30000}\ntimeouts: {first_event_ms: 0, between_chunks_ms: 200, first_byte_ms: 300}";
    let (backend, gateway) = start(more, &[]).await;
    for (at, (fault, label, code)) in [
        ("status=500", "inference_error", None),
        ("status=429", "inference_overloaded", None),
        ("status=400", "inference_rejected", None),
        ("body-html", "upstream_proxy_error", None),
        ("cut", "upstream_closed", Some("upstream_closed")),
        ("hang", "first_byte_timeout", Some("first_byte_timeout")),
        ("status=500,stall-after=0", "upstream_stalled", Some("upstream_stalled")),
        ("cut-after=2", "upstream_closed", Some("upstream_closed")),
    ]
    .into_iter()
    .enumerate()
    {
        let (id, gate) = (format!("f-{at}"), format!("gate-{at}"));
        let held = gateway.chat(true).header("x-sim-gate", &gate).begin().await;
        let ask = gateway.chat(true).header("x-sim-fault", fault).header("x-request-id", &id);
        let response = ask.begin().await;
        assert_eq!(response.status().as_u16(), 200, "{fault}");
        let mut body = response.into_body();
        let mut text = read_until(&mut body, ": waiting").await;
        (0..100).for_each(|_| backend.open_gate(&gate));
        answer(held).await;
        text += &rest(body).await;
        let last = events(&text).pop().unwrap_or_else(|| panic!("{fault}: {text}"));
        assert!(last["error"].is_object() && !text.contains("[DONE]"), "{fault}: {text}");
        assert!(last["error"]["message"].is_string(), "{fault}: {text}");
        if let Some(code) = code {
            assert_eq!(last["error"]["code"], code, "{fault}: {text}");
        }
        let record = gateway.record_of(&id).await;
        assert_eq!((&record["status"], &record["error"]), (&json!(200), &json!(label)), "{fault}: {record}");
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_wait_that_ends_after_comments_is_told_in_an_event() {
    let (_backend, gateway) = start("queue: {keepalive_ms: 10, timeout_ms: 120}", &[]).await;
    let held = hold(&gateway).await;
    for (timeout, label) in [(None, "queue_timeout"), (Some("0.06"), "deadline_unmet")] {
        let ask = gateway.chat(true).header("x-request-id", label);
        let ask = if let Some(timeout) = timeout { ask.header("x-request-timeout", timeout) } else { ask };
        let answer = ask.send().await;
        assert_eq!(answer.status, 200);
        let text = answer.text();
        assert!(text.starts_with(": waiting"), "{text}");
        let last = events(&text).pop().unwrap();
        assert_eq!(last["error"]["code"], label, "{text}");
        let record = gateway.record_of(label).await;
        assert_eq!((&record["status"], &record["error"]), (&json!(200), &json!(label)));
    }
    drop(held);
    gateway.until_idle().await;
}

async fn reload(gateway: &Gateway, from: &str, to: &str) {
    let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
    assert!(config.contains(from), "{from} is not in {config}");
    let generation = gateway.metric("nimgate_config_generation").await;
    replace(&gateway.path("nimgate.yaml"), &config.replace(from, to));
    until("it is loaded", async || gateway.metric("nimgate_config_generation").await > generation).await;
}

#[tokio::test]
async fn a_reload_loses_nobody_who_waits_and_changes_the_bounds() {
    let keys = [("a", ""), ("b", "")];
    let (backend, gateway) = start("queue: {max: 10}", &keys).await;
    let held = hold(&gateway).await;
    let mut waiting: Vec<_> = (0..4).map(|at| ask(&gateway, "a", &format!("a-{at}"), None)).collect();
    gateway.until_waiting("chat", 4).await;
    reload(&gateway, "max: 10", "max: 2").await;
    assert_eq!(gateway.pool("chat").await["queue"]["waiting"], 4, "who waits stays");
    assert_eq!(ask(&gateway, "b", "b-0", None).await.unwrap().fault().0, "queue_full");
    reload(&gateway, "max: 2", "max: 5").await;
    waiting.push(ask(&gateway, "b", "b-1", None));
    gateway.until_waiting("chat", 5).await;
    assert_eq!(ask(&gateway, "a", "a-9", None).await.unwrap().fault().0, "queue_full");
    // More places: those who wait get them.
    reload(&gateway, "max_in_flight: 1", "max_in_flight: 4").await;
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    until("only the held one still runs", async || gateway.pool("chat").await["queue"]["in_flight"] == 1).await;
    release(&backend);
    assert!(answer(held).await.text().ends_with("data: [DONE]\n\n"));
    gateway.until_idle().await;
}

#[tokio::test]
async fn those_who_wait_go_to_an_endpoint_that_a_reload_adds() {
    for keeps_the_old in [true, false] {
        let (old, gateway) = start("", &[("a", "")]).await;
        let new = simulator(Kind::Llm).await;
        let held = hold(&gateway).await;
        let waiting: Vec<_> = (0..4).map(|at| ask(&gateway, "a", &format!("a-{at}"), None)).collect();
        gateway.until_waiting("chat", 4).await;
        let added = format!("{}\n      - url: {}", old.url(), new.url());
        reload(
            &gateway,
            &old.url(),
            if keeps_the_old { &added } else { "{new}" }.replace("{new}", &new.url()).as_str(),
        )
        .await;
        for answer in waiting {
            let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("they are served").unwrap();
            assert_eq!((answer.status, answer.fault()), (200, ("", "")));
        }
        assert_eq!(new.seen().requests(CHAT), 4);
        assert_eq!(gateway.chat(false).send().await.status, 200, "and so is who comes now");
        release(&old);
        assert!(answer(held).await.text().ends_with("data: [DONE]\n\n"));
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn what_runs_on_an_endpoint_that_fell_out_takes_no_place_of_the_others() {
    let (good, bad) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let pool = format!("{MODEL}\nhealth: {{interval_ms: 50, unhealthy_after: 1}}\nbalance: {{max_in_flight: 1}}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&good.url(), &bad.url()]).start().await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(gateway.chat(true).header("x-sim-gate", "held").begin().await);
    }
    bad.fault("not-ready").unwrap();
    until("it is out", async || gateway.metric("nimgate_endpoint_healthy").await == 1.0).await;
    release(&good);
    until("the good one is free", async || good.seen().in_flight() == 0).await;
    // For longer than it takes to count the places anew.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(200) {
        let asked = tokio::time::timeout(Duration::from_secs(10), gateway.chat(false).send()).await;
        assert_eq!(asked.expect("there is a place").status, 200);
    }
    assert_eq!(bad.seen().in_flight(), 1, "the other still runs");
    drop(held);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_pipelined_request_is_no_sign_that_the_one_that_waits_was_given_up() {
    let (backend, gateway) = start("", &[]).await;
    let held = hold(&gateway).await;
    let mut wire = Wire::to(&gateway).await;
    let request = wire.post(CHAT, "", &chat(false).to_string());
    wire.send(&request).await;
    gateway.until_waiting("chat", 1).await;
    wire.send(&request).await;
    release(&backend);
    answer(held).await;
    for _ in 0..2 {
        assert_eq!(wire.answer().await.status, 200);
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn bodies_that_are_not_read_wait_with_their_client() {
    let backend = simulator(Kind::Nvcf).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-test").unwrap();
    let pool = "kind: nvcf\ncredential: {secret: {file: upstream.key}}\nbalance: {max_in_flight: 1}";
    let gateway = Arc::new(Gateway::setup().pool("nvcf", "nvcf", pool, &[&backend.url()]).start_in(directory).await);
    let path = format!("/v2/nvcf/pexec/functions/{}", nimgate::sim::ECHO_FUNCTION);
    let held = {
        let (gateway, path) = (Arc::clone(&gateway), path.clone());
        tokio::spawn(async move { gateway.post(&path, &json!({})).header("x-sim-gate-headers", "held").send().await })
    };
    until("it is held", async || backend.seen().in_flight() == 1).await;
    let pieces = (0..64).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![b'x'; 16 * 1024]))));
    let body = StreamBody::new(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
    let request =
        Request::post(format!("http://{}{path}", gateway.address)).header("authorization", format!("Bearer {KEY}"));
    let request = request.header("x-request-id", "upload").body(body).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let upload = tokio::spawn(async move { answer(client.request(request).await.unwrap()).await });
    gateway.until_waiting("nvcf", 1).await;
    // One without a body can be watched while it waits.
    let leaving = {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.get("/v2/nvcf/functions").send().await })
    };
    gateway.until_waiting("nvcf", 2).await;
    leaving.abort();
    gateway.until_waiting("nvcf", 1).await;
    backend.open_gate("held");
    assert_eq!(held.await.unwrap().status, 200);
    let answer = upload.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(gateway.record_of("upload").await["queue_ms"].is_number());
    let seen = backend.seen().history().into_iter().filter(|seen| seen.path == path).last().unwrap();
    assert_eq!(seen.body_length, 1024 * 1024);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_stop_lets_those_who_wait_be_served() {
    let (backend, gateway) = start("queue: {keepalive_ms: 10}", &[("a", "")]).await;
    let held = hold(&gateway).await;
    let waiting: Vec<_> = (0..3).map(|at| ask(&gateway, "a", &format!("a-{at}"), None)).collect();
    gateway.until_waiting("chat", 3).await;
    gateway.signal("TERM");
    until("it is draining", async || gateway.admin("/readyz").await.json()["draining"] == true).await;
    release(&backend);
    answer(held).await;
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let mut gateway = Arc::into_inner(gateway).unwrap();
    until("it has stopped", async || !gateway.is_running()).await;
    assert_eq!(gateway.records().len(), 4);
}

#[tokio::test]
async fn those_who_wait_for_a_pool_that_a_reload_takes_out_are_served() {
    let (backend, other) = (simulator(Kind::Llm).await, simulator(Kind::Embedding).await);
    let text = "models: [{id: nvidia/nv-embedqa-e5-v5}]";
    let setup = Gateway::setup().pool("text", "nim-embedding", text, &[&other.url()]);
    let setup = setup.pool("chat", "nim-llm", &narrow(""), &[&backend.url()]).key(&key_text("a"), "name: a");
    let gateway = Arc::new(setup.start().await);
    let held = hold(&gateway).await;
    let waiting: Vec<_> = (0..3).map(|at| ask(&gateway, "a", &format!("a-{at}"), None)).collect();
    gateway.until_waiting("chat", 3).await;
    let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
    let rest = &config[..config.find("  - name: chat").unwrap()];
    replace(&gateway.path("nimgate.yaml"), rest);
    until("it is loaded", async || gateway.metric("nimgate_config_generation").await == 2.0).await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "path_not_found");
    release(&backend);
    assert!(answer(held).await.text().ends_with("data: [DONE]\n\n"));
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_stream_that_waited_goes_to_another_endpoint_when_the_first_refuses() {
    let (good, full) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let pool = format!(
        "{MODEL}\nhealth: {{enabled: false}}\nbalance: {{affinity: 0, policy: round_robin}}\nqueue: {{max_in_flight: 1, keepalive_ms: 10}}"
    );
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[&good.url(), &full.url()]).start().await;
    let mut attempts = Vec::new();
    for at in 0..2 {
        let (gate, id) = (format!("gate-{at}"), format!("w-{at}"));
        let held = gateway.chat(true).header("x-sim-gate", &gate).begin().await;
        full.fault_times("status=429", 1, Some("/v1/chat")).unwrap();
        let mut body = gateway.chat(true).header("x-request-id", &id).begin().await.into_body();
        let begun = read_until(&mut body, ": waiting").await;
        (0..100).for_each(|_| (good.open_gate(&gate), full.open_gate(&gate)).0);
        answer(held).await;
        let text = begun + &rest(body).await;
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
        attempts.push(gateway.record_of(&id).await["attempts"].as_u64().unwrap());
        full.fault("").unwrap();
    }
    assert!(attempts.contains(&2) || full.seen().requests(CHAT) > 0, "{attempts:?}");
    gateway.until_idle().await;
}
