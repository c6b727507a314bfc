//! Course: where an admitted request runs. Its place in a pool, its endpoint, and the next one when an attempt fails.
//!
//! A request is tried again only before anything of an answer was passed on, and only when nothing of it ran or its
//! operation may run twice. What its pool can not take may run in another one; each pool is tried once.

use std::sync::Arc;
use std::time::Duration;

use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_http::ResponseHeader;
use tokio::time::Instant;
use tower::retry::budget::Budget as _;

use super::admit::{Source, check_body};
use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::judge::Judge;
use super::opening::Opening;
use super::snapshot::PoolState;
use super::{limits, load, queue};
use crate::admission::Pass;
use crate::admission::pace::Pace;
use crate::balance::{Ask, Endpoint, Lease, NoEndpoint, Verdict, now};
use crate::failure::{BadInput, Failure};
use crate::ids::PoolIndex;
use crate::record::{Spill, SpillReason};
use crate::upstream::{Again, Event, Kind, Ran};

pub mod again;

use self::again::rest;

/// How long to wait when endpoints filled up between a place and a pick.
const NEXT_LOOK: Duration = Duration::from_millis(5);

/// Where a request runs, and where it ran.
#[derive(Default)]
pub struct Course {
    /// Its place in the pool.
    pass: Option<Pass>,
    /// The endpoint that the next attempt goes to.
    next: Option<Lease>,
    /// Endpoints of the pool that were tried.
    tried: Vec<Arc<Endpoint>>,
    /// Attempts in the pool.
    attempts: u32,
    /// When the last of them began.
    sent: Option<Instant>,
    /// Pools that it left.
    left: Vec<PoolIndex>,
    /// How the last attempt failed.
    failed: Option<Failure>,
    /// The body for the pool that it moved to, where that differs.
    body: Option<Payload>,
    /// The last attempt may have met nothing but an old connection.
    is_stale: bool,
    /// Since when it waits for a place, or waited.
    waits_since: Option<Instant>,
    /// Before then, the next attempt is not made.
    rests_until: Option<Instant>,
    /// Until when it waits for a function without instances, and the next pause.
    patience: Option<(Instant, Duration)>,
    /// The last attempt was refused for its rate, in an event.
    is_rated: bool,
}

impl Course {
    /// The endpoint that the next attempt goes to.
    pub fn take_next(&mut self) -> Option<Lease> {
        let lease = self.next.take()?;
        self.attempts += 1;
        self.sent = Some(Instant::now());
        Some(lease)
    }

    /// Where the next attempt goes.
    pub(super) fn next(&self) -> Option<&Lease> {
        self.next.as_ref()
    }

    /// Whether another attempt is to be made.
    pub fn goes_on(&self) -> bool {
        self.next.is_some() || self.failed.is_some()
    }

    /// How the last attempt failed, if nobody has gone on from there yet.
    pub fn take_failed(&mut self) -> Option<Failure> {
        self.failed.take()
    }

    /// The body for the pool that it moved to, where that differs from the one before.
    pub fn take_body(&mut self) -> Option<Payload> {
        self.body.take()
    }

    /// The last attempt was on a kept connection: where there is no other endpoint, its own is tried again.
    pub fn was_kept(&mut self) {
        self.is_stale = true;
    }

    /// A platform refused the last attempt for its rate.
    fn refused_for_rate(&self, pace: &Pace, pause: Option<Duration>) {
        let now = Instant::now();
        pace.refused(self.sent.unwrap_or(now), now, pause);
    }

    /// Since when it waits; a request that finds its endpoint taken waits on.
    pub(super) fn waits(&mut self) -> Instant {
        *self.waits_since.get_or_insert_with(Instant::now)
    }

    /// Gives the place back.
    pub fn end(&mut self) {
        self.pass = None;
        self.next = None;
    }
}

/// Waits for a place and picks an endpoint, of another pool where this one can not take the request.
pub async fn begin(
    session: &mut ServerSession,
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
    mut payload: Payload,
) -> Result<Payload, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let first = snapshot.pool(admitted.pool);
    first.retries.deposit();
    if !first.pool.is_well(now()) {
        let reason = if first.pool.is_resting() { SpillReason::Overload } else { SpillReason::Outage };
        if let Some(moved) = elsewhere(ctx, admitted, reason).await {
            return Ok(moved.unwrap_or(payload));
        }
    }
    loop {
        let state = snapshot.pool(admitted.pool);
        let pass = match state.gate.try_enter(cost(ctx)) {
            Some(pass) => pass,
            None if queue::is_late(ctx) => return Err(Failure::TotalTimeout),
            None => {
                let is_patient = !state.settings.spill.after.is_zero();
                if !is_patient && let Some(moved) = elsewhere(ctx, admitted, SpillReason::Overload).await {
                    return Ok(moved.unwrap_or(payload));
                }
                match queue::wait(session, ctx, admitted).await? {
                    queue::Turn::Here(pass) => pass,
                    queue::Turn::Elsewhere(moved) => {
                        payload = moved.unwrap_or(payload);
                        return Ok(payload);
                    }
                }
            }
        };
        match pick(ctx, state, false) {
            Ok(lease) => {
                ctx.course.pass = Some(pass);
                ctx.course.next = Some(lease);
                return Ok(payload);
            }
            Err(NoEndpoint::AllFull) => {
                drop(pass);
                state.resize();
                tokio::time::sleep(NEXT_LOOK).await;
            }
            Err(NoEndpoint::AllUnhealthy) if !state.pool.is_resolved() => {
                return Err(Failure::event(Event::Unresolved));
            }
            Err(none) => return Err(Failure::no_endpoint(none, state.settings.kind != Kind::Nim)),
        }
    }
}

/// What the request weighs in a queue.
pub(super) fn cost(ctx: &RequestContext) -> u64 {
    (ctx.work as u64).max(1)
}

fn pick(ctx: &RequestContext, state: &PoolState, only_well: bool) -> Result<Lease, NoEndpoint> {
    let ask = Ask { work: ctx.work, chain: ctx.chain.as_ref(), tried: &ctx.course.tried, only_well };
    state.pool.pick(&ask, now())
}

/// Notes that the attempt under way failed, and says whether another may be made. Whether one can be is found out when
/// it begins.
pub fn may_go_on(ctx: &mut RequestContext, failure: Failure, ran: Option<Ran>) -> bool {
    if !ran.is_some_and(|ran| may_repeat(ctx, ran)) {
        return false;
    }
    give_up(ctx, &failure);
    ctx.course.failed = Some(failure);
    true
}

/// Goes on after a failed attempt: on another endpoint, or in another pool. Fails as the attempt did when there is none.
pub async fn go_on(ctx: &mut RequestContext, failure: Failure) -> Result<(), Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let Some(mut admitted) = ctx.admitted.take() else { return Err(failure) };
    let state = snapshot.pool(admitted.pool);
    let is_overload = matches!(load::verdict(&failure, None), Verdict::Overloaded(_));
    if std::mem::take(&mut ctx.course.is_stale) && !state.pool.has_others(&ctx.course.tried) {
        ctx.course.tried.pop();
    }
    let may = ctx.course.attempts < state.settings.retry.attempts && state.pool.has_others(&ctx.course.tried);
    if may
        && state.retries.withdraw()
        && let Ok(lease) = pick(ctx, state, is_overload)
    {
        ctx.course.next = Some(lease);
        ctx.admitted = Some(admitted);
        return Ok(());
    }
    let reason = if is_overload { SpillReason::Overload } else { SpillReason::Outage };
    let mut moved = elsewhere(ctx, &mut admitted, reason).await;
    if moved.is_none() && reason == SpillReason::Outage {
        // Better a pool that looks bad than none.
        moved = move_on(ctx, &mut admitted, reason, false).await;
    }
    let is_moved = moved.is_some();
    if let Some(body) = moved {
        match &ctx.exchange {
            Some(exchange) => {
                let timeouts = snapshot.pool(admitted.pool).settings.timeouts.holding(ctx.hold);
                let judge = Judge::new(&snapshot, &admitted, ctx);
                exchange.retarget(body, judge, timeouts, Opening::of(ctx, admitted.pool));
            }
            None => ctx.course.body = body,
        }
    }
    ctx.admitted = Some(admitted);
    if is_moved { Ok(()) } else { Err(failure) }
}

/// Whether an answer says by its header that another endpoint or pool may do better, and one is to be asked.
pub async fn refused(
    session: &mut ServerSession,
    ctx: &mut RequestContext,
    header: &ResponseHeader,
) -> Result<bool, Failure> {
    let Some(admitted) = ctx.admitted.as_ref().filter(|_| header.status.as_u16() >= 400) else { return Ok(false) };
    let kind = &ctx.snapshot.pool(admitted.pool).settings.kind;
    let pace = paced(ctx).filter(|_| header.status.as_u16() == 429);
    pace.iter().for_each(|pace| ctx.course.refused_for_rate(pace, ctx.pause));
    let Some((row, ran)) = kind.preview(header.status.as_u16(), &header.headers) else { return Ok(false) };
    if row.again != Again::Elsewhere || !may_repeat(ctx, ran) {
        return Ok(false);
    }
    let failure = Failure::Upstream(row);
    let lease = ctx.lease.take();
    if let (Some(trace), Some(lease)) = (&mut ctx.trail.trace, &lease) {
        trace.answered(lease.endpoint().name(), header.status.as_u16());
    }
    ctx.course.tried.extend(lease.as_ref().map(|lease| Arc::clone(lease.endpoint())));
    let mut goes_on = Ok(go_on(ctx, failure.clone()).await.is_ok());
    if let (Ok(false), Some(pace)) = (&goes_on, pace) {
        goes_on = retake(session, ctx, &pace).await;
    }
    ctx.lease = lease;
    if let Ok(true) = goes_on {
        give_up(ctx, &failure);
    }
    goes_on
}

/// What limits the pool of the request, if anyone does.
fn paced(ctx: &RequestContext) -> Option<Arc<Pace>> {
    ctx.snapshot.pool(ctx.admitted.as_ref()?.pool).gate.pace()
}

/// The backend took the request.
pub fn accepted(ctx: &RequestContext) {
    let Some(admitted) = &ctx.admitted else { return };
    ctx.snapshot.pool(admitted.pool).gate.pace().iter().for_each(|pace| pace.accepted(Instant::now()));
}

/// For how long the request's pool lets nothing pass.
pub fn closed(ctx: &RequestContext) -> Option<Duration> {
    let pace = ctx.snapshot.pool(ctx.admitted.as_ref()?.pool).gate.pace()?;
    Some(pace.view(Instant::now()).1)
}

/// Sends a request again that was refused for its rate, once that lets it pass and the caller still waits then.
async fn retake(session: &mut ServerSession, ctx: &mut RequestContext, pace: &Pace) -> Result<bool, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let Some(state) = ctx.admitted.as_ref().map(|admitted| snapshot.pool(admitted.pool)) else { return Ok(false) };
    let deadline = deadline(ctx, state.settings.queue.timeout, state.settings.timeouts.total);
    while ctx.course.attempts < state.settings.retry.attempts {
        match pace.take(Instant::now()) {
            Err(open) if open >= deadline => return Ok(false),
            Err(open) => rest(session, ctx, open).await?,
            Ok(()) => {
                ctx.course.tried.clear();
                let next = pick(ctx, state, false).ok();
                return Ok(next.map(|lease| ctx.course.next = Some(lease)).is_some());
            }
        }
    }
    Ok(false)
}

fn may_repeat(ctx: &RequestContext, ran: Ran) -> bool {
    let Some(admitted) = &ctx.admitted else { return false };
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    let is_whole = admitted.length.is_some() || ctx.streamed == 0;
    (ran == Ran::No || operation.repeatable) && is_whole && !ctx.is_begun && !queue::is_late(ctx)
}

/// Ends the attempt under way, telling its endpoint how it went.
fn give_up(ctx: &mut RequestContext, failure: &Failure) {
    let pause = ctx.pause.take();
    ctx.trail.again(failure.label());
    if let Some(mut lease) = ctx.lease.take() {
        ctx.trail.over(lease.endpoint().name(), Some(failure.label()));
        lease.judge(load::verdict(failure, pause));
        let is_noted = ctx.course.tried.iter().any(|tried| Arc::ptr_eq(tried, lease.endpoint()));
        if !is_noted && ctx.course.next.is_none() {
            ctx.course.tried.push(Arc::clone(lease.endpoint()));
        }
    }
}

/// Moves the request to the first other pool that looks well and takes it now; answers with the body to send there, if it
/// differs.
pub(super) async fn elsewhere(
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
    reason: SpillReason,
) -> Option<Option<Payload>> {
    move_on(ctx, admitted, reason, true).await
}

async fn move_on(
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
    reason: SpillReason,
    only_well: bool,
) -> Option<Option<Payload>> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let from = snapshot.pool(admitted.pool);
    let been = ctx.course.left.iter().chain([&admitted.pool]).map(|pool| &snapshot.pool(*pool).settings.spill);
    let mut behind: Vec<PoolIndex> =
        been.filter(|spill| spill.is_for(reason)).flat_map(|spill| &spill.to).copied().collect();
    let mut at = 0;
    while let Some(to) = behind.get(at).copied() {
        at += 1;
        if to == admitted.pool || ctx.course.left.contains(&to) || behind[..at - 1].contains(&to) {
            continue;
        }
        let Some(payload) = fitting(ctx, admitted, to) else { continue };
        let state = snapshot.pool(to);
        let Some((pass, lease)) = enter(ctx, state, only_well) else {
            // What it can not take either goes where it would send it.
            behind.extend(state.settings.spill.to.iter().filter(|_| state.settings.spill.is_for(reason)));
            continue;
        };
        if limits::moved(ctx, admitted, &state.settings.name).await.is_err() {
            continue;
        }
        let left = std::mem::replace(&mut admitted.pool, to);
        let left_pools = [std::mem::take(&mut ctx.course.left), vec![left]].concat();
        ctx.course = Course { pass: Some(pass), next: Some(lease), left: left_pools, ..Course::default() };
        ctx.moved_to(&state.settings);
        let from = ctx.trail.spill.take().map_or_else(|| from.settings.name.clone(), |spill| spill.from);
        ctx.trail.spill = Some(Spill { from, reason });
        if let Some(Payload::Buffered(_)) = &payload {
            admitted.length = payload.as_ref().and_then(Payload::len);
        }
        return Some(payload);
    }
    None
}

/// A place in another pool and an endpoint of it, if it has both now.
fn enter(ctx: &RequestContext, state: &PoolState, only_well: bool) -> Option<(Pass, Lease)> {
    if only_well && !state.pool.is_well(now()) {
        return None;
    }
    let pass = state.gate.try_enter(cost(ctx))?;
    let ask = Ask { work: ctx.work, chain: ctx.chain.as_ref(), tried: &[], only_well };
    Some((pass, state.pool.pick(&ask, now()).ok()?))
}

/// The body for another pool, if the request may and can run there; none inside when it is the one that it has.
pub(super) fn fitting(ctx: &RequestContext, admitted: &Admitted, to: PoolIndex) -> Option<Option<Payload>> {
    let snapshot = &ctx.snapshot;
    let (here, there) = (snapshot.pool(admitted.pool), snapshot.pool(to));
    let caller = ctx.trail.caller.as_ref()?;
    caller.require_pool(&there.settings.name).ok()?;
    let operation = snapshot.catalogue.operation(admitted.operation);
    let limit = there.settings.body_limit.unwrap_or(operation.body_limit);
    if admitted.length.is_some_and(|length| length > limit) {
        return None;
    }
    let Some(source) = &admitted.source else {
        // Nothing of it was read: it goes anywhere as it is, as long as nothing was sent.
        return (ctx.streamed == 0).then_some(None);
    };
    let entry = match &source.model {
        Some(model) => {
            let candidates = [(operation.api.clone(), admitted.operation)];
            let (_, _, entry) = snapshot.routes.model(model, &candidates, Some(to)).ok()?;
            caller.require_model(&entry.id).ok()?;
            entry.life.is_alive(chrono::Utc::now()).then_some(Some(entry))?
        }
        None => None,
    };
    let Source { bytes, document, ask_usage, .. } = source;
    if !Arc::ptr_eq(&here.checks, &there.checks)
        && let Some(document) = document
    {
        let mut found = BadInput::default();
        check_body(there.checks.get(&admitted.operation), document, &mut found);
        if !found.violations.is_empty() {
            return None;
        }
    }
    let rename = entry.and_then(|entry| entry.backend.as_deref()).zip(document.as_ref());
    let rename = rename.and_then(|(name, document)| super::body::Edit::model(document, name));
    Some(Some(super::body::edited(bytes.clone(), rename.into_iter().chain(ask_usage.clone()).collect())))
}

/// Until when the request is worth waiting for: all its time counts from its header on, a wait from its own begin.
pub(super) fn deadline(ctx: &mut RequestContext, wait: Duration, total: Duration) -> Instant {
    end(ctx, total).min(ctx.course.waits() + wait)
}

/// When all the time of the request is over: what its pool allows, or its caller.
pub(super) fn end(ctx: &RequestContext, total: Duration) -> Instant {
    Instant::from_std(ctx.started) + ctx.timeout.map_or(total, |timeout| timeout.min(total))
}
