//! The admin API and the CLI on it, with records of callers in Redis.

use std::process::Command;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::redis::*;
use crate::support::*;

const TOKEN: &str = "admin-token-of-the-tests";

async fn call(gateway: &Gateway, method: Method, path: &str, body: Option<Value>, token: &str) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", gateway.admin))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json");
    let body = body.map(|b| b.to_string()).unwrap_or_default();
    answer(client.request(request.body(Full::new(bytes::Bytes::from(body))).unwrap()).await.unwrap()).await
}

async fn admin(gateway: &Gateway, method: Method, path: &str, body: Option<Value>) -> Answer {
    call(gateway, method, path, body, TOKEN).await
}

async fn replica(backend: &Simulator, redis: &RedisServer) -> Gateway {
    let top = format!("redis: {{addresses: ['{}'], timeout_ms: 500}}\nquotas: {{write_every_ms: 50}}", redis.address());
    let setup = Gateway::setup().chat(&[&backend.url()]).top(&top).admin_token(TOKEN).callers_in_redis();
    let gateway = setup.start().await;
    until("it is ready", async || gateway.admin("/readyz").await.status == 200).await;
    until("limits are shared", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
    gateway
}

async fn status(gateway: &Gateway, key: &str) -> u16 {
    gateway.chat(false).key(key).send().await.status
}

/// Makes a key and returns its text and id.
async fn create(gateway: &Gateway, body: Value) -> (String, String) {
    let made = admin(gateway, Method::POST, "/keys", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let text = made.json()["key"].as_str().unwrap().to_owned();
    let id = text.split('_').nth(1).unwrap().to_owned();
    (text, id)
}

#[tokio::test]
async fn a_key_lives_from_its_making_to_its_end_on_every_replica() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let (one, two) = (replica(&backend, &redis).await, replica(&backend, &redis).await);
    let (key, id) = create(&one, json!({"name": "app", "limits": [{"requests": 100, "per": "day"}]})).await;
    assert_eq!(status(&one, &key).await, 200);
    until("the other replica knows it", async || status(&two, &key).await == 200).await;

    let shown = admin(&one, Method::GET, &format!("/keys/{id}"), None).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    assert_eq!(shown.json()["limits"][0]["amount"], 100);
    let secret = key.rsplit('_').next().unwrap();
    assert!(!shown.text().contains("sha256") && !shown.text().contains(secret));

    // Rotated: both secrets work for a while.
    let rotated = admin(&one, Method::POST, &format!("/keys/{id}/rotate"), Some(json!({"overlap_s": 600}))).await;
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let new = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_ne!(new, key);
    assert_eq!((status(&one, &new).await, status(&one, &key).await), (200, 200));
    // Again, without overlap: only the newest does.
    let rotated = admin(&one, Method::POST, &format!("/keys/{id}/rotate"), Some(json!({"overlap_s": 0}))).await;
    let newest = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_eq!((status(&one, &newest).await, status(&one, &new).await), (200, 401));
    until("the other replica has the newest", async || status(&two, &newest).await == 200).await;

    // A changed limit holds at once and forgets nothing.
    let limits = Some(json!([{"requests": 3, "per": "day"}]));
    let changed = admin(&one, Method::PUT, &format!("/keys/{id}/limits"), limits).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(status(&one, &newest).await, 429);

    // Revoked: refused everywhere within a second.
    let revoked = admin(&one, Method::PATCH, &format!("/keys/{id}"), Some(json!({"disabled": true}))).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    let begun = Instant::now();
    assert_eq!(status(&one, &newest).await, 401);
    until("the other replica refuses it", async || status(&two, &newest).await == 401).await;
    println!("refused by the other replica after {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(1));
    let gone = admin(&one, Method::DELETE, &format!("/keys/{id}"), None).await;
    assert!([200, 204].contains(&gone.status), "{}", gone.text());
    assert_eq!(admin(&one, Method::GET, &format!("/keys/{id}"), None).await.status, 404);
}

#[tokio::test]
async fn records_outlive_a_redis_that_is_away_or_lost_its_data() {
    let (mut redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let gateway = replica(&backend, &redis).await;
    let (key, id) = create(&gateway, json!({})).await;
    redis.stop();
    until("it is away", async || gateway.admin("/readyz").await.json()["redis"]["up"] == false).await;
    assert_eq!(status(&gateway, &key).await, 200);
    let refused = admin(&gateway, Method::PATCH, &format!("/keys/{id}"), Some(json!({"disabled": true}))).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    redis.restart().await;
    until("records are written back", async || {
        redis.command(&["KEYS", "nimgate:*"]).contains("records") && status(&gateway, &key).await == 200
    })
    .await;
}

#[tokio::test]
async fn who_used_what_is_told_in_json_and_csv() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let gateway = replica(&backend, &redis).await;
    for _ in 0..3 {
        assert_eq!(status(&gateway, KEY).await, 200);
    }
    let mut page = json!({});
    until("usage is there", async || {
        page = admin(&gateway, Method::GET, "/usage?by=key", None).await.json();
        page["rows"][0]["requests"] == 3
    })
    .await;
    let row = &page["rows"][0];
    assert_eq!((&row["key"], &row["input_tokens"], &row["output_tokens"]), (&json!("test"), &json!(9), &json!(24)));
    let csv = admin(&gateway, Method::GET, "/usage?by=team&format=csv", None).await;
    assert!(csv.text().lines().any(|line| line.starts_with("default") && line.contains(",3,")), "{}", csv.text());
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_words() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let gateway = replica(&backend, &redis).await;
    assert_eq!(call(&gateway, Method::GET, "/keys", None, "wrong").await.status, 401);
    for (body, place) in [
        (json!({"limits": [{"requests": -1, "per": "day"}]}), "requests"),
        (json!({"limits": [{"requests": 1}]}), "per"),
        (json!({"models": ["nobody/serves-this"]}), "models"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let refused = admin(&gateway, Method::POST, "/keys", Some(body)).await;
        assert!([400, 422].contains(&refused.status) && refused.text().contains(place), "{}", refused.text());
    }
    // Keys of a file are changed there.
    let plain = Gateway::setup().chat(&[&backend.url()]).start().await;
    assert_eq!(call(&plain, Method::POST, "/keys", Some(json!({})), "").await.status, 409);
    assert_eq!(call(&plain, Method::GET, "/keys/test", None, "").await.status, 200);
}

#[tokio::test]
async fn the_cli_does_what_the_api_does() {
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let gateway = replica(&backend, &redis).await;
    let run = |args: &[&str]| {
        let (args, url): (Vec<String>, _) = (args.iter().map(ToString::to_string).collect(), gateway.admin);
        tokio::task::spawn_blocking(move || {
            let output = Command::new(env!("CARGO_BIN_EXE_nimgate"))
                .args(args)
                .env("NIMGATE_ADMIN_URL", format!("http://{url}"))
                .env("NIMGATE_ADMIN_TOKEN", TOKEN)
                .output()
                .unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        })
    };
    let (code, out, err) = run(&["keys", "create", "--name", "app"]).await.unwrap();
    assert_eq!(code, Some(0), "{out}{err}");
    let key = out.split_whitespace().find(|word| word.starts_with("ngk_")).unwrap().to_owned();
    let id = key.split('_').nth(1).unwrap();
    assert_eq!(status(&gateway, &key).await, 200);
    let (code, out, err) = run(&["keys", "limits", id, "--limit", "requests=1/day"]).await.unwrap();
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(status(&gateway, &key).await, 429);
    let (code, out, _) = run(&["keys", "list"]).await.unwrap();
    assert!(code == Some(0) && out.contains(id), "{out}");
    assert_eq!(run(&["keys", "delete", id]).await.unwrap().0, Some(0));
    assert_eq!(status(&gateway, &key).await, 401);
    let (code, out, err) = run(&["usage"]).await.unwrap();
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, _, err) = run(&["keys", "show", "nobody"]).await.unwrap();
    assert!(code == Some(1) && !err.is_empty(), "{err}");
}
