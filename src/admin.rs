//! Admin: liveness, readiness, metrics, state, reload, keys and usage, on a listener of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::handler::Handler;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission;
use crate::balance::{self, Standing};
use crate::cache::Purges;
use crate::config::SecretText;
use crate::directory::Directory;
use crate::live::Live;
use crate::observe::Observer;
use crate::otlp::{Exporter, Stats};
use crate::proxy::snapshot::{PoolState, Snapshot};
use crate::quota::Limiter;
use crate::reload::Ask;
use crate::store::Store;
use crate::telemetry::page::Format;

mod console;
mod document;
mod drain;
mod groups;
mod keys;
mod level;
mod live;
mod problem;
mod shown;
mod site;
mod usage;
mod vectors;

use problem::Problem;

/// What the endpoints look at.
#[derive(Clone)]
pub struct State {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Counts and limits.
    pub limiter: Arc<Limiter>,
    /// Redis, where there is one.
    pub store: Option<Store>,
    /// The metrics.
    pub observer: Arc<Observer>,
    /// What happened of late.
    pub live: Arc<Live>,
    /// Stopping.
    pub draining: Arc<AtomicBool>,
    /// Asks for a reload.
    pub ask: Ask,
    /// The credential for everything but health, metrics and the console's own files.
    pub token: Option<SecretText>,
    /// The records of keys, teams and organisations.
    pub directory: Arc<Directory>,
    /// The keys file, to name it.
    pub keys_file: Option<PathBuf>,
    /// What was purged of kept vectors.
    pub purges: Arc<Purges>,
    /// Sends telemetry.
    pub exporter: Exporter,
}

/// One operation of this listener.
struct Endpoint {
    method: Method,
    path: &'static str,
    /// Whether it wants the credential.
    is_guarded: bool,
    handler: MethodRouter<State>,
}

/// What is open to all.
fn open<H: Handler<T, State>, T: 'static>(method: Method, path: &'static str, handler: H) -> Endpoint {
    // The methods used here all have a filter.
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Endpoint { method, path, is_guarded: false, handler: on(filter, handler) }
}

/// What stands behind the credential.
fn guarded<H: Handler<T, State>, T: 'static>(method: Method, path: &'static str, handler: H) -> Endpoint {
    Endpoint { is_guarded: true, ..open(method, path, handler) }
}

fn endpoints() -> Vec<Endpoint> {
    const GET: Method = Method::GET;
    const PUT: Method = Method::PUT;
    const DELETE: Method = Method::DELETE;
    vec![
        open(GET, "/livez", || async { "live\n" }),
        open(GET, "/readyz", ready),
        open(GET, "/metrics", metrics),
        open(GET, "/", console::lead),
        open(GET, "/console", console::page),
        open(GET, "/console/{file}", console::file),
        guarded(GET, "/state", show_state),
        guarded(GET, "/live", live::show),
        guarded(GET, "/recent", live::recent),
        guarded(GET, "/labels", live::labels),
        guarded(Method::POST, "/pools/{pool}/endpoints/{endpoint}/drain", drain::begin),
        guarded(DELETE, "/pools/{pool}/endpoints/{endpoint}/drain", drain::end),
        guarded(Method::POST, "/reload", reload),
        guarded(GET, "/log/level", level::show),
        guarded(PUT, "/log/level", level::put),
        guarded(GET, "/openapi.json", document::show),
        guarded(GET, "/keys", keys::list),
        guarded(Method::POST, "/keys", keys::create),
        guarded(GET, "/keys/{id}", keys::show),
        guarded(Method::PATCH, "/keys/{id}", keys::patch),
        guarded(DELETE, "/keys/{id}", keys::delete),
        guarded(Method::POST, "/keys/{id}/rotate", keys::rotate),
        guarded(PUT, "/keys/{id}/limits", keys::put_limits),
        guarded(GET, "/orgs", groups::list_orgs),
        guarded(GET, "/orgs/{org}", groups::show_org),
        guarded(PUT, "/orgs/{org}", groups::put_org),
        guarded(DELETE, "/orgs/{org}", groups::delete_org),
        guarded(GET, "/teams", groups::list_teams),
        guarded(GET, "/teams/{org}/{team}", groups::show_team),
        guarded(PUT, "/teams/{org}/{team}", groups::put_team),
        guarded(DELETE, "/teams/{org}/{team}", groups::delete_team),
        guarded(GET, "/usage", usage::show),
        guarded(Method::POST, "/cache/purge", vectors::purge),
    ]
}

/// Every operation: method and path.
pub fn routes() -> Vec<(Method, &'static str)> {
    endpoints().into_iter().map(|endpoint| (endpoint.method, endpoint.path)).collect()
}

/// The endpoints: `/livez`, `/readyz` and `/metrics` for machines, and the console's files, which hold no data; all else
/// behind the credential.
pub fn router(state: State) -> Router {
    let (guarded, open): (Vec<_>, Vec<_>) = endpoints().into_iter().partition(|endpoint| endpoint.is_guarded);
    let all = |endpoints: Vec<Endpoint>| {
        endpoints.into_iter().fold(Router::new(), |router, Endpoint { path, handler, .. }| router.route(path, handler))
    };
    all(open)
        .merge(all(guarded).route_layer(from_fn_with_state(state.clone(), require_token)))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        .with_state(state)
}

async fn require_token(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let Some(token) = &state.token else {
        return match site::refuse_others(&request) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        };
    };
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
    let good = snapshot.is_ready() && state.limiter.is_started() && !draining;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut page = json!({ "ready": good, "draining": draining, "pools": pools });
    if let Some(store) = &state.store {
        let health = store.health();
        let limits = match state.limiter.is_away() {
            _ if !state.limiter.is_started() => "starting",
            Some(false) => "shared",
            _ => "away",
        };
        page["redis"] = json!({
            "up": health.is_up,
            "since_s": health.since.as_secs(),
            "reason": health.reason,
            "limits": limits,
            "replicas": state.limiter.replicas(),
        });
    }
    if state.directory.is_shared() {
        page["keys"] = json!({ "known": snapshot.callers.load().is_complete });
    }
    (status, Json(page)).into_response()
}

async fn metrics(Extract(state): Extract<State>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    ([(header::CONTENT_TYPE, format.media_type())], state.observer.page(format)).into_response()
}

/// How an endpoint stands: times in seconds, work in tokens or items.
fn show_endpoint(pool: &PoolState, endpoint: &balance::Endpoint) -> Value {
    let now = balance::now();
    let until = match endpoint.standing(now) {
        Standing::Paused(until) => Some(until.saturating_sub(now) as f64 / 1e6),
        Standing::Closed | Standing::Trial => None,
    };
    let report = endpoint.heard().latest(now).map(|(report, age)| {
        json!({
            "running": report.running,
            "waiting": report.waiting,
            "capacity": report.capacity,
            "kv_usage": report.kv_usage,
            "age_s": age.as_secs_f64(),
            "trusted": endpoint.heard().is_trusted(now),
        })
    });
    let pace = endpoint.pace().map(|fit| json!({ "own": fit.own, "ahead": fit.ahead }));
    json!({
        "name": endpoint.name(),
        "healthy": endpoint.health().is_healthy(),
        "drained": endpoint.is_drained(),
        "in_flight": endpoint.in_flight(),
        "max_in_flight": pool.pool.tuning().max_in_flight,
        "work": endpoint.work(),
        "breaker": if endpoint.is_open() { "open" } else { "closed" },
        "paused_s": until,
        "seconds_per_work": pace,
        "expected_s": pool.pool.expected(endpoint, now),
        "report": report,
    })
}

/// What somebody else lets pass, if that is known.
fn show_pace(pool: &PoolState) -> Option<Value> {
    let (rate, closed) = pool.gate.pace()?.view(Instant::now());
    Some(json!({ "requests_per_minute": rate, "closed_s": closed.as_secs_f64() }))
}

/// How a pool's places and its line stand; callers by the id of their key.
fn show_queue(view: &admission::View) -> Value {
    let callers = view.callers.iter().map(|caller| {
        json!({
            "key": caller.caller.as_str(),
            "priority": caller.class.word(),
            "waiting": caller.waiting,
            "oldest_s": caller.oldest.as_secs_f64(),
        })
    });
    let counts = &view.counts;
    json!({
        "places": view.capacity,
        "in_flight": view.in_flight,
        "waiting": view.waiting,
        "work_per_s": view.drain_rate,
        "callers": callers.collect::<Vec<_>>(),
        "entered": counts.entered,
        "waited": counts.waited,
        "refused": {
            "queue_full": counts.queue_full + counts.evicted,
            "caller_queue_full": counts.caller_full,
            "too_late": counts.too_late,
            "expired": counts.expired,
        },
        "left": counts.cancelled,
    })
}

/// What became of what was to be sent by OTLP.
fn show_otlp(exporter: &Exporter) -> Value {
    let show = |stats: Stats| {
        json!({
            "sent": stats.sent,
            "dropped": {
                "queue_full": stats.dropped_full,
                "refused": stats.dropped_refused,
                "too_late": stats.dropped_late,
            },
            "failed_exports": stats.failed,
            "queued": stats.queued,
        })
    };
    exporter.stats().into_iter().map(|(signal, stats)| (signal.word().to_owned(), show(stats))).collect()
}

async fn show_state(Extract(state): Extract<State>) -> Json<Value> {
    let snapshot = state.snapshot.load();
    let pool = |pool: &PoolState| {
        let endpoints = pool.pool.endpoints();
        let endpoints = endpoints.iter().map(|endpoint| show_endpoint(pool, endpoint));
        json!({
            "name": pool.settings.name.as_str(),
            "api": pool.settings.api.as_str(),
            "models": pool.settings.models.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
            "queue": show_queue(&pool.gate.view()),
            "pace": show_pace(pool),
            "cache": vectors::show(pool),
        })
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": snapshot.generation,
        "draining": state.draining.load(Ordering::Relaxed),
        "in_flight": state.observer.telemetry.in_flight(),
        "otlp": show_otlp(&state.exporter),
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
