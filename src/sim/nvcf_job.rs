//! One invocation from its queue to its only delivery: progress, holding, the leash on polling.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::lock;

/// Beyond the hold, so much longer the service waits for a worker before it answers 504.
const GRACE: Duration = Duration::from_secs(2);
/// The longest allowed gap between two polls is never shorter than this.
const SHORTEST_LEASH: Duration = Duration::from_secs(10);
/// Older unread progress is kept up to so many writes.
const UNREAD: usize = 256;

/// An invocation that has not been delivered; dropping it cancels its work.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) version: String,
    pub(super) progress: Progress,
    pub(super) leash: Leash,
    /// Whether a 202 told the client that it can poll.
    pub(super) pollable: bool,
    pub(super) task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What worker and waiting client share.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    unread: VecDeque<(u8, Value)>,
    outcome: Option<Response>,
}

/// What a client gets at the end of a hold.
#[derive(Debug)]
pub(super) enum Held {
    Done(Response),
    /// Started but not done, with what the progress file says if it changed.
    Running(Option<(u8, Value)>),
    /// No worker took it, or nobody may poll for it.
    TimedOut,
}

impl Progress {
    pub(super) fn start(&self) {
        self.change(|state| state.started = true);
    }

    pub(super) fn write(&self, percent: u8, partial: Value) {
        self.change(|state| {
            if state.unread.len() < UNREAD {
                state.unread.push_back((percent, partial));
            }
        });
    }

    pub(super) fn finish(&self, outcome: Response) {
        self.change(|state| state.outcome = Some(outcome));
    }

    pub(super) fn started(&self) -> bool {
        lock(&self.0.state).started
    }

    /// Holds for the poll duration; with `may_poll` the hold ends early when there is progress to tell.
    pub(super) async fn hold(&self, poll: Duration, may_poll: bool) -> Held {
        let asked = Instant::now() + poll;
        loop {
            let changed = self.0.changed.notified();
            let now = Instant::now();
            if let Some(held) = self.look(may_poll, now >= asked) {
                return held;
            }
            if now >= asked + GRACE {
                return Held::TimedOut;
            }
            let until = if now < asked { asked } else { asked + GRACE };
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {}
            }
        }
    }

    fn look(&self, may_poll: bool, late: bool) -> Option<Held> {
        let mut state = lock(&self.0.state);
        if !may_poll {
            return state.outcome.take().map(Held::Done);
        }
        if let Some(progress) = state.unread.pop_front() {
            return Some(Held::Running(Some(progress)));
        }
        let done = state.outcome.take().map(Held::Done);
        done.or_else(|| (late && state.started).then_some(Held::Running(None)))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.0.state));
        self.0.changed.notify_waiters();
    }
}

/// The rule that a job whose client stops polling is cancelled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leash {
    polled: Instant,
    poll: Duration,
}

impl Leash {
    pub(super) fn new(polled: Instant, poll: Duration) -> Self {
        Self { polled, poll }
    }

    /// When the job is cancelled unless polled before.
    pub(super) fn end(&self) -> Instant {
        self.polled + (self.poll * 2).max(SHORTEST_LEASH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leash_is_twice_the_hold_but_ten_seconds_at_least() {
        let now = Instant::now();
        assert_eq!(Leash::new(now, Duration::from_secs(1)).end() - now, Duration::from_secs(10));
        assert_eq!(Leash::new(now, Duration::from_secs(60)).end() - now, Duration::from_secs(120));
    }

    #[tokio::test]
    async fn progress_is_told_in_order_and_before_the_outcome() {
        let progress = Progress::default();
        progress.start();
        progress.write(25, Value::Null);
        progress.write(50, Value::Null);
        progress.finish(Response::default());
        for expected in [25, 50] {
            let held = progress.hold(Duration::from_secs(1), true).await;
            assert!(matches!(held, Held::Running(Some((percent, _))) if percent == expected));
        }
        assert!(matches!(progress.hold(Duration::from_secs(1), true).await, Held::Done(_)));
    }

    #[tokio::test]
    async fn a_started_job_is_running_when_the_hold_ends() {
        let progress = Progress::default();
        progress.start();
        assert!(matches!(progress.hold(Duration::from_millis(5), true).await, Held::Running(None)));
    }
}
