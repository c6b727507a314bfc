//! The names under which engines report their load, and what a sensible value is.
//!
//! Whole names only: `vllm:num_requests_waiting_by_reason` is something else than the name that it begins with.

use Signal::{Capacity, KvUsage, Running, Waiting};

/// What one number tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Running,
    Waiting,
    Capacity,
    KvUsage,
}

/// A number that tells a signal. Where a page has several names for one signal, that of the lowest rank counts alone:
/// they tell the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) signal: Signal,
    pub(super) rank: u8,
}

/// All samples of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Each sample counts.
    Each(Series),
    /// Samples in which this label is set break down the one in which it is empty.
    Total(Series, &'static str),
    /// This label tells which signal it is.
    By(&'static str, &'static [(&'static str, Series)]),
}

const TRITON_REQUESTS: Family =
    Family::By("request_type", &[("waiting", at(Waiting, 5)), ("scheduled", at(Running, 5)), ("max", at(Capacity, 5))]);
const TRITON_BLOCKS: Family = Family::By("kv_cache_block_type", &[("fraction", at(KvUsage, 8))]);

impl Family {
    /// The samples under this name, if it tells of load.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            // vLLM and NIM 2.x; bare in NIM 1.x. The cache had an older name.
            "vllm:num_requests_running" => Self::Each(at(Running, 0)),
            "num_requests_running" => Self::Each(at(Running, 1)),
            "vllm:num_requests_waiting" => Self::Each(at(Waiting, 0)),
            "num_requests_waiting" => Self::Each(at(Waiting, 1)),
            "vllm:num_request_max" => Self::Each(at(Capacity, 0)),
            "num_request_max" => Self::Each(at(Capacity, 1)),
            "vllm:kv_cache_usage_perc" => Self::Each(at(KvUsage, 0)),
            "kv_cache_usage_perc" => Self::Each(at(KvUsage, 1)),
            "vllm:gpu_cache_usage_perc" => Self::Each(at(KvUsage, 2)),
            "gpu_cache_usage_perc" => Self::Each(at(KvUsage, 3)),
            // SGLang, whose newer releases write an underscore; with priorities it counts each request twice.
            "sglang:num_running_reqs" => Self::Total(at(Running, 2), "priority"),
            "sglang_num_running_reqs" => Self::Total(at(Running, 3), "priority"),
            "sglang:num_queue_reqs" => Self::Total(at(Waiting, 2), "priority"),
            "sglang_num_queue_reqs" => Self::Total(at(Waiting, 3), "priority"),
            "sglang:token_usage" => Self::Each(at(KvUsage, 5)),
            "sglang_token_usage" => Self::Each(at(KvUsage, 6)),
            // TensorRT-LLM's own server.
            "trtllm_num_requests_running" => Self::Each(at(Running, 4)),
            "trtllm_num_requests_waiting" => Self::Each(at(Waiting, 4)),
            "trtllm_kv_cache_utilization" => Self::Each(at(KvUsage, 7)),
            // Triton with the TensorRT-LLM backend.
            "nv_trt_llm_request_metrics" => TRITON_REQUESTS,
            "nv_trt_llm_kv_cache_block_metrics" => TRITON_BLOCKS,
            // Triton. Its nv_inference_exec_count is a counter, not what runs.
            "nv_inference_pending_request_count" => Self::Each(at(Waiting, 6)),
            _ => return None,
        })
    }

    /// What a sample without labels is.
    pub(super) fn unlabelled(self) -> Option<Series> {
        match self {
            Self::Each(series) | Self::Total(series, _) => Some(series),
            Self::By(..) => None,
        }
    }

    /// What a sample taken for `series` is, now that a label is seen. No value of interest has an escape in it.
    pub(super) fn narrowed(self, series: Option<Series>, name: &str, value: &str) -> Option<Series> {
        match self {
            Self::Total(_, label) if label == name && !value.is_empty() => None,
            Self::By(label, parts) if label == name => parts.iter().find(|(part, _)| *part == value).map(|(_, s)| *s),
            Self::Each(_) | Self::Total(..) | Self::By(..) => series,
        }
    }
}

/// What a name within an ORCA report tells.
pub(super) fn reported(name: &str) -> Option<Series> {
    match name {
        "kv_cache_utilization" => Some(at(KvUsage, 4)),
        name => Family::named(name)?.unlabelled(),
    }
}

impl Signal {
    /// The value, if it can be true. Engines round a full cache to a little above 1.
    pub(super) fn plausible(self, value: f64) -> Option<f64> {
        match self {
            KvUsage => (0.0..=1.001).contains(&value).then_some(value.abs().min(1.0)),
            Running | Waiting | Capacity => (0.0..=1e6).contains(&value).then_some(value.abs()),
        }
    }

    /// What two engines or models come to.
    pub(super) fn merged(self, one: f64, other: f64) -> Option<f64> {
        match self {
            KvUsage => Some(one.max(other)),
            Running | Waiting | Capacity => self.plausible(one + other),
        }
    }
}

const fn at(signal: Signal, rank: u8) -> Series {
    Series { signal, rank }
}
