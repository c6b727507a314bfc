//! Server: listeners, background tasks, graceful stop.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{
    RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch, UnixShutdownSignalWatch,
};
use pingora_core::services::background::{BackgroundService, background_service};
use pingora_core::services::listening::Service;
use pingora_proxy::http_proxy;
use tokio::net::TcpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::access_log::AccessLog;
use crate::admin;
use crate::cache::{Purges, Remote};
use crate::config::Config;
use crate::config::file::{CallerStore, LogTarget};
use crate::directory::Directory;
use crate::live::Live;
use crate::log;
use crate::observe::Observer;
use crate::otlp::{self, Exporter};
use crate::owner::Owners;
use crate::pacer;
use crate::proxy::Gateway;
use crate::proxy::edge::Edge;
use crate::proxy::settings::ListenerSettings;
use crate::proxy::snapshot::{PoolState, Snapshot};
use crate::quota::shared::Courier;
use crate::quota::{self, Limiter};
use crate::record::{Recorder, Sample};
use crate::reload::{self, Ask, Reloader};
use crate::store::{self, Store};
use crate::telemetry::{self, Telemetry};

mod tls;

/// Attempts that pingora allows for one request; our own bounds are lower.
const FUSE: usize = 512;
/// Idle connections kept to backends, over all pools.
const KEPT_CONNECTIONS: usize = 1024;

/// Serves until a signal ends it. `path` is the file to reload from; `ready` runs once everything listens.
pub fn run(config: Config, path: Option<PathBuf>, ready: impl FnOnce() + Send + 'static) -> Result<()> {
    // Before anything listens: whoever sees this process serve may change its files at once, and tell it so.
    let hangup = heed_hangup()?;
    let seen = reload::print(&config.files);
    let access_log = access_log(&config)?;
    let telemetry = Arc::new(Telemetry::new(config.metric_bounds, access_log.dropped()));
    let collector = config.otlp.clone();
    let log_settings = config.log.clone();
    let sample = Sample { share: config.access_log_sample, slow: config.access_log_slow };
    let Config {
        listeners,
        admin,
        max_connections,
        watch,
        settle,
        grace,
        threads,
        proxy,
        files,
        callers,
        keys_file,
        ..
    } = config;
    let limits = Limits::new(config.redis, config.sharing, config.counts);
    let header_timeout = proxy.client.header_timeout;
    let idle_timeout = proxy.client.keepalive_timeout;
    let snapshot = Snapshot::build(proxy, &limits.limiter, None).map_err(|reason| anyhow!(reason))?;
    limits.restore()?;
    snapshot.look_up();
    telemetry.reloaded(Some(snapshot.generation));
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
    let records = limits.store.clone().filter(|_| callers == CallerStore::Redis);
    let directory = Directory::new(Arc::clone(&snapshot), Arc::clone(&limits.limiter), records)
        .map_err(|reason| anyhow!(reason))?;
    let draining = Arc::new(AtomicBool::new(false));
    let certificates = listeners
        .iter()
        .filter_map(|listener| Some((listener.address.to_string(), listener.tls.as_ref()?.certificate_file.clone())))
        .collect();
    let observer = Arc::new(Observer {
        telemetry: Arc::clone(&telemetry),
        snapshot: Arc::clone(&snapshot),
        limiter: Arc::clone(&limits.limiter),
        store: limits.store.clone(),
        certificates,
        exporter: OnceLock::new(),
    });
    let exporter = exporter(collector, &observer)?;
    log::start(&log_settings, &exporter);
    let live = Arc::new(Live::new(admin.recent));
    let recorder =
        Arc::new(Recorder::new(Arc::clone(&telemetry), Arc::clone(&live), access_log, sample, exporter.clone()));

    let admin_socket = bind(&admin.address.to_string())?;
    listeners.iter().try_for_each(|l| check_free(l.address))?;

    let mut server = Server::new_with_opt_and_conf(None, server_conf(threads));
    server.bootstrap();
    let limiter = Arc::clone(&limits.limiter);
    let purges = Arc::new(Purges::new(limits.store.clone().map(Remote::new)));
    let gateway = Gateway {
        snapshot: Arc::clone(&snapshot),
        limiter,
        owners: Arc::new(Owners::new(limits.store.clone())),
        purges: Arc::clone(&purges),
        recorder,
        draining: Arc::clone(&draining),
    };
    let plane = DataPlane { gateway, header_timeout, idle_timeout, max_connections, open: Arc::default() };
    for http2_cleartext in [false, true] {
        let chosen = listeners.iter().filter(|l| l.http2_cleartext == http2_cleartext).collect::<Vec<_>>();
        if !chosen.is_empty() {
            server.add_service(plane.service(&server.configuration, &chosen, http2_cleartext)?);
        }
    }

    let (ask, asked) = mpsc::channel(4);
    let reloader = Reloader {
        path,
        seen,
        files,
        watch,
        listeners: listeners.clone(),
        directory: Arc::clone(&directory),
        snapshot: Arc::clone(&snapshot),
        telemetry: Arc::clone(&telemetry),
    };
    let paced = Arc::clone(&snapshot);
    let state = admin::State {
        snapshot,
        limiter: Arc::clone(&limits.limiter),
        store: limits.store.clone(),
        observer,
        live,
        draining: Arc::clone(&draining),
        ask: ask.clone(),
        token: admin.token,
        directory: Arc::clone(&directory),
        keys_file,
        purges: Arc::clone(&purges),
        exporter: exporter.clone(),
    };
    let (stop, stopped) = watch::channel(false);
    let (working, done) = mpsc::channel(1);
    let background = Background { limits, directory, purges, snapshot: paced, stopped, working };
    let parts = Parts {
        reloader,
        asked,
        state,
        socket: admin_socket,
        ask,
        ready: Box::new(ready),
        listeners,
        background,
        hangup,
    };
    let mut control = background_service("control", Control { parts: Mutex::new(Some(parts)) });
    // One may be busy with a page of usage while the other asks Redis for leases.
    control.threads = Some(2);
    server.add_service(control);
    let shutdown_signal =
        Box::new(Drain { draining, telemetry, settle, grace, stop, done: Mutex::new(done), exporter });
    server.run(RunArgs { shutdown_signal });
    Ok(())
}

/// Bytes that are read at once from a client: most headers, and a record of TLS. Each open connection has them, and pingora's
/// own 64 KiB would be most of what an idle one takes. Bodies are read into buffers of their own.
const BUFFER: usize = 8 * 1024;
const TLS_BUFFER: usize = 20 * 1024;

/// What every listener's service is made of. Clear-text HTTP/2 is an option of a service, so its listeners have their own.
struct DataPlane {
    gateway: Gateway,
    header_timeout: Duration,
    idle_timeout: Duration,
    max_connections: usize,
    open: Arc<AtomicUsize>,
}

impl DataPlane {
    fn service(
        &self,
        conf: &Arc<ServerConf>,
        listeners: &[&ListenerSettings],
        http2_cleartext: bool,
    ) -> Result<Service<Edge>> {
        let mut proxy = http_proxy(conf, self.gateway.clone());
        let mut options = HttpServerOptions::default();
        options.h2c = http2_cleartext;
        options.h2_idle_timeout = Some(self.idle_timeout);
        proxy.server_options = Some(options);
        proxy.h2_options = Some(h2_options());
        let edge = Edge {
            proxy: Arc::new(proxy),
            header_timeout: self.header_timeout,
            max_connections: self.max_connections,
            open: Arc::clone(&self.open),
            http2_cleartext,
        };
        let mut service = Service::new(if http2_cleartext { "edge-h2c" } else { "edge" }.into(), edge);
        for listener in listeners {
            let address = listener.address.to_string();
            let config = ListenerConfig::tcp(address);
            service.add_listener(match &listener.tls {
                Some(settings) => config.tls(tls::listener(settings)?).l4_buffer(buffer(TLS_BUFFER)),
                None => config.l4_buffer(buffer(BUFFER)),
            });
        }
        Ok(service)
    }
}

fn buffer(read: usize) -> L4BufferSettings {
    L4BufferSettings::default().read(read)
}

fn access_log(config: &Config) -> Result<AccessLog> {
    match &config.access_log {
        LogTarget::Off => Ok(AccessLog::off()),
        LogTarget::Stdout => AccessLog::stdout(config.access_log_queue).context("starting the access log"),
        LogTarget::File(path) => AccessLog::file(path, config.access_log_queue)
            .with_context(|| format!("opening the access log {}", path.display())),
    }
}

/// Begins to send telemetry, where a collector is named. What became of it is part of the metrics, which it sends too.
fn exporter(settings: Option<otlp::Settings>, observer: &Arc<Observer>) -> Result<Exporter> {
    let exporter = match settings {
        None => Exporter::off(),
        Some(settings) => {
            let observer = Arc::clone(observer);
            let read = move || telemetry::otlp::metrics(&observer.readings());
            otlp::start(settings, read).context("starting to send telemetry")?
        }
    };
    observer.exporter.get_or_init(|| exporter.clone());
    Ok(exporter)
}

/// Learns now, and in words, whether an address can be had. Never listens: whoever connected meanwhile would be cut off.
fn check_free(address: SocketAddr) -> Result<()> {
    let attempt = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)
    };
    attempt().with_context(|| format!("listening on {address}"))
}

/// Listens, or says on what it could not.
fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("listening on {address}"))
}

/// HTTP/2 of callers: pingora's bounds on headers and streams, and windows wide enough for uploads.
fn h2_options() -> H2Options {
    const STREAM_WINDOW: u32 = 1024 * 1024;
    const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
    let mut options = default_h2_options();
    options.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    options
}

fn server_conf(threads: usize) -> ServerConf {
    ServerConf {
        threads,
        max_retries: FUSE,
        upstream_keepalive_pool_size: KEPT_CONNECTIONS,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// The limiter and what keeps it.
struct Limits {
    limiter: Arc<Limiter>,
    store: Option<Store>,
    courier: Option<Courier>,
    counts: quota::state::Settings,
}

impl Limits {
    fn new(redis: Option<store::Settings>, sharing: quota::shared::Settings, counts: quota::state::Settings) -> Self {
        match redis.map(Store::new) {
            Some(store) => {
                let (limiter, courier) = quota::shared::limiter(sharing, store.clone());
                Self { limiter, store: Some(store), courier: Some(courier), counts }
            }
            None => Self { limiter: Arc::new(Limiter::local()), store: None, courier: None, counts },
        }
    }

    /// Takes up what was counted before a restart.
    fn restore(&self) -> Result<()> {
        let Some(path) = &self.counts.file else { return Ok(()) };
        quota::state::load(&self.limiter, path)
            .map_err(|reason| anyhow!("reading the counts of limits from {}: {reason}", path.display()))
    }
}

/// Work that has to end well.
struct Background {
    limits: Limits,
    directory: Arc<Directory>,
    purges: Arc<Purges>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    stopped: watch::Receiver<bool>,
    /// Held while something is still working.
    working: mpsc::Sender<()>,
}

impl Background {
    fn start(self) {
        let Self { limits, directory, purges, snapshot, stopped, working } = self;
        let Limits { limiter, store, courier, counts } = limits;
        if let Some(store) = store.clone() {
            tokio::spawn(pacer::share(snapshot, Arc::clone(&limiter), store));
        }
        tokio::spawn(directory.follow());
        tokio::spawn(async move { purges.follow().await });
        if let Some(store) = store {
            tokio::spawn(async move { store.keep().await });
        }
        tokio::spawn(async move {
            match courier {
                Some(courier) => courier.run(stopped).await,
                None => quota::state::keep(limiter, counts, stopped).await,
            }
            drop(working);
        });
    }
}

/// Everything beside the data plane: admin listener, reloads, probes.
struct Control {
    parts: Mutex<Option<Parts>>,
}

struct Parts {
    reloader: Reloader,
    asked: mpsc::Receiver<oneshot::Sender<Result<u64, String>>>,
    state: admin::State,
    socket: TcpListener,
    ask: Ask,
    ready: Box<dyn FnOnce() + Send>,
    listeners: Vec<ListenerSettings>,
    background: Background,
    hangup: Signal,
}

#[async_trait]
impl BackgroundService for Control {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(parts) = self.parts.lock().await.take() else { return };
        let Parts { reloader, asked, state, socket, ask, ready, listeners, background, hangup } = parts;
        let snapshot = Arc::clone(&reloader.snapshot);
        background.start();
        let admin = match socket.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(socket)) {
            Ok(socket) => axum::serve(socket, admin::router(state)),
            Err(error) => return tracing::error!(%error, "the admin listener failed"),
        };
        let announce = async {
            await_listeners(&listeners).await;
            ready();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = async { admin.await } => tracing::error!(?result, "the admin listener ended"),
            () = reloader.run(asked) => {}
            () = reload_on_hangup(ask, hangup) => {}
            () = announce => {}
            () = resize(snapshot) => {}
            () = tell_left_out() => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// Tells the pools' gates how many places there are: endpoints fall out and come back.
async fn resize(snapshot: Arc<ArcSwap<Snapshot>>) {
    const LOOK: Duration = Duration::from_millis(50);
    loop {
        tokio::time::sleep(LOOK).await;
        snapshot.load().pools.iter().for_each(PoolState::resize);
    }
}

/// Tells each second what the log left out.
async fn tell_left_out() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        log::tell_left_out();
    }
}

/// Waits until every listener takes connections.
async fn await_listeners(listeners: &[ListenerSettings]) {
    for listener in listeners {
        let mut address = listener.address;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
            address.set_ip(loopback);
        }
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Has SIGHUP no longer end the process, and notes it from now on: whoever reads the notes later misses none.
fn heed_hangup() -> Result<Signal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    Ok(signal(SignalKind::hangup())?)
}

async fn reload_on_hangup(ask: Ask, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let (answer, _) = oneshot::channel();
        let _ = ask.send(answer).await;
    }
}

/// Stops without cutting anything: readiness fails, new requests are taken for a while, those in flight may end.
struct Drain {
    draining: Arc<AtomicBool>,
    telemetry: Arc<Telemetry>,
    settle: Duration,
    grace: Duration,
    /// Tells background work to end.
    stop: watch::Sender<bool>,
    /// Closes when it has.
    done: Mutex<mpsc::Receiver<()>>,
    exporter: Exporter,
}

impl Drain {
    /// Lets background work end: leases go back, counts are written, and telemetry is sent.
    async fn finish(&self) {
        const LONGEST: Duration = Duration::from_secs(3);
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(LONGEST, self.done.lock().await.recv()).await;
        log::tell_left_out();
        self.exporter.flush(LONGEST).await;
    }
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        match UnixShutdownSignalWatch.recv().await {
            ShutdownSignal::GracefulTerminate => {
                tracing::info!(in_flight = self.telemetry.in_flight(), "stopping");
                self.draining.store(true, Ordering::Relaxed);
                tokio::time::sleep(self.settle).await;
                let begun = Instant::now();
                while self.telemetry.in_flight() > 0 && begun.elapsed() < self.grace {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                self.finish().await;
                ShutdownSignal::GracefulTerminate
            }
            other => {
                self.finish().await;
                other
            }
        }
    }
}
