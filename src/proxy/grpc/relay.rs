//! Relay: the bytes of a call, both ways at once.
//!
//! Nothing is collected: what one side does not take, the other is not asked for. The call ends with the backend's
//! trailers, with the client, or with a deadline.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::time::Instant;

use super::binding::{Bindings, Key};
use super::left;
use crate::failure::Failure;
use crate::proxy::clock::Clock;
use crate::proxy::context::{Admitted, RequestContext};
use crate::proxy::exchange::Payload;
use crate::proxy::snapshot::PoolState;
use crate::proxy::{Gateway, accept, course, judge, limits, respond, upstream_request};
use crate::upstream::{Function, GrpcStatus, Kind, Manner};

/// Runs an admitted call to its end.
pub async fn run(
    session: &mut Session,
    ctx: &mut RequestContext,
    mut admitted: Admitted,
    gateway: &Gateway,
) -> Result<()> {
    let down = session.as_mut();
    course::begin(down, ctx, &mut admitted, Payload::Streamed).await.map_err(respond::into_error)?;
    ctx.admitted = Some(admitted);
    let (up, clock) = begin(down, ctx, gateway).await.map_err(respond::into_error)?;
    relay(down, up, clock, ctx).await.map_err(respond::into_error)
}

/// Opens the call to the backend.
async fn begin(
    down: &mut ServerSession,
    ctx: &mut RequestContext,
    gateway: &Gateway,
) -> Result<(Http2Session, Clock), Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let internal = |error: Box<Error>| Failure::Internal(error.to_string());
    let state = snapshot.pool(ctx.admitted().map_err(internal)?.pool);
    let mut clock =
        Clock::start(state.settings.timeouts, ctx.timeout.map(|time| Instant::from_std(ctx.started + time)));
    let (Some(caller), Some(call)) = (&ctx.trail.caller, &ctx.grpc) else {
        return Err(Failure::Internal("a call of nobody".into()));
    };
    let key = Key::new(caller.id().clone(), state, call);
    let bindings = Bindings::of(down).ok_or(Failure::ClientClosed)?;
    let binding =
        bindings.place(key).ok_or(Failure::MalformedRequest("it is for too many functions on one connection"))?;
    let mut up = tokio::select! {
        biased;
        begun = binding.begin(ctx, &gateway.recorder) => begun?,
        late = clock.overdue() => return Err(late),
    };
    let header = request(down, ctx, state).map_err(internal)?;
    up.write_request_header(Box::new(header), down.is_body_empty()).map_err(|error| broken(&error))?;
    clock.attempt();
    Ok((up, clock))
}

/// The header as it goes to the backend.
fn request(down: &ServerSession, ctx: &RequestContext, state: &PoolState) -> Result<RequestHeader> {
    let mut request = down.req_header().clone();
    upstream_request::prepare(&mut request, ctx)?;
    let stated = ctx.grpc.as_ref().and_then(|call| call.function.as_ref());
    if let (Kind::Nvcf(own), Some(stated)) = (&state.settings.kind, stated) {
        if own.is_none() {
            request.insert_header("function-id", stated.id.clone())?;
        }
        if let (None | Some(Function { version: None, .. }), Some(version)) = (own, &stated.version) {
            request.insert_header("function-version-id", version.clone())?;
        }
    }
    if let Some(timeout) = ctx.timeout {
        request.insert_header("grpc-timeout", left(timeout.saturating_sub(ctx.started.elapsed())))?;
    }
    // Servers refuse calls of clients that may not understand trailers.
    request.insert_header(header::TE, "trailers")?;
    let host = request.remove_header(&header::HOST);
    let authority = host.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme(if state.settings.tls.is_some() { "https" } else { "http" });
    let uri = uri.authority(authority).path_and_query(path).build();
    request.set_uri(uri.or_err(ErrorType::InternalError, "the address of a call")?);
    Ok(request)
}

/// What comes from the backend.
enum Event {
    Header(Box<ResponseHeader>, bool),
    Data(Bytes),
    End(Option<HeaderMap>),
}

/// The next of it. May be dropped and called again.
async fn next(up: &mut Http2Session) -> Result<Event, Failure> {
    if up.response_header().is_none() {
        up.read_response_header().await.map_err(|error| broken(&error))?;
        let is_whole = up.check_response_end_or_error().map_err(|error| broken(&error))?;
        let header = up.response_header().cloned().ok_or(Failure::UpstreamProtocol)?;
        return Ok(Event::Header(Box::new(header), is_whole));
    }
    match up.read_response_body().await.map_err(|error| broken(&error))? {
        Some(data) => Ok(Event::Data(data)),
        None => Ok(Event::End(up.read_trailers().await.map_err(|error| broken(&error))?)),
    }
}

/// Waits until the backend takes some of so many bytes; nothing when it takes no more at all.
async fn room(body: &mut SendStream<Bytes>, wanted: usize) -> Option<usize> {
    body.reserve_capacity(wanted);
    if body.capacity() > 0 {
        return Some(body.capacity());
    }
    poll_fn(|cx| body.poll_capacity(cx)).await.and_then(Result::ok)
}

async fn relay(
    down: &mut ServerSession,
    mut up: Http2Session,
    mut clock: Clock,
    ctx: &mut RequestContext,
) -> Result<(), Failure> {
    let limit = ctx.admitted.as_ref().map_or(usize::MAX, |admitted| admitted.limit);
    let mut body = up.take_request_body_writer();
    // Read from the client and not taken by the backend yet.
    let mut unsent = Bytes::new();
    let mut is_read = down.is_body_empty();
    loop {
        tokio::select! {
            event = next(&mut up) => {
                let is_end = pass(down, event?, ctx).await?;
                clock.progress();
                if is_end {
                    return Ok(());
                }
            }
            room = async { room(body.as_mut()?, unsent.len()).await }, if !unsent.is_empty() => {
                let piece = unsent.split_to(room.unwrap_or(unsent.len()).min(unsent.len()));
                let is_last = is_read && unsent.is_empty();
                // A backend that has answered need not take the rest.
                if body.as_mut().is_none_or(|body| room.is_none() || body.send_data(piece, is_last).is_err()) {
                    body = None;
                    unsent.clear();
                }
                moved(&mut clock, ctx);
            }
            // While something is unsent, only whether the client is there.
            read = down.read_body_or_idle(is_read || !unsent.is_empty()) => {
                unsent = read.map_err(|_| Failure::ClientClosed)?.unwrap_or_default();
                is_read = down.is_body_done();
                ctx.streamed += unsent.len();
                ctx.trail.request_bytes = ctx.streamed;
                if ctx.streamed > limit {
                    return Err(Failure::BodyTooLarge(limit));
                }
                if is_read && unsent.is_empty() && let Some(body) = &mut body {
                    let _ = body.send_data(Bytes::new(), true);
                }
                moved(&mut clock, ctx);
            }
            late = clock.late() => return Err(late),
        }
    }
}

/// The client's side has moved.
fn moved(clock: &mut Clock, ctx: &RequestContext) {
    if ctx.is_begun {
        clock.progress();
    } else {
        clock.uploading();
    }
}

/// Passes on what the backend sent; says whether that was all.
async fn pass(down: &mut ServerSession, event: Event, ctx: &mut RequestContext) -> Result<bool, Failure> {
    let task = match event {
        Event::Header(mut header, is_end) => {
            accept(ctx, &mut header);
            if header.status.is_informational() {
                return Err(Failure::UpstreamProtocol);
            }
            let label =
                if is_end || header.status != 200 { conclude(&header.headers, Some(&header), ctx) } else { None };
            if let Some(failure) = label {
                judge::label(&mut header, &failure);
            }
            respond::decorate(&mut header, ctx).map_err(|error| Failure::Internal(error.to_string()))?;
            HttpTask::Header(header, is_end)
        }
        Event::Data(data) => {
            ctx.trail.response_bytes += data.len();
            HttpTask::Body(Some(data), false)
        }
        // An answer that was labelled by its header need have no trailers.
        Event::End(None) if ctx.trail.failure.is_some() => HttpTask::Body(None, true),
        Event::End(None) => return Err(Failure::UpstreamClosed),
        Event::End(Some(mut trailers)) => {
            let dropped: Vec<HeaderName> =
                trailers.keys().filter(|name| Kind::drops_response_header(name)).cloned().collect();
            dropped.iter().for_each(|name| drop(trailers.remove(name)));
            if let Some(failure) = conclude(&trailers, None, ctx) {
                trailers.insert("x-nimgate-error", HeaderValue::from_static(failure.label()));
                trailers.insert("x-nimgate-blame", HeaderValue::from_static(failure.blame().word()));
            }
            HttpTask::Trailer(Some(Box::new(trailers)))
        }
    };
    let is_end = task.is_end();
    let sent = down.response_duplex_vec(vec![task]).await;
    sent.map_err(|mut error| {
        error.as_down();
        respond::failure_of(&error, ctx)
    })?;
    Ok(is_end)
}

/// Reads how the call ended, where `headers` say so, before the client does: its next call finds what this one gives
/// back. `answer` is the header of an answer that has no trailers, or is none of gRPC.
fn conclude(headers: &HeaderMap, answer: Option<&ResponseHeader>, ctx: &mut RequestContext) -> Option<Failure> {
    let state = ctx.admitted.as_ref().map(|admitted| ctx.snapshot.pool(admitted.pool))?;
    let kind = &state.settings.kind;
    let status = GrpcStatus::read(headers);
    let mut headers = headers.clone();
    if answer.is_none() {
        // What has an answer before its trailers was at work, though those do not say so again.
        headers.insert("nvcf-reqid", HeaderValue::from_static("known"));
    }
    let read = |code: u16| kind.read_answer(Manner::Native, code, &headers, &[]).map(|r| Failure::Upstream(r.row));
    let failure = match (&status, answer.map(|answer| answer.status.as_u16())) {
        (Some(_), _) => read(200),
        (None, Some(code)) if code >= 400 => Some(read(code).unwrap_or(Failure::UpstreamProtocol)),
        (None, _) => Some(Failure::UpstreamProtocol),
    };
    ctx.trail.grpc = status.map(|status| status.code);
    if let Some(failure) = &failure {
        ctx.fail(failure.clone());
        ctx.meter = None;
    }
    limits::settle(ctx);
    failure
}

/// What broke a call on the backend's side.
fn broken(error: &Error) -> Failure {
    match error.root_cause().downcast_ref::<h2::Error>() {
        Some(cause) if cause.is_library() => Failure::UpstreamProtocol,
        _ => Failure::UpstreamClosed,
    }
}
