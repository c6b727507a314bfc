//! The endpoints and the gateway in front of them.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nimgate::auth::NewKey;
use nimgate::sim::{self, Kind, MetricNames, Settings, Signal, Simulator};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::plan::{MODEL, Plan};
use crate::policy::Policy;
use crate::port::free_address;
use crate::process::Process;
use crate::scenario::{CALLERS, ENGINE, Event, SLOTS, Scenario};

/// Threads of the gateway.
const THREADS: usize = 2;

/// Simulated NIMs on a thread of their own, so that their time does not hang on the callers'.
pub struct Endpoints {
    pub simulators: Vec<Simulator>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The gateway's process, ended when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    /// One for each caller.
    pub keys: Vec<String>,
    process: Process,
    _directory: tempfile::TempDir,
}

impl Endpoints {
    pub fn start(scenario: &Scenario) -> Result<Self> {
        let count = scenario.speeds.len();
        let (started, simulators) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || run(count, &started, stopped));
        let simulators = simulators.recv().context("the thread of the simulators")??;
        let endpoints = Self { simulators, stop: Some(stop), thread: Some(thread) };
        for (simulator, speed) in endpoints.simulators.iter().zip(scenario.speeds) {
            simulator.speed(*speed).map_err(|e| anyhow!(e))?;
        }
        Ok(endpoints)
    }

    /// Plays the events of a scenario.
    pub async fn play(&self, scenario: &Scenario, plan: &Plan, begun: Instant) -> Result<()> {
        let all = || self.simulators.iter().zip(scenario.speeds).enumerate();
        let (from, to) = plan.counted;
        let done: Result<(), String> = match scenario.event {
            Event::None => Ok(()),
            Event::Slow(factor) => {
                sleep_until(begun + (from + to) / 2).await;
                all().take(1).try_for_each(|(_, (simulator, speed))| simulator.speed(speed * factor))
            }
            Event::Lies => all().take(2).try_for_each(|(at, (simulator, _))| {
                simulator.signal(Signal::Waiting(if at == 0 { 0 } else { 10_000 }))
            }),
            Event::Frozen => {
                sleep_until(begun + from + (to - from) / 3).await;
                all().try_for_each(|(_, (simulator, _))| simulator.signal(Signal::Frozen))
            }
        };
        done.map_err(|e| anyhow!(e))
    }

    /// The time that the slots of each endpoint were taken.
    pub fn slot_times(&self) -> Vec<Duration> {
        self.simulators.iter().map(|simulator| simulator.usage().slot_time).collect()
    }

    /// Of all prompt tokens, those found in prefix caches.
    pub fn hits(&self) -> f64 {
        let sum = |of: fn(sim::Usage) -> u64| self.simulators.iter().map(|s| of(s.usage())).sum::<u64>();
        sum(|usage| usage.prefix_hits) as f64 / sum(|usage| usage.prefix_queries).max(1) as f64
    }

    /// Requests that ran more than once, here or there.
    pub fn ran_twice(&self) -> Result<usize> {
        let uncounted = self.simulators.iter().map(|simulator| simulator.seen().uncounted_runs()).sum::<u64>();
        ensure!(uncounted == 0, "{uncounted} requests ran without an x-request-id");
        let mut runs: HashMap<String, u64> = HashMap::new();
        for (id, count) in self.simulators.iter().flat_map(|simulator| simulator.seen().runs()) {
            *runs.entry(id).or_default() += count;
        }
        Ok(runs.values().filter(|count| **count > 1).count())
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.simulators.clear();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Gateway {
    /// Starts it, and waits until it answers.
    pub async fn start(binary: &Path, policy: &Policy, endpoints: &Endpoints) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nimgate-scenarios-").tempdir()?;
        let path = directory.path();
        let keys = (0..CALLERS).map(|_| NewKey::generate()).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|e| anyhow!("no random numbers: {e}"))?;
        let address = free_address();
        fs::write(path.join("keys.yaml"), keys_file(&keys))?;
        fs::write(path.join("nimgate.yaml"), config(address, free_address(), policy, endpoints))?;
        let mut command = Command::new(binary);
        command.args(["serve", "--config"]).arg(path.join("nimgate.yaml"));
        let mut process = Process::start("nimgate", &mut command, path)?;
        let begun = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            process.require_running()?;
            ensure!(begun.elapsed() < Duration::from_secs(20), "nobody listens on {address}");
            sleep(Duration::from_millis(20)).await;
        }
        let keys = keys.into_iter().map(|key| key.text).collect();
        Ok(Self { address, keys, process, _directory: directory })
    }

    /// Fails when it has ended.
    pub fn require_running(&mut self) -> Result<()> {
        self.process.require_running()
    }
}

/// What the thread of the simulators does, until it is told to stop.
fn run(count: usize, started: &mpsc::Sender<Result<Vec<Simulator>>>, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let mut simulators = Vec::new();
        for _ in 0..count {
            match sim::start(Kind::Llm, settings()).await {
                Ok(simulator) => simulators.push(simulator),
                Err(error) => return drop(started.send(Err(error.into()))),
            }
        }
        let _ = started.send(Ok(simulators));
        let _ = stopped.await;
    });
}

fn settings() -> Settings {
    Settings {
        models: vec![MODEL.to_owned()],
        slots: SLOTS,
        batching: Some(ENGINE),
        metrics: MetricNames::Vllm,
        ..Settings::default()
    }
}

fn keys_file(keys: &[NewKey]) -> String {
    let key = |(at, key): (usize, &NewKey)| {
        format!("  - id: \"{}\"\n    sha256: {}\n    name: caller-{at}\n", key.id, key.hash_text())
    };
    format!("keys:\n{}", keys.iter().enumerate().map(key).collect::<String>())
}

fn config(listen: SocketAddr, admin: SocketAddr, policy: &Policy, endpoints: &Endpoints) -> String {
    let url = |simulator: &Simulator| format!("      - url: {}\n", simulator.url());
    let urls: String = endpoints.simulators.iter().map(url).collect();
    let extra = if policy.yaml.is_empty() { String::new() } else { format!("    {}\n", policy.yaml) };
    format!(
        "listeners: [{{address: \"{listen}\"}}]\n\
         admin: {{address: \"{admin}\"}}\n\
         callers: {{keys_file: keys.yaml}}\n\
         access_log: {{target: \"off\"}}\n\
         runtime: {{threads: {THREADS}}}\n\
         pools:\n  \
         - name: chat\n    \
           api: nim-llm\n    \
           models: [{{id: {MODEL}}}]\n\
         {extra}    endpoints:\n{urls}"
    )
}
