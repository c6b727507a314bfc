//! Limits: what a request is charged before it runs and when it ends, and what its caller reads of that.

use std::time::{Duration, Instant};

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
    let since = Instant::now();
    let begun = ctx.limiter.begin(account).await;
    ctx.was_charged(since);
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
    let since = Instant::now();
    let reserved = reservation.reserve(&asked, most).await;
    let refusal = reserved.map_err(|refused| {
        ctx.standings = reservation.standings().map(Standing::to_owned).collect();
        refused.into()
    });
    ctx.was_charged(since);
    refusal
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
    let mut meter = Meter::new(form, withhold);
    if let Some(transcript) = &ctx.transcript
        && let Some(admitted) = &ctx.admitted
    {
        let tokens = ctx.snapshot.catalogue.operation(admitted.operation).tokens.as_ref();
        // Vectors and videos are no text.
        if tokens.is_some_and(|tokens| tokens.output) {
            meter.listen(transcript.answer_bytes());
        }
    }
    ctx.meter = Some(meter);
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
    if meter.is_error_only() {
        return None;
    }
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    let most = reservation.most();
    let (known, is_known) = (ctx.known, ctx.is_known);
    let used = Used { video_seconds: most.video_seconds, answered: true, known, is_known, ..Used::default() };
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
    let mut told = Told::default();
    match &ctx.reservation {
        Some(reservation) if ctx.standings.is_empty() => reservation.standings().for_each(|s| told.add(&s)),
        _ => ctx.standings.iter().for_each(|s| told.add(s)),
    }
    told.write(header)
}

/// What an answer tells of limits. Written on every answer as long as there are any, so without the formatter.
#[derive(Default)]
struct Told {
    policies: String,
    states: String,
    /// Of requests and of tokens: amount, and what is left and for how long where least is left.
    tightest: [Option<(u64, (u64, Duration))>; 2],
}

impl Told {
    fn add<N: AsRef<str>>(&mut self, standing: &Standing<N>) {
        let Standing { amount, remaining, reset, metric, .. } = *standing;
        let is_tokens = metric.is_tokens();
        if standing.unit.is_none() || metric != Metric::Requests && !is_tokens {
            return;
        }
        if self.policies.is_empty() {
            self.policies.reserve(ROOM);
            self.states.reserve(ROOM);
        }
        let name = standing.name.as_ref();
        write_item(&mut self.policies, name, [(";q=", amount), (";w=", standing.window.as_secs())]);
        if is_tokens {
            self.policies += ";qu=\"tokens\"";
        }
        write_item(&mut self.states, name, [(";r=", remaining), (";t=", ceiling(reset))]);
        let tightest = &mut self.tightest[usize::from(is_tokens)];
        if tightest.is_none_or(|(_, least)| (remaining, reset) < least) {
            *tightest = Some((amount, (remaining, reset)));
        }
    }

    fn write(self, header: &mut ResponseHeader) -> Result<()> {
        if self.policies.is_empty() {
            return Ok(());
        }
        header.insert_header("ratelimit-policy", self.policies)?;
        header.insert_header("ratelimit", self.states)?;
        let names = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        for ([limit, remaining, reset], tightest) in names.into_iter().zip(self.tightest) {
            let Some((amount, (left, time))) = tightest else { continue };
            header.insert_header(limit, amount)?;
            header.insert_header(remaining, left)?;
            header.insert_header(reset, duration(time))?;
        }
        Ok(())
    }
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

/// Bytes for the items of about a dozen limits.
const ROOM: usize = 800;

/// Appends an item to a structured list.
fn write_item(list: &mut String, name: &str, parameters: [(&str, u64); 2]) {
    *list += if list.is_empty() { "\"" } else { ", \"" };
    *list += name;
    list.push('"');
    for (parameter, value) in parameters {
        *list += parameter;
        write_number(list, value.min(LARGEST_NUMBER));
    }
}

/// Appends a number. Dividing by ten is cheap; by a power of ten that is not known beforehand it is not.
fn write_number(text: &mut String, mut number: u64) {
    let (mut digits, mut at) = ([b'0'; 20], 20);
    while number > 0 || at == 20 {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    *text += str::from_utf8(&digits[at..]).unwrap_or_default();
}

/// A time in whole seconds, rounded up.
pub fn ceiling(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A time as OpenAI writes it: `250ms`, `1s`, `6m0s`, `1h0m5s`.
fn duration(time: Duration) -> String {
    let mut text = String::with_capacity(16);
    let mut write = |number: u64, unit: &str| {
        write_number(&mut text, number);
        text += unit;
    };
    let seconds = ceiling(time);
    if time < Duration::from_secs(1) {
        write(time.subsec_millis().into(), "ms");
        return text;
    }
    if seconds >= 3600 {
        write(seconds / 3600, "h");
    }
    if seconds >= 60 {
        write(seconds / 60 % 60, "m");
    }
    write(seconds % 60, "s");
    text
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
