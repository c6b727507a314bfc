//! Traces: what each request's spans tell, who is told which context, and that spans, log line, metrics and state agree.

use std::sync::Arc;

use nimgate::telemetry::names;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::collector::*;
use crate::redis::*;
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "models: [{id: meta/llama-3.1-8b-instruct}]";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// All traces to this collector, quickly.
fn to(collector: &Collector, traces: &str) -> String {
    let endpoint = format!("http://{}", collector.address());
    format!(
        "telemetry: {{otlp: {{endpoint: '{endpoint}', delay_ms: 20, metrics_interval_s: 1}}, traces: {{{traces}}}}}"
    )
}

/// The spans of a request, once its server span is there: that one first.
async fn spans(collector: &Collector, id: &str) -> Vec<Span> {
    let mut found = Vec::new();
    until("the spans are there", async || {
        let all = collector.spans();
        let is_wanted = |span: &&Span| text(&span.attributes, "nimgate.request.id") == id;
        let Some(server) = all.iter().find(is_wanted) else { return false };
        let children = all.iter().filter(|span| span.parent_span_id == server.span_id);
        found = std::iter::once(server).chain(children).cloned().collect();
        true
    })
    .await;
    found
}

fn attempts(spans: &[Span]) -> Vec<&Span> {
    spans.iter().filter(|span| value(&span.attributes, "nimgate.endpoint").is_some()).skip(1).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn millis(span: &Span) -> f64 {
    (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e6
}

#[tokio::test]
async fn a_request_is_a_server_span_with_its_attempt_and_the_context_goes_on() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().chat(&[&backend.url()]).top(&to(&collector, "sample: 0")).start().await;
    let asked = gateway.chat(true).header("x-request-id", "t1").header("traceparent", PARENT);
    assert_eq!(asked.header("tracestate", "vendor=1").send().await.status, 200);
    let spans = spans(&collector, "t1").await;
    let (server, attempt) = (&spans[0], &spans[1]);
    assert_eq!((server.name.as_str(), server.kind()), ("POST /v1/chat/completions", SpanKind::Server));
    assert_eq!(hex(&server.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!((hex(&server.parent_span_id).as_str(), server.trace_state.as_str()), ("b7ad6b7169203331", "vendor=1"));
    assert_eq!((attempt.name.as_str(), attempt.kind()), ("chat meta/llama-3.1-8b-instruct", SpanKind::Client));
    for (key, wanted) in [
        (names::METHOD, "POST"),
        (names::ROUTE, CHAT),
        (names::GEN_AI_OPERATION, "chat"),
        (names::GEN_AI_REQUEST_MODEL, "meta/llama-3.1-8b-instruct"),
        ("nimgate.pool", "chat"),
        ("nimgate.key.id", "test"),
    ] {
        assert_eq!(text(&server.attributes, key), wanted, "{key}");
    }
    assert_eq!(value(&server.attributes, names::STATUS), Some(Any::IntValue(200)));
    assert_eq!(value(&server.attributes, names::GEN_AI_OUTPUT_TOKENS), Some(Any::IntValue(8)));
    assert!(value(&server.attributes, "nimgate.first_chunk.ms").is_some());
    let finish = format!("{:?}", value(&server.attributes, names::GEN_AI_FINISH));
    assert!(finish.contains("\"length\""), "{finish}");
    assert_eq!(text(&attempt.attributes, names::GEN_AI_PROVIDER), "nvidia");
    assert_eq!(value(&attempt.attributes, names::STATUS), Some(Any::IntValue(200)));
    assert!(millis(attempt) <= millis(server));
    // The backend is told of the attempt, not of the client's span.
    let told = backend.seen().last_of(CHAT).unwrap().headers;
    let wanted = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&attempt.span_id));
    assert_eq!((told["traceparent"].to_str().unwrap(), told["tracestate"].to_str().unwrap()), (&*wanted, "vendor=1"));
    // The log line and the collector's log name the trace, and so does an exemplar on the page.
    assert_eq!(gateway.record_of("t1").await["trace_id"], hex(&server.trace_id));
    assert_eq!(collector.request("t1").await.trace_id, server.trace_id);
    let page = gateway.get_admin_as("/metrics", "application/openmetrics-text; version=1.0.0").await;
    assert!(page.header("content-type").starts_with("application/openmetrics-text"));
    let page = page.text();
    let exemplar = format!("# {{trace_id=\"{}\",span_id=\"{}\"}}", hex(&server.trace_id), hex(&server.span_id));
    assert!(page.lines().any(|l| l.starts_with("nimgate_request_duration_seconds_bucket") && l.contains(&exemplar)));
    assert!(page.ends_with("# EOF\n"));
}

#[tokio::test]
async fn what_is_not_sampled_is_told_only_when_it_failed_or_was_slow() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let top = to(&collector, "sample: 0, keep_slower_ms: 300");
    let gateway = Gateway::setup().chat(&[&backend.url()]).top(&top).start().await;
    let good = gateway.chat(false).header("x-request-id", "good").send().await;
    assert_eq!(good.status, 200);
    let told = backend.seen().last_of(CHAT).unwrap().headers["traceparent"].clone();
    assert!(told.to_str().unwrap().ends_with("-00"), "{told:?}");
    gateway.chat(false).header("x-request-id", "slow").header("x-sim-fault", "delay=400").send().await;
    gateway.chat(false).header("x-request-id", "failed").anonymous().send().await;
    // A parent that does not sample decides likewise.
    let parent = PARENT.replace("-01", "-00");
    gateway.chat(false).header("x-request-id", "parent").header("traceparent", &parent).send().await;
    let failed = spans(&collector, "failed").await;
    assert_eq!(text(&failed[0].attributes, names::ERROR_TYPE), "key_missing");
    assert!(failed[0].status.is_none(), "the client's own mistake is no error of the server's span");
    assert!(millis(&spans(&collector, "slow").await[0]) >= 300.0);
    gateway.chat(false).header("x-request-id", "last").anonymous().send().await;
    spans(&collector, "last").await;
    for id in ["good", "parent"] {
        assert!(!collector.spans().iter().any(|span| text(&span.attributes, "nimgate.request.id") == id), "{id}");
    }
}

#[tokio::test]
async fn metrics_arrive_by_otlp_as_they_stand_on_the_page() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().chat(&[&backend.url()]).top(&to(&collector, "sample: 1")).start().await;
    for _ in 0..3 {
        gateway.chat(true).send().await;
    }
    gateway.until_idle().await;
    let mut sum = None;
    until("the requests are counted there", async || {
        let metrics = collector.metrics();
        let Some(metric) = metrics.iter().rev().find(|metric| metric.name == "nimgate.requests") else { return false };
        let Some(Data::Sum(requests)) = &metric.data else { panic!("{metric:?}") };
        sum = requests.data_points.first().cloned();
        let count = sum.as_ref().map(|point| format!("{:?}", point.value));
        count.is_some_and(|count| count.contains("AsDouble(3.0)"))
    })
    .await;
    let point = sum.unwrap();
    assert_eq!((text(&point.attributes, "pool"), text(&point.attributes, "error")), ("chat".into(), String::new()));
    let metrics = collector.metrics();
    let metric =
        |name: &str| metrics.iter().rev().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name}"));
    let Some(Data::ExponentialHistogram(times)) = &metric("gen_ai.client.operation.duration").data else { panic!() };
    let times = &times.data_points[0];
    assert_eq!((times.count, text(&times.attributes, names::GEN_AI_OPERATION)), (3, "chat".into()));
    assert!(!times.exemplars.is_empty() && times.sum.unwrap() > 0.0);
    for name in ["gen_ai.client.operation.time_to_first_chunk", "gen_ai.client.operation.time_per_output_chunk"] {
        metric(name);
    }
    for name in ["process.cpu.time", "process.memory.usage", "nimgate.endpoint.healthy", "nimgate.caller.tokens"] {
        metric(name);
    }
    // No name stands on one of them alone.
    let page = gateway.admin("/metrics").await.text();
    let on_page = page.lines().filter(|line| line.starts_with("# TYPE")).count();
    let sent: std::collections::BTreeSet<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert!(sent.len().abs_diff(on_page) <= 1, "{} sent, {on_page} on the page", sent.len());
}

/// A slow, a failed, a cached, a queued, a retried and a spilled request: each is told from the others by its trace alone,
/// by its log line alone, by metrics alone.
#[tokio::test]
async fn whatever_happened_to_a_request_is_told_by_its_trace_its_line_and_the_metrics() {
    let collector = Collector::start().await;
    let [busy, near, far] = [simulator(Kind::Llm).await, simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let embedding = simulator(Kind::Embedding).await;
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let one = "health: {enabled: false}\nbalance: {max_in_flight: 1}";
    let turns = "health: {enabled: false}\nmetrics: {enabled: false}\nbalance: {policy: round_robin, affinity: 0}";
    let cache = "models: [{id: nvidia/nv-embedqa-e5-v5}]\nhealth: {enabled: false}\ncache: {enabled: true, revision_interval_ms: 50}";
    let own = |name: &str| format!("models: [{{id: {name}, backend_model: meta/llama-3.1-8b-instruct}}]");
    let gateway = Gateway::setup()
        .pool("busy", "nim-llm", &format!("{}\n{one}", own("busy")), &[&busy.url()])
        .pool("near", "nim-llm", &format!("{MODEL}\n{one}\nspill: {{to: [far]}}"), &[&near.url()])
        .pool("far", "nim-llm", &format!("{MODEL}\nhealth: {{enabled: false}}"), &[&far.url()])
        .pool("flaky", "nim-llm", &format!("{}\n{turns}", own("flaky")), &[&format!("http://{dead}"), &far.url()])
        .pool("vectors", "nim-embedding", cache, &[&embedding.url()])
        .top(&to(&collector, "sample: 1, keep_slower_ms: 300"))
        .start()
        .await;
    let gateway = Arc::new(gateway);
    let body = |pool: &str, stream: bool| {
        let mut body = chat(stream);
        if ["busy", "flaky"].contains(&pool) {
            body["model"] = pool.into();
        }
        body
    };
    let ask = |pool: &str, id: &str| {
        let body = body(pool, false);
        gateway.post(&format!("/pools/{pool}{CHAT}"), &body).header("x-request-id", id)
    };
    let hold = |pool: &str| {
        let body = body(pool, true);
        gateway.post(&format!("/pools/{pool}{CHAT}"), &body).header("x-sim-gate", "held").begin()
    };
    // Slow and failed.
    assert_eq!(ask("far", "slow").header("x-sim-fault", "delay=400").send().await.status, 200);
    assert_eq!(ask("far", "failed").header("x-sim-fault", "status=500").send().await.status, 500);
    // Retried: one of two turns begins at the endpoint that nobody is at.
    ask("flaky", "first").send().await;
    ask("flaky", "second").send().await;
    let retried = match gateway.record_of("first").await["attempts"].as_u64() {
        Some(2) => "first",
        _ => "second",
    };
    // Spilled.
    let held = hold("near").await;
    assert_eq!(ask("near", "spilled").send().await.header("x-nimgate-pool"), "far");
    drop(held);
    // Queued.
    let held = hold("busy").await;
    let waiting = tokio::spawn({
        let (gateway, body) = (Arc::clone(&gateway), body("busy", false));
        async move {
            let path = format!("/pools/busy{CHAT}");
            gateway.post(&path, &body).header("x-request-id", "queued").send().await
        }
    });
    gateway.until_waiting("busy", 1).await;
    (0..100).for_each(|_| busy.open_gate("held"));
    drop(held);
    assert_eq!(waiting.await.unwrap().status, 200);
    // Cached.
    until("the revision is known", async || gateway.pool("vectors").await["cache"]["revision"].is_string()).await;
    let text_of = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": "a", "input_type": "query" });
    for id in ["missed", "cached"] {
        let answer = gateway.post("/pools/vectors/v1/embeddings", &text_of).header("x-request-id", id).send().await;
        assert_eq!(answer.status, 200);
    }
    check_traces(&collector, retried).await;
    check_lines(&gateway, retried).await;
    for (metric, least) in [
        ("nimgate_requests_total{pool=\"far\",blame=\"inference-service\"}", 1.0),
        ("nimgate_retries_total{pool=\"flaky\"}", 1.0),
        ("nimgate_spills_total{from=\"near\",pool=\"far\",reason=\"overload\"}", 1.0),
        ("nimgate_queue_wait_seconds_count{pool=\"busy\"}", 1.0),
        ("nimgate_cache_requests_total{pool=\"vectors\",result=\"hit\"}", 1.0),
        ("nimgate_caller_requests_total{key=\"test\",result=\"cached\"}", 1.0),
    ] {
        assert!(gateway.metric(metric).await >= least, "{metric}");
    }
    let fast = gateway.metric("nimgate_request_duration_seconds_bucket{pool=\"far\",le=\"0.25\"}").await;
    assert!(gateway.metric("nimgate_request_duration_seconds_count{pool=\"far\"}").await > fast, "the slow one");
}

async fn check_traces(collector: &Collector, retried: &str) {
    let slow = spans(collector, "slow").await;
    assert!(millis(attempts(&slow)[0]) >= 300.0, "the endpoint was slow, and nothing else");
    let failed = spans(collector, "failed").await;
    assert_eq!(text(&failed[0].attributes, "nimgate.blame"), "inference-service");
    assert!(failed[0].status.is_some());
    assert!(!text(&attempts(&failed)[0].attributes, names::ERROR_TYPE).is_empty());
    let again = spans(collector, retried).await;
    let (first, second) = (&attempts(&again)[0].attributes, &attempts(&again)[1].attributes);
    assert_eq!(text(first, names::ERROR_TYPE), text(second, "nimgate.retry.reason"));
    assert_eq!(text(first, names::ERROR_TYPE), "connect_refused");
    assert_eq!(value(second, names::RESEND_COUNT), Some(Any::IntValue(1)));
    assert_ne!(text(first, "nimgate.endpoint"), text(second, "nimgate.endpoint"));
    let spilled = spans(collector, "spilled").await;
    assert_eq!(text(&spilled[0].attributes, "nimgate.spill.from"), "near");
    assert_eq!(text(&attempts(&spilled)[0].attributes, "nimgate.pool"), "far");
    let queued = spans(collector, "queued").await;
    assert!(named(&queued, "queue").is_some() && named(&spilled, "queue").is_none());
    let (missed, cached) = (spans(collector, "missed").await, spans(collector, "cached").await);
    assert_eq!((attempts(&missed).len(), attempts(&cached).len()), (1, 0));
    assert_eq!(text(&named(&cached, "cache").unwrap().attributes, "nimgate.cache.result"), "hit");
}

async fn check_lines(gateway: &Gateway, retried: &str) {
    let of = async |id: &str, key: &str| gateway.record_of(id).await[key].clone();
    assert!(of("slow", "total_ms").await.as_f64() >= Some(300.0));
    assert_eq!(of("failed", "blame").await, "inference-service");
    assert_eq!(of(retried, "attempts").await, 2);
    assert_eq!(of("spilled", "spilled_from").await, "near");
    assert!(of("queued", "queue_ms").await.is_number());
    assert_eq!(of("spilled", "queue_ms").await, Value::Null);
    assert_eq!((of("missed", "cache").await, of("cached", "cache").await), (json!("miss"), json!("hit")));
}

/// A collector that dies, hangs, is slow and comes back, while requests go on: none fails, and none takes part in it.
#[tokio::test]
async fn requests_go_on_whatever_becomes_of_the_collector() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let endpoint = format!("http://{}", collector.address());
    let top = format!(
        "telemetry: {{otlp: {{endpoint: '{endpoint}', delay_ms: 5, queue: 64, batch: 16, timeout_ms: 200, \
         metrics_interval_s: 1}}, traces: {{sample: 1}}}}"
    );
    let gateway = Arc::new(Gateway::setup().chat(&[&backend.url()]).top(&top).start().await);
    let load = async |what: &str| {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let gateway = Arc::clone(&gateway);
            running.spawn(async move {
                for stream in [false, true, false, true, false, true, false, true] {
                    assert_eq!(gateway.chat(stream).send().await.status, 200);
                }
            });
        }
        let done = running.join_all();
        let done = tokio::time::timeout(std::time::Duration::from_secs(30), done).await;
        assert!(done.is_ok(), "requests wait for a collector that {what}");
    };
    load("is well").await;
    collector.always(Told::Hang);
    load("hangs").await;
    collector.always(Told::Busy(1));
    load("is full").await;
    collector.always(Told::Fail(500, "broken"));
    load("fails").await;
    let address = collector.kill().await;
    load("is gone").await;
    gateway.until_idle().await;
    let dropped = "nimgate_telemetry_exported_total{signal=\"traces\",result=\"queue_full\"}";
    until("spans were dropped and counted", async || gateway.metric(dropped).await > 0.0).await;
    assert_eq!(gateway.metric("nimgate_requests_total{status=\"200\"}").await, 640.0);
    let back = Collector::at(address).await;
    until("what comes later arrives", async || {
        gateway.chat(false).send().await;
        !back.spans().is_empty() && !back.metrics().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_limit_that_asks_redis_has_a_span() {
    let (collector, backend, redis) =
        (Collector::start().await, simulator(Kind::Llm).await, RedisServer::start().await);
    let top = format!("{}\nredis: {{addresses: ['{}']}}", to(&collector, "sample: 1"), redis.address());
    let key = "scopes: ['*']\nlimits: [{requests: 5, per: minute}]";
    let gateway =
        Gateway::setup().chat(&[&backend.url()]).key("ngk_limited_0123456789abcdef", key).top(&top).start().await;
    let ask = gateway.chat(false).key("ngk_limited_0123456789abcdef").header("x-request-id", "q");
    assert_eq!(ask.send().await.status, 200);
    let spans = spans(&collector, "q").await;
    assert!(named(&spans, "quota").is_some(), "{spans:?}");
}
