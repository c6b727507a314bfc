//! Admission: may this request run now, and if not, whose turn is it?
//!
//! A pool has so many places. While one is free and nobody waits, a request takes it without a lock. Otherwise it waits
//! in a bounded line, fair between callers (`fair.rs`) and ordered by class (`line.rs`), until its turn comes, its
//! deadline passes or its client leaves. A [`Pass`] holds its place until it is dropped, however the request ends. How
//! many places there are is told by [`Gate::resize`]; which endpoint serves a request is decided elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

pub use crate::ids::Class;
use crate::ids::{CallerId, PoolName};

mod fair;
mod line;
pub mod pace;
mod places;
mod rate;
#[cfg(test)]
mod tests;
mod tree;
mod view;

use self::fair::Ticket;
use self::line::{Line, Waiter};
use self::pace::Pace;
use self::places::Places;
pub use self::view::{CallerView, ClassView, Counts, View};

/// Of so many requests that leave the line, each lower class that waits gets at least one.
pub const CLASS_SHARE: u32 = 10;

/// The shortest and the longest wait that a refusal asks for.
pub const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What one pool allows to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whose gate it is, for views.
    pub pool: PoolName,
    /// Most requests that wait; with 0 none does, and what finds no place is refused.
    pub queue: usize,
    /// Most requests of one caller that wait.
    pub per_caller: usize,
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Between whom the line is fair.
    pub caller: CallerId,
    /// The caller's share of work against that of others, 1 to 1000. The newest ask's counts for all of a caller's.
    pub weight: u32,
    /// Its class.
    pub class: Class,
    /// Estimated work, 1 or more, in units that are the same for all requests of the pool.
    pub cost: u64,
    /// Until when it is worth waiting.
    pub deadline: Instant,
}

/// Why a request may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The line is full, or another caller with a better right to this place in it came.
    QueueFull {
        /// When to try again.
        retry_after: Duration,
    },
    /// As many requests of this caller wait as may.
    CallerFull {
        /// When to try again.
        retry_after: Duration,
    },
    /// Its turn would come after its deadline.
    TooLate {
        /// How long it would have waited, by what is known.
        wait: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// Its deadline passed before its turn came.
    Expired {
        /// When to try again.
        retry_after: Duration,
    },
}

impl Refused {
    /// When to try again, within [`RETRY_AFTER`].
    pub fn retry_after(&self) -> Duration {
        match *self {
            Self::QueueFull { retry_after }
            | Self::CallerFull { retry_after }
            | Self::TooLate { retry_after, .. }
            | Self::Expired { retry_after } => retry_after,
        }
    }
}

/// The places of one pool and the line in front of them. Lives on across reloads that keep the pool.
pub struct Gate {
    pool: PoolName,
    places: Places,
    /// Requests that entered without waiting.
    direct: AtomicU64,
    line: Mutex<Line>,
    /// What somebody else lets pass.
    pace: ArcSwapOption<Pace>,
    /// Somebody sees to those who wait once the pace lets the next one pass.
    is_watched: AtomicBool,
}

/// A place in the pool; it is given back by dropping this.
pub struct Pass {
    gate: Arc<Gate>,
    cost: u64,
    since: Instant,
    waited: Duration,
}

type Outcome = Result<Pass, Refused>;

/// A waiter that is told what became of it once the lock is free.
type Told = (oneshot::Sender<Outcome>, Outcome);

/// A request in the line. Dropping it takes the request out of the line; a pass that was sent meanwhile is dropped with
/// the channel, and goes to the next.
struct Waiting<'a> {
    gate: &'a Arc<Gate>,
    /// None once there is an outcome.
    ticket: Option<Ticket>,
    deadline: Instant,
    receiver: oneshot::Receiver<Outcome>,
}

enum Joined<'a> {
    Entered(Pass),
    Waits(Waiting<'a>),
}

impl Gate {
    /// A gate without places: until [`Gate::resize`] is called, all who ask wait.
    pub fn new(settings: Settings) -> Self {
        let Settings { pool, queue, per_caller } = settings;
        Self {
            pool,
            places: Places::default(),
            direct: AtomicU64::new(0),
            line: Mutex::new(Line::new(queue, per_caller)),
            pace: ArcSwapOption::empty(),
            is_watched: AtomicBool::new(false),
        }
    }

    /// Lets no more pass than this pace.
    pub fn set_pace(&self, pace: Option<Arc<Pace>>) {
        self.pace.store(pace);
    }

    /// The pace by which it lets pass.
    pub fn pace(&self) -> Option<Arc<Pace>> {
        self.pace.load_full()
    }

    /// Changes how many may wait. Those who wait already stay.
    pub fn configure(&self, queue: usize, per_caller: usize) {
        self.line().set_bounds(queue, per_caller);
    }

    /// Changes how many places there are. New ones go to those who wait; if there are fewer now, what runs goes on, and
    /// nobody enters before enough of it has ended.
    pub fn resize(self: &Arc<Self>, capacity: usize) {
        let told = {
            let mut line = self.line();
            self.places.resize(capacity);
            self.dispatch(&mut line, Instant::now())
        };
        tell(told);
    }

    /// Takes a place if one is free and nobody waits for it.
    pub fn try_enter(self: &Arc<Self>, cost: u64) -> Option<Pass> {
        self.take(cost, Instant::now())
    }

    /// Takes a place, after waiting for it if need be. Dropping the future leaves the line.
    pub async fn enter(self: &Arc<Self>, ask: Ask) -> Result<Pass, Refused> {
        let now = Instant::now();
        if now < ask.deadline
            && let Some(pass) = self.take(ask.cost, now)
        {
            return Ok(pass);
        }
        match self.join(&ask, now)? {
            Joined::Entered(pass) => Ok(pass),
            Joined::Waits(waiting) => waiting.outcome().await,
        }
    }

    /// What it looks like now.
    pub fn view(&self) -> View {
        let now = Instant::now();
        let line = self.line();
        let (capacity, in_flight) = (self.places.capacity(), self.places.in_flight());
        let direct = self.direct.load(Ordering::Relaxed);
        View {
            pool: self.pool.clone(),
            capacity,
            in_flight,
            waiting: line.waiting(),
            callers: line.callers(now),
            drain_rate: line.drain(capacity, now),
            classes: line.classes(),
            counts: Counts { entered: direct + line.counts.waited, ..line.counts },
        }
    }

    fn take(self: &Arc<Self>, cost: u64, now: Instant) -> Option<Pass> {
        if !self.places.take() {
            return None;
        }
        if self.pace.load().as_ref().is_some_and(|pace| pace.take(now).is_err()) {
            self.put_back(now);
            return None;
        }
        self.direct.fetch_add(1, Ordering::Relaxed);
        Some(self.pass(cost, now, Duration::ZERO))
    }

    fn pass(self: &Arc<Self>, cost: u64, since: Instant, waited: Duration) -> Pass {
        Pass { gate: Arc::clone(self), cost, since, waited }
    }

    fn join(self: &Arc<Self>, ask: &Ask, now: Instant) -> Result<Joined<'_>, Refused> {
        let mut line = self.line();
        if ask.deadline <= now {
            return Err(line.expired(ask.class, &ask.caller, self.places.capacity(), now));
        }
        if line.is_empty() && self.places.take_or_contend() {
            if self.may_pass(now) {
                self.direct.fetch_add(1, Ordering::Relaxed);
                return Ok(Joined::Entered(self.pass(ask.cost, now, Duration::ZERO)));
            }
            self.places.unclaim();
            self.places.contend();
        }
        let (sender, receiver) = oneshot::channel();
        let (ticket, evicted) = line.join(ask, sender, self.places.capacity(), now)?;
        drop(line);
        tell(evicted.map(|(sender, refused)| (sender, Err(refused))));
        Ok(Joined::Waits(Waiting { gate: self, ticket: Some(ticket), deadline: ask.deadline, receiver }))
    }

    /// Gives free places to those whose turn it is.
    fn dispatch(self: &Arc<Self>, line: &mut Line, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        while !line.is_empty() && self.places.claim() {
            if !self.may_pass(now) {
                self.places.unclaim();
                break;
            }
            let (next, expired) = line.next(self.places.capacity(), now);
            told.extend(expired.into_iter().map(|(sender, refused)| (sender, Err(refused))));
            match next {
                Some((cost, Waiter { since, sender, .. })) => {
                    told.push((sender, Ok(self.pass(cost, now, now - since))));
                }
                None => {
                    self.places.unclaim();
                    self.pace.load().iter().for_each(|pace| pace.give_back(now));
                }
            }
        }
        self.calm(line);
        told
    }

    /// Whether the pace lets one pass. If not, those who wait are seen to when it does.
    fn may_pass(self: &Arc<Self>, now: Instant) -> bool {
        let pace = self.pace.load();
        let Some(Err(open)) = pace.as_ref().map(|pace| pace.take(now)) else { return true };
        if !self.is_watched.swap(true, Ordering::AcqRel) {
            let gate = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep_until(open).await;
                let Some(gate) = gate.upgrade() else { return };
                gate.is_watched.store(false, Ordering::Release);
                let told = gate.dispatch(&mut gate.line(), Instant::now());
                tell(told);
            });
        }
        false
    }

    /// Lets requests in without the lock again once nobody waits.
    fn calm(&self, line: &mut Line) {
        if line.is_empty() {
            line.pause();
            self.places.calm();
        }
    }

    /// Gives back a place that nothing ran on.
    fn put_back(self: &Arc<Self>, now: Instant) {
        if self.places.give_back() {
            return;
        }
        let told = {
            let mut line = self.line();
            self.places.unclaim();
            self.dispatch(&mut line, now)
        };
        tell(told);
    }

    fn release(self: &Arc<Self>, cost: u64, since: Instant) {
        if self.places.give_back() {
            return;
        }
        let now = Instant::now();
        let told = {
            let mut line = self.line();
            line.learn(cost, now - since, now);
            self.places.unclaim();
            self.dispatch(&mut line, now)
        };
        tell(told);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// How long the request waited for its place.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("cost", &self.cost).field("waited", &self.waited).finish_non_exhaustive()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.release(self.cost, self.since);
    }
}

impl Waiting<'_> {
    async fn outcome(mut self) -> Outcome {
        let outcome = match timeout_at(self.deadline, &mut self.receiver).await {
            Ok(outcome) => outcome,
            Err(_) => match self.withdraw(|counts| &mut counts.expired) {
                Some(retry_after) => return Err(Refused::Expired { retry_after }),
                // It left the line in this very moment.
                None => (&mut self.receiver).await,
            },
        };
        self.ticket = None;
        outcome.unwrap_or(Err(Refused::Expired { retry_after: RETRY_AFTER.0 }))
    }

    /// Takes the request out of the line, unless its outcome is under way; says when to try again.
    fn withdraw(&mut self, count: fn(&mut Counts) -> &mut u64) -> Option<Duration> {
        let ticket = self.ticket.take()?;
        let mut line = self.gate.line();
        if !line.leave(ticket) {
            return None;
        }
        *count(&mut line.counts) += 1;
        let retry_after = line.retry_after(ticket.class, self.gate.places.capacity(), Instant::now());
        self.gate.calm(&mut line);
        Some(retry_after)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.withdraw(|counts| &mut counts.cancelled);
    }
}

/// Without the lock: waking costs time, and a pass that nobody takes any more comes back here.
fn tell(told: impl IntoIterator<Item = Told>) {
    for (sender, outcome) in told {
        drop(sender.send(outcome));
    }
}
