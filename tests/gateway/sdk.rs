//! OpenAI's own Python SDK against limits: what it raises, when it comes back, and that its callers see no refusal that
//! waiting mends. The scripts stand in `sdk/`; `tests/setup.sh` installs what they need.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nimgate::sim::LLM_FUNCTION;
use serde_json::{Value, json};

use crate::support::*;

/// How long a script may take; browsers are slow on a busy machine.
const LONGEST: Duration = Duration::from_secs(240);
const LIMITED: &str = "ngk_limited_0123456789abcdef";

/// A script under way.
pub(crate) struct Script {
    child: Child,
    directory: PathBuf,
}

impl Script {
    /// Starts one from `sdk/`, for Python or for Node. It reads the variables URL and KEY, unless others are given, and
    /// says what it saw as JSON.
    pub(crate) fn start(name: &str, gateway: &Gateway, variables: &[(&str, &str)]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let venv = root.join("target/client-venv");
        let program = venv.join(if name.ends_with(".py") { "bin/python" } else { "bin/node" });
        assert!(program.exists(), "there is no {}: run tests/setup.sh", program.display());
        let directory = gateway.directory.path().to_owned();
        let file = |name: &str| File::create(directory.join(name)).unwrap();
        let mut command = Command::new(program);
        command.arg(root.join("tests/gateway/sdk").join(name)).env_clear();
        command.env("URL", format!("http://{}/v1", gateway.address)).env("KEY", LIMITED).env("HOME", &directory);
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("NODE_PATH", venv.join("node/node_modules"));
        command.envs(variables.iter().copied()).current_dir(&directory).stdin(Stdio::null());
        let child = command.stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
        Self { child, directory }
    }

    /// Waits for its end, which must be a good one.
    pub(crate) async fn finish(mut self) -> Value {
        let begun = Instant::now();
        let ended = loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                break ended;
            }
            assert!(begun.elapsed() < LONGEST, "the script does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let [output, errors] = ["stdout", "stderr"].map(|name| std::fs::read_to_string(self.directory.join(name)));
        let (output, errors) = (output.unwrap(), errors.unwrap());
        assert!(ended.success(), "{output}\n{errors}");
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}\n{errors}"))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn limited(backend: &Simulator, limits: &str) -> Gateway {
    Gateway::setup().chat(&[&backend.url()]).key(LIMITED, &format!("limits: [{limits}]")).start().await
}

#[tokio::test]
async fn a_stream_that_waited_for_a_place_reads_as_any_other() {
    let backend = simulator(Kind::Llm).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nbalance: {max_in_flight: 1}\nqueue: {keepalive_ms: 20}";
    let setup = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).key(LIMITED, "name: x");
    let gateway = setup.start().await;
    let held = gateway.chat(true).header("x-sim-gate", "held").begin().await;
    let script = Script::start("waiting.py", &gateway, &[]);
    let oldest = async || gateway.pool("chat").await["queue"]["callers"][0]["oldest_s"].as_f64();
    until("comments were sent", async || oldest().await.is_some_and(|seconds| seconds > 0.1)).await;
    (0..100).for_each(|_| backend.open_gate("held"));
    answer(held).await;
    let seen = script.finish().await;
    assert_eq!(seen["words"], 8, "{seen}");
    gateway.until_idle().await;
}

/// The statuses of the records, in the order of their ends; each refusal with this label.
fn statuses(gateway: &Gateway, label: &str) -> Vec<u64> {
    let records = gateway.records();
    let refused = |record: &&Value| record["status"] == 429;
    assert!(records.iter().filter(refused).all(|record| record["error"] == label), "{records:?}");
    records.iter().map(|record| record["status"].as_u64().unwrap()).collect()
}

fn count(statuses: &[u64], status: u64) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}

#[tokio::test]
async fn each_kind_of_refusal_is_a_rate_limit_error() {
    // Limit, requests that it lets pass, code, the name that the message gives.
    let kinds = [
        ("{requests: 1, per: month}", 1, "quota_exceeded", "key-requests-month"),
        ("{requests: 0, per: second}", 0, "rate_limit_exceeded", "key-requests-second"),
        ("{input_tokens: 1, per: minute}", 0, "rate_limit_exceeded", "key-input-tokens-minute"),
        ("{output_tokens: 1, per: hour}", 0, "rate_limit_exceeded", "key-output-tokens-hour"),
        ("{total_tokens: 1, per: day}", 0, "quota_exceeded", "key-total-tokens-day"),
        ("{spend: 0.000001, per: month}", 0, "budget_exceeded", "key-spend-month"),
        ("{concurrency: 0}", 0, "concurrency_exceeded", "key-concurrency"),
    ];
    let backend = simulator(Kind::Llm).await;
    let prices = "prices: [{model: '*', input_per_million: 0.2, output_per_million: 0.6}]";
    let mut setup = Gateway::setup().chat(&[&backend.url()]).top(prices);
    let mut cases = Vec::new();
    for (at, (limit, passes, code, name)) in kinds.into_iter().enumerate() {
        let key = format!("ngk_kind{at}_0123456789abcdef");
        setup = setup.key(&key, &format!("limits: [{limit}]"));
        cases.push(json!({ "key": key, "passes": passes, "code": code, "name": name }));
    }
    let gateway = setup.start().await;
    let seen = Script::start("kinds.py", &gateway, &[("CASES", &json!(cases).to_string())]).finish().await;
    // None is tried again: no wait that an SDK takes would help.
    let refusals = seen["refusals"].as_u64().unwrap();
    assert_eq!(refusals, 4 * kinds.len() as u64);
    until("all are recorded", async || gateway.records().len() as u64 > refusals).await;
    let records = gateway.records();
    let refused = records.iter().filter(|record| record["status"] == 429 && record["blame"] == "quota").count();
    assert_eq!((refused as u64, records.len() as u64), (refusals, refusals + 1), "{records:?}");
    println!("{seen}");
}

#[tokio::test]
async fn the_sdk_waits_as_told_and_its_caller_sees_no_refusal() {
    let backend = simulator(Kind::Llm).await;
    let run = async |limits: &str, stream: &str| {
        let gateway = limited(&backend, limits).await;
        let seen = Script::start("backoff.py", &gateway, &[("STREAM", stream)]).finish().await;
        let [calls, retries] = ["calls", "retries"].map(|name| seen[name].as_u64().unwrap());
        until("all are recorded", async || gateway.records().len() as u64 >= calls + retries).await;
        let statuses = statuses(&gateway, "rate_limit_exceeded");
        println!("{limits} {stream}: {seen} {statuses:?}");
        assert!(calls >= 8 && retries >= 2, "{seen}");
        assert_eq!((count(&statuses, 200) as u64, count(&statuses, 429) as u64), (calls, retries), "{statuses:?}");
        // One wait is enough, and it is ours: the SDK's own would be a part of a second.
        assert_eq!(seen["most_retries"], 1, "{seen}");
        assert!(seen["waits"].as_array().unwrap().iter().all(|wait| *wait == 1.0), "{seen}");
    };
    let (requests, tokens) = ("{requests: 2, per: second}", "{output_tokens: 16, per: second}, {concurrency: 1}");
    tokio::join!(run(requests, ""), run(requests, "yes"), run(tokens, ""), run(tokens, "yes"));
}

#[tokio::test]
async fn a_call_that_finds_no_place_comes_back_when_one_is_free() {
    let backend = simulator(Kind::Llm).await;
    for stream in ["", "yes"] {
        let gateway = limited(&backend, "{concurrency: 1}").await;
        let gate = format!("held-{stream}");
        let held = gateway.chat(true).key(LIMITED).header("x-sim-gate", &gate).begin().await;
        assert_eq!(held.status(), 200);
        let script = Script::start("backoff.py", &gateway, &[("STREAM", stream), ("CALLS", "1")]);
        until("it is refused", async || count(&statuses(&gateway, "concurrency_exceeded"), 429) > 0).await;
        (0..100).for_each(|_| backend.open_gate(&gate));
        answer(held).await;
        let seen = script.finish().await;
        println!("{seen}");
        assert_eq!((&seen["calls"], &seen["waits"][0]), (&json!(1), &json!(1.0)), "{seen}");
    }
}

#[tokio::test]
async fn concurrent_calls_share_the_places_that_there_are() {
    let backend = simulator(Kind::Llm).await;
    let gateway = limited(&backend, "{concurrency: 3}").await;
    let script = Script::start("together.py", &gateway, &[("CALLS", "6"), ("GATE", "all")]);
    until("three are refused", async || count(&statuses(&gateway, "concurrency_exceeded"), 429) >= 3).await;
    assert_eq!(backend.seen().in_flight(), 3);
    (0..100).for_each(|_| backend.open_gate("all"));
    let seen = script.finish().await;
    let retries = seen["retries"].as_u64().unwrap();
    until("all are recorded", async || gateway.records().len() as u64 >= 6 + retries).await;
    let statuses = statuses(&gateway, "concurrency_exceeded");
    println!("{seen} {statuses:?}");
    assert_eq!((count(&statuses, 200), count(&statuses, 429) as u64), (6, retries), "{statuses:?}");
    assert!(seen["waits"].as_array().unwrap().iter().all(|wait| *wait == 1.0), "{seen}");
}

#[tokio::test]
async fn functions_of_nvcf_are_models_like_any_other() {
    // A word is 6 bytes or so: eight such answers are above the 5 MiB that NVCF passes on itself.
    const LARGE: &str = "131000";
    let slow = |settings: &mut Settings| {
        settings.time_to_first_token = Duration::from_millis(2500);
        settings.token_interval = Duration::ZERO;
    };
    let backend = simulator_with(Kind::Nvcf, slow).await;
    let mut setup = Gateway::setup().key(LIMITED, "name: x");
    for invocation in ["direct", "pexec"] {
        let yaml = format!(
            "models: [{{id: {invocation}, backend_model: meta/llama-3.1-8b-instruct}}]\nkind: nvcf\n\
             function: {{id: {LLM_FUNCTION}, invocation: {invocation}, wait: {{hold_s: 1, private_results: true}}}}\n\
             credential: {{secret: {{file: upstream.key}}}}"
        );
        setup = setup.pool(invocation, "nim-llm", &yaml, &[&backend.url()]);
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-upstream-secret").unwrap();
    let gateway = setup.start_in(directory).await;
    let seen = Script::start("nvcf.py", &gateway, &[("MODELS", "direct pexec"), ("LARGE", LARGE)]).finish().await;
    assert!(seen["direct"].as_u64().unwrap() > 5 << 20 && seen["direct"] == seen["pexec"], "{seen}");
    let polls = backend.seen().history().iter().filter(|seen| seen.path.contains("/pexec/status/")).count();
    assert!(polls >= 6, "each answer of three took several holds: {polls} polls");
}
