//! The configuration file as it is written. Every key has its unit in its name and its default here;
//! `nimgate schema` prints the JSON Schema that these types generate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

mod discovery;
mod keys;
mod load;
mod quotas;
mod telemetry;

pub use discovery::{Cluster, Discovery, DnsName, Port as PodPort, Scheme, Service, SrvName};
pub use keys::{Key, Keys, Limit, Org, Per, Previous, Priority, Team};
pub use load::{
    Balance, Breaker, Cache, CacheScope, Hedge, Pace, Policy, Queue, Retry, Scrape, Shadow, Spill, SpillReason, Streams,
};
pub use quotas::{Estimate, OnOutage, Price, Quotas, Redis, RedisMode, RedisTls};
pub use telemetry::{
    Log, LogFormat, MetricBounds, Otlp, OtlpCompression, OtlpProtocol, Telemetry, Traces, Transcripts,
};

/// The configuration of nimgate.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where callers connect.
    #[serde(default = "default_listeners")]
    pub listeners: Vec<Listener>,
    /// Where operators connect.
    #[serde(default)]
    pub admin: Admin,
    /// Bounds on what clients may do.
    #[serde(default)]
    pub client: Client,
    /// Answers to browsers.
    #[serde(default)]
    pub cors: Cors,
    /// Who may call.
    pub callers: Callers,
    /// Redis, by which replicas share limits. Without it, this replica is the only one.
    #[serde(default)]
    pub redis: Option<Redis>,
    /// How limits are held, and usage is found out.
    #[serde(default)]
    pub quotas: Quotas,
    /// What models cost. The first that fits counts.
    #[serde(default)]
    #[schemars(length(max = 10_000))]
    pub prices: Vec<Price>,
    /// The APIs.
    #[serde(default)]
    pub catalogue: Catalogue,
    /// One JSON line per request.
    #[serde(default)]
    pub access_log: AccessLog,
    /// The gateway's own log.
    #[serde(default)]
    pub log: Log,
    /// What is told to those who operate the gateway.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Following changes of this file and of the keys file.
    #[serde(default)]
    pub reload: Reload,
    /// Stopping.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// Threads.
    #[serde(default)]
    pub runtime: Runtime,
    /// The backends.
    #[schemars(length(min = 1))]
    pub pools: Vec<Pool>,
}

fn default_listeners() -> Vec<Listener> {
    vec![Listener { address: "0.0.0.0:8080".into(), tls: None, http2_cleartext: false }]
}

/// One address where callers connect.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port.
    pub address: String,
    /// TLS with HTTP/2 and HTTP/1.1 by ALPN. Without it, HTTP/1.1 in clear text.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
    /// Also take HTTP/2 with prior knowledge in clear text (h2c). For internal listeners.
    #[serde(default)]
    pub http2_cleartext: bool,
}

/// TLS of a listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file with the certificate chain.
    pub certificate_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities of client certificates. Given, a client certificate is required.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
}

section! {
    /// Where operators connect: health, metrics, state, reload.
    Admin {
        /// IP address and port. Keep it on loopback or give it a token.
        address: String = "127.0.0.1:9090".into(),
        /// Credential for everything but health and metrics. Required when the address is not loopback.
        token: Option<Secret> = None,
        /// Single requests of each kind (failed by blame, queued, retried, spilled, cached) that the console shows.
        #[schemars(range(min = 1, max = 10_000))]
        recent: u32 = 200,
    }
}

section! {
    /// Bounds on what clients may do.
    Client {
        /// Connections open at once, over all listeners. Further ones are closed at once.
        #[schemars(range(min = 1, max = 1_000_000))]
        max_connections: u32 = 20_000,
        /// Time for a whole request header, from the connection on; on a kept connection, on top of
        /// `keepalive_timeout_ms`.
        #[schemars(range(min = 100, max = 3_600_000))]
        header_timeout_ms: u64 = 10_000,
        /// Time for a whole request body that is read before it is forwarded.
        #[schemars(range(min = 100, max = 86_400_000))]
        body_timeout_ms: u64 = 300_000,
        /// Longest silence within a request body.
        #[schemars(range(min = 100, max = 86_400_000))]
        body_idle_timeout_ms: u64 = 30_000,
        /// Time that a kept connection may stay idle between requests.
        #[schemars(range(min = 1000, max = 3_600_000))]
        keepalive_timeout_ms: u64 = 60_000,
        /// Time that a client may block a write of its answer.
        #[schemars(range(min = 100, max = 86_400_000))]
        write_timeout_ms: u64 = 60_000,
        /// Largest header block in bytes, request line included.
        #[schemars(range(min = 1024, max = 1_048_576))]
        max_header_bytes: usize = 65_536,
        /// Most header fields.
        #[schemars(range(min = 10, max = 250))]
        max_headers: usize = 100,
        /// Largest body in MiB where an API's document does not say (25; 256 for the video APIs).
        #[schemars(range(min = 1, max = 4096))]
        max_body_mib: usize = 25,
        /// Most violations that one answer lists.
        #[schemars(range(min = 1, max = 1000))]
        max_violations: usize = 20,
    }
}

section! {
    /// Answers to browsers. Preflight requests are answered here, since backends refuse them.
    Cors {
        /// Origins that may read answers; `*` for any. Empty switches CORS off.
        allow_origins: Vec<String> = Vec::new(),
        /// How long browsers may keep a preflight answer.
        #[schemars(range(max = 86_400))]
        max_age_s: u32 = 86_400,
    }
}

section! {
    /// Who may call.
    Callers {
        /// YAML file with the records of keys (`nimgate keys new` prints one), teams and organisations. Relative to this
        /// file. Required with `store: file`.
        keys_file: Option<PathBuf> = None,
        /// Where else records are.
        store: CallerStore = CallerStore::File,
    }
}

/// Where the records of callers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallerStore {
    /// In the keys file only.
    File,
    /// In Redis, beside those of the keys file.
    Redis,
}

section! {
    /// The APIs.
    Catalogue {
        /// Directory with further OpenAPI documents (`*.yaml`); one with the name of a built-in API replaces it.
        directory: Option<PathBuf> = None,
    }
}

section! {
    /// One JSON line per request.
    AccessLog {
        /// Where lines go.
        target: LogTarget = LogTarget::Stdout,
        /// Lines waiting to be written; further ones are dropped and counted.
        #[schemars(range(min = 16, max = 10_000_000))]
        queue: usize = 65_536,
        /// The share of requests that have a record, among those that went well and were not slow.
        #[schemars(range(min = 0, max = 1))]
        sample: f64 = 1.0,
        /// How long a request takes that counts as slow.
        #[schemars(range(max = 86_400_000))]
        slow_ms: u64 = 10_000,
    }
}

/// Where access-log lines go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// Appended to this file.
    File(PathBuf),
}

section! {
    /// Following changes of this file, the keys file and what they name. SIGHUP always reloads.
    Reload {
        /// Whether files are watched.
        watch: bool = true,
        /// How often they are looked at.
        #[schemars(range(min = 50, max = 3_600_000))]
        interval_ms: u64 = 1000,
    }
}

section! {
    /// Stopping on SIGTERM: readiness fails, then requests in flight may end.
    Shutdown {
        /// Time in which new requests are still taken, so that load balancers notice.
        #[schemars(range(max = 600_000))]
        settle_ms: u64 = 0,
        /// Longest wait for requests in flight.
        #[schemars(range(max = 86_400_000))]
        grace_ms: u64 = 300_000,
    }
}

section! {
    /// Threads.
    Runtime {
        /// Worker threads of the data plane; 0 means one per core.
        #[schemars(range(max = 1024))]
        threads: usize = 0,
    }
}

/// Interchangeable endpoints that serve one API.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name: letters, digits, `.`, `_` and `-`. Part of `/pools/NAME/…` and a label in metrics.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub name: String,
    /// The API that it serves: the file stem of an OpenAPI document of the catalogue.
    pub api: String,
    /// What stands behind its endpoints.
    #[serde(default)]
    pub kind: Kind,
    /// The domain of the API that it serves alone, where its operations stand at several hosts: `invocation` or
    /// `management` of the API nvcf. Such operations go to no other pool then.
    #[serde(default)]
    pub domain: Option<String>,
    /// Whose requests may be polled on the native face of NVCF.
    #[serde(default)]
    pub polls: Polls,
    /// The function that is offered under the pool's API. Only for `kind: nvcf`.
    #[serde(default)]
    pub function: Option<Function>,
    /// Serves operations that name no model, when several pools serve the API.
    #[serde(default)]
    pub default: bool,
    /// The models that it serves, for APIs whose requests name one.
    #[serde(default)]
    pub models: Vec<Model>,
    /// Where its backends are. Either this or `discovery` is required.
    #[serde(default)]
    #[schemars(length(min = 1, max = 10_000))]
    pub endpoints: Option<Vec<Endpoint>>,
    /// Where its backends are found.
    #[serde(default)]
    pub discovery: Option<Discovery>,
    /// Sent to the backends in place of the caller's credential.
    #[serde(default)]
    pub credential: Option<Credential>,
    /// Further headers sent to the backends. Not for secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How strictly requests are checked.
    #[serde(default)]
    pub validation: Validation,
    /// Whether URLs that the container would fetch are allowed (`NIM_ALLOW_URL_INPUT`).
    #[serde(default)]
    pub url_input: UrlInput,
    /// Largest body in MiB, in place of the API's own limit.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4096))]
    pub max_body_mib: Option<usize>,
    /// Probing.
    #[serde(default)]
    pub health: Health,
    /// Which endpoint takes a request.
    #[serde(default)]
    pub balance: Balance,
    /// What an endpoint's answers do to it.
    #[serde(default)]
    pub breaker: Breaker,
    /// What endpoints report of their own load.
    #[serde(default)]
    pub metrics: Scrape,
    /// Waiting for a place.
    #[serde(default)]
    pub queue: Queue,
    /// Trying again.
    #[serde(default)]
    pub retry: Retry,
    /// Other pools for what this one can not take.
    #[serde(default)]
    pub spill: Spill,
    /// How many requests somebody else lets pass.
    #[serde(default)]
    pub pace: Pace,
    /// A second endpoint for requests that take unusually long.
    #[serde(default)]
    pub hedge: Hedge,
    /// Large media of requests, uploaded to NVCF beside them. Only for a function that is invoked by pexec.
    #[serde(default)]
    pub assets: Option<Assets>,
    /// Copies of requests for another pool.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// Vectors that were asked for before.
    #[serde(default)]
    pub cache: Cache,
    /// Prompts and answers in traces. Without this section they are in none.
    #[serde(default)]
    pub transcripts: Option<Transcripts>,
    /// Event streams.
    #[serde(default)]
    pub stream: Streams,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// TLS to `https` endpoints.
    #[serde(default)]
    pub tls: PoolTls,
    /// Connections to the backends.
    #[serde(default)]
    pub connection: Connection,
}

/// What stands behind a pool's endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// NIM containers, or anything that speaks their API.
    #[default]
    Nim,
    /// NVIDIA Cloud Functions.
    Nvcf,
    /// An NGC service such as NeMo Curator.
    Ngc,
}

/// Whose requests may be polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Polls {
    /// Those that the caller made through this gateway.
    #[default]
    Own,
    /// Those, and requests that nobody made through this gateway.
    Any,
}

/// A function of NVCF.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its id, a UUID.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub id: String,
    /// The version to pin, a UUID. Without it, NVCF picks an active version for each request.
    #[serde(default)]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub version: Option<String>,
    /// How it is invoked.
    #[serde(default)]
    pub invocation: Invocation,
    /// How it is waited for.
    #[serde(default)]
    pub wait: Wait,
}

section! {
    /// How a function is waited for.
    Wait {
        /// Longest time for which one exchange with NVCF is held, in seconds; what takes longer is asked for again. Only
        /// by pexec: on the direct way NVCF cancels what it held.
        #[schemars(range(min = 1, max = 3600))]
        hold_s: u64 = 300,
        /// How long to try again when all instances of the function are lost; 0 for not at all.
        #[schemars(range(max = 3_600_000))]
        degraded_ms: u64 = 5000,
        /// The largest answer in MiB that is fetched from where NVCF puts those above 5 MiB, unpacked.
        #[schemars(range(min = 1, max = 1_048_576))]
        result_max_mib: u64 = 1024,
        /// Whether such an answer may stand at a private address or be fetched without TLS, as in a cluster of one's own.
        private_results: bool = false,
    }
}

/// How a function is invoked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Invocation {
    /// On the invocation host, the path unchanged.
    #[default]
    Direct,
    /// By `POST /v2/nvcf/pexec/functions/{id}`.
    Pexec,
}

/// Large media of requests, uploaded to NVCF as assets and deleted after use.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assets {
    /// Media above this size in KiB are uploaded.
    #[schemars(range(max = 4_194_304))]
    pub above_kib: usize,
}

/// A model that a pool serves.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name that callers use, and that permissions and metrics name.
    #[schemars(length(min = 1, max = 200))]
    pub id: String,
    /// Other names that callers may use.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The name that the backend knows, where it differs.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub backend_model: Option<String>,
    /// Tokens that are reserved for an answer whose request states no bound, in place of
    /// `quotas.estimate.output_tokens`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub output_tokens: Option<u64>,
    /// When it ends here, RFC 3339 or a date, from midnight UTC. Before, answers say so (`Sunset`); from then on,
    /// requests are refused with status 410, or go where `spill` says.
    #[serde(default)]
    pub end_of_life: Option<String>,
    /// Takes it offline: requests are refused with status 503 and these words.
    #[serde(default)]
    #[schemars(length(min = 1, max = 1000))]
    pub offline_message: Option<String>,
    /// Further words for callers who are refused with status 429.
    #[serde(default)]
    #[schemars(length(min = 1, max = 1000))]
    pub rate_limit_message: Option<String>,
}

/// One backend.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `http://host[:port]` or `https://host[:port]`, without a path.
    pub url: String,
}

/// A secret: in an environment variable or a file, never here.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Secret {
    /// The name of an environment variable.
    Env(String),
    /// A file; white space around its content is dropped. Relative to this file.
    File(PathBuf),
}

/// The credential of a pool.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Where the secret is.
    pub secret: Secret,
    /// The header that carries it.
    #[serde(default = "authorization")]
    pub header: String,
    /// What stands before the secret in the header; empty for nothing.
    #[serde(default = "bearer")]
    pub scheme: String,
}

fn authorization() -> String {
    "Authorization".into()
}

fn bearer() -> String {
    "Bearer".into()
}

/// How strictly requests are checked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// By the schema; unknown fields pass.
    #[default]
    Lenient,
    /// By the schema; unknown fields are refused.
    Strict,
    /// Only that the body is JSON.
    Off,
}

/// Whether URLs that the container would fetch are allowed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UrlInput {
    /// Any.
    #[default]
    Any,
    /// None: inline data only.
    Off,
}

section! {
    /// Probing the endpoints.
    Health {
        /// Whether to probe; without it, endpoints count as healthy. By default, pools of kind `nim` are probed and
        /// others are not: NVCF and NGC have no such path.
        enabled: Option<bool> = None,
        /// Path to ask for; only the status counts, 200 to 299 is healthy.
        path: String = "/v1/health/ready".into(),
        /// Time between probes.
        #[schemars(range(min = 50, max = 3_600_000))]
        interval_ms: u64 = 5000,
        /// Time for a probe.
        #[schemars(range(min = 10, max = 600_000))]
        timeout_ms: u64 = 1000,
        /// Failures in a row that take an endpoint out.
        #[schemars(range(min = 1, max = 1000))]
        unhealthy_after: u32 = 3,
        /// Successes in a row that bring it back.
        #[schemars(range(min = 1, max = 1000))]
        healthy_after: u32 = 1,
        /// When probes fail on all endpoints, whether the best of them is tried all the same.
        try_unhealthy: bool = true,
    }
}

section! {
    /// How long things may take.
    Timeouts {
        /// Connecting, TLS included.
        #[schemars(range(min = 10, max = 600_000))]
        connect_ms: u64 = 2000,
        /// From the request sent to the answer's header. Prefill and video generation need minutes.
        #[schemars(range(min = 10, max = 86_400_000))]
        first_byte_ms: u64 = 600_000,
        /// How long the header of an event stream waits for its first event, so that an error in it can still be told by a
        /// status; 0 for not at all.
        #[schemars(range(max = 600_000))]
        first_event_ms: u64 = 500,
        /// Longest silence within an answer.
        #[schemars(range(min = 10, max = 86_400_000))]
        between_chunks_ms: u64 = 120_000,
        /// The whole request.
        #[schemars(range(min = 10, max = 86_400_000))]
        total_ms: u64 = 3_600_000,
    }
}

section! {
    /// TLS to `https` endpoints.
    PoolTls {
        /// PEM file with authorities to trust in place of the system's. Relative to this file.
        ca_file: Option<PathBuf> = None,
        /// Name to ask for and to verify, in place of the endpoint's host.
        server_name: Option<String> = None,
    }
}

section! {
    /// Connections to the backends.
    Connection {
        /// Speak HTTP/2: by ALPN over TLS, with prior knowledge in clear text.
        http2: bool = false,
        /// Time that an idle connection is kept. Below the backend's own: uvicorn closes after 5 s.
        #[schemars(range(min = 100, max = 3_600_000))]
        idle_timeout_ms: u64 = 4000,
    }
}
