//! The metrics page of a container, in the names that its family uses.

use std::fmt::{Display, Write};

use super::{Kind, MetricNames, Signal, Usage};

/// What a page is made of.
pub(super) struct Facts {
    pub(super) usage: Usage,
    pub(super) slots: usize,
    /// Use of the KV cache, 0 to 1.
    pub(super) cache_usage: f64,
    /// Blocks of the KV cache of an engine that counts them.
    pub(super) blocks: Option<usize>,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
}

#[derive(Default)]
struct Page(String);

impl Facts {
    /// The page; a signal that lies changes what it says of waiting requests.
    pub(super) fn page(mut self, kind: Kind, names: MetricNames, model: &str, signal: Signal) -> String {
        if let Signal::Waiting(waiting) = signal {
            self.usage.waiting = waiting;
        }
        match (kind, names) {
            (Kind::Llm | Kind::Vlm, MetricNames::Nim1) => self.nim(model),
            (Kind::Llm | Kind::Vlm, MetricNames::Vllm) => self.vllm(model),
            (Kind::Embedding | Kind::Reranking, _) => self.triton(model),
            _ => self.base(),
        }
    }

    fn nim(&self, model: &str) -> String {
        let labels = format!("{{model_name=\"{model}\"}}");
        let mut page = Page::default();
        page.sample("num_requests_running", "gauge", &labels, self.usage.running);
        page.sample("num_requests_waiting", "gauge", &labels, self.usage.waiting);
        page.sample("num_request_max", "gauge", &labels, self.slots);
        page.sample("gpu_cache_usage_perc", "gauge", &labels, self.cache_usage);
        page.sample("prompt_tokens_total", "counter", &labels, self.usage.prompt_tokens);
        page.sample("generation_tokens_total", "counter", &labels, self.usage.generated_tokens);
        page.sample("request_success_total", "counter", &labels, self.succeeded);
        page.sample("request_failure_total", "counter", &labels, self.failed);
        page.0
    }

    /// Holds the trap of the reference: a name that begins like the waiting gauge's.
    fn vllm(&self, model: &str) -> String {
        let labels = format!("{{engine=\"0\",model_name=\"{model}\"}}");
        let by_reason = format!("{{engine=\"0\",model_name=\"{model}\",reason=\"capacity\"}}");
        let finished = format!("{{engine=\"0\",finished_reason=\"stop\",model_name=\"{model}\"}}");
        let mut page = Page::default();
        page.sample("vllm:num_requests_running", "gauge", &labels, self.usage.running);
        page.sample("vllm:num_requests_waiting_by_reason", "gauge", &by_reason, self.usage.waiting);
        page.sample("vllm:num_requests_waiting", "gauge", &labels, self.usage.waiting);
        page.sample("vllm:kv_cache_usage_perc", "gauge", &labels, self.cache_usage);
        page.sample("vllm:prompt_tokens_total", "counter", &labels, self.usage.prompt_tokens);
        page.sample("vllm:generation_tokens_total", "counter", &labels, self.usage.generated_tokens);
        page.sample("vllm:request_success_total", "counter", &finished, self.succeeded);
        if let Some(blocks) = self.blocks {
            let config = format!("{{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"{blocks}\"}}");
            page.sample("vllm:cache_config_info", "gauge", &config, 1);
            page.sample("vllm:prefix_cache_queries_total", "counter", &labels, self.usage.prefix_queries);
            page.sample("vllm:prefix_cache_hits_total", "counter", &labels, self.usage.prefix_hits);
        }
        page.0
    }

    /// The retriever NIMs run on Triton, but their names are not documented; these are Triton's own.
    fn triton(&self, model: &str) -> String {
        let labels = format!("{{model=\"{model}\",version=\"1\"}}");
        let failed = format!("{{model=\"{model}\",reason=\"OTHER\",version=\"1\"}}");
        let mut page = Page::default();
        page.sample("nv_inference_request_success", "counter", &labels, self.succeeded);
        page.sample("nv_inference_request_failure", "counter", &failed, self.failed);
        page.sample("nv_inference_pending_request_count", "gauge", &labels, self.usage.waiting);
        page.sample("nv_gpu_utilization", "gauge", "{gpu_uuid=\"GPU-0\"}", self.busy());
        page.0
    }

    /// The world model NIMs tell nothing of their queue.
    fn base(&self) -> String {
        let mut page = Page::default();
        page.sample("gpu_utilization", "gauge", "{gpu=\"0\"}", self.busy());
        page.sample("gpu_memory_used_bytes", "gauge", "{gpu=\"0\"}", 68_719_476_736_u64);
        page.sample("gpu_memory_total_bytes", "gauge", "{gpu=\"0\"}", 85_899_345_920_u64);
        page.sample("gpu_power_usage_watts", "gauge", "{gpu=\"0\"}", 400 * self.busy() + 80);
        page.sample("request_count_total", "counter", "", self.succeeded + self.failed);
        page.0
    }

    fn busy(&self) -> u64 {
        self.usage.running.min(1)
    }
}

impl Page {
    fn sample(&mut self, name: &str, kind: &str, labels: &str, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} Simulated.\n# TYPE {name} {kind}\n{name}{labels} {value}\n");
    }
}
