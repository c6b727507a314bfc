//! HTTP/2 in clear text with prior knowledge, from callers and to backends. Over TLS it is in `tls.rs`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::support::*;

type Http2 = Client<HttpConnector, Full<Bytes>>;

async fn gateway() -> (Simulator, Gateway, Http2) {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).listener("http2_cleartext: true").start().await;
    (backend, gateway, Client::builder(TokioExecutor::new()).http2_only(true).build_http())
}

async fn chat_over(client: &Http2, gateway: &Gateway, stream: bool, extra: (&str, &str)) -> Response<Incoming> {
    let request = Request::post(format!("http://{}/v1/chat/completions", gateway.address))
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .header(extra.0, extra.1);
    client.request(request.body(Full::new(chat(stream).to_string().into())).unwrap()).await.unwrap()
}

#[tokio::test]
async fn chats_and_refusals_share_one_connection() {
    let (backend, gateway, client) = gateway().await;
    for _ in 0..3 {
        let good = answer(chat_over(&client, &gateway, false, ("x-a", "b")).await).await;
        assert_eq!((good.status, good.json()["object"].as_str()), (200, Some("chat.completion")));
        let failed = answer(chat_over(&client, &gateway, false, ("x-sim-fault", "status=500")).await).await;
        assert_eq!((failed.status, failed.fault().0), (500, "inference_error"));
        let request = Request::get(format!("http://{}/v1/models", gateway.address)).body(Full::default()).unwrap();
        let denied = answer(client.request(request).await.unwrap()).await;
        assert_eq!((denied.status, denied.fault().0), (401, "key_missing"));
    }
    assert_eq!(backend.seen().requests("/v1/chat/completions"), 6);
}

#[tokio::test]
async fn streams_flow_and_end_with_their_reason() {
    let (backend, gateway, client) = gateway().await;
    let whole = answer(chat_over(&client, &gateway, true, ("x-a", "b")).await).await;
    assert!(whole.text().ends_with("data: [DONE]\n\n"));
    let mut body = chat_over(&client, &gateway, true, ("x-sim-gate", "g")).await.into_body();
    backend.open_gate("g");
    assert!(body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"data: "));
    backend.kill();
    let rest = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(rest.contains("\"code\":\"upstream_closed\""), "{rest}");
}

#[tokio::test]
async fn the_backends_work_ends_when_the_stream_is_reset() {
    let (backend, gateway, client) = gateway().await;
    let body = chat_over(&client, &gateway, true, ("x-sim-gate", "never")).await;
    until("the backend works", async || backend.seen().in_flight() == 1).await;
    drop(body);
    until("the work is dropped", async || backend.seen().in_flight() == 0).await;
    until("it is recorded", async || gateway.records().iter().any(|r| r["error"] == "client_closed")).await;
    let again = answer(chat_over(&client, &gateway, false, ("x-a", "b")).await).await;
    assert_eq!(again.status, 200, "the connection serves on");
}

/// A backend that speaks nothing but HTTP/2, and the lengths of the bodies that it got. The first `refused` requests
/// are answered by closing their connection.
pub(crate) async fn http2_backend(refused: usize) -> (SocketAddr, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lengths: Arc<Mutex<Vec<usize>>> = Arc::default();
    let seen = Arc::clone(&lengths);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            let serve = hyper::service::service_fn(move |request: Request<Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                    let earlier = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(body.len());
                        seen.len() - 1
                    };
                    if earlier < refused {
                        return Err("as told");
                    }
                    Ok::<_, &str>(Response::new(Full::new(Bytes::from_static(b"{\"ok\":true}"))))
                }
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _: Result<(), hyper::Error> = builder.serve_connection(TokioIo::new(stream), serve).await;
                Ok::<(), Infallible>(())
            });
        }
    });
    (address, lengths)
}

const HTTP2_POOL: &str =
    "models: [{id: meta/llama-3.1-8b-instruct}]\nconnection: {http2: true}\nhealth: {enabled: false}";

#[tokio::test]
async fn backends_may_speak_http2() {
    let (address, lengths) = http2_backend(0).await;
    let url = format!("http://{address}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", HTTP2_POOL, &[&url]).start().await;
    for length in [10, 300_000, 3_000_000] {
        let mut body = chat(false);
        body["messages"][0]["content"] = "x".repeat(length).into();
        let sent = body.to_string();
        let answer = gateway.post("/v1/chat/completions", &body).send().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"));
        assert_eq!(lengths.lock().unwrap().last(), Some(&sent.len()));
    }
}

#[tokio::test]
async fn a_post_that_a_backend_broke_off_is_never_sent_again() {
    let (address, lengths) = http2_backend(1).await;
    let url = format!("http://{address}");
    let gateway = Gateway::setup().pool("chat", "nim-llm", HTTP2_POOL, &[&url]).start().await;
    let answer = gateway.chat(false).send().await;
    assert_eq!(
        (answer.status, answer.fault().1),
        (502, if answer.fault().0 == "upstream_closed" { "network" } else { "inference-service" })
    );
    assert_eq!(lengths.lock().unwrap().len(), 1, "the inference may have run: it must not run twice");
    assert_eq!(gateway.chat(false).send().await.status, 200);
}
