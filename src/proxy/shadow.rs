//! Shadow: copies of some callers' requests for another pool, to try it out. Their answers are read and dropped.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::fetch::{Answer, Fetcher};
use super::settings::ShadowSettings;
use super::{course, load, upstream_request};
use crate::balance::{Ask, Lease, Verdict, now};
use crate::failure::Failure;
use crate::ids::CallerId;
use crate::record::Recorder;
use crate::upstream::Kind;

/// Marks a copy for its backend.
const MARK: &str = "x-nimgate-shadow";

/// Sends a copy of the request to the pool's shadow, if it has one and the caller is among those who are copied.
/// Nothing waits for it, and nothing of it counts for the caller.
pub fn copy(session: &Session, ctx: &RequestContext, admitted: &Admitted, payload: &Payload, recorder: &Arc<Recorder>) {
    let state = ctx.snapshot.pool(admitted.pool);
    let (Some(shadow), Some(caller)) = (&state.settings.shadow, &ctx.trail.caller) else { return };
    if !is_chosen(shadow, caller.id()) || payload.len().is_none_or(|length| length > shadow.max_body) {
        return;
    }
    let target = ctx.snapshot.pool(shadow.pool);
    let sent = begin(session, ctx, admitted, payload, shadow);
    let Some((exchange, lease, held)) = sent else {
        return recorder.shadowed(&target.settings.name, "dropped");
    };
    let (recorder, name, kind) = (Arc::clone(recorder), target.settings.name.clone(), target.settings.kind.clone());
    tokio::spawn(async move {
        let result = finish(exchange, lease, &kind).await;
        recorder.shadowed(&name, result);
        drop(held);
    });
}

/// A caller is in or out, for as long as the share stays; a larger share only adds callers.
fn is_chosen(shadow: &ShadowSettings, caller: &CallerId) -> bool {
    let mut hasher = DefaultHasher::new();
    caller.as_str().hash(&mut hasher);
    ((hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64) < shadow.share
}

type Exchange = std::pin::Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

fn begin(
    session: &Session,
    ctx: &RequestContext,
    admitted: &Admitted,
    payload: &Payload,
    shadow: &ShadowSettings,
) -> Option<(Exchange, Lease, impl Send + use<>)> {
    let (here, there) = (ctx.snapshot.pool(admitted.pool), ctx.snapshot.pool(shadow.pool));
    let other = course::fitting(ctx, admitted, shadow.pool)?;
    let body = match other.as_ref().unwrap_or(payload) {
        Payload::Buffered(pieces) => Bytes::from(pieces.concat()),
        Payload::Streamed => return None,
    };
    let permit = Arc::clone(&here.copies).try_acquire_owned().ok()?;
    let pass = there.gate.try_enter(course::cost(ctx))?;
    let lease = there.pool.pick(&Ask { work: ctx.work, chain: None, tried: &[], only_well: true }, now()).ok()?;
    let mut request: RequestHeader = session.req_header().clone();
    let copied = admitted.for_copy(shadow.pool, body.len());
    upstream_request::rewrite(&mut request, ctx, &copied, there, &lease).ok()?;
    request.insert_header(MARK, "1").ok()?;
    let fetcher: &Fetcher = there.fetcher();
    let exchange = Box::pin(fetcher.send(request, body, &lease, None));
    Some((exchange, lease, (permit, pass)))
}

async fn finish(exchange: Exchange, mut lease: Lease, kind: &Kind) -> &'static str {
    let outcome = match exchange.await {
        Ok(mut answer) if answer.header.status.is_success() => loop {
            match answer.body.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(failure) => break Err(load::verdict(&failure, None)),
            }
        },
        Ok(answer) => Err(load::verdict_of(kind, &answer.header)),
        Err(failure) => Err(load::verdict(&failure, None)),
    };
    match outcome {
        Ok(()) => {
            lease.judge(Verdict::Good);
            "good"
        }
        Err(verdict) => {
            lease.judge(verdict);
            "failed"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PoolIndex;

    #[test]
    fn the_share_of_callers_is_kept_and_grows_by_adding() {
        let of = |share: f64| ShadowSettings { pool: PoolIndex(0), share, max_in_flight: 1, max_body: 1 };
        let callers: Vec<CallerId> = (0..2000).map(|at| format!("caller-{at}").into()).collect();
        let chosen = |share: f64| callers.iter().map(|c| is_chosen(&of(share), c)).collect::<Vec<_>>();
        let count = |all: &[bool]| all.iter().filter(|c| **c).count();
        let (none, some, more, all) = (chosen(0.0), chosen(0.1), chosen(0.4), chosen(1.0));
        assert_eq!((count(&none), count(&all)), (0, 2000));
        assert!((120..280).contains(&count(&some)), "{}", count(&some));
        assert!(some.iter().zip(&more).all(|(some, more)| !some || *more));
    }
}
