//! Sections of a pool about its load.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What endpoints are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The time in which each is expected to finish the request, learned from its answers.
    #[default]
    Work,
    /// Requests of this gateway in flight.
    LeastInFlight,
    /// Turns.
    RoundRobin,
    /// Nothing.
    Random,
}

section! {
    /// Which endpoint takes a request.
    Balance {
        /// What endpoints are compared by: `work`, `least_in_flight`, `round_robin`, `random`.
        policy: Policy = Policy::Work,
        /// How many random endpoints are compared; all of a pool that has no more.
        #[schemars(range(min = 2, max = 32))]
        choices: usize = 8,
        /// Most requests in flight on one endpoint.
        #[schemars(range(min = 1, max = 100_000))]
        max_in_flight: usize = 1024,
        /// Most beginnings of conversations that are remembered, so that a chat goes on where its beginning is cached;
        /// 0 turns this off. About 40 bytes each.
        #[schemars(range(max = 10_000_000))]
        affinity: usize = 65_536,
    }
}

section! {
    /// What an endpoint's answers do to it.
    Breaker {
        /// Failures among the last ten answers that take an endpoint out.
        #[schemars(range(min = 1, max = 10))]
        failures: u32 = 5,
        /// Time until it is tried again; doubled each time that the trial fails.
        #[schemars(range(min = 10, max = 3_600_000))]
        open_ms: u64 = 2000,
        /// The longest such time, and the longest pause of an endpoint that says that it is full.
        #[schemars(range(min = 10, max = 3_600_000))]
        longest_ms: u64 = 30_000,
        /// Time in which an endpoint that came back gets its full share.
        #[schemars(range(max = 3_600_000))]
        slow_start_ms: u64 = 5000,
    }
}

section! {
    /// What endpoints report of their own load.
    Scrape {
        /// Whether they are asked. By default, pools of kind `nim` are.
        enabled: Option<bool> = None,
        /// Path of their metrics page in Prometheus's text format.
        path: String = "/v1/metrics".into(),
        /// Time between two questions.
        #[schemars(range(min = 50, max = 3_600_000))]
        interval_ms: u64 = 1000,
        /// Time for an answer.
        #[schemars(range(min = 10, max = 600_000))]
        timeout_ms: u64 = 2000,
        /// The age at which a report is used no more.
        #[schemars(range(min = 100, max = 3_600_000))]
        stale_ms: u64 = 5000,
        /// The largest page that is read.
        #[schemars(range(min = 1, max = 65_536))]
        max_kib: usize = 1024,
    }
}
