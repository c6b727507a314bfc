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
        /// Most requests in flight on one endpoint. Of several, one may have half as many again of conversations that it
        /// has cached; their sum stays.
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
        /// Whether endpoints are asked to report with each answer too (ORCA's `endpoint-load-metrics`).
        in_answers: bool = false,
    }
}

section! {
    /// Waiting for a place when every endpoint has enough to do.
    Queue {
        /// Most requests that wait; with 0, what finds no place is refused at once.
        #[schemars(range(max = 1_000_000))]
        max: usize = 1000,
        /// Most requests of one key that wait.
        #[schemars(range(min = 1, max = 1_000_000))]
        max_per_caller: usize = 250,
        /// The longest wait, where the request asks for no shorter one.
        #[schemars(range(min = 1, max = 86_400_000))]
        timeout_ms: u64 = 60_000,
        /// Most requests in flight on the whole pool, below the sum of `balance.max_in_flight` of its endpoints.
        #[schemars(range(min = 1, max = 1_000_000_000))]
        max_in_flight: Option<usize> = None,
        /// Time between comments that tell the caller of a stream that its request still waits; 0 for none. With the
        /// first comment the answer has begun with status 200, and a later failure can only be told in an event.
        #[schemars(range(max = 3_600_000))]
        keepalive_ms: u64 = 0,
    }
}

section! {
    /// Event streams.
    Streams {
        /// Time between comments that keep the caller of a stream while its request is at work, from when it was sent
        /// until its first event; 0 for none. With the first comment the answer has begun with status 200, and a later
        /// failure can only be told in an event.
        #[schemars(range(max = 3_600_000))]
        keepalive_ms: u64 = 0,
    }
}

section! {
    /// How many requests somebody else lets pass: a platform that limits the credential. What is too much waits in the
    /// pool's line.
    Pace {
        /// Most requests a minute, of all replicas, if that is known.
        #[schemars(range(min = 1, max = 10_000_000))]
        per_minute: Option<u32> = None,
        /// Whether the rate is learned from refusals (429). By default, pools with a function do.
        learn: Option<bool> = None,
        /// Requests a minute that refusals cut to at the least.
        #[schemars(range(min = 1, max = 1_000_000))]
        least_per_minute: u32 = 6,
        /// How many more requests a minute are tried each minute after a refusal.
        #[schemars(range(min = 1, max = 1_000_000))]
        recovery_per_minute: u32 = 5,
    }
}

section! {
    /// Trying again. Only before the answer has begun, and only when nothing ran or the operation may run twice.
    Retry {
        /// Most attempts at endpoints for one request, the first included.
        #[schemars(range(min = 1, max = 20))]
        attempts: u32 = 3,
        /// Repeated attempts in 100 requests, so that an outage is not made worse.
        #[schemars(range(max = 1000))]
        budget_percent: u32 = 20,
        /// Repeated attempts per second that are always allowed.
        #[schemars(range(max = 100_000))]
        budget_per_second: u32 = 10,
    }
}

/// Why requests go to another pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpillReason {
    /// The pool has no place free, or its endpoints say that they are full.
    Overload,
    /// The pool has no endpoint that looks well, or none that could be reached.
    Outage,
    /// The model has reached its end of life in the pool.
    EndOfLife,
}

section! {
    /// Other pools for what this one can not take.
    Spill {
        /// Their names, in the order in which they are tried. They serve the same API, and the same model where
        /// requests name one. A key that may not use such a pool is not sent there.
        #[schemars(length(max = 16))]
        to: Vec<String> = Vec::new(),
        /// For which reasons: `overload`, `outage`, `end_of_life`.
        on: Vec<SpillReason> = vec![SpillReason::Overload, SpillReason::Outage, SpillReason::EndOfLife],
        /// How long a request waits for a place here before it takes a free one there.
        #[schemars(range(max = 86_400_000))]
        after_ms: u64 = 0,
    }
}

section! {
    /// A second endpoint for requests that take unusually long, where the operation may run twice: embeddings and
    /// reranking. The first answer counts, the other attempt is cancelled.
    Hedge {
        /// Whether it is done.
        enabled: bool = false,
        /// When the second attempt begins; by default, when the request takes longer than 95 in 100 do.
        #[schemars(range(min = 1, max = 600_000))]
        after_ms: Option<u64> = None,
        /// Second attempts in 100 requests.
        #[schemars(range(min = 1, max = 100))]
        budget_percent: u32 = 5,
    }
}

/// Who shares kept vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheScope {
    /// The callers of an organisation.
    Org,
    /// Everybody.
    Global,
    /// Each key for itself.
    Key,
}

section! {
    /// Vectors that were asked for before, item by item. Only for APIs that say how they may be kept.
    Cache {
        /// Whether they are kept.
        enabled: bool = false,
        /// For how long.
        #[schemars(range(min = 1, max = 31_536_000))]
        ttl_s: u64 = 86_400,
        /// By how much of that a single vector may end sooner, in percent.
        #[schemars(range(max = 90))]
        jitter_percent: u32 = 10,
        /// Who shares them: `org`, `global`, `key`. Whoever does can tell by the time of an answer what others asked.
        scope: CacheScope = CacheScope::Org,
        /// Most memory in this process; none are kept there with 0.
        #[schemars(range(max = 1_048_576))]
        max_mib: u64 = 256,
        /// Whether they are kept in Redis too, where there is one.
        redis: bool = true,
        /// The longest that a request waits for Redis before it is asked as if there were none.
        #[schemars(range(min = 1, max = 10_000))]
        budget_ms: u64 = 10,
        /// The largest vector that is kept.
        #[schemars(range(min = 1, max = 16_384))]
        max_value_kib: usize = 64,
        /// Whether images and videos in requests are kept by their content. URLs never are.
        media: bool = false,
        /// How often endpoints are asked which revision of their model they serve.
        #[schemars(range(min = 50, max = 3_600_000))]
        revision_interval_ms: u64 = 1000,
    }
}

/// Copies of some callers' requests for another pool. Their answers are dropped; nothing waits for them.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// The other pool; it serves the same API, and the same model where requests name one.
    pub pool: String,
    /// The share of callers whose requests are copied, in percent. A caller is in or out, for as long as this stays.
    #[schemars(range(min = 0, max = 100))]
    pub percent: f64,
    /// Most copies in flight; further ones are not made.
    #[serde(default = "sixteen")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_in_flight: usize,
    /// The largest body that is copied.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_body_kib: usize,
}

fn sixteen() -> usize {
    16
}

fn thousand() -> usize {
    1024
}
