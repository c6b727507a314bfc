//! What is told to those who operate the gateway: traces, metrics and logs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;

section! {
    /// Prompts and answers of a pool's requests, in the spans of its requests and nowhere else.
    Transcripts {
        /// Bytes of text of a prompt that are sent, and of an answer.
        #[schemars(range(min = 64, max = 16_384))]
        max_bytes: usize = 4096,
        /// Regular expressions; what they match is blacked out, beside what always is.
        #[schemars(length(max = 64))]
        redact: Vec<String> = Vec::new(),
    }
}

section! {
    /// What is told to a collector of OpenTelemetry.
    Telemetry {
        /// What the gateway calls itself, `service.name`; by default what OTEL_SERVICE_NAME says, or `nimgate`.
        #[schemars(length(min = 1, max = 256))]
        service: Option<String> = None,
        /// Further attributes of this process, beside those of OTEL_RESOURCE_ATTRIBUTES.
        resource: BTreeMap<String, String> = BTreeMap::new(),
        /// Sending by OTLP. Without it, only where OTEL_EXPORTER_OTLP_ENDPOINT names a collector.
        otlp: Option<Otlp> = None,
        /// Which traces are exported.
        traces: Traces = Traces::default(),
        /// Bounds on metrics.
        metrics: MetricBounds = MetricBounds::default(),
    }
}

section! {
    /// Sending by OTLP. What is not said here, the environment may say (`OTEL_EXPORTER_OTLP_…`).
    Otlp {
        /// The collector: scheme, host and port; by HTTP also what stands before `/v1/traces`. Required, unless the
        /// environment names it.
        #[schemars(length(min = 1, max = 2000))]
        endpoint: Option<String> = None,
        /// How exports are sent; by default `http/protobuf`.
        protocol: Option<OtlpProtocol> = None,
        /// Headers sent with each export, such as credentials.
        headers: BTreeMap<String, Secret> = BTreeMap::new(),
        /// PEM file with authorities to trust in place of the system's. Relative to this file.
        ca_file: Option<PathBuf> = None,
        /// PEM file with the gateway's own certificate chain. Needs `key_file`.
        certificate_file: Option<PathBuf> = None,
        /// PEM file with its private key.
        key_file: Option<PathBuf> = None,
        /// Whether exports are compressed; by default they are not.
        compression: Option<OtlpCompression> = None,
        /// Time for one export; by default 10000.
        #[schemars(range(min = 10, max = 600_000))]
        timeout_ms: Option<u64> = None,
        /// Records that wait to be sent, for each signal; further ones are dropped and counted.
        #[schemars(range(min = 1, max = 1_000_000))]
        queue: usize = 8192,
        /// Their size as they are sent.
        #[schemars(range(min = 1, max = 1024))]
        queue_mib: usize = 16,
        /// Most records in one export.
        #[schemars(range(min = 1, max = 10_000))]
        batch: usize = 512,
        /// How long a record waits for others to be sent with.
        #[schemars(range(min = 1, max = 60_000))]
        delay_ms: u64 = 1000,
        /// Time between two exports of metrics.
        #[schemars(range(min = 1, max = 3600))]
        metrics_interval_s: u64 = 60,
        /// Whether spans are sent.
        traces: bool = true,
        /// Whether metrics are sent.
        metrics: bool = true,
        /// Whether logs are sent: the gateway's own, and a record of each request.
        logs: bool = true,
    }
}

section! {
    /// The gateway's own log, on standard error.
    Log {
        /// Which events are logged: LEVEL or TARGET=LEVEL, several between commas; NIMGATE_LOG goes above this.
        #[schemars(length(min = 1, max = 1000))]
        level: String = crate::log::LEVEL.into(),
        /// How lines look.
        format: LogFormat = LogFormat::Json,
        /// Most events of one place in the code in a second. Further ones are left out, and counted.
        #[schemars(range(min = 1, max = 1_000_000))]
        per_second: u32 = 100,
    }
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// An object of JSON.
    Json,
    /// Text.
    Text,
}

/// How exports are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OtlpProtocol {
    /// Calls of gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// Protobuf by HTTP.
    #[serde(rename = "http/protobuf")]
    Http,
}

/// How exports are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtlpCompression {
    /// Not.
    None,
    /// By gzip.
    Gzip,
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
    /// What is counted, and how many names of a kind have series of their own: the first ones do, later ones share the name
    /// `other`. Needs a restart.
    MetricBounds {
        /// Whether anything is counted at all. Off, the page tells the state alone; only measurements of the gateway itself
        /// want that.
        enabled: bool = true,
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
