//! Transcripts: prompts and answers in traces, where a pool says so, and nowhere else.

use nimgate::telemetry::names;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};

use crate::collector::*;
use crate::support::*;

const MODEL: &str = "models: [{id: meta/llama-3.1-8b-instruct}]";
const TOLD: &str = "models: [{id: meta/llama-3.1-8b-instruct}]\ntranscripts: {max_bytes: 2000, redact: ['AB[0-9]{6}']}";

fn to(collector: &Collector) -> String {
    let otlp = format!("{{endpoint: 'http://{}', delay_ms: 20, metrics_interval_s: 1}}", collector.address());
    format!("telemetry: {{otlp: {otlp}, traces: {{sample: 1}}}}\nlog: {{level: trace}}")
}

async fn server_span(collector: &Collector, id: &str) -> Span {
    let mut found = None;
    until("its span is there", async || {
        found = collector.spans().into_iter().find(|span| text(&span.attributes, "nimgate.request.id") == id);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// What a span tells under a name: JSON, or null where it tells nothing.
fn told(span: &Span, name: &str) -> Value {
    value(&span.attributes, name).map_or(Value::Null, |_| serde_json::from_str(&text(&span.attributes, name)).unwrap())
}

fn asks(prompt: &str, stream: bool) -> Value {
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]);
    json!({"model": "meta/llama-3.1-8b-instruct", "messages": messages, "max_tokens": 8, "stream": stream})
}

#[tokio::test]
async fn prompts_and_answers_are_in_spans_where_a_pool_says_so_and_nowhere_else() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup()
        .pool("told", "nim-llm", TOLD, &[&backend.url()])
        .pool("silent", "nim-llm", "models: [{id: m2, backend_model: meta/llama-3.1-8b-instruct}]", &[&backend.url()])
        .top(&to(&collector))
        .start()
        .await;
    let secret = "nvapi-0123456789abcdef";
    let prompt = format!("xylophone {KEY} and {secret} of AB123456 at https://b.example/a?X-Amz-Signature=feed");
    let mut answered = Vec::new();
    for stream in [false, true] {
        let id = format!("told-{stream}");
        let answer =
            gateway.post("/v1/chat/completions", &asks(&prompt, stream)).header("x-request-id", &id).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let span = server_span(&collector, &id).await;
        let shown = "xylophone [redacted] and [redacted] of [redacted] at https://b.example/a?[redacted]";
        assert_eq!(
            told(&span, names::GEN_AI_INPUT),
            json!([{"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
                   {"role": "user", "parts": [{"type": "text", "content": shown}]}])
        );
        let output = told(&span, names::GEN_AI_OUTPUT);
        assert_eq!((&output[0]["role"], &output[0]["finish_reason"]), (&json!("assistant"), &json!("length")));
        answered.push(output[0]["parts"][0]["content"].as_str().unwrap().to_owned());
        if !stream {
            assert_eq!(answer.json()["choices"][0]["message"]["content"], answered[0].as_str());
        }
    }
    // Streamed or whole, it is the same that was said.
    assert!(!answered[0].is_empty() && answered[0] == answered[1], "{answered:?}");
    let mut silent = asks("xylophone", false);
    silent["model"] = json!("m2");
    let answer = gateway.post("/v1/chat/completions", &silent).header("x-request-id", "silent").send().await;
    assert_eq!(answer.status, 200);
    let span = server_span(&collector, "silent").await;
    for name in [names::GEN_AI_INPUT, names::GEN_AI_OUTPUT] {
        assert!(value(&span.attributes, name).is_none(), "{name}");
    }
    gateway.until_idle().await;
    until("logs and metrics are there", async || {
        collector.logs().len() >= 3 && collector.metrics().iter().any(|metric| metric.name == "nimgate.requests")
    })
    .await;
    let mut places = vec![
        ("the output", gateway.output()),
        ("the access log", std::fs::read_to_string(gateway.path("access.log")).unwrap()),
        ("a log record", format!("{:?}", collector.logs())),
        ("a metric", format!("{:?}", collector.metrics())),
    ];
    for page in ["/metrics", "/state", "/live", "/recent", "/console", "/usage", "/keys"] {
        places.push((page, gateway.admin(page).await.text()));
    }
    for (place, text) in places {
        assert!(!text.contains("xylophone") && !text.contains(&answered[0]), "{place}: {text}");
    }
    let spans = format!("{:?}", collector.spans());
    assert!(!spans.contains(secret) && !spans.contains(KEY) && !spans.contains("X-Amz-Signature"), "{spans}");
}

#[tokio::test]
async fn both_pools_of_a_request_have_a_say() {
    for far in ["", "\ntranscripts: {redact: [hello]}"] {
        let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
        let near = format!(
            "{MODEL}\ntranscripts: {{}}\nspill: {{to: [far]}}\nhealth: {{enabled: false}}\nretry: {{attempts: 1}}"
        );
        let gone = format!("http://{}", free_address());
        let gateway = Gateway::setup()
            .pool("near", "nim-llm", &near, &[&gone])
            .pool("far", "nim-llm", &format!("{MODEL}{far}"), &[&backend.url()])
            .top(&to(&collector))
            .start()
            .await;
        let answer =
            gateway.post("/v1/chat/completions", &asks("hello", false)).header("x-request-id", "s").send().await;
        assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, "far"));
        let span = server_span(&collector, "s").await;
        assert_eq!(value(&span.attributes, names::GEN_AI_INPUT).is_some(), !far.is_empty());
        assert_eq!(value(&span.attributes, names::GEN_AI_OUTPUT).is_some(), !far.is_empty());
        if !far.is_empty() {
            assert_eq!(told(&span, names::GEN_AI_INPUT)[1]["parts"][0]["content"], "[redacted]", "by the second pool");
        }
    }
}

#[tokio::test]
async fn other_apis_tell_what_they_were_asked_and_nothing_of_their_credentials() {
    let (collector, embed, curator) =
        (Collector::start().await, simulator(Kind::Embedding).await, simulator(Kind::Curator).await);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("up.key"), "nvapi-of-the-platform").unwrap();
    let gateway = Gateway::setup()
        .pool(
            "embed",
            "nim-embedding",
            "models: [{id: nvidia/nv-embedqa-e5-v5}]\ntranscripts: {}\ncache: {enabled: true}",
            &[&embed.url()],
        )
        .pool(
            "curator",
            "nemo-curator",
            "kind: ngc\ncredential: {secret: {file: up.key}}\ntranscripts: {}\nhealth: {enabled: false}",
            &[&curator.url()],
        )
        .top(&to(&collector))
        .start_in(directory)
        .await;
    let body = json!({"model": "nvidia/nv-embedqa-e5-v5", "input": ["warm", "cold"], "input_type": "query"});
    for id in ["first", "cached"] {
        let answer = gateway.post("/v1/embeddings", &body).header("x-request-id", id).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let span = server_span(&collector, id).await;
        let parts = json!([{"type": "text", "content": "warm"}, {"type": "text", "content": "cold"}]);
        assert_eq!(told(&span, names::GEN_AI_INPUT), json!([{"role": "user", "parts": parts}]));
        assert!(value(&span.attributes, names::GEN_AI_OUTPUT).is_none());
    }
    let dataset = json!({"name": "n", "description": "d", "s3InputPrefix": "s3://in/", "s3OutputPrefix": "s3://out/",
        "s3Config": "c2VjcmV0LXMzLWNvbmZpZw==", "jobSpec": {"pipeline": "split", "args": {}}});
    let answer = gateway.post("/pools/curator/v1/cosmos/datasets", &dataset).header("x-request-id", "c").send().await;
    assert!(matches!(answer.status, 200..300), "{}", answer.text());
    let span = server_span(&collector, "c").await;
    assert!(value(&span.attributes, names::GEN_AI_INPUT).is_none());
    assert!(!format!("{:?}", collector.spans()).contains("c2VjcmV0LXMz"));
}

#[tokio::test]
async fn what_is_too_much_is_cut_and_says_so() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let pool = format!("{MODEL}\ntranscripts: {{max_bytes: 64}}");
    let gateway = Gateway::setup().pool("told", "nim-llm", &pool, &[&backend.url()]).top(&to(&collector)).start().await;
    let mut body = asks(&"long ".repeat(20_000), true);
    body["max_tokens"] = json!(100);
    gateway.post("/v1/chat/completions", &body).header("x-request-id", "long").send().await;
    let span = server_span(&collector, "long").await;
    let shown = told(&span, names::GEN_AI_INPUT)[0]["parts"][0]["content"].as_str().unwrap().len();
    let said = told(&span, names::GEN_AI_OUTPUT)[0]["parts"][0]["content"].as_str().unwrap().len();
    assert!(shown == 64 && (32..=64).contains(&said), "{shown} {said}");
    assert!(format!("{:?}", value(&span.attributes, "nimgate.transcript.cut")).contains("true"));
}

#[tokio::test]
async fn the_pool_of_a_model_that_has_ended_has_a_say_too() {
    let (collector, backend) = (Collector::start().await, simulator(Kind::Llm).await);
    let ended =
        "models: [{id: meta/llama-3.1-8b-instruct, end_of_life: 2020-01-01}]\nspill: {to: [far], on: [end_of_life]}";
    let gateway = Gateway::setup()
        .pool("near", "nim-llm", ended, &[&backend.url()])
        .pool("far", "nim-llm", &format!("{MODEL}\ntranscripts: {{}}"), &[&backend.url()])
        .top(&to(&collector))
        .start()
        .await;
    let answer = gateway.post("/v1/chat/completions", &asks("hello", false)).header("x-request-id", "e").send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, "far"), "{}", answer.text());
    let span = server_span(&collector, "e").await;
    assert!(value(&span.attributes, names::GEN_AI_INPUT).is_none(), "its own pool tells nothing");
}
