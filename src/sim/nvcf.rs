//! NVIDIA Cloud Functions: direct invocation, pexec and exec, as its invocation service and workers answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::front::text_of;
use super::gate::Gates;
use super::nvcf_function::{Function, Surroundings, built_in};
use super::nvcf_job::{Held, Job, Leash, Progress};
use super::nvcf_worker::{ANY_FUNCTION, accepted, attached, degraded, inference_connection, mark, stamp, translate};
use super::reply::{self, Refused, Shape};
use super::seen::Run;
use super::store::Store;
use super::{Kind, Settings, body, is_uuid, lock, nim, nvcf_api, uuid};

const LARGEST_ENVELOPE: u64 = 2 * 1024 * 1024;

/// One account with its functions.
pub(super) struct Nvcf {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) functions: Mutex<Vec<Function>>,
    pub(super) jobs: Mutex<HashMap<String, Job>>,
    pub(super) assets: Mutex<HashMap<String, Value>>,
    surroundings: Arc<Surroundings>,
    /// When there were invocations within the last second, refused ones included.
    recent: Mutex<VecDeque<Instant>>,
}

/// How a request is to be run and answered.
struct Invocation {
    function: Function,
    poll: Duration,
    /// Whether the worker translates: 202, 302, and errors in its own words.
    translated: bool,
    request: Request,
}

type Answer = Result<Response, Refused>;

/// All routes of the account.
pub(super) fn router(settings: Settings, url: String, gates: Arc<Gates>) -> Router {
    // The container never sees the caller's credential.
    let inner = Settings { api_key: None, models: settings.models.clone(), ..settings.clone() };
    let (_, llm) = nim::router(Kind::Llm, inner, Shape::B);
    let store = Store::new(url);
    let objects = store.router();
    let surroundings = Arc::new(Surroundings { llm, gates, work: settings.work });
    let functions = Mutex::new(built_in(settings.slots));
    let (jobs, assets) = (Mutex::default(), Mutex::default());
    let recent = Mutex::default();
    let nvcf = Arc::new(Nvcf { settings, store, functions, jobs, assets, surroundings, recent });
    Router::new()
        .route("/v2/nvcf/pexec/functions/{function}", post(pexec))
        .route("/v2/nvcf/pexec/functions/{function}/versions/{version}", post(pexec))
        .route("/v2/nvcf/pexec/status/{request}", get(status))
        .route("/v2/nvcf/exec/functions/{function}", post(exec))
        .route("/v2/nvcf/exec/functions/{function}/versions/{version}", post(exec))
        .route("/v2/nvcf/exec/status/{request}", get(exec_status))
        .merge(nvcf_api::routes())
        .fallback(async || reply::problem(StatusCode::NOT_FOUND, None, None))
        .layer(middleware::from_fn_with_state(Arc::clone(&nvcf), direct))
        .layer(middleware::from_fn_with_state(Arc::clone(&nvcf), authenticate))
        .with_state(nvcf)
        .merge(objects)
}

/// A missing key is 401 in plain text, a wrong one 403 in JSON.
async fn authenticate(State(nvcf): State<Arc<Nvcf>>, mut request: Request, next: Next) -> Response {
    let Some(value) = request.headers_mut().remove(header::AUTHORIZATION) else {
        return reply::text(StatusCode::UNAUTHORIZED, "Header of type `authorization` was missing");
    };
    let Some(given) = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")) else {
        return reply::text(StatusCode::INTERNAL_SERVER_ERROR, "Missing request extension");
    };
    match &nvcf.settings.api_key {
        Some(key) if key != given => reply::problem(StatusCode::FORBIDDEN, None, Some("Authorization failed")),
        _ => next.run(request).await,
    }
}

/// Direct invocation: the header names the function, or else the host does; any path belongs to the container.
async fn direct(State(nvcf): State<Arc<Nvcf>>, request: Request, next: Next) -> Response {
    let Some((function, version)) = target(&request) else { return next.run(request).await };
    nvcf.direct(&function, version.as_deref(), request).await.into_response()
}

fn target(request: &Request) -> Option<(String, Option<String>)> {
    let headers = request.headers();
    let host = text_of(headers, "host").unwrap_or_default();
    let named: Vec<&str> =
        host.split_once(".invocation.").map_or_else(Vec::new, |(names, _)| names.split('.').collect());
    let on_invocation_host = !named.is_empty() || host.starts_with("invocation.");
    if let Some(function) = text_of(headers, "function-id") {
        let path_based = request.uri().path().starts_with("/v2/") && !on_invocation_host;
        return (!path_based)
            .then(|| (function.to_owned(), text_of(headers, "function-version-id").map(str::to_owned)));
    }
    match named.as_slice() {
        [function] => Some(((*function).to_owned(), None)),
        [version, function] => Some(((*function).to_owned(), Some((*version).to_owned()))),
        _ => None,
    }
}

#[derive(serde::Deserialize)]
struct Target {
    function: String,
    version: Option<String>,
}

async fn pexec(State(nvcf): State<Arc<Nvcf>>, Path(target): Path<Target>, request: Request) -> Answer {
    nvcf.pexec(&target, request).await
}

async fn status(State(nvcf): State<Arc<Nvcf>>, Path(id): Path<String>, request: Request) -> Answer {
    nvcf.poll(&id, poll_duration(request.headers(), false)?).await
}

async fn exec(State(nvcf): State<Arc<Nvcf>>, Path(target): Path<Target>, request: Request) -> Answer {
    let (mut parts, body) = request.into_parts();
    let raw = body::raw(body).await.map_err(|reason| bad(&reason))?;
    if raw.length > LARGEST_ENVELOPE {
        return Err(reply::text(StatusCode::PAYLOAD_TOO_LARGE, "length limit exceeded").into());
    }
    let envelope = raw.parse().map_err(|reason| bad(&reason))?.value;
    let asked = envelope.get("requestHeader").cloned().unwrap_or_default();
    parts.headers.remove(header::CONTENT_LENGTH);
    if let Some(seconds) = asked.get("pollDurationSeconds").and_then(Value::as_u64) {
        parts.headers.insert("nvcf-poll-seconds", HeaderValue::from(seconds));
    }
    let assets = asked.get("inputAssetReferences").and_then(Value::as_array).into_iter().flatten();
    for asset in assets.filter_map(|asset| HeaderValue::from_str(asset.as_str()?).ok()) {
        parts.headers.append("nvcf-input-asset-references", asset);
    }
    let inner = envelope.get("requestBody").cloned().unwrap_or_default().to_string();
    enclose(nvcf.pexec(&target, Request::from_parts(parts, Body::from(inner))).await).await
}

async fn exec_status(State(nvcf): State<Arc<Nvcf>>, Path(id): Path<String>, request: Request) -> Answer {
    enclose(nvcf.poll(&id, poll_duration(request.headers(), false)?).await).await
}

/// Puts an answer into the envelope; refusals by the platform stay as they are.
async fn enclose(answer: Answer) -> Answer {
    let (parts, body) = answer?.into_parts();
    let raw = body::raw(body).await.map_err(|reason| bad(&reason))?;
    let (status, headers) = (parts.status, &parts.headers);
    let percent = text_of(headers, "nvcf-percent-complete").and_then(|percent| percent.parse::<u8>().ok());
    let inner = raw.parse().map(|payload| payload.value).unwrap_or_default();
    let mut envelope = json!({"reqId": text_of(headers, "nvcf-reqid"), "status": text_of(headers, "nvcf-status"),
                              "responseReference": text_of(headers, "location"), "percentComplete": percent,
                              "errorCode": (status.as_u16() >= 400).then_some(status.as_u16()), "response": inner});
    if let Some(fields) = envelope.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let status = if status == StatusCode::FOUND { StatusCode::OK } else { status };
    Ok(reply::json(status, &envelope))
}

impl Nvcf {
    async fn direct(self: &Arc<Self>, function: &str, version: Option<&str>, request: Request) -> Answer {
        self.limit()?;
        let poll = poll_duration(request.headers(), true)?;
        let function = self.invocable(function, version)?;
        let (parts, body) = request.into_parts();
        let raw = body::raw(body).await.map_err(|reason| bad(&reason))?;
        let request = Request::from_parts(parts, raw.into_body());
        Ok(self.invoke(Invocation { function, poll, translated: false, request }).await)
    }

    /// The worker keeps method, headers and body, and puts the function's own path.
    async fn pexec(self: &Arc<Self>, target: &Target, request: Request) -> Answer {
        self.limit()?;
        let headers = request.headers();
        let poll = poll_duration(headers, false)?;
        let streams = text_of(headers, "accept") == Some("text/event-stream");
        let untranslated = text_of(headers, "nvcf-feature-disable-worker-compatibility") == Some("true");
        self.check_assets(headers)?;
        let function = self.invocable(&target.function, target.version.as_deref())?;
        let (mut parts, body) = request.into_parts();
        let raw = body::raw(body).await.map_err(|reason| bad(&reason))?;
        parts.uri = Uri::try_from(function.inference_url()).unwrap_or_default();
        let request = Request::from_parts(parts, raw.into_body());
        Ok(self.invoke(Invocation { function, poll, translated: !streams && !untranslated, request }).await)
    }

    async fn poll(self: &Arc<Self>, id: &str, poll: Duration) -> Answer {
        let progress = lock(&self.jobs).get_mut(id).map(|job| {
            job.leash = Leash::new(Instant::now(), poll);
            job.progress.clone()
        });
        let Some(progress) = progress else { return Err(reply::problem(StatusCode::NOT_FOUND, None, None).into()) };
        let held = progress.hold(poll, true).await;
        Ok(self.deliver(id, held))
    }

    async fn invoke(self: &Arc<Self>, invocation: Invocation) -> Response {
        let id = uuid();
        let (poll, translated) = (invocation.poll, invocation.translated);
        let version = invocation.function.version.clone();
        let progress = Progress::default();
        let work = self.work(id.clone(), invocation, progress.clone());
        let task = tokio::spawn(work).abort_handle();
        let leash = Leash::new(Instant::now(), poll);
        let job = Job { version, progress: progress.clone(), leash, pollable: false, task };
        lock(&self.jobs).insert(id.clone(), job);
        let mut cancel = Cancel { nvcf: self, id: &id, armed: true };
        let held = progress.hold(poll, translated).await;
        cancel.armed = false;
        drop(cancel);
        self.deliver(&id, held)
    }

    /// Waits for a worker and runs the container; the outcome goes to whoever holds at that time.
    fn work(&self, id: String, invocation: Invocation, progress: Progress) -> impl Future<Output = ()> + Send + use<> {
        let (around, store) = (Arc::clone(&self.surroundings), self.store.clone());
        async move {
            let Invocation { function, translated, mut request, .. } = invocation;
            let permit = Arc::clone(&function.workers).acquire_owned().await.ok();
            let run = request.extensions().get::<Run>().cloned().unwrap_or_default();
            let work = run.take();
            if function.container.counts() {
                run.begin();
            }
            progress.start();
            mark(request.headers_mut(), &id, &function);
            let answer = function.container.answer(&around, &progress, request).await;
            let outcome = match answer {
                None => inference_connection(),
                Some(response) if translated => translate(&store, &id, response).await,
                // The slot is taken until the last byte.
                Some(response) => attached(response, permit),
            };
            work.done();
            progress.finish(outcome);
        }
    }

    /// Turns the end of a hold into an answer. Whatever is not a 202 is the only one.
    fn deliver(self: &Arc<Self>, id: &str, held: Held) -> Response {
        let mut response = match held {
            Held::Running(progress) => {
                self.keep(id);
                accepted(progress)
            }
            Held::Done(response) => {
                // A stream goes on after its job is forgotten.
                lock(&self.jobs).remove(id);
                response
            }
            Held::TimedOut => {
                lock(&self.jobs).remove(id);
                reply::bare(StatusCode::GATEWAY_TIMEOUT)
            }
        };
        stamp(&mut response, id);
        response
    }

    /// Lets the client poll from now on, as long as it does so often enough.
    fn keep(self: &Arc<Self>, id: &str) {
        if let Some(job) = lock(&self.jobs).get_mut(id).filter(|job| !job.pollable) {
            job.pollable = true;
            tokio::spawn(watch_leash(Arc::downgrade(self), id.to_owned()));
        }
    }

    /// NVCF's limiter counts what it refuses, so that who asks too fast stays refused.
    fn limit(&self) -> Result<(), Refused> {
        let Some(rate) = self.settings.rate else { return Ok(()) };
        let now = Instant::now();
        let mut recent = lock(&self.recent);
        recent.retain(|time| now - *time < Duration::from_secs(1));
        recent.push_back(now);
        if recent.len() <= rate {
            Ok(())
        } else {
            Err(reply::problem(StatusCode::TOO_MANY_REQUESTS, None, None).into())
        }
    }

    fn invocable(&self, id: &str, version: Option<&str>) -> Result<Function, Refused> {
        let functions = lock(&self.functions);
        let mut found = functions.iter().filter(|function| function.id == id).peekable();
        if found.peek().is_none() {
            let detail = format!("Function '{id}': Not found for account 'sim-nca'");
            return Err(reply::problem(StatusCode::NOT_FOUND, None, Some(&detail)).into());
        }
        let versions: Vec<&Function> =
            found.filter(|found| version.is_none_or(|asked| asked == found.version)).collect();
        let active: Vec<&&Function> = versions.iter().filter(|function| function.invocable()).collect();
        if let Some(function) = fastrand::choice(&active) {
            return Ok((**function).clone());
        }
        if versions.iter().any(|function| function.status == "DEGRADED") {
            return Err(degraded(id).into());
        }
        let version = version.unwrap_or(ANY_FUNCTION);
        let detail =
            format!("Function id '{id}' version '{version}': Specified function in account 'sim-nca' is not found");
        Err(reply::problem(StatusCode::NOT_FOUND, None, Some(&detail)).into())
    }

    fn check_assets(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let values = headers.get_all("nvcf-input-asset-references").iter().filter_map(|value| value.to_str().ok());
        for id in values.flat_map(|value| value.split(',')).map(str::trim) {
            if !is_uuid(id) {
                return Err(bad("failed to parse asset id"));
            }
            if !lock(&self.assets).contains_key(id) {
                let detail = format!("failed to find asset {id}");
                return Err(reply::problem(StatusCode::NOT_FOUND, None, Some(&detail)).into());
            }
        }
        Ok(())
    }
}

/// A client that leaves before the headers takes its job with it.
struct Cancel<'a> {
    nvcf: &'a Nvcf,
    id: &'a str,
    armed: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        if self.armed {
            lock(&self.nvcf.jobs).remove(self.id);
        }
    }
}

async fn watch_leash(nvcf: Weak<Nvcf>, id: String) {
    loop {
        let end = {
            let Some(nvcf) = nvcf.upgrade() else { return };
            let mut jobs = lock(&nvcf.jobs);
            let Some(end) = jobs.get(&id).map(|job| job.leash.end()) else { return };
            if end <= Instant::now() {
                jobs.remove(&id);
                return;
            }
            end
        };
        tokio::time::sleep_until(end).await;
    }
}

/// How long to hold a request, as the invocation service reads it.
fn poll_duration(headers: &HeaderMap, direct: bool) -> Result<Duration, Refused> {
    let streams = !direct && text_of(headers, "accept") == Some("text/event-stream");
    let seconds = match headers.get("nvcf-poll-seconds") {
        None if streams => Some(1200),
        None => Some(60),
        Some(value) => value.to_str().ok().and_then(|value| value.trim().parse::<u64>().ok()),
    };
    match seconds {
        Some(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds.max(1))),
        _ => Err(bad("failed to parse poll duration")),
    }
}

fn bad(detail: &str) -> Refused {
    reply::problem(StatusCode::BAD_REQUEST, None, Some(detail)).into()
}
