//! Balance: which endpoint of the pool takes this request?
//!
//! By default the one that is expected to finish it soonest, by what was learned of each from its own answers, of a few
//! random ones. A [`Lease`] counts as load from the pick until it is dropped, however the request ends. Probing,
//! scraping, finding and connecting are done elsewhere and reported here. Times are microseconds of [`now`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub mod affinity;
mod breaker;
mod health;
mod members;
mod report;
mod surprise;
mod work;

pub use breaker::{BreakerSettings, Standing, Verdict};
pub use health::{Health, Thresholds};
pub use members::{Members, Present};
pub use report::{Heard, Report};
pub use work::{Fit, Pace};

use affinity::{Chain, Memory};
use breaker::Breaker;
use surprise::Surprise;

/// One endpoint as configured or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How it is named in answers, logs and metrics: host and port of its URL, or the address at which it was found.
    pub name: String,
    /// Host to resolve, or by which it was found.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// When probes change its state.
    pub thresholds: Thresholds,
}

/// How a pool chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// By what.
    pub policy: Policy,
    /// How many random endpoints are compared; all of a pool that has no more.
    pub choices: usize,
    /// Most requests in flight on one endpoint.
    pub max_in_flight: usize,
    /// How answers change what it gets.
    pub breaker: BreakerSettings,
    /// The age at which a report of an endpoint is no longer used.
    pub stale_after: Duration,
    /// Most beginnings of conversations that are remembered; 0 for no affinity.
    pub affinity: usize,
    /// When all endpoints look bad, whether the best of them is tried.
    pub try_sick: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            policy: Policy::Work,
            choices: 8,
            max_in_flight: 1024,
            breaker: BreakerSettings::default(),
            stale_after: Duration::from_secs(5),
            affinity: 0,
            try_sick: true,
        }
    }
}

/// What endpoints are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The time in which they are expected to finish the request.
    #[default]
    Work,
    /// Requests of this gateway in flight.
    LeastInFlight,
    /// Turns.
    RoundRobin,
    /// Nothing.
    Random,
}

/// The most endpoints that are compared.
pub const MOST_CHOICES: usize = 32;
/// Expected times that differ by no more than this factor are about the same.
const CLOSE: f64 = 1.3;
/// The load that an affine request may find above the pool's mean before another endpoint is better.
const AFFINE_BOUND: f64 = 1.5;
/// Requests above the mean that are always allowed for affinity.
const AFFINE_SLACK: f64 = 2.0;
/// How much later than the best the affine endpoint may be expected to finish.
const AFFINE_PATIENCE: f64 = 4.0;
/// The same for one that takes what is too much for it.
const OVERFLOW_PATIENCE: f64 = 2.0;
/// What is taken for granted of a pool that nothing is known of: seconds for a unit of work.
const UNKNOWN: Fit = Fit { own: 0.01, ahead: 0.01 / 16.0 };
/// Microseconds after which an endpoint without requests is tried again, however slow it was.
const LONG: u64 = 5_000_000;
/// Weight of the latest in the means of a pool.
const LATEST: f64 = 0.05;

/// Microseconds since this process began to count, never 0.
pub fn now() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let since = EPOCH.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_add(1)
}

/// One backend address with its load and health. Lives on across reloads that keep it.
#[derive(Debug)]
pub struct Endpoint {
    settings: Settings,
    id: u64,
    addresses: RwLock<Vec<SocketAddr>>,
    has_address: AtomicBool,
    /// Whether an operator keeps new requests away.
    is_drained: AtomicBool,
    in_flight: AtomicUsize,
    /// Work in flight, in thousandths.
    work: AtomicU64,
    /// Sum of the times at which what is in flight began; wraps.
    begun: AtomicU64,
    /// When it got its last request; 0 before the first.
    given: AtomicU64,
    next_address: AtomicUsize,
    health: Health,
    breaker: Breaker,
    pace: Pace,
    heard: Heard,
}

/// Interchangeable endpoints. Of a pool that has none yet, all are unhealthy.
#[derive(Debug)]
pub struct Pool {
    members: Arc<Members>,
    common: Arc<Common>,
}

/// What the endpoints of a pool have in common. Lives on across reloads.
#[derive(Debug)]
pub struct Common {
    /// Those of the latest configuration: whoever waited through a reload goes where endpoints are now.
    current: ArcSwap<Members>,
    tuning: ArcSwap<Tuning>,
    pace: Pace,
    /// Mean work of a request and mean output, as bits.
    mean_work: AtomicU64,
    mean_output: AtomicU64,
    turn: AtomicUsize,
    memory: ArcSwap<Memory>,
    surprise: Surprise,
}

/// One request in flight on an endpoint; gives its place back when dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    common: Arc<Common>,
    address: SocketAddr,
    work: f64,
    /// Work in flight when it was picked, without its own.
    ahead: f64,
    begun: u64,
    is_trial: bool,
    /// What was expected of it, in seconds: without and with the endpoint's reports.
    expected: (f64, f64),
    verdict: Verdict,
    /// For how long the endpoint is to be left alone, although it answered well.
    rest: Option<Duration>,
    /// Work that it turned out to be, when it ended well.
    done: Option<f64>,
}

/// What a request asks of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Units of work that it is expected to be; at least a thousandth.
    pub work: f64,
    /// The beginnings of its conversation.
    pub chain: Option<&'a Chain>,
    /// Endpoints that were tried for it.
    pub tried: &'a [Arc<Endpoint>],
    /// Whether an endpoint that looks bad is refused even when all do.
    pub only_well: bool,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { work: 1.0, chain: None, tried: &[], only_well: false }
    }
}

/// Why no endpoint can take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// Health probes fail on all of them, or their names do not resolve, or none was found.
    AllUnhealthy,
    /// Each was tried for this request.
    AllTried,
    /// Each works on as many requests as it may.
    AllFull,
}

/// What an endpoint may get at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// Requests.
    Usable,
    /// Requests when none is usable: it asked for a pause, its breaker is open, its probes fail.
    Sick,
    /// None.
    Out,
}

impl Pool {
    /// A pool of these endpoints.
    pub fn new(members: Arc<Members>, tuning: Tuning) -> Self {
        let common = Common {
            current: ArcSwap::new(Arc::clone(&members)),
            memory: ArcSwap::from_pointee(Memory::new(tuning.affinity)),
            tuning: ArcSwap::from_pointee(tuning),
            pace: Pace::default(),
            mean_work: AtomicU64::new(1.0_f64.to_bits()),
            mean_output: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            surprise: Surprise::default(),
        };
        Self { members, common: Arc::new(common) }
    }

    /// A pool of these endpoints that knows what the one before it knew.
    pub fn succeeding(before: &Self, members: Arc<Members>, tuning: Tuning) -> Self {
        let common = &before.common;
        if common.tuning.load().affinity != tuning.affinity {
            common.memory.store(Arc::new(Memory::new(tuning.affinity)));
        }
        common.tuning.store(Arc::new(tuning));
        Self { members, common: Arc::clone(common) }
    }

    /// Its endpoints at this moment, in the order of the configuration, or of their addresses.
    pub fn endpoints(&self) -> Present {
        self.members.present()
    }

    /// Puts its endpoints in the place of those of the pool before it, once they have addresses. Requests that wait under
    /// an earlier configuration go to them too.
    pub fn take_over(&self) {
        let before = self.common.current.load_full();
        if !Arc::ptr_eq(&before, &self.members) {
            self.members.follow(&before);
            self.common.current.store(Arc::clone(&self.members));
        }
    }

    /// The endpoints that take requests now, whatever configuration this pool is of.
    fn current(&self) -> Present {
        self.common.current.load().present()
    }

    /// Its endpoints as they come and go.
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// How it chooses.
    pub fn tuning(&self) -> Arc<Tuning> {
        self.common.tuning.load_full()
    }

    /// Whether any endpoint takes requests, as far as probes say.
    pub fn is_available(&self) -> bool {
        self.endpoints().iter().any(|e| e.is_available())
    }

    /// Whether an endpoint was not tried yet.
    pub fn has_others(&self, tried: &[Arc<Endpoint>]) -> bool {
        self.current().iter().any(|e| !e.is_drained() && !tried.iter().any(|t| Arc::ptr_eq(t, e)))
    }

    /// Whether any endpoint looks well: probes succeed, its breaker is closed, it asked for no pause.
    pub fn is_well(&self, now: u64) -> bool {
        self.current().iter().any(|e| e.grade(now) == Grade::Usable)
    }

    /// Whether the address of any endpoint is known.
    pub fn is_resolved(&self) -> bool {
        self.current().iter().any(|e| e.has_address())
    }

    /// Whether an endpoint works, and merely asked for a pause.
    pub fn is_resting(&self) -> bool {
        let works = |e: &Arc<Endpoint>| e.is_available() && !e.breaker.is_open();
        self.current().iter().any(works)
    }

    /// How many requests may be in flight on it: what its endpoints take that look well, beside what the others still
    /// work on; when none looks well, as if all did.
    pub fn places(&self, now: u64) -> usize {
        let (current, leaving) = (self.current(), self.common.current.load().leaving());
        let most = self.common.tuning.load().max_in_flight;
        let of = |grade| current.iter().filter(move |e| e.grade(now) == grade);
        let takers = [Grade::Usable, Grade::Sick].into_iter().find(|grade| of(*grade).next().is_some());
        let others = current.iter().filter(|e| takers.is_none_or(|grade| e.grade(now) != grade));
        let busy: usize = others.chain(&leaving).map(|e| e.in_flight()).sum();
        takers.map_or(1, |grade| of(grade).count()).saturating_mul(most).saturating_add(busy)
    }

    /// After how much longer than expected a request is among the slowest 5 in 100, in total, for this one.
    pub fn patience(&self, lease: &Lease) -> Option<Duration> {
        let seconds = self.common.surprise.below(0.95)? * lease.expected.0;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The output that is expected of a request that may have at most so much: callers allow far more than they get.
    pub fn expected_output(&self, most: u64) -> f64 {
        let mean = f64::from_bits(self.common.mean_output.load(Ordering::Relaxed));
        if mean > 0.0 { (2.0 * mean).min(most as f64) } else { most as f64 }
    }

    /// Learns how much output a request had.
    pub fn note_output(&self, output: u64) {
        let cell = &self.common.mean_output;
        let mean = f64::from_bits(cell.load(Ordering::Relaxed));
        let output = output as f64;
        let next = if mean > 0.0 { mean + (output - mean) * LATEST } else { output };
        cell.store(next.to_bits(), Ordering::Relaxed);
    }

    /// Seconds in which an endpoint of it is expected to finish a request of the usual work.
    pub fn expected(&self, endpoint: &Endpoint, now: u64) -> f64 {
        endpoint.expected(self.common.mean_work(), self.common.usual(), &self.common.tuning.load(), now)
    }

    /// Picks the endpoint for a request, leaving out those that were tried.
    pub fn pick(&self, ask: &Ask<'_>, now: u64) -> Result<Lease, NoEndpoint> {
        let endpoints = &self.current();
        let tuning = self.common.tuning.load();
        let work = ask.work.clamp(0.001, 1e12);
        // An endpoint may fill up between the look and the take.
        for _ in 0..4 {
            let most = tuning.max_in_flight;
            let (chosen, most) = match self.home(endpoints, &tuning, work, ask, now) {
                Some(home) => (home, most + most / 2),
                None => (self.choose(endpoints, &tuning, work, ask, now)?, most),
            };
            let endpoint = &endpoints[chosen];
            if let Some(lease) = self.take(endpoint, most, work, now) {
                if let Some(chain) = ask.chain.filter(|_| tuning.affinity > 0) {
                    self.common.memory.load().note(chain, endpoint.id);
                }
                return Ok(lease);
            }
        }
        Err(NoEndpoint::AllFull)
    }

    /// Takes an endpoint that a request is bound to, however it looks and however full it is; none without an address.
    pub fn lease(&self, endpoint: &Arc<Endpoint>, work: f64, now: u64) -> Option<Lease> {
        self.take(endpoint, usize::MAX, work.clamp(0.001, 1e12), now)
    }

    /// The endpoint that has seen the request's beginnings, where it has as many requests as it may. It takes half as many
    /// again: else a full pool would send each request to whatever comes free, forget what is cached where, and stay full.
    fn home(&self, endpoints: &[Arc<Endpoint>], tuning: &Tuning, work: f64, ask: &Ask<'_>, now: u64) -> Option<usize> {
        let chain = ask.chain.filter(|_| tuning.affinity > 0 && tuning.policy == Policy::Work)?;
        let (id, _) = self.common.memory.load().find(chain)?;
        let at = endpoints.iter().position(|endpoint| endpoint.id == id)?;
        let (home, most) = (&endpoints[at], tuning.max_in_flight);
        let is_tried = ask.tried.iter().any(|tried| Arc::ptr_eq(tried, home));
        if is_tried || !(most..most + most / 2).contains(&home.in_flight()) || home.grade(now) != Grade::Usable {
            return None;
        }
        let usual = self.common.usual();
        let well = endpoints.iter().filter(|endpoint| endpoint.grade(now) == Grade::Usable);
        let least = well.map(|e| e.expected(work, usual, tuning, now)).fold(f64::INFINITY, f64::min);
        (home.expected(work, usual, tuning, now) <= least * AFFINE_PATIENCE).then_some(at)
    }

    fn choose(
        &self,
        endpoints: &[Arc<Endpoint>],
        tuning: &Tuning,
        work: f64,
        ask: &Ask<'_>,
        now: u64,
    ) -> Result<usize, NoEndpoint> {
        let is_tried = |endpoint: &Arc<Endpoint>| ask.tried.iter().any(|t| Arc::ptr_eq(t, endpoint));
        let (mut is_full, mut is_sick) = (false, false);
        let usable: smallest::Indices = (0..endpoints.len())
            .filter(|i| {
                let endpoint = &endpoints[*i];
                let grade = if is_tried(endpoint) { Grade::Out } else { endpoint.grade(now) };
                let has_room = grade == Grade::Out || endpoint.in_flight() < tuning.max_in_flight;
                is_full |= !has_room;
                is_sick |= has_room && grade == Grade::Sick;
                has_room && grade == Grade::Usable
            })
            .collect();
        let usable = usable.as_slice();
        if usable.is_empty() {
            if is_full {
                return Err(NoEndpoint::AllFull);
            }
            let may_try = |e: &Endpoint| !ask.only_well && (tuning.try_sick || e.health.is_healthy());
            let sick = (0..endpoints.len())
                .filter(|_| is_sick)
                .filter(|i| !is_tried(&endpoints[*i]) && endpoints[*i].grade(now) == Grade::Sick)
                .filter(|i| may_try(&endpoints[*i]) && endpoints[*i].in_flight() < tuning.max_in_flight);
            let best = sick.min_by_key(|i| endpoints[*i].sickness(now));
            return best.ok_or(if ask.tried.is_empty() { NoEndpoint::AllUnhealthy } else { NoEndpoint::AllTried });
        }
        if let [one] = usable {
            return Ok(*one);
        }
        let chosen = match tuning.policy {
            Policy::Random => usable[fastrand::usize(..usable.len())],
            Policy::RoundRobin => usable[self.common.turn.fetch_add(1, Ordering::Relaxed) % usable.len()],
            Policy::LeastInFlight => {
                let first = fastrand::usize(..usable.len());
                let turned = (0..usable.len()).map(|i| usable[(first + i) % usable.len()]);
                turned.min_by_key(|i| endpoints[*i].in_flight()).unwrap_or(usable[0])
            }
            Policy::Work => {
                if let Some(neglected) = neglected(endpoints, usable, now) {
                    return Ok(neglected);
                }
                let best = self.soonest(endpoints, usable, tuning, work, now);
                let near = ask.chain.filter(|chain| tuning.affinity > 0 && !chain.is_empty());
                near.and_then(|chain| self.nearest(endpoints, usable, tuning, work, chain, best, now)).unwrap_or(best.0)
            }
        };
        Ok(chosen)
    }

    /// Of a few random endpoints the one that is expected to finish first, and when, in seconds.
    fn soonest(
        &self,
        endpoints: &[Arc<Endpoint>],
        usable: &[usize],
        tuning: &Tuning,
        work: f64,
        now: u64,
    ) -> (usize, f64) {
        let usual = self.common.usual();
        let first = fastrand::usize(..usable.len());
        let choices = tuning.choices.clamp(2, MOST_CHOICES);
        let is_small = usable.len() <= choices;
        let mut seen = [(usable[0], f64::INFINITY); MOST_CHOICES];
        let seen = &mut seen[..usable.len().min(choices)];
        for (i, place) in seen.iter_mut().enumerate() {
            // From a random one on, so that the first does not win all ties. Repetitions are rare in a large pool, and
            // harmless.
            let at =
                if is_small { usable[(first + i) % usable.len()] } else { usable[fastrand::usize(..usable.len())] };
            *place = (at, endpoints[at].expected(work, usual, tuning, now));
        }
        let least = seen.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        // What was learned is not exact: of those that are about as soon, the one with the fewest requests.
        let close = seen.iter().filter(|(_, seconds)| *seconds <= least * CLOSE);
        close.min_by_key(|(at, _)| endpoints[*at].in_flight()).copied().unwrap_or((usable[first], least))
    }

    /// The endpoint that has seen the request's beginnings, unless it has too much to do.
    #[expect(clippy::too_many_arguments, reason = "one caller, which has them at hand")]
    fn nearest(
        &self,
        endpoints: &[Arc<Endpoint>],
        usable: &[usize],
        tuning: &Tuning,
        work: f64,
        chain: &Chain,
        best: (usize, f64),
        now: u64,
    ) -> Option<usize> {
        let usual = self.common.usual();
        let total: usize = usable.iter().map(|i| endpoints[*i].in_flight()).sum();
        let bound = AFFINE_BOUND * total as f64 / usable.len() as f64 + AFFINE_SLACK;
        let may = |i: &usize, patience: f64| {
            (endpoints[*i].in_flight() as f64) < bound
                && endpoints[*i].expected(work, usual, tuning, now) <= best.1 * patience
        };
        let seen = self.common.memory.load().find(chain).map(|(id, _)| id);
        let origin = Memory::origin(chain)?;
        if let Some(seen) = seen {
            let known = usable.iter().find(|i| endpoints[**i].id == seen).filter(|i| may(i, AFFINE_PATIENCE));
            // What is too much for it goes to the same few others each time, so that it is cached there too.
            let others = || usable.iter().filter(|i| may(i, OVERFLOW_PATIENCE));
            let other = || others().max_by_key(|i| affinity::rank(origin, endpoints[**i].id));
            return known.or_else(other).copied();
        }
        // Nobody has seen it. Of those that are as good as the best, all replicas choose the same.
        let least = endpoints[best.0].in_flight();
        let is_as_good = |i: &&usize| {
            endpoints[**i].in_flight() <= least && endpoints[**i].expected(work, usual, tuning, now) <= best.1 * CLOSE
        };
        let open = usable.iter().filter(is_as_good);
        open.max_by_key(|i| affinity::rank(origin, endpoints[**i].id)).copied()
    }

    fn take(&self, endpoint: &Arc<Endpoint>, most: usize, work: f64, now: u64) -> Option<Lease> {
        let address = endpoint.address()?;
        let one_more = |n: usize| (n < most).then_some(n + 1);
        endpoint.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let ahead = endpoint.work.fetch_add(thousandths(work), Ordering::Relaxed) as f64 / 1000.0;
        endpoint.begun.fetch_add(now, Ordering::Relaxed);
        endpoint.given.store(now, Ordering::Relaxed);
        let tuning = self.common.tuning.load();
        let fit = endpoint.pace.fit_at(now, self.common.usual());
        let foreign = endpoint.heard.deviation(now, tuning.stale_after) * self.common.mean_work();
        let expected = (fit.seconds(work, ahead), fit.seconds(work, (ahead + foreign).max(0.0)));
        Some(Lease {
            is_trial: endpoint.breaker.sent(now),
            endpoint: Arc::clone(endpoint),
            common: Arc::clone(&self.common),
            address,
            work,
            ahead,
            begun: now,
            expected,
            verdict: Verdict::Nothing,
            rest: None,
            done: None,
        })
    }
}

impl Common {
    fn usual(&self) -> Fit {
        self.pace.fit().unwrap_or(UNKNOWN)
    }

    fn mean_work(&self) -> f64 {
        f64::from_bits(self.mean_work.load(Ordering::Relaxed))
    }
}

/// A random one of these, if it has nothing to do and got nothing for long: what is known of it may be no longer true.
/// It gets this one request.
fn neglected(endpoints: &[Arc<Endpoint>], usable: &[usize], now: u64) -> Option<usize> {
    let at = usable[fastrand::usize(..usable.len())];
    let given = &endpoints[at].given;
    let last = given.load(Ordering::Relaxed);
    let is_neglected = last > 0 && now.saturating_sub(last) > LONG && endpoints[at].in_flight() == 0;
    let is_ours = is_neglected && given.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    is_ours.then_some(at)
}

fn thousandths(work: f64) -> u64 {
    (work * 1000.0) as u64
}

/// A list of indices that needs no allocation for pools of usual size.
mod smallest {
    const INLINE: usize = 16;

    /// Indices of usable endpoints.
    pub(super) enum Indices {
        Few([usize; INLINE], usize),
        Many(Vec<usize>),
    }

    impl Indices {
        pub(super) fn as_slice(&self) -> &[usize] {
            match self {
                Self::Few(all, len) => &all[..*len],
                Self::Many(all) => all,
            }
        }
    }

    impl FromIterator<usize> for Indices {
        fn from_iter<T: IntoIterator<Item = usize>>(items: T) -> Self {
            let (mut few, mut len) = ([0; INLINE], 0);
            let mut items = items.into_iter();
            for item in items.by_ref() {
                if len == INLINE {
                    return Self::Many(few.into_iter().chain([item]).chain(items).collect());
                }
                few[len] = item;
                len += 1;
            }
            Self::Few(few, len)
        }
    }
}

impl Endpoint {
    /// An endpoint that nobody uses yet and that is taken to be healthy until probes say otherwise.
    pub fn new(settings: Settings, addresses: Vec<SocketAddr>) -> Self {
        let health = Health::new(settings.thresholds);
        Self {
            id: affinity::hash(&[settings.name.as_bytes()]),
            settings,
            has_address: AtomicBool::new(!addresses.is_empty()),
            is_drained: AtomicBool::new(false),
            addresses: RwLock::new(addresses),
            in_flight: AtomicUsize::new(0),
            work: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            given: AtomicU64::new(0),
            next_address: AtomicUsize::new(0),
            health,
            breaker: Breaker::default(),
            pace: Pace::default(),
            heard: Heard::default(),
        }
    }

    /// What it was configured as.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its name in answers, logs and metrics.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Requests of this gateway that it works on.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Work of this gateway that it has, in units.
    pub fn work(&self) -> f64 {
        self.work.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// What probes say of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes a probe's result; answers the new state when it changed. One that is well again begins with a small share.
    pub fn probed(&self, success: bool, now: u64) -> Option<bool> {
        let changed = self.health.observe(success);
        if changed == Some(true) {
            self.breaker.came_back(now);
        }
        changed
    }

    /// What its answers say of it.
    pub fn standing(&self, now: u64) -> Standing {
        self.breaker.standing(now)
    }

    /// Whether its failures opened its breaker.
    pub fn is_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// What was learned of it.
    pub fn pace(&self) -> Option<Fit> {
        self.pace.fit()
    }

    /// What it reports of itself.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Takes what it reports of itself.
    pub fn report(&self, report: Report, now: u64) {
        self.heard.hear(report, self.in_flight(), now);
    }

    /// Replaces what its name resolves to.
    pub fn resolved(&self, addresses: Vec<SocketAddr>) {
        self.has_address.store(!addresses.is_empty(), Ordering::Relaxed);
        *self.addresses.write().unwrap_or_else(std::sync::PoisonError::into_inner) = addresses;
    }

    /// Keeps new requests away, or no longer. What it works on goes on, and so does what is bound to it.
    pub fn drain(&self, is_drained: bool) {
        self.is_drained.store(is_drained, Ordering::Relaxed);
    }

    /// Whether an operator keeps new requests away.
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Stands in the place of another one of its name, and is drained if that was.
    pub fn replacing(self, before: Option<&Arc<Self>>) -> Self {
        self.drain(before.is_some_and(|before| before.is_drained()));
        self
    }

    fn is_available(&self) -> bool {
        self.health.is_healthy() && self.has_address() && !self.is_drained()
    }

    fn has_address(&self) -> bool {
        self.has_address.load(Ordering::Relaxed)
    }

    fn grade(&self, now: u64) -> Grade {
        if !self.has_address() || self.is_drained() {
            Grade::Out
        } else if self.health.is_healthy() && !matches!(self.breaker.standing(now), Standing::Paused(_)) {
            Grade::Usable
        } else {
            Grade::Sick
        }
    }

    /// Of two that look bad, the one with less of it is tried: probed well, not broken, back sooner, less to do.
    fn sickness(&self, now: u64) -> (bool, bool, u64, usize) {
        let until = if let Standing::Paused(until) = self.breaker.standing(now) { until } else { 0 };
        (!self.health.is_healthy(), self.breaker.is_open(), until, self.in_flight())
    }

    /// Seconds in which it is expected to finish a request of `work`.
    pub fn expected(&self, work: f64, usual: Fit, tuning: &Tuning, now: u64) -> f64 {
        let fit = self.pace.fit_at(now, usual);
        let (count, own) = (self.in_flight() as f64, self.work());
        let foreign = self.heard.trusted(now, tuning.stale_after) * (own / count.max(1.0)).max(work);
        let mut seconds = fit.seconds(work, (own + foreign).max(0.0));
        if count > 0.0 {
            // What is there waits longer than it should: it has become slower, though no answer says so yet.
            let waited = (count * now as f64 - self.begun.load(Ordering::Relaxed) as f64) / count / 1e6;
            let each = own / count;
            if each > 0.0 && waited > fit.seconds(each, own - each) {
                seconds = seconds.max(2.0 * waited * work / each);
            }
        }
        seconds / self.breaker.share(&tuning.breaker, now)
    }

    /// The next of its addresses, in turn.
    pub fn address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let turn = self.next_address.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn % addresses.len().max(1)).copied()
    }
}

impl Lease {
    /// The endpoint that is leased.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Notes what the attempt says of the endpoint; the last note counts when the lease ends.
    pub fn judge(&mut self, verdict: Verdict) {
        self.verdict = verdict;
    }

    /// Notes that the endpoint takes nothing more for so long, by its own word.
    pub fn rest(&mut self, time: Duration) {
        self.rest = Some(time);
    }

    /// Notes that it was cancelled because another endpoint was sooner: its time until now is learned, as it would have
    /// taken at least that.
    pub fn outrun(&mut self) {
        self.done = Some(self.work);
    }

    /// Notes that the answer is whole, and how much work it turned out to be, so that the endpoint's pace is learned.
    pub fn finished(&mut self, work: Option<f64>) {
        self.verdict = Verdict::Good;
        self.done = Some(work.unwrap_or(self.work).clamp(0.001, 1e12));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Self { endpoint, common, .. } = self;
        let now = now();
        endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        endpoint.work.fetch_sub(thousandths(self.work), Ordering::Relaxed);
        endpoint.begun.fetch_sub(self.begun, Ordering::Relaxed);
        if let Some(work) = self.done {
            let seconds = now.saturating_sub(self.begun) as f64 / 1e6;
            endpoint.pace.learn(work, self.ahead, seconds, now);
            common.pace.learn(work, self.ahead, seconds, now);
            endpoint.heard.proved(self.expected, seconds, now);
            common.surprise.learn(seconds / self.expected.0);
            let mean = common.mean_work();
            common.mean_work.store((mean + (work - mean) * LATEST).to_bits(), Ordering::Relaxed);
        }
        let breaker = &common.tuning.load().breaker;
        let changed = endpoint.breaker.judge(self.verdict, self.is_trial, breaker, now);
        if let Some(time) = self.rest {
            endpoint.breaker.rest(time.min(breaker.longest), now);
        }
        if let Some(is_open) = changed {
            tracing::warn!(endpoint = endpoint.name(), is_open, "endpoint's breaker changed");
        }
    }
}

#[cfg(test)]
mod tests;
