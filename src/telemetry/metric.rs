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

/// Names that clients or the outside make up, of which the first so many stand for themselves.
pub struct Names {
    most: usize,
    hasher: DefaultHashBuilder,
    known: ArcSwap<HashTable<Arc<str>>>,
    growing: Mutex<()>,
}

impl Names {
    /// None yet, and never more than these.
    pub fn new(most: usize) -> Self {
        let known = ArcSwap::from_pointee(HashTable::new());
        Self { most, hasher: DefaultHashBuilder::default(), known, growing: Mutex::default() }
    }

    /// The name itself, or [`OTHER`] where there are too many.
    pub fn bounded<'a>(&self, name: &'a str) -> &'a str {
        let hash = self.hasher.hash_one(name);
        let is_known = |table: &HashTable<Arc<str>>| table.find(hash, |known| **known == *name).is_some();
        if name.is_empty() || is_known(&self.known.load()) {
            return name;
        }
        if self.known.load().len() >= self.most {
            return OTHER;
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load();
        if is_known(&known) {
            return name;
        }
        if known.len() >= self.most {
            return OTHER;
        }
        let mut larger = HashTable::clone(&known);
        larger.insert_unique(hash, Arc::from(name), |known| self.hasher.hash_one(&**known));
        self.known.store(Arc::new(larger));
        name
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

struct Series<V> {
    labels: Vec<Arc<str>>,
    value: Arc<V>,
}

/// The series of a metric, by their labels.
pub struct Family<V> {
    metric: &'static Metric,
    hasher: DefaultHashBuilder,
    table: ArcSwap<HashTable<Arc<Series<V>>>>,
    /// Held while a series is made.
    growing: Mutex<()>,
    /// What series beyond the bound share.
    other: OnceLock<Arc<V>>,
}

impl<V: Held> Family<V> {
    /// No series yet.
    pub fn new(metric: &'static Metric) -> Self {
        let table = ArcSwap::from_pointee(HashTable::new());
        Self { metric, hasher: DefaultHashBuilder::default(), table, growing: Mutex::default(), other: OnceLock::new() }
    }

    /// Does something with the series of these labels.
    pub fn on<T>(&self, labels: &[&str], act: impl FnOnce(&V) -> T) -> T {
        let hash = self.hash(labels);
        match self.table.load().find(hash, |series| is_of(series, labels)) {
            Some(series) => act(&series.value),
            None => act(&self.made(hash, labels)),
        }
    }

    /// The series of these labels, to be kept by who adds to it often.
    pub fn of(&self, labels: &[&str]) -> Arc<V> {
        let hash = self.hash(labels);
        let found =
            self.table.load().find(hash, |series| is_of(series, labels)).map(|series| Arc::clone(&series.value));
        found.unwrap_or_else(|| self.made(hash, labels))
    }

    /// Whether series have been turned away.
    pub fn is_full(&self) -> bool {
        self.other.get().is_some()
    }

    /// The labels of all series.
    pub fn labels(&self) -> Vec<Vec<Arc<str>>> {
        self.table.load().iter().map(|series| series.labels.clone()).collect()
    }

    /// All series as they are now.
    pub fn read(&self) -> Reading {
        let point =
            |series: &Arc<Series<V>>| Point { labels: series.labels.clone(), value: series.value.read(self.metric) };
        let mut points: Vec<Point> = self.table.load().iter().map(point).collect();
        points.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        if let Some(other) = self.other.get() {
            let labels = self.metric.labels.iter().map(|_| Arc::from(OTHER)).collect();
            points.push(Point { labels, value: other.read(self.metric) });
        }
        Reading { points, ..Reading::new(self.metric) }
    }

    fn hash(&self, labels: &[&str]) -> u64 {
        self.hasher.hash_one(labels)
    }

    fn made(&self, hash: u64, labels: &[&str]) -> Arc<V> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        if let Some(series) = table.find(hash, |series| is_of(series, labels)) {
            return Arc::clone(&series.value);
        }
        if table.len() >= self.metric.most {
            return Arc::clone(self.other.get_or_init(|| Arc::new(V::new(self.metric))));
        }
        let value = Arc::new(V::new(self.metric));
        let series =
            Series { labels: labels.iter().map(|label| Arc::from(*label)).collect(), value: Arc::clone(&value) };
        let mut larger = HashTable::clone(&table);
        larger.insert_unique(hash, Arc::new(series), |series| self.hash_of(series));
        self.table.store(Arc::new(larger));
        value
    }

    fn hash_of(&self, series: &Series<V>) -> u64 {
        let labels: Vec<&str> = series.labels.iter().map(AsRef::as_ref).collect();
        self.hash(&labels)
    }
}

fn is_of<V>(series: &Arc<Series<V>>, labels: &[&str]) -> bool {
    series.labels.len() == labels.len() && series.labels.iter().zip(labels).all(|(own, asked)| **own == **asked)
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
