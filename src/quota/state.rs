//! State: what the only replica has counted, in a file, so that a restart forgets nothing.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Limiter;
use super::usage::{Amounts, Row, Table};
use super::window;

/// Where counts are kept, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file; without one, a restart begins anew.
    pub file: Option<PathBuf>,
    /// How often it is written.
    pub every: Duration,
    /// For how many days usage is kept.
    pub usage_days: u32,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    /// Start of the window and amount, by organisation and counter.
    counts: BTreeMap<String, (u64, u64)>,
    usage: Vec<(chrono::NaiveDate, Row, Amounts)>,
}

/// Reads the file back, into the counters of the book that was made; what belongs to no limit of it is dropped.
pub fn load(limiter: &Limiter, path: &Path) -> Result<(), String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let file: File = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let now = limiter.clock.now();
    let registry = limiter.registry.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, (start, taken)) in file.counts {
        if let Some(counter) = registry.get(id.as_str()) {
            counter.restore(now, start, taken);
        }
    }
    let mut table = Table::new();
    for (day, row, amounts) in file.usage {
        table.entry(day).or_default().insert(row, amounts);
    }
    limiter.ledger.merge(table);
    Ok(())
}

/// Writes the file every so often, and when `stop` changes.
pub async fn keep(limiter: Arc<Limiter>, settings: Settings, mut stop: watch::Receiver<bool>) {
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(settings.every) => false,
            _ = stop.changed() => true,
        };
        let first = window::day(limiter.clock.now()) - chrono::Days::new(settings.usage_days.into());
        limiter.ledger.forget_before(first);
        if let Some(path) = settings.file.clone() {
            let limiter = Arc::clone(&limiter);
            let saved = tokio::task::spawn_blocking(move || save(&limiter, &path)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(%error, "the counts of limits can not be written");
            }
        }
        if is_last {
            return;
        }
    }
}

fn save(limiter: &Limiter, path: &Path) -> std::io::Result<()> {
    let now = limiter.clock.now();
    let registry = limiter.registry.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let counted = registry.iter().filter(|(_, counter)| counter.unit.is_some());
    let counts = counted.map(|(id, counter)| (id.to_string(), counter.used(now))).filter(|(_, (_, taken))| *taken > 0);
    let usage = limiter.ledger.read(chrono::NaiveDate::MIN, chrono::NaiveDate::MAX);
    let usage = usage.into_iter().flat_map(|(day, rows)| rows.into_iter().map(move |(row, a)| (day, row, a)));
    let file = File { counts: counts.collect(), usage: usage.collect() };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut written = std::fs::File::create(&aside)?;
    written.write_all(&serde_json::to_vec(&file).map_err(std::io::Error::other)?)?;
    written.sync_all()?;
    std::fs::rename(aside, path)
}
