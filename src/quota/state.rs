//! State: what the only replica has counted, in files, so that a restart forgets nothing.
//!
//! The counts are in one file; the usage of each day is in one of its own beside it, written when the day changed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
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
}

/// The usage of a day.
type Day = Vec<(Row, Amounts)>;

/// Reads the file back, into the counters of the book that was made; what belongs to no limit of it is dropped.
pub fn load(limiter: &Limiter, path: &Path) -> Result<(), String> {
    let Some(file) = read::<File>(path)? else { return Ok(()) };
    let now = limiter.clock.now();
    let registry = limiter.registry.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, (start, taken)) in file.counts {
        if let Some(counter) = registry.get(id.as_str()) {
            counter.restore(now, start, taken);
        }
    }
    let mut table = Table::new();
    for (day, path) in days(path).map_err(|e| e.to_string())? {
        let rows = read::<Day>(&path).map_err(|reason| format!("{}: {reason}", path.display()))?;
        table.entry(day).or_default().extend(rows.unwrap_or_default());
    }
    limiter.ledger.merge(table);
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| e.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The files of days beside the file of counts.
fn days(path: &Path) -> std::io::Result<Vec<(NaiveDate, PathBuf)>> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let day = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|day| day.parse().ok());
        found.extend(day.map(|day| (day, entry.path())));
    }
    Ok(found)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
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
            let saved = tokio::task::spawn_blocking(move || save(&limiter, &path, first)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(%error, "the counts of limits can not be written");
            }
        }
        if is_last {
            return;
        }
    }
}

/// Writes what changed, and removes days before `first`.
fn save(limiter: &Limiter, path: &Path, first: NaiveDate) -> std::io::Result<()> {
    let now = limiter.clock.now();
    let registry = limiter.registry.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let counted = registry.iter().filter(|(_, counter)| counter.unit.is_some());
    let counts = counted.map(|(id, counter)| (id.to_string(), counter.used(now))).filter(|(_, (_, taken))| *taken > 0);
    write(path, &File { counts: counts.collect() })?;
    for day in limiter.ledger.changed() {
        let rows: Day = limiter.ledger.read(day, day).into_values().flatten().collect();
        if let Err(error) = write(&beside(path, &day.to_string()), &rows) {
            limiter.ledger.touch(day);
            return Err(error);
        }
    }
    for (day, path) in days(path)? {
        if day < first {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, content: &impl Serialize) -> std::io::Result<()> {
    let aside = beside(path, "new");
    let mut written = std::fs::File::create(&aside)?;
    written.write_all(&serde_json::to_vec(content).map_err(std::io::Error::other)?)?;
    written.sync_all()?;
    std::fs::rename(aside, path)
}
