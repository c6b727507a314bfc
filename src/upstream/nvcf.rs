//! NVCF's own wire: how long it holds a request, and which request an envelope names.

use std::time::Duration;

use http::{HeaderMap, header};
use serde_json::Value;

use super::hold;

/// How long NVCF holds a request that does not say.
const HOLD: u64 = 60;
/// The same for one that asks for nothing but a stream.
const STREAM_HOLD: u64 = 1200;
/// What the far side and the way back take beyond the hold.
const MARGIN: Duration = Duration::from_secs(7);
/// Longest text that is kept of an envelope.
const LONGEST_TEXT: usize = 64;

/// How long NVCF may take to begin an answer, by what the request says in its headers or its envelope.
pub fn held_for(headers: &HeaderMap, envelope: Option<&Value>) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let stated = text("nvcf-poll-seconds").and_then(|text| text.trim().parse::<u64>().ok());
    let enclosed = || envelope?.pointer("/requestHeader/pollDurationSeconds")?.as_u64();
    let streams = text(header::ACCEPT.as_str()) == Some("text/event-stream");
    let seconds = stated.or_else(enclosed).unwrap_or(if streams { STREAM_HOLD } else { HOLD });
    Duration::from_secs(seconds.clamp(1, hold::LONGEST.as_secs())) + MARGIN
}

/// Finds the `reqId` of an envelope while it passes, in constant memory.
#[derive(Debug, Default)]
pub struct EnvelopeId {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The string under way, or the last one, as far as it is kept.
    text: Vec<u8>,
    /// The value under way is that of `reqId`.
    is_wanted: bool,
    is_found: bool,
}

impl EnvelopeId {
    /// Reads on; the id when it ends here.
    pub fn read(&mut self, bytes: &[u8]) -> Option<String> {
        bytes.iter().find_map(|byte| self.step(*byte))
    }

    fn step(&mut self, byte: u8) -> Option<String> {
        match byte {
            _ if self.is_found => {}
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_string => self.is_escaped = true,
            b'"' if self.in_string => {
                self.in_string = false;
                if self.depth == 1 && self.is_wanted {
                    self.is_found = true;
                    return String::from_utf8(std::mem::take(&mut self.text)).ok();
                }
            }
            _ if self.in_string => self.keep(byte),
            b'"' => {
                self.in_string = true;
                self.text.clear();
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' if self.depth == 1 => self.is_wanted = self.text == b"reqId",
            b',' if self.depth == 1 => self.is_wanted = false,
            _ => {}
        }
        None
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < LONGEST_TEXT {
            self.text.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_as_long_as_the_request_says() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &'static str)| (name.parse().unwrap(), value.parse().unwrap());
            pairs.iter().map(pair).collect::<Vec<(http::HeaderName, http::HeaderValue)>>().into_iter().collect()
        };
        let envelope = serde_json::json!({"requestHeader": {"pollDurationSeconds": 90}});
        for (pairs, envelope, seconds) in [
            (&[][..], None, 60),
            (&[("nvcf-poll-seconds", "300")], None, 300),
            (&[("nvcf-poll-seconds", "0")], None, 1),
            (&[("nvcf-poll-seconds", "99999")], None, 3600),
            (&[("accept", "text/event-stream")], None, 1200),
            (&[("accept", "text/event-stream"), ("nvcf-poll-seconds", "5")], None, 5),
            (&[("accept", "application/json")], Some(&envelope), 90),
        ] {
            assert_eq!(held_for(&headers(pairs), envelope), Duration::from_secs(seconds) + MARGIN, "{pairs:?}");
        }
    }

    #[test]
    fn the_id_is_that_of_the_envelope_and_of_nothing_in_it() {
        let body = r#"{"response":{"reqId":"no","a":["reqId",{"reqId":"no"}]},"x":"reqId","y\"":": \"reqId\"","reqId" : "yes","z":1}"#;
        for size in 1..body.len() {
            let mut reader = EnvelopeId::default();
            let found: Vec<String> = body.as_bytes().chunks(size).filter_map(|chunk| reader.read(chunk)).collect();
            assert_eq!(found, ["yes"], "{size}");
        }
        let long = format!(r#"{{"a":"{}\"{{[:,","reqId":"yes"}}"#, "x".repeat(100));
        assert_eq!(EnvelopeId::default().read(long.as_bytes()).as_deref(), Some("yes"), "{long}");
        for without in
            [r#"{"reqId":null,"status":"fulfilled"}"#, r#"["reqId","a"]"#, "", "}}}", r#"{"a":{"reqId":"no"}}"#]
        {
            assert_eq!(EnvelopeId::default().read(without.as_bytes()), None, "{without}");
        }
    }
}
