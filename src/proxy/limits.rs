//! Limits: what a request is charged before it runs and when it ends, and what its caller reads of that.

use std::time::Duration;

use http::header;
use pingora_error::Result;
use pingora_http::ResponseHeader;

use super::context::{Admitted, RequestContext};
use super::load;
use crate::catalogue::Operation;
use crate::failure::Failure;
use crate::ids::{CallerId, ModelId, PoolName};
use crate::meter::{Form, Meter};
use crate::quota::limit::{Asked, LARGEST, Metric};
use crate::quota::price::Used;
use crate::quota::{Book, Exceeded, Most, Reservation, Standing};
use crate::record::Tokens;
use crate::schema::Document;

/// The longest wait that `Retry-After` may state: SDKs ignore longer ones.
const LONGEST_WAIT: u64 = 60;

/// Charges the limits on requests, before anything of the body is read.
pub async fn begin(ctx: &mut RequestContext, book: &Book, caller: &CallerId) -> Result<(), Failure> {
    let Some(account) = book.account(caller) else { return Err(Failure::Internal("a key without an account".into())) };
    let begun = ctx.limiter.begin(book, account).await;
    match begun {
        Ok(reservation) => {
            ctx.reservation = Some(reservation);
            Ok(())
        }
        Err(refused) => {
            ctx.standings = ctx.limiter.standings(account);
            Err(refused.into())
        }
    }
}

/// Reserves what the request may use at most, once it is known to be good.
pub async fn reserve(
    ctx: &mut RequestContext,
    operation: &Operation,
    model: Option<(&ModelId, Option<u64>)>,
    document: Option<&Document>,
) -> Result<(), Failure> {
    let Some(pool) = ctx.trail.pool.clone() else { return Ok(()) };
    let Some(reservation) = &mut ctx.reservation else { return Ok(()) };
    let estimate = reservation.estimate();
    let mut most = Most::default();
    if let Some(document) = document {
        if let Some(tokens) = &operation.tokens {
            let unstated = || model.and_then(|(_, output)| output).unwrap_or(estimate.output_tokens);
            most.input = estimate.input(document.text_bytes, document.media);
            most.output = tokens.most_output(&document.value).unwrap_or_else(unstated);
        }
        most.video_seconds = operation.video.as_ref().map_or(0.0, |video| video.seconds(&document.value));
    }
    let state = ctx.snapshot.pools.iter().find(|state| state.settings.name == pool);
    if let Some(state) = state {
        ctx.work = load::expected(operation, &most, state.pool.expected_output(most.output));
        let is_affine = state.settings.balance.affinity > 0 && state.pool.endpoints().len() > 1;
        ctx.chain = document.filter(|_| is_affine).and_then(|document| load::chain(operation, &document.value));
    }
    let model = model.map(|(model, _)| model);
    let asked = Asked { model, pool: &pool, api: operation.api.as_str(), operation: &operation.id };
    let reserved = reservation.reserve(&asked, most).await;
    reserved.map_err(|refused| {
        ctx.standings = reservation.standings();
        refused.into()
    })
}

/// Counts the request against the limits of another pool, which it moves to.
pub async fn moved(ctx: &mut RequestContext, admitted: &Admitted, pool: &PoolName) -> Result<(), Failure> {
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    let asked = Asked { model: ctx.trail.model.as_ref(), pool, api: operation.api.as_str(), operation: &operation.id };
    match &mut ctx.reservation {
        Some(reservation) => reservation.moved(&asked).await.map_err(Failure::from),
        None => Ok(()),
    }
}

/// Begins to read usage in an answer.
pub fn watch(ctx: &mut RequestContext, header: &mut ResponseHeader) {
    if header.status.as_u16() / 100 != 2 || ctx.reservation.is_none() {
        return;
    }
    let form = Form::of(&header.headers);
    let withhold = ctx.withhold_usage && form == Form::Events;
    if withhold && header.remove_header(&header::CONTENT_LENGTH).is_some() {
        let _ = header.insert_header(header::TRANSFER_ENCODING, "chunked");
    }
    ctx.meter = Some(Meter::new(form, withhold));
}

/// Settles the request with what it used, as far as that was seen. Only the first call counts: it comes before the
/// client reads the end of its answer, so that its next request finds what this one gives back.
pub fn settle(ctx: &mut RequestContext) {
    if ctx.reservation.as_ref().is_none_or(Reservation::is_settled) {
        return;
    }
    let used = used(ctx);
    let Some(reservation) = &mut ctx.reservation else { return };
    if let Some((used, is_stated)) = used {
        reservation.note(used);
        let tokens = used.input > 0 || used.output > 0;
        ctx.trail.tokens = tokens.then_some(Tokens { input: used.input, output: used.output, is_stated });
    }
    let spend = reservation.spend();
    ctx.trail.spend = (spend > 0).then_some(spend);
    reservation.settle();
}

/// What was used, and whether the backend said so; nothing without an answer of the backend that is good.
fn used(ctx: &RequestContext) -> Option<(Used, bool)> {
    let (meter, admitted, reservation) = (ctx.meter.as_ref()?, ctx.admitted.as_ref()?, ctx.reservation.as_ref()?);
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    let most = reservation.most();
    let used = Used { video_seconds: most.video_seconds, answered: true, ..Used::default() };
    if let Some(usage) = meter.usage() {
        // A backend may state anything.
        let [input, output] = [usage.input, usage.output].map(|tokens| tokens.min(LARGEST));
        return Some((Used { input, output, ..used }, true));
    }
    let Some(tokens) = &operation.tokens else { return Some((used, true)) };
    let seen = (meter.text_bytes() as f64 / reservation.estimate().bytes_per_token).ceil() as u64;
    let output = match (tokens.output, ctx.event_stream) {
        (false, _) => 0,
        (true, true) => meter.counted(),
        (true, false) => seen.min(most.output),
    };
    Some((Used { input: most.input, output, ..used }, false))
}

/// Writes into an answer how the caller's limits stand.
pub fn decorate(header: &mut ResponseHeader, ctx: &RequestContext) -> Result<()> {
    let read = ctx.reservation.as_ref().map(Reservation::standings);
    let standings = read.filter(|s| !s.is_empty());
    let standings = standings.as_ref().unwrap_or(&ctx.standings);
    let shown = |s: &&Standing| s.unit.is_some() && (s.metric == Metric::Requests || s.metric.is_tokens());
    let mut list = standings.iter().filter(shown).peekable();
    if list.peek().is_none() {
        return Ok(());
    }
    // On every answer, and as long as there are limits: written without the formatter.
    let (mut policies, mut states) = (String::with_capacity(512), String::with_capacity(512));
    let mut tightest: [Option<&Standing>; 2] = [None, None];
    for standing in list {
        let Standing { name, amount, remaining, .. } = standing;
        let (window, reset) = (standing.window.as_secs(), ceiling(standing.reset));
        write_item(&mut policies, name, [(";q=", *amount), (";w=", window)]);
        if standing.metric.is_tokens() {
            policies += ";qu=\"tokens\"";
        }
        write_item(&mut states, name, [(";r=", *remaining), (";t=", reset)]);
        let place = &mut tightest[usize::from(standing.metric.is_tokens())];
        if place.is_none_or(|held| (*remaining, held.reset) < (held.remaining, standing.reset)) {
            *place = Some(standing);
        }
    }
    header.insert_header("ratelimit-policy", policies)?;
    header.insert_header("ratelimit", states)?;
    let names = [
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    ];
    for ([limit, remaining, reset], standing) in names.into_iter().zip(tightest) {
        let Some(standing) = standing else { continue };
        header.insert_header(limit, standing.amount)?;
        header.insert_header(remaining, standing.remaining)?;
        header.insert_header(reset, duration(standing.reset))?;
    }
    Ok(())
}

/// Tells a refused caller when to come back, or not to.
pub fn advise(header: &mut ResponseHeader, exceeded: &Exceeded) -> Result<()> {
    match exceeded.retry_after.map(ceiling) {
        Some(seconds) if seconds <= LONGEST_WAIT => header.insert_header(header::RETRY_AFTER, seconds.max(1)),
        _ => header.insert_header("x-should-retry", "false"),
    }
}

/// The largest number that a structured field may have (RFC 9651, 3.3.1).
const LARGEST_NUMBER: u64 = 999_999_999_999_999;

/// Appends an item to a structured list.
fn write_item(list: &mut String, name: &str, parameters: [(&str, u64); 2]) {
    *list += if list.is_empty() { "\"" } else { ", \"" };
    *list += name;
    list.push('"');
    for (parameter, value) in parameters {
        *list += parameter;
        let value = value.min(LARGEST_NUMBER);
        let mut unit = 1;
        while value / unit > 9 {
            unit *= 10;
        }
        while unit > 0 {
            list.push(char::from(b'0' + (value / unit % 10) as u8));
            unit /= 10;
        }
    }
}

pub fn ceiling(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A time as OpenAI writes it: `250ms`, `1s`, `6m0s`, `1h0m5s`.
fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{}ms", time.as_millis());
    }
    let seconds = ceiling(time);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_listed() {
        let mut list = String::new();
        write_item(&mut list, "key-requests-second", [(";q=", 10), (";w=", 1)]);
        write_item(&mut list, "b", [(";r=", 0), (";t=", u64::MAX)]);
        assert_eq!(list, r#""key-requests-second";q=10;w=1, "b";r=0;t=999999999999999"#);
    }

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let text = |millis| duration(Duration::from_millis(millis));
        assert_eq!([text(0), text(250), text(1000), text(1001)], ["0ms", "250ms", "1s", "2s"]);
        assert_eq!([text(360_000), text(3_605_000)], ["6m0s", "1h0m5s"]);
    }
}
