//! Flight: of several requests that miss the same item at once, one asks.
//!
//! Whoever leads tells the others what it got. When it ends without, however that happened, the others learn just that,
//! and ask themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::key::Key;
use super::value::Value;

/// Nothing while it is under way; at its end what it brought, if anything.
type Told = watch::Sender<Option<Option<Landed>>>;

/// What a flight brought.
#[derive(Clone, Debug)]
pub struct Landed {
    /// The vector.
    pub value: Value,
    /// What answers with it have in common.
    pub frame: Value,
}

/// The items that are being asked for.
#[derive(Clone, Debug, Default)]
pub struct Flights(Arc<Mutex<HashMap<Key, Arc<Told>>>>);

/// Whether to ask.
#[derive(Debug)]
pub enum Claim {
    /// Ask, and tell the others.
    Lead(Lead),
    /// Wait for the one that asks.
    Follow(Follow),
}

/// The right and duty to ask for an item.
#[derive(Debug)]
pub struct Lead {
    flights: Flights,
    key: Key,
    told: Arc<Told>,
}

/// A wait for the one that asks.
#[derive(Debug)]
pub struct Follow(watch::Receiver<Option<Option<Landed>>>);

/// Tells whether anybody waits for what is being asked for.
#[derive(Clone, Debug, Default)]
pub struct Awaited(Vec<Arc<Told>>);

impl Flights {
    /// Claims an item.
    pub fn claim(&self, key: Key) -> Claim {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = all.get(&key) {
            return Claim::Follow(Follow(told.subscribe()));
        }
        let told = Arc::new(watch::Sender::new(None));
        all.insert(key, Arc::clone(&told));
        Claim::Lead(Lead { flights: self.clone(), key, told })
    }

    /// Items that are being asked for.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Lead {
    /// The item.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Tells the others what it got.
    pub fn land(self, landed: Landed) {
        self.told.send_replace(Some(Some(landed)));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.told.send_if_modified(|told| told.is_none().then(|| *told = Some(None)).is_some());
    }
}

impl Follow {
    /// What the leader got; nothing when it ended without.
    pub async fn end(mut self) -> Option<Landed> {
        self.0.wait_for(Option::is_some).await.ok()?.clone().flatten()
    }
}

impl Awaited {
    /// Those who wait for these.
    pub fn of(leads: &[Lead]) -> Self {
        Self(leads.iter().map(|lead| Arc::clone(&lead.told)).collect())
    }

    /// Whether there is anybody.
    pub fn is_any(&self) -> bool {
        self.0.iter().any(|told| told.receiver_count() > 0)
    }
}
