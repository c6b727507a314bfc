//! Probe: asks endpoints whether they are ready, and looks up their names again.
//!
//! Runs beside the data plane. Only the status of an answer counts: health bodies differ between NIM families.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use crate::balance::{Endpoint, now};
use crate::proxy::fetch::tls_config;
use crate::proxy::settings::{PoolSettings, TlsSettings};
use crate::proxy::snapshot::Snapshot;

/// A client for the endpoints of one pool.
pub(crate) type HttpClient = Client<hyper_rustls::HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// How often names are looked up when the pool is not probed.
const LOOK_UP: Duration = Duration::from_secs(10);

/// Starts one task per endpoint of the snapshot; they end when the set is dropped.
pub fn start(snapshot: &Snapshot) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for state in &snapshot.pools {
        let client = client(state.settings.tls.as_ref(), 0);
        let settings = Arc::new(state.settings.clone());
        for endpoint in state.pool.endpoints() {
            tasks.spawn(watch(Arc::clone(endpoint), Arc::clone(&settings), client.clone()));
        }
    }
    tasks
}

async fn watch(endpoint: Arc<Endpoint>, settings: Arc<PoolSettings>, client: HttpClient) {
    let interval = settings.probe.as_ref().map_or(LOOK_UP, |probe| probe.interval);
    loop {
        look_up(&endpoint).await;
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
    let mut request = Request::get(uri);
    for (name, value) in &settings.inject {
        request = request.header(name, value.clone());
    }
    let Ok(request) = request.body(Empty::new()) else { return false };
    client.request(request).await.is_ok_and(|answer| answer.status().is_success())
}

/// Trusts whom the pool trusts, and keeps up to `idle` connections per endpoint.
pub(crate) fn client(tls: Option<&TlsSettings>, idle: usize) -> HttpClient {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let mut builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls_config(tls)).https_or_http();
    if let Some(name) = tls.and_then(|t| t.server_name.clone())
        && let Ok(name) = rustls::pki_types::ServerName::try_from(name)
    {
        builder = builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
    }
    let connector = builder.enable_http1().wrap_connector(http);
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(idle).build(connector)
}
