//! Finds the row of the table that fits what came back.

use http::HeaderMap;

use super::body::{Body, Shape};
use super::table::{self, Answer, Event, ROWS, Ran, Row, Says, Seen};
use super::{Function, Invocation, Kind};

/// What was read in an answer that failed.
#[derive(Debug)]
pub struct Reading {
    /// The row that fits.
    pub row: &'static Row,
    /// The body's shape.
    pub shape: Shape,
    /// What the body says in words, where the row wants them told.
    pub quote: Option<String>,
    /// The status to answer with where the gateway words the answer; absent where the backend's body passes.
    pub worded: Option<u16>,
    /// The status that it came with, or that an event states.
    pub status: u16,
}

/// How the caller of an operation is used to read failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The platform's own API: nothing of it is touched.
    Native,
    /// Problem details.
    Problem,
    /// Anything else.
    Other,
}

/// What of an error answer the rows look at.
struct Evidence<'a> {
    kinds: u8,
    status: u16,
    headers: &'a HeaderMap,
    body: Option<&'a Body<'a>>,
    is_dispatched: bool,
}

/// The longest text that is told in our words.
const LONGEST_QUOTE: usize = 300;
/// The status of an error event that states none.
const UNSTATED: u16 = 500;

impl Kind {
    /// Reads an answer of status 400 or above, a redirect, or a gRPC failure; nothing when no row fits. `body` may be cut
    /// at a bound.
    pub fn read_answer(&self, manner: Manner, status: u16, headers: &HeaderMap, body: &[u8]) -> Option<Reading> {
        let body = Body::read(body);
        self.read(manner, status, headers, &body, headers.contains_key("nvcf-reqid"))
    }

    /// Reads the data of an error event, which may be cut at a bound.
    pub fn read_event(&self, manner: Manner, data: &[u8]) -> Option<Reading> {
        let body = Body::read(data);
        let status = body.status.unwrap_or(UNSTATED);
        // Whoever streams is a worker.
        self.read(manner, status, &HeaderMap::new(), &body, true)
    }

    /// What status and headers alone say, and how much may have run at most.
    pub fn preview(&self, status: u16, headers: &HeaderMap) -> Option<(&'static Row, Ran)> {
        let is_dispatched = headers.contains_key("nvcf-reqid");
        let evidence = Evidence { kinds: self.bit(), status, headers, body: None, is_dispatched };
        let mut candidates: Vec<&Row> = Vec::with_capacity(16);
        for row in ROWS.iter().filter(|row| evidence.may_be(row)) {
            // What an earlier row takes never comes as far as this one.
            if !candidates.iter().any(|earlier| earlier.covers(row)) {
                candidates.push(row);
            }
            if row.is_plain() {
                let most = candidates.iter().map(|candidate| candidate.ran).max();
                return Some((row, most.unwrap_or(row.ran)));
            }
        }
        None
    }

    /// The row of an event.
    pub fn event(&self, event: Event) -> &'static Row {
        find(event, self.bit())
    }

    fn read(
        &self,
        manner: Manner,
        status: u16,
        headers: &HeaderMap,
        body: &Body<'_>,
        is_dispatched: bool,
    ) -> Option<Reading> {
        let evidence = Evidence { kinds: self.bit(), status, headers, body: Some(body), is_dispatched };
        let row = ROWS.iter().find(|row| evidence.is(row))?;
        let worded = if manner == Manner::Native { None } else { worded(row, body, manner, status) };
        let quote = worded.filter(|_| row.quotes && !body.words.is_empty()).map(|_| short(&body.words));
        Some(Reading { row, shape: body.shape, quote, worded, status })
    }

    fn bit(&self) -> u8 {
        match self {
            Self::Nim => table::NIM,
            Self::Nvcf(None) => table::NATIVE,
            Self::Nvcf(Some(Function { invocation: Invocation::Direct, .. })) => table::DIRECT,
            Self::Nvcf(Some(Function { invocation: Invocation::Pexec, .. })) => table::PEXEC,
            Self::Ngc => table::NGC,
        }
    }
}

/// The row of an event, whatever the kind of backend.
pub fn event(event: Event) -> &'static Row {
    find(event, u8::MAX)
}

fn find(event: Event, kinds: u8) -> &'static Row {
    let is_it = |row: &&Row| matches!(row.seen, Seen::Event(seen) if seen == event) && row.kinds & kinds != 0;
    // A test holds that each event has its row.
    ROWS.iter().find(is_it).unwrap_or(&ROWS[ROWS.len() - 1])
}

/// The status with which the gateway words this itself, where the backend's body is not to pass.
fn worded(row: &Row, body: &Body<'_>, manner: Manner, status: u16) -> Option<u16> {
    let is_problem = matches!(body.shape, Shape::Problem | Shape::BareProblem) && !body.words.is_empty();
    match row.answer {
        Answer::Own(own) => Some(own),
        Answer::Worded if body.kind.starts_with("urn:") || (is_problem && manner == Manner::Problem) => None,
        Answer::Worded => Some(status),
        Answer::Passed if status < 400 => None,
        Answer::Passed => matches!(body.shape, Shape::Empty | Shape::Html).then_some(status),
    }
}

/// Words on one line, within a bound.
fn short(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_QUOTE).collect()
}

impl Evidence<'_> {
    fn is(&self, row: &Row) -> bool {
        self.may_be(row)
            && self.body.is_none_or(|body| {
                row.shapes & body.shape as u16 != 0 && body.kind.contains(row.urn) && self.says(body, row.words)
            })
    }

    /// Whether the row fits as far as the header tells.
    fn may_be(&self, row: &Row) -> bool {
        let is_seen = match row.seen {
            Seen::Status(statuses) => statuses.contains(&self.status),
            Seen::Within(from, to) => (from..=to).contains(&self.status),
            Seen::Grpc(statuses) => self.status == 200 && self.grpc_is(statuses),
            Seen::Event(_) => false,
        };
        is_seen
            && row.kinds & self.kinds != 0
            && row.dispatched.is_none_or(|is| is == self.is_dispatched)
            && row.header.is_none_or(|(name, value)| {
                self.headers.get(name).is_some_and(|found| value.is_empty() || found.as_bytes() == value.as_bytes())
            })
    }

    fn grpc_is(&self, statuses: &[&str]) -> bool {
        let stated = self.headers.get("grpc-status").and_then(|status| status.to_str().ok());
        stated.is_some_and(|stated| stated != "0" && (statuses.is_empty() || statuses.contains(&stated)))
    }

    fn says(&self, body: &Body<'_>, says: Says) -> bool {
        let words: &str = match self.headers.get("grpc-message").and_then(|message| message.to_str().ok()) {
            Some(message) if self.status == 200 => message,
            _ => &body.words,
        };
        match says {
            Says::Anything => true,
            Says::Nothing => words.is_empty(),
            Says::Starts(start) => words.starts_with(start),
            Says::Has(part) => words.contains(part),
        }
    }
}

impl Row {
    /// Whether each body that fits the other fits this one too.
    fn covers(&self, other: &Self) -> bool {
        let is_wider = self.urn.is_empty() || self.urn == other.urn;
        is_wider && other.shapes & !self.shapes == 0 && matches!(self.words, Says::Anything)
    }

    /// Whether the body plays no part.
    fn is_plain(&self) -> bool {
        self.shapes == u16::MAX && self.urn.is_empty() && matches!(self.words, Says::Anything)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Fault;
    use crate::upstream::Wait;

    fn direct() -> Kind {
        Kind::Nvcf(Some(Function {
            id: "f".into(),
            version: None,
            invocation: Invocation::Direct,
            wait: Wait::default(),
        }))
    }

    fn label(kind: &Kind, status: u16, dispatched: bool, body: &str) -> &'static str {
        let mut headers = HeaderMap::new();
        if dispatched {
            headers.insert("nvcf-reqid", "1".parse().unwrap());
        }
        kind.read_answer(Manner::Other, status, &headers, body.as_bytes()).unwrap().row.fault.label()
    }

    #[test]
    fn names_are_unique_and_every_event_and_label_has_a_row() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.len() >= 60, "{}", ROWS.len());
        for fault in Fault::ALL {
            assert!(ROWS.iter().any(|row| row.fault == *fault), "{fault:?}");
        }
        let events = [
            Event::Unresolved,
            Event::ConnectRefused,
            Event::ConnectTimeout,
            Event::ConnectFailed,
            Event::TlsFailed,
            Event::RequestCut,
            Event::StreamRefused,
            Event::ClosedBeforeHeader,
            Event::ClosedWithin,
            Event::ResetBeforeHeader,
            Event::ResetWithin,
            Event::Protocol,
            Event::FirstByteTimeout,
            Event::Stalled,
            Event::TotalTimeout,
            Event::StreamUnfinished,
            Event::AnswerIncomplete,
        ];
        for seen in events {
            for kind in [Kind::Nim, Kind::Nvcf(None), direct(), Kind::Ngc] {
                assert!(matches!(kind.event(seen).seen, Seen::Event(found) if found == seen), "{seen:?}");
            }
        }
        assert!(ROWS.iter().all(|row| !row.source.is_empty()));
    }

    #[test]
    fn every_failing_status_of_every_kind_has_a_row_and_headers_alone_tell_as_much() {
        for kind in [Kind::Nim, Kind::Nvcf(None), direct(), Kind::Ngc] {
            for status in 400..600 {
                for body in
                    ["", "x", "<", "{}", "[]", r#"{"error":{}}"#, r#"{"detail":[]}"#, r#"{"status":1,"title":""}"#]
                {
                    let read = kind.read_answer(Manner::Other, status, &HeaderMap::new(), body.as_bytes()).unwrap();
                    let (_, most) = kind.preview(status, &HeaderMap::new()).unwrap();
                    assert!(read.row.ran <= most, "{kind:?} {status} {body}: {}", read.row.name);
                }
            }
        }
    }

    #[test]
    fn what_is_full_ran_nothing_as_the_header_tells() {
        for kind in [Kind::Nim, Kind::Nvcf(None), direct(), Kind::Ngc] {
            for status in [402, 429, 503, 529].into_iter().filter(|s| kind != Kind::Nim || *s != 402) {
                let (row, most) = kind.preview(status, &HeaderMap::new()).unwrap();
                let is_known = kind == Kind::Nim || status != 529;
                assert!(!is_known || most == Ran::No, "{kind:?} {status}: {}", row.name);
            }
            assert_eq!(kind.preview(500, &HeaderMap::new()).unwrap().1, Ran::Maybe);
        }
    }

    #[test]
    fn what_was_dispatched_is_the_containers() {
        let nvcf = Kind::Nvcf(None);
        assert_eq!(label(&nvcf, 404, true, ""), "inference_rejected");
        assert_eq!(label(&nvcf, 404, false, ""), "platform_rejected");
        assert_eq!(label(&nvcf, 500, true, "oops"), "inference_error");
        assert_eq!(label(&nvcf, 504, true, ""), "platform_timeout");
        assert_eq!(label(&nvcf, 503, true, r#"{"error":{"message":"full","code":503}}"#), "inference_overloaded");
    }

    #[test]
    fn the_platforms_words_do_not_reach_callers_of_a_model() {
        let body = br#"{"status":404,"title":"Not Found","detail":"Function 'x': Not found for account 'a'"}"#;
        let read = |manner| direct().read_answer(manner, 404, &HeaderMap::new(), body).unwrap();
        assert_eq!((read(Manner::Other).worded, read(Manner::Native).worded), (Some(502), None));
        let urn =
            br#"{"type":"urn:inference-service:problem-details:bad-request","title":"B","status":400,"detail":"d"}"#;
        assert_eq!(direct().read_answer(Manner::Other, 400, &HeaderMap::new(), urn).unwrap().worded, None);
    }

    #[test]
    fn quotes_are_short_and_on_one_line() {
        let detail = "a\\nb".to_owned() + &"x".repeat(5000);
        let body = format!(r#"{{"type":"about:blank","title":"Gone","status":410,"detail":"{detail}"}}"#);
        let read = Kind::Nim.read_answer(Manner::Other, 410, &HeaderMap::new(), body.as_bytes()).unwrap();
        let quote = read.quote.unwrap();
        assert!(quote.starts_with("a bx") && quote.len() == LONGEST_QUOTE, "{quote}");
    }

    #[test]
    fn events_state_their_status() {
        let of = |data: &str| {
            let read = Kind::Nim.read_event(Manner::Other, data.as_bytes()).unwrap();
            (read.row.fault.label(), read.status)
        };
        assert_eq!(of(r#"{"error":{"message":"m","code":503}}"#), ("inference_overloaded", 503));
        assert_eq!(of(r#"{"error":{"message":"m","code":"bad"}}"#), ("inference_error", 500));
        assert_eq!(
            of(r#"{"type":"urn:inference-service:problem-details:x","status":400}"#),
            ("inference_rejected", 400)
        );
    }
}
