//! Trace: what one request went through, and the context by which others know it (W3C Trace Context).
//!
//! Steps are noted as they happen, in memory of their own that is bounded; whether anybody is told of them is decided
//! when the request has ended, so that what failed or was slow can be told of whatever was sampled.

use std::time::{Duration, Instant, SystemTime};

/// The most steps of one request that are kept; further ones are counted.
const MOST_STEPS: usize = 64;
/// The longest `tracestate` that is kept, in bytes: what the specification asks to be passed on at least.
const LONGEST_STATE: usize = 512;

/// Which traces are exported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The share of traces that begin here, 0 to 1.
    pub share: f64,
    /// Whether the decision of who sent a `traceparent` counts.
    pub follows: bool,
    /// Whether requests that failed are exported in any case.
    pub failed: bool,
    /// Requests that took longer are exported in any case.
    pub slower: Option<Duration>,
    /// Validation that takes longer has a span of its own.
    pub validation: Duration,
}

/// Where a request stands in a trace that somebody else began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: u128,
    /// The span that it was sent from.
    pub parent: u64,
    /// Whether its sender records it.
    pub is_sampled: bool,
    /// What vendors keep along, if it is within bounds.
    pub state: Option<String>,
}

impl Context {
    /// Reads `traceparent` and `tracestate`; what is malformed is as if it were absent, as the specification demands.
    pub fn read(parent: Option<&[u8]>, state: Option<&[u8]>) -> Option<Self> {
        let text = std::str::from_utf8(parent?).ok()?.trim();
        let mut parts = text.splitn(5, '-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_lower = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let are_sized = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
        if !are_sized.iter().all(|(part, length)| part.len() == *length && is_lower(part)) || version == "ff" {
            return None;
        }
        // Later versions may have more; the first has not.
        if version == "00" && parts.next().is_some() {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let parent = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let state =
            state.and_then(|state| std::str::from_utf8(state).ok()).filter(|state| state.len() <= LONGEST_STATE);
        Some(Self { trace, parent, is_sampled, state: state.map(str::to_owned) })
    }
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request was checked against its schema, which took long.
    Validation,
    /// Limits were asked for at Redis.
    Quota,
    /// It waited for a place.
    Queue,
    /// A cache was asked.
    Cache,
    /// Media were uploaded.
    Upload,
    /// An endpoint was asked.
    Attempt,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is.
    pub kind: Kind,
    /// Its span.
    pub span: u64,
    /// When it began.
    pub begun: Instant,
    /// When it ended; absent while it lasts.
    pub ended: Option<Instant>,
    /// The pool and the endpoint of an attempt.
    pub place: Option<(String, String)>,
    /// Why an attempt was made, where it was not the first: the label of the failure before, or `hedge`.
    pub reason: Option<&'static str>,
    /// How it failed: a label.
    pub error: Option<&'static str>,
    /// The status of an attempt's answer.
    pub status: Option<u16>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The trace.
    pub id: u128,
    /// The span of the request.
    pub span: u64,
    /// The span that it was sent from.
    pub parent: Option<u64>,
    /// What vendors keep along.
    pub state: Option<String>,
    /// Whether it is exported however it ends.
    pub is_sampled: bool,
    /// When it began.
    pub begun: (SystemTime, Instant),
    /// The steps so far.
    pub steps: Vec<Step>,
    /// Steps that were one too many.
    pub left_out: u32,
    /// Why the next attempt is made.
    again: Option<&'static str>,
}

impl Trace {
    /// Begins the trace of a request, or goes on with its sender's.
    pub fn begin(context: Option<Context>, sampling: &Sampling) -> Self {
        let (id, parent, state, told) = match context {
            Some(Context { trace, parent, is_sampled, state }) => (trace, Some(parent), state, Some(is_sampled)),
            None => (fastrand::u128(1..), None, None, None),
        };
        let is_sampled = told.filter(|_| sampling.follows).unwrap_or_else(|| is_within(id, sampling.share));
        let begun = (SystemTime::now(), Instant::now());
        let span = fastrand::u64(1..);
        Self { id, span, parent, state, is_sampled, begun, steps: Vec::new(), left_out: 0, again: None }
    }

    /// Whether it is exported, now that the request has ended.
    pub fn is_kept(&self, sampling: &Sampling, is_failed: bool, total: Duration) -> bool {
        let is_slow = sampling.slower.is_some_and(|slower| total >= slower);
        self.is_sampled || is_failed && sampling.failed || is_slow
    }

    /// Whether it may turn out to be exported.
    pub fn may_be_kept(&self, sampling: &Sampling) -> bool {
        self.is_sampled || sampling.failed || sampling.slower.is_some()
    }

    /// Notes a step that is over.
    pub fn note(&mut self, kind: Kind, begun: Instant) {
        if let Some(step) = self.add(kind, begun) {
            step.ended = Some(Instant::now());
        }
    }

    /// Begins a step.
    pub fn enter(&mut self, kind: Kind) {
        self.add(kind, Instant::now());
    }

    /// Ends the last step of a kind, if it lasts.
    pub fn leave(&mut self, kind: Kind) {
        if let Some(step) = self.steps.iter_mut().rev().find(|step| step.kind == kind && step.ended.is_none()) {
            step.ended = Some(Instant::now());
        }
    }

    /// Begins an attempt.
    pub fn attempt(&mut self, pool: &str, endpoint: &str) {
        let reason = self.again.take();
        if let Some(step) = self.add(Kind::Attempt, Instant::now()) {
            step.place = Some((pool.to_owned(), endpoint.to_owned()));
            step.reason = reason;
        }
    }

    /// The next attempt is made for this reason.
    pub fn again(&mut self, reason: &'static str) {
        self.again = Some(reason);
    }

    /// The header of an answer came from an endpoint.
    pub fn answered(&mut self, endpoint: &str, status: u16) {
        if let Some(step) = self.open(endpoint) {
            step.status = Some(status);
        }
    }

    /// An attempt at an endpoint is over; others go on.
    pub fn over(&mut self, endpoint: &str, error: Option<&'static str>) {
        if let Some(step) = self.open(endpoint) {
            step.error = error;
            step.ended = Some(Instant::now());
        }
    }

    /// Everything is over: what still lasts failed as the request did.
    pub fn end(&mut self, error: Option<&'static str>) {
        for step in self.steps.iter_mut().filter(|step| step.ended.is_none()) {
            step.ended = Some(Instant::now());
            step.error = step.error.or(error.filter(|_| step.kind == Kind::Attempt));
        }
    }

    /// What an endpoint is told: `traceparent` of the attempt at it. The span is the request's where none is known.
    pub fn parent_for(&self, endpoint: &str) -> String {
        let step = self.steps.iter().rev().find(|step| step.ended.is_none() && step.is_at(endpoint));
        let span = step.map_or(self.span, |step| step.span);
        format!("00-{:032x}-{span:016x}-{:02x}", self.id, u8::from(self.is_sampled))
    }

    fn open(&mut self, endpoint: &str) -> Option<&mut Step> {
        self.steps.iter_mut().rev().find(|step| step.ended.is_none() && step.is_at(endpoint))
    }

    fn add(&mut self, kind: Kind, begun: Instant) -> Option<&mut Step> {
        if self.steps.len() >= MOST_STEPS {
            self.left_out += 1;
            return None;
        }
        let span = fastrand::u64(1..);
        let step = Step { kind, span, begun, ended: None, place: None, reason: None, error: None, status: None };
        self.steps.push(step);
        self.steps.last_mut()
    }
}

impl Step {
    fn is_at(&self, endpoint: &str) -> bool {
        self.place.as_ref().is_some_and(|(_, own)| own == endpoint)
    }
}

/// Whether a trace is within a share of all: by its last 56 bits, which are random by the specification, so that everyone
/// who uses the same share decides alike.
fn is_within(id: u128, share: f64) -> bool {
    const ALL: f64 = (1_u64 << 56) as f64;
    ((id & ((1 << 56) - 1)) as f64) < share * ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLING: Sampling = Sampling {
        share: 0.0,
        follows: true,
        failed: true,
        slower: Some(Duration::from_secs(1)),
        validation: Duration::from_millis(1),
    };
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parent: &str) -> Option<Context> {
        Context::read(Some(parent.as_bytes()), Some(b"a=b"))
    }

    #[test]
    fn contexts_are_read_as_the_specification_has_them() {
        let context = read(PARENT).unwrap();
        assert_eq!(context.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((context.parent, context.is_sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(context.state.as_deref(), Some("a=b"));
        assert!(!read(&PARENT.replace("-01", "-00")).unwrap().is_sampled);
        // A later version with more in it.
        assert!(read(&(PARENT.replacen("00", "01", 1) + "-more")).is_some());
        for bad in [
            String::new(),
            PARENT.replacen("00", "ff", 1),
            PARENT.to_uppercase(),
            PARENT[..54].to_owned(),
            format!("{PARENT}-more"),
            PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            PARENT.replace('-', "_"),
        ] {
            assert_eq!(read(&bad), None, "{bad}");
        }
        let long = Context::read(Some(PARENT.as_bytes()), Some(&[b'a'; LONGEST_STATE + 1])).unwrap();
        assert_eq!(long.state, None);
    }

    #[test]
    fn a_sender_decides_and_the_share_where_there_is_none() {
        let sampled = |context: Option<Context>, sampling: &Sampling| Trace::begin(context, sampling).is_sampled;
        assert!(sampled(read(PARENT), &SAMPLING) && !sampled(None, &SAMPLING));
        assert!(!sampled(read(PARENT), &Sampling { follows: false, ..SAMPLING }));
        let all = Sampling { share: 1.0, ..SAMPLING };
        assert!(sampled(None, &all) && !sampled(read(&PARENT.replace("-01", "-00")), &all));
        let tenth = Sampling { share: 0.1, ..SAMPLING };
        let count = (0..10_000).filter(|_| sampled(None, &tenth)).count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn what_failed_or_was_slow_is_kept() {
        let trace = Trace::begin(None, &SAMPLING);
        let kept = |is_failed, ms| trace.is_kept(&SAMPLING, is_failed, Duration::from_millis(ms));
        assert!(!kept(false, 999) && kept(true, 1) && kept(false, 1000));
        assert!(!trace.is_kept(&Sampling { failed: false, slower: None, ..SAMPLING }, true, Duration::MAX));
    }

    #[test]
    fn attempts_know_their_endpoint_and_reason() {
        let mut trace = Trace::begin(read(PARENT), &SAMPLING);
        trace.attempt("p", "a:1");
        let first = trace.parent_for("a:1");
        trace.over("a:1", Some("upstream_closed"));
        trace.again("upstream_closed");
        trace.attempt("p", "b:1");
        trace.answered("b:1", 200);
        assert_ne!(trace.parent_for("b:1"), first);
        assert!(first.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && first.ends_with("-01"));
        trace.end(Some("client_closed"));
        let steps: Vec<_> = trace.steps.iter().map(|s| (s.reason, s.error, s.status, s.ended.is_some())).collect();
        assert_eq!(
            steps,
            [
                (None, Some("upstream_closed"), None, true),
                (Some("upstream_closed"), Some("client_closed"), Some(200), true)
            ]
        );
    }

    #[test]
    fn steps_are_bounded() {
        let mut trace = Trace::begin(None, &SAMPLING);
        (0..MOST_STEPS + 3).for_each(|_| trace.note(Kind::Quota, Instant::now()));
        assert_eq!((trace.steps.len(), trace.left_out), (MOST_STEPS, 3));
    }
}
