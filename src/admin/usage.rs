//! Usage: who used what, summed as asked, as JSON or CSV.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State as Extract;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use chrono::{NaiveDate, Utc};
use serde_json::{Map, Value, json};

use super::State;
use super::problem::{Problem, query};
use crate::quota::price::units;
use crate::quota::shared::read_usage;
use crate::quota::usage::{Amounts, Row, Table};

/// The most days that one answer covers.
const DAYS: i64 = 400;
/// The most rows that one answer has.
const ROWS: usize = 100_000;

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

pub(super) async fn show(Extract(state): Extract<State>, uri: Uri) -> Result<Response, Problem> {
    let asked = Asked::read(&uri)?;
    let mut sums: BTreeMap<Vec<Arc<str>>, Amounts> = BTreeMap::new();
    let mut total = Amounts::default();
    let mut add = |table: Table| {
        for (day, rows) in table {
            for (row, amounts) in rows.iter().filter(|(row, _)| asked.fits(day, row)) {
                let group = asked.by.iter().map(|by| by.of(day, row)).collect();
                sums.entry(group).or_default().add(amounts);
                total.add(amounts);
            }
        }
        if sums.len() > ROWS {
            let error = format!("these are more than {ROWS} rows; ask for fewer days, or sum by less");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error));
        }
        Ok(())
    };
    if let Some(store) = &state.store {
        for org in orgs(&state, &asked) {
            let table = read_usage(store, &org, asked.from, asked.to).await;
            add(table.map_err(|reason| {
                let error = format!("usage can not be read: {reason}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
            })?)?;
        }
    }
    // After Redis: what is still here now was not there yet, so nothing counts twice.
    add(state.limiter.ledger().read(asked.from, asked.to))?;
    let currency = state.snapshot.load().meter.currency.clone();
    if asked.is_csv {
        let disposition = format!("attachment; filename=\"usage-{}-{}.csv\"", asked.from, asked.to);
        let headers =
            [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, disposition.as_str())];
        return Ok((headers, csv(&asked.by, &sums, &currency)).into_response());
    }
    let rows = sums.iter().map(|(group, amounts)| {
        let names = asked.by.iter().zip(group).map(|(by, name)| (by.word().to_owned(), json!(&**name)));
        Value::Object(names.chain(shown(amounts)).collect())
    });
    Ok(Json(json!({
        "from": asked.from.to_string(),
        "to": asked.to.to_string(),
        "by": asked.by.iter().map(|by| by.word()).collect::<Vec<_>>(),
        "currency": currency,
        "rows": rows.collect::<Vec<_>>(),
        "total": Value::Object(shown(&total)),
    }))
    .into_response())
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
