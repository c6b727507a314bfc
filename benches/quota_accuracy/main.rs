//! Accuracy of shared limits: how much of a limit do so many replicas let through, never more than it allows, and what
//! does that cost in round trips to Redis?
//!
//! `cargo bench --bench quota_accuracy [-- --seconds 3 --replicas 1,4 --limits 100 --rtt 0,10 --json FILE]`; what is
//! measured and how stands in docs/benchmarks.md. Needs `redis-server`; all of it runs on loopback and ends by itself.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use port::free_address;
use tokio::signal::unix::{SignalKind, signal};

mod load;
mod options;
mod replica;
mod report;
mod tally;

#[path = "../../tests/gateway/redis/line.rs"]
#[expect(dead_code, reason = "tests break the line in more ways")]
#[expect(clippy::unwrap_used, reason = "written for tests")]
mod line;
#[path = "../../tests/gateway/port.rs"]
mod port;
#[path = "../macro/redis.rs"]
mod redis_server;

use self::line::Line;
use self::load::{Offer, Pace};
use self::options::Options;
use self::redis_server::RedisServer;
use self::replica::Replica;
use self::report::{Cell, Costs};

// The same as nimgate's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest time until all replicas share and know of each other.
const PATIENCE: Duration = Duration::from_secs(10);
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
    let cells = options.replicas.len() * options.limits.len() * options.rtt.len();
    writeln!(out, "{cells} cells of {} windows: about {} s", options.seconds, cells as u64 * (options.seconds + 2))?;
    writeln!(out, "{}", report::head())?;
    let mut done = Vec::new();
    for limit in &options.limits {
        for rtt in &options.rtt {
            for replicas in &options.replicas {
                let cell = measure(&server, done.len(), *replicas, *limit, *rtt, options.seconds);
                let cell = cell.await.with_context(|| format!("{replicas} replicas, {limit} per second, {rtt} ms"))?;
                writeln!(out, "{}", report::row(&cell))?;
                done.push(cell);
            }
        }
    }
    writeln!(out, "\n{}", report::goals(&done))?;
    if let Some(file) = &options.json {
        report::write_json(file, options, &done)?;
    }
    Ok(())
}

/// One cell: its replicas start, share, are offered too much, and stop.
async fn measure(
    server: &RedisServer,
    number: usize,
    replicas: usize,
    limit: u64,
    rtt: u64,
    windows: u64,
) -> Result<Cell> {
    // Without added delay there is no line at all.
    let line = match rtt {
        0 => None,
        _ => {
            let line = Line::to(server.address()).await;
            line.delay(Duration::from_micros(rtt * 500));
            Some(line)
        }
    };
    let address = line.as_ref().map_or(server.address(), Line::address);
    let mut redis = connect(server.address()).await?;
    let prefix = format!("accuracy{number}");
    let replicas: Vec<Replica> =
        (0..replicas).map(|_| Replica::start(address, &prefix, limit)).collect::<Result<_>>()?;
    let begun = Instant::now();
    while replicas.iter().any(|r| !r.is_sharing(replicas.len())) {
        ensure!(begun.elapsed() < PATIENCE, "the replicas do not share");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let round_trip = ping(address).await?;

    let pace = Pace::of(limit, replicas.len());
    let offers: Vec<Offer> =
        replicas.iter().enumerate().map(|(at, r)| Offer::start(r, &pace, at)).collect::<Result<_>>()?;
    // The window that has begun is the warm-up; what is counted begins with the next.
    let clock = || replicas[0].now();
    let first = clock() / 1_000_000 + 1;
    pace.vary_until(first * 1_000_000, &clock).await;
    let before = Costs::read(&replicas, &mut redis).await?;
    pace.vary_until((first + windows) * 1_000_000, &clock).await;
    let after = Costs::read(&replicas, &mut redis).await?;
    tokio::time::sleep(MARGIN).await;
    pace.stop();
    let mut checks = Vec::new();
    for offer in offers {
        checks.extend(offer.finish()?);
    }
    let charged = replica::charged(&mut redis, &prefix).await?;
    // Together, as each says goodbye to Redis.
    replicas.iter().for_each(Replica::stop);
    let size = replicas.len();
    replicas.into_iter().try_for_each(Replica::join)?;
    let tally = tally::count(&checks, limit, first..first + windows, &charged);
    Ok(Cell { replicas: size, limit, rtt, round_trip, tally, costs: after.since(&before) })
}

async fn connect(address: SocketAddr) -> Result<redis::aio::MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://{address}"))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// The median time of a round trip, as the replicas have it.
async fn ping(address: SocketAddr) -> Result<Duration> {
    let mut redis = connect(address).await?;
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        redis::cmd("PING").query_async::<String>(&mut redis).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
