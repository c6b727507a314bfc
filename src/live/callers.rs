//! Callers: who called in the last five minutes, in intervals of 15 seconds.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use serde::Serialize;

use super::{Ended, lock};
use crate::ids::CallerId;

/// Seconds of one interval.
const LENGTH: u64 = 15;
/// How many are kept.
const COUNT: u64 = 20;
/// The most callers of one interval; those that come later in it count together.
const MOST: usize = 256;
/// How many are shown.
const SHOWN: usize = 50;

/// What one caller used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Use {
    /// The id of its key; none for those that count together.
    pub key: Option<String>,
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    requests: u64,
    failures: u64,
    input: u64,
    output: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
    }

    fn shown(self, key: Option<String>) -> Use {
        let Self { requests, failures, input, output } = self;
        Use { key, requests, failures, input_tokens: input, output_tokens: output }
    }
}

/// Some callers by name, and the rest.
#[derive(Default)]
struct Tallies {
    named: HashMap<CallerId, Tally>,
    rest: Tally,
}

impl Tallies {
    fn add(&mut self, caller: &CallerId, tally: Tally) {
        if let Some(known) = self.named.get_mut(caller) {
            known.add(tally);
        } else if self.named.len() < MOST {
            self.named.insert(caller.clone(), tally);
        } else {
            self.rest.add(tally);
        }
    }
}

/// The interval that is under way in one shard.
#[derive(Default)]
pub(super) struct Interval {
    number: u64,
    tallies: Tallies,
}

impl Interval {
    pub(super) fn count(&mut self, ended: &Ended<'_>, second: u64, all: &Mutex<Callers>) {
        let Some(caller) = ended.caller else { return };
        if self.number != second / LENGTH {
            self.empty(all);
            self.number = second / LENGTH;
        }
        let (input, output) = ended.tokens.unwrap_or_default();
        let tally = Tally { requests: 1, failures: u64::from(ended.failure.is_some()), input, output };
        self.tallies.add(caller, tally);
    }

    pub(super) fn empty(&mut self, all: &Mutex<Callers>) {
        if self.tallies.named.is_empty() {
            return;
        }
        let mut all = lock(all);
        let Some(into) = all.interval(self.number) else { return self.tallies.named.clear() };
        for (caller, tally) in self.tallies.named.drain() {
            into.add(&caller, tally);
        }
        into.rest.add(std::mem::take(&mut self.tallies.rest));
    }
}

/// Who called of late.
#[derive(Default)]
pub struct Callers {
    /// By their numbers, the latest last.
    intervals: VecDeque<(u64, Tallies)>,
}

impl Callers {
    /// The interval of this number; none when it is too old.
    fn interval(&mut self, number: u64) -> Option<&mut Tallies> {
        let latest = self.intervals.back().map_or(0, |(latest, _)| *latest);
        if number > latest {
            self.intervals.push_back((number, Tallies::default()));
            while self.intervals.front().is_some_and(|(first, _)| first + COUNT <= number) {
                self.intervals.pop_front();
            }
        }
        self.intervals.iter_mut().find(|(known, _)| *known == number).map(|(_, tallies)| tallies)
    }

    /// Those with most requests; all others together at the end.
    pub(super) fn top(&self, now: u64) -> Vec<Use> {
        let since = (now / LENGTH).saturating_sub(COUNT - 1);
        let mut sums: HashMap<&CallerId, Tally> = HashMap::new();
        let mut rest = Tally::default();
        for (_, tallies) in self.intervals.iter().filter(|(number, _)| *number >= since) {
            for (caller, tally) in &tallies.named {
                sums.entry(caller).or_default().add(*tally);
            }
            rest.add(tallies.rest);
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_unstable_by(|(a, x), (b, y)| y.requests.cmp(&x.requests).then_with(|| a.cmp(b)));
        sums.iter().skip(SHOWN).for_each(|(_, tally)| rest.add(*tally));
        let named = sums.into_iter().take(SHOWN).map(|(caller, tally)| tally.shown(Some(caller.to_string())));
        let mut top: Vec<Use> = named.collect();
        if rest.requests > 0 {
            top.push(rest.shown(None));
        }
        top
    }
}
