//! Usage: who used what, by key, team, organisation, model and day.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Requests that no limit refused.
    pub requests: u64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Money, in nano-units.
    pub spend: u64,
}

impl Amounts {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (held, more) in [
            (&mut self.requests, other.requests),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.spend, other.spend),
        ] {
            *held = held.saturating_add(more);
        }
    }
}

/// Whose usage, of which model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The organisation.
    pub org: Arc<str>,
    /// The team.
    pub team: Arc<str>,
    /// The key's id.
    pub key: Arc<str>,
    /// The model; empty where the request named none that is served.
    pub model: Arc<str>,
}

/// Usage by day and row.
pub type Table = BTreeMap<NaiveDate, BTreeMap<Row, Amounts>>;

/// Adds up usage: all of it when this replica is the only one, what Redis has not been told yet otherwise.
#[derive(Default)]
pub struct Ledger {
    table: Mutex<Table>,
    /// Days that changed since they were saved.
    changed: Mutex<BTreeSet<NaiveDate>>,
}

impl Ledger {
    /// Adds to a row.
    pub fn add(&self, day: NaiveDate, row: Row, amounts: &Amounts) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.entry(day).or_default().entry(row).or_default().add(amounts);
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if changed.last() != Some(&day) {
            changed.insert(day);
        }
    }

    /// The days that changed since this was asked last.
    pub fn changed(&self) -> BTreeSet<NaiveDate> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has a day saved again.
    pub fn touch(&self, day: NaiveDate) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
    }

    /// A copy of the days from `first` to `last`.
    pub fn read(&self, first: NaiveDate, last: NaiveDate) -> Table {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if first > last {
            return Table::new();
        }
        table.range(first..=last).map(|(day, rows)| (*day, rows.clone())).collect()
    }

    /// Everything, which is then forgotten here.
    pub fn take(&self) -> Table {
        std::mem::take(&mut *self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a whole table.
    pub fn merge(&self, other: Table) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for (day, rows) in other {
            let held = table.entry(day).or_default();
            for (row, amounts) in rows {
                held.entry(row).or_default().add(&amounts);
            }
        }
    }

    /// Forgets days before `first`.
    pub fn forget_before(&self, first: NaiveDate) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = table.split_off(&first);
        *table = kept;
    }
}
