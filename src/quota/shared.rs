//! Shared: limits that several replicas hold together through Redis.
//!
//! One task, the courier, makes all round trips. Requests that find their lease empty leave an ask and wait; asks that
//! come while a round trip of their organisation is under way go with the next one, together. `lease.lua` is the
//! protocol's other half: it takes what a replica holds as granted, by its absolute number, and grants more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

use chrono::NaiveDate;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use redis::{RedisResult, Script};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::counter::{Authority, Counter, Reply, Report, Take};
use super::usage::{Amounts, Row, Table};
use super::{AWAY, Account, Charge, Denial, Limiter, OnOutage, SHARED};
use crate::store::{self, Link, Store};

static LEASE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("birth.lua"), include_str!("lease.lua"))));
static PRESENCE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("birth.lua"), include_str!("presence.lua"))));
static USAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("usage.lua")));

/// How replicas share limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What holds while Redis is away.
    pub on_outage: OnOutage,
    /// Longest that a request waits for Redis.
    pub budget: Duration,
    /// The least number of replicas to share among while Redis is away.
    pub replicas: u64,
    /// How long the places of a replica that has vanished stay taken.
    pub hold: Duration,
    /// How often usage is written.
    pub flush: Duration,
    /// For how many days usage is kept.
    pub usage_days: u32,
}

/// What requests leave for the courier.
pub(super) enum Ask {
    /// Take all of these, or say which one can not be.
    Take(Waiting),
    /// A lease runs low.
    TopUp(Arc<Counter>),
    /// Places came free that others wait for.
    Freed(Arc<Counter>),
}

/// Charges that a request waits for.
pub(super) struct Waiting {
    account: Arc<Account>,
    charges: Vec<Charge>,
    reply: oneshot::Sender<Result<Taken, Denial>>,
    attempts: u32,
}

impl Waiting {
    pub(super) fn new(
        account: &Arc<Account>,
        charges: &[Charge],
        reply: oneshot::Sender<Result<Taken, Denial>>,
    ) -> Self {
        Self { account: Arc::clone(account), charges: charges.to_vec(), reply, attempts: 0 }
    }

    fn counters(&self) -> impl Iterator<Item = (&Arc<Counter>, &Charge)> {
        self.charges.iter().map(|charge| (self.account.counter(charge), charge))
    }

    fn grant(self) {
        drop(self.reply.send(Ok(Taken { account: self.account, charges: self.charges })));
    }

    fn refuse(self, denial: Denial) {
        drop(self.reply.send(Err(denial)));
    }
}

/// Charges taken for a request that waits; given back when it does not wait any more.
pub(super) struct Taken {
    account: Arc<Account>,
    charges: Vec<Charge>,
}

impl Taken {
    pub(super) fn keep(mut self) -> Vec<Charge> {
        std::mem::take(&mut self.charges)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Who else wants them learns of them when leases are looked over.
        for charge in &self.charges {
            let _ = self.account.give_back(charge);
        }
    }
}

/// Asks that wait at most; further ones are decided as while Redis is away.
const QUEUE: usize = 16_384;
/// How often leases are looked over.
const TICK: Duration = Duration::from_millis(20);
/// For how long a replica's own requests may take a place that came free, before it goes to others who were refused.
/// It also bounds the round trips that tell of such places.
const GRACE: Duration = Duration::from_millis(2);
/// How often a replica shows itself, and learns the time.
const PRESENCE_EVERY: Duration = Duration::from_millis(250);
/// A replica that was silent for so long is not counted.
const PRESENT_FOR: Duration = Duration::from_secs(5);
/// After Redis lost data or may have, nothing is granted while replicas come back and say what they hold. This is added to
/// the time that coming back takes.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a replica that starts waits for the others to know of it.
const INTRODUCTION: Duration = Duration::from_millis(500);
/// Counters in one round trip.
const TOGETHER: usize = 256;
/// Rows of usage in one round trip.
const ROWS: usize = 500;
/// Round trips in a row above the budget after which Redis counts as away.
const TOO_SLOW: u32 = 5;
/// Times that an ask is sent again because its window has not begun for Redis.
const EARLY: u32 = 20;

/// Makes a limiter that shares through `store`, and its courier.
pub fn limiter(settings: Settings, store: Store) -> (Arc<Limiter>, Courier) {
    let (desk, asks) = mpsc::channel(QUEUE);
    let limiter = Arc::new(Limiter::new(AWAY, settings.on_outage, Some(desk), settings.budget, settings.hold));
    limiter.replicas.store(settings.replicas.max(1), Ordering::Relaxed);
    let replica = format!("{:016x}", fastrand::u64(..));
    let courier = Courier {
        limiter: Arc::clone(&limiter),
        store,
        settings,
        replica,
        asks,
        desks: HashMap::new(),
        freed: Reports::default(),
        freed_until: None,
        link: 0,
        presence: Presence::default(),
        slow: 0,
        begun: Instant::now(),
        trouble: String::new(),
    };
    (limiter, courier)
}

/// Makes all round trips of one replica.
pub struct Courier {
    limiter: Arc<Limiter>,
    store: Store,
    settings: Settings,
    replica: String,
    asks: mpsc::Receiver<Ask>,
    /// By organisation.
    desks: HashMap<Arc<str>, Desk>,
    /// Counters of which places came free that others wait for.
    freed: Reports,
    /// When those go to others.
    freed_until: Option<tokio::time::Instant>,
    /// The connection that is used.
    link: u64,
    presence: Presence,
    /// Round trips in a row that were too slow.
    slow: u32,
    begun: Instant,
    /// Why Redis refused a script last; empty since it took one.
    trouble: String,
}

#[derive(Default)]
struct Presence {
    is_under_way: bool,
    last: Option<Instant>,
    /// When Redis's data began, by Redis's clock; 0 while unknown.
    born: u64,
    /// The connection over which this replica was shown last.
    link: u64,
    /// When it was shown first.
    first: Option<Instant>,
    /// Until when nothing is granted, by Redis's clock.
    settled: u64,
}

/// What waits to be said about one organisation.
#[derive(Default)]
struct Desk {
    is_under_way: bool,
    waiting: VecDeque<Waiting>,
    /// Counters to report, asked for by nobody.
    reports: Reports,
    /// Counters whose leases ran low.
    low: Reports,
    sequence: u64,
    born: u64,
    /// Usage that was sent and not confirmed.
    usage: Option<(u64, Vec<Entry>)>,
    usage_under_way: bool,
    unsent: Table,
    /// Redis refused what was said last.
    is_broken: bool,
    /// Its part of a cluster was not spoken to yet: it may have to settle before it is needed.
    is_new: bool,
}

/// Counters in the order in which they came, each once.
#[derive(Default)]
struct Reports {
    queue: VecDeque<Arc<Counter>>,
    /// Their addresses.
    listed: HashSet<usize>,
}

impl Reports {
    fn push(&mut self, counter: Arc<Counter>) {
        if self.listed.insert(Arc::as_ptr(&counter) as usize) {
            self.queue.push_back(counter);
        }
    }

    fn pop(&mut self) -> Option<Arc<Counter>> {
        let counter = self.queue.pop_front()?;
        self.listed.remove(&(Arc::as_ptr(&counter) as usize));
        Some(counter)
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.listed.clear();
    }
}

/// A row of usage of a day.
type Entry = (NaiveDate, Row, Amounts);

/// A round trip that has ended.
enum Done {
    Lease(Box<Trip>),
    Presence { sent: Instant, link: Link, reply: RedisResult<Vec<u64>> },
    Usage { tag: Arc<str>, link: Link, reply: RedisResult<i64> },
}

struct Trip {
    tag: Arc<str>,
    sent: Instant,
    link: Link,
    reports: Vec<(Arc<Counter>, Report)>,
    waiting: Vec<Waiting>,
    reply: RedisResult<Vec<i64>>,
}

type Trips = FuturesUnordered<futures_util::future::BoxFuture<'static, Done>>;

impl Courier {
    /// Runs until `stop` changes, then gives back every lease and writes usage.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut trips = Trips::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed = Instant::now();
        loop {
            let freed_until = self.freed_until;
            tokio::select! {
                biased;
                Some(done) = trips.next() => self.done(done, &mut trips),
                Some(ask) = self.asks.recv() => {
                    self.ask(ask, &mut trips);
                    // Whatever came meanwhile goes along.
                    while let Ok(ask) = self.asks.try_recv() {
                        self.ask(ask, &mut trips);
                    }
                }
                () = until(freed_until) => self.pass_on(&mut trips),
                _ = tick.tick() => {
                    self.look_over(&mut trips);
                    if flushed.elapsed() >= self.settings.flush {
                        flushed = Instant::now();
                        self.flush(&mut trips);
                    }
                }
                _ = stop.changed() => break,
            }
        }
        self.finish(trips).await;
    }

    fn ask(&mut self, ask: Ask, trips: &mut Trips) {
        let tag = match ask {
            Ask::Take(waiting) => {
                let Some(tag) = waiting.counters().next().map(|(counter, _)| Arc::clone(&counter.tag)) else { return };
                self.desks.entry(Arc::clone(&tag)).or_default().waiting.push_back(waiting);
                tag
            }
            Ask::TopUp(counter) => {
                let tag = Arc::clone(&counter.tag);
                self.desks.entry(Arc::clone(&tag)).or_default().low.push(counter);
                tag
            }
            Ask::Freed(counter) => {
                self.freed.push(counter);
                self.freed_until.get_or_insert_with(|| tokio::time::Instant::now() + GRACE);
                return;
            }
        };
        self.start(&tag, false, trips);
    }

    /// Gives places to others that came free and were not taken here meanwhile.
    fn pass_on(&mut self, trips: &mut Trips) {
        self.freed_until = None;
        while let Some(counter) = self.freed.pop() {
            if counter.is_free() {
                let tag = Arc::clone(&counter.tag);
                self.desks.entry(Arc::clone(&tag)).or_default().reports.push(counter);
                self.start(&tag, false, trips);
            }
        }
    }

    /// Starts a round trip for an organisation, unless one is under way.
    fn start(&mut self, tag: &Arc<str>, is_final: bool, trips: &mut Trips) {
        let Some(link) = self.store.link() else { return self.decide_alone(tag) };
        let Some(desk) = self.desks.get_mut(tag) else { return };
        let has_none = desk.waiting.is_empty() && desk.reports.is_empty() && desk.low.is_empty();
        if desk.is_under_way || has_none && !desk.is_new {
            return;
        }
        let limiter = &self.limiter;
        let now = limiter.clock.now();
        // A round trip that ended meanwhile may have brought enough.
        while let Some(counter) = desk.low.pop() {
            if counter.runs_low(now) {
                desk.reports.push(counter);
            }
        }
        // What came back meanwhile may do for the first of them.
        let mut waiting = Vec::new();
        let mut wanted: HashMap<*const Counter, (Arc<Counter>, u64, u64)> = HashMap::new();
        while wanted.len() < TOGETHER
            && let Some(mut first) = desk.waiting.pop_front()
        {
            if first.reply.is_closed() {
                continue;
            }
            match limiter.take_now(&first.account, &mut first.charges, now, Authority::Shared) {
                Ok(()) => {
                    first.grant();
                    continue;
                }
                Err((at, Take::Refused)) => {
                    first.refuse(Denial::At(at));
                    continue;
                }
                Err(_) => {}
            }
            for (counter, charge) in first.counters() {
                let entry = wanted.entry(Arc::as_ptr(counter));
                let (_, want, least) = entry.or_insert_with(|| (Arc::clone(counter), 0, u64::MAX));
                *want = want.saturating_add(charge.amount);
                *least = (*least).min(charge.amount);
            }
            waiting.push(first);
        }
        while wanted.len() < TOGETHER
            && let Some(counter) = desk.reports.pop()
        {
            wanted.entry(Arc::as_ptr(&counter)).or_insert((counter, 0, 0));
        }
        if wanted.is_empty() && !std::mem::take(&mut desk.is_new) {
            return;
        }
        let report = |(counter, want, least): (Arc<Counter>, u64, u64)| {
            let report = counter.report(now, want, least, is_final);
            (counter, report)
        };
        let reports: Vec<_> = wanted.into_values().map(report).collect();
        desk.is_under_way = true;
        desk.sequence += 1;
        let mut call = LEASE.prepare_invoke();
        call.key(born_key(&self.store, tag)).key(self.store.key(tag, "seq"));
        call.arg(&self.replica).arg(desk.sequence).arg(desk.born).arg(settle(&self.store)).arg(limiter.replicas());
        for (counter, report) in &reports {
            let is_held = counter.unit.is_none();
            let place = if is_held {
                format!("h:{}", counter.id)
            } else {
                format!("w:{}:{}", counter.id, report.window.start / 1_000_000)
            };
            call.key(self.store.key(tag, &place));
            let (start, end) =
                if is_held { (0, micros(self.settings.hold)) } else { (report.window.start, report.window.end) };
            call.arg(if is_held { "h" } else { "w" }).arg(counter.limit()).arg(report.granted);
            call.arg(report.want).arg(report.least).arg(report.extra).arg(start).arg(end);
        }
        // What is granted to requests that are refused for another limit is to be found when leases are looked over.
        reports.iter().for_each(|(counter, _)| limiter.list(counter));
        limiter.stats.round_trips.fetch_add(1, Ordering::Relaxed);
        let (tag, mut link, sent) = (Arc::clone(tag), link, Instant::now());
        let trip = async move {
            let reply = call.invoke_async(&mut link).await;
            Done::Lease(Box::new(Trip { tag, sent, link, reports, waiting, reply }))
        };
        trips.push(trip.boxed());
    }

    /// Decides what waits for an organisation as while Redis is away.
    fn decide_alone(&mut self, tag: &Arc<str>) {
        let Some(desk) = self.desks.get_mut(tag) else { return };
        desk.reports.clear();
        desk.low.clear();
        for waiting in desk.waiting.drain(..) {
            decide_alone(&self.limiter, waiting);
        }
    }

    fn done(&mut self, done: Done, trips: &mut Trips) {
        match done {
            Done::Lease(trip) => self.leased(*trip, trips),
            Done::Presence { sent, link, reply } => self.present(sent, &link, &reply),
            Done::Usage { tag, link, reply } => {
                let confirmed = self.heed(&link, reply.as_ref().err());
                if let Ok(failed @ 1..) = reply {
                    tracing::error!(failed, "Redis refused amounts of usage; they are lost");
                }
                if let Some(desk) = self.desks.get_mut(&tag) {
                    desk.usage_under_way = false;
                    if confirmed {
                        desk.usage = None;
                        self.send_usage(&tag, trips);
                    }
                }
            }
        }
    }

    /// Takes in what an error means. `false` when there was one.
    fn heed(&mut self, link: &Link, error: Option<&redis::RedisError>) -> bool {
        let Some(error) = error else {
            self.store.works(link);
            return true;
        };
        self.limiter.stats.failures.fetch_add(1, Ordering::Relaxed);
        if is_of_data(error) {
            let reason = store::describe(error);
            if self.trouble != reason {
                tracing::error!(reason, "Redis refused a script; limits are held without it");
                self.trouble = reason;
            }
        } else {
            self.store.fail(link, error);
            self.limiter.authority.store(AWAY, Ordering::Relaxed);
        }
        false
    }

    fn leased(&mut self, trip: Trip, trips: &mut Trips) {
        let Trip { tag, sent, link, reports, waiting, reply } = trip;
        let is_good = self.heed(&link, reply.as_ref().err());
        self.pace(sent, is_good);
        let Some(desk) = self.desks.get_mut(&tag) else { return };
        desk.is_under_way = false;
        let limiter = Arc::clone(&self.limiter);
        let is_broken = reply.as_ref().is_err_and(is_of_data);
        if std::mem::replace(&mut desk.is_broken, is_broken) != is_broken {
            limiter.broken.fetch_add(if is_broken { 1 } else { u64::MAX }, Ordering::Relaxed);
        }
        if is_good {
            self.trouble.clear();
        }
        let reply = reply.unwrap_or_default();
        let (Some([status, time, born]), replies) = (reply.first_chunk::<3>(), reply.get(3..).unwrap_or_default())
        else {
            waiting.into_iter().for_each(|one| decide_alone(&limiter, one));
            return;
        };
        limiter.clock.learn(time.unsigned_abs(), sent);
        let is_news = desk.born != 0 && desk.born != born.unsigned_abs();
        desk.born = born.unsigned_abs();
        let now = limiter.clock.now();
        for ((counter, report), answer) in reports.iter().zip(replies.chunks(3)) {
            match answer {
                // The window has not begun for Redis, or is over.
                [-1, ..] => counter.not_granted(),
                [more, left, wanted] => {
                    let (more, left) = (more.unsigned_abs(), left.unsigned_abs());
                    counter.granted(report, now, Reply { more, left, is_wanted: *wanted > 0 });
                }
                _ => {}
            }
        }
        // Redis lost its data and learns it anew: until it knows, each decides for itself.
        let is_settling = *status == 1;
        let mut again = VecDeque::new();
        for mut one in waiting {
            if is_settling {
                decide_alone(&limiter, one);
                continue;
            }
            match limiter.take_now(&one.account, &mut one.charges, now, Authority::Shared) {
                Ok(()) => one.grant(),
                // Its window has not begun, or others took what came: there is still something.
                Err((_, Take::Short)) if one.attempts < EARLY => {
                    one.attempts += 1;
                    again.push_back(one);
                }
                Err((at, _)) => one.refuse(Denial::At(at)),
            }
        }
        if !again.is_empty() {
            again.append(&mut desk.waiting);
            desk.waiting = again;
        }
        if is_news {
            self.report_all(Some(&tag));
        }
        self.start(&tag, false, trips);
    }

    /// Holds a round trip against the budget: a Redis that is always late is as good as away.
    fn pace(&mut self, sent: Instant, is_good: bool) {
        if sent.elapsed() > self.settings.budget {
            self.slow += 1;
            if self.slow == TOO_SLOW {
                tracing::warn!("Redis is slower than redis.timeout_ms; limits are held without it");
                self.limiter.authority.store(AWAY, Ordering::Relaxed);
            }
        } else if is_good {
            self.slow = 0;
        }
    }

    /// Shows this replica, and takes in the time and how many others there are.
    fn show(&mut self, trips: &mut Trips) {
        let is_due = self.presence.last.is_none_or(|last| last.elapsed() >= PRESENCE_EVERY);
        let Some(mut link) = self.store.link().filter(|_| is_due && !self.presence.is_under_way) else { return };
        self.presence.is_under_way = true;
        self.presence.last = Some(Instant::now());
        let mut call = PRESENCE.prepare_invoke();
        call.key(self.store.key("replicas", "present")).key(self.store.key("replicas", "data"));
        call.arg(&self.replica).arg(micros(PRESENT_FOR)).arg(self.presence.born).arg(settle(&self.store));
        self.limiter.stats.round_trips.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        trips.push(
            async move {
                let reply = call.invoke_async(&mut link).await;
                Done::Presence { sent, link, reply }
            }
            .boxed(),
        );
    }

    fn present(&mut self, sent: Instant, link: &Link, reply: &RedisResult<Vec<u64>>) {
        self.presence.is_under_way = false;
        let is_good = self.heed(link, reply.as_ref().err());
        self.pace(sent, is_good);
        if reply.as_ref().is_err_and(is_of_data) {
            // It takes nothing from anybody.
            self.limiter.authority.store(AWAY, Ordering::Relaxed);
        }
        let Ok([time, count, born, settled]) = reply.as_ref().map(Vec::as_slice) else { return };
        self.limiter.clock.learn(*time, sent);
        self.limiter.replicas.store((*count).max(self.settings.replicas).max(1), Ordering::Relaxed);
        let is_lost = self.presence.born != 0 && self.presence.born != *born;
        if is_lost {
            tracing::warn!("Redis lost its data; it is told what was used");
        }
        let is_new = self.presence.link != link.number();
        let is_settled = time >= settled;
        (self.presence.born, self.presence.link, self.presence.settled) = (*born, link.number(), *settled);
        let first = *self.presence.first.get_or_insert_with(Instant::now);
        let was_away = self.limiter.authority.load(Ordering::Relaxed) == AWAY;
        if was_away && is_settled && self.slow == 0 && first.elapsed() >= INTRODUCTION {
            tracing::info!(replicas = count, "limits are shared");
            self.limiter.authority.store(SHARED, Ordering::Relaxed);
            self.limiter.start();
        } else if !was_away && !is_settled {
            self.limiter.authority.store(AWAY, Ordering::Relaxed);
        }
        if is_new || is_lost || was_away && is_settled {
            self.report_all(None);
        }
        if is_new && self.store.is_cluster() {
            let registry = self.limiter.registry.lock().unwrap_or_else(PoisonError::into_inner);
            let tags: HashSet<_> = registry.values().map(|counter| Arc::clone(&counter.tag)).collect();
            tags.into_iter().for_each(|tag| self.desks.entry(tag).or_default().is_new = true);
        }
        self.mend();
    }

    /// Tells Redis again what it refused, whether or not anybody asks meanwhile.
    fn mend(&mut self) {
        let broken: Vec<_> = self.desks.iter().filter(|(_, d)| d.is_broken).map(|(tag, _)| Arc::clone(tag)).collect();
        for tag in broken {
            self.report_all(Some(&tag));
            if let Some(desk) = self.desks.get_mut(&tag)
                && desk.reports.is_empty()
                && !desk.is_under_way
            {
                // There is nothing more to tell.
                desk.is_broken = false;
                self.limiter.broken.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Puts every counter that holds something up for report, of one organisation or of all.
    fn report_all(&mut self, tag: Option<&str>) {
        let now = self.limiter.clock.now();
        let registry = self.limiter.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |counter: &&Arc<Counter>| tag.is_none_or(|tag| *counter.tag == *tag) && !counter.is_idle(now);
        for counter in registry.values().filter(is_meant) {
            self.desks.entry(Arc::clone(&counter.tag)).or_default().reports.push(Arc::clone(counter));
        }
    }

    /// Finds leases that idle and counts that Redis should know, and lets go of counters that are not used.
    fn look_over(&mut self, trips: &mut Trips) {
        if let Some(link) = self.store.link()
            && link.number() != self.link
        {
            // A new connection: it may lead to another server.
            self.link = link.number();
            self.slow = 0;
            self.presence.last = None;
        }
        self.show(trips);
        if self.store.is_unreachable() || self.begun.elapsed() >= super::LONGEST_START {
            self.limiter.start();
        }
        if self.store.link().is_none() {
            self.limiter.authority.store(AWAY, Ordering::Relaxed);
            let tags: Vec<_> = self.desks.keys().cloned().collect();
            tags.iter().for_each(|tag| self.decide_alone(tag));
            return;
        }
        let now = self.limiter.clock.now();
        let silence = micros(self.settings.hold) / 3;
        let mut due = Vec::new();
        self.limiter.listed.lock().unwrap_or_else(PoisonError::into_inner).retain(|counter| {
            if counter.is_due(now, silence) {
                due.push(Arc::clone(counter));
                return true;
            }
            let keep = !counter.is_resting(now);
            if !keep {
                counter.is_listed.store(false, Ordering::Relaxed);
            }
            keep
        });
        for counter in due {
            self.desks.entry(Arc::clone(&counter.tag)).or_default().reports.push(counter);
        }
        let ready: Vec<_> = self
            .desks
            .iter()
            .filter(|(_, desk)| desk.is_new || !desk.reports.is_empty())
            .map(|(tag, _)| Arc::clone(tag))
            .collect();
        ready.iter().for_each(|tag| self.start(tag, false, trips));
    }

    /// Sends usage on its way.
    fn flush(&mut self, trips: &mut Trips) {
        for (day, rows) in self.limiter.ledger.take() {
            for (row, amounts) in rows {
                let tag: Arc<str> = super::encoded(&row.org).into();
                let unsent = self.desks.entry(tag).or_default().unsent.entry(day).or_default();
                unsent.entry(row).or_default().add(&amounts);
            }
        }
        let tags: Vec<_> = self.desks.keys().cloned().collect();
        tags.iter().for_each(|tag| self.send_usage(tag, trips));
    }

    /// Sends an organisation's usage. Unconfirmed usage is sent again under its number, so that it counts once.
    fn send_usage(&mut self, tag: &Arc<str>, trips: &mut Trips) {
        let Some(mut link) = self.store.link() else { return };
        let Some(desk) = self.desks.get_mut(tag) else { return };
        if desk.usage_under_way {
            return;
        }
        if desk.usage.is_none() && !desk.unsent.is_empty() {
            let mut rows = Vec::new();
            while rows.len() < ROWS
                && let Some(mut day) = desk.unsent.first_entry()
            {
                match day.get_mut().pop_first() {
                    Some((row, amounts)) => rows.push((*day.key(), row, amounts)),
                    None => drop(day.remove()),
                }
            }
            desk.sequence += 1;
            desk.usage = Some((desk.sequence, rows));
        }
        let Some((sequence, rows)) = &desk.usage else { return };
        let mut call = USAGE.prepare_invoke();
        call.key(self.store.key(tag, "usage:seq")).key(self.store.key(tag, "usage:days"));
        let days: Vec<NaiveDate> = rows.iter().map(|(day, ..)| *day).collect::<HashSet<_>>().into_iter().collect();
        for day in &days {
            call.key(self.store.key(tag, &format!("usage:{day}")));
        }
        call.arg(&self.replica).arg(*sequence).arg(u64::from(self.settings.usage_days) * 86_400);
        call.arg(days.len());
        for day in &days {
            call.arg(day.to_string());
        }
        for (day, row, amounts) in rows {
            let at = days.iter().position(|d| d == day).unwrap_or_default();
            call.arg(at + 3).arg(field(row));
            call.arg(amounts.requests).arg(amounts.input_tokens).arg(amounts.output_tokens).arg(amounts.spend);
        }
        desk.usage_under_way = true;
        let tag = Arc::clone(tag);
        trips.push(
            async move {
                let reply = call.invoke_async(&mut link).await;
                Done::Usage { tag, link, reply }
            }
            .boxed(),
        );
    }

    /// Gives back every lease and writes the rest of usage, as far as Redis is there.
    async fn finish(mut self, mut trips: Trips) {
        let end = tokio::time::Instant::now() + Duration::from_secs(2);
        self.asks.close();
        let is_busy = |courier: &Self| {
            courier.desks.values().any(|d| {
                !d.reports.is_empty()
                    || d.is_under_way
                    || d.usage_under_way
                    || d.usage.is_some()
                    || !d.unsent.is_empty()
            })
        };
        self.report_all(None);
        self.flush(&mut trips);
        let work = async {
            loop {
                let tags: Vec<_> = self.desks.keys().cloned().collect();
                for tag in &tags {
                    self.start(tag, true, &mut trips);
                }
                if self.store.link().is_none() || !is_busy(&self) {
                    return;
                }
                match trips.next().await {
                    Some(done) => self.done(done, &mut trips),
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout_at(end, work).await;
        if let Some(mut link) = self.store.link() {
            let key = self.store.key("replicas", "present");
            let gone = redis::cmd("ZREM").arg(key).arg(&self.replica).query_async::<u64>(&mut link).await;
            drop(gone);
        }
    }
}

/// Decides about one request that waits as while Redis is away.
fn decide_alone(limiter: &Limiter, mut waiting: Waiting) {
    match limiter.decide_alone(&waiting.account, &mut waiting.charges) {
        Ok(()) => waiting.grant(),
        Err(denial) => waiting.refuse(denial),
    }
}

/// Waits until then; for ever when there is nothing to wait for.
async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether an error is of what stands in Redis, not of the connection.
fn is_of_data(error: &redis::RedisError) -> bool {
    error.code().is_some_and(|code| matches!(code, "WRONGTYPE" | "ERR" | "OOM" | "NOSCRIPT"))
}

/// Where it stands what is known of the data: in a cluster, each slot may lose its own.
fn born_key(store: &Store, tag: &str) -> String {
    store.key(if store.is_cluster() { tag } else { "replicas" }, "data")
}

fn settle(store: &Store) -> u64 {
    micros(store.longest_return() + SETTLE)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Separates the names in a row of usage.
const SEPARATOR: char = '\u{1f}';

fn field(row: &Row) -> String {
    format!("{}{SEPARATOR}{}{SEPARATOR}{}", row.team, row.key, row.model)
}

/// Reads the usage of an organisation on the days from `first` to `last`.
pub async fn read_usage(store: &Store, org: &str, first: NaiveDate, last: NaiveDate) -> Result<Table, String> {
    const LONGEST: usize = 400;
    let mut link = store.link().ok_or_else(|| "Redis is away".to_owned())?;
    let tag = super::encoded(org);
    let days = redis::cmd("ZRANGEBYLEX")
        .arg(store.key(&tag, "usage:days"))
        .arg(format!("[{first}"))
        .arg(format!("[{last}"))
        .query_async::<Vec<String>>(&mut link)
        .await
        .map_err(|e| store::describe(&e))?;
    let mut table = Table::new();
    for day in days.iter().take(LONGEST) {
        let Ok(date) = day.parse::<NaiveDate>() else { continue };
        let fields = redis::cmd("HGETALL")
            .arg(store.key(&tag, &format!("usage:{day}")))
            .query_async::<HashMap<String, u64>>(&mut link)
            .await
            .map_err(|e| store::describe(&e))?;
        for (field, amount) in fields {
            let mut parts = field.split(SEPARATOR);
            let (Some(team), Some(key), Some(model), Some(what)) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let row = Row { org: org.into(), team: team.into(), key: key.into(), model: model.into() };
            let amounts = table.entry(date).or_default().entry(row).or_default();
            match what {
                "requests" => amounts.requests = amount,
                "input" => amounts.input_tokens = amount,
                "output" => amounts.output_tokens = amount,
                "spend" => amounts.spend = amount,
                _ => {}
            }
        }
    }
    Ok(table)
}
