//! What a simulator saw: counters and the latest requests, for tests to look at.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};

use super::lock;

const HISTORY: usize = 256;
const KEPT_BODY: usize = 64 * 1024;
/// Different request ids whose runs are counted; later ones are not, and [`Seen::uncounted_runs`] tells.
const COUNTED_IDS: usize = 500_000;

/// Counters of one simulator; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Log>);

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, empty if there was none.
    pub query: String,
    /// All request headers.
    pub headers: HeaderMap,
    /// Bytes of body read so far.
    pub body_length: u64,
    /// The first 64 KiB of the body.
    pub body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Log {
    connections: AtomicU64,
    in_flight: AtomicU64,
    cancelled: AtomicU64,
    working: AtomicU64,
    stopped: AtomicU64,
    closed: AtomicBool,
    paths: Mutex<HashMap<String, u64>>,
    history: Mutex<VecDeque<Arc<Mutex<Sighting>>>>,
    runs: Mutex<HashMap<String, u64>>,
    uncounted: AtomicU64,
    file: Option<File>,
}

impl Seen {
    /// Counters that also append each run to a file.
    pub(super) fn logging(file: Option<File>) -> Self {
        Self(Arc::new(Log { file, ..Log::default() }))
    }

    /// Requests so far for exactly this path.
    pub fn requests(&self, path: &str) -> u64 {
        lock(&self.0.paths).get(path).copied().unwrap_or(0)
    }

    /// All requests so far, those to `/_sim/` left out.
    pub fn total(&self) -> u64 {
        lock(&self.0.paths).values().sum()
    }

    /// Requests so far by path.
    pub fn by_path(&self) -> HashMap<String, u64> {
        lock(&self.0.paths).clone()
    }

    /// Requests whose answer has not ended yet.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Requests whose client left before the answer ended.
    pub fn cancelled(&self) -> u64 {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Requests that workers of cloud functions are at.
    pub fn working(&self) -> u64 {
        self.0.working.load(Ordering::SeqCst)
    }

    /// Requests that workers of cloud functions began and did not end, since nobody waited any more.
    pub fn stopped(&self) -> u64 {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// The latest request.
    pub fn last(&self) -> Option<Sighting> {
        lock(&self.0.history).back().map(|sighting| lock(sighting).clone())
    }

    /// The latest request for exactly this path.
    pub fn last_of(&self, path: &str) -> Option<Sighting> {
        self.history().into_iter().rev().find(|sighting| sighting.path == path)
    }

    /// The latest 256 requests, oldest first.
    pub fn history(&self) -> Vec<Sighting> {
        lock(&self.0.history).iter().map(|sighting| lock(sighting).clone()).collect()
    }

    /// How often the work on a request with this `x-request-id` began: it took a slot, and was neither refused nor
    /// left the queue before.
    pub fn runs_of(&self, id: &str) -> u64 {
        lock(&self.0.runs).get(id).copied().unwrap_or(0)
    }

    /// The same for all of them; tells over several simulators whether anything ran twice.
    pub fn runs(&self) -> HashMap<String, u64> {
        lock(&self.0.runs).clone()
    }

    /// Runs without an `x-request-id`, or beyond the half million ids that are counted.
    pub fn uncounted_runs(&self) -> u64 {
        self.0.uncounted.load(Ordering::SeqCst)
    }

    /// What counts a run of the request with these headers.
    pub(super) fn run(&self, headers: &HeaderMap) -> Run {
        let id = headers.get("x-request-id").map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        Run(Some((Arc::clone(&self.0), id)))
    }

    pub(super) fn connected(&self) {
        self.0.connections.fetch_add(1, Ordering::SeqCst);
    }

    /// From here on answers that break off are the simulator's own doing.
    pub(super) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Notes a request and follows its body; the watch ends with the answer.
    pub(super) fn begin(&self, request: Request<Incoming>) -> (Request<Body>, Watch) {
        let path = request.uri().path().to_owned();
        *lock(&self.0.paths).entry(path.clone()).or_default() += 1;
        let sighting = Arc::new(Mutex::new(Sighting {
            method: request.method().clone(),
            path,
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            ..Sighting::default()
        }));
        self.remember(Arc::clone(&sighting));
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        let request = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(data) = frame.data_ref() {
                    lock(&sighting).note(data);
                }
                frame
            }))
        });
        (request, Watch { log: Arc::clone(&self.0), settled: false, left: false })
    }

    fn remember(&self, sighting: Arc<Mutex<Sighting>>) {
        let mut history = lock(&self.0.history);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(sighting);
    }
}

impl Sighting {
    fn note(&mut self, data: &Bytes) {
        self.body_length += data.len() as u64;
        let room = KEPT_BODY - self.body.len();
        self.body.extend_from_slice(&data[..data.len().min(room)]);
    }
}

/// Counts that the work on a request begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Run(Option<(Arc<Log>, Option<String>)>);

impl Run {
    /// A worker takes the request.
    pub(super) fn take(&self) -> Work {
        let log = self.0.as_ref().map(|(log, _)| Arc::clone(log));
        if let Some(log) = &log {
            log.working.fetch_add(1, Ordering::SeqCst);
        }
        Work { log, is_done: false }
    }

    pub(super) fn begin(&self) {
        let Some((log, id)) = &self.0 else { return };
        if let (Some(mut file), Some(id)) = (log.file.as_ref(), id) {
            // One write, so that lines of several processes do not mix.
            if let Err(error) = file.write_all(format!("{id}\n").as_bytes()) {
                tracing::warn!(%error, "a simulator could not note a run");
            }
        }
        let mut runs = lock(&log.runs);
        match id {
            Some(id) if runs.len() < COUNTED_IDS || runs.contains_key(id) => *runs.entry(id.clone()).or_default() += 1,
            _ => drop(log.uncounted.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// A worker is at a request; it was stopped unless it is done by the time that this is dropped.
#[derive(Debug)]
pub(super) struct Work {
    log: Option<Arc<Log>>,
    is_done: bool,
}

impl Work {
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some(log) = &self.log else { return };
        if !self.is_done && !log.closed.load(Ordering::SeqCst) {
            log.stopped.fetch_add(1, Ordering::SeqCst);
        }
        log.working.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a request as in flight until its last bytes are handed over or it is dropped, and as cancelled unless settled
/// by then.
#[derive(Debug)]
pub(super) struct Watch {
    log: Arc<Log>,
    settled: bool,
    left: bool,
}

impl Watch {
    /// Whatever happens now is not the client's doing.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// It is in flight no longer. Whoever reads the last bytes may send its next request at once, so this comes before
    /// they are handed over.
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            self.log.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Follows the answer's body to its end.
    pub(super) fn follow(self, response: Response) -> Response {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let remaining = length.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|body| Body::new(Followed { body, watch: self, remaining }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave();
        if !self.settled && !self.log.closed.load(Ordering::SeqCst) {
            self.log.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A body of known length is not polled beyond its last byte, so bytes are counted too.
struct Followed {
    body: Body,
    watch: Watch,
    remaining: Option<u64>,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let sent = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(sent));
                if self.remaining == Some(0) || self.body.is_end_stream() {
                    self.watch.settle();
                    self.watch.leave();
                }
            }
            Poll::Ready(_) => {
                self.watch.settle();
                self.watch.leave();
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if self.remaining == Some(0) || hyper::body::Body::is_end_stream(&self.body) {
            self.watch.settle();
        }
    }
}
