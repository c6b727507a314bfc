//! The first event of a stream: is it all there, and is it an error? Looked at before anything of the stream is sent.

use std::borrow::Cow;

use super::events::{Fields, line_end};
use super::facts;

/// Whether the first event is all there, or a comment comes before it: whoever sends one wants its reader to know that
/// the stream lives.
pub fn is_decided(bytes: &[u8]) -> bool {
    let mut rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut is_begun = false;
    while let Some(length) = line_end(rest) {
        if length == 0 && is_begun || rest.first() == Some(&b':') {
            return true;
        }
        // The second half of a break is no line of its own.
        let is_pair = rest[length..].starts_with(b"\r\n");
        is_begun |= length > 0;
        rest = &rest[length + 1 + usize::from(is_pair)..];
    }
    rest.first() == Some(&b':')
}

/// The data of the first event, where it is an error. What there is of it may be its beginning only.
pub fn error(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    // Hardly any event gets further than here.
    if !has(bytes, b"error") && !has(bytes, b"\"urn:") {
        return None;
    }
    let Fields { data, is_named_error } = Fields::of(first(bytes));
    let data = data?;
    let is_error = match facts::Event::read(data.trim_ascii()) {
        Some(event) => event.is_error(),
        None => begins_as_error(&data),
    };
    (is_error || is_named_error).then_some(data)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Cuts off what comes after the first event.
fn first(bytes: &[u8]) -> &[u8] {
    let mut at = 0;
    let mut is_begun = false;
    while let Some(length) = line_end(&bytes[at..]) {
        if length == 0 && is_begun {
            return &bytes[..at];
        }
        let is_pair = bytes[at + length..].starts_with(b"\r\n");
        is_begun |= length > 0;
        at += length + 1 + usize::from(is_pair);
    }
    bytes
}

/// Of data that is not whole, the first member tells.
fn begins_as_error(data: &[u8]) -> bool {
    let Some(member) = data.trim_ascii_start().strip_prefix(b"{") else { return false };
    let member = member.trim_ascii_start();
    member.starts_with(b"\"error\"")
        || member.starts_with(b"\"type\":\"urn:")
        || member.starts_with(b"\"object\":\"error\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_awaited_and_comments_are_not() {
        for (bytes, decided) in [
            ("", false),
            ("data: {}", false),
            ("data: {}\n", false),
            ("data: {}\n\n", true),
            ("data: {}\r\n\r\n", true),
            ("data: {}\r\r", true),
            ("\n\ndata: {}\n", false),
            ("event: x\ndata: {}\n\ndata", true),
            (":", true),
            (": waiting\n\n", true),
            ("event: x\n: c", true),
        ] {
            assert_eq!(is_decided(bytes.as_bytes()), decided, "{bytes:?}");
        }
    }

    #[test]
    fn errors_are_found_in_the_first_event_only() {
        let of = |text: &str| error(text.as_bytes()).map(|data| String::from_utf8_lossy(&data).into_owned());
        assert_eq!(of("data: {\"choices\":[]}\n\ndata: {\"error\":{}}\n\n"), None);
        assert_eq!(of("data: {\"choices\":[{\"delta\":{\"content\":\"error\"}}]}\n\n"), None);
        assert_eq!(of("data: {\"error\":null,\"choices\":[]}\n\n"), None);
        assert_eq!(of("data: {\"error\":{\"code\":1}}\n\ndata: [DONE]\n\n").unwrap(), "{\"error\":{\"code\":1}}");
        assert_eq!(
            of("data:{\"type\":\"urn:inference-service:x\"}\r\n\r\n").unwrap(),
            "{\"type\":\"urn:inference-service:x\"}"
        );
        assert_eq!(of("event: error\ndata: {\"a\":1}\n\n").unwrap(), "{\"a\":1}");
        assert!(of("data: {\"error\":{\"message\":\"xxxxx").is_some(), "the beginning suffices");
        assert!(of("data: {\"x\":{\"error\":\"xxxxx").is_none());
    }
}
