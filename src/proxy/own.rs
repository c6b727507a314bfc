//! Own: what the gateway answers by itself on the callers' listener.

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::admit::json_reply;
use super::respond::{Reply, allowed_origin};
use super::settings::CorsSettings;
use super::snapshot::Snapshot;
use crate::auth::Caller;
use crate::failure::Failure;
use crate::ids::PoolIndex;
use crate::route::{ModelEntry, ModelProblem, Own, Route};

mod docs;

/// The scope that a caller needs to see models.
const MODELS_SCOPE: &str = "invoke_function";

/// The name of an own endpoint in records and metrics.
pub fn name(own: Own) -> std::sync::Arc<str> {
    match own {
        Own::Live => "gateway_live",
        Own::Ready => "gateway_ready",
        Own::Models => "gateway_list_models",
        Own::Model => "gateway_show_model",
        Own::Metadata => "gateway_metadata",
        Own::OpenApi => "gateway_openapi",
        Own::Docs => "gateway_docs",
    }
    .into()
}

/// Answers a browser's preflight: backends refuse requests without a credential.
pub fn preflight(method: &Method, headers: &HeaderMap, cors: &CorsSettings) -> Option<Reply> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let origin = headers.get(header::ORIGIN)?.to_str().ok()?;
    let mut reply = Reply { status: 204, headers: Vec::new(), body: Bytes::new() };
    // `decorate` adds the origin itself, as on every answer.
    if allowed_origin(cors, origin).is_some() {
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).and_then(|v| v.to_str().ok());
        reply.headers = vec![
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE, OPTIONS".into()),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or("authorization, content-type").into()),
            (header::ACCESS_CONTROL_MAX_AGE, cors.max_age_s.to_string()),
        ];
    }
    Some(reply)
}

/// Answers what needs no key: health for probes, the catalogue for readers.
pub fn public(own: Own, snapshot: &Snapshot, headers: &HeaderMap) -> Option<Reply> {
    match own {
        Own::Live => Some(health(true, "Service is live.", "live")),
        Own::Ready if snapshot.is_ready() => Some(health(true, "Service is ready.", "ready")),
        Own::Ready => Some(health(false, "No pool has a healthy endpoint.", "not ready")),
        Own::OpenApi => Some(page("application/json", openapi(snapshot, headers))),
        Own::Docs => {
            let html = snapshot.docs.get_or_init(|| docs::page(&snapshot.catalogue, snapshot.served()).into());
            Some(page("text/html; charset=utf-8", html.clone()))
        }
        Own::Models | Own::Model | Own::Metadata => None,
    }
}

/// Answers what depends on the caller.
pub fn answer(own: Own, snapshot: &Snapshot, caller: &Caller, route: &Route) -> Result<Reply, Failure> {
    caller.require_scope(MODELS_SCOPE)?;
    match own {
        Own::Models => {
            let listed = models(snapshot, caller, param(route, "pool"));
            Ok(json_reply(200, &json!({ "object": "list", "data": listed })))
        }
        Own::Model => {
            let wanted = param(route, "model").map(super::params::decoded).unwrap_or_default();
            let mut all = models(snapshot, caller, param(route, "pool"));
            let found = all.iter().position(|m| m["id"] == wanted.as_str()).map(|at| all.swap_remove(at));
            let shown: String = wanted.chars().take(200).collect();
            found.map(|m| json_reply(200, &m)).ok_or(Failure::ModelNotFound(shown, ModelProblem::Nowhere))
        }
        Own::Metadata => Ok(json_reply(200, &metadata(snapshot, caller))),
        Own::Live | Own::Ready | Own::OpenApi | Own::Docs => Err(Failure::PathNotFound),
    }
}

fn param<'a>(route: &'a Route, name: &str) -> Option<&'a str> {
    route.params.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

fn health(good: bool, message: &str, status: &str) -> Reply {
    let body = json!({ "object": "health.response", "message": message, "status": status });
    json_reply(if good { 200 } else { 503 }, &body)
}

fn page(content_type: &str, body: Bytes) -> Reply {
    Reply { status: 200, headers: vec![(header::CONTENT_TYPE, content_type.into())], body }
}

fn openapi(snapshot: &Snapshot, _headers: &HeaderMap) -> Bytes {
    let merged = || snapshot.catalogue.merged(snapshot.served(), "/").to_string().into();
    snapshot.openapi.get_or_init(merged).clone()
}

/// The models that this caller may use and whose pool is alive, sorted by name, in OpenAI's shape.
fn models(snapshot: &Snapshot, caller: &Caller, within: Option<&str>) -> Vec<Value> {
    let now = chrono::Utc::now();
    let usable = |(pool, entry): &&(PoolIndex, ModelEntry)| {
        let state = snapshot.pool(*pool);
        state.pool.is_available()
            && entry.life.is_alive(now)
            && within.is_none_or(|name| state.settings.name.as_str() == name)
            && caller.require_model(&entry.id).is_ok()
            && caller.require_pool(&state.settings.name).is_ok()
    };
    let mut listed: Vec<(&str, Value)> = snapshot
        .routes
        .models()
        .filter_map(|(name, serving)| {
            let (pool, entry) = serving.iter().find(usable)?;
            let pool = snapshot.pool(*pool).settings.name.as_str();
            let model = json!({ "id": name, "object": "model", "created": snapshot.loaded, "owned_by": pool, "root": entry.id.as_str(), "parent": null });
            Some((name, model))
        })
        .collect();
    listed.sort_by_key(|(name, _)| *name);
    listed.into_iter().map(|(_, model)| model).collect()
}

fn metadata(snapshot: &Snapshot, caller: &Caller) -> Value {
    let pools = snapshot.pools.iter().filter(|p| caller.require_pool(&p.settings.name).is_ok());
    let shown = pools.map(|p| json!({ "name": p.settings.name.as_str(), "api": p.settings.api.as_str(), "available": p.pool.is_available() }));
    json!({ "name": "nimgate", "version": env!("CARGO_PKG_VERSION"), "pools": shown.collect::<Vec<_>>() })
}
