//! Queue: encoded records that wait to be sent, bounded in number and in bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Bounds, Counts, Stats};

/// The largest export in bytes, unless one record alone is larger: collectors take 4 MiB by gRPC.
pub(super) const LARGEST: usize = 2 * 1024 * 1024;

/// Records of one signal, and what became of those before.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when the first record comes, and when a batch is full.
    changed: Notify,
    bounds: Bounds,
    pub(super) counts: Counts,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { waiting: Mutex::default(), changed: Notify::new(), bounds, counts: Counts::default() }
    }

    /// Adds records; those that find no room are dropped and counted.
    pub(super) fn push(&self, records: impl IntoIterator<Item = Vec<u8>>) {
        // Encoded before the lock is taken.
        let records: Vec<Vec<u8>> = records.into_iter().collect();
        let mut dropped = 0;
        let mut waiting = self.lock();
        let before = waiting.records.len();
        for record in records {
            let is_full = waiting.records.len() >= self.bounds.records;
            if is_full || waiting.bytes + record.len() > self.bounds.bytes {
                dropped += 1;
                continue;
            }
            waiting.bytes += record.len();
            waiting.records.push_back(record);
        }
        let after = waiting.records.len();
        drop(waiting);
        Counts::add(&self.counts.full, dropped);
        let reached = |count: usize| before < count && after >= count;
        if reached(1) || reached(self.bounds.batch) {
            self.changed.notify_one();
        }
    }

    /// Waits until so many records are there, or sending is to end.
    pub(super) async fn filled(&self, count: usize, stopping: &mut watch::Receiver<Option<Instant>>) {
        while self.lock().records.len() < count && stopping.borrow_and_update().is_none() {
            tokio::select! {
                () = self.changed.notified() => {}
                changed = stopping.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes the oldest records: at most so many, and no more than an export holds.
    pub(super) fn take(&self, most: usize) -> Vec<Vec<u8>> {
        let mut waiting = self.lock();
        let mut bytes = 0;
        let fits = |record: &&Vec<u8>| {
            bytes += record.len();
            bytes <= LARGEST || bytes == record.len()
        };
        let count = waiting.records.iter().take(most).take_while(fits).count();
        let taken: Vec<Vec<u8>> = waiting.records.drain(..count).collect();
        waiting.bytes -= taken.iter().map(Vec::len).sum::<usize>();
        taken
    }

    pub(super) fn stats(&self) -> Stats {
        let waiting = self.lock().records.len() as u64;
        self.counts.stats(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
