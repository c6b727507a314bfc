//! Hedge: answers a request that may run twice; when its endpoint is unusually slow, a second one is asked as well, and
//! the first good answer counts. The other attempt is cancelled.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora_error::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use tokio::time::Instant;
use tower::retry::budget::Budget as _;

use super::context::{Admitted, RequestContext};
use super::exchange::{self, Payload};
use super::fetch::{Answer, Peer, Stream};
use super::held::Call;
use super::judge::Judge;
use super::opening::Enclosed;
use super::respond::{self, into_error};
use super::settings::HedgeSettings;
use super::snapshot::PoolState;
use super::{accept, course, held, limits, load, upstream_request};
use crate::admission::Pass;
use crate::balance::{Ask, Lease, now};
use crate::failure::Failure;

/// How often a request whose client left looks whether others still wait for it.
const NEXT_LOOK: Duration = Duration::from_millis(20);

type Sent = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

/// An attempt under way at a second endpoint.
struct Second {
    lease: Lease,
    /// Its place in the pool.
    _pass: Pass,
    sent: Sent,
}

/// What happened next.
enum Event {
    First(Result<Answer, Failure>),
    Second(Result<Answer, Failure>),
    Slow,
    News,
    Left,
}

/// How the pool hedges this request, if it does.
pub fn settings(ctx: &RequestContext, admitted: &Admitted, payload: &Payload) -> Option<HedgeSettings> {
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    let is_whole = matches!(payload, Payload::Buffered(_));
    let hedge = ctx.snapshot.pool(admitted.pool).settings.hedge?;
    // Of two polls only one would get the answer.
    let is_fit = is_whole && operation.repeatable && operation.polls.is_none() && !ctx.trail.stream;
    is_fit.then_some(hedge)
}

/// Sends the request, answers it, and leaves what it found in the context as the proxy loop does.
pub async fn run(session: &mut Session, ctx: &mut RequestContext, payload: Payload) -> Result<()> {
    let answer = first_answer(session, ctx, payload).await.map_err(into_error)?;
    pour(session, ctx, answer).await
}

/// The request for an endpoint of the pool that it is admitted to, under way.
fn send(session: &Session, ctx: &RequestContext, lease: &Lease, body: &Bytes) -> Result<Sent, Failure> {
    let internal = |e: Box<Error>| Failure::Internal(e.to_string());
    let admitted = ctx.admitted().map_err(internal)?;
    let state = ctx.snapshot.pool(admitted.pool);
    let mut request: RequestHeader = session.req_header().clone();
    upstream_request::rewrite(&mut request, ctx, admitted, state, lease).map_err(internal)?;
    if state.settings.kind.function().is_some() {
        let call = Call {
            snapshot: Arc::clone(&ctx.snapshot),
            pool: admitted.pool,
            request,
            body: body.clone(),
            to: Peer::of(lease),
            end: course::end(ctx, state.settings.timeouts.total),
            progress: ctx.progress.clone().unwrap_or_default(),
        };
        return Ok(Box::pin(call.run()));
    }
    let end = ctx.timeout.map(|time| Instant::from_std(ctx.started) + time);
    Ok(Box::pin(state.fetcher().send(request, body.clone(), lease, end)))
}

pub(super) async fn first_answer(
    session: &mut Session,
    ctx: &mut RequestContext,
    payload: Payload,
) -> Result<Answer, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let mut body = whole(payload);
    loop {
        let pool = ctx.admitted.as_ref().map(|admitted| admitted.pool);
        let Some(state) = pool.map(|pool| snapshot.pool(pool)) else { return Err(Failure::Internal("no pool".into())) };
        let Some(lease) = ctx.course.take_next() else { return Err(Failure::Internal("no endpoint".into())) };
        ctx.attempt(lease.endpoint().name());
        ctx.trail.endpoint = Some(lease.endpoint().name().to_owned());
        if state.settings.kind.function().is_some() {
            ctx.progress.get_or_insert_default();
        }
        let sent = send(session, ctx, &lease, &body)?;
        ctx.lease = Some(lease);
        match race(session, ctx, state, sent, &body).await? {
            Ok(answer) => {
                if !course::refused(session.as_mut(), ctx, &answer.header).await? {
                    return Ok(answer);
                }
            }
            Err(failure) => {
                if failure.is_unreached() {
                    ctx.unreached.extend(ctx.trail.endpoint.clone());
                }
                if !course::may_go_on(ctx, failure.clone(), failure.repeatable()) {
                    return Err(failure);
                }
                let failed = ctx.course.take_failed().unwrap_or(failure);
                course::go_on(ctx, failed).await?;
            }
        }
        body = ctx.course.take_body().map_or(body, whole);
    }
}

/// Waits for the attempt under way, and for a second one once it is slow; the lease of the one that answered, or failed
/// last, is the request's then.
async fn race(
    session: &mut Session,
    ctx: &mut RequestContext,
    state: &PoolState,
    mut first: Sent,
    body: &Bytes,
) -> Result<Result<Answer, Failure>, Failure> {
    let hedge = state.settings.hedge;
    let patience = ctx.lease.as_ref().and_then(|lease| hedge?.after.or_else(|| state.pool.patience(lease)));
    let mut slow = patience.filter(|_| ctx.trail.hedge.is_none()).map(|time| Instant::now() + time);
    state.hedges.deposit();
    let mut second: Option<Second> = None;
    // Its client left, but others wait for the same.
    let mut is_left = false;
    let progress = ctx.progress.clone();
    loop {
        let is_hedged = second.is_some();
        let other = async {
            match &mut second {
                Some(second) => (&mut second.sent).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            answer = &mut first => Event::First(answer),
            answer = other, if is_hedged => Event::Second(answer),
            () = held::news(progress.as_deref()) => Event::News,
            () = tokio::time::sleep_until(slow.unwrap_or_else(Instant::now)), if slow.is_some() => Event::Slow,
            left = session.as_mut().read_body_or_idle(true), if !is_left => {
                if left.is_err() { Event::Left } else { continue }
            }
            () = tokio::time::sleep(NEXT_LOOK), if is_left => Event::Left,
        };
        match event {
            Event::Left if ctx.awaited.is_any() => is_left = true,
            Event::Left => return Err(Failure::ClientClosed),
            Event::News => respond::progress(session, ctx).await?,
            Event::Slow => {
                slow = None;
                second = begin_second(session, ctx, state, body)?;
            }
            Event::First(Ok(answer)) if second.is_none() || is_good(&answer) => {
                ctx.trail.hedge = ctx.trail.hedge.or(second.is_some().then_some(false));
                second.iter().for_each(|other| ctx.trail.over(other.lease.endpoint().name(), None));
                return Ok(Ok(answer));
            }
            Event::First(failed) => {
                let Some(other) = second.take() else { return Ok(failed) };
                // The first one is over: the second takes its place.
                let verdict = match &failed {
                    Ok(answer) => bad(answer, state),
                    Err(failure) => load::verdict(failure, None),
                };
                ctx.trail.hedge = Some(true);
                if let Some(mut lease) = ctx.lease.replace(other.lease) {
                    ctx.trail.over(lease.endpoint().name(), failed.err().map(|failure| failure.label()));
                    lease.judge(verdict);
                }
                ctx.trail.endpoint = ctx.lease.as_ref().map(|lease| lease.endpoint().name().to_owned());
                first = other.sent;
            }
            Event::Second(answer) => {
                let Some(mut other) = second.take() else { continue };
                match answer {
                    Ok(answer) if is_good(&answer) => {
                        ctx.trail.hedge = Some(true);
                        ctx.trail.endpoint = Some(other.lease.endpoint().name().to_owned());
                        if let Some(mut lease) = ctx.lease.replace(other.lease) {
                            ctx.trail.over(lease.endpoint().name(), None);
                            lease.outrun();
                        }
                        return Ok(Ok(answer));
                    }
                    Ok(answer) => {
                        ctx.trail.over(other.lease.endpoint().name(), None);
                        other.lease.judge(bad(&answer, state));
                    }
                    Err(failure) => {
                        ctx.trail.over(other.lease.endpoint().name(), Some(failure.label()));
                        other.lease.judge(load::verdict(&failure, None));
                    }
                }
                ctx.trail.hedge = Some(false);
            }
        }
    }
}

/// Begins a second attempt, if the pool's budget and its places allow it and another endpoint looks well.
fn begin_second(
    session: &Session,
    ctx: &mut RequestContext,
    state: &PoolState,
    body: &Bytes,
) -> Result<Option<Second>, Failure> {
    let Some(first) = &ctx.lease else { return Ok(None) };
    let tried = [Arc::clone(first.endpoint())];
    let ask = Ask { work: ctx.work, chain: None, tried: &tried, only_well: true };
    let Some(pass) = state.gate.try_enter(course::cost(ctx)) else { return Ok(None) };
    let Ok(lease) = state.pool.pick(&ask, now()) else { return Ok(None) };
    if !state.hedges.withdraw() {
        return Ok(None);
    }
    ctx.trail.again("hedge");
    ctx.attempt(lease.endpoint().name());
    let sent = send(session, ctx, &lease, body)?;
    Ok(Some(Second { lease, _pass: pass, sent }))
}

fn is_good(answer: &Answer) -> bool {
    answer.header.status.as_u16() < 429
}

pub(super) fn bad(answer: &Answer, state: &PoolState) -> crate::balance::Verdict {
    load::verdict_of(&state.settings.kind, &answer.header)
}

pub(super) fn whole(payload: Payload) -> Bytes {
    match payload {
        Payload::Buffered(mut pieces) if pieces.len() == 1 => pieces.pop().unwrap_or_default(),
        Payload::Buffered(pieces) => pieces.concat().into(),
        Payload::Streamed => Bytes::new(),
    }
}

/// Passes an answer on: judged, metered and decorated as every other.
pub(super) async fn pour(session: &mut Session, ctx: &mut RequestContext, answer: Answer) -> Result<()> {
    let Answer { mut header, mut body } = answer;
    accept(ctx, &mut header);
    let judge = Judge::new(&ctx.snapshot, ctx.admitted()?, ctx);
    let mut seen = Vec::new();
    if judge.must_see(&header) {
        let mut complete = false;
        while !complete && seen.len() < judge.bound() {
            match body.next().await.map_err(into_error)? {
                Some(piece) => seen.extend_from_slice(&piece),
                None => complete = true,
            }
        }
        if let Some(judgement) = judge.read(&mut header, &seen, complete) {
            ctx.fail(judgement.failure);
            if let Some(replacement) = judgement.replacement {
                seen = replacement.into();
                body = Stream::of(Bytes::new());
            }
        }
    }
    if ctx.is_opened && ctx.trail.failure.is_some() {
        // What is left of it is of no use.
        session.as_mut().write_response_body(exchange::event(&seen), true).await?;
        return Ok(());
    }
    let mut enclosed = ctx.is_opened.then(|| Enclosed::of(&header));
    // Frames are the connection's own: the length, where it is stated, stays true.
    header.remove_header(&http::header::TRANSFER_ENCODING);
    if header.headers.get(http::header::CONTENT_LENGTH).is_none()
        && session.req_header().version == http::Version::HTTP_11
    {
        header.insert_header(http::header::TRANSFER_ENCODING, "chunked")?;
    }
    respond::decorate(&mut header, ctx)?;
    if enclosed.is_none() {
        session.as_mut().write_response_header(Box::new(header)).await?;
    }
    let mut piece = (!seen.is_empty()).then(|| Bytes::from(seen));
    loop {
        let end = match &piece {
            Some(_) => body.is_end(),
            None => match body.next().await.map_err(into_error)? {
                Some(next) => {
                    piece = Some(next);
                    body.is_end()
                }
                None => true,
            },
        };
        if let Some(meter) = &mut ctx.meter {
            meter.observe(&mut piece, end);
            if meter.is_complete() {
                limits::settle(ctx);
            }
        }
        let mut data = piece.take();
        ctx.trail.response_bytes += data.as_ref().map_or(0, Bytes::len);
        if let Some(enclosed) = &mut enclosed {
            data = Some(enclosed.push(data.as_deref().unwrap_or_default(), end));
        }
        if data.is_some() || end {
            session.as_mut().write_response_body(data.unwrap_or_default(), end).await?;
        }
        if end {
            return Ok(());
        }
    }
}
