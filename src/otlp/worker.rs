//! Worker: takes what waits and has it delivered, again and again where the collector asks for that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry_proto::tonic::metrics::v1::Metric;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::Outcome;
use super::client::Client;
use super::envelope::{Envelope, record};
use super::queue::{LARGEST, Queue};
use super::{Bounds, Counts, Signal};

/// The pause after the first failed attempt; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two attempts, unless the collector asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause that a collector may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// For how long one batch is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two complaints of the same kind.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Delivers the records of one signal.
pub(super) struct Courier {
    signal: Signal,
    client: Client,
    envelope: Arc<Envelope>,
    queue: Arc<Queue>,
    stopping: watch::Receiver<Option<Instant>>,
    /// Whether the last export succeeded; only changes are told.
    is_well: bool,
    /// When it was last told that the collector refused some of what it took.
    complained: Option<Instant>,
}

impl Courier {
    pub(super) fn new(
        signal: Signal,
        client: Client,
        envelope: Arc<Envelope>,
        queue: Arc<Queue>,
        stopping: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self { signal, client, envelope, queue, stopping, is_well: true, complained: None }
    }

    pub(super) fn signal(&self) -> Signal {
        self.signal
    }

    /// Whether sending is to end, or nobody is left who sends.
    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().is_err() || self.stopping.borrow().is_some()
    }

    /// Whether nothing more is to be tried.
    fn is_over(&self) -> bool {
        self.stopping.has_changed().is_err() || self.stopping.borrow().is_some_and(|end| Instant::now() >= end)
    }

    /// Waits, but no longer than sending may go on.
    async fn pause(&mut self, time: Duration) {
        let end = *self.stopping.borrow_and_update();
        let until = Instant::now() + time;
        let until = end.map_or(until, |end| end.min(until));
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            _ = self.stopping.changed() => {}
        }
    }

    /// Sends records until the collector takes or refuses them, or too long.
    async fn deliver(&mut self, records: &[Vec<u8>], patience: Duration) {
        let count = records.len() as u64;
        let queue = Arc::clone(&self.queue);
        queue.counts.underway.store(count, Ordering::Relaxed);
        let body = self.client.pack(self.envelope.seal(records));
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.client.export(body.clone()).await {
                Outcome::Taken { refused, message } => {
                    let refused = refused.min(count);
                    Counts::add(&queue.counts.sent, count - refused);
                    Counts::add(&queue.counts.refused, refused);
                    self.well(refused, &message);
                    break;
                }
                Outcome::Refused(reason) => {
                    Counts::add(&queue.counts.refused, count);
                    self.unwell(&reason);
                    break;
                }
                Outcome::Failed { reason, after } => {
                    self.unwell(&reason);
                    if begun.elapsed() >= patience || self.is_over() {
                        Counts::add(&queue.counts.late, count);
                        break;
                    }
                    let asked = after.map(|after| after.min(LONGEST_ASKED));
                    self.pause(asked.unwrap_or_else(|| pause.mul_f64(0.5 + fastrand::f64() / 2.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        queue.counts.underway.store(0, Ordering::Relaxed);
    }

    fn well(&mut self, refused: u64, message: &str) {
        let signal = self.signal.word();
        if !self.is_well {
            tracing::info!(signal, "telemetry is delivered again");
        }
        self.is_well = true;
        let is_due = self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY);
        if (refused > 0 || !message.is_empty()) && is_due {
            self.complained = Some(Instant::now());
            tracing::warn!(signal, refused, message, "the collector took telemetry, but not without a complaint");
        }
    }

    fn unwell(&mut self, reason: &str) {
        Counts::add(&self.queue.counts.failed, 1);
        if self.is_well {
            let signal = self.signal.word();
            tracing::warn!(signal, reason, "telemetry can not be delivered; what finds no room meanwhile is dropped");
        }
        self.is_well = false;
    }
}

/// Sends what waits in a queue.
pub(super) struct Batches {
    pub(super) bounds: Bounds,
}

impl Batches {
    pub(super) async fn run(self, mut courier: Courier) {
        let Bounds { batch, delay, .. } = self.bounds;
        let queue = Arc::clone(&courier.queue);
        loop {
            queue.filled(1, &mut courier.stopping).await;
            if !courier.is_stopping() {
                let _ = tokio::time::timeout(delay, queue.filled(batch, &mut courier.stopping)).await;
            }
            let records = queue.take(batch);
            if records.is_empty() && courier.is_stopping() {
                return;
            }
            if !records.is_empty() {
                courier.deliver(&records, PATIENCE).await;
            }
        }
    }
}

/// Reads metrics and sends them.
pub(super) struct Readings<F> {
    pub(super) read: F,
    pub(super) interval: Duration,
}

impl<F: Fn() -> Vec<Metric>> Readings<F> {
    pub(super) async fn run(self, mut courier: Courier) {
        loop {
            if !courier.is_stopping() {
                courier.pause(self.interval).await;
            }
            let is_last = courier.is_stopping();
            let metrics: Vec<Vec<u8>> = (self.read)().iter().map(record).collect();
            for part in parts(&metrics) {
                courier.deliver(part, self.interval.min(PATIENCE)).await;
            }
            if is_last {
                return;
            }
        }
    }
}

/// Cuts records into exports of no more than [`LARGEST`] bytes.
fn parts(mut records: &[Vec<u8>]) -> Vec<&[Vec<u8>]> {
    let mut parts = Vec::new();
    while !records.is_empty() {
        let mut bytes = 0;
        let fits = |record: &&Vec<u8>| {
            bytes += record.len();
            bytes <= LARGEST || bytes == record.len()
        };
        let (part, rest) = records.split_at(records.iter().take_while(fits).count());
        parts.push(part);
        records = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_cut_into_exports_that_collectors_take() {
        let sizes = [LARGEST / 2, LARGEST / 2, 1, LARGEST + 1, 1, 1];
        let records: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        let lengths: Vec<usize> = parts(&records).iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [2, 1, 1, 2]);
    }
}
