//! One measurement: so many connections for so long, and what the proxy's process spent meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Connection;
use crate::process::Process;
use crate::target::Running;
use crate::workload::{Expected, Workload};

/// What one measurement gave.
pub struct Sample {
    /// Requests answered per second.
    pub rate: f64,
    /// Median of the times from request to whole answer, in µs.
    pub p50: f64,
    /// 99th percentile of the same.
    pub p99: f64,
    /// CPU time of the proxy per request, in µs; absent without a proxy.
    pub cpu: Option<f64>,
    /// Requests answered, those before and after the measured time included.
    pub answered: usize,
}

/// Connections are opened and caches filled before anything counts.
const WARM_UP: Duration = Duration::from_millis(200);
/// Longest time for an answer that is under way when the time is over.
const LAST_ANSWER: Duration = Duration::from_secs(10);

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Measures one workload over so many connections.
pub async fn measure(
    running: &Running,
    key: &str,
    workload: &Workload,
    connections: u16,
    time: Duration,
) -> Result<Sample> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let request: Arc<[u8]> = workload.request(Some(key)).into();
    let mut drivers = JoinSet::new();
    for _ in 0..connections {
        drivers.spawn(drive(running.address, Arc::clone(&request), workload.expected, Arc::clone(&phase)));
    }
    sleep(WARM_UP).await;
    let cpu = || running.process.as_ref().map(Process::cpu).transpose();
    let (cpu_before, begun) = (cpu()?, Instant::now());
    phase.store(COUNTING, Ordering::Relaxed);
    sleep(time).await;
    let (cpu_after, elapsed) = (cpu()?, begun.elapsed());
    phase.store(OVER, Ordering::Relaxed);

    let ended = timeout(LAST_ANSWER, drivers.join_all()).await.context("answers that do not end")?;
    let (good, bad): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
    if let Some(Err(first)) = bad.into_iter().next() {
        let failed = usize::from(connections) - good.len();
        return Err(first.context(format!("{failed} of {connections} connections failed; the first")));
    }
    let (mut times, mut answered) = (Vec::new(), 0);
    for driven in good.into_iter().flatten() {
        answered += driven.answered;
        times.extend(driven.times);
    }
    times.sort_unstable();
    if times.is_empty() {
        bail!("no request was answered in {time:?}");
    }
    let spent = cpu_after.zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    Ok(Sample {
        rate: times.len() as f64 / elapsed.as_secs_f64(),
        p50: percentile(&times, 0.5),
        p99: percentile(&times, 0.99),
        cpu: spent.map(|spent| micros(spent) / times.len() as f64),
        answered,
    })
}

struct Driven {
    times: Vec<Duration>,
    answered: usize,
}

/// One connection: the next request as soon as the last is answered.
async fn drive(address: SocketAddr, request: Arc<[u8]>, expected: Expected, phase: Arc<AtomicU8>) -> Result<Driven> {
    let mut connection = Connection::open(address).await?;
    let mut driven = Driven { times: Vec::new(), answered: 0 };
    loop {
        let begun = Instant::now();
        let answer = connection.exchange(&request).await?;
        expected.check(&answer)?;
        driven.answered += 1;
        match phase.load(Ordering::Relaxed) {
            WARMING => {}
            COUNTING => driven.times.push(begun.elapsed()),
            _ => return Ok(driven),
        }
    }
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let at = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted.get(at).copied().map_or(0.0, micros)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
