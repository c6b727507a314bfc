//! Opening: begins the answer to the caller of a stream before a backend does, and keeps it alive by comments, which
//! readers of event streams drop.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header};
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_error::Result;
use pingora_http::ResponseHeader;
use tokio::time::Instant;

use super::context::RequestContext;
use super::respond;
use crate::failure::Failure;
use crate::ids::PoolIndex;

/// What the caller of a stream reads until its first event.
const COMMENT: &[u8] = b": working\n\n";
const EVENTS: &[u8] = b"text/event-stream";

/// How a stream is kept alive until its first event.
pub struct Opening {
    every: Duration,
    next: Instant,
    header: Box<ResponseHeader>,
}

impl Opening {
    /// For a request that goes to this pool, where that wants it and a stream was asked for.
    pub fn of(ctx: &RequestContext, pool: PoolIndex) -> Option<Self> {
        let every = ctx.snapshot.pool(pool).settings.stream_keepalive.filter(|_| ctx.trail.stream)?;
        let header = Box::new(head(ctx).ok()?);
        Some(Self { every, next: Instant::now() + every, header })
    }

    /// When the next comment is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// What is due now, to a client that has got no header yet or has.
    pub fn tasks(&mut self, version: Version, is_begun: bool) -> Vec<HttpTask> {
        self.next = Instant::now() + self.every;
        let comment = HttpTask::Body(Some(Bytes::from_static(COMMENT)), false);
        if is_begun {
            return vec![comment];
        }
        let mut header = self.header.clone();
        frame(&mut header, version);
        vec![HttpTask::Header(header, false), comment]
    }
}

/// Tells the caller of a stream something in a comment. The answer begins with the first one.
pub async fn say(session: &mut ServerSession, ctx: &mut RequestContext, comment: Bytes) -> Result<(), Failure> {
    let gone = |_| Failure::ClientClosed;
    if !ctx.is_opened {
        let mut header = head(ctx).map_err(|e| Failure::Internal(e.to_string()))?;
        frame(&mut header, session.req_header().version);
        session.write_response_header(Box::new(header)).await.map_err(gone)?;
        (ctx.is_opened, ctx.event_stream) = (true, true);
    }
    session.write_response_body(comment, false).await.map_err(gone)
}

/// Whether a request asks for its answer as an event stream.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).map(|accept| accept.as_bytes().to_ascii_lowercase());
    accept.is_some_and(|accept| accept.windows(EVENTS.len()).any(|part| part == EVENTS))
}

/// An answer within a stream that was begun for it: as one event, whose data it is. What is no text is written in base64.
pub struct Enclosed {
    is_begun: bool,
    /// Of what is no text, bytes that do not fill a group yet.
    rest: Option<Vec<u8>>,
}

impl Enclosed {
    /// For an answer with this header.
    pub fn of(header: &ResponseHeader) -> Self {
        let kind = header.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_text = kind.starts_with("text/") || kind.contains("json");
        Self { is_begun: false, rest: (!is_text).then(Vec::new) }
    }

    /// The next piece of the event.
    pub fn push(&mut self, piece: &[u8], is_end: bool) -> Bytes {
        let mut event = Vec::with_capacity(piece.len() + piece.len() / 2 + 32);
        if !std::mem::replace(&mut self.is_begun, true) {
            event.extend_from_slice(if self.rest.is_some() { b"event: base64\ndata: " } else { b"data: " });
        }
        match &mut self.rest {
            Some(rest) => {
                rest.extend_from_slice(piece);
                let whole = if is_end { rest.len() } else { rest.len() / GROUP * GROUP };
                event.extend_from_slice(STANDARD.encode(&rest[..whole]).as_bytes());
                rest.drain(..whole);
            }
            None => lines(&mut event, piece),
        }
        if is_end {
            event.extend_from_slice(b"\n\n");
        }
        event.into()
    }
}

/// Bytes that base64 writes without padding.
const GROUP: usize = 3;

/// Each line of a text as one of data.
fn lines(event: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = memchr::memchr2(b'\n', b'\r', text) {
        event.extend_from_slice(&text[..at]);
        event.extend_from_slice(b"\ndata: ");
        text = &text[at + 1..];
    }
    event.extend_from_slice(text);
}

/// The header of an event stream of our own.
fn head(ctx: &RequestContext) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(StatusCode::OK, Some(8))?;
    header.insert_header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")?;
    header.insert_header(header::CACHE_CONTROL, "no-cache")?;
    respond::decorate(&mut header, ctx)?;
    Ok(header)
}

/// Without a length, the end of a stream would otherwise be that of the connection.
fn frame(header: &mut ResponseHeader, version: Version) {
    if version == Version::HTTP_11 {
        let _ = header.insert_header(header::TRANSFER_ENCODING, "chunked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enclosed(kind: &str, pieces: &[&[u8]]) -> String {
        let mut header = ResponseHeader::build(200, None).unwrap();
        header.insert_header(header::CONTENT_TYPE, kind).unwrap();
        let mut enclosed = Enclosed::of(&header);
        let last = pieces.len() - 1;
        let events = pieces.iter().enumerate().flat_map(|(at, piece)| enclosed.push(piece, at == last).to_vec());
        String::from_utf8(events.collect()).unwrap()
    }

    #[test]
    fn an_answer_is_one_event_whatever_it_holds() {
        assert_eq!(enclosed("application/json", &[b"{\n\"a\":", b" 1}"]), "data: {\ndata: \"a\": 1}\n\n");
        assert_eq!(enclosed("text/plain", &[b"a\rb", b""]), "data: a\ndata: b\n\n");
        assert_eq!(enclosed("video/mp4", &[b"fram", b"e", b"s"]), "event: base64\ndata: ZnJhbWVz\n\n");
    }
}
