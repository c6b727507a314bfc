//! Usage: who used what, as a running gateway knows it.

use std::io::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};
use http::Method;
use serde_json::Value;

use super::remote::{Remote, query};
use super::table;

/// Which usage, and how.
#[derive(Args, Debug)]
pub struct Usage {
    /// The first day in UTC, such as 2027-01-31; today by default.
    #[arg(long, value_name = "DAY")]
    pub from: Option<chrono::NaiveDate>,
    /// The last day in UTC; today by default.
    #[arg(long, value_name = "DAY")]
    pub to: Option<chrono::NaiveDate>,
    /// What to sum by: some of key, team, org, model, day.
    #[arg(long, value_name = "WORDS", default_value = "key,model,day")]
    pub by: String,
    /// Only this organisation.
    #[arg(long)]
    pub org: Option<String>,
    /// Only teams of this name.
    #[arg(long)]
    pub team: Option<String>,
    /// Only the key of this id.
    #[arg(long)]
    pub key: Option<String>,
    /// Only this model.
    #[arg(long)]
    pub model: Option<String>,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// Which gateway.
    #[command(flatten)]
    remote: Remote,
}

/// How usage is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

pub(super) fn run(usage: &Usage, out: &mut impl Write) -> Result<()> {
    let day = |day: Option<chrono::NaiveDate>| day.map(|day| day.to_string());
    let (from, to) = (day(usage.from), day(usage.to));
    let query = query(&[
        ("from", from.as_deref()),
        ("to", to.as_deref()),
        ("by", Some(&usage.by)),
        ("org", usage.org.as_deref()),
        ("team", usage.team.as_deref()),
        ("key", usage.key.as_deref()),
        ("model", usage.model.as_deref()),
        ("format", Some("csv").filter(|_| usage.format == Format::Csv)),
    ]);
    let path = format!("/usage?{query}");
    if usage.format == Format::Csv {
        return Ok(out.write_all(&usage.remote.ask(Method::GET, &path, None)?)?);
    }
    let page = usage.remote.json(Method::GET, &path, None)?;
    if usage.format == Format::Json { table::json(out, &page) } else { show(out, &page) }
}

fn show(out: &mut impl Write, page: &Value) -> Result<()> {
    let spend = format!("spend {}", table::cell(&page["currency"]));
    let by: Vec<&str> = page["by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let amounts = ["requests", "input_tokens", "output_tokens", "spend"];
    let head = by.iter().copied().chain(["requests", "input tokens", "output tokens", &spend]).collect::<Vec<_>>();
    let cells = |row: &Value| by.iter().chain(&amounts).map(|name| table::cell(&row[name])).collect::<Vec<_>>();
    let mut rows: Vec<_> = page["rows"].as_array().into_iter().flatten().map(cells).collect();
    let mut total = cells(&page["total"]);
    if let Some(first) = total.first_mut().filter(|_| !by.is_empty()) {
        *first = "total".into();
        rows.push(total);
    }
    table::print(out, &head, &rows)
}
