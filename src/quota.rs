//! Quota: may this caller have so much more?
//!
//! An organisation, a team and a key each have limits; all that fit a request must hold. What a request may use at most
//! is reserved before it runs, and settled to what it used when it ends, however it ends: a reservation that is dropped
//! settles itself. One replica counts by itself. Several share Redis, which grants each of them leases, so that most
//! checks ask nobody; docs/quotas.md tells the rules and their bounds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::ids::{CallerId, ModelId};

mod clock;
mod counter;
pub mod limit;
mod look;
pub mod price;
pub mod shared;
pub mod state;
#[cfg(test)]
mod tests;
pub mod usage;
mod window;

use self::clock::Clock;
use self::counter::{Authority, Counter, Take};
use self::limit::{Asked, Level, Limit, Metric, Unit};
use self::price::{Price, Used};
use self::usage::{Amounts, Ledger, Row};
pub use self::window::Window;

/// What holds while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Each replica may use its share: the limit over the number of replicas.
    LocalShare,
    /// Everything is allowed.
    Allow,
    /// Only what was leased already is allowed.
    Deny,
}

/// The limits of everybody, and what things cost.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Limits of organisations.
    pub orgs: HashMap<String, Vec<Limit>>,
    /// Limits of teams, by organisation and team.
    pub teams: HashMap<(String, String), Vec<Limit>>,
    /// The keys: id, organisation, team and limits.
    pub keys: Vec<KeySettings>,
    /// Prices; the first that fits a model counts.
    pub prices: Arc<[Price]>,
    /// How much is reserved.
    pub estimate: Estimate,
}

/// One key, as far as limits are concerned.
#[derive(Clone, Debug)]
pub struct KeySettings {
    /// Its id.
    pub id: CallerId,
    /// Its organisation.
    pub org: String,
    /// Its team.
    pub team: String,
    /// Its own limits.
    pub limits: Vec<Limit>,
}

/// How much is reserved for a request before its usage is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes of text that make a token. One token per byte is the most that any tokenizer makes.
    pub bytes_per_token: f64,
    /// Tokens of an image, a video or a sound.
    pub tokens_per_media: u64,
    /// Tokens of an answer whose request states no bound.
    pub output_tokens: u64,
}

impl Default for Estimate {
    fn default() -> Self {
        Self { bytes_per_token: 3.0, tokens_per_media: 1000, output_tokens: 1024 }
    }
}

impl Estimate {
    /// Tokens of a prompt of so many bytes of text and so many media.
    pub fn input(&self, text_bytes: usize, media: usize) -> u64 {
        let text = (text_bytes as f64 / self.bytes_per_token).ceil() as u64;
        text.saturating_add(self.tokens_per_media.saturating_mul(media as u64))
    }
}

/// Every account, compiled from [`Settings`].
#[derive(Default)]
pub struct Book {
    accounts: HashMap<CallerId, Arc<Account>>,
    /// Organisations and teams that have limits, apart from their keys.
    groups: HashMap<(String, Option<String>), Account>,
    prices: Arc<[Price]>,
    /// How much is reserved.
    pub estimate: Estimate,
}

/// The limits that stand over one key.
pub struct Account {
    row: (Arc<str>, Arc<str>, Arc<str>),
    levels: [Arc<[Bound]>; 3],
}

/// One limit and its count.
pub struct Bound {
    /// Whose it is.
    pub level: Level,
    /// What it allows.
    pub limit: Limit,
    /// Its name in headers, such as `key-requests-second`.
    pub name: Arc<str>,
    counter: Arc<Counter>,
}

/// What a request may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Most {
    /// Tokens of its prompt.
    pub input: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// Seconds of video that it generates.
    pub video_seconds: f64,
}

/// Why a request may not run.
#[derive(Clone, Debug)]
pub enum Refused {
    /// A limit is reached.
    Exceeded(Exceeded),
    /// Redis is away and only it could tell.
    Unknown,
}

/// The limit that refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Whose it is.
    pub level: Level,
    /// Its name in headers.
    pub name: Arc<str>,
    /// What it counts.
    pub metric: Metric,
    /// How much it allows.
    pub amount: u64,
    /// In which time; none for concurrency.
    pub unit: Option<Unit>,
    /// How much the request asked for.
    pub asked: u64,
    /// When it may be tried again; none when it never fits.
    pub retry_after: Option<Duration>,
}

/// What a limit allows at this moment, for headers and the admin API.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its name.
    pub name: Arc<str>,
    /// Whose it is.
    pub level: Level,
    /// What it counts.
    pub metric: Metric,
    /// In which time.
    pub unit: Option<Unit>,
    /// How much it allows.
    pub amount: u64,
    /// How much of that is left, as far as this replica knows.
    pub remaining: u64,
    /// How long its window is.
    pub window: Duration,
    /// When its window ends.
    pub reset: Duration,
}

/// What happened so far, for metrics.
#[derive(Default)]
pub struct Stats {
    /// Checks that asked nobody.
    pub local: AtomicU64,
    /// Checks that waited for Redis.
    pub waited: AtomicU64,
    /// Checks while Redis was away.
    pub away: AtomicU64,
    /// Round trips to Redis.
    pub round_trips: AtomicU64,
    /// Round trips that failed.
    pub failures: AtomicU64,
    /// Refusals by metric, in the order of [`Metric::ALL`].
    pub refused: [AtomicU64; 6],
    /// Refusals because Redis was away.
    pub unknown: AtomicU64,
}

const LOCAL: u8 = 0;
const SHARED: u8 = 1;
const AWAY: u8 = 2;
/// The longest that requests wait for a replica that has just started.
const LONGEST_START: Duration = Duration::from_secs(5);

/// Counts, grants and refuses.
pub struct Limiter {
    clock: Clock,
    authority: AtomicU8,
    on_outage: OnOutage,
    replicas: AtomicU64,
    registry: Mutex<HashMap<Arc<str>, Arc<Counter>>>,
    /// Counters that are in use.
    listed: Mutex<Vec<Arc<Counter>>>,
    desk: Option<mpsc::Sender<shared::Ask>>,
    /// Longest wait for Redis.
    budget: Duration,
    /// For how long the places of a replica that is gone stay taken, in microseconds.
    hold: u64,
    /// Whether it is known how limits stand: before that, requests wait.
    started: watch::Sender<bool>,
    is_started: AtomicBool,
    /// Organisations whose counts Redis refuses.
    broken: AtomicU64,
    ledger: Ledger,
    stats: Stats,
}

/// Something taken from one counter.
#[derive(Clone)]
struct Charge {
    counter: Arc<Counter>,
    metric: Metric,
    amount: u64,
    /// Start of the window that it was taken in.
    window: u64,
    /// More should be asked for.
    calls: bool,
}

impl Limiter {
    /// A limiter for the only replica.
    pub fn local() -> Self {
        Self::new(LOCAL, OnOutage::Deny, None, Duration::ZERO, Duration::ZERO)
    }

    fn new(
        authority: u8,
        on_outage: OnOutage,
        desk: Option<mpsc::Sender<shared::Ask>>,
        budget: Duration,
        hold: Duration,
    ) -> Self {
        let is_started = authority == LOCAL;
        Self {
            clock: Clock::new(authority == LOCAL),
            authority: AtomicU8::new(authority),
            on_outage,
            replicas: AtomicU64::new(1),
            registry: Mutex::default(),
            listed: Mutex::default(),
            desk,
            budget,
            hold: u64::try_from(hold.as_micros()).unwrap_or(u64::MAX),
            started: watch::Sender::new(is_started),
            is_started: AtomicBool::new(is_started),
            broken: AtomicU64::new(0),
            ledger: Ledger::default(),
            stats: Stats::default(),
        }
    }

    /// Compiles settings. A limit that was there before, whatever its amount, goes on with what was used.
    pub fn book(&self, settings: &Settings) -> Book {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = HashMap::with_capacity(registry.len());
        let mut compile = |level: Level, org: &str, subject: &str, limits: &[Limit]| -> Arc<[Bound]> {
            let mut names: HashMap<String, usize> = HashMap::new();
            let bound = |limit: &Limit| {
                let word = limit.unit.map_or("now", Unit::word);
                let id: Arc<str> = format!("{subject}:{}:{word}{}", limit.metric.word(), limit.filter).into();
                let whole: Arc<str> = format!("{}:{id}", encoded(org)).into();
                let known = used.get(&whole).or_else(|| registry.get(&whole)).cloned();
                let counter =
                    known.unwrap_or_else(|| Arc::new(Counter::new(id, encoded(org).into(), limit.unit, limit.amount)));
                counter.set_limit(limit.amount);
                used.insert(whole, Arc::clone(&counter));
                let mut name = format!("{}-{}", level.word(), limit.metric.word().replace('_', "-"));
                if let Some(unit) = limit.unit {
                    name = format!("{name}-{}", unit.word());
                }
                let count = names.entry(name.clone()).or_default();
                *count += 1;
                let name = if *count == 1 { name } else { format!("{name}-{count}") };
                Bound { level, limit: limit.clone(), name: name.into(), counter }
            };
            limits.iter().map(bound).collect()
        };
        let orgs: HashMap<&str, Arc<[Bound]>> =
            settings.orgs.iter().map(|(org, limits)| (org.as_str(), compile(Level::Org, org, "org", limits))).collect();
        let teams = settings.teams.iter().map(|((org, team), limits)| {
            let subject = format!("team/{}", encoded(team));
            ((org.as_str(), team.as_str()), compile(Level::Team, org, &subject, limits))
        });
        let teams: HashMap<(&str, &str), Arc<[Bound]>> = teams.collect();
        let none: Arc<[Bound]> = Arc::from([]);
        let mut names: HashMap<&str, Arc<str>> = HashMap::new();
        let mut accounts = HashMap::with_capacity(settings.keys.len());
        for key in &settings.keys {
            let subject = format!("key/{}", encoded(key.id.as_str()));
            let own = if key.limits.is_empty() {
                Arc::clone(&none)
            } else {
                compile(Level::Key, &key.org, &subject, &key.limits)
            };
            let org = orgs.get(key.org.as_str()).unwrap_or(&none);
            let team = teams.get(&(key.org.as_str(), key.team.as_str())).unwrap_or(&none);
            let mut shared = |name| Arc::clone(names.entry(name).or_insert_with(|| Arc::from(name)));
            let row = (shared(key.org.as_str()), shared(key.team.as_str()), Arc::from(key.id.as_str()));
            let levels = [Arc::clone(org), Arc::clone(team), own];
            accounts.insert(key.id.clone(), Arc::new(Account { row, levels }));
        }
        let nobody: Arc<str> = Arc::from("");
        let group = |bounds: &Arc<[Bound]>| Account {
            row: (Arc::clone(&nobody), Arc::clone(&nobody), Arc::clone(&nobody)),
            levels: [Arc::clone(bounds), Arc::clone(&none), Arc::clone(&none)],
        };
        let of_orgs = orgs.iter().map(|(org, bounds)| (((*org).to_owned(), None), group(bounds)));
        let of_teams =
            teams.iter().map(|((org, team), bounds)| (((*org).to_owned(), Some((*team).to_owned())), group(bounds)));
        let groups = of_orgs.chain(of_teams).collect();
        // A limit that was taken away may come back while its window lasts or its places are held.
        let now = self.clock.now();
        for (id, counter) in registry.drain() {
            if !counter.is_idle(now) {
                used.entry(id).or_insert(counter);
            }
        }
        *registry = used;
        Book { accounts, groups, prices: Arc::clone(&settings.prices), estimate: settings.estimate }
    }

    fn authority(&self) -> Authority {
        match self.authority.load(Ordering::Relaxed) {
            LOCAL => Authority::Local,
            SHARED => Authority::Shared,
            _ => self.away(),
        }
    }

    fn away(&self) -> Authority {
        Authority::Away(self.on_outage, self.replicas.load(Ordering::Relaxed), self.hold)
    }

    /// The time that limits go by, in microseconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// What happened so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether limits are shared, and if so whether Redis is there.
    pub fn is_away(&self) -> Option<bool> {
        match self.authority.load(Ordering::Relaxed) {
            LOCAL => None,
            authority => Some(authority == AWAY || self.broken.load(Ordering::Relaxed) > 0),
        }
    }

    /// Whether it is known how limits stand, or known that Redis is away.
    pub fn is_started(&self) -> bool {
        self.is_started.load(Ordering::Relaxed)
    }

    fn start(&self) {
        if !self.is_started.swap(true, Ordering::Relaxed) {
            self.started.send_replace(true);
        }
    }

    /// Replicas that share the limits, as far as is known.
    pub fn replicas(&self) -> u64 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Begins a request: charges the limits on requests that are for every request. Nothing of the body is known yet.
    pub async fn begin(self: &Arc<Self>, book: &Book, account: &Arc<Account>) -> Result<Reservation, Refused> {
        if !self.is_started() && !account.levels.iter().all(|bounds| bounds.is_empty()) {
            let mut started = self.started.subscribe();
            let _ = tokio::time::timeout(LONGEST_START, started.wait_for(|is_started| *is_started)).await;
        }
        let mut reservation = Reservation {
            limiter: Arc::clone(self),
            account: Arc::clone(account),
            prices: Arc::clone(&book.prices),
            estimate: book.estimate,
            fitting: 0,
            charges: Vec::with_capacity(8),
            model: None,
            most: Most::default(),
            used: Used::default(),
            is_counted: false,
            is_settled: false,
        };
        let mut bounds = Vec::new();
        for (at, bound) in account.bounds().enumerate().filter(|(_, bound)| bound.is_general()) {
            reservation.fitting |= bit(at);
            bounds.push((bound, 1));
        }
        reservation.charge(&bounds).await?;
        reservation.is_counted = true;
        Ok(reservation)
    }

    /// Takes all, or says at which place it failed.
    async fn take(&self, charges: &mut [Charge]) -> Result<(), Denial> {
        let authority = self.authority();
        let now = self.clock.now();
        match self.take_now(charges, now, authority) {
            Ok(()) => {
                let path = if matches!(authority, Authority::Away(..)) { &self.stats.away } else { &self.stats.local };
                path.fetch_add(1, Ordering::Relaxed);
                self.top_up(charges);
                Ok(())
            }
            Err((at, Take::Short)) => self.ask(charges, at).await,
            Err((at, _)) => {
                let unknown = matches!(authority, Authority::Away(OnOutage::Deny, ..));
                Err(if unknown { Denial::Unknown } else { Denial::At(at) })
            }
        }
    }

    fn take_now(&self, charges: &mut [Charge], now: u64, authority: Authority) -> Result<(), (usize, Take)> {
        for at in 0..charges.len() {
            let charge = &mut charges[at];
            match charge.counter.take_ahead(now, charge.amount, authority) {
                (Take::Done(window), calls) => (charge.window, charge.calls) = (window, calls),
                (failed, _) => {
                    charges[..at].iter().for_each(Charge::give_back);
                    return Err((at, failed));
                }
            }
            self.list(&charges[at].counter);
        }
        Ok(())
    }

    /// Notes that a counter is in use.
    fn list(&self, counter: &Arc<Counter>) {
        if self.desk.is_some()
            && !counter.is_listed.load(Ordering::Relaxed)
            && !counter.is_listed.swap(true, Ordering::Relaxed)
        {
            self.listed.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(counter));
        }
    }

    /// Asks for more before it is needed.
    fn top_up(&self, charges: &[Charge]) {
        let Some(desk) = &self.desk else { return };
        for charge in charges.iter().filter(|charge| charge.calls) {
            let _ = desk.try_send(shared::Ask::TopUp(Arc::clone(&charge.counter)));
        }
    }

    /// Waits for Redis, but not longer than it may take.
    async fn ask(&self, charges: &mut [Charge], at: usize) -> Result<(), Denial> {
        let Some(desk) = &self.desk else { return Err(Denial::At(at)) };
        self.stats.waited.fetch_add(1, Ordering::Relaxed);
        let (reply, answered) = oneshot::channel();
        let ask = shared::Ask::Take { charges: charges.to_vec(), reply };
        if desk.try_send(ask).is_ok() {
            match tokio::time::timeout(self.budget, answered).await {
                Ok(Ok(Ok(taken))) => {
                    for (charge, taken) in charges.iter_mut().zip(taken.keep()) {
                        charge.window = taken.window;
                    }
                    return Ok(());
                }
                Ok(Ok(Err(denial))) => return Err(denial),
                // Too late, or the courier has stopped.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        self.decide_alone(charges)
    }

    /// Decides as while Redis is away.
    fn decide_alone(&self, charges: &mut [Charge]) -> Result<(), Denial> {
        self.stats.away.fetch_add(1, Ordering::Relaxed);
        match self.take_now(charges, self.clock.now(), self.away()) {
            Ok(()) => Ok(()),
            Err((at, _)) => Err(if self.on_outage == OnOutage::Deny { Denial::Unknown } else { Denial::At(at) }),
        }
    }

    fn refusal(&self, bounds: &[(&Bound, u64)], denial: Denial) -> Refused {
        let found = match denial {
            Denial::At(at) => bounds.get(at),
            Denial::Unknown => None,
        };
        let Some((bound, asked)) = found else {
            self.stats.unknown.fetch_add(1, Ordering::Relaxed);
            return Refused::Unknown;
        };
        let metric = bound.limit.metric;
        let place = Metric::ALL.iter().position(|m| *m == metric).unwrap_or_default();
        self.stats.refused[place].fetch_add(1, Ordering::Relaxed);
        let amount = bound.counter.limit();
        let now = self.clock.now();
        let wait = match bound.limit.unit {
            None => Duration::from_secs(1),
            Some(_) => Duration::from_micros(bound.counter.remaining(now, self.authority()).1.end.saturating_sub(now)),
        };
        Refused::Exceeded(Exceeded {
            level: bound.level,
            name: Arc::clone(&bound.name),
            metric,
            amount,
            unit: bound.limit.unit,
            asked: *asked,
            retry_after: (*asked <= amount).then_some(wait),
        })
    }

    /// How the limits of an account stand.
    pub fn standings(&self, account: &Account) -> Vec<Standing> {
        let (now, authority) = (self.clock.now(), self.authority());
        account.bounds().map(|bound| bound.standing(now, authority)).collect()
    }

    /// Usage that is kept here: all of it when this replica is the only one, what Redis was not told yet otherwise.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Charge {
    fn new(bound: &Bound, amount: u64) -> Self {
        let metric = bound.limit.metric;
        Self { counter: Arc::clone(&bound.counter), metric, amount, window: 0, calls: false }
    }

    fn give_back(&self) {
        self.counter.give_back(self.window, self.amount);
    }
}

/// Why charges were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// The one at this place.
    At(usize),
    /// Redis is away.
    Unknown,
}

impl Book {
    /// The account of a key.
    pub fn account(&self, id: &CallerId) -> Option<&Arc<Account>> {
        self.accounts.get(id)
    }

    /// The limits of an organisation or of a team, whatever keys they have.
    pub fn group(&self, org: &str, team: Option<&str>) -> Option<&Account> {
        self.groups.get(&(org.to_owned(), team.map(str::to_owned)))
    }
}

impl Account {
    /// The limits, in the order of [`Limiter::standings`].
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.bounds().map(|bound| &bound.limit)
    }

    fn bounds(&self) -> impl Iterator<Item = &Bound> {
        self.levels.iter().flat_map(|bounds| bounds.iter())
    }
}

impl Bound {
    /// Whether it counts requests of every kind, so that nothing of the body has to be known.
    fn is_general(&self) -> bool {
        self.limit.metric == Metric::Requests && self.limit.filter.is_open()
    }

    fn standing(&self, now: u64, authority: Authority) -> Standing {
        let (remaining, window) = self.counter.remaining(now, authority);
        let is_held = self.limit.unit.is_none();
        let micros = |time: u64| if is_held { Duration::ZERO } else { Duration::from_micros(time) };
        Standing {
            name: Arc::clone(&self.name),
            level: self.level,
            metric: self.limit.metric,
            unit: self.limit.unit,
            amount: self.counter.limit(),
            remaining,
            window: micros(window.length()),
            reset: micros(window.end.saturating_sub(now)),
        }
    }
}

/// What one request has been given. Settles itself when dropped, by what was noted until then.
pub struct Reservation {
    limiter: Arc<Limiter>,
    account: Arc<Account>,
    prices: Arc<[Price]>,
    estimate: Estimate,
    /// The bounds of the account that are for this request, as far as is known, one bit each.
    fitting: u128,
    charges: Vec<Charge>,
    model: Option<ModelId>,
    most: Most,
    used: Used,
    is_counted: bool,
    is_settled: bool,
}

impl Reservation {
    /// Charges every limit that fits and was not charged by [`Limiter::begin`]: filtered limits on requests, tokens,
    /// spend, concurrency. What was charged before is given back when one refuses.
    pub async fn reserve(&mut self, asked: &Asked<'_>, most: Most) -> Result<(), Refused> {
        self.model = asked.model.cloned();
        self.most = most;
        let account = Arc::clone(&self.account);
        let amount = self.amounts();
        let mut bounds = Vec::new();
        for (at, bound) in account.bounds().enumerate().filter(|(_, bound)| !bound.is_general()) {
            if bound.limit.filter.is_open() || bound.limit.filter.fits(asked) {
                self.fitting |= bit(at);
                bounds.push((bound, amount(bound)));
            }
        }
        self.charge(&bounds).await
    }

    /// What is charged to each bound: the most that the request may use.
    fn amounts(&self) -> impl Fn(&Bound) -> u64 + use<> {
        let Most { input, output, video_seconds } = self.most;
        let cost = self.cost(&Used { input, output, video_seconds, answered: true });
        move |bound| match bound.limit.metric {
            Metric::Requests | Metric::Concurrency => 1,
            Metric::InputTokens => input,
            Metric::OutputTokens => output,
            Metric::TotalTokens => input.saturating_add(output),
            Metric::Spend => cost,
        }
    }

    /// Goes on as another request would be charged: limits that are only for that one are charged now, those that are
    /// only for this one are given back. Nothing changes when one refuses.
    pub async fn moved(&mut self, asked: &Asked<'_>) -> Result<(), Refused> {
        let account = Arc::clone(&self.account);
        let amount = self.amounts();
        let (mut added, mut dropped, mut fitting) = (Vec::new(), Vec::new(), self.fitting);
        for (at, bound) in account.bounds().enumerate().filter(|(_, bound)| !bound.limit.filter.is_open()) {
            match (self.fitting & bit(at) != 0, bound.limit.filter.fits(asked)) {
                (false, true) => added.push((bound, amount(bound))),
                (true, false) => dropped.push(bound),
                _ => continue,
            }
            fitting ^= bit(at);
        }
        let mut charges: Vec<Charge> = added.iter().map(|(bound, amount)| Charge::new(bound, *amount)).collect();
        if !charges.is_empty() {
            let taken = self.limiter.take(&mut charges).await;
            taken.map_err(|denial| self.limiter.refusal(&added, denial))?;
        }
        for bound in dropped {
            if let Some(at) = self.charges.iter().position(|charge| Arc::ptr_eq(&charge.counter, &bound.counter)) {
                self.charges.swap_remove(at).give_back();
            }
        }
        self.charges.append(&mut charges);
        self.fitting = fitting;
        Ok(())
    }

    async fn charge(&mut self, bounds: &[(&Bound, u64)]) -> Result<(), Refused> {
        if bounds.is_empty() {
            return Ok(());
        }
        let first = self.charges.len();
        self.charges.extend(bounds.iter().map(|(bound, amount)| Charge::new(bound, *amount)));
        // Taken out meanwhile: if this request is dropped while it waits, nothing that it did not get is given back.
        let mut asked = self.charges.split_off(first);
        let taken = self.limiter.take(&mut asked).await;
        match taken {
            Ok(()) => {
                self.charges.append(&mut asked);
                Ok(())
            }
            Err(denial) => {
                self.charges.drain(..).for_each(|charge| charge.give_back());
                self.is_counted = false;
                Err(self.limiter.refusal(bounds, denial))
            }
        }
    }

    fn cost(&self, used: &Used) -> u64 {
        Price::of(&self.prices, self.model.as_ref()).map_or(0, |price| price.cost(used))
    }

    /// How much is to be reserved for what.
    pub fn estimate(&self) -> Estimate {
        self.estimate
    }

    /// The most that it may use, as reserved.
    pub fn most(&self) -> Most {
        self.most
    }

    /// Notes what it has used so far; the last note counts.
    pub fn note(&mut self, used: Used) {
        self.used = used;
    }

    /// What it has used, as noted.
    pub fn used(&self) -> Used {
        self.used
    }

    /// Whether it has been settled.
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Money that what was noted costs, in nano-units.
    pub fn spend(&self) -> u64 {
        self.cost(&self.used)
    }

    /// How the limits on requests and tokens stand that are for this request: what answers tell.
    pub fn standings(&self) -> Vec<Standing> {
        let (now, authority) = (self.limiter.clock.now(), self.limiter.authority());
        let is_told = |limit: &Limit| limit.metric == Metric::Requests || limit.metric.is_tokens();
        let fitting = self.account.bounds().enumerate().filter(|(at, _)| self.fitting & bit(*at) != 0);
        let fitting = fitting.filter(|(_, bound)| is_told(&bound.limit));
        fitting.map(|(_, bound)| bound.standing(now, authority)).collect()
    }

    /// Charges what was noted, and gives the rest back. Only the first call counts.
    pub fn settle(&mut self) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let now = self.limiter.clock.now();
        let cost = self.cost(&self.used);
        for charge in self.charges.drain(..) {
            let used = match charge.metric {
                Metric::Requests => charge.amount,
                Metric::Concurrency => 0,
                Metric::InputTokens => self.used.input,
                Metric::OutputTokens => self.used.output,
                Metric::TotalTokens => self.used.input.saturating_add(self.used.output),
                Metric::Spend => cost,
            };
            if used < charge.amount {
                charge.counter.give_back(charge.window, charge.amount - used);
            } else if used > charge.amount {
                charge.counter.overdraw(now, used - charge.amount);
            }
            self.limiter.list(&charge.counter);
        }
        if !self.is_counted {
            return;
        }
        let (org, team, key) = &self.account.row;
        let row = Row {
            org: Arc::clone(org),
            team: Arc::clone(team),
            key: Arc::clone(key),
            model: self.model.as_ref().map_or_else(|| Arc::from(""), |m| Arc::from(m.as_str())),
        };
        let amounts =
            Amounts { requests: 1, input_tokens: self.used.input, output_tokens: self.used.output, spend: cost };
        self.limiter.ledger.add(window::day(now), row, &amounts);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The bit of a bound of an account. An account has at most 96 (32 for each level).
fn bit(at: usize) -> u128 {
    u32::try_from(at).ok().and_then(|at| 1_u128.checked_shl(at)).unwrap_or(0)
}

/// A name as it may stand in a key of Redis: nothing but letters, digits, `.`, `_`, `-` as they are.
fn encoded(name: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');
    percent_encoding::utf8_percent_encode(name, KEPT).to_string()
}
