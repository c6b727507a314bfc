//! What the proxy is told: plain values, already parsed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::ids::{ApiName, PoolName};
use crate::{auth, balance, catalogue, quota, route, schema, upstream};

/// Everything that a reload can replace.
pub struct Settings {
    /// The keys.
    pub keys: Vec<auth::Settings>,
    /// The APIs.
    pub catalogue: catalogue::Catalogue,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolSettings>,
    /// Bounds on clients.
    pub client: ClientSettings,
    /// CORS.
    pub cors: CorsSettings,
    /// Limits and prices.
    pub quota: quota::Settings,
    /// How usage is found out.
    pub meter: MeterSettings,
}

/// How usage is found out.
#[derive(Clone, Debug)]
pub struct MeterSettings {
    /// Whether backends are asked for the usage of streams whose callers did not ask.
    pub stream_usage: bool,
    /// After a caller left a stream, how long to go on reading for its usage.
    pub drain: Duration,
    /// What money is counted in. Only shown.
    pub currency: String,
}

/// Bounds on clients.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Time for a body that is read before it is forwarded.
    pub body_timeout: Duration,
    /// Longest silence within a body.
    pub body_idle_timeout: Duration,
    /// Idle time of a kept connection.
    pub keepalive_timeout: Duration,
    /// Time that a client may block a write.
    pub write_timeout: Duration,
    /// Largest header block in bytes.
    pub max_header_bytes: usize,
    /// Most header fields.
    pub max_headers: usize,
    /// Time for a request header.
    pub header_timeout: Duration,
}

/// Which browsers may read answers.
#[derive(Clone, Debug, Default)]
pub struct CorsSettings {
    /// Any origin.
    pub any_origin: bool,
    /// These origins.
    pub origins: Vec<String>,
    /// Seconds that a preflight answer is good for.
    pub max_age_s: u32,
}

/// One pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Its name.
    pub name: PoolName,
    /// The API that it serves.
    pub api: ApiName,
    /// What stands behind it.
    pub kind: upstream::Kind,
    /// Serves operations that name no model.
    pub default: bool,
    /// Every name that callers may use, and the model that it means.
    pub models: Vec<(String, route::ModelEntry)>,
    /// Its endpoints.
    pub endpoints: Vec<balance::Settings>,
    /// Headers set on every request: credential, function, operator's own.
    pub inject: Vec<(HeaderName, HeaderValue)>,
    /// How its requests are checked.
    pub schema: schema::Settings,
    /// Largest body, in place of the API's.
    pub body_limit: Option<usize>,
    /// Probing; absent when off.
    pub probe: Option<ProbeSettings>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// TLS; absent for clear text.
    pub tls: Option<TlsSettings>,
    /// HTTP/2 to the backends.
    pub http2: bool,
    /// How long idle connections are kept.
    pub idle_timeout: Duration,
    /// Further endpoints to try when connecting fails.
    pub connect_retries: usize,
    /// How an endpoint is chosen.
    pub balance: balance::Tuning,
    /// Asking endpoints for their load; absent when off.
    pub scrape: Option<ScrapeSettings>,
}

/// Probing of a pool.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    /// Path to ask for.
    pub path: String,
    /// Time between probes.
    pub interval: Duration,
    /// Time for a probe.
    pub timeout: Duration,
}

/// Asking the endpoints of a pool for their load.
#[derive(Clone, Debug)]
pub struct ScrapeSettings {
    /// Path of the metrics page.
    pub path: String,
    /// Time between questions.
    pub interval: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// The largest page that is read.
    pub max_bytes: usize,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Connecting, TLS included.
    pub connect: Duration,
    /// From the request sent to the answer's header.
    pub first_byte: Duration,
    /// Longest silence within an answer.
    pub between_chunks: Duration,
    /// The whole request.
    pub total: Duration,
}

/// TLS to the backends.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Authorities to trust in place of the system's, DER.
    pub authorities: Option<Vec<Vec<u8>>>,
    /// Name to ask for and to verify, in place of the endpoint's host.
    pub server_name: Option<String>,
}

/// One address where callers connect. Not reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Where.
    pub address: SocketAddr,
    /// TLS.
    pub tls: Option<ListenerTls>,
    /// HTTP/2 with prior knowledge in clear text.
    pub http2_cleartext: bool,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM file with the certificate chain.
    pub certificate_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities of client certificates.
    pub client_ca_file: Option<PathBuf>,
}
