//! Medians over the rounds, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::measure::Sample;
use crate::target::Target;

/// All samples of one workload, number of connections and target.
pub struct Cell {
    /// The workload.
    pub workload: &'static str,
    /// Connections.
    pub connections: u16,
    /// The target.
    pub target: Target,
    /// One sample per round.
    pub samples: Vec<Sample>,
}

/// The medians of a cell.
struct Row<'a> {
    cell: &'a Cell,
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: Option<f64>,
}

const HEAD: [&str; 12] = [
    "workload",
    "conns",
    "target",
    "req/s",
    "p50 µs",
    "p99 µs",
    "CPU µs",
    "CPU/pingora",
    "CPU/nginx",
    "req/s/pingora",
    "CPU/nimgate",
    "req/s/nimgate",
];

/// The aligned table.
pub fn table(cells: &[Cell]) -> String {
    let rows: Vec<Row<'_>> = cells.iter().map(Row::of).collect();
    let mut lines: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| row.texts(&rows)));
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let begins_workload = at > 0 && (at == 1 || line[..2] != lines[at - 1][..2]);
        if begins_workload {
            text.push('\n');
        }
        for (column, (field, width)) in line.iter().zip(&widths).enumerate() {
            // Words to the left, numbers to the right.
            let _ = if matches!(column, 0 | 2) {
                write!(text, "{field:<width$}  ")
            } else {
                write!(text, "{field:>width$}  ")
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Writes the same and every sample to a file.
pub fn write_json(file: &Path, cells: &[Cell], setting: &Value, memory: &Value) -> Result<()> {
    let rows: Vec<Row<'_>> = cells.iter().map(Row::of).collect();
    let list: Vec<Value> = rows.iter().map(|row| row.json(&rows)).collect();
    let value = json!({ "setting": setting, "peak_memory_bytes": memory, "cells": list });
    fs::write(file, format!("{value:#}\n")).with_context(|| format!("writing {}", file.display()))
}

impl<'a> Row<'a> {
    fn of(cell: &'a Cell) -> Self {
        let median = |of: fn(&Sample) -> f64| median(cell.samples.iter().map(of).collect());
        let cpu: Vec<f64> = cell.samples.iter().filter_map(|s| s.cpu).collect();
        Self {
            cell,
            rate: median(|s| s.rate),
            p50: median(|s| s.p50),
            p99: median(|s| s.p99),
            cpu: (!cpu.is_empty()).then(|| self::median(cpu)),
        }
    }

    /// The same cell of another target.
    fn beside<'b>(&self, rows: &'b [Row<'a>], target: Target) -> Option<&'b Row<'a>> {
        rows.iter().find(|r| {
            r.cell.target == target
                && r.cell.workload == self.cell.workload
                && r.cell.connections == self.cell.connections
        })
    }

    fn cpu_ratio(&self, rows: &[Row<'a>], target: Target) -> Option<f64> {
        Some(self.cpu? / self.beside(rows, target)?.cpu?)
    }

    fn rate_ratio(&self, rows: &[Row<'a>], target: Target) -> Option<f64> {
        Some(self.rate / self.beside(rows, target)?.rate)
    }

    fn texts(&self, rows: &[Row<'a>]) -> Vec<String> {
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}"));
        vec![
            self.cell.workload.into(),
            self.cell.connections.to_string(),
            self.cell.target.name().into(),
            format!("{:.0}", self.rate),
            format!("{:.0}", self.p50),
            format!("{:.0}", self.p99),
            self.cpu.map_or_else(|| "-".into(), |cpu| format!("{cpu:.1}")),
            ratio(self.cpu_ratio(rows, Target::Pingora)),
            ratio(self.cpu_ratio(rows, Target::Nginx)),
            ratio(self.rate_ratio(rows, Target::Pingora)),
            ratio(self.cpu_ratio(rows, Target::Nimgate)),
            ratio(self.rate_ratio(rows, Target::Nimgate)),
        ]
    }

    fn json(&self, rows: &[Row<'a>]) -> Value {
        let sample = |s: &Sample| json!({ "requests_per_second": s.rate, "p50_us": s.p50, "p99_us": s.p99, "cpu_us_per_request": s.cpu });
        json!({
            "workload": self.cell.workload,
            "connections": self.cell.connections,
            "target": self.cell.target.name(),
            "requests_per_second": self.rate,
            "p50_us": self.p50,
            "p99_us": self.p99,
            "cpu_us_per_request": self.cpu,
            "cpu_to_pingora": self.cpu_ratio(rows, Target::Pingora),
            "cpu_to_nginx": self.cpu_ratio(rows, Target::Nginx),
            "requests_per_second_to_pingora": self.rate_ratio(rows, Target::Pingora),
            "cpu_to_nimgate": self.cpu_ratio(rows, Target::Nimgate),
            "requests_per_second_to_nimgate": self.rate_ratio(rows, Target::Nimgate),
            "rounds": self.cell.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}
