//! Vectors that are kept: how many, and forgetting them.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;
use crate::cache::Subject;
use crate::proxy::snapshot::PoolState;

/// What is to be forgotten: one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Order {
    Pool(String),
    Model(String),
    Org(String),
    All(bool),
}

pub(super) async fn purge(Extract(state): Extract<State>, body: Bytes) -> Result<Json<Value>, Problem> {
    let wrong = |reason: &str| Problem::new(StatusCode::BAD_REQUEST, reason);
    let order: Order = serde_json::from_slice(&body)
        .map_err(|_| wrong("expected one of {\"pool\": …}, {\"model\": …}, {\"org\": …}, {\"all\": true}"))?;
    let snapshot = state.snapshot.load();
    let subject = match order {
        Order::All(true) => Subject::All,
        Order::All(false) => return Err(wrong("all: expected true")),
        Order::Pool(name) if snapshot.pools.iter().any(|pool| pool.settings.name.as_str() == name) => {
            Subject::Pool(name)
        }
        Order::Pool(name) => return Err(wrong(&format!("there is no pool {name}"))),
        Order::Model(name) => {
            let known = snapshot.pools.iter().flat_map(|pool| &pool.settings.models);
            match known.into_iter().find(|(own, _)| *own == name) {
                Some((_, entry)) => Subject::Model(entry.id.to_string()),
                None => return Err(wrong(&format!("there is no model {name}"))),
            }
        }
        Order::Org(name) if name.len() <= 256 => Subject::Org(name),
        Order::Org(_) => return Err(wrong("org: longer than any name")),
    };
    match state.purges.purge(&subject).await {
        Ok(()) => Ok(Json(json!({ "purged": true }))),
        Err(_) => {
            let error =
                "forgotten here; other replicas can not be told while Redis is away, and follow when it is back";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    }
}

/// How the cache of a pool is, for the state page.
pub(super) fn show(pool: &PoolState) -> Option<Value> {
    let vectors = pool.vectors.as_ref()?;
    let (entries, bytes) = vectors.cache.size();
    let stats = &vectors.cache.stats;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let hits = read(&stats.local) + read(&stats.remote) + read(&stats.shared);
    let all = hits + read(&stats.misses);
    Some(json!({
        "entries": entries,
        "bytes": bytes,
        "hits": { "process": read(&stats.local), "redis": read(&stats.remote), "shared": read(&stats.shared) },
        "misses": read(&stats.misses),
        "hit_ratio": if all == 0 { None } else { Some(hits as f64 / all as f64) },
        "saved_s": read(&stats.saved) as f64 / 1e6,
        "spoilt": read(&stats.spoilt),
        "unkept": read(&stats.unkept),
        "unwritten": read(&stats.unwritten),
        "revision": vectors.revision.agreed().as_deref(),
        "revisions": vectors.revision.shown(),
    }))
}
