//! Respond: everything that is written to the client in the gateway's own words.

use bytes::Bytes;
use http::{HeaderName, header};
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_error::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, Session};

use super::context::RequestContext;
use super::settings::CorsSettings;
use super::{course, exchange, grpc, judge, limits, load, opening};
use crate::failure::{Failure, render, render_with};
use crate::upstream::Event;

/// An answer made here.
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(HeaderName, String)>,
    /// The body.
    pub body: Bytes,
}

/// Longest drain of a refused body, so that the client can read the refusal and use its connection again.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// A failure as the cause of a pingora error, from which [`failure_of`] takes it back.
pub fn into_error(failure: Failure) -> Box<Error> {
    let label = failure.label();
    let mut error = Error::because(ErrorType::Custom("refused"), label, failure);
    error.set_retry(false);
    error
}

/// Has pingora make another attempt.
pub fn another() -> Box<Error> {
    let mut error = Error::explain(ErrorType::Custom("refused"), "another attempt is made");
    error.set_retry(true);
    error
}

/// The failure behind a pingora error: the cause that we attached, or what source and type say.
pub fn failure_of(error: &Error, ctx: &RequestContext) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.cause.as_deref().map(|c| c as _);
    while let Some(inner) = cause {
        if let Some(failure) = inner.downcast_ref::<Failure>() {
            return failure.clone();
        }
        cause = match inner.downcast_ref::<Box<Error>>() {
            Some(nested) => nested.cause.as_deref().map(|c| c as _),
            None => inner.source(),
        };
    }
    match error.esource() {
        ErrorSource::Upstream => Failure::event(upstream(error, ctx)),
        ErrorSource::Downstream => downstream(error.etype()),
        ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
            ErrorType::ConnectionClosed | ErrorType::WriteError | ErrorType::ReadError => Failure::ClientClosed,
            _ => Failure::Internal(error.to_string()),
        },
    }
}

/// What happened on the way to the backend, or back.
fn upstream(error: &Error, ctx: &RequestContext) -> Event {
    use ErrorType as T;
    let is_answered = ctx.is_begun;
    // Asking an undecided error whether to retry panics.
    let is_repeatable = matches!(error.retry, RetryType::Decided(true));
    match error.etype() {
        T::ConnectRefused => Event::ConnectRefused,
        T::ConnectTimedout => Event::ConnectTimeout,
        T::ConnectNoRoute | T::ConnectError | T::ConnectProxyFailure | T::BindError | T::SocketError => {
            Event::ConnectFailed
        }
        T::TLSHandshakeFailure
        | T::TLSHandshakeTimedout
        | T::TLSWantX509Lookup
        | T::InvalidCert
        | T::HandshakeError => Event::TlsFailed,
        // The backend never took the stream: refused, or sent after the last one that it would take.
        T::H2Error if is_repeatable && !is_answered => Event::StreamRefused,
        T::H2Downgrade => Event::StreamRefused,
        T::Custom("InvalidChunk") | T::InvalidHTTPHeader | T::H1Error | T::H2Error | T::InvalidH2 => Event::Protocol,
        T::ReadTimedout | T::WriteTimedout if is_answered => Event::Stalled,
        T::ReadTimedout | T::WriteTimedout => Event::FirstByteTimeout,
        T::WriteError if !is_answered => Event::RequestCut,
        _ if is_reset(error) && is_answered => Event::ResetWithin,
        _ if is_reset(error) => Event::ResetBeforeHeader,
        _ if is_answered => Event::ClosedWithin,
        _ => Event::ClosedBeforeHeader,
    }
}

/// Whether the connection was torn down rather than closed.
fn is_reset(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.cause.as_deref().map(|c| c as _);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionReset;
        }
        cause = match inner.downcast_ref::<Box<Error>>() {
            Some(nested) => nested.cause.as_deref().map(|c| c as _),
            None => inner.source(),
        };
    }
    false
}

fn downstream(kind: &ErrorType) -> Failure {
    match kind {
        ErrorType::WriteTimedout => Failure::ClientStalled,
        ErrorType::ReadTimedout => Failure::BodyTimeout,
        ErrorType::InvalidHTTPHeader => Failure::MalformedRequest("its framing is broken"),
        _ => Failure::ClientClosed,
    }
}

/// Whether an answer has begun; a `100 Continue` is none.
fn committed(session: &ServerSession) -> bool {
    session.response_written().is_some_and(|header| !header.status.is_informational())
}

/// The one road on which failures reach the client.
pub async fn fail(session: &mut Session, error: &Error, ctx: &mut RequestContext) -> FailToProxy {
    let failure = ctx.lost.take().unwrap_or_else(|| failure_of(error, ctx));
    ctx.fail(failure.clone());
    if let Some(handle) = &ctx.exchange {
        ctx.is_opened |= handle.is_opened();
        exchange::unwrap(&mut session.downstream_session, handle);
    }
    let server_session = session.as_mut();
    if ctx.grpc.is_some() {
        return grpc::fail(server_session, &failure, ctx).await;
    }
    let status = failure.status();
    if matches!(failure, Failure::ClientClosed | Failure::ClientStalled) {
        server_session.shutdown().await;
    } else if committed(server_session) {
        end_stream(server_session, &failure, ctx).await;
    } else {
        // Only before anything was sent upstream is the client's side of the exchange known to be whole.
        // A client that waits to be asked for its body may or may not send it now, so its connection ends.
        let withheld =
            server_session.req_header().headers.contains_key(header::EXPECT) && !server_session.is_body_done();
        let reusable = failure.is_refusal() && ctx.admitted.is_none() && !withheld;
        // What the drain below may take is no load of the endpoint, and no use of the caller's limits.
        limits::settle(ctx);
        load::release(ctx);
        ctx.course.end();
        match answer(server_session, &failure, ctx, reusable).await {
            Ok(()) if reusable => return FailToProxy { error_code: status, can_reuse_downstream: true },
            // A connection that is closed on a client which still sends is reset, and the answer lost with it.
            Ok(()) if failure.is_framed() => drop(server_session.drain_request_body().await),
            Ok(()) => {}
            Err(_) => server_session.shutdown().await,
        }
    }
    FailToProxy { error_code: status, can_reuse_downstream: false }
}

/// An answer that has begun can not change its status: an event stream ends in an event that says why, anything else
/// is cut, so that it can not be taken for whole.
async fn end_stream(session: &mut ServerSession, failure: &Failure, ctx: &RequestContext) {
    if ctx.event_stream || ctx.is_opened {
        let body = render(failure, ctx.errors_for_stream(), &ctx.request_id);
        let event = [b"\n\ndata: ", body.bytes.as_slice(), b"\n\n"].concat();
        session.set_keepalive(None);
        if session.write_response_body(event.into(), true).await.is_ok() {
            return;
        }
    }
    session.shutdown().await;
}

async fn answer(session: &mut ServerSession, failure: &Failure, ctx: &RequestContext, reusable: bool) -> Result<()> {
    let body = render_with(failure, ctx.errors, &ctx.request_id, ctx.words.as_deref());
    let mut header = ResponseHeader::build(body.status, Some(8))?;
    header.insert_header(header::CONTENT_TYPE, body.content_type)?;
    header.insert_header(header::CONTENT_LENGTH, body.bytes.len())?;
    judge::label(&mut header, failure);
    match failure {
        Failure::MethodNotAllowed(allowed) => {
            let allowed: Vec<&str> = allowed.iter().map(|m| m.as_str()).collect();
            header.insert_header(header::ALLOW, allowed.join(", "))?;
        }
        Failure::KeyMissing | Failure::KeyInvalid | Failure::KeyExpired | Failure::KeyDisabled => {
            header.insert_header(header::WWW_AUTHENTICATE, "Bearer realm=\"nimgate\"")?;
        }
        Failure::Exceeded(exceeded) => limits::advise(&mut header, exceeded)?,
        Failure::LimitsUnknown | Failure::KeysUnknown | Failure::RequestsUnknown => {
            header.insert_header(header::RETRY_AFTER, 1)?;
        }
        Failure::QueueFull(wait)
        | Failure::CallerQueueFull(wait)
        | Failure::QueueTimeout(wait)
        | Failure::DeadlineUnmet(wait) => header.insert_header(header::RETRY_AFTER, limits::ceiling(*wait).max(1))?,
        other => {
            if let Some(seconds) = other.seen().and_then(|row| row.retry_after) {
                header.insert_header(header::RETRY_AFTER, seconds)?;
            }
        }
    }
    decorate(&mut header, ctx)?;
    session.set_total_drain_timeout(Some(DRAIN));
    session.set_close_on_response_before_downstream_finish(!reusable);
    if !reusable {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(header)).await?;
    session.write_response_body(body.bytes.into(), true).await
}

/// Sends an answer made here.
pub async fn send(session: &mut Session, ctx: &RequestContext, reply: Reply) -> Result<()> {
    let mut header = ResponseHeader::build(reply.status, Some(8))?;
    for (name, value) in reply.headers {
        header.insert_header(name, value)?;
    }
    if reply.status != 204 {
        header.insert_header(header::CONTENT_LENGTH, reply.body.len())?;
    }
    decorate(&mut header, ctx)?;
    let is_head = session.req_header().method == http::Method::HEAD;
    let body = if is_head { Bytes::new() } else { reply.body };
    let server_session = session.as_mut();
    server_session.set_total_drain_timeout(Some(DRAIN));
    server_session.set_close_on_response_before_downstream_finish(false);
    server_session.write_response_header(Box::new(header)).await?;
    server_session.write_response_body(body, true).await
}

/// Header by which callers ask for progress, and by which they are told.
const PROGRESS: &str = "x-nimgate-progress";

/// Tells a caller who asked for it how far its request is: in a comment, where it takes an event stream, or else in an
/// interim answer, over HTTP/1.1 only.
pub async fn progress(session: &mut Session, ctx: &mut RequestContext) -> Result<(), Failure> {
    let request = session.req_header();
    let asked = request.headers.get(PROGRESS);
    let is_asked = asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"interim"));
    let Some(percent) = ctx.progress.as_ref().and_then(|progress| progress.percent()) else { return Ok(()) };
    if !is_asked {
        return Ok(());
    }
    if opening::is_asked(&request.headers) {
        return opening::say(session.as_mut(), ctx, format!(": {percent} % done\n\n").into()).await;
    }
    if request.version != http::Version::HTTP_11 {
        return Ok(());
    }
    interim(session, percent).await.map_err(|_| Failure::ClientClosed)
}

async fn interim(session: &mut Session, percent: u8) -> Result<()> {
    let mut header = ResponseHeader::build(http::StatusCode::PROCESSING, Some(1))?;
    header.insert_header(PROGRESS, percent.to_string())?;
    let client = session.as_mut();
    client.set_ignore_info_resp(false);
    client.write_response_header(Box::new(header)).await?;
    client.set_ignore_info_resp(true);
    Ok(())
}

/// Headers that scripts in browsers may read.
const EXPOSED: &str = "x-request-id, x-nimgate-error, x-nimgate-blame, x-nimgate-pool, x-nimgate-queue-ms, \
                       x-nimgate-spill, x-nimgate-progress, x-nimgate-cache, x-nimgate-usage, sunset, nvcf-reqid, nvcf-status, \
                       retry-after, x-should-retry, ratelimit, ratelimit-policy, x-ratelimit-limit-requests, \
                       x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
                       x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// What every answer carries: the request's id, the pool that served it, what browsers need.
pub fn decorate(header: &mut ResponseHeader, ctx: &RequestContext) -> Result<()> {
    header.insert_header("x-request-id", ctx.request_id.as_str())?;
    if let Some(pool) = &ctx.trail.pool {
        header.insert_header("x-nimgate-pool", pool.as_str())?;
    }
    if header.status.as_u16() == 429
        && !header.headers.contains_key(header::RETRY_AFTER)
        && let Some(closed) = course::closed(ctx)
    {
        header.insert_header(header::RETRY_AFTER, limits::ceiling(closed).max(1))?;
    }
    if let Some(percent) = ctx.progress.as_ref().and_then(|progress| progress.percent()) {
        header.insert_header(PROGRESS, percent.to_string())?;
    }
    if let Some(queued) = ctx.trail.queued {
        header.insert_header("x-nimgate-queue-ms", queued.as_millis().to_string())?;
    }
    if let Some(spill) = &ctx.trail.spill {
        header.insert_header("x-nimgate-spill", format!("{}; from={}", spill.reason.word(), spill.from.as_str()))?;
    }
    if let Some(cache) = &ctx.trail.cache {
        let mut text = format!("{}; hits={}, misses={}", cache.result, cache.hits, cache.misses);
        cache.reason.iter().for_each(|reason| text += &format!("; reason={reason}"));
        header.insert_header("x-nimgate-cache", text)?;
        if let Some(is_exact) = cache.is_exact {
            header.insert_header("x-nimgate-usage", if is_exact { "exact" } else { "estimated" })?;
        }
    }
    let life = ctx.admitted.as_ref().and_then(|admitted| admitted.life.as_ref());
    if let Some(end) = life.and_then(|life| life.end) {
        header.insert_header("sunset", end.format("%a, %d %b %Y %H:%M:%S GMT").to_string())?;
    }
    limits::decorate(header, ctx)?;
    if let Some(origin) = &ctx.trail.origin
        && let Some(allowed) = allowed_origin(&ctx.snapshot.cors, origin)
    {
        header.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed)?;
        header.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
        if !ctx.snapshot.cors.any_origin {
            header.append_header(header::VARY, "Origin")?;
        }
    }
    Ok(())
}

/// What `Access-Control-Allow-Origin` says to this origin.
pub fn allowed_origin(cors: &CorsSettings, origin: &str) -> Option<String> {
    if cors.any_origin {
        return Some("*".into());
    }
    cors.origins.iter().find(|allowed| *allowed == origin).cloned()
}
