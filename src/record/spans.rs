//! Spans: a request and its steps as OpenTelemetry has them. Attributes hold what the access log holds, and no query, no
//! header and no body.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, SpanFlags, Status};

use super::{Finished, bounded, hedge_word};
use crate::auth::Caller;
use crate::failure::Failure;
use crate::ids::{ApiName, ModelId, PoolName};
use crate::quota::limit::NANO;
use crate::telemetry::names;
use crate::telemetry::otlp::{nanos, number, text, truth, whole};
use crate::trace::{Kind, Step, Trace};

/// The span of a request, and one of each of its steps.
pub(super) fn of(finished: &Finished<'_>, trace: &Trace) -> Vec<Span> {
    let model = finished.trail.model.as_ref().map_or("", ModelId::as_str);
    let operation = finished.trail.operation.as_deref().and_then(names::gen_ai_operation);
    let steps = trace.steps.iter().enumerate();
    let steps = steps.map(|(at, step)| child(finished, trace, step, at, operation.map(|operation| (operation, model))));
    std::iter::once(server(finished, trace)).chain(steps).collect()
}

fn server(finished: &Finished<'_>, trace: &Trace) -> Span {
    let Finished { trail, total, route, .. } = finished;
    let (begun, started) = trace.begun;
    let failure = trail.failure.as_ref();
    let method = trail.method.as_str();
    let mut attributes = request_attributes(finished);
    attributes.extend(outcome_attributes(finished));
    if let Some(route) = route {
        attributes.push(text(names::ROUTE, *route));
    }
    let name = match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    };
    let parent_span_id = trace.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default();
    let end = begun + started.elapsed().max(*total);
    Span {
        trace_id: trace.id.to_be_bytes().to_vec(),
        span_id: trace.span.to_be_bytes().to_vec(),
        trace_state: trace.state.clone().unwrap_or_default(),
        flags: flags(trace, trace.parent.is_some()),
        parent_span_id,
        name,
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanos(begun),
        end_time_unix_nano: nanos(end),
        attributes,
        status: failure.map(status),
        ..Span::default()
    }
}

/// Whose parent it has: W3C's flags, and whether the parent is another process.
fn flags(trace: &Trace, is_remote: bool) -> u32 {
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    u32::from(trace.is_sampled) | SpanFlags::ContextHasIsRemoteMask as u32 | remote
}

fn request_attributes(finished: &Finished<'_>) -> Vec<KeyValue> {
    let Finished { trail, request_id, request, .. } = finished;
    let caller = trail.caller.as_deref();
    let mut attributes = vec![
        text(names::METHOD, trail.method.as_str()),
        text(names::PATH, bounded(request.uri.path())),
        text(names::PROTOCOL_VERSION, format!("{:?}", request.version).trim_start_matches("HTTP/")),
        text("nimgate.request_id", request_id.as_str()),
        truth("nimgate.stream", trail.stream),
    ];
    let texts = [
        (names::CLIENT_ADDRESS, trail.client.as_deref()),
        (names::GEN_AI_OPERATION, trail.operation.as_deref().and_then(names::gen_ai_operation)),
        (names::GEN_AI_REQUEST_MODEL, trail.model.as_ref().map(ModelId::as_str)),
        ("nimgate.caller", caller.map(|caller| caller.id().as_str())),
        ("nimgate.org", caller.map(Caller::org)),
        ("nimgate.team", caller.map(Caller::team)),
        ("nimgate.api", trail.api.as_ref().map(ApiName::as_str)),
        ("nimgate.operation", trail.operation.as_deref()),
        ("nimgate.pool", trail.pool.as_ref().map(PoolName::as_str)),
        ("nimgate.endpoint", trail.endpoint.as_deref()),
        ("nvcf.request_id", trail.nvcf_id.as_deref()),
    ];
    attributes.extend(texts.into_iter().filter_map(|(key, value)| Some(text(key, value?))));
    attributes
}

fn outcome_attributes(finished: &Finished<'_>) -> Vec<KeyValue> {
    let trail = &finished.trail;
    let mut attributes = vec![
        whole(names::REQUEST_SIZE, trail.request_bytes as u64),
        whole(names::RESPONSE_SIZE, trail.response_bytes as u64),
        whole("nimgate.attempts", trail.attempts),
    ];
    if trail.status > 0 {
        attributes.push(whole(names::STATUS, trail.status));
    }
    if let Some(code) = trail.grpc {
        attributes.push(whole(names::GRPC_STATUS, code));
    }
    let times = [
        ("nimgate.queue_ms", trail.queued),
        ("nimgate.first_byte_ms", trail.first_byte),
        ("nimgate.first_chunk_ms", trail.first_chunk),
    ];
    attributes.extend(times.into_iter().filter_map(|(key, time)| Some(number(key, super::millis(time?)))));
    if let Some(tokens) = trail.tokens {
        attributes.push(whole(names::GEN_AI_INPUT_TOKENS, tokens.input));
        attributes.push(whole(names::GEN_AI_OUTPUT_TOKENS, tokens.output));
        attributes.push(text("nimgate.tokens", if tokens.is_stated { "stated" } else { "counted" }));
    }
    if let Some(spend) = trail.spend {
        attributes.push(number("nimgate.spend", spend as f64 / NANO as f64));
    }
    if let Some(spill) = &trail.spill {
        attributes.push(text("nimgate.spill.from", spill.from.as_str()));
        attributes.push(text("nimgate.spill.reason", spill.reason.word()));
    }
    if let Some(cache) = trail.cache {
        attributes.push(text("nimgate.cache", cache.result));
        attributes.push(whole("nimgate.cache.hits", cache.hits as u64));
        attributes.push(whole("nimgate.cache.misses", cache.misses as u64));
    }
    if let Some(is_won) = trail.hedge {
        attributes.push(text("nimgate.hedge", hedge_word(is_won)));
    }
    if let Some(failure) = &trail.failure {
        attributes.push(text(names::ERROR_TYPE, failure.label()));
        attributes.push(text("nimgate.blame", failure.blame().word()));
    }
    attributes
}

/// A request that failed is an error of its span, unless its client did wrong: that is none of the server's.
fn status(failure: &Failure) -> Status {
    let is_ours = failure.status() >= 500;
    let code = if is_ours { StatusCode::Error } else { StatusCode::Unset };
    Status { message: if is_ours { failure.label().into() } else { String::new() }, code: code.into() }
}

fn child(finished: &Finished<'_>, trace: &Trace, step: &Step, at: usize, asked: Option<(&str, &str)>) -> Span {
    let time = |instant: Instant| {
        let (begun, started) = trace.begun;
        nanos(begun + instant.checked_duration_since(started).unwrap_or(Duration::ZERO))
    };
    let (kind, name) = match step.kind {
        Kind::Validation => (SpanKind::Internal, "validation".to_owned()),
        Kind::Quota => (SpanKind::Client, "quota".to_owned()),
        Kind::Queue => (SpanKind::Internal, "queue".to_owned()),
        Kind::Cache => (SpanKind::Internal, "cache".to_owned()),
        Kind::Upload => (SpanKind::Client, "asset upload".to_owned()),
        Kind::Attempt => (
            SpanKind::Client,
            match asked {
                Some((operation, model)) => format!("{operation} {model}"),
                None => finished.trail.method.to_string(),
            },
        ),
    };
    let error = step.error.map(|label| Status { message: label.into(), code: StatusCode::Error.into() });
    Span {
        trace_id: trace.id.to_be_bytes().to_vec(),
        span_id: step.span.to_be_bytes().to_vec(),
        trace_state: trace.state.clone().unwrap_or_default(),
        flags: flags(trace, false),
        parent_span_id: trace.span.to_be_bytes().to_vec(),
        name,
        kind: kind.into(),
        start_time_unix_nano: time(step.begun),
        end_time_unix_nano: time(step.ended.unwrap_or(step.begun)),
        attributes: step_attributes(finished, trace, step, at, asked),
        status: error,
        ..Span::default()
    }
}

fn step_attributes(
    finished: &Finished<'_>,
    trace: &Trace,
    step: &Step,
    at: usize,
    asked: Option<(&str, &str)>,
) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    if let (Kind::Cache, Some(cache)) = (step.kind, finished.trail.cache) {
        attributes.push(text("nimgate.cache", cache.result));
        attributes.push(whole("nimgate.cache.hits", cache.hits as u64));
        attributes.push(whole("nimgate.cache.misses", cache.misses as u64));
    }
    if step.kind != Kind::Attempt {
        return attributes;
    }
    attributes.push(text(names::METHOD, finished.trail.method.as_str()));
    let before = trace.steps[..at].iter().filter(|step| step.kind == Kind::Attempt).count();
    if before > 0 {
        attributes.push(whole(names::RESEND_COUNT, before as u64));
    }
    if let Some((operation, model)) = asked {
        attributes.push(text(names::GEN_AI_OPERATION, operation));
        attributes.push(text(names::GEN_AI_PROVIDER, names::PROVIDER));
        attributes.push(text(names::GEN_AI_REQUEST_MODEL, model));
    }
    if let Some((pool, endpoint)) = &step.place {
        attributes.push(text("nimgate.pool", pool.as_str()));
        attributes.push(text("nimgate.endpoint", endpoint.as_str()));
        match endpoint.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
            Some((host, port)) => {
                attributes.push(text(names::SERVER_ADDRESS, host));
                attributes.push(whole(names::SERVER_PORT, port));
            }
            None => attributes.push(text(names::SERVER_ADDRESS, endpoint.as_str())),
        }
    }
    if let Some(status) = step.status {
        attributes.push(whole(names::STATUS, status));
    }
    if let Some(reason) = step.reason {
        attributes.push(text("nimgate.retry.reason", reason));
    }
    if let Some(error) = step.error {
        attributes.push(text(names::ERROR_TYPE, error));
    }
    attributes
}
