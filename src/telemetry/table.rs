//! Every metric, declared once: for the Prometheus page and for OpenTelemetry.
//!
//! Those of `gen_ai.*` follow the GenAI semantic conventions, which are still marked as in development (metrics of
//! clients: <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics>); those of the process follow the
//! process conventions, under the names that Prometheus' own clients use on the page.

use super::histogram::{SECONDS, TOKENS};
use super::metric::{Form, Metric};
use super::names;

/// Most series of what is counted by pool, operation and outcome.
const OUTCOMES: usize = 4000;
/// Most series of a histogram.
const SPREADS: usize = 300;
/// Most series by pool and model.
const MODELS: usize = 1000;
/// Most series by caller; how many callers have a name is a setting.
const CALLERS: usize = 10_000;
/// Most series by pool and something with few values.
const POOLS: usize = 2000;
/// Most series by endpoint; how many have a name is a setting.
const ENDPOINTS: usize = 10_000;
/// Most series by something that is this process' own.
const FEW: usize = 100;

macro_rules! metrics {
    ($($id:ident: $form:expr, $name:expr, $page:literal, $unit:literal, $labels:expr, $most:expr, $step:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name,
                page: $page,
                unit: $unit,
                form: $form,
                labels: &$labels,
                most: $most,
                step: $step,
                help: $help,
            };
        )*

        /// All of them.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

const COUNTER: Form = Form::Counter;
const GAUGE: Form = Form::Gauge;
const TIME: Form = Form::Histogram(&SECONDS);
const AMOUNT: Form = Form::Histogram(&TOKENS);
const GEN_AI: [&str; 4] = [names::GEN_AI_OPERATION, names::GEN_AI_PROVIDER, names::GEN_AI_REQUEST_MODEL, "pool"];
const CALLER: [&str; 3] = ["org", "team", "key"];
/// A sum in billionths.
const NANO: f64 = 1e-9;

metrics! {
    // Requests.
    REQUESTS: COUNTER, "nimgate.requests", "nimgate_requests", "{request}", ["api", "operation", "pool", "status", "error", "blame"], OUTCOMES, 1.0, "Requests ended, by what answered them and by whose failure it was.";
    DURATION: TIME, "nimgate.request.duration", "nimgate_request_duration_seconds", "s", ["pool", "operation"], SPREADS, 1.0, "From a request's header to its end.";
    FIRST_BYTE: TIME, "nimgate.time_to_first_byte", "nimgate_time_to_first_byte_seconds", "s", ["pool", "operation"], SPREADS, 1.0, "From a request's header to the header of the backend's answer.";
    OVERHEAD: TIME, "nimgate.overhead", "nimgate_overhead_seconds", "s", ["pool"], SPREADS, 1.0, "Time from a request's header to the first attempt, without the wait for a place: what the gateway itself takes.";
    IN_FLIGHT: GAUGE, "nimgate.requests.in_flight", "nimgate_requests_in_flight", "{request}", [], 1, 1.0, "Requests that are being served.";
    BODY_BYTES: COUNTER, "nimgate.body.size", "nimgate_body_bytes", "By", ["pool", "direction"], POOLS, 1.0, "Bytes of bodies.";
    // Inference.
    OPERATION_DURATION: TIME, names::GEN_AI_DURATION, "gen_ai_client_operation_duration_seconds", "s", GEN_AI, SPREADS, 1.0, "From a request's header to the end of its answer, where a model was asked.";
    FIRST_CHUNK: TIME, names::GEN_AI_FIRST_CHUNK, "gen_ai_client_operation_time_to_first_chunk_seconds", "s", GEN_AI, SPREADS, 1.0, "From a request's header to the first piece of its streamed answer.";
    BETWEEN_CHUNKS: TIME, names::GEN_AI_BETWEEN_CHUNKS, "gen_ai_client_operation_time_per_output_chunk_seconds", "s", GEN_AI, SPREADS, 1.0, "Time between two pieces of a streamed answer.";
    TOKEN_USAGE: AMOUNT, names::GEN_AI_TOKEN_USAGE, "gen_ai_client_token_usage", "{token}", [names::GEN_AI_OPERATION, names::GEN_AI_PROVIDER, names::GEN_AI_REQUEST_MODEL, names::GEN_AI_TOKEN_TYPE, "pool"], SPREADS, 1.0, "Tokens of a request and of its answer.";
    TOKENS_USED: COUNTER, "nimgate.tokens", "nimgate_tokens", "{token}", ["pool", "model", "direction", "source"], MODELS, 1.0, "Tokens used; `counted` where the backend stated none.";
    SPEND: COUNTER, "nimgate.spend", "nimgate_spend", "1", ["pool", "model"], MODELS, NANO, "Money spent, by the configured prices.";
    // Callers.
    CALLER_REQUESTS: COUNTER, "nimgate.caller.requests", "nimgate_caller_requests", "{request}", ["org", "team", "key", "result"], CALLERS, 1.0, "Requests of a caller: good, failed, refused by a limit, or known to a cache.";
    CALLER_TOKENS: COUNTER, "nimgate.caller.tokens", "nimgate_caller_tokens", "{token}", ["org", "team", "key", "direction"], CALLERS, 1.0, "Tokens that a caller used.";
    CALLER_SPEND: COUNTER, "nimgate.caller.spend", "nimgate_caller_spend", "1", CALLER, CALLERS, NANO, "Money that a caller spent, by the configured prices.";
    QUOTA_USED: GAUGE, "nimgate.quota.used_ratio", "nimgate_quota_used_ratio", "1", ["org", "team", "key", "limit"], CALLERS, 1.0, "Share of a caller's limit that is used at this moment.";
    QUOTA_CHECKS: COUNTER, "nimgate.quota.checks", "nimgate_quota_checks", "{check}", ["path"], FEW, 1.0, "Checks of limits: local ones asked nobody, waited ones asked Redis, away ones could not.";
    QUOTA_REFUSALS: COUNTER, "nimgate.quota.refusals", "nimgate_quota_refusals", "{request}", ["metric"], FEW, 1.0, "Requests refused by a limit, by what was exceeded.";
    QUOTA_SHARED: GAUGE, "nimgate.quota.shared", "nimgate_quota_shared", "1", [], 1, 1.0, "1 while limits are shared through Redis, 0 while it is away, -1 where there is none.";
    QUOTA_REPLICAS: GAUGE, "nimgate.quota.replicas", "nimgate_quota_replicas", "{replica}", [], 1, 1.0, "Replicas that share the limits.";
    // Pools and endpoints.
    CONNECT_FAILURES: COUNTER, "nimgate.connect_failures", "nimgate_connect_failures", "{attempt}", ["pool", "endpoint"], ENDPOINTS, 1.0, "Endpoints that could not be reached.";
    ENDPOINT_IN_FLIGHT: GAUGE, "nimgate.endpoint.in_flight", "nimgate_endpoint_in_flight", "{request}", ["pool", "endpoint"], ENDPOINTS, 1.0, "Requests on an endpoint.";
    ENDPOINT_HEALTHY: GAUGE, "nimgate.endpoint.healthy", "nimgate_endpoint_healthy", "1", ["pool", "endpoint"], ENDPOINTS, 1.0, "1 while probes succeed.";
    ENDPOINT_OPEN: GAUGE, "nimgate.endpoint.breaker_open", "nimgate_endpoint_breaker_open", "1", ["pool", "endpoint"], ENDPOINTS, 1.0, "1 while an endpoint's breaker keeps requests away.";
    ENDPOINT_EXPECTED: GAUGE, "nimgate.endpoint.expected_duration", "nimgate_endpoint_expected_seconds", "s", ["pool", "endpoint"], ENDPOINTS, 1.0, "How long a request would take there: what endpoints are chosen by.";
    ENDPOINT_WAITING: GAUGE, "nimgate.endpoint.waiting", "nimgate_endpoint_waiting", "{request}", ["pool", "endpoint"], ENDPOINTS, 1.0, "Requests that wait within an endpoint, by its own metrics.";
    ENDPOINT_KV_USAGE: GAUGE, "nimgate.endpoint.kv_usage", "nimgate_endpoint_kv_usage_ratio", "1", ["pool", "endpoint"], ENDPOINTS, 1.0, "Share of an endpoint's KV cache that is in use, by its own metrics.";
    QUEUE_WAIT: TIME, "nimgate.queue.wait", "nimgate_queue_wait_seconds", "s", ["pool"], SPREADS, 1.0, "Time that requests waited for a place.";
    QUEUE_WAITING: GAUGE, "nimgate.queue.waiting", "nimgate_queue_waiting", "{request}", ["pool"], POOLS, 1.0, "Requests that wait for a place.";
    RETRIES: COUNTER, "nimgate.retries", "nimgate_retries", "{attempt}", ["pool"], POOLS, 1.0, "Attempts beyond the first of each request, by the pool that they ended in.";
    SPILLS: COUNTER, "nimgate.spills", "nimgate_spills", "{request}", ["from", "pool", "reason"], POOLS, 1.0, "Requests that ran in another pool than their own.";
    HEDGES: COUNTER, "nimgate.hedges", "nimgate_hedges", "{attempt}", ["pool", "result"], POOLS, 1.0, "Second attempts beside a slow first one, by whether they answered first.";
    SHADOWS: COUNTER, "nimgate.shadow.requests", "nimgate_shadow_requests", "{request}", ["pool", "result"], POOLS, 1.0, "Copies of requests for another pool: good, failed, or dropped for want of room.";
    ASSETS: COUNTER, "nimgate.assets", "nimgate_assets", "{asset}", ["pool", "result"], POOLS, 1.0, "Media that were uploaded as assets or failed to be, and those that were deleted or left behind.";
    // The cache.
    CACHE_REQUESTS: COUNTER, "nimgate.cache.requests", "nimgate_cache_requests", "{request}", ["pool", "result"], POOLS, 1.0, "Requests of pools with a cache: hit, miss, partial, or bypass.";
    CACHE_ITEMS: COUNTER, "nimgate.cache.items", "nimgate_cache_items", "{item}", ["pool", "result"], POOLS, 1.0, "Items of such requests that were known, and that were asked for.";
    CACHE_UNUSABLE: COUNTER, "nimgate.cache.unusable", "nimgate_cache_unusable", "{value}", ["pool", "what"], POOLS, 1.0, "Kept values that are none, answers that could not be kept, and values that Redis did not take.";
    CACHE_ENTRIES: GAUGE, "nimgate.cache.entries", "nimgate_cache_entries", "{vector}", ["pool"], POOLS, 1.0, "Vectors kept in this process.";
    CACHE_BYTES: GAUGE, "nimgate.cache.size", "nimgate_cache_bytes", "By", ["pool"], POOLS, 1.0, "Their bytes.";
    CACHE_SAVED: COUNTER, "nimgate.cache.saved", "nimgate_cache_saved_seconds", "s", ["pool"], POOLS, 1.0, "Time of backends that was not needed.";
    // The gateway itself.
    REDIS_UP: GAUGE, "nimgate.redis.up", "nimgate_redis_up", "1", [], 1, 1.0, "1 while Redis answers; absent where there is none.";
    REDIS_TRIPS: COUNTER, "nimgate.redis.round_trips", "nimgate_redis_round_trips", "{call}", ["result"], FEW, 1.0, "Round trips to Redis for limits, by result.";
    GENERATION: GAUGE, "nimgate.config.generation", "nimgate_config_generation", "{reload}", [], 1, 1.0, "Counts loaded configurations.";
    RELOADS: COUNTER, "nimgate.reloads", "nimgate_reloads", "{reload}", ["result"], FEW, 1.0, "Reloads, by result.";
    STALE: GAUGE, "nimgate.config.stale", "nimgate_config_stale", "1", [], 1, 1.0, "1 while files that changed were refused, so that an older configuration is in force.";
    CERTIFICATE_END: GAUGE, "nimgate.certificate.not_after", "nimgate_certificate_not_after_timestamp_seconds", "s", ["listener"], FEW, 1.0, "When the certificate of a listener ends, in seconds since 1970.";
    LOG_DROPPED: COUNTER, "nimgate.access_log.dropped_lines", "nimgate_access_log_dropped_lines", "{line}", [], 1, 1.0, "Access-log lines dropped because their queue was full.";
    EXPORTED: COUNTER, "nimgate.telemetry.exported", "nimgate_telemetry_exported", "{item}", ["signal", "result"], FEW, 1.0, "Spans, log records and metric points sent to the collector, and those that were dropped.";
    EXPORT_FAILURES: COUNTER, "nimgate.telemetry.export_failures", "nimgate_telemetry_export_failures", "{call}", ["signal"], FEW, 1.0, "Exports to the collector that failed.";
    EXPORT_QUEUE: GAUGE, "nimgate.telemetry.queue", "nimgate_telemetry_queue", "{item}", ["signal"], FEW, 1.0, "Items that wait to be sent to the collector.";
    OVERFLOW: GAUGE, "nimgate.telemetry.overflown_metrics", "nimgate_telemetry_overflown_metrics", "{metric}", [], 1, 1.0, "Metrics that have so many series that further ones share one.";
    RENDER: TIME, "nimgate.metrics.render", "nimgate_metrics_render_seconds", "s", [], 1, 1.0, "Time to render the page of metrics.";
    BUILD: GAUGE, "nimgate.build", "nimgate_build_info", "1", ["version"], 1, 1.0, "Always 1; the version is its label.";
    CPU_TIME: COUNTER, "process.cpu.time", "process_cpu_seconds", "s", [], 1, 1.0, "CPU time of the process.";
    MEMORY: GAUGE, "process.memory.usage", "process_resident_memory_bytes", "By", [], 1, 1.0, "Resident memory of the process.";
    OPEN_FILES: GAUGE, "process.unix.file_descriptor.count", "process_open_fds", "{file_descriptor}", [], 1, 1.0, "Open file descriptors.";
    MOST_FILES: GAUGE, "process.unix.file_descriptor.limit", "process_max_fds", "{file_descriptor}", [], 1, 1.0, "The most file descriptors that may be open.";
    STARTED: GAUGE, "process.start_time", "process_start_time_seconds", "s", [], 1, 1.0, "When the process began, in seconds since 1970.";
}
