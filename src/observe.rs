//! Observe: what is measured by looking rather than by counting, at the moment when metrics are read: endpoints, queues,
//! caches, limits, Redis, certificates.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::balance;
use crate::ids::CallerId;
use crate::otlp::Exporter;
use crate::proxy::snapshot::{PoolState, Snapshot};
use crate::quota::Limiter;
use crate::quota::limit::Metric;
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::metric::Reading;
use crate::telemetry::page::Format;
use crate::telemetry::table as metrics;

/// Reads all metrics.
pub struct Observer {
    /// What was counted.
    pub telemetry: Arc<Telemetry>,
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Counts and limits.
    pub limiter: Arc<Limiter>,
    /// Redis, where there is one.
    pub store: Option<Store>,
    /// Listeners and the files of their certificates.
    pub certificates: Vec<(String, PathBuf)>,
    /// Sends telemetry; known once it runs.
    pub exporter: OnceLock<Exporter>,
}

impl Observer {
    /// The Prometheus page.
    pub fn page(&self, format: Format) -> String {
        self.telemetry.page(format, |readings| self.observe(readings))
    }

    /// All readings.
    pub fn readings(&self) -> Vec<Reading> {
        let mut readings = self.telemetry.readings();
        self.observe(&mut readings);
        readings
    }

    fn observe(&self, readings: &mut Vec<Reading>) {
        let snapshot = self.snapshot.load();
        self.endpoints(&snapshot.pools, readings);
        pools(&snapshot.pools, readings);
        self.limits(readings);
        readings.push(self.quotas(&snapshot));
        self.exports(readings);
        if let Some(store) = &self.store {
            let is_up = f64::from(u8::from(store.health().is_up));
            readings.push(Reading::new(&metrics::REDIS_UP).with(&[], is_up));
        }
        let mut ends = Reading::new(&metrics::CERTIFICATE_END);
        for (listener, file) in &self.certificates {
            if let Some(end) = end_of(file) {
                ends.add(&[listener], end);
            }
        }
        readings.push(ends);
    }

    fn endpoints(&self, pools: &[PoolState], readings: &mut Vec<Reading>) {
        let most = self.telemetry.bounds().endpoints;
        let new = |metric| Reading::new(metric).at_most(most);
        let [mut in_flight, mut healthy, mut open, mut expected, mut waiting, mut usage] = [
            new(&metrics::ENDPOINT_IN_FLIGHT),
            new(&metrics::ENDPOINT_HEALTHY),
            new(&metrics::ENDPOINT_OPEN),
            new(&metrics::ENDPOINT_EXPECTED),
            new(&metrics::ENDPOINT_WAITING),
            new(&metrics::ENDPOINT_KV_USAGE),
        ];
        let now = balance::now();
        for pool in pools {
            for endpoint in pool.pool.endpoints().iter() {
                let labels = [pool.settings.name.as_str(), endpoint.name()];
                let truth = |is_so: bool| f64::from(u8::from(is_so));
                in_flight.add(&labels, endpoint.in_flight() as f64);
                healthy.add(&labels, truth(endpoint.health().is_healthy()));
                open.add(&labels, truth(endpoint.is_open()));
                expected.add(&labels, pool.pool.expected(endpoint, now));
                if let Some((report, _)) = endpoint.heard().latest(now) {
                    report.waiting.iter().for_each(|count| waiting.add(&labels, *count));
                    report.kv_usage.iter().for_each(|share| usage.add(&labels, *share));
                }
            }
        }
        readings.extend([in_flight, healthy, open, expected, waiting, usage]);
    }

    fn limits(&self, readings: &mut Vec<Reading>) {
        let stats = self.limiter.stats();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let refusals = Metric::ALL.iter().zip(&stats.refused).map(|(metric, count)| (metric.word(), read(count)));
        let refusals = refusals.chain([("unknown", read(&stats.unknown))]);
        let (trips, failures) = (read(&stats.round_trips), read(&stats.failures));
        readings.extend([
            Reading::new(&metrics::QUOTA_CHECKS)
                .with(&["local"], read(&stats.local))
                .with(&["waited"], read(&stats.waited))
                .with(&["away"], read(&stats.away)),
            refusals
                .fold(Reading::new(&metrics::QUOTA_REFUSALS), |reading, (word, count)| reading.with(&[word], count)),
            Reading::new(&metrics::REDIS_TRIPS)
                .with(&["good"], (trips - failures).max(0.0))
                .with(&["failed"], failures),
            Reading::new(&metrics::QUOTA_SHARED)
                .with(&[], self.limiter.is_away().map_or(-1.0, |away| f64::from(u8::from(!away)))),
            Reading::new(&metrics::QUOTA_REPLICAS).with(&[], self.limiter.replicas() as f64),
        ]);
    }

    fn exports(&self, readings: &mut Vec<Reading>) {
        let [mut exported, mut failures, mut queue] = [
            Reading::new(&metrics::EXPORTED),
            Reading::new(&metrics::EXPORT_FAILURES),
            Reading::new(&metrics::EXPORT_QUEUE),
        ];
        for (signal, stats) in self.exporter.get().map(Exporter::stats).unwrap_or_default() {
            let word = signal.word();
            for (result, count) in [
                ("sent", stats.sent),
                ("queue_full", stats.dropped_full),
                ("refused", stats.dropped_refused),
                ("too_late", stats.dropped_late),
            ] {
                exported.add(&[word, result], count as f64);
            }
            failures.add(&[word], stats.failed as f64);
            queue.add(&[word], stats.queued as f64);
        }
        readings.extend([exported, failures, queue]);
    }

    /// How much of their limits the callers use who have a name in metrics. Limits of which nothing is used are left out.
    fn quotas(&self, snapshot: &Snapshot) -> Reading {
        let mut reading = Reading::new(&metrics::QUOTA_USED);
        let callers = snapshot.callers.load();
        for [org, team, key] in self.telemetry.callers() {
            let Some(account) = callers.book.account(&CallerId::from(&*key)) else { continue };
            for standing in self.limiter.standings(account) {
                let used = standing.amount.saturating_sub(standing.remaining);
                if used > 0 {
                    reading.add(&[&org, &team, &key, &standing.name], used as f64 / standing.amount as f64);
                }
            }
        }
        reading
    }
}

fn pools(pools: &[PoolState], readings: &mut Vec<Reading>) {
    let [mut waiting, mut entries, mut bytes, mut saved, mut unusable] = [
        Reading::new(&metrics::QUEUE_WAITING),
        Reading::new(&metrics::CACHE_ENTRIES),
        Reading::new(&metrics::CACHE_BYTES),
        Reading::new(&metrics::CACHE_SAVED),
        Reading::new(&metrics::CACHE_UNUSABLE),
    ];
    for pool in pools {
        let name = pool.settings.name.as_str();
        waiting.add(&[name], pool.gate.view().waiting as f64);
        let Some(vectors) = &pool.vectors else { continue };
        let (count, size) = vectors.cache.size();
        let stats = &vectors.cache.stats;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        entries.add(&[name], count as f64);
        bytes.add(&[name], size as f64);
        saved.add(&[name], read(&stats.saved) / 1e6);
        for (what, counter) in [("spoilt", &stats.spoilt), ("unkept", &stats.unkept), ("unwritten", &stats.unwritten)] {
            unusable.add(&[name, what], read(counter));
        }
    }
    readings.extend([waiting, entries, bytes, saved, unusable]);
}

/// When the first certificate of a file ends, in seconds since 1970.
fn end_of(file: &std::path::Path) -> Option<f64> {
    let certificate = CertificateDer::pem_file_iter(file).ok()?.find_map(Result::ok)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    Some(certificate.validity().not_after.timestamp() as f64)
}
