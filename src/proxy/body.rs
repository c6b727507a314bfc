//! Body: reads a request body whole, within its bounds, and hands it on with as few copies as can be.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_error::ErrorType;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Payload;
use super::settings::ClientSettings;
use crate::failure::Failure;
use crate::schema::Document;

/// Bodies up to this size are spliced by copying; larger ones go as pieces around the new part.
const SMALL: usize = 64 * 1024;
/// What a caller who wants the usage of a stream sends as `stream_options`.
const ASK_USAGE: &str = r#"{"include_usage":true}"#;
/// Stream options above this many bytes are left alone.
const LARGEST_OPTIONS: usize = 4096;
/// A body of unknown length grows in these steps, then to its limit. Untouched memory costs nothing, and growing in
/// few steps keeps the copies below a sixteenth of the body.
const STEPS: [usize; 3] = [16 * 1024, 256 * 1024, 4 * 1024 * 1024];

/// Refuses a declared length above `limit`, before anything is read.
pub fn check_declared(session: &ServerSession, limit: usize) -> Result<Option<usize>, Failure> {
    let Some(declared) = session.req_header().headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let digits = declared.as_bytes().trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Failure::MalformedRequest("Content-Length is not a number"));
    }
    match std::str::from_utf8(digits).ok().and_then(|text| text.parse::<usize>().ok()) {
        Some(length) if length <= limit => Ok(Some(length)),
        // Longer than a number holds is longer than the limit.
        _ => Err(Failure::BodyTooLarge(limit)),
    }
}

/// Tells a client that waits for it to go on.
pub async fn invite(session: &mut ServerSession) -> Result<(), Failure> {
    let request = session.req_header();
    if request.headers.contains_key(header::EXPECT) && request.version > Version::HTTP_10 {
        // An answer before the body's end closes the connection; this one only invites the body.
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await.map_err(|_| Failure::ClientClosed)?;
        session.set_close_on_response_before_downstream_finish(true);
    }
    Ok(())
}

/// Reads the whole body, of at most `limit` bytes.
pub async fn read(session: &mut ServerSession, limit: usize, client: &ClientSettings) -> Result<Bytes, Failure> {
    let declared = check_declared(session, limit)?;
    invite(session).await?;
    let deadline = Instant::now() + client.body_timeout;
    let Some(first) = next(session, deadline, client).await? else { return Ok(Bytes::new()) };
    if first.len() > limit {
        return Err(Failure::BodyTooLarge(limit));
    }
    if session.is_body_done() {
        return Ok(first);
    }
    let mut body = BytesMut::with_capacity(declared.unwrap_or(STEPS[0]).max(first.len()));
    body.extend_from_slice(&first);
    drop(first);
    while let Some(chunk) = next(session, deadline, client).await? {
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(Failure::BodyTooLarge(limit));
        }
        if length > body.capacity() {
            let capacity = STEPS.into_iter().find(|step| *step >= length).unwrap_or(limit);
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

trait ReserveExact {
    fn reserve_exact(&mut self, additional: usize);
}

impl ReserveExact for BytesMut {
    /// `BytesMut::reserve` at least doubles; a fresh buffer takes exactly what is asked.
    fn reserve_exact(&mut self, additional: usize) {
        let mut larger = Self::with_capacity(self.len() + additional);
        larger.extend_from_slice(self);
        *self = larger;
    }
}

async fn next(
    session: &mut ServerSession,
    deadline: Instant,
    client: &ClientSettings,
) -> Result<Option<Bytes>, Failure> {
    let read = timeout_at(deadline, timeout(client.body_idle_timeout, session.read_request_body())).await;
    match read {
        Ok(Ok(Ok(chunk))) => Ok(chunk),
        Ok(Ok(Err(error))) => Err(read_failure(error.etype())),
        Ok(Err(_)) | Err(_) => Err(Failure::BodyTimeout),
    }
}

/// What a failed read of a client's body means.
pub fn read_failure(error: &ErrorType) -> Failure {
    match error {
        ErrorType::ReadTimedout => Failure::BodyTimeout,
        // pingora's own name for a broken chunk, which it does not export.
        ErrorType::InvalidHTTPHeader | ErrorType::Custom("InvalidChunk") => {
            Failure::MalformedRequest("the chunked encoding of the body is broken")
        }
        _ => Failure::BodyIncomplete,
    }
}

/// Parses a body; a large one off the worker, which has other requests to serve.
pub async fn parse(body: &Bytes) -> Result<Document, Failure> {
    const WORTH_A_THREAD: usize = 1024 * 1024;
    if body.len() < WORTH_A_THREAD {
        return Ok(Document::parse(body)?);
    }
    let shared = body.clone();
    let parsed = tokio::task::spawn_blocking(move || Document::parse(&shared)).await;
    Ok(parsed.map_err(|e| Failure::Internal(e.to_string()))??)
}

/// One change of a body: these bytes in place of those. An empty range inserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    place: Range<usize>,
    text: String,
}

impl Edit {
    /// This text in place of that.
    pub fn replace(place: Range<usize>, text: String) -> Self {
        Self { place, text }
    }

    /// Another name for the model.
    pub fn model(document: &Document, name: &str) -> Option<Self> {
        Some(Self { place: document.model_span.clone()?, text: Value::from(name).to_string() })
    }

    /// Asks for the usage of a stream whose caller did not; what else the caller wants of the stream stays as it is.
    pub fn ask_usage(document: &Document) -> Option<Self> {
        if !document.stream() || document.include_usage() {
            return None;
        }
        let Some(place) = document.stream_options_span.clone() else {
            let start = document.object_start?;
            let comma = if document.value.as_object()?.is_empty() { "" } else { "," };
            return Some(Self { place: start..start, text: format!("\"stream_options\":{ASK_USAGE}{comma}") });
        };
        match document.value.get("stream_options")? {
            Value::Null => Some(Self { place, text: ASK_USAGE.to_owned() }),
            // Beyond that its strings may be stand-ins, and nobody means it.
            Value::Object(options) if place.len() <= LARGEST_OPTIONS => {
                let mut options = options.clone();
                options.insert("include_usage".into(), true.into());
                // Had no effect without usage, and would show in every event now.
                if let Some(continuous) = options.get_mut("continuous_usage_stats") {
                    *continuous = false.into();
                }
                Some(Self { place, text: Value::from(options).to_string() })
            }
            _ => None,
        }
    }
}

/// The body with some edits, the rest byte for byte as it came. No two edits may touch the same bytes.
pub fn edited(body: Bytes, mut edits: Vec<Edit>) -> Payload {
    if edits.is_empty() {
        return Payload::Buffered(vec![body]);
    }
    edits.sort_by_key(|edit| edit.place.start);
    debug_assert!(edits.is_sorted_by(|a, b| a.place.end <= b.place.start));
    let mut pieces = Vec::with_capacity(edits.len() * 2 + 1);
    let mut from = 0;
    for edit in edits {
        pieces.push(body.slice(from..edit.place.start));
        pieces.push(edit.text.into());
        from = edit.place.end;
    }
    pieces.push(body.slice(from..));
    if body.len() <= SMALL {
        return Payload::Buffered(vec![pieces.concat().into()]);
    }
    pieces.retain(|piece| !piece.is_empty());
    Payload::Buffered(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: Payload) -> String {
        let Payload::Buffered(pieces) = payload else { panic!("buffered") };
        pieces.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect()
    }

    fn changed(body: &str, edits: impl Fn(&Document) -> Vec<Option<Edit>>) -> String {
        let document = Document::parse(body.as_bytes()).unwrap();
        let edits = edits(&document).into_iter().flatten().collect();
        text(edited(Bytes::copy_from_slice(body.as_bytes()), edits))
    }

    fn renamed(body: &str) -> String {
        changed(body, |document| vec![Edit::model(document, "a\"b")])
    }

    fn asked(body: &str) -> String {
        changed(body, |document| vec![Edit::ask_usage(document)])
    }

    #[test]
    fn only_the_model_changes() {
        assert_eq!(renamed(r#"{"x": 1.0, "model" : "old" , "y":[]}"#), r#"{"x": 1.0, "model" : "a\"b" , "y":[]}"#);
        let large = format!(r#"{{"model":"old","y":"{}"}}"#, "z".repeat(SMALL));
        assert_eq!(renamed(&large), large.replace("\"old\"", r#""a\"b""#));
        assert_eq!(renamed("[1]"), "[1]");
    }

    #[test]
    fn usage_is_asked_for_where_the_caller_did_not() {
        for (body, wanted) in [
            (
                r#" { "stream": true, "model": "m"}"#,
                r#" {"stream_options":{"include_usage":true}, "stream": true, "model": "m"}"#,
            ),
            (
                r#"{"stream":true,"stream_options": null }"#,
                r#"{"stream":true,"stream_options": {"include_usage":true} }"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false},"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_obfuscation":false,"continuous_usage_stats":true}}"#,
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":false,"include_obfuscation":false,"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(asked(body), wanted);
            assert!(Document::parse(wanted.as_bytes()).unwrap().include_usage());
        }
        for same in [
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":false}"#,
            r#"{"stream":true,"stream_options":7}"#,
            "{}",
            "[]",
        ] {
            assert_eq!(asked(same), same);
        }
    }

    #[test]
    fn edits_go_together_in_any_order() {
        let small = r#"{"model":"m","stream":true,"y":"z","stream_options":{}}"#.to_owned();
        let large = small.replace('z', &"z".repeat(SMALL));
        for body in [small, large] {
            let wanted = body.replace("\"m\"", "\"n\"").replace("{}", ASK_USAGE);
            let both = changed(&body, |d| vec![Edit::model(d, "n"), Edit::ask_usage(d)]);
            let reversed = changed(&body, |d| vec![Edit::ask_usage(d), Edit::model(d, "n")]);
            assert_eq!((both.as_str(), reversed.as_str()), (wanted.as_str(), wanted.as_str()));
            assert_eq!(changed(&body, |_| Vec::new()), body);
        }
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let body = Bytes::from(format!(r#"{{"model":"m","y":"{}"}}"#, "z".repeat(SMALL)));
        let document = Document::parse(&body).unwrap();
        let edit = Edit::model(&document, "n").unwrap();
        let Payload::Buffered(pieces) = edited(body.clone(), vec![edit]) else { panic!("buffered") };
        assert_eq!(pieces[0].as_ptr(), body.as_ptr());
        assert_eq!(pieces.len(), 3);
    }
}
