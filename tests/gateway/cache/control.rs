//! Who shares vectors, what counts, and what becomes of them by purges and reloads.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::*;

/// Another key of the organisation of [`KEY`].
const COLLEAGUE: &str = "ngk_colleague_0123456789abcdef";

/// What is known of a text, to a key: 200 when all is, 504 otherwise.
async fn known(gateway: &Gateway, key: &str, text: &str) -> u16 {
    let ask = gateway.post(EMBED, &body(&json!(text))).key(key);
    ask.header("cache-control", "only-if-cached").send().await.status
}

fn purge_by_cli(gateway: &Gateway, subject: &str) -> bool {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nimgate"));
    command.args(["cache", "purge", subject, "--admin", &format!("http://{}", gateway.admin)]);
    command.output().unwrap().status.success()
}

async fn purge(gateway: &Gateway, subject: Value) -> Answer {
    let request = Request::post(format!("http://{}/cache/purge", gateway.admin));
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(subject.to_string())));
    let client = Client::builder(TokioExecutor::new()).build_http();
    answer(client.request(request.unwrap()).await.unwrap()).await
}

#[tokio::test]
async fn a_scope_says_who_shares() {
    let backend = simulator(Kind::Embedding).await;
    for (scope, wanted) in [("key", [504, 504]), ("org", [200, 504]), ("global", [200, 200])] {
        let setup = setup(&backend, &format!(", scope: {scope}")).key(COLLEAGUE, "scopes: ['*']");
        let gateway = started(setup).await;
        embed(&gateway, &json!("a")).await;
        assert_eq!(known(&gateway, KEY, "a").await, 200);
        let others = [known(&gateway, COLLEAGUE, "a").await, known(&gateway, OTHER, "a").await];
        assert_eq!(others, wanted, "{scope}");
    }
}

#[tokio::test]
async fn a_purge_of_an_organisation_is_of_its_vectors_alone() {
    let backend = simulator(Kind::Embedding).await;
    for (scope, forgets) in [("key", true), ("org", true), ("global", false)] {
        let gateway = started(setup(&backend, &format!(", scope: {scope}"))).await;
        let after = if forgets { 504 } else { 200 };
        for key in [KEY, OTHER] {
            gateway.post(EMBED, &body(&json!("a"))).key(key).send().await;
        }
        assert!(purge_by_cli(&gateway, "--org=b"));
        assert_eq!([known(&gateway, KEY, "a").await, known(&gateway, OTHER, "a").await], [200, after], "{scope}");
        gateway.post(EMBED, &body(&json!("a"))).key(OTHER).send().await;
        let done = purge(&gateway, json!({ "org": "default" })).await;
        assert_eq!((done.status, &done.json()["purged"]), (200, &json!(true)));
        assert_eq!([known(&gateway, KEY, "a").await, known(&gateway, OTHER, "a").await], [after, 200], "{scope}");
        for wrong in [json!({ "org": 1 }), json!({ "all": false }), json!({ "pool": "none" }), json!({})] {
            assert_eq!(purge(&gateway, wrong).await.status, 400);
        }
    }
}

#[tokio::test]
async fn a_replica_that_was_cut_off_catches_up_with_purges() {
    let (backend, redis) = (simulator(Kind::Embedding).await, RedisServer::start().await);
    let mut line = Line::to(redis.address()).await;
    let near = started(with_redis(&backend, &redis.address().to_string(), "")).await;
    let far = started(with_redis(&backend, &line.address().to_string(), "")).await;
    until_connected(&near).await;
    until_connected(&far).await;
    let everywhere = async |status: u16| {
        until("both know as much", async || {
            [known(&near, KEY, "a").await, known(&far, KEY, "a").await] == [status, status]
        })
        .await;
    };
    // Purged elsewhere while this one is cut off.
    embed(&near, &json!("a")).await;
    everywhere(200).await;
    line.cut().await;
    until("it is cut off", async || far.admin("/readyz").await.json()["redis"]["up"] == false).await;
    assert!(purge_by_cli(&near, "--all"));
    assert_eq!([known(&near, KEY, "a").await, known(&far, KEY, "a").await], [504, 200]);
    line.mend().await;
    everywhere(504).await;
    // Purged here while this one is cut off: it forgets at once, says who does not know, and they learn later.
    embed(&near, &json!("a")).await;
    everywhere(200).await;
    line.cut().await;
    until("it is cut off", async || far.admin("/readyz").await.json()["redis"]["up"] == false).await;
    assert!(!purge_by_cli(&far, "--model=nvidia/nv-embedqa-e5-v5"));
    assert_eq!([known(&near, KEY, "a").await, known(&far, KEY, "a").await], [200, 504]);
    line.mend().await;
    everywhere(504).await;
}

#[tokio::test]
async fn a_reload_keeps_vectors_unless_they_are_kept_otherwise() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    let first = embed(&gateway, &json!(["a", "b"])).await.json();
    let path = gateway.path("nimgate.yaml");
    let config = std::fs::read_to_string(&path).unwrap();
    let reloaded = async |config: &str, generation: f64| {
        replace(&path, config);
        gateway.signal("HUP");
        until("it is loaded", async || gateway.metric("nimgate_config_generation").await >= generation).await;
        until_agreed(&gateway).await;
    };
    // Another timeout, and another key, leave them alone.
    reloaded(&config.replace("validation: 'off'", "validation: 'off'\n    timeouts: {total_ms: 60000}"), 2.0).await;
    let again = embed(&gateway, &json!(["a", "b"])).await;
    assert_eq!((told(&again).as_str(), &again.json()["data"]), ("hit; hits=2, misses=0", &first["data"]));
    assert_eq!(backend.seen().requests(EMBED), 1);
    reloaded(&config.replace("budget_ms: 250", "budget_ms: 250, max_mib: 7"), 3.0).await;
    assert_eq!(known(&gateway, KEY, "a").await, 504, "it began anew");
}

#[tokio::test]
async fn callers_over_http2_share_vectors_with_others() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "").listener("http2_cleartext: true")).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let ask = async |input: Value| {
        let request = Request::post(format!("http://{}{EMBED}", gateway.address))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(body(&input).to_string()))).unwrap();
        answer(client.request(request).await.unwrap()).await
    };
    let batch = json!(["a", "b", "a"]);
    assert_eq!(told(&ask(json!(["a"])).await), "miss; hits=0, misses=1");
    let mixed = ask(batch.clone()).await;
    assert_eq!((mixed.status, told(&mixed).as_str()), (200, "partial; hits=2, misses=1"));
    assert_eq!(last(&backend), json!(["b"]));
    let plain = uncached(&gateway, &body(&batch)).await;
    let hits = futures_util::future::join_all((0..20).map(|_| ask(batch.clone()))).await;
    for answer in hits.iter().chain([&mixed]) {
        assert_eq!(answer.json()["data"], plain["data"]);
    }
    assert!(hits.iter().all(|answer| told(answer) == "hit; hits=3, misses=0"));
    assert_eq!(told(&embed(&gateway, &batch).await), "hit; hits=3, misses=0", "over HTTP/1.1");
}

#[tokio::test]
async fn each_limit_says_whether_hits_count() {
    let backend = simulator(Kind::Embedding).await;
    let both = |limit: &str| format!("{{{limit}}}, {{{limit}, count_cached: false}}");
    let limits = [
        "input_tokens: 1000, per: day",
        "total_tokens: 1000, per: month",
        "requests: 10, per: hour",
        "spend: 1000, per: month",
    ];
    let limits = limits.map(both).join(", ");
    let setup = setup(&backend, "").key(COLLEAGUE, &format!("scopes: ['*']\nlimits: [{limits}]"));
    let prices = "prices: [{model: '*', input_per_million: 1000000, per_request: 0.5}]";
    let gateway = started(setup.top(prices)).await;
    let ask = async |input: Value, id: &str| {
        let answer = gateway.post(EMBED, &body(&input)).key(COLLEAGUE).header("x-request-id", id).send().await;
        (told(&answer), answer.json()["usage"]["prompt_tokens"].as_u64().unwrap())
    };
    let (_, three) = ask(json!("one two three"), "miss").await;
    let (_, one) = ask(json!("four"), "miss").await;
    let (hit, all) = ask(json!(["four", "one two three"]), "hit").await;
    assert_eq!((hit.as_str(), all), ("hit; hits=2, misses=0", one + three));
    let (partial, usage) = ask(json!(["five six", "one two three"]), "partial").await;
    assert_eq!(partial, "partial; hits=1, misses=1");
    // What was asked for: the first two, and of the last one what the first did not have.
    let (counted, asked) = (three + one + all + usage, three + one + usage - three);
    let used = async || {
        let page = gateway.admin("/keys/colleague").await.json();
        let limits = page["limits"].as_array().unwrap().clone();
        limits.into_iter().map(|limit| limit["used"].clone()).collect::<Vec<_>>()
    };
    let money = |tokens: u64, requests: u64| json!((tokens as f64 + requests as f64 / 2.0).to_string());
    let tokens = [json!(counted), json!(asked)];
    let requests = [json!(4), json!(3)];
    let spend = [money(counted, 4), money(asked, 3)];
    let wanted = [tokens.clone(), tokens, requests, spend].concat();
    assert_eq!(used().await, wanted);
    // The record tells all that the answer stated.
    assert_eq!(gateway.record_of("hit").await["input_tokens"], all);
    assert_eq!(gateway.record_of("partial").await["input_tokens"], usage);
}

#[tokio::test]
async fn a_limit_that_counts_no_hits_goes_on_serving_them() {
    let backend = simulator(Kind::Embedding).await;
    let setup = setup(&backend, "")
        .key(COLLEAGUE, "scopes: ['*']\nlimits: [{requests: 2, per: month, count_cached: false}]")
        .key("ngk_counted_0123456789abcdef", "scopes: ['*']\nlimits: [{requests: 2, per: month}]");
    let gateway = started(setup).await;
    embed(&gateway, &json!("a")).await;
    let ask = async |key: &str, text: &str| gateway.post(EMBED, &body(&json!(text))).key(key).send().await.status;
    for _ in 0..10 {
        assert_eq!(ask(COLLEAGUE, "a").await, 200);
    }
    let counted = "ngk_counted_0123456789abcdef";
    assert_eq!([ask(counted, "a").await, ask(counted, "a").await, ask(counted, "a").await], [200, 200, 429]);
    assert_eq!([ask(COLLEAGUE, "b").await, ask(COLLEAGUE, "c").await, ask(COLLEAGUE, "d").await], [200, 200, 429]);
}

#[tokio::test]
async fn a_batch_that_is_too_large_for_the_backend_is_refused_though_all_is_known() {
    let backend = simulator(Kind::CosmosEmbed1).await;
    let yaml = pool("").replace(MODEL, "nvidia/cosmos-embed1");
    let gateway = started(Gateway::setup().pool("v", "cosmos-embed1", &yaml, &[&backend.url()])).await;
    let texts: Vec<String> = (0..65).map(|n| format!("t{n}")).collect();
    let ask = |texts: &[String]| {
        let body = json!({ "model": "nvidia/cosmos-embed1", "input": texts, "request_type": "bulk_text" });
        gateway.post(EMBED, &body)
    };
    for some in [&texts[..64], &texts[64..]] {
        assert_eq!(ask(some).send().await.status, 200);
    }
    let plain = ask(&texts).header("cache-control", "no-store").send().await;
    let whole = ask(&texts).send().await;
    assert_eq!((whole.status, &whole.body), (400, &plain.body));
    assert_eq!(told(&ask(&texts[1..]).send().await), "hit; hits=64, misses=0");
}

#[tokio::test]
async fn what_is_no_item_is_answered_as_without_a_cache() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    embed(&gateway, &json!(["a", "b"])).await;
    let wrong = [
        json!(["a", 1]),
        json!(["a", null]),
        json!(["a", ""]),
        json!(["a", [1, -1]]),
        json!([["b"], "a"]),
        json!({ "text": "a" }),
        json!([{ "text": "a" }]),
        json!(null),
        json!([]),
    ];
    for input in wrong {
        let (ours, plain) = (
            embed(&gateway, &input).await,
            gateway.post(EMBED, &body(&input)).header("cache-control", "no-store").send().await,
        );
        assert_eq!((ours.status, ours.fault()), (plain.status, plain.fault()), "{input}");
        assert_eq!(ours.body, plain.body, "{input}");
    }
    assert_eq!(told(&embed(&gateway, &json!(["a", "b"])).await), "hit; hits=2, misses=0");
}

#[tokio::test]
async fn vectors_end_in_time_and_large_ones_are_not_kept() {
    let (backend, redis) = (simulator(Kind::Embedding).await, RedisServer::start().await);
    let address = redis.address().to_string();
    let keys = || redis.command(&["KEYS", "nimgate:{*}:e"]);
    // 1024 dimensions are above 1 KiB.
    let small = started(with_redis(&backend, &address, ", max_value_kib: 1")).await;
    let alone = started(with_redis(&backend, &address, ", redis: false")).await;
    let timed = started(with_redis(&backend, &address, ", ttl_s: 1000, jitter_percent: 50")).await;
    let short = started(with_redis(&backend, &address, ", ttl_s: 1, jitter_percent: 0, redis: false")).await;
    for gateway in [&small, &alone, &timed] {
        until_connected(gateway).await;
    }
    for _ in 0..2 {
        assert_eq!(told(&embed(&small, &json!("a")).await), "miss; hits=0, misses=1");
    }
    embed(&alone, &json!("a")).await;
    assert_eq!(known(&alone, KEY, "a").await, 200);
    let batch: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    embed(&timed, &json!(batch)).await;
    let left = || -> Vec<u64> {
        let large = |key: &&str| redis.command(&["STRLEN", key]).parse::<u64>().unwrap() > 1024;
        keys().lines().filter(large).map(|key| redis.command(&["TTL", key]).parse().unwrap()).collect()
    };
    // None of them is of the others, which would have been written before.
    until("all are written", async || left().len() >= 40).await;
    assert_eq!(left().len(), 40);
    let left = left();
    assert!(left.iter().all(|left| (490..=1000).contains(left)), "{left:?}");
    assert!(left.iter().max().unwrap() - left.iter().min().unwrap() > 100, "they do not end together: {left:?}");
    embed(&short, &json!("a")).await;
    until("it has ended", async || known(&short, KEY, "a").await == 504).await;
}
