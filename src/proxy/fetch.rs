//! Fetch: a buffered request to one endpoint by a client of our own, beside pingora's loop: it can run in two at once.
//!
//! Connects to the leased address; `Host` and the name in TLS are the endpoint's. What is fetched from elsewhere, such as
//! a large answer of NVCF, goes by [`results`].

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, ResolveServerName};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pingora_http::{RequestHeader, ResponseHeader};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};

use super::settings::{PoolSettings, Timeouts, TlsSettings};
use crate::balance::Lease;
use crate::failure::Failure;
use crate::upstream::Event;
use crate::upstream::archive::{Broken, File, Unpacker};

pub mod results;

/// Sends requests to the endpoints of one pool.
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    is_secure: bool,
    names: Names,
    timeouts: Timeouts,
}

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// What it is called.
    pub host: String,
}

impl Peer {
    /// A leased endpoint.
    pub fn of(lease: &Lease) -> Self {
        Self { address: lease.address(), host: lease.endpoint().settings().host.clone() }
    }
}

/// An answer whose body may still be on its way.
pub struct Answer {
    /// Its header, as it came.
    pub header: ResponseHeader,
    /// Its body.
    pub body: Stream,
}

/// A body that has to move.
pub struct Stream {
    /// Pieces that were read already, or were never sent.
    held: VecDeque<Bytes>,
    /// Absent where all is held.
    body: Option<Incoming>,
    /// What it comes packed in.
    unpacker: Option<Box<Unpacker>>,
    silence: Duration,
    end: Instant,
}

impl Fetcher {
    /// For the endpoints of this pool.
    pub fn new(settings: &PoolSettings) -> Self {
        let names = Names::default();
        let tls = settings.tls.as_ref();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(settings.timeouts.connect));
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(tls)).https_or_http();
        let fixed = tls.and_then(|tls| tls.server_name.clone());
        let builder = builder.with_server_name_resolver(Resolver { fixed, names: names.clone() });
        let is_prior = settings.http2 && tls.is_none();
        let connector = match is_prior {
            true => builder.enable_http2().wrap_connector(http),
            false => builder.enable_http1().wrap_connector(http),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .http2_only(is_prior)
            .build(connector);
        Self { client, is_secure: tls.is_some(), names, timeouts: settings.timeouts }
    }

    /// For other hosts that take part in what the pool does: under their own names, and by HTTP/1.
    pub fn elsewhere(settings: &PoolSettings) -> Self {
        let tls = settings.tls.clone().map(|tls| TlsSettings { server_name: None, ..tls });
        Self::new(&PoolSettings { tls, http2: false, ..settings.clone() })
    }

    /// Sends a request that was rewritten for the leased endpoint. `end` ends the exchange whatever the pool allows.
    pub fn send(
        &self,
        header: RequestHeader,
        body: Bytes,
        lease: &Lease,
        end: Option<Instant>,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send + use<> {
        let begun = Instant::now();
        let total = begun + self.timeouts.total;
        let end = end.map_or(total, |end| end.min(total));
        let first_byte = begun + self.timeouts.connect + self.timeouts.first_byte;
        self.exchange(header, body, &Peer::of(lease), first_byte, end)
    }

    /// The same, with an answer's header expected until `first_byte`.
    pub fn exchange(
        &self,
        header: RequestHeader,
        body: Bytes,
        peer: &Peer,
        first_byte: Instant,
        end: Instant,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send + use<> {
        self.begin(peer, self.is_secure, header, body, first_byte, end)
    }

    /// The same for any host that speaks TLS or does not.
    pub fn send_to(
        &self,
        peer: &Peer,
        is_secure: bool,
        header: RequestHeader,
        body: Bytes,
        end: Option<Instant>,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send + use<> {
        let begun = Instant::now();
        let total = begun + self.timeouts.total;
        let end = end.map_or(total, |end| end.min(total));
        self.begin(peer, is_secure, header, body, begun + self.timeouts.connect + self.timeouts.first_byte, end)
    }

    fn begin(
        &self,
        peer: &Peer,
        is_secure: bool,
        header: RequestHeader,
        body: Bytes,
        first_byte: Instant,
        end: Instant,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send + use<> {
        let address = peer.address;
        self.names.note(address, &peer.host);
        let path = header.uri.path_and_query().map_or("/", |path| path.as_str());
        let scheme = if is_secure { "https" } else { "http" };
        let uri = format!("{scheme}://{address}{path}").parse::<Uri>();
        let (client, timeouts) = (self.client.clone(), self.timeouts);
        async move {
            let mut parts: http::request::Parts = header.into();
            parts.uri = uri.map_err(|e| Failure::Internal(e.to_string()))?;
            parts.version = http::Version::HTTP_11;
            let first_byte = first_byte.min(end);
            let sent = client.request(Request::from_parts(parts, Full::new(body)));
            match timeout_at(first_byte, sent).await {
                Ok(Ok(answer)) => {
                    let (parts, body) = answer.into_parts();
                    let header = ResponseHeader::from(parts);
                    Ok(Answer { header, body: Stream::new(body, timeouts.between_chunks, end) })
                }
                Ok(Err(error)) => Err(failure(&error)),
                Err(_) if first_byte == end => Err(Failure::TotalTimeout),
                Err(_) => Err(Failure::FirstByteTimeout),
            }
        }
    }
}

impl Stream {
    fn new(body: Incoming, silence: Duration, end: Instant) -> Self {
        Self { held: VecDeque::new(), body: Some(body), unpacker: None, silence, end }
    }

    /// A body that is here.
    pub fn of(body: Bytes) -> Self {
        Self { held: [body].into(), body: None, unpacker: None, silence: Duration::ZERO, end: Instant::now() }
    }

    /// Goes on with the answer within the archive that this is, of at most so many bytes, and says its length where that
    /// is known. An archive that begins with something else stays as it is; that is said by nothing.
    pub async fn unpack(&mut self, most: u64) -> Result<Option<File>, Failure> {
        let mut unpacker = Box::new(Unpacker::new(most));
        let (mut seen, mut first) = (VecDeque::new(), None);
        let file = loop {
            let Some(piece) = self.next().await? else { return Err(broken(Broken::Truncated)) };
            seen.push_back(piece.clone());
            unpacker.push(piece);
            first = first.or(unpacker.piece().map_err(broken)?);
            if let Some(file) = unpacker.file() {
                break file;
            }
        };
        if !file.is_answer {
            self.held = seen;
            return Ok(None);
        }
        self.held = first.into_iter().collect();
        self.unpacker = Some(unpacker);
        Ok(Some(file))
    }

    /// Reads all of it; nothing when it is larger than `most`. What was read is still to come.
    pub async fn collect(&mut self, most: usize) -> Result<Option<Bytes>, Failure> {
        let (mut pieces, mut length) = (VecDeque::new(), 0);
        while let Some(piece) = self.next().await? {
            length += piece.len();
            pieces.push_back(piece);
            if length > most {
                self.held = pieces;
                return Ok(None);
            }
        }
        let whole = match pieces.len() {
            1 => pieces.pop_front().unwrap_or_default(),
            _ => pieces.make_contiguous().concat().into(),
        };
        (self.held, self.body, self.unpacker) = ([whole.clone()].into(), None, None);
        Ok(Some(whole))
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(piece) = self.held.pop_front() {
            return Ok(Some(piece));
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        loop {
            if let Some(unpacker) = &mut self.unpacker {
                match unpacker.piece().map_err(broken)? {
                    Some(piece) => return Ok(Some(piece)),
                    None if unpacker.is_done() => return Ok(None),
                    None => {}
                }
            }
            let silent = Instant::now() + self.silence;
            let frame = match timeout_at(silent.min(self.end), body.frame()).await {
                Ok(frame) => frame,
                Err(_) if silent < self.end => return Err(Failure::UpstreamStalled),
                Err(_) => return Err(Failure::TotalTimeout),
            };
            match frame {
                None if self.unpacker.is_some() => return Err(broken(Broken::Truncated)),
                None => return Ok(None),
                Some(Ok(frame)) => match (frame.into_data(), &mut self.unpacker) {
                    (Ok(data), Some(unpacker)) => unpacker.push(data),
                    (Ok(data), None) => return Ok(Some(data)),
                    _ => {}
                },
                Some(Err(error)) if io_kind(&error) == Some(ErrorKind::ConnectionReset) => {
                    return Err(Failure::event(Event::ResetWithin));
                }
                Some(Err(_)) => return Err(Failure::event(Event::ClosedWithin)),
            }
        }
    }

    /// Whether everything was read.
    pub fn is_end(&self) -> bool {
        let is_over = match &self.unpacker {
            Some(unpacker) => unpacker.is_done(),
            None => self.body.as_ref().is_none_or(Body::is_end_stream),
        };
        self.held.is_empty() && is_over
    }
}

fn broken(broken: Broken) -> Failure {
    Failure::ResultLost(match broken {
        Broken::Format => "the archive that holds it can not be read",
        Broken::Truncated => "the archive that holds it ends too early",
        Broken::Checksum => "the archive that holds it is damaged",
        Broken::TooLarge => "it is above function.wait.result_max_mib",
    })
}

/// What the failure of an exchange without an answer is.
fn failure(error: &ClientError) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
        if inner.is::<rustls::Error>() || wrapped.is_some_and(|e| e.is::<rustls::Error>()) {
            return Failure::TlsFailed;
        }
        if let Some(error) = inner.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            return Failure::UpstreamProtocol;
        }
        cause = inner.source();
    }
    let io = io_kind(error);
    match (error.is_connect(), io) {
        (true, Some(ErrorKind::ConnectionRefused)) => Failure::event(Event::ConnectRefused),
        (true, Some(ErrorKind::TimedOut)) => Failure::event(Event::ConnectTimeout),
        (true, _) => Failure::ConnectFailed,
        (false, Some(ErrorKind::ConnectionReset)) => Failure::event(Event::ResetBeforeHeader),
        (false, _) => Failure::UpstreamClosed,
    }
}

/// What the system said, if it said anything.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = inner.source();
    }
    None
}

/// The hosts behind addresses, for the names in TLS. Holds no more than were leased.
#[derive(Clone, Default)]
struct Names(Arc<RwLock<HashMap<SocketAddr, String>>>);

/// Addresses whose hosts are kept; with more, all are learned again.
const MOST_NAMES: usize = 20_000;

impl Names {
    fn note(&self, address: SocketAddr, host: &str) {
        let is_known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).is_some_and(|h| h == host);
        if !is_known {
            let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if names.len() >= MOST_NAMES {
                names.clear();
            }
            names.insert(address, host.to_owned());
        }
    }
}

struct Resolver {
    fixed: Option<String>,
    names: Names,
}

impl ResolveServerName for Resolver {
    fn resolve(&self, uri: &Uri) -> Result<ServerName<'static>, Box<dyn std::error::Error + Sync + Send>> {
        let named = || {
            let address: SocketAddr = uri.authority()?.as_str().parse().ok()?;
            self.names.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
        };
        let name = self.fixed.clone().or_else(named).or_else(|| uri.host().map(str::to_owned)).unwrap_or_default();
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(bare).map_err(|_: InvalidDnsNameError| "not a server name".into())
    }
}

/// Trusts whom the pool trusts.
pub fn tls_config(tls: Option<&TlsSettings>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    match tls.and_then(|t| t.authorities.as_ref()) {
        Some(authorities) => {
            roots.add_parsable_certificates(authorities.iter().map(|der| CertificateDer::from(der.clone())));
        }
        None if tls.is_some() => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().unwrap_or_default());
        }
        None => {}
    }
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}
