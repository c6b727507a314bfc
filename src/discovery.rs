//! Discovery: which addresses a pool has, by DNS or Kubernetes.
//!
//! One task per pool follows its source and hands over each new complete set. What a source can not say keeps the last
//! good set: a name server that fails, a name that is gone and an API server that is away take no endpoint out, unless
//! [`Settings::keep`] has passed. Only Kubernetes can say that there is none, as it knows; addresses of pods that went
//! may belong to strangers. Connecting, health and load are left to others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use tokio::task::JoinSet;

mod dns;
mod kubernetes;
mod pace;
mod slices;

/// Where the endpoints of a pool come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One name in DNS.
    Dns(Record),
    /// The EndpointSlices of a Kubernetes service.
    Kubernetes {
        /// Where the service is.
        namespace: String,
        /// Its name.
        service: String,
        /// Which port of its pods.
        port: Port,
    },
}

/// What to ask DNS for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A and AAAA; each address is an endpoint.
    Addresses {
        /// The name.
        name: String,
        /// Where the endpoints listen.
        port: u16,
    },
    /// SRV; of its priorities the lowest counts that has any address. Weights do not count: the balancer learns what each
    /// endpoint can do.
    Srv {
        /// The name, such as `_http._tcp.nim.example.org`.
        name: String,
    },
}

/// A port of a Kubernetes service's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By the name that the service gives it; empty for the only port of a service, which needs none.
    Name(String),
    /// By its number on the pods, whether the service lists it or not.
    Number(u16),
}

/// How to reach the Kubernetes API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cluster {
    /// As the service account of the pod that the gateway runs in.
    #[default]
    Own,
    /// As a kubeconfig file says.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts; the current one by default.
        context: Option<String>,
    },
    /// By its address.
    Url {
        /// Scheme, host and port.
        url: Uri,
        /// A file with a bearer token, read again as it changes.
        token_file: Option<PathBuf>,
        /// A PEM file with the authorities to trust in place of the system's, read again as it changes.
        ca_file: Option<PathBuf>,
    },
}

/// How a source is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A TTL below this counts as this.
    pub min_ttl: Duration,
    /// A TTL above this counts as this.
    pub max_ttl: Duration,
    /// How long one answer of DNS, or the head of one of the API server, may take.
    pub timeout: Duration,
    /// How long the last good answer is used while there is no new one; `None` for ever.
    pub keep: Option<Duration>,
    /// How many endpoints a pool may have; of more, the first in the order of addresses are used.
    pub max_endpoints: usize,
    /// Name servers in place of those of `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
    /// Where the Kubernetes API server is.
    pub cluster: Cluster,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(300),
            timeout: Duration::from_secs(5),
            keep: None,
            max_endpoints: 256,
            name_servers: Vec::new(),
            cluster: Cluster::default(),
        }
    }
}

/// One endpoint that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where to connect.
    pub address: SocketAddr,
    /// What it is called in `Host` and SNI, without a port: the name that was looked up, the target of the SRV record,
    /// or `SERVICE.NAMESPACE.svc`.
    pub host: String,
}

/// Follows the source of a pool until the set is dropped. `apply` gets each complete set that differs from the last, in
/// the order of addresses, each address once. It is not called before there is an answer, and should not block.
pub fn start(
    pool: &str,
    source: Source,
    settings: Settings,
    apply: impl Fn(Vec<Found>) + Send + 'static,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let output = Output { pool: pool.to_owned(), apply, last: None, max: settings.max_endpoints, is_cut: false };
    match source {
        Source::Dns(record) => {
            tasks.spawn(dns::run(record, settings, output));
        }
        Source::Kubernetes { namespace, service, port } => {
            tasks.spawn(kubernetes::run(kubernetes::Service { namespace, name: service, port }, settings, output));
        }
    }
    tasks
}

/// Where sets go: bounded, in order, and only when they differ.
struct Output<F> {
    pool: String,
    apply: F,
    last: Option<Vec<Found>>,
    max: usize,
    is_cut: bool,
}

impl<F: Fn(Vec<Found>)> Output<F> {
    /// Hands a set over unless it is the last one. Of several with one address the first counts.
    fn put(&mut self, found: impl IntoIterator<Item = Found>) {
        let mut by_address = BTreeMap::new();
        for one in found {
            by_address.entry(one.address).or_insert(one);
        }
        let count = by_address.len();
        if count > self.max && !self.is_cut {
            tracing::warn!(pool = %self.pool, count, max = self.max, "too many endpoints; the first are used");
        }
        self.is_cut = count > self.max;
        let set: Vec<Found> = by_address.into_values().take(self.max).collect();
        if self.last.as_ref() != Some(&set) {
            tracing::info!(pool = %self.pool, endpoints = set.len(), "endpoints found");
            (self.apply)(set.clone());
            self.last = Some(set);
        }
    }
}

#[cfg(test)]
mod tests;
