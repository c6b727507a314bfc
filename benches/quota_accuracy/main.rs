//! Accuracy of shared limits: how much of a limit do so many replicas let through, never more than it allows, and what
//! does that cost in round trips to Redis?
//!
//! `cargo bench --bench quota_accuracy [-- --seconds 3 --replicas 1,4 --limits 100 --rtt 0,10 --places 100 --json FILE]`;
//! what is measured and how stands in docs/benchmarks.md. Needs `redis-server`; all of it runs on loopback and ends by itself.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use port::free_address;
use tokio::signal::unix::{SignalKind, signal};

mod load;
mod options;
mod places;
mod replica;
mod report;
mod stage;
mod tally;

#[path = "../../tests/gateway/redis/line.rs"]
#[expect(dead_code, reason = "tests break the line in more ways")]
#[expect(clippy::unwrap_used, reason = "written for tests")]
mod line;
#[path = "../../tests/gateway/port.rs"]
mod port;
#[path = "../macro/redis.rs"]
mod redis_server;

use self::load::{Offer, Pace};
use self::options::Options;
use self::redis_server::RedisServer;
use self::report::{Cell, Costs};
use self::stage::{Setting, Stage};

// The same as nimgate's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whole windows are measured; so much more is offered, so that the first and the last are whole.
const MARGIN: Duration = Duration::from_millis(60);

fn main() -> ExitCode {
    // As a test (`cargo test --all-targets`) it only has to build: nobody waits for figures there.
    if !std::env::args().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "quota_accuracy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // Two threads: one carries the line, the other reads Redis.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            done = bench(options) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn bench(options: &Options) -> Result<()> {
    let mut out = std::io::stdout();
    if !RedisServer::is_installed() {
        writeln!(out, "redis-server is not installed: nothing to measure")?;
        return Ok(());
    }
    if cfg!(debug_assertions) {
        writeln!(out, "A debug build: its figures of time mean nothing.")?;
    }
    let server = RedisServer::start()?;
    let windows = options.settings(&options.limits, &options.replicas);
    let seconds = windows.len() as u64 * (options.seconds + 2);
    writeln!(out, "{} cells of {} windows: about {seconds} s", windows.len(), options.seconds)?;
    writeln!(out, "{}", report::head())?;
    let mut cells = Vec::new();
    for setting in windows {
        let cell = measure(setting, &server, options.seconds).await.with_context(|| setting.to_string())?;
        writeln!(out, "{}", report::row(&cell))?;
        cells.push(cell);
    }
    let held = options.settings(&options.places, &options.place_replicas);
    writeln!(out, "\n{} cells of held places: about {} s", held.len(), held.len() as u64 * (options.seconds + 2))?;
    writeln!(out, "{}", places::head())?;
    let mut places = Vec::new();
    for setting in held {
        let measured = places::measure(setting, &server, options).await.with_context(|| setting.to_string())?;
        writeln!(out, "{}", measured.row())?;
        places.push(measured);
    }
    writeln!(out, "\n{}{}", report::goals(&cells), places::goals(&places))?;
    if let Some(file) = &options.json {
        report::write_json(file, options, &cells, &places)?;
    }
    Ok(())
}

/// One cell: its replicas start, share, are offered too much, and stop.
async fn measure(setting: Setting, server: &RedisServer, windows: u64) -> Result<Cell> {
    let Setting { limit, rtt, .. } = setting;
    let mut stage = Stage::set(setting, server, replica::per_second(limit)).await?;
    let Stage { replicas, redis, prefix, .. } = &mut stage;

    let pace = Pace::of(limit, replicas.len());
    let offers: Vec<Offer> =
        replicas.iter().enumerate().map(|(at, r)| Offer::start(r, &pace, at)).collect::<Result<_>>()?;
    // The window that has begun is the warm-up; what is counted begins with the next.
    let clock = || replicas[0].now();
    let first = clock() / 1_000_000 + 1;
    pace.vary_until(first * 1_000_000, &clock).await;
    let before = Costs::read(replicas, redis).await?;
    pace.vary_until((first + windows) * 1_000_000, &clock).await;
    let after = Costs::read(replicas, redis).await?;
    tokio::time::sleep(MARGIN).await;
    pace.stop();
    let mut checks = Vec::new();
    for offer in offers {
        checks.extend(offer.finish()?);
    }
    let charged = replica::charged(redis, prefix).await?;
    let tally = tally::count(&checks, limit, first..first + windows, &charged);
    let (replicas, round_trip) = (setting.replicas, stage.round_trip);
    stage.strike()?;
    Ok(Cell { replicas, limit, rtt, round_trip, tally, costs: after.since(&before) })
}
