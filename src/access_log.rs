//! Access log: lines written by a thread of their own, so that a slow disk or pipe costs no request anything.
//!
//! Requests append to a shared buffer; the thread takes it whole every few milliseconds. Waking it for each line would
//! cost more than writing the line.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a line may wait for others to be written with.
const GATHER: Duration = Duration::from_millis(20);

/// Where lines go. Dropped lines are counted.
pub struct AccessLog {
    shared: Option<Arc<Shared>>,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when the first line of a batch comes, and at the end.
    changed: Condvar,
    most_lines: usize,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: usize,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines; `None` when there are none and there will be none.
    fn take(&self) -> Option<Vec<u8>> {
        let mut waiting = self.lock();
        while waiting.lines == 0 && !waiting.ended {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended {
            let gathered = self.changed.wait_timeout_while(waiting, GATHER, |w| !w.ended);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        let taken = std::mem::take(&mut *waiting);
        waiting.ended = taken.ended;
        (taken.lines > 0).then_some(taken.bytes)
    }
}

impl AccessLog {
    /// No log.
    pub fn off() -> Self {
        Self { shared: None, dropped: Arc::default(), writer: None }
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

    fn start(mut out: impl Write + Send + 'static, queue: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new(), most_lines: queue });
        let source = Arc::clone(&shared);
        let write = move || {
            while let Some(lines) = source.take() {
                // When the reader of a pipe is gone or the disk is full, a later batch may still succeed.
                let _ = out.write_all(&lines).and_then(|()| out.flush());
            }
        };
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(write)?;
        Ok(Self { shared: Some(shared), dropped: Arc::default(), writer: Some(writer) })
    }

    /// Whether lines go anywhere.
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Queues one line, its end included; drops it when too many wait.
    pub fn write(&self, line: &[u8]) {
        let Some(shared) = &self.shared else { return };
        let mut waiting = shared.lock();
        if waiting.lines >= shared.most_lines {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        if waiting.lines == 1 {
            shared.changed.notify_one();
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
        if let Some(shared) = self.shared.take() {
            shared.lock().ended = true;
            shared.changed.notify_one();
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
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
        (0..500).for_each(|i| log.write(format!("{i}\n").as_bytes()));
        drop(log);
        let expected: String = (0..500).map(|i| format!("{i}\n")).collect();
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn lines_are_written_while_the_log_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::file(&path, 1000).unwrap();
        for wanted in ["a\n", "a\nb\n"] {
            log.write(&wanted.as_bytes()[wanted.len() - 2..]);
            while std::fs::read_to_string(&path).unwrap() != wanted {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let shared = Shared { waiting: Mutex::default(), changed: Condvar::new(), most_lines: 1 };
        let log = AccessLog { shared: Some(Arc::new(shared)), dropped: Arc::default(), writer: None };
        (0..3).for_each(|_| log.write(b"x"));
        assert_eq!(log.dropped().load(Ordering::Relaxed), 2);
    }
}
