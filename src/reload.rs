//! Reload: puts a new configuration in force when its files change, or keeps the last good one.
//!
//! Requests in flight go on under the snapshot that they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::{self, Config};
use crate::directory::Directory;
use crate::finder::Finder;
use crate::probe;
use crate::proxy::settings::ListenerSettings;
use crate::proxy::snapshot::Snapshot;
use crate::revision;
use crate::scrape;
use crate::telemetry::Telemetry;

/// Asks for a reload; the answer is the new generation, or why the last good one stays.
pub type Ask = mpsc::Sender<oneshot::Sender<Result<u64, String>>>;

/// Follows the files of one configuration.
pub struct Reloader {
    /// The configuration file; without one there is nothing to reload.
    pub path: Option<PathBuf>,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    /// How often files are looked at.
    pub watch: Option<Duration>,
    /// The listeners in force, which only a restart changes.
    pub listeners: Vec<ListenerSettings>,
    /// What they looked like when they were read, or before.
    pub seen: Print,
    /// Puts callers into what is loaded.
    pub directory: Arc<Directory>,
    /// What is in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where reloads are counted.
    pub telemetry: Arc<Telemetry>,
}

/// What tells one state of a file from another.
pub type Print = Vec<Option<(SystemTime, u64)>>;

impl Reloader {
    /// Runs until `asked` closes. Holds what follows the endpoints of the snapshot in force.
    pub async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<Result<u64, String>>>) {
        let mut watch = Watch::default();
        watch.follow(&self.snapshot.load());
        let look = self.watch.unwrap_or(Duration::from_secs(3600));
        loop {
            tokio::select! {
                ask = asked.recv() => {
                    let Some(answer) = ask else { return };
                    self.seen = print(&self.files);
                    let result = self.reload(&mut watch, false).await;
                    let _ = answer.send(result);
                }
                () = tokio::time::sleep(look), if self.watch.is_some() && self.path.is_some() => {
                    if print(&self.files) != self.seen {
                        let now = steady(&self.files).await;
                        // The print is taken first: a change while loading is seen next time.
                        self.seen = now;
                        let _ = self.reload(&mut watch, true).await;
                    }
                }
            }
        }
    }

    /// Loads the files; with `watching`, only if they stayed as they were seen while they were read.
    async fn reload(&mut self, watch: &mut Watch, watching: bool) -> Result<u64, String> {
        let Some(path) = self.path.clone() else { return Err("this process has no configuration file".into()) };
        let previous = self.snapshot.load_full();
        let directory = Arc::clone(&self.directory);
        let seen = watching.then(|| (self.files.clone(), self.seen.clone()));
        let loaded = tokio::task::spawn_blocking(move || load(&path, &directory, &previous, seen)).await;
        match loaded.map_err(|e| e.to_string()).and_then(|result| result) {
            Ok(None) => {
                // Nothing was seen, so that they are read again.
                self.seen = Print::new();
                Err("the files changed while they were read".into())
            }
            Ok(Some((generation, files, listeners))) => {
                if listeners != self.listeners {
                    tracing::warn!("the listeners changed in the file; they stay until the next start");
                }
                if files != self.files {
                    self.seen = print(&files);
                    self.files = files;
                }
                watch.follow(&self.snapshot.load());
                self.telemetry.reloaded(Some(generation));
                tracing::info!(generation, "configuration loaded");
                Ok(generation)
            }
            Err(reason) => {
                self.telemetry.reloaded(None);
                tracing::error!(%reason, "configuration refused; the last good one stays in force");
                Err(reason)
            }
        }
    }
}

/// What finds the endpoints of a snapshot, and asks them whether they are ready and for their load.
#[derive(Default)]
struct Watch {
    finder: Finder,
    asking: [JoinSet<()>; 3],
}

impl Watch {
    fn follow(&mut self, snapshot: &Snapshot) {
        self.finder.follow(snapshot);
        self.asking = [probe::start(snapshot), scrape::start(snapshot), revision::start(snapshot)];
    }
}

type Loaded = (u64, Vec<PathBuf>, Vec<ListenerSettings>);

/// Loads the files and puts them in force; nothing if they are not as they were `seen` any more.
fn load(
    path: &Path,
    directory: &Directory,
    previous: &Snapshot,
    seen: Option<(Vec<PathBuf>, Print)>,
) -> Result<Option<Loaded>, String> {
    let loaded = config::load(path);
    if seen.is_some_and(|(files, seen)| print(&files) != seen) {
        return Ok(None);
    }
    let Config { proxy, files, listeners, .. } = loaded.map_err(|mistakes| mistakes.to_string())?;
    let snapshot = Snapshot::compile(proxy, Some(previous))?;
    snapshot.look_up();
    let generation = snapshot.generation;
    directory.put_in_force(snapshot);
    Ok(Some((generation, files, listeners)))
}

/// How long files have to stay as they are before they are read: they may be half written.
const STEADY_FOR: Duration = Duration::from_millis(100);
/// Looks at files that go on changing before they are read all the same.
const MOST_LOOKS: usize = 20;

/// Takes the print of files once they stay as they are.
async fn steady(files: &[PathBuf]) -> Print {
    let mut now = print(files);
    for _ in 0..MOST_LOOKS {
        tokio::time::sleep(STEADY_FOR).await;
        let later = print(files);
        if later == now {
            break;
        }
        now = later;
    }
    now
}

/// Takes the print of files.
pub fn print(files: &[PathBuf]) -> Print {
    let one = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(one).collect()
}
