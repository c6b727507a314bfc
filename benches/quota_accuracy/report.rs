//! What a cell came to and cost, as a line of a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::options::Options;
use crate::places::Places;
use crate::replica::Replica;
use crate::tally::Tally;

/// One setting and what was measured.
pub struct Cell {
    /// How many shared the limit.
    pub replicas: usize,
    /// Requests per second.
    pub limit: u64,
    /// Milliseconds added to a round trip.
    pub rtt: u64,
    /// The round trip as it was.
    pub round_trip: Duration,
    /// What was admitted and refused.
    pub tally: Tally,
    /// What it cost.
    pub costs: Costs,
}

/// Sums over the replicas.
pub struct Costs {
    round_trips: u64,
    /// Of these, the ones by which replicas show themselves.
    presence: u64,
    failures: u64,
    /// Time on a CPU of all couriers' threads.
    cpu: Duration,
}

impl Costs {
    /// What it has cost so far.
    pub async fn read(replicas: &[Replica], redis: &mut MultiplexedConnection) -> Result<Self> {
        let sum = |of: fn(&Replica) -> u64| replicas.iter().map(of).sum();
        // Only the script that shows a replica adds to a sorted set, once each time.
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_zadd:calls="));
        let calls = line.and_then(|rest| rest.split(',').next()).unwrap_or("0");
        let mut cpu = Duration::ZERO;
        for replica in replicas {
            cpu += replica.cpu()?;
        }
        Ok(Self {
            round_trips: sum(|r| r.stats().round_trips.load(Ordering::Relaxed)),
            presence: calls.parse().context("calls of ZADD")?,
            failures: sum(|r| r.stats().failures.load(Ordering::Relaxed)),
            cpu,
        })
    }

    /// What was added since then.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            round_trips: self.round_trips - before.round_trips,
            presence: self.presence - before.presence,
            failures: self.failures - before.failures,
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }

    fn leases(&self) -> u64 {
        self.round_trips.saturating_sub(self.presence)
    }
}

impl Cell {
    fn offered(&self) -> u64 {
        self.tally.sum(|w| w.offered)
    }

    fn trips_per_check(&self) -> f64 {
        self.costs.leases() as f64 / self.offered().max(1) as f64
    }

    fn cpu_per_trip(&self) -> f64 {
        micros(self.costs.cpu) / self.costs.round_trips.max(1) as f64
    }

    fn cpu_per_check(&self) -> f64 {
        micros(self.costs.cpu) / self.offered().max(1) as f64
    }

    fn refused_wrongly(&self) -> u64 {
        self.tally.sum(|w| w.refused_wrongly(self.limit))
    }

    fn json(&self) -> Value {
        let (tally, (used, least), (seen, charged)) = (&self.tally, self.tally.used(self.limit), self.tally.largest());
        let window = |w: &crate::tally::Window| json!({ "offered": w.offered, "admitted": w.admitted, "refused": w.refused, "charged": w.charged });
        json!({
            "replicas": self.replicas,
            "limit_per_second": self.limit,
            "added_rtt_ms": self.rtt,
            "round_trip_us": micros(self.round_trip),
            "used_mean": used,
            "used_least": least,
            "largest_window": seen,
            "largest_window_in_redis": charged,
            "above": tally.above,
            "uncharged": tally.uncharged,
            "astride": tally.astride,
            "refused_wrongly": self.refused_wrongly(),
            "unknown": tally.unknown,
            "waited": tally.waited,
            "waited_p99_us": tally.waited_p99,
            "lease_trips": self.costs.leases(),
            "presence_trips": self.costs.presence,
            "failures": self.costs.failures,
            "lease_trips_per_check": self.trips_per_check(),
            "leased_check_us": tally.admitted_at_once.map(micros),
            "courier_cpu_us_per_trip": self.cpu_per_trip(),
            "courier_cpu_us_per_check": self.cpu_per_check(),
            "windows": tally.windows.iter().map(window).collect::<Vec<_>>(),
        })
    }
}

const COLUMNS: [(&str, usize); 17] = [
    ("limit", 6),
    ("added", 5),
    ("rtt ms", 6),
    ("R", 2),
    ("offered", 7),
    ("windows", 7),
    ("used", 6),
    ("least", 6),
    ("largest", 7),
    ("in Redis", 8),
    ("above", 5),
    ("wrongly", 7),
    ("unknown", 7),
    ("waited", 6),
    ("trips/req", 9),
    ("check µs", 8),
    ("trip µs", 7),
];

/// The names of the columns.
pub fn head() -> String {
    line(COLUMNS.map(|(name, _)| name.to_owned()))
}

/// One cell.
pub fn row(cell: &Cell) -> String {
    let (tally, (used, least), (seen, charged)) = (&cell.tally, cell.tally.used(cell.limit), cell.tally.largest());
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    line([
        cell.limit.to_string(),
        cell.rtt.to_string(),
        format!("{:.1}", micros(cell.round_trip) / 1000.0),
        cell.replicas.to_string(),
        (cell.offered() / tally.windows.len().max(1) as u64).to_string(),
        tally.windows.len().to_string(),
        percent(used),
        percent(least),
        seen.to_string(),
        charged.to_string(),
        (tally.above + tally.uncharged).to_string(),
        cell.refused_wrongly().to_string(),
        tally.unknown.to_string(),
        percent(tally.waited),
        format!("{:.4}", cell.trips_per_check()),
        tally.admitted_at_once.map_or_else(|| "-".into(), |time| format!("{:.2}", micros(time))),
        format!("{:.0}", cell.cpu_per_trip()),
    ])
}

fn line(fields: [String; COLUMNS.len()]) -> String {
    let mut text = String::new();
    for (field, (_, width)) in fields.into_iter().zip(COLUMNS) {
        let _ = write!(text, "{field:>width$}  ");
    }
    text.trim_end().to_owned()
}

/// The goals, and how the cells stand to them.
pub fn goals(cells: &[Cell]) -> String {
    let mut text = String::new();
    if cells.is_empty() {
        return text;
    }
    let above: u64 = cells.iter().map(|c| c.tally.above + c.tally.uncharged).sum();
    let beyond = cells.iter().filter(|c| c.tally.largest().1 > c.limit).count();
    let _ = writeln!(text, "above the limit: {above} requests, {beyond} windows in Redis; the goal is 0");
    let four = cells.iter().filter(|c| c.replicas == 4);
    let worst = four.min_by(|a, b| a.tally.used(a.limit).0.total_cmp(&b.tally.used(b.limit).0));
    if let Some(cell) = worst {
        let used = cell.tally.used(cell.limit).0 * 100.0;
        let (limit, rtt) = (cell.limit, cell.rtt);
        let _ =
            writeln!(text, "used at 4 replicas: {used:.1} % at worst ({limit}/s, {rtt} ms added); the goal is 97 %");
    }
    let fast = cells.iter().filter(|c| c.limit >= 10_000);
    if let Some(cell) = fast.max_by(|a, b| a.trips_per_check().total_cmp(&b.trips_per_check())) {
        let (trips, limit) = (cell.trips_per_check(), cell.limit);
        let (replicas, rtt) = (cell.replicas, cell.rtt);
        let _ = writeln!(
            text,
            "round trips per request: {trips:.4} at worst ({limit}/s, {replicas} replicas, {rtt} ms added); \
             the goal is below 0.05 at 10000/s"
        );
    }
    text
}

/// Writes all of it to a file.
pub fn write_json(file: &Path, options: &Options, cells: &[Cell], places: &[Places]) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let setting = json!({
        "seconds": options.seconds,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": kernel.trim(),
        "debug_build": cfg!(debug_assertions),
    });
    let (cells, places): (Vec<_>, Vec<_>) =
        (cells.iter().map(Cell::json).collect(), places.iter().map(Places::json).collect());
    let value = json!({ "setting": setting, "cells": cells, "places": places });
    fs::write(file, format!("{value:#}\n")).with_context(|| format!("writing {}", file.display()))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
