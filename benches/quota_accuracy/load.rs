//! Load: requests at random times, spread over the replicas at random and unevenly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures_util::poll;
use nimgate::ids::{ModelId, PoolName};
use nimgate::quota::limit::Asked;
use nimgate::quota::{Book, Limiter, Most, Refused, Reservation};
use tokio::runtime;
use tokio::task::JoinSet;

use crate::replica::{KEY, Replica};

/// How much is offered to each replica.
#[derive(Clone)]
pub struct Pace(Arc<Shared>);

struct Shared {
    total: f64,
    /// Requests per second of each replica, as the bits of a double.
    rates: Vec<AtomicU64>,
    is_over: AtomicBool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The request may run.
    Admitted,
    /// The limit is reached.
    Refused,
    /// Redis was away.
    Unknown,
}

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// When it began, by the replica's clock, in microseconds.
    pub from: u64,
    /// When it ended.
    pub to: u64,
    /// How it ended.
    pub ending: Ending,
    /// Time that it took the CPU, when it did not have to wait.
    pub at_once: Option<Duration>,
}

/// The load of one replica, from a thread of its own.
pub struct Offer(JoinHandle<Result<Vec<Check>>>);

impl Pace {
    /// Twice the limit, or three times where so few come that twice may by chance be less than it.
    pub fn of(limit: u64, replicas: usize) -> Self {
        let total = limit as f64 * if limit < 50 { 3.0 } else { 2.0 };
        let rates = (0..replicas).map(|_| AtomicU64::new((total / replicas as f64).to_bits())).collect();
        Self(Arc::new(Shared { total, rates, is_over: AtomicBool::new(false) }))
    }

    /// A replica at random, by what each is offered.
    pub fn pick(&self) -> usize {
        let mut left = fastrand::f64() * self.0.total;
        (0..self.0.rates.len())
            .find(|at| {
                left -= self.rate(*at);
                left < 0.0
            })
            .unwrap_or_default()
    }

    /// Whether all load is to end.
    pub fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    /// Moves load between the replicas until that time.
    pub async fn vary_until(&self, time: u64, clock: &impl Fn() -> u64) {
        loop {
            let left = Duration::from_micros(time.saturating_sub(clock()));
            if left.is_zero() {
                return;
            }
            self.vary();
            tokio::time::sleep(left.min(Duration::from_millis(fastrand::u64(150..500)))).await;
        }
    }

    /// Moves load between the replicas until it ends.
    pub async fn vary_always(&self) {
        while !self.is_over() {
            self.vary();
            tokio::time::sleep(Duration::from_millis(fastrand::u64(150..500))).await;
        }
    }

    /// Some replicas get many times what others get.
    fn vary(&self) {
        let weights: Vec<f64> = self.0.rates.iter().map(|_| 0.02 + fastrand::f64().powi(2)).collect();
        let sum: f64 = weights.iter().sum();
        for (rate, weight) in self.0.rates.iter().zip(weights) {
            rate.store((self.0.total * weight / sum).to_bits(), Ordering::Relaxed);
        }
    }

    fn rate(&self, at: usize) -> f64 {
        f64::from_bits(self.0.rates[at].load(Ordering::Relaxed))
    }

    /// Ends all load.
    pub fn stop(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Offer {
    /// Starts it.
    pub fn start(replica: &Replica, pace: &Pace, at: usize) -> Result<Self> {
        let (limiter, book, pace) = (Arc::clone(&replica.limiter), Arc::clone(&replica.book), pace.clone());
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(offer(&limiter, &book, &pace, at))
        })?;
        Ok(Self(thread))
    }

    /// Waits for the last checks.
    pub fn finish(self) -> Result<Vec<Check>> {
        self.0.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

/// Requests arrive independently of each other. Timers tick by the millisecond, so those of one come together.
async fn offer(limiter: &Arc<Limiter>, book: &Arc<Book>, pace: &Pace, at: usize) -> Result<Vec<Check>> {
    let (mut checks, mut waiting) = (Vec::new(), JoinSet::new());
    let gap = |rate: f64| Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / rate);
    let (mut next, mut rate) = (Instant::now(), pace.rate(at));
    while !pace.is_over() {
        let now = Instant::now();
        if rate != pace.rate(at) {
            // Arrivals do not know of each other: the next may be drawn anew.
            rate = pace.rate(at);
            next = now + gap(rate);
        }
        while next <= now {
            let mut check = Box::pin(check(Arc::clone(limiter), Arc::clone(book)));
            let (from, begun) = (limiter.now(), Instant::now());
            match poll!(check.as_mut()) {
                std::task::Poll::Ready(ending) => {
                    let at_once = Some(begun.elapsed());
                    checks.push(Check { from, to: limiter.now(), ending: ending?, at_once });
                }
                std::task::Poll::Pending => {
                    let limiter = Arc::clone(limiter);
                    waiting.spawn(async move {
                        let ending = check.await?;
                        anyhow::Ok(Check { from, to: limiter.now(), ending, at_once: None })
                    });
                }
            }
            next += gap(rate);
        }
        while let Some(done) = waiting.try_join_next() {
            checks.push(done??);
        }
        // The pace may have changed before a far arrival comes.
        let wait = next.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
        tokio::time::sleep(wait).await;
    }
    for done in waiting.join_all().await {
        checks.push(done?);
    }
    Ok(checks)
}

async fn check(limiter: Arc<Limiter>, book: Arc<Book>) -> Result<Ending> {
    Ok(match reserve(&limiter, &book).await? {
        Ok(_) => Ending::Admitted,
        Err(Refused::Exceeded(_)) => Ending::Refused,
        Err(Refused::Unknown) => Ending::Unknown,
    })
}

/// All that a request asks of its limits before it runs.
pub async fn reserve(limiter: &Arc<Limiter>, book: &Book) -> Result<Result<Reservation, Refused>> {
    let account = book.account(&KEY.into()).context("the account")?;
    let (pool, model) = (PoolName::from("chat"), ModelId::from("model"));
    let asked = Asked { model: Some(&model), pool: &pool, api: "nim-llm", operation: "create_chat_completion" };
    let mut reservation = match limiter.begin(account).await {
        Ok(reservation) => reservation,
        Err(refused) => return Ok(Err(refused)),
    };
    let reserved = reservation.reserve(&asked, Most::default()).await;
    Ok(reserved.map(|()| reservation))
}
