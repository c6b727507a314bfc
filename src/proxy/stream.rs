//! Stream: is an event stream what it is to be? Names the failure that an event tells of, and tells the end of a stream
//! that ended without saying so.

use bytes::Bytes;
use http::header;
use pingora_http::ResponseHeader;

use super::context::RequestContext;
use super::judge::Judge;
use crate::failure::{Failure, render};
use crate::upstream::Event;

/// Makes room for an event at the end, where the operation's streams announce theirs.
pub fn watch(ctx: &RequestContext, header: &mut ResponseHeader) {
    if announces_end(ctx) && header.remove_header(&header::CONTENT_LENGTH).is_some() {
        let _ = header.insert_header(header::TRANSFER_ENCODING, "chunked");
    }
}

/// Notes the failure that an event told of.
pub fn label(ctx: &mut RequestContext) {
    if ctx.trail.failure.is_some() {
        return;
    }
    let Some(data) = ctx.meter.as_ref().and_then(|meter| meter.error()) else { return };
    let Some(admitted) = &ctx.admitted else { return };
    let kind = &ctx.snapshot.pool(admitted.pool).settings.kind;
    if let Some((failure, _)) = Judge::event(kind, ctx.errors, data) {
        ctx.fail(failure);
    }
}

/// Tells the caller that the stream ended without its last event: after what came of it, or by a status where nothing came.
pub fn end(ctx: &mut RequestContext, body: &mut Option<Bytes>) -> Result<(), Failure> {
    let Some(admitted) = ctx.admitted.as_ref().filter(|_| announces_end(ctx)) else { return Ok(()) };
    let kind = &ctx.snapshot.pool(admitted.pool).settings.kind;
    let failure = Failure::Upstream(kind.event(Event::StreamUnfinished));
    let last = body.take().unwrap_or_default();
    if last.is_empty() && ctx.trail.response_bytes == 0 {
        return Err(failure);
    }
    let told = render(&failure, ctx.errors_for_stream(), &ctx.request_id);
    *body = Some([&last[..], b"\n\ndata: ", &told.bytes, b"\n\n"].concat().into());
    ctx.fail(failure);
    Ok(())
}

fn announces_end(ctx: &RequestContext) -> bool {
    let operation = ctx.admitted.as_ref().map(|admitted| ctx.snapshot.catalogue.operation(admitted.operation));
    ctx.event_stream && ctx.meter.is_some() && operation.is_some_and(|operation| operation.stream_ends)
}
