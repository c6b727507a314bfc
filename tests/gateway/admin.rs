//! The admin API: keys, teams, organisations and usage, in Redis and in the keys file.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nimgate::auth::NewKey;
use serde_json::{Value, json};

use crate::redis::*;
use crate::support::*;

mod api;
pub mod cli;
mod lost;
mod mended;

/// The token of [`ask`].
pub const TOKEN: &str = "admin-token-of-the-tests";
/// How long a revoked key may go on working elsewhere.
const EVERYWHERE: Duration = Duration::from_secs(1);

/// A replica that keeps its keys in Redis.
fn replica(backend: &Simulator, redis: &str) -> Setup {
    Gateway::setup()
        .chat(&[&backend.url()])
        .admin_token(TOKEN)
        .callers_in_redis()
        .top(&format!(
            "redis: {{addresses: ['{redis}'], timeout_ms: 500}}\nquotas: {{write_every_ms: 50, currency: EUR}}"
        ))
        .top("prices: [{model: '*', per_request: 0.5}]")
}

async fn start(redis: &RedisServer) -> (Simulator, Gateway) {
    let backend = simulator(Kind::Llm).await;
    let gateway = replica(&backend, &redis.address().to_string()).start().await;
    until_ready(&gateway).await;
    (backend, gateway)
}

async fn until_ready(gateway: &Gateway) {
    until("it is ready", async || gateway.admin("/readyz").await.status == 200).await;
}

async fn until_shared(gateway: &Gateway) {
    until("limits are shared", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
}

/// Asks the admin API of a gateway whose token is [`TOKEN`].
pub async fn ask(gateway: &Gateway, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    send(gateway, method, path, Some(TOKEN), "application/json", &body).await
}

async fn send(gateway: &Gateway, method: &str, path: &str, token: Option<&str>, kind: &str, body: &str) -> Answer {
    let mut request = http::Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("http://{}{path}", gateway.admin))
        .header("content-type", kind);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(bytes::Bytes::from(body.to_owned()))).unwrap();
    answer(Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap()).await
}

/// Makes a key and returns its id and text.
async fn create(gateway: &Gateway, body: Value) -> (String, String) {
    let made = ask(gateway, "POST", "/keys", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let page = made.json();
    let (id, text) = (page["record"]["id"].as_str().unwrap(), page["key"].as_str().unwrap());
    assert!(text.starts_with(&format!("ngk_{id}_")), "{page}");
    (id.to_owned(), text.to_owned())
}

async fn chat_with(gateway: &Gateway, key: &str) -> u16 {
    gateway.chat(false).key(key).send().await.status
}

/// Status and label of a chat.
async fn chat_fault(gateway: &Gateway, key: &str) -> (u16, String) {
    let answer = gateway.chat(false).key(key).send().await;
    (answer.status, answer.fault().0.to_owned())
}

fn unknown() -> (u16, String) {
    (401, "key_invalid".into())
}

#[tokio::test]
async fn a_key_lives_from_its_creation_to_its_deletion() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let body = json!({ "org": "acme", "team": "search", "name": "indexer", "models": ["meta/llama-3.1-8b-instruct"] });
    let (id, first) = create(&gateway, body).await;
    assert_eq!(chat_with(&gateway, &first).await, 200);

    let shown = ask(&gateway, "GET", &format!("/keys/{id}"), None).await;
    let page = shown.json();
    assert_eq!((&page["org"], &page["team"], &page["name"]), (&"acme".into(), &"search".into(), &"indexer".into()));
    assert_eq!((&page["source"], &page["disabled"]), (&"redis".into(), &false.into()));
    let hash = NewKey::from_text(&first).unwrap().hash_text();
    let secret = first.rsplit('_').next().unwrap();
    let stored = redis.command(&["HGETALL", "nimgate:{keys}:records"]);
    assert!(stored.contains(&hash) && !stored.contains(secret), "only the hash is stored");
    let list = ask(&gateway, "GET", "/keys", None).await.text();
    for text in [shown.text(), list, gateway.output()] {
        assert!(!text.contains(&hash) && !text.contains(secret), "neither secret nor hash is shown: {text}");
    }

    let rotated = ask(&gateway, "POST", &format!("/keys/{id}/rotate"), Some(json!({ "overlap_s": 3 }))).await;
    let second = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert_eq!((chat_with(&gateway, &first).await, chat_with(&gateway, &second).await), (200, 200), "both for a while");
    assert!(rotated.json()["record"]["previous_until"].is_string());
    until("the old secret ends", async || chat_fault(&gateway, &first).await == unknown()).await;
    assert_eq!(chat_with(&gateway, &second).await, 200);
    let rotated = ask(&gateway, "POST", &format!("/keys/{id}/rotate"), Some(json!({ "overlap_s": 0 }))).await;
    let third = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_eq!((chat_with(&gateway, &second).await, chat_with(&gateway, &third).await), (401, 200));

    let path = format!("/keys/{id}");
    let disabled = ask(&gateway, "PATCH", &path, Some(json!({ "disabled": true, "name": null }))).await;
    assert_eq!((disabled.status, &disabled.json()["name"]), (200, &"".into()));
    assert_eq!(chat_fault(&gateway, &third).await, (401, "key_disabled".into()));
    assert_eq!(ask(&gateway, "PATCH", &path, Some(json!({ "disabled": false }))).await.json()["team"], "search");
    assert_eq!(chat_with(&gateway, &third).await, 200);
    assert_eq!(ask(&gateway, "DELETE", &path, None).await.status, 204);
    assert_eq!(chat_fault(&gateway, &third).await, unknown());
    assert_eq!(ask(&gateway, "GET", &path, None).await.status, 404);
    assert_eq!(ask(&gateway, "DELETE", &path, None).await.status, 404);
}

#[tokio::test]
async fn every_replica_refuses_a_revoked_key_within_a_second() {
    let redis = RedisServer::start().await;
    let (backend, one) = start(&redis).await;
    let other = replica(&backend, &redis.address().to_string()).start().await;
    until_ready(&other).await;
    let mut longest = Duration::ZERO;
    for round in 0..6 {
        let (id, key) = create(&one, json!({})).await;
        until("the other knows it", async || chat_with(&other, &key).await == 200).await;
        let path = format!("/keys/{id}");
        let begun = Instant::now();
        let changed = match round % 3 {
            0 => ask(&one, "DELETE", &path, None).await,
            1 => ask(&one, "PATCH", &path, Some(json!({ "disabled": true }))).await,
            _ => ask(&one, "POST", &format!("{path}/rotate"), Some(json!({ "overlap_s": 0 }))).await,
        };
        assert!(changed.status < 300, "{}", changed.text());
        assert_eq!(chat_with(&one, &key).await, 401, "at once where it was made");
        until("the other refuses it", async || chat_with(&other, &key).await == 401).await;
        longest = longest.max(begun.elapsed());
    }
    println!("a revoked key was refused by the other replica after {} ms at most", longest.as_millis());
    assert!(longest < EVERYWHERE, "{longest:?}");
}

#[tokio::test]
async fn replicas_that_change_one_key_lose_no_change() {
    let redis = RedisServer::start().await;
    let (backend, one) = start(&redis).await;
    let other = replica(&backend, &redis.address().to_string()).start().await;
    until_ready(&other).await;
    let (id, key) = create(&one, json!({})).await;
    let path = format!("/keys/{id}");
    until("both know it", async || chat_with(&other, &key).await == 200).await;
    for round in 0..10 {
        let (name, expires) = (format!("round {round}"), format!("2100-01-01T00:00:{round:02}Z"));
        let (a, b) = tokio::join!(
            ask(&one, "PATCH", &path, Some(json!({ "name": name }))),
            ask(&other, "PATCH", &path, Some(json!({ "expires": expires }))),
        );
        assert_eq!((a.status, b.status), (200, 200), "{} {}", a.text(), b.text());
        until("both changes are there", async || {
            let pages = [ask(&one, "GET", &path, None).await.json(), ask(&other, "GET", &path, None).await.json()];
            pages.iter().all(|page| page["name"] == name && page["expires"] == expires)
        })
        .await;
    }
}

#[tokio::test]
async fn a_changed_limit_holds_at_once_and_keeps_what_was_used() {
    let redis = RedisServer::start().await;
    let (backend, gateway) = start(&redis).await;
    until_shared(&gateway).await;
    let day = |amount: u64| json!([{ "requests": amount, "per": "day" }]);
    let (id, key) = create(&gateway, json!({ "limits": day(5) })).await;
    for _ in 0..3 {
        assert_eq!(chat_with(&gateway, &key).await, 200);
    }
    let changed = ask(&gateway, "PUT", &format!("/keys/{id}/limits"), Some(json!({ "limits": day(4) }))).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    let limit = &changed.json()["limits"][0];
    assert_eq!(limit["name"], "key-requests-day");
    assert_eq!((&limit["metric"], &limit["per"], &limit["amount"]), (&"requests".into(), &"day".into(), &4.into()));
    assert_eq!((&limit["used"], &limit["remaining"]), (&3.into(), &1.into()), "{limit}");
    assert!(limit["resets_in_s"].as_f64().unwrap() > 0.0);
    assert_eq!(chat_with(&gateway, &key).await, 200);
    assert_eq!(chat_fault(&gateway, &key).await, (429, "quota_exceeded".into()));

    gateway.signal("HUP");
    until("it is loaded again", async || gateway.metric("nimgate_config_generation").await == 2.0).await;
    assert_eq!(
        chat_fault(&gateway, &key).await,
        (429, "quota_exceeded".into()),
        "a reload forgets neither key nor count"
    );
    let raised = ask(&gateway, "PATCH", &format!("/keys/{id}"), Some(json!({ "limits": day(6) }))).await;
    assert_eq!(raised.json()["limits"][0]["used"], 4);
    assert_eq!(chat_with(&gateway, &key).await, 200);

    let other = replica(&backend, &redis.address().to_string()).start().await;
    until_shared(&other).await;
    until("another replica tells what was used here", async || {
        ask(&other, "GET", &format!("/keys/{id}"), None).await.json()["limits"][0]["used"] == 5
    })
    .await;
}

#[tokio::test]
async fn limits_of_teams_and_organisations_hold_for_their_keys() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    until_shared(&gateway).await;
    let limits = |amount: u64, per: &str| Some(json!({ "limits": [{ "requests": amount, "per": per }] }));
    assert_eq!(ask(&gateway, "PUT", "/orgs/a%2Fb", limits(3, "day")).await.status, 201);
    let team = ask(&gateway, "PUT", "/teams/a%2Fb/x%20y", limits(2, "month")).await;
    assert_eq!((team.status, &team.json()["name"]), (201, &"x y".into()));
    let (id, one) = create(&gateway, json!({ "org": "a/b", "team": "x y" })).await;
    let (_, two) = create(&gateway, json!({ "org": "a/b", "team": "x y" })).await;
    assert_eq!((chat_with(&gateway, &one).await, chat_with(&gateway, &two).await), (200, 200));
    assert_eq!(chat_with(&gateway, &one).await, 429);
    let above = ask(&gateway, "GET", &format!("/keys/{id}"), None).await.json()["above"].clone();
    let names: Vec<&str> = above.as_array().unwrap().iter().map(|limit| limit["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["org-requests-day", "team-requests-month"]);
    let org = ask(&gateway, "GET", "/orgs/a%2Fb", None).await.json();
    assert_eq!((&org["limits"][0]["used"], &org["limits"][0]["remaining"]), (&2.into(), &1.into()), "{org}");
    let team = ask(&gateway, "PUT", "/teams/a%2Fb/x%20y", limits(9, "month")).await;
    assert_eq!((team.status, &team.json()["limits"][0]["used"]), (200, &2.into()));
    assert_eq!(
        (chat_with(&gateway, &one).await, chat_with(&gateway, &two).await),
        (200, 429),
        "now the organisation's"
    );

    for path in ["/teams/a%2Fb/x%20y", "/orgs/a%2Fb"] {
        let kept = ask(&gateway, "DELETE", path, None).await;
        assert_eq!(kept.status, 409, "{}", kept.text());
    }
    for key in [&one, &two] {
        let id = NewKey::from_text(key).unwrap().id;
        assert_eq!(ask(&gateway, "DELETE", &format!("/keys/{id}"), None).await.status, 204);
    }
    assert_eq!(ask(&gateway, "DELETE", "/orgs/a%2Fb", None).await.status, 409, "it has a team");
    assert_eq!(ask(&gateway, "DELETE", "/teams/a%2Fb/x%20y", None).await.status, 204);
    assert_eq!(ask(&gateway, "DELETE", "/orgs/a%2Fb", None).await.status, 204);
    assert_eq!(ask(&gateway, "GET", "/orgs/a%2Fb", None).await.status, 404);
}

#[tokio::test]
async fn a_cluster_keeps_records_and_tells_how_limits_stand() {
    let (cluster, backend) = (RedisCluster::start().await, simulator(Kind::Llm).await);
    let address = cluster.nodes[0].address();
    let gateway = Gateway::setup()
        .chat(&[&backend.url()])
        .admin_token(TOKEN)
        .callers_in_redis()
        .top(&format!("redis: {{mode: cluster, addresses: ['{address}'], timeout_ms: 500}}"))
        .start()
        .await;
    until_ready(&gateway).await;
    until_shared(&gateway).await;
    let limits = json!([{ "requests": 5, "per": "day" }, { "concurrency": 2 }]);
    let (id, key) = create(&gateway, json!({ "org": "acme", "limits": limits })).await;
    assert_eq!(chat_with(&gateway, &key).await, 200);
    let page = ask(&gateway, "GET", &format!("/keys/{id}"), None).await.json();
    assert_eq!((&page["limits"][0]["used"], &page["limits"][1]["amount"]), (&1.into(), &2.into()), "{page}");
    assert_eq!(ask(&gateway, "DELETE", &format!("/keys/{id}"), None).await.status, 204);
    assert_eq!(chat_fault(&gateway, &key).await, unknown());
}

#[tokio::test]
async fn keys_in_a_cluster_are_made_rotated_and_revoked_at_every_replica() {
    let (mut cluster, backend) = (RedisCluster::start().await, simulator(Kind::Llm).await);
    const RECORDS: &str = "nimgate:{keys}:records";
    let owner = cluster.owner(RECORDS);
    // Each knows but one node, and not the one that has the records.
    let replica = async |node: usize| {
        let address = cluster.nodes[(owner + node) % cluster.nodes.len()].address();
        let redis = format!("redis: {{mode: cluster, addresses: ['{address}'], timeout_ms: 500}}");
        let setup = Gateway::setup().chat(&[&backend.url()]).admin_token(TOKEN).callers_in_redis().top(&redis);
        let gateway = setup.start().await;
        until_ready(&gateway).await;
        gateway
    };
    let (one, other) = (replica(1).await, replica(2).await);
    let mut longest = Duration::ZERO;
    for round in 0..6 {
        let (id, mut key) = create(&one, json!({ "org": format!("org-{round}") })).await;
        until("the other knows it", async || chat_with(&other, &key).await == 200).await;
        let path = format!("/keys/{id}");
        let rotated = ask(&one, "POST", &format!("{path}/rotate"), Some(json!({ "overlap_s": 600 }))).await;
        let new = rotated.json()["key"].as_str().unwrap().to_owned();
        until("the other knows both secrets", async || chat_with(&other, &new).await == 200).await;
        assert_eq!([chat_with(&one, &key).await, chat_with(&other, &key).await], [200, 200]);
        let begun = Instant::now();
        let changed = match round % 3 {
            0 => ask(&one, "DELETE", &path, None).await,
            1 => ask(&one, "PATCH", &path, Some(json!({ "disabled": true }))).await,
            _ => ask(&one, "POST", &format!("{path}/rotate"), Some(json!({ "overlap_s": 0 }))).await,
        };
        assert!(changed.status < 300, "{}", changed.text());
        if round % 3 == 2 {
            // The secret before is refused as well.
            assert_eq!(chat_with(&one, &key).await, 401);
            key = new;
        }
        assert_eq!(chat_with(&one, &key).await, 401, "at once where it was made");
        until("the other refuses it", async || chat_with(&other, &key).await == 401).await;
        longest = longest.max(begun.elapsed());
        let status = if round % 3 == 0 { 404 } else { 200 };
        assert_eq!(ask(&other, "GET", &path, None).await.status, status, "it is shown as it is");
    }
    println!("through a cluster, a revoked key was refused after {} ms at most", longest.as_millis());
    assert!(longest < EVERYWHERE, "{longest:?}");
    // The node with the records comes back empty: they are written anew, and changes go on.
    let (_, key) = create(&one, json!({})).await;
    until("the other knows it", async || chat_with(&other, &key).await == 200).await;
    let records = |cluster: &RedisCluster| {
        let all = cluster.nodes[owner].command(&["HGETALL", RECORDS]);
        let lines: BTreeSet<String> = all.lines().map(str::to_owned).collect();
        lines
    };
    let whole = records(&cluster);
    cluster.nodes[owner].restart().await;
    assert_eq!([chat_with(&one, &key).await, chat_with(&other, &key).await], [200, 200]);
    cluster.until_sound().await;
    until("the records are back", async || records(&cluster) == whole).await;
    let mut made = None;
    until("changes are taken again", async || {
        let answer = ask(&one, "POST", "/keys", Some(json!({}))).await;
        made = (answer.status == 201).then(|| answer.json()["key"].as_str().unwrap().to_owned());
        made.is_some()
    })
    .await;
    until("the other knows the new key", async || chat_with(&other, made.as_ref().unwrap()).await == 200).await;
}
