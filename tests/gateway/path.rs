//! The path of a request: which operation, which pool, what the backend sees and what the caller gets back.

use http::Method;
use nimgate::sim::{ECHO_FUNCTION, LARGE_FUNCTION, LLM_FUNCTION, SLOW_FUNCTION};
use serde_json::json;

use crate::support::*;

const UPSTREAM_KEY: &str = "nvapi-upstream-secret";

/// A gateway before one simulator of each kind, as the demo has.
async fn all() -> (Vec<Simulator>, Gateway) {
    let kinds = [
        Kind::Llm,
        Kind::Vlm,
        Kind::Embedding,
        Kind::Reranking,
        Kind::CosmosPredict,
        Kind::CosmosEmbed1,
        Kind::Nvcf,
        Kind::Curator,
    ];
    let mut backends = Vec::new();
    for kind in kinds {
        backends.push(simulator(kind).await);
    }
    let url = |at: usize| backends[at].url();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    let secret = "credential: {secret: {file: upstream.key}}\nhealth: {enabled: false}";
    let function = |invocation: &str| {
        format!(
            "kind: nvcf\nfunction: {{id: {LLM_FUNCTION}, invocation: {invocation}}}\nmodels: [{{id: {invocation}, backend_model: meta/llama-3.1-8b-instruct}}]\n{secret}"
        )
    };
    let gateway = Gateway::setup()
        .pool(
            "chat",
            "nim-llm",
            "default: true\nmodels: [{id: meta/llama-3.1-8b-instruct, aliases: [fast]}]\nheaders: {x-team: blue}",
            &[&url(0)],
        )
        .pool("vision", "nim-vlm", "models: [{id: nvidia/cosmos-reason1-7b}]", &[&url(1)])
        .pool("text", "nim-embedding", "models: [{id: nvidia/nv-embedqa-e5-v5}]", &[&url(2)])
        .pool("rerank", "nim-reranking", "models: [{id: nvidia/nv-rerankqa-mistral-4b-v3}]", &[&url(3)])
        .pool("predict", "cosmos-predict", "", &[&url(4)])
        .pool("video", "cosmos-embed1", "models: [{id: nvidia/cosmos-embed1}]", &[&url(5)])
        .pool("nvcf", "nvcf", &format!("kind: nvcf\n{secret}"), &[&url(6)])
        .pool("direct", "nim-llm", &function("direct"), &[&url(6)])
        .pool("pexec", "nim-llm", &function("pexec"), &[&url(6)])
        .pool("curator", "nemo-curator", &format!("kind: ngc\n{secret}"), &[&url(7)])
        .top("cors: {allow_origins: ['https://app.example']}")
        .start_in(directory)
        .await;
    (backends, gateway)
}

#[tokio::test]
async fn every_family_answers_through_one_base_url() {
    let (_backends, gateway) = all().await;
    for (pool, path, body) in [
        ("chat", "/v1/chat/completions", chat(false)),
        ("chat", "/v1/completions", json!({ "model": "meta/llama-3.1-8b-instruct", "prompt": "x" })),
        (
            "vision",
            "/v1/chat/completions",
            json!({ "model": "nvidia/cosmos-reason1-7b", "messages": [{ "role": "user", "content": "x" }] }),
        ),
        ("text", "/v1/embeddings", json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": "x", "input_type": "query" })),
        ("video", "/v1/embeddings", json!({ "model": "nvidia/cosmos-embed1", "input": "x", "request_type": "query" })),
        (
            "rerank",
            "/v1/ranking",
            json!({ "model": "nvidia/nv-rerankqa-mistral-4b-v3", "query": { "text": "q" }, "passages": [{ "text": "p" }] }),
        ),
        ("predict", "/v1/infer", json!({ "prompt": "x" })),
        (
            "direct",
            "/v1/chat/completions",
            json!({ "model": "direct", "messages": [{ "role": "user", "content": "x" }] }),
        ),
        (
            "pexec",
            "/v1/chat/completions",
            json!({ "model": "pexec", "messages": [{ "role": "user", "content": "x" }] }),
        ),
        (
            "curator",
            "/v1/cosmos/datasets",
            json!({ "name": "n", "description": "d", "jobSpec": { "pipeline": "split", "args": {} } }),
        ),
    ] {
        let answer = gateway.post(path, &body).send().await;
        assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, pool), "{path}: {}", answer.text());
        assert_eq!(answer.fault(), ("", ""));
    }
}

#[tokio::test]
async fn both_documented_create_paths_of_curator_work() {
    let (backends, gateway) = all().await;
    let s3 = json!({
        "name": "n", "description": "d", "s3InputPrefix": "s3://in/", "s3OutputPrefix": "s3://out/",
        "s3Config": "W2RlZmF1bHRdCg==", "jobSpec": { "pipeline": "split", "args": {} },
    });
    for path in ["/v1/cosmos/datasets", "/v1/cosmos/datasets/datasets"] {
        let answer = gateway.post(path, &s3).send().await;
        assert!(answer.json()["id"].is_string(), "{path}: {}", answer.text());
        assert_eq!(backends[7].seen().requests(path), 1);
    }
}

#[tokio::test]
async fn an_alias_reaches_the_backend_as_the_model_that_it_knows() {
    let (backends, gateway) = all().await;
    let mut body = chat(false);
    body["model"] = "fast".into();
    let answer = gateway.post("/v1/chat/completions", &body).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = backends[0].seen().last_of("/v1/chat/completions").unwrap();
    let mut expected = body.to_string();
    expected = expected.replace("\"fast\"", "\"meta/llama-3.1-8b-instruct\"");
    assert_eq!(String::from_utf8_lossy(&seen.body), expected, "all but the model passes byte for byte");
}

#[tokio::test]
async fn credentials_and_routing_headers_stay_on_their_side() {
    let (backends, gateway) = all().await;
    let ask =
        gateway.chat(false).header("x-api-key", "other").header("x-forwarded-for", "1.2.3.4").header("cookie", "a=b");
    let ask = ask
        .header("function-id", "x")
        .header("nvcf-poll-seconds", "9")
        .header("x-kept", "yes")
        .header("x-request-id", "rid");
    let answer = ask.send().await;
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "rid"));
    let seen = backends[0].seen().last_of("/v1/chat/completions").unwrap();
    for dropped in ["authorization", "x-api-key", "x-forwarded-for", "cookie", "function-id", "nvcf-poll-seconds"] {
        assert!(!seen.headers.contains_key(dropped), "{dropped}");
    }
    for (kept, value) in [("x-kept", "yes"), ("x-team", "blue"), ("x-request-id", "rid")] {
        assert_eq!(seen.headers[kept], value);
    }
    assert_eq!(seen.headers["host"], backends[0].address().to_string());
    assert!(!answer.headers.values().any(|v| v.to_str().is_ok_and(|v| v.contains(UPSTREAM_KEY))));
}

#[tokio::test]
async fn nvcf_gets_its_own_credential_the_function_and_the_documented_headers() {
    let (backends, gateway) = all().await;
    let body = json!({ "model": "direct", "messages": [{ "role": "user", "content": "x" }] });
    assert_eq!(gateway.post("/v1/chat/completions", &body).send().await.status, 200);
    let seen = backends[6].seen().last_of("/v1/chat/completions").unwrap();
    assert_eq!(seen.headers["authorization"], format!("Bearer {UPSTREAM_KEY}"));
    assert_eq!(seen.headers["function-id"], LLM_FUNCTION);

    let path = format!("/v2/nvcf/pexec/functions/{ECHO_FUNCTION}");
    let answer = gateway.post(&path, &json!({ "a": 1 })).header("nvcf-poll-seconds", "5").send().await;
    assert_eq!((answer.status, answer.header("nvcf-status")), (200, "fulfilled"), "{}", answer.text());
    assert_eq!(backends[6].seen().last_of(&path).unwrap().headers["nvcf-poll-seconds"], "5");
}

#[tokio::test]
async fn pexec_answers_202_and_302_as_nvcf_does() {
    let (backends, gateway) = all().await;
    let slow = format!("/v2/nvcf/pexec/functions/{SLOW_FUNCTION}");
    let ask = gateway.post(&slow, &json!({})).header("nvcf-poll-seconds", "1").header("x-sim-gate-work", "w");
    let answer = ask.send().await;
    assert_eq!((answer.status, answer.header("nvcf-status"), answer.fault()), (202, "in-progress", ("", "")));
    let status = format!("/v2/nvcf/pexec/status/{}", answer.header("nvcf-reqid"));
    backends[6].open_gate("w");
    assert_eq!(gateway.get(&status).send().await.status, 200);
    let again = gateway.get(&status).send().await;
    assert_eq!((again.status, again.fault().1), (404, "platform"), "the final answer is delivered once");

    let large = format!("/v2/nvcf/pexec/functions/{LARGE_FUNCTION}");
    let answer = gateway.post(&large, &json!({})).send().await;
    assert_eq!(answer.status, 302);
    assert!(answer.header("location").starts_with("http"), "the caller fetches the large answer itself");
}

#[tokio::test]
async fn a_prefix_picks_the_pool() {
    let (_backends, gateway) = all().await;
    for (path, pool) in [
        ("/pools/predict/v1/manifest", "predict"),
        ("/v1/manifest", "chat"),
        ("/pools/video/v1/metadata", "video"),
        ("/pools/vision/v1/models", ""),
    ] {
        let answer = gateway.get(path).send().await;
        assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, pool), "{path}");
    }
    assert_eq!(gateway.get("/pools/none/v1/manifest").send().await.fault().0, "pool_not_found");
    let wrong = gateway.post("/pools/vision/v1/chat/completions", &chat(false)).send().await;
    assert_eq!((wrong.status, wrong.fault().0), (404, "model_not_found"));
}

#[tokio::test]
async fn the_model_list_is_what_this_caller_may_use_and_what_is_alive() {
    let backend = simulator(Kind::Llm).await;
    let dying = simulator(Kind::Vlm).await;
    let limited = "ngk_limited_0123456789";
    let probing = "health: {interval_ms: 50, unhealthy_after: 1}";
    let gateway = Gateway::setup()
        .chat(&[&backend.url()])
        .pool(
            "vision",
            "nim-vlm",
            &format!("models: [{{id: nvidia/cosmos-reason1-7b, aliases: [eyes]}}]\n{probing}"),
            &[&dying.url()],
        )
        .key(limited, "models: ['meta/llama-3.1-8b-instruct']")
        .start()
        .await;
    let listed = async |key: &str| {
        let answer = gateway.get("/v1/models").key(key).send().await.json();
        answer["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(KEY).await, ["eyes", "meta/llama-3.1-8b-instruct", "nvidia/cosmos-reason1-7b"]);
    assert_eq!(listed(limited).await, ["meta/llama-3.1-8b-instruct"]);
    let one = gateway.get("/v1/models/meta/llama-3.1-8b-instruct").send().await;
    assert_eq!((one.status, &one.json()["owned_by"]), (200, &json!("chat")));
    assert_eq!(
        gateway.get("/v1/models/nvidia/cosmos-reason1-7b").key(limited).send().await.fault().0,
        "model_not_found"
    );
    dying.kill();
    until("the dead pool's models are gone", async || listed(KEY).await == ["meta/llama-3.1-8b-instruct"]).await;
}

#[tokio::test]
async fn health_and_catalogue_need_no_key() {
    let (_backends, gateway) = all().await;
    for path in ["/v1/health/live", "/v1/health/ready", "/openapi.json", "/docs"] {
        let answer = gateway.get(path).anonymous().send().await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let merged = gateway.get("/openapi.json").anonymous().send().await.json();
    assert_eq!(merged["openapi"], "3.1.0");
    for path in [
        "/v1/chat/completions",
        "/v1/infer",
        "/v1/ranking",
        "/v1/cosmos/datasets/datasets",
        "/v2/nvcf/pexec/functions/{functionId}",
    ] {
        let found = merged["paths"]
            .as_object()
            .unwrap()
            .keys()
            .any(|k| k == path || (path.contains('{') && k.starts_with("/v2/nvcf/pexec/functions/{")));
        assert!(found, "{path}");
    }
    let metadata = gateway.get("/v1/metadata").send().await.json();
    assert_eq!((&metadata["name"], metadata["pools"].as_array().unwrap().len()), (&json!("nimgate"), 10));
}

#[tokio::test]
async fn browsers_are_answered_here() {
    let (backends, gateway) = all().await;
    let preflight = |origin: &'static str| {
        gateway
            .ask(Method::OPTIONS, "/v1/chat/completions")
            .anonymous()
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,x-custom")
    };
    let allowed = preflight("https://app.example").send().await;
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, "https://app.example"));
    assert_eq!(allowed.header("access-control-allow-headers"), "authorization,x-custom");
    let refused = preflight("https://evil.example").send().await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (204, ""));
    let answer = gateway.chat(false).header("origin", "https://app.example").send().await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    let denied = gateway.chat(false).anonymous().header("origin", "https://app.example").send().await;
    assert_eq!((denied.status, denied.header("access-control-allow-origin")), (401, "https://app.example"));
    assert_eq!(backends[0].seen().requests("/v1/chat/completions"), 1);
}

#[tokio::test]
async fn validation_is_as_strict_as_the_pool_says() {
    let backend = simulator(Kind::CosmosPredict).await;
    let pool = |setup: Setup, name: &str, mode: &str| {
        setup.pool(name, "cosmos-predict", &format!("validation: {mode}"), &[&backend.url()])
    };
    let setup = pool(pool(pool(Gateway::setup(), "lenient", "lenient"), "strict", "strict"), "off", "'off'");
    let setup = setup.pool("inline", "cosmos-predict", "url_input: 'off'", &[&backend.url()]);
    let gateway = setup.start().await;
    let unknown = json!({ "prompt": "x", "surprise": 1 });
    let wrong = json!({ "prompt": "x", "video_params": { "height": 7, "width": 1281 } });
    let url = json!({ "prompt": "x", "image": "https://host/a.jpg" });
    for (pool, body, expected) in [
        ("lenient", &unknown, 200),
        ("strict", &unknown, 400),
        ("off", &unknown, 200),
        ("lenient", &wrong, 400),
        ("strict", &wrong, 400),
        ("lenient", &url, 200),
        ("inline", &url, 400),
    ] {
        let answer = gateway.post(&format!("/pools/{pool}/v1/infer"), body).send().await;
        assert_eq!(answer.status, expected, "{pool} {body}: {}", answer.text());
    }
    // Off: the container says it, and is blamed for it.
    let answer = gateway.post("/pools/off/v1/infer", &wrong).send().await;
    assert_eq!((answer.status, answer.fault()), (400, ("inference_rejected", "inference-service")));
    // All violations at once, each with pointer, rule and expectation.
    let detail = gateway.post("/pools/lenient/v1/infer", &wrong).send().await.json()["detail"].clone();
    let places: Vec<_> = detail.as_array().unwrap().iter().map(|d| d["loc"].to_string()).collect();
    assert_eq!(places, [r#"["body","video_params","height"]"#, r#"["body","video_params","width"]"#], "{detail}");
}

#[tokio::test]
async fn a_list_of_violations_that_was_cut_says_so() {
    let backend = simulator(Kind::Embedding).await;
    let pool = "models: [{id: nvidia/nv-embedqa-e5-v5}]";
    let setup = Gateway::setup().pool("text", "nim-embedding", pool, &[&backend.url()]);
    let gateway = setup.top("client: {max_violations: 4}").start().await;
    for (wrong, listed, cut) in [(4, 4, false), (5, 4, true), (40, 4, true)] {
        let body = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input_type": "query", "input": vec![1.5; wrong] });
        let error = gateway.post("/v1/embeddings", &body).send().await.json()["error"].clone();
        let found = error["violations"].as_array().unwrap().len();
        let message = error["message"].as_str().unwrap();
        assert_eq!((found, message.ends_with("; and more.")), (listed, cut), "{wrong} wrong items: {message}");
    }
}
