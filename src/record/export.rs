//! Export: the record of a request as a log record and as spans of OpenTelemetry, under the names of its conventions
//! where it has some. Holds what the access log holds: no query and no header; and of bodies, what a pool's transcripts
//! tell.

use std::time::Instant;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, SpanFlags, Status};

use super::{Finished, Line};
use crate::otlp::value::{boolean, integer, list, nanos, now, number, text};
use crate::telemetry::names;
use crate::trace::{Kind, Step, Trace};
use crate::transcript::Telling;

/// The name of a request's record.
const EVENT: &str = "nimgate.request";

/// The record as a log record.
pub(super) fn log(line: &Line<'_>, trace: Option<&Trace>) -> LogRecord {
    let time = now();
    let (severity, word) = match line.error {
        Some(_) => (SeverityNumber::Warn, "WARN"),
        None => (SeverityNumber::Info, "INFO"),
    };
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: severity.into(),
        severity_text: word.into(),
        attributes: attributes(line),
        trace_id: trace.map(|trace| trace.id.to_be_bytes().to_vec()).unwrap_or_default(),
        span_id: trace.map(|trace| trace.span.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: trace.map_or(0, |trace| trace.is_sampled.into()),
        event_name: EVENT.into(),
        ..LogRecord::default()
    }
}

/// The span of the request, and one of each of its steps.
pub(super) fn spans(line: &Line<'_>, finished: &Finished<'_>, trace: &Trace) -> Vec<Span> {
    let steps = trace.steps.iter().enumerate().map(|(at, step)| child(line, trace, step, at));
    std::iter::once(server(line, finished, trace)).chain(steps).collect()
}

fn attributes(line: &Line<'_>) -> Vec<KeyValue> {
    let texts = [
        ("nimgate.request.id", Some(line.request_id)),
        (names::CLIENT_ADDRESS, line.client),
        (names::METHOD, Some(line.method)),
        (names::PATH, Some(line.path)),
        (names::PROTOCOL_VERSION, Some(line.http_version.trim_start_matches("HTTP/"))),
        ("nimgate.key.id", line.caller),
        ("nimgate.org", line.org),
        ("nimgate.team", line.team),
        ("nimgate.api", line.api),
        ("nimgate.operation", line.operation),
        (names::GEN_AI_REQUEST_MODEL, line.model),
        ("nimgate.pool", line.pool),
        ("nimgate.endpoint", line.endpoint),
        ("nimgate.nvcf.request.id", line.nvcf_request_id),
        ("nimgate.spill.from", line.spilled_from),
        ("nimgate.spill.reason", line.spill_reason),
        ("nimgate.hedge", line.hedge),
        ("nimgate.cache.result", line.cache),
        ("nimgate.cache.reason", line.cache_reason),
        (names::ERROR_TYPE, line.error),
        ("nimgate.blame", line.blame),
        ("nimgate.error.detail", line.detail),
        ("nimgate.tokens.source", line.tokens),
        (names::GEN_AI_OPERATION, line.gen_ai),
    ];
    let whole = |count: Option<usize>| count.and_then(|count| i64::try_from(count).ok());
    let tokens = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok());
    let integers = [
        (names::STATUS, (line.status > 0).then_some(line.status.into())),
        (names::GRPC_STATUS, line.grpc_status.map(i64::from)),
        ("nimgate.attempts", Some(line.attempts.into())),
        ("nimgate.cache.hits", whole(line.cache_hits)),
        ("nimgate.cache.misses", whole(line.cache_misses)),
        (names::REQUEST_SIZE, whole(Some(line.request_bytes))),
        (names::RESPONSE_SIZE, whole(Some(line.response_bytes))),
        (names::GEN_AI_INPUT_TOKENS, tokens(line.input_tokens)),
        (names::GEN_AI_OUTPUT_TOKENS, tokens(line.output_tokens)),
    ];
    let numbers = [
        ("nimgate.queue.ms", line.queue_ms),
        ("nimgate.first_byte.ms", line.first_byte_ms),
        ("nimgate.first_chunk.ms", line.first_chunk_ms),
        ("nimgate.total.ms", Some(line.total_ms)),
        ("nimgate.spend", line.spend),
    ];
    let texts = texts.into_iter().filter_map(|(key, value)| Some(text(key, value?)));
    let integers = integers.into_iter().filter_map(|(key, value)| Some(integer(key, value?)));
    let numbers = numbers.into_iter().filter_map(|(key, value)| Some(number(key, value?)));
    let finish = line.finish_reason.map(|reason| list(names::GEN_AI_FINISH, reason));
    let flags = [boolean("nimgate.stream", line.stream)];
    texts.chain(integers).chain(numbers).chain(finish).chain(flags).collect()
}

fn server(line: &Line<'_>, finished: &Finished<'_>, trace: &Trace) -> Span {
    let (begun, started) = trace.begun;
    let mut attributes = attributes(line);
    attributes.extend(finished.route.map(|route| text(names::ROUTE, route)));
    if let Some(told) = finished.transcript.map(Telling::tell) {
        let texts = [
            (names::GEN_AI_SYSTEM_INSTRUCTIONS, told.system),
            (names::GEN_AI_INPUT, told.input),
            (names::GEN_AI_OUTPUT, told.output),
        ];
        attributes.extend(texts.into_iter().filter_map(|(key, told)| Some(text(key, &told?))));
        attributes.push(boolean("nimgate.transcript.cut", told.is_cut));
    }
    // Whoever did wrong below 500 is the client, and that is no error of a server's span, by the conventions.
    let is_ours = line.error.is_some() && (line.status >= 500 || line.status == 0);
    let status = is_ours.then(|| error(line.error.unwrap_or_default()));
    let name = finished.route.map_or_else(|| line.method.to_owned(), |route| format!("{} {route}", line.method));
    Span {
        name,
        kind: SpanKind::Server.into(),
        span_id: trace.span.to_be_bytes().to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: flags(trace, trace.parent.is_some()),
        start_time_unix_nano: nanos(begun),
        end_time_unix_nano: nanos(begun + started.elapsed()),
        attributes,
        status,
        ..common(trace)
    }
}

fn child(line: &Line<'_>, trace: &Trace, step: &Step, at: usize) -> Span {
    let (begun, started) = trace.begun;
    let time = |instant: Instant| nanos(begun + instant.saturating_duration_since(started));
    let asked = line.gen_ai;
    let (kind, name) = match step.kind {
        Kind::Validation => (SpanKind::Internal, "validation".to_owned()),
        Kind::Quota => (SpanKind::Client, "quota".to_owned()),
        Kind::Queue => (SpanKind::Internal, "queue".to_owned()),
        Kind::Cache => (SpanKind::Internal, "cache".to_owned()),
        Kind::Upload => (SpanKind::Client, "asset upload".to_owned()),
        Kind::Attempt => match (asked, line.model) {
            (Some(operation), Some(model)) => (SpanKind::Client, format!("{operation} {model}")),
            _ => (SpanKind::Client, line.method.to_owned()),
        },
    };
    let attributes = match step.kind {
        Kind::Attempt => attempt(line, trace, step, at, asked),
        Kind::Cache => line.cache.map(|result| text("nimgate.cache.result", result)).into_iter().collect(),
        _ => Vec::new(),
    };
    Span {
        name,
        kind: kind.into(),
        span_id: step.span.to_be_bytes().to_vec(),
        parent_span_id: trace.span.to_be_bytes().to_vec(),
        flags: flags(trace, false),
        start_time_unix_nano: time(step.begun),
        end_time_unix_nano: time(step.ended.unwrap_or(step.begun)),
        attributes,
        status: step.error.map(error),
        ..common(trace)
    }
}

fn attempt(line: &Line<'_>, trace: &Trace, step: &Step, at: usize, asked: Option<&str>) -> Vec<KeyValue> {
    let before = trace.steps[..at].iter().filter(|step| step.kind == Kind::Attempt).count();
    let (pool, endpoint) = step.place.as_ref().map_or(("", ""), |(pool, endpoint)| (pool.as_str(), endpoint.as_str()));
    let (host, port) = match endpoint.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
        Some((host, Ok(port))) => (host, Some(port)),
        _ => (endpoint, None),
    };
    let texts = [
        (names::METHOD, Some(line.method)),
        (names::SERVER_ADDRESS, Some(host)),
        ("nimgate.pool", Some(pool)),
        ("nimgate.endpoint", Some(endpoint)),
        ("nimgate.retry.reason", step.reason),
        (names::ERROR_TYPE, step.error),
        (names::GEN_AI_OPERATION, asked),
        (names::GEN_AI_PROVIDER, asked.map(|_| names::PROVIDER)),
        (names::GEN_AI_REQUEST_MODEL, asked.and(line.model)),
    ];
    let integers = [
        (names::SERVER_PORT, port.map(i64::from)),
        (names::STATUS, step.status.map(i64::from)),
        (names::RESEND_COUNT, (before > 0).then(|| i64::try_from(before).unwrap_or(i64::MAX))),
    ];
    let texts = texts.into_iter().filter_map(|(key, value)| Some(text(key, value?)));
    texts.chain(integers.into_iter().filter_map(|(key, value)| Some(integer(key, value?)))).collect()
}

fn common(trace: &Trace) -> Span {
    let trace_state = trace.state.clone().unwrap_or_default();
    Span { trace_id: trace.id.to_be_bytes().to_vec(), trace_state, ..Span::default() }
}

/// W3C's flags, and whether the parent is another process.
fn flags(trace: &Trace, is_remote: bool) -> u32 {
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    u32::from(trace.is_sampled) | SpanFlags::ContextHasIsRemoteMask as u32 | remote
}

fn error(label: &str) -> Status {
    Status { message: label.to_owned(), code: StatusCode::Error.into() }
}
