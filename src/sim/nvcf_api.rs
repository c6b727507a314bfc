//! NVCF's API around invocation: functions, deployments, queues, assets, invocation tokens.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use http::StatusCode;
use serde_json::{Value, json};

use super::nvcf::Nvcf;
use super::nvcf_function::{Function, QUEUED_FUNCTION, QUEUED_REQUEST};
use super::reply::{self, Refused, Shape};
use super::{body, lock, nvct, uuid};

/// How long an asset's upload URL stays valid, in seconds.
const UPLOAD_SECONDS: i64 = 35 * 60;

type Answer = Result<Response, Refused>;

/// The ids in a path; which of them are there depends on the route.
#[derive(serde::Deserialize)]
struct Ids {
    #[serde(default)]
    function: String,
    version: Option<String>,
    #[serde(default)]
    id: String,
}

/// The same routes stand below a prefix for each domain.
pub(super) fn routes() -> Router<Arc<Nvcf>> {
    Router::new()
        .nest("/v2/nvcf", calls())
        .nest("/v2/orgs/{org}/nvcf", calls())
        .nest("/v2/orgs/{org}/teams/{team}/nvcf", calls())
        .merge(nvct::routes())
        .layer(middleware::from_fn(add_instance))
}

fn calls() -> Router<Arc<Nvcf>> {
    let version = put(update).get(detail).delete(remove);
    let deployment = post(deploy).get(deployed).put(deploy).delete(undeploy);
    Router::new()
        .route("/functions", get(list).post(register))
        .route("/functions/ids", get(ids))
        .route("/functions/{function}/versions", get(list).post(register))
        .route("/functions/{function}/versions/{version}", version)
        .route("/deployments/functions/{function}/versions/{version}", deployment)
        .route("/queues/functions/{function}", get(queues))
        .route("/queues/functions/{function}/versions/{version}", get(queues))
        .route("/queues/{id}/position", get(position))
        .route("/clusterGroups", get(cluster_groups))
        .route("/supportedGpus", get(supported_gpus))
        .route("/assets", get(assets).post(create_asset))
        .route("/assets/{id}", get(asset).delete(delete_asset))
        .route("/tokens/functions", post(token))
        .route("/tokens/functions/{function}", post(token))
        .route("/tokens/functions/{function}/versions/{version}", post(token))
}

/// Problems of the management services name the path they are about.
async fn add_instance(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    if response.status().as_u16() < 400 {
        return response;
    }
    let (parts, body) = response.into_parts();
    let raw = body::raw(body).await.unwrap_or_default();
    let Ok(payload) = raw.parse() else { return Response::from_parts(parts, raw.into_body()) };
    let mut problem = payload.value;
    problem["instance"] = json!(path);
    let mut response = reply::json(parts.status, &problem);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/problem+json"));
    response
}

async fn list(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    let functions = lock(&nvcf.functions);
    let wanted = |function: &&Function| ids.function.is_empty() || function.id == ids.function;
    let shown: Vec<Value> = functions.iter().filter(wanted).map(Function::show).collect();
    if shown.is_empty() && !ids.function.is_empty() {
        return Err(unknown(&ids.function));
    }
    Ok(reply::json(StatusCode::OK, &json!({"functions": shown})))
}

async fn ids(State(nvcf): State<Arc<Nvcf>>) -> Response {
    let mut ids: Vec<String> = lock(&nvcf.functions).iter().map(|function| function.id.clone()).collect();
    ids.dedup();
    reply::json(StatusCode::OK, &json!({"functionIds": ids}))
}

async fn register(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>, request: Request) -> Answer {
    let asked = read(request).await?;
    let text = |name: &str| asked.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if text("name").is_none() || text("inferenceUrl").is_none() {
        return Err(refuse(StatusCode::BAD_REQUEST, "name and inferenceUrl are required"));
    }
    if text("containerImage").is_none() && text("helmChart").is_none() && asked.get("models").is_none() {
        return Err(refuse(StatusCode::BAD_REQUEST, "one of containerImage, helmChart and models is required"));
    }
    let mut functions = lock(&nvcf.functions);
    let known = functions.iter().any(|function| function.id == ids.function);
    if !ids.function.is_empty() && !known {
        return Err(unknown(&ids.function));
    }
    let function = Function::registered(known.then_some(ids.function), &asked, nvcf.settings.slots);
    let shown = function.show();
    functions.push(function);
    Ok(reply::json(StatusCode::OK, &json!({"function": shown})))
}

async fn detail(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    nvcf.with(&ids, |function| json!({"function": function.show()}))
}

/// Only tags can be changed.
async fn update(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>, request: Request) -> Answer {
    let asked = read(request).await?;
    nvcf.with(&ids, |function| {
        if let (Some(tags), Some(details)) = (asked.get("tags"), function.details.as_object_mut()) {
            details.insert("tags".to_owned(), tags.clone());
        }
        json!({"function": function.show()})
    })
}

async fn remove(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    nvcf.with(&ids, |_| Value::Null)?;
    lock(&nvcf.functions).retain(|function| !ids.name(function));
    Ok(reply::bare(StatusCode::NO_CONTENT))
}

async fn deploy(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>, request: Request) -> Answer {
    let asked = read(request).await?;
    let specifications = asked.get("deploymentSpecifications").cloned();
    let Some(specifications) = specifications.filter(|given| given.as_array().is_some_and(|given| !given.is_empty()))
    else {
        return Err(refuse(StatusCode::BAD_REQUEST, "deploymentSpecifications must not be empty"));
    };
    nvcf.with(&ids, |function| {
        function.status = "ACTIVE";
        if let Some(details) = function.details.as_object_mut() {
            details.insert("deploymentSpecifications".to_owned(), specifications);
        }
        deployment(function)
    })
}

async fn deployed(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    nvcf.with(&ids, |function| deployment(function))
}

async fn undeploy(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    nvcf.with(&ids, |function| {
        function.status = "INACTIVE";
        json!({"function": function.show()})
    })
}

fn deployment(function: &Function) -> Value {
    let specifications = function.details.get("deploymentSpecifications").cloned().unwrap_or_else(|| json!([]));
    json!({"deployment": {"functionId": function.id, "functionVersionId": function.version, "ncaId": "sim-nca",
                          "functionStatus": function.status, "deploymentSpecifications": specifications,
                          "createdAt": "2026-01-01T00:00:00Z"}})
}

async fn queues(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    let queues: Vec<Value> = {
        let (functions, jobs) = (lock(&nvcf.functions), lock(&nvcf.jobs));
        let queued = |function: &Function| {
            jobs.values().filter(|job| job.version == function.version && !job.progress.started()).count()
        };
        let open = |function: &&Function| ids.name(function) && matches!(function.status, "ACTIVE" | "DEPLOYING");
        let queue = |function: &Function| {
            json!({"functionVersionId": function.version, "functionName": function.name(),
                   "functionStatus": function.status, "queueDepth": queued(function)})
        };
        functions.iter().filter(open).map(queue).collect()
    };
    if queues.is_empty() {
        return Err(unknown(&ids.function));
    }
    Ok(reply::json(StatusCode::OK, &json!({"functionId": ids.function, "queues": queues})))
}

/// Records exist only once a 202 was sent, and by then the request has left the queue.
async fn position(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    if ids.id == QUEUED_REQUEST {
        let version = super::version_of(QUEUED_FUNCTION);
        let position = json!({"functionId": QUEUED_FUNCTION, "functionVersionId": version, "positionInQueue": 7});
        return Ok(reply::json(StatusCode::OK, &position));
    }
    let running = lock(&nvcf.jobs).get(&ids.id).is_some_and(|job| job.pollable);
    Err(if running {
        refuse(StatusCode::BAD_REQUEST, &format!("Request '{}' is not queued", ids.id))
    } else {
        refuse(StatusCode::NOT_FOUND, &format!("Request '{}' not found", ids.id))
    })
}

async fn cluster_groups() -> Response {
    let group = json!({"id": "sim-group", "name": "sim", "ncaId": "sim-nca",
                       "gpus": [{"name": "L40", "instanceTypes": [{"name": "sim.gpu", "default": true}]}]});
    reply::json(StatusCode::OK, &json!({"clusterGroups": [group]}))
}

async fn supported_gpus() -> Response {
    reply::json(StatusCode::OK, &json!({"gpus": [{"name": "L40", "instanceTypes": [{"name": "sim.gpu"}]}]}))
}

async fn assets(State(nvcf): State<Arc<Nvcf>>) -> Response {
    let assets: Vec<Value> = lock(&nvcf.assets).values().cloned().collect();
    reply::json(StatusCode::OK, &json!({"assets": assets}))
}

async fn create_asset(State(nvcf): State<Arc<Nvcf>>, request: Request) -> Answer {
    let asked = read(request).await?;
    let text = |name: &str| asked.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(kind), Some(description)) = (text("contentType"), text("description")) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "contentType and description are required"));
    };
    let id = uuid();
    let signed = vec![("content-type", kind.clone()), ("x-amz-meta-nvcf-asset-description", description.clone())];
    let url = nvcf.store.sign_upload(&asset_key(&id), UPLOAD_SECONDS, signed);
    let asset = json!({"assetId": id, "contentType": kind, "description": description});
    let mut shown = asset.clone();
    shown["uploadUrl"] = json!(url);
    lock(&nvcf.assets).insert(id, asset);
    Ok(reply::json(StatusCode::OK, &shown))
}

async fn asset(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    let asset = lock(&nvcf.assets).get(&ids.id).cloned();
    asset.map(|asset| reply::json(StatusCode::OK, &json!({"asset": asset}))).ok_or_else(|| no_asset(&ids.id))
}

async fn delete_asset(State(nvcf): State<Arc<Nvcf>>, Path(ids): Path<Ids>) -> Answer {
    nvcf.store.remove(&asset_key(&ids.id));
    let removed = lock(&nvcf.assets).remove(&ids.id);
    removed.map(|_| reply::bare(StatusCode::NO_CONTENT)).ok_or_else(|| no_asset(&ids.id))
}

async fn token(Path(_): Path<Ids>) -> Response {
    reply::json(StatusCode::OK, &json!({"token": format!("sim.{}", uuid())}))
}

impl Ids {
    fn name(&self, function: &Function) -> bool {
        function.id == self.function && self.version.as_ref().is_none_or(|version| *version == function.version)
    }
}

impl Nvcf {
    fn with(&self, ids: &Ids, act: impl FnOnce(&mut Function) -> Value) -> Answer {
        let mut functions = lock(&self.functions);
        let found = functions.iter_mut().find(|function| ids.name(function));
        found.map(|function| reply::json(StatusCode::OK, &act(function))).ok_or_else(|| unknown(&ids.function))
    }
}

async fn read(request: Request) -> Result<Value, Refused> {
    let payload = body::json(request.into_body()).await;
    payload.map(|payload| payload.value).map_err(|reason| refuse(StatusCode::BAD_REQUEST, &reason))
}

fn asset_key(id: &str) -> String {
    format!("assets/{id}")
}

fn unknown(function: &str) -> Refused {
    let detail = format!("Function '{function}': Not found for account 'sim-nca'");
    refuse(StatusCode::NOT_FOUND, &detail)
}

fn no_asset(id: &str) -> Refused {
    refuse(StatusCode::NOT_FOUND, &format!("failed to find asset {id}"))
}

fn refuse(status: StatusCode, detail: &str) -> Refused {
    reply::error(Shape::NvBoot, status, detail).into()
}
