//! The log: its level, its form, its floods, where else it goes; and which requests have a record.

use http::Method;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::collector::*;
use crate::support::*;

/// Asks the admin listener, with a body of JSON.
async fn ask(gateway: &Gateway, method: Method, path: &str, body: &Value) -> Answer {
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", gateway.admin))
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    answer(Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap()).await
}

async fn set_level(gateway: &Gateway, level: &str) -> Answer {
    ask(gateway, Method::PUT, "/log/level", &json!({ "level": level })).await
}

/// Asks for a reload of a file with a mistake, which is logged as an error.
async fn fail_to_reload(gateway: &Gateway) {
    assert_eq!(ask(gateway, Method::POST, "/reload", &json!({})).await.status, 422);
}

/// A gateway whose configuration was broken after it started.
async fn broken(top: &str) -> (Simulator, Gateway) {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).top(top).start().await;
    replace(&gateway.path("nimgate.yaml"), "pools: 1\n");
    (backend, gateway)
}

fn count(gateway: &Gateway, words: &str) -> usize {
    gateway.output().lines().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn the_level_changes_while_the_gateway_runs() {
    let (_backend, gateway) = broken("").await;
    let shown = gateway.admin("/log/level").await.json();
    assert!(shown["level"].as_str().unwrap().starts_with("info,"), "{shown}");
    assert_eq!(set_level(&gateway, "warn,nimgate=off").await.json(), json!({ "level": "warn,nimgate=off" }));
    let before = count(&gateway, "configuration refused");
    fail_to_reload(&gateway).await;
    assert_eq!(set_level(&gateway, "info").await.status, 200);
    until("it is told", async || count(&gateway, "level was changed") == 1).await;
    // What was held back never comes.
    assert_eq!(count(&gateway, "configuration refused"), before);
    fail_to_reload(&gateway).await;
    until("it is told", async || count(&gateway, "configuration refused") > before).await;
    assert_eq!(gateway.admin("/log/level").await.json(), json!({ "level": "info" }));
}

#[tokio::test]
async fn a_level_that_is_none_is_refused_in_words_and_changes_nothing() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).top("log: {level: warn}").start().await;
    for (level, reason) in [
        ("loud", "\"loud\": expected LEVEL or TARGET=LEVEL"),
        ("info,nimgate=loud", "\"nimgate=loud\": expected LEVEL or TARGET=LEVEL"),
        ("", "expected 1 to 1000 characters"),
    ] {
        let answer = set_level(&gateway, level).await;
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 422 && error.starts_with(reason), "{} {error}", answer.status);
    }
    for body in [json!({}), json!({ "level": 1 }), json!({ "level": "info", "for": "ever" })] {
        assert_eq!(ask(&gateway, Method::PUT, "/log/level", &body).await.status, 400, "{body}");
    }
    assert_eq!(gateway.admin("/log/level").await.json(), json!({ "level": "warn" }));
}

#[tokio::test]
async fn lines_are_json_or_text() {
    let (_backend, gateway) = broken("").await;
    fail_to_reload(&gateway).await;
    until("it is told", async || count(&gateway, "configuration refused") > 0).await;
    let line = gateway.output().lines().find(|line| line.contains("configuration refused")).unwrap().to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["target"]), (&json!("ERROR"), &json!("nimgate::reload")));
    assert!(line["fields"]["reason"].as_str().unwrap().contains("nimgate.yaml"), "{line}");

    let (_backend, gateway) = broken("log: {format: text}").await;
    fail_to_reload(&gateway).await;
    until("it is told", async || count(&gateway, "ERROR nimgate::reload: configuration refused") > 0).await;
}

#[tokio::test]
async fn of_a_flood_some_events_are_told_and_the_others_counted() {
    let collector = Collector::start().await;
    let top = format!(
        "log: {{per_second: 2}}\ntelemetry: {{otlp: {{endpoint: 'http://{}', delay_ms: 20}}}}",
        collector.address()
    );
    let (_backend, gateway) = broken(&top).await;
    for _ in 0..40 {
        fail_to_reload(&gateway).await;
    }
    let left_out = || {
        let output = gateway.output();
        let lines = output.lines().filter(|line| line.contains("events were left out"));
        let numbers = lines.filter_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            assert!(line["fields"]["place"].as_str()?.starts_with("nimgate::reload:"), "{line}");
            line["fields"]["left_out"].as_u64()
        });
        numbers.sum::<u64>() as usize
    };
    let told = || count(&gateway, "configuration refused");
    // The file's own change may be told too.
    until("all are told or counted", async || told() + left_out() >= 40).await;
    assert!(told() < 40 && left_out() > 0, "{}", gateway.output());
    // The collector gets the same.
    let sent = |words: &str| collector.logs().iter().filter(|log| body(log).contains(words)).count();
    until("the collector has them", async || {
        sent("configuration refused") == told()
            && sent("events were left out") == count(&gateway, "events were left out")
    })
    .await;
}

#[tokio::test]
async fn the_gateways_own_events_go_to_the_collector_but_those_of_sending_do_not() {
    let address = free_address();
    let top = format!("telemetry: {{otlp: {{endpoint: 'http://{address}', delay_ms: 20, protocol: grpc}}}}");
    let (_backend, gateway) = broken(&top).await;
    set_level(&gateway, "info,h2=trace,hyper_util=trace").await;
    fail_to_reload(&gateway).await;
    until("it is told", async || count(&gateway, "can not be delivered") > 0).await;
    let collector = Collector::at(address).await;
    let mut found = None;
    until("the collector has it", async || {
        found = collector.logs().into_iter().find(|log| body(log).starts_with("configuration refused"));
        found.is_some()
    })
    .await;
    let log = found.unwrap();
    assert_eq!((log.severity_text.as_str(), log.event_name.as_str()), ("ERROR", ""));
    assert_eq!(text(&log.attributes, "nimgate.log.target"), "nimgate::reload");
    assert!(text(&log.attributes, "reason").contains("nimgate.yaml"), "{log:?}");
    until("it is told", async || count(&gateway, "delivered again") > 0).await;
    set_level(&gateway, "info").await;
    until("the collector has it", async || collector.logs().iter().any(|log| body(log).contains("level was changed")))
        .await;
    for log in collector.logs() {
        // Nothing else here speaks HTTP/2.
        let target = text(&log.attributes, "nimgate.log.target");
        assert!(!body(&log).contains("delivered") && !target.starts_with("h2"), "{log:?}");
    }
}

#[tokio::test]
async fn of_requests_that_went_well_a_share_is_recorded_and_of_others_all() {
    let backend = simulator(Kind::Llm).await;
    let setup = Gateway::setup().chat(&[&backend.url()]).access_log("sample: 0, slow_ms: 3000");
    let gateway = setup.start().await;
    for at in 0..20 {
        assert_eq!(gateway.chat(false).header("x-request-id", &format!("good-{at}")).send().await.status, 200);
    }
    gateway.chat(false).header("x-sim-fault", "status=500").header("x-request-id", "failed").send().await;
    gateway.chat(false).anonymous().header("x-request-id", "denied").send().await;
    let slow = gateway.chat(true).header("x-sim-gate", "g").header("x-request-id", "slow").begin().await;
    tokio::time::sleep(std::time::Duration::from_millis(3000)).await;
    (0..100).for_each(|_| backend.open_gate("g"));
    answer(slow).await;
    for id in ["failed", "denied", "slow"] {
        gateway.record_of(id).await;
    }
    assert_eq!(gateway.records().len(), 3);
    assert_eq!(gateway.metric("nimgate_requests_total").await, 23.0);
}
