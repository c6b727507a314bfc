//! What a cache may keep of an operation's answers, and what its vectors follow from: `x-nimgate-cacheable`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// How an operation's answers may be kept item by item.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cacheable {
    /// The member of the request that holds the items.
    pub input: String,
    /// The member that says how vectors are written; nothing else follows from it.
    #[serde(default)]
    pub encoding: Option<String>,
    /// Members that vectors do not depend on.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// Members that may be a list with one entry for each item.
    #[serde(default)]
    pub per_item: Vec<String>,
    /// Documented defaults: stating one is as good as leaving it out.
    #[serde(default)]
    pub defaults: BTreeMap<String, Value>,
    /// Members whose every other value keeps a request away from the cache.
    #[serde(default)]
    pub only: BTreeMap<String, Vec<Value>>,
    /// Members that keep a request away from the cache.
    #[serde(default)]
    pub never: Vec<String>,
    /// Items of the largest request that any backend of the API is known to take.
    pub batch: usize,
}

impl Cacheable {
    pub(super) fn read(stated: &Value) -> Result<Self, String> {
        if !stated.is_object() {
            return Err("x-nimgate-cacheable: expected an object".into());
        }
        let cacheable = Self::deserialize(stated).map_err(|e| format!("x-nimgate-cacheable: {e}"))?;
        let is_named = |name: &String| *name != cacheable.input && Some(name) != cacheable.encoding.as_ref();
        match cacheable.ignored.iter().all(is_named) {
            true => Ok(cacheable),
            false => Err("x-nimgate-cacheable.ignored: names the items, or how vectors are written".into()),
        }
    }
}
