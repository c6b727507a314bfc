//! Held: calls a function of NVCF as if it answered at once.
//!
//! By pexec, NVCF may say that it still works (202), or where a large answer is (302). The one asks it again, for as long
//! as the caller waits, and never sends the request a second time; the other is fetched. Whoever drops the call cancels
//! it: NVCF stops what nobody waits for.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, Uri, header};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::fetch::{Answer, Peer};
use super::snapshot::{PoolState, Snapshot};
use super::{body, course, opening};
use crate::failure::Failure;
use crate::ids::PoolIndex;
use crate::upstream::{Fault, Function, Invocation, Manner, Row, hold};

/// How long the call is held, in seconds.
pub const POLL_SECONDS: HeaderName = HeaderName::from_static("nvcf-poll-seconds");
/// Above the hold, so long an answer may be on its way.
const MARGIN: Duration = Duration::from_secs(3);
/// So much before a caller's time is over NVCF is to answer.
const SOONER: Duration = Duration::from_millis(250);
/// Polls that may follow each other at once; further ones come a second apart, as NVIDIA asks.
const BURST: u32 = 5;
const PACE: Duration = Duration::from_secs(1);
/// The first and the longest pause before what failed is tried again.
pub(super) const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// Most bytes of a refusal that are read to tell a lost function from a bad request.
pub(super) const REFUSAL: usize = 64 * 1024;

/// How a call goes, for those who watch it.
#[derive(Default)]
pub struct Progress {
    /// Percent done, as the container says, and one more; 0 for nothing said.
    percent: AtomicU8,
    /// NVCF's id of the request.
    id: OnceLock<String>,
    /// Something was said.
    news: Notify,
}

impl Progress {
    /// Percent done, if the container said.
    pub fn percent(&self) -> Option<u8> {
        self.percent.load(Ordering::Relaxed).checked_sub(1)
    }

    /// NVCF's id of the request.
    pub fn id(&self) -> Option<&str> {
        self.id.get().map(String::as_str)
    }
}

/// Waits for news of a call, for ever where there is none.
pub async fn news(progress: Option<&Progress>) {
    match progress {
        Some(progress) => progress.news.notified().await,
        None => std::future::pending().await,
    }
}

/// Whether a request is called so: by one answer, from a function, with its body at hand.
pub fn is_for(ctx: &RequestContext, admitted: &Admitted, payload: &Payload) -> bool {
    let function = ctx.snapshot.pool(admitted.pool).settings.kind.function();
    function.is_some() && !ctx.trail.stream && matches!(payload, Payload::Buffered(_))
}

/// Reads a body that would otherwise stream through: what is held has to be at hand.
pub async fn collect(
    session: &mut Session,
    ctx: &RequestContext,
    admitted: &mut Admitted,
    payload: &mut Payload,
) -> Result<(), Failure> {
    let function = ctx.snapshot.pool(admitted.pool).settings.kind.function();
    let is_polled = function.is_some_and(|function| function.invocation == Invocation::Pexec);
    if is_polled && matches!(payload, Payload::Streamed) {
        let body = body::read(session.as_mut(), admitted.limit, &ctx.snapshot.client).await?;
        admitted.length = Some(body.len());
        *payload = Payload::Buffered(vec![body]);
    }
    Ok(())
}

/// What NVCF is told of the time for a request, and of the form of its answer.
pub fn headers(request: &RequestHeader, ctx: &RequestContext, state: &PoolState) -> Vec<(HeaderName, String)> {
    let Some(function) = state.settings.kind.function() else { return Vec::new() };
    let timeouts = state.settings.timeouts;
    let left = left(course::end(ctx, timeouts.total).min(Instant::now() + timeouts.first_byte));
    let is_polled = function.invocation == Invocation::Pexec && !ctx.trail.stream;
    // What is still at work says so before all time is over.
    let polled = left.saturating_sub(SOONER).min(function.wait.hold);
    let seconds = hold::seconds(if is_polled { polled } else { left });
    let mut headers = vec![(POLL_SECONDS, seconds.to_string())];
    if function.invocation == Invocation::Pexec && ctx.trail.stream {
        // Any other form makes the worker collect the stream.
        headers.push((header::ACCEPT, "text/event-stream".into()));
    }
    if is_polled && opening::is_asked(&request.headers) {
        // The stream is our own.
        headers.push((header::ACCEPT, "*/*".into()));
    }
    headers
}

/// A call to be made.
pub struct Call {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The function's pool.
    pub pool: PoolIndex,
    /// The request as it goes out.
    pub request: RequestHeader,
    /// Its body.
    pub body: Bytes,
    /// The endpoint.
    pub to: Peer,
    /// When all its time is over.
    pub end: Instant,
    /// Tells those who watch.
    pub progress: Arc<Progress>,
}

impl Call {
    /// Makes the call.
    pub async fn run(self) -> Result<Answer, Failure> {
        let state = self.snapshot.pool(self.pool);
        let Some(function) = state.settings.kind.function() else {
            return Err(Failure::Internal("no function".into()));
        };
        let answer = self.begin(state, function).await?;
        let answer = match answer.header.status {
            StatusCode::ACCEPTED if function.invocation == Invocation::Pexec => {
                self.follow(state, function, answer).await?
            }
            _ => answer,
        };
        if answer.header.status == StatusCode::FOUND && function.invocation == Invocation::Pexec {
            let location = answer.header.headers.get(header::LOCATION).cloned();
            return state.results(function.wait).fetch(location.as_ref(), answer.header, self.end).await;
        }
        Ok(answer)
    }

    /// Sends the request; again while the function has no instances, as far as the pool waits for that.
    async fn begin(&self, state: &PoolState, function: &Function) -> Result<Answer, Failure> {
        let patience = Instant::now() + function.wait.degraded;
        let mut pause = PAUSES[0];
        loop {
            let first_byte = Instant::now() + state.settings.timeouts.first_byte;
            let sent =
                state.fetcher().exchange(self.request.clone(), self.body.clone(), &self.to, first_byte, self.end);
            let is_polled = function.invocation == Invocation::Pexec;
            let mut answer = match sent.await {
                // Had it started, a 202 had come before.
                Err(Failure::TotalTimeout | Failure::FirstByteTimeout) if is_polled => return Err(Failure::NotStarted),
                answer => answer?,
            };
            let status = answer.header.status;
            // Nobody took it in the time that it was held.
            if is_polled && status == StatusCode::GATEWAY_TIMEOUT && is_bare(&mut answer).await? {
                return Err(Failure::NotStarted);
            }
            let Some(row) = degraded(state, &mut answer).await? else { return Ok(answer) };
            if Instant::now() + pause > patience.min(self.end) {
                return Err(Failure::Upstream(row));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Asks again until there is another answer than that it works.
    async fn follow(&self, state: &PoolState, function: &Function, first: Answer) -> Result<Answer, Failure> {
        let mut answer = first;
        let mut request = self.poll_request(&answer)?;
        // What was asked so far leaves it alive until then.
        let mut alive = Instant::now() + hold::leash(function.wait.hold.min(left(self.end)));
        let (mut pause, mut lost) = (PAUSES[0], false);
        let mut asked = Pace::default();
        loop {
            if answer.header.status == StatusCode::ACCEPTED {
                self.note(&answer);
                asked.wait(self.end).await;
            }
            if left(self.end).is_zero() {
                return Err(Failure::NotFinished(self.progress.percent()));
            }
            let seconds = hold::seconds(left(self.end).saturating_sub(SOONER).min(function.wait.hold));
            request.insert_header(POLL_SECONDS, seconds.to_string()).map_err(internal)?;
            let begun = Instant::now();
            let held = Duration::from_secs(seconds);
            let first_byte = begun + held + hold::GRACE + MARGIN;
            let sent = state.fetcher().exchange(request.clone(), Bytes::new(), &self.to, first_byte, self.end).await;
            answer = match sent {
                Err(Failure::TotalTimeout) => return Err(Failure::NotFinished(self.progress.percent())),
                // It works on, and can be asked until it thinks that nobody waits any more.
                Err(failure) if Instant::now() + pause < alive => {
                    lost |= !failure.is_unreached();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES[1]);
                    continue;
                }
                Err(failure) => return Err(failure),
                Ok(answer) => answer,
            };
            match answer.header.status.as_u16() {
                202 => {
                    alive = begun + hold::leash(held);
                    (pause, lost) = (PAUSES[0], false);
                }
                // Somebody between here and the worker, or a limit on questions.
                429 | 502 | 503 if !is_stamped(&answer) && Instant::now() + pause < alive => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES[1]);
                }
                404 if lost => {
                    return Err(Failure::ResultLost(
                        "the connection ended while it was on its way, and it is given once",
                    ));
                }
                404 if !is_stamped(&answer) => {
                    return Err(Failure::ResultLost("the platform does not know the request any more"));
                }
                504 if is_bare(&mut answer).await? => return Err(Failure::NotFinished(self.progress.percent())),
                _ => return Ok(answer),
            }
        }
    }

    /// The question for what became of a request.
    fn poll_request(&self, accepted: &Answer) -> Result<RequestHeader, Failure> {
        let id = request_id(&accepted.header);
        let (Some(id), Some(path)) = (id, id.and_then(hold::status_path)) else {
            return Err(Failure::ResultLost("the platform works on it without saying under which id"));
        };
        let _ = self.progress.id.set(id.to_owned());
        let mut request = self.request.clone();
        request.set_method(Method::GET);
        request.set_uri(path.parse::<Uri>().map_err(|e| Failure::Internal(e.to_string()))?);
        for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING] {
            request.remove_header(&name);
        }
        // NVCF takes no assets with a question.
        request.remove_header("nvcf-input-asset-references");
        request.remove_header("nvcf-function-asset-ids");
        Ok(request)
    }

    fn note(&self, answer: &Answer) {
        let percent = answer.header.headers.get("nvcf-percent-complete");
        let percent = percent.and_then(|percent| percent.to_str().ok()?.trim().parse::<u8>().ok());
        if let Some(percent) = percent.filter(|percent| *percent <= 100) {
            self.progress.percent.store(percent + 1, Ordering::Relaxed);
            self.progress.news.notify_one();
        }
    }
}

/// Keeps questions apart, beyond the first few.
struct Pace {
    tokens: u32,
    since: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tokens: BURST, since: Instant::now() }
    }
}

impl Pace {
    async fn wait(&mut self, end: Instant) {
        let earned = u32::try_from(self.since.elapsed().as_secs()).unwrap_or(BURST);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.since += PACE * earned;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => self.tokens = left,
            None => {
                tokio::time::sleep_until((self.since + PACE).min(end)).await;
                self.since = Instant::now();
            }
        }
    }
}

/// NVCF's id of the request that this answers.
pub fn request_id(header: &ResponseHeader) -> Option<&str> {
    header.headers.get("nvcf-reqid")?.to_str().ok().filter(|id| hold::status_path(id).is_some())
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::Internal(error.to_string())
}

/// Whether a worker had to do with an answer.
fn is_stamped(answer: &Answer) -> bool {
    answer.header.headers.contains_key("nvcf-status")
}

/// Whether it has no body.
async fn is_bare(answer: &mut Answer) -> Result<bool, Failure> {
    Ok(answer.body.collect(REFUSAL).await?.is_some_and(|body| body.trim_ascii().is_empty()))
}

/// The row of a function that has lost its instances, if that is what the answer says.
async fn degraded(state: &PoolState, answer: &mut Answer) -> Result<Option<&'static Row>, Failure> {
    if answer.header.status != StatusCode::BAD_REQUEST {
        return Ok(None);
    }
    let Some(body) = answer.body.collect(REFUSAL).await? else { return Ok(None) };
    let reading = state.settings.kind.read_answer(Manner::Other, 400, &answer.header.headers, &body);
    Ok(reading.map(|reading| reading.row).filter(|row| row.fault == Fault::FunctionDegraded))
}
