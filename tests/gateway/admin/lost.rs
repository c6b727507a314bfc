//! Redis away, emptied, or full of what is none of ours.

use super::*;

const RECORDS: &str = "nimgate:{keys}:records";
const VERSION: &str = "nimgate:{keys}:version";

#[tokio::test]
async fn keys_go_on_while_redis_is_away_and_changes_wait() {
    let redis = RedisServer::start().await;
    let mut line = Line::to(redis.address()).await;
    let backend = simulator(Kind::Llm).await;
    let gateway = replica(&backend, &line.address().to_string()).start().await;
    until_ready(&gateway).await;
    let (id, key) = create(&gateway, json!({})).await;
    line.cut().await;
    until("Redis is away", async || gateway.admin("/readyz").await.json()["redis"]["up"] == false).await;
    assert_eq!(chat_with(&gateway, &key).await, 200);
    assert_eq!(chat_fault(&gateway, "ngk_nobody_x").await, unknown(), "who was unknown stays so");
    for (method, path, body) in [
        ("POST", "/keys".to_owned(), json!({})),
        ("PATCH", format!("/keys/{id}"), json!({ "disabled": true })),
        ("DELETE", format!("/keys/{id}"), json!({})),
        ("POST", format!("/keys/{id}/rotate"), json!({})),
        ("PUT", "/orgs/acme".to_owned(), json!({ "limits": [] })),
    ] {
        let answer = ask(&gateway, method, &path, Some(body)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{method} {path} {}", answer.text());
    }
    assert_eq!(ask(&gateway, "GET", &format!("/keys/{id}"), None).await.status, 200);
    assert_eq!(ask(&gateway, "GET", "/usage", None).await.status, 503);
    gateway.signal("HUP");
    until("it is loaded again", async || gateway.metric("nimgate_config_generation").await == 2.0).await;
    assert_eq!(chat_with(&gateway, &key).await, 200, "a reload keeps what is known");

    let new = replica(&backend, &line.address().to_string()).start().await;
    let answer = new.chat(false).key(&key).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("keys_unknown", "gateway")));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(new.chat(false).send().await.status, 200, "the file's own keys work");
    assert_eq!(new.chat(false).anonymous().send().await.status, 401);
    let page = new.admin("/readyz").await;
    assert_eq!((page.status, &page.json()["keys"]["known"]), (503, &false.into()));
    assert_eq!(ask(&new, "POST", "/keys", Some(json!({}))).await.status, 503);
    line.mend().await;
    until("the new one knows the key", async || chat_with(&new, &key).await == 200).await;
    until_ready(&new).await;
    until("changes are taken again", async || {
        ask(&gateway, "PATCH", &format!("/keys/{id}"), Some(json!({ "disabled": true }))).await.status == 200
    })
    .await;
    until("everywhere", async || chat_with(&new, &key).await == 401).await;
}

#[tokio::test]
async fn what_redis_lost_is_written_back() {
    let redis = RedisServer::start().await;
    let (backend, one) = start(&redis).await;
    let other = replica(&backend, &redis.address().to_string()).start().await;
    until_ready(&other).await;
    let (_, key) = create(&one, json!({ "org": "acme" })).await;
    let (gone, revoked) = create(&one, json!({})).await;
    assert_eq!(ask(&one, "DELETE", &format!("/keys/{gone}"), None).await.status, 204);
    until("the other knows it", async || chat_with(&other, &key).await == 200).await;
    let whole = redis.command(&["HGETALL", RECORDS]);
    for round in 0..3 {
        redis.command(&["FLUSHALL"]);
        until("the records are back", async || redis.command(&["HGETALL", RECORDS]) == whole).await;
        assert_eq!((chat_with(&one, &key).await, chat_with(&other, &key).await), (200, 200), "round {round}");
        assert_eq!(chat_with(&other, &revoked).await, 401, "what was deleted stays so");
    }
    // An older state, such as a replica of Redis that was promoted has.
    let (id, later) = create(&one, json!({ "name": "later" })).await;
    until("the other knows it too", async || chat_with(&other, &later).await == 200).await;
    redis.command(&[
        "EVAL",
        &format!("redis.call('HDEL', KEYS[1], 'key/{id}') return redis.call('HINCRBY', KEYS[2], 'number', -1)"),
        "2",
        RECORDS,
        VERSION,
    ]);
    until("the change is back", async || redis.command(&["HEXISTS", RECORDS, &format!("key/{id}")]) == "1").await;
    assert_eq!((chat_with(&one, &later).await, chat_with(&other, &later).await), (200, 200));
    assert_eq!(ask(&other, "DELETE", &format!("/keys/{id}"), None).await.status, 204);
    until("changes go on", async || chat_with(&one, &later).await == 401).await;
    let new = replica(&backend, &redis.address().to_string()).start().await;
    until("a new replica knows it", async || chat_with(&new, &key).await == 200).await;
}

#[tokio::test]
async fn records_that_are_none_break_nothing() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (_, good) = create(&gateway, json!({})).await;
    let (_, limited) = create(&gateway, json!({ "org": "acme", "team": "a" })).await;
    let (future, unclear) = create(&gateway, json!({})).await;
    let (gone, nowhere) = create(&gateway, json!({})).await;
    let hash = |key: &str| NewKey::from_text(key).unwrap().hash_text();
    let known = json!({ "id": future, "sha256": hash(&unclear), "colour": "red" }).to_string();
    let dangling =
        json!({ "id": gone, "sha256": hash(&nowhere), "models": ["meta/gone"], "pools": ["gone"] }).to_string();
    for (field, record) in [
        ("key/garbage", "{]"),
        ("key/wrong", "{\"id\": \"right\", \"sha256\": \"00\"}"),
        ("sheep", "\u{1}\u{0}"),
        (&format!("key/{future}"), &known),
        (&format!("key/{gone}"), &dangling),
    ] {
        redis.command(&["HSET", RECORDS, field, record]);
    }
    redis.command(&["HINCRBY", VERSION, "number", "1"]);
    until("it is read", async || chat_with(&gateway, &unclear).await == 401).await;
    assert_eq!(chat_with(&gateway, &good).await, 200);
    assert_eq!(chat_fault(&gateway, &nowhere).await, (403, "not_allowed".into()), "a model that is gone is no model");
    let warned = |gateway: &Gateway| gateway.output().matches("stored records can not be used").count();
    assert_eq!(warned(&gateway), 1, "once for a version: {}", gateway.output());

    let shown = ask(&gateway, "GET", &format!("/keys/{future}"), None).await.json();
    assert!(shown["broken"].as_str().unwrap().contains("unknown key"), "{shown}");
    assert!(ask(&gateway, "GET", "/keys", None).await.text().contains("\"garbage\""));
    let unchanged = ask(&gateway, "PATCH", &format!("/keys/{future}"), Some(json!({ "name": "x" }))).await;
    assert_eq!(unchanged.status, 409, "{}", unchanged.text());
    for id in ["garbage", "wrong", &future] {
        assert_eq!(ask(&gateway, "DELETE", &format!("/keys/{id}"), None).await.status, 204, "{id}");
    }

    redis.command(&[
        "HSET",
        RECORDS,
        "team/acme/a",
        "{\"org\": \"acme\", \"name\": \"a\", \"limits\": [{\"sheep\": 1}]}",
    ]);
    redis.command(&["HINCRBY", VERSION, "number", "1"]);
    until("nobody may use limits that nobody knows", async || chat_with(&gateway, &limited).await == 401).await;
    assert_eq!(ask(&gateway, "PUT", "/teams/acme/a", Some(json!({ "limits": [] }))).await.status, 200);
    assert_eq!(chat_with(&gateway, &limited).await, 200);

    let body = json!({ "org": "acme", "team": "a" });
    redis.command(&["SET", RECORDS, "sheep"]);
    redis.command(&["HINCRBY", VERSION, "number", "1"]);
    until("it is told", async || gateway.output().contains("can not be read")).await;
    assert_eq!((chat_with(&gateway, &good).await, chat_with(&gateway, &limited).await), (200, 200));
    assert_eq!(ask(&gateway, "POST", "/keys", Some(body.clone())).await.status, 503);
    redis.command(&["FLUSHALL"]);
    until("it is well again", async || ask(&gateway, "POST", "/keys", Some(body.clone())).await.status == 201).await;
    assert_eq!(chat_with(&gateway, &good).await, 200);
}

#[tokio::test]
async fn ten_thousand_keys_are_read_quickly() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let fill = "for i = 1, 10000 do local id = 'fill-' .. i; redis.call('HSET', KEYS[1], 'key/' .. id, \
                '{\"id\":\"' .. id .. '\",\"sha256\":\"' .. string.rep('0a', 32) .. '\",\"org\":\"o' .. (i % 10) .. \
                '\",\"team\":\"t' .. (i % 100) .. '\",\"limits\":[{\"requests\":10,\"per\":\"second\"},\
                {\"total_tokens\":1000000,\"per\":\"day\"}]}') end redis.call('HSET', KEYS[2], 'epoch', 'e') \
                return redis.call('HINCRBY', KEYS[2], 'number', 1)";
    redis.command(&["EVAL", fill, "2", RECORDS, VERSION]);
    let took = |gateway: &Gateway| {
        let lines: Vec<Value> = gateway.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of = |line: &&Value| line["fields"]["records"].as_u64() >= Some(10_000);
        lines.iter().filter(of).filter_map(|line| line["fields"]["took_ms"].as_u64()).collect::<Vec<_>>()
    };
    until("they are read", async || !took(&gateway).is_empty()).await;
    let begun = Instant::now();
    let (_, key) = create(&gateway, json!({})).await;
    let changed = begun.elapsed();
    assert_eq!(chat_with(&gateway, &key).await, 200);
    until("the change is told", async || took(&gateway).len() > 1).await;
    println!("10 000 records: read and in force {:?} ms; one more key was made in {changed:?}", took(&gateway));
}
