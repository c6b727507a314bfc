//! The figures as a table.

use std::time::Duration;

use crate::figures::Figures;

const HEAD: [&str; 17] = [
    "scenario",
    "policy",
    "offered/s",
    "goodput/s",
    "of capacity",
    "refused",
    "broken",
    "late",
    "p50 ms",
    "p99 ms",
    "TTFT p50",
    "TTFT p99",
    "imbalance",
    "fairness",
    "others in time",
    "others p99",
    "KV hits/ideal",
];
/// Columns of words; the others are numbers.
const WORDS: usize = 2;

/// The aligned table, its scenarios set apart.
pub fn table(all: &[Figures]) -> String {
    let rows = rows(all);
    let widths: Vec<usize> = (0..HEAD.len()).map(|at| rows.iter().map(|r| r[at].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    let mut last = "";
    for row in &rows {
        if row[0] != last {
            text.push('\n');
            last = &row[0];
        }
        let aligned = row.iter().zip(&widths).enumerate().map(|(at, (field, width))| {
            if at < WORDS { format!("{field:<width$}") } else { format!("{field:>width$}") }
        });
        text.push_str(aligned.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The same in Markdown.
pub fn markdown(all: &[Figures]) -> String {
    let mut lines: Vec<String> = rows(all).iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    let rule = (0..HEAD.len()).map(|at| if at < WORDS { "---|" } else { "--:|" }).collect::<String>();
    lines.insert(1, format!("|{rule}\n"));
    lines.concat()
}

fn rows(all: &[Figures]) -> Vec<[String; HEAD.len()]> {
    std::iter::once(HEAD.map(str::to_owned)).chain(all.iter().map(row)).collect()
}

fn row(figures: &Figures) -> [String; HEAD.len()] {
    let absent = || "-".to_owned();
    [
        figures.scenario.into(),
        figures.policy.into(),
        format!("{:.0}", figures.offered),
        format!("{:.0}", figures.goodput),
        percent(figures.of_capacity),
        percent(figures.refused),
        percent(figures.broken),
        percent(figures.late),
        millis(figures.latency.p50),
        millis(figures.latency.p99),
        millis(figures.first.p50),
        millis(figures.first.p99),
        format!("{:.2}", figures.imbalance),
        format!("{:.2}", figures.fairness),
        figures.others.as_ref().map_or_else(absent, |(in_time, _)| percent(*in_time)),
        figures.others.as_ref().map_or_else(absent, |(_, times)| millis(times.p99)),
        figures.hits.map_or_else(absent, percent),
    ]
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}
