//! The commands that speak to the admin API.

use std::process::Output;

use super::*;

/// Runs a command against a gateway.
async fn nimgate(gateway: &Gateway, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_nimgate"))
        .args(arguments)
        .env("NIMGATE_ADMIN_URL", format!("http://{}", gateway.admin))
        .env("NIMGATE_ADMIN_TOKEN", TOKEN)
        .output()
        .await
        .unwrap()
}

/// What a command prints that does what it should.
pub async fn good(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = nimgate(gateway, arguments).await;
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.is_empty(), "{arguments:?}: {out}{err}");
    out
}

/// What a command prints on stderr that does not.
pub async fn bad(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = nimgate(gateway, arguments).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub fn key_in(text: &str) -> String {
    text.lines().find(|line| line.starts_with("ngk_")).unwrap().to_owned()
}

#[tokio::test]
async fn an_operator_does_everything_by_commands() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let told = good(&gateway, &["orgs", "set", "acme", "--limit", "spend=100/month"]).await;
    assert!(told.contains("org-spend-month") && told.contains("acme"), "{told}");
    let limit = "total_tokens=1_000_000/day,model=meta/*";
    good(&gateway, &["teams", "set", "acme/search", "--limit", limit]).await;
    let listed = good(&gateway, &["teams", "list", "--org", "acme"]).await;
    assert!(listed.contains("acme/search") && listed.contains("total_tokens=1000000/day,model=meta/*"), "{listed}");

    let whose = ["--org", "acme", "--team", "search", "--name", "indexer"];
    let mut arguments = vec!["keys", "create", "--limit", "requests=10/second", "--limit", "concurrency=4"];
    arguments.extend(whose);
    let made = good(&gateway, &arguments).await;
    let key = key_in(&made);
    let id = NewKey::from_text(&key).unwrap().id.to_string();
    assert_eq!(chat_with(&gateway, &key).await, 200);
    let listed = good(&gateway, &["keys", "list", "--team", "search"]).await;
    assert!(listed.contains(&id) && listed.contains("requests=10/second concurrency=4"), "{listed}");
    assert!(!listed.contains(&key));
    let shown = good(&gateway, &["keys", "show", &id]).await;
    for text in ["indexer", "key-requests-second", "team-total-tokens-day,model=meta/*", "org-spend-month", "99.5"] {
        assert!(shown.contains(text), "{text} in {shown}");
    }
    let limited: Value =
        serde_json::from_str(&good(&gateway, &["keys", "limits", &id, "--limit", "requests=1/day", "--json"]).await)
            .unwrap();
    assert_eq!((&limited["limits"][0]["amount"], limited["limits"].as_array().unwrap().len()), (&1.into(), 1));

    let rotated = key_in(&good(&gateway, &["keys", "rotate", &id, "--overlap", "0"]).await);
    assert_eq!(chat_with(&gateway, &key).await, 401);
    assert!(good(&gateway, &["keys", "disable", &id]).await.contains("disabled"));
    assert_eq!(chat_fault(&gateway, &rotated).await.1, "key_disabled");
    good(&gateway, &["keys", "enable", &id]).await;
    good(&gateway, &["keys", "limits", &id, "--no-limits"]).await;
    assert_eq!(chat_with(&gateway, &rotated).await, 200);

    until("usage is written", async || {
        let usage = good(&gateway, &["usage", "--by", "team,key", "--org", "acme"]).await;
        usage.contains("SPEND EUR") && usage.lines().any(|line| line.starts_with("total") && line.ends_with("  1"))
    })
    .await;
    let csv = good(&gateway, &["usage", "--by", "team", "--org", "acme", "--format", "csv"]).await;
    assert!(csv.starts_with("team,requests,") && csv.contains("search,2,"), "{csv}");
    let page: Value =
        serde_json::from_str(&good(&gateway, &["usage", "--key", &id, "--format", "json"]).await).unwrap();
    assert_eq!(page["total"]["requests"], 2);

    assert!(bad(&gateway, &["teams", "delete", "acme/search"]).await.contains("has keys"));
    good(&gateway, &["keys", "delete", &id]).await;
    assert_eq!(chat_with(&gateway, &rotated).await, 401);
    good(&gateway, &["teams", "delete", "acme/search"]).await;
    good(&gateway, &["orgs", "delete", "acme"]).await;
    assert_eq!(good(&gateway, &["orgs", "list", "--json"]).await.trim(), "[]");
}

#[tokio::test]
async fn a_command_that_fails_says_why() {
    let redis = RedisServer::start().await;
    let (_backend, gateway) = start(&redis).await;
    let told = bad(&gateway, &["keys", "show", "none"]).await;
    assert_eq!(told, "nimgate: there is no record of the key none\n");
    let told = bad(&gateway, &["keys", "create", "--model", "meta/none", "--pool", "none"]).await;
    assert!(told.contains("models[0]: ") && told.contains("pools[0]: "), "{told}");
    let wrong = gateway.path("wrong.token");
    std::fs::write(&wrong, "not-the-token\n").unwrap();
    let told = bad(&gateway, &["keys", "list", "--token-file", wrong.to_str().unwrap()]).await;
    assert!(told.contains("admin token is missing or wrong") && !told.contains("not-the-token"), "{told}");
    let right = gateway.path("admin.token");
    good(&gateway, &["keys", "list", "--token-file", right.to_str().unwrap()]).await;
    let nobody = format!("http://{}", free_address());
    assert!(bad(&gateway, &["usage", "--admin", &nobody]).await.contains(&nobody));
    assert!(bad(&gateway, &["usage", "--admin", "ftp://x"]).await.contains("--admin"));
    for wrong in [&["keys", "limits", "x"][..], &["teams", "set", "a/b", "--limit", "sheep=1/day"]] {
        assert_eq!(nimgate(&gateway, wrong).await.status.code(), Some(2), "{wrong:?}");
    }
}
