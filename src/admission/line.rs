//! Line: those who wait, in their classes; who may join, who has to make room, whose turn it is, how long it takes.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fair::{Fair, Ticket};
use super::rate::Rate;
use super::view::{CALLERS_SHOWN, CallerView, ClassView, Counts};
use super::{Ask, CLASS_SHARE, Class, Outcome, RETRY_AFTER, Refused};
use crate::ids::CallerId;

/// Work beyond this counts as this; sums of it stay far from what a number holds.
const MOST_COST: u64 = 1 << 40;
/// The longest wait that is told apart.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Those who wait.
pub(super) struct Line {
    queue: usize,
    per_caller: usize,
    classes: [Fair<Waiter>; 3],
    /// How many went since one of this class did, while some of it waited.
    skipped: [u32; 3],
    rate: Rate,
    /// What happened so far, apart from those who entered without waiting.
    pub(super) counts: Counts,
}

/// One who waits.
pub(super) struct Waiter {
    /// Since when.
    pub(super) since: Instant,
    /// Until when.
    pub(super) deadline: Instant,
    /// Whom to tell.
    pub(super) sender: oneshot::Sender<Outcome>,
}

/// Who is refused after waiting.
pub(super) type Sent = (oneshot::Sender<Outcome>, Refused);

impl Line {
    /// Nobody waits yet.
    pub(super) fn new(queue: usize, per_caller: usize) -> Self {
        let classes = Class::ALL.map(Fair::new);
        Self { queue, per_caller, classes, skipped: [0; 3], rate: Rate::default(), counts: Counts::default() }
    }

    /// Changes how many may wait.
    pub(super) fn set_bounds(&mut self, queue: usize, per_caller: usize) {
        (self.queue, self.per_caller) = (queue, per_caller);
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.classes.iter().map(Fair::waiting).sum()
    }

    /// Puts a request in the line, or says why not. Another may have to leave for it.
    pub(super) fn join(
        &mut self,
        ask: &Ask,
        sender: oneshot::Sender<Outcome>,
        capacity: usize,
        now: Instant,
    ) -> Result<(Ticket, Option<Sent>), Refused> {
        let (class, weight) = (ask.class as usize, ask.weight.clamp(1, 1000));
        let wait = self.estimate(ask.class, &ask.caller, capacity, now);
        self.check(ask, wait, now)?;
        let mut evicted = None;
        if self.waiting() >= self.queue {
            // One for one; a line that became shorter than what waits shrinks first.
            evicted = if self.waiting() == self.queue { self.make_room(ask, capacity, now) } else { None };
            if evicted.is_none() {
                self.counts.queue_full += 1;
                return Err(Refused::QueueFull { retry_after: bounded(wait) });
            }
        }
        if self.is_empty() {
            self.rate.begin(now);
        }
        if self.classes[class].waiting() == 0 {
            self.skipped[class] = 0;
        }
        let waiter = Waiter { since: now, deadline: ask.deadline, sender };
        let ticket = self.classes[class].push(&ask.caller, weight, ask.cost.clamp(1, MOST_COST), waiter);
        Ok((ticket, evicted))
    }

    /// Takes a request out before its turn; false if it is not in the line any more.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        self.classes[ticket.class as usize].remove(ticket).is_some()
    }

    /// Takes out the request whose turn it is, with its cost, and those before it whose deadline passed.
    pub(super) fn next(&mut self, capacity: usize, now: Instant) -> (Option<(u64, Waiter)>, Vec<Sent>) {
        let mut expired = Vec::new();
        while let Some(class) = self.turn() {
            let fair = &mut self.classes[class as usize];
            if let Some((ticket, waiter)) = fair.first()
                && waiter.deadline <= now
                && let Some(waiter) = fair.remove(ticket)
            {
                self.counts.expired += 1;
                expired.push((waiter.sender, Refused::Expired { retry_after: self.retry_after(class, capacity, now) }));
                continue;
            }
            let next = fair.pop();
            self.counts.waited += 1;
            self.went(class);
            return (next, expired);
        }
        (None, expired)
    }

    /// The refusal of one whose deadline passed before it joined.
    pub(super) fn expired(&mut self, class: Class, caller: &CallerId, capacity: usize, now: Instant) -> Refused {
        self.counts.expired += 1;
        Refused::Expired { retry_after: bounded(self.estimate(class, caller, capacity, now)) }
    }

    /// How long all that waits in this class and above takes, within what a refusal may ask for.
    pub(super) fn retry_after(&self, class: Class, capacity: usize, now: Instant) -> Duration {
        let work: u64 = self.classes[..=class as usize].iter().map(Fair::work).fold(0, u64::saturating_add);
        bounded(self.drain(capacity, now).map(|rate| seconds((work as f64 + self.rate.usual_work()) / rate)))
    }

    /// How long the next request of this caller would wait, if the speed of the pool is known. Who comes later and goes
    /// first is not in it, so it errs on the short side and refuses nobody who would have been served.
    pub(super) fn estimate(&self, class: Class, caller: &CallerId, capacity: usize, now: Instant) -> Option<Duration> {
        let rate = self.drain(capacity, now)?;
        let at = class as usize;
        // A place has to come free in any case.
        let own = self.classes[at].ahead(caller) + self.rate.usual_work();
        let others = f64::from(CLASS_SHARE - 1);
        let higher: f64 = self.classes[..at].iter().map(|fair| fair.work() as f64).sum();
        let ahead = own + higher.min(own * others);
        let lower: f64 = self.classes[at + 1..].iter().map(|fair| (fair.work() as f64).min(ahead / others)).sum();
        Some(seconds((ahead + lower) / rate))
    }

    /// Units of work per second, if known.
    pub(super) fn drain(&self, capacity: usize, now: Instant) -> Option<f64> {
        self.rate.drain(capacity, now)
    }

    /// A request ended while others wait or were refused.
    pub(super) fn learn(&mut self, cost: u64, held: Duration, now: Instant) {
        self.rate.learn(cost.max(1), held, now);
    }

    /// Nobody waits any more.
    pub(super) fn pause(&mut self) {
        self.rate.pause();
    }

    /// What waits by class.
    pub(super) fn classes(&self) -> [ClassView; 3] {
        Class::ALL.map(|class| {
            let fair = &self.classes[class as usize];
            ClassView { class, waiting: fair.waiting(), work: fair.work() }
        })
    }

    /// Those with most waiting.
    pub(super) fn callers(&self, now: Instant) -> Vec<CallerView> {
        let of_class = |class: Class| self.classes[class as usize].callers().map(move |found| (class, found));
        let mut all: Vec<_> = Class::ALL.into_iter().flat_map(of_class).collect();
        let most = |(_, (id, waiting, _)): &(Class, (&CallerId, usize, &Waiter))| (Reverse(*waiting), (*id).clone());
        if all.len() > CALLERS_SHOWN {
            all.select_nth_unstable_by_key(CALLERS_SHOWN, |(_, (_, waiting, _))| Reverse(*waiting));
            all.truncate(CALLERS_SHOWN);
        }
        all.sort_by_key(most);
        let shown = all.into_iter().map(|(class, (id, waiting, first))| CallerView {
            caller: id.clone(),
            class,
            waiting,
            oldest: now - first.since,
        });
        shown.collect()
    }

    /// Refuses who holds too much of the line or would wait too long in it.
    fn check(&mut self, ask: &Ask, wait: Option<Duration>, now: Instant) -> Result<(), Refused> {
        if self.queue > 0 && self.classes[ask.class as usize].held(&ask.caller) >= self.per_caller {
            self.counts.caller_full += 1;
            return Err(Refused::CallerFull { retry_after: bounded(wait) });
        }
        // Whoever comes first waits in any case: were all refused, nobody would see that the pool is faster by now.
        let left = ask.deadline - now;
        if let Some(wait) = wait
            && wait > left
            && !self.is_empty()
        {
            self.counts.too_late += 1;
            return Err(Refused::TooLate { wait, retry_after: bounded(Some(wait - left)) });
        }
        Ok(())
    }

    /// Takes out the one that has to leave for this request, if any.
    fn make_room(&mut self, ask: &Ask, capacity: usize, now: Instant) -> Option<Sent> {
        let lower = Class::ALL.into_iter().rev().take_while(|class| *class > ask.class);
        let occupied = lower.into_iter().find(|class| self.classes[*class as usize].waiting() > 0);
        let own = &self.classes[ask.class as usize];
        let class = match occupied {
            Some(class) => class,
            None if own.may_push_out(&ask.caller, ask.weight.clamp(1, 1000)) => ask.class,
            None => return None,
        };
        let (caller, waiter) = self.classes[class as usize].push_out()?;
        self.counts.evicted += 1;
        let retry_after = bounded(self.estimate(class, &caller, capacity, now));
        Some((waiter.sender, Refused::QueueFull { retry_after }))
    }

    /// Whose turn it is: the highest class, unless a lower one would get less than its share.
    fn turn(&self) -> Option<Class> {
        let is_waiting = |class: &Class| self.classes[*class as usize].waiting() > 0;
        let mut waiting = Class::ALL.into_iter().filter(is_waiting);
        let highest = waiting.next()?;
        // Two lower classes may come due at once, and one has to go first.
        let due = CLASS_SHARE - waiting.clone().count() as u32;
        let longest = waiting.max_by_key(|class| self.skipped[*class as usize]);
        Some(longest.filter(|class| self.skipped[*class as usize] >= due).unwrap_or(highest))
    }

    fn went(&mut self, class: Class) {
        for (skipped, fair) in self.skipped.iter_mut().zip(&self.classes) {
            *skipped = if fair.waiting() > 0 { skipped.saturating_add(1) } else { 0 };
        }
        self.skipped[class as usize] = 0;
    }
}

/// What a refusal asks for; the shortest if nothing is known.
fn bounded(wait: Option<Duration>) -> Duration {
    wait.unwrap_or_default().clamp(RETRY_AFTER.0, RETRY_AFTER.1)
}

fn seconds(wait: f64) -> Duration {
    Duration::try_from_secs_f64(wait).unwrap_or(LONGEST).min(LONGEST)
}

#[cfg(test)]
impl Line {
    /// Callers that something is known about.
    pub(super) fn known(&self) -> usize {
        self.classes.iter().map(Fair::known).sum()
    }
}
