//! Large media of requests to a function: uploaded beside the body, and deleted whatever becomes of the request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use nimgate::sim::{ECHO_FUNCTION, FAILING_FUNCTION, SLOW_FUNCTION, Sighting};
use serde_json::{Value, json};

use crate::support::*;

const UPSTREAM_KEY: &str = "nvapi-upstream-secret";
const MODEL: &str = "nvidia/cosmos-reason1-7b";
const CHAT: &str = "/v1/chat/completions";
const ASSETS: &str = "/v2/nvcf/assets";

/// A gateway with a vision model that is a function, media above 1 KiB being uploaded.
async fn vision(backend: &Simulator, function: &str) -> Gateway {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    let pool = format!(
        "kind: nvcf\nfunction: {{id: {function}, invocation: pexec}}\nmodels: [{{id: eyes, backend_model: {MODEL}}}]\n\
         credential: {{secret: {{file: upstream.key}}}}\nassets: {{above_kib: 1}}"
    );
    Gateway::setup().pool("vision", "nim-vlm", &pool, &[&backend.url()]).start_in(directory).await
}

fn url(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(bytes))
}

/// A request for a look at these images.
fn look(images: &[&str]) -> Value {
    let part = |url: &&str| json!({"type": "image_url", "image_url": {"url": url}});
    let parts: Vec<Value> = images.iter().map(part).collect();
    json!({"model": "eyes", "messages": [{"role": "user", "content": parts}]})
}

fn large() -> Value {
    look(&[&url("image/png", &[7; 2000])])
}

/// What the backend saw by this method at a path that begins so.
fn seen(backend: &Simulator, method: &Method, path: &str) -> Vec<Sighting> {
    let all = backend.seen().history().into_iter();
    all.filter(|seen| seen.method == *method && seen.path.starts_with(path)).collect()
}

/// Waits until all assets that were made are deleted again, and there were so many.
async fn until_deleted(backend: &Simulator, count: usize) {
    until("all assets are deleted", async || {
        let made: Vec<Sighting> = seen(backend, &Method::POST, ASSETS);
        made.len() == count && seen(backend, &Method::DELETE, ASSETS).len() == count
    })
    .await;
    for deletion in seen(backend, &Method::DELETE, ASSETS) {
        assert_eq!(deletion.headers["authorization"], format!("Bearer {UPSTREAM_KEY}"));
    }
}

#[tokio::test]
async fn large_media_go_beside_the_body_and_are_deleted_after_use() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = vision(&backend, ECHO_FUNCTION).await;
    let (png, jpg) = (vec![7; 3000], (0..5000).map(|at| at as u8).collect::<Vec<u8>>());
    let (first, small, second) = (url("image/png", &png), url("image/png", &[1; 1000]), url("image/jpeg", &jpg));
    let elsewhere = "https://example.com/cat.png";
    let body = look(&[&first, &small, elsewhere, &second]);
    let answer = gateway.post(CHAT, &body).send().await;
    assert_eq!((answer.status, answer.fault()), (200, ("", "")), "{}", answer.text());

    let puts = seen(&backend, &Method::PUT, "/_store/");
    let ids: Vec<&str> = puts.iter().map(|put| put.path.rsplit('/').next().unwrap()).collect();
    let invocation = seen(&backend, &Method::POST, "/v2/nvcf/pexec/");
    let [invocation] = &invocation[..] else { panic!("invoked {} times", invocation.len()) };
    let references = [format!("data:image/png;asset_id,{}", ids[0]), format!("data:image/jpeg;asset_id,{}", ids[1])];
    let mut wanted = look(&[&references[0], &small, elsewhere, &references[1]]);
    wanted["model"] = json!(MODEL);
    assert_eq!(serde_json::from_slice::<Value>(&invocation.body).unwrap(), wanted);
    assert_eq!(invocation.headers["nvcf-input-asset-references"], ids.join(","));
    assert_eq!(invocation.headers["nvcf-function-asset-ids"], ids.join(","));

    for (put, (kind, bytes)) in puts.iter().zip([("image/png", &png), ("image/jpeg", &jpg)]) {
        assert_eq!((&put.headers["content-type"], &put.body), (&http::HeaderValue::from_static(kind), bytes));
        assert_eq!(put.headers["x-amz-meta-nvcf-asset-description"], "input");
        assert!(!put.headers.contains_key("authorization"), "a store takes one way to be authorised");
    }
    for created in seen(&backend, &Method::POST, ASSETS) {
        assert_eq!(created.headers["authorization"], format!("Bearer {UPSTREAM_KEY}"));
        assert_eq!(created.headers["x-request-id"], answer.header("x-request-id"));
    }
    until_deleted(&backend, 2).await;
    let count = async |result: &str| {
        gateway.metric(&format!("nimgate_assets_total{{pool=\"vision\",result=\"{result}\"}}")).await
    };
    until("deletions are counted", async || count("deleted").await == 2.0).await;
    assert_eq!((count("uploaded").await, count("failed").await, count("left").await), (2.0, 0.0, 0.0));
    gateway.record_of(answer.header("x-request-id")).await;
    let log = std::fs::read_to_string(gateway.path("access.log")).unwrap() + &gateway.output();
    assert!(!log.contains("X-Amz") && !log.contains("_store"), "{log}");

    // Nothing above the size: nothing beside the body.
    let answer = gateway.post(CHAT, &look(&[&small, &small])).send().await;
    assert_eq!((answer.status, seen(&backend, &Method::POST, ASSETS).len()), (200, 2));
    let last = backend.seen().last_of(&invocation.path).unwrap();
    assert!(!last.headers.contains_key("nvcf-input-asset-references"));
}

#[tokio::test]
async fn a_function_that_fails_leaves_no_asset() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = vision(&backend, FAILING_FUNCTION).await;
    let answer = gateway.post(CHAT, &large()).send().await;
    assert_eq!((answer.status, answer.fault().1), (422, "inference-service"), "{}", answer.text());
    until_deleted(&backend, 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_leaves_no_asset() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = vision(&backend, SLOW_FUNCTION).await;
    // While the function works.
    tokio::select! {
        answer = gateway.post(CHAT, &large()).header("x-sim-gate-work", "w").send() => panic!("{}", answer.text()),
        () = until("the function works", async || !seen(&backend, &Method::POST, "/v2/nvcf/pexec/").is_empty()) => {}
    }
    until_deleted(&backend, 1).await;
    // While the store takes the bytes.
    backend.fault_times("hang", 1, Some("/_store/")).unwrap();
    tokio::select! {
        answer = gateway.post(CHAT, &large()).send() => panic!("{}", answer.text()),
        () = until("bytes are on their way", async || seen(&backend, &Method::PUT, "/_store/").len() == 2) => {}
    }
    until_deleted(&backend, 2).await;
    // While the asset is made: nobody knows its name before.
    backend.fault_times("delay=500", 1, Some(ASSETS)).unwrap();
    tokio::select! {
        answer = gateway.post(CHAT, &large()).send() => panic!("{}", answer.text()),
        () = until("it is asked for", async || seen(&backend, &Method::POST, ASSETS).len() == 3) => {}
    }
    until_deleted(&backend, 3).await;
    assert_eq!(seen(&backend, &Method::POST, "/v2/nvcf/pexec/").len(), 1);
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_upload_that_fails_is_the_platforms_or_the_networks() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = vision(&backend, ECHO_FUNCTION).await;
    for (fault, path, status, label, blame) in [
        ("status=500", ASSETS, 502, "platform_error", "platform"),
        ("rate-limit", ASSETS, 502, "platform_rate_limited", "platform"),
        ("cut", ASSETS, 502, "upstream_closed", "network"),
        ("truncated-json", ASSETS, 502, "answer_incomplete", "platform"),
        ("status=403", "/_store/", 502, "platform_error", "platform"),
        ("cut", "/_store/", 502, "upstream_closed", "network"),
    ] {
        backend.fault_times(fault, 1, Some(path)).unwrap();
        let answer = gateway.post(CHAT, &large()).send().await;
        let shown = format!("{fault} at {path}: {}", answer.text());
        assert_eq!((answer.status, answer.fault()), (status, (label, blame)), "{shown}");
    }
    assert!(seen(&backend, &Method::POST, "/v2/nvcf/pexec/").is_empty());
    let made = async || seen(&backend, &Method::PUT, "/_store/").len();
    until("what was made is deleted", async || seen(&backend, &Method::DELETE, ASSETS).len() == made().await).await;
    assert_eq!(gateway.metric("nimgate_assets_total{pool=\"vision\",result=\"failed\"}").await, 6.0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_deletion_that_fails_is_tried_again() {
    let backend = simulator(Kind::Nvcf).await;
    let gateway = vision(&backend, ECHO_FUNCTION).await;
    let held = gateway.post(CHAT, &large()).header("x-sim-fault", "delay=300").send();
    let (answer, ()) = tokio::join!(held, async {
        until("it is invoked", async || !seen(&backend, &Method::POST, "/v2/nvcf/pexec/").is_empty()).await;
        backend.fault_times("status=503", 1, Some(ASSETS)).unwrap();
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    until("it is counted", async || {
        gateway.metric("nimgate_assets_total{pool=\"vision\",result=\"deleted\"}").await == 1.0
    })
    .await;
    assert_eq!(seen(&backend, &Method::DELETE, ASSETS).len(), 2);
}
