//! The table, beside what the same requests cost without a cache.

use std::fmt::Write as _;
use std::time::Duration;

use crate::{Cell, Place};

const HEAD: &str = "\
| Backend ms | Dimensions | As | Items | From | Known | Requests | p50 µs | p99 µs | CPU µs | p50 ÷ off | CPU ÷ off |\n\
|--:|--:|---|--:|---|--:|--:|--:|--:|--:|--:|--:|\n";

/// A row for each cell.
pub fn table(cells: &[Cell]) -> String {
    let mut text = HEAD.to_owned();
    for cell in cells {
        let figures = Figures::of(cell);
        let row = cell.row;
        // Without a cache, requests are alike however many of their items are known.
        let is_off = |other: &&Cell| other.place == Place::Off && crate::Row { hits: 0, ..row } == other.row;
        let ratios = cells
            .iter()
            .find(is_off)
            .map(Figures::of)
            .map_or_else(String::new, |off| format!("{:.2} | {:.2}", figures.p50 / off.p50, figures.cpu / off.cpu));
        let known = match (cell.place, cell.found[0] + cell.found[1]) {
            (Place::Off, _) | (_, 0.0) => "–".to_owned(),
            (_, sum) => format!("{:.0} %", cell.found[0] / sum * 100.0),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {known} | {} | {:.0} | {:.0} | {:.0} | {ratios} |",
            row.delay.as_millis(),
            row.dimensions,
            row.encoding(),
            row.items,
            cell.place.name(),
            cell.times.len(),
            figures.p50,
            figures.p99,
            figures.cpu,
        );
    }
    text
}

/// Microseconds.
struct Figures {
    p50: f64,
    p99: f64,
    cpu: f64,
}

impl Figures {
    fn of(cell: &Cell) -> Self {
        let mut times = cell.times.clone();
        times.sort_unstable();
        let at = |part: f64| times.get(((times.len().max(1) - 1) as f64 * part).round() as usize).map_or(0.0, micros);
        Self { p50: at(0.5), p99: at(0.99), cpu: micros(&cell.cpu) / times.len().max(1) as f64 }
    }
}

fn micros(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
