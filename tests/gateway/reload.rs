//! Reload: a good configuration comes into force, a bad one does not, and nothing in flight notices.

use http_body_util::BodyExt as _;

use crate::support::*;

fn config(gateway: &Gateway) -> String {
    std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap()
}

async fn generation(gateway: &Gateway) -> f64 {
    gateway.metric("nimgate_config_generation").await
}

#[tokio::test]
async fn a_changed_file_comes_into_force_while_streams_go_on() {
    let (old, new) = (simulator(Kind::Llm).await, simulator(Kind::Llm).await);
    let gateway = Gateway::setup().chat(&[&old.url()]).start().await;
    let mut stream = gateway.chat(true).header("x-sim-gate", "g").begin().await.into_body();
    old.open_gate("g");
    assert!(stream.frame().await.is_some());
    replace(&gateway.path("nimgate.yaml"), &config(&gateway).replace(&old.url(), &new.url()));
    until("it is loaded", async || generation(&gateway).await == 2.0).await;
    assert_eq!(gateway.chat(false).send().await.status, 200);
    assert_eq!((old.seen().requests("/v1/chat/completions"), new.seen().requests("/v1/chat/completions")), (1, 1));
    (0..100).for_each(|_| old.open_gate("g"));
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "the stream in flight is untouched");
}

#[tokio::test]
async fn a_bad_file_leaves_the_last_good_one_in_force() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let good = config(&gateway);
    assert_eq!(gateway.metric("nimgate_config_stale").await, 0.0);
    replace(&gateway.path("nimgate.yaml"), &good.replace("pools:", "pooools:"));
    until("it is refused", async || gateway.metric("nimgate_reloads_total{result=\"refused\"}").await == 1.0).await;
    assert_eq!((generation(&gateway).await, gateway.chat(false).send().await.status), (1.0, 200));
    assert!(gateway.output().contains("pooools"), "the log says what is wrong: {}", gateway.output());
    std::fs::write(gateway.path("nimgate.yaml"), "pools: [").unwrap();
    until("a half-written one too", async || gateway.metric("nimgate_reloads_total{result=\"refused\"}").await >= 2.0)
        .await;
    assert_eq!(gateway.chat(false).send().await.status, 200);
    assert_eq!(gateway.metric("nimgate_config_stale").await, 1.0);
    replace(&gateway.path("nimgate.yaml"), &good);
    until("the mended one is in force", async || gateway.metric("nimgate_config_stale").await == 0.0).await;
}

#[tokio::test]
async fn a_key_taken_out_of_the_file_is_refused() {
    let backend = simulator(Kind::Llm).await;
    let other = "ngk_other_0123456789abcdef";
    let gateway = Gateway::setup().chat(&[&backend.url()]).key(other, "name: x").start().await;
    assert_eq!(gateway.chat(false).key(other).send().await.status, 200);
    replace(&gateway.path("keys.yaml"), &format!("keys:\n{}", record(KEY, "name: x")));
    until("it is refused", async || gateway.chat(false).key(other).send().await.status == 401).await;
}

#[tokio::test]
async fn hangup_and_the_admin_listener_reload_too() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).top("").start().await;
    gateway.signal("HUP");
    until("it is loaded", async || generation(&gateway).await == 2.0).await;
    let request = http::Request::post(format!("http://{}/reload", gateway.admin))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let answer = answer(client.request(request).await.unwrap()).await;
    assert_eq!((answer.status, &answer.json()["generation"]), (200, &3.into()));
}

#[tokio::test]
async fn a_reload_keeps_load_and_health_of_endpoints_that_stay() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let held = gateway.chat(true).header("x-sim-gate", "never").begin().await;
    gateway.signal("HUP");
    until("it is loaded", async || generation(&gateway).await == 2.0).await;
    assert_eq!(gateway.metric("nimgate_endpoint_in_flight").await, 1.0);
    drop(held);
    until("the lease is given back", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn a_graceful_stop_lets_streams_end() {
    let backend = simulator(Kind::Llm).await;
    let mut gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let mut stream = gateway.chat(true).header("x-sim-gate", "g").begin().await.into_body();
    backend.open_gate("g");
    assert!(stream.frame().await.is_some());
    gateway.signal("TERM");
    until("it is draining", async || gateway.admin("/readyz").await.json()["draining"] == true).await;
    (0..100).for_each(|_| backend.open_gate("g"));
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    until("it has stopped", async || !gateway.is_running()).await;
    assert_eq!(gateway.records().len(), 1, "the record is written before the end");
}
