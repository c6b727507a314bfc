//! A function of NVCF that speaks gRPC, behind the platform's own gRPC proxy: messages are bytes, passed back as they came.
//!
//! Like that proxy, it looks at `authorization` and `function-id` once for each connection. Methods of `sim.Echo`:
//!
//! | Method | Answer |
//! |---|---|
//! | `Unary`, `Bidi` | the messages as they came, each as soon as it is there |
//! | `ServerStream` | the message, `x-sim-times` times (3) |
//! | `ClientStream` | one message: all that came, put together |
//! | `Fail` | one message, unless `x-sim-bare` is there; then `x-sim-code` and `x-sim-message` as status |
//! | `Hang` | nothing, until the client leaves |
//!
//! Metadata `x-sim-echo` comes back in header and trailers; `x-sim-break` breaks the connection after the first message.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::poll_fn;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::lock;

/// A running function; dropping it stops it and closes its connections.
#[derive(Debug)]
pub struct GrpcSimulator {
    address: SocketAddr,
    seen: Arc<Mutex<GrpcSeen>>,
    acceptor: AbortHandle,
}

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct GrpcSeen {
    /// Connections so far, in the order in which they came.
    pub connections: Vec<GrpcConnection>,
    /// Calls whose client left before they ended.
    pub cancelled: u64,
    /// Calls under way.
    pub in_flight: u64,
    /// The metadata of the latest call.
    pub last: HeaderMap,
}

/// What came on one connection.
#[derive(Clone, Debug, Default)]
pub struct GrpcConnection {
    /// It is open.
    pub is_open: bool,
    /// Methods that were called.
    pub calls: Vec<String>,
    /// Values of `authorization`.
    pub credentials: BTreeSet<String>,
    /// Values of `function-id`.
    pub functions: BTreeSet<String>,
    /// Values of `x-sim-who`.
    pub callers: BTreeSet<String>,
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;
type Frames = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

/// Starts one on a free port.
///
/// # Errors
/// When there is none.
pub async fn start_grpc() -> io::Result<GrpcSimulator> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let seen: Arc<Mutex<GrpcSeen>> = Arc::default();
    let acceptor = tokio::spawn(accept(listener, Arc::clone(&seen))).abort_handle();
    Ok(GrpcSimulator { address, seen, acceptor })
}

impl GrpcSimulator {
    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it saw so far.
    pub fn seen(&self) -> GrpcSeen {
        lock(&self.seen).clone()
    }

    /// Stops listening and drops every connection.
    pub fn kill(&self) {
        self.acceptor.abort();
    }
}

impl Drop for GrpcSimulator {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<GrpcSeen>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&seen)))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, seen: Arc<Mutex<GrpcSeen>>) {
    let id = {
        let mut seen = lock(&seen);
        seen.connections.push(GrpcConnection { is_open: true, ..GrpcConnection::default() });
        seen.connections.len() - 1
    };
    let broken = Arc::new(Notify::new());
    let connection = Connection { id, seen: Arc::clone(&seen), broken: Arc::clone(&broken) };
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(connection.answer(request)) }
    });
    let _open = Open { id, seen };
    tokio::select! {
        _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service) => {}
        () = broken.notified() => {}
    }
}

/// Notes that a connection has ended.
struct Open {
    id: usize,
    seen: Arc<Mutex<GrpcSeen>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.seen).connections[self.id].is_open = false;
    }
}

#[derive(Clone)]
struct Connection {
    id: usize,
    seen: Arc<Mutex<GrpcSeen>>,
    broken: Arc<Notify>,
}

/// Counts a call as under way until dropped, and as cancelled unless settled by then.
struct Watch {
    seen: Arc<Mutex<GrpcSeen>>,
    is_settled: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut seen = lock(&self.seen);
        seen.in_flight -= 1;
        seen.cancelled += u64::from(!self.is_settled);
    }
}

impl Connection {
    fn answer(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let text = |name: &str| parts.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let method = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let is_first = {
            let mut seen = lock(&self.seen);
            seen.last = parts.headers.clone();
            let connection = &mut seen.connections[self.id];
            connection.calls.push(method.clone());
            connection.credentials.extend(text("authorization"));
            connection.functions.extend(text("function-id"));
            connection.callers.extend(text("x-sim-who"));
            connection.calls.len() == 1
        };
        if parts.headers.get("te").is_none_or(|te| te != "trailers") {
            return ended(&status(3, "te: trailers is missing"));
        }
        if is_first && text("authorization").is_none_or(|value| !value.starts_with("Bearer nvapi-")) {
            return ended(&status(16, "no or a wrong credential"));
        }
        if is_first && text("function-id").is_none() {
            return ended(&status(3, "function-id is missing"));
        }
        let (frames, mut rest) = mpsc::channel(1);
        lock(&self.seen).in_flight += 1;
        let mut watch = Watch { seen: Arc::clone(&self.seen), is_settled: false };
        let mut answer = Response::builder().header("content-type", "application/grpc");
        if let Some(echo) = parts.headers.get("x-sim-echo") {
            answer = answer.header("x-sim-echo", echo);
        }
        if method == "Fail" && parts.headers.contains_key("x-sim-bare") {
            watch.is_settled = true;
            return ended(&wanted(&parts.headers));
        }
        tokio::spawn(call(method, parts.headers, body, frames, watch, Arc::clone(&self.broken)));
        let body = StreamBody::new(poll_fn(move |cx| rest.poll_recv(cx)));
        answer.body(body.boxed_unsync()).unwrap_or_default()
    }
}

/// Answers a call until it ends or its client has left.
async fn call(
    method: String,
    headers: HeaderMap,
    body: Incoming,
    frames: Frames,
    mut watch: Watch,
    broken: Arc<Notify>,
) {
    let gone = frames.clone();
    let done = tokio::select! {
        done = converse(&method, &headers, body, &frames, &broken) => done,
        () = gone.closed() => None,
    };
    if let Some(trailers) = done {
        watch.is_settled = frames.send(Ok(Frame::trailers(trailers))).await.is_ok();
    }
}

/// One method; answers with its trailers, or nothing when its client has left.
async fn converse(
    method: &str,
    headers: &HeaderMap,
    mut body: Incoming,
    frames: &Frames,
    broken: &Notify,
) -> Option<HeaderMap> {
    let send = async |data: Bytes| frames.send(Ok(Frame::data(data))).await.ok();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        match method {
            "Bidi" | "Unary" => send(data).await?,
            _ => whole.extend_from_slice(&data),
        }
        if headers.contains_key("x-sim-break") {
            broken.notify_one();
        }
    }
    let number = |name: &str, or: u32| headers.get(name).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(or);
    match method {
        "Unary" | "Bidi" => {}
        "ServerStream" => {
            for _ in 0..number("x-sim-times", 3) {
                send(whole.clone().freeze()).await?;
            }
        }
        "ClientStream" => send(joined(&whole)).await?,
        "Fail" => {
            send(whole.freeze()).await?;
            return Some(wanted(headers));
        }
        "Hang" => std::future::pending().await,
        _ => return Some(status(12, "unknown method")),
    }
    let mut trailers = status(0, "");
    if let Some(echo) = headers.get("x-sim-echo") {
        trailers.insert("x-sim-echo", echo.clone());
    }
    Some(trailers)
}

/// The contents of all messages as one: each has a flag and four bytes of length before it.
fn joined(mut messages: &[u8]) -> Bytes {
    let mut content = BytesMut::new();
    while let Some((&[_, a, b, c, d], rest)) = messages.split_first_chunk::<5>() {
        let (message, rest) = rest.split_at((u32::from_be_bytes([a, b, c, d]) as usize).min(rest.len()));
        content.extend_from_slice(message);
        messages = rest;
    }
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), &content].concat().into()
}

fn status(code: u32, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", code.into());
    if let Ok(message) = HeaderValue::from_str(message) {
        headers.insert("grpc-message", message);
    }
    headers
}

/// The status that a caller wants.
fn wanted(headers: &HeaderMap) -> HeaderMap {
    let [code, message] = ["x-sim-code", "x-sim-message"].map(|name| headers.get(name).cloned());
    let mut status = status(2, "");
    code.into_iter().for_each(|code| drop(status.insert("grpc-status", code)));
    message.into_iter().for_each(|message| drop(status.insert("grpc-message", message)));
    status
}

/// An answer that is all in its header.
fn ended(status: &HeaderMap) -> Answer {
    let mut answer = Response::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync());
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    answer.headers_mut().extend(status.clone());
    answer
}
