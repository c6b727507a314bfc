//! Config: one YAML file in, settings of every part out, or every mistake with file, line and key.
//!
//! `file.rs` mirrors the file, `check.rs` holds text against its schema, `resolve.rs` turns text into types, and
//! `callers.rs` does so with the records of callers, wherever they come from. Only this module knows the file format.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proxy::settings::{ListenerSettings, Settings};
use crate::telemetry::Bounds;
use crate::{log, otlp, quota, store};

mod callers;
mod check;
pub mod file;
mod resolve;
pub mod yaml;

pub use callers::{Callers, Finding, Known, callers};
pub use check::{Form, schema};

/// The resolved configuration.
pub struct Config {
    /// Where callers connect.
    pub listeners: Vec<ListenerSettings>,
    /// Where operators connect.
    pub admin: Admin,
    /// Connections open at once.
    pub max_connections: usize,
    /// Where access-log lines go.
    pub access_log: file::LogTarget,
    /// Access-log lines waiting to be written.
    pub access_log_queue: usize,
    /// How many names have series of their own. Not reloaded.
    pub metric_bounds: Bounds,
    /// The share of unremarkable requests that have a record.
    pub access_log_sample: f64,
    /// How long a request takes that has a record whatever the share.
    pub access_log_slow: Duration,
    /// How the gateway's own log is. Not reloaded.
    pub log: log::Settings,
    /// Where telemetry goes; absent when it goes nowhere. Not reloaded.
    pub otlp: Option<otlp::Settings>,
    /// How often files are looked at; absent when they are not watched.
    pub watch: Option<Duration>,
    /// Time in which new requests are still taken while stopping.
    pub settle: Duration,
    /// Longest wait for requests in flight while stopping.
    pub grace: Duration,
    /// Worker threads of the data plane.
    pub threads: usize,
    /// Redis; absent when this replica is the only one. Not reloaded.
    pub redis: Option<store::Settings>,
    /// How replicas share limits. Not reloaded.
    pub sharing: quota::shared::Settings,
    /// What the only replica keeps of its counts. Not reloaded.
    pub counts: quota::state::Settings,
    /// Where the records of callers are, beside those that `proxy` has. Not reloaded.
    pub callers: file::CallerStore,
    /// The keys file, to name it.
    pub keys_file: Option<PathBuf>,
    /// Everything that a reload can replace.
    pub proxy: Settings,
    /// Every file that was read: a change of any is a reason to load again.
    pub files: Vec<PathBuf>,
}

/// Where operators connect.
#[derive(Clone)]
pub struct Admin {
    /// Where.
    pub address: SocketAddr,
    /// The credential.
    pub token: Option<SecretText>,
    /// Single requests of each kind that are remembered.
    pub recent: usize,
}

/// A secret. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// One mistake of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// Where in it; absent when the file could not be read.
    pub place: Option<yaml::Place>,
    /// The key, dotted, as in `pools[0].endpoints[1].url`.
    pub key: String,
    /// What is wrong and what was expected.
    pub reason: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        let key = if self.key.is_empty() { String::new() } else { format!(": {}", self.key) };
        write!(f, "{key}: {}", self.reason)
    }
}

/// Every mistake found.
#[derive(Debug)]
pub struct Mistakes(pub Vec<Mistake>);

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Loads a configuration file and all that it names.
pub fn load(path: &Path) -> Result<Config, Mistakes> {
    let text = read(path)?;
    load_text(path, &text)
}

/// Loads configuration text as if it stood in `path`: files that it names are relative to that.
pub fn load_text(path: &Path, text: &str) -> Result<Config, Mistakes> {
    let checked = check::typed::<file::File>(path, text);
    let named = match &checked {
        Ok((file, _)) => file.callers.keys_file.clone(),
        // The keys file's mistakes are told even when this file has its own.
        Err(_) => keys_file(text),
    };
    let keys = named.map(|named| {
        let path = resolve::beside(path, &named);
        (check_keys(&path), path)
    });
    match checked {
        Ok((file, located)) => resolve::Resolver::new(path, located).config(file, keys),
        Err(Mistakes(mut mistakes)) => {
            mistakes.extend(
                keys.and_then(|(keys, _)| keys.err())
                    .into_iter()
                    .filter_map(|wrong| match wrong {
                        WrongKeys::Content(Mistakes(found)) => Some(found),
                        WrongKeys::Unreadable(_) => None,
                    })
                    .flatten(),
            );
            Err(Mistakes(mistakes))
        }
    }
}

/// Why a keys file can not be used.
enum WrongKeys {
    /// There is none, or none that may be read.
    Unreadable(std::io::Error),
    /// Mistakes in it.
    Content(Mistakes),
}

/// What stands in a keys file, and its path.
type KeysFile = (Result<(file::Keys, yaml::Located), WrongKeys>, PathBuf);

fn check_keys(path: &Path) -> Result<(file::Keys, yaml::Located), WrongKeys> {
    let text = std::fs::read_to_string(path).map_err(WrongKeys::Unreadable)?;
    check::typed::<file::Keys>(path, &text).map_err(WrongKeys::Content)
}

/// The keys file that broken text names.
fn keys_file(text: &str) -> Option<PathBuf> {
    let located = yaml::parse(text).ok()?;
    located.value.pointer("/callers/keys_file")?.as_str().map(PathBuf::from)
}

fn read(path: &Path) -> Result<String, Mistakes> {
    std::fs::read_to_string(path).map_err(|e| {
        Mistakes(vec![Mistake {
            file: path.to_owned(),
            place: None,
            key: String::new(),
            reason: format!("can not be read: {e}"),
        }])
    })
}
