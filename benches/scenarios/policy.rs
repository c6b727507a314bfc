//! The policies that are compared.

/// A way to choose endpoints.
pub struct Policy {
    /// Its name in the table and for `--policy`.
    pub name: &'static str,
    /// What it adds to the pool's configuration.
    pub yaml: &'static str,
    /// Run only when it is named.
    pub is_extra: bool,
}

impl Policy {
    /// All, in the order of the table.
    pub const ALL: &[Self] = &[
        // Places for as many requests as an endpoint has slots; what is more waits at the gateway.
        Self { name: "work+queue", yaml: "balance: {policy: work, max_in_flight: 16}", is_extra: false },
        Self { name: "work", yaml: "balance: {policy: work}", is_extra: false },
        Self { name: "work-blind", yaml: "balance: {policy: work}\n    metrics: {enabled: false}", is_extra: true },
        Self { name: "least_in_flight", yaml: "balance: {policy: least_in_flight}", is_extra: false },
        Self { name: "round_robin", yaml: "balance: {policy: round_robin}", is_extra: false },
        Self { name: "random", yaml: "balance: {policy: random}", is_extra: false },
        // Also for gateways that have no such key yet.
        Self { name: "default", yaml: "", is_extra: true },
    ];
}
