//! Record: one row per request, into the access log and the metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use http::request::Parts;
use serde::Serialize;

use crate::access_log::AccessLog;
use crate::auth::Caller;
use crate::failure::Failure;
use crate::ids::{ApiName, ModelId, PoolName, RequestId};
use crate::live::{self, Live};
use crate::otlp::Exporter;
use crate::quota::limit::NANO;
use crate::telemetry::{Ended, Pieces, Telemetry};
use crate::trace::{Sampling, Trace};
use crate::transcript::Telling;

mod export;

/// Tokens of a request.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// Of its prompt.
    pub input: u64,
    /// Of its answer.
    pub output: u64,
    /// Whether the backend stated them; otherwise they are estimated and counted.
    pub is_stated: bool,
}

/// Why a request ran in another pool than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillReason {
    /// Its pool was full.
    Overload,
    /// Its pool could not be reached.
    Outage,
    /// Its model had ended there.
    EndOfLife,
}

impl SpillReason {
    /// The word for headers, records and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::Outage => "outage",
            Self::EndOfLife => "end_of_life",
        }
    }
}

/// That a request ran in another pool than its own.
#[derive(Clone, Debug)]
pub struct Spill {
    /// Its own.
    pub from: PoolName,
    /// Why it left the last one.
    pub reason: SpillReason,
}

/// What a cache had of a request.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    /// `hit`, `miss`, `partial` or `bypass`.
    pub result: &'static str,
    /// Items that were known.
    pub hits: usize,
    /// Items that were asked for.
    pub misses: usize,
    /// Why it was passed over, where it was.
    pub reason: Option<&'static str>,
    /// Whether the usage is what the backend would have stated; unknown where there is none.
    pub is_exact: Option<bool>,
}

/// What is found out about a request on its way.
#[derive(Default)]
pub struct Trail {
    /// The method.
    pub method: Method,
    /// The `Origin` that a browser sent.
    pub origin: Option<String>,
    /// The client's address.
    pub client: Option<String>,
    /// Who sent it.
    pub caller: Option<Arc<Caller>>,
    /// The API called.
    pub api: Option<ApiName>,
    /// The operation called.
    pub operation: Option<Arc<str>>,
    /// What a model is asked for, in the words of OpenTelemetry's conventions; none where it is no inference.
    pub gen_ai: Option<Arc<str>>,
    /// The model asked for.
    pub model: Option<ModelId>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// The pool that served it.
    pub pool: Option<PoolName>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<String>,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// NVCF's own id of the request, by which its logs name it.
    pub nvcf_id: Option<String>,
    /// From the request's header to the end of its body, where that was read first.
    pub received: Option<Duration>,
    /// From then to the first attempt, without the wait for a place.
    pub overhead: Option<Duration>,
    /// How long it waited for a place.
    pub queued: Option<Duration>,
    /// That it ran in another pool than its own.
    pub spill: Option<Spill>,
    /// That an attempt at a second endpoint was made while the first was slow, and whether that one answered.
    pub hedge: Option<bool>,
    /// What a cache had of it.
    pub cache: Option<Cached>,
    /// The status that the client got; 0 when it got none.
    pub status: u16,
    /// The `grpc-status` of a call, as far as it is known.
    pub grpc: Option<u16>,
    /// From the request's header to the header of the backend's answer.
    pub first_byte: Option<Duration>,
    /// From the request's header to the first piece of a streamed answer.
    pub first_chunk: Option<Duration>,
    /// Bytes of the request body.
    pub request_bytes: usize,
    /// Bytes of the answer's body.
    pub response_bytes: usize,
    /// Tokens that it used.
    pub tokens: Option<Tokens>,
    /// What it cost, in nano-units of money.
    pub spend: Option<u64>,
    /// Why the model ended.
    pub finish: Option<&'static str>,
    /// What went wrong.
    pub failure: Option<Failure>,
    /// What it went through, where traces are exported.
    pub trace: Option<Box<Trace>>,
}

impl Trail {
    /// An attempt at an endpoint is over, while the request goes on.
    pub fn over(&mut self, endpoint: &str, error: Option<&'static str>) {
        self.trace.iter_mut().for_each(|trace| trace.over(endpoint, error));
    }

    /// The next attempt is made for this reason.
    pub fn again(&mut self, reason: &'static str) {
        self.trace.iter_mut().for_each(|trace| trace.again(reason));
    }
}

/// A request that has ended.
pub struct Finished<'a> {
    /// What was found out about it.
    pub trail: &'a mut Trail,
    /// Its id.
    pub request_id: &'a RequestId,
    /// How long it took.
    pub total: Duration,
    /// Its header.
    pub request: &'a Parts,
    /// The template of its path.
    pub route: Option<&'a str>,
    /// Which traces are exported.
    pub sampling: &'a Sampling,
    /// What it asked and was answered, where its trace is to tell that.
    pub transcript: Option<Telling<'a>>,
}

/// Which requests have a line in the access log, and a record at the collector.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The share of those that went well and were not slow.
    pub share: f64,
    /// How long a slow one takes.
    pub slow: Duration,
}

impl Sample {
    /// Whether this request is one of them.
    fn takes(self, trail: &Trail, total: Duration) -> bool {
        let is_well = trail.failure.is_none()
            && matches!(trail.status, 100..400)
            && trail.grpc.is_none_or(|code| code == 0)
            && total < self.slow;
        !is_well || self.share >= 1.0 || fastrand::f64() < self.share
    }
}

/// Writes records.
pub struct Recorder {
    telemetry: Arc<Telemetry>,
    live: Arc<Live>,
    access_log: AccessLog,
    sample: Sample,
    exporter: Exporter,
}

/// One line of the access log. Holds no query, no header and no body: they may carry secrets.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    client: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    http_version: String,
    caller: Option<&'a str>,
    org: Option<&'a str>,
    team: Option<&'a str>,
    api: Option<&'a str>,
    operation: Option<&'a str>,
    #[serde(skip)]
    gen_ai: Option<&'a str>,
    model: Option<&'a str>,
    stream: bool,
    pool: Option<&'a str>,
    endpoint: Option<&'a str>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvcf_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spilled_from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spill_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hedge: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_hits: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_misses: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_reason: Option<&'a str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    error: Option<&'a str>,
    blame: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    first_byte_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_chunk_ms: Option<f64>,
    total_ms: f64,
    request_bytes: usize,
    response_bytes: usize,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    /// `stated` by the backend, or `counted` here.
    tokens: Option<&'a str>,
    /// Why the model ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'a str>,
    spend: Option<f64>,
}

impl Recorder {
    /// A recorder into these.
    pub fn new(
        telemetry: Arc<Telemetry>,
        live: Arc<Live>,
        access_log: AccessLog,
        sample: Sample,
        exporter: Exporter,
    ) -> Self {
        Self { telemetry, live, access_log, sample, exporter }
    }

    /// Whether anybody is told of traces.
    pub fn takes_traces(&self) -> bool {
        self.exporter.takes_traces()
    }

    /// A piece of a streamed answer has come.
    pub fn piece(&self, started: Instant, trail: &mut Trail, pieces: &mut Option<Pieces>) {
        if trail.first_chunk.is_none() {
            trail.first_chunk = Some(started.elapsed());
            let model = trail.model.as_ref().map_or("", ModelId::as_str);
            let pool = trail.pool.as_ref().map_or("", PoolName::as_str);
            *pieces = trail.gen_ai.as_deref().and_then(|asked| self.telemetry.pieces(asked, model, pool));
        }
        pieces.iter_mut().for_each(Pieces::came);
    }

    /// A request has arrived.
    pub fn begin(&self) {
        self.telemetry.begin();
    }

    /// An endpoint could not be reached.
    pub fn connect_failed(&self, pool: Option<&PoolName>, endpoint: &str) {
        self.telemetry.connect_failed(pool.map_or("", PoolName::as_str), endpoint);
    }

    /// A copy of a request for this pool has ended.
    pub fn shadowed(&self, pool: &PoolName, result: &'static str) {
        self.telemetry.shadowed(pool.as_str(), result);
    }

    /// An asset of this pool's was uploaded, could not be, was deleted, or was left behind.
    pub fn asset(&self, pool: &PoolName, result: &'static str) {
        self.telemetry.asset(pool.as_str(), result);
    }

    /// A request has ended.
    pub fn end(&self, finished: &mut Finished<'_>) {
        let trail = &mut *finished.trail;
        let label = trail.failure.as_ref().map(Failure::label);
        trail.trace.iter_mut().for_each(|trace| trace.end(label));
        let finished = &*finished;
        let trail = &*finished.trail;
        let failure = trail.failure.as_ref();
        let is_kept = |trace: &&Trace| trace.is_kept(finished.sampling, failure.is_some(), finished.total);
        let trace = trail.trace.as_deref().filter(is_kept);
        let caller = trail.caller.as_deref();
        // Before it counts as ended: who waits for the last request to end then finds its record.
        let is_wanted = self.access_log.is_on() || self.exporter.takes_logs();
        let is_recorded = is_wanted && self.sample.takes(trail, finished.total);
        if is_recorded || trace.is_some() {
            let line = line(finished);
            if is_recorded {
                self.tell(&line, trail);
            }
            if let Some(trace) = trace {
                self.exporter.spans(export::spans(&line, finished, trace));
            }
        }
        self.live.end(&lived(finished));
        self.telemetry.end(&Ended {
            api: trail.api.as_ref().map_or("", ApiName::as_str),
            operation: trail.operation.as_deref().unwrap_or(""),
            gen_ai: trail.gen_ai.as_deref(),
            pool: trail.pool.as_ref().map_or("", PoolName::as_str),
            caller: caller.map(|caller| [caller.org(), caller.team(), caller.id().as_str()]),
            status: trail.status,
            error: label.unwrap_or(""),
            blame: failure.map_or("", |f| f.blame().word()),
            is_refused: matches!(failure, Some(Failure::Exceeded(_) | Failure::LimitsUnknown)),
            total: finished.total,
            overhead: trail.overhead,
            first_byte: trail.first_byte,
            first_chunk: trail.first_chunk,
            request_bytes: trail.request_bytes,
            response_bytes: trail.response_bytes,
            model: trail.model.as_ref().map_or("", ModelId::as_str),
            tokens: trail.tokens.map(|t| (t.input, t.output, t.is_stated)),
            spend: trail.spend,
            attempts: trail.attempts,
            queued: trail.queued,
            spill: trail.spill.as_ref().map(|spill| (spill.from.as_str(), spill.reason.word())),
            hedge: trail.hedge.map(hedge_word),
            cache: trail.cache.map(|cache| (cache.result, cache.hits, cache.misses)),
            seen_in: trace.map(|trace| (trace.id, trace.span)),
        });
    }

    /// Writes the record to where it is wanted: the access log, and the collector's logs.
    fn tell(&self, line: &Line<'_>, trail: &Trail) {
        if self.exporter.takes_logs() {
            self.exporter.log(export::log(line, trail.trace.as_deref()));
        }
        if !self.access_log.is_on() {
            return;
        }
        if let Ok(mut bytes) = serde_json::to_vec(line) {
            bytes.push(b'\n');
            self.access_log.write(&bytes);
        }
    }
}

/// What is told of a request.
fn line<'a>(finished: &'a Finished<'_>) -> Line<'a> {
    let Finished { trail, request_id, total, request, .. } = finished;
    let (failure, total) = (trail.failure.as_ref(), *total);
    let caller = trail.caller.as_deref();
    Line {
        time: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        request_id: request_id.as_str(),
        trace_id: trail.trace.as_ref().map(|trace| format!("{:032x}", trace.id)),
        client: trail.client.as_deref(),
        method: request.method.as_str(),
        path: bounded(request.uri.path()),
        http_version: format!("{:?}", request.version),
        caller: caller.map(|c| c.id().as_str()),
        org: caller.map(Caller::org),
        team: caller.map(Caller::team),
        api: trail.api.as_ref().map(ApiName::as_str),
        operation: trail.operation.as_deref(),
        gen_ai: trail.gen_ai.as_deref(),
        model: trail.model.as_ref().map(ModelId::as_str),
        stream: trail.stream,
        pool: trail.pool.as_ref().map(PoolName::as_str),
        endpoint: trail.endpoint.as_deref(),
        attempts: trail.attempts,
        nvcf_request_id: trail.nvcf_id.as_deref(),
        queue_ms: trail.queued.map(millis),
        spilled_from: trail.spill.as_ref().map(|spill| spill.from.as_str()),
        spill_reason: trail.spill.as_ref().map(|spill| spill.reason.word()),
        hedge: trail.hedge.map(hedge_word),
        cache: trail.cache.map(|cache| cache.result),
        cache_hits: trail.cache.map(|cache| cache.hits),
        cache_misses: trail.cache.map(|cache| cache.misses),
        cache_reason: trail.cache.and_then(|cache| cache.reason),
        status: trail.status,
        grpc_status: trail.grpc,
        error: failure.map(Failure::label),
        blame: failure.map(|f| f.blame().word()),
        detail: failure.and_then(detail),
        first_byte_ms: trail.first_byte.map(millis),
        first_chunk_ms: trail.first_chunk.map(millis),
        total_ms: millis(total),
        request_bytes: trail.request_bytes,
        response_bytes: trail.response_bytes,
        input_tokens: trail.tokens.map(|t| t.input),
        output_tokens: trail.tokens.map(|t| t.output),
        tokens: trail.tokens.map(|t| if t.is_stated { "stated" } else { "counted" }),
        finish_reason: trail.finish,
        spend: trail.spend.map(|nano| nano as f64 / NANO as f64),
    }
}

/// What is remembered of late: what the access log has.
fn lived<'a>(finished: &'a Finished<'_>) -> live::Ended<'a> {
    let Finished { trail, request_id, total, request, .. } = finished;
    let failure = trail.failure.as_ref();
    let caller = trail.caller.as_deref();
    live::Ended {
        request_id: request_id.as_str(),
        trace: trail.trace.as_ref().map(|trace| trace.id),
        nvcf_id: trail.nvcf_id.as_deref(),
        method: request.method.as_str(),
        path: request.uri.path(),
        caller: caller.map(Caller::id),
        org: caller.map(Caller::org),
        team: caller.map(Caller::team),
        operation: trail.operation.as_deref(),
        model: trail.model.as_ref().map(ModelId::as_str),
        pool: trail.pool.as_ref(),
        endpoint: trail.endpoint.as_deref(),
        status: trail.status,
        grpc: trail.grpc,
        failure: failure.map(|failure| (failure.label(), failure.blame().word())),
        detail: failure.and_then(detail),
        total: *total,
        first_byte: trail.first_byte,
        queued: trail.queued,
        attempts: trail.attempts,
        spill: trail.spill.as_ref().map(|spill| (spill.from.as_str(), spill.reason.word())),
        hedge: trail.hedge.map(hedge_word),
        cache: trail.cache.map(|cache| (cache.result, cache.hits, cache.misses)),
        tokens: trail.tokens.map(|tokens| (tokens.input, tokens.output)),
    }
}

/// What the log says of a failure beside its label.
fn detail(failure: &Failure) -> Option<&str> {
    match failure {
        Failure::Internal(detail) => Some(detail),
        Failure::ResultLost(reason) => Some(reason),
        _ => None,
    }
}

fn hedge_word(is_won: bool) -> &'static str {
    if is_won { "won" } else { "lost" }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The path, cut at a bound: it is the client's text.
fn bounded(path: &str) -> &str {
    const MOST: usize = 1024;
    &path[..path.floor_char_boundary(path.len().min(MOST))]
}
