//! Fair: the requests of one class, taken out so that callers get work by their weights.
//!
//! Start-time fair queueing. Virtual time counts work per weight. A caller's tag is the virtual time at which its first
//! request begins; the lowest goes first, and going moves it by cost over weight. Who comes back begins no earlier than
//! now, so nobody saves up, nor earlier than where it stopped, so nobody gains by leaving. A request that leaves before its
//! turn moves nothing. Now is advanced by what was taken out over the weight of all who waited, so that callers who
//! come anew for ever can not keep out one who waits.

use std::collections::{BTreeSet, HashMap};

use super::Class;
use super::tree::Tree;
use crate::ids::CallerId;

/// No waiter.
const NONE: usize = usize::MAX;
/// Virtual time of one unit of work at weight 1.
const UNIT: u128 = 1 << 20;
/// Callers with nothing waiting that are remembered for what they had; beyond that the least indebted is forgotten.
const MOST_REMEMBERED: usize = 4096;

/// Names one request in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Its class.
    pub(super) class: Class,
    waiter: usize,
    serial: u64,
}

/// The requests of one class.
pub(super) struct Fair<T> {
    class: Class,
    waiters: Vec<Waiter<T>>,
    free_waiters: Vec<usize>,
    callers: Vec<Caller>,
    free_callers: Vec<usize>,
    by_id: HashMap<CallerId, usize>,
    /// Callers that wait, by the tag of their first request.
    starts: Tree,
    /// The same, by the tag at which all their requests are done.
    ends: Tree,
    /// The same, by how much of the line they hold for their weight.
    holders: BTreeSet<(u64, usize)>,
    /// Callers with nothing waiting whose tag is still ahead of now.
    resting: BTreeSet<(u128, usize)>,
    now: u128,
    /// How far the request that went last moves now.
    step: u128,
    serial: u64,
    waiting: usize,
    work: u64,
}

struct Waiter<T> {
    serial: u64,
    caller: usize,
    cost: u64,
    before: usize,
    after: usize,
    /// None if nobody has this number.
    item: Option<T>,
}

struct Caller {
    /// None if nobody has this number.
    id: Option<CallerId>,
    weight: u32,
    start: u128,
    work: u64,
    waiting: usize,
    first: usize,
    last: usize,
}

impl<T> Fair<T> {
    /// Nobody waits yet.
    pub(super) fn new(class: Class) -> Self {
        Self {
            class,
            waiters: Vec::new(),
            free_waiters: Vec::new(),
            callers: Vec::new(),
            free_callers: Vec::new(),
            by_id: HashMap::new(),
            starts: Tree::default(),
            ends: Tree::default(),
            holders: BTreeSet::new(),
            resting: BTreeSet::new(),
            now: 0,
            step: 0,
            serial: 0,
            waiting: 0,
            work: 0,
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Their work.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// How many requests of this caller wait.
    pub(super) fn held(&self, caller: &CallerId) -> usize {
        self.by_id.get(caller).map_or(0, |at| self.callers[*at].waiting)
    }

    /// Whether one more of this caller may push out the last of the one that holds most. A fair share is one at least.
    pub(super) fn may_push_out(&self, caller: &CallerId, weight: u32) -> bool {
        let Some((most, holder)) = self.holders.last() else { return false };
        let held = self.held(caller);
        share(held + 1, weight) < *most || (held == 0 && self.callers[*holder].waiting > 1)
    }

    /// Work that goes before the next request of this caller, as far as requests in the line tell.
    pub(super) fn ahead(&self, caller: &CallerId) -> f64 {
        let start = match self.by_id.get(caller).map(|at| &self.callers[*at]) {
            Some(known) => known.end().max(self.now),
            None => self.now,
        };
        let (begun, done) = (self.starts.up_to(start), self.ends.up_to(start));
        let even = begun.until(start).saturating_sub(done.until(start)) as f64 / UNIT as f64;
        // Requests are not cut: of each caller whose turn comes before but does not end before, one goes whole.
        let heads = (begun - done).heads as f64;
        (even + heads / 2.0).max(heads)
    }

    /// Puts a request behind those of its caller.
    pub(super) fn push(&mut self, caller: &CallerId, weight: u32, cost: u64, item: T) -> Ticket {
        let at = self.caller(caller);
        self.unlist(at);
        self.serial += 1;
        let serial = self.serial;
        let before = if self.callers[at].waiting == 0 { NONE } else { self.callers[at].last };
        let waiter = Waiter { serial, caller: at, cost, before, after: NONE, item: Some(item) };
        let number = place(&mut self.waiters, &mut self.free_waiters, waiter);
        match self.waiters.get_mut(before) {
            Some(before) => before.after = number,
            None => self.callers[at].first = number,
        }
        let caller = &mut self.callers[at];
        caller.weight = weight.max(1);
        caller.last = number;
        caller.waiting += 1;
        caller.work = caller.work.saturating_add(cost);
        self.waiting += 1;
        self.work = self.work.saturating_add(cost);
        self.list(at);
        Ticket { class: self.class, waiter: number, serial }
    }

    /// The request whose turn it is.
    pub(super) fn first(&self) -> Option<(Ticket, &T)> {
        let waiter = self.callers[self.starts.first()?].first;
        let Waiter { serial, item, .. } = &self.waiters[waiter];
        Some((Ticket { class: self.class, waiter, serial: *serial }, item.as_ref()?))
    }

    /// Takes out the request whose turn it is: its cost and what was put in.
    pub(super) fn pop(&mut self) -> Option<(u64, T)> {
        let at = self.starts.first()?;
        let weights = self.starts.all().weight.max(1);
        let caller = &mut self.callers[at];
        self.now = (self.now + self.step).max(caller.start);
        let (first, weight, start) = (caller.first, caller.weight, caller.start);
        let cost = self.waiters[first].cost;
        self.step = u128::from(cost) * UNIT / weights;
        let moved = start + span(cost, weight);
        let popped = self.take(first, moved).map(|item| (cost, item));
        self.forget();
        popped
    }

    /// Takes out a request that leaves before its turn.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let waiter = self.waiters.get(ticket.waiter)?;
        let start = self.callers[waiter.caller].start;
        if waiter.serial == ticket.serial { self.take(ticket.waiter, start) } else { None }
    }

    /// Takes out the last request of the caller that holds most for its weight.
    pub(super) fn push_out(&mut self) -> Option<(CallerId, T)> {
        let (_, at) = *self.holders.last()?;
        let Caller { id, last, start, .. } = &self.callers[at];
        let (id, last, start) = (id.clone()?, *last, *start);
        self.take(last, start).map(|item| (id, item))
    }

    /// Callers that wait: who, how many requests, and the first of them.
    pub(super) fn callers(&self) -> impl Iterator<Item = (&CallerId, usize, &T)> {
        let waiting = self.callers.iter().filter(|caller| caller.waiting > 0);
        waiting.filter_map(|c| Some((c.id.as_ref()?, c.waiting, self.waiters[c.first].item.as_ref()?)))
    }

    /// The number of a caller, who is taken up if not known.
    fn caller(&mut self, id: &CallerId) -> usize {
        if let Some(at) = self.by_id.get(id) {
            // One that rests has a tag ahead of now, or it would be forgotten.
            self.resting.remove(&(self.callers[*at].start, *at));
            return *at;
        }
        let (first, last) = (NONE, NONE);
        let new = Caller { id: Some(id.clone()), weight: 1, start: self.now, work: 0, waiting: 0, first, last };
        let at = place(&mut self.callers, &mut self.free_callers, new);
        self.by_id.insert(id.clone(), at);
        at
    }

    /// Takes out one request; its caller's first one begins at `start` then.
    fn take(&mut self, number: usize, start: u128) -> Option<T> {
        let waiter = &mut self.waiters[number];
        let item = waiter.item.take()?;
        let Waiter { caller: at, cost, before, after, .. } = *waiter;
        self.free_waiters.push(number);
        self.unlist(at);
        let caller = &mut self.callers[at];
        match self.waiters.get_mut(before) {
            Some(waiter) => waiter.after = after,
            None => caller.first = after,
        }
        match self.waiters.get_mut(after) {
            Some(waiter) => waiter.before = before,
            None => caller.last = before,
        }
        caller.start = start;
        caller.waiting -= 1;
        caller.work = caller.work.saturating_sub(cost);
        self.waiting -= 1;
        self.work = self.work.saturating_sub(cost);
        if caller.waiting > 0 {
            self.list(at);
        } else {
            self.resting.insert((start, at));
            self.forget();
        }
        Some(item)
    }

    /// Puts a caller that waits in all orders.
    fn list(&mut self, at: usize) {
        self.serial += 1;
        let caller = &self.callers[at];
        let head = self.waiters[caller.first].cost;
        self.starts.insert(at, (caller.start, self.serial), caller.weight, head);
        self.ends.insert(at, (caller.end(), self.serial), caller.weight, head);
        self.holders.insert((share(caller.waiting, caller.weight), at));
    }

    /// Takes a caller that waits out of all orders, before anything about it changes.
    fn unlist(&mut self, at: usize) {
        let caller = &self.callers[at];
        if caller.waiting > 0 {
            self.starts.remove(at);
            self.ends.remove(at);
            self.holders.remove(&(share(caller.waiting, caller.weight), at));
        }
    }

    /// Forgets callers with nothing waiting that have no lead any more. Without anybody waiting nobody has one.
    fn forget(&mut self) {
        while let Some((start, at)) = self.resting.first().copied()
            && (start <= self.now || self.waiting == 0 || self.resting.len() > MOST_REMEMBERED)
        {
            self.resting.pop_first();
            if let Some(id) = self.callers[at].id.take() {
                self.by_id.remove(&id);
            }
            self.free_callers.push(at);
        }
        if self.waiting == 0 {
            (self.now, self.step) = (0, 0);
        }
    }
}

impl Caller {
    /// When all of its requests are done.
    fn end(&self) -> u128 {
        self.start + span(self.work, self.weight)
    }
}

/// Virtual time that work takes.
fn span(work: u64, weight: u32) -> u128 {
    u128::from(work) * UNIT / u128::from(weight)
}

/// How much so many requests are for a caller of this weight.
fn share(waiting: usize, weight: u32) -> u64 {
    ((waiting as u64) << 20) / u64::from(weight.max(1))
}

/// Puts something at a number that is free.
fn place<N>(all: &mut Vec<N>, free: &mut Vec<usize>, new: N) -> usize {
    match free.pop() {
        Some(number) => {
            all[number] = new;
            number
        }
        None => {
            all.push(new);
            all.len() - 1
        }
    }
}

#[cfg(test)]
impl<T> Fair<T> {
    /// Callers that something is known about.
    pub(super) fn known(&self) -> usize {
        self.by_id.len()
    }
}
