//! Admin: liveness, readiness, metrics, state and reload, on a listener of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::sync::oneshot;

use crate::config::SecretText;
use crate::proxy::snapshot::{PoolState, Snapshot};
use crate::reload::Ask;
use crate::telemetry::Telemetry;

/// What the endpoints look at.
#[derive(Clone)]
pub struct State {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The instruments.
    pub telemetry: Arc<Telemetry>,
    /// Stopping.
    pub draining: Arc<AtomicBool>,
    /// Asks for a reload.
    pub ask: Ask,
    /// The credential for everything but health and metrics.
    pub token: Option<SecretText>,
}

/// The endpoints: `/livez`, `/readyz` and `/metrics` for machines; `/state` and `/reload` behind the credential.
pub fn router(state: State) -> Router {
    let guarded = Router::new()
        .route("/state", get(show_state))
        .route("/reload", post(reload))
        .route_layer(from_fn_with_state(state.clone(), require_token));
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .with_state(state)
}

async fn require_token(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let Some(token) = &state.token else { return next.run(request).await };
    let offered = request.headers().get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    if offered.is_some_and(|offered| bool::from(offered.ct_eq(token.reveal().as_bytes()))) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, Json(json!({ "error": "the admin token is missing or wrong" }))).into_response()
}

async fn ready(Extract(state): Extract<State>) -> Response {
    let snapshot = state.snapshot.load();
    let draining = state.draining.load(Ordering::Relaxed);
    let pools: serde_json::Map<String, Value> =
        snapshot.pools.iter().map(|p| (p.settings.name.to_string(), json!(p.pool.is_available()))).collect();
    let good = snapshot.is_ready() && !draining;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": good, "draining": draining, "pools": pools }))).into_response()
}

async fn metrics(Extract(state): Extract<State>) -> Response {
    let snapshot = state.snapshot.load();
    let endpoints = snapshot.pools.iter().flat_map(|pool| {
        let name = pool.settings.name.as_str();
        pool.pool.endpoints().iter().map(move |e| (name, e.name(), e.in_flight(), e.health().is_healthy()))
    });
    match state.telemetry.page(endpoints) {
        Ok(page) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn show_state(Extract(state): Extract<State>) -> Json<Value> {
    let snapshot = state.snapshot.load();
    let pool = |pool: &PoolState| {
        let endpoints = pool.pool.endpoints().iter();
        let endpoints = endpoints
            .map(|e| json!({ "name": e.name(), "healthy": e.health().is_healthy(), "in_flight": e.in_flight() }));
        json!({
            "name": pool.settings.name.as_str(),
            "api": pool.settings.api.as_str(),
            "models": pool.settings.models.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": snapshot.generation,
        "draining": state.draining.load(Ordering::Relaxed),
        "in_flight": state.telemetry.in_flight(),
        "pools": snapshot.pools.iter().map(pool).collect::<Vec<_>>(),
    }))
}

async fn reload(Extract(state): Extract<State>) -> Response {
    let (answer, answered) = oneshot::channel();
    if state.ask.send(answer).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "stopping" }))).into_response();
    }
    match answered.await {
        Ok(Ok(generation)) => Json(json!({ "generation": generation })).into_response(),
        Ok(Err(reason)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": "refused; the last good configuration stays in force", "mistakes": reason.lines().collect::<Vec<_>>() }))).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "stopping" }))).into_response(),
    }
}
