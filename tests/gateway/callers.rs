//! Callers: who is let in, and to what.

use serde_json::json;

use crate::support::*;

const LIMITED: &str = "ngk_limited_0123456789abcdef";

async fn gateway(yaml: &str) -> (Simulator, Simulator, Gateway) {
    let (llm, predict) = (simulator(Kind::Llm).await, simulator(Kind::CosmosPredict).await);
    let gateway = Gateway::setup()
        .chat(&[&llm.url()])
        .pool("predict", "cosmos-predict", "", &[&predict.url()])
        .key(LIMITED, yaml)
        .start()
        .await;
    (llm, predict, gateway)
}

#[tokio::test]
async fn a_key_is_taken_as_bearer_in_any_case_or_as_x_api_key() {
    let (_llm, _predict, gateway) = gateway("name: x").await;
    for (header, value) in [
        ("authorization", format!("Bearer {LIMITED}")),
        ("authorization", format!("bearer {LIMITED}")),
        ("authorization", format!("BEARER  {LIMITED}")),
        ("x-api-key", LIMITED.to_owned()),
    ] {
        let answer = gateway.chat(false).anonymous().header(header, &value).send().await;
        assert_eq!(answer.status, 200, "{header}: {value}");
    }
}

#[tokio::test]
async fn nobody_unknown_reaches_a_backend() {
    let (llm, _predict, gateway) = gateway("disabled: true").await;
    let past = "ngk_past_0123456789abcdef";
    replace(
        &gateway.path("keys.yaml"),
        &format!(
            "keys:\n{}{}{}",
            record(KEY, "name: a"),
            record(LIMITED, "disabled: true"),
            record(past, "expires: 2020-01-01T00:00:00Z")
        ),
    );
    until("the keys are loaded", async || gateway.metric("nimgate_config_generation").await == 2.0).await;
    let wrong = format!("{KEY}x");
    for (key, label) in [
        (None, "key_missing"),
        (Some("not-used"), "key_invalid"),
        (Some(wrong.as_str()), "key_invalid"),
        (Some(LIMITED), "key_disabled"),
        (Some(past), "key_expired"),
    ] {
        let ask = gateway.chat(false);
        let answer = match key {
            Some(key) => ask.key(key).send().await,
            None => ask.anonymous().send().await,
        };
        assert_eq!((answer.status, answer.fault()), (401, (label, "client")));
        assert_eq!(answer.json()["error"]["code"], label);
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
    assert_eq!(llm.seen().requests("/v1/chat/completions"), 0);
}

#[tokio::test]
async fn a_key_opens_only_what_it_is_for() {
    let (_llm, _predict, gateway) = gateway("pools: [predict]\nscopes: [invoke_function]").await;
    let infer = gateway.post("/v1/infer", &json!({ "prompt": "x" })).key(LIMITED).send().await;
    assert_eq!(infer.status, 200);
    let chat = gateway.chat(false).key(LIMITED).send().await;
    assert_eq!((chat.status, chat.fault()), (403, ("not_allowed", "client")));
    let manifest = gateway.get("/pools/predict/v1/manifest").key(LIMITED).send().await;
    assert_eq!((manifest.status, manifest.fault().0), (403, "not_allowed"));
    assert!(manifest.text().contains("read_backend"), "the answer names the scope: {}", manifest.text());
}

#[tokio::test]
async fn a_refused_caller_learns_nothing_of_the_routes() {
    let (_llm, _predict, gateway) = gateway("name: x").await;
    for path in ["/v1/infer", "/v1/nothing", "/pools/none/v1/infer"] {
        assert_eq!(gateway.post(path, &json!({})).anonymous().send().await.fault().0, "key_missing", "{path}");
    }
}
