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
use self::usage::{Amounts, Ledger, Page};
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
}

/// The limits that stand over one key.
pub struct Account {
    levels: [Arc<[Bound]>; 3],
    terms: Arc<Terms>,
    page: Arc<Page>,
}

/// What holds for all accounts.
struct Terms {
    prices: Arc<[Price]>,
    estimate: Estimate,
}

/// One limit and its count.
struct Bound {
    counter: Arc<Counter>,
    rule: Arc<Rule>,
}

/// What a limit says; those who have the same limit share it.
struct Rule {
    level: Level,
    limit: Limit,
    /// Its name in headers, such as `key-requests-second`.
    name: Arc<str>,
    /// Whether it is for every request.
    is_open: bool,
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
#[derive(Clone, Copy, Debug)]
pub struct Standing<N = Arc<str>> {
    /// Its name.
    pub name: N,
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

/// Something taken from one counter of an account.
#[derive(Clone, Copy)]
struct Charge {
    /// Which counter it is: the level, and the place among that level's bounds.
    place: (u8, u8),
    /// More should be asked for.
    calls: bool,
    amount: u64,
    /// Start of the window that it was taken in.
    window: u64,
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
    pub fn book<'a>(&self, settings: &'a Settings) -> Book {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = HashMap::with_capacity(registry.len());
        let mut rules: HashMap<(Level, &Limit, usize), Arc<Rule>> = HashMap::new();
        let mut compile = |level: Level, org: &str, subject: &str, limits: &'a [Limit]| -> Arc<[Bound]> {
            let tag: Arc<str> = encoded(org).into();
            let bound = |(at, limit): (usize, &'a Limit)| {
                let word = limit.unit.map_or("now", Unit::word);
                let id: Arc<str> = format!("{subject}:{}:{word}{}", limit.metric.word(), limit.mark()).into();
                let whole: Arc<str> = format!("{tag}:{id}").into();
                let known = used.get(&whole).or_else(|| registry.get(&whole)).cloned();
                let counter =
                    known.unwrap_or_else(|| Arc::new(Counter::new(id, Arc::clone(&tag), limit.unit, limit.amount)));
                counter.set_limit(limit.amount);
                used.insert(whole, Arc::clone(&counter));
                let is_alike = |other: &&Limit| (other.metric, other.unit) == (limit.metric, limit.unit);
                let before = limits[..at].iter().filter(is_alike).count();
                let rule =
                    rules.entry((level, limit, before)).or_insert_with(|| Arc::new(Rule::new(level, limit, before)));
                Bound { counter, rule: Arc::clone(rule) }
            };
            limits.iter().enumerate().map(bound).collect()
        };
        let orgs: HashMap<&str, Arc<[Bound]>> =
            settings.orgs.iter().map(|(org, limits)| (org.as_str(), compile(Level::Org, org, "org", limits))).collect();
        let teams = settings.teams.iter().map(|((org, team), limits)| {
            let subject = format!("team/{}", encoded(team));
            ((org.as_str(), team.as_str()), compile(Level::Team, org, &subject, limits))
        });
        let teams: HashMap<(&str, &str), Arc<[Bound]>> = teams.collect();
        let none: Arc<[Bound]> = Arc::from([]);
        let terms = Arc::new(Terms { prices: Arc::clone(&settings.prices), estimate: settings.estimate });
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
            let page = self.ledger.page([shared(&key.org), shared(&key.team), Arc::from(key.id.as_str())]);
            let levels = [Arc::clone(org), Arc::clone(team), own];
            accounts.insert(key.id.clone(), Arc::new(Account { levels, terms: Arc::clone(&terms), page }));
        }
        let group = |bounds: &Arc<[Bound]>| Account {
            levels: [Arc::clone(bounds), Arc::clone(&none), Arc::clone(&none)],
            terms: Arc::clone(&terms),
            page: Arc::default(),
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
        Book { accounts, groups }
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
    pub async fn begin(self: &Arc<Self>, account: &Arc<Account>) -> Result<Reservation, Refused> {
        if !self.is_started() && !account.levels.iter().all(|bounds| bounds.is_empty()) {
            let mut started = self.started.subscribe();
            let _ = tokio::time::timeout(LONGEST_START, started.wait_for(|is_started| *is_started)).await;
        }
        let mut reservation = Reservation {
            limiter: Arc::clone(self),
            account: Arc::clone(account),
            fitting: 0,
            charges: Vec::with_capacity(account.levels.iter().map(|bounds| bounds.len()).sum()),
            taken: 0,
            model: None,
            most: Most::default(),
            used: Used::default(),
            is_counted: false,
            is_settled: false,
        };
        reservation.claim(|rule| rule.is_general().then_some(1));
        reservation.charge().await?;
        reservation.is_counted = true;
        Ok(reservation)
    }

    /// Takes all, or says at which place it failed.
    async fn take(&self, account: &Arc<Account>, charges: &mut [Charge]) -> Result<(), Denial> {
        let authority = self.authority();
        let now = self.clock.now();
        match self.take_now(account, charges, now, authority) {
            Ok(()) => {
                let path = if matches!(authority, Authority::Away(..)) { &self.stats.away } else { &self.stats.local };
                path.fetch_add(1, Ordering::Relaxed);
                self.top_up(account, charges);
                Ok(())
            }
            Err((at, Take::Short)) => self.ask(account, charges, at).await,
            Err((at, _)) => {
                let unknown = matches!(authority, Authority::Away(OnOutage::Deny, ..));
                Err(if unknown { Denial::Unknown } else { Denial::At(at) })
            }
        }
    }

    fn take_now(
        &self,
        account: &Account,
        charges: &mut [Charge],
        now: u64,
        authority: Authority,
    ) -> Result<(), (usize, Take)> {
        for at in 0..charges.len() {
            let charge = &mut charges[at];
            let counter = account.counter(charge);
            match counter.take_ahead(now, charge.amount, authority) {
                (Take::Done(window), calls) => (charge.window, charge.calls) = (window, calls),
                (failed, _) => {
                    charges[..at].iter().for_each(|charge| self.give_back(account, charge));
                    return Err((at, failed));
                }
            }
            self.list(counter);
        }
        Ok(())
    }

    /// Gives back what was charged. Where others wait for it, the courier is told.
    fn give_back(&self, account: &Account, charge: &Charge) {
        if let (true, Some(desk)) = (account.give_back(charge), &self.desk) {
            let _ = desk.try_send(shared::Ask::Freed(Arc::clone(account.counter(charge))));
        }
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
    fn top_up(&self, account: &Account, charges: &[Charge]) {
        let Some(desk) = &self.desk else { return };
        for charge in charges.iter().filter(|charge| charge.calls) {
            let _ = desk.try_send(shared::Ask::TopUp(Arc::clone(account.counter(charge))));
        }
    }

    /// Waits for Redis, but not longer than it may take.
    async fn ask(&self, account: &Arc<Account>, charges: &mut [Charge], at: usize) -> Result<(), Denial> {
        let Some(desk) = &self.desk else { return Err(Denial::At(at)) };
        self.stats.waited.fetch_add(1, Ordering::Relaxed);
        let (reply, answered) = oneshot::channel();
        let ask = shared::Ask::Take(shared::Waiting::new(account, charges, reply));
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
        self.decide_alone(account, charges)
    }

    /// Decides as while Redis is away.
    fn decide_alone(&self, account: &Account, charges: &mut [Charge]) -> Result<(), Denial> {
        self.stats.away.fetch_add(1, Ordering::Relaxed);
        match self.take_now(account, charges, self.clock.now(), self.away()) {
            Ok(()) => Ok(()),
            Err((at, _)) => Err(if self.on_outage == OnOutage::Deny { Denial::Unknown } else { Denial::At(at) }),
        }
    }

    fn refusal(&self, account: &Account, charges: &[Charge], denial: Denial) -> Refused {
        let found = match denial {
            Denial::At(at) => charges.get(at),
            Denial::Unknown => None,
        };
        let Some(charge) = found else {
            self.stats.unknown.fetch_add(1, Ordering::Relaxed);
            return Refused::Unknown;
        };
        let Bound { counter, rule } = account.bound(charge);
        let Limit { metric, unit, .. } = rule.limit;
        let place = Metric::ALL.iter().position(|m| *m == metric).unwrap_or_default();
        self.stats.refused[place].fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let (amount, _, window) = counter.standing(now, self.authority());
        let wait = match unit {
            None => Duration::from_secs(1),
            Some(_) => Duration::from_micros(window.end.saturating_sub(now)),
        };
        Refused::Exceeded(Exceeded {
            level: rule.level,
            name: Arc::clone(&rule.name),
            metric,
            amount,
            unit,
            asked: charge.amount,
            retry_after: (charge.amount <= amount).then_some(wait),
        })
    }

    /// How the limits of an account stand.
    pub fn standings(&self, account: &Account) -> Vec<Standing> {
        let (now, authority) = (self.clock.now(), self.authority());
        account.bounds().map(|bound| bound.standing(now, authority).to_owned()).collect()
    }

    /// Usage that is kept here: all of it when this replica is the only one, what Redis was not told yet otherwise.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Standing<&Arc<str>> {
    /// The same for keeping.
    pub fn to_owned(self) -> Standing {
        let Self { name, level, metric, unit, amount, remaining, window, reset } = self;
        Standing { name: Arc::clone(name), level, metric, unit, amount, remaining, window, reset }
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
        self.bounds().map(|bound| &bound.rule.limit)
    }

    fn bounds(&self) -> impl Iterator<Item = &Bound> {
        self.levels.iter().flat_map(|bounds| bounds.iter())
    }

    fn bound(&self, charge: &Charge) -> &Bound {
        let (level, at) = charge.place;
        &self.levels[usize::from(level)][usize::from(at)]
    }

    fn counter(&self, charge: &Charge) -> &Arc<Counter> {
        &self.bound(charge).counter
    }

    /// Gives back what was charged; `true` when others wait for it and the courier does not know.
    fn give_back(&self, charge: &Charge) -> bool {
        self.counter(charge).give_back(charge.window, charge.amount)
    }
}

impl Bound {
    fn standing(&self, now: u64, authority: Authority) -> Standing<&Arc<str>> {
        let (amount, remaining, window) = self.counter.standing(now, authority);
        let Rule { level, limit: Limit { metric, unit, .. }, ref name, .. } = *self.rule;
        let micros = |time: u64| if unit.is_none() { Duration::ZERO } else { Duration::from_micros(time) };
        let (length, reset) = (micros(window.length()), micros(window.end.saturating_sub(now)));
        Standing { name, level, metric, unit, amount, remaining, window: length, reset }
    }
}

impl Rule {
    /// A limit; there are so many before it of the same metric and unit.
    fn new(level: Level, limit: &Limit, before: usize) -> Self {
        let mut name = format!("{}-{}", level.word(), limit.metric.word().replace('_', "-"));
        if let Some(unit) = limit.unit {
            name = format!("{name}-{}", unit.word());
        }
        if before > 0 {
            name = format!("{name}-{}", before + 1);
        }
        Self { level, limit: limit.clone(), name: name.into(), is_open: limit.filter.is_open() }
    }

    /// Whether it counts requests of every kind, so that nothing of the body has to be known.
    fn is_general(&self) -> bool {
        self.limit.metric == Metric::Requests && self.is_open
    }

    /// Whether answers tell how it stands.
    fn is_told(&self) -> bool {
        self.limit.metric == Metric::Requests || self.limit.metric.is_tokens()
    }
}

/// What one request has been given. Settles itself when dropped, by what was noted until then.
pub struct Reservation {
    limiter: Arc<Limiter>,
    account: Arc<Account>,
    /// The bounds of the account that are for this request, as far as is known, one bit each.
    fitting: u128,
    charges: Vec<Charge>,
    /// So many of the charges were taken: if this request is dropped while it waits for others, nothing that it did not
    /// get is given back.
    taken: usize,
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
        let amount = self.amounts();
        self.claim(|rule| {
            let fits = !rule.is_general() && (rule.is_open || rule.limit.filter.fits(asked));
            fits.then(|| amount(rule.limit.metric))
        });
        self.charge().await
    }

    /// What is charged of each metric: the most that the request may use.
    fn amounts(&self) -> impl Fn(Metric) -> u64 + use<> {
        let Most { input, output, video_seconds } = self.most;
        let cost = self.cost(&Used { input, output, video_seconds, answered: true, ..Used::default() });
        move |metric| match metric {
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
        let amount = self.amounts();
        let (mut at, mut fitting, mut dropped) = (0, self.fitting, Vec::new());
        for (level, bounds) in (0..).zip(&self.account.levels) {
            for (place, Bound { rule, .. }) in (0..).zip(bounds.iter()) {
                let fits = rule.is_open || rule.limit.filter.fits(asked);
                if fits != (self.fitting & bit(at) != 0) {
                    fitting ^= bit(at);
                    if fits {
                        let amount = amount(rule.limit.metric);
                        self.charges.push(Charge { place: (level, place), calls: false, amount, window: 0 });
                    } else {
                        dropped.push((level, place));
                    }
                }
                at += 1;
            }
        }
        let (_, added) = self.charges.split_at_mut(self.taken);
        if !added.is_empty()
            && let Err(denial) = self.limiter.take(&self.account, added).await
        {
            let refused = self.limiter.refusal(&self.account, added, denial);
            self.charges.truncate(self.taken);
            return Err(refused);
        }
        let is_dropped = |charge: &Charge| dropped.contains(&charge.place);
        self.charges.iter().filter(|c| is_dropped(c)).for_each(|c| self.limiter.give_back(&self.account, c));
        self.charges.retain(|charge| !is_dropped(charge));
        (self.taken, self.fitting) = (self.charges.len(), fitting);
        Ok(())
    }

    /// Notes what is to be charged: so much, for those bounds that are for this request.
    fn claim(&mut self, amount: impl Fn(&Rule) -> Option<u64>) {
        let mut at = 0;
        for (level, bounds) in (0..).zip(&self.account.levels) {
            for (place, bound) in (0..).zip(bounds.iter()) {
                if let Some(amount) = amount(&bound.rule) {
                    self.fitting |= bit(at);
                    self.charges.push(Charge { place: (level, place), calls: false, amount, window: 0 });
                }
                at += 1;
            }
        }
    }

    /// Charges what was noted and not charged yet.
    async fn charge(&mut self) -> Result<(), Refused> {
        let (charged, asked) = self.charges.split_at_mut(self.taken);
        if asked.is_empty() {
            return Ok(());
        }
        if let Err(denial) = self.limiter.take(&self.account, asked).await {
            let refused = self.limiter.refusal(&self.account, asked, denial);
            charged.iter().for_each(|charge| self.limiter.give_back(&self.account, charge));
            (self.taken, self.is_counted) = (0, false);
            self.charges.clear();
            return Err(refused);
        }
        self.taken = self.charges.len();
        Ok(())
    }

    fn cost(&self, used: &Used) -> u64 {
        Price::of(&self.account.terms.prices, self.model.as_ref()).map_or(0, |price| price.cost(used))
    }

    /// How much is to be reserved for what.
    pub fn estimate(&self) -> Estimate {
        self.account.terms.estimate
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
    pub fn standings(&self) -> impl Iterator<Item = Standing<&Arc<str>>> {
        let (now, authority) = (self.limiter.clock.now(), self.limiter.authority());
        let fitting = self.account.bounds().enumerate().filter(|(at, _)| self.fitting & bit(*at) != 0);
        let told = fitting.filter(|(_, bound)| bound.rule.is_told());
        told.map(move |(_, bound)| bound.standing(now, authority))
    }

    /// Charges what was noted, and gives the rest back. Only the first call counts.
    pub fn settle(&mut self) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let now = self.limiter.clock.now();
        let cost = self.cost(&self.used);
        for charge in &self.charges[..self.taken] {
            let bound = self.account.bound(charge);
            let Limit { metric, counts_cached, .. } = bound.rule.limit;
            let counted = if counts_cached { self.used } else { self.used.asked() };
            let used = match metric {
                Metric::Requests if self.used.is_known && !counts_cached => 0,
                Metric::Requests => charge.amount,
                Metric::Concurrency => 0,
                Metric::InputTokens => counted.input,
                Metric::OutputTokens => counted.output,
                Metric::TotalTokens => counted.input.saturating_add(counted.output),
                Metric::Spend if counts_cached => cost,
                Metric::Spend => self.cost(&counted),
            };
            if used < charge.amount {
                self.limiter.give_back(&self.account, &Charge { amount: charge.amount - used, ..*charge });
            } else if used > charge.amount {
                bound.counter.overdraw(now, used - charge.amount);
            }
            self.limiter.list(&bound.counter);
        }
        if !self.is_counted {
            return;
        }
        let model = self.model.as_ref().map_or("", ModelId::as_str);
        let amounts =
            Amounts { requests: 1, input_tokens: self.used.input, output_tokens: self.used.output, spend: cost };
        self.account.page.add(window::day(now), model, &amounts);
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
