//! Log: the gateway's own words: which of them, in which form, how many of a kind, and where else they go.
//!
//! A process has one subscriber, made before there is a configuration; what that says is put in force later. Records of
//! requests are not these words (`record.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::Directive;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::otlp::Exporter;

mod export;
mod flood;
mod form;

use export::Export;
use flood::{Flood, Gate};
use form::Form;

/// Which words are told unless somebody says otherwise.
pub const LEVEL: &str = "info,pingora=error,pingora_core=error,pingora_proxy=off,hickory_net=error,redis=error";
/// The most that is told whatever anybody says: the details of libraries hold whole requests, keys and prompts with them.
const MOST: &str =
    "info,nimgate=trace,pingora=error,pingora_core=error,pingora_proxy=off,hickory_net=error,redis=error";
/// The longest text that says which.
const LONGEST: usize = 1000;

/// How the log is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which words are told.
    pub level: String,
    /// Whether they are lines of text; lines of JSON otherwise.
    pub is_text: bool,
    /// Most events of one place in the code in a second.
    pub per_second: u32,
}

/// The one log of this process.
struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    level: Mutex<String>,
    /// Whether the environment says which words are told, above the configuration.
    is_fixed: bool,
    is_text: Arc<AtomicBool>,
    flood: Arc<Flood>,
    exporter: Arc<OnceLock<Exporter>>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Begins to log to standard error. `level` goes above what a configuration says.
pub fn init(level: Option<String>) {
    let level = level.filter(|text| !text.trim().is_empty());
    let wanted = level.as_deref().map(filter);
    let (is_fixed, parsed) = match wanted {
        Some(Ok(filter)) => (true, filter),
        _ => (false, EnvFilter::new(LEVEL)),
    };
    let current = level.clone().filter(|_| is_fixed).unwrap_or_else(|| LEVEL.to_owned());
    let (layer, handle) = reload::Layer::new(parsed);
    let log = Log {
        filter: handle,
        level: Mutex::new(current),
        is_fixed,
        is_text: Arc::default(),
        flood: Arc::default(),
        exporter: Arc::default(),
    };
    let lines = fmt::layer().event_format(Form::new(Arc::clone(&log.is_text))).with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry()
        .with(layer)
        .with(EnvFilter::new(MOST))
        .with(Gate(Arc::clone(&log.flood)))
        .with(lines);
    let is_first = subscriber.with(Export(Arc::clone(&log.exporter))).try_init().is_ok();
    if is_first {
        let _ = LOG.set(log);
    }
    if let Some(Err(reason)) = level.as_deref().map(filter) {
        tracing::warn!(%reason, "NIMGATE_LOG is not used");
    }
}

/// Puts in force what the configuration says, and sends to this exporter too from now on.
pub fn start(settings: &Settings, exporter: &Exporter) {
    let Some(log) = LOG.get() else { return };
    log.is_text.store(settings.is_text, Ordering::Relaxed);
    log.flood.limit(settings.per_second);
    if !log.is_fixed {
        let _ = set_level(&settings.level);
    }
    let _ = log.exporter.set(exporter.clone());
}

/// Which words are told at this moment.
pub fn level() -> Option<String> {
    Some(LOG.get()?.level.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Changes which words are told, or says what is wrong.
pub fn set_level(text: &str) -> Result<(), String> {
    let filter = filter(text)?;
    let Some(log) = LOG.get() else { return Err("this process has no log".into()) };
    let mut level = log.level.lock().unwrap_or_else(PoisonError::into_inner);
    log.filter.reload(filter).map_err(|e| e.to_string())?;
    text.clone_into(&mut level);
    Ok(())
}

/// Whether this text says which words are told.
pub fn check(text: &str) -> Result<(), String> {
    filter(text).map(drop)
}

/// Tells how many events were left out since it was asked last.
pub fn tell_left_out() {
    let Some(log) = LOG.get() else { return };
    for (place, left_out) in log.flood.left_out() {
        tracing::warn!(place, left_out, "events were left out, for there were too many of one kind");
    }
}

/// Reads `LEVEL` or `TARGET=LEVEL`, several between commas.
fn filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if text.trim().is_empty() || text.len() > LONGEST {
        return Err(format!("expected 1 to {LONGEST} characters, such as info or info,nimgate::proxy=debug"));
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        // A lone word that is no level would be a target at its most verbose, and a slip of the pen looks like that.
        let level = part.rsplit('=').next().unwrap_or(part).to_ascii_lowercase();
        if !LEVELS.contains(&level.as_str()) {
            return Err(format!("{part:?}: expected LEVEL or TARGET=LEVEL, LEVEL being one of {}", LEVELS.join(", ")));
        }
        part.parse::<Directive>().map_err(|e| format!("{part:?}: {e}"))?;
    }
    EnvFilter::try_new(parts.join(",")).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_a_level_or_levels_of_targets() {
        for good in [LEVEL, "info", "OFF", "warn,nimgate::proxy=debug", "info, redis=off", "nimgate=TRACE"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", " ", "verbose", "inof", "nimgate", "nimgate=loud", "info,", "=", "info,,warn"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("info,nimgate=loud").unwrap_err().starts_with("\"nimgate=loud\": expected LEVEL"));
        assert!(check(&"x".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn a_filter_reads_as_it_was_written() {
        assert_eq!(filter("nimgate=debug,info").unwrap().to_string(), EnvFilter::new("nimgate=debug,info").to_string());
    }
}
