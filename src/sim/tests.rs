//! Simulators as a client on a socket meets them.

use std::future::Future;

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::engine::{Engine, Slot};
use super::seen::Run;
use super::*;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

/// 100 tokens of prompt take 100 ms; a token takes 10 ms alone and 1 ms more for each other request.
fn batching() -> Batching {
    Batching { prefill_rate: 1000.0, decode_rate: 100.0, decode_limit: 1000.0, kv_tokens: 10_000, prefix_cache: true }
}

fn batching_engine(slots: usize, batching: Batching) -> Engine {
    Engine::new(&Settings { slots, batching: Some(batching), metrics: MetricNames::Vllm, ..Settings::default() })
}

/// As many tokens of prompt, unlike any other's.
fn prompt(name: &str, tokens: usize) -> String {
    format!("{name}{}", "x".repeat(tokens * 4 - name.len()))
}

async fn enter(engine: &Engine, prompt: &str, tokens: usize) -> Slot {
    engine.enter(&Run::default(), prompt, 0, tokens).await
}

/// Milliseconds that something takes.
async fn timed(what: impl Future) -> u128 {
    let begun = tokio::time::Instant::now();
    what.await;
    begun.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn a_prompt_is_computed_before_its_tokens_come_one_by_one() {
    let engine = batching_engine(4, batching());
    let mut slot = enter(&engine, &prompt("a", 100), 3).await;
    assert_eq!(timed(slot.first()).await, 100);
    assert_eq!(timed(slot.next()).await, 10);
    assert_eq!(timed(slot.next()).await, 10);
    assert_eq!(timed(slot.next()).await, 0);
    assert_eq!(engine.usage().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_slows_each_request_and_speeds_up_all_together() {
    let engine = batching_engine(10, batching());
    let mut slots = Vec::new();
    for name in 0..10 {
        slots.push(enter(&engine, &prompt(&name.to_string(), 1), 101).await);
    }
    let time = timed(join_all(slots.iter_mut().map(|slot| slot.all(101)))).await;
    // 100 steps of 9 + 10 ms, besides the prompts.
    assert!((1900..1930).contains(&time), "{time}");
}

#[tokio::test(start_paused = true)]
async fn prompts_are_computed_one_after_the_other() {
    let engine = batching_engine(4, batching());
    let (mut first, mut second) =
        (enter(&engine, &prompt("a", 256), 1).await, enter(&engine, &prompt("b", 100), 1).await);
    let times = tokio::join!(timed(first.first()), timed(second.first()));
    assert_eq!(times, (256, 356));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_slots_in_the_order_in_which_they_came() {
    let engine = batching_engine(1, batching());
    let mut slots = Vec::new();
    for name in ["a", "b", "c"] {
        slots.push(enter(&engine, &prompt(name, 50), 1).await);
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!((engine.usage().running, engine.waiting()), (1, 2));
    let times = join_all(slots.iter_mut().map(|slot| timed(slot.first()))).await;
    assert_eq!(times, [40, 90, 140]);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_while_the_kv_memory_is_full() {
    let engine = batching_engine(8, Batching { kv_tokens: 160, ..batching() });
    let mut first = enter(&engine, &prompt("a", 100), 12).await;
    let mut second = enter(&engine, &prompt("b", 40), 10).await;
    let mut third = enter(&engine, &prompt("c", 4), 4).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Seven of ten blocks are taken; the third would fit, but does not overtake.
    assert_eq!((engine.usage().running, engine.waiting()), (1, 2));
    assert!((engine.cache_usage() - 0.7).abs() < 1e-9, "{}", engine.cache_usage());
    first.all(12).await;
    tokio::join!(second.all(10), third.all(4));
    assert_eq!((engine.usage().running, engine.waiting()), (0, 0));
    assert_eq!(engine.cache_usage(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_begins_as_an_earlier_one_is_computed_from_where_they_part() {
    let engine = batching_engine(4, batching());
    let shared = prompt("system", 160);
    let ask = async |question: &str| {
        let mut slot = enter(&engine, &format!("{shared}{}", prompt(question, 20)), 1).await;
        timed(slot.first()).await
    };
    assert_eq!(ask("a").await, 180);
    assert_eq!(ask("b").await, 20);
    // The whole prompt is known, yet its last block is computed for the answer's sake.
    assert_eq!(ask("b").await, 4);
    let usage = engine.usage();
    assert_eq!((usage.prefix_queries, usage.prefix_hits), (540, 160 + 176));
    let page = engine.metrics(Kind::Llm, "m");
    let counter = |name: &str, value: u64| format!("\nvllm:{name}{{engine=\"0\",model_name=\"m\"}} {value}\n");
    assert!(page.contains(&counter("prefix_cache_queries_total", 540)), "{page}");
    assert!(page.contains(&counter("prefix_cache_hits_total", 336)), "{page}");
}

#[tokio::test(start_paused = true)]
async fn speed_changes_while_requests_run() {
    let engine = batching_engine(4, batching());
    let mut slot = enter(&engine, &prompt("a", 1), 100).await;
    slot.first().await;
    engine.set_speed(0.1);
    slot.next().await;
    assert_eq!(timed(slot.next()).await, 100);
    engine.set_speed(2.0);
    slot.next().await;
    assert_eq!(timed(slot.next()).await, 5);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_makes_room_and_who_left_the_queue_never_ran() {
    let seen = Seen::default();
    let run = |id: &'static str| seen.run(&http::HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(id))]));
    let engine = batching_engine(1, batching());
    let first = engine.enter(&run("first"), &prompt("a", 100), 0, 100).await;
    let second = engine.enter(&run("second"), &prompt("b", 100), 0, 100).await;
    let mut third = engine.enter(&run("third"), &prompt("c", 100), 0, 1).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(second);
    drop(first);
    third.first().await;
    assert_eq!(["first", "second", "third"].map(|id| seen.runs_of(id)), [1, 0, 1]);
    drop(engine.enter(&run("third"), &prompt("c", 1), 0, 1).await);
    assert_eq!((engine.usage().running, engine.waiting()), (0, 0));
    assert_eq!(seen.runs_of("third"), 1);
    run("third").begin();
    assert_eq!(seen.runs_of("third"), 2);
}

#[tokio::test(start_paused = true)]
async fn items_take_their_time_and_share_the_slots() {
    let item_time = Some(Duration::from_millis(5));
    let engine = Engine::new(&Settings { slots: 2, item_time, ..Settings::default() });
    let job = async |items: usize| {
        let mut slot = engine.admit(&Run::default()).await;
        slot.items(items).await;
    };
    assert_eq!(timed(async { tokio::join!(job(10), job(20), job(10)) }).await, 100);
    assert_eq!(engine.usage().slot_time, Duration::from_millis(200));
    engine.set_speed(0.5);
    assert_eq!(timed(job(10)).await, 100);
}

#[tokio::test(start_paused = true)]
async fn capacity_is_what_endless_demand_gets() {
    let batching = batching();
    // 9 steps of 9 + 10 ms and ten prompts of 10 ms for ten requests, computed while others wait.
    let rate = batching.capacity(10, &[(10, 10)]);
    assert!((25.0..37.0).contains(&rate), "{rate}");
    let engine = batching_engine(10, batching);
    let mut slots = Vec::new();
    for at in 0..200 {
        slots.push(enter(&engine, &prompt(&format!("{at:03}"), 10), 10).await);
    }
    let time = timed(join_all(slots.iter_mut().map(|slot| slot.all(10)))).await;
    let measured = 200_000.0 / f64::from(u32::try_from(time).unwrap());
    assert!((measured / rate - 1.0).abs() < 0.1, "{measured} of {rate}");
}

#[tokio::test]
async fn a_metrics_page_lies_or_stands_still_when_told() {
    let simulator = running(Kind::Llm, |settings| settings.batching = Some(Batching::default())).await;
    let page = async || answer(&simulator, "GET /v1/metrics", "", "").await;
    let tell = async |order: &str| answer(&simulator, "POST /_sim/signal", "", order).await;
    tell(r#"{"waiting":10000}"#).await;
    assert!(page().await.contains("num_requests_waiting{model_name=\"meta/llama-3.1-8b-instruct\"} 10000\n"));
    tell(r#"{"frozen":true}"#).await;
    answer(&simulator, "POST /v1/chat/completions", "x-request-id: one\r\n", CHAT).await;
    assert!(page().await.contains("request_success_total{model_name=\"meta/llama-3.1-8b-instruct\"} 0\n"));
    tell("{}").await;
    until(|| simulator.usage().generated_tokens > 0).await;
    assert!(page().await.contains("request_success_total{model_name=\"meta/llama-3.1-8b-instruct\"} 1\n"));
    assert_eq!(simulator.seen().runs_of("one"), 1);
    assert!(answer(&simulator, "GET /_sim/runs", "", "").await.ends_with(r#"{"one":1}"#));
}

#[tokio::test]
async fn speed_is_set_by_a_page_and_has_bounds() {
    let simulator = running(Kind::Llm, |_| ()).await;
    let set = async |order: &str| answer(&simulator, "POST /_sim/speed", "", order).await;
    assert!(set(r#"{"factor":0.5}"#).await.starts_with("HTTP/1.1 200"));
    assert!(set(r#"{"factor":0}"#).await.starts_with("HTTP/1.1 400"));
    assert!(set(r#"{"faktor":1}"#).await.starts_with("HTTP/1.1 400"));
    assert!(running(Kind::Curator, |_| ()).await.speed(2.0).is_err());
}
