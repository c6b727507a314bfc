//! Redis, quotas and prices.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;

/// Redis, by which replicas share limits.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// How it is deployed.
    #[serde(default)]
    pub mode: RedisMode,
    /// `host:port` of the server, of all sentinels, or of some nodes of the cluster.
    #[schemars(length(min = 1, max = 100))]
    pub addresses: Vec<String>,
    /// The name by which sentinels know the server. For `mode: sentinel`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200))]
    pub master: Option<String>,
    /// User of Redis's access control lists. Needs `password`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200))]
    pub username: Option<String>,
    /// Password of the user, or of the server.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Password of the sentinels. For `mode: sentinel`.
    #[serde(default)]
    pub sentinel_password: Option<Secret>,
    /// TLS to Redis. Without it, clear text.
    #[serde(default)]
    pub tls: Option<RedisTls>,
    /// Number of the database; a cluster has only 0.
    #[serde(default)]
    #[schemars(range(max = 65_535))]
    pub database: u32,
    /// What every key in Redis begins with. Gateways that share limits have the same.
    #[serde(default = "default_prefix")]
    #[schemars(regex(pattern = "^[A-Za-z0-9._-]{1,64}$"))]
    pub prefix: String,
    /// Longest that a request waits for Redis. Above the round-trip time.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 1, max = 1000))]
    pub timeout_ms: u64,
    /// Time to connect.
    #[serde(default = "default_redis_time_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// Time for a reply, after which the connection counts as broken.
    #[serde(default = "default_redis_time_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub reply_timeout_ms: u64,
}

fn default_prefix() -> String {
    "nimgate".into()
}

fn default_timeout_ms() -> u64 {
    20
}

fn default_redis_time_ms() -> u64 {
    1000
}

/// How Redis is deployed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// Sentinels that know the server.
    Sentinel,
    /// A cluster.
    Cluster,
}

section! {
    /// TLS to Redis.
    RedisTls {
        /// PEM file with authorities to trust in place of the system's. Relative to this file.
        ca_file: Option<PathBuf> = None,
    }
}

section! {
    /// How limits are held, and usage is found out.
    Quotas {
        /// What holds while Redis is away.
        on_outage: OnOutage = OnOutage::LocalShare,
        /// The least number of replicas to share among while Redis is away. Only with `redis`.
        #[schemars(range(min = 1, max = 1000))]
        replicas: u32 = 1,
        /// How long what a vanished replica held stays taken.
        #[schemars(range(min = 1000, max = 600_000))]
        hold_ms: u64 = 10_000,
        /// File that keeps counts and usage over a restart. Only without `redis`. Relative to this file.
        state_file: Option<PathBuf> = None,
        /// How often usage and counts are written.
        #[schemars(range(min = 50, max = 60_000))]
        write_every_ms: u64 = 1000,
        /// For how many days usage is kept.
        #[schemars(range(min = 1, max = 4000))]
        usage_days: u32 = 400,
        /// How much is reserved for a request before its usage is known.
        estimate: Estimate = Estimate::default(),
        /// Whether backends are asked for the usage of streams whose callers did not ask.
        stream_usage: bool = true,
        /// After a caller left a stream, how long to go on reading for its usage.
        #[schemars(range(max = 60_000))]
        drain_ms: u64 = 0,
        /// What money is counted in. Only shown.
        #[schemars(length(min = 1, max = 16))]
        currency: String = "USD".into(),
    }
}

/// What holds while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnOutage {
    /// Each replica may use its share: the limit over the number of replicas.
    LocalShare,
    /// Everything is allowed.
    Allow,
    /// Only what was leased already is allowed.
    Deny,
}

section! {
    /// How much is reserved for a request before its usage is known.
    Estimate {
        /// Bytes of text that make a token.
        #[schemars(range(min = 1, max = 16))]
        bytes_per_token: f64 = 3.0,
        /// Tokens of an image, a video or a sound.
        #[schemars(range(max = 10_000_000))]
        tokens_per_media: u64 = 1000,
        /// Tokens of an answer whose request states no bound.
        #[schemars(range(max = 10_000_000))]
        output_tokens: u64 = 1024,
    }
}

/// What a model costs, in units of money.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Its id; `*` stands for any characters.
    #[schemars(length(min = 1, max = 200))]
    pub model: String,
    /// For a million tokens of prompts.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub input_per_million: f64,
    /// For a million tokens of answers.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub output_per_million: f64,
    /// For each request that is answered well.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub per_request: f64,
    /// For each second of generated video.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub per_video_second: f64,
}
