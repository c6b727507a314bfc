//! Exchange: our stand-in for the client's session while a request is proxied.
//!
//! pingora drives the bytes between client and backend through a session. This one wraps the real session and adds
//! what the path needs (docs/decisions/0001): it replays a body that was read early to every attempt, in slices and of
//! any size; it holds an answer back until it is known to be no failure, so that labels can stand in its header, and the
//! header of a stream for a moment, until its first event is known to be none; and it ends the request when the backend is
//! silent for too long. A client that leaves is noticed as on the real session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::Instant;

use super::body::read_failure;
use super::clock::Clock;
use super::judge::Judge;
use super::opening::Opening;
use super::respond::into_error;
use super::settings::Timeouts;
use crate::failure::Failure;
use crate::meter::{Form, first};

/// Largest slice handed on at once, so that an early answer is noticed between slices.
const SLICE: usize = 256 * 1024;

/// The request body, as far as the exchange is concerned.
#[derive(Clone)]
pub enum Payload {
    /// Read and checked: these pieces, in order.
    Buffered(Vec<Bytes>),
    /// Still with the client: streams through.
    Streamed,
}

impl Payload {
    /// Length in bytes; unknown while streamed.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Buffered(pieces) => Some(pieces.iter().map(Bytes::len).sum()),
            Self::Streamed => None,
        }
    }
}

/// What outlives the exchange: the real session when it ends, and what the judge found.
#[derive(Clone, Default)]
pub struct Handle {
    slot: Arc<Mutex<Option<Box<ServerSession>>>>,
    verdict: Arc<Mutex<Option<Failure>>>,
    flags: Arc<Flags>,
    target: Arc<Mutex<Option<Target>>>,
}

/// What one side tells the other.
#[derive(Default)]
struct Flags {
    /// The answer has told all that is wanted of it.
    is_complete: AtomicBool,
    /// Something of a backend's answer was passed on.
    has_passed: AtomicBool,
    /// No attempt is under way: nobody owes an answer.
    is_resting: AtomicBool,
    /// The client has got the header of an event stream, before a backend answered.
    is_opened: AtomicBool,
}

/// What changes when the request goes to another pool.
struct Target {
    payload: Option<Payload>,
    judge: Judge,
    timeouts: Timeouts,
    opening: Option<Opening>,
}

impl Handle {
    /// Says that the answer has told all that is wanted of it.
    pub fn complete(&self) {
        self.flags.is_complete.store(true, Ordering::Relaxed);
    }

    /// Whether something of a backend's answer was passed on.
    pub fn has_passed(&self) -> bool {
        self.flags.has_passed.load(Ordering::Relaxed)
    }

    /// Whether the client has got the header of an event stream, before a backend answered.
    pub fn is_opened(&self) -> bool {
        self.flags.is_opened.load(Ordering::Relaxed)
    }

    /// Says whether an attempt is waited for that has not begun.
    pub fn rest(&self, is_resting: bool) {
        self.flags.is_resting.store(is_resting, Ordering::Relaxed);
    }

    /// Has the next attempt go to another pool, with this body in place of the first one.
    pub fn retarget(&self, payload: Option<Payload>, judge: Judge, timeouts: Timeouts, opening: Option<Opening>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Target { payload, judge, timeouts, opening });
    }

    /// The failure that the judge read in the answer.
    pub fn verdict(&self) -> Option<Failure> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How an exchange is to behave.
pub struct Manner {
    /// Reads answers.
    pub judge: Judge,
    /// Watches the backend.
    pub clock: Clock,
    /// After a client has left a stream, for how long it is read on.
    pub drain: Duration,
    /// The client has got the header of an event stream already.
    pub is_opened: bool,
    /// Begins it with comments where no event comes.
    pub opening: Option<Opening>,
}

/// Puts an exchange in the place of `session`.
pub fn wrap(session: &mut Box<ServerSession>, payload: Payload, manner: Manner) -> Handle {
    let Manner { judge, clock, drain, is_opened, opening } = manner;
    let handle = Handle::default();
    let inner = std::mem::replace(session, Box::new(ServerSession::new_custom(Box::new(()))));
    let pieces = match payload {
        Payload::Buffered(pieces) => Some(sliced(pieces)),
        Payload::Streamed => None,
    };
    let exchange = Exchange {
        inner: Some(inner),
        pieces,
        next: 0,
        held: None,
        judge,
        clock,
        handle: handle.clone(),
        drain,
        is_stream: false,
        left: None,
        is_opened,
        opening,
        is_told: false,
        is_replaced: false,
        is_opening: false,
    };
    **session = ServerSession::new_custom(Box::new(exchange));
    handle
}

/// Puts the real session back; does nothing when it is in its place already.
pub fn unwrap(session: &mut Box<ServerSession>, handle: &Handle) {
    if session.is_custom() {
        // Dropping the exchange fills the slot.
        **session = ServerSession::new_custom(Box::new(()));
        if let Some(inner) = handle.slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
            *session = inner;
        }
    }
}

fn sliced(pieces: Vec<Bytes>) -> Vec<Bytes> {
    if pieces.iter().all(|p| p.len() <= SLICE) {
        return pieces;
    }
    let slices =
        |piece: Bytes| (0..piece.len()).step_by(SLICE).map(move |at| piece.slice(at..piece.len().min(at + SLICE)));
    pieces.into_iter().flat_map(slices).collect()
}

/// An answer that waits for its judgement.
struct Held {
    header: Box<ResponseHeader>,
    tasks: Vec<HttpTask>,
    seen: Vec<u8>,
    /// It is an event stream, of which the first event counts; it is sent on by then, known or not.
    opens: Option<Instant>,
}

struct Exchange {
    /// Absent only while being dropped.
    inner: Option<Box<ServerSession>>,
    /// Absent while the body streams.
    pieces: Option<Vec<Bytes>>,
    next: usize,
    held: Option<Held>,
    judge: Judge,
    clock: Clock,
    handle: Handle,
    /// How long a stream is read on for its usage after the client has left.
    drain: Duration,
    /// The answer is an event stream that has begun.
    is_stream: bool,
    /// The client has left; the stream is read until then.
    left: Option<Instant>,
    /// The client has got the header of an event stream already: a backend's is dropped.
    is_opened: bool,
    /// Keeps the stream alive until its first event, where that is wanted.
    opening: Option<Opening>,
    /// A comment would come too late: after an event, or into what is no stream.
    is_told: bool,
    /// An answer of our own has taken the place of the backend's, whose rest is dropped.
    is_replaced: bool,
    /// The write of a held header is under way; when it is found so, it was given up in the middle.
    is_opening: bool,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        *self.handle.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
    }
}

#[expect(clippy::expect_used, reason = "`inner` is taken in `drop` only, after which nothing can call")]
impl Exchange {
    fn inner(&self) -> &ServerSession {
        self.inner.as_ref().expect("the session is there until drop")
    }

    fn inner_mut(&mut self) -> &mut ServerSession {
        self.inner.as_mut().expect("the session is there until drop")
    }

    /// A body of one piece goes by pingora's replay buffer, which costs one wake-up less.
    fn single(&self) -> Option<&Bytes> {
        match self.pieces.as_deref() {
            Some([one]) => Some(one),
            _ => None,
        }
    }

    fn unsent(&self) -> bool {
        self.single().is_none() && self.pieces.as_ref().is_some_and(|pieces| self.next < pieces.len())
    }

    /// Whether it is worth reading on when the client leaves now.
    fn may_drain(&self) -> bool {
        !self.drain.is_zero() && self.is_stream && !self.handle.flags.is_complete.load(Ordering::Relaxed)
    }

    /// The client has left: says until when the stream is read on.
    fn leave(&mut self) -> Instant {
        *self.left.get_or_insert_with(|| Instant::now() + self.drain)
    }

    /// Adds to a held answer; once it is whole, or its bound is reached, judges and sends it.
    async fn hold(&mut self, mut held: Held, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut complete = false;
        for task in tasks {
            match task {
                HttpTask::Failed(e) => return Err(e),
                HttpTask::Header(header, end) => {
                    held.header = header;
                    complete |= end;
                    continue;
                }
                HttpTask::Body(ref data, end) => {
                    complete |= end;
                    held.seen.extend_from_slice(data.as_deref().unwrap_or_default());
                }
                _ => complete = true,
            }
            held.tasks.push(task);
        }
        let is_enough = match held.opens {
            Some(_) => first::is_decided(&held.seen),
            None => false,
        };
        if !complete && !is_enough && held.seen.len() < self.judge.bound() {
            self.held = Some(held);
            return Ok(false);
        }
        self.release(held, complete).await
    }

    /// Sends the header of a held stream, whose first event does not come.
    async fn open(&mut self) -> Result<()> {
        let Some(Held { header, mut tasks, .. }) = self.held.take() else { return Ok(()) };
        tasks.insert(0, HttpTask::Header(header, false));
        self.handle.flags.has_passed.store(true, Ordering::Relaxed);
        self.begin(tasks).await
    }

    /// Tells the client that its request is at work: in a comment, after the header where none has gone.
    async fn keep_alive(&mut self) -> Result<()> {
        self.open().await?;
        let is_begun = self.inner().response_written().is_some_and(|header| !header.status.is_informational());
        let version = self.inner().req_header().version;
        let Some(opening) = &mut self.opening else { return Ok(()) };
        let tasks = opening.tasks(version, is_begun);
        if !is_begun {
            self.is_opened = true;
            self.handle.flags.is_opened.store(true, Ordering::Relaxed);
        }
        self.begin(tasks).await
    }

    /// Writes what a client is sent before any event; that may be given up in the middle.
    async fn begin(&mut self, tasks: Vec<HttpTask>) -> Result<()> {
        self.is_opening = true;
        let done = self.inner_mut().response_duplex_vec(tasks).await;
        self.is_opening = false;
        done.map(drop)
    }

    /// Sees whether comments may still come: before any event, and where nothing states how long the answer is.
    fn watch(&mut self, tasks: &[HttpTask]) {
        let is_over = |task: &HttpTask| match task {
            HttpTask::Header(header, _) => {
                let states = |name| header.headers.contains_key(name);
                !self.is_stream || states(header::CONTENT_LENGTH) || states(header::CONTENT_ENCODING)
            }
            HttpTask::Body(data, _) => data.as_ref().is_some_and(|data| !data.is_empty()),
            _ => true,
        };
        self.is_told |= tasks.iter().any(is_over);
    }

    async fn release(&mut self, mut held: Held, complete: bool) -> Result<bool> {
        self.handle.flags.has_passed.store(true, Ordering::Relaxed);
        let judgement = match held.opens {
            Some(_) => self.judge.read_event(&mut held.header, &held.seen),
            None => self.judge.read(&mut held.header, &held.seen, complete),
        };
        let replaced = match judgement {
            Some(judgement) => {
                *self.handle.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(judgement.failure);
                judgement.replacement
            }
            None => None,
        };
        let mut tasks = Vec::with_capacity(held.tasks.len() + 1);
        if self.is_opened {
            // The header has gone: the failure is told in an event, as the backend worded it where that is JSON.
            let body = replaced.unwrap_or_else(|| held.seen.clone().into());
            return self.inner_mut().response_duplex_vec(vec![HttpTask::Body(Some(event(&body)), true)]).await;
        }
        match replaced {
            Some(body) => {
                self.is_replaced = true;
                tasks.push(HttpTask::Header(held.header, false));
                tasks.push(HttpTask::Body(Some(body), true));
                if !complete {
                    // What the backend still sends is of no use, and so its connection.
                    self.inner_mut().response_duplex_vec(tasks).await?;
                    return Ok(true);
                }
            }
            None => {
                tasks.push(HttpTask::Header(held.header, held.tasks.is_empty() && complete));
                tasks.append(&mut held.tasks);
            }
        }
        self.inner_mut().response_duplex_vec(tasks).await
    }
}

/// A failure as an event: OpenAI's readers look for an `error` object in `data`.
pub(super) fn event(body: &[u8]) -> Bytes {
    let data = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) if value.get("error").is_some() => value,
        Ok(value) => serde_json::json!({ "error": value }),
        Err(_) => {
            serde_json::json!({ "error": { "message": "The backend answered with an error.", "type": "upstream_error" } })
        }
    };
    format!("data: {data}\n\n").into()
}

/// Waits for the end of a drain.
async fn gone(end: Instant) -> Box<Error> {
    tokio::time::sleep_until(end).await;
    into_error(Failure::ClientClosed)
}

type MessageReader = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

#[async_trait]
impl CustomSession for Exchange {
    // The request body.

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        match self.pieces {
            Some(_) => Ok(None),
            None => self.inner_mut().read_request_body().await,
        }
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if self.unsent() && !no_body_expected {
            let piece = self.pieces.as_ref().and_then(|pieces| pieces.get(self.next)).cloned();
            self.next += 1;
            return Ok(piece);
        }
        if let Some(end) = self.left {
            return Err(gone(end).await);
        }
        let idle = no_body_expected || self.pieces.is_some();
        let may_drain = self.may_drain();
        let opens = self.held.as_ref().and_then(|held| held.opens);
        let comment = self.opening.as_ref().filter(|_| idle && !self.is_told).map(Opening::next);
        let is_resting = self.handle.flags.is_resting.load(Ordering::Relaxed);
        let Self { inner: Some(inner), clock, .. } = self else { return Ok(None) };
        if !idle {
            clock.uploading();
            // A body that streams from the client ends by its own silence or by the request's total time.
            return tokio::select! {
                biased;
                read = inner.read_body_or_idle(false) => read.map_err(|e| into_error(read_failure(e.etype()))),
                late = clock.overdue() => Err(into_error(late)),
            };
        }
        let left = tokio::select! {
            biased;
            read = inner.read_body_or_idle(true) => read,
            late = clock.late(), if !is_resting => return Err(into_error(late)),
            () = tokio::time::sleep_until(comment.unwrap_or_else(Instant::now)), if comment.is_some() => {
                self.keep_alive().await?;
                return self.read_body_or_idle(no_body_expected).await;
            }
            () = tokio::time::sleep_until(opens.unwrap_or_else(Instant::now)), if opens.is_some() => {
                self.open().await?;
                return self.read_body_or_idle(no_body_expected).await;
            }
        };
        if left.is_ok() || is_resting || !may_drain {
            return left;
        }
        Err(gone(self.leave()).await)
    }

    fn is_body_done(&mut self) -> bool {
        match self.pieces {
            Some(_) => !self.unsent(),
            None => self.inner_mut().is_body_done(),
        }
    }

    fn is_body_empty(&mut self) -> bool {
        match &self.pieces {
            Some(pieces) => pieces.iter().all(Bytes::is_empty),
            None => self.inner_mut().is_body_empty(),
        }
    }

    /// pingora calls this once at the start of every attempt.
    fn enable_retry_buffering(&mut self) {
        if let Some(target) = self.handle.target.lock().unwrap_or_else(PoisonError::into_inner).take() {
            if let Some(Payload::Buffered(pieces)) = target.payload {
                self.pieces = Some(sliced(pieces));
            }
            self.judge = target.judge;
            self.clock.retime(target.timeouts);
            self.opening = target.opening;
        }
        self.next = 0;
        self.held = None;
        (self.is_stream, self.is_told) = (false, false);
        self.clock.attempt();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.pieces.is_none()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.single().filter(|body| !body.is_empty()).cloned()
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.inner_mut().drain_request_body().await
    }

    fn body_bytes_read(&self) -> usize {
        self.inner().body_bytes_read()
    }

    // The answer.

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if self.left.is_some() {
            self.clock.progress();
            let is_over = self.handle.flags.is_complete.load(Ordering::Relaxed) || tasks.iter().any(HttpTask::is_end);
            return if is_over { Err(into_error(Failure::ClientClosed)) } else { Ok(false) };
        }
        if self.is_opening {
            // A header was half written: nothing can follow it.
            return Err(into_error(Failure::ClientStalled));
        }
        if self.is_replaced {
            return Ok(true);
        }
        if let Some(HttpTask::Header(header, _)) = tasks.first() {
            self.is_stream = header.status.as_u16() / 100 == 2 && Form::of(&header.headers) == Form::Events;
        }
        if self.opening.is_some() {
            self.watch(&tasks);
        }
        let held = match self.held.take() {
            Some(held) => Some(held),
            None => match tasks.first() {
                Some(HttpTask::Header(header, _)) if self.judge.must_see(header) => {
                    Some(Held { header: header.clone(), tasks: Vec::new(), seen: Vec::new(), opens: None })
                }
                Some(HttpTask::Header(header, _)) if self.is_stream && !self.is_opened => {
                    let opens = self.judge.patience().map(|patience| Instant::now() + patience);
                    opens.map(|opens| Held {
                        header: header.clone(),
                        tasks: Vec::new(),
                        seen: Vec::new(),
                        opens: Some(opens),
                    })
                }
                _ => None,
            },
        };
        // That the backend broke off is no sign of the client.
        let is_broken = tasks.iter().any(|task| matches!(task, HttpTask::Failed(_)));
        let done = match held {
            Some(held) => self.hold(held, tasks).await,
            None => {
                let is_sent = |task: &HttpTask| !self.is_opened || !matches!(task, HttpTask::Header(..));
                let tasks: Vec<_> = if self.is_opened { tasks.into_iter().filter(is_sent).collect() } else { tasks };
                if !tasks.is_empty() {
                    self.handle.flags.has_passed.store(true, Ordering::Relaxed);
                }
                self.inner_mut().response_duplex_vec(tasks).await
            }
        };
        if done.is_err() && !is_broken && self.may_drain() {
            self.leave();
            return Ok(false);
        }
        // Counted from here, so that a client that reads slowly is not taken for a silent backend.
        self.clock.progress();
        done
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header_ref(header).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner().response_written()
    }

    async fn finish(&mut self) -> Result<()> {
        self.inner_mut().finish_body().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner().body_bytes_sent()
    }

    // The rest is the real session's.

    fn req_header(&self) -> &RequestHeader {
        self.inner().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner_mut().req_header_mut()
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner().request_summary()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.inner_mut().shutdown().await;
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner().to_h1_raw()
    }

    fn is_upgrade_req(&self) -> bool {
        self.inner().is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.inner().was_upgraded()
    }

    // Custom messages are a feature of other protocols.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<MessageReader> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: MessageReader) -> Result<()> {
        Err(Error::explain(pingora_error::ErrorType::InternalError, "no custom messages"))
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Err(Error::explain(pingora_error::ErrorType::InternalError, "no custom messages"))
    }
}
