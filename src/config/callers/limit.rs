//! Limits: entries of records into limits.

use std::collections::{HashMap, HashSet};

use super::{Finding, Known, is_any};
use crate::config::file;
use crate::quota::limit::{Filter, Limit, Metric, Pattern, Unit};
use crate::quota::price::nano;

/// Reads limits, and remembers which patterns fit something.
pub(super) struct Limits<'a> {
    known: &'a Known,
    fits: HashMap<(Kind, String), bool>,
    /// Of patterns for models: whether they fit one that has a price.
    priced: HashMap<String, bool>,
}

/// What a pattern is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Model,
    Pool,
    Operation,
}

impl<'a> Limits<'a> {
    pub(super) fn new(known: &'a Known) -> Self {
        Self { known, fits: HashMap::new(), priced: HashMap::new() }
    }

    /// The limits of the subject at `pointer`, but for those that are wrong in themselves.
    pub(super) fn read(&mut self, pointer: &str, limits: Vec<file::Limit>, findings: &mut Vec<Finding>) -> Vec<Limit> {
        // As the limiter tells counts apart.
        let mut seen = HashSet::new();
        let mut read = Vec::with_capacity(limits.len());
        for (at, limit) in limits.into_iter().enumerate() {
            let pointer = format!("{pointer}/limits/{at}");
            let amount = amount(&limit).and_then(|amount| Ok((amount, unit(&limit, amount.0)?)));
            let counts_cached = limit.count_cached.unwrap_or(true);
            let filter = self.filter(&pointer, limit, findings);
            match amount {
                Ok(((metric, _), unit)) if !seen.insert((metric, unit, filter.to_string(), counts_cached)) => {
                    let reason = "the same limit stands here already, with another amount or the same; leave one out";
                    findings.push(Finding::wrong(pointer, reason));
                }
                Ok(((metric, amount), unit)) => {
                    if metric == Metric::Spend && !self.has_price(&filter) {
                        let reason = "no price is for any model that this limit fits, so nothing would ever count";
                        findings.push(Finding::dangling(format!("{pointer}/spend"), reason));
                    }
                    read.push(Limit { metric, amount, unit, filter, counts_cached });
                }
                Err((below, reason)) => findings.push(Finding::wrong(format!("{pointer}{below}"), reason)),
            }
        }
        read
    }

    /// The order of patterns makes no other limit of it.
    fn filter(&mut self, pointer: &str, limit: file::Limit, findings: &mut Vec<Finding>) -> Filter {
        let mut patterns = |kind, below, patterns: Vec<String>| -> Vec<Pattern> {
            for (i, pattern) in patterns.iter().enumerate().filter(|(_, p)| !self.is_known(kind, p)) {
                let reason = match kind {
                    Kind::Model => format!("no pool lists a model that fits {pattern}"),
                    Kind::Pool => format!("no pool fits {pattern}"),
                    Kind::Operation => format!("the catalogue has no operation that fits {pattern}"),
                };
                findings.push(Finding::dangling(format!("{pointer}/{below}/{i}"), reason));
            }
            let mut patterns = patterns;
            patterns.sort_unstable();
            patterns.dedup();
            patterns.into_iter().map(Pattern).collect()
        };
        Filter {
            models: patterns(Kind::Model, "models", limit.models),
            pools: patterns(Kind::Pool, "pools", limit.pools),
            operations: patterns(Kind::Operation, "operations", limit.operations),
        }
    }

    /// Whether anything that the limit is for can cost something, as far as its models tell.
    fn has_price(&mut self, filter: &Filter) -> bool {
        if filter.models.is_empty() {
            return !self.known.priced.is_empty();
        }
        let known = self.known;
        filter.models.iter().any(|pattern| {
            let fits = || known.priced.iter().any(|model| pattern.fits(model));
            *self.priced.entry(pattern.0.clone()).or_insert_with(fits)
        })
    }

    fn is_known(&mut self, kind: Kind, pattern: &str) -> bool {
        let known = self.known;
        *self.fits.entry((kind, pattern.to_owned())).or_insert_with_key(|(kind, pattern)| {
            let names = match kind {
                Kind::Model => &known.models,
                Kind::Pool => &known.pools,
                Kind::Operation => &known.operations,
            };
            is_any(names, &Pattern(pattern.clone()))
        })
    }
}

/// What is wrong with an entry: the key below it, and the reason.
type Wrong = (String, String);

/// The one thing that an entry counts, and how much.
fn amount(limit: &file::Limit) -> Result<(Metric, u64), Wrong> {
    let spend = limit.spend.map(|units| nano(units).filter(|nano| *nano > 0 || units == 0.0));
    let stated = [
        (Metric::Requests, limit.requests.map(Some)),
        (Metric::InputTokens, limit.input_tokens.map(Some)),
        (Metric::OutputTokens, limit.output_tokens.map(Some)),
        (Metric::TotalTokens, limit.total_tokens.map(Some)),
        (Metric::Concurrency, limit.concurrency.map(Some)),
        (Metric::Spend, spend),
    ];
    let mut stated = stated.into_iter().filter_map(|(metric, amount)| Some((metric, amount?)));
    let Some((metric, amount)) = stated.next() else {
        let all = Metric::ALL.map(Metric::word).join(", ");
        return Err((String::new(), format!("a limit counts something; expected one of {all}")));
    };
    if let Some((second, _)) = stated.next() {
        let reason = format!("a limit counts one thing, and this one has {} already", metric.word());
        return Err((format!("/{}", second.word()), reason));
    }
    let amount = amount.ok_or_else(|| {
        (format!("/{}", metric.word()), "expected 0, or a number from 0.000000001 to 9000000".to_owned())
    })?;
    Ok((metric, amount))
}

fn unit(limit: &file::Limit, metric: Metric) -> Result<Option<Unit>, Wrong> {
    match (limit.per, metric) {
        (_, Metric::Concurrency) if limit.count_cached.is_some() => {
            Err(("/count_cached".into(), "concurrency counts whatever is under way; leave this out".into()))
        }
        (None, Metric::Concurrency) => Ok(None),
        (Some(_), Metric::Concurrency) => {
            Err(("/per".into(), "concurrency counts requests at the same time; leave this out".into()))
        }
        (None, _) => Err((String::new(), "the key per is required: second, minute, hour, day or month".into())),
        (Some(per), _) => Ok(Some(match per {
            file::Per::Second => Unit::Second,
            file::Per::Minute => Unit::Minute,
            file::Per::Hour => Unit::Hour,
            file::Per::Day => Unit::Day,
            file::Per::Month => Unit::Month,
        })),
    }
}
