//! Proxy: our one implementation of pingora's `ProxyHttp`, kept thin.
//!
//! Phases appear in the order in which they run; each takes from the context, calls one function, puts back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, StatusCode, Version, header};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

mod admit;
mod asset;
mod body;
mod clock;
mod context;
mod course;
pub mod edge;
mod embed;
mod exchange;
pub mod fetch;
pub mod grpc;
mod guard;
mod hedge;
mod held;
mod judge;
mod limits;
mod load;
mod native;
mod opening;
mod own;
mod params;
mod queue;
mod respond;
pub mod revision;
pub mod settings;
mod shadow;
pub mod snapshot;
mod stream;
mod upstream_request;

pub use params::{Params, Place};

use self::admit::Verdict;
use self::context::RequestContext;
use self::course::again;
use self::judge::Judge;
use self::opening::Opening;
use self::snapshot::Snapshot;
use crate::cache::Purges;
use crate::failure::Failure;
use crate::meter::Meter;
use crate::owner::Owners;
use crate::quota::Limiter;
use crate::record::{Finished, Recorder};
use crate::trace::{self, Context, Trace};
use crate::transcript::Telling;
use crate::upstream::{Kind, Ran};

/// The gateway as pingora drives it.
#[derive(Clone)]
pub struct Gateway {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Counts and limits.
    pub limiter: Arc<Limiter>,
    /// Whose the requests of NVCF are that may be polled.
    pub owners: Arc<Owners>,
    /// What was purged of kept vectors, and those that are in Redis.
    pub purges: Arc<Purges>,
    /// Where records go.
    pub recorder: Arc<Recorder>,
    /// Stopping: connections are closed as their requests end.
    pub draining: Arc<AtomicBool>,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::new(self.snapshot.load_full(), Arc::clone(&self.limiter), Arc::clone(&self.owners))
    }

    fn init_downstream_modules(&self, _modules: &mut pingora_core::modules::http::HttpModules) {
        // None: answers pass as they are.
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        edge::header_arrived(session.client_addr().and_then(|a| a.as_inet()).copied());
        self.recorder.begin();
        if self.recorder.takes_traces() {
            let headers = &session.req_header().headers;
            let header = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
            let context = Context::read(header("traceparent"), header("tracestate"));
            ctx.trail.trace = Some(Box::new(Trace::begin(context, &ctx.snapshot.sampling)));
        }
        let client = &ctx.snapshot.client;
        let server_session = session.as_mut();
        // A client that asked for the connection to be closed keeps its will.
        if server_session.get_keepalive().is_some() {
            server_session.set_keepalive(Some(client.keepalive_timeout.as_secs()));
        }
        server_session.set_pipelining_enabled(true);
        // A backend's interim answers end here; only a client that expects 100 gets one, from us.
        server_session.set_ignore_info_resp(true);
        server_session.set_write_timeout(Some(client.write_timeout));
        server_session.set_read_timeout(Some(client.body_idle_timeout));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<bool> {
        // What is boxed here is large, and would make every request's future as large.
        match admit::admit(session, ctx).await.map_err(respond::into_error)? {
            Verdict::Answer(reply) => {
                ctx.trail.status = reply.status;
                respond::send(session, ctx, reply).await?;
                Ok(true)
            }
            Verdict::Forward(admitted, _) if ctx.grpc.is_some() => {
                Box::pin(grpc::run(session, ctx, admitted, self)).await.map(|()| true)
            }
            Verdict::Forward(mut admitted, mut payload) => {
                held::collect(session, ctx, &mut admitted, &mut payload).await.map_err(respond::into_error)?;
                if let Some(plan) = embed::plan(session, ctx, &admitted, &payload, &self.purges) {
                    if self.draining.load(Ordering::Relaxed) {
                        session.set_keepalive(None);
                    }
                    return Box::pin(embed::run(session, ctx, admitted, plan, self)).await.map(|()| true);
                }
                let begun = course::begin(session.as_mut(), ctx, &mut admitted, payload).await;
                let payload = begun.map_err(respond::into_error)?;
                if matches!(payload, exchange::Payload::Streamed) {
                    body::invite(session.as_mut()).await.map_err(respond::into_error)?;
                }
                shadow::copy(session, ctx, &admitted, &payload, &self.recorder);
                let since = std::time::Instant::now();
                let carried = asset::upload(session.as_mut(), ctx, &mut admitted, payload, &self.recorder).await;
                if let Some(trace) = ctx.trail.trace.as_mut().filter(|_| ctx.assets.is_some() || carried.is_err()) {
                    trace.note(trace::Kind::Upload, since);
                }
                let payload = carried.map_err(respond::into_error)?;
                if hedge::settings(ctx, &admitted, &payload).is_some() || held::is_for(ctx, &admitted, &payload) {
                    if self.draining.load(Ordering::Relaxed) {
                        session.set_keepalive(None);
                    }
                    ctx.admitted = Some(admitted);
                    return Box::pin(hedge::run(session, ctx, payload)).await.map(|()| true);
                }
                let pool = admitted.pool;
                let timeouts = ctx.snapshot.pool(pool).settings.timeouts.holding(ctx.hold);
                let manner = exchange::Manner {
                    judge: Judge::new(&ctx.snapshot, &admitted, ctx),
                    clock: clock::Clock::start(timeouts, ctx.timeout.map(|time| (ctx.started + time).into())),
                    drain: ctx.snapshot.meter.drain,
                    is_opened: ctx.is_opened,
                    opening: Opening::of(ctx, pool),
                };
                ctx.exchange = Some(exchange::wrap(&mut session.downstream_session, payload, manner));
                ctx.admitted = Some(admitted);
                Ok(false)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<Box<HttpPeer>> {
        again::resume(session.as_mut(), ctx).await.map_err(respond::into_error)?;
        upstream_request::peer(ctx).await
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(lease) = &ctx.lease {
            self.recorder.connect_failed(ctx.trail.pool.as_ref(), lease.endpoint().name());
        }
        error.as_up();
        let failure = respond::failure_of(&error, ctx);
        // Whatever went wrong, nothing was sent.
        error.set_retry(course::may_go_on(ctx, failure, Some(Ran::No)));
        error
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        upstream_request::prepare(request, ctx)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let admitted = ctx.admitted()?;
        if admitted.length.is_some() {
            return Ok(());
        }
        let limit = admitted.limit;
        ctx.streamed += body.as_ref().map_or(0, Bytes::len);
        ctx.trail.request_bytes = ctx.streamed;
        if ctx.streamed > limit { Err(respond::into_error(Failure::BodyTooLarge(limit))) } else { Ok(()) }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        header: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if header.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for it: `Upgrade` does not pass.
            return Err(respond::into_error(Failure::UpstreamProtocol));
        }
        if header.status.is_informational() {
            return Ok(());
        }
        ctx.pause = load::pause(&header.headers);
        if course::refused(session.as_mut(), ctx, header).await.map_err(respond::into_error)? {
            return Err(respond::another());
        }
        accept(ctx, header);
        native::note(ctx, header).await;
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        header: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if header.status.is_informational() {
            return Ok(());
        }
        if self.draining.load(Ordering::Relaxed) || session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        if session.req_header().version < Version::HTTP_11 {
            // HTTP/1.0 knows no chunks: the end of the connection ends the answer.
            header.remove_header(&header::TRANSFER_ENCODING);
        }
        respond::decorate(header, ctx)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut RequestContext,
    ) -> Result<Option<std::time::Duration>> {
        if let Some(meter) = &mut ctx.meter {
            meter.observe(body, end);
        }
        if again::take_back(ctx, body.as_ref(), end) {
            return Err(respond::another());
        }
        if let Some(meter) = &ctx.meter {
            let is_unfinished = end && !meter.is_ended();
            if meter.is_complete() {
                ctx.exchange.iter().for_each(exchange::Handle::complete);
                limits::settle(ctx);
            }
            stream::label(ctx);
            if is_unfinished {
                stream::end(ctx, body).map_err(respond::into_error)?;
            }
        }
        if ctx.event_stream && body.as_ref().is_some_and(|body| !body.is_empty()) {
            self.recorder.piece(ctx.started, &mut ctx.trail, &mut ctx.pieces);
        }
        native::read(ctx, body.as_ref());
        ctx.trail.response_bytes += body.as_ref().map_or(0, Bytes::len);
        Ok(None)
    }

    /// Tries again what did not run, or may run twice (docs/decisions/0008).
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut RequestContext,
        reused: bool,
    ) -> Box<Error> {
        // Asking an undecided error whether to retry panics.
        error.retry.decide_reuse(reused);
        if ctx.course.goes_on() {
            error.set_retry(true);
            return error;
        }
        let failure = respond::failure_of(&error, ctx);
        let again = course::may_go_on(ctx, failure.clone(), failure.repeatable());
        ctx.lost = (!again).then_some(failure);
        if again && reused {
            ctx.course.was_kept();
        }
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut RequestContext) -> FailToProxy {
        respond::fail(session, error, ctx).await
    }

    /// The last thing that happens to a request, however it ends: its one record.
    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestContext) {
        if let Some(handle) = ctx.exchange.take() {
            exchange::unwrap(&mut session.downstream_session, &handle);
            if let Some(failure) = handle.verdict() {
                ctx.fail(failure);
            }
        }
        if let (Some(error), None) = (error, &ctx.trail.failure) {
            ctx.fail(respond::failure_of(error, ctx));
        }
        limits::settle(ctx);
        load::release(ctx);
        ctx.course.end();
        ctx.assets = None;
        let unreached = std::mem::take(&mut ctx.unreached);
        unreached.iter().for_each(|endpoint| self.recorder.connect_failed(ctx.trail.pool.as_ref(), endpoint));
        let written = session.response_written().map(|header| header.status.as_u16());
        ctx.trail.status =
            written.filter(|s| *s >= 200).unwrap_or_else(|| ctx.trail.failure.as_ref().map_or(0, Failure::status));
        if ctx.trail.nvcf_id.is_none() {
            ctx.trail.nvcf_id = ctx.progress.as_ref().and_then(|progress| progress.id()).map(str::to_owned);
        }
        ctx.trail.finish = ctx.meter.as_ref().and_then(|meter| meter.finish().word());
        ctx.trail.client = session.client_addr().map(ToString::to_string);
        let operation = ctx.admitted.as_ref().map(|admitted| ctx.snapshot.catalogue.operation(admitted.operation));
        let finish = ctx.meter.as_ref().map(Meter::finish).unwrap_or_default();
        let said = ctx.meter.as_mut().and_then(Meter::said);
        let transcript = ctx.transcript.as_deref().map(|asked| Telling { asked, said, finish });
        self.recorder.end(&mut Finished {
            trail: &mut ctx.trail,
            request_id: &ctx.request_id,
            total: ctx.started.elapsed(),
            request: session.req_header(),
            route: operation.map(|operation| operation.path.as_str()),
            sampling: &ctx.snapshot.sampling,
            transcript,
        });
        let client = &ctx.snapshot.client;
        edge::await_header(client.keepalive_timeout + client.header_timeout);
    }

    /// Never: the record says it, once.
    fn suppress_error_log(&self, _session: &Session, _ctx: &RequestContext, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &RequestContext,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Takes the header of a backend's answer: what it says of the endpoint and of the request, without what is not for the
/// client.
fn accept(ctx: &mut RequestContext, header: &mut ResponseHeader) {
    ctx.trail.first_byte = Some(ctx.started.elapsed());
    ctx.is_begun = true;
    ctx.trail.status = header.status.as_u16();
    if let (Some(trace), Some(endpoint)) = (&mut ctx.trail.trace, &ctx.trail.endpoint) {
        trace.answered(endpoint, header.status.as_u16());
    }
    if header.status.as_u16() < 400 {
        course::accepted(ctx);
    }
    ctx.trail.nvcf_id = held::request_id(header).map(str::to_owned);
    ctx.pause = load::pause(&header.headers);
    load::hear(ctx, &header.headers);
    let nominated = header.headers.get(header::CONNECTION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_nominated = |name: &HeaderName| nominated.split(',').any(|n| n.trim().eq_ignore_ascii_case(name.as_str()));
    let is_dropped = |name: &&HeaderName| Kind::drops_response_header(name) || is_nominated(name);
    let dropped: Vec<_> = header.headers.keys().filter(is_dropped).cloned().collect();
    for name in dropped {
        header.remove_header(&name);
    }
    let kind = header.headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    ctx.event_stream = kind.is_some_and(|k| k.len() >= 17 && k[..17].eq_ignore_ascii_case(b"text/event-stream"));
    limits::watch(ctx, header);
    stream::watch(ctx, header);
    again::watch(ctx, header);
}
