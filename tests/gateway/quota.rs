//! Limits of one replica: who is refused, with which words, and what is charged in the end.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::support::*;

/// A key with limits of its own.
const LIMITED: &str = "ngk_limited_0123456789abcdef";
/// What every answer of the simulated model takes: 5 words in, at most 8 tokens out.
const MODEL: &str = "meta/llama-3.1-8b-instruct";

/// A gateway with one chat pool and a key with these limits.
async fn limited(backend: &Simulator, limits: &str) -> Gateway {
    limited_with(backend, limits, "").await
}

async fn limited_with(backend: &Simulator, limits: &str, top: &str) -> Gateway {
    let setup = Gateway::setup().chat(&[&backend.url()]).key(LIMITED, &format!("limits: {limits}"));
    if top.is_empty() { setup } else { setup.top(top) }.start().await
}

async fn chat_once(gateway: &Gateway) -> Answer {
    gateway.chat(false).key(LIMITED).send().await
}

/// What is left of a limit, from `RateLimit`.
fn left(answer: &Answer, name: &str) -> u64 {
    let field = answer.header("ratelimit");
    let item = field.split(", ").find(|item| item.starts_with(&format!("\"{name}\";"))).unwrap_or_else(|| {
        panic!("no {name} in {field:?}");
    });
    item.split(";r=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_rate_is_told_in_every_answer_and_refuses_with_429() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{requests: 3, per: hour}]").await;
    for remaining in ["2", "1", "0"] {
        let answer = chat_once(&gateway).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), remaining);
        assert!(answer.header("x-ratelimit-reset-requests").ends_with('s'));
        assert_eq!(answer.header("ratelimit-policy"), "\"key-requests-hour\";q=3;w=3600");
        assert!(answer.header("ratelimit").starts_with(&format!("\"key-requests-hour\";r={remaining};t=")));
    }
    let refused = chat_once(&gateway).await;
    assert_eq!((refused.status, refused.fault()), (429, ("rate_limit_exceeded", "quota")));
    let error = &refused.json()["error"];
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("rate_limit_error")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("API key's limit of 3 requests per hour (key-requests-hour)"), "{message}");
    // Either the hour is over within a minute, or it is not worth a retry.
    let wait: Option<u64> = refused.headers.get("retry-after").map(|v| v.to_str().unwrap().parse().unwrap());
    assert!(wait.map_or(refused.header("x-should-retry") == "false", |s| (1..=60).contains(&s)));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(backend.seen().requests("/v1/chat/completions"), 3);
    // Another key is not concerned.
    assert_eq!(gateway.chat(false).send().await.status, 200);
    assert_eq!(gateway.metric("nimgate_quota_refusals_total{metric=\"requests\"}").await, 1.0);
    let record = gateway.record_of(refused.header("x-request-id")).await;
    assert_eq!((&record["error"], &record["blame"]), (&json!("rate_limit_exceeded"), &json!("quota")));
}

#[tokio::test]
async fn a_rate_of_a_second_comes_back_after_retry_after() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{requests: 1, per: second}]").await;
    let mut waited = None;
    until("a request is refused", async || {
        let answer = chat_once(&gateway).await;
        waited = answer.headers.get("retry-after").map(|v| v.to_str().unwrap().to_owned());
        answer.status == 429
    })
    .await;
    assert_eq!(waited.as_deref(), Some("1"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(chat_once(&gateway).await.status, 200);
}

#[tokio::test]
async fn each_kind_of_limit_has_its_own_code() {
    let backend = simulator(Kind::Llm).await;
    for (limit, first, code) in [
        ("{requests: 1, per: day}", 200, "quota_exceeded"),
        ("{requests: 1, per: minute}", 200, "rate_limit_exceeded"),
        ("{input_tokens: 18, per: month}", 200, "quota_exceeded"),
        ("{output_tokens: 8, per: hour}", 200, "rate_limit_exceeded"),
        ("{total_tokens: 30, per: day}", 200, "quota_exceeded"),
        ("{spend: 0.0000085, per: month}", 200, "budget_exceeded"),
        ("{concurrency: 0}", 429, "concurrency_exceeded"),
    ] {
        let prices = "prices: [{model: '*', input_per_million: 0.2, output_per_million: 0.6}]\n";
        let gateway = limited_with(&backend, &format!("[{limit}]"), prices).await;
        assert_eq!(chat_once(&gateway).await.status, first, "{limit}");
        let mut refused = chat_once(&gateway).await;
        if refused.status == 200 {
            // The minute was over.
            refused = chat_once(&gateway).await;
        }
        assert_eq!((refused.status, refused.fault()), (429, (code, "quota")), "{limit}: {}", refused.text());
    }
}

#[tokio::test]
async fn what_can_never_fit_is_not_to_be_tried_again() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{output_tokens: 100, per: second}]").await;
    let mut body = chat(false);
    body["max_tokens"] = json!(101);
    let refused = gateway.post("/v1/chat/completions", &body).key(LIMITED).send().await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (429, "false"));
    assert!(refused.headers.get("retry-after").is_none());
    assert!(refused.text().contains("101 output tokens"), "{}", refused.text());
}

#[tokio::test]
async fn tokens_are_reserved_at_most_and_settled_to_what_was_used() {
    let backend = simulator(Kind::Llm).await;
    let limits = "[{output_tokens: 1000, per: day}, {input_tokens: 1000, per: day}, {concurrency: 1}]";
    let gateway = limited(&backend, limits).await;
    let mut body = chat(false);
    body["max_tokens"] = json!(700);
    // Each may need 700 of 1000, and is followed by another: what was not used has come back.
    let (mut output, mut input) = (0, 0);
    for _ in 0..5 {
        let answer = gateway.post("/v1/chat/completions", &body).key(LIMITED).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let usage = &answer.json()["usage"];
        output += usage["completion_tokens"].as_u64().unwrap();
        input += usage["prompt_tokens"].as_u64().unwrap();
        let record = gateway.record_of(answer.header("x-request-id")).await;
        assert_eq!(record["output_tokens"], usage["completion_tokens"]);
        assert_eq!((&record["input_tokens"], &record["tokens"]), (&usage["prompt_tokens"], &json!("stated")));
    }
    // Nothing is reserved for a request whose body is refused, nor by one that never fits.
    let refused = gateway.post("/v1/chat/completions", &json!({"model": MODEL, "messages": []})).key(LIMITED).send();
    assert_eq!(refused.await.status, 400);
    body["max_tokens"] = json!(1000);
    let refused = gateway.post("/v1/chat/completions", &body).key(LIMITED).send().await;
    assert_eq!(refused.status, 429);
    assert_eq!(left(&refused, "key-output-tokens-day"), 1000 - output);
    assert_eq!(left(&refused, "key-input-tokens-day"), 1000 - input);
    let answer = chat_once(&gateway).await;
    // Reserved at this moment: 8 tokens.
    assert_eq!(left(&answer, "key-output-tokens-day"), 1000 - output - 8);
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "1000");
    assert!(answer.header("ratelimit-policy").contains("\"key-output-tokens-day\";q=1000;w=86400;qu=\"tokens\""));
}

#[tokio::test]
async fn a_failed_backend_costs_no_tokens() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{total_tokens: 60, per: day}, {concurrency: 1}]").await;
    for fault in ["status=500", "status=400", "status=429"] {
        let failed = gateway.chat(false).key(LIMITED).header("x-sim-fault", fault).send().await;
        assert_ne!(failed.status, 200);
        assert_eq!(left(&chat_after(&gateway).await, "key-total-tokens-day"), 60, "{fault}");
    }
    backend.kill();
    let failed = chat_once(&gateway).await;
    assert_eq!(failed.status, 502);
    assert_eq!(left(&chat_after(&gateway).await, "key-total-tokens-day"), 60);
}

/// A request that is too large for its limit: shows how the limits stand and changes nothing.
async fn chat_after(gateway: &Gateway) -> Answer {
    let mut body = chat(false);
    body["max_tokens"] = json!(100_000);
    let refused = gateway.post("/v1/chat/completions", &body).key(LIMITED).send().await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    refused
}

async fn next(body: &mut Incoming) -> Option<String> {
    let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("a chunk in time");
    frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn the_usage_of_a_stream_is_asked_for_and_kept_from_a_caller_who_did_not() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{total_tokens: 10000, per: day}, {concurrency: 1}]").await;
    let plain = gateway.chat(true).key(LIMITED).send().await;
    assert!(plain.text().ends_with("data: [DONE]\n\n"));
    assert!(!plain.text().contains("prompt_tokens"), "{}", plain.text());
    let sent: Value = serde_json::from_slice(&backend.seen().last_of("/v1/chat/completions").unwrap().body).unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    let record = gateway.record_of(plain.header("x-request-id")).await;
    assert_eq!((&record["tokens"], &record["output_tokens"]), (&json!("stated"), &json!(8)));
    let spent = 10_000 - left(&chat_after(&gateway).await, "key-total-tokens-day");
    assert_eq!(Some(spent), record["input_tokens"].as_u64().map(|input| input + 8));

    let mut body = chat(true);
    body["stream_options"] = json!({"include_usage": true});
    let asked = gateway.post("/v1/chat/completions", &body).key(LIMITED).send().await;
    assert_eq!(asked.text().matches("prompt_tokens").count(), 1);
    // Where the operator says no, nothing is asked and tokens are counted.
    let gateway = limited_with(&backend, "[{total_tokens: 10000, per: day}]", "quotas: {stream_usage: false}\n").await;
    let counted = gateway.chat(true).key(LIMITED).send().await;
    let sent: Value = serde_json::from_slice(&backend.seen().last_of("/v1/chat/completions").unwrap().body).unwrap();
    assert!(sent.get("stream_options").is_none());
    let record = gateway.record_of(counted.header("x-request-id")).await;
    assert_eq!((&record["tokens"], &record["output_tokens"]), (&json!("counted"), &json!(8)));
}

/// Begins a stream, reads `tokens` of its tokens and leaves.
async fn leave_after(gateway: &Gateway, backend: &Simulator, tokens: usize, id: &str) {
    let mut body = chat(true);
    body["max_tokens"] = json!(500);
    body["ignore_eos"] = json!(true);
    let ask = gateway.post("/v1/chat/completions", &body).key(LIMITED);
    let response = ask.header("x-sim-gate", id).header("x-request-id", id).begin().await;
    assert_eq!(response.status(), 200);
    let mut answer = response.into_body();
    // The first event names the role, each further one brings a token.
    (0..=tokens).for_each(|_| backend.open_gate(id));
    let mut seen = 0;
    while seen < tokens + 1 {
        seen += next(&mut answer).await.expect("an event").matches("data: ").count();
    }
}

#[tokio::test]
async fn a_stream_that_its_caller_cuts_is_billed_what_was_sent() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{output_tokens: 10000, per: day}, {concurrency: 1}]").await;
    for (tokens, id) in [(1, "one"), (7, "seven"), (40, "forty")] {
        let before = left(&chat_after(&gateway).await, "key-output-tokens-day");
        leave_after(&gateway, &backend, tokens, id).await;
        let record = gateway.record_of(id).await;
        assert_eq!(record["error"], "client_closed");
        assert_eq!((&record["tokens"], &record["output_tokens"]), (&json!("counted"), &json!(tokens)));
        let after = left(&chat_after(&gateway).await, "key-output-tokens-day");
        assert_eq!(before - after, tokens as u64, "{id}");
    }
    until("the backend is rid of them", async || backend.seen().in_flight() == 0).await;
}

#[tokio::test]
async fn a_stream_is_read_on_for_its_usage_where_the_operator_allows_it() {
    let backend = simulator(Kind::Llm).await;
    let limits = "[{output_tokens: 10000, per: day}, {concurrency: 1}]";
    let gateway = limited_with(&backend, limits, "quotas: {drain_ms: 20000}\n").await;
    leave_after(&gateway, &backend, 3, "left").await;
    // The backend goes on to its end, and what it states counts.
    (0..600).for_each(|_| backend.open_gate("left"));
    let record = gateway.record_of("left").await;
    assert_eq!(record["error"], "client_closed");
    assert_eq!((&record["tokens"], &record["output_tokens"]), (&json!("stated"), &json!(500)));
    // A drain has an end.
    let gateway = limited_with(&backend, limits, "quotas: {drain_ms: 50}\n").await;
    leave_after(&gateway, &backend, 3, "cut").await;
    let record = gateway.record_of("cut").await;
    assert_eq!((&record["tokens"], &record["output_tokens"]), (&json!("counted"), &json!(3)));
}

#[tokio::test]
async fn a_backend_that_breaks_a_stream_is_told_from_a_caller_who_leaves_it() {
    let backend = simulator(Kind::Llm).await;
    for drain in [0, 20_000] {
        let top = format!("quotas: {{drain_ms: {drain}}}\n");
        let gateway = limited_with(&backend, "[{output_tokens: 10000, per: day}, {concurrency: 1}]", &top).await;
        let cut = gateway.chat(true).key(LIMITED).header("x-sim-fault", "cut-after=4").send().await;
        assert!(cut.text().contains("\"upstream_closed\""), "{drain}: {}", cut.text());
        let record = gateway.record_of(cut.header("x-request-id")).await;
        assert_eq!((&record["error"], &record["output_tokens"]), (&json!("upstream_closed"), &json!(3)), "{drain}");
        until("its place is free", async || chat_once(&gateway).await.status == 200).await;
    }
}

#[tokio::test]
async fn requests_at_a_time_come_back_however_they_end() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{concurrency: 2}]").await;
    // Each on a connection of its own, which may end as it likes.
    let begin = async |id: &str| {
        let ask = gateway.chat(true).key(LIMITED).header("connection", "close");
        ask.header("x-sim-gate", id).begin().await
    };
    let (first, second) = (begin("a").await, begin("b").await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    let refused = chat_once(&gateway).await;
    assert_eq!((refused.status, refused.fault().0), (429, "concurrency_exceeded"));
    assert_eq!(refused.header("retry-after"), "1");
    // One is left by its caller, the other one finishes.
    drop(first);
    until("a place is free", async || chat_once(&gateway).await.status == 200).await;
    (0..100).for_each(|_| backend.open_gate("b"));
    answer(second).await;
    // One whose backend dies.
    let third = begin("c").await;
    let fourth = begin("d").await;
    assert_eq!((third.status().as_u16(), fourth.status().as_u16()), (200, 200));
    backend.kill();
    drop((answer(third).await, answer(fourth).await));
    for _ in 0..3 {
        until("it fails at the backend, not at the limit", async || chat_once(&gateway).await.status == 502).await;
    }
}

#[tokio::test]
async fn keys_share_the_limits_of_their_team_and_organisation() {
    let backend = simulator(Kind::Llm).await;
    let (one, two, three) = ("ngk_one_0123456789abcdef", "ngk_two_0123456789abcdef", "ngk_three_0123456789abcdef");
    let accounts = "orgs:\n  - {name: default, limits: []}\n  - {name: acme, limits: [{requests: 5, per: day}]}\n\
                    teams:\n  - {org: acme, name: lab, limits: [{requests: 3, per: day}]}\n  - {org: acme, name: web}\n  \
                    - {org: default, name: default}";
    let gateway = Gateway::setup()
        .chat(&[&backend.url()])
        .accounts(accounts)
        .key(one, "org: acme\nteam: lab")
        .key(two, "org: acme\nteam: lab")
        .key(three, "org: acme\nteam: web")
        .start()
        .await;
    let ask = async |key: &str| gateway.chat(false).key(key).send().await;
    for key in [one, two, one] {
        assert_eq!(ask(key).await.status, 200);
    }
    let refused = ask(two).await;
    assert!(refused.text().contains("team's limit of 3 requests per day (team-requests-day)"), "{}", refused.text());
    assert_eq!((ask(three).await.status, ask(three).await.status), (200, 200));
    let refused = ask(three).await;
    assert!(refused.text().contains("organisation's limit of 5 requests per day"), "{}", refused.text());
    assert_eq!(gateway.chat(false).send().await.status, 200);
}

#[tokio::test]
async fn a_limit_may_be_for_a_model_a_pool_or_an_operation() {
    let (llm, embedding) = (simulator(Kind::Llm).await, simulator(Kind::Embedding).await);
    let limits = "[{requests: 1, per: day, models: ['meta/*']}, {requests: 2, per: day, operations: ['nim-embedding/*']}, \
                  {requests: 4, per: day, pools: [embed, chat]}]";
    let gateway = Gateway::setup()
        .chat(&[&llm.url()])
        .pool("embed", "nim-embedding", "models: [{id: nvidia/nv-embedqa-e5-v5}]", &[&embedding.url()])
        .key(LIMITED, &format!("limits: {limits}"))
        .start()
        .await;
    let input = json!({"model": "nvidia/nv-embedqa-e5-v5", "input": ["a"], "input_type": "query"});
    let embed = async || gateway.post("/v1/embeddings", &input).key(LIMITED).send().await;
    assert_eq!((chat_once(&gateway).await.status, chat_once(&gateway).await.status), (200, 429));
    let answer = embed().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((embed().await.status, embed().await.status), (200, 429));
    // Three of the four of both pools are used: those that were refused took none.
    assert_eq!(left(&embed().await, "key-requests-day-3"), 1);
}

#[tokio::test]
async fn a_changed_limit_takes_effect_and_keeps_what_was_used() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "[{requests: 2, per: day}]").await;
    for status in [200, 200, 429] {
        assert_eq!(chat_once(&gateway).await.status, status);
    }
    let keys = |limit: u32| {
        let own = record(LIMITED, &format!("limits: [{{requests: {limit}, per: day}}]"));
        format!("keys:\n{}{own}", record(KEY, "scopes: ['*']"))
    };
    // Half a file changes nothing.
    let whole = keys(4);
    replace(&gateway.path("keys.yaml"), &whole[..whole.len() - 30]);
    until("it is refused", async || gateway.metric("nimgate_reloads_total{result=\"refused\"}").await > 0.0).await;
    assert_eq!(chat_once(&gateway).await.status, 429);
    replace(&gateway.path("keys.yaml"), &whole);
    until("it is loaded", async || chat_once(&gateway).await.status == 200).await;
    for status in [200, 429] {
        assert_eq!(chat_once(&gateway).await.status, status);
    }
}

#[tokio::test]
async fn a_restart_forgets_nothing_where_counts_are_kept_in_a_file() {
    let backend = simulator(Kind::Llm).await;
    let setup = || {
        let limits = "limits: [{requests: 3, per: month}]";
        Gateway::setup().chat(&[&backend.url()]).key(LIMITED, limits).top("quotas: {state_file: counts.json}")
    };
    let mut first = setup().start().await;
    assert_eq!((chat_once(&first).await.status, chat_once(&first).await.status), (200, 200));
    first.signal("TERM");
    until("it has stopped", async || !first.is_running()).await;
    let counts = std::fs::read(first.path("counts.json")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("counts.json"), counts).unwrap();
    let second = setup().start_in(directory).await;
    assert_eq!((chat_once(&second).await.status, chat_once(&second).await.status), (200, 429));
}

#[tokio::test]
async fn refusals_speak_the_dialect_of_the_api() {
    let (nvcf, curator) = (simulator(Kind::Nvcf).await, simulator(Kind::Curator).await);
    let gateway = Gateway::setup()
        .pool("nvcf", "nvcf", "kind: nvcf", &[&nvcf.url()])
        .pool("curator", "nemo-curator", "kind: ngc", &[&curator.url()])
        .key(LIMITED, "scopes: ['*']\nlimits: [{requests: 0, per: day}]")
        .start()
        .await;
    let problem = gateway.get("/v2/nvcf/functions").key(LIMITED).send().await;
    assert_eq!((problem.status, problem.header("content-type")), (429, "application/problem+json"));
    assert_eq!(problem.json()["type"], "urn:nimgate:problem-details:quota-exceeded");
    // Nothing of the body is read before the rate is known.
    let other = gateway.post("/v1/cosmos/video/annotation", &json!(1)).key(LIMITED).send().await;
    assert!([404, 429].contains(&other.status), "{}", other.text());
}
