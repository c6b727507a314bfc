//! Spill: what a pool can not take runs in another one that serves the same model, as that one wants it.

use http::Response;
use hyper::body::Incoming;
use nimgate::sim::LLM_FUNCTION;
use serde_json::{Value, json};

use crate::support::*;

const MODEL: &str = "meta/llama-3.1-8b-instruct";
/// What the other pool calls it.
const OTHER: &str = "llama-elsewhere";
const CHAT: &str = "/v1/chat/completions";
const LIMITED: &str = "ngk_limited_0123456789abcdef";
const ONE_PLACE: &str = "balance: {max_in_flight: 1}";

async fn elsewhere() -> Simulator {
    simulator_with(Kind::Llm, |settings| settings.models = vec![OTHER.into()]).await
}

/// A pool `near` that spills into a pool `far`, which has another name for the model.
fn pools(near: &str, near_urls: &[&str], far: &str, far_urls: &[&str]) -> Setup {
    let near = if near.contains("spill:") { near.to_owned() } else { format!("spill: {{to: [far]}}\n{near}") };
    let unprobed = |yaml: &str| if yaml.contains("health:") { "" } else { "health: {enabled: false}\n" };
    Gateway::setup()
        .pool("near", "nim-llm", &format!("models: [{{id: {MODEL}}}]\n{}{near}", unprobed(&near)), near_urls)
        .pool(
            "far",
            "nim-llm",
            &format!("models: [{{id: {MODEL}, backend_model: {OTHER}}}]\n{}{far}", unprobed(far)),
            far_urls,
        )
}

async fn hold(gateway: &Gateway) -> Response<Incoming> {
    gateway.chat(true).header("x-sim-gate", "held").begin().await
}

/// Asks, and expects an answer from the pool `far` for this reason.
async fn spills(gateway: &Gateway, reason: &str) -> Answer {
    let id = format!("spill-{}", fastrand::u64(..));
    let answer = gateway.chat(false).header("x-request-id", &id).send().await;
    assert_eq!((answer.status, answer.fault()), (200, ("", "")), "{}", answer.text());
    let told = (answer.header("x-nimgate-pool"), answer.header("x-nimgate-spill"));
    assert_eq!(told, ("far", format!("{reason}; from=near").as_str()));
    let record = gateway.record_of(&id).await;
    let noted = [&record["pool"], &record["spilled_from"], &record["spill_reason"]];
    assert_eq!(noted, [&json!("far"), &json!("near"), &json!(reason)]);
    answer
}

#[tokio::test]
async fn a_full_pool_gives_what_it_can_not_take_to_another_in_its_words() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let gateway = pools(ONE_PLACE, &[&near.url()], "headers: {x-where: far}", &[&far.url()]).start().await;
    assert_eq!(gateway.chat(false).send().await.header("x-nimgate-spill"), "");
    let held = hold(&gateway).await;
    let answer = spills(&gateway, "overload").await;
    assert_eq!(answer.header("x-nimgate-queue-ms"), "", "it did not wait");
    let seen = far.seen().last_of(CHAT).unwrap();
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((sent["model"].as_str(), seen.headers["x-where"].to_str().ok()), (Some(OTHER), Some("far")));
    assert_eq!(seen.headers["host"], far.address().to_string());
    // Streams as well: with their usage, which was asked for on their behalf.
    let text = gateway.chat(true).header("x-request-id", "stream").send().await.text();
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"usage\":{"), "{text}");
    assert_eq!(gateway.record_of("stream").await["tokens"], "stated");
    let spilled = "nimgate_spills_total{from=\"near\",pool=\"far\",reason=\"overload\"}";
    assert_eq!(gateway.metric(spilled).await, 2.0);
    drop(held);
    gateway.until_idle().await;
    assert_eq!(gateway.chat(false).send().await.header("x-nimgate-pool"), "near");
}

#[tokio::test]
async fn a_patient_request_waits_here_for_as_long_as_it_is_told() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let patient = format!("{ONE_PLACE}\nspill: {{to: [far], after_ms: 150}}");
    let gateway = pools(&patient, &[&near.url()], "", &[&far.url()]).start().await;
    let held = hold(&gateway).await;
    let answer = spills(&gateway, "overload").await;
    assert!(answer.header("x-nimgate-queue-ms").parse::<u64>().unwrap() >= 150);
    let waits = gateway.chat(false).send();
    let release = async {
        gateway.until_waiting("near", 1).await;
        drop(held);
    };
    let (answer, ()) = tokio::join!(waits, release);
    // It got the place here, or its patience ended in that moment.
    assert_eq!(answer.status, 200);
    gateway.until_idle().await;
}

#[tokio::test]
async fn who_may_not_wait_here_need_not_be_patient() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    for queue in ["queue: {max: 0}", "queue: {timeout_ms: 50}"] {
        let patient = format!("{ONE_PLACE}\n{queue}\nspill: {{to: [far], after_ms: 10000}}");
        let gateway = pools(&patient, &[&near.url()], "", &[&far.url()]).start().await;
        let held = hold(&gateway).await;
        spills(&gateway, "overload").await;
        drop(held);
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn a_stream_that_began_with_comments_goes_on_in_the_other_pool() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let more = format!("{ONE_PLACE}\nqueue: {{keepalive_ms: 10}}\nspill: {{to: [far], after_ms: 100}}");
    let gateway = pools(&more, &[&near.url()], "", &[&far.url()]).start().await;
    let held = hold(&gateway).await;
    let text = gateway.chat(true).send().await.text();
    assert!(text.starts_with(": waiting") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(far.seen().requests(CHAT), 1);
    drop(held);
    gateway.until_idle().await;
}

#[tokio::test]
async fn endpoints_that_all_say_that_they_are_full_are_an_overload() {
    let near = [simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let far = elsewhere().await;
    let gateway = pools("", &[&near[0].url(), &near[1].url()], "", &[&far.url()]).start().await;
    for backend in &near {
        backend.fault_times("status=429", u64::MAX, Some("/v1/chat")).unwrap();
    }
    for _ in 0..4 {
        // At first by their answers, then since they asked for a pause.
        spills(&gateway, "overload").await;
    }
    assert!(near.iter().map(|backend| backend.seen().requests(CHAT)).sum::<u64>() <= 4);
    far.fault_times("status=429,body-a", u64::MAX, Some("/v1/chat")).unwrap();
    let answer = gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.fault().0), (429, "inference_overloaded"));
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_outage_spills_whether_it_is_met_or_known() {
    let far = elsewhere().await;
    let dead = format!("http://{}", free_address());
    let gateway = pools("breaker: {failures: 2}", &[&dead], "", &[&far.url()]).start().await;
    for _ in 0..6 {
        spills(&gateway, "outage").await;
    }
    let near = &gateway.pool("near").await["endpoints"][0];
    assert_eq!(near["breaker"], "open");
    gateway.until_idle().await;

    let sick = simulator(Kind::Llm).await;
    sick.fault("not-ready").unwrap();
    let probed = "health: {interval_ms: 50, unhealthy_after: 1}";
    let gateway = pools(probed, &[&sick.url()], "", &[&far.url()]).start().await;
    let is_healthy = async || gateway.pool("near").await["endpoints"][0]["healthy"] == true;
    until("it is out", async || !is_healthy().await).await;
    spills(&gateway, "outage").await;
    assert_eq!(sick.seen().requests(CHAT), 0);
    sick.fault("").unwrap();
    until("it is back", async || is_healthy().await).await;
    assert_eq!(gateway.chat(false).send().await.header("x-nimgate-pool"), "near");
    gateway.until_idle().await;
}

#[tokio::test]
async fn only_the_named_reasons_count() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let more = format!("{ONE_PLACE}\nqueue: {{max: 0}}\nspill: {{to: [far], on: [outage]}}");
    let gateway = pools(&more, &[&near.url()], "", &[&far.url()]).start().await;
    let held = hold(&gateway).await;
    assert_eq!(gateway.chat(false).send().await.fault().0, "queue_full");
    drop(held);
    gateway.until_idle().await;
    near.fault_times("status=429", 1, Some("/v1/chat")).unwrap();
    assert_eq!(gateway.chat(false).send().await.status, 429);
    assert_eq!(gateway.chat(false).send().await.header("x-nimgate-pool"), "near", "a pause is no outage");
    let dead = format!("http://{}", free_address());
    let gateway = pools("spill: {to: [far], on: [overload]}", &[&dead], "", &[&far.url()]).start().await;
    assert_eq!(gateway.chat(false).send().await.fault(), ("connect_refused", "network"));
    assert_eq!(far.seen().requests(CHAT), 0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_generation_that_may_have_run_is_not_run_in_another_pool() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let gateway = pools("timeouts: {first_byte_ms: 200}", &[&near.url()], "", &[&far.url()]).start().await;
    for fault in ["status=500", "cut", "hang"] {
        let answer = gateway.chat(false).header("x-sim-fault", fault).send().await;
        assert!(answer.status >= 500, "{fault}");
    }
    assert_eq!(far.seen().requests(CHAT), 0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_key_is_not_sent_where_it_may_not_go() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let more = format!("{ONE_PLACE}\nqueue: {{max: 0}}");
    let setup = pools(&more, &[&near.url()], "", &[&far.url()]);
    let gateway = setup.key(LIMITED, "pools: [near]").start().await;
    let held = hold(&gateway).await;
    let answer = gateway.chat(false).key(LIMITED).send().await;
    assert_eq!((answer.fault().0, answer.header("x-nimgate-spill")), ("queue_full", ""));
    spills(&gateway, "overload").await;
    drop(held);
    near.fault_times("status=429", u64::MAX, Some("/v1/chat")).unwrap();
    gateway.until_idle().await;
    assert_eq!(gateway.chat(false).key(LIMITED).send().await.status, 429);
    assert_eq!(far.seen().requests(CHAT), 1);
    gateway.until_idle().await;
}

#[tokio::test]
async fn what_the_other_pool_would_refuse_is_not_sent_there() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let more = format!("{ONE_PLACE}\nqueue: {{max: 0}}");
    let gateway = pools(&more, &[&near.url()], "validation: strict\nmax_body_mib: 1", &[&far.url()]).start().await;
    let held = hold(&gateway).await;
    let mut unknown = chat(false);
    unknown["surprise"] = 1.into();
    assert_eq!(gateway.post(CHAT, &unknown).send().await.fault().0, "queue_full");
    let mut large = chat(false);
    large["messages"][0]["content"] = "x".repeat(1024 * 1024).into();
    assert_eq!(gateway.post(CHAT, &large).send().await.fault().0, "queue_full");
    spills(&gateway, "overload").await;
    drop(held);
    gateway.until_idle().await;
}

#[tokio::test]
async fn limits_of_pools_are_charged_where_the_request_ran() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let limits = "limits: [{requests: 9, per: month, pools: [near]}, {requests: 9, per: month, pools: [far]}, \
                  {total_tokens: 10000, per: month, pools: [near]}, {total_tokens: 10000, per: month, pools: [far]}, \
                  {concurrency: 5, pools: [near]}, {concurrency: 5, pools: [far]}, {total_tokens: 20000, per: month}]";
    let setup = pools(ONE_PLACE, &[&near.url()], "", &[&far.url()]);
    let gateway = setup.key(LIMITED, limits).start().await;
    let used = async || {
        let page = gateway.admin("/keys/limited").await.json();
        let limits = page["limits"].as_array().unwrap().clone();
        limits.iter().map(|limit| limit["used"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let tokens = |answer: &Answer| answer.json()["usage"]["total_tokens"].as_u64().unwrap();
    let held = hold(&gateway).await;
    let moved = gateway.chat(false).key(LIMITED).send().await;
    assert_eq!(moved.header("x-nimgate-pool"), "far");
    let there = tokens(&moved);
    assert_eq!(used().await, [0, 1, 0, there, 0, 0, there]);
    // While it runs there, its place there is taken and none here.
    let running = gateway.chat(true).key(LIMITED).header("x-sim-gate", "never").begin().await;
    assert_eq!(running.headers()["x-nimgate-pool"], "far");
    let now = used().await;
    assert_eq!((now[0], now[2], now[4], now[5]), (0, 0, 0, 1), "{now:?}");
    drop(running);
    until("it is settled", async || used().await[5] == 0).await;
    drop(held);
    gateway.until_idle().await;
    let before = used().await;
    let stays = gateway.chat(false).key(LIMITED).send().await;
    let here = tokens(&stays);
    assert_eq!(stays.header("x-nimgate-pool"), "near");
    assert_eq!(used().await, [1, before[1], here, before[3], 0, 0, before[6] + here]);
    // A refusal of all endpoints moves it as well, after it was charged here.
    near.fault_times("status=429", 1, Some("/v1/chat")).unwrap();
    let before = used().await;
    let moved = gateway.chat(false).key(LIMITED).send().await;
    assert_eq!(moved.header("x-nimgate-spill"), "overload; from=near");
    let there = tokens(&moved);
    assert_eq!(used().await, [1, before[1] + 1, here, before[3] + there, 0, 0, before[6] + there]);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_limit_of_the_other_pool_keeps_a_request_here() {
    let (near, far) = (simulator(Kind::Llm).await, elsewhere().await);
    let more = format!("{ONE_PLACE}\nqueue: {{max: 0}}");
    let setup = pools(&more, &[&near.url()], "", &[&far.url()]);
    let limits = "limits: [{requests: 1, per: month, pools: [far]}, {concurrency: 1, pools: [near]}]";
    let gateway = setup.key(LIMITED, limits).start().await;
    let held = hold(&gateway).await;
    assert_eq!(gateway.chat(false).key(LIMITED).send().await.header("x-nimgate-pool"), "far");
    for _ in 0..2 {
        let answer = gateway.chat(false).key(LIMITED).send().await;
        assert_eq!((answer.fault().0, answer.header("x-nimgate-spill")), ("queue_full", ""));
    }
    drop(held);
    gateway.until_idle().await;
    assert_eq!(gateway.chat(false).key(LIMITED).send().await.header("x-nimgate-pool"), "near");
    let page = gateway.admin("/keys/limited").await.json();
    let used = |at: usize| page["limits"][at]["used"].as_u64().unwrap();
    assert_eq!((used(0), used(1)), (1, 0), "{page}");
}

fn three(spills: [&str; 3], urls: [&str; 3]) -> Setup {
    let mut setup = Gateway::setup();
    for ((name, to), url) in ["near", "far", "last"].into_iter().zip(spills).zip(urls) {
        let pool = format!(
            "models: [{{id: {MODEL}}}]\nhealth: {{enabled: false}}\nqueue: {{timeout_ms: 200}}\n{ONE_PLACE}\nspill: {{to: [{to}]}}"
        );
        setup = setup.pool(name, "nim-llm", &pool, &[url]);
    }
    setup
}

#[tokio::test]
async fn pools_in_a_row_are_gone_through_until_one_takes_it() {
    let dead = || format!("http://{}", free_address());
    let last = simulator(Kind::Llm).await;
    for spills in [["far", "last", ""], ["far, last", "", ""], ["far, last", "near, last", "near"]] {
        let gateway = three(spills, [&dead(), &dead(), &last.url()]).start().await;
        // At first it is met that pools are out, and known later.
        for _ in 0..12 {
            let answer = gateway.chat(false).send().await;
            let told = (answer.status, answer.header("x-nimgate-pool"));
            assert_eq!(told, (200, "last"), "{spills:?}: {:?}", gateway.records());
            assert_eq!(answer.header("x-nimgate-spill"), "outage; from=near");
            gateway.until_idle().await;
        }
        assert_eq!(gateway.pool("far").await["endpoints"][0]["breaker"], "open");
    }
    assert_eq!(last.seen().requests(CHAT), 36);
}

#[tokio::test]
async fn pools_that_spill_into_each_other_end() {
    let circles = [["far, last", "near", "far"], ["far", "last", "near"], ["far, last", "last, near", "near, far"]];
    for spills in circles {
        let dead: Vec<String> = (0..3).map(|_| format!("http://{}", free_address())).collect();
        let gateway = three(spills, [&dead[0], &dead[1], &dead[2]]).start().await;
        let answer = gateway.chat(false).header("x-request-id", "dead").send().await;
        assert_eq!((answer.status, answer.fault()), (502, ("connect_refused", "network")));
        let attempts = gateway.record_of("dead").await["attempts"].as_u64().unwrap();
        assert!((2..=3).contains(&attempts), "{attempts}");
        gateway.until_idle().await;

        let all = [simulator(Kind::Llm).await, simulator(Kind::Llm).await, simulator(Kind::Llm).await];
        let gateway = three(spills, [&all[0].url(), &all[1].url(), &all[2].url()]).start().await;
        all.iter().for_each(|b| b.fault_times("status=503", u64::MAX, Some("/v1/chat")).unwrap());
        let answer = gateway.chat(false).send().await;
        assert_eq!((answer.status, answer.fault().0), (503, "inference_overloaded"));
        assert!(all.iter().all(|backend| backend.seen().requests(CHAT) <= 1), "each pool once");
        all.iter().for_each(|b| b.fault("").unwrap());
        gateway.until_idle().await;

        let gateway = three(spills, [&all[0].url(), &all[1].url(), &all[2].url()]).start().await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(hold(&gateway).await);
        }
        let answer = gateway.chat(false).send().await;
        assert_eq!((answer.status, answer.fault().0), (503, "queue_timeout"), "all are full");
        drop(held);
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn a_cloud_function_takes_what_containers_can_not() {
    let cloud = simulator(Kind::Nvcf).await;
    let dead = format!("http://{}", free_address());
    for invocation in ["direct", "pexec"] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("upstream.key"), "nvapi-secret").unwrap();
        let near = "models: [{id: ours}]\nhealth: {enabled: false}\nspill: {to: [cloud]}";
        let far = format!(
            "models: [{{id: ours, backend_model: {MODEL}}}]\nkind: nvcf\nfunction: {{id: {LLM_FUNCTION}, invocation: {invocation}}}\ncredential: {{secret: {{file: upstream.key}}}}"
        );
        let setup = Gateway::setup().pool("near", "nim-llm", near, &[&dead]);
        let gateway = setup.pool("cloud", "nim-llm", &far, &[&cloud.url()]).start_in(directory).await;
        let mut body = chat(false);
        body["model"] = "ours".into();
        let answer = gateway.post(CHAT, &body).send().await;
        assert_eq!((answer.status, answer.header("x-nimgate-spill")), (200, "outage; from=near"), "{}", answer.text());
        assert_eq!(answer.json()["object"], "chat.completion");
        let seen = cloud.seen().last().unwrap();
        assert_eq!(seen.headers["authorization"], "Bearer nvapi-secret");
        // What the cloud says is read as the cloud's.
        let ask = gateway.post(CHAT, &body).header("x-sim-fault", "status=401");
        assert_eq!(ask.send().await.fault(), ("platform_unauthorized", "platform"), "{invocation}");
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn requests_without_a_model_spill_too() {
    let (near, far) = (simulator(Kind::CosmosPredict).await, simulator(Kind::CosmosPredict).await);
    let pool = format!("{ONE_PLACE}\nhealth: {{enabled: false}}\nspill: {{to: [far]}}");
    let setup = Gateway::setup().pool("near", "cosmos-predict", &format!("default: true\n{pool}"), &[&near.url()]);
    let gateway = setup.pool("far", "cosmos-predict", "health: {enabled: false}", &[&far.url()]).start().await;
    let body = json!({ "prompt": "a street" });
    let held = gateway.post("/v1/infer", &body).header("x-sim-gate-headers", "held").send();
    let other = async {
        until("it is held", async || near.seen().in_flight() == 1).await;
        let answer = gateway.post("/v1/infer", &body).send().await;
        assert_eq!((answer.status, answer.header("x-nimgate-spill")), (200, "overload; from=near"));
        assert_eq!(far.seen().last_of("/v1/infer").unwrap().body, body.to_string().into_bytes());
        near.open_gate("held");
    };
    let (held, ()) = tokio::join!(held, other);
    assert_eq!(held.status, 200);
    gateway.until_idle().await;
}
