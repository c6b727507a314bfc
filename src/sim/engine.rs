//! An inference engine: its batch slots, its unbounded queue, its pace, and what it tells of itself.
//!
//! Without [`Batching`](super::Batching) a slot gives each request the same pace however many there are; with it,
//! requests share what `batch.rs` computes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::batch::{Batch, Work};
use super::metrics::Facts;
use super::seen::Run;
use super::{Kind, Settings, Signal, Usage, kv, lock, text};

/// An engine that was held up by its machine catches up on so much, and lets the rest be.
const LARGEST_LAG: Duration = Duration::from_millis(100);

/// Slots and counters; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    batch: Option<Mutex<Batch>>,
    free: Arc<Semaphore>,
    /// The bits of a factor on every rate.
    speed: AtomicU64,
    signal: Mutex<(Signal, Option<String>)>,
    waiting: AtomicU64,
    running: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    slot_nanos: AtomicU64,
}

/// A request in the engine until dropped; counts as failed unless completed.
#[derive(Debug)]
pub(super) struct Slot {
    engine: Arc<Inner>,
    completed: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A slot of its own.
    Own { since: Instant, _permit: Option<OwnedSemaphorePermit> },
    /// A place in the batch or in the queue before it.
    Batch { id: u64, progress: watch::Receiver<usize>, taken: usize, tokens: usize },
}

struct Waiting<'a>(&'a Inner);

impl Engine {
    pub(super) fn new(settings: &Settings) -> Self {
        Self(Arc::new(Inner {
            batch: settings.batching.map(|batching| Mutex::new(Batch::new(batching, settings.slots))),
            free: Arc::new(Semaphore::new(settings.slots)),
            settings: settings.clone(),
            speed: AtomicU64::new(1.0_f64.to_bits()),
            signal: Mutex::default(),
            waiting: AtomicU64::default(),
            running: AtomicU64::default(),
            succeeded: AtomicU64::default(),
            failed: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            generated_tokens: AtomicU64::default(),
            slot_nanos: AtomicU64::default(),
        }))
    }

    /// Waits for a slot of its own, first come first served.
    pub(super) async fn admit(&self, run: &Run) -> Slot {
        let waiting = Waiting::new(&self.0);
        let permit = Arc::clone(&self.0.free).acquire_owned().await.ok();
        drop(waiting);
        self.0.running.fetch_add(1, Ordering::SeqCst);
        run.begin();
        let place = Place::Own { since: Instant::now(), _permit: permit };
        Slot { engine: Arc::clone(&self.0), completed: false, place }
    }

    /// As [`Engine::admit`], but an engine that batches queues the request instead, and only its tokens are waited for.
    pub(super) async fn enter(&self, run: &Run, prompt: &str, prompt_tokens: usize, tokens: usize) -> Slot {
        let Some(batch) = &self.0.batch else { return self.admit(run).await };
        let extra = prompt_tokens.saturating_sub(kv::tokens(prompt));
        let (id, progress) = {
            let mut batch = lock(batch);
            let place = batch.push(Work::new(run.clone(), prompt, extra, tokens));
            if !batch.is_driven {
                batch.is_driven = true;
                tokio::spawn(drive(Arc::clone(&self.0)));
            }
            place
        };
        let place = Place::Batch { id, progress, taken: 0, tokens: tokens.max(1) };
        Slot { engine: Arc::clone(&self.0), completed: false, place }
    }

    /// A request that was refused before it took a slot.
    pub(super) fn refused(&self) {
        self.0.failed.fetch_add(1, Ordering::SeqCst);
    }

    /// Tokens of a prompt's text.
    pub(super) fn count_tokens(&self, prompt: &str) -> usize {
        if self.0.batch.is_some() { kv::tokens(prompt) } else { text::count(prompt) }
    }

    /// From the next step on, everything goes this much faster.
    pub(super) fn set_speed(&self, factor: f64) {
        self.0.speed.store(factor.to_bits(), Ordering::SeqCst);
    }

    /// What the metrics page is to say; a frozen one is kept as it is now.
    pub(super) fn set_signal(&self, signal: Signal, page: Option<String>) {
        *lock(&self.0.signal) = (signal, page);
    }

    pub(super) fn waiting(&self) -> u64 {
        self.usage().waiting
    }

    /// Use of the KV cache, 0 to 1.
    pub(super) fn cache_usage(&self) -> f64 {
        if let Some(batch) = &self.0.batch {
            return lock(batch).usage();
        }
        let running = u32::try_from(self.0.running.load(Ordering::SeqCst)).unwrap_or(u32::MAX);
        let slots = u32::try_from(self.0.settings.slots.max(1)).unwrap_or(u32::MAX);
        (f64::from(running) / f64::from(slots) * 0.9).min(1.0)
    }

    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage {
            running: count(&self.0.running),
            waiting: count(&self.0.waiting),
            prompt_tokens: count(&self.0.prompt_tokens),
            generated_tokens: count(&self.0.generated_tokens),
            slot_time: Duration::from_nanos(count(&self.0.slot_nanos)),
            ..Usage::default()
        };
        if let Some(batch) = &self.0.batch {
            let batch = lock(batch);
            let counts = batch.counts();
            usage.running += batch.running() as u64;
            usage.waiting += batch.waiting() as u64;
            usage.slot_time += Duration::from_secs_f64(counts.slot_seconds);
            (usage.prefix_queries, usage.prefix_hits) = (counts.queries, counts.hits);
        }
        usage
    }

    /// The metrics page in the names that the family uses.
    pub(super) fn metrics(&self, kind: Kind, model: &str) -> String {
        let (signal, page) = lock(&self.0.signal).clone();
        page.unwrap_or_else(|| {
            let facts = Facts {
                usage: self.usage(),
                slots: self.0.settings.slots,
                cache_usage: self.cache_usage(),
                blocks: self.0.batch.as_ref().map(|batch| lock(batch).blocks()),
                succeeded: count(&self.0.succeeded),
                failed: count(&self.0.failed),
            };
            facts.page(kind, self.0.settings.metrics, model, signal)
        })
    }
}

impl Inner {
    fn speed(&self) -> f64 {
        f64::from_bits(self.speed.load(Ordering::SeqCst))
    }

    /// Time at the present speed.
    fn scaled(&self, time: Duration) -> Duration {
        let speed = self.speed();
        if speed == 1.0 { time } else { time.div_f64(speed) }
    }

    async fn pause(&self, time: Duration) {
        if time > Duration::ZERO {
            tokio::time::sleep(self.scaled(time)).await;
        }
    }
}

/// Steps a batch until it is empty. Its own time goes on from step to step, so a late timer does not slow it down.
async fn drive(engine: Arc<Inner>) {
    let Some(batch) = &engine.batch else { return };
    let mut time = Instant::now();
    loop {
        let step = {
            let mut batch = lock(batch);
            let step = batch.begin();
            batch.is_driven = step.is_some();
            step
        };
        let Some(seconds) = step else { return };
        let seconds = seconds / engine.speed();
        time = time.max(Instant::now() - LARGEST_LAG) + Duration::from_secs_f64(seconds);
        tokio::time::sleep_until(time).await;
        lock(batch).finish(seconds);
    }
}

impl Slot {
    /// Waits for the first token, or what else an answer begins with.
    pub(super) async fn first(&mut self) {
        match &mut self.place {
            Place::Own { .. } => self.engine.pause(self.engine.settings.time_to_first_token).await,
            Place::Batch { .. } => self.next().await,
        }
    }

    /// Waits for the next token; one beyond the last is there at once.
    pub(super) async fn next(&mut self) {
        match &mut self.place {
            Place::Own { .. } => self.engine.pause(self.engine.settings.token_interval).await,
            Place::Batch { progress, taken, tokens, .. } => {
                *taken = (*taken + 1).min(*tokens);
                // The sender goes after its last token, so an error means that there is no more to wait for.
                let _ = progress.wait_for(|produced| *produced >= *taken).await;
            }
        }
    }

    /// Waits for an answer of so many tokens or steps.
    pub(super) async fn all(&mut self, tokens: usize) {
        match &mut self.place {
            Place::Own { .. } => {
                let settings = &self.engine.settings;
                let steps = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
                let time = settings.time_to_first_token + settings.token_interval.saturating_mul(steps);
                tokio::time::sleep(self.engine.scaled(time)).await;
            }
            Place::Batch { taken, tokens, .. } => {
                *taken = *tokens - 1;
                self.next().await;
            }
        }
    }

    /// Waits for a whole answer about so many items.
    pub(super) async fn items(&mut self, count: usize) {
        let Some(each) = self.engine.settings.item_time else {
            return tokio::time::sleep(self.engine.scaled(self.engine.settings.time_to_first_token)).await;
        };
        let mut time = Instant::now();
        for _ in 0..count {
            time += self.engine.scaled(each);
            tokio::time::sleep_until(time).await;
        }
    }

    /// Notes a finished answer.
    pub(super) fn complete(&mut self, prompt_tokens: usize, generated_tokens: usize) {
        self.completed = true;
        self.engine.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::SeqCst);
        self.engine.generated_tokens.fetch_add(generated_tokens as u64, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match &self.place {
            Place::Own { since, .. } => {
                self.engine.running.fetch_sub(1, Ordering::SeqCst);
                let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.engine.slot_nanos.fetch_add(nanos, Ordering::SeqCst);
            }
            Place::Batch { id, .. } => {
                if let Some(batch) = &self.engine.batch {
                    lock(batch).remove(*id);
                }
            }
        }
        let outcome = if self.completed { &self.engine.succeeded } else { &self.engine.failed };
        outcome.fetch_add(1, Ordering::SeqCst);
    }
}

impl<'a> Waiting<'a> {
    fn new(engine: &'a Inner) -> Self {
        engine.waiting.fetch_add(1, Ordering::SeqCst);
        Self(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_slot_is_counted_as_waiting() {
        let engine = Engine::new(&Settings { slots: 1, ..Settings::default() });
        let first = engine.admit(&Run::default()).await;
        let second = tokio::spawn({
            let engine = engine.clone();
            async move { engine.admit(&Run::default()).await }
        });
        while engine.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(engine.metrics(Kind::Llm, "m").contains("num_requests_waiting{model_name=\"m\"} 1\n"));
        drop(first);
        assert_eq!(second.await.unwrap().engine.running.load(Ordering::SeqCst), 1);
        assert_eq!(engine.waiting(), 0);
    }
}
