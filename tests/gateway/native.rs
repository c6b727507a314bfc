//! NVCF's own API through the gateway: every operation, where it goes and who may, and who may poll what.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Method;
use nimgate::catalogue::{Catalogue, Operation};
use nimgate::sim::{ECHO_FUNCTION, LARGE_FUNCTION, LLM_FUNCTION, PROGRESS_FUNCTION, SLOW_FUNCTION};
use serde_json::{Value, json};

use crate::redis::*;
use crate::sdk::Script;
use crate::support::*;

const UPSTREAM_KEY: &str = "nvapi-upstream-secret";
const ALICE: &str = "ngk_alice_0123456789abcdef";
const BOB: &str = "ngk_bob_0123456789abcdef";
const ASSET: &str = "a55e7000-1111-4222-8333-444455556666";
/// No simulator and no gateway has given it to anybody.
const STRANGE_ID: &str = "c0ffee00-1234-4abc-9def-0123456789ab";

/// A pool of kind nvcf without a function.
fn pool(rest: &str) -> String {
    format!("kind: nvcf\ncredential: {{secret: {{file: upstream.key}}}}\n{rest}")
}

/// A directory that holds the organisation's credential.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    directory
}

/// A gateway with one pool of the native API, and two callers.
async fn native(backend: &Simulator, rest: &str) -> Gateway {
    two_callers(backend, rest).start_in(directory()).await
}

fn two_callers(backend: &Simulator, rest: &str) -> Setup {
    let scopes = "scopes: [invoke_function, queue_details]";
    Gateway::setup().pool("nvcf", "nvcf", &pool(rest), &[&backend.url()]).key(ALICE, scopes).key(BOB, scopes)
}

fn pexec(function: &str) -> String {
    format!("/v2/nvcf/pexec/functions/{function}")
}

/// Begins a job of the slow function that goes on until the gate `w` opens; its id.
async fn job(gateway: &Gateway, key: &str) -> String {
    let ask = gateway.post(&pexec(SLOW_FUNCTION), &json!({})).key(key).header("x-sim-gate-work", "w");
    let answer = ask.header("nvcf-poll-seconds", "1").send().await;
    assert_eq!((answer.status, answer.fault()), (202, ("", "")), "{}", answer.text());
    answer.header("nvcf-reqid").to_owned()
}

async fn poll(gateway: &Gateway, path: &str, id: &str, key: &str) -> Answer {
    gateway.get(&path.replace("ID", id)).key(key).header("nvcf-poll-seconds", "1").send().await
}

/// A documented request of an operation: path, and body if it has one.
fn documented(operation: &Operation) -> (String, Option<Value>) {
    let example = operation.examples.iter().find(|example| example["rule"] == "documented").unwrap();
    let mut path = operation.path.clone();
    for (name, value) in example["path"].as_object().into_iter().flatten() {
        path = path.replace(&format!("{{{name}}}"), value.as_str().unwrap());
    }
    (path, example.get("body").cloned())
}

#[tokio::test]
async fn every_operation_goes_to_its_domain_with_the_credential_of_the_organisation_and_needs_its_scope() {
    let catalogue = Catalogue::load(None, nimgate::config::yaml::parse_value, 1 << 20).unwrap();
    let of = |name: &str| -> Vec<&Operation> {
        catalogue.apis[name].operations.iter().map(|index| catalogue.operation(*index)).collect()
    };
    let operations: Vec<&Operation> = of("nvcf").into_iter().chain(of("nvct")).collect();
    let scopes: BTreeSet<&String> = operations.iter().flat_map(|operation| &operation.scopes).collect();
    let [invocation, management, tasks] =
        [simulator(Kind::Nvcf).await, simulator(Kind::Nvcf).await, simulator(Kind::Nvcf).await];
    let mut setup = Gateway::setup()
        .pool("invocation", "nvcf", &pool("polls: any"), &[&invocation.url()])
        .pool("management", "nvcf", &pool("domain: management\npolls: any"), &[&management.url()])
        .pool("tasks", "nvct", &pool(""), &[&tasks.url()]);
    // For each scope a key that has it alone, and for each set of scopes one that has all others.
    let only = |scope: &str| format!("ngk_only-{}_0123456789abcdef", scope.replace('_', "-"));
    let without = |operation: &Operation| format!("ngk_not-{}_0123456789abcdef", operation.scopes[0].replace('_', "-"));
    for scope in &scopes {
        setup = setup.key(&only(scope), &format!("scopes: [{scope}]"));
    }
    let mut seen = BTreeSet::new();
    for operation in &operations {
        if seen.insert(without(operation)) {
            let others = scopes.iter().filter(|scope| !operation.scopes.contains(scope));
            let others: Vec<&str> = others.map(|scope| scope.as_str()).collect();
            setup = setup.key(&without(operation), &format!("scopes: [{}]", others.join(", ")));
        }
    }
    let gateway = setup.start_in(directory()).await;

    for operation in operations {
        let (path, body) = documented(operation);
        let shown = format!("{} {path}", operation.method);
        let backend = match (operation.api.as_str(), operation.domain.as_deref()) {
            ("nvct", _) => &tasks,
            (_, Some("management")) => &management,
            _ => &invocation,
        };
        let ask = |key: &str| {
            let ask = gateway.ask(operation.method.clone(), &path).key(key).header("x-sim-fault", "status=418");
            match &body {
                Some(body) => ask.header("content-type", "application/json").body(body.to_string()),
                None => ask,
            }
        };
        let there = path.replace("/v1/status/", "/v2/nvcf/pexec/status/");
        for scope in &operation.scopes {
            let (before, all) = (backend.seen().requests(&there), backend.seen().total());
            let answer = ask(&only(scope)).send().await;
            assert_eq!(answer.status, 418, "{shown}: {}", answer.text());
            assert_eq!((backend.seen().requests(&there), backend.seen().total()), (before + 1, all + 1), "{shown}");
            let sighting = backend.seen().last_of(&there).unwrap();
            assert_eq!(sighting.method, operation.method, "{shown}");
            assert_eq!(sighting.headers["authorization"], format!("Bearer {UPSTREAM_KEY}"), "{shown}");
        }
        let all = [&invocation, &management, &tasks].map(|backend| backend.seen().total());
        let refused = ask(&without(operation)).send().await;
        assert_eq!((refused.status, refused.fault().0), (403, "not_allowed"), "{shown}: {}", refused.text());
        assert_eq!([&invocation, &management, &tasks].map(|backend| backend.seen().total()), all, "{shown}");
    }
    assert!(invocation.seen().total() > 10 && management.seen().total() > 50 && tasks.seen().total() > 10);
}

#[tokio::test]
async fn a_pool_of_one_domain_has_nothing_of_the_other() {
    let backend = simulator(Kind::Nvcf).await;
    let setup = Gateway::setup().pool("management", "nvcf", &pool("domain: management"), &[&backend.url()]);
    let gateway = setup.start_in(directory()).await;
    for (path, status, label) in [
        ("/v2/nvcf/functions", 200, ""),
        ("/pools/management/v2/nvcf/functions", 200, ""),
        ("/v2/nvcf/assets", 404, "no_default_pool"),
        ("/pools/management/v2/nvcf/assets", 404, "path_not_found"),
    ] {
        let answer = gateway.get(path).send().await;
        assert_eq!((answer.status, answer.fault().0), (status, label), "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn what_belongs_to_workers_or_other_accounts_is_never_passed_on() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "").await;
    for path in [
        "/v2/nvcf/worker/request-attach",
        "/pools/nvcf/v2/nvcf/worker/request-attach",
        "/v2/nvcf/worker%2Frequest-attach",
        "/v2/nvcf/accounts/nca/functions",
    ] {
        for method in [Method::GET, Method::POST] {
            let answer = gateway.ask(method, path).send().await;
            assert_eq!((answer.status, answer.fault().0), (404, "path_not_found"), "{path}");
            assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
        }
    }
    let dots = gateway.get("/v2/nvcf/pexec/../worker/request-attach").send().await;
    assert_eq!((dots.status, dots.fault().0), (400, "malformed_request"));
    // The platform wants a key on every method, which browsers do not send with this one.
    let preflight = gateway.ask(Method::OPTIONS, &pexec(ECHO_FUNCTION)).anonymous();
    let preflight = preflight.header("origin", "https://app.example").header("access-control-request-method", "POST");
    assert_eq!(preflight.send().await.status, 204);
    assert_eq!(backend.seen().total(), 0);
}

#[tokio::test]
async fn only_the_caller_who_made_a_request_may_poll_it() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "").await;
    let id = job(&gateway, ALICE).await;
    let paths = ["/v2/nvcf/pexec/status/ID", "/v1/status/ID", "/v2/nvcf/exec/status/ID", "/v2/nvcf/queues/ID/position"];
    let before = backend.seen().total();
    for path in paths {
        for (key, id) in [(BOB, id.as_str()), (BOB, &id.to_uppercase()), (ALICE, STRANGE_ID)] {
            let answer = poll(&gateway, path, id, key).await;
            assert_eq!((answer.status, answer.fault()), (404, ("request_not_found", "client")), "{path}");
            let problem = answer.json();
            assert_eq!((&problem["status"], &problem["title"]), (&json!(404), &json!("Not Found")), "{path}");
            assert!(!answer.text().contains("alice"), "{path}");
        }
    }
    assert_eq!(backend.seen().total(), before, "NVCF never hears of it");
    for path in ["/v2/nvcf/pexec/status/ID", "/v1/status/ID", "/pools/nvcf/v2/nvcf/exec/status/ID"] {
        let answer = poll(&gateway, path, &id, ALICE).await;
        assert_eq!((answer.status, answer.fault().0), (202, ""), "{path}: {}", answer.text());
    }
    backend.open_gate("w");
    assert_eq!(poll(&gateway, "/v1/status/ID", &id, ALICE).await.status, 200);
    let again = poll(&gateway, "/v1/status/ID", &id, ALICE).await;
    assert_eq!((again.status, again.fault().1), (404, "platform"), "the final answer is delivered once");
}

#[tokio::test]
async fn an_envelope_names_its_request_too() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "").await;
    let envelope = json!({"requestHeader": {"pollDurationSeconds": 1}, "requestBody": {}});
    let path = format!("/v2/nvcf/exec/functions/{SLOW_FUNCTION}");
    let answer = gateway.post(&path, &envelope).key(ALICE).header("x-sim-gate-work", "w").send().await;
    assert_eq!((answer.status, answer.header("nvcf-reqid")), (202, ""), "{}", answer.text());
    let id = answer.json()["reqId"].as_str().unwrap().to_owned();
    assert_eq!(poll(&gateway, "/v2/nvcf/exec/status/ID", &id, BOB).await.fault().0, "request_not_found");
    backend.open_gate("w");
    let done = poll(&gateway, "/v2/nvcf/exec/status/ID", &id, ALICE).await;
    assert_eq!((done.status, &done.json()["status"]), (200, &json!("fulfilled")), "{}", done.text());
}

#[tokio::test]
async fn a_pool_may_let_requests_of_nobody_be_polled() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "polls: any").await;
    let strange = poll(&gateway, "/v2/nvcf/pexec/status/ID", STRANGE_ID, BOB).await;
    assert_eq!((strange.status, strange.fault()), (404, ("platform_rejected", "platform")), "{}", strange.text());
    let id = job(&gateway, ALICE).await;
    let others = poll(&gateway, "/v2/nvcf/pexec/status/ID", &id, BOB).await;
    assert_eq!((others.status, others.fault().0), (404, "request_not_found"), "but not those of others");
}

#[tokio::test]
async fn replicas_tell_each_other_whose_a_request_is() {
    let backend = simulator(Kind::Nvcf).await;
    let mut redis = RedisServer::start().await;
    let replica = || {
        let top = format!("redis: {{addresses: ['{}'], timeout_ms: 200}}", redis.address());
        two_callers(&backend, "").top(&top).start_in(directory())
    };
    let [one, two, third] = [replica().await, replica().await, replica().await];
    for gateway in [&one, &two, &third] {
        until("Redis is there", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
    }
    let id = job(&one, ALICE).await;
    let path = "/v2/nvcf/pexec/status/ID";
    assert_eq!(poll(&two, path, &id, BOB).await.fault(), ("request_not_found", "client"));
    assert_eq!(poll(&two, path, &id, ALICE).await.status, 202);

    // By an envelope, whose id is seen before Redis is told.
    let envelope = json!({"requestHeader": {"pollDurationSeconds": 1}, "requestBody": {}});
    let exec = format!("/v2/nvcf/exec/functions/{SLOW_FUNCTION}");
    let answer = one.post(&exec, &envelope).key(ALICE).header("x-sim-gate-work", "v").send().await;
    let enclosed = answer.json()["reqId"].as_str().unwrap().to_owned();
    assert_eq!(poll(&two, "/v2/nvcf/exec/status/ID", &enclosed, ALICE).await.status, 202);

    let ttl: u64 = redis.command(&["TTL", &owner_key(&redis, &id)]).parse().unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");

    redis.stop();
    // Who knew it still does; who never did may not guess.
    assert_eq!(poll(&two, path, &id, ALICE).await.status, 202);
    let unknown = poll(&third, path, &id, ALICE).await;
    assert_eq!((unknown.status, unknown.fault()), (503, ("requests_unknown", "gateway")));
    assert_eq!(unknown.header("retry-after"), "1");
    backend.open_gate("w");
    assert_eq!(poll(&two, path, &id, ALICE).await.status, 200);
}

/// The key of Redis that holds the owner of a request.
fn owner_key(redis: &RedisServer, id: &str) -> String {
    let keys = redis.command(&["KEYS", &format!("*{}*", id.replace('-', ""))]);
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys.trim().to_owned()
}

#[tokio::test]
async fn a_hold_is_not_cut_by_the_time_of_the_first_byte() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "timeouts: {first_byte_ms: 300}").await;
    let begun = Instant::now();
    let ask = gateway.post(&pexec(SLOW_FUNCTION), &json!({})).key(ALICE).header("x-sim-gate-work", "w");
    let answer = ask.header("nvcf-poll-seconds", "2").send().await;
    assert_eq!((answer.status, answer.fault().0), (202, ""), "{}", answer.text());
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let envelope = json!({"requestHeader": {"pollDurationSeconds": 1}, "requestBody": {}});
    let exec = format!("/v2/nvcf/exec/functions/{SLOW_FUNCTION}");
    let enclosed = gateway.post(&exec, &envelope).key(ALICE).header("x-sim-gate-work", "w").send().await;
    assert_eq!(enclosed.status, 202, "{}", enclosed.text());
    assert_eq!(poll(&gateway, "/v1/status/ID", answer.header("nvcf-reqid"), ALICE).await.status, 202);
    // Nobody holds a list.
    let listed = gateway.get("/v2/nvcf/functions").header("x-sim-fault", "delay=1000").send().await;
    assert_eq!((listed.status, listed.fault().0), (504, "first_byte_timeout"));
}

#[tokio::test]
async fn documented_headers_pass_and_wrong_ones_are_refused() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "").await;
    let path = pexec(ECHO_FUNCTION);
    let ask = || gateway.post(&path, &json!({"a": 1})).key(ALICE);
    let passed = [
        ("nvcf-poll-seconds", "3600"),
        ("nvcf-input-asset-references", ASSET),
        ("nvcf-function-asset-ids", ASSET),
        ("accept", "text/event-stream"),
    ];
    passed.iter().fold(ask(), |ask, (name, value)| ask.header(name, value)).send().await;
    let seen = backend.seen().last_of(&path).unwrap();
    for (name, value) in passed {
        assert_eq!(seen.headers[name], value);
    }
    let before = backend.seen().total();
    for (name, value) in [
        ("nvcf-poll-seconds", "3601"),
        ("nvcf-poll-seconds", "-1"),
        ("nvcf-poll-seconds", "1.5"),
        ("nvcf-input-asset-references", "cat.png"),
        ("nvcf-function-asset-ids", "cat.png"),
    ] {
        let refused = ask().header(name, value).send().await;
        assert_eq!((refused.status, refused.fault().0), (400, "schema_violation"), "{name}: {value}");
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert_eq!(refused.json()["violations"][0]["pointer"], format!("header:{name}"));
    }
    assert_eq!(backend.seen().total(), before);
}

#[tokio::test]
async fn progress_and_presigned_urls_pass_untouched_and_no_secret_is_logged() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = native(&backend, "").await;
    let large = gateway.post(&pexec(LARGE_FUNCTION), &json!({})).key(ALICE).send().await;
    assert_eq!((large.status, large.fault()), (302, ("", "")));
    assert!(large.header("location").contains("X-Amz-Signature="), "{}", large.header("location"));
    let created = json!({"contentType": "image/png", "description": "x"});
    let asset = gateway.post("/v2/nvcf/assets", &created).key(ALICE).send().await;
    assert!(asset.text().contains("X-Amz-Signature="), "{}", asset.text());
    let ask = gateway.post(&pexec(PROGRESS_FUNCTION), &json!({})).key(ALICE).header("nvcf-poll-seconds", "5");
    let progress = ask.header("x-sim-work-ms", "400").send().await;
    assert_eq!((progress.status, progress.header("nvcf-percent-complete")), (202, "25"), "{}", progress.text());
    gateway.record_of(progress.header("x-request-id")).await;
    let log = std::fs::read_to_string(gateway.path("access.log")).unwrap();
    let state = gateway.admin("/state").await.text() + &gateway.admin("/metrics").await.text();
    for text in [log, gateway.output(), state] {
        for secret in ["X-Amz", "_store", UPSTREAM_KEY] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[tokio::test]
async fn langchains_own_polling_loop_works() {
    let backend = simulator_with(Kind::Nvcf, |settings| settings.time_to_first_token = Duration::from_secs(3)).await;
    let gateway = native(&backend, "").await;
    let root = format!("http://{}", gateway.address);
    let variables = [
        ("ENDPOINT", format!("{root}{}", pexec(LLM_FUNCTION))),
        ("STATUS", format!("{root}/v2/nvcf/pexec/status/{{request_id}}")),
        ("CALLER", ALICE.to_owned()),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let seen = Script::start("polling.py", &gateway, &variables).finish().await;
    assert!(seen["words"].as_u64().unwrap() > 0, "{seen}");
    let polls = backend.seen().history().into_iter().filter(|seen| seen.path.contains("/pexec/status/"));
    assert!(polls.count() >= 2, "one call outlasted several polls");
    assert_eq!(backend.seen().requests(&pexec(LLM_FUNCTION)), 1);
}

#[tokio::test]
async fn tasks_are_launched_watched_and_cancelled() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = Gateway::setup().pool("tasks", "nvct", &pool(""), &[&backend.url()]).start_in(directory()).await;
    for base in ["/v1/nvct", "/v2/orgs/my-org/nvct"] {
        let launched = gateway.post(&format!("{base}/tasks"), &json!({"name": "training"})).send().await;
        assert_eq!(launched.status, 200, "{}", launched.text());
        let id = launched.json()["task"]["id"].as_str().unwrap().to_owned();
        let task = format!("{base}/tasks/{id}");
        let bulk = gateway.post(&format!("{base}/tasks/bulk"), &json!({"taskIds": [id]})).send().await;
        assert_eq!(bulk.json()["tasks"][0]["status"], "QUEUED", "{}", bulk.text());
        let cancelled = gateway.ask(Method::POST, &format!("{task}/cancel")).send().await;
        assert_eq!(cancelled.json()["task"]["status"], "CANCELED", "{}", cancelled.text());
        for list in ["events", "results"] {
            assert!(gateway.get(&format!("{task}/{list}")).send().await.json()[list].is_array(), "{list}");
        }
        assert_eq!(gateway.ask(Method::DELETE, &task).send().await.status, 204);
        let gone = gateway.get(&task).send().await;
        assert_eq!((gone.status, gone.fault().1), (404, "platform"), "{}", gone.text());
    }
}
