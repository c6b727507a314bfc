//! A collector of OpenTelemetry: takes exports by gRPC and by HTTP on one port, and fails as it is told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use nimgate::otlp::Signal;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::*;
use crate::tls::{certificate, tls_front_with};

/// What a collector does with one export.
#[derive(Clone, Debug)]
pub enum Told {
    /// Takes it.
    Take,
    /// Refuses so many of its records.
    Partly(i64),
    /// Answers this status, or code of gRPC, and has this to say.
    Fail(u16, &'static str),
    /// Is full, and says when to come again.
    Busy(u64),
    /// Never answers.
    Hang,
}

/// What a collector has seen.
#[derive(Default)]
struct Seen {
    next: VecDeque<Told>,
    /// What it does once `next` is empty.
    always: Option<Told>,
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    logs: Vec<LogRecord>,
    resource: Option<Resource>,
    /// The header of each export, and when it came.
    exports: Vec<(String, HeaderMap, Instant)>,
}

/// A collector; dies when dropped.
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Its listener and its connections.
    work: JoinSet<()>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    /// One that listens where one was before.
    pub async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut work = JoinSet::new();
        let shared = Arc::clone(&seen);
        work.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&shared);
                connections.spawn(async move {
                    let serve = service_fn(move |request| answer_to(request, Arc::clone(&seen)));
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        Self { address, seen, work }
    }

    /// The same behind TLS, for the name `collector.test`; `collector.ca` in the directory is its authority.
    pub async fn behind_tls(&self, directory: &Path, alpn: &[&str]) -> u16 {
        certificate(directory, "collector", "localhost");
        tls_front_with(directory, "collector", self.address, alpn).await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this with the next exports.
    pub fn next(&self, told: &[Told]) {
        self.seen.lock().unwrap().next.extend(told.iter().cloned());
    }

    /// Does this from now on.
    pub fn always(&self, told: Told) {
        self.seen.lock().unwrap().always = Some(told);
    }

    /// Ends it, and every connection with it.
    pub async fn kill(mut self) -> SocketAddr {
        self.work.shutdown().await;
        self.address
    }

    pub fn logs(&self) -> Vec<LogRecord> {
        self.seen.lock().unwrap().logs.clone()
    }

    pub fn spans(&self) -> Vec<Span> {
        self.seen.lock().unwrap().spans.clone()
    }

    pub fn metrics(&self) -> Vec<Metric> {
        self.seen.lock().unwrap().metrics.clone()
    }

    pub fn resource(&self) -> Resource {
        self.seen.lock().unwrap().resource.clone().unwrap()
    }

    /// Path, header and time of each export.
    pub fn exports(&self) -> Vec<(String, HeaderMap, Instant)> {
        self.seen.lock().unwrap().exports.clone()
    }

    /// The record of a request, once it is there.
    pub async fn request(&self, id: &str) -> LogRecord {
        let mut found = None;
        until("the collector has the record", async || {
            found = self.logs().into_iter().find(|log| text(&log.attributes, "nimgate.request.id") == id);
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

/// The text of an attribute.
pub fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text,
        None => String::new(),
        Some(other) => format!("{other:?}"),
    }
}

/// The value of an attribute.
pub fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

/// The text of a record's body.
pub fn body(log: &LogRecord) -> String {
    match &log.body {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.clone(),
        _ => String::new(),
    }
}

type Answered = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

async fn answer_to(request: Request<Incoming>, seen: Arc<Mutex<Seen>>) -> Result<Answered, Infallible> {
    let (parts, body) = request.into_parts();
    // Whoever sends it may leave.
    let Ok(body) = body.collect().await else { std::future::pending().await };
    let path = parts.uri.path().to_owned();
    let is_call = parts.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let told = {
        let mut seen = seen.lock().unwrap();
        seen.exports.push((path.clone(), parts.headers.clone(), Instant::now()));
        let told = seen.next.pop_front().or_else(|| seen.always.clone()).unwrap_or(Told::Take);
        if let Told::Take | Told::Partly(_) = told {
            let body = message(body.to_bytes(), &parts.headers, is_call);
            seen.take(&path, body, is_call);
        }
        told
    };
    if let Told::Hang = told {
        std::future::pending::<()>().await;
    }
    Ok(if is_call { call_answer(&told) } else { post_answer(&told) })
}

/// The message of an export, out of its frame and its compression.
fn message(body: Bytes, headers: &HeaderMap, is_call: bool) -> Bytes {
    let (is_packed, body) = match is_call {
        true => {
            let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
            assert_eq!(body.len(), 5 + length, "one message in a call");
            assert!(headers["te"] == "trailers" && headers.contains_key("grpc-timeout"), "{headers:?}");
            assert_eq!(body[0] == 1, headers.get("grpc-encoding").is_some_and(|e| e == "gzip"));
            (body[0] == 1, body.slice(5..))
        }
        false => (headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip"), body),
    };
    if !is_packed {
        return body;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut unpacked).unwrap();
    unpacked.into()
}

impl Seen {
    fn take(&mut self, path: &str, message: Bytes, is_call: bool) {
        let signal = match (path, is_call) {
            ("/v1/traces", false) | ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", true) => {
                Signal::Traces
            }
            ("/v1/metrics", false) | ("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", true) => {
                Signal::Metrics
            }
            ("/v1/logs", false) | ("/opentelemetry.proto.collector.logs.v1.LogsService/Export", true) => Signal::Logs,
            _ => panic!("an export to {path}"),
        };
        match signal {
            Signal::Traces => {
                for resource in ExportTraceServiceRequest::decode(message).unwrap().resource_spans {
                    self.resource = resource.resource;
                    self.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
                }
            }
            Signal::Metrics => {
                for resource in ExportMetricsServiceRequest::decode(message).unwrap().resource_metrics {
                    self.resource = resource.resource;
                    self.metrics.extend(resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
                }
            }
            Signal::Logs => {
                for resource in ExportLogsServiceRequest::decode(message).unwrap().resource_logs {
                    self.resource = resource.resource;
                    self.logs.extend(resource.scope_logs.into_iter().flat_map(|scope| scope.log_records));
                }
            }
        }
    }
}

/// The message that is answered to what was taken.
fn taken(told: &Told) -> Vec<u8> {
    let partial = |rejected_log_records| ExportLogsPartialSuccess {
        rejected_log_records,
        error_message: "some are too old".to_owned(),
    };
    let partial_success = if let Told::Partly(count) = told { Some(partial(*count)) } else { None };
    ExportLogsServiceResponse { partial_success }.encode_to_vec()
}

fn post_answer(told: &Told) -> Answered {
    let (status, body) = match told {
        Told::Fail(status, message) => (*status, rpc_status(message, None)),
        Told::Busy(_) => (429, rpc_status("busy", None)),
        told => (200, taken(told)),
    };
    let answer = Response::builder().status(status).header("content-type", "application/x-protobuf");
    let answer = match told {
        Told::Busy(seconds) => answer.header("retry-after", *seconds),
        _ => answer,
    };
    answer.body(Full::new(Bytes::from(body)).boxed()).unwrap()
}

fn call_answer(told: &Told) -> Answered {
    let answer = Response::builder().header("content-type", "application/grpc");
    let mut trailers = HeaderMap::new();
    let mut say = |name: &'static str, value: &str| drop(trailers.insert(name, HeaderValue::from_str(value).unwrap()));
    let mut body = Vec::new();
    match told {
        Told::Fail(code, message) => {
            say("grpc-status", &code.to_string());
            say("grpc-message", message);
        }
        Told::Busy(seconds) => {
            use base64::Engine as _;
            let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(rpc_status("busy", Some(*seconds)));
            say("grpc-status", "8");
            say("grpc-status-details-bin", &details);
        }
        told => {
            let message = taken(told);
            body.push(0);
            body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            body.extend(message);
            say("grpc-status", "0");
        }
    }
    let body = Full::new(Bytes::from(body)).with_trailers(async move { Some(Ok(trailers)) });
    answer.body(body.boxed()).unwrap()
}

/// A `google.rpc.Status` with this message, and a `RetryInfo` of so many seconds.
fn rpc_status(message: &str, retry: Option<u64>) -> Vec<u8> {
    let field = |tag: u8, content: &[u8]| {
        let mut field = vec![tag << 3 | 2, u8::try_from(content.len()).unwrap()];
        field.extend(content);
        field
    };
    let mut status = field(2, message.as_bytes());
    if let Some(seconds) = retry {
        let delay = [0x08, u8::try_from(seconds).unwrap()];
        let mut any = field(1, b"type.googleapis.com/google.rpc.RetryInfo");
        any.extend(field(2, &field(1, &delay)));
        status.extend(field(3, &any));
    }
    status
}

/// How far apart two exports came.
pub fn between(exports: &[(String, HeaderMap, Instant)], at: usize) -> Duration {
    exports[at + 1].2 - exports[at].2
}
