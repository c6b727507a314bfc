//! Defects that a review of the admin API and the key store found.

use super::cli::{bad, good, key_in};
use super::*;

const RECORDS: &str = "nimgate:{keys}:records";
const VERSION: &str = "nimgate:{keys}:version";

#[tokio::test]
async fn a_version_that_is_no_number_is_mended_once_and_cuts_no_connection() {
    let redis = RedisServer::start().await;
    redis.command(&["HSET", VERSION, "number", "sheep"]);
    let (_backend, gateway) = start(&redis).await;
    let told = |gateway: &Gateway| gateway.output().matches("the version of the records of keys is none").count();
    assert_eq!(told(&gateway), 1, "who begins mends it as well: {}", gateway.output());
    let (_, key) = create(&gateway, json!({})).await;
    for (round, garbage) in ["garbage", "-1", "1e3", "99999999999999999999", ""].into_iter().enumerate() {
        redis.command(&["HSET", VERSION, "number", garbage]);
        until("it is a number again", async || redis.command(&["HGET", VERSION, "number"]).parse::<u64>().is_ok())
            .await;
        let (_, other) = create(&gateway, json!({})).await;
        assert_eq!((chat_with(&gateway, &key).await, chat_with(&gateway, &other).await), (200, 200), "{garbage}");
        assert_eq!(told(&gateway), round + 2, "once each: {}", gateway.output());
    }
    redis.command(&["HDEL", RECORDS, &format!("key/{}", NewKey::from_text(&key).unwrap().id)]);
    redis.command(&["HSET", VERSION, "number", "garbage"]);
    until("what was lost with it is back", async || redis.command(&["HLEN", RECORDS]) == "6").await;
    assert!(!gateway.output().contains("Redis is away"), "{}", gateway.output());
}

#[tokio::test]
async fn a_broken_record_of_a_team_frees_no_key_of_its_limits() {
    let redis = RedisServer::start().await;
    let backend = simulator(Kind::Llm).await;
    let filed = "ngk_filed_0123456789abcdef";
    let setup = || replica(&backend, &redis.address().to_string()).key(filed, "scopes: ['*']\norg: acme\nteam: search");
    let gateway = setup().start().await;
    until_ready(&gateway).await;
    until_shared(&gateway).await;
    let limits = |amount: u64| Some(json!({ "limits": [{ "requests": amount, "per": "month" }] }));
    assert_eq!(ask(&gateway, "PUT", "/teams/acme/search", limits(3)).await.status, 201);
    let (_, stored) = create(&gateway, json!({ "org": "acme", "team": "search" })).await;
    assert_eq!(chat_with(&gateway, filed).await, 200);
    for broken in ["{]", "{\"org\":\"acme\",\"name\":\"search\",\"limits\":[{\"requests\":1}]}"] {
        redis.command(&["HSET", RECORDS, "team/acme/search", broken]);
        redis.command(&["HINCRBY", VERSION, "number", "1"]);
        until("it is seen", async || {
            ask(&gateway, "GET", "/teams/acme/search", None).await.json()["broken"].is_string()
        })
        .await;
        let key = if broken == "{]" { filed } else { &stored };
        assert_eq!(chat_with(&gateway, key).await, 200, "as it was last understood: {broken}");
    }
    for key in [filed, &stored] {
        assert_eq!(chat_fault(&gateway, key).await, (429, "quota_exceeded".into()), "what was used counts on");
    }

    let new = setup().start().await;
    until_ready(&new).await;
    for key in [filed, &stored] {
        assert_eq!(chat_fault(&new, key).await, unknown(), "nobody may use limits that nobody knows");
    }
    let shown = ask(&new, "GET", "/keys/filed", None).await.json();
    assert!(shown["broken"].as_str().unwrap().contains("acme/search") && shown["source"] == "file", "{shown}");
    assert_eq!(new.chat(false).send().await.status, 200, "other keys work");
    assert_eq!(ask(&new, "PUT", "/teams/acme/search", limits(9)).await.status, 200);
    assert_eq!((chat_with(&new, filed).await, chat_with(&new, &stored).await), (200, 200));
}

/// Asks with headers of one's own.
async fn ask_with(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().method(method).uri(format!("http://{}{path}", gateway.admin));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(bytes::Bytes::new())).unwrap();
    answer(Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap()).await
}

#[tokio::test]
async fn an_admin_listener_without_a_token_heeds_no_page_of_another_site() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let own = format!("http://{}", gateway.admin);
    for (host, status) in [
        ("localhost", 200),
        ("LocalHost:9090", 200),
        ("127.0.0.1", 200),
        ("10.1.2.3:80", 200),
        ("[::1]:9090", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:9090", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("[::1].evil.example", 403),
        ("evil.example@localhost", 403),
    ] {
        let answer = ask_with(&gateway, "GET", "/state", &[("host", host)]).await;
        assert_eq!(answer.status, status, "{host}: {}", answer.text());
        for open in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(ask_with(&gateway, "GET", open, &[("host", host)]).await.status, 200, "{open} {host}");
        }
    }
    for (origin, status) in [
        (own.as_str(), 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("http://localhost", 403),
        ("null", 403),
        ("", 403),
    ] {
        let answer = ask_with(&gateway, "POST", "/reload", &[("origin", origin)]).await;
        assert_eq!(answer.status, status, "{origin}: {}", answer.text());
    }
    let refused = ask_with(&gateway, "GET", "/state", &[("host", "evil.example")]).await.json();
    assert!(refused["error"].as_str().unwrap().contains("admin.token"), "{refused}");
    let guarded = Gateway::setup().chat(&[&backend.url()]).admin_token(TOKEN).start().await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("host", "gateway.example"), ("origin", "http://other.example"), ("authorization", &*bearer)];
    assert_eq!(ask_with(&guarded, "GET", "/state", &headers).await.status, 200, "a token is proof enough");
}

#[tokio::test]
async fn usage_of_many_days_is_read_many_at_once() {
    const DAYS: usize = 96;
    const DELAY: Duration = Duration::from_millis(25);
    let redis = RedisServer::start().await;
    let line = Line::to(redis.address()).await;
    let backend = simulator(Kind::Llm).await;
    let gateway = replica(&backend, &line.address().to_string()).start().await;
    until_ready(&gateway).await;
    let first = chrono::Utc::now().date_naive() - chrono::Days::new(DAYS as u64);
    for day in first.iter_days().take(DAYS) {
        redis.command(&["ZADD", "nimgate:{acme}:usage:days", "0", &day.to_string()]);
        let row = "search\u{1f}a\u{1f}m\u{1f}requests";
        redis.command(&["HSET", &format!("nimgate:{{acme}}:usage:{day}"), row, "1"]);
    }
    line.delay(DELAY);
    let begun = Instant::now();
    let page = ask(&gateway, "GET", &format!("/usage?org=acme&by=team&from={first}"), None).await.json();
    let took = begun.elapsed();
    assert_eq!(page["rows"][0]["requests"], DAYS, "{page}");
    println!("{DAYS} days took {took:?} over a line of {DELAY:?}");
    assert!(took < DELAY * DAYS as u32 / 2, "one after another takes {:?} at least: {took:?}", DELAY * DAYS as u32);
}

#[tokio::test]
async fn commands_show_names_as_they_are_and_heed_empty_ones() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (id, _) = create(&gateway, json!({ "org": "Zürich", "name": "日本 \u{1b}[31m\u{202e}red" })).await;
    let shown = good(&gateway, &["keys", "show", &id]).await;
    assert!(shown.contains("Zürich") && shown.contains("日本 ?[31m?red"), "{shown}");
    for (arguments, wanted) in [
        (&["keys", "show", ""][..], "a key has an id"),
        (&["keys", "delete", ""], "a key has an id"),
        (&["teams", "set", "acme/", "--no-limits"], "expected ORG/TEAM"),
        (&["teams", "set", "/search", "--no-limits"], "expected ORG/TEAM"),
        (&["teams", "show", "acme"], "expected ORG/TEAM"),
        (&["orgs", "set", "", "--no-limits"], "an organisation has a name"),
        (&["orgs", "delete", ""], "an organisation has a name"),
    ] {
        let told = bad(&gateway, arguments).await;
        assert!(told.contains(wanted), "{arguments:?}: {told}");
    }
    let refused = ask(&gateway, "POST", "/keys", Some(json!({ "org": "" }))).await.json();
    assert_eq!(refused["error"], "expected 1 to 128 characters");
}

#[tokio::test]
async fn a_key_is_rotated_without_a_body() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (id, first) = create(&gateway, json!({})).await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let rotated = ask_with(&gateway, "POST", &format!("/keys/{id}/rotate"), &headers).await;
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let second = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_eq!((chat_with(&gateway, &first).await, chat_with(&gateway, &second).await), (200, 200), "by the default");
    assert_eq!(ask_with(&gateway, "POST", "/keys", &headers).await.status, 415, "where a body is wanted");
    let plain = send(&gateway, "POST", &format!("/keys/{id}/rotate"), Some(TOKEN), "text/plain", "{}").await;
    assert_eq!(plain.status, 415);
}

#[tokio::test]
async fn a_refused_key_is_told_the_way_out_and_it_is_one() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    good(&gateway, &["teams", "set", "default/research", "--limit", "total_tokens=1000000/day"]).await;
    let told = bad(&gateway, &["keys", "create"]).await;
    let way = "nimgate teams set default/default --no-limits";
    assert!(told.contains(way) && told.contains("--team"), "{told}");
    let made = good(&gateway, &["keys", "create", "--team", "research"]).await;
    assert_eq!(chat_with(&gateway, &key_in(&made)).await, 200);
    good(&gateway, &way.split(' ').skip(1).collect::<Vec<_>>()).await;
    good(&gateway, &["keys", "create"]).await;
    good(&gateway, &["orgs", "set", "o 1", "--no-limits"]).await;
    let told = bad(&gateway, &["teams", "set", "other/team", "--no-limits"]).await;
    assert!(told.contains("nimgate orgs set other --no-limits"), "{told}");
    let told = bad(&gateway, &["keys", "create", "--org", "o 1", "--team", "it's"]).await;
    assert!(told.contains(r"nimgate teams set 'o 1/it'\''s' --no-limits"), "{told}");
}

#[tokio::test]
async fn the_readmes_recipe_for_limits_works_word_for_word() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let readme = include_str!("../../../README.md");
    let section = readme.split("\n## Limits\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: Vec<&str> = section.lines().filter(|line| line.starts_with("nimgate ")).collect();
    assert!(commands.len() >= 3, "{section}");
    let mut said = String::new();
    for line in commands {
        let command = line.split('#').next().unwrap();
        said += &good(&gateway, &command.split_whitespace().skip(1).collect::<Vec<_>>()).await;
    }
    let key = key_in(&said);
    assert_eq!(chat_with(&gateway, &key).await, 200);
    let id = NewKey::from_text(&key).unwrap().id;
    let page = ask(&gateway, "GET", &format!("/keys/{id}"), None).await.json();
    assert_eq!((&page["limits"][0]["name"], &page["limits"][0]["amount"]), (&"key-requests-second".into(), &10.into()));
    assert_eq!(
        (&page["above"][0]["name"], &page["above"][0]["amount"]),
        (&"team-total-tokens-day".into(), &1_000_000.into())
    );
}

#[tokio::test]
async fn a_limit_on_spend_wants_a_price() {
    let redis = RedisServer::start().await;
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup()
        .chat(&[&backend.url()])
        .pool("other", "nim-llm", "models: [{id: meta/other}]", &[&backend.url()])
        .admin_token(TOKEN)
        .callers_in_redis()
        .top(&format!("redis: {{addresses: ['{}'], timeout_ms: 500}}", redis.address()))
        .top("prices: [{model: meta/other, per_request: 0.5}]")
        .start()
        .await;
    until_ready(&gateway).await;
    let spend = |models: Value| json!({ "limits": [{ "spend": 1, "per": "day", "models": models }] });
    for (models, status) in
        [(json!(["meta/llama*"]), 422), (json!(["meta/llama*", "*other"]), 201), (json!([]), 201), (json!(["*"]), 201)]
    {
        let answer = ask(&gateway, "POST", "/keys", Some(spend(models.clone()))).await;
        assert_eq!(answer.status, status, "{models} {}", answer.text());
        if status == 422 {
            let page = answer.json();
            let error = "no price is for any model that this limit fits, so nothing would ever count";
            assert_eq!((&page["where"], &page["error"]), (&"limits[0].spend".into(), &error.into()));
        }
    }
    let told = |gateway: &Gateway| gateway.output().matches("no price is for any model that this limit fits").count();
    assert_eq!(told(&gateway), 0);
    let record = "{\"name\":\"acme\",\"limits\":[{\"spend\":1,\"per\":\"day\",\"models\":[\"meta/llama*\"]}]}";
    redis.command(&["HSET", RECORDS, "org/acme", record]);
    for round in 0..3 {
        redis.command(&["HINCRBY", VERSION, "number", "1"]);
        let number: u64 = redis.command(&["HGET", VERSION, "number"]).parse().unwrap();
        let read = format!("\"version\":{number},");
        until("it is read", async || gateway.output().contains(&read)).await;
        assert_eq!(told(&gateway), 1, "once, in round {round}: {}", gateway.output());
    }
    assert_eq!(ask(&gateway, "GET", "/orgs/acme", None).await.json()["limits"][0]["amount"], "1", "it is there");
}
