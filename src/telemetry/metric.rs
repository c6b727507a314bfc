//! Metrics: what one is, and the series that requests add to. Requests take no lock: they find their series in a table
//! that is replaced whole when a new one comes, which is rare.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::histogram::{Grid, Histogram};

/// What every series beyond a metric's bound has in place of each of its labels.
pub const OTHER: &str = "other";

/// How a metric's values are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A sum that only grows.
    Counter,
    /// A value of this moment.
    Gauge,
    /// A distribution.
    Histogram(&'static Grid),
}

/// One metric, declared once for every way out.
#[derive(Debug)]
pub struct Metric {
    /// Its name by OpenTelemetry.
    pub name: &'static str,
    /// Its name on the Prometheus page, without the `_total` of a counter.
    pub page: &'static str,
    /// Its unit, by UCUM.
    pub unit: &'static str,
    /// How its values are to be read.
    pub form: Form,
    /// The names of its labels, by OpenTelemetry; on the page dots are underscores.
    pub labels: &'static [&'static str],
    /// The most series. Later ones share one, whose labels are all [`OTHER`].
    pub most: usize,
    /// What one count stands for, in the unit.
    pub step: f64,
    /// What it says.
    pub help: &'static str,
}

/// Labels in one piece of memory, so that to compare them touches one place. Each stands after its length, so that no
/// two lists of labels are the same here, whatever characters they hold.
struct Joined(Box<[u8]>);

impl Joined {
    fn of(labels: &[&str]) -> Self {
        Self(labels.iter().flat_map(|label| label.len().to_ne_bytes().into_iter().chain(label.bytes())).collect())
    }

    fn is(&self, labels: &[&str]) -> bool {
        let after =
            |rest, label: &&str| <[u8]>::strip_prefix(rest, &label.len().to_ne_bytes())?.strip_prefix(label.as_bytes());
        labels.iter().try_fold(&*self.0, after).is_some_and(<[u8]>::is_empty)
    }

    fn split(&self) -> Vec<Arc<str>> {
        let mut rest = &*self.0;
        std::iter::from_fn(|| {
            let (length, after) = rest.split_first_chunk()?;
            let (label, after) = after.split_at_checked(usize::from_ne_bytes(*length))?;
            rest = after;
            Some(Arc::from(&*String::from_utf8_lossy(label)))
        })
        .collect()
    }
}

struct Entry<V> {
    hash: u64,
    labels: Joined,
    value: Arc<V>,
}

/// Values by their labels: never more than a bound, and none is ever removed.
pub struct Labelled<V> {
    most: usize,
    hasher: DefaultHashBuilder,
    entries: ArcSwap<HashTable<Arc<Entry<V>>>>,
    /// Held while a value is made.
    growing: Mutex<()>,
}

impl<V> Labelled<V> {
    /// None yet, and never more than these.
    pub fn new(most: usize) -> Self {
        let entries = ArcSwap::from_pointee(HashTable::new());
        Self { most, hasher: DefaultHashBuilder::default(), entries, growing: Mutex::default() }
    }

    /// Does something with the value of these labels, which is made if there is none yet, or with nothing where that
    /// would be one too many.
    pub fn on<T>(&self, labels: &[&str], new: impl FnOnce() -> V, act: impl FnOnce(Option<&Arc<V>>) -> T) -> T {
        let hash = self.hasher.hash_one(labels);
        let entries = self.entries.load();
        let made;
        let value = match find(&entries, hash, labels) {
            Some(value) => Some(value),
            None if entries.len() >= self.most => None,
            None => {
                made = self.made(hash, labels, new);
                made.as_ref()
            }
        };
        act(value)
    }

    fn made(&self, hash: u64, labels: &[&str], new: impl FnOnce() -> V) -> Option<Arc<V>> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.load();
        if let Some(value) = find(&entries, hash, labels) {
            return Some(Arc::clone(value));
        }
        if entries.len() >= self.most {
            return None;
        }
        let value = Arc::new(new());
        let entry = Entry { hash, labels: Joined::of(labels), value: Arc::clone(&value) };
        let mut larger = HashTable::clone(&entries);
        larger.insert_unique(hash, Arc::new(entry), |entry| entry.hash);
        self.entries.store(Arc::new(larger));
        Some(value)
    }
}

impl<V: Default> Labelled<V> {
    /// Does something with the value of these labels; where that would be one too many, with one that nobody keeps.
    pub fn on_or_fresh<T>(&self, labels: &[&str], act: impl FnOnce(&V) -> T) -> T {
        self.on(labels, V::default, |value| match value {
            Some(value) => act(value),
            None => act(&V::default()),
        })
    }
}

fn find<'a, V>(entries: &'a HashTable<Arc<Entry<V>>>, hash: u64, labels: &[&str]) -> Option<&'a Arc<V>> {
    let entry = entries.find(hash, |entry| entry.hash == hash && entry.labels.is(labels));
    entry.map(|entry| &entry.value)
}

/// Names that clients or the outside make up, of which the first so many stand for themselves.
pub struct Names(Labelled<()>);

impl Names {
    /// None yet, and never more than these.
    pub fn new(most: usize) -> Self {
        Self(Labelled::new(most))
    }

    /// The name itself, or [`OTHER`] where there are too many.
    pub fn bounded<'a>(&self, name: &'a str) -> &'a str {
        let is_known = |known: Option<&Arc<()>>| known.is_some();
        if name.is_empty() || self.0.on(&[name], || (), is_known) { name } else { OTHER }
    }
}

/// What a series holds.
pub trait Held: Send + Sync {
    /// Nothing yet.
    fn new(metric: &'static Metric) -> Self;
    /// What it is now.
    fn read(&self, metric: &'static Metric) -> Value;
}

/// The value of a series at a moment.
#[derive(Clone, Debug)]
pub enum Value {
    /// Of a counter or a gauge, in its unit.
    Number(f64),
    /// Of a histogram.
    Spread(Box<super::histogram::Spread>),
}

/// A series as it is at a moment.
#[derive(Clone, Debug)]
pub struct Point {
    /// The values of its labels.
    pub labels: Vec<Arc<str>>,
    /// Its value.
    pub value: Value,
}

/// All of a metric at a moment.
#[derive(Debug)]
pub struct Reading {
    /// The metric.
    pub metric: &'static Metric,
    /// Its series.
    pub points: Vec<Point>,
    most: usize,
}

impl Reading {
    /// Nothing of a metric yet.
    pub fn new(metric: &'static Metric) -> Self {
        Self { metric, points: Vec::new(), most: metric.most }
    }

    /// The same with a lower bound on its series.
    pub fn at_most(self, most: usize) -> Self {
        Self { most: most.min(self.most), ..self }
    }

    /// Adds a series; one beyond the metric's bound adds to those that share their labels.
    pub fn add(&mut self, labels: &[&str], value: f64) {
        if self.points.len() < self.most {
            let labels = labels.iter().map(|label| Arc::from(*label)).collect();
            return self.points.push(Point { labels, value: Value::Number(value) });
        }
        if self.points.len() == self.most {
            let labels = self.metric.labels.iter().map(|_| Arc::from(OTHER)).collect();
            self.points.push(Point { labels, value: Value::Number(0.0) });
        }
        if let Some(Point { value: Value::Number(shared), .. }) = self.points.last_mut() {
            *shared += value;
        }
    }

    /// The same, as an expression.
    pub fn with(mut self, labels: &[&str], value: f64) -> Self {
        self.add(labels, value);
        self
    }
}

/// Counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds so many steps.
    pub fn add(&self, steps: u64) {
        self.0.fetch_add(steps, Ordering::Relaxed);
    }
}

impl Held for Counter {
    fn new(_metric: &'static Metric) -> Self {
        Self::default()
    }

    fn read(&self, metric: &'static Metric) -> Value {
        Value::Number(self.0.load(Ordering::Relaxed) as f64 * metric.step)
    }
}

impl Held for Histogram {
    fn new(metric: &'static Metric) -> Self {
        let Form::Histogram(grid) = metric.form else { unreachable!("{} is declared as no histogram", metric.name) };
        Self::on(grid)
    }

    fn read(&self, _metric: &'static Metric) -> Value {
        Value::Spread(Box::new(self.spread()))
    }
}

/// The series of a metric, by their labels.
pub struct Family<V> {
    metric: &'static Metric,
    series: Labelled<V>,
    /// What series beyond the bound share.
    other: OnceLock<Arc<V>>,
}

impl<V: Held> Family<V> {
    /// No series yet.
    pub fn new(metric: &'static Metric) -> Self {
        Self { metric, series: Labelled::new(metric.most), other: OnceLock::new() }
    }

    /// Does something with the series of these labels.
    pub fn on<T>(&self, labels: &[&str], act: impl FnOnce(&V) -> T) -> T {
        self.on_shared(labels, |series| act(series))
    }

    /// The series of these labels, to be kept by who adds to it often.
    pub fn of(&self, labels: &[&str]) -> Arc<V> {
        self.on_shared(labels, Arc::clone)
    }

    /// Whether series have been turned away.
    pub fn is_full(&self) -> bool {
        self.other.get().is_some()
    }

    /// The labels of all series.
    pub fn labels(&self) -> Vec<Vec<Arc<str>>> {
        self.series.entries.load().iter().map(|entry| entry.labels.split()).collect()
    }

    /// All series as they are now.
    pub fn read(&self) -> Reading {
        let point =
            |entry: &Arc<Entry<V>>| Point { labels: entry.labels.split(), value: entry.value.read(self.metric) };
        let mut points: Vec<Point> = self.series.entries.load().iter().map(point).collect();
        points.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        if let Some(other) = self.other.get() {
            let labels = self.metric.labels.iter().map(|_| Arc::from(OTHER)).collect();
            points.push(Point { labels, value: other.read(self.metric) });
        }
        Reading { points, ..Reading::new(self.metric) }
    }

    fn on_shared<T>(&self, labels: &[&str], act: impl FnOnce(&Arc<V>) -> T) -> T {
        let new = || V::new(self.metric);
        self.series.on(labels, new, |series| match series {
            Some(series) => act(series),
            None => act(self.other.get_or_init(|| Arc::new(new()))),
        })
    }
}

/// A series that is found when something is first added to it, and kept from then on. Until then it is not there.
pub struct Kept<V>(OnceLock<Arc<V>>);

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<V: Held> Kept<V> {
    /// Does something with the series of these labels, which have to be the same every time.
    pub fn on<T>(&self, family: &Family<V>, labels: &[&str], act: impl FnOnce(&V) -> T) -> T {
        act(self.0.get_or_init(|| family.of(labels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static METRIC: Metric = Metric {
        name: "a.b",
        page: "a_b",
        unit: "{c}",
        form: Form::Counter,
        labels: &["x", "y"],
        most: 3,
        step: 0.5,
        help: "Of a.",
    };

    fn numbers(reading: &Reading) -> Vec<(Vec<&str>, f64)> {
        let number = |point: &Point| match point.value {
            Value::Number(number) => number,
            Value::Spread(_) => f64::NAN,
        };
        reading.points.iter().map(|p| (p.labels.iter().map(AsRef::as_ref).collect(), number(p))).collect()
    }

    #[test]
    fn series_beyond_the_bound_share_one() {
        let family = Family::<Counter>::new(&METRIC);
        for x in ["1", "2", "3", "4", "5", "1"] {
            family.on(&[x, "y"], |counter| counter.add(2));
        }
        let reading = family.read();
        let expected =
            vec![(vec!["1", "y"], 2.0), (vec!["2", "y"], 1.0), (vec!["3", "y"], 1.0), (vec![OTHER, OTHER], 2.0)];
        assert_eq!(numbers(&reading), expected);
        assert!(family.is_full());
        assert!(Arc::ptr_eq(&family.of(&["2", "y"]), &family.of(&["2", "y"])));
    }

    #[test]
    fn readings_have_the_same_bound() {
        let reading = (0..5).fold(Reading::new(&METRIC), |reading, i| reading.with(&[&i.to_string(), "y"], 1.0));
        assert_eq!(numbers(&reading).last(), Some(&(vec![OTHER, OTHER], 2.0)));
        assert_eq!(reading.points.len(), 4);
    }

    #[test]
    fn labels_are_told_apart_whatever_they_hold() {
        let lists: [&[&str]; 12] = [
            &["a", "bc"],
            &["ab", "c"],
            &["abc"],
            &["abc", ""],
            &["", "abc"],
            &["", ""],
            &[""],
            &[],
            &["a\0", "b"],
            &["a", "\0b"],
            &["größe", "名前"],
            &["größe名", "前"],
        ];
        let labelled = Labelled::<Counter>::new(lists.len());
        for _ in 0..2 {
            lists.iter().for_each(|labels| labelled.on_or_fresh(labels, |counter| counter.add(1)));
        }
        let entries = labelled.entries.load();
        let mut kept: Vec<Vec<Arc<str>>> = entries.iter().map(|entry| entry.labels.split()).collect();
        let mut asked: Vec<Vec<Arc<str>>> =
            lists.iter().map(|labels| labels.iter().map(|label| Arc::from(*label)).collect()).collect();
        kept.sort_unstable();
        asked.sort_unstable();
        assert_eq!(kept, asked);
        assert!(entries.iter().all(|entry| entry.value.0.load(Ordering::Relaxed) == 2));
        // Hashes keep most of them apart, so that lists are compared themselves.
        for (at, labels) in lists.iter().enumerate() {
            let same: Vec<usize> = (0..lists.len()).filter(|other| Joined::of(labels).is(lists[*other])).collect();
            assert_eq!(same, [at]);
        }
    }

    #[test]
    fn what_is_beyond_the_bound_is_not_kept() {
        let labelled = Labelled::<Counter>::new(1);
        let add = |label| labelled.on_or_fresh(&[label], |counter| counter.0.fetch_add(1, Ordering::Relaxed));
        assert_eq!(["a", "b", "a", "b"].map(add), [0, 0, 1, 0]);
    }

    #[test]
    fn a_kept_series_is_there_once_it_is_added_to() {
        let (family, kept) = (Family::<Counter>::new(&METRIC), Kept::default());
        assert!(family.read().points.is_empty());
        (0..2).for_each(|_| kept.on(&family, &["x", ""], |counter| counter.add(1)));
        family.on(&["x", ""], |counter| counter.add(1));
        assert_eq!(numbers(&family.read()), [(vec!["x", ""], 1.5)]);
    }

    #[test]
    fn names_beyond_the_bound_are_one() {
        let names = Names::new(2);
        assert_eq!(["a", "b", "c", "a", ""].map(|name| names.bounded(name)), ["a", "b", OTHER, "a", ""]);
    }

    #[test]
    fn threads_that_make_series_at_once_lose_none() {
        static MANY: Metric = Metric { most: 1000, step: 1.0, ..METRIC_COPY };
        const METRIC_COPY: Metric = Metric {
            name: "a.b",
            page: "a_b",
            unit: "{c}",
            form: Form::Counter,
            labels: &["x", "y"],
            most: 3,
            step: 0.5,
            help: "Of a.",
        };
        let family = Family::<Counter>::new(&MANY);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|i| family.on(&[&i.to_string(), "y"], |counter| counter.add(1))));
            }
        });
        let reading = family.read();
        assert_eq!(reading.points.len(), 200);
        assert!(numbers(&reading).iter().all(|(_, number)| *number == 4.0));
    }
}
