//! Client: sends one export, by gRPC or by a POST of protobuf.

use std::io::Write as _;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::answer::{Answer, Outcome};
use super::{Protocol, Signal, Target, Tls};

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// The longest reason that is told.
const LONGEST_REASON: usize = 300;

type Http = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Sends the exports of one signal.
pub(super) struct Client {
    http: Http,
    uri: Uri,
    headers: HeaderMap,
    tls: ClientConfig,
    target: Target,
}

impl Client {
    pub(super) fn new(signal: Signal, target: Target) -> Result<Self, rustls::Error> {
        let tls = target.tls.config(target.endpoint.scheme_str() == Some("https"))?;
        let http = connect(&target, &tls);
        Ok(Self { http, uri: uri(signal, &target), headers: headers(&target), tls, target })
    }

    /// An export as it is sent, which an attempt after a failed one needs not do again.
    pub(super) fn pack(&self, export: Bytes) -> Bytes {
        let packed = if self.target.gzip { compressed(&export) } else { export };
        if self.target.protocol == Protocol::Http {
            return packed;
        }
        let mut framed = BytesMut::with_capacity(packed.len() + 5);
        framed.put_u8(u8::from(self.target.gzip));
        framed.put_u32(u32::try_from(packed.len()).unwrap_or(u32::MAX));
        framed.put(packed);
        framed.freeze()
    }

    /// Sends what was packed.
    pub(super) async fn export(&mut self, packed: Bytes) -> Outcome {
        let outcome = match tokio::time::timeout(self.target.timeout, self.exchange(packed)).await {
            Ok(Ok(answer)) if self.target.protocol == Protocol::Grpc => answer.of_call(),
            Ok(Ok(answer)) => answer.of_post(),
            Ok(Err(reason)) => Outcome::failed(reason),
            Err(_) => {
                // Its connection may be a dead one.
                self.http = connect(&self.target, &self.tls);
                Outcome::failed(format!("no answer within {} ms", self.target.timeout.as_millis()))
            }
        };
        match outcome {
            Outcome::Taken { refused, message } => Outcome::Taken { refused, message: self.told(&message) },
            Outcome::Refused(reason) => Outcome::Refused(self.told(&reason)),
            Outcome::Failed { reason, after } => Outcome::Failed { reason: self.told(&reason), after },
        }
    }

    async fn exchange(&self, packed: Bytes) -> Result<Answer, String> {
        let mut request = Request::new(Full::new(packed));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if self.target.protocol == Protocol::Grpc {
            *request.version_mut() = http::Version::HTTP_2;
        }
        let answer = self.http.request(request).await.map_err(|error| told(&error))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| told(error.as_ref()))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
    }

    /// What may be told of a collector's words: they may quote what was sent to it.
    fn told(&self, words: &str) -> String {
        let mut words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for secret in self.target.headers.values().filter_map(|value| value.to_str().ok()) {
            let bare = secret.rsplit(' ').next().unwrap_or(secret);
            for secret in [secret, bare].into_iter().filter(|secret| !secret.is_empty()) {
                words = words.replace(secret, "***");
            }
        }
        words.truncate(words.floor_char_boundary(words.len().min(LONGEST_REASON)));
        words
    }
}

impl Tls {
    fn config(&self, is_used: bool) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(authorities) => {
                roots.add_parsable_certificates(authorities.iter().map(|der| CertificateDer::from(der.clone())));
            }
            None if is_used => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().unwrap_or_default());
            }
            None => {}
        }
        let provider = rustls::crypto::ring::default_provider().into();
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        match &self.identity {
            Some(identity) => {
                let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                builder.with_client_auth_cert(chain, identity.key.clone_key())
            }
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

fn connect(target: &Target, tls: &ClientConfig) -> Http {
    const IDLE: Duration = Duration::from_secs(90);
    let is_call = target.protocol == Protocol::Grpc;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(target.timeout));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
    let connector = match is_call {
        true => builder.enable_http2().wrap_connector(http),
        false => builder.enable_http1().wrap_connector(http),
    };
    HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http2_only(is_call)
        .build(connector)
}

/// Where exports are posted. A path of gRPC is the method's.
fn uri(signal: Signal, target: &Target) -> Uri {
    if target.protocol == Protocol::Http {
        return target.endpoint.clone();
    }
    let method = match signal {
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    };
    let mut parts = target.endpoint.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(method));
    Uri::from_parts(parts).unwrap_or_else(|_| target.endpoint.clone())
}

/// The header of each export. What the protocol says goes before what was configured.
fn headers(target: &Target) -> HeaderMap {
    let mut headers = target.headers.clone();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("nimgate/", env!("CARGO_PKG_VERSION"))));
    match target.protocol {
        Protocol::Grpc => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            if let Ok(timeout) = HeaderValue::try_from(format!("{}m", target.timeout.as_millis())) {
                headers.insert("grpc-timeout", timeout);
            }
            if target.gzip {
                headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
            }
        }
        Protocol::Http => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if target.gzip {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
    }
    headers
}

fn compressed(export: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(export.len() / 4), Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(export);
    encoder.finish().unwrap_or_default().into()
}

/// An error and what is behind it.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}
