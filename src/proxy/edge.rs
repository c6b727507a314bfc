//! Edge: bounds on connections that pingora does not have: how many there are, and how long a header may take.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::Gateway;
use super::grpc::Client;

tokio::task_local! {
    static CONNECTION: Arc<Deadline>;
}

/// Connections of clear-text HTTP/2 listeners before their first request: its streams run in tasks of their own, which
/// know the connection by its client's address only. Bounded by the number of connections.
static NEW: LazyLock<Mutex<HashMap<SocketAddr, Arc<Deadline>>>> = LazyLock::new(Mutex::default);

/// The proxy behind its bounds.
pub struct Edge {
    /// The proxy.
    pub proxy: Arc<HttpProxy<Gateway>>,
    /// Time for a request header.
    pub header_timeout: Duration,
    /// Connections open at once.
    pub max_connections: usize,
    /// How many are open, over all listeners.
    pub open: Arc<AtomicUsize>,
    /// Connections may turn out to be HTTP/2 in clear text.
    pub http2_cleartext: bool,
}

/// When the connection is to be closed unless a header arrives; milliseconds since it was made, 0 for never.
struct Deadline {
    made: Instant,
    at: AtomicU64,
}

/// Gives a connection's place back.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's entry in [`NEW`], which ends with it.
struct Listed(SocketAddr);

impl Listed {
    fn new(stream: &Stream, deadline: &Arc<Deadline>) -> Option<Self> {
        let client = *stream.get_socket_digest()?.peer_addr()?.as_inet()?;
        NEW.lock().unwrap_or_else(PoisonError::into_inner).insert(client, Arc::clone(deadline));
        Some(Self(client))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        NEW.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

impl Deadline {
    fn arm(&self, after: Duration) {
        let at = self.made.elapsed() + after;
        self.at.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// Waits until the deadline has passed.
    async fn passed(&self) {
        /// How often an armed or disarmed deadline is looked at.
        const LOOK: Duration = Duration::from_secs(1);
        loop {
            let wait = match self.at.load(Ordering::Relaxed) {
                0 => LOOK,
                at => match Duration::from_millis(at).checked_sub(self.made.elapsed()) {
                    Some(left) if !left.is_zero() => left.min(LOOK),
                    _ => return,
                },
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// A request's header has arrived on the connection of this client.
pub fn header_arrived(client: Option<SocketAddr>) {
    let disarm = |deadline: &Arc<Deadline>| deadline.at.store(0, Ordering::Relaxed);
    if CONNECTION.try_with(disarm).is_ok() {
        return;
    }
    let new = client.and_then(|address| NEW.lock().unwrap_or_else(PoisonError::into_inner).remove(&address));
    new.iter().for_each(disarm);
}

/// A request has ended; the next header may take this long.
pub fn await_header(time: Duration) {
    let _ = CONNECTION.try_with(|c| c.arm(time));
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max_connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let _place = Place(Arc::clone(&self.open));
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            let _client = Client::new(&stream);
            // Streams of HTTP/2 run in tasks of their own; idle connections end by `h2_idle_timeout`.
            return self.proxy.process_new(stream, shutdown).await;
        }
        let deadline = Arc::new(Deadline { made: Instant::now(), at: AtomicU64::new(0) });
        deadline.arm(self.header_timeout);
        let watched = Arc::clone(&deadline);
        let _client = self.http2_cleartext.then(|| Client::new(&stream)).flatten();
        let _listed = self.http2_cleartext.then(|| Listed::new(&stream, &deadline)).flatten();
        CONNECTION
            .scope(deadline, async {
                tokio::select! {
                    biased;
                    done = self.proxy.process_new(stream, shutdown) => done,
                    () = watched.passed() => None,
                }
            })
            .await
    }

    async fn cleanup(&self) {
        ServerApp::cleanup(self.proxy.as_ref()).await;
    }
}
