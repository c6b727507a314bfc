//! The figures of one scenario under one policy.

use std::time::Duration;

use crate::load::{End, Outcome};
use crate::plan::Plan;
use crate::scenario::{CALLERS, DEADLINE, SLOTS, Scenario};

/// What the table tells.
pub struct Figures {
    pub scenario: &'static str,
    pub policy: &'static str,
    /// Requests per second.
    pub offered: f64,
    /// Answers per second that came within the deadline.
    pub goodput: f64,
    /// The same by what the endpoints could do.
    pub of_capacity: f64,
    /// Parts of all requests.
    pub refused: f64,
    pub broken: f64,
    pub late: f64,
    pub latency: Times,
    pub first: Times,
    /// The busiest endpoint by the mean of all.
    pub imbalance: f64,
    /// The best served of equal callers by the worst served.
    pub fairness: f64,
    /// Where there is a noisy caller: the part of the others' requests that was answered in time, and their times.
    pub others: Option<(f64, Times)>,
    /// Tokens found in prefix caches by what one endlessly large cache would find.
    pub hits: Option<f64>,
    pub ran_twice: usize,
    /// The 99th percentile of what requests were sent late by.
    pub lag: Duration,
}

/// Percentiles, with every request that got no answer counted at the deadline.
#[derive(Clone, Copy)]
pub struct Times {
    pub p50: Duration,
    pub p99: Duration,
}

/// What was seen of one run.
pub struct Observed {
    pub outcomes: Vec<Outcome>,
    /// What each endpoint's slots were taken for while traffic counted.
    pub busy: Vec<Duration>,
    pub hits: f64,
    pub ran_twice: usize,
}

impl Figures {
    pub fn of(scenario: &Scenario, policy: &'static str, capacity: f64, plan: &Plan, observed: &Observed) -> Self {
        let counted: Vec<&Outcome> =
            observed.outcomes.iter().filter(|o| plan.counts(&plan.requests[o.request])).collect();
        let caller = |outcome: &Outcome| plan.requests[outcome.request].caller;
        let equal: Vec<&Outcome> =
            counted.iter().copied().filter(|o| !scenario.has_noise() || caller(o) != 0).collect();
        let seconds = (plan.counted.1 - plan.counted.0).as_secs_f64();
        // By the time of the answer: what is asked for at the end of an overload is answered by idle endpoints after it.
        let is_answered = |outcome: &&Outcome| {
            let at = plan.requests[outcome.request].at + outcome.total;
            outcome.end == End::Good && (plan.counted.0..plan.counted.1).contains(&at)
        };
        let goodput = observed.outcomes.iter().filter(is_answered).count() as f64 / seconds;
        let part = |is: fn(End) -> bool| share(&counted, |outcome| is(outcome.end));
        let busy: Vec<f64> = observed.busy.iter().map(|time| time.as_secs_f64() / seconds / SLOTS as f64).collect();
        let mut lags: Vec<Duration> = counted.iter().map(|outcome| outcome.lag).collect();
        lags.sort_unstable();
        Self {
            scenario: scenario.name,
            policy,
            offered: counted.len() as f64 / seconds,
            goodput,
            of_capacity: goodput / capacity,
            refused: part(|end| matches!(end, End::Refused(_))),
            broken: part(|end| end == End::Broken),
            late: part(|end| end == End::Late),
            latency: Times::of(&counted, |outcome| Some(outcome.total)),
            first: Times::of(&counted, |outcome| outcome.first),
            imbalance: max(&busy) / (busy.iter().sum::<f64>() / busy.len() as f64),
            fairness: fairness(&equal, caller),
            others: scenario
                .has_noise()
                .then(|| (share(&equal, |o| o.end == End::Good), Times::of(&equal, |o| Some(o.total)))),
            hits: (plan.ideal_hits > 0.0).then_some(observed.hits / plan.ideal_hits),
            ran_twice: observed.ran_twice,
            lag: percentile(&lags, 0.99),
        }
    }
}

impl Times {
    fn of(outcomes: &[&Outcome], time: impl Fn(&Outcome) -> Option<Duration>) -> Self {
        let counted = |outcome: &&Outcome| match outcome.end {
            End::Good => time(outcome).unwrap_or(DEADLINE).min(DEADLINE),
            End::Late | End::Refused(_) | End::Broken => DEADLINE,
        };
        let mut times: Vec<Duration> = outcomes.iter().map(counted).collect();
        times.sort_unstable();
        Self { p50: percentile(&times, 0.5), p99: percentile(&times, 0.99) }
    }
}

fn share(outcomes: &[&Outcome], is: impl Fn(&Outcome) -> bool) -> f64 {
    outcomes.iter().filter(|outcome| is(outcome)).count() as f64 / outcomes.len().max(1) as f64
}

/// By parts of what each asked for, since chance does not give all the same in the time that counts.
fn fairness(outcomes: &[&Outcome], caller: impl Fn(&Outcome) -> usize) -> f64 {
    let of = |wanted: usize| {
        let own: Vec<&Outcome> = outcomes.iter().copied().filter(|outcome| caller(outcome) == wanted).collect();
        (!own.is_empty()).then(|| share(&own, |outcome| outcome.end == End::Good))
    };
    let parts: Vec<f64> = (0..CALLERS).filter_map(of).collect();
    max(&parts) / parts.iter().copied().fold(f64::INFINITY, f64::min)
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
