//! Load: how much work a request is, what conversation it goes on with, and what its end says of the endpoint.

use std::time::Duration;

use http::{HeaderMap, header};
use pingora_http::ResponseHeader;
use serde_json::Value;

use super::context::RequestContext;
use crate::balance::affinity::{self, Chain};
use crate::balance::{Report, Verdict, now};
use crate::catalogue::Operation;
use crate::failure::Failure;
use crate::quota::Most;
use crate::quota::price::Used;
use crate::signals::Signals;
use crate::upstream::{Health, Kind};

/// What a token of a prompt weighs beside one of an answer: prompts are computed many tokens at a time.
const INPUT_WEIGHT: f64 = 0.05;
/// Bytes of a bare prompt that make its first beginnings.
const BEGINNINGS: [usize; 3] = [512, 4096, 32_768];

/// Units of work of a request, as expected; one where no tokens say more.
pub fn expected(operation: &Operation, most: &Most, output: f64) -> f64 {
    match &operation.tokens {
        Some(tokens) if tokens.output => 1.0 + most.input as f64 * INPUT_WEIGHT + output,
        Some(_) => 1.0 + most.input as f64,
        None => 1.0,
    }
}

/// Units of work that a request turned out to be.
fn done(operation: &Operation, used: &Used) -> Option<f64> {
    let tokens = operation.tokens.as_ref()?;
    Some(1.0 + if tokens.output { used.input as f64 * INPUT_WEIGHT + used.output as f64 } else { used.input as f64 })
}

/// The beginnings of the conversation that a body goes on with; none for what is no conversation.
pub fn chain(operation: &Operation, body: &Value) -> Option<Chain> {
    if !operation.tokens.as_ref().is_some_and(|tokens| tokens.output) {
        return None;
    }
    if let Some(key) = body.get("prompt_cache_key").and_then(Value::as_str) {
        return Some(Chain::of_key(key));
    }
    let text = |value: &Value| {
        affinity::hash(&[value.as_str().map_or_else(|| value.to_string().into(), std::borrow::Cow::from).as_bytes()])
    };
    let next = |last: u64, this: u64| affinity::hash(&[&last.to_le_bytes(), &this.to_le_bytes()]);
    let mut last = affinity::hash(&[body.get("model").and_then(Value::as_str).unwrap_or_default().as_bytes()]);
    let mut prefixes = Vec::new();
    if let Some(messages) = body.get("messages").and_then(Value::as_array) {
        for message in messages {
            last = next(next(last, text(&message["role"])), text(&message["content"]));
            prefixes.push(last);
        }
    } else if let Some(prompt) = body.get("prompt").and_then(Value::as_str) {
        let bytes = prompt.as_bytes();
        let ends = BEGINNINGS.into_iter().filter(|end| *end < bytes.len()).chain([bytes.len()]);
        prefixes.extend(ends.map(|end| next(last, affinity::hash(&[&bytes[..end]]))));
    }
    (!prefixes.is_empty()).then(|| Chain::new(prefixes))
}

/// Ends the attempt under way, telling its endpoint how it went.
pub fn release(ctx: &mut RequestContext) {
    let Some(mut lease) = ctx.lease.take() else { return };
    match &ctx.trail.failure {
        Some(failure) => lease.judge(verdict(failure, ctx.pause)),
        None if ctx.trail.first_byte.is_some() => {
            // What was known is no work of the endpoint.
            let used = ctx.reservation.as_ref().map(|reservation| reservation.used().asked());
            let admitted = ctx.admitted.as_ref();
            let operation = admitted.map(|admitted| ctx.snapshot.catalogue.operation(admitted.operation));
            lease.finished(operation.zip(used.as_ref()).and_then(|(operation, used)| done(operation, used)));
            let has_output = operation.and_then(|o| o.tokens.as_ref()).is_some_and(|tokens| tokens.output);
            if let (true, Some(admitted), Some(used)) = (has_output, admitted, used) {
                ctx.snapshot.pool(admitted.pool).pool.note_output(used.output);
            }
        }
        None => {}
    }
}

/// What a failure says of the endpoint. Whatever a client did says nothing.
pub fn verdict(failure: &Failure, pause: Option<Duration>) -> Verdict {
    match failure.health() {
        Health::Fine => Verdict::Nothing,
        Health::Overloaded => Verdict::Overloaded(pause),
        Health::Unavailable => Verdict::Unavailable,
    }
}

/// The same for an answer of which the header is known.
pub fn verdict_of(kind: &Kind, header: &ResponseHeader) -> Verdict {
    let seen = kind.preview(header.status.as_u16(), &header.headers);
    seen.map_or(Verdict::Nothing, |(row, _)| verdict(&Failure::Upstream(row), pause(&header.headers)))
}

/// For how long an answer asks to be left alone: `Retry-After`, in seconds or as a date.
pub fn pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(wait) = text(header::RETRY_AFTER.as_str()) {
        return wait.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into())).or_else(|| {
            let until = chrono::DateTime::parse_from_rfc2822(wait).ok()?;
            (until.to_utc() - chrono::Utc::now()).to_std().ok()
        });
    }
    None
}

/// Takes what an answer says of its endpoint's load: a report for load balancers, or that nothing more is taken for now.
/// <https://docs.vllm.ai/en/latest/> calls the one ORCA; the others are OpenAI's.
pub fn hear(ctx: &mut RequestContext, headers: &HeaderMap) {
    let Some(lease) = &mut ctx.lease else { return };
    if let Some(Ok(signals)) = headers.get("endpoint-load-metrics").map(|value| Signals::orca(value.as_bytes())) {
        let Signals { running, waiting, capacity, kv_usage } = signals;
        lease.endpoint().report(Report { running, waiting, capacity, kv_usage }, now());
    }
    for (remaining, reset) in EXHAUSTED {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        if text(remaining) == Some("0")
            && let Some(time) = text(reset).and_then(span)
        {
            lease.rest(time);
        }
    }
}

/// Headers by which a backend tells what it still takes, and when it takes more.
const EXHAUSTED: [(&str, &str); 2] = [
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
];

/// A time as such headers have it: seconds, or `1h2m3s`, `6m0s`, `1.5s`, `250ms`.
fn span(text: &str) -> Option<Duration> {
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    if let Ok(number) = text.parse::<f64>() {
        return seconds(number);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (scale, length) = match unit {
            _ if unit.starts_with("ms") => (0.001, 2),
            _ if unit.starts_with('h') => (3600.0, 1),
            _ if unit.starts_with('m') => (60.0, 1),
            _ if unit.starts_with('s') => (1.0, 1),
            _ => return None,
        };
        total += number * scale;
        rest = &unit[length..];
    }
    seconds(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_as_seconds_and_dates() {
        let of = |value: &str| pause(&HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]));
        assert_eq!(of("3"), Some(Duration::from_secs(3)));
        assert!(of("Fri, 31 Dec 2100 23:59:59 GMT").is_some_and(|wait| wait > Duration::from_secs(1_000_000)));
        assert_eq!([of("soon"), of("-1"), of("Fri, 31 Dec 1999 23:59:59 GMT")], [None; 3]);
    }

    #[test]
    fn spans_are_read_with_and_without_units() {
        let of = |text: &str| span(text).map(|time| time.as_millis());
        let read = ["2", "0.5", "250ms", "1s", "6m0s", "1h0m5s", "1.5s"].map(of);
        assert_eq!(read, [2000, 500, 250, 1000, 360_000, 3_605_000, 1500].map(Some));
        assert_eq!(["", "s", "1x", "-1", "1e400", "1s2"].map(of), [Some(0), None, None, None, None, None]);
    }

    #[test]
    fn clients_mistakes_say_nothing_of_an_endpoint() {
        assert_eq!(verdict(&Failure::ClientClosed, None), Verdict::Nothing);
        assert_eq!(verdict(&Failure::ConnectFailed, None), Verdict::Unavailable);
    }
}
