//! Bodies of every size: bounded, streamed, and not copied more than need be.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::support::*;

const MIB: usize = 1024 * 1024;

/// A Cosmos Predict body of exactly `length` bytes in pieces of 64 KiB, its image being base64.
fn video_body(length: usize) -> impl Iterator<Item = Bytes> {
    let (head, tail) = (r#"{"prompt":"a street","image":""#, r#""}"#);
    let media = (length - head.len() - tail.len()) / 4 * 4;
    // JSON may end in white space, which makes up for lengths that base64 can not have.
    let padding = " ".repeat(length - head.len() - tail.len() - media);
    let piece = Bytes::from(vec![b'A'; 64 * 1024]);
    let pieces = (0..media).step_by(piece.len()).map(move |at| piece.slice(..piece.len().min(media - at)));
    std::iter::once(Bytes::from(head)).chain(pieces).chain([Bytes::from(format!("{tail}{padding}"))])
}

/// Uploads `length` bytes of video, sized or chunked, over HTTP/1.1 or HTTP/2 with prior knowledge.
async fn upload(gateway: &Gateway, length: usize, sized: bool, http2: bool) -> Answer {
    let body = StreamBody::new(stream::iter(video_body(length)).map(|p| Ok::<_, Infallible>(Frame::data(p))));
    let mut request = Request::post(format!("http://{}/v1/infer", gateway.address))
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json");
    if sized {
        request = request.header("content-length", length);
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build(connector);
    answer(client.request(request.body(body).unwrap()).await.unwrap()).await
}

async fn predict(http2: bool) -> (Simulator, Gateway) {
    let backend = simulator(Kind::CosmosPredict).await;
    let mut setup = Gateway::setup().pool("p", "cosmos-predict", "", &[&backend.url()]);
    if http2 {
        setup = setup.listener("http2_cleartext: true");
    }
    (backend, setup.start().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_256_mib_pass_validated_within_twice_their_size() {
    for (http2, sized) in [(false, true), (false, false), (true, true), (true, false)] {
        let (backend, gateway) = predict(http2).await;
        upload(&gateway, MIB, sized, http2).await;
        let (before, _) = gateway.memory();
        gateway.reset_peak();
        let answer = upload(&gateway, 256 * MIB, sized, http2).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(backend.seen().last_of("/v1/infer").unwrap().body_length, 256 * MIB as u64);
        let grown = gateway.memory().1.saturating_sub(before) / 1024;
        println!("256 MiB, sized {sized}, HTTP/2 {http2}: peak memory grew by {grown} MiB");
        assert!(grown < 512, "grew by {grown} MiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_256_mib_pass_in_constant_memory() {
    let (_backend, gateway) = predict(false).await;
    // The first answers make what every later one uses again: threads' heaps, kept connections.
    for _ in 0..4 {
        gateway.post("/v1/infer", &json!({ "prompt": "x" })).header("x-sim-answer-bytes", "1000000").send().await;
    }
    let (before, _) = gateway.memory();
    gateway.reset_peak();
    let ask =
        gateway.post("/v1/infer", &json!({ "prompt": "x" })).header("x-sim-answer-bytes", &(256 * MIB).to_string());
    let mut body = ask.begin().await.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    let grown = gateway.memory().1.saturating_sub(before);
    println!("256 MiB answer: peak memory grew by {grown} KiB");
    assert!(length > 256 * MIB && grown < 8 * 1024, "{length} bytes, grew by {grown} KiB");
}

#[tokio::test]
async fn sizes_around_every_inner_bound_arrive_whole() {
    for http2 in [false, true] {
        let (backend, gateway) = predict(http2).await;
        for length in [100, 16 * 1024, 64 * 1024, 64 * 1024 + 1, 256 * 1024 + 7, MIB - 1, MIB + 1, 5 * MIB] {
            for sized in [true, false] {
                let answer = upload(&gateway, length, sized, http2).await;
                assert_eq!(answer.status, 200, "{length} {sized} {http2}: {}", answer.text());
                assert_eq!(backend.seen().last_of("/v1/infer").unwrap().body_length, length as u64);
            }
        }
    }
}

#[tokio::test]
async fn a_body_above_its_limit_is_refused_however_it_comes() {
    let backend = simulator(Kind::CosmosPredict).await;
    let pool = |setup: Setup| setup.pool("p", "cosmos-predict", "max_body_mib: 1", &[&backend.url()]);
    let gateway = pool(Gateway::setup()).start().await;
    for sized in [true, false] {
        let answer = upload(&gateway, MIB + 1, sized, false).await;
        assert_eq!((answer.status, answer.fault()), (413, ("body_too_large", "client")), "sized {sized}");
    }
    assert_eq!(upload(&gateway, MIB, false, false).await.status, 200);
    assert_eq!(backend.seen().requests("/v1/infer"), 1);
}

#[tokio::test]
async fn media_that_is_not_base64_is_found_wherever_it_breaks() {
    let (backend, gateway) = predict(false).await;
    for at in [0, 30_000, 3 * MIB, 6 * MIB - 5] {
        let mut media = vec![b'A'; 6 * MIB];
        media[at] = b'!';
        let body = json!({ "prompt": "x", "video": String::from_utf8(media).unwrap() });
        let answer = gateway.post("/v1/infer", &body).send().await;
        assert_eq!((answer.status, answer.fault().0), (400, "schema_violation"), "at {at}");
        assert!(answer.body.len() < 1000, "an error never echoes the media");
    }
    assert_eq!(backend.seen().requests("/v1/infer"), 0);
}

#[tokio::test]
async fn bodies_that_are_not_read_stream_through() {
    let backend = simulator(Kind::Nvcf).await;
    let nvcf = "kind: nvcf\ncredential: {secret: {file: nimgate.yaml}}\nmax_body_mib: 8\nhealth: {enabled: false}";
    // The credential is any file: the simulator takes every key. YAML is no header value, so one line is written here.
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-test").unwrap();
    let nvcf = nvcf.replace("nimgate.yaml", "upstream.key");
    let gateway = Gateway::setup().pool("nvcf", "nvcf", &nvcf, &[&backend.url()]).start_in(directory).await;
    let path = format!("/v2/nvcf/pexec/functions/{}", nimgate::sim::ECHO_FUNCTION);
    for length in [10, 3 * MIB] {
        let ask = gateway.ask(http::Method::POST, &path).header("content-type", "application/octet-stream");
        let answer = ask.body(vec![b'x'; length]).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(backend.seen().last_of(&path).unwrap().body_length, length as u64);
    }
    let answer = gateway.ask(http::Method::POST, &path).body(vec![b'x'; 9 * MIB]).send().await;
    assert_eq!((answer.status, answer.fault().0), (413, "body_too_large"));
}
