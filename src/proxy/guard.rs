//! Guard: refuses requests whose form is dangerous or absurd, before anything else looks at them.

use http::{Method, Version, header};
use pingora_core::protocols::http::server::Session as ServerSession;

use super::settings::ClientSettings;
use crate::failure::Failure;

/// Checks the form of a request's header.
pub fn check(session: &ServerSession, client: &ClientSettings) -> Result<(), Failure> {
    let request = session.req_header();
    let size: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = request.uri.path_and_query().map_or(0, |p| p.as_str().len());
    if size + target > client.max_header_bytes || request.headers.len() > client.max_headers {
        return Err(Failure::HeadersTooLarge);
    }
    if matches!(request.method, Method::TRACE | Method::CONNECT) {
        return Err(Failure::MethodNotAllowed(vec![Method::GET, Method::POST, Method::OPTIONS]));
    }
    let is_http1 = request.version <= Version::HTTP_11;
    if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
        return Err(Failure::MalformedRequest("HTTP/1.1 requires a Host header"));
    }
    if is_http1 && request.headers.contains_key(header::TRANSFER_ENCODING) && declares_length(&session.to_h1_raw()) {
        return Err(Failure::MalformedRequest("Content-Length and Transfer-Encoding exclude each other"));
    }
    if request.headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Failure::MalformedRequest("more than one Authorization header"));
    }
    Ok(())
}

/// Whether the raw header names a length. pingora drops it from the parsed header when the body is chunked.
fn declares_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw.split(|b| *b == b'\n').any(|line| {
        line.len() > NAME.len()
            && line[..NAME.len()].eq_ignore_ascii_case(NAME)
            && line[NAME.len()..].trim_ascii_start().starts_with(b":")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_found_in_any_case_but_only_as_a_name() {
        assert!(declares_length(b"POST / HTTP/1.1\r\ncOnTent-Length: 5\r\n\r\n"));
        assert!(!declares_length(b"POST / HTTP/1.1\r\nx: content-length: 5\r\ncontent-length-x: 1\r\n\r\n"));
    }
}
