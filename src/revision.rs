//! Revision: asks endpoints which revision of their model they serve, for pools that keep vectors.
//!
//! `/v1/metadata` tells it best: version, profile and model URLs. Where there is no such page, the list of models has to
//! do. What is not understood is no revision, and the pool keeps nothing.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::balance::Endpoint;
use crate::probe::{self, Clients, HttpClient};
use crate::proxy::revision::Revision;
use crate::proxy::settings::PoolSettings;
use crate::proxy::snapshot::Snapshot;

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest page that is read.
const MOST: usize = 1024 * 1024;
/// What of the metadata names the weights.
const NAMING: [&str; 6] =
    ["version", "selectedModelProfileId", "modelInfo", "assetInfo", "repository_override", "model_type"];

/// Asks the endpoints of pools that keep vectors, as they come and go, until the set is dropped.
pub fn start(snapshot: &Snapshot) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for state in &snapshot.pools {
        let (Some(cache), Some(vectors)) = (&state.settings.cache, &state.vectors) else { continue };
        let watcher = Arc::new(Watcher {
            pool: state.settings.clone(),
            interval: cache.interval,
            revision: Arc::clone(&vectors.revision),
            clients: Clients::new(state.settings.tls.clone(), 1),
        });
        tasks.spawn(probe::each(Arc::clone(state.pool.members()), move |endpoint| {
            watch(Arc::clone(&watcher), endpoint)
        }));
    }
    tasks
}

/// What the tasks of one pool share.
struct Watcher {
    pool: PoolSettings,
    interval: Duration,
    revision: Arc<Revision>,
    clients: Clients,
}

/// An endpoint that is being asked; what it said is forgotten with it.
struct Heard {
    watcher: Arc<Watcher>,
    endpoint: Arc<Endpoint>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.watcher.revision.note(self.endpoint.name(), None);
    }
}

async fn watch(watcher: Arc<Watcher>, endpoint: Arc<Endpoint>) {
    let heard = Heard { watcher, endpoint };
    let Heard { watcher, endpoint } = &heard;
    let client = watcher.clients.of(endpoint);
    loop {
        let asked = tokio::time::timeout(PATIENCE, watcher.ask(&client, endpoint)).await;
        let said = asked.unwrap_or_default();
        if watcher.revision.note(endpoint.name(), said) {
            let agreed = watcher.revision.agreed();
            let (pool, endpoint) = (&watcher.pool.name, endpoint.name());
            tracing::info!(%pool, endpoint, revision = agreed.as_deref(), "the revision of the pool's model changed");
        }
        tokio::time::sleep(watcher.interval.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
    }
}

impl Watcher {
    async fn ask(&self, client: &HttpClient, endpoint: &Endpoint) -> Option<String> {
        match self.page(client, endpoint, "/v1/metadata").await {
            Ok(page) => metadata(&page),
            Err(Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)) => {
                models(&self.page(client, endpoint, "/v1/models").await.ok()?)
            }
            Err(_) => None,
        }
    }

    async fn page(&self, client: &HttpClient, endpoint: &Endpoint, path: &str) -> Result<Value, Option<StatusCode>> {
        let scheme = if self.pool.tls.is_some() { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{}{path}", endpoint.name()).parse().map_err(|_| None)?;
        let mut request = Request::get(uri).header(header::HOST, self.pool.authority(endpoint.settings()));
        for (name, value) in &self.pool.inject {
            request = request.header(name, value.clone());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| None)?;
        let answer = client.request(request).await.map_err(|_| None)?;
        if answer.status() != StatusCode::OK {
            return Err(Some(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MOST).collect().await.map_err(|_| None)?;
        serde_json::from_slice(&body.to_bytes()).map_err(|_| None)
    }
}

fn metadata(page: &Value) -> Option<String> {
    let named: Vec<String> = NAMING
        .iter()
        .filter_map(|name| Some((name, page.get(name).filter(|value| !value.is_null())?)))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    (!named.is_empty()).then(|| named.join(" "))
}

/// Only what stays while a model does: servers state the time of the question as that of the model.
fn models(page: &Value) -> Option<String> {
    let models = page.get("data")?.as_array()?.iter();
    let mut models: Vec<String> = models.map(|model| format!("{} {}", model["id"], model["root"])).collect();
    models.sort();
    (!models.is_empty()).then(|| format!("models={}", models.join(",")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_names_the_weights_counts() {
        let page = json!({"version": "1", "selectedModelProfileId": "p", "modelInfo": [{"modelUrl": "u"}], "x": 1});
        let said = metadata(&page).unwrap();
        for (name, value) in [("version", json!("2")), ("selectedModelProfileId", json!("q")), ("modelInfo", json!([]))]
        {
            let mut other = page.clone();
            other[name] = value;
            assert_ne!(metadata(&other), Some(said.clone()), "{name}");
        }
        let mut same = page;
        same["x"] = json!(2);
        assert_eq!(metadata(&same), Some(said));
        assert_eq!(metadata(&json!({})), None);
        let list = |created: u32, root: &str| json!({"data": [{"id": "m", "root": root, "created": created}]});
        assert_eq!(models(&list(1, "r")), models(&list(2, "r")));
        assert_ne!(models(&list(1, "r")), models(&list(1, "s")));
        assert_eq!(models(&json!({"data": []})), None);
    }
}
