//! Usage that no backend can have had.

use serde_json::Value;

use super::*;
use crate::failure::raw_backend;

/// Keys of one organisation: one without limits, one with, and one that keeps to a backend that is well.
const FREE: &str = "ngk_free_0123456789abcdef";
const BOUND: &str = "ngk_bound_0123456789abcdef";
const OTHER: &str = "ngk_other_0123456789abcdef";

/// A backend that states this usage for whatever it is asked.
async fn stating(usage: &str) -> String {
    let body = format!(
        r#"{{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"x"}}}}],"usage":{usage}}}"#
    );
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
    let answer = format!("{head} {}\r\n\r\n{body}", body.len());
    format!("http://{}", raw_backend(answer.into_bytes().leak()).await)
}

async fn ask(gateway: &Gateway, key: &str, model: Option<&str>) -> u16 {
    let mut body = chat(false);
    if let Some(model) = model {
        body["model"] = model.into();
    }
    gateway.post("/v1/chat/completions", &body).key(key).send().await.status
}

/// The row of a key in `/usage`.
async fn usage_of(gateway: &Gateway, key: &str) -> Value {
    let page = gateway.admin("/usage?by=key").await;
    assert_eq!(page.status, 200, "{}", page.text());
    let rows = page.json()["rows"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["key"] == key).unwrap_or_default()
}

#[tokio::test]
async fn absurd_usage_of_a_backend_breaks_nothing() {
    let (redis, well) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let absurd = [
        stating(r#"{"prompt_tokens": 18446744073709551615, "completion_tokens": 18446744073709551615}"#).await,
        stating(r#"{"prompt_tokens": 1e19, "completion_tokens": 1e19, "total_tokens": 2e19}"#).await,
        stating(r#"{"prompt_tokens": 1e300, "completion_tokens": -1e19}"#).await,
    ];
    for shared in [false, true] {
        let bound = "limits: [{total_tokens: 1000000, per: day}, {spend: 100, per: month}, {requests: 100, per: day}]";
        let mut setup = Gateway::setup()
            .chat(&[&well.url()])
            .key(FREE, "name: free")
            .key(BOUND, bound)
            .key(OTHER, bound)
            .top("prices: [{model: '*', input_per_million: 1, output_per_million: 1, per_request: 0.5}]");
        for (at, url) in absurd.iter().enumerate() {
            setup = setup.pool(&format!("absurd-{at}"), "nim-llm", &format!("models: [{{id: absurd-{at}}}]"), &[url]);
        }
        if shared {
            let redis = format!("redis: {{addresses: ['{}'], timeout_ms: 500}}", redis.address());
            setup = setup.top(&redis).top("quotas: {on_outage: deny, write_every_ms: 50}");
        }
        let gateway = setup.start().await;
        if shared {
            until_shared(&gateway).await;
        }
        assert_eq!(ask(&gateway, OTHER, None).await, 200);
        assert_eq!(ask(&gateway, BOUND, Some("absurd-0")).await, 200, "shared {shared}");
        for round in 0..3 {
            for at in 0..absurd.len() {
                let status = ask(&gateway, FREE, Some(&format!("absurd-{at}"))).await;
                assert_eq!(status, 200, "absurd-{at}, round {round}, shared {shared}");
            }
            assert_eq!(ask(&gateway, FREE, None).await, 200);
            assert_eq!(ask(&gateway, OTHER, None).await, 200);
        }
        until("what was stated counts", async || ask(&gateway, BOUND, None).await == 429).await;
        assert_eq!(ask(&gateway, OTHER, None).await, 200, "shared {shared}");
        let mut last = Value::Null;
        until("the other's usage is right", async || {
            let row = usage_of(&gateway, "other").await;
            if row != last {
                println!("shared {shared}: {row}");
                last = row;
            }
            // 5 requests of 3 tokens in and 8 out.
            (&last["requests"], &last["input_tokens"], &last["output_tokens"]) == (&5.into(), &15.into(), &40.into())
        })
        .await;
        until("requests are counted", async || usage_of(&gateway, "free").await["requests"] == 12).await;
        for key in ["free", "bound", "other"] {
            assert_eq!(gateway.admin(&format!("/keys/{key}")).await.status, 200);
        }
        assert!(gateway.metric("nimgate_tokens_total").await >= 0.0);
        assert!(!gateway.output().contains("panicked"), "{}", gateway.output());
    }
}
