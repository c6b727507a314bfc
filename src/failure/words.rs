//! Words: what each label means and what to do first, for whoever looks at failures.

use crate::upstream::Fault;

/// The labels of the gateway's own refusals; those of what comes from behind stand in `upstream/fault.rs`.
const OWN: &[(&str, &str, &str)] = &[
    (
        "malformed_request",
        "Breaks HTTP: no Host, two lengths, broken framing.",
        "Mend the client or the proxy before the gateway.",
    ),
    ("headers_too_large", "Header above `client.max_header_bytes` or `max_headers`.", "Send fewer or shorter headers."),
    ("body_too_large", "Body above the operation's limit.", "Send less, or raise `max_body_mib` of the pool."),
    ("body_incomplete", "The body ended early.", "Look at the client's network; send again."),
    ("body_timeout", "The body did not arrive in time.", "Send faster, or raise `client.body_timeout_ms`."),
    (
        "unsupported_media_type",
        "Not JSON by its `Content-Type`, or compressed.",
        "Send `application/json`, uncompressed.",
    ),
    ("malformed_json", "Not JSON, or a member twice.", "Mend the body; the message says where."),
    ("schema_violation", "Breaks the API's schema.", "Each violation names place, rule and expectation."),
    ("path_not_found", "No API has this path.", "See `/docs`."),
    ("wrong_protocol", "GRPC over HTTP/1, or no gRPC for a pool that speaks nothing else.", "See docs/grpc.md."),
    ("method_not_allowed", "The path has no such method.", "See `Allow`."),
    ("pool_not_found", "`/pools/NAME` names no pool.", "See `/v1/metadata`."),
    ("no_default_pool", "Several pools could serve it.", "Put `/pools/NAME` first, or mark one `default`."),
    ("function_unknown", "No pool has the function that a call of gRPC names.", "Check its `function-id`."),
    ("model_not_found", "No pool serves this model for this operation.", "See `/v1/models`."),
    (
        "request_not_found",
        "No such request of NVCF's, or another key made it.",
        "Poll with the key and, without Redis, at the replica that made it (docs/nvcf.md).",
    ),
    ("requests_unknown", "Redis is away, and may know who made the request.", "Poll again at once; look at Redis."),
    ("key_missing", "No key.", "Send `Authorization: Bearer KEY` or `x-api-key: KEY`."),
    ("key_invalid", "Not a key of this gateway.", "Check the key; ask for a new one."),
    ("key_expired", "The key has ended.", "Ask for a new one."),
    ("key_disabled", "The key is switched off.", "Ask its team."),
    ("not_allowed", "The key lacks the scope, model or pool.", "Ask for it; the message names it."),
    ("keys_unknown", "The records of keys were not read from Redis yet.", "Look at Redis; try again."),
    (
        "rate_limit_exceeded",
        "A limit per second, minute or hour is reached.",
        "Wait for `Retry-After`, if there is one; the message names the limit.",
    ),
    ("quota_exceeded", "A limit per day or month is reached.", "Ask for more, or wait for the next day or month."),
    ("budget_exceeded", "A limit on spend is reached.", "Ask for a larger budget."),
    ("concurrency_exceeded", "Too many requests at a time.", "Wait for one to end."),
    ("limits_unknown", "Redis is away and `quotas.on_outage` is `deny`.", "Look at Redis; try again."),
    ("client_closed", "The client left; the backend's work was dropped.", "Nothing, or raise the client's timeout."),
    ("client_stalled", "The client stopped reading its answer.", "Look at the client."),
    (
        "no_healthy_endpoint",
        "Probes fail on every endpoint, or no name resolves.",
        "Look at `/state` and the containers.",
    ),
    (
        "queue_full",
        "The pool is full, and so is its queue.",
        "Wait for `Retry-After`; add endpoints, or a pool to spill to.",
    ),
    (
        "caller_queue_full",
        "The pool is full, and too many requests of this key wait.",
        "Wait for `Retry-After`; send fewer at a time.",
    ),
    (
        "queue_timeout",
        "No place came free within `queue.timeout_ms`, or would.",
        "Wait for `Retry-After`; add endpoints.",
    ),
    (
        "deadline_unmet",
        "No place comes free before the request's `x-request-timeout`.",
        "Allow more time; add endpoints.",
    ),
    ("not_started", "The function's queue gave it to no worker in time.", "More instances, or more time."),
    (
        "not_finished",
        "A worker began and was not done in time.",
        "More time (`x-request-timeout`, `timeouts.total_ms`).",
    ),
    ("result_lost", "It ran, and its answer can not be had; the message says why.", "Ask again if it may run twice."),
    ("not_cached", "`cache-control: only-if-cached`, and not all of it is known.", "Ask without it."),
    ("model_ended", "The model reached its `end_of_life` here.", "Choose another."),
    ("model_offline", "The platform team took the model offline; the message says why.", "Read the message."),
    ("internal_error", "A defect of the gateway.", "Report it with `x-request-id`."),
];

/// What one label means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The label.
    pub label: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do first.
    pub first: &'static str,
}

/// Every label.
pub fn meanings() -> impl Iterator<Item = Meaning> {
    let own = OWN.iter().map(|(label, meaning, first)| Meaning { label, meaning, first });
    let behind = Fault::ALL.iter().map(|fault| fault.words());
    own.chain(behind.map(|words| Meaning { label: words.label, meaning: words.meaning, first: words.first }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_label_of_the_readme_has_a_meaning() {
        let readme = include_str!("../../README.md");
        let table = readme.lines().skip_while(|line| !line.starts_with("| Label | Status |")).skip(2);
        let rows = table.take_while(|line| line.starts_with("| `"));
        let told: BTreeSet<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        let known: BTreeSet<&str> = meanings().map(|meaning| meaning.label).collect();
        assert_eq!(told, known);
        assert_eq!(known.len(), meanings().count(), "each once");
    }
}
