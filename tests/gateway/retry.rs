//! Trying again: what ran nowhere goes to another endpoint, what may have run does so only where it may run twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::failure::raw_backend;
use crate::http2::http2_backend;
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const EMBED: &str = "/v1/embeddings";
/// All endpoints have their turn, and nothing but requests reaches them.
const TURNS: &str = "health: {enabled: false}\nmetrics: {enabled: false}\nbalance: {policy: round_robin, affinity: 0}";
const CHATS: &str = "models: [{id: meta/llama-3.1-8b-instruct}]";
const TEXTS: &str = "models: [{id: nvidia/nv-embedqa-e5-v5}]";

fn text() -> Value {
    json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": "x", "input_type": "query" })
}

async fn simulators(kind: Kind, count: usize) -> Vec<Simulator> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(simulator(kind).await);
    }
    all
}

fn urls(backends: &[Simulator]) -> Vec<String> {
    backends.iter().map(Simulator::url).collect()
}

async fn chats(more: &str, urls: &[String]) -> Gateway {
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    Gateway::setup().pool("chat", "nim-llm", &format!("{CHATS}\n{TURNS}\n{more}"), &urls).start().await
}

async fn texts(more: &str, urls: &[String]) -> Gateway {
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    Gateway::setup().pool("text", "nim-embedding", &format!("{TEXTS}\n{TURNS}\n{more}"), &urls).start().await
}

/// How often each request ran, at most.
fn most_runs(backends: &[Simulator]) -> u64 {
    let mut runs = std::collections::HashMap::<String, u64>::new();
    for (id, count) in backends.iter().flat_map(|backend| backend.seen().runs()) {
        *runs.entry(id).or_default() += count;
    }
    runs.into_values().max().unwrap_or(0)
}

fn requests(backends: &[Simulator], path: &str) -> u64 {
    backends.iter().map(|backend| backend.seen().requests(path)).sum()
}

#[tokio::test]
async fn what_an_endpoint_refuses_for_its_load_another_one_takes() {
    for status in [429, 503, 529] {
        for stream in [false, true] {
            let backends = simulators(Kind::Llm, 2).await;
            let gateway = chats("", &urls(&backends)).await;
            backends[0].fault_times(&format!("status={status}"), u64::MAX, Some("/v1/chat")).unwrap();
            let mut attempts = Vec::new();
            for at in 0..4 {
                let id = format!("r-{at}");
                let answer = gateway.chat(stream).header("x-request-id", &id).send().await;
                assert_eq!((answer.status, answer.fault()), (200, ("", "")), "{status} {at}: {}", answer.text());
                let record = gateway.record_of(&id).await;
                assert_eq!(record["endpoint"], backends[1].address().to_string());
                attempts.push(record["attempts"].as_u64().unwrap());
            }
            assert!(attempts.contains(&2), "{attempts:?}");
            gateway.until_idle().await;
            let retries = gateway.metric("nimgate_retries_total{pool=\"chat\"}").await;
            assert_eq!(retries, (attempts.iter().sum::<u64>() - 4) as f64);
            assert_eq!(most_runs(&backends), 1);
        }
    }
}

#[tokio::test]
async fn a_single_endpoints_own_refusal_passes_as_it_is() {
    let refusal = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 7\r\n\
                    content-length: 34\r\n\r\n{\"error\":{\"message\":\"I am full.\"}}";
    let url = format!("http://{}", raw_backend(refusal).await);
    let gateway = chats("", &[url]).await;
    let answer = gateway.chat(false).header("x-request-id", "own").send().await;
    assert_eq!((answer.status, answer.fault()), (429, ("inference_overloaded", "inference-service")));
    assert_eq!(
        (answer.header("retry-after"), answer.text().as_str()),
        ("7", "{\"error\":{\"message\":\"I am full.\"}}")
    );
    assert_eq!(gateway.record_of("own").await["attempts"], 1);
    assert_eq!(gateway.metric("nimgate_retries_total").await, 0.0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn when_all_refuse_the_last_ones_answer_passes() {
    let backends = simulators(Kind::Llm, 3).await;
    let gateway = chats("", &urls(&backends)).await;
    backends.iter().for_each(|b| b.fault_times("status=503,body-f", u64::MAX, Some("/v1/chat")).unwrap());
    let answer = gateway.chat(false).header("x-request-id", "all").send().await;
    assert_eq!((answer.status, answer.fault().0), (503, "inference_overloaded"), "{}", answer.text());
    assert!(!answer.text().contains("nimgate"), "the backend's own words: {}", answer.text());
    let attempts = gateway.record_of("all").await["attempts"].as_u64().unwrap();
    assert_eq!((attempts, requests(&backends, CHAT)), (3, 3));
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_error_is_tried_again_only_where_the_operation_may_run_twice() {
    for fault in ["status=500", "status=502", "status=504", "cut", "hang"] {
        let more = "timeouts: {first_byte_ms: 200}";
        let backends = simulators(Kind::Llm, 2).await;
        let gateway = chats(more, &urls(&backends)).await;
        for at in 0..2 {
            backends[0].fault_times(fault, u64::MAX, Some("/v1/chat")).unwrap();
            backends[1].fault_times(fault, u64::MAX, Some("/v1/chat")).unwrap();
            let id = format!("c-{at}");
            let answer = gateway.chat(false).header("x-request-id", &id).send().await;
            assert!(answer.status >= 500, "{fault}: {}", answer.status);
            assert_eq!(gateway.record_of(&id).await["attempts"], 1, "{fault}");
        }
        assert_eq!(requests(&backends, CHAT), 2, "{fault}");
        gateway.until_idle().await;

        let backends = simulators(Kind::Embedding, 2).await;
        let gateway = texts(more, &urls(&backends)).await;
        backends[0].fault_times(fault, u64::MAX, Some(EMBED)).unwrap();
        for at in 0..4 {
            let answer = gateway.post(EMBED, &text()).header("x-request-id", &format!("e-{at}")).send().await;
            assert_eq!((answer.status, answer.fault()), (200, ("", "")), "{fault} {at}");
        }
        assert!(backends[0].seen().requests(EMBED) > 0, "{fault} was met");
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn a_reranking_is_tried_again_too_and_a_generation_that_has_begun_is_not() {
    let backends = simulators(Kind::Reranking, 2).await;
    let pool = format!("models: [{{id: nvidia/nv-rerankqa-mistral-4b-v3}}]\n{TURNS}");
    let urls_of = urls(&backends);
    let setup = Gateway::setup().pool("rank", "nim-reranking", &pool, &[&urls_of[0], &urls_of[1]]);
    let gateway = setup.start().await;
    backends[0].fault_times("status=500", u64::MAX, Some("/v1/ranking")).unwrap();
    let body =
        json!({ "model": "nvidia/nv-rerankqa-mistral-4b-v3", "query": { "text": "q" }, "passages": [{ "text": "p" }] });
    for _ in 0..4 {
        assert_eq!(gateway.post("/v1/ranking", &body).send().await.status, 200);
    }

    let backends = simulators(Kind::Llm, 2).await;
    let gateway = chats("", &urls(&backends)).await;
    let answer = gateway.chat(true).header("x-sim-fault", "cut-after=2").header("x-request-id", "cut").send().await;
    let last = events(&answer.text()).pop().unwrap();
    assert_eq!((answer.status, &last["error"]["code"]), (200, &json!("upstream_closed")));
    assert_eq!((requests(&backends, CHAT), most_runs(&backends)), (1, 1));
    gateway.until_idle().await;
}

#[tokio::test]
async fn attempts_are_bounded_for_each_request() {
    let backends = simulators(Kind::Embedding, 5).await;
    for (attempts, expected) in [(1, 1), (3, 3), (20, 5)] {
        let gateway = texts(&format!("retry: {{attempts: {attempts}, budget_percent: 1000}}"), &urls(&backends)).await;
        backends.iter().for_each(|b| b.fault_times("status=500", u64::MAX, Some(EMBED)).unwrap());
        let before = requests(&backends, EMBED);
        let answer = gateway.post(EMBED, &text()).send().await;
        assert_eq!((answer.status, answer.fault().0), (500, "inference_error"));
        assert_eq!(requests(&backends, EMBED) - before, expected, "of {attempts}");
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn attempts_are_bounded_by_the_pools_budget() {
    const REQUESTS: u64 = 60;
    for (percent, per_second, most) in [(0, 0, 0), (20, 0, REQUESTS / 5 + 1)] {
        let backends = simulators(Kind::Embedding, 2).await;
        let more = format!(
            "retry: {{budget_percent: {percent}, budget_per_second: {per_second}}}\nbreaker: {{failures: 10, open_ms: 10, longest_ms: 10}}"
        );
        let gateway = texts(&more, &urls(&backends)).await;
        backends.iter().for_each(|b| b.fault_times("status=500", u64::MAX, Some(EMBED)).unwrap());
        for _ in 0..REQUESTS {
            assert_eq!(gateway.post(EMBED, &text()).send().await.status, 500);
        }
        gateway.until_idle().await;
        let repeated = requests(&backends, EMBED) - REQUESTS;
        assert!(repeated <= most && (repeated > 0) == (most > 0), "{repeated} repeated, at most {most}");
        assert_eq!(gateway.metric("nimgate_retries_total").await, repeated as f64);
    }
}

#[tokio::test]
async fn nothing_is_tried_again_once_the_callers_time_is_over() {
    let backends = simulators(Kind::Embedding, 3).await;
    let gateway = texts("", &urls(&backends)).await;
    backends.iter().for_each(|b| b.fault_times("delay=150,status=500", u64::MAX, Some(EMBED)).unwrap());
    let ask = gateway.post(EMBED, &text()).header("x-request-timeout", "0.2").header("x-request-id", "late");
    let answer = ask.send().await;
    assert_eq!((answer.status, answer.fault().0), (504, "total_timeout"), "{}", answer.text());
    let record = gateway.record_of("late").await;
    assert!(record["attempts"].as_u64().unwrap() <= 2 && record["total_ms"].as_f64().unwrap() < 1000.0, "{record}");
    gateway.until_idle().await;
}

#[tokio::test]
async fn large_bodies_are_sent_whole_again() {
    let backends = simulators(Kind::Embedding, 2).await;
    let gateway = texts("", &urls(&backends)).await;
    backends[0].fault_times("status=503", u64::MAX, Some(EMBED)).unwrap();
    let input = vec!["one two three four five six seven eight nine ten"; 20_000];
    let body = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": input, "input_type": "query" });
    for at in 0..2 {
        let answer = gateway.post(EMBED, &body).header("x-request-id", &format!("l-{at}")).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(backends[1].seen().last_of(EMBED).unwrap().body_length, body.to_string().len() as u64);
    gateway.until_idle().await;
}

/// Accepts, reads a little of the request and closes, which resets the connection.
async fn half_hearted() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let met: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&met);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 100]).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, met)
}

#[tokio::test]
async fn a_generation_that_was_not_wholly_sent_may_go_elsewhere_and_never_runs_twice() {
    let good = simulators(Kind::Llm, 1).await;
    let (bad, met) = half_hearted().await;
    let gateway = chats("breaker: {failures: 10, open_ms: 10, longest_ms: 10}", &[good[0].url(), bad]).await;
    let mut body = chat(false);
    body["messages"][0]["content"] = "x".repeat(8 * 1024 * 1024).into();
    let mut good_answers = 0;
    for at in 0..8 {
        let id = format!("h-{at}");
        let answer = gateway.post(CHAT, &body).header("x-request-id", &id).send().await;
        let is_told = answer.status == 502 && ["upstream_closed", "upstream_reset"].contains(&answer.fault().0);
        assert!(answer.status == 200 || is_told, "{}: {}", answer.status, answer.text());
        good_answers += u32::from(answer.status == 200);
        assert!(good[0].seen().runs_of(&id) <= 1);
    }
    println!("{good_answers} of 8 good, {} met the reset", met.load(Ordering::SeqCst));
    assert!(met.load(Ordering::SeqCst) > 0 && good_answers >= 4);
    gateway.until_idle().await;
}

/// An HTTP/2 backend that answers the first stream of each connection by a frame which says that nothing was done.
pub(crate) async fn h2_refusing(is_goaway: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let met: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&met);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let met = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut preface = [0; 24];
                stream.read_exact(&mut preface).await.ok()?;
                // Empty SETTINGS, and an acknowledgement of those that come.
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0]).await.ok()?;
                loop {
                    let mut head = [0; 9];
                    stream.read_exact(&mut head).await.ok()?;
                    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                    let mut payload = vec![0; length];
                    stream.read_exact(&mut payload).await.ok()?;
                    if head[3] != 1 {
                        continue;
                    }
                    met.fetch_add(1, Ordering::SeqCst);
                    let refusal = if is_goaway {
                        // The last stream that was taken is none, and there is no error.
                        [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &[0; 8]].concat()
                    } else {
                        [&[0, 0, 4, 3, 0][..], &head[5..9], &[0, 0, 0, 7]].concat()
                    };
                    stream.write_all(&refusal).await.ok()?;
                }
                #[expect(unreachable_code, reason = "names the type of the block")]
                Some(())
            });
        }
    });
    (address, met)
}

#[tokio::test]
async fn a_stream_that_an_http2_backend_refuses_goes_elsewhere() {
    for is_goaway in [false, true] {
        let (refusing, met) = h2_refusing(is_goaway).await;
        let (good, lengths) = http2_backend(0).await;
        let more = "connection: {http2: true}\nbreaker: {failures: 10, open_ms: 10, longest_ms: 10}";
        let gateway = chats(more, &[format!("http://{refusing}"), format!("http://{good}")]).await;
        for at in 0..6 {
            let id = format!("h2-{at}");
            let answer = gateway.chat(false).header("x-request-id", &id).send().await;
            assert_eq!(
                (answer.status, answer.fault()),
                (200, ("", "")),
                "go away {is_goaway}, {at}: {}",
                answer.text()
            );
        }
        assert!(met.load(Ordering::SeqCst) > 0);
        assert_eq!(lengths.lock().unwrap().len(), 6, "each ran once");
        gateway.until_idle().await;
    }
}

#[tokio::test]
async fn what_an_http2_backend_broke_off_is_repeated_only_where_it_may_be() {
    let more = "connection: {http2: true}";
    let (breaking, broken) = http2_backend(100).await;
    let (good, lengths) = http2_backend(0).await;
    let gateway = texts(more, &[format!("http://{breaking}"), format!("http://{good}")]).await;
    for _ in 0..4 {
        let answer = gateway.post(EMBED, &text()).send().await;
        assert_eq!((answer.status, answer.fault()), (200, ("", "")));
    }
    assert!(!broken.lock().unwrap().is_empty() && lengths.lock().unwrap().len() == 4);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_body_that_streams_through_goes_on_to_an_endpoint_that_can_be_reached() {
    let backend = simulator(Kind::Nvcf).await;
    let dead = format!("http://{}", free_address());
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-test").unwrap();
    let pool = format!("kind: nvcf\ncredential: {{secret: {{file: upstream.key}}}}\n{TURNS}");
    let gateway = Gateway::setup().pool("nvcf", "nvcf", &pool, &[&dead, &backend.url()]).start_in(directory).await;
    let path = format!("/v2/nvcf/pexec/functions/{}", nimgate::sim::ECHO_FUNCTION);
    let upload = async |id: &str, fault: &str| {
        let pieces =
            (0..64).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![b'x'; 16 * 1024]))));
        let body = StreamBody::new(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
        let request = Request::post(format!("http://{}{path}", gateway.address))
            .header("authorization", format!("Bearer {KEY}"))
            .header("x-sim-fault", fault)
            .header("x-request-id", id);
        let client = Client::builder(TokioExecutor::new()).build_http();
        answer(client.request(request.body(body).unwrap()).await.unwrap()).await
    };
    let mut attempts = 0;
    for at in 0..4 {
        let id = format!("s-{at}");
        let answer = upload(&id, "").await;
        assert_eq!((answer.status, answer.fault()), (200, ("", "")), "{}", answer.text());
        assert_eq!(backend.seen().last_of(&path).unwrap().body_length, 1024 * 1024);
        attempts += gateway.record_of(&id).await["attempts"].as_u64().unwrap();
    }
    assert!(attempts > 4, "the dead one was tried");
    // Once it was sent, nobody has it any more.
    let answer = upload("gone", "rate-limit").await;
    assert_eq!((answer.status, answer.fault()), (429, ("platform_rate_limited", "platform")));
    gateway.until_idle().await;
}
