//! Queue: waits for a place in a pool that is full, as long as the client does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora_core::protocols::http::server::Session as ServerSession;
use tokio::time::Instant;

use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::{course, opening};
use crate::admission::{Ask, Pass, Refused};
use crate::failure::Failure;
use crate::record::SpillReason;
use crate::trace::Kind;

/// Time between looks at other pools while waiting.
const LOOK: Duration = Duration::from_millis(50);
/// What the caller of a stream reads while its request waits: a comment, which its reader drops.
const COMMENT: &[u8] = b": waiting for a free endpoint\n\n";

/// How the waiting ended.
pub(super) enum Turn {
    /// With a place.
    Here(Pass),
    /// In another pool, with this body where it differs.
    Elsewhere(Option<Payload>),
}

/// Whether the caller's own deadline has passed.
pub(super) fn is_late(ctx: &RequestContext) -> bool {
    ctx.timeout.is_some_and(|timeout| ctx.started.elapsed() >= timeout)
}

/// Waits in the line of the request's pool, and looks at other pools meanwhile if it may go there.
pub(super) async fn wait(
    session: &mut ServerSession,
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
) -> Result<Turn, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let state = snapshot.pool(admitted.pool);
    let settings = &state.settings;
    let Some(caller) = ctx.trail.caller.clone() else { return Err(Failure::Internal("nobody waits".into())) };
    let (class, weight) = caller.rank();
    let deadline = course::deadline(ctx, settings.queue.timeout, settings.timeouts.total);
    let ask = Ask { caller: caller.id().clone(), weight, class, cost: course::cost(ctx), deadline };
    let begun = ctx.course.waits();
    let mut place = std::pin::pin!(state.gate.enter(ask));
    let spills = !settings.spill.to.is_empty() && settings.spill.overload;
    let mut look = begun + settings.spill.after.max(LOOK);
    let comments = settings.queue.keepalive.filter(|_| ctx.trail.stream);
    let mut comment = comments.map(|every| begun + every);
    // Whoever sends a body that is not read yet can not be watched.
    let is_watched = admitted.length.is_some() || session.is_body_empty();
    let turn = loop {
        tokio::select! {
            biased;
            outcome = &mut place => break match outcome {
                Ok(pass) => Ok(Turn::Here(pass)),
                // Who may not wait here any longer need not be patient.
                Err(refused) => match course::elsewhere(ctx, admitted, SpillReason::Overload).await {
                    Some(moved) => Ok(Turn::Elsewhere(moved)),
                    None => Err(failure(refused, ctx, deadline)),
                },
            },
            left = session.read_body_or_idle(true), if is_watched => {
                if left.is_err() {
                    break Err(Failure::ClientClosed);
                }
            }
            () = tokio::time::sleep_until(look), if spills => {
                if let Some(moved) = course::elsewhere(ctx, admitted, SpillReason::Overload).await {
                    break Ok(Turn::Elsewhere(moved));
                }
                look = Instant::now() + LOOK;
            }
            () = at(comment) => {
                if let Err(gone) = opening::say(session, ctx, Bytes::from_static(COMMENT)).await {
                    break Err(gone);
                }
                comment = comments.map(|every| Instant::now() + every);
            }
        }
    };
    ctx.trail.queued = Some(begun.elapsed());
    ctx.trail.trace.iter_mut().for_each(|trace| trace.note(Kind::Queue, begun.into_std()));
    turn
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn failure(refused: Refused, ctx: &RequestContext, deadline: Instant) -> Failure {
    let retry_after = refused.retry_after();
    match refused {
        Refused::QueueFull { .. } => Failure::QueueFull(retry_after),
        Refused::CallerFull { .. } => Failure::CallerQueueFull(retry_after),
        // What the caller itself set is its own to change.
        Refused::TooLate { .. } | Refused::Expired { .. }
            if ctx.timeout.is_some_and(|own| Instant::from_std(ctx.started) + own <= deadline) =>
        {
            Failure::DeadlineUnmet(retry_after)
        }
        Refused::TooLate { .. } | Refused::Expired { .. } => Failure::QueueTimeout(retry_after),
    }
}
