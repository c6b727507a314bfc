//! Again: takes back an answer of which nothing was passed on yet, and waits before the request is sent anew, as long as
//! its client does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_http::ResponseHeader;
use tokio::time::Instant;

use super::super::context::RequestContext;
use super::super::exchange::Handle;
use super::super::judge::Judge;
use super::super::{held, load};
use super::{end, give_up, go_on, may_repeat, paced, retake};
use crate::balance::Verdict;
use crate::failure::Failure;
use crate::record::SpillReason;
use crate::upstream::{Again, Fault, Kind, Manner};

/// A refusal that may be of a function without instances: its headers, and as much of its body as has come.
pub struct Refusal {
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Keeps a refusal that its body may turn into a reason to wait.
pub fn watch(ctx: &mut RequestContext, header: &ResponseHeader) {
    let kind = ctx.admitted.as_ref().map(|admitted| &ctx.snapshot.pool(admitted.pool).settings.kind);
    let is_open = header.status == 400 && ctx.exchange.is_some() && kind.is_some_and(|kind| kind.function().is_some());
    ctx.refusal = is_open.then(|| Refusal { headers: header.headers.clone(), body: Vec::new() });
}

/// Takes an answer back whose body says that another attempt may do better: a function that lost its instances, a stream
/// that begins with an overload. Says whether another attempt follows.
pub fn take_back(ctx: &mut RequestContext, piece: Option<&Bytes>, is_end: bool) -> bool {
    if ctx.exchange.as_ref().is_none_or(Handle::has_passed) {
        return false;
    }
    if let Some(failure) = degraded(ctx, piece, is_end) {
        return wait_for_instances(ctx, &failure) || drop_answer(ctx, failure, false);
    }
    match first_event(ctx) {
        Some((failure, status)) => {
            if status == 429 {
                paced(ctx).iter().for_each(|pace| ctx.course.refused_for_rate(pace, ctx.pause));
            }
            drop_answer(ctx, failure, status == 429)
        }
        None => false,
    }
}

/// Makes ready for the next attempt after an answer was taken back: rests, and finds an endpoint where only the pace of
/// the pool is in the way.
pub async fn resume(session: &mut ServerSession, ctx: &mut RequestContext) -> Result<(), Failure> {
    if let Some(until) = ctx.course.rests_until.take() {
        rest(session, ctx, until).await?;
    }
    if !std::mem::take(&mut ctx.course.is_rated) {
        return Ok(());
    }
    let Some(failure) = ctx.course.failed.take() else { return Ok(()) };
    let Err(failure) = go_on(ctx, failure).await else { return Ok(()) };
    let is_retaken = match paced(ctx) {
        Some(pace) => retake(session, ctx, &pace).await?,
        None => false,
    };
    if is_retaken { Ok(()) } else { Err(failure) }
}

/// Waits until then, as long as the client does.
pub async fn rest(session: &mut ServerSession, ctx: &RequestContext, until: Instant) -> Result<(), Failure> {
    let is_whole = ctx.admitted.as_ref().is_some_and(|admitted| admitted.length.is_some());
    // Whoever sends a body that is not read yet can not be watched; who left may wait for others.
    let is_watched = (is_whole || session.is_body_empty()) && !ctx.awaited.is_any();
    ctx.exchange.iter().for_each(|exchange| exchange.rest(true));
    let rested = loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => break Ok(()),
            left = session.read_body_or_idle(true), if is_watched => {
                if left.is_err() {
                    break Err(Failure::ClientClosed);
                }
            }
        }
    };
    ctx.exchange.iter().for_each(|exchange| exchange.rest(false));
    rested
}

/// The failure that a stream began with, and its status.
fn first_event(ctx: &RequestContext) -> Option<(Failure, u16)> {
    let data = ctx.meter.as_ref().filter(|meter| meter.is_error_only())?.error()?;
    let kind = &ctx.snapshot.pool(ctx.admitted.as_ref()?.pool).settings.kind;
    // On its native face, what NVCF says is the caller's to judge.
    (*kind != Kind::Nvcf(None)).then(|| Judge::event(kind, ctx.errors, data))?
}

/// The failure of a function that has lost its instances, once all of the refusal that may say so has come.
fn degraded(ctx: &mut RequestContext, piece: Option<&Bytes>, is_end: bool) -> Option<Failure> {
    let refusal = ctx.refusal.as_mut()?;
    refusal.body.extend_from_slice(piece.map_or(&[], |piece| piece));
    if refusal.body.len() > held::REFUSAL {
        ctx.refusal = None;
        return None;
    }
    let Refusal { headers, body } = ctx.refusal.take_if(|_| is_end)?;
    let kind = &ctx.snapshot.pool(ctx.admitted.as_ref()?.pool).settings.kind;
    let row = kind.read_answer(Manner::Other, 400, &headers, &body)?.row;
    (row.fault == Fault::FunctionDegraded).then_some(Failure::Upstream(row))
}

/// Has the request sent again after a pause, as far as the pool waits for instances.
fn wait_for_instances(ctx: &mut RequestContext, failure: &Failure) -> bool {
    let Some(state) = ctx.admitted.as_ref().map(|admitted| ctx.snapshot.pool(admitted.pool)) else { return false };
    let wait = state.settings.kind.function().map_or(Duration::ZERO, |function| function.wait.degraded);
    let all = end(ctx, state.settings.timeouts.total);
    let now = Instant::now();
    let (patience, pause) = *ctx.course.patience.get_or_insert((now + wait, held::PAUSES[0]));
    if now + pause > patience.min(all) || !is_open(ctx, failure) || ctx.lease.is_none() {
        return false;
    }
    forget(ctx);
    let course = &mut ctx.course;
    course.patience = Some((patience, (pause * 2).min(held::PAUSES[1])));
    course.rests_until = Some(now + pause);
    course.next = ctx.lease.take();
    // It is the same attempt, made longer.
    course.attempts = course.attempts.saturating_sub(1);
    true
}

/// Drops an answer, if anyone else may take the request.
fn drop_answer(ctx: &mut RequestContext, failure: Failure, is_rated: bool) -> bool {
    if !is_open(ctx, &failure) || !may_find(ctx, &failure, is_rated) {
        return false;
    }
    forget(ctx);
    give_up(ctx, &failure);
    ctx.course.failed = Some(failure);
    ctx.course.is_rated = is_rated;
    true
}

/// Whether the request may be sent again after this failure, although an answer began.
fn is_open(ctx: &mut RequestContext, failure: &Failure) -> bool {
    let Some(row) = failure.seen().filter(|row| row.again == Again::Elsewhere) else { return false };
    let was_begun = std::mem::take(&mut ctx.is_begun);
    let may = may_repeat(ctx, row.ran);
    ctx.is_begun = was_begun;
    may
}

/// Whether there is another endpoint, another pool, or a pace that may let it pass later.
fn may_find(ctx: &RequestContext, failure: &Failure, is_rated: bool) -> bool {
    let Some(state) = ctx.admitted.as_ref().map(|admitted| ctx.snapshot.pool(admitted.pool)) else { return false };
    let is_overload = matches!(load::verdict(failure, None), Verdict::Overloaded(_));
    let reason = if is_overload { SpillReason::Overload } else { SpillReason::Outage };
    let mut tried = ctx.course.tried.clone();
    tried.extend(ctx.lease.as_ref().map(|lease| Arc::clone(lease.endpoint())));
    let is_left = ctx.course.attempts < state.settings.retry.attempts;
    let is_here = is_left && (is_rated && paced(ctx).is_some() || state.pool.has_others(&tried));
    is_here || state.settings.spill.is_for(reason)
}

/// Forgets the answer that is taken back.
fn forget(ctx: &mut RequestContext) {
    (ctx.is_begun, ctx.event_stream, ctx.meter, ctx.refusal) = (false, false, None, None);
    ctx.trail.first_byte = None;
}
