//! Functions of NVCF behind a plain API: what NVCF holds, moves or loses, callers never see.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use nimgate::sim::{
    DEGRADED_FUNCTION, ECHO_FUNCTION, LARGE_FUNCTION, LLM_FUNCTION, PROGRESS_FUNCTION, QUEUED_FUNCTION, SLOW_FUNCTION,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::failure::read_request;
use crate::input::Wire;
use crate::redis::Line;
use crate::support::*;

const UPSTREAM_KEY: &str = "nvapi-upstream-secret";
const ID: &str = "0b1f0c7e-8f5b-4d3e-9a55-1f2e3d4c5b6a";
const PATH: &str = "/v1/infer";

/// A pool named after its function, offered as Cosmos Predict, with this way to wait.
fn pool(setup: Setup, name: &str, function: &str, wait: &str, url: &str) -> Setup {
    let yaml = format!(
        "kind: nvcf\nvalidation: off\nfunction: {{id: {function}, invocation: pexec, wait: {{private_results: true, {wait}}}}}\n\
         credential: {{secret: {{file: upstream.key}}}}"
    );
    setup.pool(name, "cosmos-predict", &yaml, &[url])
}

async fn start(setup: Setup) -> Gateway {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    setup.start_in(directory).await
}

async fn nvcf() -> Simulator {
    simulator_with(Kind::Nvcf, |settings| settings.api_key = Some(UPSTREAM_KEY.into())).await
}

fn ask<'a>(gateway: &'a Gateway, pool: &str) -> Ask<'a> {
    ask_as(gateway, pool, pool)
}

fn ask_as<'a>(gateway: &'a Gateway, pool: &str, id: &str) -> Ask<'a> {
    gateway.post(&format!("/pools/{pool}{PATH}"), &json!({ "prompt": "a" })).header("x-request-id", id)
}

/// How often the simulator was asked to run a function, and how often what became of it.
fn asked(backend: &Simulator) -> (usize, usize) {
    let history = backend.seen().history();
    let count = |part: &str| history.iter().filter(|seen| seen.path.contains(part)).count();
    (count("/pexec/functions/"), count("/pexec/status/"))
}

/// Whether no request ran twice, wherever it ran; says how many ran.
fn ran_once(backends: &[&Simulator]) -> usize {
    let mut runs = HashMap::<String, u64>::new();
    for backend in backends {
        assert_eq!(backend.seen().uncounted_runs(), 0);
        backend.seen().runs().into_iter().for_each(|(id, count)| *runs.entry(id).or_default() += count);
    }
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    runs.len()
}

#[tokio::test]
async fn a_call_that_outlasts_several_holds_is_one_answer() {
    let backend = nvcf().await;
    let gateway = start(pool(Gateway::setup(), "slow", SLOW_FUNCTION, "hold_s: 1", &backend.url())).await;
    let answer = ask(&gateway, "slow").header("x-sim-work-ms", "3500").send().await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "prompt": "a" })), "{}", answer.text());
    let (posts, polls) = asked(&backend);
    assert!(posts == 1 && (3..=4).contains(&polls), "{posts} posts, {polls} polls");
    let history = backend.seen().history();
    let seconds = |seen: &nimgate::sim::Sighting| seen.headers["nvcf-poll-seconds"].clone();
    assert!(history.iter().all(|seen| seconds(seen) == "1"), "the pool's hold, on each of them");
    let record = gateway.record_of("slow").await;
    assert_eq!(record["nvcf_request_id"], answer.header("nvcf-reqid"));
    assert_eq!((&record["attempts"], &record["status"]), (&json!(1), &json!(200)));
}

#[tokio::test]
async fn the_hold_follows_the_callers_time() {
    let backend = nvcf().await;
    let setup = pool(Gateway::setup(), "echo", ECHO_FUNCTION, "hold_s: 300", &backend.url());
    let direct = format!(
        "kind: nvcf\nvalidation: off\nfunction: {{id: {ECHO_FUNCTION}}}\ntimeouts: {{first_byte_ms: 90000}}\n\
         credential: {{secret: {{file: upstream.key}}}}"
    );
    let gateway = start(setup.pool("direct", "cosmos-predict", &direct, &[&backend.url()])).await;
    let told = async |pool: &str, timeout: Option<&str>| {
        let ask = ask(&gateway, pool).header("nvcf-poll-seconds", "3599");
        let ask = if let Some(timeout) = timeout { ask.header("x-request-timeout", timeout) } else { ask };
        assert_eq!(ask.send().await.status, 200);
        backend.seen().last().unwrap().headers["nvcf-poll-seconds"].clone()
    };
    assert_eq!(told("echo", None).await, "300");
    assert_eq!(told("echo", Some("20")).await, "19");
    assert_eq!(told("direct", None).await, "89");
    assert_eq!(told("direct", Some("20")).await, "19");
}

#[tokio::test]
async fn a_large_answer_is_fetched_and_unpacked() {
    let backend = nvcf().await;
    let setup = pool(Gateway::setup(), "large", LARGE_FUNCTION, "hold_s: 5", &backend.url());
    let closed = "kind: nvcf\nvalidation: off\nfunction: {id: FUNCTION, invocation: pexec}\n\
                  credential: {secret: {file: upstream.key}}";
    let setup = setup.pool("closed", "cosmos-predict", &closed.replace("FUNCTION", LARGE_FUNCTION), &[&backend.url()]);
    let setup = pool(setup, "small", LARGE_FUNCTION, "result_max_mib: 1", &backend.url());
    let gateway = start(setup).await;
    for bytes in [6 << 20, 40 << 20] {
        let answer = ask(&gateway, "large").header("x-sim-answer-bytes", &bytes.to_string()).send().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.status);
        let video = answer.json()["b64_video"].as_str().unwrap().len();
        assert_eq!(video, bytes);
        assert_eq!(answer.header("location"), "");
    }
    let fetches = backend.seen().history().into_iter().filter(|seen| !seen.path.starts_with("/v2/"));
    let fetches: Vec<_> = fetches.collect();
    assert_eq!(fetches.len(), 2);
    assert!(fetches.iter().all(|seen| !seen.headers.contains_key("authorization")), "the credential stays with NVCF");
    for (name, reason) in [("closed", "no TLS"), ("small", "result_max_mib")] {
        let answer = ask(&gateway, name).send().await;
        assert_eq!((answer.status, answer.fault()), (502, ("result_lost", "platform")), "{}", answer.text());
        assert!(answer.text().contains(reason), "{}", answer.text());
        assert!(gateway.record_of(name).await["detail"].as_str().unwrap().contains(reason));
    }
    let log = std::fs::read_to_string(gateway.path("access.log")).unwrap();
    assert!(!log.contains("signature") && !log.contains("results/"), "where it was is a secret");
}

#[tokio::test]
async fn what_never_started_and_what_did_not_finish_are_told_apart() {
    let backend = nvcf().await;
    let setup = pool(Gateway::setup(), "queued", QUEUED_FUNCTION, "hold_s: 300", &backend.url());
    let setup = pool(setup, "brief", QUEUED_FUNCTION, "hold_s: 1", &backend.url());
    let setup = pool(setup, "slow", SLOW_FUNCTION, "hold_s: 1", &backend.url());
    let setup = pool(setup, "progress", PROGRESS_FUNCTION, "hold_s: 1", &backend.url());
    let gateway = start(setup).await;
    let fails = async |pool: &str, timeout: &str, label: &str, blame: &str, words: &str| {
        let ask = ask(&gateway, pool).header("x-request-timeout", timeout).header("x-sim-work-ms", "6000");
        let answer = ask.send().await;
        assert_eq!((answer.status, answer.fault()), (504, (label, blame)), "{pool}: {}", answer.text());
        assert!(answer.text().contains(words), "{}", answer.text());
        assert_eq!(gateway.record_of(pool).await["error"], label);
    };
    tokio::join!(
        fails("queued", "2", "not_started", "platform", "never started"),
        // NVCF itself gives up, long before the caller does.
        fails("brief", "30", "not_started", "platform", "never started"),
        fails("slow", "3", "not_finished", "inference-service", "not finished"),
        fails("progress", "4", "not_finished", "inference-service", "50 % were done"),
    );
    assert_eq!(asked(&backend).0, 4, "nothing was sent twice");
    assert_eq!(ran_once(&[&backend]), 2, "what was queued never ran");
    gateway.until_idle().await;
}

#[tokio::test]
async fn progress_is_passed_on_to_who_asks() {
    let backend = nvcf().await;
    let gateway = start(pool(Gateway::setup(), "progress", PROGRESS_FUNCTION, "hold_s: 30", &backend.url())).await;
    let mut wire = Wire::to(&gateway).await;
    let path = format!("/pools/progress{PATH}");
    let asked = "x-nimgate-progress: interim\r\nx-sim-work-ms: 400\r\n";
    wire.send(wire.post(&path, asked, "{}")).await;
    let mut interim = Vec::new();
    let last = loop {
        let (status, head) = wire.head().await.unwrap();
        let told = head.lines().find_map(|line| line.strip_prefix("x-nimgate-progress: ")).unwrap().to_owned();
        if status != 102 {
            break (status, told);
        }
        interim.push(told);
    };
    assert_eq!((interim, last), (vec!["25".into(), "50".into(), "75".into()], (200, "75".into())));
    // Who does not ask gets one answer.
    let mut wire = Wire::to(&gateway).await;
    wire.send(wire.post(&path, "x-sim-work-ms: 40\r\n", "{}")).await;
    assert_eq!(wire.head().await.unwrap().0, 200);
}

#[tokio::test]
async fn progress_comes_in_a_stream_to_who_takes_one() {
    let backend = nvcf().await;
    let setup = pool(Gateway::setup(), "progress", PROGRESS_FUNCTION, "hold_s: 1", &backend.url());
    let setup = pool(setup, "echo", ECHO_FUNCTION, "hold_s: 1", &backend.url());
    let gateway = start(pool(setup, "large", LARGE_FUNCTION, "hold_s: 5", &backend.url())).await;
    let stream = |pool: &str, id: &str, work: &str| {
        let ask = ask_as(&gateway, pool, id).header("accept", "text/event-stream").header("x-sim-work-ms", work);
        ask.header("x-nimgate-progress", "interim")
    };
    let answer = stream("progress", "progress", "800").send().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream; charset=utf-8"));
    let told: Vec<_> = answer.text().lines().filter(|line| line.starts_with(':')).map(str::to_owned).collect();
    assert_eq!(told, [": 25 % done", ": 50 % done", ": 75 % done"]);
    assert_eq!(events(&answer.text()), [json!({ "prompt": "a" })], "{}", answer.text());
    assert_eq!(gateway.record_of("progress").await["status"], 200);
    // A failure can only be told in an event then.
    let answer = stream("progress", "late", "12000").header("x-request-timeout", "5").send().await;
    let last = events(&answer.text()).pop().unwrap();
    assert_eq!((answer.status, &last["error"]["code"]), (200, &json!("not_finished")), "{}", answer.text());
    assert_eq!(gateway.record_of("late").await["error"], "not_finished");
    // Without any news, the answer is what it is without a stream.
    for pool in ["echo", "large"] {
        let answer = stream(pool, pool, "0").send().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{pool}");
    }
    assert!(
        backend.seen().history().iter().all(|seen| seen.headers.get("accept").is_none_or(|a| a != "text/event-stream"))
    );
    assert_eq!(ran_once(&[&backend]), 4);
}

#[tokio::test]
async fn who_leaves_ends_the_call() {
    let backend = nvcf().await;
    let setup = pool(Gateway::setup(), "held", SLOW_FUNCTION, "hold_s: 300", &backend.url());
    let setup = pool(setup, "polled", SLOW_FUNCTION, "hold_s: 1", &backend.url());
    let gateway = start(setup).await;
    let jobs = async || backend.seen().in_flight();
    for (pool, polls) in [("held", 0), ("polled", 1)] {
        let call = ask(&gateway, pool).header("x-sim-gate-work", "never").begin();
        let posts = asked(&backend).0;
        tokio::select! {
            _ = call => panic!("it is answered"),
            () = until("NVCF works on it", async || asked(&backend).0 > posts && asked(&backend).1 >= polls) => {}
        }
        until("NVCF is not asked any more", async || jobs().await == 0).await;
        assert_eq!(gateway.record_of(pool).await["error"], "client_closed");
    }
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_job_whose_caller_left_while_it_was_polled_ends_by_its_leash() {
    let backend = nvcf().await;
    let gateway = start(pool(Gateway::setup(), "left", SLOW_FUNCTION, "hold_s: 1", &backend.url())).await;
    let call = ask(&gateway, "left").header("x-sim-gate-work", "never").begin();
    tokio::select! {
        _ = call => panic!("it is answered"),
        () = until("it is polled", async || asked(&backend).1 > 0) => {}
    }
    let left = Instant::now();
    until("it is known that the caller left", async || backend.seen().in_flight() == 0).await;
    gateway.until_idle().await;
    let polls = asked(&backend).1;
    assert_eq!((backend.seen().working(), backend.seen().stopped()), (1, 0), "the worker does not know yet");
    until("the worker stops", async || backend.seen().working() == 0).await;
    assert!(left.elapsed() > Duration::from_secs(7), "before its leash was over: {:?}", left.elapsed());
    assert_eq!((backend.seen().stopped(), asked(&backend).1), (1, polls), "nobody asked any more");
    assert_eq!(ran_once(&[&backend]), 1);
}

#[tokio::test]
async fn a_gap_between_polls_kills_no_job() {
    let backend = nvcf().await;
    let mut line = Line::to(backend.address()).await;
    let gateway =
        start(pool(Gateway::setup(), "gap", SLOW_FUNCTION, "hold_s: 1", &format!("http://{}", line.address()))).await;
    // Well within the leash of ten seconds.
    const GAP: Duration = Duration::from_secs(4);
    for gap in ["lost", "cut", "slow"] {
        let before = asked(&backend);
        let polled = async |times: usize| {
            until("it is polled", async || asked(&backend).1 >= before.1 + times).await;
        };
        let call = ask_as(&gateway, "gap", gap).header("x-sim-gate-work", gap).send();
        let (answer, ()) = tokio::join!(call, async {
            polled(1).await;
            match gap {
                "lost" => {
                    backend.fault_times("cut", 2, Some("/v2/nvcf/pexec/status/")).unwrap();
                    polled(4).await;
                }
                "cut" => {
                    line.cut().await;
                    tokio::time::sleep(GAP).await;
                    line.mend().await;
                }
                _ => {
                    gateway.signal("STOP");
                    tokio::time::sleep(GAP).await;
                    gateway.signal("CONT");
                }
            }
            let polls = asked(&backend).1 - before.1;
            polled(polls + 1).await;
            backend.open_gate(gap);
        });
        assert_eq!((answer.status, answer.json()), (200, json!({ "prompt": "a" })), "{gap}: {}", answer.text());
        assert_eq!(asked(&backend).0, before.0 + 1, "{gap}");
        assert_eq!(backend.seen().runs_of(gap), 1);
    }
    assert_eq!((ran_once(&[&backend]), backend.seen().stopped()), (3, 0));
    gateway.until_idle().await;
}

/// Sends requests for each fault on this path, and says how many there were and how many ran. None may run twice.
async fn run_with_faults(pool: &str, path: &str) -> (usize, usize) {
    let (one, other, spare) = (nvcf().await, nvcf().await, simulator(Kind::CosmosPredict).await);
    let how = if pool == "polled" { "invocation: pexec, wait: {hold_s: 1}" } else { "invocation: direct" };
    let yaml = format!(
        "kind: nvcf\nvalidation: off\nfunction: {{id: {SLOW_FUNCTION}, {how}}}\nspill: {{to: [spare]}}\n\
         retry: {{attempts: 3, budget_percent: 1000}}\npace: {{learn: false}}\ncredential: {{secret: {{file: upstream.key}}}}"
    );
    let setup = Gateway::setup().pool("spare", "cosmos-predict", "validation: off", &[&spare.url()]);
    let gateway = start(setup.pool(pool, "cosmos-predict", &yaml, &[&one.url(), &other.url()])).await;
    let faults = [
        "cut",
        "status=408",
        "status=429",
        "status=500",
        "status=502",
        "status=503",
        "status=504",
        "rate-limit",
        "degraded",
        "inference-service",
        "inference-connection",
        "worker",
        "body-html,status=503",
        "empty",
        "truncated-json",
        "cut-after=0",
        "delay=1500",
        "hang",
    ];
    for fault in faults {
        for backend in [&one, &other] {
            backend.fault_times(fault, 1, Some(path)).unwrap();
        }
        let asks = (0..3).map(|turn| {
            let id = format!("{} {turn}", fault.replace(['=', ',', '-'], " ")).replace(' ', "-");
            let ask = ask_as(&gateway, pool, &id).header("x-sim-work-ms", "1200").header("x-request-timeout", "4");
            async { ask.begin().await.into_body().collect().await.is_ok() }
        });
        futures_util::future::join_all(asks).await;
    }
    gateway.until_idle().await;
    (faults.len() * 3, ran_once(&[&one, &other, &spare]))
}

#[tokio::test]
async fn no_fault_makes_an_inference_run_twice() {
    let (posts, polls, direct) = tokio::join!(
        run_with_faults("polled", "/v2/nvcf/pexec/functions/"),
        run_with_faults("polled", "/v2/nvcf/pexec/status/"),
        run_with_faults("direct", "/"),
    );
    println!("{posts:?}, {polls:?}, {direct:?}");
    for (sent, ran) in [posts, polls, direct] {
        assert!(ran > sent / 2, "{ran} of {sent} ran");
    }
    assert_eq!(polls.0, polls.1, "whatever befalls a poll, its job runs");
}

/// Answers requests in turn with these bytes, the last of them for ever; with none, the connection ends.
pub async fn scripted(answers: Vec<Vec<u8>>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (asked, answers) = (Arc::clone(&asked), answers.clone());
            tokio::spawn(async move {
                let request = read_request(&mut stream).await;
                if request.is_empty() {
                    return;
                }
                let turn = {
                    let mut asked = asked.lock().unwrap();
                    asked.push(String::from_utf8_lossy(&request).into_owned());
                    asked.len() - 1
                };
                let _ = stream.write_all(answers.get(turn).or(answers.last()).unwrap()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, seen)
}

pub fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn accepted() -> Vec<u8> {
    http("202 Accepted", &format!("nvcf-reqid: {ID}\r\nnvcf-status: in-progress\r\n"), b"")
}

fn done() -> Vec<u8> {
    http(
        "200 OK",
        &format!("content-type: application/json\r\nnvcf-reqid: {ID}\r\nnvcf-status: fulfilled\r\n"),
        b"{\"a\":1}",
    )
}

/// Calls a function that answers so, and says what was asked of it.
async fn call(answers: Vec<Vec<u8>>, wait: &str) -> (Answer, Vec<String>) {
    let (address, seen) = scripted(answers).await;
    let gateway = start(pool(Gateway::setup(), "odd", ECHO_FUNCTION, wait, &format!("http://{address}"))).await;
    let answer = ask(&gateway, "odd").header("x-request-timeout", "20").send().await;
    gateway.until_idle().await;
    let seen = seen.lock().unwrap().clone();
    (answer, seen)
}

fn first_lines(requests: &[String]) -> Vec<&str> {
    requests.iter().map(|request| request.split(" HTTP/").next().unwrap()).collect()
}

#[tokio::test]
async fn a_lost_poll_is_taken_up_again_and_the_request_never_sent_twice() {
    let limited = http("429 Too Many Requests", "", br#"{"status":429,"title":"Too Many Requests"}"#);
    let bad_gateway = http("502 Bad Gateway", "content-type: text/html\r\n", b"<html>");
    for trouble in [Vec::new(), limited, bad_gateway] {
        let (answer, seen) = call(vec![accepted(), trouble.clone(), trouble, accepted(), done()], "hold_s: 5").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"a\":1}"));
        let post = format!("POST /v2/nvcf/pexec/functions/{ECHO_FUNCTION}");
        let poll = format!("GET /v2/nvcf/pexec/status/{ID}");
        assert_eq!(first_lines(&seen), [&post, &poll, &poll, &poll, &poll].map(String::as_str));
        for request in &seen {
            assert!(request.contains(&format!("authorization: Bearer {UPSTREAM_KEY}")), "{request}");
        }
        assert!(!seen[1].contains("content-length") && !seen[1].contains("content-type"), "{}", seen[1]);
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_is_told_as_such() {
    let unknown =
        http("404 Not Found", "content-type: application/problem+json\r\n", br#"{"status":404,"title":"Not Found"}"#);
    let moved =
        |location: &str| http("302 Found", &format!("nvcf-reqid: {ID}\r\nnvcf-status: fulfilled\r\n{location}"), b"");
    for (answers, reason) in [
        (vec![accepted(), Vec::new(), unknown.clone()], "given once"),
        (vec![accepted(), unknown], "does not know the request"),
        (vec![http("202 Accepted", "nvcf-status: in-progress\r\n", b"")], "under which id"),
        (vec![http("202 Accepted", "nvcf-reqid: ../../functions\r\n", b"")], "under which id"),
        (vec![moved("")], "does not say where"),
        (vec![moved("location: /relative\r\n")], "does not say where"),
        (vec![moved("location: http://127.0.0.1:1/x\r\n")], "can not be reached"),
    ] {
        let (answer, seen) = call(answers, "hold_s: 5").await;
        assert_eq!((answer.status, answer.fault()), (502, ("result_lost", "platform")), "{}", answer.text());
        assert!(answer.text().contains(reason), "{}", answer.text());
        assert_eq!(seen.iter().filter(|request| request.starts_with("POST")).count(), 1);
    }
    // At an address of its own network, over TLS.
    let closed = "hold_s: 5, private_results: false";
    for host in ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"] {
        let (address, _) = scripted(vec![moved(&format!("location: https://{host}:1/x\r\n"))]).await;
        let yaml = format!(
            "kind: nvcf\nvalidation: off\nfunction: {{id: {ECHO_FUNCTION}, invocation: pexec, wait: {{{closed}}}}}"
        );
        let gateway =
            start(Gateway::setup().pool("odd", "cosmos-predict", &yaml, &[&format!("http://{address}")])).await;
        let answer = ask(&gateway, "odd").send().await;
        assert!(answer.text().contains("private address"), "{host}: {}", answer.text());
    }
}

#[tokio::test]
async fn archives_may_be_anything() {
    let zip = |name: &str, body: &[u8], length: u32| {
        let mut crc = flate2::Crc::new();
        crc.update(body);
        let sizes = [crc.sum(), length, length].map(u32::to_le_bytes).concat();
        let mut zip = [b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0".as_slice(), &sizes].concat();
        zip.extend([&(name.len() as u16).to_le_bytes()[..], &[0, 0], name.as_bytes(), body].concat());
        zip
    };
    let text = br#"{"made":"of what was packed"}"#;
    let whole = zip("r.response", text, text.len() as u32);
    let video = [zip("video.mp4", b"frames", 6), whole.clone()].concat();
    let longer = zip("r.response", text, 4000);
    let damaged = [&whole[..whole.len() - 3], b"???"].concat();
    for (archive, expected) in [
        (whole.clone(), Ok(("application/json", text.to_vec()))),
        // Several files are the caller's to take apart.
        (video.clone(), Ok(("application/zip", video))),
        (b"<html>".to_vec(), Err("can not be read")),
        (whole[..20].to_vec(), Err("ends too early")),
        (Vec::new(), Err("ends too early")),
    ] {
        let (store, _) = scripted(vec![http("200 OK", "content-type: application/zip\r\n", &archive)]).await;
        let location = format!("nvcf-reqid: {ID}\r\nlocation: http://{store}/results/x.zip\r\n");
        let (answer, _) = call(vec![http("302 Found", &location, b"")], "hold_s: 5").await;
        match expected {
            Ok((kind, body)) => {
                assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{}", answer.text());
                assert_eq!(answer.body, body);
            }
            Err(reason) => {
                assert_eq!(answer.fault(), ("result_lost", "platform"));
                assert!(answer.text().contains(reason), "{}", answer.text());
            }
        }
    }
    // What is found out too late cuts the answer: it can not be taken for whole.
    for archive in [longer, damaged] {
        let (store, _) = scripted(vec![http("200 OK", "", &archive)]).await;
        let location = format!("nvcf-reqid: {ID}\r\nlocation: http://{store}/x\r\n");
        let (address, _) = scripted(vec![http("302 Found", &location, b"")]).await;
        let gateway =
            start(pool(Gateway::setup(), "odd", ECHO_FUNCTION, "hold_s: 5", &format!("http://{address}"))).await;
        let mut wire = Wire::to(&gateway).await;
        wire.send(wire.post(&format!("/pools/odd{PATH}"), "x-request-id: cut\r\n", "{}")).await;
        let (status, head) = wire.head().await.unwrap();
        let length: usize =
            head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().unwrap());
        let rest = wire.until_closed().await;
        assert!(status != 200 || rest.len() < length, "{head}{rest}");
        assert_eq!(gateway.record_of("cut").await["error"], "result_lost");
    }
}

#[tokio::test]
async fn a_function_that_lost_its_instances_is_waited_for() {
    let degraded = http(
        "400 Bad Request",
        "content-type: application/problem+json\r\n",
        br#"{"status":400,"title":"Bad Request","detail":"Function id 'x': DEGRADED function cannot be invoked"}"#,
    );
    let (answer, seen) = call(vec![degraded.clone(), degraded.clone(), done()], "degraded_ms: 5000").await;
    assert_eq!((answer.status, seen.len()), (200, 3));
    let begun = Instant::now();
    let (answer, seen) = call(vec![degraded], "degraded_ms: 400").await;
    assert_eq!(answer.fault(), ("function_degraded", "platform"), "{}", answer.text());
    assert!(seen.len() >= 2 && begun.elapsed() < Duration::from_secs(10), "{}", seen.len());
    // Another bad request is none of this.
    let refused = http("400 Bad Request", "content-type: application/json\r\n", br#"{"error":"no"}"#);
    let (answer, seen) = call(vec![refused], "degraded_ms: 5000").await;
    assert_eq!((answer.status, seen.len()), (400, 1));
    // In another pool, it runs at once.
    let (nvcf, spare) = (nvcf().await, simulator(Kind::CosmosPredict).await);
    let front = format!(
        "kind: nvcf\nfunction: {{id: {DEGRADED_FUNCTION}, invocation: pexec, wait: {{degraded_ms: 0}}}}\n\
         spill: {{to: [spare]}}\ncredential: {{secret: {{file: upstream.key}}}}"
    );
    let setup = Gateway::setup().pool("front", "cosmos-predict", &front, &[&nvcf.url()]);
    let gateway = start(setup.pool("spare", "cosmos-predict", "", &[&spare.url()])).await;
    let answer = gateway.post("/pools/front/v1/infer", &json!({ "prompt": "a cat" })).send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-pool")), (200, "spare"), "{}", answer.text());
}

/// A stream from a function that answers so.
async fn stream_from(answers: Vec<Vec<u8>>, wait: &str) -> (Gateway, Arc<Mutex<Vec<String>>>) {
    let (address, seen) = scripted(answers).await;
    let yaml = format!(
        "models: [{{id: meta/llama-3.1-8b-instruct}}]\nkind: nvcf\n\
         function: {{id: {LLM_FUNCTION}, invocation: pexec, wait: {{{wait}}}}}\ncredential: {{secret: {{file: upstream.key}}}}"
    );
    (start(Gateway::setup().pool("llm", "nim-llm", &yaml, &[&format!("http://{address}")])).await, seen)
}

#[tokio::test]
async fn a_stream_waits_for_a_function_that_lost_its_instances() {
    let degraded = http(
        "400 Bad Request",
        "content-type: application/problem+json\r\n",
        br#"{"status":400,"title":"Bad Request","detail":"Function id 'x': DEGRADED function cannot be invoked"}"#,
    );
    let events = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let done = http("200 OK", "content-type: text/event-stream\r\n", events);
    let (gateway, seen) = stream_from(vec![degraded.clone(), degraded.clone(), done], "degraded_ms: 5000").await;
    let answer = gateway.chat(true).send().await;
    assert_eq!((answer.status, seen.lock().unwrap().len()), (200, 3), "{}", answer.text());
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    gateway.until_idle().await;
    let (gateway, seen) = stream_from(vec![degraded.clone()], "degraded_ms: 400").await;
    let answer = gateway.chat(true).send().await;
    assert_eq!((answer.status, answer.fault()), (503, ("function_degraded", "platform")), "{}", answer.text());
    assert!((2..6).contains(&seen.lock().unwrap().len()), "{:?}", seen.lock().unwrap().len());
    // Another bad request is none of this.
    let refused = http("400 Bad Request", "content-type: application/json\r\n", br#"{"error":{"message":"no"}}"#);
    let (gateway, seen) = stream_from(vec![refused], "degraded_ms: 5000").await;
    let answer = gateway.chat(true).send().await;
    assert_eq!((answer.status, answer.fault().0, seen.lock().unwrap().len()), (400, "inference_rejected", 1));
    // Who leaves ends the wait.
    let (gateway, seen) = stream_from(vec![degraded], "degraded_ms: 3600000").await;
    let call = gateway.chat(true).header("x-request-id", "gone").begin();
    tokio::select! {
        _ = call => panic!("it is answered"),
        () = until("it is tried again", async || seen.lock().unwrap().len() > 2) => {}
    }
    assert_eq!(gateway.record_of("gone").await["error"], "client_closed");
    gateway.until_idle().await;
}

/// A chat model behind a function, by both ways of invocation.
async fn chat_gateway(backend: &Simulator, wait: &str) -> Gateway {
    let mut setup = Gateway::setup();
    for invocation in ["direct", "pexec"] {
        let yaml = format!(
            "models: [{{id: {invocation}, backend_model: meta/llama-3.1-8b-instruct}}]\nkind: nvcf\n\
             function: {{id: {LLM_FUNCTION}, invocation: {invocation}, wait: {{private_results: true, {wait}}}}}\n\
             credential: {{secret: {{file: upstream.key}}}}"
        );
        setup = setup.pool(invocation, "nim-llm", &yaml, &[&backend.url()]);
    }
    start(setup).await
}

#[tokio::test]
async fn chats_are_answered_and_streamed_by_both_ways() {
    let backend = nvcf().await;
    let gateway = chat_gateway(&backend, "hold_s: 300").await;
    for pool in ["direct", "pexec"] {
        let body = |stream: bool| {
            let mut body = chat(stream);
            body["model"] = pool.into();
            body
        };
        let answer = gateway.post("/v1/chat/completions", &body(false)).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let stream = gateway.post("/v1/chat/completions", &body(true)).send().await;
        assert_eq!((stream.status, stream.header("content-type").split(';').next()), (200, Some("text/event-stream")));
        let events = stream.text();
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
        let said: String = events
            .split("\n\n")
            .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
            .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect();
        assert_eq!(said, text, "{pool}");
    }
}
