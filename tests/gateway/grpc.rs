//! Calls of gRPC by Google's own Python client, which `sdk/calls.py` drives, through to a function of NVCF.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use nimgate::sim::{GrpcConnection, GrpcSimulator, start_grpc};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::sdk::Script;
use crate::support::*;
use crate::tls::{certificate, tls_front_with};

const FUNCTION: &str = "5c2c5f4e-4b4c-4d2e-9a0b-0f6d8a1c2b3d";
const OTHER: &str = "5c2c5f4e-4b4c-4d2e-9a0b-ffffffffffff";
const VERSION: &str = "11111111-2222-4333-8444-555555555555";

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-org").unwrap();
    directory
}

trait Pools {
    /// Adds a pool of gRPC of this kind, with this further YAML.
    fn grpc(self, name: &str, kind: &str, yaml: &str, url: &str) -> Self;
}

impl Pools for Setup {
    fn grpc(self, name: &str, kind: &str, yaml: &str, url: &str) -> Self {
        let yaml = format!("kind: {kind}\ncredential: {{secret: {{file: upstream.key}}}}\n{yaml}");
        self.pool(name, "grpc", &yaml, &[url])
    }
}

fn setup() -> Setup {
    Gateway::setup().listener("http2_cleartext: true")
}

fn function() -> String {
    format!("function: {{id: {FUNCTION}}}")
}

/// A function, and a gateway that has it in its only pool.
async fn started() -> (GrpcSimulator, Gateway) {
    let backend = start_grpc().await.unwrap();
    let gateway = setup().grpc("speech", "nvcf", &function(), &backend.url()).start_in(directory()).await;
    (backend, gateway)
}

/// A call of a method with the test's key.
fn call(method: &str) -> Value {
    let key = format!("Bearer {KEY}");
    json!({ "method": method, "metadata": { "authorization": key, "x-request-id": format!("grpc-{method}") } })
}

fn with(mut call: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("expected a mapping") };
    for (name, value) in more {
        match value {
            Value::Object(pairs) => pairs.into_iter().for_each(|(name, value)| call["metadata"][name] = value),
            value => call[name] = value,
        }
    }
    call
}

fn begin(gateway: &Gateway, calls: &[Value], more: &[(&str, &str)]) -> Script {
    let (target, calls) = (gateway.address.to_string(), json!(calls).to_string());
    let variables = [&[("TARGET", target.as_str()), ("CALLS", &calls)], more].concat();
    Script::start("calls.py", gateway, &variables)
}

async fn results(gateway: &Gateway, calls: &[Value]) -> Vec<Value> {
    begin(gateway, calls, &[]).finish().await.as_array().unwrap().clone()
}

async fn result(gateway: &Gateway, call: Value) -> Value {
    results(gateway, &[call]).await.remove(0)
}

/// Code, label and blame; the latter two stand in the trailers of a refusal as in those of an answer.
fn fault(result: &Value) -> (&str, &str, &str) {
    let text = |name: &str| result["trailers"][name].as_str().unwrap_or_default();
    (result["code"].as_str().unwrap(), text("x-nimgate-error"), text("x-nimgate-blame"))
}

/// Connections on which there was a call.
fn used(backend: &GrpcSimulator) -> Vec<GrpcConnection> {
    backend.seen().connections.into_iter().filter(|connection| !connection.calls.is_empty()).collect()
}

#[tokio::test]
async fn calls_of_every_kind_pass_with_metadata_and_trailers() {
    let (backend, gateway) = started().await;
    let echo = json!({ "metadata": { "x-sim-echo": "hello", "x-sim-who": "a", "x-api-key": "mine" } });
    let large = json!({ "messages": ["x"], "repeat": 2_000_000 });
    let many: Vec<String> = (0..50).map(|at| format!("message {at}")).collect();
    let calls = [
        with(call("Unary"), echo.clone()),
        with(call("Unary"), large.clone()),
        with(call("ServerStream"), echo.clone()),
        with(call("ServerStream"), large),
        with(with(call("ClientStream"), echo.clone()), json!({ "messages": ["one ", "two ", "three"] })),
        with(with(call("Bidi"), echo), json!({ "messages": many })),
    ];
    let results = results(&gateway, &calls).await;
    for (at, result) in results.iter().enumerate() {
        assert_eq!(result["code"], "OK", "{at}: {result}");
        assert_eq!(result["header"]["x-nimgate-pool"], "speech", "{result}");
        assert!(result["header"]["x-request-id"].is_string(), "{result}");
    }
    assert_eq!(results[0]["messages"], json!(["one"]));
    assert_eq!([&results[0]["header"]["x-sim-echo"], &results[5]["trailers"]["x-sim-echo"]], ["hello"; 2]);
    assert_eq!(results[1]["messages"], json!(["2000000 bytes"]));
    assert_eq!(results[2]["messages"], json!(["one", "one", "one"]));
    assert_eq!(results[3]["messages"], json!(["2000000 bytes", "2000000 bytes", "2000000 bytes"]));
    assert_eq!(results[4]["messages"], json!(["one two three"]));
    // Each message but the first was sent when the one before it had come back.
    assert_eq!(results[5]["messages"], json!(many));

    let seen = backend.seen();
    let [connection] = &used(&backend)[..] else { panic!("one connection: {seen:?}") };
    assert_eq!(connection.calls.len(), 6);
    // Ours in, the organisation's out.
    assert_eq!(connection.credentials, BTreeSet::from(["Bearer nvapi-org".to_owned()]));
    assert_eq!(connection.functions, BTreeSet::from([FUNCTION.to_owned()]));
    for absent in ["x-api-key", "function-version-id", "grpc-timeout", "host"] {
        assert!(!seen.last.contains_key(absent), "{absent}: {:?}", seen.last);
    }
    let record = gateway.record_of("grpc-Bidi").await;
    let told = ["status", "grpc_status", "error", "api", "operation", "pool", "caller", "path", "attempts"]
        .map(|name| &record[name]);
    let wanted = json!([200, 0, null, "grpc", "call", "speech", "test", "/sim.Echo/Bidi", 1]);
    assert_eq!(json!(told), wanted, "{record}");
    assert!(record["request_bytes"].as_u64() > Some(500) && record["response_bytes"].as_u64() > Some(500), "{record}");
    let counted = gateway.metric("nimgate_requests_total{api=\"grpc\"").await;
    assert!((counted - 6.0).abs() < 0.1, "{counted}");
    gateway.until_idle().await;
}

#[tokio::test]
async fn statuses_pass_as_they_are_and_say_whose_they_are() {
    let (backend, gateway) = started().await;
    let cases = [
        (
            "3",
            "bad input: gr%C3%B6%C3%9Fe %25",
            "INVALID_ARGUMENT",
            "bad input: größe %",
            "inference_rejected",
            "inference-service",
        ),
        ("13", "boom", "INTERNAL", "boom", "inference_error", "inference-service"),
        ("8", "exceeded rate limit", "RESOURCE_EXHAUSTED", "exceeded rate limit", "platform_rate_limited", "platform"),
        (
            "4",
            "failed to establish link to worker",
            "DEADLINE_EXCEEDED",
            "failed to establish link to worker",
            "platform_timeout",
            "platform",
        ),
        ("16", "no", "UNAUTHENTICATED", "no", "platform_unauthorized", "platform"),
        ("5", "no existing session found", "NOT_FOUND", "no existing session found", "session_lost", "platform"),
    ];
    let mut calls = Vec::new();
    for (at, (code, message, ..)) in cases.iter().enumerate() {
        let metadata = json!({ "x-sim-code": code, "x-sim-message": message, "x-request-id": format!("case-{at}") });
        calls.push(with(call("Fail"), json!({ "metadata": metadata, "kind": "ServerStream" })));
        calls.push(with(call("Fail"), json!({ "metadata": metadata, "kind": "Unary" })));
        let last = calls.len() - 1;
        calls[last]["metadata"]["x-sim-bare"] = "yes".into();
    }
    let results = results(&gateway, &calls).await;
    for (at, result) in results.iter().enumerate() {
        let (_, _, code, details, label, blame) = cases[at / 2];
        assert_eq!(fault(result), (code, label, blame), "{result}");
        assert_eq!(result["details"], details);
        assert_eq!(result["messages"], if at % 2 == 0 { json!(["one"]) } else { json!([]) });
    }
    for (at, (code, _, _, _, label, blame)) in cases.iter().enumerate() {
        let record = gateway.record_of(&format!("case-{at}")).await;
        let told = json!([record["status"], record["grpc_status"].to_string(), record["error"], record["blame"]]);
        assert_eq!(told, json!([200, code, label, blame]), "{record}");
    }
    assert_eq!(used(&backend).len(), 1, "a call that fails ends no connection");
}

#[tokio::test]
async fn refusals_are_words_of_grpc() {
    let limited = "ngk_few_0123456789abcdef";
    let narrow = "ngk_narrow_0123456789abcdef";
    let backend = start_grpc().await.unwrap();
    let gateway = setup()
        .grpc("speech", "nvcf", &function(), &backend.url())
        .chat(&["http://127.0.0.1:9"])
        .key(limited, "limits: [{requests: 1, per: month}]")
        .key(narrow, "scopes: [list_functions]")
        .start_in(directory())
        .await;
    let key = |key: &str| json!({ "metadata": { "authorization": format!("Bearer {key}") } });
    let metadata = |name: &str, value: &str| json!({ "metadata": { name: value } });
    let cases = [
        (key("ngk_nobody_0123456789abcdef"), ("UNAUTHENTICATED", "key_invalid", "client")),
        (metadata("authorization", "Basic eDp5"), ("UNAUTHENTICATED", "key_missing", "client")),
        (key(narrow), ("PERMISSION_DENIED", "not_allowed", "client")),
        (metadata("x-nimgate-pool", "none"), ("NOT_FOUND", "pool_not_found", "client")),
        (metadata("x-nimgate-pool", "chat"), ("UNIMPLEMENTED", "wrong_protocol", "client")),
        (json!({ "prefix": "/pools/none" }), ("NOT_FOUND", "pool_not_found", "client")),
        (metadata("function-id", OTHER), ("NOT_FOUND", "function_unknown", "client")),
        (metadata("function-id", "../x"), ("INVALID_ARGUMENT", "malformed_request", "client")),
        (metadata("x-request-timeout", "soon"), ("INVALID_ARGUMENT", "malformed_request", "client")),
        (metadata("x-large", &"x".repeat(7000)), ("OK", "", "")),
        (key(limited), ("OK", "", "")),
        (key(limited), ("RESOURCE_EXHAUSTED", "quota_exceeded", "quota")),
    ];
    let calls: Vec<Value> = cases
        .iter()
        .enumerate()
        .map(|(at, (more, _))| {
            with(with(call("Bidi"), metadata("x-request-id", &format!("refused-{at}"))), more.clone())
        })
        .collect();
    let results = results(&gateway, &calls).await;
    for ((more, wanted), result) in cases.iter().zip(&results) {
        assert_eq!(fault(result), *wanted, "{more}: {result}");
    }
    let [.., last] = &results[..] else { panic!("results") };
    assert!(last["details"].as_str().unwrap().contains("key-requests-month"), "{last}");
    let pushback = last["trailers"]["grpc-retry-pushback-ms"].as_str().unwrap();
    assert!(pushback.parse::<i64>().unwrap() > 0, "{last}");
    let record = gateway.record_of("refused-6").await;
    assert_eq!(
        (&record["status"], &record["grpc_status"], &record["error"]),
        (&json!(200), &json!(5), &json!("function_unknown"))
    );
    let calls: usize = used(&backend).iter().map(|connection| connection.calls.len()).sum();
    assert_eq!(calls, 2, "the backend saw none of the others");
    gateway.until_idle().await;
}

#[tokio::test]
async fn deadlines_bound_a_call_on_both_sides() {
    let (backend, gateway) = started().await;
    let short = with(call("Hang"), json!({ "timeout": 0.3, "kind": "ServerStream" }));
    let own = with(call("Hang"), json!({ "metadata": { "x-request-timeout": "0.3", "x-request-id": "own" } }));
    let results = results(&gateway, &[short, own, with(call("Unary"), json!({ "timeout": 20 }))]).await;
    assert_eq!(results[0]["code"], "DEADLINE_EXCEEDED", "{results:?}");
    assert_eq!(fault(&results[1]), ("DEADLINE_EXCEEDED", "total_timeout", "gateway"));
    assert_eq!(results[2]["code"], "OK");
    let passed = backend.seen().last["grpc-timeout"].to_str().unwrap().to_owned();
    let (number, unit) = passed.split_at(passed.len() - 1);
    assert!((15_000..=20_300).contains(&number.parse::<u32>().unwrap()) && unit == "m", "{passed}");
    // The client's library rounds up.
    until("the backend's work has ended", async || backend.seen().in_flight == 0).await;
    assert_eq!(backend.seen().cancelled, 2);
    assert_eq!(used(&backend).len(), 1);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_backend() {
    let (backend, gateway) = started().await;
    let calls = [with(call("Hang"), json!({ "kind": "ServerStream", "cancel_on": "go" })), call("Unary")];
    let script = begin(&gateway, &calls, &[]);
    until("the backend works", async || backend.seen().in_flight == 1).await;
    std::fs::write(gateway.path("go"), "").unwrap();
    let results = script.finish().await;
    assert_eq!([&results[0]["code"], &results[1]["code"]], ["CANCELLED", "OK"]);
    until("the backend's work has ended", async || backend.seen().in_flight == 0).await;
    assert_eq!(backend.seen().cancelled, 1);
    let record = gateway.record_of("grpc-Hang").await;
    assert_eq!((&record["error"], &record["grpc_status"]), (&json!("client_closed"), &json!(1)), "{record}");
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_connection_to_the_backend_serves_one_caller_on_one_connection() {
    let (backend, _) = started().await;
    let second = "ngk_second_0123456789abcdef";
    let gateway =
        setup().grpc("speech", "nvcf", &function(), &backend.url()).key(second, "name: x").start_in(directory()).await;
    let mut calls = Vec::new();
    for _ in 0..25 {
        for (key, channel) in [(KEY, "a"), (second, "a"), (KEY, "b")] {
            let metadata = json!({ "authorization": format!("Bearer {key}"), "x-sim-who": format!("{key} {channel}") });
            calls.push(with(call("Bidi"), json!({ "channel": channel, "metadata": metadata, "messages": ["1", "2"] })));
        }
    }
    let script = begin(&gateway, &calls, &[("PARALLEL", "yes"), ("HOLD", "end")]);
    until("all calls have ended", async || gateway.path("held").exists()).await;
    let connections = used(&backend);
    assert_eq!(connections.len(), 3, "{connections:#?}");
    for connection in &connections {
        assert_eq!((connection.calls.len(), connection.callers.len()), (25, 1), "{connection:#?}");
        assert!(connection.is_open, "it is kept as long as the client's");
    }
    std::fs::write(gateway.path("end"), "").unwrap();
    let results = script.finish().await;
    assert!(results.as_array().unwrap().iter().all(|result| result["code"] == "OK"), "{results}");
    until("they end with the client's", async || used(&backend).iter().all(|connection| !connection.is_open)).await;
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_connection_that_has_ended_is_opened_anew() {
    let (backend, gateway) = started().await;
    let broken = with(call("Bidi"), json!({ "metadata": { "x-sim-break": "yes" }, "messages": ["1", "2", "3"] }));
    let results = results(&gateway, &[call("Unary"), broken, call("Unary")]).await;
    assert_eq!(fault(&results[1]), ("UNAVAILABLE", "upstream_closed", "network"), "{results:?}");
    assert_eq!([&results[0]["code"], &results[2]["code"]], ["OK"; 2]);
    assert_eq!(used(&backend).len(), 2);
    assert_eq!(gateway.record_of("grpc-Bidi").await["grpc_status"], 14);
}

#[tokio::test]
async fn a_backend_that_is_not_there_is_told_as_unavailable() {
    let gateway =
        setup().grpc("speech", "nvcf", &function(), &format!("http://{}", free_address())).start_in(directory()).await;
    let result = result(&gateway, call("Unary")).await;
    assert_eq!(fault(&result), ("UNAVAILABLE", "connect_refused", "network"), "{result}");
    let record = gateway.record_of("grpc-Unary").await;
    assert_eq!((&record["error"], &record["grpc_status"]), (&json!("connect_refused"), &json!(14)));
    // HTTP/1 is no answer to HTTP/2.
    let http1 = simulator(Kind::Llm).await;
    let gateway = setup().grpc("speech", "nvcf", &function(), &http1.url()).start_in(directory()).await;
    let result = self::result(&gateway, call("Unary")).await;
    assert_eq!(result["code"], "UNAVAILABLE", "{result}");
    assert!(["upstream_protocol", "upstream_closed"].contains(&fault(&result).1), "{result}");
    gateway.until_idle().await;
}

#[tokio::test]
async fn of_two_endpoints_one_that_is_down_is_passed_over_and_a_connection_stays_where_it_is() {
    let (first, second) = (start_grpc().await.unwrap(), start_grpc().await.unwrap());
    let yaml = format!("kind: nvcf\ncredential: {{secret: {{file: upstream.key}}}}\n{}", function());
    let urls = [first.url(), second.url(), format!("http://{}", free_address())];
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let gateway = setup().pool("speech", "grpc", &yaml, &urls).start_in(directory()).await;
    let calls: Vec<Value> =
        (0..24).map(|at| with(call("Unary"), json!({ "channel": format!("{}", at % 8) }))).collect();
    let results = results(&gateway, &calls).await;
    assert!(results.iter().all(|result| result["code"] == "OK"), "{results:?}");
    let connections = [used(&first), used(&second)].concat();
    assert_eq!(connections.iter().map(|connection| connection.calls.len()).collect::<Vec<_>>(), [3; 8]);
}

#[tokio::test]
async fn both_sides_may_be_tls_and_a_backend_without_http2_is_told() {
    let directory = directory();
    certificate(directory.path(), "edge", "gateway.test");
    certificate(directory.path(), "backend", "grpc.test");
    let backend = start_grpc().await.unwrap();
    let address = backend.url().trim_start_matches("http://").parse().unwrap();
    let port = tls_front_with(directory.path(), "backend", address, &["h2"]).await;
    let old = tls_front_with(directory.path(), "backend", address, &["http/1.1"]).await;
    let yaml = format!("{}\ntls: {{ca_file: backend.ca, server_name: grpc.test}}", function());
    let gateway = Gateway::setup()
        .listener("tls: {certificate_file: edge.crt, key_file: edge.key}")
        .grpc("speech", "nvcf", &yaml, &format!("https://127.0.0.1:{port}"))
        .grpc("old", "nvcf", &yaml, &format!("https://127.0.0.1:{old}"))
        .start_in(directory)
        .await;
    let to = |pool: &str| with(call("Bidi"), json!({ "metadata": { "x-nimgate-pool": pool }, "messages": ["1", "2"] }));
    let authority = gateway.path("edge.ca");
    let script = begin(&gateway, &[to("speech"), to("speech"), to("old")], &[("CA", authority.to_str().unwrap())]);
    let results = script.finish().await;
    assert_eq!([&results[0]["messages"], &results[1]["messages"]], [&json!(["1", "2"]); 2], "{results}");
    let (code, label, _) = fault(&results[2]);
    assert!(code == "UNAVAILABLE" && ["upstream_protocol", "tls_failed"].contains(&label), "{results}");
    assert_eq!(used(&backend).len(), 1);
    until("it ends with the client's", async || !used(&backend)[0].is_open).await;
}

#[tokio::test]
async fn metadata_picks_the_pool() {
    let mut backends = Vec::new();
    for _ in 0..4 {
        backends.push(start_grpc().await.unwrap());
    }
    let pinned = format!("function: {{id: {FUNCTION}, version: {VERSION}}}");
    let gateway = setup()
        .grpc("local", "nim", "headers: {function-id: x}", &backends[0].url())
        .grpc("speech", "nvcf", &function(), &backends[1].url())
        .grpc("pinned", "nvcf", &pinned, &backends[2].url())
        .grpc("any", "nvcf", "", &backends[3].url())
        .start_in(directory())
        .await;
    let metadata = |pairs: Value| with(call("Unary"), json!({ "metadata": pairs }));
    let cases = [
        (metadata(json!({ "x-nimgate-pool": "local" })), "local"),
        (with(call("Unary"), json!({ "prefix": "/pools/local" })), "local"),
        (metadata(json!({ "function-id": FUNCTION })), "speech"),
        (metadata(json!({ "function-id": FUNCTION, "function-version-id": VERSION })), "pinned"),
        (metadata(json!({ "function-id": FUNCTION, "function-version-id": OTHER })), "speech"),
        (metadata(json!({ "function-id": OTHER, "function-version-id": VERSION })), "any"),
        (metadata(json!({ "x-nimgate-pool": "any", "function-id": FUNCTION })), "any"),
        (metadata(json!({ "x-nimgate-pool": "any" })), "malformed_request"),
        (metadata(json!({ "x-nimgate-pool": "speech", "function-id": OTHER })), "function_unknown"),
        (call("Unary"), "no_default_pool"),
    ];
    let calls: Vec<Value> = cases.iter().map(|(call, _)| call.clone()).collect();
    for ((call, wanted), result) in cases.iter().zip(results(&gateway, &calls).await) {
        let label = fault(&result).1;
        let found = if label.is_empty() { result["header"]["x-nimgate-pool"].as_str() } else { Some(label) };
        assert_eq!(found, Some(*wanted), "{call}: {result}");
    }
    // What is sent on is the pool's, and only where it leaves something open the caller's.
    let last = backends[3].seen().last;
    assert_eq!((&last["function-id"], last.get("function-version-id")), (&FUNCTION.parse().unwrap(), None));
    assert_eq!(used(&backends[3]).len(), 2, "functions do not share a connection either");
    assert_eq!(backends[1].seen().last["function-version-id"], OTHER);
    assert_eq!(backends[2].seen().last["function-version-id"], VERSION);
}

/// Sends a request over HTTP/1.1 and reads what comes back.
async fn http1(address: SocketAddr, path: &str, kind: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.to_lowercase()
}

#[tokio::test]
async fn what_is_no_call_of_grpc_is_refused_at_once_and_in_words() {
    let (backend, gateway) = started().await;
    for (path, kind) in [
        ("/sim.Echo/Unary", "application/grpc"),
        ("/pools/speech/v1/chat/completions", "application/json"),
        ("/v1/chat/completions", "application/json"),
    ] {
        let answer = http1(gateway.address, path, kind).await;
        assert!(answer.starts_with("http/1.1 415"), "{path}: {answer}");
        assert!(answer.contains("x-nimgate-error: wrong_protocol") && answer.contains("grpc"), "{path}: {answer}");
    }
    assert!(used(&backend).is_empty());
    // Beside pools of HTTP, a wrong path is a wrong path.
    let gateway = setup()
        .grpc("speech", "nvcf", &function(), &backend.url())
        .chat(&["http://127.0.0.1:9"])
        .start_in(directory())
        .await;
    assert_eq!(gateway.post("/v1/nothing", &json!({})).send().await.fault().0, "path_not_found");
    assert_eq!(gateway.post("/pools/speech/a/b", &json!({})).send().await.fault().0, "wrong_protocol");
}

#[tokio::test]
async fn a_stream_above_the_pools_limit_is_ended() {
    let backend = start_grpc().await.unwrap();
    let yaml = format!("{}\nmax_body_mib: 1", function());
    let gateway = setup().grpc("speech", "nvcf", &yaml, &backend.url()).start_in(directory()).await;
    let large = json!({ "messages": ["x", "x", "x"], "repeat": 500_000 });
    let result = result(&gateway, with(call("ClientStream"), large)).await;
    assert_eq!(fault(&result), ("RESOURCE_EXHAUSTED", "body_too_large", "client"), "{result}");
    until("the backend's work has ended", async || backend.seen().in_flight == 0).await;
    gateway.until_idle().await;
}
