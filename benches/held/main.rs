//! Held bench: what does a call cost that NVCF holds, beside one that polls by itself, and how much memory do many take?
//!
//! `cargo bench --bench held [-- --calls 40 --held 2000]`; what is measured and how stands in docs/benchmarks.md. The
//! gateway is the real binary in a process of its own; simulator and callers are in this one, all on loopback.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use clap::Parser;
use futures_util::future::try_join_all;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nimgate::auth::NewKey;
use nimgate::sim::{self, ECHO_FUNCTION, Kind, SLOW_FUNCTION, Settings, Simulator};
use tokio::time::{Instant, sleep};

#[allow(dead_code, reason = "each bench uses its part of it")]
#[path = "../macro/process.rs"]
mod process;

use self::process::{Process, await_listener, free_addresses};

/// Threads of the gateway.
const THREADS: usize = 2;
/// The longest hold of a call that is polled, in seconds.
const HOLD_S: u64 = 1;
/// How long a call is held in the same exchange, in seconds.
const LONG_S: u64 = 300;
/// Bytes of a request.
const BODY: usize = 1024;

#[derive(Parser)]
#[command(name = "cargo bench --bench held --")]
struct Options {
    /// Polled calls of each kind.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=200))]
    calls: u32,
    /// Requests that are held at once.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    held: u32,
    /// Says that cargo runs it as a bench and not as a test.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The real binary in front of the simulator.
struct Gateway {
    process: Process,
    address: SocketAddr,
    key: String,
    _directory: tempfile::TempDir,
}

/// Who polls.
#[derive(Clone, Copy)]
enum By<'a> {
    /// The gateway, which is asked once.
    Gateway(&'a Gateway),
    /// The caller, who asks the simulator.
    Caller(&'a Simulator),
}

type Web = Client<HttpConnector, Full<Bytes>>;

fn main() -> ExitCode {
    // As a test (`cargo test --all-targets`) it only has to build: nobody waits for figures there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(bench(&Options::parse())));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "held: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(options: &Options) -> Result<()> {
    let slots = options.held.max(options.calls) as usize * 2;
    let settings = Settings { slots, ..Settings::default() };
    let simulator = sim::start(Kind::Nvcf, settings).await?;
    let gateway = Gateway::start(&simulator).await?;
    let caller = Client::builder(TokioExecutor::new()).build_http();
    let mut out = std::io::stdout();
    writeln!(out, "| Call | Calls | Exchanges | End to answer p50 µs | p99 µs | CPU µs a call |")?;
    writeln!(out, "|---|--:|--:|--:|--:|--:|")?;
    for round in ["warm", "counted"] {
        for (name, by) in [("caller polls", By::Caller(&simulator)), ("gateway polls", By::Gateway(&gateway))] {
            let row = polled(&caller, &simulator, &gateway, by, options.calls, round).await?;
            if round == "counted" {
                writeln!(out, "| {name} | {row} |")?;
            }
        }
    }
    writeln!(out, "| gateway, nothing held | {} |", plain(&caller, &gateway).await?)?;
    writeln!(out, "\n{}", held(&caller, &simulator, &gateway, options.held).await?)?;
    Ok(())
}

/// Many calls are polled at the same time, and end one after the other: the time from each end to its answer.
async fn polled(
    caller: &Web,
    simulator: &Simulator,
    gateway: &Gateway,
    by: By<'_>,
    calls: u32,
    round: &str,
) -> Result<String> {
    let before = (simulator.seen().total(), gateway.process.cpu()?);
    let kind = if matches!(by, By::Caller(_)) { "caller" } else { "gateway" };
    let gates: Vec<String> = (0..calls).map(|call| format!("{round}-{kind}-{call}")).collect();
    let ends = gates.iter().map(|gate| {
        let caller = caller.clone();
        async move {
            let status = call(&caller, by, "polled", gate).await?;
            ensure!(status == StatusCode::OK, "{gate} was answered with {status}");
            Ok(Instant::now())
        }
    });
    let opened = async {
        let begun = Instant::now();
        // Each has been asked for by then, and the next question is under way.
        sleep(Duration::from_millis(HOLD_S * 1000 + 150)).await;
        while simulator.seen().working() < calls.into() {
            ensure!(begun.elapsed() < Duration::from_secs(20), "not all calls began");
            sleep(Duration::from_millis(5)).await;
        }
        let mut opened = Vec::new();
        for gate in &gates {
            opened.push(Instant::now());
            simulator.open_gate(gate);
            sleep(Duration::from_millis(15)).await;
        }
        Ok(opened)
    };
    let (ends, opened) = tokio::try_join!(try_join_all(ends), opened)?;
    let mut times: Vec<Duration> = ends.iter().zip(&opened).map(|(end, opened)| *end - *opened).collect();
    times.sort();
    let cpu = gateway.process.cpu()? - before.1;
    let exchanges = simulator.seen().total() - before.0;
    let cpu = match by {
        By::Gateway(_) => format!("{:.0}", cpu.as_secs_f64() * 1e6 / f64::from(calls)),
        By::Caller(_) => "–".into(),
    };
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    Ok(format!("{calls} | {exchanges} | {} | {} | {cpu}", at(50), at(99)))
}

/// Calls that are answered at once, one after the other.
async fn plain(caller: &Web, gateway: &Gateway) -> Result<String> {
    const CALLS: u32 = 1000;
    let (mut times, mut before) = (Vec::new(), gateway.process.cpu()?);
    for at in 0..CALLS * 2 {
        if at == CALLS {
            times.clear();
            before = gateway.process.cpu()?;
        }
        let begun = Instant::now();
        ensure!(call(caller, By::Gateway(gateway), "echo", "").await? == StatusCode::OK, "a plain call failed");
        times.push(begun.elapsed());
    }
    times.sort();
    let cpu = (gateway.process.cpu()? - before).as_secs_f64() * 1e6 / f64::from(CALLS);
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    Ok(format!("{CALLS} | {CALLS} | {} | {} | {cpu:.0}", at(50), at(99)))
}

/// So many requests are held at once: what memory the gateway has with and without them.
async fn held(caller: &Web, simulator: &Simulator, gateway: &Gateway, count: u32) -> Result<String> {
    let without = gateway.process.memory("VmRSS:");
    let calls = (0..count).map(|_| call(caller, By::Gateway(gateway), "held", "held"));
    let look = async {
        let begun = Instant::now();
        while simulator.seen().working() < count.into() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{} of {count} are held", simulator.seen().working());
            sleep(Duration::from_millis(20)).await;
        }
        // What they needed in passing is given back by then.
        sleep(Duration::from_secs(2)).await;
        let with = gateway.process.memory("VmRSS:");
        simulator.open_gate("held");
        Ok(with)
    };
    let (statuses, with) = tokio::try_join!(try_join_all(calls), look)?;
    ensure!(statuses.iter().all(|status| *status == StatusCode::OK), "a held request failed");
    let each = with.saturating_sub(without) as f64 / f64::from(count) / 1024.0;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(format!("{count} held: RSS {:.1} MiB, without {:.1} MiB: {each:.1} KiB each", mib(with), mib(without)))
}

/// Makes a call and polls for it where nobody else does; its answer's status, once all of it is there.
async fn call(caller: &Web, by: By<'_>, pool: &str, gate: &str) -> Result<StatusCode> {
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(BODY));
    let mut request = Request::builder().method(Method::POST).header("content-type", "application/json");
    if !gate.is_empty() {
        request = request.header("x-sim-gate-work", gate);
    }
    let (base, key) = match by {
        By::Gateway(gateway) => {
            let request = request.uri(format!("http://{}/pools/{pool}/v1/infer", gateway.address));
            let request = request.header("authorization", format!("Bearer {}", gateway.key));
            return exchange(caller, request.body(Full::new(body.into()))?).await.map(|(status, _)| status);
        }
        By::Caller(simulator) => (simulator.url(), "Bearer nvapi-bench"),
    };
    let request = request.uri(format!("{base}/v2/nvcf/pexec/functions/{SLOW_FUNCTION}"));
    let request = request.header("authorization", key).header("nvcf-poll-seconds", HOLD_S);
    let (mut status, id) = exchange(caller, request.body(Full::new(body.into()))?).await?;
    while status == StatusCode::ACCEPTED {
        let request = Request::get(format!("{base}/v2/nvcf/pexec/status/{id}"));
        let request = request.header("authorization", key).header("nvcf-poll-seconds", HOLD_S);
        status = exchange(caller, request.body(Full::default())?).await?.0;
    }
    Ok(status)
}

/// The status of an answer and NVCF's id of its request.
async fn exchange(caller: &Web, request: Request<Full<Bytes>>) -> Result<(StatusCode, String)> {
    let (header, body) = caller.request(request).await?.into_parts();
    body.collect().await?;
    let id = header.headers.get("nvcf-reqid").and_then(|id| id.to_str().ok()).unwrap_or_default();
    Ok((header.status, id.to_owned()))
}

impl Gateway {
    async fn start(simulator: &Simulator) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nimgate-held-").tempdir()?;
        let path = directory.path();
        let key = NewKey::generate().map_err(|error| anyhow!("no random numbers: {error}"))?;
        let addresses = free_addresses(2)?;
        let keys = format!("keys:\n  - id: \"{}\"\n    sha256: {}\n    name: bench\n", key.id, key.hash_text());
        fs::write(path.join("keys.yaml"), keys)?;
        fs::write(path.join("upstream.key"), "nvapi-bench")?;
        fs::write(path.join("nimgate.yaml"), config(addresses[0], addresses[1], &simulator.url()))?;
        let process = serve(path)?;
        let mut gateway = Self { process, address: addresses[0], key: key.text, _directory: directory };
        await_listener(&mut gateway.process, gateway.address).await?;
        Ok(gateway)
    }
}

fn serve(directory: &Path) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nimgate"));
    command.args(["serve", "--config"]).arg(directory.join("nimgate.yaml"));
    Process::start("nimgate", &mut command, directory)
}

fn config(address: SocketAddr, admin: SocketAddr, url: &str) -> String {
    let pool = |name: &str, function: &str, hold: u64| {
        format!(
            "  - name: {name}\n    api: cosmos-predict\n    kind: nvcf\n    validation: off\n    endpoints: [{{url: {url}}}]\n    \
             function: {{id: {function}, invocation: pexec, wait: {{hold_s: {hold}, private_results: true}}}}\n    \
             balance: {{max_in_flight: 8192}}\n    credential: {{secret: {{file: upstream.key}}}}\n"
        )
    };
    let pools = [("polled", SLOW_FUNCTION, HOLD_S), ("held", SLOW_FUNCTION, LONG_S), ("echo", ECHO_FUNCTION, LONG_S)];
    let pools: String = pools.into_iter().map(|(name, function, hold)| pool(name, function, hold)).collect();
    format!(
        "runtime: {{threads: {THREADS}}}\nlisteners: [{{address: '{address}'}}]\nadmin: {{address: '{admin}'}}\n\
         access_log: {{target: {{file: access.log}}}}\ncallers: {{keys_file: keys.yaml}}\npools:\n{pools}"
    )
}
