//! Store: Redis, as all replicas share it.
//!
//! One connection, kept by one task: whoever uses it says when it failed, the task makes a new one, and until then users
//! are told at once that there is none. Works with Redis 6.2 and newer and with Valkey, alone, behind Sentinel, or as a
//! Cluster.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, Pipeline, RedisConnectionInfo,
    RedisError, RedisFuture, RedisResult, TlsCertificates, Value,
};
use tokio::sync::Notify;

/// Where Redis is and how to speak to it.
#[derive(Clone)]
pub struct Settings {
    /// How it is deployed.
    pub mode: Mode,
    /// Its addresses: one alone, all sentinels, or some nodes of the cluster.
    pub addresses: Vec<(String, u16)>,
    /// TLS; absent for clear text.
    pub tls: Option<Tls>,
    /// ACL user.
    pub username: Option<String>,
    /// Password of the user, or of the server.
    pub password: Option<String>,
    /// Password of the sentinels.
    pub sentinel_password: Option<String>,
    /// Database; a cluster has only 0.
    pub database: u32,
    /// What every key begins with.
    pub prefix: String,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for any reply, after which the connection counts as broken.
    pub reply_timeout: Duration,
}

/// How Redis is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One server.
    Standalone,
    /// Sentinels that know the server of this name.
    Sentinel(String),
    /// A cluster.
    Cluster,
}

/// TLS to Redis.
#[derive(Clone, Default)]
pub struct Tls {
    /// PEM of authorities to trust in place of the system's.
    pub authorities: Option<Vec<u8>>,
}

/// A connection. Clones share it.
#[derive(Clone)]
pub struct Link {
    wire: Wire,
    number: u64,
    /// Something good was heard over it.
    is_good: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Wire {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Redis as its users see it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    settings: Settings,
    state: Mutex<State>,
    /// Somebody met a failure.
    failed: Notify,
    /// Connections made so far.
    made: AtomicU64,
}

struct State {
    link: Option<Link>,
    since: Instant,
    reason: String,
    /// Connecting failed, or the last connection did.
    has_failed: bool,
}

/// How Redis is, for the readiness page.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether there is a connection.
    pub is_up: bool,
    /// For how long.
    pub since: Duration,
    /// Why not.
    pub reason: String,
}

/// Bounds of the wait between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Store {
    /// A store without a connection; [`Self::keep`] makes one.
    pub fn new(settings: Settings) -> Self {
        let reason = "not connected yet".into();
        let state = State { link: None, since: Instant::now(), reason, has_failed: false };
        Self(Arc::new(Inner { settings, state: Mutex::new(state), failed: Notify::new(), made: AtomicU64::new(0) }))
    }

    /// The connection, if there is one.
    pub fn link(&self) -> Option<Link> {
        self.state().link.clone()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let state = self.state();
        let is_up = state.link.as_ref().is_some_and(|link| link.is_good.load(Ordering::Relaxed));
        Health { is_up, since: state.since.elapsed(), reason: state.reason.clone() }
    }

    /// A key of Redis. All keys with the same tag lie in one slot of a cluster.
    pub fn key(&self, tag: &str, rest: &str) -> String {
        format!("{}:{{{tag}}}:{rest}", self.0.settings.prefix)
    }

    /// Whether it is a cluster, whose parts lose their data each by itself.
    pub fn is_cluster(&self) -> bool {
        self.0.settings.mode == Mode::Cluster
    }

    /// Whether connecting failed since the last connection.
    pub fn is_unreachable(&self) -> bool {
        let state = self.state();
        state.link.is_none() && state.has_failed
    }

    /// The longest that a replica takes to come back to a Redis that was away.
    pub fn longest_return(&self) -> Duration {
        BACKOFF.1 + self.0.settings.connect_timeout
    }

    /// Says that `link` failed, so that a new one is made.
    pub fn fail(&self, link: &Link, error: &RedisError) {
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|held| held.number == link.number) {
            let is_good = link.is_good.load(Ordering::Relaxed);
            let reason = describe(error);
            if is_good || state.reason != reason {
                tracing::warn!(%reason, "Redis is away");
            }
            let since = if is_good { Instant::now() } else { state.since };
            *state = State { link: None, since, reason, has_failed: true };
            self.0.failed.notify_one();
        }
    }

    /// Says that `link` was answered well: only then is Redis there, and is it connected to again without a wait.
    pub fn works(&self, link: &Link) {
        if link.is_good.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|held| held.number == link.number)
            && !link.is_good.swap(true, Ordering::Relaxed)
        {
            (state.since, state.has_failed) = (Instant::now(), false);
            state.reason.clear();
            tracing::info!("Redis is connected");
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection, for ever.
    pub async fn keep(&self) {
        let mut wait = BACKOFF.0;
        loop {
            match self.connect().await {
                Ok(wire) => {
                    let number = self.0.made.fetch_add(1, Ordering::Relaxed) + 1;
                    let is_good = Arc::new(AtomicBool::new(false));
                    let mut link = Link { wire, number, is_good: Arc::clone(&is_good) };
                    self.advise(&mut link).await;
                    self.state().link = Some(link);
                    self.0.failed.notified().await;
                    let was_good = is_good.load(Ordering::Relaxed);
                    wait = if was_good { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
                }
                Err(error) => {
                    let reason = describe(&error);
                    let mut state = self.state();
                    if state.reason != reason {
                        tracing::warn!(%reason, "Redis can not be reached");
                        state.reason = reason;
                    }
                    state.has_failed = true;
                    drop(state);
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
            // Replicas that lost it together come back apart.
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Warns of settings of the server that break what is promised.
    async fn advise(&self, link: &mut Link) {
        if matches!(link.wire, Wire::Cluster(_)) {
            return;
        }
        let asked = redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async(link).await;
        let policy: RedisResult<Vec<String>> = asked;
        if let Ok([_, policy]) = policy.as_deref()
            && policy != "noeviction"
        {
            tracing::warn!(%policy, "Redis may evict counts of limits; set maxmemory-policy to noeviction");
        }
    }

    async fn connect(&self) -> RedisResult<Wire> {
        let s = &self.0.settings;
        let certificates =
            s.tls.as_ref().map(|tls| TlsCertificates { client_tls: None, root_cert: tls.authorities.clone() });
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(s.connect_timeout))
            .set_response_timeout(Some(s.reply_timeout));
        let addresses = s.addresses.iter().map(|(host, port)| address(host, *port, s.tls.is_some()));
        let attempt = async {
            match &s.mode {
                Mode::Standalone => {
                    let addresses: Vec<_> = addresses.collect();
                    let address = addresses.into_iter().next().unwrap_or(ConnectionAddr::Tcp("localhost".into(), 6379));
                    let info = address.into_connection_info()?.set_redis_settings(self.identity());
                    let client = match certificates {
                        Some(certificates) => Client::build_with_tls(info, certificates)?,
                        None => Client::open(info)?,
                    };
                    client.get_multiplexed_async_connection_with_config(&config).await.map(Wire::One)
                }
                Mode::Sentinel(name) => {
                    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?
                        .set_client_to_redis_db(s.database.into());
                    if let Some(username) = &s.username {
                        builder = builder.set_client_to_redis_username(username);
                    }
                    if let Some(password) = &s.password {
                        builder = builder.set_client_to_redis_password(password);
                    }
                    if let Some(password) = &s.sentinel_password {
                        builder = builder.set_client_to_sentinel_password(password);
                    }
                    if let Some(certificates) = certificates {
                        builder = builder
                            .set_client_to_redis_tls_mode(redis::TlsMode::Secure)
                            .set_client_to_redis_certificates(certificates.clone())
                            .set_client_to_sentinel_certificates(certificates);
                    }
                    builder.build()?.get_async_connection_with_config(&config).await.map(Wire::One)
                }
                Mode::Cluster => {
                    let nodes = addresses.map(|a| Ok(a.into_connection_info()?.set_redis_settings(self.identity())));
                    let nodes = nodes.collect::<RedisResult<Vec<_>>>()?;
                    let mut builder = ClusterClientBuilder::new(nodes)
                        .connection_timeout(s.connect_timeout)
                        .response_timeout(s.reply_timeout)
                        .retries(2);
                    if let Some(certificates) = certificates {
                        builder = builder.tls(redis::TlsMode::Secure).certs(certificates);
                    }
                    builder.build()?.get_async_connection().await.map(Wire::Cluster)
                }
            }
        };
        // Sentinels and clusters are asked in turn, each within its own time.
        let most = s.connect_timeout * (1 + s.addresses.len() as u32) + s.reply_timeout;
        tokio::time::timeout(most, attempt).await.unwrap_or_else(|_| {
            Err(RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long")))
        })
    }

    fn identity(&self) -> RedisConnectionInfo {
        let s = &self.0.settings;
        let mut identity = RedisConnectionInfo::default().set_db(s.database.into());
        if let Some(username) = &s.username {
            identity = identity.set_username(username);
        }
        if let Some(password) = &s.password {
            identity = identity.set_password(password);
        }
        identity
    }
}

fn address(host: &str, port: u16, is_tls: bool) -> ConnectionAddr {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if is_tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

/// What went wrong, without anything that was sent.
pub fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("{} ({code})", error.category()),
        None if error.is_timeout() => "no reply in time".into(),
        None if error.is_connection_refusal() => "the connection was refused".into(),
        None => error.category().to_owned(),
    }
}

impl Link {
    /// Tells one connection from the next.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.wire {
            Wire::One(wire) => wire.req_packed_command(cmd),
            Wire::Cluster(wire) => wire.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.wire {
            Wire::One(wire) => wire.req_packed_commands(pipeline, offset, count),
            Wire::Cluster(wire) => wire.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.wire {
            Wire::One(wire) => wire.get_db(),
            Wire::Cluster(wire) => wire.get_db(),
        }
    }
}
