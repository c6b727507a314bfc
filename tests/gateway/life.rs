//! The life of a model: announced end, end, and time offline; with a pool behind it and without.

use serde_json::json;

use crate::support::*;

const MODEL: &str = "meta/llama-3.1-8b-instruct";

fn pool(life: &str, more: &str) -> String {
    format!("models: [{{id: {MODEL}, {life}}}]\n{more}")
}

/// A pool whose model has this life, and a second one behind it.
async fn two(life: &str, more: &str) -> ([Simulator; 2], Gateway) {
    let backends = [simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let setup = Gateway::setup().pool("near", "nim-llm", &pool(life, more), &[&backends[0].url()]);
    let gateway = setup.pool("far", "nim-llm", &pool("", ""), &[&backends[1].url()]).start().await;
    (backends, gateway)
}

#[tokio::test]
async fn until_its_end_answers_say_when_it_ends() {
    let backend = simulator(Kind::Llm).await;
    let pool = pool("end_of_life: 2099-06-30", "");
    let gateway = Gateway::setup().pool("near", "nim-llm", &pool, &[&backend.url()]).start().await;
    for stream in [false, true] {
        let answer = gateway.chat(stream).send().await;
        assert_eq!((answer.status, answer.header("sunset")), (200, "Tue, 30 Jun 2099 00:00:00 GMT"));
    }
    let failed = gateway.chat(false).header("x-sim-fault", "status=500").send().await;
    assert_eq!((failed.status, failed.header("sunset")), (500, "Tue, 30 Jun 2099 00:00:00 GMT"));
    gateway.until_idle().await;
}

#[tokio::test]
async fn after_its_end_it_is_gone_unless_another_pool_has_it() {
    let backend = simulator(Kind::Llm).await;
    let alone = Gateway::setup()
        .pool("near", "nim-llm", &pool("end_of_life: '2020-01-01T12:00:00Z'", ""), &[&backend.url()])
        .start()
        .await;
    let answer = alone.chat(false).header("x-request-id", "gone").send().await;
    assert_eq!((answer.status, answer.fault()), (410, ("model_ended", "client")));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(MODEL) && message.contains("2020-01-01"), "{message}");
    assert_eq!(alone.record_of("gone").await["pool"], "near");
    assert_eq!(backend.seen().requests("/v1/chat/completions"), 0);
    alone.until_idle().await;

    let (backends, gateway) = two("end_of_life: 2020-01-01", "spill: {to: [far]}").await;
    let answer = gateway.chat(false).header("x-request-id", "moved").send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-spill")), (200, "end_of_life; from=near"));
    assert_eq!((answer.header("x-nimgate-pool"), answer.header("sunset")), ("far", ""));
    let record = gateway.record_of("moved").await;
    assert_eq!((&record["spilled_from"], &record["spill_reason"]), (&json!("near"), &json!("end_of_life")));
    assert_eq!(backends[1].seen().requests("/v1/chat/completions"), 1);

    let (_backends, gateway) = two("end_of_life: 2020-01-01", "spill: {to: [far], on: [overload, outage]}").await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "model_ended");
    gateway.until_idle().await;
}

#[tokio::test]
async fn offline_it_is_refused_in_the_operators_words_unless_another_pool_has_it() {
    let offline = "offline_message: 'Back on Monday at 8.'";
    let backend = simulator(Kind::Llm).await;
    let alone = Gateway::setup().pool("near", "nim-llm", &pool(offline, ""), &[&backend.url()]).start().await;
    let answer = alone.chat(true).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("model_offline", "gateway")));
    assert!(answer.text().contains("Back on Monday at 8."), "{}", answer.text());

    let (_backends, gateway) = two(offline, "spill: {to: [far]}").await;
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-spill")), (200, "outage; from=near"));

    let (_backends, gateway) = two(offline, "spill: {to: [far], on: [end_of_life]}").await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "model_offline");
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_key_that_may_not_use_the_other_pool_is_told_that_the_model_ended() {
    let key = "ngk_near_0123456789abcdef";
    let backends = [simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let near = pool("end_of_life: 2020-01-01", "spill: {to: [far]}");
    let setup = Gateway::setup().pool("near", "nim-llm", &near, &[&backends[0].url()]);
    let setup = setup.pool("far", "nim-llm", &pool("", ""), &[&backends[1].url()]).key(key, "pools: [near]");
    let gateway = setup.start().await;
    assert_eq!(gateway.chat(false).key(key).send().await.fault(), ("model_ended", "client"));
    assert_eq!(gateway.chat(false).send().await.status, 200);
}

#[tokio::test]
async fn an_end_comes_into_force_by_a_reload_and_streams_under_way_go_on() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let stream = gateway.chat(true).header("x-sim-gate", "g").begin().await;
    let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
    let ended = config.replace(&format!("{{id: {MODEL}}}"), &format!("{{id: {MODEL}, end_of_life: 2020-01-01}}"));
    replace(&gateway.path("nimgate.yaml"), &ended);
    until("it has ended", async || gateway.chat(false).send().await.status == 410).await;
    (0..100).for_each(|_| backend.open_gate("g"));
    assert!(answer(stream).await.text().ends_with("data: [DONE]\n\n"));
    gateway.until_idle().await;
}
