//! Probe: asks endpoints whether they are ready, and looks up their names again.
//!
//! Runs beside the data plane. Only the status of an answer counts: health bodies differ between NIM families.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::task::{AbortHandle, JoinSet};

use crate::balance::{Endpoint, Members, now};
use crate::proxy::fetch::tls_config;
use crate::proxy::settings::{PoolSettings, TlsSettings};
use crate::proxy::snapshot::Snapshot;

/// A client for one endpoint.
pub(crate) type HttpClient = Client<hyper_rustls::HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// How often names are looked up when the pool is not probed.
const LOOK_UP: Duration = Duration::from_secs(10);

/// Probes the endpoints of the snapshot as they come and go, until the set is dropped.
pub fn start(snapshot: &Snapshot) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    // What was found has the address that it was found at; names of what is listed are looked up again.
    let has_work = |settings: &PoolSettings| settings.probe.is_some() || settings.endpoints.source().is_none();
    for state in snapshot.pools.iter().filter(|state| has_work(&state.settings)) {
        let clients = Clients::new(state.settings.tls.clone(), 0);
        let settings = Arc::new(state.settings.clone());
        tasks.spawn(each(Arc::clone(state.pool.members()), move |endpoint| {
            let client = clients.of(&endpoint);
            watch(endpoint, Arc::clone(&settings), client)
        }));
    }
    tasks
}

/// Runs a task for each endpoint while the pool has it.
pub(crate) async fn each<F>(members: Arc<Members>, start: impl Fn(Arc<Endpoint>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut changes = members.changes();
    let mut tasks = JoinSet::new();
    // By their places in memory, which nothing else can take while they are held here.
    let mut running: HashMap<usize, (Arc<Endpoint>, AbortHandle)> = HashMap::new();
    loop {
        let present = members.present().to_vec();
        let mut before = std::mem::take(&mut running);
        for endpoint in present {
            let place = Arc::as_ptr(&endpoint) as usize;
            let task = before.remove(&place);
            running.insert(place, task.unwrap_or_else(|| (Arc::clone(&endpoint), tasks.spawn(start(endpoint)))));
        }
        before.into_values().for_each(|(_, task)| task.abort());
        while tasks.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn watch(endpoint: Arc<Endpoint>, settings: Arc<PoolSettings>, client: HttpClient) {
    let interval = settings.probe.as_ref().map_or(LOOK_UP, |probe| probe.interval);
    let is_listed = settings.endpoints.source().is_none();
    loop {
        if is_listed {
            look_up(&endpoint).await;
        }
        if let Some(probe) = &settings.probe {
            let ready = tokio::time::timeout(probe.timeout, ask(&client, &endpoint, &settings, &probe.path)).await;
            if let Some(healthy) = endpoint.probed(ready == Ok(true), now()) {
                tracing::warn!(pool = %settings.name, endpoint = endpoint.name(), healthy, "endpoint changed health");
            }
        }
        // Up to a tenth off the beat, so that many gateways do not probe in step.
        tokio::time::sleep(interval.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
    }
}

async fn look_up(endpoint: &Endpoint) {
    let settings = endpoint.settings();
    if settings.host.parse::<std::net::IpAddr>().is_ok() || settings.host.starts_with('[') {
        return;
    }
    match tokio::net::lookup_host((settings.host.as_str(), settings.port)).await {
        Ok(found) => endpoint.resolved(found.collect::<Vec<SocketAddr>>()),
        Err(error) => {
            tracing::warn!(endpoint = endpoint.name(), %error, "endpoint does not resolve; keeping its last addresses");
        }
    }
}

async fn ask(client: &HttpClient, endpoint: &Endpoint, settings: &PoolSettings, path: &str) -> bool {
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let Ok(uri) = format!("{scheme}://{}{path}", endpoint.name()).parse::<Uri>() else { return false };
    let mut request = Request::get(uri).header(header::HOST, settings.authority(endpoint.settings()));
    for (name, value) in &settings.inject {
        request = request.header(name, value.clone());
    }
    let Ok(request) = request.body(Empty::new()) else { return false };
    client.request(request).await.is_ok_and(|answer| answer.status().is_success())
}

/// Makes clients for the endpoints of one pool.
pub(crate) struct Clients {
    config: ClientConfig,
    /// The name to verify in place of the endpoint's host.
    server_name: Option<String>,
    /// How many idle connections each keeps.
    idle: usize,
}

impl Clients {
    /// They trust whom the pool trusts, and keep up to `idle` connections each.
    pub(crate) fn new(tls: Option<TlsSettings>, idle: usize) -> Self {
        Self { config: tls_config(tls.as_ref()), server_name: tls.and_then(|t| t.server_name), idle }
    }

    /// One for this endpoint.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> HttpClient {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let mut builder =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(self.config.clone()).https_or_http();
        let name = self.server_name.clone().unwrap_or_else(|| endpoint.settings().host.clone());
        if let Ok(name) = ServerName::try_from(name) {
            builder = builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
        }
        let connector = builder.enable_http1().wrap_connector(http);
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(self.idle).build(connector)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::balance::{Settings, Thresholds};

    /// Says when it begins and when it ends.
    struct Task(String, UnboundedSender<String>);

    impl Drop for Task {
        fn drop(&mut self) {
            let _ = self.1.send(format!("-{}", self.0));
        }
    }

    fn replace(members: &Members, ports: &[u16]) {
        let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
        members.replace(ports.iter().map(|port| {
            let settings = Settings { name: port.to_string(), host: "h".into(), port: *port, thresholds };
            (settings, ([127, 0, 0, 1], *port).into())
        }));
    }

    async fn heard(said: &mut UnboundedReceiver<String>, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        for _ in 0..count {
            heard.push(said.recv().await.unwrap());
        }
        heard.sort();
        heard
    }

    #[tokio::test]
    async fn each_endpoint_has_one_task_while_it_is_there() {
        let members = Arc::new(Members::new(Vec::new()));
        let (say, mut said) = unbounded_channel();
        let start = move |endpoint: Arc<Endpoint>| {
            let _ = say.send(format!("+{}", endpoint.name()));
            let task = Task(endpoint.name().to_owned(), say.clone());
            async move {
                let _task = task;
                std::future::pending::<()>().await;
            }
        };
        replace(&members, &[1, 2]);
        let mut following = JoinSet::new();
        following.spawn(each(Arc::clone(&members), start));
        assert_eq!(heard(&mut said, 2).await, ["+1", "+2"]);
        replace(&members, &[2, 3]);
        assert_eq!(heard(&mut said, 2).await, ["+3", "-1"]);
        drop(following);
        assert_eq!(heard(&mut said, 2).await, ["-2", "-3"]);
    }
}
