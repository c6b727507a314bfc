//! Meter: how many tokens does an answer state, and how much text went by until then?
//!
//! Watches a body piece by piece in constant memory: server-sent events one at a time, one JSON document by its two
//! ends. Only where somebody keeps what is said too (`said`), a document is kept until its end, within a bound. Where the
//! gateway asked for usage on the caller's behalf, the event that carries it stays here. What tokens cost and who pays is
//! decided elsewhere.

use bytes::Bytes;
use http::{HeaderMap, header};

mod edges;
mod events;
mod facts;
pub mod first;
pub mod said;
#[cfg(test)]
mod tests;

use edges::Edges;
use events::Events;
pub use facts::Finish;
use said::Said;

/// Tokens that an answer states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that went in: the prompt, or what was embedded.
    pub input: u64,
    /// Tokens that were generated.
    pub output: u64,
}

/// How an answer is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Server-sent events.
    Events,
    /// One JSON document.
    Json,
    /// Anything else, or compressed: passes unread.
    Opaque,
}

/// Reads the token facts out of one answer.
#[derive(Debug)]
pub struct Meter {
    body: Body,
    tally: Tally,
}

#[derive(Debug)]
enum Body {
    Events(Events),
    Json(Edges),
    Opaque,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Tally {
    input: Option<u64>,
    output: Option<u64>,
    counted: u64,
    text_bytes: u64,
    /// Why the model ended.
    finish: Finish,
    complete: bool,
    /// The event by which an API ends its streams was seen.
    ended: bool,
    /// Events with data.
    events: u64,
    /// The data of the first error event, within a bound.
    error: Option<Vec<u8>>,
    /// Nothing came before it.
    is_error_only: bool,
    /// What the answer says, where somebody keeps it.
    said: Option<Box<Said>>,
}

/// Of an error event, this much is kept.
const LONGEST_ERROR: usize = 4 * 1024;

impl Form {
    /// By `Content-Type`; whatever is encoded is opaque.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        if encodings.any(|encoding| !encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
            return Self::Opaque;
        }
        let Some(stated) = headers.get(header::CONTENT_TYPE) else { return Self::Opaque };
        let kind = stated.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if kind.eq_ignore_ascii_case(b"text/event-stream") {
            return Self::Events;
        }
        let kind = kind.to_ascii_lowercase();
        let json = kind == b"application/json" || kind.starts_with(b"application/") && kind.ends_with(b"+json");
        if json { Self::Json } else { Self::Opaque }
    }
}

impl Meter {
    /// A meter for one answer. `withhold_usage`: usage was asked for on the caller's behalf, who must not see the event
    /// that carries it; the answer's length may change then.
    pub fn new(form: Form, withhold_usage: bool) -> Self {
        let body = match form {
            Form::Events => Body::Events(Events::new(withhold_usage)),
            Form::Json => Body::Json(Edges::default()),
            Form::Opaque => Body::Opaque,
        };
        Self { body, tally: Tally::default() }
    }

    /// Keeps what the answer says too, at most so many bytes of it.
    pub fn listen(&mut self, most: usize) {
        self.tally.said = Some(Box::new(Said::new(most)));
    }

    /// What the answer says, where that is kept. Nothing of it is read any more after that.
    pub fn said(&mut self) -> Option<&Said> {
        let said = self.tally.said.as_deref_mut()?;
        said.end();
        if !self.tally.complete {
            said.skip();
        }
        Some(said)
    }

    /// Observes one piece of the body and, when usage was asked for on the caller's behalf, takes the usage event out
    /// of it. What is left may be empty, or nothing at the end.
    pub fn observe(&mut self, piece: &mut Option<Bytes>, end: bool) {
        match &mut self.body {
            Body::Events(events) => events.observe(piece, end, &mut self.tally),
            Body::Json(edges) => {
                if let Some(piece) = piece {
                    self.tally.text_bytes += piece.len() as u64;
                    self.tally.said.iter_mut().for_each(|said| said.piece(piece));
                    edges.push(piece);
                }
                if end {
                    let (stated, finish) = edges.facts();
                    self.tally.state(stated);
                    self.tally.finish = finish;
                    self.tally.said.iter_mut().for_each(|said| said.end());
                    *edges = Edges::default();
                }
            }
            Body::Opaque => self.tally.said.iter_mut().for_each(|said| said.skip()),
        }
        self.tally.complete |= end;
    }

    /// The usage stated last. Zeros are zeros; nothing stated is `None`.
    pub fn usage(&self) -> Option<Usage> {
        match &self.body {
            // Some endings are not announced.
            Body::Json(edges) if !self.tally.complete => {
                let mut tally = Tally::default();
                tally.state(edges.facts().0);
                tally.usage()
            }
            _ => self.tally.usage(),
        }
    }

    /// Why the model ended, as far as that was seen.
    pub fn finish(&self) -> Finish {
        self.tally.finish
    }

    /// Tokens seen in events: one for each event with generated text.
    pub fn counted(&self) -> u64 {
        self.tally.counted
    }

    /// Bytes of generated text seen in events, or of a whole JSON document.
    pub fn text_bytes(&self) -> u64 {
        self.tally.text_bytes
    }

    /// Whether the answer came to its end: the final event or the end of the body was seen.
    pub fn is_complete(&self) -> bool {
        self.tally.complete
    }

    /// The data of the first error event, cut at a bound.
    pub fn error(&self) -> Option<&[u8]> {
        self.tally.error.as_deref()
    }

    /// Whether the stream was an error from its first event on.
    pub fn is_error_only(&self) -> bool {
        self.tally.is_error_only
    }

    /// Whether the stream announced its end, or why it fails; anything but a stream has.
    pub fn is_ended(&self) -> bool {
        !matches!(self.body, Body::Events(_)) || self.tally.ended || self.tally.error.is_some()
    }
}

impl Tally {
    fn usage(&self) -> Option<Usage> {
        let any = self.input.is_some() || self.output.is_some();
        any.then(|| Usage { input: self.input.unwrap_or(0), output: self.output.unwrap_or(0) })
    }

    /// Takes what was stated; what was not keeps its last value.
    fn state(&mut self, stated: facts::Stated) {
        self.input = stated.input().or(self.input);
        self.output = stated.output().or(self.output);
    }

    /// Takes the facts of one event's data, and tells whether the event carries usage and nothing else.
    fn take(&mut self, data: &[u8]) -> bool {
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.complete = true;
            self.ended = true;
            return false;
        }
        let Some(event) = facts::Event::read(data) else { return false };
        self.said.iter_mut().for_each(|said| said.event(data));
        let text = event.text_bytes();
        self.text_bytes += text;
        self.counted += u64::from(text > 0);
        if event.is_error() {
            self.fail(data);
        }
        self.state(event.usage());
        self.finish = event.finish().or(self.finish);
        let usage_only = event.is_usage_only();
        self.complete |= usage_only || event.is_last();
        self.ended |= event.is_last();
        usage_only
    }

    /// Notes an error event; the first one counts.
    fn fail(&mut self, data: &[u8]) {
        if self.error.is_none() {
            self.error = Some(data[..data.len().min(LONGEST_ERROR)].to_vec());
            self.is_error_only = self.events == 1;
        }
    }
}
