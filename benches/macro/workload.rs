//! The requests that are sent, and the answers that must come back.

use anyhow::{Result, bail};

use crate::bodies;
use crate::client::Answer;
use crate::upstream;

/// One kind of request.
pub struct Workload {
    /// Its name in the table and for `--only`.
    pub name: &'static str,
    /// Measured only when it is named.
    pub extra: bool,
    path: &'static str,
    body: Vec<u8>,
    /// What must come back.
    pub expected: Expected,
}

/// An answer as the upstream gives it.
#[derive(Clone, Copy)]
pub struct Expected {
    length: usize,
    events: usize,
}

const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const KIB: usize = 1024;

impl Workload {
    /// Every workload, those of the standard table first.
    pub fn all() -> Vec<Self> {
        let answer = Expected { length: upstream::chat_answer().len(), events: 0 };
        let events = upstream::events();
        let stream = Expected { length: events.iter().map(|e| e.len()).sum(), events: events.len() };
        let vectors = Expected { length: upstream::embeddings_answer().len(), events: 0 };
        let chat = |name, body, expected| Self { name, extra: false, path: CHAT, body, expected };
        vec![
            chat("chat-1k", bodies::chat(KIB, 2, false), answer),
            chat("chat-100k", bodies::chat(100 * KIB, 400, false), answer),
            chat("sse-20", bodies::chat(KIB, 2, true), stream),
            Self { name: "embed-32", extra: false, path: EMBEDDINGS, body: bodies::embeddings(32), expected: vectors },
            Self { extra: true, ..chat("chat-100k-blob", bodies::chat(100 * KIB, 1, false), answer) },
            Self { extra: true, ..chat("sse-20-paced", paced(&bodies::chat(KIB, 2, true)), stream) },
        ]
    }

    /// The whole request, header and body.
    pub fn request(&self, key: Option<&str>) -> Vec<u8> {
        request(self.path, key, &self.body)
    }

    /// The same with a rule broken: proof that the gateway validates.
    pub fn broken_request(&self, key: &str) -> Vec<u8> {
        let text = String::from_utf8_lossy(&self.body);
        request(self.path, Some(key), text.replacen("\"temperature\":0.2", "\"temperature\":9.9", 1).as_bytes())
    }
}

impl Expected {
    /// Whether this is the answer.
    pub fn check(&self, answer: &Answer) -> Result<()> {
        if answer.status != 200 || answer.length != self.length || answer.events != self.events {
            bail!(
                "status {}, {} bytes, {} events; expected 200, {} bytes, {} events",
                answer.status,
                answer.length,
                answer.events,
                self.length,
                self.events
            );
        }
        Ok(())
    }
}

/// Marks a request so that the upstream waits between the chunks of its answer.
fn paced(body: &[u8]) -> Vec<u8> {
    let mark = format!("{{{},", upstream::PACED);
    [mark.as_bytes(), body.get(1..).unwrap_or_default()].concat()
}

fn request(path: &str, key: Option<&str>, body: &[u8]) -> Vec<u8> {
    let credential = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: bench.local\r\naccept: application/json\r\ncontent-type: application/json\r\n\
         user-agent: OpenAI/Python 1.109.1\r\n{credential}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
