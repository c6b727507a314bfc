//! Macro bench: what does nimgate cost beside no proxy, a bare pingora pass-through and nginx?
//!
//! `cargo bench --bench macro [-- --rounds 5 --seconds 2 --only chat-1k,nimgate,pingora --json FILE]`; what is measured
//! and how stands in docs/benchmarks.md. All of it runs on loopback, in processes that this one starts and ends.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

mod bodies;
mod client;
mod measure;
mod options;
mod passthrough;
mod process;
mod redis;
mod report;
mod target;
mod upstream;
mod workload;

use self::options::{Options, Role};
use self::report::Cell;
use self::target::{Stage, Target};

// The same as nimgate's, so that the pass-through differs from it in what it does only.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // As a test (`cargo test --all-targets`) it only has to build: nobody waits for figures there.
    if !std::env::args().any(|a| matches!(a.as_str(), "--bench" | "--role")) {
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "macro: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(role) = options.role {
        return play(role, options.listen.context("--listen")?, options.upstream);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // Dropping the bench ends its processes.
        tokio::select! {
            done = bench(options) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

/// A part played for the bench that started this process; ends with it.
fn play(role: Role, listen: SocketAddr, upstream: Option<SocketAddr>) -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match role {
        Role::Upstream => upstream::serve(listen),
        Role::Pingora => passthrough::serve(listen, upstream.context("--upstream")?),
    }
}

async fn bench(options: &Options) -> Result<()> {
    let workloads = options.workloads()?;
    let chosen: Vec<Target> = Target::ALL.into_iter().filter(|t| options.chose(*t)).collect();
    let (targets, absent): (Vec<Target>, Vec<Target>) = chosen.into_iter().partition(|t| t.is_installed());
    let mut out = std::io::stdout();
    for target in absent {
        writeln!(out, "{} is not installed and left out", target.name())?;
    }
    let time = Duration::from_secs_f64(options.seconds);
    let cells = workloads.len() * options.connections.len() * targets.len();
    let least = (time + Duration::from_millis(250)) * options.rounds * u32::try_from(cells)?;
    let (stages, all) = (options.stages, least.as_secs() * u64::from(options.stages));
    writeln!(out, "{cells} cells, {stages} times {} rounds of {time:?}: about {all} s", options.rounds)?;
    if cfg!(debug_assertions) {
        writeln!(out, "A debug build: its figures mean nothing.")?;
    }

    let (mut cells, mut memory): (Vec<Cell>, _) = (Vec::new(), Map::new());
    for _ in 0..stages {
        let mut stage = Stage::set(&targets).await?;
        let measured = async {
            stage.rehearse(&workloads).await?;
            rounds(options, &workloads, &stage, time).await
        };
        let measured = timeout(least * 2 + Duration::from_secs(60), measured).await;
        let measured = measured.context("the bench takes too long")??;
        for running in &mut stage.targets {
            if let Some(process) = &mut running.process {
                process.require_running()?;
            }
        }
        check_log(&stage, &measured, &mut out).await?;
        check_limits(&stage, &measured, &mut out).await?;
        for (name, peak) in peaks(&stage) {
            let most = memory.get(&name).and_then(Value::as_u64).max(peak.as_u64());
            memory.insert(name, json!(most));
        }
        if cells.is_empty() {
            cells = measured;
        } else {
            cells.iter_mut().zip(measured).for_each(|(cell, more)| cell.samples.extend(more.samples));
        }
    }
    writeln!(out, "\n{}", report::table(&cells))?;
    writeln!(out, "Peak memory in MiB: {}", in_mib(&memory))?;
    if let Some(file) = &options.json {
        report::write_json(file, &cells, &setting(options), &Value::Object(memory))?;
    }
    Ok(())
}

/// Every cell once per round, targets next to each other and in turning order, so that a slow minute hits them alike.
async fn rounds(
    options: &Options,
    workloads: &[workload::Workload],
    stage: &Stage,
    time: Duration,
) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for workload in workloads {
        for connections in &options.connections {
            cells.extend(stage.targets.iter().map(|running| Cell {
                workload: workload.name,
                connections: *connections,
                target: running.target,
                samples: Vec::new(),
            }));
        }
    }
    let count = stage.targets.len();
    for round in 0..options.rounds as usize {
        for (at, group) in cells.chunks_mut(count).enumerate() {
            for turn in 0..count {
                let which = (turn + round + at) % count;
                let (cell, running) = (&mut group[which], &stage.targets[which]);
                let workload = &workloads[at / options.connections.len()];
                let sample = measure::measure(running, &stage.key, workload, cell.connections, time).await;
                cell.samples.push(sample.with_context(|| {
                    format!("{} by {}, {} connections", cell.workload, running.target.name(), cell.connections)
                })?);
            }
        }
        let _ = write!(std::io::stderr(), "round {} of {}\r", round + 1, options.rounds);
    }
    Ok(cells)
}

/// The figures are of a gateway that records: each request has left its line, or was counted as dropped.
async fn check_log(stage: &Stage, cells: &[Cell], out: &mut impl std::io::Write) -> Result<()> {
    let of_nimgate = cells.iter().filter(|c| c.target == Target::Nimgate);
    let answered: usize = of_nimgate.flat_map(|c| &c.samples).map(|s| s.answered).sum();
    if answered > 0 {
        let logged = stage.logged().await?;
        writeln!(out, "Lines in nimgate's access log: {logged}, for {answered} measured requests")?;
        ensure!(logged * 10 > answered * 9, "nimgate did not record its requests");
    }
    Ok(())
}

/// The figures of a gateway with limits are of one that held them: each request was checked when it began and again when
/// its tokens were known.
async fn check_limits(stage: &Stage, cells: &[Cell], out: &mut impl std::io::Write) -> Result<()> {
    for (target, checks) in stage.checks().await? {
        let of_target = cells.iter().filter(|c| c.target == target);
        let answered: usize = of_target.flat_map(|c| &c.samples).map(|s| s.answered).sum();
        writeln!(out, "Checks of limits by {}: {checks}, for {answered} measured requests", target.name())?;
        ensure!(checks >= 2.0 * answered as f64, "{} did not check its limits", target.name());
    }
    Ok(())
}

fn peaks(stage: &Stage) -> Map<String, Value> {
    let of = |running: &target::Running| {
        Some((running.target.name().to_owned(), json!(running.process.as_ref()?.peak_memory())))
    };
    stage.targets.iter().filter_map(of).collect()
}

fn in_mib(memory: &Map<String, Value>) -> String {
    let mib = |value: &Value| value.as_u64().unwrap_or(0) / (1024 * 1024);
    memory.iter().map(|(name, value)| format!("{name} {}", mib(value))).collect::<Vec<_>>().join(", ")
}

fn setting(options: &Options) -> Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "stages": options.stages,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": kernel.trim(),
        "proxy_threads": target::THREADS,
        "debug_build": cfg!(debug_assertions),
    })
}
