//! Clock: has the backend been silent for too long?
//!
//! One timer per request, armed late and moved only when it fires, so that a chunk costs no timer.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

use super::settings::Timeouts;
use crate::failure::Failure;

/// The deadlines of one request.
pub struct Clock {
    timeouts: Timeouts,
    started: Instant,
    attempt: Instant,
    end: Option<Instant>,
    /// When the answer last moved; absent before its first byte.
    moved: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Starts now. Whatever the timeouts allow, `end` ends it.
    pub fn start(timeouts: Timeouts, end: Option<Instant>) -> Self {
        let now = Instant::now();
        Self { timeouts, started: now, attempt: now, end, moved: None, timer: None }
    }

    /// Goes on with the timeouts of another pool.
    pub(super) fn retime(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self) {
        self.attempt = Instant::now();
        self.moved = None;
    }

    /// The client's body is still arriving: the backend owes nothing yet.
    pub(super) fn uploading(&mut self) {
        self.attempt = Instant::now();
    }

    /// Something of the answer arrived.
    pub(super) fn progress(&mut self) {
        self.moved = Some(Instant::now());
    }

    /// Waits until a deadline has passed, and names it. Dropped and called again at every turn of the proxy loop.
    pub(super) async fn late(&mut self) -> Failure {
        loop {
            let (deadline, failure) = self.deadline();
            if deadline <= Instant::now() {
                return failure;
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            timer.as_mut().await;
            let (deadline, _) = self.deadline();
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(deadline);
            }
        }
    }

    /// Waits until the whole request has taken too long, whoever is silent.
    pub(super) async fn overdue(&self) -> Failure {
        tokio::time::sleep_until(self.total()).await;
        Failure::TotalTimeout
    }

    fn total(&self) -> Instant {
        let total = self.started + self.timeouts.total;
        self.end.map_or(total, |end| end.min(total))
    }

    fn deadline(&self) -> (Instant, Failure) {
        let silent = match self.moved {
            None => (self.attempt + self.timeouts.first_byte, Failure::FirstByteTimeout),
            Some(moved) => (moved + self.timeouts.between_chunks, Failure::UpstreamStalled),
        };
        let total = self.total();
        if total < silent.0 { (total, Failure::TotalTimeout) } else { silent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn clock(first_byte: u64, between_chunks: u64, total: u64) -> Clock {
        let s = Duration::from_secs;
        let timeouts = Timeouts {
            connect: s(1),
            first_byte: s(first_byte),
            first_event: s(1),
            between_chunks: s(between_chunks),
            total: s(total),
        };
        Clock::start(timeouts, None)
    }

    #[tokio::test(start_paused = true)]
    async fn names_the_deadline_that_passed() {
        assert_eq!(clock(5, 1, 9).late().await.label(), "first_byte_timeout");
        assert_eq!(clock(5, 1, 3).late().await.label(), "total_timeout");
        let mut stalled = clock(5, 1, 9);
        stalled.progress();
        assert_eq!(stalled.late().await.label(), "upstream_stalled");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_moves_the_deadline_even_when_the_timer_is_armed() {
        let mut clock = clock(5, 2, 60);
        let begun = Instant::now();
        clock.progress();
        for _ in 0..5 {
            let chunk = tokio::time::timeout(Duration::from_millis(1500), clock.late()).await;
            assert!(chunk.is_err(), "late although the answer moved");
            clock.progress();
        }
        assert_eq!(clock.late().await.label(), "upstream_stalled");
        assert_eq!(begun.elapsed().as_millis() / 100, 95);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_attempt_has_its_own_first_byte_time() {
        let mut clock = clock(5, 1, 60);
        tokio::time::advance(Duration::from_secs(4)).await;
        clock.attempt();
        let begun = Instant::now();
        clock.late().await;
        assert_eq!(begun.elapsed().as_secs(), 5);
    }
}
