//! Judge: is this answer a failure, and whose?
//!
//! Sees the header and the first bytes of answers that may be failures before the client does, so that label and blame
//! can stand in the header. A body is left as it came, unless a contract of the operation is broken.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use pingora_http::ResponseHeader;
use serde_json::Value;

use super::context::{Admitted, RequestContext};
use super::snapshot::Snapshot;
use crate::catalogue::Errors;
use crate::failure::{Failure, render};
use crate::ids::RequestId;
use crate::upstream::{Fault, Kind};

/// Most bytes of an answer that are looked at before it is sent on.
const BOUND: usize = 64 * 1024;
/// Most bytes of a 2xx answer whose operation states what it must hold.
const CONTRACT_BOUND: usize = 1024 * 1024;

/// What is needed to read an answer.
pub struct Judge {
    /// The kind of backend.
    pub kind: Kind,
    /// The API's error dialect.
    pub errors: Errors,
    /// JSON pointers that a 2xx answer must hold.
    pub answer_requires: Arc<[String]>,
    /// The request's id.
    pub request_id: RequestId,
}

/// What an answer turned out to be.
pub(super) struct Judgement {
    pub failure: Failure,
    /// The body to send in place of the backend's.
    pub replacement: Option<Bytes>,
}

impl Judge {
    /// For a request that goes to this pool.
    pub fn new(snapshot: &Snapshot, admitted: &Admitted, ctx: &RequestContext) -> Self {
        Self {
            kind: snapshot.pool(admitted.pool).settings.kind.clone(),
            errors: ctx.errors,
            answer_requires: Arc::clone(&snapshot.catalogue.operation(admitted.operation).answer_requires),
            request_id: ctx.request_id.clone(),
        }
    }

    /// Whether this answer may be a failure.
    pub(super) fn must_see(&self, header: &ResponseHeader) -> bool {
        let status = header.status.as_u16();
        status >= 400 || (status / 100 == 2 && !self.answer_requires.is_empty())
    }

    /// How many bytes of a body suffice.
    pub(super) fn bound(&self) -> usize {
        if self.answer_requires.is_empty() { BOUND } else { CONTRACT_BOUND }
    }

    /// Reads a held answer and writes label and blame into its header.
    pub(super) fn read(&self, header: &mut ResponseHeader, seen: &[u8], complete: bool) -> Option<Judgement> {
        let status = header.status.as_u16();
        if status >= 400 {
            let (fault, _) = self.kind.read_fault(status, &header.headers, &seen[..seen.len().min(BOUND)]);
            let failure = Failure::upstream(fault, self.kind != Kind::Nim);
            label(header, &failure);
            return Some(Judgement { failure, replacement: None });
        }
        // An answer above the bound can not be read whole; one that fails is short.
        if !complete || self.holds_contract(seen) {
            return None;
        }
        let failure = Failure::upstream(Fault::AnswerIncomplete, self.kind != Kind::Nim);
        let body = render(&failure, self.errors, &self.request_id);
        label(header, &failure);
        header.remove_header(&header::TRANSFER_ENCODING);
        header.remove_header(&header::CONTENT_ENCODING);
        let _ = header.set_status(body.status);
        let _ = header.set_reason_phrase(None);
        let _ = header.insert_header(header::CONTENT_TYPE, body.content_type);
        let _ = header.insert_header(header::CONTENT_LENGTH, body.bytes.len());
        Some(Judgement { failure, replacement: Some(body.bytes.into()) })
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

/// Writes label and blame into an answer's header.
pub(super) fn label(header: &mut ResponseHeader, failure: &Failure) {
    let _ = header.insert_header("x-nimgate-error", failure.label());
    let _ = header.insert_header("x-nimgate-blame", failure.blame().word());
}
