//! Directory: the records of keys, teams and organisations, where replicas share them through Redis.
//!
//! Each replica holds all records and looks every [`POLL`] whether they changed. A change is made by one script, which
//! takes it only if the record still is what the change began with. What is known here stays in force while Redis is
//! away, and is written back where Redis lost it. docs/admin.md tells the rules.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::RedisError;

use crate::proxy::snapshot::Snapshot;
use crate::quota::Limiter;
use crate::store::{self, Link, Store};

mod record;
mod roster;
mod wire;

use record::Forms;
pub use record::{Record, Stored, Subject, compact, encoded};
pub use roster::{Origin, Roster};
use wire::{Change, Head, Outcome};

/// How often a replica looks whether records changed.
pub const POLL: Duration = Duration::from_millis(250);
/// How often while they were never read.
const FIRST_POLL: Duration = Duration::from_millis(25);
/// Times that a change is tried while others make theirs.
const ATTEMPTS: usize = 8;

/// All records, and who follows from them.
pub struct Directory {
    snapshot: Arc<ArcSwap<Snapshot>>,
    limiter: Arc<Limiter>,
    /// Redis, where records are in it.
    store: Option<Store>,
    forms: Forms,
    state: ArcSwap<State>,
    /// Held while callers are compiled and put in force. Never by a task: it takes a while.
    building: Mutex<()>,
    /// Held while this replica speaks with Redis, so that its changes and its looks come one after the other.
    turn: tokio::sync::Mutex<()>,
}

/// The records as last read.
#[derive(Default)]
pub struct State {
    /// Which state it is; none before the first reading.
    head: Option<Head>,
    records: BTreeMap<String, Arc<Stored>>,
    /// Who there is.
    pub roster: Roster,
}

impl State {
    /// What is stored of a subject.
    pub fn stored(&self, subject: &Subject) -> Option<&Stored> {
        self.records.get(&subject.field()).map(Arc::as_ref)
    }
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Redis is away.
    Away(String),
    /// Redis went away meanwhile: it may have been changed or not.
    Unsure(String),
    /// Others changed the same all the time.
    Busy,
}

impl Directory {
    /// Takes over the callers of the snapshot in force. Without `store`, the configuration's own are all.
    pub fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        limiter: Arc<Limiter>,
        store: Option<Store>,
    ) -> Result<Arc<Self>, String> {
        let directory = Self {
            snapshot,
            limiter,
            store,
            forms: Forms::new()?,
            state: ArcSwap::default(),
            building: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        directory.put(None, BTreeMap::new());
        Ok(Arc::new(directory))
    }

    /// Whether records are in Redis.
    pub fn is_shared(&self) -> bool {
        self.store.is_some()
    }

    /// The records as they are known here.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Puts a snapshot in force, with the callers that follow from it and the records. Blocks.
    pub fn put_in_force(&self, snapshot: Snapshot) {
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load();
        let is_complete = self.store.is_none() || state.head.is_some();
        let (callers, roster) = roster::build(&snapshot, &self.limiter, &state.records, &state.roster, is_complete);
        snapshot.callers.store(Arc::new(callers));
        self.snapshot.store(Arc::new(snapshot));
        self.state.store(Arc::new(State { head: state.head.clone(), records: state.records.clone(), roster }));
    }

    /// Puts records in force. Blocks.
    fn put(&self, head: Option<Head>, records: BTreeMap<String, Arc<Stored>>) {
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot.load_full();
        let is_complete = self.store.is_none() || head.is_some();
        let before = self.state.load();
        let (callers, roster) = roster::build(&snapshot, &self.limiter, &records, &before.roster, is_complete);
        snapshot.callers.store(Arc::new(callers));
        self.state.store(Arc::new(State { head, records, roster }));
    }

    /// Follows the records, for ever.
    pub async fn follow(self: Arc<Self>) {
        let Some(store) = self.store.clone() else { return };
        let mut told = String::new();
        loop {
            if let Some(link) = store.link() {
                let looked = {
                    let _turn = self.turn.lock().await;
                    self.look(&store, link).await
                };
                let reason = looked.err().unwrap_or_default();
                if reason != told && !reason.is_empty() {
                    tracing::error!(reason, "the records of keys can not be read; the last known stay in force");
                }
                told = reason;
            }
            let is_read = self.state.load().head.is_some();
            tokio::time::sleep(if is_read { POLL } else { FIRST_POLL }).await;
        }
    }

    /// Reads the records if they changed, and writes back what was lost.
    async fn look(self: &Arc<Self>, store: &Store, mut link: Link) -> Result<(), String> {
        let shown = wire::show(store, &mut link).await.map_err(|e| heed(store, &link, &e))?;
        let state = self.state.load_full();
        if shown.head.is_some() && shown.head == state.head {
            return Ok(());
        }
        // Whoever has read nothing yet has lost nothing; but a version that is none is mended by anybody.
        let beginning = Head::default();
        let known = state.head.as_ref().or(shown.head.is_none().then_some(&beginning));
        if let Some(known) = known.filter(|known| shown.has_lost(known)) {
            let held = state.records.iter().map(|(field, stored)| (field.as_str(), stored.text.as_str()));
            let was_missing = wire::restore(store, &mut link, known, held).await.map_err(|e| heed(store, &link, &e))?;
            let records = state.records.len();
            match (was_missing, &shown.head) {
                (false, _) => {}
                (true, Some(_)) => tracing::warn!(records, "Redis lost records of keys; they are written back"),
                (true, None) => tracing::warn!(
                    records,
                    "the version of the records of keys is none; a new one begins, and what is missing is written back"
                ),
            }
        }
        let (head, pairs) = wire::load(store, &mut link).await.map_err(|e| heed(store, &link, &e))?;
        self.take_in(head, pairs).await;
        Ok(())
    }

    async fn take_in(self: &Arc<Self>, head: Head, pairs: Vec<(String, String)>) {
        let directory = Arc::clone(self);
        let begun = Instant::now();
        let taken = tokio::task::spawn_blocking(move || {
            let state = directory.state.load_full();
            let read = |(field, text): (String, String)| {
                // What did not change needs no second look.
                let same = state.records.get(&field).filter(|stored| stored.text == text).cloned();
                let stored = same.unwrap_or_else(|| Arc::new(directory.forms.read(&field, text)));
                (field, stored)
            };
            let records: BTreeMap<_, _> = pairs.into_iter().map(read).collect();
            let (version, count) = (head.number, records.len());
            directory.put(Some(head), records);
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(version, records = count, took_ms, "the records of keys are in force");
        });
        if let Err(error) = taken.await {
            tracing::error!(%error, "the records of keys could not be put in force");
        }
    }

    /// Changes what is stored of a subject to what `edit` makes of it, if nobody else has changed it meanwhile;
    /// `edit` is asked again then. It is in force here when this returns. With `is_strict`, nothing else may have
    /// changed meanwhile either.
    pub async fn change<E: From<Fault>>(
        self: &Arc<Self>,
        subject: &Subject,
        is_strict: bool,
        edit: impl Fn(&State) -> Result<Option<Record>, E>,
    ) -> Result<(), E> {
        let away = |reason: &str| E::from(Fault::Away(reason.to_owned()));
        let store = self.store.clone().ok_or_else(|| away("records are not in Redis"))?;
        let field = subject.field();
        let _turn = self.turn.lock().await;
        for _ in 0..ATTEMPTS {
            let mut link = store.link().ok_or_else(|| away("Redis is away"))?;
            let state = self.state.load_full();
            let head = state.head.as_ref().ok_or_else(|| away("the records were not read yet"))?;
            let new = edit(&state)?.map(|record| record.text());
            let expected = state.records.get(&field).map(|stored| stored.text.as_str());
            if expected == new.as_deref() {
                return Ok(());
            }
            let change = Change { field: &field, expected, new: new.as_deref(), is_strict };
            let written = wire::write(&store, &mut link, head, &change).await;
            match written.map_err(|e| E::from(Fault::Unsure(heed(&store, &link, &e))))? {
                Outcome::Done(number) if number == head.number + 1 && !head.epoch.is_empty() => {
                    let mut pairs: HashMap<String, String> = HashMap::with_capacity(state.records.len() + 1);
                    pairs.extend(state.records.iter().map(|(field, stored)| (field.clone(), stored.text.clone())));
                    match new {
                        Some(text) => drop(pairs.insert(field, text)),
                        None => drop(pairs.remove(&field)),
                    }
                    let head = Head { epoch: head.epoch.clone(), number };
                    self.take_in(head, pairs.into_iter().collect()).await;
                    return Ok(());
                }
                outcome => {
                    let looked = self.look(&store, link).await;
                    if matches!(outcome, Outcome::Done(_)) {
                        return looked.map_err(|reason| E::from(Fault::Unsure(reason)));
                    }
                    looked.map_err(|reason| E::from(Fault::Away(reason)))?;
                }
            }
        }
        Err(E::from(Fault::Busy))
    }
}

/// Takes in what an error means: the connection is broken, or Redis holds something that is not ours.
fn heed(store: &Store, link: &Link, error: &RedisError) -> String {
    let is_of_data = error.code().is_some_and(|code| matches!(code, "WRONGTYPE" | "ERR" | "OOM" | "NOSCRIPT"));
    // A reply of another shape than ours says nothing about the connection.
    if !is_of_data && error.kind() != redis::ErrorKind::UnexpectedReturnType {
        store.fail(link, error);
    }
    store::describe(error)
}
