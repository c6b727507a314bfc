//! Telemetry: every instrument, declared once.
//!
//! Labels come from the configuration, the catalogue and closed enums, so their number is bounded: clients can not make
//! new ones. Endpoints that are found come and go; past a bound those that could not be reached share a label. OTLP exporters will stand here too.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// What a metric needs of an ended request.
pub struct Ended<'a> {
    /// The API, or empty.
    pub api: &'a str,
    /// The operation, or empty.
    pub operation: &'a str,
    /// The pool, or empty.
    pub pool: &'a str,
    /// The status that the client got.
    pub status: u16,
    /// The label of its failure, or empty.
    pub error: &'a str,
    /// Whose failure, or empty.
    pub blame: &'a str,
    /// How long it took.
    pub total: Duration,
    /// Until the backend's answer began.
    pub first_byte: Option<Duration>,
    /// Bytes of its body.
    pub request_bytes: usize,
    /// Bytes of its answer's body.
    pub response_bytes: usize,
    /// The model, or empty.
    pub model: &'a str,
    /// Tokens of its prompt and of its answer, and whether the backend stated them.
    pub tokens: Option<(u64, u64, bool)>,
    /// What it cost, in nano-units of money.
    pub spend: Option<u64>,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// How long it waited for a place, if it did.
    pub queued: Option<Duration>,
    /// The pool that it should have run in, and why it did not.
    pub spill: Option<(&'a str, &'a str)>,
    /// How a second attempt beside the first ended, if there was one.
    pub hedge: Option<&'a str>,
    /// What a cache had of it, and how many items were known and asked for.
    pub cache: Option<(&'a str, usize, usize)>,
}

/// How the cache of a pool is.
pub struct Kept<'a> {
    /// The pool.
    pub pool: &'a str,
    /// Its vectors in this process.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds of backends that were not needed so far.
    pub saved: f64,
    /// Values that were found and are none, and answers that could not be kept.
    pub unusable: [(&'static str, u64); 3],
}

/// What limits did so far, and how their store is.
pub struct Limits {
    /// Checks, by what they asked.
    pub checks: [(&'static str, u64); 3],
    /// Refusals, by what was exceeded.
    pub refused: Vec<(&'static str, u64)>,
    /// Round trips to Redis.
    pub round_trips: u64,
    /// Those that failed.
    pub failures: u64,
    /// Whether limits are shared at this moment; none where they are this replica's alone.
    pub is_up: Option<bool>,
    /// Replicas that share them.
    pub replicas: u64,
}

/// The instruments.
pub struct Telemetry {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    in_flight: IntGauge,
    bytes: IntCounterVec,
    connect_failures: IntCounterVec,
    /// Pools and endpoints that have a label there.
    unreached: Mutex<BTreeSet<(String, String)>>,
    endpoint_in_flight: IntGaugeVec,
    endpoint_healthy: IntGaugeVec,
    generation: IntGauge,
    reloads: IntCounterVec,
    log_dropped: IntGauge,
    tokens: IntCounterVec,
    spend: CounterVec,
    queue_wait: HistogramVec,
    queue_waiting: IntGaugeVec,
    retries: IntCounterVec,
    spills: IntCounterVec,
    hedges: IntCounterVec,
    shadows: IntCounterVec,
    assets: IntCounterVec,
    cache_requests: IntCounterVec,
    cache_items: IntCounterVec,
    cache_unusable: IntCounterVec,
    cache_entries: IntGaugeVec,
    cache_bytes: IntGaugeVec,
    cache_saved: CounterVec,
    quota_checks: IntCounterVec,
    quota_refusals: IntCounterVec,
    round_trips: IntCounterVec,
    shared: IntGauge,
    replicas: IntGauge,
    render: Histogram,
    dropped: Arc<AtomicU64>,
}

/// Seconds, from a cache hit to a generated video.
const SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// The most endpoints that have a label of their own among those that could not be reached.
const MOST_UNREACHED: usize = 10_000;

impl Telemetry {
    /// Declares every instrument. `dropped` counts access-log lines.
    pub fn new(dropped: Arc<AtomicU64>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<HistogramVec> {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let render =
            Histogram::with_opts(HistogramOpts::new("nimgate_metrics_render_seconds", "Time to render this page."))?;
        registry.register(Box::new(render.clone()))?;
        let build = gauges("nimgate_build_info", "Always 1; the version is its label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            requests: counters(
                "nimgate_requests_total",
                "Requests ended, by what answered them and by whose failure it was.",
                &["api", "operation", "pool", "status", "error", "blame"],
            )?,
            duration: histograms(
                "nimgate_request_duration_seconds",
                "From a request's header to its end.",
                &["pool", "operation"],
            )?,
            first_byte: histograms(
                "nimgate_time_to_first_byte_seconds",
                "From a request's header to the header of the backend's answer.",
                &["pool", "operation"],
            )?,
            in_flight: gauge("nimgate_requests_in_flight", "Requests that are being served.")?,
            bytes: counters("nimgate_body_bytes_total", "Bytes of bodies.", &["pool", "direction"])?,
            connect_failures: counters(
                "nimgate_connect_failures_total",
                "Endpoints that could not be reached.",
                &["pool", "endpoint"],
            )?,
            unreached: Mutex::default(),
            endpoint_in_flight: gauges(
                "nimgate_endpoint_in_flight",
                "Requests on an endpoint.",
                &["pool", "endpoint"],
            )?,
            endpoint_healthy: gauges("nimgate_endpoint_healthy", "1 while probes succeed.", &["pool", "endpoint"])?,
            generation: gauge("nimgate_config_generation", "Counts loaded configurations.")?,
            reloads: counters("nimgate_reloads_total", "Reloads, by result.", &["result"])?,
            log_dropped: gauge(
                "nimgate_access_log_dropped_lines",
                "Access-log lines dropped because their queue was full.",
            )?,
            tokens: counters(
                "nimgate_tokens_total",
                "Tokens used; `counted` where the backend stated none.",
                &["pool", "model", "direction", "source"],
            )?,
            spend: {
                let opts = Opts::new("nimgate_spend_total", "Money spent, by the configured prices.");
                let made = CounterVec::new(opts, &["pool", "model"])?;
                registry.register(Box::new(made.clone()))?;
                made
            },
            queue_wait: histograms("nimgate_queue_wait_seconds", "Time that requests waited for a place.", &["pool"])?,
            queue_waiting: gauges("nimgate_queue_waiting", "Requests that wait for a place.", &["pool"])?,
            retries: counters(
                "nimgate_retries_total",
                "Attempts beyond the first of each request, by the pool that they ended in.",
                &["pool"],
            )?,
            spills: counters(
                "nimgate_spills_total",
                "Requests that ran in another pool than their own.",
                &["from", "pool", "reason"],
            )?,
            hedges: counters(
                "nimgate_hedges_total",
                "Second attempts beside a slow first one, by whether they answered first.",
                &["pool", "result"],
            )?,
            shadows: counters(
                "nimgate_shadow_requests_total",
                "Copies of requests for another pool: good, failed, or dropped for want of room.",
                &["pool", "result"],
            )?,
            assets: counters(
                "nimgate_assets_total",
                "Media that were uploaded as assets or failed to be, and those that were deleted or left behind.",
                &["pool", "result"],
            )?,
            cache_requests: counters(
                "nimgate_cache_requests_total",
                "Requests of pools with a cache: hit, miss, partial, or bypass.",
                &["pool", "result"],
            )?,
            cache_items: counters(
                "nimgate_cache_items_total",
                "Items of such requests that were known, and that were asked for.",
                &["pool", "result"],
            )?,
            cache_unusable: counters(
                "nimgate_cache_unusable_total",
                "Kept values that are none, answers that could not be kept, and values that Redis did not take.",
                &["pool", "what"],
            )?,
            cache_entries: gauges("nimgate_cache_entries", "Vectors kept in this process.", &["pool"])?,
            cache_bytes: gauges("nimgate_cache_bytes", "Their bytes.", &["pool"])?,
            cache_saved: {
                let opts = Opts::new("nimgate_cache_saved_seconds_total", "Time of backends that was not needed.");
                let made = CounterVec::new(opts, &["pool"])?;
                registry.register(Box::new(made.clone()))?;
                made
            },
            quota_checks: counters(
                "nimgate_quota_checks_total",
                "Checks of limits: local ones asked nobody, waited ones asked Redis, away ones could not.",
                &["path"],
            )?,
            quota_refusals: counters(
                "nimgate_quota_refusals_total",
                "Requests refused by a limit, by what was exceeded.",
                &["metric"],
            )?,
            round_trips: counters(
                "nimgate_redis_round_trips_total",
                "Round trips to Redis for limits, by result.",
                &["result"],
            )?,
            shared: gauge(
                "nimgate_quota_shared",
                "1 while limits are shared through Redis, 0 while it is away, -1 where there is none.",
            )?,
            replicas: gauge("nimgate_quota_replicas", "Replicas that share the limits.")?,
            render,
            registry,
            dropped,
        })
    }

    /// A request has arrived.
    pub fn begin(&self) {
        self.in_flight.inc();
    }

    /// A request has ended.
    pub fn end(&self, ended: &Ended<'_>) {
        self.in_flight.dec();
        let mut digits = [0; 3];
        let status = status_text(ended.status, &mut digits);
        let labels = [ended.api, ended.operation, ended.pool, status, ended.error, ended.blame];
        self.requests.with_label_values(&labels).inc();
        let place = [ended.pool, ended.operation];
        self.duration.with_label_values(&place).observe(ended.total.as_secs_f64());
        if let Some(first_byte) = ended.first_byte {
            self.first_byte.with_label_values(&place).observe(first_byte.as_secs_f64());
        }
        self.bytes.with_label_values(&[ended.pool, "request"]).inc_by(ended.request_bytes as u64);
        self.bytes.with_label_values(&[ended.pool, "response"]).inc_by(ended.response_bytes as u64);
        if let Some((input, output, is_stated)) = ended.tokens {
            let source = if is_stated { "stated" } else { "counted" };
            for (direction, tokens) in [("input", input), ("output", output)] {
                self.tokens.with_label_values(&[ended.pool, ended.model, direction, source]).inc_by(tokens);
            }
        }
        if ended.attempts > 1 {
            self.retries.with_label_values(&[ended.pool]).inc_by(u64::from(ended.attempts - 1));
        }
        if let Some(queued) = ended.queued {
            self.queue_wait.with_label_values(&[ended.pool]).observe(queued.as_secs_f64());
        }
        if let Some((from, reason)) = ended.spill {
            self.spills.with_label_values(&[from, ended.pool, reason]).inc();
        }
        if let Some(result) = ended.hedge {
            self.hedges.with_label_values(&[ended.pool, result]).inc();
        }
        if let Some((result, hits, misses)) = ended.cache {
            self.cache_requests.with_label_values(&[ended.pool, result]).inc();
            for (result, items) in [("hit", hits), ("miss", misses)] {
                self.cache_items.with_label_values(&[ended.pool, result]).inc_by(items as u64);
            }
        }
        if let Some(spend) = ended.spend {
            self.spend.with_label_values(&[ended.pool, ended.model]).inc_by(spend as f64 / 1e9);
        }
    }

    /// Requests that are being served.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// An endpoint could not be reached.
    pub fn connect_failed(&self, pool: &str, endpoint: &str) {
        let mut unreached = self.unreached.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (pool.to_owned(), endpoint.to_owned());
        let is_named = unreached.contains(&key) || unreached.len() < MOST_UNREACHED && unreached.insert(key);
        let endpoint = if is_named { endpoint } else { "other" };
        self.connect_failures.with_label_values(&[pool, endpoint]).inc();
    }

    /// A copy of a request has ended, or was not made.
    pub fn shadowed(&self, pool: &str, result: &str) {
        self.shadows.with_label_values(&[pool, result]).inc();
    }

    /// An asset was uploaded, could not be, was deleted, or was left behind.
    pub fn asset(&self, pool: &str, result: &str) {
        self.assets.with_label_values(&[pool, result]).inc();
    }

    /// A configuration was loaded, or could not be.
    pub fn reloaded(&self, generation: Option<u64>) {
        self.reloads.with_label_values(&[if generation.is_some() { "loaded" } else { "refused" }]).inc();
        if let Some(generation) = generation {
            self.generation.set(generation as i64);
        }
    }

    /// The Prometheus page. `endpoints` are pool, endpoint, requests in flight and health at this moment, `waiting` are
    /// pool and requests that wait for a place.
    pub fn page<'a>(
        &self,
        endpoints: impl Iterator<Item = (&'a str, String, usize, bool)>,
        waiting: impl Iterator<Item = (&'a str, usize)>,
        limits: &Limits,
        caches: impl Iterator<Item = Kept<'a>>,
    ) -> prometheus::Result<String> {
        let timer = self.render.start_timer();
        self.endpoint_in_flight.reset();
        self.endpoint_healthy.reset();
        for (pool, endpoint, in_flight, healthy) in endpoints {
            self.endpoint_in_flight.with_label_values(&[pool, &endpoint]).set(in_flight as i64);
            self.endpoint_healthy.with_label_values(&[pool, &endpoint]).set(i64::from(healthy));
        }
        self.queue_waiting.reset();
        for (pool, waiting) in waiting {
            self.queue_waiting.with_label_values(&[pool]).set(waiting as i64);
        }
        self.cache_entries.reset();
        self.cache_bytes.reset();
        for cache in caches {
            self.cache_entries.with_label_values(&[cache.pool]).set(cache.entries as i64);
            self.cache_bytes.with_label_values(&[cache.pool]).set(cache.bytes as i64);
            let saved = self.cache_saved.with_label_values(&[cache.pool]);
            saved.inc_by((cache.saved - saved.get()).max(0.0));
            for (what, count) in cache.unusable {
                let counter = self.cache_unusable.with_label_values(&[cache.pool, what]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        let raise = |counters: &IntCounterVec, label: &str, to: u64| {
            let counter = counters.with_label_values(&[label]);
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        limits.checks.iter().for_each(|(path, count)| raise(&self.quota_checks, path, *count));
        limits.refused.iter().for_each(|(metric, count)| raise(&self.quota_refusals, metric, *count));
        raise(&self.round_trips, "good", limits.round_trips.saturating_sub(limits.failures));
        raise(&self.round_trips, "failed", limits.failures);
        self.shared.set(limits.is_up.map_or(-1, i64::from));
        self.replicas.set(limits.replicas as i64);
        self.log_dropped.set(self.dropped.load(Ordering::Relaxed) as i64);
        let page = TextEncoder::new().encode_to_string(&self.registry.gather());
        timer.observe_duration();
        page
    }
}

/// A status as a label: its digits where it has a name, `other` where a backend made one up, `none` for no answer.
fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    if status == 0 {
        return "none";
    }
    let named = http::StatusCode::from_u16(status).is_ok_and(|s| s.canonical_reason().is_some());
    if !named && !matches!(status, 499 | 529) {
        return "other";
    }
    *digits = [b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    std::str::from_utf8(digits).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_without_a_name_share_a_label() {
        let text = |status| status_text(status, &mut [0; 3]).to_owned();
        assert_eq!([text(200), text(529), text(0), text(299), text(799)], ["200", "529", "none", "other", "other"]);
    }

    #[test]
    fn endpoints_that_come_and_go_do_not_fill_the_page() {
        let telemetry = Telemetry::new(Arc::default()).unwrap();
        for i in 0..MOST_UNREACHED + 5 {
            telemetry.connect_failed("p", &i.to_string());
        }
        telemetry.connect_failed("p", "3");
        let count = |endpoint: &str| telemetry.connect_failures.with_label_values(&["p", endpoint]).get();
        assert_eq!((count("3"), count("other")), (2, 5));
    }

    #[test]
    fn the_page_shows_what_ended() {
        let telemetry = Telemetry::new(Arc::default()).unwrap();
        telemetry.begin();
        telemetry.end(&Ended {
            api: "a",
            operation: "o",
            pool: "p",
            status: 503,
            error: "no_healthy_endpoint",
            blame: "inference-service",
            total: Duration::from_millis(2),
            first_byte: None,
            request_bytes: 1,
            response_bytes: 2,
            model: "m",
            tokens: Some((3, 4, true)),
            spend: Some(500_000_000),
            attempts: 3,
            queued: Some(Duration::from_millis(2)),
            spill: Some(("own", "overload")),
            hedge: Some("won"),
            cache: Some(("partial", 3, 2)),
        });
        telemetry.reloaded(Some(3));
        let limits = Limits {
            checks: [("local", 5), ("waited", 6), ("away", 7)],
            refused: vec![("spend", 8)],
            round_trips: 9,
            failures: 1,
            is_up: Some(true),
            replicas: 2,
        };
        let endpoints = [("p", "e:1".to_owned(), 4, true)].into_iter();
        let kept = Kept {
            pool: "p",
            entries: 6,
            bytes: 7,
            saved: 0.5,
            unusable: [("spoilt", 1), ("unkept", 2), ("unwritten", 3)],
        };
        let page = telemetry.page(endpoints, [("p", 5)].into_iter(), &limits, [kept].into_iter()).unwrap();
        for line in [
            r#"nimgate_requests_total{api="a",blame="inference-service",error="no_healthy_endpoint",operation="o",pool="p",status="503"} 1"#,
            "nimgate_requests_in_flight 0",
            r#"nimgate_endpoint_in_flight{endpoint="e:1",pool="p"} 4"#,
            "nimgate_config_generation 3",
            r#"nimgate_tokens_total{direction="output",model="m",pool="p",source="stated"} 4"#,
            r#"nimgate_spend_total{model="m",pool="p"} 0.5"#,
            r#"nimgate_quota_refusals_total{metric="spend"} 8"#,
            r#"nimgate_redis_round_trips_total{result="good"} 8"#,
            "nimgate_quota_shared 1",
            r#"nimgate_queue_waiting{pool="p"} 5"#,
            r#"nimgate_retries_total{pool="p"} 2"#,
            r#"_queue_wait_seconds_count{pool="p"} 1"#,
            r#"nimgate_spills_total{from="own",pool="p",reason="overload"} 1"#,
            r#"nimgate_hedges_total{pool="p",result="won"} 1"#,
            r#"nimgate_cache_requests_total{pool="p",result="partial"} 1"#,
            r#"nimgate_cache_items_total{pool="p",result="hit"} 3"#,
            r#"nimgate_cache_unusable_total{pool="p",what="unkept"} 2"#,
            r#"nimgate_cache_bytes{pool="p"} 7"#,
            r#"nimgate_cache_saved_seconds_total{pool="p"} 0.5"#,
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }
}
