//! Pace: how long to wait after a failure, and when to speak of one.

use std::fmt;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);

/// What went wrong, and the words of the library for it.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) why: Why,
    pub(super) detail: String,
}

/// The kinds of failure; the log tells of one when the kind changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// DNS knows no such name.
    NoSuchName,
    /// The name has no usable record of the wanted type.
    NoRecords,
    /// The name server answers with an error.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No connection.
    Unreachable,
    /// The system's or the cluster's settings can not be used.
    Misconfigured,
    /// The API server answers with an error.
    Status(u16),
    /// The API server no longer has the version that was to be followed.
    Gone,
    /// The API server's answer can not be read.
    Garbled,
    /// The API server's answer broke off.
    Cut,
}

impl Failure {
    pub(super) fn new(why: Why, detail: impl fmt::Display) -> Self {
        Self { why, detail: detail.to_string() }
    }

    /// Whether this is an answer: there is nothing.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self.why, Why::NoSuchName | Why::NoRecords)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchName => "no such name",
            Self::NoRecords => "no records",
            Self::Refused => "refused by the name server",
            Self::TimedOut => "timed out",
            Self::Unreachable => "unreachable",
            Self::Misconfigured => "can not be set up",
            Self::Status(code) => return write!(f, "status {code}"),
            Self::Gone => "version gone",
            Self::Garbled => "garbled",
            Self::Cut => "cut",
        })
    }
}

/// Waits that double up to a bound, each between half and the whole of itself.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

/// Tells the log of failures of one thing: once when one begins or changes, and when it ends.
#[derive(Debug)]
pub(super) struct Trouble {
    pool: String,
    subject: String,
    said: Option<Why>,
}

impl Trouble {
    pub(super) fn new(pool: &str, subject: String) -> Self {
        Self { pool: pool.to_owned(), subject, said: None }
    }

    pub(super) fn begins(&mut self, failure: &Failure) {
        if self.said.replace(failure.why) != Some(failure.why) {
            let Self { pool, subject, .. } = self;
            let Failure { why, detail } = failure;
            tracing::warn!(%pool, %subject, %why, detail, "discovery fails; the last endpoints are kept");
        }
    }

    pub(super) fn ends(&mut self) {
        if self.said.take().is_some() {
            tracing::info!(pool = %self.pool, subject = %self.subject, "discovery works again");
        }
    }
}
