//! Usage: who used what, by key, team, organisation, model and day.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
///
/// Each key has a page of its own, so that a request finds its line without a search among all keys.
#[derive(Default)]
pub struct Ledger {
    pages: Mutex<HashMap<Names, Arc<Page>>>,
    /// Days to be saved again, although no line of theirs changed.
    unsaved: Mutex<BTreeSet<NaiveDate>>,
}

/// Organisation, team and key.
type Names = [Arc<str>; 3];

/// What one key has used.
#[derive(Default)]
pub struct Page(Mutex<Vec<Line>>);

/// What was used of one model on one day.
struct Line {
    day: NaiveDate,
    model: Arc<str>,
    amounts: Amounts,
    /// Changed since it was saved.
    is_new: bool,
}

impl Page {
    /// Adds what was used of a model.
    pub fn add(&self, day: NaiveDate, model: &str, amounts: &Amounts) {
        let mut lines = self.lines();
        let line = Line::of(&mut lines, day, model);
        line.amounts.add(amounts);
        line.is_new = true;
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// The page of a key.
    pub fn page(&self, names: Names) -> Arc<Page> {
        Arc::clone(self.pages().entry(names).or_default())
    }

    /// The days that changed since this was asked last.
    pub fn changed(&self) -> BTreeSet<NaiveDate> {
        let mut days = std::mem::take(&mut *self.unsaved());
        for page in self.pages().values() {
            let mut lines = page.lines();
            let changed = lines.iter_mut().filter(|line| line.is_new);
            days.extend(changed.map(|line| {
                line.is_new = false;
                line.day
            }));
        }
        days
    }

    /// Has a day saved again.
    pub fn touch(&self, day: NaiveDate) {
        self.unsaved().insert(day);
    }

    /// A copy of the days from `first` to `last`.
    pub fn read(&self, first: NaiveDate, last: NaiveDate) -> Table {
        let mut table = Table::new();
        for (names, page) in self.pages().iter() {
            let lines = page.lines();
            for line in lines.iter().filter(|line| first <= line.day && line.day <= last) {
                table.entry(line.day).or_default().insert(line.row(names), line.amounts);
            }
        }
        table
    }

    /// Everything, which is then forgotten here.
    pub fn take(&self) -> Table {
        let mut table = Table::new();
        self.pages().retain(|names, page| {
            for line in page.lines().drain(..) {
                table.entry(line.day).or_default().insert(line.row(names), line.amounts);
            }
            is_in_use(page)
        });
        table
    }

    /// Adds a whole table.
    pub fn merge(&self, other: Table) {
        for (day, rows) in other {
            for (row, amounts) in rows {
                let page = self.page([row.org, row.team, row.key]);
                Line::of(&mut page.lines(), day, &row.model).amounts.add(&amounts);
            }
        }
    }

    /// Forgets days before `first`.
    pub fn forget_before(&self, first: NaiveDate) {
        self.pages().retain(|_, page| {
            let mut lines = page.lines();
            lines.retain(|line| line.day >= first);
            !lines.is_empty() || is_in_use(page)
        });
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<Names, Arc<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsaved(&self) -> MutexGuard<'_, BTreeSet<NaiveDate>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a key that is known, or a request that runs, may still write on a page.
fn is_in_use(page: &Arc<Page>) -> bool {
    Arc::strong_count(page) > 1
}

impl Line {
    fn of<'a>(lines: &'a mut Vec<Self>, day: NaiveDate, model: &str) -> &'a mut Self {
        // Those of this day are the last.
        let found = lines.iter().rposition(|line| line.day == day && *line.model == *model);
        let at = found.unwrap_or_else(|| {
            lines.push(Self { day, model: model.into(), amounts: Amounts::default(), is_new: false });
            lines.len() - 1
        });
        &mut lines[at]
    }

    fn row(&self, [org, team, key]: &Names) -> Row {
        Row { org: Arc::clone(org), team: Arc::clone(team), key: Arc::clone(key), model: Arc::clone(&self.model) }
    }
}
