//! Cloud Tasks: launched, watched, cancelled, deleted. Every task stands in its queue until it is cancelled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use http::StatusCode;
use serde_json::{Value, json};

use super::reply::{self, Refused, Shape};
use super::{body, lock, uuid};

type Tasks = Arc<Mutex<BTreeMap<String, Value>>>;
type Answer = Result<Response, Refused>;

/// The id in a path, and maybe the organisation before it.
#[derive(serde::Deserialize)]
struct Ids {
    #[serde(default)]
    task: String,
}

/// The same routes stand below a prefix for each domain.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let tasks = Tasks::default();
    Router::new().nest("/v1/nvct", calls()).nest("/v2/orgs/{org}/nvct", calls()).with_state(tasks)
}

fn calls() -> Router<Tasks> {
    Router::new()
        .route("/tasks", get(list).post(launch))
        .route("/tasks/bulk", post(bulk))
        .route("/tasks/{task}", get(show).delete(remove))
        .route("/tasks/{task}/cancel", post(cancel))
        .route("/tasks/{task}/events", get(events))
        .route("/tasks/{task}/results", get(results))
        .route("/secrets/tasks/{task}", put(secrets))
}

async fn list(State(tasks): State<Tasks>) -> Response {
    let all: Vec<Value> = lock(&tasks).values().cloned().collect();
    reply::json(StatusCode::OK, &json!({"tasks": all}))
}

async fn launch(State(tasks): State<Tasks>, request: Request) -> Answer {
    let mut task = read(request).await?;
    if task.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(refuse(StatusCode::BAD_REQUEST, "name is required"));
    }
    let id = uuid();
    (task["id"], task["status"], task["ncaId"]) = (json!(id), json!("QUEUED"), json!("sim-nca"));
    if let Some(task) = task.as_object_mut() {
        task.remove("secrets");
    }
    lock(&tasks).insert(id, task.clone());
    Ok(reply::json(StatusCode::OK, &json!({"task": task})))
}

async fn bulk(State(tasks): State<Tasks>, request: Request) -> Answer {
    let asked = read(request).await?;
    let ids = asked.get("taskIds").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let tasks = lock(&tasks);
    let brief = |task: &Value| json!({"id": task["id"], "name": task["name"], "status": task["status"]});
    let found: Vec<Value> = ids.filter_map(|id| tasks.get(id)).map(brief).collect();
    Ok(reply::json(StatusCode::OK, &json!({"ncaId": "sim-nca", "tasks": found})))
}

async fn show(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    with(&tasks, &ids, |task| json!({"task": task}))
}

async fn cancel(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    with(&tasks, &ids, |task| {
        task["status"] = json!("CANCELED");
        json!({"task": task})
    })
}

async fn events(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    with(&tasks, &ids, |task| json!({"events": [{"taskId": task["id"], "message": task["status"]}]}))
}

async fn results(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    with(&tasks, &ids, |_| json!({"results": []}))
}

async fn secrets(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    with(&tasks, &ids, |_| Value::Null).map(|_| reply::bare(StatusCode::NO_CONTENT))
}

async fn remove(State(tasks): State<Tasks>, Path(ids): Path<Ids>) -> Answer {
    let removed = lock(&tasks).remove(&ids.task);
    removed.map(|_| reply::bare(StatusCode::NO_CONTENT)).ok_or_else(|| unknown(&ids.task))
}

fn with(tasks: &Tasks, ids: &Ids, act: impl FnOnce(&mut Value) -> Value) -> Answer {
    let mut tasks = lock(tasks);
    let task = tasks.get_mut(&ids.task).ok_or_else(|| unknown(&ids.task))?;
    Ok(reply::json(StatusCode::OK, &act(task)))
}

async fn read(request: Request) -> Result<Value, Refused> {
    let payload = body::json(request.into_body()).await;
    let value = payload.map(|payload| payload.value).map_err(|reason| refuse(StatusCode::BAD_REQUEST, &reason))?;
    if value.is_object() { Ok(value) } else { Err(refuse(StatusCode::BAD_REQUEST, "expected an object")) }
}

fn unknown(task: &str) -> Refused {
    refuse(StatusCode::NOT_FOUND, &format!("Task '{task}': Not found for account 'sim-nca'"))
}

fn refuse(status: StatusCode, detail: &str) -> Refused {
    reply::error(Shape::NvBoot, status, detail).into()
}
