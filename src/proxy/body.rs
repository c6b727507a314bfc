//! Body: reads a request body whole, within its bounds, and hands it on with as few copies as can be.

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_error::ErrorType;
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Payload;
use super::settings::ClientSettings;
use crate::failure::Failure;
use crate::schema::Document;

/// Bodies up to this size are spliced by copying; larger ones go as pieces around the new part.
const SMALL: usize = 64 * 1024;
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

/// The body with another model name, the rest byte for byte as it came.
pub fn with_model(body: Bytes, document: &Document, model: &str) -> Payload {
    let Some(span) = document.model_span.clone() else { return Payload::Buffered(vec![body]) };
    let name = serde_json::Value::from(model).to_string();
    if body.len() <= SMALL {
        let mut spliced = Vec::with_capacity(body.len() + name.len());
        spliced.extend_from_slice(&body[..span.start]);
        spliced.extend_from_slice(name.as_bytes());
        spliced.extend_from_slice(&body[span.end..]);
        return Payload::Buffered(vec![spliced.into()]);
    }
    Payload::Buffered(vec![body.slice(..span.start), name.into(), body.slice(span.end..)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(body: &str) -> String {
        let document = Document::parse(body.as_bytes()).unwrap();
        let payload = with_model(Bytes::copy_from_slice(body.as_bytes()), &document, "a\"b");
        let Payload::Buffered(pieces) = payload else { panic!("buffered") };
        pieces.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect()
    }

    #[test]
    fn only_the_model_changes() {
        assert_eq!(spliced(r#"{"x": 1.0, "model" : "old" , "y":[]}"#), r#"{"x": 1.0, "model" : "a\"b" , "y":[]}"#);
        let large = format!(r#"{{"model":"old","y":"{}"}}"#, "z".repeat(SMALL));
        assert_eq!(spliced(&large), large.replace("\"old\"", r#""a\"b""#));
    }
}
