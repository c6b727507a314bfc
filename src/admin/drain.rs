//! Drain: keeps new requests away from an endpoint, until an operator lets them come again (docs/decisions/0020).

use std::sync::Arc;

use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::response::Json;
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;

type Place = (String, String);

pub(super) async fn begin(state: Extract<State>, place: Path<Place>) -> Result<Json<Value>, Problem> {
    set(&state, place, true)
}

pub(super) async fn end(state: Extract<State>, place: Path<Place>) -> Result<Json<Value>, Problem> {
    set(&state, place, false)
}

fn set(state: &State, Path((pool, endpoint)): Path<Place>, is_drained: bool) -> Result<Json<Value>, Problem> {
    let snapshot = state.snapshot.load();
    let missing = |what: String| Problem::new(StatusCode::NOT_FOUND, what);
    let found = snapshot.pools.iter().find(|state| state.settings.name.as_str() == pool);
    let Some(found) = found else { return Err(missing("there is no such pool".into())) };
    let all = found.pool.endpoints();
    // A pool may list one twice, to give it more.
    let named: Vec<_> = all.iter().filter(|e| e.name() == endpoint).map(Arc::clone).collect();
    if named.is_empty() {
        return Err(missing(format!("the pool {pool} has no such endpoint")));
    }
    named.iter().for_each(|endpoint| endpoint.drain(is_drained));
    found.resize();
    tracing::info!(%pool, %endpoint, is_drained, "an operator drained an endpoint, or no longer");
    let in_flight: usize = named.iter().map(|endpoint| endpoint.in_flight()).sum();
    Ok(Json(json!({ "pool": pool, "endpoint": endpoint, "drained": is_drained, "in_flight": in_flight })))
}
