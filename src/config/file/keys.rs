//! The keys file: organisations, teams, keys and their limits. Records that come as JSON have the same form.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quota::limit::LARGEST;

/// The keys file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The organisations. Once one is listed, all are.
    #[serde(default)]
    pub orgs: Vec<Org>,
    /// The teams. Once one is listed, all are.
    #[serde(default)]
    pub teams: Vec<Team>,
    /// The keys.
    pub keys: Vec<Key>,
}

/// One organisation.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Org {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// What all its keys may use together.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub limits: Vec<Limit>,
}

/// One team.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Team {
    /// Its organisation.
    #[serde(default = "default_org")]
    #[schemars(length(min = 1, max = 128))]
    pub org: String,
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// What all its keys may use together.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub limits: Vec<Limit>,
}

/// One key.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The public part: what stands between `ngk_` and the next `_`.
    #[schemars(regex(pattern = "^[A-Za-z0-9-]{1,64}$"))]
    pub id: String,
    /// SHA-256 of the secret part, in hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
    /// The secret before a rotation.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// The organisation.
    #[serde(default = "default_org")]
    #[schemars(length(min = 1, max = 128))]
    pub org: String,
    /// The team.
    #[serde(default = "default_team")]
    #[schemars(length(min = 1, max = 128))]
    pub team: String,
    /// What it is for.
    #[serde(default)]
    pub name: String,
    /// Scopes that it grants, as the operations of the catalogue name them; `*` for all.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// Models that it may use; empty for all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Pools that it may use; empty for all.
    #[serde(default)]
    pub pools: Vec<String>,
    /// How much it may use.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub limits: Vec<Limit>,
    /// When a pool is full, whose requests go first: `high` before `normal` before `low`.
    #[serde(default)]
    pub priority: Priority,
    /// Its share of a full pool against that of other keys of its priority.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// When it ends, RFC 3339.
    #[serde(default)]
    pub expires: Option<String>,
    /// Switches it off.
    #[serde(default)]
    pub disabled: bool,
}

/// Whose requests go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    High,
    /// What is usual.
    #[default]
    Normal,
    /// When nobody else waits, and now and then.
    Low,
}

fn one() -> u32 {
    1
}

/// The secret before a rotation.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// SHA-256 of it, in hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
    /// Until when it is good, RFC 3339.
    pub until: String,
}

/// A limit: one amount, the time that it is for, and the requests that it is for.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// Requests.
    #[schemars(range(max = LARGEST))]
    pub requests: Option<u64>,
    /// Tokens of prompts.
    #[schemars(range(max = LARGEST))]
    pub input_tokens: Option<u64>,
    /// Tokens of answers.
    #[schemars(range(max = LARGEST))]
    pub output_tokens: Option<u64>,
    /// Tokens of both.
    #[schemars(range(max = LARGEST))]
    pub total_tokens: Option<u64>,
    /// Requests at the same time. Has no `per`.
    #[schemars(range(max = LARGEST))]
    pub concurrency: Option<u64>,
    /// Units of money.
    #[schemars(range(min = 0, max = 9_000_000))]
    pub spend: Option<f64>,
    /// The time after which the count begins anew; days and months in UTC.
    pub per: Option<Per>,
    /// Only for models that one of these fits; `*` stands for any characters.
    #[schemars(length(max = 100), inner(length(min = 1, max = 200)))]
    pub models: Vec<String>,
    /// Only for pools that one of these fits.
    #[schemars(length(max = 100), inner(length(min = 1, max = 200)))]
    pub pools: Vec<String>,
    /// Only for operations that one of these fits, by `id` or `api/id`.
    #[schemars(length(max = 100), inner(length(min = 1, max = 200)))]
    pub operations: Vec<String>,
    /// Whether what a cache knew counts as used; without it, that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_cached: Option<bool>,
}

/// A time after which a count begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day, from midnight UTC.
    Day,
    /// A month, from the midnight UTC of its first day.
    Month,
}

fn default_org() -> String {
    "default".into()
}

fn default_team() -> String {
    "default".into()
}

fn default_scopes() -> Vec<String> {
    vec!["invoke_function".into()]
}
