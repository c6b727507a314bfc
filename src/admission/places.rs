//! Places: how many there are, how many are taken, and whether somebody waits, in one word.
//!
//! While nobody waits, places are taken and given back without a lock. Once somebody found none, the word is
//! *contended*: then it changes under the lock of the line only, so no place that comes free can be missed. All three
//! facts change together, so none can be seen without the others.

use std::sync::atomic::{AtomicU64, Ordering};

const CONTENDED: u64 = 1 << 63;
const CAPACITY_AT: u32 = 32;
const MOST: u64 = (1 << 31) - 1;
const TAKEN: u64 = (1 << CAPACITY_AT) - 1;

/// The count of places.
#[derive(Default)]
pub(super) struct Places(AtomicU64);

impl Places {
    /// Takes a place unless somebody waits.
    pub(super) fn take(&self) -> bool {
        self.change(|word| (word & CONTENDED == 0 && is_free(word)).then(|| word + 1))
    }

    /// Gives a place back unless somebody may wait for it.
    pub(super) fn give_back(&self) -> bool {
        self.change(|word| (word & CONTENDED == 0).then(|| word - 1))
    }

    /// Takes a place though somebody waits. Under the lock.
    pub(super) fn claim(&self) -> bool {
        self.change(|word| is_free(word).then(|| word + 1))
    }

    /// Gives a place back though somebody waits. Under the lock, and [`Places::claim`] for those who wait follows.
    pub(super) fn unclaim(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes a place, or sees to it that the next that comes free is not missed. Under the lock, if nobody waits.
    pub(super) fn take_or_contend(&self) -> bool {
        let mut is_taken = false;
        self.change(|word| {
            is_taken = is_free(word);
            Some(if is_taken { word + 1 } else { word | CONTENDED })
        });
        is_taken
    }

    /// Sees to it that nobody passes those who wait. Under the lock.
    pub(super) fn contend(&self) {
        self.0.fetch_or(CONTENDED, Ordering::AcqRel);
    }

    /// Nobody waits any more. Under the lock.
    pub(super) fn calm(&self) {
        self.0.fetch_and(!CONTENDED, Ordering::AcqRel);
    }

    /// Changes how many there are. Under the lock.
    pub(super) fn resize(&self, capacity: usize) {
        let capacity = (capacity as u64).min(MOST) << CAPACITY_AT;
        self.change(|word| Some(word & (CONTENDED | TAKEN) | capacity));
    }

    /// How many there are.
    pub(super) fn capacity(&self) -> usize {
        capacity(self.0.load(Ordering::Relaxed)) as usize
    }

    /// How many are taken.
    pub(super) fn in_flight(&self) -> usize {
        (self.0.load(Ordering::Relaxed) & TAKEN) as usize
    }

    fn change(&self, to: impl FnMut(u64) -> Option<u64>) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, to).is_ok()
    }
}

fn is_free(word: u64) -> bool {
    word & TAKEN < capacity(word)
}

fn capacity(word: u64) -> u64 {
    (word >> CAPACITY_AT) & MOST
}
