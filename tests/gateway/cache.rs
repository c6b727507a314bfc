//! Kept vectors: answers as an uncached pool gives them, and what is asked for them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::redis::*;
use crate::support::*;

mod clients;
mod cluster;
mod control;

const EMBED: &str = "/v1/embeddings";
const MODEL: &str = "nvidia/nv-embedqa-e5-v5";
const OTHER: &str = "ngk_other_0123456789abcdef";

fn pool(more: &str) -> String {
    format!(
        "models: [{{id: {MODEL}}}]\nhealth: {{enabled: false}}\nmetrics: {{enabled: false}}\nvalidation: 'off'\n\
         cache: {{enabled: true, revision_interval_ms: 50, budget_ms: 250{more}}}"
    )
}

fn setup(backend: &Simulator, more: &str) -> Setup {
    Gateway::setup().pool("e", "nim-embedding", &pool(more), &[&backend.url()]).key(OTHER, "scopes: ['*']\norg: b")
}

async fn started(setup: Setup) -> Gateway {
    let gateway = setup.start().await;
    until_agreed(&gateway).await;
    gateway
}

async fn until_agreed(gateway: &Gateway) {
    until("the revision is known", async || {
        gateway.admin("/state").await.json()["pools"][0]["cache"]["revision"].is_string()
    })
    .await;
}

fn body(input: &Value) -> Value {
    json!({ "model": MODEL, "input": input, "input_type": "query" })
}

async fn embed(gateway: &Gateway, input: &Value) -> Answer {
    gateway.post(EMBED, &body(input)).send().await
}

/// The state of the cache, then `hits=…, misses=…`.
fn told(answer: &Answer) -> String {
    answer.header("x-nimgate-cache").to_owned()
}

/// Texts of the last request that the backend saw.
fn last(backend: &Simulator) -> Value {
    serde_json::from_slice::<Value>(&backend.seen().last_of(EMBED).unwrap().body).unwrap()["input"].clone()
}

/// What the backend answers when it is asked itself.
async fn uncached(gateway: &Gateway, body: &Value) -> Value {
    gateway.post(EMBED, body).header("cache-control", "no-store").send().await.json()
}

#[tokio::test]
async fn a_mixed_batch_asks_only_its_misses_and_reads_as_an_uncached_one() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    let first = embed(&gateway, &json!(["a", "b b"])).await;
    assert_eq!((first.status, told(&first).as_str()), (200, "miss; hits=0, misses=2"));
    assert_eq!(first.header("x-nimgate-usage"), "exact");
    let batch = json!(["c", "b b", "a", "c", "d d d", "a"]);
    let mixed = embed(&gateway, &batch).await;
    assert_eq!(told(&mixed), "partial; hits=3, misses=3");
    assert_eq!(last(&backend), json!(["c", "d d d"]));
    for encoding in ["float", "base64"] {
        let mut whole = body(&batch);
        whole["encoding_format"] = encoding.into();
        let seen = backend.seen().requests(EMBED);
        let hit = gateway.post(EMBED, &whole).send().await;
        assert_eq!((hit.status, told(&hit).as_str()), (200, "hit; hits=6, misses=0"));
        assert_eq!(backend.seen().requests(EMBED), seen, "a hit asks nobody");
        let (mut hit, mut plain) = (hit.json(), uncached(&gateway, &whole).await);
        assert_eq!(hit["data"], plain["data"], "{encoding}");
        // Shared out by length, tokens of single items are estimates.
        let (hit_usage, plain_usage) = (hit["usage"].take(), plain["usage"].take());
        assert!(
            hit_usage["prompt_tokens"].as_i64().unwrap().abs_diff(plain_usage["prompt_tokens"].as_i64().unwrap()) <= 3
        );
        assert_eq!(hit, plain);
    }
    assert_eq!(mixed.json()["data"], uncached(&gateway, &body(&batch)).await["data"]);
    // Nothing is left behind.
    until("no lease is left", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
    assert_eq!(gateway.admin("/state").await.json()["pools"][0]["queue"]["in_flight"], 0);
    assert!(gateway.metric("nimgate_cache_items_total{pool=\"e\",result=\"hit\"}").await >= 15.0);
    assert!(gateway.metric("nimgate_cache_saved_seconds_total{pool=\"e\"}").await > 0.0);
    assert!(gateway.metric("nimgate_cache_bytes{pool=\"e\"}").await > 0.0);
}

#[tokio::test]
async fn usage_of_single_items_is_exact() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    for text in ["one two three", "four"] {
        embed(&gateway, &json!(text)).await;
    }
    let batch = body(&json!(["four", "one two three"]));
    let hit = gateway.post(EMBED, &batch).header("x-request-id", "hit").send().await;
    assert_eq!((told(&hit).as_str(), hit.header("x-nimgate-usage")), ("hit; hits=2, misses=0", "exact"));
    assert_eq!(hit.json(), uncached(&gateway, &batch).await);
    let record = gateway.record_of("hit").await;
    assert_eq!((&record["cache"], &record["cache_hits"]), (&json!("hit"), &json!(2)));
    assert_eq!(record["input_tokens"], hit.json()["usage"]["prompt_tokens"]);
    assert!(record["attempts"] == 0 && record["first_byte_ms"].is_null(), "{record}");
}

#[tokio::test]
async fn requests_say_how_the_cache_is_used() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    let ask = async |text: &str, control: &str| {
        gateway.post(EMBED, &body(&json!(text))).header("cache-control", control).send().await
    };
    let refused = ask("a", "only-if-cached").await;
    assert_eq!((refused.status, refused.fault()), (504, ("not_cached", "client")));
    assert_eq!(told(&refused), "miss; hits=0, misses=1");
    assert_eq!(backend.seen().requests(EMBED), 0);
    assert_eq!(told(&ask("a", "no-store").await), "bypass; hits=0, misses=0; reason=no_store");
    assert_eq!(told(&ask("a", "max-age=0, no-cache").await), "miss; hits=0, misses=1");
    assert_eq!(told(&ask("a", "only-if-cached").await), "hit; hits=1, misses=0");
    assert_eq!(told(&ask("a", "no-cache").await), "miss; hits=0, misses=1");
    assert_eq!(backend.seen().requests(EMBED), 3);
    for (input, reason) in [(json!("https://a/b"), "items"), (json!([]), "items")] {
        let answer = embed(&gateway, &input).await;
        assert_eq!(told(&answer), format!("bypass; hits=0, misses=0; reason={reason}"));
    }
    // Another organisation shares nothing.
    let other = gateway.post(EMBED, &body(&json!("a"))).key(OTHER).send().await;
    assert_eq!(told(&other), "miss; hits=0, misses=1");
}

#[tokio::test]
async fn an_item_that_is_refused_fails_the_request_as_without_a_cache() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    embed(&gateway, &json!(["a", "b"])).await;
    let long = "word ".repeat(600);
    let batch = body(&json!(["a", long, "b", "c"]));
    let (mixed, plain) = (
        gateway.post(EMBED, &batch).send().await,
        gateway.post(EMBED, &batch).header("cache-control", "no-store").send().await,
    );
    assert_eq!((mixed.status, mixed.fault()), (400, plain.fault()));
    assert_eq!(mixed.body, plain.body);
    // What is good is still known, and what is not is not.
    assert_eq!(told(&embed(&gateway, &json!(["a", "b"])).await), "hit; hits=2, misses=0");
    assert_eq!(told(&embed(&gateway, &json!(["c"])).await), "miss; hits=0, misses=1");
    backend.fault("status=500").unwrap();
    assert_eq!(embed(&gateway, &json!(["a", "z"])).await.status, 500);
    assert_eq!(told(&embed(&gateway, &json!(["a", "b"])).await), "hit; hits=2, misses=0");
}

#[tokio::test]
async fn equal_misses_at_once_make_one_request() {
    let backend = simulator_with(Kind::Embedding, |s| s.time_to_first_token = Duration::from_millis(400)).await;
    let gateway = std::sync::Arc::new(started(setup(&backend, "")).await);
    let mut asking = JoinSet::new();
    for _ in 0..200 {
        let gateway = std::sync::Arc::clone(&gateway);
        asking.spawn(async move { embed(&gateway, &json!(["same", "text"])).await });
    }
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(answers.iter().all(|answer| answer.json()["data"] == answers[0].json()["data"]));
    assert_eq!(backend.seen().requests(EMBED), 1);
}

#[tokio::test]
async fn whoever_waits_neither_fails_nor_is_cancelled_with_the_one_that_asks() {
    let backend = simulator_with(Kind::Embedding, |s| s.time_to_first_token = Duration::from_millis(500)).await;
    let gateway = started(setup(&backend, "")).await;
    // The first one leaves; the second one waits for what it asked.
    let asked = gateway.post(EMBED, &body(&json!("x"))).header("x-request-id", "left");
    let first = tokio::time::timeout(Duration::from_millis(200), asked.send());
    let second = async {
        until("the first one asks", async || backend.seen().requests(EMBED) == 1).await;
        embed(&gateway, &json!(["y", "x"])).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err());
    assert_eq!((second.status, told(&second).as_str()), (200, "partial; hits=1, misses=1"));
    assert_eq!(backend.seen().requests(EMBED), 2);
    assert_eq!(gateway.record_of("left").await["error"], "client_closed");
    // Nobody waits: what nobody wants any more ends.
    let asked = gateway.post(EMBED, &body(&json!("z"))).send();
    assert!(tokio::time::timeout(Duration::from_millis(150), asked).await.is_err());
    until("it is cancelled", async || backend.seen().in_flight() == 0).await;
    // The first one fails by its own deadline; the second one asks for itself.
    let hurried = gateway.post(EMBED, &body(&json!("w"))).header("x-request-timeout", "0.2").send();
    let (hurried, patient) = tokio::join!(hurried, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        embed(&gateway, &json!("w")).await
    });
    assert_eq!((hurried.status, patient.status), (504, 200));
}

#[tokio::test]
async fn another_revision_never_gets_an_old_vector() {
    let (one, other) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    let yaml = pool("") + "\nbalance: {policy: round_robin}";
    let gateway = started(Gateway::setup().pool("e", "nim-embedding", &yaml, &[&one.url(), &other.url()])).await;
    until("both are known", async || {
        let state = gateway.admin("/state").await.json();
        state["pools"][0]["cache"]["revisions"].as_object().unwrap().values().any(|count| count == 2)
    })
    .await;
    let old = embed(&gateway, &json!("a")).await.json();
    assert_eq!(told(&embed(&gateway, &json!("a")).await), "hit; hits=1, misses=0");
    one.revise("2.0.0");
    until("they disagree", async || gateway.admin("/state").await.json()["pools"][0]["cache"]["revision"].is_null())
        .await;
    for _ in 0..4 {
        assert_eq!(told(&embed(&gateway, &json!("a")).await), "bypass; hits=0, misses=0; reason=revision");
    }
    other.revise("2.0.0");
    until_agreed(&gateway).await;
    let new = embed(&gateway, &json!("a")).await;
    assert_eq!(told(&new), "miss; hits=0, misses=1");
    assert_ne!(new.json()["data"], old["data"]);
    assert_eq!(told(&embed(&gateway, &json!("a")).await), "hit; hits=1, misses=0");
}

fn with_redis(backend: &Simulator, redis: &str, more: &str) -> Setup {
    setup(backend, more).top(&format!("redis: {{addresses: ['{redis}'], timeout_ms: 500}}"))
}

async fn until_connected(gateway: &Gateway) {
    until("Redis is connected", async || gateway.admin("/readyz").await.json()["redis"]["up"] == true).await;
}

#[tokio::test]
async fn replicas_share_vectors_and_purges() {
    let (backend, redis) = (simulator(Kind::Embedding).await, RedisServer::start().await);
    let address = redis.address().to_string();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let replica = started(with_redis(&backend, &address, "")).await;
        until_connected(&replica).await;
        replicas.push(replica);
    }
    let first = embed(&replicas[0], &json!(["a", "b"])).await;
    until("the other one has it", async || {
        told(&replicas[1].post(EMBED, &body(&json!(["b", "a"]))).header("cache-control", "only-if-cached").send().await)
            == "hit; hits=2, misses=0"
    })
    .await;
    let second = embed(&replicas[1], &json!(["a", "b"])).await;
    assert_eq!(second.json()["data"], first.json()["data"]);
    assert_eq!(backend.seen().requests(EMBED), 1);
    // 1024 dimensions: the name in Redis and the value are at most 4 x 1024 + 64 bytes.
    let keys = redis.command(&["KEYS", "nimgate:{*}:e"]);
    let sizes = keys.lines().map(|key| key.len() + redis.command(&["STRLEN", key]).parse::<usize>().unwrap());
    assert_eq!(sizes.clone().filter(|size| *size > 4096).count(), 2);
    assert!(sizes.clone().all(|size| size <= 4096 + 64), "{:?}", sizes.collect::<Vec<_>>());
    for subject in ["--pool=e", "--model=nvidia/nv-embedqa-e5-v5", "--org=default", "--all"] {
        embed(&replicas[1], &json!("a")).await;
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_nimgate"))
            .args(["cache", "purge", subject, "--admin", &format!("http://{}", replicas[0].admin)])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        let only = async |replica: &Gateway| {
            replica.post(EMBED, &body(&json!("a"))).header("cache-control", "only-if-cached").send().await.status
        };
        assert_eq!(only(&replicas[0]).await, 504, "{subject}");
        until("the other replica forgets", async || only(&replicas[1]).await == 504).await;
    }
}

#[tokio::test]
async fn nobody_notices_what_becomes_of_redis() {
    let backend = simulator(Kind::Embedding).await;
    let mut redis =
        RedisServer::setup().option("maxmemory", "3mb").option("maxmemory-policy", "allkeys-lru").start().await;
    let gateway = started(with_redis(&backend, &redis.address().to_string(), ", max_mib: 1")).await;
    until_connected(&gateway).await;
    let text = |n: usize| json!(format!("text {n}"));
    let check = async |n: usize| {
        let answer = embed(&gateway, &text(n)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["data"], uncached(&gateway, &body(&text(n))).await["data"]);
        told(&answer)
    };
    // Filled until both levels evict.
    for n in 0..1000 {
        assert_eq!(embed(&gateway, &text(n)).await.status, 200);
    }
    until("it evicts", async || {
        let stats = redis.command(&["INFO", "stats"]);
        stats.lines().any(|line| line.strip_prefix("evicted_keys:").is_some_and(|n| n.trim() != "0"))
    })
    .await;
    for n in (0..1000).step_by(50) {
        check(n).await;
    }
    // Garbage, truncated and swapped values.
    let keys: Vec<String> = redis.command(&["KEYS", "nimgate:{*}:e"]).lines().map(str::to_owned).collect();
    for (at, key) in keys.iter().enumerate() {
        match at % 3 {
            0 => redis.command(&["SET", key, "garbage"]),
            1 => redis.command(&["SETRANGE", key, "100", "x"]),
            _ => {
                redis.command(&["DEL", key]);
                redis.command(&["HSET", key, "a", "b"])
            }
        };
    }
    for n in 900..930 {
        check(n).await;
    }
    // Frozen: passed over within its budget.
    redis.pause().await;
    assert_eq!(check(2000).await, "bypass; hits=0, misses=1; reason=redis_slow");
    for n in 2001..2010 {
        check(n).await;
    }
    redis.resume();
    until("it is used again", async || check(fastrand::usize(3000..)).await == "miss; hits=0, misses=1").await;
    // Killed, and back.
    redis.stop();
    until("it is known to be away", async || check(fastrand::usize(3000..)).await.contains("reason=redis_")).await;
    redis.restart().await;
    until("it is used again", async || check(fastrand::usize(3000..)).await == "miss; hits=0, misses=1").await;
}

#[tokio::test]
async fn videos_are_kept_by_content_where_that_is_allowed_and_urls_never() {
    let backend = simulator(Kind::CosmosEmbed1).await;
    for (media, wanted) in [(true, "hit; hits=1, misses=0"), (false, "bypass; hits=0, misses=0; reason=items")] {
        let yaml = pool(&format!(", media: {media}")).replace(MODEL, "nvidia/cosmos-embed1");
        let gateway = started(Gateway::setup().pool("v", "cosmos-embed1", &yaml, &[&backend.url()])).await;
        let ask = async |input: Value, kind: &str| {
            let body = json!({ "model": "nvidia/cosmos-embed1", "input": input, "request_type": kind });
            gateway.post(EMBED, &body).send().await
        };
        let video = json!("data:video/mp4;base64,AAAAIGZ0eXBpc29tAAACAGlzb20=");
        let first = ask(video.clone(), "query").await;
        let second = ask(video, "query").await;
        assert_eq!((told(&second).as_str(), second.json()), (wanted, first.json()));
        let url = json!(["data:video/mp4;presigned_url,https://a/v.mp4"]);
        ask(url.clone(), "bulk_video").await;
        assert_eq!(told(&ask(url, "bulk_video").await), "bypass; hits=0, misses=0; reason=member");
        assert_eq!(told(&ask(json!(["cat", "dog"]), "bulk_text").await), "miss; hits=0, misses=2");
        assert_eq!(told(&ask(json!(["dog"]), "bulk_text").await), "hit; hits=1, misses=0");
    }
}

/// A backend that answers with what it is told, once, and well otherwise.
async fn told_backend(simulator: &Simulator) -> (String, Arc<Mutex<Option<Vec<u8>>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let next: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let (told, behind) = (Arc::clone(&next), simulator.url().trim_start_matches("http://").to_owned());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (told, behind) = (Arc::clone(&told), behind.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !is_whole(&request) {
                    let mut more = [0; 4096];
                    let read = stream.read(&mut more).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    request.extend_from_slice(&more[..read]);
                }
                let answer = if request.starts_with(b"POST ") { told.lock().unwrap().take() } else { None };
                if let Some(answer) = answer {
                    stream.write_all(&answer).await?;
                    return stream.shutdown().await;
                }
                let mut server = tokio::net::TcpStream::connect(behind).await?;
                let line = request.iter().position(|b| *b == b'\n').unwrap() + 1;
                server.write_all(&request[..line]).await?;
                server.write_all(b"connection: close\r\n").await?;
                server.write_all(&request[line..]).await?;
                tokio::io::copy_bidirectional(&mut stream, &mut server).await.map(drop)
            });
        }
    });
    (url, next)
}

/// Whether all of a request with a stated length is there.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    body.len() >= length.unwrap_or_default()
}

fn http(body: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn answers_that_are_wrong_are_passed_on_and_not_kept() {
    let simulator = simulator(Kind::Embedding).await;
    let (url, next) = told_backend(&simulator).await;
    // Each request on a connection of its own.
    let yaml = pool("") + "\nretry: {attempts: 1}";
    let gateway = started(Gateway::setup().pool("e", "nim-embedding", &yaml, &[&url])).await;
    embed(&gateway, &json!(["known"])).await;
    let item =
        |index: usize, numbers: &str| format!(r#"{{"object":"embedding","index":{index},"embedding":{numbers}}}"#);
    let vector = serde_json::to_string(&vec![0.5; 1024]).unwrap();
    let answer = |items: &[String]| {
        format!(
            r#"{{"object":"list","data":[{}],"model":"m","usage":{{"prompt_tokens":1,"total_tokens":1}}}}"#,
            items.join(",")
        )
    };
    let wrong = [
        answer(&[item(0, &vector)]),
        answer(&[item(0, &vector), item(0, &vector)]),
        answer(&[item(1, &vector), item(2, &vector)]),
        answer(&[item(0, &vector), item(1, "[0.5]")]),
        answer(&[item(0, &vector), item(1, "[NaN]")]),
        answer(&[item(0, &vector), item(1, "[0.5,null]")]),
        "no JSON".to_owned(),
    ];
    for (at, body) in wrong.iter().enumerate() {
        let input = [format!("a{at}"), format!("b{at}")];
        *next.lock().unwrap() = Some(http(body, body.len()));
        let whole = embed(&gateway, &json!(input)).await;
        assert_eq!((whole.status, whole.text()), (200, body.clone()), "as it came");
        // Of a part it can not be put together: the whole is asked.
        *next.lock().unwrap() = Some(http(body, body.len()));
        let mixed = json!([input[0], "known", input[1]]);
        let part = embed(&gateway, &mixed).await;
        assert_eq!((part.status, told(&part).as_str()), (200, "miss; hits=0, misses=3"), "{body}");
        assert_eq!(part.json(), uncached(&gateway, &self::body(&mixed)).await);
    }
    // A vector alone with other dimensions than those before: not kept, and soon forgotten.
    let lone = answer(&[item(0, "[0.5]")]);
    *next.lock().unwrap() = Some(http(&lone, lone.len()));
    assert_eq!(embed(&gateway, &json!("lone")).await.text(), lone);
    let states = ["miss; hits=0, misses=1", "miss; hits=0, misses=1", "hit; hits=1, misses=0"];
    for state in states {
        let answer = embed(&gateway, &json!("lone")).await;
        assert_eq!(
            (told(&answer).as_str(), answer.json()),
            (state, uncached(&gateway, &self::body(&json!("lone"))).await)
        );
    }
    assert_eq!(told(&embed(&gateway, &json!(["known"])).await), "hit; hits=1, misses=0");
    let good = answer(&[item(0, &vector), item(1, &vector)]);
    *next.lock().unwrap() = Some(http(&good[..good.len() - 9], good.len()));
    let cut = embed(&gateway, &json!(["x", "y"])).await;
    assert_eq!((cut.status, cut.fault()), (502, ("upstream_closed", "network")));
    assert_eq!(told(&embed(&gateway, &json!(["x", "y"])).await), "miss; hits=0, misses=2");
    assert!(gateway.metric("nimgate_cache_unusable_total{pool=\"e\",what=\"unkept\"}").await >= 14.0);
}

#[tokio::test]
async fn what_is_passed_on_before_it_is_read_is_asked_once_and_kept_if_it_is_good() {
    let simulator = simulator(Kind::Embedding).await;
    let gateway = started(setup(&simulator, "")).await;
    for round in 0..10 {
        let input: Vec<String> = (0..50).map(|n| format!("{round} {n}")).collect();
        let first = embed(&gateway, &json!(input)).await;
        assert_eq!(told(&first), "miss; hits=0, misses=50");
        // At once, while the answer may still be being read.
        let second = embed(&gateway, &json!(input)).await;
        assert_eq!(told(&second), "hit; hits=50, misses=0");
        assert_eq!(second.json()["data"], first.json()["data"]);
        assert_eq!(simulator.seen().requests(EMBED), round + 1);
    }
    let (url, next) = told_backend(&simulator).await;
    let yaml = pool("") + "\nretry: {attempts: 1}";
    let gateway = started(Gateway::setup().pool("e", "nim-embedding", &yaml, &[&url])).await;
    let vector = serde_json::to_string(&vec![0.123_456; 1024]).unwrap();
    for (at, wrong) in [vector.replacen("0.1", "x", 1), "[0.5]".into(), format!("{vector} 1")].iter().enumerate() {
        let item = |index: usize| {
            let numbers = if index == 19 { wrong } else { &vector };
            format!(r#"{{"object":"embedding","index":{index},"embedding":{numbers}}}"#)
        };
        let items: Vec<String> = (0..20).map(item).collect();
        let body = format!(
            r#"{{"object":"list","data":[{}],"model":"m","usage":{{"prompt_tokens":1,"total_tokens":1}}}}"#,
            items.join(",")
        );
        let input: Vec<String> = (0..20).map(|n| format!("{at} {n}")).collect();
        *next.lock().unwrap() = Some(http(&body, body.len()));
        let first = embed(&gateway, &json!(input)).await;
        assert_eq!((first.status, first.text()), (200, body), "as it came");
        assert_eq!(told(&embed(&gateway, &json!(input)).await), "miss; hits=0, misses=20");
    }
    assert_eq!(gateway.metric("nimgate_cache_unusable_total{pool=\"e\",what=\"unkept\"}").await, 3.0);
}

#[tokio::test]
async fn larger_batches_than_any_so_far_are_asked_whole() {
    let backend = simulator(Kind::Embedding).await;
    let gateway = started(setup(&backend, "")).await;
    let texts: Vec<String> = (0..300).map(|n| format!("t{n}")).collect();
    for some in texts.chunks(50) {
        embed(&gateway, &json!(some)).await;
    }
    // A backend may refuse so many.
    let first = embed(&gateway, &json!(texts)).await;
    assert_eq!(told(&first), "miss; hits=0, misses=300");
    let second = embed(&gateway, &json!(texts)).await;
    assert_eq!(told(&second), "hit; hits=300, misses=0");
    assert_eq!(second.json()["data"], first.json()["data"]);
    // Answers of some 20 MB.
    let huge: Vec<String> = (0..2000).map(|n| format!("t{n}")).collect();
    let first = embed(&gateway, &json!(huge)).await;
    assert_eq!((first.status, told(&first).as_str()), (200, "miss; hits=0, misses=2000"));
    let second = embed(&gateway, &json!(huge)).await;
    assert_eq!(told(&second), "hit; hits=2000, misses=0");
    assert_eq!(second.json()["data"], first.json()["data"]);
}

#[tokio::test]
async fn what_another_pool_answers_is_not_kept() {
    let (own, other) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
    other.revise("other");
    let yaml = pool("") + "\nspill: {to: [next]}\nretry: {attempts: 1}";
    let next = format!("models: [{{id: {MODEL}}}]\nhealth: {{enabled: false}}\nmetrics: {{enabled: false}}");
    let gateway = started(Gateway::setup().pool("e", "nim-embedding", &yaml, &[&own.url()]).pool(
        "next",
        "nim-embedding",
        &next,
        &[&other.url()],
    ))
    .await;
    let plain = embed(&gateway, &json!(["a", "b"])).await.json();
    own.fault_times("status=503", 1, Some(EMBED)).unwrap();
    let spilled = embed(&gateway, &json!(["c"])).await;
    assert_eq!((spilled.status, spilled.header("x-nimgate-spill")), (200, "overload; from=e"));
    assert_eq!(told(&embed(&gateway, &json!(["c"])).await), "miss; hits=0, misses=1");
    // A part that another pool answered is never put together with what is known.
    own.fault_times("status=503", 1, Some(EMBED)).unwrap();
    let mixed = embed(&gateway, &json!(["a", "d", "b"])).await;
    let is_of_own = mixed.json()["data"][0]["embedding"] == plain["data"][0]["embedding"];
    let is_whole = mixed.json()["data"][2]["embedding"] == plain["data"][1]["embedding"];
    assert_eq!((mixed.status, is_of_own), (200, is_whole));
    assert_eq!(told(&mixed), "miss; hits=0, misses=3");
}
