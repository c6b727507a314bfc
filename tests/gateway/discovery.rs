//! Discovery: endpoints that DNS and Kubernetes name, as they come and go.

use std::cell::Cell;
use std::net::SocketAddr;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use self::api_server::{ApiServer, endpoint, ready, slice};
use self::name_server::{NameServer, Say, a, srv};
use crate::support::*;
use crate::tls::{certificate, tls_front};

#[allow(dead_code, reason = "the unit tests use the rest")]
#[path = "../../src/discovery/tests/api_server.rs"]
mod api_server;
#[allow(dead_code, reason = "the unit tests use the rest")]
#[path = "../../src/discovery/tests/name_server.rs"]
mod name_server;

const CHAT: &str = "/v1/chat/completions";
const PROBE: &str = "/v1/health/ready";
const NAME: &str = "nim.test";

/// A pool of the usual model whose endpoints are found so, and asked in turn.
fn found(discovery: &str) -> String {
    format!(
        "models: [{{id: meta/llama-3.1-8b-instruct}}]\nhealth: {{interval_ms: 50, unhealthy_after: 2}}\n\
         balance: {{affinity: 0, policy: round_robin}}\nmetrics: {{interval_ms: 50}}\ndiscovery: {{{discovery}}}"
    )
}

/// How to follow what this name server says, with little patience.
fn asking(server: &NameServer) -> String {
    format!("name_servers: ['{}'], min_ttl_ms: 100, timeout_ms: 300", server.address())
}

fn by_name(server: &NameServer, port: u16) -> String {
    found(&format!("dns: {{name: {NAME}., port: {port}}}, {}", asking(server)))
}

async fn start(pool: &str) -> Gateway {
    Gateway::setup().pool("chat", "nim-llm", pool, &[]).start().await
}

/// Simulators that listen on one port of 127.0.0.1, 127.0.0.2 and so on.
async fn neighbours<const N: usize>() -> ([Simulator; N], u16) {
    loop {
        let port = free_address().port();
        let mut started = Vec::new();
        for i in 1..=N as u8 {
            let settings = Settings { listen: ([127, 0, 0, i], port).into(), ..quick() };
            started.extend(nimgate::sim::start(Kind::Llm, settings).await);
        }
        if let Ok(all) = <[Simulator; N]>::try_from(started) {
            return (all, port);
        }
    }
}

fn quick() -> Settings {
    let moment = std::time::Duration::from_millis(1);
    Settings { time_to_first_token: moment, token_interval: moment, ..Settings::default() }
}

/// The names of the only pool's endpoints.
async fn names(gateway: &Gateway) -> Vec<String> {
    let state = gateway.admin("/state").await.json();
    let endpoints = state["pools"][0]["endpoints"].as_array().unwrap();
    endpoints.iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect()
}

async fn has(gateway: &Gateway, wanted: &[SocketAddr]) {
    let wanted: Vec<String> = wanted.iter().map(SocketAddr::to_string).collect();
    until("the endpoints are these", async || names(gateway).await == wanted).await;
}

fn chats(backend: &Simulator) -> u64 {
    backend.seen().requests(CHAT)
}

/// Asks without a pause while `script` runs; no request may fail.
async fn under_load(gateway: &Gateway, script: impl Future<Output = ()>) {
    let is_done = Cell::new(false);
    let load = async {
        let mut count = 0;
        while !is_done.get() {
            let answer = gateway.chat(false).send().await;
            assert_eq!(answer.status, 200, "request {count}: {:?} {}", answer.fault(), answer.text());
            count += 1;
        }
        assert!(count > 0);
    };
    tokio::join!(load, async {
        script.await;
        is_done.set(true);
    });
}

#[tokio::test]
async fn endpoints_of_a_name_come_and_go_and_no_request_fails() {
    let server = NameServer::start().await;
    let ([first, second, third], port) = neighbours().await;
    let gateway = start(&by_name(&server, port)).await;
    // Nothing is known yet.
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("upstream_unresolved", "network")));
    assert_eq!(gateway.admin("/readyz").await.status, 503);
    server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1])]);
    has(&gateway, &[first.address()]).await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    let stream = gateway.chat(true).header("x-sim-gate", "g").begin().await;
    assert_eq!(stream.status(), 200);
    under_load(&gateway, async {
        server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1]), a([127, 0, 0, 2])]);
        until("the second takes requests", async || chats(&second) > 0).await;
        let held = gateway.metric("nimgate_endpoint_in_flight{endpoint=\"127.0.0.1:").await;
        assert!(held >= 1.0, "one that stays keeps what it has");
        server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 3]), a([127, 0, 0, 2])]);
        has(&gateway, &[second.address(), third.address()]).await;
        until("the third takes requests", async || chats(&third) > 0).await;
        let (asked, probed) = (chats(&first), first.seen().requests(PROBE));
        let before = [&second, &third].map(|s| (chats(s), s.seen().requests(PROBE)));
        until("the others are asked and probed", async || {
            let now = [&second, &third].map(|s| (chats(s), s.seen().requests(PROBE)));
            (0..2).all(|i| now[i].0 > before[i].0 + 5 && now[i].1 > before[i].1 + 3)
        })
        .await;
        assert_eq!((chats(&first), first.seen().requests(PROBE)), (asked, probed), "one that went is left alone");
    })
    .await;
    (0..100).for_each(|_| first.open_gate("g"));
    let whole = stream.into_body().collect().await.unwrap().to_bytes();
    assert!(whole.ends_with(b"data: [DONE]\n\n"), "a stream on one that went finishes");
    for path in [CHAT, PROBE, "/v1/metrics"] {
        assert_eq!(second.seen().last_of(path).unwrap().headers["host"], format!("{NAME}:{port}"), "{path}");
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_before_its_name_does_costs_no_request() {
    let server = NameServer::start().await;
    let ([first, second], port) = neighbours().await;
    server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1]), a([127, 0, 0, 2])]);
    let gateway = start(&by_name(&server, port)).await;
    has(&gateway, &[first.address(), second.address()]).await;
    second.kill();
    under_load(&gateway, async {
        until("its probes tell", async || gateway.metric("nimgate_endpoint_healthy").await == 1.0).await;
        server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1])]);
        has(&gateway, &[first.address()]).await;
    })
    .await;
}

#[tokio::test]
async fn what_no_name_server_answers_well_keeps_its_last_endpoints() {
    let server = NameServer::start().await;
    let backend = simulator(Kind::Llm).await;
    let bad = [
        Say::Silence,
        Say::Garbage,
        Say::Code(ResponseCode::NXDomain),
        Say::Code(ResponseCode::ServFail),
        Say::Records(0, Vec::new()),
    ];
    let mut setup = Gateway::setup();
    for i in 0..bad.len() {
        let source = format!("dns: {{name: n{i}.test., port: {}}}", backend.address().port());
        let pool = format!(
            "models: [{{id: m{i}, backend_model: meta/llama-3.1-8b-instruct}}]\ndiscovery: {{{source}, {}}}\nmetrics: {{enabled: false}}",
            asking(&server)
        );
        setup = setup.pool(&format!("p{i}"), "nim-llm", &pool, &[]);
        server.records(&format!("n{i}.test"), RecordType::A, 0, [a([127, 0, 0, 1])]);
    }
    let gateway = setup.start().await;
    let healthy = async || gateway.metric("nimgate_endpoint_healthy").await;
    until("all have an endpoint", async || healthy().await == bad.len() as f64).await;
    for (i, say) in bad.iter().enumerate() {
        server.say(&format!("n{i}.test"), RecordType::A, say.clone());
    }
    let has_failed = |i: usize| {
        let pool = format!("\"p{i}\"");
        gateway.output().lines().any(|line| line.contains("discovery fails") && line.contains(&pool))
    };
    until("all have failed", async || (0..bad.len()).all(has_failed)).await;
    for i in 0..bad.len() {
        let body = json!({"model": format!("m{i}"), "messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
        assert_eq!(gateway.post(CHAT, &body).send().await.status, 200, "pool {i}");
    }
    assert_eq!(healthy().await, bad.len() as f64);
    server.records("n0.test", RecordType::A, 0, [a([127, 0, 0, 1]), a([127, 0, 0, 2])]);
    until("a name server that is back is heard", async || names(&gateway).await.len() == 2).await;
}

#[tokio::test]
async fn services_of_a_name_have_their_own_ports() {
    let server = NameServer::start().await;
    let (first, second) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let target = |backend: &Simulator, host: &str| srv(1, 1, backend.address().port(), host);
    let service = "_http._tcp.nim.test";
    server.records(service, RecordType::SRV, 0, [target(&first, "one.test."), target(&second, "two.test.")]);
    for host in ["one.test", "two.test"] {
        server.records(host, RecordType::A, 0, [a([127, 0, 0, 1])]);
    }
    let gateway = start(&found(&format!("srv: {{name: {service}}}, {}", asking(&server)))).await;
    until("both are found", async || names(&gateway).await.len() == 2).await;
    under_load(&gateway, async {
        until("both take requests", async || chats(&first) > 0 && chats(&second) > 0).await;
        server.records(service, RecordType::SRV, 0, [target(&second, "two.test.")]);
        has(&gateway, &[second.address()]).await;
    })
    .await;
    let host = second.seen().last_of(CHAT).unwrap().headers["host"].clone();
    assert_eq!(host, format!("two.test:{}", second.address().port()));
}

#[tokio::test]
async fn what_is_found_is_verified_by_the_name_it_was_found_by() {
    let directory = tempfile::tempdir().unwrap();
    certificate(directory.path(), "nim", NAME);
    let backend = simulator(Kind::Llm).await;
    let port = tls_front(directory.path(), "nim", backend.address()).await;
    let server = NameServer::start().await;
    server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1])]);
    let secure = format!("{}, scheme: https", asking(&server));
    let right = found(&format!("dns: {{name: {NAME}, port: {port}}}, {secure}")) + "\ntls: {ca_file: nim.ca}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", &right, &[]).start_in(directory).await;
    until("it is found", async || !names(&gateway).await.is_empty()).await;
    until("its probes succeed", async || backend.seen().requests(PROBE) > 2).await;
    assert_eq!(gateway.metric("nimgate_endpoint_healthy").await, 1.0);
    assert_eq!(gateway.chat(false).send().await.status, 200);
    server.records("other.test", RecordType::A, 0, [a([127, 0, 0, 1])]);
    let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
    replace(&gateway.path("nimgate.yaml"), &config.replace("name: nim.test", "name: other.test"));
    until("another name is another endpoint", async || gateway.metric("nimgate_config_generation").await == 2.0).await;
    until("it is found", async || !names(&gateway).await.is_empty()).await;
    until("its probes fail", async || gateway.metric("nimgate_endpoint_healthy").await == 0.0).await;
    assert_eq!(gateway.chat(false).send().await.status, 502);
}

#[tokio::test]
async fn a_reload_keeps_what_was_found() {
    let server = NameServer::start().await;
    let ([first, second], port) = neighbours().await;
    server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1])]);
    let gateway = start(&by_name(&server, port)).await;
    has(&gateway, &[first.address()]).await;
    let _held = gateway.chat(true).header("x-sim-gate", "never").begin().await;
    server.say(NAME, RecordType::A, Say::Silence);
    let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
    let file = gateway.path("nimgate.yaml");
    let generation = async |wanted: f64| {
        until("it is loaded", async || gateway.metric("nimgate_config_generation").await == wanted).await;
    };
    under_load(&gateway, async {
        // What has nothing to do with the source; how it is followed.
        let other = config.replace("affinity: 0", "affinity: 0, choices: 4");
        for (text, wanted) in [(&other, 2.0), (&other.replace("min_ttl_ms: 100", "min_ttl_ms: 200"), 3.0)] {
            replace(&file, text);
            generation(wanted).await;
            assert_eq!(names(&gateway).await, [first.address().to_string()]);
            assert!(gateway.metric("nimgate_endpoint_in_flight").await >= 1.0, "its load is kept");
        }
        server.records(NAME, RecordType::A, 0, [a([127, 0, 0, 1]), a([127, 0, 0, 2])]);
        has(&gateway, &[first.address(), second.address()]).await;
        let probed = second.seen().requests(PROBE);
        until("what comes later is probed", async || second.seen().requests(PROBE) > probed + 2).await;
    })
    .await;
    replace(&file, &config.replace(NAME, "gone.test"));
    generation(4.0).await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "upstream_unresolved", "another source has not answered");
    let asked = || server.asked(NAME, RecordType::A).len();
    let before = asked();
    let others = || server.asked("gone.test", RecordType::A).len();
    until("the new source is asked", async || others() > 3).await;
    assert!(asked() <= before + 1, "the old source is followed no more");
}

#[tokio::test]
async fn a_pool_of_256_works_and_shrinks() {
    let server = NameServer::start().await;
    let everywhere = simulator_with(Kind::Llm, |s| s.listen = ([0, 0, 0, 0], 0).into()).await;
    let port = everywhere.address().port();
    let all: Vec<_> = (0..=255).map(|i| a([127, 0, 1, i])).collect();
    server.records(NAME, RecordType::A, 0, all);
    let pool = by_name(&server, port).replace("interval_ms: 50", "interval_ms: 1000");
    let gateway = start(&pool).await;
    until("all are found", async || names(&gateway).await.len() == 256).await;
    under_load(&gateway, async {
        until("many take requests", async || chats(&everywhere) > 300).await;
        until("all are probed", async || everywhere.seen().requests(PROBE) > 256).await;
        server.records(NAME, RecordType::A, 0, [a([127, 0, 1, 7])]);
        has(&gateway, &[([127, 0, 1, 7], port).into()]).await;
    })
    .await;
    let used: std::collections::BTreeSet<String> =
        gateway.records().iter().filter_map(|r| r["endpoint"].as_str().map(str::to_owned)).collect();
    assert!(used.len() > 100, "{} endpoints took requests", used.len());
}

/// A slice whose endpoints listen there.
fn listening(name: &str, port: u16, endpoints: &[Value]) -> Value {
    let mut slice = slice(name, endpoints);
    slice["ports"][1]["port"] = port.into();
    slice
}

#[tokio::test]
async fn slices_of_a_service_come_and_go_and_no_request_fails() {
    let ([first, second, third], port) = neighbours().await;
    let slice = |name: &str, endpoints: &[Value]| listening(name, port, endpoints);
    let server = ApiServer::start(Vec::new()).await;
    let directory = tempfile::tempdir().unwrap();
    certificate(directory.path(), "api", "127.0.0.1");
    let front = tls_front(directory.path(), "api", server.url()[7..].parse().unwrap()).await;
    std::fs::write(directory.path().join("token"), "t0ken").unwrap();
    let cluster = format!("cluster: {{url: 'https://127.0.0.1:{front}', ca_file: api.ca, token_file: token}}");
    let pool = found(&format!("kubernetes: {{namespace: ml, service: nim, port: http}}, {cluster}"));
    let gateway = Gateway::setup().pool("chat", "nim-llm", &pool, &[]).start_in(directory).await;
    until("it is watched", async || server.watches() > 0).await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "upstream_unresolved");
    server.event("ADDED", &slice("a", &[ready("127.0.0.1")]));
    has(&gateway, &[first.address()]).await;
    assert_eq!(server.requests()[0].1, "Bearer t0ken");
    let stream = gateway.chat(true).header("x-sim-gate", "g").begin().await;
    under_load(&gateway, async {
        server.event("ADDED", &slice("b", &[ready("127.0.0.2"), ready("127.0.0.3")]));
        has(&gateway, &[first.address(), second.address(), third.address()]).await;
        until("all take requests", async || [&second, &third].iter().all(|s| chats(s) > 0)).await;
        let terminating = endpoint("127.0.0.3", &json!({"ready": false, "serving": true, "terminating": true}));
        server.event("MODIFIED", &slice("b", &[ready("127.0.0.2"), terminating]));
        has(&gateway, &[first.address(), second.address()]).await;
        let watches = server.watches();
        server.end(true);
        until("it is watched again", async || server.watches() > watches).await;
        server.event("DELETED", &slice("a", &[]));
        has(&gateway, &[second.address()]).await;
        // What can not be read is listed anew.
        server.list(vec![slice("c", &[ready("127.0.0.3")])]);
        server.send("no event\n");
        has(&gateway, &[third.address()]).await;
    })
    .await;
    (0..100).for_each(|_| first.open_gate("g"));
    let whole = stream.into_body().collect().await.unwrap().to_bytes();
    assert!(whole.ends_with(b"data: [DONE]\n\n"), "a stream on one that went finishes");
    assert_eq!(third.seen().last_of(CHAT).unwrap().headers["host"], format!("nim.ml.svc:{port}"));
    until("it is watched again", async || server.watches() > 2).await;
    server.event("DELETED", &slice("c", &[]));
    has(&gateway, &[]).await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "upstream_unresolved", "the API server knows");
}
