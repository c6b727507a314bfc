//! Server-sent events, cut out of a body that arrives in any pieces.

use std::borrow::Cow;

use bytes::Bytes;

use super::Tally;
use super::edges::Edges;

/// An event up to this size is read whole, and held back when it may have to be.
const LARGEST_EVENT: usize = 1024 * 1024;

/// Scans a stream of events.
#[derive(Debug)]
pub(super) struct Events {
    withhold: bool,
    lines: Lines,
    /// What there is of an incomplete event; not passed on yet where usage is withheld.
    partial: Vec<u8>,
    /// The ends of an event that outgrew the bound.
    outgrown: Option<Edges>,
    /// Whether the event before was taken out.
    dropped: bool,
}

/// Finds blank lines. Lines end with `\n`, `\r\n` or `\r`.
#[derive(Debug, Default)]
struct Lines {
    /// The line has bytes.
    started: bool,
    /// The byte before was `\r`, to which a `\n` may belong.
    after_return: bool,
}

/// What passes on of a piece: a slice of it as long as it is one.
struct Passing<'a> {
    piece: &'a Bytes,
    start: usize,
    end: usize,
    copied: Vec<u8>,
}

impl Events {
    pub(super) fn new(withhold: bool) -> Self {
        Self { withhold, lines: Lines::default(), partial: Vec::new(), outgrown: None, dropped: false }
    }

    pub(super) fn observe(&mut self, piece: &mut Option<Bytes>, end: bool, tally: &mut Tally) {
        if let Some(bytes) = piece {
            let passing = self.scan(bytes, tally);
            if self.withhold {
                *bytes = passing;
            }
        }
        if !end {
            return;
        }
        let held = self.finish(tally);
        if self.withhold {
            let passed = piece.take().unwrap_or_default();
            let all = if held.is_empty() { passed } else { [&passed[..], &held].concat().into() };
            *piece = Some(all).filter(|all| !all.is_empty());
        }
    }

    /// Reads the events that end in this piece and returns what passes on.
    fn scan(&mut self, piece: &Bytes, tally: &mut Tally) -> Bytes {
        let mut passing = Passing { piece, start: 0, end: 0, copied: Vec::new() };
        let mut start = 0;
        if self.partial.is_empty() && self.outgrown.is_none() && self.lines.completes_break(piece) {
            start = 1;
            if !self.dropped {
                passing.keep(0, 1);
            }
        }
        while let Some(end) = self.lines.blank(piece, start) {
            self.event(start, end, &mut passing, tally);
            start = end;
        }
        self.remainder(start, &mut passing, tally);
        passing.into_bytes()
    }

    /// An event that ends with the bytes from `start` to `end`.
    fn event(&mut self, start: usize, end: usize, passing: &mut Passing<'_>, tally: &mut Tally) {
        let piece = passing.piece;
        if let Some(mut edges) = self.outgrown.take() {
            edges.push(&piece.slice(start..end));
            tally.state(edges.facts().0);
            self.dropped = false;
            passing.keep(start, end);
        } else if self.partial.is_empty() {
            self.dropped = read(&piece[start..end], tally) && self.withhold;
            if !self.dropped {
                passing.keep(start, end);
            }
        } else {
            self.partial.extend_from_slice(&piece[start..end]);
            self.dropped = read(&self.partial, tally) && self.withhold;
            if self.withhold && !self.dropped {
                passing.append(&self.partial);
            }
            self.partial.clear();
        }
    }

    /// The beginning or the middle of an event that ends in a later piece.
    fn remainder(&mut self, start: usize, passing: &mut Passing<'_>, tally: &mut Tally) {
        let piece = passing.piece;
        if let Some(edges) = &mut self.outgrown {
            edges.push(&piece.slice(start..));
            passing.keep(start, piece.len());
        } else if self.partial.len() + piece.len() - start > LARGEST_EVENT {
            passing.append(&self.partial);
            passing.keep(start, piece.len());
            tally.said.iter_mut().for_each(|said| said.skip());
            let edges = self.outgrown.insert(Edges::default());
            let head = [&self.partial[..], &piece[start..]].concat();
            self.partial = Vec::new();
            tally.events += 1;
            if let Some(data) = super::first::error(&head[..head.len().min(super::LONGEST_ERROR)]) {
                tally.fail(&data);
            }
            edges.push(&head.into());
        } else {
            self.partial.extend_from_slice(&piece[start..]);
        }
    }

    /// Reads an event that the body's end completes, and returns what was held of it.
    fn finish(&mut self, tally: &mut Tally) -> Vec<u8> {
        if let Some(edges) = self.outgrown.take() {
            tally.state(edges.facts().0);
        }
        let held = std::mem::take(&mut self.partial);
        if read(&held, tally) && self.withhold { Vec::new() } else { held }
    }
}

impl Lines {
    /// Whether the first byte is the second half of the break that ended the event before.
    fn completes_break(&mut self, bytes: &[u8]) -> bool {
        let completes = self.after_return && bytes.first() == Some(&b'\n');
        self.after_return &= !completes;
        completes
    }

    /// The place behind the next blank line. Without one, all bytes are taken in.
    fn blank(&mut self, bytes: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        while let Some(length) = line_end(&bytes[at..]) {
            let feed = bytes[at + length] == b'\n';
            let second_half = feed && self.after_return && length == 0;
            let blank = !second_half && !self.started && length == 0;
            at += length + 1;
            self.after_return = !feed;
            self.started = false;
            if blank {
                return Some(at + usize::from(self.completes_break(&bytes[at..])));
            }
        }
        if at < bytes.len() {
            self.started = true;
            self.after_return = false;
        }
        None
    }
}

impl Passing<'_> {
    /// Passes a range of the piece.
    fn keep(&mut self, start: usize, end: usize) {
        if !self.copied.is_empty() {
            self.copied.extend_from_slice(&self.piece[start..end]);
        } else if self.start == self.end {
            (self.start, self.end) = (start, end);
        } else if self.end == start {
            self.end = end;
        } else {
            self.append(&self.piece[start..end]);
        }
    }

    /// Passes bytes that are not of the piece.
    fn append(&mut self, bytes: &[u8]) {
        if self.copied.is_empty() {
            self.copied.extend_from_slice(&self.piece[self.start..self.end]);
        }
        self.copied.extend_from_slice(bytes);
    }

    fn into_bytes(self) -> Bytes {
        if self.copied.is_empty() { self.piece.slice(self.start..self.end) } else { self.copied.into() }
    }
}

/// Reads one event, and tells whether it carries usage and nothing else.
fn read(event: &[u8], tally: &mut Tally) -> bool {
    let Fields { data, is_named_error } = Fields::of(event);
    let Some(data) = data else { return false };
    tally.events += 1;
    if is_named_error {
        tally.fail(&data);
    }
    tally.take(&data)
}

/// What an event consists of.
pub(super) struct Fields<'a> {
    /// The lines of data, joined; absent without any.
    pub(super) data: Option<Cow<'a, [u8]>>,
    /// Whether it is named an error.
    pub(super) is_named_error: bool,
}

impl<'a> Fields<'a> {
    /// Reads one event, whole or the beginning of one.
    pub(super) fn of(event: &'a [u8]) -> Self {
        let mut rest = event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event);
        let mut fields = Self { data: None, is_named_error: false };
        while !rest.is_empty() {
            let end = line_end(rest).unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if let Some(value) = field(line, b"data") {
                fields.data = Some(match fields.data {
                    None => Cow::Borrowed(value),
                    Some(before) => Cow::Owned([&before, value].join(&b'\n')),
                });
            } else if field(line, b"event") == Some(b"error") {
                fields.is_named_error = true;
            }
        }
        fields
    }
}

/// The value of a line that is the field `name`.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    let value = if rest.is_empty() { rest } else { rest.strip_prefix(b":")? };
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// The length of the line, where it ends.
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    let ends = |byte: &u8| *byte == b'\n' || *byte == b'\r';
    // Whole blocks are compared at once.
    let clear = bytes.chunks_exact(32).take_while(|block| !block.iter().fold(false, |any, byte| any | ends(byte)));
    let skipped = clear.count() * 32;
    bytes[skipped..].iter().position(ends).map(|at| skipped + at)
}
