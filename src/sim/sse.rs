//! The pace of an answer's body: gates before events, and endings other than the natural one.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::front::{Cut, text_of};
use super::gate::Gates;

/// How a body ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection breaks.
    Cut,
    /// Nothing more comes, but the connection stays.
    Stall,
    /// An error event, then the usual last event.
    ErrorEvent,
    /// The body is complete at this point.
    Stop,
}

/// What becomes of a body; the number counts events of a stream, else KiB, or bytes for `Stop`.
pub(super) struct Pace {
    pub(super) gate: Option<(Arc<Gates>, String)>,
    pub(super) ending: Option<(u64, Ending)>,
}

struct Paced {
    body: BodyDataStream,
    pace: Pace,
    events: bool,
    passed: u64,
}

/// One event.
pub(super) fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// One event with a name.
pub(super) fn named_event(name: &str, value: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

/// An answer made of events.
pub(super) fn stream<S>(events: S) -> Response
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let mut response = Response::new(Body::from_stream(events.map(Ok::<_, Cut>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
    response
}

/// Lets a body go on only as the pace says.
pub(super) fn paced(response: Response, pace: Pace) -> Response {
    let events = text_of(response.headers(), "content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    response.map(|body| {
        let paced = Paced { body: body.into_data_stream(), pace, events, passed: 0 };
        Body::from_stream(stream::unfold(Some(paced), |paced| async { paced?.next().await }))
    })
}

impl Paced {
    async fn next(mut self) -> Option<(Result<Bytes, Cut>, Option<Self>)> {
        if self.pace.ending.is_some_and(|(after, _)| self.passed >= self.limit(after)) {
            return self.end().await;
        }
        let data = self.body.next().await?.ok()?;
        if self.events {
            return self.next_event(data).await;
        }
        let room = self.pace.ending.map_or(u64::MAX, |(after, _)| self.limit(after) - self.passed);
        let sent = data.slice(..data.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        self.passed += sent.len() as u64;
        Some((Ok(sent), Some(self)))
    }

    async fn next_event(mut self, data: Bytes) -> Option<(Result<Bytes, Cut>, Option<Self>)> {
        self.passed += 1;
        if let Some((gates, name)) = &self.pace.gate {
            gates.pass(name, self.passed).await;
        }
        Some((Ok(data), Some(self)))
    }

    fn limit(&self, after: u64) -> u64 {
        let bytes = !self.events && !matches!(self.pace.ending, Some((_, Ending::Stop)));
        if bytes { after * 1024 } else { after }
    }

    async fn end(self) -> Option<(Result<Bytes, Cut>, Option<Self>)> {
        match self.pace.ending?.1 {
            Ending::Cut => {
                // What was sent before the break must have left the process.
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Err(Cut), None))
            }
            Ending::Stall => pending().await,
            Ending::ErrorEvent if self.events => Some((Ok(error_event()), None)),
            Ending::ErrorEvent | Ending::Stop => None,
        }
    }
}

/// The words vLLM uses when an engine fails after the 200, and the end of the stream.
fn error_event() -> Bytes {
    let status = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
    let error = json!({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError",
                                 "param": null, "code": status}});
    Bytes::from(format!("data: {error}\n\ndata: [DONE]\n\n"))
}
