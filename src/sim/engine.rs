//! The batch slots of an inference engine, its unbounded queue, and its metrics page.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Kind, MetricNames};

/// Slots and counters; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slots: usize,
    free: Arc<Semaphore>,
    waiting: AtomicU64,
    running: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
}

/// A place in the running batch until dropped; counts as failed unless completed.
#[derive(Debug)]
pub(super) struct Slot {
    engine: Arc<Inner>,
    completed: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

struct Waiting<'a>(&'a Inner);

impl Engine {
    pub(super) fn new(slots: usize) -> Self {
        Self(Arc::new(Inner {
            slots,
            free: Arc::new(Semaphore::new(slots)),
            waiting: AtomicU64::default(),
            running: AtomicU64::default(),
            succeeded: AtomicU64::default(),
            failed: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            generated_tokens: AtomicU64::default(),
        }))
    }

    /// Waits for a slot, first come first served.
    pub(super) async fn admit(&self) -> Slot {
        let waiting = Waiting::new(&self.0);
        let permit = Arc::clone(&self.0.free).acquire_owned().await.ok();
        drop(waiting);
        self.0.running.fetch_add(1, Ordering::SeqCst);
        Slot { engine: Arc::clone(&self.0), completed: false, _permit: permit }
    }

    /// A request that was refused before it took a slot.
    pub(super) fn refused(&self) {
        self.0.failed.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::SeqCst)
    }

    /// Use of the KV cache, 0 to 1.
    pub(super) fn cache_usage(&self) -> f64 {
        let running = u32::try_from(self.0.running.load(Ordering::SeqCst)).unwrap_or(u32::MAX);
        let slots = u32::try_from(self.0.slots.max(1)).unwrap_or(u32::MAX);
        (f64::from(running) / f64::from(slots) * 0.9).min(1.0)
    }

    /// The metrics page in the names that the family uses.
    pub(super) fn metrics(&self, kind: Kind, names: MetricNames, model: &str) -> String {
        match (kind, names) {
            (Kind::Llm | Kind::Vlm, MetricNames::Nim1) => self.nim_page(model),
            (Kind::Llm | Kind::Vlm, MetricNames::Vllm) => self.vllm_page(model),
            (Kind::Embedding | Kind::Reranking, _) => self.triton_page(model),
            _ => self.base_page(),
        }
    }

    fn nim_page(&self, model: &str) -> String {
        let labels = format!("{{model_name=\"{model}\"}}");
        let mut page = Page::default();
        page.sample("num_requests_running", "gauge", &labels, self.running());
        page.sample("num_requests_waiting", "gauge", &labels, self.waiting());
        page.sample("num_request_max", "gauge", &labels, self.0.slots);
        page.sample("gpu_cache_usage_perc", "gauge", &labels, self.cache_usage());
        page.sample("prompt_tokens_total", "counter", &labels, count(&self.0.prompt_tokens));
        page.sample("generation_tokens_total", "counter", &labels, count(&self.0.generated_tokens));
        page.sample("request_success_total", "counter", &labels, count(&self.0.succeeded));
        page.sample("request_failure_total", "counter", &labels, count(&self.0.failed));
        page.0
    }

    /// Holds the trap of the reference: a name that begins like the waiting gauge's.
    fn vllm_page(&self, model: &str) -> String {
        let labels = format!("{{engine=\"0\",model_name=\"{model}\"}}");
        let by_reason = format!("{{engine=\"0\",model_name=\"{model}\",reason=\"capacity\"}}");
        let finished = format!("{{engine=\"0\",finished_reason=\"stop\",model_name=\"{model}\"}}");
        let mut page = Page::default();
        page.sample("vllm:num_requests_running", "gauge", &labels, self.running());
        page.sample("vllm:num_requests_waiting_by_reason", "gauge", &by_reason, self.waiting());
        page.sample("vllm:num_requests_waiting", "gauge", &labels, self.waiting());
        page.sample("vllm:kv_cache_usage_perc", "gauge", &labels, self.cache_usage());
        page.sample("vllm:prompt_tokens_total", "counter", &labels, count(&self.0.prompt_tokens));
        page.sample("vllm:generation_tokens_total", "counter", &labels, count(&self.0.generated_tokens));
        page.sample("vllm:request_success_total", "counter", &finished, count(&self.0.succeeded));
        page.0
    }

    /// The retriever NIMs run on Triton, but their names are not documented; these are Triton's own.
    fn triton_page(&self, model: &str) -> String {
        let labels = format!("{{model=\"{model}\",version=\"1\"}}");
        let failed = format!("{{model=\"{model}\",reason=\"OTHER\",version=\"1\"}}");
        let mut page = Page::default();
        page.sample("nv_inference_request_success", "counter", &labels, count(&self.0.succeeded));
        page.sample("nv_inference_request_failure", "counter", &failed, count(&self.0.failed));
        page.sample("nv_inference_pending_request_count", "gauge", &labels, self.waiting());
        page.sample("nv_gpu_utilization", "gauge", "{gpu_uuid=\"GPU-0\"}", self.busy());
        page.0
    }

    /// The world model NIMs tell nothing of their queue.
    fn base_page(&self) -> String {
        let mut page = Page::default();
        page.sample("gpu_utilization", "gauge", "{gpu=\"0\"}", self.busy());
        page.sample("gpu_memory_used_bytes", "gauge", "{gpu=\"0\"}", 68_719_476_736_u64);
        page.sample("gpu_memory_total_bytes", "gauge", "{gpu=\"0\"}", 85_899_345_920_u64);
        page.sample("gpu_power_usage_watts", "gauge", "{gpu=\"0\"}", 400 * self.busy() + 80);
        page.sample("request_count_total", "counter", "", count(&self.0.succeeded) + count(&self.0.failed));
        page.0
    }

    fn running(&self) -> u64 {
        count(&self.0.running)
    }

    fn busy(&self) -> u64 {
        self.running().min(1)
    }
}

impl Slot {
    /// Notes a finished answer.
    pub(super) fn complete(&mut self, prompt_tokens: usize, generated_tokens: usize) {
        self.completed = true;
        self.engine.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::SeqCst);
        self.engine.generated_tokens.fetch_add(generated_tokens as u64, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.engine.running.fetch_sub(1, Ordering::SeqCst);
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

#[derive(Default)]
struct Page(String);

impl Page {
    fn sample(&mut self, name: &str, kind: &str, labels: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} Simulated.\n# TYPE {name} {kind}\n{name}{labels} {value}\n");
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
        let engine = Engine::new(1);
        let first = engine.admit().await;
        let second = tokio::spawn({
            let engine = engine.clone();
            async move { engine.admit().await }
        });
        while engine.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(
            engine.metrics(Kind::Llm, MetricNames::Nim1, "m").contains("num_requests_waiting{model_name=\"m\"} 1\n")
        );
        drop(first);
        assert_eq!(second.await.unwrap().engine.running.load(Ordering::SeqCst), 1);
        assert_eq!(engine.waiting(), 0);
    }
}
