//! Balance: which endpoint of the pool takes this request?
//!
//! Power of two choices by requests in flight, among healthy endpoints. A [`Lease`] counts as load from the pick until
//! it is dropped, however the request ends. Probing and connecting are done elsewhere and reported here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

mod health;

pub use health::{Health, Thresholds};

/// One endpoint as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How it is named in answers, logs and metrics: host and port of its URL.
    pub name: String,
    /// Host to resolve.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// When probes change its state.
    pub thresholds: Thresholds,
}

/// One backend address with its load and health. Lives on across reloads that keep it.
#[derive(Debug)]
pub struct Endpoint {
    settings: Settings,
    addresses: RwLock<Vec<SocketAddr>>,
    in_flight: AtomicUsize,
    next_address: AtomicUsize,
    health: Health,
}

/// Interchangeable endpoints.
#[derive(Debug)]
pub struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
}

/// One request in flight on an endpoint; gives its place back when dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
}

/// Why no endpoint can take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// Health probes fail on all of them, or their names do not resolve.
    AllUnhealthy,
    /// Each was tried for this request.
    AllTried,
}

impl Pool {
    /// A pool of these endpoints.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { endpoints }
    }

    /// Its endpoints, in the order of the configuration.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Whether any endpoint takes requests.
    pub fn is_available(&self) -> bool {
        self.endpoints.iter().any(|e| e.is_available())
    }

    /// The less loaded of two random healthy endpoints, leaving out those that were `tried`.
    pub fn pick(&self, tried: &[Arc<Endpoint>]) -> Result<Lease, NoEndpoint> {
        let is_tried = |endpoint: &Arc<Endpoint>| tried.iter().any(|t| Arc::ptr_eq(t, endpoint));
        let usable: smallest::Indices = (0..self.endpoints.len())
            .filter(|i| self.endpoints[*i].is_available() && !is_tried(&self.endpoints[*i]))
            .collect();
        let chosen = match usable.as_slice() {
            [] if tried.is_empty() => return Err(NoEndpoint::AllUnhealthy),
            [] => return Err(NoEndpoint::AllTried),
            [one] => *one,
            several => {
                let first = fastrand::usize(..several.len());
                let second = (first + fastrand::usize(1..several.len())) % several.len();
                let (a, b) = (several[first], several[second]);
                if self.endpoints[b].in_flight() < self.endpoints[a].in_flight() { b } else { a }
            }
        };
        let endpoint = Arc::clone(&self.endpoints[chosen]);
        let address = endpoint.address().ok_or(NoEndpoint::AllUnhealthy)?;
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Lease { endpoint, address })
    }
}

/// A list of indices that needs no allocation for pools of usual size.
mod smallest {
    const INLINE: usize = 16;

    /// Indices of usable endpoints.
    pub(super) enum Indices {
        Few([usize; INLINE], usize),
        Many(Vec<usize>),
    }

    impl Indices {
        pub(super) fn as_slice(&self) -> &[usize] {
            match self {
                Self::Few(all, len) => &all[..*len],
                Self::Many(all) => all,
            }
        }
    }

    impl FromIterator<usize> for Indices {
        fn from_iter<T: IntoIterator<Item = usize>>(items: T) -> Self {
            let (mut few, mut len) = ([0; INLINE], 0);
            let mut items = items.into_iter();
            for item in items.by_ref() {
                if len == INLINE {
                    return Self::Many(few.into_iter().chain([item]).chain(items).collect());
                }
                few[len] = item;
                len += 1;
            }
            Self::Few(few, len)
        }
    }
}

impl Endpoint {
    /// An endpoint that nobody uses yet and that is taken to be healthy until probes say otherwise.
    pub fn new(settings: Settings, addresses: Vec<SocketAddr>) -> Self {
        let health = Health::new(settings.thresholds);
        Self {
            settings,
            addresses: RwLock::new(addresses),
            in_flight: AtomicUsize::new(0),
            next_address: AtomicUsize::new(0),
            health,
        }
    }

    /// What it was configured as.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its name in answers, logs and metrics.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Requests of this gateway that it works on.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What probes say of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Replaces what its name resolves to.
    pub fn resolved(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.write().unwrap_or_else(std::sync::PoisonError::into_inner) = addresses;
    }

    fn is_available(&self) -> bool {
        self.health.is_healthy() && !self.addresses.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty()
    }

    /// The next of its addresses, in turn.
    pub fn address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let turn = self.next_address.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn % addresses.len().max(1)).copied()
    }
}

impl Lease {
    /// The endpoint that is leased.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(size: u16) -> Pool {
        let endpoint = |port: u16| {
            let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
            let settings = Settings { name: port.to_string(), host: "h".into(), port, thresholds };
            Arc::new(Endpoint::new(settings, vec![([127, 0, 0, 1], port).into()]))
        };
        Pool::new((1..=size).map(endpoint).collect())
    }

    #[test]
    fn a_busy_endpoint_gets_less_and_a_dropped_lease_gives_back() {
        let pool = pool(2);
        let busy: Vec<Lease> = (0..10).map(|_| pool.pick(&[]).unwrap()).collect();
        let loads: Vec<usize> = pool.endpoints().iter().map(|e| e.in_flight()).collect();
        assert_eq!(loads, [5, 5]);
        drop(busy);
        assert!(pool.endpoints().iter().all(|e| e.in_flight() == 0));
    }

    #[test]
    fn unhealthy_and_tried_endpoints_are_left_out() {
        let pool = pool(3);
        pool.endpoints()[0].health().observe(false);
        let first = pool.pick(&[]).unwrap().endpoint().clone();
        let second = pool.pick(std::slice::from_ref(&first)).unwrap().endpoint().clone();
        assert!(!Arc::ptr_eq(&first, &second) && ![first.name(), second.name()].contains(&"1"));
        assert_eq!(pool.pick(&[first, second]).unwrap_err(), NoEndpoint::AllTried);
        for endpoint in pool.endpoints() {
            endpoint.health().observe(false);
        }
        assert_eq!(pool.pick(&[]).unwrap_err(), NoEndpoint::AllUnhealthy);
        assert!(!pool.is_available());
    }

    #[test]
    fn a_large_pool_is_used_whole() {
        let pool = pool(40);
        let leases: Vec<Lease> = (0..4000).map(|_| pool.pick(&[]).unwrap()).collect();
        assert!(pool.endpoints().iter().all(|e| (80..120).contains(&e.in_flight())));
        drop(leases);
    }
}
