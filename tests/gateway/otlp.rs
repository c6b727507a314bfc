//! Telemetry over OTLP: what arrives, whatever the collector does, and that requests feel nothing of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use http::HeaderMap;
use nimgate::otlp::{self, Bounds, Exporter, Protocol, Settings, Signal, Target, Tls};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value as Json, json};

use crate::collector::*;
use crate::support::*;

/// The top section for this collector: quick, and logs alone.
fn section(endpoint: &str, more: &str) -> String {
    format!("telemetry: {{otlp: {{endpoint: '{endpoint}', delay_ms: 20, traces: false, metrics: false{more}}}}}")
}

fn url(collector: &Collector) -> String {
    format!("http://{}", collector.address())
}

async fn start(more: &str, collector: &Collector) -> (Simulator, Gateway) {
    let backend = simulator(Kind::Llm).await;
    let setup = Gateway::setup().chat(&[&backend.url()]).top(&section(&url(collector), more));
    let gateway = setup.start().await;
    (backend, gateway)
}

async fn ask(gateway: &Gateway, id: &str) {
    assert_eq!(gateway.chat(false).header("x-request-id", id).send().await.status, 200);
}

/// What became of the logs, by the state page.
async fn logs(gateway: &Gateway) -> Json {
    gateway.admin("/state").await.json()["otlp"]["logs"].clone()
}

#[tokio::test]
async fn requests_arrive_by_grpc_and_by_http_compressed_or_not() {
    for protocol in ["grpc", "http/protobuf"] {
        for compression in ["none", "gzip"] {
            let collector = Collector::start().await;
            let more = format!(", protocol: {protocol}, compression: {compression}");
            let (backend, gateway) = start(&more, &collector).await;
            ask(&gateway, "r1").await;
            let log = collector.request("r1").await;
            assert_eq!((log.event_name.as_str(), log.severity_text.as_str()), ("nimgate.request", "INFO"));
            for (key, wanted) in [
                ("http.request.method", "POST"),
                ("url.path", "/v1/chat/completions"),
                ("nimgate.key.id", "test"),
                ("nimgate.pool", "chat"),
                ("nimgate.endpoint", &backend.address().to_string()),
                ("gen_ai.request.model", "meta/llama-3.1-8b-instruct"),
                ("error.type", ""),
            ] {
                assert_eq!(text(&log.attributes, key), wanted, "{key}");
            }
            assert_eq!(value(&log.attributes, "http.response.status_code"), Some(Value::IntValue(200)));
            assert_eq!(value(&log.attributes, "gen_ai.usage.output_tokens"), Some(Value::IntValue(8)));
            let resource = collector.resource().attributes;
            assert_eq!(text(&resource, "service.name"), "nimgate");
            assert!(!text(&resource, "service.instance.id").is_empty() && !text(&resource, "host.name").is_empty());
            let sent = async || logs(&gateway).await["sent"].as_u64() >= Some(1);
            until("it is counted", sent).await;
            assert_eq!(logs(&gateway).await["failed_exports"], 0);
        }
    }
}

#[tokio::test]
async fn a_request_that_failed_arrives_as_a_warning_with_its_label() {
    let collector = Collector::start().await;
    let (_backend, gateway) = start("", &collector).await;
    gateway.chat(false).anonymous().header("x-request-id", "r1").send().await;
    let log = collector.request("r1").await;
    assert_eq!(log.severity_text, "WARN");
    assert_eq!(
        (text(&log.attributes, "error.type"), text(&log.attributes, "nimgate.blame")),
        ("key_missing".into(), "client".into())
    );
}

#[tokio::test]
async fn the_collector_is_known_by_its_own_authority() {
    for (protocol, alpn) in [("grpc", "h2"), ("http/protobuf", "http/1.1")] {
        let collector = Collector::start().await;
        let directory = tempfile::tempdir().unwrap();
        let port = collector.behind_tls(directory.path(), &[alpn]).await;
        let backend = simulator(Kind::Llm).await;
        let trusted =
            section(&format!("https://localhost:{port}"), &format!(", protocol: {protocol}, ca_file: collector.ca"));
        let gateway = Gateway::setup().chat(&[&backend.url()]).top(&trusted).start_in(directory).await;
        ask(&gateway, "r1").await;
        collector.request("r1").await;

        let unknown = section(&format!("https://localhost:{port}"), &format!(", protocol: {protocol}"));
        let gateway = Gateway::setup().chat(&[&backend.url()]).top(&unknown).start().await;
        ask(&gateway, "r2").await;
        until("it fails", async || logs(&gateway).await["failed_exports"].as_u64() > Some(0)).await;
        assert_eq!(logs(&gateway).await["sent"], 0);
    }
}

#[tokio::test]
async fn secrets_of_headers_arrive_and_are_told_nowhere() {
    const SECRET: &str = "collector-secret-4711";
    let collector = Collector::start().await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), format!("Bearer {SECRET}\n")).unwrap();
    let backend = simulator(Kind::Llm).await;
    let headers = ", headers: {authorization: {file: secret}}";
    for protocol in ["grpc", "http/protobuf"] {
        // A collector that quotes what it got.
        collector.always(Told::Fail(if protocol == "grpc" { 16 } else { 401 }, "unknown: collector-secret-4711"));
        let directory = copy(directory.path());
        let setup = Gateway::setup().chat(&[&backend.url()]);
        let setup = setup.top(&section(&url(&collector), &format!("{headers}, protocol: {protocol}")));
        let gateway = setup.start_in(directory).await;
        ask(&gateway, "r1").await;
        until("it is refused", async || logs(&gateway).await["dropped"]["refused"].as_u64() > Some(0)).await;
        let (_, sent, _) = collector.exports().pop().unwrap();
        assert_eq!(sent["authorization"], format!("Bearer {SECRET}"));
        until("it is told", async || gateway.output().contains("unknown: ***")).await;
        let state = gateway.admin("/state").await.text();
        assert!(!gateway.output().contains(SECRET) && !state.contains(SECRET), "{}", gateway.output());
    }
}

fn copy(from: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("secret"), directory.path().join("secret")).unwrap();
    directory
}

#[tokio::test]
async fn while_the_collector_hangs_requests_go_on_and_what_finds_no_room_is_counted() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        collector.always(Told::Hang);
        let more = format!(", protocol: {protocol}, queue: 5, batch: 2, timeout_ms: 600000");
        let (_backend, gateway) = start(&more, &collector).await;
        for at in 0..30 {
            ask(&gateway, &format!("r{at}")).await;
        }
        // Five wait, at most two are on their way, and the gateway's own words count too.
        until("all are counted", async || {
            let logs = logs(&gateway).await;
            logs["queued"].as_u64().unwrap() + logs["dropped"]["queue_full"].as_u64().unwrap() >= 30
        })
        .await;
        let logs = logs(&gateway).await;
        assert!(logs["queued"].as_u64() <= Some(7) && logs["dropped"]["queue_full"].as_u64() >= Some(23), "{logs}");
        assert_eq!(logs["sent"], 0);
    }
}

#[tokio::test]
async fn a_hanging_collector_is_left_after_the_timeout_and_asked_again() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        collector.next(&[Told::Hang, Told::Hang]);
        let (_backend, gateway) = start(&format!(", protocol: {protocol}, timeout_ms: 100"), &collector).await;
        ask(&gateway, "r1").await;
        collector.request("r1").await;
        assert_eq!(logs(&gateway).await["failed_exports"], 2);
    }
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_what_waits_and_is_complained_of_once() {
    for protocol in ["grpc", "http/protobuf"] {
        let address = free_address();
        let backend = simulator(Kind::Llm).await;
        let top = section(&format!("http://{address}"), &format!(", protocol: {protocol}"));
        let gateway = Gateway::setup().chat(&[&backend.url()]).top(&top).start().await;
        ask(&gateway, "r1").await;
        until("it was tried twice", async || logs(&gateway).await["failed_exports"].as_u64() > Some(1)).await;
        let collector = Collector::at(address).await;
        collector.request("r1").await;
        until("it is told", async || gateway.output().contains("delivered again")).await;

        // It dies, and comes back.
        let address = collector.kill().await;
        ask(&gateway, "r2").await;
        let failed = logs(&gateway).await["failed_exports"].as_u64().unwrap();
        until("it is missed", async || logs(&gateway).await["failed_exports"].as_u64().unwrap() > failed + 1).await;
        let collector = Collector::at(address).await;
        collector.request("r2").await;
        let told = |words: &str| gateway.output().lines().filter(|line| line.contains(words)).count();
        until("it is told", async || told("delivered again") == 2).await;
        assert_eq!(told("can not be delivered"), 2, "{}", gateway.output());
    }
}

#[tokio::test]
async fn a_busy_collector_is_asked_again_when_it_says() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        collector.next(&[Told::Busy(1)]);
        let (_backend, gateway) = start(&format!(", protocol: {protocol}"), &collector).await;
        ask(&gateway, "r1").await;
        collector.request("r1").await;
        assert!(between(&collector.exports(), 0) >= Duration::from_secs(1), "{protocol}");
        assert_eq!(logs(&gateway).await["dropped"], json!({ "queue_full": 0, "refused": 0, "too_late": 0 }));
    }
}

#[tokio::test]
async fn what_the_collector_refuses_is_not_sent_again() {
    for (protocol, told) in [("grpc", Told::Fail(3, "no")), ("http/protobuf", Told::Fail(400, "no"))] {
        let collector = Collector::start().await;
        collector.always(told);
        let (_backend, gateway) = start(&format!(", protocol: {protocol}"), &collector).await;
        ask(&gateway, "r1").await;
        until("it is counted", async || logs(&gateway).await["dropped"]["refused"].as_u64() > Some(0)).await;
        let logs = logs(&gateway).await;
        assert_eq!(logs["failed_exports"], collector.exports().len(), "{logs}");
        // Those that come later do arrive.
        collector.always(Told::Take);
        ask(&gateway, "r2").await;
        collector.request("r2").await;
    }
}

#[tokio::test]
async fn what_is_taken_in_part_is_counted_so_and_told_once() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        collector.always(Told::Partly(1));
        let (_backend, gateway) = start(&format!(", protocol: {protocol}, batch: 1"), &collector).await;
        for at in 0..3 {
            ask(&gateway, &format!("r{at}")).await;
        }
        until("all are counted", async || logs(&gateway).await["dropped"]["refused"].as_u64() >= Some(3)).await;
        let told = gateway.output().lines().filter(|line| line.contains("some are too old")).count();
        assert_eq!(told, 1, "{}", gateway.output());
        assert_eq!(logs(&gateway).await["failed_exports"], 0);
    }
}

#[tokio::test]
async fn at_stop_the_last_record_is_sent_and_a_hanging_collector_keeps_nobody() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::start().await;
        let more = format!(", protocol: {protocol}, delay_ms: 60000");
        let backend = simulator(Kind::Llm).await;
        let top = section(&url(&collector), &more).replace("delay_ms: 20, ", "");
        let mut gateway = Gateway::setup().chat(&[&backend.url()]).top(&top).start().await;
        ask(&gateway, "last").await;
        gateway.signal("TERM");
        until("it has ended", async || !gateway.is_running()).await;
        let ids: Vec<String> = collector.logs().iter().map(|log| text(&log.attributes, "nimgate.request.id")).collect();
        assert!(ids.contains(&"last".to_owned()), "{ids:?}");

        collector.always(Told::Hang);
        let mut gateway = Gateway::setup().chat(&[&backend.url()]).top(&top).start().await;
        ask(&gateway, "left").await;
        gateway.signal("TERM");
        until("it has ended", async || !gateway.is_running()).await;
        assert!(gateway.output().contains("left behind"), "{}", gateway.output());
    }
}

/// What the gateway itself does not decide: an exporter of this process.
fn exporter(collector: &Collector, protocol: Protocol) -> Exporter {
    let target = |signal: Signal| Target {
        endpoint: format!("http://{}/v1/{}", collector.address(), signal.word()).parse().unwrap(),
        protocol,
        headers: HeaderMap::new(),
        timeout: Duration::from_secs(60),
        gzip: true,
        tls: Tls::default(),
    };
    let bounds = Bounds { records: 1000, bytes: 1 << 20, batch: 10, delay: Duration::from_millis(10) };
    let settings = Settings {
        traces: Some(target(Signal::Traces)),
        metrics: Some(target(Signal::Metrics)),
        logs: None,
        resource: BTreeMap::from([("service.name".to_owned(), "edge".to_owned())]),
        bounds,
        metrics_interval: Duration::from_secs(3600),
    };
    let metric = || vec![Metric { name: "nimgate.test".into(), ..Metric::default() }];
    otlp::start(settings, metric).unwrap()
}

#[tokio::test]
async fn spans_and_metrics_go_to_services_of_their_own_and_metrics_a_last_time_at_stop() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start().await;
        let exporter = exporter(&collector, protocol);
        assert!(exporter.takes_traces() && exporter.takes_metrics() && !exporter.takes_logs());
        let span = |at: u8| Span { name: format!("s{at}"), span_id: vec![at; 8], ..Span::default() };
        exporter.spans((0..25).map(span).collect());
        until("the collector has them", async || collector.spans().len() == 25).await;
        let names: Vec<String> = collector.spans().into_iter().map(|span| span.name).collect();
        assert_eq!(names, (0..25).map(|at| format!("s{at}")).collect::<Vec<_>>());
        assert!(collector.metrics().is_empty());
        exporter.flush(Duration::from_secs(60)).await;
        let metrics: Vec<String> = collector.metrics().into_iter().map(|metric| metric.name).collect();
        assert_eq!(metrics, ["nimgate.test"]);
        assert_eq!(text(&collector.resource().attributes, "service.name"), "edge");
        let stats: Vec<(Signal, u64)> =
            exporter.stats().into_iter().map(|(signal, stats)| (signal, stats.sent)).collect();
        assert_eq!(stats, [(Signal::Traces, 25), (Signal::Metrics, 1)]);
    }
}

#[tokio::test]
async fn the_environment_says_what_the_file_leaves_out() {
    let collector = Collector::start().await;
    let backend = simulator(Kind::Llm).await;
    let setup = || {
        let setup = Gateway::setup().chat(&[&backend.url()]).env("OTEL_EXPORTER_OTLP_ENDPOINT", &url(&collector));
        let setup = setup.env("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc").env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
        let setup = setup.env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,x-other=c");
        setup.env("OTEL_SERVICE_NAME", "edge").env("OTEL_RESOURCE_ATTRIBUTES", "region=eu,service.name=ignored")
    };
    let gateway = setup().start().await;
    ask(&gateway, "r1").await;
    collector.request("r1").await;
    let resource = collector.resource().attributes;
    assert_eq!((text(&resource, "service.name").as_str(), text(&resource, "region").as_str()), ("edge", "eu"));
    let (path, headers, _) = collector.exports().pop().unwrap();
    assert_eq!(path, "/opentelemetry.proto.collector.logs.v1.LogsService/Export");
    let told = ["x-tenant", "x-other", "grpc-encoding"].map(|name| headers[name].to_str().unwrap());
    assert_eq!(told, ["a b", "c", "gzip"]);

    // The file goes before the environment.
    let file = "telemetry: {service: mine, otlp: {protocol: http/protobuf, delay_ms: 20}}";
    let gateway = setup().env("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "").top(file).start().await;
    ask(&gateway, "r2").await;
    collector.request("r2").await;
    assert_eq!(text(&collector.resource().attributes, "service.name"), "mine");

    let gateway = setup().env("OTEL_SDK_DISABLED", "true").start().await;
    ask(&gateway, "r3").await;
    assert_eq!(gateway.admin("/state").await.json()["otlp"], json!({}));
    drop(gateway);
    assert!(!collector.logs().iter().any(|log| text(&log.attributes, "nimgate.request.id") == "r3"));
}
