//! Usage: who used what, summed as asked, as JSON or CSV.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State as Extract;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use chrono::{Days, NaiveDate, Utc};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::State;
use super::problem::{Problem, query};
use crate::quota::price::units;
use crate::quota::shared::read_usage;
use crate::quota::usage::{Amounts, Row, Table};
use crate::store::Store;

/// The most days that one answer covers.
const DAYS: i64 = 400;
/// The most rows that one answer has.
const ROWS: usize = 100_000;

/// How many readings from Redis run at once.
const AT_ONCE: usize = 16;
/// The most days that one of them covers.
const LONGEST: usize = 25;
/// How many sums are made at a time; others wait for their turn.
static TURNS: Semaphore = Semaphore::const_new(2);

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Key,
    Team,
    Org,
    Model,
    Day,
}

impl By {
    const ALL: [Self; 5] = [Self::Key, Self::Team, Self::Org, Self::Model, Self::Day];

    fn word(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Team => "team",
            Self::Org => "org",
            Self::Model => "model",
            Self::Day => "day",
        }
    }

    fn of(self, day: NaiveDate, row: &Row) -> Arc<str> {
        match self {
            Self::Key => Arc::clone(&row.key),
            Self::Team => Arc::clone(&row.team),
            Self::Org => Arc::clone(&row.org),
            Self::Model => Arc::clone(&row.model),
            Self::Day => day.to_string().into(),
        }
    }
}

/// What was asked for.
struct Asked {
    from: NaiveDate,
    to: NaiveDate,
    by: Vec<By>,
    only: Vec<(By, String)>,
    is_csv: bool,
}

impl Asked {
    fn read(uri: &Uri) -> Result<Self, Problem> {
        let asked = query(uri, &["from", "to", "by", "org", "team", "key", "model", "format"])?;
        let today = Utc::now().date_naive();
        let day = |name: &str| {
            let Some(text) = asked.get(name) else { return Ok(today) };
            let is_plain = text.len() == 10;
            let day = text.parse().ok().filter(|_| is_plain);
            day.ok_or_else(|| Problem::parameter(name, "expected a day such as 2027-01-31"))
        };
        let (from, to) = (day("from")?, day("to")?);
        if from > to {
            return Err(Problem::parameter("from", "expected a day that is not after `to`"));
        }
        if (to - from).num_days() >= DAYS {
            return Err(Problem::parameter("from", format!("expected at most {DAYS} days from `from` to `to`")));
        }
        let mut by = Vec::new();
        for word in asked.get("by").map_or("key,model,day", String::as_str).split(',').filter(|word| !word.is_empty()) {
            let Some(found) = By::ALL.into_iter().find(|by| by.word() == word) else {
                let all = By::ALL.map(By::word).join(", ");
                return Err(Problem::parameter("by", format!("expected some of {all}, with commas between")));
            };
            if by.contains(&found) {
                return Err(Problem::parameter("by", format!("expected {word} once")));
            }
            by.push(found);
        }
        let only = [By::Org, By::Team, By::Key, By::Model];
        let only = only.into_iter().filter_map(|by| Some((by, asked.get(by.word())?.clone()))).collect();
        let is_csv = match asked.get("format").map_or("json", String::as_str) {
            "json" => false,
            "csv" => true,
            _ => return Err(Problem::parameter("format", "expected json or csv")),
        };
        Ok(Self { from, to, by, only, is_csv })
    }

    fn fits(&self, day: NaiveDate, row: &Row) -> bool {
        self.only.iter().all(|(by, wanted)| *by.of(day, row) == **wanted)
    }
}

/// What was used, summed as asked.
struct Sums {
    asked: Asked,
    /// The most groups.
    most: usize,
    groups: BTreeMap<Vec<Arc<str>>, Amounts>,
    total: Amounts,
}

impl Sums {
    fn new(asked: Asked, most: usize) -> Self {
        Self { asked, most, groups: BTreeMap::new(), total: Amounts::default() }
    }

    /// Adds what fits, and ends as soon as there are too many groups.
    fn add(&mut self, table: &Table) -> Result<(), Problem> {
        for (day, rows) in table {
            for (row, amounts) in rows.iter().filter(|(row, _)| self.asked.fits(*day, row)) {
                let group = self.asked.by.iter().map(|by| by.of(*day, row)).collect();
                self.groups.entry(group).or_default().add(amounts);
                self.total.add(amounts);
                if self.groups.len() > self.most {
                    let error = format!("these are more than {} rows; ask for fewer days, or sum by less", self.most);
                    return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error));
                }
            }
        }
        Ok(())
    }

    /// Adds what Redis has of organisations, several readings at once.
    async fn read(&mut self, store: &Store, orgs: &BTreeSet<String>) -> Result<(), Problem> {
        let days = days(&self.asked, orgs.len());
        let pieces = orgs.iter().flat_map(|org| days.iter().map(move |days| (org, *days)));
        let readings = pieces.map(|(org, (first, last))| read_usage(store, org, first, last));
        let mut tables = stream::iter(readings).buffer_unordered(AT_ONCE);
        while let Some(table) = tables.next().await {
            let unread = |reason| {
                let error = format!("usage can not be read: {reason}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
            };
            self.add(&table.map_err(unread)?)?;
        }
        Ok(())
    }

    fn answer(&self, currency: &str) -> Response {
        let Asked { from, to, by, is_csv, .. } = &self.asked;
        if *is_csv {
            let disposition = format!("attachment; filename=\"usage-{from}-{to}.csv\"");
            let kind = "text/csv; charset=utf-8";
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, disposition.as_str())];
            return (headers, csv(by, &self.groups, currency)).into_response();
        }
        let rows = self.groups.iter().map(|(group, amounts)| {
            let names = by.iter().zip(group).map(|(by, name)| (by.word().to_owned(), json!(&**name)));
            Value::Object(names.chain(shown(amounts)).collect())
        });
        Json(json!({
            "from": from.to_string(),
            "to": to.to_string(),
            "by": by.iter().map(|by| by.word()).collect::<Vec<_>>(),
            "currency": currency,
            "rows": rows.collect::<Vec<_>>(),
            "total": Value::Object(shown(&self.total)),
        }))
        .into_response()
    }
}

/// The days as ranges, so many that all readings that may run at once have something to do.
fn days(asked: &Asked, orgs: usize) -> Vec<(NaiveDate, NaiveDate)> {
    let all = asked.to.signed_duration_since(asked.from).num_days().unsigned_abs() as usize + 1;
    let length = (all * orgs).div_ceil(AT_ONCE).clamp(1, LONGEST);
    let firsts = asked.from.iter_days().take(all).step_by(length);
    firsts.map(|first| (first, asked.to.min(first + Days::new(length as u64 - 1)))).collect()
}

pub(super) async fn show(Extract(state): Extract<State>, uri: Uri) -> Result<Response, Problem> {
    let asked = Asked::read(&uri)?;
    let turn = TURNS.acquire().await.map_err(Problem::internal)?;
    let runtime = tokio::runtime::Handle::current();
    // Health checks and changes of keys run on the thread of this task: it must not be held up by long sums.
    let summed = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let orgs = orgs(&state, &asked);
        let mut sums = Sums::new(asked, ROWS);
        if let Some(store) = &state.store {
            runtime.block_on(sums.read(store, &orgs))?;
        }
        // After Redis: what is still here now was not there yet, so nothing counts twice.
        let kept = state.limiter.ledger().read(sums.asked.from, sums.asked.to);
        sums.add(&kept)?;
        Ok(sums.answer(&state.snapshot.load().meter.currency))
    });
    summed.await.map_err(Problem::internal)?
}

/// The organisations whose usage is asked for: the one named, or all that are known.
fn orgs(state: &State, asked: &Asked) -> BTreeSet<String> {
    if let Some((_, org)) = asked.only.iter().find(|(by, _)| *by == By::Org) {
        return BTreeSet::from([org.clone()]);
    }
    let records = state.directory.state();
    let roster = &records.roster;
    let of_keys = roster.keys.values().map(|(key, _)| &key.org);
    let of_teams = roster.teams.keys().map(|(org, _)| org);
    of_keys.chain(of_teams).chain(roster.orgs.keys()).cloned().collect()
}

fn shown(amounts: &Amounts) -> Map<String, Value> {
    let Amounts { requests, input_tokens, output_tokens, spend } = amounts;
    let counts = [("requests", requests), ("input_tokens", input_tokens), ("output_tokens", output_tokens)];
    let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), json!(count)));
    counts.chain([("spend".to_owned(), units(*spend).into())]).collect()
}

fn csv(by: &[By], sums: &BTreeMap<Vec<Arc<str>>, Amounts>, currency: &str) -> String {
    let mut text = String::new();
    for by in by {
        let _ = write!(text, "{},", by.word());
    }
    text.push_str("requests,input_tokens,output_tokens,spend,currency\r\n");
    for (group, amounts) in sums {
        for name in group {
            let _ = write!(text, "{},", cell(name));
        }
        let Amounts { requests, input_tokens, output_tokens, spend } = amounts;
        let _ = write!(text, "{requests},{input_tokens},{output_tokens},{},{}\r\n", units(*spend), cell(currency));
    }
    text
}

/// A cell that no spreadsheet takes for a formula (RFC 4180 for the rest).
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_or_two_cells() {
        for (text, wanted) in [
            ("a", "a"),
            ("", ""),
            ("=1+1", "'=1+1"),
            ("@x", "'@x"),
            ("-x", "'-x"),
            ("+x,y", "\"'+x,y\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\r\nb", "\"a\r\nb\""),
        ] {
            assert_eq!(cell(text), wanted);
        }
    }

    #[test]
    fn sums_end_as_soon_as_they_have_too_many_rows() {
        let asked = |query: &str| Asked::read(&format!("/usage?{query}").parse().unwrap()).unwrap();
        let day = NaiveDate::from_ymd_opt(2027, 1, 31).unwrap();
        let row = |key: u32| Row { org: "o".into(), team: "t".into(), key: key.to_string().into(), model: "m".into() };
        let one = Amounts { requests: 1, ..Amounts::default() };
        let table = Table::from([(day, (0..1000).map(|key| (row(key), one)).collect())]);
        let mut sums = Sums::new(asked("by=key&team=t"), 10);
        assert!(sums.add(&table).is_err());
        assert_eq!((sums.groups.len(), sums.total.requests), (11, 11), "within one table");
        let mut sums = Sums::new(asked("by=team"), 10);
        assert!(sums.add(&table).is_ok() && sums.add(&table).is_ok());
        assert_eq!((sums.groups.len(), sums.total.requests), (1, 2000));
    }

    #[test]
    fn days_are_read_in_ranges_that_leave_none_out() {
        for (from, to, orgs, ranges) in [
            ("2027-01-01", "2027-01-01", 1, 1),
            ("2027-01-01", "2027-01-10", 1, 10),
            ("2026-01-01", "2027-02-04", 1, 16),
            ("2026-01-01", "2027-02-04", 1000, 16),
            ("2027-01-01", "2027-01-31", 1000, 2),
            ("2027-01-01", "2027-01-31", 0, 31),
        ] {
            let asked = Asked::read(&format!("/usage?from={from}&to={to}").parse().unwrap()).unwrap();
            let days = days(&asked, orgs);
            assert_eq!((days.len(), days[0].0, days[ranges - 1].1), (ranges, asked.from, asked.to), "{days:?}");
            assert!(days.windows(2).all(|pair| pair[0].1.succ_opt() == Some(pair[1].0)), "{days:?}");
            assert!(days.iter().all(|(first, last)| first <= last));
        }
    }

    #[test]
    fn only_what_can_be_answered_may_be_asked() {
        let read = |query: &str| Asked::read(&format!("/usage?{query}").parse().unwrap());
        let asked = read("from=2026-01-31&to=2026-02-01&by=day,org&team=a%20b&format=csv").unwrap();
        assert_eq!((asked.by, asked.only), (vec![By::Day, By::Org], vec![(By::Team, "a b".into())]));
        assert!(read("by=").unwrap().by.is_empty(), "one sum of all");
        for wrong in [
            "from=2026-02-30",
            "from=2026-2-3",
            "from=2026-02-02&to=2026-02-01",
            "from=2025-01-01&to=2026-02-05",
            "by=sheep",
            "by=key,key",
            "format=xml",
            "sheep=1",
            "org=a&org=b",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
