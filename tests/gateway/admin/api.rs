//! What the API takes and refuses, and usage.

use super::*;

#[tokio::test]
async fn nothing_is_said_without_the_token() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    for (method, path) in nimgate::admin::routes() {
        let names = ["id", "org", "team", "pool", "endpoint"];
        let path = names.iter().fold(path.to_owned(), |path, name| path.replace(&format!("{{{name}}}"), "x"));
        let path = path.replace("{file}", "console.js");
        // The page and its files hold no data.
        let open = ["/", "/console", "/console/console.js", "/livez", "/readyz", "/metrics"];
        let good = if path == "/" { 307 } else { 200 };
        let wanted = if open.contains(&path.as_str()) { good } else { 401 };
        for token in [None, Some("wrong"), Some(""), Some(&TOKEN[1..])] {
            let answer = send(&gateway, method.as_str(), &path, token, "application/json", "{}").await;
            assert_eq!(answer.status, wanted, "{method} {path}");
        }
    }
    let document = ask(&gateway, "GET", "/openapi.json", None).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(ask(&gateway, "GET", "/nothing", None).await.status, 404);
    assert_eq!(ask(&gateway, "DELETE", "/usage", None).await.status, 405);
}

#[tokio::test]
async fn mistakes_are_told_with_their_place() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (id, _) = create(&gateway, json!({})).await;
    let path = format!("/keys/{id}");
    let one = |limit: Value| Some(json!({ "limits": [limit] }));
    for (method, path, body, status, place) in [
        ("POST", "/keys", Some(json!({ "sheep": 1 })), 400, "sheep"),
        ("POST", "/keys", Some(json!({ "sha256": "00" })), 400, "sha256"),
        ("POST", "/keys", Some(json!({ "name": 1 })), 400, "name"),
        ("POST", "/keys", Some(json!({ "org": "" })), 400, "org"),
        ("POST", "/keys", one(json!({ "requests": -1, "per": "day" })), 400, "limits[0].requests"),
        ("POST", "/keys", one(json!({ "requests": 1, "per": "week" })), 400, "limits[0].per"),
        ("POST", "/keys", one(json!({ "requests": 1 })), 422, "limits[0]"),
        ("POST", "/keys", one(json!({ "concurrency": 1, "per": "day" })), 422, "limits[0].per"),
        ("POST", "/keys", Some(json!({ "models": ["meta/none"] })), 422, "models[0]"),
        ("POST", "/keys", Some(json!({ "pools": ["none"] })), 422, "pools[0]"),
        ("POST", "/keys", Some(json!({ "scopes": ["invoke_function", "none"] })), 422, "scopes[1]"),
        ("POST", "/keys", Some(json!({ "expires": "tomorrow" })), 422, "expires"),
        ("POST", "/keys", Some(json!({ "org": "a\u{7}" })), 422, "org"),
        ("PATCH", &path, Some(json!({ "id": "x" })), 400, "id"),
        ("PATCH", &path, Some(json!({ "sheep": null })), 400, "sheep"),
        ("PATCH", &path, Some(json!({ "models": ["meta/none"] })), 422, "models[0]"),
        ("POST", &format!("{path}/rotate"), Some(json!({ "overlap_s": 2_592_001 })), 400, "overlap_s"),
        ("PUT", &format!("{path}/limits"), Some(json!({})), 400, ""),
        ("PUT", "/orgs/acme", one(json!({ "spend": -1, "per": "day" })), 400, "limits[0].spend"),
        ("PUT", "/teams/acme/a", Some(json!({ "limits": [], "name": "b" })), 400, "name"),
        ("GET", "/keys?sheep=1", None, 400, "sheep"),
        ("GET", "/keys?limit=1001", None, 400, "limit"),
        ("GET", "/usage?by=sheep", None, 400, "by"),
        ("GET", "/usage?from=2020-01-01", None, 400, "from"),
        ("GET", "/keys/none", None, 404, ""),
        ("PATCH", "/keys/none", Some(json!({})), 404, ""),
        ("POST", "/keys/none/rotate", Some(json!({})), 404, ""),
        ("GET", "/orgs/none", None, 404, ""),
        ("DELETE", "/teams/none/none", None, 404, ""),
    ] {
        let answer = ask(&gateway, method, path, body.clone()).await;
        let page = answer.json();
        assert_eq!(
            (answer.status, page["where"].as_str().unwrap_or_default()),
            (status, place),
            "{method} {path} {page}"
        );
        assert!(page["error"].as_str().is_some_and(|error| error.len() > 10), "{page}");
    }
    let plain = async |kind: &str, body: &str| send(&gateway, "POST", "/keys", Some(TOKEN), kind, body).await.status;
    assert_eq!(plain("application/json", "{").await, 400);
    assert_eq!(plain("application/json", "[]").await, 400);
    assert_eq!(plain("text/plain", "{}").await, 415, "what a page of another site can send");
    assert_eq!(plain("application/json", &format!("{{\"name\": \"{}\"}}", "x".repeat(65_536))).await, 413);
    let many = json!({ "sheep": 1, "name": 2 });
    assert_eq!(ask(&gateway, "POST", "/keys", Some(many)).await.json()["further"].as_array().unwrap().len(), 1);
    assert_eq!(redis.command(&["HLEN", "nimgate:{keys}:records"]), "1", "nothing of all that was stored");
}

#[tokio::test]
async fn a_key_belongs_to_a_team_that_is_listed_where_any_is() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (id, key) = create(&gateway, json!({ "org": "old", "team": "old" })).await;
    let none = Some(json!({ "limits": [] }));
    assert_eq!(ask(&gateway, "PUT", "/orgs/acme", none.clone()).await.status, 201);
    assert_eq!(ask(&gateway, "PUT", "/teams/acmee/a", none.clone()).await.json()["where"], "org");
    assert_eq!(ask(&gateway, "PUT", "/teams/acme/a", none).await.status, 201);
    for (org, team, place) in [("acmee", "a", "org"), ("acme", "b", "team")] {
        let refused = ask(&gateway, "POST", "/keys", Some(json!({ "org": org, "team": team }))).await;
        assert_eq!((refused.status, &refused.json()["where"]), (422, &place.into()), "{}", refused.text());
    }
    create(&gateway, json!({ "org": "acme", "team": "a" })).await;
    assert_eq!(chat_with(&gateway, &key).await, 200, "what was there goes on");
    let path = format!("/keys/{id}");
    assert_eq!(ask(&gateway, "PATCH", &path, Some(json!({ "disabled": true }))).await.status, 200);
    assert_eq!(ask(&gateway, "PATCH", &path, Some(json!({ "org": "acme", "team": "a" }))).await.status, 200);
}

#[tokio::test]
async fn lists_come_in_pages_and_by_team() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    for at in 0..5 {
        create(&gateway, json!({ "org": "acme", "team": format!("t{}", at % 2) })).await;
    }
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = ask(&gateway, "GET", &format!("/keys?limit=2{after}"), None).await.json();
        let keys = page["keys"].as_array().unwrap();
        assert!(keys.len() <= 2);
        seen.extend(keys.iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen.len(), 6, "those of Redis and that of the file: {seen:?}");
    assert!(seen.is_sorted());
    let page = ask(&gateway, "GET", "/keys?org=acme&team=t1", None).await.json();
    assert_eq!((page["keys"].as_array().unwrap().len(), &page["next"]), (2, &Value::Null));
}

#[tokio::test]
async fn keys_of_a_file_are_shown_and_changed_there() {
    let backend = simulator(Kind::Llm).await;
    let other = "ngk_other_0123456789abcdef";
    let gateway = Gateway::setup()
        .chat(&[&backend.url()])
        .admin_token(TOKEN)
        .key(other, "org: acme\nteam: search\nlimits: [{requests: 10, per: day}]")
        .start()
        .await;
    assert_eq!(chat_with(&gateway, other).await, 200);
    let page = ask(&gateway, "GET", "/keys/other", None).await.json();
    assert_eq!((&page["source"], &page["limits"][0]["used"]), (&"file".into(), &1.into()), "{page}");
    for (method, path, body) in [
        ("POST", "/keys", json!({})),
        ("PATCH", "/keys/other", json!({ "disabled": true })),
        ("DELETE", "/keys/other", json!({})),
        ("POST", "/keys/other/rotate", json!({})),
        ("PUT", "/keys/other/limits", json!({ "limits": [] })),
        ("PUT", "/orgs/acme", json!({ "limits": [] })),
        ("DELETE", "/teams/acme/search", json!({})),
    ] {
        let answer = ask(&gateway, method, path, Some(body)).await;
        assert_eq!(answer.status, 409, "{method} {path} {}", answer.text());
        assert!(answer.text().contains("keys.yaml"), "the file is named: {}", answer.text());
    }
    let usage = ask(&gateway, "GET", "/usage?by=org,team,key", None).await.json();
    assert_eq!((&usage["rows"][0]["key"], &usage["rows"][0]["requests"]), (&"other".into(), &1.into()), "{usage}");

    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let kept = ask(&gateway, "PATCH", "/keys/test", Some(json!({ "disabled": true }))).await;
    assert_eq!(kept.status, 409, "a key of the file beside those of Redis: {}", kept.text());
    assert!(kept.text().contains("keys.yaml"));
}

#[tokio::test]
async fn usage_is_summed_as_asked_and_no_cell_is_a_formula() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let (one, first) = create(&gateway, json!({ "org": "acme", "team": "=cmd()" })).await;
    let (_, second) = create(&gateway, json!({ "org": "acme", "team": "other" })).await;
    for key in [&first, &first, &second] {
        assert_eq!(chat_with(&gateway, key).await, 200);
    }
    let mut page = Value::Null;
    until("usage is written", async || {
        page = ask(&gateway, "GET", "/usage?by=team&org=acme", None).await.json();
        page["total"]["requests"] == 3
    })
    .await;
    assert_eq!((&page["currency"], &page["by"]), (&"EUR".into(), &json!(["team"])));
    let row = &page["rows"][0];
    assert_eq!((&row["team"], &row["requests"], &row["spend"]), (&"=cmd()".into(), &2.into(), &"1".into()), "{page}");
    assert!(row["input_tokens"].as_u64().unwrap() > 0 && row["output_tokens"].as_u64().unwrap() > 0, "{row}");
    assert_eq!(page["total"]["spend"], "1.5");
    let today = chrono::Utc::now().date_naive();
    let page = ask(&gateway, "GET", &format!("/usage?key={one}&from={today}&to={today}"), None).await.json();
    assert_eq!(page["by"], json!(["key", "model", "day"]));
    let row = &page["rows"][0];
    assert_eq!((&row["key"], &row["day"]), (&one.into(), &today.to_string().into()));
    assert_eq!(row["model"], "meta/llama-3.1-8b-instruct");
    let csv = ask(&gateway, "GET", "/usage?by=team,org&org=acme&format=csv", None).await;
    assert!(csv.header("content-type").starts_with("text/csv"));
    let text = csv.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "team,org,requests,input_tokens,output_tokens,spend,currency");
    assert!(lines[1].starts_with("'=cmd(),acme,2,") && lines[1].ends_with(",1,EUR"), "{text}");
    assert_eq!(lines.len(), 3);
    let before = today - chrono::Days::new(1);
    let page = ask(&gateway, "GET", &format!("/usage?by=&from={before}&to={before}"), None).await.json();
    assert_eq!((&page["rows"], &page["total"]["requests"]), (&json!([]), &0.into()));
}
