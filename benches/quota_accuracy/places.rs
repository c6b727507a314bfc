//! Places: how much of a limit on concurrency do replicas use, while twice as many callers as there are places never
//! stop asking?

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nimgate::quota::{Book, Limiter};
use serde_json::{Value, json};
use tokio::runtime;
use tokio::task::JoinSet;

use crate::load::{self, Pace};
use crate::options::Options;
use crate::redis_server::RedisServer;
use crate::replica;
use crate::stage::{Setting, Stage};

/// A setting and what was measured.
pub struct Places {
    setting: Setting,
    /// Mean time that a place is held.
    hold: Duration,
    round_trip: Duration,
    /// Mean of the places in which a request ran, over the limit.
    used: f64,
    /// The least of that over any 250 ms.
    least: f64,
    /// The most at any time.
    most: u64,
    /// Mean of what Redis had given away, over the limit.
    granted: f64,
    /// The most that Redis had given away, of all looks.
    most_granted: u64,
    admitted: u64,
    round_trips: u64,
    /// How long it was measured.
    time: Duration,
}

/// Attempts per second, of all callers together.
const ATTEMPTS: f64 = 10_000.0;
/// How often Redis is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Looks after which a mean is taken.
const LOOKS: u32 = 50;
const WARM_UP: Duration = Duration::from_secs(1);

/// The places in which requests run, over time.
struct Held(Mutex<Count>);

#[derive(Clone, Copy)]
struct Count {
    now: u64,
    since: Instant,
    /// Places times seconds.
    area: f64,
    most: u64,
    admitted: u64,
}

impl Held {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Count { now: 0, since: Instant::now(), area: 0.0, most: 0, admitted: 0 })))
    }

    /// The count up to now.
    fn at_now(&self) -> MutexGuard<'_, Count> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        count.area += count.now as f64 * now.duration_since(count.since).as_secs_f64();
        count.since = now;
        count
    }

    fn enter(&self) {
        let mut count = self.at_now();
        count.now += 1;
        count.admitted += 1;
        count.most = count.most.max(count.now);
    }

    fn leave(&self) {
        self.at_now().now -= 1;
    }
}

/// One cell: its replicas start, share, are asked for more places than there are, and stop.
pub async fn measure(setting: Setting, server: &RedisServer, options: &Options) -> Result<Places> {
    let mut stage = Stage::set(setting, server, replica::at_a_time(setting.limit)).await?;
    let (pace, held) = (Pace::of(setting.limit, setting.replicas), Held::new());
    let hold = Duration::from_millis(options.hold_ms);
    let crowd = Crowd {
        doors: stage.replicas.iter().map(|r| (Arc::clone(&r.limiter), Arc::clone(&r.book))).collect(),
        pace: pace.clone(),
        held: Arc::clone(&held),
        hold,
        // Half of the callers hold a place, the others ask.
        pause: Duration::from_secs_f64(setting.limit as f64 / ATTEMPTS),
    };
    let callers = 2 * setting.limit;
    let load = std::thread::Builder::new().name("load".into()).spawn(move || crowd.run(callers))?;
    let changing = pace.clone();
    let varied = tokio::spawn(async move { changing.vary_always().await });
    tokio::time::sleep(WARM_UP).await;

    let trips =
        |stage: &Stage| -> u64 { stage.replicas.iter().map(|r| r.stats().round_trips.load(Ordering::Relaxed)).sum() };
    let key = replica::held_key(&mut stage.redis, &stage.prefix).await?;
    let (trips_before, before, begun) = (trips(&stage), *held.at_now(), Instant::now());
    let (mut granted, mut most_granted, mut looks, mut least) = (0, 0, 0, f64::INFINITY);
    let mut tick = tokio::time::interval(LOOK);
    let mut part = (begun, before.area);
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        tick.tick().await;
        let now = replica::held(&mut stage.redis, &key).await?;
        (granted, most_granted, looks) = (granted + now, most_granted.max(now), looks + 1);
        if looks % LOOKS == 0 {
            let (time, area) = (Instant::now(), held.at_now().area);
            least = least.min((area - part.1) / time.duration_since(part.0).as_secs_f64());
            part = (time, area);
        }
    }
    let (after, time) = (*held.at_now(), begun.elapsed());
    let (round_trips, round_trip) = (trips(&stage) - trips_before, stage.round_trip);
    pace.stop();
    varied.await?;
    load.join().map_err(|_| anyhow!("the load panicked"))??;
    stage.strike()?;
    let limit = setting.limit as f64;
    Ok(Places {
        setting,
        hold,
        round_trip,
        used: (after.area - before.area) / time.as_secs_f64() / limit,
        least: least / limit,
        most: after.most,
        granted: granted as f64 / f64::from(looks) / limit,
        most_granted,
        admitted: after.admitted - before.admitted,
        round_trips,
        time,
    })
}

/// Callers that always want a place.
#[derive(Clone)]
struct Crowd {
    doors: Arc<[(Arc<Limiter>, Arc<Book>)]>,
    pace: Pace,
    held: Arc<Held>,
    hold: Duration,
    pause: Duration,
}

impl Crowd {
    fn run(self, callers: u64) -> Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut set = JoinSet::new();
            (0..callers).for_each(|_| drop(set.spawn(self.clone().call())));
            set.join_all().await.into_iter().collect()
        })
    }

    /// Each attempt is at another replica, as behind a balancer; times are random.
    async fn call(self) -> Result<()> {
        let about = |time: Duration| time.mul_f64(-(1.0 - fastrand::f64()).ln());
        while !self.pace.is_over() {
            let (limiter, book) = &self.doors[self.pace.pick()];
            match load::reserve(limiter, book).await? {
                Ok(place) => {
                    self.held.enter();
                    tokio::time::sleep(about(self.hold)).await;
                    self.held.leave();
                    drop(place);
                }
                Err(_) => tokio::time::sleep(about(self.pause)).await,
            }
        }
        Ok(())
    }
}

/// The names of the columns of [`Places::row`].
pub fn head() -> &'static str {
    " limit  added  rtt ms   R  hold ms    used   least  most  granted  most in Redis  admitted/s  trips/s"
}

impl Places {
    /// As a line of a table.
    pub fn row(&self) -> String {
        let Setting { replicas, limit, rtt } = self.setting;
        let per_second = |count: u64| count as f64 / self.time.as_secs_f64();
        format!(
            "{limit:>6}  {rtt:>5}  {:>6.1}  {replicas:>2}  {:>7}  {:>5.1}%  {:>5.1}%  {:>4}  {:>6.1}%  {:>13}  {:>10.0}  {:>7.0}",
            self.round_trip.as_secs_f64() * 1e3,
            self.hold.as_millis(),
            self.used * 100.0,
            self.least * 100.0,
            self.most,
            self.granted * 100.0,
            self.most_granted,
            per_second(self.admitted),
            per_second(self.round_trips),
        )
    }

    /// The same for a file.
    pub fn json(&self) -> Value {
        json!({
            "replicas": self.setting.replicas,
            "limit_at_a_time": self.setting.limit,
            "added_rtt_ms": self.setting.rtt,
            "round_trip_us": self.round_trip.as_micros() as u64,
            "mean_hold_ms": self.hold.as_millis() as u64,
            "used_mean": self.used,
            "used_least": self.least,
            "most": self.most,
            "granted_mean": self.granted,
            "most_granted": self.most_granted,
            "admitted": self.admitted,
            "round_trips": self.round_trips,
            "seconds": self.time.as_secs_f64(),
        })
    }
}

/// The goals, and how the cells stand to them.
pub fn goals(places: &[Places]) -> String {
    let mut text = String::new();
    let Some(worst) = places.iter().min_by(|a, b| a.used.total_cmp(&b.used)) else { return text };
    let beyond = places.iter().filter(|p| p.most.max(p.most_granted) > p.setting.limit).count();
    let _ = writeln!(text, "places above the limit: in {beyond} cells; the goal is 0");
    let (used, setting) = (worst.used * 100.0, worst.setting);
    let _ = writeln!(text, "places used: {used:.1} % at worst ({setting}); the goal is 97 %");
    text
}
