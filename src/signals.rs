//! Signals: what an endpoint reports of its own load.
//!
//! Reads the metrics pages of the inference engines (Prometheus text or OpenMetrics) and the ORCA header of single
//! answers. A value that can not be true is absent: neither 0 nor full. Asking for pages is left to `scrape`, what
//! signals are worth to `balance`.

use std::fmt;

mod family;
mod line;

use family::{Family, Series, Signal};

/// Longest ORCA report that is read.
const MAX_REPORT: usize = 8 * 1024;

/// What an endpoint reports of its own load. Counts are summed over its engines and models.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// Requests that it works on.
    pub running: Option<f64>,
    /// Requests that wait for a place.
    pub waiting: Option<f64>,
    /// Requests that it can work on at a time.
    pub capacity: Option<f64>,
    /// Share of the KV cache in use, 0 to 1, of its fullest engine.
    pub kv_usage: Option<f64>,
}

/// Why a page or a header tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Nothing, or white space alone.
    Empty,
    /// Not text.
    Binary,
    /// A web page.
    Html,
    /// An ORCA report in another format, too long, or broken.
    Malformed,
    /// None of the names that engines use for their load.
    NothingKnown,
}

impl Signals {
    /// Reads a whole metrics page.
    pub fn read(page: &[u8]) -> Result<Self, Unusable> {
        let page = text(page)?;
        if page.trim_start().starts_with('<') {
            return Err(Unusable::Html);
        }
        let mut tally = Tally::default();
        for line in page.lines().take_while(|line| *line != "# EOF") {
            tally.take(line);
        }
        tally.signals()
    }

    /// Reads the value of the header `endpoint-load-metrics`, in its forms `TEXT` and `JSON`.
    pub fn orca(header: &[u8]) -> Result<Self, Unusable> {
        let header = text(header)?.trim();
        let (format, report) = header.split_once([' ', '\t']).ok_or(Unusable::Malformed)?;
        if header.len() > MAX_REPORT {
            return Err(Unusable::Malformed);
        }
        match format {
            "TEXT" => orca_text(report),
            "JSON" => orca_json(report),
            _ => Err(Unusable::Malformed),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Binary => "not text",
            Self::Html => "a web page",
            Self::Malformed => "not a load report",
            Self::NothingKnown => "no known name in it",
        })
    }
}

impl std::error::Error for Unusable {}

/// The samples seen so far, by signal.
struct Tally([Found; 4]);

/// One signal: the best of the names under which it was seen, and what its samples come to.
#[derive(Clone, Copy)]
struct Found {
    rank: u8,
    value: Option<f64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self([Found { rank: u8::MAX, value: None }; 4])
    }
}

impl Tally {
    fn take(&mut self, line: &str) {
        let line = line.trim_ascii_start();
        let Some(end) = line.bytes().position(|b| matches!(b, b'{' | b' ' | b'\t')) else { return };
        let (name, rest) = line.split_at(end);
        let Some(family) = Family::named(name) else { return };
        let mut series = family.unlabelled();
        let rest = line::labels(rest, |name, value| series = family.narrowed(series, name, value));
        if let Some(series) = series {
            self.add(series, rest.and_then(line::value));
        }
    }

    /// One sample that is absent or absurd spoils its signal: a sum that leaves an engine out would be too low.
    fn add(&mut self, series: Series, value: Option<f64>) {
        let Series { signal, rank } = series;
        let found = &mut self.0[signal as usize];
        let value = value.and_then(|v| signal.plausible(v));
        if rank < found.rank {
            *found = Found { rank, value };
        } else if rank == found.rank {
            found.value = found.value.zip(value).and_then(|(a, b)| signal.merged(a, b));
        }
    }

    fn signals(&self) -> Result<Signals, Unusable> {
        if self.0.iter().all(|found| found.rank == u8::MAX) {
            return Err(Unusable::NothingKnown);
        }
        let of = |signal: Signal| self.0[signal as usize].value;
        Ok(Signals {
            running: of(Signal::Running),
            waiting: of(Signal::Waiting),
            capacity: of(Signal::Capacity),
            kv_usage: of(Signal::KvUsage),
        })
    }
}

fn text(bytes: &[u8]) -> Result<&str, Unusable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unusable::Binary)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains('\0') {
        return Err(Unusable::Binary);
    }
    if text.trim_ascii().is_empty() { Err(Unusable::Empty) } else { Ok(text) }
}

fn orca_text(report: &str) -> Result<Signals, Unusable> {
    let mut tally = Tally::default();
    for pair in report.split(',') {
        let (key, value) = pair.split_once('=').ok_or(Unusable::Malformed)?;
        if let Some(series) = key.trim().strip_prefix("named_metrics.").and_then(family::reported) {
            tally.add(series, value.trim().parse().ok());
        }
    }
    tally.signals()
}

fn orca_json(report: &str) -> Result<Signals, Unusable> {
    let report: serde_json::Value = serde_json::from_str(report).map_err(|_| Unusable::Malformed)?;
    let named = report.get("named_metrics").and_then(serde_json::Value::as_object).ok_or(Unusable::NothingKnown)?;
    let mut tally = Tally::default();
    for (key, value) in named {
        if let Some(series) = family::reported(key) {
            tally.add(series, value.as_f64());
        }
    }
    tally.signals()
}

#[cfg(test)]
mod tests;
