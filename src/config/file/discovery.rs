//! Section of a pool about finding its endpoints.

use std::borrow::Cow;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

section! {
    /// Where the endpoints of a pool are found, and how. One of `dns`, `srv` and `kubernetes` is required.
    Discovery {
        /// The addresses of a name in DNS, by A and AAAA.
        dns: Option<DnsName> = None,
        /// The services of a name in DNS, by SRV.
        srv: Option<SrvName> = None,
        /// The EndpointSlices of a Kubernetes service.
        kubernetes: Option<Service> = None,
        /// Whether the endpoints speak TLS.
        scheme: Scheme = Scheme::Http,
        /// A TTL below this counts as this. Only for DNS.
        #[schemars(range(min = 100, max = 3_600_000))]
        min_ttl_ms: u64 = 1000,
        /// A TTL above this counts as this. Only for DNS.
        #[schemars(range(min = 100, max = 86_400_000))]
        max_ttl_ms: u64 = 300_000,
        /// Time for an answer of DNS, and for the head of one of the API server.
        #[schemars(range(min = 10, max = 600_000))]
        timeout_ms: u64 = 5000,
        /// How long the last good answer is used while there is no new one; for ever by default.
        #[schemars(range(min = 1000, max = 604_800_000))]
        keep_ms: Option<u64> = None,
        /// Most endpoints; of more, the first in the order of addresses are used.
        #[schemars(range(min = 1, max = 10_000))]
        max_endpoints: usize = 256,
        /// Name servers in place of those of /etc/resolv.conf: IP address, and port unless it is 53. Only for DNS.
        #[schemars(length(max = 10))]
        name_servers: Vec<String> = Vec::new(),
        /// Where the Kubernetes API server is. By default, that of the cluster in which the gateway runs, asked as the
        /// service account of its pod.
        cluster: Option<Cluster> = None,
    }
}

/// The addresses of a name.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsName {
    /// The name.
    #[schemars(length(min = 1, max = 254))]
    pub name: String,
    /// Where the endpoints listen.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

/// The services of a name.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrvName {
    /// The name, such as `_http._tcp.nim.example.com`.
    #[schemars(length(min = 1, max = 254))]
    pub name: String,
}

/// A Kubernetes service.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Where it is.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub namespace: String,
    /// Its name.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub service: String,
    /// Which port of its pods.
    pub port: Port,
}

/// A port of pods: the name that the service gives it, empty for one without a name, or its number.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Port {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl JsonSchema for Port {
    fn schema_name() -> Cow<'static, str> {
        "PodPort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port of pods: the name that the service gives it, empty for one without a name, or its number.",
            "type": ["string", "integer"],
            "pattern": "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
            "minimum": 1,
            "maximum": 65535,
        })
    }
}

/// Clear text or TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Clear text.
    Http,
    /// TLS.
    Https,
}

section! {
    /// Where a Kubernetes API server is: `url`, or what a kubeconfig file says.
    Cluster {
        /// A kubeconfig file. Relative to this file.
        kubeconfig_file: Option<PathBuf> = None,
        /// Which of its contexts; its current one by default.
        context: Option<String> = None,
        /// `https://host[:port]` of the API server.
        url: Option<String> = None,
        /// A file with the bearer token for it, read again as it changes. Relative to this file.
        token_file: Option<PathBuf> = None,
        /// PEM file with authorities to trust in place of the system's, read again as it changes. Relative to this file.
        ca_file: Option<PathBuf> = None,
    }
}
