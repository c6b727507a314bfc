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
    let codings: Vec<_> = request.headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    if is_http1 && let [coding, ref more @ ..] = codings[..] {
        if !more.is_empty() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Failure::MalformedRequest("the only transfer coding taken is chunked"));
        }
        if declares_length(&session.to_h1_raw()) {
            return Err(Failure::MalformedRequest("Content-Length and Transfer-Encoding exclude each other"));
        }
    }
    if !request.raw_path().iter().all(u8::is_ascii_graphic) {
        return Err(Failure::MalformedRequest("its path has bytes that must be percent-encoded"));
    }
    if misleads(request.uri.path()) {
        return Err(Failure::MalformedRequest("its path has `.` or `..` as a segment, or a control character"));
    }
    if request.headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Failure::MalformedRequest("more than one Authorization header"));
    }
    Ok(())
}

/// Whether a server behind us might read a path as another than the one that was checked.
fn misleads(path: &str) -> bool {
    let plain = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    // Some servers cut a segment at `;` before they resolve it.
    let mut segments = plain.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default());
    segments.any(|segment| matches!(segment, "." | "..")) || plain.contains(|c: char| c.is_ascii_control())
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
    fn a_path_that_misleads_is_found_however_it_is_written() {
        for path in [
            "/a/../b",
            "/a/%2e%2E/b",
            "/..",
            "/a/.",
            "/a/%2e./b",
            "/a%2f..%2Fb",
            "/a\\..\\b",
            "/a/%2e%2e%5cb",
            "/a/..;x/b",
            "/a%00",
            "/a%0d%0ab",
        ] {
            assert!(misleads(path), "{path}");
        }
        for path in ["/a/b", "/a/..b", "/a/.well-known", "/a/b..", "/v1/models/meta/llama-3.1", "//"] {
            assert!(!misleads(path), "{path}");
        }
    }

    #[test]
    fn a_length_is_found_in_any_case_but_only_as_a_name() {
        assert!(declares_length(b"POST / HTTP/1.1\r\ncOnTent-Length: 5\r\n\r\n"));
        assert!(!declares_length(b"POST / HTTP/1.1\r\nx: content-length: 5\r\ncontent-length-x: 1\r\n\r\n"));
    }
}
