//! Chaos: processes that are killed, stopped, slowed, made to refuse and replaced at random while callers ask. No answer
//! is wrong, no generation runs twice, each failure is told as what it was, nothing leaks, and all endpoints come back.
//! `NIMGATE_SEED=N` repeats the schedule of the run that printed N.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const CLIENTS: usize = 40;
const CHAOS: Duration = Duration::from_secs(20);
/// The longest that a caller may wait for the end of its answer.
const LONGEST: Duration = Duration::from_secs(20);
/// Probes at 100 ms, a breaker of at most a second and a tenth, half a second of slow start, and a machine with much to do.
const RECOVERY: Duration = Duration::from_secs(6);

/// Pools, their kinds, and how many endpoints they have.
const POOLS: [(&str, &str, usize); 3] = [("chat", "nim-llm", 4), ("far", "nim-llm", 1), ("text", "nim-embedding", 2)];

const QUICK: &str = "health: {interval_ms: 100, timeout_ms: 300, unhealthy_after: 2}\n\
                     breaker: {open_ms: 200, longest_ms: 1000, slow_start_ms: 500}\n\
                     metrics: {interval_ms: 200, timeout_ms: 300}\n\
                     balance: {max_in_flight: 12}\n\
                     queue: {timeout_ms: 2000}\n\
                     timeouts: {connect_ms: 300, first_byte_ms: 1500, between_chunks_ms: 700}";

/// Labels that the faults allow, and whose they are.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("connect_refused", &["network"]),
    ("connect_timeout", &["network"]),
    ("connect_failed", &["network"]),
    ("upstream_reset", &["network"]),
    ("upstream_closed", &["network"]),
    ("first_byte_timeout", &["inference-service"]),
    ("upstream_stalled", &["inference-service"]),
    ("inference_overloaded", &["inference-service"]),
    ("inference_error", &["inference-service"]),
    ("queue_full", &["gateway"]),
    ("queue_timeout", &["gateway"]),
    ("no_healthy_endpoint", &["inference-service", "network"]),
];

/// One backend as a process of its own.
struct Backend {
    pool: &'static str,
    kind: &'static str,
    address: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
    /// When what was done to it ends, and what that was.
    disturbed: Option<(Instant, Deed)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Killed,
    Stopped,
    Faulty(&'static str),
    Slow,
    Removed,
}

const DEEDS: [Deed; 11] = [
    Deed::Killed,
    Deed::Killed,
    Deed::Stopped,
    Deed::Stopped,
    Deed::Faulty("cut"),
    Deed::Faulty("cut-after=3"),
    Deed::Faulty("status=429"),
    Deed::Faulty("status=503"),
    Deed::Faulty("status=500"),
    Deed::Slow,
    Deed::Removed,
];

impl Backend {
    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nimgate"));
        command.args(["sim", "--kind", self.kind, "--address", &self.address.to_string(), "--slots", "32"]);
        command.args(["--first-token-ms", "3", "--token-ms", "1", "--run-log"]).arg(&self.log);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.child = Some(child);
    }

    async fn until_listening(&self) {
        until("a backend listens", async || TcpStream::connect(self.address).is_ok()).await;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, name: &str) {
        let Some(child) = &self.child else { return };
        let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn tell(&self, page: &str, body: Value) {
        let request = Request::post(format!("{}/_sim/{page}", self.url())).header("content-type", "application/json");
        let request = request.body(Full::<Bytes>::from(body.to_string())).unwrap();
        let told = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
        assert_eq!(told.status(), 200);
    }

    /// How many requests it has begun to compute, over all its lives.
    fn runs(&self) -> usize {
        std::fs::read(&self.log).map_or(0, |log| log.iter().filter(|byte| **byte == b'\n').count())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The endpoints, and the configuration that has all of them.
struct World {
    gateway: Arc<Gateway>,
    backends: Vec<Backend>,
    config: String,
    done: BTreeMap<Deed, usize>,
    _logs: TempDir,
}

impl World {
    async fn start() -> Self {
        let logs = tempfile::tempdir().unwrap();
        let mut backends = Vec::new();
        for (pool, kind, count) in POOLS {
            for _ in 0..count {
                let address = free_address();
                let log = logs.path().join(address.port().to_string());
                backends.push(Backend { pool, kind, address, log, child: None, disturbed: None });
            }
        }
        let mut setup = Gateway::setup();
        for (pool, api, _) in POOLS {
            let model = if api == "nim-llm" { "meta/llama-3.1-8b-instruct" } else { "nvidia/nv-embedqa-e5-v5" };
            let spill = if pool == "chat" { "\nspill: {to: [far]}" } else { "" };
            let yaml = format!("models: [{{id: {model}}}]\n{QUICK}{spill}");
            let urls: Vec<String> = backends.iter().filter(|b| b.pool == pool).map(Backend::url).collect();
            setup = setup.pool(pool, api, &yaml, &urls.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for backend in &mut backends {
            backend.start();
            backend.until_listening().await;
        }
        let gateway = Arc::new(setup.start().await);
        let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
        Self { gateway, backends, config, done: BTreeMap::new(), _logs: logs }
    }

    /// Does something to a backend that is well.
    async fn disturb(&mut self, at: usize, deed: Deed, time: Duration) {
        let pool = self.backends[at].pool;
        let is_removed = |b: &&Backend| b.pool == pool && matches!(b.disturbed, Some((_, Deed::Removed)));
        let left =
            self.backends.iter().filter(|b| b.pool == pool).count() - self.backends.iter().filter(is_removed).count();
        if deed == Deed::Removed && left == 1 {
            return;
        }
        let backend = &mut self.backends[at];
        match deed {
            Deed::Killed => backend.kill(),
            Deed::Stopped => backend.signal("STOP"),
            Deed::Faulty(fault) => backend.tell("fault", json!({ "fault": fault })).await,
            Deed::Slow => backend.tell("speed", json!({ "factor": 0.02 })).await,
            Deed::Removed => {}
        }
        backend.disturbed = Some((Instant::now() + time, deed));
        *self.done.entry(deed).or_default() += 1;
        if deed == Deed::Removed {
            self.write_config();
        }
    }

    /// Ends what was done to backends whose time has come.
    async fn mend(&mut self, now: Option<Instant>) {
        for at in 0..self.backends.len() {
            let backend = &mut self.backends[at];
            let Some((_, deed)) = backend.disturbed.take_if(|(until, _)| now.is_none_or(|now| *until <= now)) else {
                continue;
            };
            match deed {
                Deed::Killed => {
                    backend.start();
                    backend.until_listening().await;
                }
                Deed::Stopped => backend.signal("CONT"),
                Deed::Faulty(_) => backend.tell("fault", json!({ "fault": "" })).await,
                Deed::Slow => backend.tell("speed", json!({ "factor": 1.0 })).await,
                Deed::Removed => self.write_config(),
            }
        }
    }

    fn write_config(&self) {
        let mut config = self.config.clone();
        for backend in self.backends.iter().filter(|b| matches!(b.disturbed, Some((_, Deed::Removed)))) {
            config = config.replace(&format!("      - url: {}\n", backend.url()), "");
        }
        replace(&self.gateway.path("nimgate.yaml"), &config);
    }
}

/// How a request ended for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    /// Refused or failed, as label and blame in the header say.
    Told(u16, String, String),
    /// A stream that ended in an event with this code.
    Ended(String),
    /// An answer that broke off.
    Cut,
    Wrong(String),
}

#[derive(Clone, Debug)]
struct Asked {
    id: String,
    pool: &'static str,
    is_chat: bool,
    outcome: Outcome,
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// One caller, until it is told to stop.
struct Caller {
    gateway: Arc<Gateway>,
    /// Tells what an embedding has to be.
    reference: String,
    client: Http,
    random: Rng,
    name: usize,
}

impl Caller {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Vec<Asked> {
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let id = format!("c{}-{}", self.name, all.len());
            let marker = format!("{id}-{:08x}", self.random.u32(..));
            let kind = self.random.u32(..100);
            let asked = async {
                match kind {
                    0..75 => {
                        self.chat(&id, &marker, kind < 40, if kind.is_multiple_of(10) { "/pools/far" } else { "" })
                            .await
                    }
                    _ => self.embed(&id, &marker).await,
                }
            };
            let outcome = match tokio::time::timeout(LONGEST, asked).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Wrong(format!("no end within {LONGEST:?}")),
            };
            let pool = match kind {
                0..75 if kind.is_multiple_of(10) => "far",
                0..75 => "chat",
                _ => "text",
            };
            all.push(Asked { id, pool, is_chat: kind < 75, outcome });
            tokio::time::sleep(Duration::from_millis(self.random.u64(10..60))).await;
        }
        all
    }

    /// Asks for an answer that is the marker.
    async fn chat(&self, id: &str, marker: &str, stream: bool, prefix: &str) -> Outcome {
        let mut body = chat(stream);
        (body["max_tokens"], body["guided_choice"]) = (256.into(), json!([marker]));
        body["messages"][0]["content"] = marker.into();
        let (text, good) = match self.ask(&format!("{prefix}{CHAT}"), id, &body).await {
            Ok(read) => read,
            Err(outcome) => return outcome,
        };
        if !stream {
            let Some(answer) = good.then(|| serde_json::from_str::<Value>(&text).unwrap_or_default()) else {
                return Outcome::Cut;
            };
            return judge(answer["choices"][0]["message"]["content"].as_str() == Some(marker), &text);
        }
        let mut said = String::new();
        for data in text.split("\n\n").filter_map(|event| event.trim_start().strip_prefix("data: ")) {
            if data == "[DONE]" {
                return judge(said == marker, &text);
            }
            let Ok(event) = serde_json::from_str::<Value>(data) else { break };
            if let Some(code) = event["error"]["code"].as_str() {
                let is_begun = marker.starts_with(&said);
                return if is_begun { Outcome::Ended(code.to_owned()) } else { judge(false, &text) };
            }
            said += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
        if good { judge(false, &text) } else { Outcome::Cut }
    }

    async fn embed(&self, id: &str, marker: &str) -> Outcome {
        let body = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": marker, "input_type": "query" });
        let (text, good) = match self.ask("/v1/embeddings", id, &body).await {
            Ok(read) => read,
            Err(outcome) => return outcome,
        };
        if !good {
            return Outcome::Cut;
        }
        let request = Request::post(format!("{}/v1/embeddings", self.reference)).body(Full::from(body.to_string()));
        let due = answer(self.client.request(request.unwrap()).await.unwrap()).await.json();
        let found = serde_json::from_str::<Value>(&text).unwrap_or_default();
        judge(due["data"].is_array() && due["data"] == found["data"], &text)
    }

    /// The body of a good answer and whether it is whole, or how it failed.
    async fn ask(&self, path: &str, id: &str, body: &Value) -> Result<(String, bool), Outcome> {
        let request = Request::post(format!("http://{}{path}", self.gateway.address))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .header("x-request-id", id)
            .body(Full::from(body.to_string()));
        let response = match self.client.request(request.unwrap()).await {
            Ok(response) => response,
            Err(error) => return Err(Outcome::Wrong(format!("no answer: {error:?}"))),
        };
        let (parts, mut body) = response.into_parts();
        let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        if header("x-request-id") != id {
            return Err(Outcome::Wrong(format!("the answer of {:?}", header("x-request-id"))));
        }
        let (mut text, mut is_whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Err(_) => {
                    is_whole = false;
                    break;
                }
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        match parts.status.as_u16() {
            200 => Ok((text, is_whole)),
            status => Err(Outcome::Told(status, header("x-nimgate-error"), header("x-nimgate-blame"))),
        }
    }
}

fn judge(is_right: bool, text: &str) -> Outcome {
    if is_right { Outcome::Good } else { Outcome::Wrong(text.to_owned()) }
}

/// How often each request ran, over all backends and all their lives.
fn runs(backends: &[Backend]) -> HashMap<String, usize> {
    let mut runs = HashMap::new();
    for backend in backends {
        let log = std::fs::read_to_string(&backend.log).unwrap_or_default();
        log.lines().for_each(|id| *runs.entry(id.to_owned()).or_default() += 1);
    }
    runs
}

/// All that is wrong with how requests ended.
fn violations(asked: &[Asked], runs: &HashMap<String, usize>, records: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_id: HashMap<&str, &Value> = HashMap::new();
    for record in records {
        let id = record["request_id"].as_str().unwrap();
        if by_id.insert(id, record).is_some() {
            wrong.push(format!("two records: {record}"));
        }
    }
    for Asked { id, is_chat, outcome, .. } in asked {
        let ran = runs.get(id).copied().unwrap_or(0);
        if *is_chat && ran > 1 {
            wrong.push(format!("{id} ran {ran} times: {outcome:?} {:?}", by_id.get(id.as_str())));
        }
        if *outcome == Outcome::Good && ran == 0 {
            wrong.push(format!("{id} was answered and ran nowhere"));
        }
        let Some(record) = by_id.get(id.as_str()) else {
            wrong.push(format!("{id} has no record: {outcome:?}"));
            continue;
        };
        let (label, blame) = (record["error"].as_str().unwrap_or(""), record["blame"].as_str().unwrap_or(""));
        let is_allowed = |label: &str, blame: &str| ALLOWED.iter().any(|(l, b)| *l == label && b.contains(&blame));
        let is_right = match outcome {
            Outcome::Good => label.is_empty(),
            Outcome::Told(status, told, whose) => {
                told == label && whose == blame && is_allowed(label, blame) && record["status"] == *status
            }
            Outcome::Ended(code) => code == label && is_allowed(label, blame),
            Outcome::Cut => is_allowed(label, blame),
            Outcome::Wrong(_) => false,
        };
        if !is_right {
            wrong.push(format!("{id} ended in {outcome:?}, recorded as {record}"));
        }
    }
    wrong
}

/// Waits until each backend has taken a request when there is need of it. One that was slow or stopped is known to have
/// been slow for a while, so that it gets requests only when the others are full.
async fn until_all_take_requests(world: &World) -> Duration {
    let begun = Instant::now();
    let before: Vec<usize> = world.backends.iter().map(Backend::runs).collect();
    loop {
        let mut burst = JoinSet::new();
        for at in 0..100 {
            let gateway = Arc::clone(&world.gateway);
            burst.spawn(async move {
                let text = json!({ "model": "nvidia/nv-embedqa-e5-v5", "input": "x", "input_type": "query" });
                let (path, body) = if at < 70 { (CHAT, chat(false)) } else { ("/v1/embeddings", text) };
                gateway.post(path, &body).header("x-sim-fault", "delay=100").send().await
            });
        }
        burst.join_all().await;
        let late: Vec<String> =
            world.backends.iter().zip(&before).filter(|(b, n)| b.runs() <= **n).map(|(b, _)| b.url()).collect();
        if late.is_empty() {
            return begun.elapsed();
        }
        if begun.elapsed() > RECOVERY {
            panic!("{late:?} take nothing after {RECOVERY:?}: {}", world.gateway.admin("/state").await.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_backends_no_answer_is_wrong_and_no_generation_runs_twice() {
    let seed = std::env::var("NIMGATE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("NIMGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut world = World::start().await;
    let reference = simulator_with(Kind::Embedding, |settings| settings.slots = 1000).await;
    let stop: Arc<AtomicBool> = Arc::default();
    let mut callers = JoinSet::new();
    for name in 0..CLIENTS {
        let caller = Caller {
            gateway: Arc::clone(&world.gateway),
            reference: reference.url(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            random: Rng::with_seed(random.u64(..)),
            name,
        };
        callers.spawn(caller.run(Arc::clone(&stop)));
    }
    let end = Instant::now() + CHAOS;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.u64(50..250))).await;
        world.mend(Some(Instant::now())).await;
        let (at, deed) = (random.usize(..world.backends.len()), DEEDS[random.usize(..DEEDS.len())]);
        let time = Duration::from_millis(random.u64(200..2500));
        if world.backends[at].disturbed.is_none() {
            world.disturb(at, deed, time).await;
        }
    }
    world.mend(None).await;
    let recovered = until_all_take_requests(&world).await;
    stop.store(true, Ordering::Relaxed);
    let asked: Vec<Asked> = callers.join_all().await.into_iter().flatten().collect();
    world.gateway.until_idle().await;
    let records = async || world.gateway.records();
    until("all are recorded", async || records().await.len() >= asked.len()).await;
    let wrong = violations(&asked, &runs(&world.backends), &records().await);
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    for Asked { pool, outcome, .. } in &asked {
        let name = match outcome {
            Outcome::Told(_, label, _) => label.clone(),
            Outcome::Ended(code) => format!("{code} within a stream"),
            Outcome::Good | Outcome::Cut => format!("{outcome:?}"),
            Outcome::Wrong(_) => "Wrong".into(),
        };
        *endings.entry(format!("{pool}: {name}")).or_default() += 1;
    }
    let metrics = [
        world.gateway.metric("nimgate_retries_total").await,
        world.gateway.metric("nimgate_spills_total").await,
        world.gateway.metric("nimgate_queue_wait_seconds_count").await,
    ];
    println!(
        "{} requests: {endings:?}; done: {:?}; retries, spills, waits: {metrics:?}; recovered after {recovered:?}",
        asked.len(),
        world.done
    );
    let shown: Vec<&String> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "NIMGATE_SEED={seed}: {} wrong: {shown:#?}", wrong.len());
    let good = asked.iter().filter(|asked| asked.outcome == Outcome::Good).count();
    assert!(good * 2 > asked.len(), "NIMGATE_SEED={seed}: {good} of {} good", asked.len());
    assert!(!world.gateway.output().contains("panicked"), "{}", world.gateway.output());
}
