//! Local: values in this process, bounded by their bytes.

use bytes::Bytes;
use moka::sync::Cache as Map;

use super::key::Key;
use super::value::Value;

/// What an entry takes beside its value: key, pointers, its place in the map and in the queues.
const OVERHEAD: usize = 160;

/// Values in this process.
#[derive(Clone)]
pub struct Local(Map<Key, Value>);

impl Local {
    /// Keeps at most so many bytes.
    pub fn new(most: u64) -> Self {
        let weigh = |_: &Key, value: &Value| u32::try_from(value.bytes().len() + OVERHEAD).unwrap_or(u32::MAX);
        Self(Map::builder().max_capacity(most).weigher(weigh).build())
    }

    /// What is kept under a key.
    pub fn get(&self, key: &Key, now: u32) -> Option<Value> {
        self.0.get(key).filter(|value| value.facts().expires > now)
    }

    /// Keeps a value, in memory of its own.
    pub fn put(&self, key: Key, value: &Value) {
        if self.0.policy().max_capacity() != Some(0) {
            self.0.insert(key, value.clone());
        }
    }

    /// Entries and bytes, about.
    pub fn size(&self) -> (u64, u64) {
        self.0.run_pending_tasks();
        (self.0.entry_count(), self.0.weighted_size())
    }
}

/// What Redis brought, taken out of the reply that it came in.
pub(super) fn own(bytes: Vec<u8>) -> Bytes {
    bytes.into()
}
