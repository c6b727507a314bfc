//! The EndpointSlices of a Kubernetes service, listed once and then watched.
//!
//! The client library connects, trusts and authenticates; lists and watches are read here, as it would read them
//! without a bound.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request as Path, Resource as _, WatchEvent};
use kube::{Client, Config};
use serde::Deserialize;
use tokio::time::Instant;

use super::pace::{Backoff, Failure, Trouble, Why};
use super::slices::Slices;
use super::{Cluster, Found, Output, Port, Settings};

/// How long the API server is asked to keep a watch open, in seconds; half as much again at most.
const WATCH: u32 = 120;
/// What a server may take beyond that before the connection counts as dead.
const SLACK: Duration = Duration::from_secs(10);
/// A watch that was open this long was a good one.
const LIVED: Duration = Duration::from_secs(30);
/// How long a list may take to arrive.
const LIST: Duration = Duration::from_secs(30);
/// The largest list that is read, in bytes.
const MAX_LIST: usize = 32 << 20;
/// The largest event that is read, in bytes.
const MAX_EVENT: usize = 4 << 20;

/// Which service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: Port,
}

/// Follows the service for ever.
pub(super) async fn run<F: Fn(Vec<Found>)>(service: Service, settings: Settings, output: Output<F>) {
    let host = format!("{}.{}.svc", service.name, service.namespace);
    let trouble = Trouble::new(&output.pool, host.clone());
    let (slices, backoff) = (Slices::default(), Backoff::default());
    let mut state =
        Follower { service, host, settings, output, slices, version: None, good: Instant::now(), backoff, trouble };
    let mut client = None;
    loop {
        if let Err(failure) = state.round(&mut client).await {
            state.trouble.begins(&failure);
            client = None; // Its configuration may have changed.
            if !matches!(failure.why, Why::Cut | Why::TimedOut | Why::Unreachable) {
                state.version = None;
            }
        }
        let wait = state.backoff.next();
        tokio::time::sleep(state.forget().map_or(wait, |left| left.min(wait))).await;
    }
}

struct Follower<F> {
    service: Service,
    host: String,
    settings: Settings,
    output: Output<F>,
    slices: Slices,
    /// Where to watch from; none before a list.
    version: Option<String>,
    /// When the server last said something.
    good: Instant,
    backoff: Backoff,
    trouble: Trouble,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Vec<EndpointSlice>,
}

impl<F: Fn(Vec<Found>)> Follower<F> {
    /// One list, if one is due, and one watch; good when the watch ended as it should.
    async fn round(&mut self, client: &mut Option<Client>) -> Result<(), Failure> {
        let client = match client {
            Some(client) => client,
            None => client.insert(connect(&self.settings).await?),
        };
        let version = match self.version.take() {
            Some(version) => version,
            None => self.list(client).await?,
        };
        self.version = Some(version.clone());
        self.watch(client, &version).await
    }

    /// After `keep` without a word from the server nothing is known; tells how long it still is until then.
    fn forget(&mut self) -> Option<Duration> {
        let left = self.settings.keep?.saturating_sub(self.good.elapsed());
        if left.is_zero() {
            self.version = None;
            self.slices = Slices::default();
            if self.output.last.is_some() {
                self.output.put([]);
            }
            return None;
        }
        Some(left)
    }

    async fn list(&mut self, client: &Client) -> Result<String, Failure> {
        let request = self.path().list(&ListParams::default().labels(&self.selector())).map_err(misconfigured)?;
        let answer = send(client, request, self.settings.timeout).await?;
        let body = Limited::new(answer.into_body(), MAX_LIST).collect();
        let body = tokio::time::timeout(LIST, body).await.map_err(|e| Failure::new(Why::TimedOut, e))?;
        let body = body.map_err(|e| Failure::new(Why::Cut, e))?.to_bytes();
        let List { metadata, items } = serde_json::from_slice(&body).map_err(garbled)?;
        let version =
            metadata.resource_version.filter(|v| !v.is_empty()).ok_or_else(|| garbled("a list without a version"))?;
        self.slices = Slices::default();
        for slice in &items {
            self.slices.put(slice, &self.service.port);
        }
        self.good = Instant::now();
        self.output.put(self.slices.found(&self.host));
        Ok(version)
    }

    async fn watch(&mut self, client: &Client, version: &str) -> Result<(), Failure> {
        let seconds = WATCH + fastrand::u32(0..=WATCH / 2);
        let params = WatchParams::default().labels(&self.selector()).timeout(seconds);
        let request = self.path().watch(&params, version).map_err(misconfigured)?;
        let answer = send(client, request, self.settings.timeout).await?;
        let opened = Instant::now();
        let deadline = opened + Duration::from_secs(seconds.into()) + SLACK;
        let ended = self.events(answer.into_body(), deadline).await;
        // However it ended, as long as it was open nothing else was known to be.
        self.good = Instant::now();
        if ended.is_ok() && opened.elapsed() >= LIVED {
            self.settle();
        }
        ended
    }

    /// Takes events until they end.
    async fn events(&mut self, mut body: Body, deadline: Instant) -> Result<(), Failure> {
        let mut pending = Vec::new();
        loop {
            // A server that is gone shows when it is asked again.
            let Ok(frame) = tokio::time::timeout_at(deadline, body.frame()).await else { return Ok(()) };
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|e| Failure::new(Why::Cut, e))?.into_data() else { continue };
            pending.extend_from_slice(&data);
            if data.contains(&b'\n') {
                self.read(&mut pending)?;
            }
            if pending.len() > MAX_EVENT {
                return Err(garbled("an event is too large"));
            }
        }
        if pending.is_empty() { Ok(()) } else { Err(Failure::new(Why::Cut, "within an event")) }
    }

    /// Takes the whole events off the front, and hands over what they add up to.
    fn read(&mut self, pending: &mut Vec<u8>) -> Result<(), Failure> {
        let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in pending[..whole].split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            self.event(serde_json::from_slice(line).map_err(garbled)?)?;
        }
        pending.drain(..whole);
        self.settle();
        self.output.put(self.slices.found(&self.host));
        Ok(())
    }

    fn event(&mut self, event: WatchEvent<EndpointSlice>) -> Result<(), Failure> {
        let version = match event {
            WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                self.slices.put(&slice, &self.service.port);
                slice.metadata.resource_version
            }
            WatchEvent::Deleted(slice) => {
                self.slices.remove(&slice);
                slice.metadata.resource_version
            }
            WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
            WatchEvent::Error(status) if status.code == 410 => return Err(Failure::new(Why::Gone, status.message)),
            WatchEvent::Error(status) => return Err(Failure::new(Why::Status(status.code), status.message)),
        };
        self.version = version.filter(|v| !v.is_empty()).or(self.version.take());
        Ok(())
    }

    /// The server works.
    fn settle(&mut self) {
        self.good = Instant::now();
        self.backoff.reset();
        self.trouble.ends();
    }

    fn path(&self) -> Path {
        Path::new(EndpointSlice::url_path(&(), Some(&self.service.namespace)))
    }

    fn selector(&self) -> String {
        format!("kubernetes.io/service-name={}", self.service.name)
    }
}

async fn connect(settings: &Settings) -> Result<Client, Failure> {
    let mut config = match &settings.cluster {
        Cluster::Own => Config::incluster().map_err(misconfigured)?,
        Cluster::Kubeconfig { path, context } => {
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            let file = Kubeconfig::read_from(path).map_err(misconfigured)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(misconfigured)?
        }
        Cluster::Url { url, token_file, ca_file } => {
            let mut config = Config::new(url.clone());
            config.auth_info.token_file = token_file.as_ref().map(|path| path.to_string_lossy().into_owned());
            config.root_cert_file = ca_file.clone();
            config
        }
    };
    config.connect_timeout = Some(settings.timeout);
    config.default_retry = false; // Retries have a pace of their own here.
    Client::try_from(config).map_err(misconfigured)
}

async fn send(client: &Client, request: Request<Vec<u8>>, timeout: Duration) -> Result<Response<Body>, Failure> {
    let answer = tokio::time::timeout(timeout, client.send(request.map(Body::from))).await;
    let answer = answer.map_err(|e| Failure::new(Why::TimedOut, e))?;
    let answer = answer.map_err(|e| Failure::new(Why::Unreachable, e))?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::GONE => Err(Failure::new(Why::Gone, "410")),
        status => Err(Failure::new(Why::Status(status.as_u16()), status)),
    }
}

fn garbled(detail: impl std::fmt::Display) -> Failure {
    Failure::new(Why::Garbled, detail)
}

fn misconfigured(detail: impl std::fmt::Display) -> Failure {
    Failure::new(Why::Misconfigured, detail)
}
