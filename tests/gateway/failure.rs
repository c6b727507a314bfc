//! Failures: every label, as the caller, the record and the metrics see it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use nimgate::sim::{DEGRADED_FUNCTION, ECHO_FUNCTION, FAILING_FUNCTION, LLM_FUNCTION, UNREACHABLE_FUNCTION};
use nimgate::upstream::Fault;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::input::Wire;
use crate::support::*;

const LIMITED: &str = "ngk_limited_0123456789abcdef";
const EXPIRED: &str = "ngk_expired_0123456789abcdef";
const DISABLED: &str = "ngk_disabled_0123456789abcdef";
const UPSTREAM_KEY: &str = "nvapi-upstream-secret";
const UNKNOWN_FUNCTION: &str = "00000000-0000-4000-8000-0000000000ff";
const MODEL: &str = "meta/llama-3.1-8b-instruct";

/// Labels that no request can produce from outside, each with the reason. Their text is tested where it is made.
const UNREACHABLE: [(&str, &str); 9] = [
    ("function_unknown", "needs a call of gRPC: tests/gateway/grpc.rs has it"),
    ("internal_error", "a defect of the gateway: none is known, and a test that finds one must fail instead"),
    ("keys_unknown", "needs a Redis that was never read: tests/gateway/admin has it"),
    ("limits_unknown", "needs a Redis that is away: tests/gateway/shared.rs has it"),
    ("not_started", "needs a function without instances: tests/gateway/held.rs has it"),
    ("not_finished", "needs a function that is slow: tests/gateway/held.rs has it"),
    ("result_lost", "needs a platform that loses answers: tests/gateway/held.rs has it"),
    ("requests_unknown", "needs a Redis that is away: tests/gateway/native.rs has it"),
    ("not_cached", "needs a pool that keeps vectors: tests/gateway/cache.rs has it"),
];

/// The dialects of error bodies.
#[derive(Clone, Copy, Debug)]
enum Dialect {
    OpenAi,
    Problem,
    FastApi,
    /// The backend's own body, unchanged.
    Passed,
    /// No answer can reach the client.
    Unanswered,
}

/// What a request is to end in.
#[derive(Clone, Copy, Debug)]
struct Expected {
    label: &'static str,
    status: u16,
    blame: &'static str,
    dialect: Dialect,
}

fn expected(label: &'static str, status: u16, blame: &'static str, dialect: Dialect) -> Expected {
    Expected { label, status, blame, dialect }
}

/// A backend that answers every request with the same bytes, whatever they are, and then closes.
pub(crate) async fn raw_backend(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let request = read_request(&mut stream).await;
                if !request.is_empty() {
                    let _ = stream.write_all(answer).await;
                }
                let _ = stream.shutdown().await;
                // Whoever resets a connection destroys what the other side has not read yet.
                while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

/// Reads one request with a length, or none.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if bytes.len() >= head + length.unwrap_or(0) {
                return bytes;
            }
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return bytes,
            Ok(_) => {}
        }
    }
}

/// One gateway with a pool for every way to fail.
struct World {
    gateway: Gateway,
    llm: Simulator,
    nvcf: Simulator,
    curator: Simulator,
    _others: Vec<Simulator>,
    asked: u32,
    produced: BTreeSet<&'static str>,
}

impl World {
    async fn start() -> Self {
        let (llm, nvcf, curator) =
            (simulator(Kind::Llm).await, simulator(Kind::Nvcf).await, simulator(Kind::Curator).await);
        let (sick, predict, embed) =
            (simulator(Kind::Llm).await, simulator(Kind::CosmosPredict).await, simulator(Kind::CosmosEmbed1).await);
        sick.fault("not-ready").unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
        let credential = "credential: {secret: {file: upstream.key}}\nhealth: {enabled: false}";
        let chat = |name: &str, more: &str| {
            format!("models: [{{id: {name}, backend_model: {MODEL}}}]\nmax_body_mib: 1\n{more}")
        };
        let with_life = |name: &str, life: &str| format!("models: [{{id: {name}, backend_model: {MODEL}, {life}}}]");
        let unprobed = |name: &str, more: &str| chat(name, &format!("health: {{enabled: false}}\n{more}"));
        let function = |name: &str, invocation: &str| {
            chat(name, &format!("kind: nvcf\nfunction: {{id: {LLM_FUNCTION}, invocation: {invocation}}}\n{credential}"))
        };
        let url = |address: SocketAddr| format!("http://{address}");
        let garbage = url(raw_backend(b"SSH-2.0-OpenSSH_9.9\r\n\r\n").await);
        let full = url(raw_backend(JETSTREAM).await);
        let lost = url(raw_backend(NOT_FOUND_TEXT).await);
        let gateway = Gateway::setup()
            .pool("chat", "nim-llm", &chat("chat", "default: true"), &[&llm.url()])
            .pool("hasty", "nim-llm", &chat("hasty", "timeouts: {first_byte_ms: 100}"), &[&llm.url()])
            .pool("brief", "nim-llm", &chat("brief", "timeouts: {total_ms: 100}"), &[&llm.url()])
            .pool("quiet", "nim-llm", &chat("quiet", "timeouts: {between_chunks_ms: 100}"), &[&llm.url()])
            .pool(
                "sick",
                "nim-llm",
                &chat("sick", "health: {interval_ms: 50, unhealthy_after: 1, try_unhealthy: false}"),
                &[&sick.url()],
            )
            .pool("dead", "nim-llm", &unprobed("dead", ""), &[&url(free_address())])
            .pool("secret", "nim-llm", &unprobed("secret", ""), &[&llm.url().replace("http:", "https:")])
            .pool("garbage", "nim-llm", &unprobed("garbage", ""), &[&garbage])
            .pool("direct", "nim-llm", &function("direct", "direct"), &[&nvcf.url()])
            .pool("pexec", "nim-llm", &function("pexec", "pexec"), &[&nvcf.url()])
            .pool("nvcf", "nvcf", &format!("kind: nvcf\ndefault: true\nmax_body_mib: 1\n{credential}"), &[&nvcf.url()])
            .pool("full", "nvcf", &format!("kind: nvcf\n{credential}"), &[&full])
            .pool("lost", "nvcf", &format!("kind: nvcf\n{credential}"), &[&lost])
            .pool("speech", "grpc", "", &["http://127.0.0.1:9"])
            .pool("curator", "nemo-curator", &format!("kind: ngc\n{credential}"), &[&curator.url()])
            .pool("twin-a", "cosmos-predict", "", &[&predict.url()])
            .pool("twin-b", "cosmos-predict", "", &[&predict.url()])
            .pool("video", "cosmos-embed1", "models: [{id: nvidia/cosmos-embed1}]", &[&embed.url()])
            .pool("noline", "nim-llm", &chat("noline", "balance: {max_in_flight: 1}\nqueue: {max: 0}"), &[&llm.url()])
            .pool(
                "line",
                "nim-llm",
                &chat("line", "balance: {max_in_flight: 1}\nqueue: {max_per_caller: 1, timeout_ms: 30000}"),
                &[&llm.url()],
            )
            .pool(
                "wait",
                "nim-llm",
                &chat("wait", "balance: {max_in_flight: 1}\nqueue: {timeout_ms: 50}"),
                &[&llm.url()],
            )
            .pool("ended", "nim-llm", &with_life("ended", "end_of_life: 2020-01-01"), &[&llm.url()])
            .pool("offline", "nim-llm", &with_life("offline", "offline_message: Back soon."), &[&llm.url()])
            .key(LIMITED, "models: [chat, direct]\npools: [chat, curator]\nscopes: [invoke_function]")
            .key(EXPIRED, "expires: 2020-01-01T00:00:00Z")
            .key(DISABLED, "disabled: true")
            .top("client: {body_idle_timeout_ms: 200, write_timeout_ms: 200, header_timeout_ms: 500}")
            .start_in(directory)
            .await;
        let healthy = "nimgate_endpoint_healthy{";
        until("the sick endpoint is out", async || {
            let page = gateway.admin("/metrics").await.text();
            page.lines().any(|line| line.starts_with(healthy) && line.contains("\"sick\"") && line.ends_with(" 0"))
        })
        .await;
        Self { gateway, llm, nvcf, curator, _others: vec![sick, predict, embed], asked: 0, produced: BTreeSet::new() }
    }

    fn chat(&self, pool: &str) -> Ask<'_> {
        let mut body = chat(false);
        body["model"] = pool.into();
        self.gateway.post(&format!("/pools/{pool}/v1/chat/completions"), &body)
    }

    fn function(&self, pool: &str, id: &str) -> Ask<'_> {
        self.gateway.post(&format!("/pools/{pool}/v2/nvcf/pexec/functions/{id}"), &json!({ "a": 1 }))
    }

    fn dataset(&self) -> Ask<'_> {
        self.gateway.post("/v1/cosmos/datasets", &dataset())
    }

    fn next_id(&mut self) -> String {
        self.asked += 1;
        format!("failure-{}", self.asked)
    }

    async fn counted(&self, label: &str, blame: &str) -> f64 {
        let page = self.gateway.admin("/metrics").await.text();
        let lines = page.lines().filter(|l| l.starts_with("nimgate_requests_total{"));
        let of_label =
            lines.filter(|l| l.contains(&format!("error=\"{label}\"")) && l.contains(&format!("blame=\"{blame}\"")));
        of_label.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Runs one case: `produce` makes the request under the given id.
    async fn check(
        &mut self,
        case: &str,
        expected: Expected,
        produce: impl AsyncFnOnce(&Self, &str) -> Option<Answer>,
    ) {
        let id = self.next_id();
        let before = self.counted(expected.label, expected.blame).await;
        let answer = produce(self, &id).await;
        let record = self.gateway.record_of(&id).await;
        let told = (record["error"].as_str(), record["blame"].as_str());
        assert_eq!(told, (Some(expected.label), Some(expected.blame)), "{case}: the record {record}");
        assert_eq!(record["status"], expected.status, "{case}: the record {record}");
        let counted = self.counted(expected.label, expected.blame).await;
        assert_eq!(counted, before + 1.0, "{case}: the metric");
        match answer {
            Some(answer) => check_answer(case, expected, &answer, &id),
            None => assert!(matches!(expected.dialect, Dialect::Unanswered), "{case}: no answer"),
        }
        self.produced.insert(expected.label);
    }

    /// Runs a case whose request is plain.
    async fn refuses(&mut self, case: &str, expected: Expected, ask: impl Fn(&Self) -> Ask<'_>) {
        self.check(case, expected, async |world, id| Some(ask(world).header("x-request-id", id).send().await)).await;
    }

    /// Runs a case whose answer the backend words, and compares it with what the backend says without a gateway.
    async fn passes(
        &mut self,
        case: &str,
        (label, status, blame): (&'static str, u16, &'static str),
        fault: &str,
        ask: impl Fn(&Self) -> Ask<'_>,
        direct: &Direct<'_>,
    ) {
        let own = direct.send(fault).await;
        let expected = expected(label, status, blame, Dialect::Passed);
        self.check(case, expected, async |world, id| {
            let ask = ask(world).header("x-request-id", id);
            let ask = if fault.is_empty() { ask } else { ask.header("x-sim-fault", fault) };
            let answer = ask.send().await;
            assert_eq!(answer.status, own.status, "{case}: the status is kept");
            assert_eq!(answer.body, own.body, "{case}: the body is kept byte for byte");
            assert_eq!(answer.header("content-type"), own.header("content-type"), "{case}");
            Some(answer)
        })
        .await;
    }
}

/// The same request without a gateway.
struct Direct<'a> {
    url: String,
    body: Value,
    headers: &'a [(&'a str, &'a str)],
}

impl Direct<'_> {
    async fn send(&self, fault: &str) -> Answer {
        let mut request = http::Request::post(&self.url).header("content-type", "application/json");
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        if !fault.is_empty() {
            request = request.header("x-sim-fault", fault);
        }
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let body = http_body_util::Full::<bytes::Bytes>::from(self.body.to_string());
        answer(client.request(request.body(body).unwrap()).await.unwrap()).await
    }
}

const JETSTREAM: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/problem+json\r\ncontent-length: 100\r\n\r\n\
    {\"status\":429,\"title\":\"Too Many Requests\",\"detail\":\"Jetstream error: maximum messages exceeded now\"}";
const NOT_FOUND_TEXT: &[u8] =
    b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 18\r\n\r\n404 page not found";

fn dataset() -> Value {
    json!({ "name": "n", "description": "d", "jobSpec": { "pipeline": "split", "args": {} } })
}

fn check_answer(case: &str, expected: Expected, answer: &Answer, id: &str) {
    assert_eq!(answer.status, expected.status, "{case}: {}", answer.text());
    assert_eq!(answer.fault(), (expected.label, expected.blame), "{case}");
    assert_eq!(answer.header("x-request-id"), id, "{case}");
    let json =
        || serde_json::from_slice::<Value>(&answer.body).unwrap_or_else(|e| panic!("{case}: {e}: {}", answer.text()));
    match expected.dialect {
        Dialect::OpenAi => {
            let error = &json()["error"];
            assert_eq!(
                (answer.header("content-type"), &error["code"]),
                ("application/json", &json!(expected.label)),
                "{case}"
            );
            assert!(
                error["message"].as_str().is_some_and(|m| m.ends_with('.')) && error["type"].is_string(),
                "{case}: {error}"
            );
        }
        Dialect::Problem => {
            let body = json();
            let kind = format!("urn:nimgate:problem-details:{}", expected.label.replace('_', "-"));
            assert_eq!(
                (answer.header("content-type"), &body["type"]),
                ("application/problem+json", &json!(kind)),
                "{case}"
            );
            assert_eq!((&body["status"], &body["requestId"]), (&json!(expected.status), &json!(id)), "{case}: {body}");
            assert!(body["title"].is_string() && body["detail"].is_string(), "{case}: {body}");
        }
        Dialect::FastApi => {
            let detail = &json()["detail"];
            assert!(
                detail.is_string() || detail[0]["loc"].is_array() && detail[0]["msg"].is_string(),
                "{case}: {detail}"
            );
        }
        Dialect::Passed => {}
        Dialect::Unanswered => panic!("{case}: answered {}", answer.text()),
    }
}

/// The labels of the gateway's own failures: the first text of every `Row` in `src/failure.rs`, and what a limit is called.
fn own_labels() -> BTreeSet<String> {
    let rows = include_str!("../../src/failure.rs").split("Row(\"").skip(1);
    rows.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

/// All labels; those from behind have a case for each of their rows in `blame.rs`.
fn labels() -> BTreeSet<String> {
    own_labels().into_iter().chain(Fault::ALL.iter().map(|fault| fault.label().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_label_is_produced_and_told_alike_in_answer_record_and_metrics() {
    let mut world = World::start().await;
    callers(&mut world).await;
    routes(&mut world).await;
    bodies(&mut world).await;
    clients_that_leave(&mut world).await;
    unreachable_backends(&mut world).await;
    slow_backends(&mut world).await;
    containers(&mut world).await;
    functions(&mut world).await;
    services(&mut world).await;
    models(&mut world).await;
    lines(&mut world).await;
    let produced: BTreeSet<String> = world.produced.iter().map(|label| (*label).to_owned()).collect();
    let exempt: BTreeSet<String> = UNREACHABLE.iter().map(|(label, _)| (*label).to_owned()).collect();
    let missing: Vec<_> = own_labels().into_iter().filter(|l| !produced.contains(l) && !exempt.contains(l)).collect();
    assert!(missing.is_empty(), "labels without a case: {missing:?}");
    assert!(produced.is_subset(&labels()) && exempt.is_disjoint(&produced) && exempt.is_subset(&labels()));
    world.gateway.until_idle().await;
    assert_eq!(world.gateway.metric("nimgate_requests_in_flight").await, 0.0);
    assert!(!world.gateway.output().contains("panicked"), "{}", world.gateway.output());
}

async fn callers(world: &mut World) {
    let denied = |label| expected(label, 401, "client", Dialect::OpenAi);
    world.refuses("no key", denied("key_missing"), |w| w.chat("chat").anonymous()).await;
    for (key, label) in [("ngk_x_y", "key_invalid"), (EXPIRED, "key_expired"), (DISABLED, "key_disabled")] {
        world.refuses(label, denied(label), |w| w.chat("chat").key(key)).await;
    }
    world
        .refuses("no key for NVCF", expected("key_missing", 401, "client", Dialect::Problem), |w| {
            w.function("nvcf", ECHO_FUNCTION).anonymous()
        })
        .await;
    world
        .refuses("a wrong key for Cosmos", expected("key_invalid", 401, "client", Dialect::FastApi), |w| {
            w.gateway.post("/pools/twin-a/v1/infer", &json!({ "prompt": "x" })).anonymous().header("x-api-key", "sk-1")
        })
        .await;
    let forbidden = |dialect| expected("not_allowed", 403, "client", dialect);
    world.refuses("a model of others", forbidden(Dialect::OpenAi), |w| w.chat("pexec").key(LIMITED)).await;
    world.refuses("a pool of others", forbidden(Dialect::OpenAi), |w| w.chat("direct").key(LIMITED)).await;
    world.refuses("a scope of others", forbidden(Dialect::Problem), |w| w.dataset().key(LIMITED)).await;
}

async fn routes(world: &mut World) {
    let missing = |label, dialect| expected(label, 404, "client", dialect);
    world.refuses("unknown path", missing("path_not_found", Dialect::OpenAi), |w| w.gateway.get("/v1/nothing")).await;
    world
        .refuses("unknown NVCF path", missing("path_not_found", Dialect::Problem), |w| {
            w.gateway.get("/v2/nvcf/nothing")
        })
        .await;
    world
        .refuses("a request of nobody", missing("request_not_found", Dialect::Problem), |w| {
            w.gateway.get(&format!("/v2/nvcf/pexec/status/{UNKNOWN_FUNCTION}"))
        })
        .await;
    world
        .refuses("unknown pool", missing("pool_not_found", Dialect::OpenAi), |w| w.gateway.get("/pools/none/v1/models"))
        .await;
    world
        .refuses("rival pools", missing("no_default_pool", Dialect::FastApi), |w| {
            w.gateway.post("/v1/infer", &json!({ "prompt": "x" }))
        })
        .await;
    let unknown = json!({ "model": "none", "messages": [] });
    world
        .refuses("unknown model", missing("model_not_found", Dialect::OpenAi), |w| {
            w.gateway.post("/v1/chat/completions", &unknown)
        })
        .await;
    world
        .refuses("JSON for gRPC", expected("wrong_protocol", 415, "client", Dialect::OpenAi), |w| {
            w.gateway.post("/pools/speech/sim.Echo/Unary", &json!({ "a": 1 }))
        })
        .await;
    let wrong = |dialect| expected("method_not_allowed", 405, "client", dialect);
    world.refuses("wrong method", wrong(Dialect::OpenAi), |w| w.gateway.ask(Method::PUT, "/v1/chat/completions")).await;
    world
        .refuses("wrong NVCF method", wrong(Dialect::Problem), |w| w.gateway.ask(Method::PUT, "/v2/nvcf/functions"))
        .await;
}

async fn bodies(world: &mut World) {
    let bad = |label, status, dialect| expected(label, status, "client", dialect);
    world.refuses("not JSON", bad("malformed_json", 400, Dialect::OpenAi), |w| w.chat("chat").body("{")).await;
    world
        .refuses("not JSON for Cosmos", bad("malformed_json", 400, Dialect::FastApi), |w| {
            w.gateway.post("/pools/twin-a/v1/infer", &json!({})).body("{")
        })
        .await;
    world
        .refuses("not declared as JSON", bad("unsupported_media_type", 415, Dialect::OpenAi), |w| {
            w.gateway.ask(Method::POST, "/v1/chat/completions").header("content-type", "text/plain").body("x")
        })
        .await;
    let wrong = json!({ "model": "chat", "messages": [], "temperature": "hot" });
    world
        .refuses("wrong type", bad("schema_violation", 400, Dialect::OpenAi), |w| {
            w.gateway.post("/v1/chat/completions", &wrong)
        })
        .await;
    world
        .refuses("Cosmos Predict says 400", bad("schema_violation", 400, Dialect::FastApi), |w| {
            w.gateway.post("/pools/twin-a/v1/infer", &json!({ "prompt": 1 }))
        })
        .await;
    let embed = json!({ "model": "nvidia/cosmos-embed1", "input": 1, "request_type": "query" });
    world
        .refuses("Cosmos Embed1 says 422", bad("schema_violation", 422, Dialect::FastApi), |w| {
            w.gateway.post("/v1/embeddings", &embed)
        })
        .await;
    world
        .refuses("Curator's names", bad("schema_violation", 400, Dialect::Problem), |w| {
            w.gateway.post("/v1/cosmos/datasets", &json!({ "name": 1 }))
        })
        .await;
    let large = vec![b' '; 1024 * 1024 + 1];
    world
        .refuses("too large", bad("body_too_large", 413, Dialect::OpenAi), |w| w.chat("chat").body(large.clone()))
        .await;
    let head = |id: &str, more: &str| {
        format!(
            "POST /pools/chat/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nx-request-id: {id}\r\ncontent-type: application/json\r\n{more}\r\n"
        )
    };
    world
        .check("a body that ends early", bad("body_incomplete", 400, Dialect::OpenAi), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            wire.send(head(id, "content-length: 9\r\n") + "{}").await;
            wire.close_half().await;
            Some(wire.answer().await)
        })
        .await;
    world
        .check("a body that does not come", bad("body_timeout", 408, Dialect::OpenAi), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            wire.send(head(id, "content-length: 9\r\n") + "{}").await;
            Some(wire.answer().await)
        })
        .await;
    world
        .check("two framings", bad("malformed_request", 400, Dialect::OpenAi), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            wire.send(head(id, "content-length: 2\r\ntransfer-encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n\r\n").await;
            Some(wire.answer().await)
        })
        .await;
    world
        .check("too many headers", bad("headers_too_large", 431, Dialect::OpenAi), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            let many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
            wire.send(head(id, &many)).await;
            Some(wire.answer().await)
        })
        .await;
}

async fn clients_that_leave(world: &mut World) {
    let left = |label, status| expected(label, status, "client", Dialect::Unanswered);
    world
        .check("the client leaves", left("client_closed", 499), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            let mut body = chat(false);
            body["model"] = "chat".into();
            wire.send(wire.post(
                "/v1/chat/completions",
                &format!("x-request-id: {id}\r\nx-sim-fault: hang\r\n"),
                &body.to_string(),
            ))
            .await;
            until("the backend works", async || w.llm.seen().in_flight() > 0).await;
            drop(wire);
            until("the backend's work is dropped", async || w.llm.seen().in_flight() == 0).await;
            None
        })
        .await;
    // The answer has begun, so its status stays.
    world
        .check("the client does not read", left("client_stalled", 200), async |w, id| {
            let mut wire = Wire::to(&w.gateway).await;
            let headers = format!("x-request-id: {id}\r\nx-sim-answer-bytes: 64000000\r\n");
            wire.send(wire.post("/pools/twin-a/v1/infer", &headers, r#"{"prompt":"x"}"#)).await;
            w.gateway.record_of(id).await;
            None
        })
        .await;
}

async fn unreachable_backends(world: &mut World) {
    let gone = |label, status, blame| expected(label, status, blame, Dialect::OpenAi);
    world.refuses("nobody listens", gone("connect_refused", 502, "network"), |w| w.chat("dead")).await;
    world.refuses("no TLS", gone("tls_failed", 502, "network"), |w| w.chat("secret")).await;
    world
        .refuses("closed unanswered", gone("upstream_closed", 502, "network"), |w| {
            w.chat("chat").header("x-sim-fault", "cut")
        })
        .await;
    world.refuses("not HTTP", gone("upstream_protocol", 502, "inference-service"), |w| w.chat("garbage")).await;
    world.refuses("unready", gone("no_healthy_endpoint", 503, "inference-service"), |w| w.chat("sick")).await;
    world
        .refuses("closed unanswered by NVCF", expected("upstream_closed", 502, "network", Dialect::Problem), |w| {
            w.function("nvcf", ECHO_FUNCTION).header("x-sim-fault", "cut")
        })
        .await;
}

async fn slow_backends(world: &mut World) {
    let late = |label, blame| expected(label, 504, blame, Dialect::OpenAi);
    world
        .refuses("never begins", late("first_byte_timeout", "inference-service"), |w| {
            w.chat("hasty").header("x-sim-fault", "hang")
        })
        .await;
    world
        .refuses("takes too long", late("total_timeout", "gateway"), |w| w.chat("brief").header("x-sim-fault", "hang"))
        .await;
    // A failing answer is held until it is judged, so its silence can still be told by a status.
    world
        .refuses("goes silent within an error", late("upstream_stalled", "inference-service"), |w| {
            w.chat("quiet").header("x-sim-fault", "status=500,stall-after=0")
        })
        .await;
    world
        .check(
            "goes silent within a stream",
            expected("upstream_stalled", 200, "inference-service", Dialect::Unanswered),
            async |w, id| {
                let mut body = chat(true);
                body["model"] = "quiet".into();
                let ask = w.gateway.post("/v1/chat/completions", &body).header("x-sim-fault", "stall-after=2");
                let text = ask.header("x-request-id", id).send().await.text();
                let event: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
                assert_eq!(event["error"]["code"], "upstream_stalled", "{text}");
                None
            },
        )
        .await;
}

/// NIM containers, in every shape of body that they are known to use.
async fn containers(world: &mut World) {
    let direct = Direct { url: format!("{}/v1/chat/completions", world.llm.url()), body: chat(false), headers: &[] };
    let service = "inference-service";
    for (fault, label, status, blame) in [
        ("body-a", "inference_error", 500, service),
        ("body-a,status=429", "inference_overloaded", 429, service),
        ("body-b", "inference_error", 500, service),
        ("body-b,status=404", "inference_rejected", 404, service),
        ("body-c", "inference_rejected", 400, service),
        ("body-d", "inference_rejected", 422, service),
        ("body-e", "inference_rejected", 402, service),
        ("body-e,status=529", "inference_overloaded", 529, service),
        ("body-f", "inference_overloaded", 503, service),
        ("body-g", "inference_rejected", 400, service),
        ("body-h", "inference_overloaded", 429, service),
        ("status=500,truncated-json", "inference_error", 500, service),
    ] {
        world.passes(fault, (label, status, blame), fault, |w| w.chat("chat"), &direct).await;
    }
    // No words, words for people, or words that would be read as the caller's fault.
    for (fault, label, status, blame) in [
        ("body-html", "upstream_proxy_error", 502, "network"),
        ("body-html,status=504", "upstream_proxy_error", 504, "network"),
        ("body-html,status=400", "inference_rejected", 400, service),
        ("status=503,empty", "upstream_proxy_error", 503, "network"),
        ("status=500,empty", "inference_error", 500, service),
        ("status=401", "inference_unauthorized", 502, service),
    ] {
        let told = expected(label, status, blame, Dialect::OpenAi);
        world.refuses(fault, told, |w| w.chat("chat").header("x-sim-fault", fault)).await;
    }
}

/// NVCF, which says itself whether the container answered, or leaves it to be read.
async fn functions(world: &mut World) {
    let bearer = format!("Bearer {UPSTREAM_KEY}");
    let url = world.nvcf.url();
    let path = |function: &str| format!("{url}/v2/nvcf/pexec/functions/{function}");
    let headers = [("authorization", bearer.as_str())];
    let echo = Direct { url: path(ECHO_FUNCTION), body: json!({ "a": 1 }), headers: &headers };
    let (service, platform) = ("inference-service", "platform");
    for (fault, label, status, blame) in [
        ("inference-service", "inference_rejected", 400, service),
        ("inference-service,status=404", "inference_rejected", 404, service),
        ("inference-service,status=503", "inference_overloaded", 503, service),
        ("inference-service,status=500", "inference_error", 500, service),
        ("inference-connection", "inference_unreachable", 500, platform),
        ("worker", "worker_error", 500, platform),
        ("degraded", "function_degraded", 400, platform),
        ("rate-limit", "platform_rate_limited", 429, platform),
        ("status=401", "platform_unauthorized", 401, platform),
        ("status=402", "credits_expired", 402, platform),
        ("status=403", "platform_unauthorized", 403, platform),
        ("status=404", "platform_rejected", 404, platform),
        ("status=409", "platform_rejected", 409, platform),
        ("status=410", "model_retired", 410, platform),
        ("status=500", "platform_error", 500, platform),
        ("status=503", "platform_error", 503, platform),
        ("status=504", "platform_timeout", 504, platform),
        ("body-html", "platform_error", 502, platform),
        ("body-a", "inference_error", 500, service),
        ("body-d", "inference_rejected", 422, service),
        ("body-f", "inference_overloaded", 503, service),
    ] {
        world.passes(fault, (label, status, blame), fault, |w| w.function("nvcf", ECHO_FUNCTION), &echo).await;
    }
    for (function, label, status, blame) in [
        (FAILING_FUNCTION, "inference_rejected", 422, service),
        (UNREACHABLE_FUNCTION, "inference_unreachable", 500, platform),
        (DEGRADED_FUNCTION, "function_degraded", 400, platform),
        (UNKNOWN_FUNCTION, "function_not_found", 404, platform),
    ] {
        let direct = Direct { url: path(function), body: json!({ "a": 1 }), headers: &headers };
        world.passes(function, (label, status, blame), "", |w| w.function("nvcf", function), &direct).await;
    }
    let invoked = [("authorization", bearer.as_str()), ("function-id", LLM_FUNCTION)];
    let direct = Direct { url: format!("{url}/v1/chat/completions"), body: chat(false), headers: &invoked };
    let (fault, told) = ("inference-service,status=500", ("inference_error", 500, service));
    world.passes("a function as a NIM", told, fault, |w| w.chat("direct"), &direct).await;
    world.passes("a function by pexec", told, fault, |w| w.chat("pexec"), &direct).await;
    for pool in ["direct", "pexec"] {
        let told = expected("platform_unauthorized", 502, platform, Dialect::OpenAi);
        world.refuses(pool, told, |w| w.chat(pool).header("x-sim-fault", "status=401")).await;
    }
    let passed = |label, status| expected(label, status, "platform", Dialect::Passed);
    world.refuses("a full queue", passed("platform_queue_full", 429), |w| w.function("full", ECHO_FUNCTION)).await;
    world.refuses("404 in plain text", passed("function_not_found", 404), |w| w.function("lost", ECHO_FUNCTION)).await;
}

/// NGC services: Curator, whose 200 may be a failure.
async fn services(world: &mut World) {
    let bearer = format!("Bearer {UPSTREAM_KEY}");
    let direct = Direct {
        url: format!("{}/v1/cosmos/datasets", world.curator.url()),
        body: dataset(),
        headers: &[("authorization", bearer.as_str())],
    };
    for (fault, label, status) in [
        ("status=400", "platform_rejected", 400),
        ("status=429", "platform_rate_limited", 429),
        ("status=500", "platform_error", 500),
        ("status=504", "platform_timeout", 504),
    ] {
        world.passes(fault, (label, status, "platform"), fault, World::dataset, &direct).await;
    }
    let told = expected("platform_unauthorized", 502, "platform", Dialect::Problem);
    world.refuses("the gateway's key", told, |w| w.dataset().header("x-sim-fault", "status=401")).await;
    for fault in ["null-id", "empty", "truncated-json"] {
        let expected = expected("answer_incomplete", 502, "platform", Dialect::Problem);
        world.refuses(fault, expected, |w| w.dataset().header("x-sim-fault", fault)).await;
    }
}

/// Models that are not served any more, or for a while.
async fn models(world: &mut World) {
    let ended = expected("model_ended", 410, "client", Dialect::OpenAi);
    world.refuses("an ended model", ended, |w| w.chat("ended")).await;
    let offline = expected("model_offline", 503, "gateway", Dialect::OpenAi);
    world.refuses("a model that is offline", offline, |w| w.chat("offline")).await;
}

/// Pools that are full, each with one stream that does not end.
async fn lines(world: &mut World) {
    let hold = async |pool: &str| {
        let mut body = chat(true);
        body["model"] = pool.into();
        let ask = world.gateway.post("/v1/chat/completions", &body).header("x-sim-gate", "never");
        ask.begin().await
    };
    let held = [hold("noline").await, hold("line").await, hold("wait").await];
    let full = |label, status, blame| expected(label, status, blame, Dialect::OpenAi);
    world.refuses("no line", full("queue_full", 503, "gateway"), |w| w.chat("noline")).await;
    world.refuses("too long a wait", full("queue_timeout", 503, "gateway"), |w| w.chat("wait")).await;
    world
        .refuses("no time to wait", full("deadline_unmet", 503, "gateway"), |w| {
            w.chat("wait").header("x-request-timeout", "0.02")
        })
        .await;
    let mut waiting = Wire::to(&world.gateway).await;
    let mut body = chat(false);
    body["model"] = "line".into();
    waiting.send(waiting.post("/v1/chat/completions", "", &body.to_string())).await;
    world.gateway.until_waiting("line", 1).await;
    world.refuses("a caller with too many", full("caller_queue_full", 429, "quota"), |w| w.chat("line")).await;
    drop((held, waiting));
}

#[test]
fn labels_are_found_in_the_source() {
    let labels = labels();
    assert!(labels.len() > 40 && labels.contains("key_missing") && labels.contains("answer_incomplete"), "{labels:?}");
    assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')), "{labels:?}");
}

#[tokio::test]
async fn an_upstream_can_not_forge_our_words() {
    let forged = raw_backend(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-nimgate-error: forged\r\nx-nimgate-blame: client\r\nx-nimgate-pool: forged\r\n\
          x-request-id: forged\r\naccess-control-allow-origin: *\r\nconnection: x-private\r\nx-private: 1\r\nkeep-alive: timeout=1\r\nupgrade: h2c\r\n\r\n{}",
    )
    .await;
    let gateway = Gateway::setup().chat(&[&format!("http://{forged}")]).start().await;
    let answer = gateway.chat(false).header("x-request-id", "mine").send().await;
    assert_eq!((answer.status, answer.fault(), answer.header("x-nimgate-pool")), (200, ("", ""), "chat"));
    assert_eq!(answer.header("x-request-id"), "mine");
    for hop_by_hop in ["x-private", "keep-alive", "upgrade", "access-control-allow-origin"] {
        assert_eq!(answer.header(hop_by_hop), "", "{hop_by_hop}");
    }
}

#[tokio::test]
async fn answers_that_break_http_are_told_as_such() {
    let cases: [(&'static [u8], &str); 9] = [
        (b"", "upstream_closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-len", "upstream_closed"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\nhalf", "upstream_closed"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "upstream_protocol"),
        (b"<html>hello</html>", "upstream_protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", "upstream_protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}", "upstream_protocol"),
        (b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n", "upstream_protocol"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nsecret",
            "upstream_protocol",
        ),
    ];
    for (bytes, label) in cases {
        let backend = raw_backend(bytes).await;
        let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}";
        let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&format!("http://{backend}")]).start().await;
        let shown = String::from_utf8_lossy(bytes);
        let answer = gateway.chat(false).header("x-request-id", "r").send().await;
        assert_eq!((answer.status, answer.fault().0), (502, label), "{shown}");
        let asked = gateway.chat(false).header("connection", "upgrade").header("upgrade", "websocket");
        assert_eq!(asked.send().await.status, 502, "an upgrade changes nothing: {shown}");
        assert_eq!(gateway.record_of("r").await["error"], label, "{shown}");
        until("nothing is in flight", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
    }
}

#[tokio::test]
async fn a_created_dataset_is_not_called_failed_for_the_size_of_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = format!(r#"{{"id":"a","note":"{}"}}"#, "x".repeat(3 * 1024 * 1024));
    let answered = body.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if !read_request(&mut stream).await.is_empty() {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    answered.len()
                );
                let _ = stream.write_all(format!("{head}{answered}").as_bytes()).await;
            }
        }
    });
    let gateway =
        Gateway::setup().pool("curator", "nemo-curator", "kind: ngc\nhealth: {enabled: false}", &[&url]).start().await;
    let answer = gateway.post("/v1/cosmos/datasets", &dataset()).send().await;
    assert_eq!((answer.status, answer.fault()), (200, ("", "")));
    assert_eq!(answer.body.len(), body.len());
}

#[tokio::test]
async fn an_upload_that_drips_ends_at_the_pools_total_time() {
    let nvcf = simulator(Kind::Nvcf).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    let pool =
        "kind: nvcf\ncredential: {secret: {file: upstream.key}}\nhealth: {enabled: false}\ntimeouts: {total_ms: 300}";
    let gateway = Gateway::setup().pool("nvcf", "nvcf", pool, &[&nvcf.url()]).start_in(directory).await;
    let mut wire = Wire::to(&gateway).await;
    let path = format!("/v2/nvcf/pexec/functions/{ECHO_FUNCTION}");
    wire.send(format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nx-request-id: drip\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    until("the upload is ended", async || {
        wire.try_send("1\r\nx\r\n").await;
        gateway.records().iter().any(|r| r["request_id"] == "drip")
    })
    .await;
    assert_eq!(gateway.record_of("drip").await["error"], "total_timeout");
    until("the lease is given back", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
}

/// Each connection answers one request, takes another and closes: what an idle timeout of the backend looks like, and
/// a backend that dies of a request too. Counts what it took.
async fn closing_backend() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let taken: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let taken = Arc::clone(&counted);
            tokio::spawn(async move {
                if !read_request(&mut stream).await.is_empty() {
                    taken.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                    taken.fetch_add(usize::from(!read_request(&mut stream).await.is_empty()), Ordering::SeqCst);
                }
            });
        }
    });
    (url, taken)
}

#[tokio::test]
async fn a_generation_on_a_kept_connection_that_is_closed_unanswered_is_not_run_again() {
    let (url, taken) = closing_backend().await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}\nmetrics: {enabled: false}\n\
                breaker: {failures: 10}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&url]).start().await;
    for at in 0..6 {
        let id = format!("kept-{at}");
        let answer = gateway.chat(false).header("x-request-id", &id).send().await;
        // Every second one comes on the connection that the one before it left.
        let expected = if at % 2 == 0 { (200, ("", "")) } else { (502, ("upstream_closed", "network")) };
        assert_eq!((answer.status, answer.fault()), expected, "request {at}");
        assert_eq!(gateway.record_of(&id).await["attempts"], 1);
    }
    assert_eq!(taken.load(Ordering::SeqCst), 6, "it may have run: it must not run twice");
    gateway.until_idle().await;
    assert!(!gateway.output().contains("panicked"));
}

#[tokio::test]
async fn an_embedding_on_a_kept_connection_that_is_closed_unanswered_is_run_again() {
    let (url, taken) = closing_backend().await;
    let pool = "models: [{id: nvidia/nv-embedqa-e5-v5}]\nhealth: {enabled: false}\nmetrics: {enabled: false}";
    let gateway = Gateway::setup().pool("text", "nim-embedding", pool, &[&url]).start().await;
    let body = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": "x", "input_type": "query" });
    let mut attempts = 0;
    for at in 0..6 {
        let id = format!("kept-{at}");
        let answer = gateway.post("/v1/embeddings", &body).header("x-request-id", &id).send().await;
        assert_eq!((answer.status, answer.fault()), (200, ("", "")), "request {at}");
        attempts += gateway.record_of(&id).await["attempts"].as_u64().unwrap() as usize;
    }
    assert!(attempts > 6, "some came on a kept connection");
    assert_eq!(taken.load(Ordering::SeqCst), attempts);
    gateway.until_idle().await;
    assert!(!gateway.output().contains("panicked"));
}
