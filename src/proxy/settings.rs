//! What the proxy is told: plain values, already parsed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::admission::pace;
use crate::ids::{ApiName, PoolIndex, PoolName};
use crate::record::SpillReason;
use crate::trace::Sampling;
use crate::{auth, balance, catalogue, discovery, quota, route, schema, transcript, upstream};

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
    /// Which traces are exported.
    pub sampling: Sampling,
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
    pub endpoints: Endpoints,
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
    /// Its API is called by gRPC.
    pub grpc: bool,
    /// How long idle connections are kept.
    pub idle_timeout: Duration,
    /// Waiting for a place.
    pub queue: QueueSettings,
    /// What its traces tell of prompts and answers; absent for nothing.
    pub transcripts: Option<Arc<transcript::Policy>>,
    /// Time between comments to the caller of a stream that has no event yet; absent for none.
    pub stream_keepalive: Option<Duration>,
    /// Trying again.
    pub retry: RetrySettings,
    /// Other pools for what this one can not take.
    pub spill: SpillSettings,
    /// A second endpoint for requests that take unusually long; absent when off.
    pub hedge: Option<HedgeSettings>,
    /// Copies for another pool.
    pub shadow: Option<ShadowSettings>,
    /// Vectors that were asked for before; absent when off.
    pub cache: Option<CacheSettings>,
    /// What somebody else lets pass; absent when nobody limits.
    pub pace: Option<PaceSettings>,
    /// How an endpoint is chosen.
    pub balance: balance::Tuning,
    /// Asking endpoints for their load; absent when off.
    pub scrape: Option<ScrapeSettings>,
    /// Media above so many bytes go to NVCF as assets; absent where they stay in the body.
    pub assets_above: Option<usize>,
    /// The one domain of its API that it serves; absent for all.
    pub domain: Option<String>,
    /// Whether requests may be polled that nobody made through this gateway.
    pub any_polls: bool,
}

impl PoolSettings {
    /// What an endpoint is called in `Host`: its host, and its port unless that is the scheme's own.
    pub fn authority(&self, endpoint: &balance::Settings) -> String {
        match (self.tls.is_some(), endpoint.port) {
            (true, 443) | (false, 80) => endpoint.host.clone(),
            (_, port) => format!("{}:{port}", endpoint.host),
        }
    }

    /// Whether its requests may be sent to other pools as well.
    pub fn has_others(&self) -> bool {
        !self.spill.to.is_empty() || self.shadow.is_some()
    }
}

/// Waiting for a place in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Most requests that wait.
    pub max: usize,
    /// Most requests of one caller that wait.
    pub max_per_caller: usize,
    /// The longest wait.
    pub timeout: Duration,
    /// Most requests in flight on the pool.
    pub max_in_flight: Option<usize>,
    /// Time between comments to the caller of a stream; absent for none.
    pub keepalive: Option<Duration>,
}

/// Trying again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetrySettings {
    /// Most attempts in the pool, the first included.
    pub attempts: u32,
    /// Repeated attempts for each request, on average.
    pub budget: f32,
    /// Repeated attempts per second that are always allowed.
    pub per_second: u32,
}

/// Other pools for what one can not take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpillSettings {
    /// Which, in the order in which they are tried.
    pub to: Vec<PoolIndex>,
    /// When the pool is full.
    pub overload: bool,
    /// When the pool can not be reached.
    pub outage: bool,
    /// When the model has ended there.
    pub end_of_life: bool,
    /// How long a request waits for a place first.
    pub after: Duration,
}

impl SpillSettings {
    /// Whether requests go elsewhere for this reason.
    pub fn is_for(&self, reason: SpillReason) -> bool {
        let is_on = match reason {
            SpillReason::Overload => self.overload,
            SpillReason::Outage => self.outage,
            SpillReason::EndOfLife => self.end_of_life,
        };
        is_on && !self.to.is_empty()
    }
}

/// Second attempts for requests that take unusually long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeSettings {
    /// When they begin; absent for when 95 in 100 requests would have ended.
    pub after: Option<Duration>,
    /// Second attempts for each request, on average.
    pub budget: f32,
}

/// What somebody else lets pass.
#[derive(Clone, Debug, PartialEq)]
pub struct PaceSettings {
    /// Names what pools and replicas share it: a hash of credential and function.
    pub shared: String,
    /// The pace.
    pub settings: pace::Settings,
}

/// Copies of requests for another pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShadowSettings {
    /// The other pool.
    pub pool: PoolIndex,
    /// The share of callers, 0 to 1.
    pub share: f64,
    /// Most copies in flight.
    pub max_in_flight: usize,
    /// The largest body, in bytes.
    pub max_body: usize,
}

/// Who shares kept vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheScope {
    /// The callers of an organisation.
    Org,
    /// Everybody.
    Global,
    /// Each key for itself.
    Key,
}

/// How vectors are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheSettings {
    /// For how long.
    pub ttl: Duration,
    /// By how much of that a single vector may end sooner, 0 to 1.
    pub jitter: f64,
    /// Who shares them.
    pub scope: CacheScope,
    /// Most bytes in this process.
    pub most_bytes: u64,
    /// Whether they are kept in Redis too.
    pub in_redis: bool,
    /// The longest wait for Redis.
    pub budget: Duration,
    /// The largest that is kept, in bytes.
    pub largest_value: usize,
    /// Whether images and videos are kept by their content.
    pub keeps_media: bool,
    /// Time between questions for the revision.
    pub interval: Duration,
}

/// Where the endpoints of a pool come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// The configuration.
    Listed(Vec<balance::Settings>),
    /// A source that is followed.
    Found {
        /// The source.
        source: discovery::Source,
        /// How it is followed.
        how: Box<discovery::Settings>,
        /// When probes change the state of what is found.
        thresholds: balance::Thresholds,
    },
}

impl Endpoints {
    /// The source, if there is one.
    pub fn source(&self) -> Option<&discovery::Source> {
        match self {
            Self::Listed(_) => None,
            Self::Found { source, .. } => Some(source),
        }
    }
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
    /// Whether they are asked for it with each request as well.
    pub in_answers: bool,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Connecting, TLS included.
    pub connect: Duration,
    /// From the request sent to the answer's header.
    pub first_byte: Duration,
    /// How long the header of a stream waits for its first event, so that an error in it can still be a status.
    pub first_event: Duration,
    /// Longest silence within an answer.
    pub between_chunks: Duration,
    /// The whole request.
    pub total: Duration,
}

impl Timeouts {
    /// With time for the far side to hold a request, if it does.
    pub fn holding(self, hold: Option<Duration>) -> Self {
        Self { first_byte: hold.map_or(self.first_byte, |hold| hold.max(self.first_byte)), ..self }
    }
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
