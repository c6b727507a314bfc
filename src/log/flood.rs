//! Flood: of one place in the code, no more than so many events in a second; the others are counted.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Most places that are known; with more, all are learned again.
const MOST_PLACES: usize = 4096;
/// Events of a place in a second, until the configuration is read.
const PER_SECOND: u32 = 100;

pub(super) struct Flood {
    begun: Instant,
    per_second: AtomicU32,
    places: Mutex<HashMap<u64, Place>>,
}

struct Place {
    name: String,
    /// The last second in which an event came, and how many have in it.
    second: u64,
    count: u32,
    left_out: u64,
}

impl Default for Flood {
    fn default() -> Self {
        Self { begun: Instant::now(), per_second: AtomicU32::new(PER_SECOND), places: Mutex::default() }
    }
}

impl Flood {
    pub(super) fn limit(&self, per_second: u32) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Whether an event of this place may be told in this second.
    fn pass(&self, key: u64, name: impl FnOnce() -> String, second: u64) -> bool {
        let mut places = self.lock();
        if places.len() >= MOST_PLACES && !places.contains_key(&key) {
            places.clear();
        }
        let place = places.entry(key).or_insert_with(|| Place { name: name(), second, count: 0, left_out: 0 });
        if place.second != second {
            (place.second, place.count) = (second, 0);
        }
        place.count = place.count.saturating_add(1);
        let passes = place.count <= self.per_second.load(Ordering::Relaxed);
        place.left_out += u64::from(!passes);
        passes
    }

    /// Places of which events were left out since the last time, and how many.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.lock();
        let flooded = places.values_mut().filter(|place| place.left_out > 0);
        flooded.map(|place| (place.name.clone(), std::mem::take(&mut place.left_out))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds events back for the whole subscriber.
pub(super) struct Gate(pub(super) Arc<Flood>);

impl<S: Subscriber> Layer<S> for Gate {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // What is left out is told by this crate's log itself.
        if metadata.target() == "nimgate::log" {
            return true;
        }
        let mut origin = Origin::default();
        // Events of libraries that log otherwise all come from the same few places, and name their own in fields.
        if metadata.target() == "log" {
            event.record(&mut origin);
        }
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        (&origin.target, origin.line).hash(&mut hasher);
        let name = || {
            let target = origin.target.as_deref().unwrap_or(metadata.target());
            let line = origin.line.or(metadata.line().map(u64::from)).unwrap_or_default();
            format!("{target}:{line}")
        };
        self.0.pass(hasher.finish(), name, self.0.begun.elapsed().as_secs())
    }
}

/// Where an event of a library's own log comes from.
#[derive(Default)]
struct Origin {
    target: Option<String>,
    line: Option<u64>,
}

impl Visit for Origin {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = Some(value.to_owned());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.line = Some(value);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn beyond_the_limit_events_of_one_place_are_counted_until_the_second_is_over() {
        let flood = Flood::default();
        flood.limit(2);
        let pass = |key, second| flood.pass(key, || key.to_string(), second);
        assert_eq!([(); 4].map(|()| pass(1, 0)), [true, true, false, false]);
        assert_eq!((pass(2, 0), pass(1, 1)), (true, true));
        assert_eq!(flood.left_out(), [("1".to_owned(), 2)]);
        assert_eq!(flood.left_out(), []);
    }

    #[test]
    fn places_are_bounded() {
        let flood = Flood::default();
        for key in 0..10 * MOST_PLACES as u64 {
            flood.pass(key, String::new, 0);
        }
        assert!(flood.lock().len() <= MOST_PLACES);
    }

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU32>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_place_has_a_limit_of_its_own() {
        let (flood, count) = (Arc::new(Flood::default()), Count::default());
        flood.limit(3);
        let subscriber = tracing_subscriber::registry().with(Gate(Arc::clone(&flood))).with(count.clone());
        tracing::subscriber::with_default(subscriber, || {
            for at in 0..10 {
                tracing::warn!(at, "one");
                if at < 2 {
                    tracing::warn!(at, "other");
                }
            }
        });
        let passed = count.0.load(Ordering::Relaxed);
        let left_out: u64 = flood.left_out().iter().map(|(_, count)| count).sum();
        assert_eq!(u64::from(passed) + left_out, 12);
        // More only if a second began meanwhile.
        assert!((5..=8).contains(&passed), "{passed}");
    }
}
