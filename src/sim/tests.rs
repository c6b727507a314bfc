//! Simulators as a client on a socket meets them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const CHAT: &str =
    r#"{"model":"meta/llama-3.1-8b-instruct","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

async fn running(kind: Kind, change: impl FnOnce(&mut Settings)) -> Simulator {
    let quick = Duration::from_millis(1);
    let mut settings = Settings { time_to_first_token: quick, token_interval: quick, ..Settings::default() };
    change(&mut settings);
    start(kind, settings).await.unwrap()
}

async fn ask(simulator: &Simulator, line: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(simulator.address()).await.unwrap();
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Everything up to the end of the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

async fn answer(simulator: &Simulator, line: &str, headers: &str, body: &str) -> String {
    rest(ask(simulator, line, headers, body).await).await
}

async fn read_events(stream: &mut TcpStream, count: usize) -> String {
    let mut text = String::new();
    while text.matches("data: ").count() < count {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0, "the stream ended after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    text
}

async fn until(condition: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(5), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the condition came true");
}

#[test]
fn a_random_id_is_a_version_4_uuid() {
    let id = uuid();
    assert!(is_uuid(&id), "{id}");
    assert_eq!(&id[14..15], "4");
    assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
}

#[tokio::test]
async fn a_gate_lets_one_event_through_each_time() {
    let simulator = running(Kind::Llm, |_| ()).await;
    let mut stream = ask(&simulator, "POST /v1/chat/completions", "x-sim-gate: g\r\n", CHAT).await;
    for _ in 0..3 {
        simulator.open_gate("g");
        let text = read_events(&mut stream, 1).await;
        assert_eq!(text.matches("data: ").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_cancelled() {
    let simulator = running(Kind::Llm, |_| ()).await;
    let stream = ask(&simulator, "POST /v1/chat/completions", "x-sim-fault: stall-after=1\r\n", CHAT).await;
    until(|| simulator.seen().in_flight() == 1).await;
    drop(stream);
    until(|| simulator.seen().cancelled() == 1 && simulator.seen().in_flight() == 0).await;
}

#[tokio::test]
async fn a_whole_answer_is_not_counted_as_cancelled() {
    let simulator = running(Kind::CosmosPredict, |_| ()).await;
    let text = answer(&simulator, "POST /v1/infer", "", r#"{"prompt":"p","steps":1}"#).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{}", &text[..100]);
    until(|| simulator.seen().in_flight() == 0).await;
    assert_eq!(simulator.seen().cancelled(), 0);
    assert_eq!(simulator.seen().last().unwrap().body, br#"{"prompt":"p","steps":1}"#);
}

#[tokio::test]
async fn a_cut_stream_has_no_last_chunk() {
    let simulator = running(Kind::Llm, |_| ()).await;
    let text = answer(&simulator, "POST /v1/chat/completions", "x-sim-fault: cut-after=2\r\n", CHAT).await;
    assert_eq!(text.matches("data: ").count(), 2, "{text}");
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn a_killed_simulator_drops_its_connections() {
    let simulator = running(Kind::Llm, |_| ()).await;
    let mut stream = ask(&simulator, "POST /v1/chat/completions", "x-sim-fault: stall-after=1\r\n", CHAT).await;
    read_events(&mut stream, 1).await;
    simulator.kill();
    assert_eq!(rest(stream).await, "");
    assert!(TcpStream::connect(simulator.address()).await.is_err());
}

#[tokio::test]
async fn requests_beyond_the_slots_wait_and_are_reported() {
    let simulator = running(Kind::Llm, |settings| {
        settings.slots = 1;
        settings.metrics = MetricNames::Vllm;
    })
    .await;
    let first = ask(&simulator, "POST /v1/chat/completions", "x-sim-fault: stall-after=1\r\n", CHAT).await;
    let second = ask(&simulator, "POST /v1/chat/completions", "", CHAT).await;
    let waiting = "\nvllm:num_requests_waiting{engine=\"0\",model_name=\"meta/llama-3.1-8b-instruct\"} 1\n";
    while !answer(&simulator, "GET /v1/metrics", "", "").await.contains(waiting) {}
    drop(first);
    assert!(rest(second).await.contains("[DONE]"));
}

#[tokio::test]
async fn a_standing_fault_ends_after_its_times() {
    let simulator = running(Kind::Llm, |settings| settings.errors = ErrorStyle::Nested).await;
    simulator.fault_times("status=503", 1, None).unwrap();
    let text = answer(&simulator, "POST /v1/chat/completions", "", CHAT).await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains(r#"{"error":{"#), "{text}");
    assert!(answer(&simulator, "POST /v1/chat/completions", "", CHAT).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_pexec_client_that_leaves_takes_its_job_with_it() {
    let simulator = running(Kind::Nvcf, |_| ()).await;
    let queues = format!("GET /v2/nvcf/queues/functions/{QUEUED_FUNCTION}");
    let line = format!("POST /v2/nvcf/pexec/functions/{QUEUED_FUNCTION}");
    let key = "authorization: Bearer k\r\n";
    let stream = ask(&simulator, &line, key, "{}").await;
    while !answer(&simulator, &queues, key, "").await.contains(r#""queueDepth":1"#) {}
    drop(stream);
    while !answer(&simulator, &queues, key, "").await.contains(r#""queueDepth":0"#) {}
}

#[tokio::test]
async fn a_final_answer_is_delivered_once() {
    let simulator = running(Kind::Nvcf, |_| ()).await;
    let key = "authorization: Bearer k\r\n";
    let line = format!("POST /v2/nvcf/pexec/functions/{SLOW_FUNCTION}");
    let gated = format!("{key}nvcf-poll-seconds: 1\r\nx-sim-gate-work: w\r\n");
    let text = answer(&simulator, &line, &gated, "{}").await;
    assert!(text.starts_with("HTTP/1.1 202") && text.contains("nvcf-status: in-progress"), "{text}");
    let id = text.lines().find_map(|line| line.strip_prefix("nvcf-reqid: ")).unwrap();
    simulator.open_gate("w");
    let poll = format!("GET /v2/nvcf/pexec/status/{id}");
    assert!(answer(&simulator, &poll, key, "").await.ends_with("{}"));
    assert!(answer(&simulator, &poll, key, "").await.starts_with("HTTP/1.1 404"));
}
