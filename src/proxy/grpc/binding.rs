//! Binding: the connection to a backend that belongs to one connection of a client and one caller on it.
//!
//! Each has at most one at a time, so that all its calls reach one worker, and nobody else's do. It is kept as long as
//! the client's connection, and dropped with it: NVCF counts it as a request at work until then.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use pingora_core::connectors::TransportConnector;
use pingora_core::connectors::http::v2::{ConnectionRef, H2HandshakeSettings, handshake};
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_core::protocols::{ALPN, SocketDigest, Stream};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, OkOrErr as _, Result};

use super::Call;
use crate::balance::{Endpoint, Lease, now};
use crate::failure::Failure;
use crate::ids::{CallerId, PoolName};
use crate::proxy::context::RequestContext;
use crate::proxy::course;
use crate::proxy::snapshot::PoolState;
use crate::proxy::{respond, upstream_request};
use crate::record::Recorder;
use crate::upstream::Ran;

/// Most calls on a connection at a time; clients may have fewer on theirs.
const MOST_CALLS: usize = 1000;
/// Most connections to backends for one of a client. Each caller and each function has its own.
const MOST_BINDINGS: usize = 64;
/// Bytes of an answer that may wait here for a client that reads slowly.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

static CONNECTOR: LazyLock<TransportConnector> = LazyLock::new(|| TransportConnector::new(None));

/// What is bound to each connection of a client, by its socket's digest: the streams of HTTP/2 run in tasks of their
/// own, and have nothing else of their connection.
static CLIENTS: LazyLock<Mutex<HashMap<usize, Arc<Bindings>>>> = LazyLock::new(Mutex::default);

/// A connection of a client, as long as it is open.
pub struct Client {
    /// Keeps its address from being another's.
    _digest: Arc<SocketDigest>,
    id: usize,
}

impl Client {
    /// A connection that calls may come on.
    pub fn new(stream: &Stream) -> Option<Self> {
        let digest = stream.get_socket_digest()?;
        let id = Arc::as_ptr(&digest) as usize;
        lock(&CLIENTS).insert(id, Arc::default());
        Some(Self { _digest: digest, id })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The connections end as they are dropped, outside the lock.
        let bound = lock(&CLIENTS).remove(&self.id);
        drop(bound);
    }
}

/// What is bound to one connection of a client.
#[derive(Default)]
pub struct Bindings(Mutex<HashMap<Key, Arc<Binding>>>);

/// Who and what a connection is for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    caller: CallerId,
    pool: PoolName,
    /// The credential and the function that the backend sees.
    sent: u64,
}

/// A place for a connection. Whoever opens it keeps the others waiting, so that there is but one.
#[derive(Default)]
pub struct Binding(tokio::sync::Mutex<Option<Upstream>>);

struct Upstream {
    endpoint: Arc<Endpoint>,
    connection: ConnectionRef,
}

impl Bindings {
    /// Those of the connection that a call came on; none when it has ended meanwhile.
    pub fn of(session: &ServerSession) -> Option<Arc<Self>> {
        let digest = session.digest()?.socket_digest.as_ref()?;
        lock(&CLIENTS).get(&(Arc::as_ptr(digest) as usize)).cloned()
    }

    /// The place for these calls; none when there are as many as may be and all are used.
    pub fn place(&self, key: Key) -> Option<Arc<Binding>> {
        let mut bound = lock(&self.0);
        if bound.len() >= MOST_BINDINGS && !bound.contains_key(&key) {
            bound.retain(|_, binding| binding.is_used());
            if bound.len() >= MOST_BINDINGS {
                return None;
            }
        }
        Some(Arc::clone(bound.entry(key).or_default()))
    }
}

impl Key {
    /// Of a caller's calls of a pool.
    pub fn new(caller: CallerId, state: &PoolState, call: &Call) -> Self {
        let mut hasher = DefaultHasher::new();
        state.settings.inject.hash(&mut hasher);
        call.function.as_ref().map(|stated| (&stated.id, &stated.version)).hash(&mut hasher);
        Self { caller, pool: state.settings.name.clone(), sent: hasher.finish() }
    }
}

impl Binding {
    fn is_used(self: &Arc<Self>) -> bool {
        let is_idle = |upstream: &Option<Upstream>| upstream.as_ref().is_none_or(|u| u.connection.is_idle());
        Arc::strong_count(self) > 1 || !self.0.try_lock().is_ok_and(|upstream| is_idle(&upstream))
    }

    /// Begins a call on the connection, which is opened if there is none. Its lease is in the context.
    pub async fn begin(&self, ctx: &mut RequestContext, recorder: &Recorder) -> Result<Http2Session, Failure> {
        let snapshot = Arc::clone(&ctx.snapshot);
        let mut place = self.0.lock().await;
        if let Some(upstream) = place.as_ref() {
            let state = snapshot.pool(ctx.admitted().map_err(|e| respond::failure_of(&e, ctx))?.pool);
            if let Some((lease, stream)) = upstream.begin(state, ctx.work).await {
                // The endpoint that was picked is not the one.
                drop(ctx.course.take_next());
                ctx.trail.endpoint = Some(lease.endpoint().name().to_owned());
                ctx.attempt(lease.endpoint().name());
                ctx.lease = Some(lease);
                return Ok(stream);
            }
        }
        *place = None;
        loop {
            let peer = upstream_request::peer(ctx).await.map_err(|error| respond::failure_of(&error, ctx))?;
            let mut error = match connect(peer).await {
                Ok((connection, stream)) => {
                    let endpoint = ctx.lease.as_ref().map(|lease| Arc::clone(lease.endpoint()));
                    *place = endpoint.map(|endpoint| Upstream { endpoint, connection });
                    return Ok(stream);
                }
                Err(error) => error,
            };
            if let Some(lease) = &ctx.lease {
                recorder.connect_failed(ctx.trail.pool.as_ref(), lease.endpoint().name());
            }
            error.as_up();
            let failure = respond::failure_of(&error, ctx);
            if !course::may_go_on(ctx, failure.clone(), Some(Ran::No)) {
                return Err(failure);
            }
        }
    }
}

impl Upstream {
    /// A call, if the connection still takes one and its endpoint is still the pool's.
    async fn begin(&self, state: &PoolState, work: f64) -> Option<(Lease, Http2Session)> {
        let is_member = state.pool.endpoints().iter().any(|endpoint| Arc::ptr_eq(endpoint, &self.endpoint));
        if !is_member || self.connection.is_closed() || self.connection.is_shutting_down() {
            return None;
        }
        let stream = self.connection.spawn_stream().await.ok().flatten()?;
        Some((state.pool.lease(&self.endpoint, work, now())?, stream))
    }
}

async fn connect(mut peer: Box<HttpPeer>) -> Result<(ConnectionRef, Http2Session)> {
    let is_tls = peer.is_tls();
    if is_tls {
        peer.options.alpn = ALPN::H2;
    }
    let stream = CONNECTOR.new_stream(peer.as_ref()).await?;
    if is_tls && !matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        return Err(Error::explain(ErrorType::H2Error, "the backend does not offer HTTP/2"));
    }
    let mut settings = H2HandshakeSettings::new();
    settings.max_streams = MOST_CALLS;
    settings.stream_window_size = Some(STREAM_WINDOW);
    settings.connection_window_size = Some(CONNECTION_WINDOW);
    let connection = handshake(stream, settings).await?;
    let stream = connection.spawn_stream().await?.or_err(ErrorType::ConnectionClosed, "closed as soon as open")?;
    Ok((connection, stream))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
