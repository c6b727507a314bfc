//! Otlp: carries spans, metrics and logs to a collector over OTLP, and never makes anybody wait.
//!
//! Whoever has something to send encodes it into a bounded queue; what finds no room is dropped and counted. One thread
//! takes batches from the queues and sends them, again where the collector asks for that. A collector that is slow, away
//! or hangs costs requests nothing, whatever it does (docs/decisions/0019). What is sent, others decide.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Uri};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

mod answer;
mod client;
mod envelope;
mod queue;
#[cfg(test)]
mod tests;
pub mod value;
mod worker;

use client::Client;
use envelope::{Envelope, record};
use queue::Queue;
use worker::{Batches, Courier, Readings};

/// What is sent where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where spans go; absent when they are not sent.
    pub traces: Option<Target>,
    /// Where metrics go; absent when they are not sent.
    pub metrics: Option<Target>,
    /// Where logs go; absent when they are not sent.
    pub logs: Option<Target>,
    /// What is said of this process, beside what only it knows.
    pub resource: BTreeMap<String, String>,
    /// How much waits, and for how long.
    pub bounds: Bounds,
    /// Time between two readings of the metrics.
    pub metrics_interval: Duration,
}

/// How much waits to be sent, for each signal.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most records.
    pub records: usize,
    /// Most bytes, as they are sent.
    pub bytes: usize,
    /// Most records in one export.
    pub batch: usize,
    /// How long a record waits for others to be sent with.
    pub delay: Duration,
}

/// Where one signal goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where exports are posted; of gRPC only scheme and authority count.
    pub endpoint: Uri,
    /// How.
    pub protocol: Protocol,
    /// Sent with each export. Their values are secrets.
    pub headers: HeaderMap,
    /// Time for one export.
    pub timeout: Duration,
    /// Whether exports are compressed.
    pub gzip: bool,
    /// TLS, for an endpoint of `https`.
    pub tls: Tls,
}

/// How exports are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A call of gRPC for each.
    Grpc,
    /// A POST of protobuf for each.
    Http,
}

/// TLS to a collector.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Authorities to trust in place of the system's, DER.
    pub authorities: Option<Vec<Vec<u8>>>,
    /// What the gateway shows of itself.
    pub identity: Option<Identity>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain, DER, its own certificate first.
    pub chain: Vec<Vec<u8>>,
    /// The private key.
    pub key: Arc<PrivateKeyDer<'static>>,
}

/// One kind of telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Logs.
    Logs,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    /// The word for paths, logs and labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

/// What became of the records of one signal so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Those that the collector took.
    pub sent: u64,
    /// Those that found the queue full.
    pub dropped_full: u64,
    /// Those that the collector refused.
    pub dropped_refused: u64,
    /// Those that were tried for too long.
    pub dropped_late: u64,
    /// Exports that failed, each attempt by itself.
    pub failed: u64,
    /// Those that wait or are being sent.
    pub queued: u64,
}

/// The counters behind [`Stats`].
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    full: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
    failed: AtomicU64,
    /// Those that are being sent at this moment.
    underway: AtomicU64,
}

/// Takes what is to be sent. Cheap to clone.
#[derive(Clone, Default)]
pub struct Exporter(Option<Arc<Shared>>);

struct Shared {
    /// By [`Signal`]; of metrics only the counters are used. Absent where a signal is switched off.
    queues: [Option<Arc<Queue>>; 3],
    /// Until when what waits is still sent, once that is to end.
    stop: watch::Sender<Option<Instant>>,
    /// Closes when nothing is being sent any more.
    done: Mutex<mpsc::Receiver<()>>,
}

impl Exporter {
    /// One that takes nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// Whether spans are sent.
    pub fn takes_traces(&self) -> bool {
        self.queue(Signal::Traces).is_some()
    }

    /// Whether metrics are sent.
    pub fn takes_metrics(&self) -> bool {
        self.queue(Signal::Metrics).is_some()
    }

    /// Whether logs are sent.
    pub fn takes_logs(&self) -> bool {
        self.queue(Signal::Logs).is_some()
    }

    /// Has spans sent. Never waits.
    pub fn spans(&self, spans: Vec<Span>) {
        if let Some(queue) = self.queue(Signal::Traces) {
            queue.push(spans.into_iter().map(|span| record(&span)));
        }
    }

    /// Has a log record sent. Never waits.
    pub fn log(&self, log: LogRecord) {
        if let Some(queue) = self.queue(Signal::Logs) {
            queue.push([log].map(|log| record(&log)));
        }
    }

    /// What became of the records of each signal that is sent.
    pub fn stats(&self) -> Vec<(Signal, Stats)> {
        Signal::ALL.into_iter().filter_map(|signal| Some((signal, self.queue(signal)?.stats()))).collect()
    }

    /// At stop: sends what waits, and the metrics a last time, for no longer than this. Nothing is sent afterwards.
    pub async fn flush(&self, within: Duration) {
        let Some(shared) = &self.0 else { return };
        let end = Instant::now() + within;
        shared.stop.send_replace(Some(end));
        let _ = tokio::time::timeout_at(end, shared.done.lock().await.recv()).await;
        for (signal, stats) in self.stats().into_iter().filter(|(_, stats)| stats.queued > 0) {
            tracing::warn!(signal = signal.word(), records = stats.queued, "telemetry is left behind");
        }
    }

    fn queue(&self, signal: Signal) -> Option<&Arc<Queue>> {
        self.0.as_ref()?.queues[signal as usize].as_ref()
    }
}

thread_local! {
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread sends telemetry. What happens on it is not itself sent: that would go on for ever.
pub fn is_own_thread() -> bool {
    IS_OURS.with(Cell::get)
}

/// Starts to send. `metrics` reads the metrics, on a thread where that may take its time.
pub fn start(settings: Settings, metrics: impl Fn() -> Vec<Metric> + Send + Sync + 'static) -> io::Result<Exporter> {
    let Settings { traces, metrics: readings, logs, resource, bounds, metrics_interval } = settings;
    let envelope = Arc::new(Envelope::new(resource));
    let (stop, stopping) = watch::channel(None);
    let (working, done) = mpsc::channel(1);
    let mut couriers = Vec::new();
    let mut queues = [None, None, None];
    for (signal, target) in Signal::ALL.into_iter().zip([traces, readings, logs]) {
        let Some(target) = target else { continue };
        let queue = Arc::new(Queue::new(bounds));
        queues[signal as usize] = Some(Arc::clone(&queue));
        let client = Client::new(signal, target).map_err(io::Error::other)?;
        couriers.push(Courier::new(signal, client, Arc::clone(&envelope), queue, stopping.clone()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = move || {
        IS_OURS.with(|is_ours| is_ours.set(true));
        let mut metrics = Some(metrics);
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for courier in couriers {
                match metrics.take_if(|_| courier.signal() == Signal::Metrics) {
                    Some(read) => tasks.spawn(Readings { read, interval: metrics_interval }.run(courier)),
                    None => tasks.spawn(Batches { bounds }.run(courier)),
                };
            }
            while tasks.join_next().await.is_some() {}
        });
        drop(working);
    };
    std::thread::Builder::new().name("otlp".into()).spawn(work)?;
    Ok(Exporter(Some(Arc::new(Shared { queues, stop, done: Mutex::new(done) }))))
}

impl Counts {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    fn stats(&self, waiting: u64) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sent: read(&self.sent),
            dropped_full: read(&self.full),
            dropped_refused: read(&self.refused),
            dropped_late: read(&self.late),
            failed: read(&self.failed),
            queued: waiting + read(&self.underway),
        }
    }
}
