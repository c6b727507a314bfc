//! Judge: is this answer a failure, and whose?
//!
//! Sees the header and the first bytes of answers that may be failures before the client does, so that label and blame
//! can stand in the header. What each means is in the table of `upstream`, which says too whether the body passes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora_http::ResponseHeader;
use serde_json::Value;

use super::context::{Admitted, RequestContext};
use super::snapshot::Snapshot;
use crate::catalogue::{Errors, Format};
use crate::failure::{self, Failure, render};
use crate::ids::RequestId;
use crate::meter::first;
use crate::upstream::{Again, Event, Kind, Manner, Reading, Shape};

/// Most bytes of an answer that are looked at before it is sent on.
const BOUND: usize = 64 * 1024;
/// Most bytes of a 2xx answer whose operation states what it must hold.
const CONTRACT_BOUND: usize = 1024 * 1024;

/// What is needed to read an answer.
pub struct Judge {
    /// The kind of backend.
    pub kind: Kind,
    manner: Manner,
    /// The API's error dialect.
    pub errors: Errors,
    /// JSON pointers that a 2xx answer must hold.
    pub answer_requires: Arc<[String]>,
    /// The request's id.
    pub request_id: RequestId,
    /// How long the header of a stream waits for its first event.
    first_event: Duration,
}

/// What an answer turned out to be.
pub(super) struct Judgement {
    pub failure: Failure,
    /// The body to send in place of the backend's; the header is written for it.
    pub replacement: Option<Bytes>,
}

impl Judge {
    /// For a request that goes to this pool.
    pub fn new(snapshot: &Snapshot, admitted: &Admitted, ctx: &RequestContext) -> Self {
        let kind = snapshot.pool(admitted.pool).settings.kind.clone();
        let manner = manner(&kind, ctx.errors);
        Self {
            kind,
            manner,
            errors: ctx.errors,
            answer_requires: Arc::clone(&snapshot.catalogue.operation(admitted.operation).answer_requires),
            request_id: ctx.request_id.clone(),
            first_event: snapshot.pool(admitted.pool).settings.timeouts.first_event,
        }
    }

    /// For how long the header of a stream may wait for its first event, if it is to.
    pub(super) fn patience(&self) -> Option<Duration> {
        (self.manner != Manner::Native && !self.first_event.is_zero()).then_some(self.first_event)
    }

    /// Whether this answer may be a failure.
    pub(super) fn must_see(&self, header: &ResponseHeader) -> bool {
        match header.status.as_u16() {
            400.. => true,
            300..400 => header.headers.contains_key(header::LOCATION) && self.has_row(header),
            200 if header.headers.get("grpc-status").is_some_and(|status| status != "0") => true,
            status => status / 100 == 2 && !self.answer_requires.is_empty(),
        }
    }

    fn has_row(&self, header: &ResponseHeader) -> bool {
        self.kind.preview(header.status.as_u16(), &header.headers).is_some()
    }

    /// How many bytes of a body suffice.
    pub(super) fn bound(&self) -> usize {
        if self.answer_requires.is_empty() { BOUND } else { CONTRACT_BOUND }
    }

    /// Reads a held answer and writes label and blame into its header.
    pub(super) fn read(&self, header: &mut ResponseHeader, seen: &[u8], complete: bool) -> Option<Judgement> {
        let status = header.status.as_u16();
        let head = &seen[..seen.len().min(BOUND)];
        if let Some(reading) = self.kind.read_answer(self.manner, status, &header.headers, head) {
            return Some(self.judged(header, &reading));
        }
        // An answer above the bound can not be read whole; one that fails is short.
        if status >= 300 || self.answer_requires.is_empty() || !complete || self.holds_contract(seen) {
            return None;
        }
        let failure = Failure::Upstream(self.kind.event(Event::AnswerIncomplete));
        let body = render(&failure, self.errors, &self.request_id);
        label(header, &failure);
        Some(Judgement { failure, replacement: Some(replace(header, body)) })
    }

    /// Reads the first event of a stream of which nothing was sent yet. One that is an error becomes an answer; nothing
    /// when it is none.
    pub(super) fn read_event(&self, header: &mut ResponseHeader, seen: &[u8]) -> Option<Judgement> {
        let data = first::error(seen)?;
        let reading = self.kind.read_event(self.manner, &data)?;
        let mut judgement = self.judged(header, &reading);
        if judgement.replacement.is_none() {
            let is_whole = serde_json::from_slice::<serde::de::IgnoredAny>(&data).is_ok();
            let body = match is_whole {
                true => {
                    let is_problem = reading.shape == Shape::Problem;
                    let content_type = if is_problem { "application/problem+json" } else { "application/json" };
                    failure::Body { status: reading.status, content_type, bytes: data.into_owned() }
                }
                false => failure::reword(&judgement.failure, reading.status, self.errors, &self.request_id, None),
            };
            judgement.replacement = Some(replace(header, body));
        }
        Some(judgement)
    }

    /// The failure behind the data of an error event, and the status that it states.
    pub(super) fn event(kind: &Kind, errors: Errors, data: &[u8]) -> Option<(Failure, u16)> {
        kind.read_event(manner(kind, errors), data).map(|reading| (Failure::Upstream(reading.row), reading.status))
    }

    fn judged(&self, header: &mut ResponseHeader, reading: &Reading) -> Judgement {
        let failure = Failure::Upstream(reading.row);
        label(header, &failure);
        if let Some(seconds) = reading.row.retry_after
            && !header.headers.contains_key(header::RETRY_AFTER)
        {
            let _ = header.insert_header(header::RETRY_AFTER, seconds);
        }
        let replacement = reading.worded.map(|status| {
            let quote = reading.quote.as_deref();
            let body = failure::reword(&failure, status, self.errors, &self.request_id, quote);
            // SDKs try a 5xx again unless they are told not to.
            if reading.row.again == Again::Never {
                let _ = header.insert_header("x-should-retry", "false");
            }
            let _ = header.remove_header(&header::LOCATION);
            replace(header, body)
        });
        Judgement { failure, replacement }
    }

    /// Whether every pointer leads to something: neither absent, null, nor empty text.
    fn holds_contract(&self, seen: &[u8]) -> bool {
        let Ok(answer) = serde_json::from_slice::<Value>(seen) else { return false };
        self.answer_requires.iter().all(|pointer| match answer.pointer(pointer) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        })
    }
}

/// How failures of this kind of backend are told in an API's dialect.
fn manner(kind: &Kind, errors: Errors) -> Manner {
    match (kind, errors.format) {
        (Kind::Nvcf(None), _) => Manner::Native,
        (_, Format::Problem) => Manner::Problem,
        _ => Manner::Other,
    }
}

/// Makes a header fit for another body.
fn replace(header: &mut ResponseHeader, body: failure::Body) -> Bytes {
    header.remove_header(&header::TRANSFER_ENCODING);
    header.remove_header(&header::CONTENT_ENCODING);
    header.remove_header(&header::CACHE_CONTROL);
    let _ = header.set_status(body.status);
    let _ = header.set_reason_phrase(None);
    let _ = header.insert_header(header::CONTENT_TYPE, body.content_type);
    let _ = header.insert_header(header::CONTENT_LENGTH, body.bytes.len());
    body.bytes.into()
}

/// Writes label and blame into an answer's header.
pub(super) fn label(header: &mut ResponseHeader, failure: &Failure) {
    let _ = header.insert_header("x-nimgate-error", failure.label());
    let _ = header.insert_header("x-nimgate-blame", failure.blame().word());
}
