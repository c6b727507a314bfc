//! The functions that the NVCF simulator has from its start, and how their containers behave.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Request, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::front::{call, millis_of, text_of};
use super::gate::Gates;
use super::nvcf_job::Progress;
use super::{body, cosmos, reply, store, uuid};

/// Answers each request with its own body.
pub const ECHO_FUNCTION: &str = "ec400000-0000-4000-8000-000000000001";
/// An LLM container, its inference URL being `/v1/chat/completions`.
pub const LLM_FUNCTION: &str = "11a00000-0000-4000-8000-000000000002";
/// Takes `Settings::work`, or what the header `x-sim-work-ms` says, so that pexec answers 202 meanwhile.
pub const SLOW_FUNCTION: &str = "51000000-0000-4000-8000-000000000003";
/// As slow, but writes its progress file at 25, 50 and 75 percent.
pub const PROGRESS_FUNCTION: &str = "96000000-0000-4000-8000-000000000004";
/// Answers with 6 MiB, or what the header `x-sim-answer-bytes` says, so that pexec answers 302.
pub const LARGE_FUNCTION: &str = "1a600000-0000-4000-8000-000000000005";
/// Has lost all its instances.
pub const DEGRADED_FUNCTION: &str = "de600000-0000-4000-8000-000000000006";
/// Its container answers 422, or what the header `x-sim-container-status` says.
pub const FAILING_FUNCTION: &str = "fa100000-0000-4000-8000-000000000007";
/// Its worker cannot reach the container.
pub const UNREACHABLE_FUNCTION: &str = "0f000000-0000-4000-8000-000000000008";
/// No worker ever picks its requests up.
pub const QUEUED_FUNCTION: &str = "9e000000-0000-4000-8000-000000000009";
/// A request of the queued function that is always seventh in the queue.
pub const QUEUED_REQUEST: &str = "9e000000-0000-4000-8000-0000000000aa";

const LARGE_ANSWER: u64 = 6 * 1024 * 1024;

/// The id of the only version that a built-in function has.
pub fn version_of(function: &str) -> String {
    function.replacen("-8000-", "-9000-", 1)
}

/// One version of a function.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) id: String,
    pub(super) version: String,
    /// What the management API shows, save for the status.
    pub(super) details: Value,
    pub(super) status: &'static str,
    pub(super) container: Container,
    /// One permit for each request that its workers run at once.
    pub(super) workers: Arc<Semaphore>,
}

/// What answers behind a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Echo,
    Llm,
    Slow,
    Progress,
    Large,
    Failing,
    Unreachable,
}

impl Function {
    /// A function that someone registers, not deployed yet.
    pub(super) fn registered(id: Option<String>, asked: &Value, slots: usize) -> Self {
        let mut details = asked.clone();
        if let Some(secrets) = details.get_mut("secrets") {
            *secrets = Value::Null;
        }
        let workers = Arc::new(Semaphore::new(slots));
        let id = id.unwrap_or_else(uuid);
        Self { id, version: uuid(), details, status: "INACTIVE", container: Container::Echo, workers }
    }

    pub(super) fn name(&self) -> &str {
        self.details.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn inference_url(&self) -> &str {
        self.details.get("inferenceUrl").and_then(Value::as_str).unwrap_or("/")
    }

    /// States in which requests are taken.
    pub(super) fn invocable(&self) -> bool {
        matches!(self.status, "ACTIVE" | "DEGRADING")
    }

    pub(super) fn show(&self) -> Value {
        let mut shown = json!({"id": self.id, "ncaId": "sim-nca", "versionId": self.version, "name": self.name(),
                               "status": self.status, "createdAt": "2026-01-01T00:00:00Z"});
        if let (Some(shown), Some(details)) = (shown.as_object_mut(), self.details.as_object()) {
            for (name, value) in details {
                shown.entry(name).or_insert_with(|| value.clone());
            }
        }
        shown
    }
}

/// The functions that are there from the start.
pub(super) fn built_in(slots: usize) -> Vec<Function> {
    let function = |id: &str, name: &str, path: &str, container| Function {
        id: id.to_owned(),
        version: version_of(id),
        details: json!({"name": name, "inferenceUrl": path, "ownedByDifferentAccount": false,
                        "apiBodyFormat": "CUSTOM", "functionType": "DEFAULT"}),
        status: if id == DEGRADED_FUNCTION { "DEGRADED" } else { "ACTIVE" },
        container,
        workers: Arc::new(Semaphore::new(if id == QUEUED_FUNCTION { 0 } else { slots })),
    };
    vec![
        function(ECHO_FUNCTION, "echo", "/echo", Container::Echo),
        function(LLM_FUNCTION, "llm", "/v1/chat/completions", Container::Llm),
        function(SLOW_FUNCTION, "slow", "/slow", Container::Slow),
        function(PROGRESS_FUNCTION, "progress", "/progress", Container::Progress),
        function(LARGE_FUNCTION, "large", "/large", Container::Large),
        function(DEGRADED_FUNCTION, "degraded", "/echo", Container::Echo),
        function(FAILING_FUNCTION, "failing", "/fail", Container::Failing),
        function(UNREACHABLE_FUNCTION, "unreachable", "/echo", Container::Unreachable),
        function(QUEUED_FUNCTION, "queued", "/echo", Container::Echo),
    ]
}

/// What containers can reach from inside.
pub(super) struct Surroundings {
    pub(super) llm: Router,
    pub(super) gates: Arc<Gates>,
    pub(super) work: Duration,
}

impl Container {
    /// Whether reaching it is a run; an engine counts its own.
    pub(super) fn counts(self) -> bool {
        !matches!(self, Self::Unreachable | Self::Llm)
    }

    /// The container's own answer; nothing if the worker cannot reach it.
    pub(super) async fn answer(
        self,
        around: &Surroundings,
        progress: &Progress,
        request: Request<Body>,
    ) -> Option<Response> {
        let headers = request.headers().clone();
        match self {
            Self::Unreachable => None,
            Self::Llm => Some(call(&around.llm, request).await),
            Self::Echo => Some(echo(request).await),
            Self::Large => Some(large(&headers)),
            Self::Failing => Some(failure(&headers)),
            Self::Slow | Self::Progress => {
                work(around, &headers, (self == Self::Progress).then_some(progress)).await;
                Some(echo(request).await)
            }
        }
    }
}

/// Waits for the work's time, or for a gate if the request names one by `x-sim-gate-work`.
async fn work(around: &Surroundings, headers: &HeaderMap, progress: Option<&Progress>) {
    if let Some(gate) = text_of(headers, "x-sim-gate-work") {
        return around.gates.pass(gate, 1).await;
    }
    let quarter = millis_of(headers, "x-sim-work-ms").unwrap_or(around.work) / 4;
    for percent in [25, 50, 75, 100] {
        tokio::time::sleep(quarter).await;
        if let Some(progress) = progress.filter(|_| percent < 100) {
            progress.write(percent, json!({"percent": percent}));
        }
    }
}

/// The body again, or its length if it was too large to keep.
async fn echo(request: Request<Body>) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let raw = match body::raw(request.into_body()).await {
        Ok(raw) => raw,
        Err(reason) => return reply::json(StatusCode::BAD_REQUEST, &json!({"error": reason})),
    };
    let Some(bytes) = raw.whole() else { return reply::json(StatusCode::OK, &json!({"bytes": raw.length})) };
    let mut response = Response::new(Body::from(bytes.to_vec()));
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn large(headers: &HeaderMap) -> Response {
    let bytes = text_of(headers, "x-sim-answer-bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(LARGE_ANSWER);
    let mut response = store::chunked(cosmos::video(bytes, "\",\"seed\":4}"));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Triton's way to tell an error, the only one that survives pexec.
fn failure(headers: &HeaderMap) -> Response {
    let asked = text_of(headers, "x-sim-container-status").and_then(|status| status.parse().ok());
    let status = asked.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
    reply::json(status, &json!({"error": "invalid datatype for input message"}))
}
