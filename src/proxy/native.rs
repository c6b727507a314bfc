//! Native: what NVCF's own API needs beyond any other: who may poll a request, and how long it may be held.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_http::ResponseHeader;
use serde_json::Value;

use super::context::RequestContext;
use super::settings::PoolSettings;
use crate::catalogue::Operation;
use crate::failure::Failure;
use crate::ids::CallerId;
use crate::owner::Whose;
use crate::upstream::{self, EnvelopeId, Kind};

/// Refuses to poll a request of another caller's. `params` are those of the path.
pub(super) async fn check_owner(
    ctx: &mut RequestContext,
    operation: &Operation,
    pool: &PoolSettings,
    params: &[(String, String)],
    caller: &CallerId,
) -> Result<(), Failure> {
    let Some(name) = &operation.polls else { return Ok(()) };
    let id = params.iter().find(|(param, _)| param == name).map(|(_, id)| super::params::decoded(id));
    match ctx.owners.find(&id.unwrap_or_default()).await {
        Whose::Of(owner) if owner == *caller => Ok(()),
        Whose::Of(_) => Err(Failure::RequestNotFound),
        Whose::Nobody | Whose::Unknown if pool.any_polls => {
            ctx.is_stranger = true;
            Ok(())
        }
        Whose::Nobody => Err(Failure::RequestNotFound),
        Whose::Unknown => Err(Failure::RequestsUnknown),
    }
}

/// How long the far side may hold the request before its answer begins; nothing where the pool alone says.
pub(super) fn hold(
    operation: &Operation,
    kind: &Kind,
    headers: &HeaderMap,
    envelope: Option<&Value>,
) -> Option<Duration> {
    let is_held = operation.names_request || operation.headers.iter().any(|name| name == "nvcf-poll-seconds");
    (*kind == Kind::Nvcf(None) && is_held).then(|| upstream::held_for(headers, envelope))
}

/// Remembers whose request it is that the answer names, before the caller can see its name.
pub(super) async fn note(ctx: &mut RequestContext, header: &ResponseHeader) {
    if header.status != StatusCode::ACCEPTED || ctx.is_stranger {
        return;
    }
    let Some(admitted) = &ctx.admitted else { return };
    if !matches!(ctx.snapshot.pool(admitted.pool).settings.kind, Kind::Nvcf(_)) {
        return;
    }
    if ctx.snapshot.catalogue.operation(admitted.operation).names_request {
        ctx.envelope = Some(EnvelopeId::default());
    }
    let named = header.headers.get("nvcf-reqid").and_then(|id| id.to_str().ok());
    if let (Some(id), Some(caller)) = (named, &ctx.trail.caller) {
        ctx.owners.note(id, caller.id()).await;
    }
}

/// The same for an answer that names it in its body. Other replicas learn it a moment later.
pub(super) fn read(ctx: &mut RequestContext, body: Option<&Bytes>) {
    let (Some(envelope), Some(body)) = (&mut ctx.envelope, body) else { return };
    if let (Some(id), Some(caller)) = (envelope.read(body), &ctx.trail.caller) {
        tokio::spawn(ctx.owners.note(&id, caller.id()));
    }
}
