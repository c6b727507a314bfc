//! The pages around inference: health, models, metadata, manifest, license, version, metrics.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::fault::Faults;
use super::nim::Nim;
use super::{ErrorStyle, Kind, reply};

/// Start of the simulated model's life, as in the reference's example.
const CREATED: u64 = 1_721_925_000;

/// World models have neither `/v1/models` nor `/v1/version`, and no document lists them for Embed1.
pub(super) fn routes(kind: Kind) -> Router<Arc<Nim>> {
    let common = Router::new()
        .route("/v1/health/live", get(live))
        .route("/v1/health/ready", get(ready))
        .route("/v1/metadata", get(metadata))
        .route("/v1/manifest", get(manifest))
        .route("/v1/license", get(license))
        .route("/v1/metrics", get(metrics));
    match kind {
        Kind::CosmosPredict | Kind::CosmosEmbed1 => common,
        _ => common.route("/v1/models", get(models)).route("/v1/version", get(version)),
    }
}

async fn live(State(nim): State<Arc<Nim>>) -> Response {
    reply::json(StatusCode::OK, &health(nim.kind, "live"))
}

async fn ready(State(nim): State<Arc<Nim>>, faults: Option<Extension<Faults>>) -> Response {
    if faults.is_some_and(|Extension(faults)| faults.unready()) {
        return reply::json(StatusCode::SERVICE_UNAVAILABLE, &unready(nim.kind, nim.settings.errors));
    }
    reply::json(StatusCode::OK, &health(nim.kind, "ready"))
}

/// The bodies differ by family; only the status means something.
fn health(kind: Kind, word: &str) -> Value {
    const OBJECT: &str = "health.response";
    match kind {
        Kind::CosmosPredict => {
            let check = if word == "ready" { "readiness" } else { "liveness" };
            json!({"description": format!("Triton {check} check"), "status": word})
        }
        Kind::CosmosEmbed1 => json!({"object": OBJECT, "message": format!("NIM Service is {word}")}),
        Kind::Embedding => json!({"object": OBJECT, "message": word, word: true}),
        Kind::Reranking => json!({"object": OBJECT, "message": format!("Service is {word}."), "status": word}),
        _ => json!({"object": OBJECT, "message": format!("Service is {word}.")}),
    }
}

fn unready(kind: Kind, errors: ErrorStyle) -> Value {
    const MESSAGE: &str = "Service is not ready";
    const TYPE: &str = "ServiceUnavailableError";
    match (kind, errors) {
        (Kind::CosmosPredict, _) => json!({"description": "Triton readiness check", "status": "not ready"}),
        (Kind::Llm | Kind::Vlm, ErrorStyle::Nested) => {
            json!({"error": {"message": MESSAGE, "type": TYPE, "param": null, "code": 503}})
        }
        _ => json!({"object": "error", "message": MESSAGE, "type": TYPE, "code": 503, "param": null}),
    }
}

async fn models(State(nim): State<Arc<Nim>>) -> Response {
    let model = |id: &String| match nim.kind {
        Kind::Reranking => json!({"id": id}),
        _ => json!({
            "id": id, "object": "model", "created": CREATED, "owned_by": "system", "root": id, "parent": null,
            "max_model_len": 131_072,
            "permission": [{"id": "modelperm-sim", "object": "model_permission", "allow_sampling": true,
                            "allow_logprobs": true}]
        }),
    };
    let data: Vec<Value> = nim.models.iter().map(model).collect();
    reply::json(StatusCode::OK, &json!({"object": "list", "data": data}))
}

async fn metadata(State(nim): State<Arc<Nim>>) -> Response {
    let info = |model: &String| {
        let name = model.rsplit('/').next().unwrap_or(model);
        json!({"modelUrl": format!("ngc://nim/{model}:sim-1"), "shortName": name})
    };
    let body = json!({
        "assetInfo": [format!("ngc://nim/{}:sim-1", nim.model())],
        "licenseInfo": license_info(),
        "modelInfo": nim.models.iter().map(info).collect::<Vec<_>>(),
        "repository_override": "",
        "selectedModelProfileId": "5157a0d4b6a3ef7a7d0a33b9c0e0f2dcd2ba6a4b8d1d7f1f2c3f4b5a69788796",
        "version": nim.revision()
    });
    reply::json(StatusCode::OK, &body)
}

async fn manifest(State(nim): State<Arc<Nim>>) -> Response {
    let file = format!("schema_version: '1.0'\nmodel: {}\nprofiles: []\n", nim.model());
    reply::json(StatusCode::OK, &json!({"manifest_file": file, "repository_override": ""}))
}

async fn license() -> Response {
    reply::json(StatusCode::OK, &license_info())
}

fn license_info() -> Value {
    let content = "A simulator; no model is licensed here.";
    json!({"name": "SIMULATOR", "path": "/opt/nim/LICENSE", "sha": "", "size": content.len(), "url": "",
           "type": "file", "content": content})
}

async fn version() -> Response {
    reply::json(StatusCode::OK, &json!({"release": "1.0.0", "api": "3.1.0"}))
}

async fn metrics(State(nim): State<Arc<Nim>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], nim.metrics()).into_response()
}
