//! View: what a gate shows of itself to the state page and the metrics.

use std::time::Duration;

use super::Class;
use crate::ids::{CallerId, PoolName};

/// As many callers are listed in a [`View`].
pub(super) const CALLERS_SHOWN: usize = 20;

/// What a gate looks like at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Whose gate it is.
    pub pool: PoolName,
    /// Places that the pool has.
    pub capacity: usize,
    /// Places that are taken; more than there are after the pool shrank.
    pub in_flight: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Those with most waiting, at most 20.
    pub callers: Vec<CallerView>,
    /// Units of work that leave the pool in a second while it is full; none before that was seen.
    pub drain_rate: Option<f64>,
    /// What waits by class, the highest first.
    pub classes: [ClassView; 3],
    /// What happened so far.
    pub counts: Counts,
}

/// One caller that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerView {
    /// Who it is.
    pub caller: CallerId,
    /// Its class.
    pub class: Class,
    /// How many of its requests wait.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub oldest: Duration,
}

/// One class of those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassView {
    /// Which one.
    pub class: Class,
    /// How many of its requests wait.
    pub waiting: usize,
    /// Their estimated work.
    pub work: u64,
}

/// What happened at a gate since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that got a place.
    pub entered: u64,
    /// Those of them that waited for it.
    pub waited: u64,
    /// Refused because the line was full.
    pub queue_full: u64,
    /// Refused because too many of the caller's requests waited.
    pub caller_full: u64,
    /// Refused because the wait would have been too long.
    pub too_late: u64,
    /// Refused when the deadline passed.
    pub expired: u64,
    /// Refused to make room in the line for another's request.
    pub evicted: u64,
    /// Those whose client left the line.
    pub cancelled: u64,
}
