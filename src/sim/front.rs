//! What every request passes, whatever the backend: counting, faults, gates, and the pace of the answer.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::fault::{Board, Fault, Faults};
use super::gate::Gates;
use super::nim::Nim;
use super::reply::{self, Shape};
use super::seen::Seen;
use super::sse::{self, Ending, Pace};
use super::{ErrorStyle, Kind, Settings, Signal, body, control, curator, nim, nvcf, nvcf_worker};

const NO_ENGINE: &str = "this backend has no engine";

/// One simulator without its listener.
pub(super) struct Front {
    app: Router,
    shape: Shape,
    pub(super) seen: Seen,
    pub(super) board: Board,
    pub(super) gates: Arc<Gates>,
    /// The container, if it is one.
    pub(super) nim: Option<Arc<Nim>>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("shape", &self.shape).field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// The connection is to be dropped without an answer.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on demand")
    }
}

impl std::error::Error for Cut {}

impl Front {
    pub(super) fn new(kind: Kind, settings: Settings, url: String, faults: Faults, log: Option<File>) -> Self {
        let gates = Arc::new(Gates::default());
        let shape = own_shape(kind, settings.errors);
        let (nim, app) = match kind {
            Kind::Nvcf => (None, nvcf::router(settings, url, Arc::clone(&gates))),
            Kind::Curator => (None, curator::router(settings, url)),
            _ => {
                let (nim, app) = nim::router(kind, settings, shape);
                (Some(nim), app)
            }
        };
        Self { app, shape, seen: Seen::logging(log), board: Board::new(faults), gates, nim }
    }

    /// Answers one request; an error makes hyper drop the connection.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response, Cut> {
        if request.uri().path().starts_with("/_sim/") {
            return Ok(control::answer(&self, request.map(Body::new)).await);
        }
        let (mut request, mut watch) = self.seen.begin(request);
        let faults = match self.board.faults_for(&request) {
            Ok(faults) => faults,
            Err(reason) => return Ok(watch.follow(reply::text(StatusCode::BAD_REQUEST, &reason))),
        };
        if faults.has(Fault::Cut) {
            watch.settle();
            // What is left unread would make it a reset.
            let _ = body::discard(request.into_body()).await;
            return Err(Cut);
        }
        let asked = request.headers().clone();
        request.extensions_mut().insert(faults.clone());
        request.extensions_mut().insert(self.seen.run(&asked));
        let response = self.respond(&faults, request).await;
        self.hold(&faults, &asked).await;
        Ok(watch.follow(self.pace(&faults, &asked, response)))
    }

    pub(super) fn set_speed(&self, factor: f64) -> Result<(), String> {
        if !(0.001..=1000.0).contains(&factor) {
            return Err(format!("factor: expected 0.001 to 1000, got {factor}"));
        }
        self.nim.as_ref().ok_or(NO_ENGINE)?.engine.set_speed(factor);
        Ok(())
    }

    pub(super) fn set_signal(&self, signal: Signal) -> Result<(), String> {
        let nim = self.nim.as_ref().ok_or(NO_ENGINE)?;
        let page = (signal == Signal::Frozen).then(|| nim.metrics());
        nim.engine.set_signal(signal, page);
        Ok(())
    }

    async fn respond(&self, faults: &Faults, request: Request<Body>) -> Response {
        let Some(response) = self.refusal(faults) else { return call(&self.app, request).await };
        // A client that is still sending must not mistake the answer for a broken connection.
        let _ = body::discard(request.into_body()).await;
        response
    }

    /// The time between the answer being ready and its headers being sent.
    async fn hold(&self, faults: &Faults, asked: &HeaderMap) {
        if let Some(delay) = faults.find(|fault| if let Fault::Delay(delay) = fault { Some(*delay) } else { None }) {
            tokio::time::sleep(delay).await;
        }
        if faults.has(Fault::Hang) {
            pending::<()>().await;
        }
        if let Some(gate) = text_of(asked, "x-sim-gate-headers") {
            self.gates.pass(gate, 1).await;
        }
    }

    fn refusal(&self, faults: &Faults) -> Option<Response> {
        let asked = faults.status();
        let shape = faults.find(|fault| if let Fault::Shape(shape) = fault { Some(*shape) } else { None });
        if let Some(shape) = shape {
            let status = asked.unwrap_or_else(|| shape.usual_status());
            return Some(reply::error(shape, status, "Fault on demand"));
        }
        let named = faults.find(|fault| match fault {
            Fault::RateLimit => Some(nvcf_worker::own_error(self.shape, StatusCode::TOO_MANY_REQUESTS)),
            Fault::Degraded => Some(nvcf_worker::degraded(nvcf_worker::ANY_FUNCTION)),
            Fault::InferenceService => {
                let status = asked.unwrap_or(StatusCode::BAD_REQUEST);
                Some(nvcf_worker::dispatched(nvcf_worker::inference_service(status, None)))
            }
            Fault::InferenceConnection => Some(nvcf_worker::dispatched(nvcf_worker::inference_connection())),
            Fault::Worker => Some(nvcf_worker::dispatched(nvcf_worker::worker_failure())),
            _ => None,
        });
        named.or_else(|| asked.map(|status| nvcf_worker::own_error(self.shape, status)))
    }

    fn pace(&self, faults: &Faults, asked: &HeaderMap, response: Response) -> Response {
        if faults.has(Fault::Empty) {
            return emptied(response);
        }
        let gate = text_of(asked, "x-sim-gate").map(|name| (Arc::clone(&self.gates), name.to_owned()));
        let ending = faults.find(|fault| match *fault {
            Fault::CutAfter(after) => Some((after, Ending::Cut)),
            Fault::StallAfter(after) => Some((after, Ending::Stall)),
            Fault::ErrorEvent(after) => Some((after, Ending::ErrorEvent)),
            _ => None,
        });
        if faults.has(Fault::TruncatedJson) {
            return truncated(response);
        }
        if gate.is_none() && ending.is_none() {
            return response;
        }
        sse::paced(response, Pace { gate, ending })
    }
}

/// Calls an application as a server would.
pub(super) async fn call(app: &Router, request: Request<Body>) -> Response {
    match TowerToHyperService::new(app.clone()).call(request).await {
        Ok(response) => response,
        Err(never) => match never as Infallible {},
    }
}

/// A header's value if it is text.
pub(super) fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A header's value as a number of milliseconds.
pub(super) fn millis_of(headers: &HeaderMap, name: &str) -> Option<Duration> {
    text_of(headers, name)?.parse().ok().map(Duration::from_millis)
}

fn own_shape(kind: Kind, errors: ErrorStyle) -> Shape {
    match (kind, errors) {
        (Kind::Llm | Kind::Vlm, ErrorStyle::Flat) => Shape::B,
        (Kind::Llm | Kind::Vlm, ErrorStyle::Nested) => Shape::A,
        (Kind::Embedding, _) => Shape::C,
        (Kind::Reranking | Kind::CosmosPredict | Kind::CosmosEmbed1, _) => Shape::E,
        (Kind::Nvcf, _) => Shape::H,
        (Kind::Curator, _) => Shape::NvBoot,
    }
}

fn emptied(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response.map(|_| Body::empty())
}

/// Well formed HTTP around the first half of the body.
fn truncated(mut response: Response) -> Response {
    let length = text_of(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
    let Some(half) = length.map(|length| length / 2) else { return response };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(half));
    sse::paced(response, Pace { gate: None, ending: Some((half, Ending::Stop)) })
}
