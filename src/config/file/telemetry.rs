//! What is told to those who operate the gateway.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

section! {
    /// What is told to those who operate the gateway.
    Telemetry {
        /// Which traces are exported.
        traces: Traces = Traces::default(),
        /// Bounds on metrics.
        metrics: MetricBounds = MetricBounds::default(),
    }
}

section! {
    /// Which traces are exported.
    Traces {
        /// The share of traces that begin here and are exported however they end, 0 to 1.
        #[schemars(range(min = 0.0, max = 1.0))]
        sample: f64 = 0.01,
        /// Whether a caller's `traceparent` decides for its requests, rather than the share.
        follow_parent: bool = true,
        /// Whether failed requests are exported in any case.
        keep_failed: bool = true,
        /// Requests that take longer are exported in any case; absent: none for that.
        #[schemars(range(min = 1, max = 86_400_000))]
        keep_slower_ms: Option<u64> = None,
        /// Validation that takes longer has a span of its own.
        #[schemars(range(min = 0, max = 3_600_000))]
        slow_validation_ms: u64 = 1,
    }
}

section! {
    /// How many names of a kind have series of their own; the first ones do, later ones share the name `other`. Needs a
    /// restart.
    MetricBounds {
        /// Keys of callers.
        #[schemars(range(min = 0, max = 10_000))]
        max_callers: usize = 500,
        /// Models.
        #[schemars(range(min = 0, max = 1000))]
        max_models: usize = 50,
        /// Endpoints.
        #[schemars(range(min = 0, max = 10_000))]
        max_endpoints: usize = 1000,
    }
}
