//! The two ends of a JSON document too large to keep, and the usage stated in one of them.

use bytes::Bytes;

use super::facts::{Finish, Stated};

/// Bytes kept from the start of a document; one within this bound is parsed whole.
const HEAD: usize = 64 * 1024;
/// Bytes kept from the end of a document.
const TAIL: usize = 16 * 1024;
/// The most places that are tried for a usage object.
const MOST_TRIES: usize = 16;

/// The first and the last bytes of what was pushed.
#[derive(Debug, Default)]
pub(super) struct Edges {
    head: Run,
    tail: Run,
    length: u64,
}

/// Consecutive bytes: shared while they are of one piece, copied once there are more.
#[derive(Debug, Default)]
struct Run {
    first: Bytes,
    joined: Vec<u8>,
}

impl Edges {
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.length += piece.len() as u64;
        let room = HEAD.saturating_sub(self.head.as_slice().len()).min(piece.len());
        self.head.push(piece.slice(..room));
        let rest = piece.slice(room..);
        if rest.len() >= TAIL {
            self.tail = Run { first: rest.slice(rest.len() - TAIL..), joined: Vec::new() };
            return;
        }
        self.tail.push(rest);
        let excess = self.tail.as_slice().len().saturating_sub(TAIL);
        // Cut now and then, so that each byte moves once.
        if excess >= TAIL {
            self.tail.joined.drain(..excess);
        }
    }

    /// The usage that the document states: as its member where it is small, else wherever it is found from the end. And why
    /// the model ended, where it is small.
    pub(super) fn facts(&self) -> (Stated, Finish) {
        let (head, tail) = (self.head.as_slice(), self.tail.as_slice());
        if tail.is_empty()
            && let Some(facts) = Stated::of_document(head)
        {
            return facts;
        }
        let found = match (tail.is_empty(), (head.len() + tail.len()) as u64 == self.length) {
            (true, _) => last_usage(head),
            (false, true) => last_usage(&[head, tail].concat()),
            (false, false) => last_usage(tail).or_else(|| last_usage(head)),
        };
        (found.unwrap_or_default(), Finish::Unknown)
    }
}

impl Run {
    fn as_slice(&self) -> &[u8] {
        if self.joined.is_empty() { &self.first } else { &self.joined }
    }

    fn push(&mut self, piece: Bytes) {
        if self.as_slice().is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            if self.joined.is_empty() {
                self.joined.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.joined.extend_from_slice(&piece);
        }
    }
}

/// The object of the last member `usage` that states tokens.
fn last_usage(text: &[u8]) -> Option<Stated> {
    const NAME: &[u8] = b"\"usage\"";
    let mut end = text.len();
    for _ in 0..MOST_TRIES {
        let at = text[..end].windows(NAME.len()).rposition(|window| window == NAME)?;
        // Behind a backslash it is part of a string.
        if !text[..at].ends_with(b"\\") {
            let value = text[at + NAME.len()..].trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            if let Some(stated) = value.and_then(Stated::of_object) {
                return Some(stated);
            }
        }
        end = at;
    }
    None
}
