//! Access log: lines written by a thread of their own, so that a slow disk or pipe costs no request anything.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Where lines go. Dropped lines are counted.
pub struct AccessLog {
    lines: Option<SyncSender<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// No log.
    pub fn off() -> Self {
        Self { lines: None, dropped: Arc::default(), writer: None }
    }

    /// Lines to standard output, at most `queue` of them waiting.
    pub fn stdout(queue: usize) -> std::io::Result<Self> {
        Self::start(std::io::stdout(), queue)
    }

    /// Lines appended to a file, at most `queue` of them waiting.
    pub fn file(path: &Path, queue: usize) -> std::io::Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Self::start(file, queue)
    }

    fn start(out: impl Write + Send + 'static, queue: usize) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(queue);
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || copy(&waiting, out))?;
        Ok(Self { lines: Some(lines), dropped: Arc::default(), writer: Some(writer) })
    }

    /// Whether lines go anywhere.
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Queues one line, its end included; drops it when the queue is full.
    pub fn write(&self, line: Vec<u8>) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the lines that were dropped.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for AccessLog {
    /// Waits until what was queued is written.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Writes what waits, and flushes whenever nothing does.
fn copy(waiting: &Receiver<Vec<u8>>, out: impl Write) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    while let Ok(line) = waiting.recv() {
        let mut failed = out.write_all(&line).is_err();
        while let Ok(line) = waiting.try_recv() {
            failed |= out.write_all(&line).is_err();
        }
        failed |= out.flush().is_err();
        if failed {
            // The reader of a pipe is gone, or the disk is full: go on, a later line may succeed.
            continue;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_in_order_and_all_before_the_log_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::file(&path, 1000).unwrap();
        (0..500).for_each(|i| log.write(format!("{i}\n").into_bytes()));
        drop(log);
        let expected: String = (0..500).map(|i| format!("{i}\n")).collect();
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (lines, _waiting) = sync_channel(1);
        let log = AccessLog { lines: Some(lines), dropped: Arc::default(), writer: None };
        (0..3).for_each(|_| log.write(vec![b'x']));
        assert_eq!(log.dropped().load(Ordering::Relaxed), 2);
    }
}
