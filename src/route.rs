//! Route: which operation is this, and which pool serves it?
//!
//! Paths are matched over all APIs at once; an operation whose body names a model leaves the pool open until the body
//! is read. `/pools/{pool}/…` fixes the pool, so that an SDK's base URL can. Models are looked up here too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use http::Method;

use crate::ids::{ApiName, ModelId, OperationIndex, PoolIndex, PoolName};

/// What the table is made of.
#[derive(Default)]
pub struct Settings {
    /// Every operation of every API that a pool serves.
    pub operations: Vec<OperationEntry>,
    /// The pools, in the order of the snapshot.
    pub pools: Vec<PoolEntry>,
}

/// An operation as routing sees it.
pub struct OperationEntry {
    /// Its API.
    pub api: ApiName,
    /// Its place in the catalogue.
    pub index: OperationIndex,
    /// Its method.
    pub method: Method,
    /// Its path template.
    pub path: String,
    /// Whether the body's `model` picks the pool.
    pub by_model: bool,
    /// Of the far side's services, the one that has it.
    pub domain: Option<String>,
}

/// A pool as routing sees it.
pub struct PoolEntry {
    /// Its name.
    pub name: PoolName,
    /// The API that it serves.
    pub api: ApiName,
    /// The one domain whose operations it serves; absent for all.
    pub domain: Option<String>,
    /// Whether it serves operations without a model when several pools of the API could.
    pub default: bool,
    /// Models: every name that callers may use, and the model that it means.
    pub models: Vec<(String, ModelEntry)>,
    /// Pools that stand behind it: they get what this one gives them, and serve others only under their own prefix.
    pub behind: Vec<PoolIndex>,
}

/// A model of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    /// The name that permissions and metrics use.
    pub id: ModelId,
    /// The name that the backend knows, where it differs from what the caller sent.
    pub backend: Option<String>,
    /// Tokens that an answer is taken to have whose request states no bound.
    pub output_tokens: Option<u64>,
    /// When it ends in this pool, and what its callers are told.
    pub life: Life,
}

/// The life of a model in a pool, as far as the operator has something to say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// When it ends.
    pub end: Option<DateTime<Utc>>,
    /// It is offline, for this reason.
    pub offline: Option<Arc<str>>,
    /// Further words for callers who ask too much.
    pub rate_limited: Option<Arc<str>>,
}

impl Life {
    /// Whether requests are served now.
    pub fn is_alive(&self, now: DateTime<Utc>) -> bool {
        self.offline.is_none() && self.end.is_none_or(|end| now < end)
    }
}

/// The gateway's own endpoints on the callers' listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// `GET /v1/health/live`: the process runs.
    Live,
    /// `GET /v1/health/ready`: requests can be served.
    Ready,
    /// `GET /v1/models`: what this caller may use and what is alive.
    Models,
    /// `GET /v1/models/{model}`: one of them.
    Model,
    /// `GET /v1/metadata`: what this gateway is.
    Metadata,
    /// `GET /openapi.json`: the merged catalogue.
    OpenApi,
    /// `GET /docs`: the same, readable.
    Docs,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// What answers it.
    pub target: Target,
    /// Path parameters, percent-encoded as they came.
    pub params: Vec<(String, String)>,
    /// How many bytes of the path are the `/pools/{pool}` prefix.
    pub prefix: usize,
}

/// What answers a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// The gateway.
    Own(Own),
    /// This operation of this pool.
    Pool(PoolIndex, OperationIndex),
    /// The pool that serves the body's model, by the operation of that pool's API; `within` limits it to one pool.
    ByModel {
        /// The operation in each API that offers it.
        candidates: Vec<(ApiName, OperationIndex)>,
        /// The pool that the prefix names.
        within: Option<PoolIndex>,
    },
}

/// Why there is no route.
#[derive(Debug, PartialEq, Eq)]
pub enum NotFound {
    /// No operation has this path.
    Path,
    /// The path exists, but not with this method; these are allowed.
    Method(Vec<Method>),
    /// The prefix names no pool.
    Pool(String),
    /// Several pools could serve it and none is the default; or none serves the API.
    NoDefault(Vec<PoolName>),
}

/// Why a model can not be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelProblem {
    /// No pool serves it.
    Nowhere,
    /// A pool serves it, but its API has no such operation.
    OtherOperation(PoolName),
    /// It is served, but not by the pool that the prefix names.
    OtherPool,
}

/// The compiled table.
pub struct RouteTable {
    paths: matchit::Router<Vec<Candidate>>,
    pools: Vec<PoolEntry>,
    by_name: HashMap<PoolName, PoolIndex>,
    models: HashMap<String, Vec<(PoolIndex, ModelEntry)>>,
    /// By API and domain: the pools that serve operations without a model.
    defaults: HashMap<ApiName, Vec<Serving>>,
}

/// A domain, and the pools that serve its operations.
type Serving = (Option<String>, Vec<PoolIndex>);

#[derive(Clone)]
struct Candidate {
    method: Method,
    api: ApiName,
    index: OperationIndex,
    by_model: bool,
    domain: Option<String>,
}

const POOLS: &str = "/pools/";

impl ModelProblem {
    /// What the caller reads.
    pub fn message(&self, model: &str) -> String {
        match self {
            Self::Nowhere => {
                format!("The model `{model}` does not exist here; /v1/models lists those that you may use.")
            }
            Self::OtherOperation(pool) => {
                format!("The model `{model}` is served by the pool `{pool}`, whose API has no such operation.")
            }
            Self::OtherPool => format!("The model `{model}` is not served by the pool that the path names."),
        }
    }
}

impl RouteTable {
    /// Compiles the table. Fails when two APIs give one path two different shapes.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let mut by_path: Vec<(String, Vec<Candidate>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut domains: HashMap<ApiName, BTreeSet<Option<String>>> = HashMap::new();
        for OperationEntry { api, index, method, path, by_model, domain } in settings.operations {
            domains.entry(api.clone()).or_default().insert(domain.clone());
            let at = *places.entry(path.clone()).or_insert_with(|| {
                by_path.push((path, Vec::new()));
                by_path.len() - 1
            });
            by_path[at].1.push(Candidate { method, api, index, by_model, domain });
        }
        let mut paths = matchit::Router::new();
        for (path, candidates) in by_path {
            paths.insert(&path, candidates).map_err(|e| format!("path {path}: {e}"))?;
        }
        let mut table = Self {
            paths,
            by_name: HashMap::new(),
            models: HashMap::new(),
            defaults: HashMap::new(),
            pools: settings.pools,
        };
        table.index_pools(domains);
        Ok(table)
    }

    fn index_pools(&mut self, domains: HashMap<ApiName, BTreeSet<Option<String>>>) {
        for (at, pool) in self.pools.iter().enumerate() {
            let at = PoolIndex(at);
            self.by_name.insert(pool.name.clone(), at);
            for (name, entry) in &pool.models {
                self.models.entry(name.clone()).or_default().push((at, entry.clone()));
            }
        }
        for serving in self.models.values_mut().filter(|serving| serving.len() > 1) {
            let all: Vec<usize> = serving.iter().map(|(pool, _)| pool.0).collect();
            serving.sort_by_key(|(pool, _)| is_behind(&self.pools, pool.0, &all));
        }
        for (api, domains) in domains {
            let serving = domains.into_iter().map(|domain| {
                let pools = self.serving(&api, domain.as_deref());
                (domain, pools)
            });
            let serving = serving.collect();
            self.defaults.insert(api, serving);
        }
    }

    /// The pools that serve operations of an API and domain which name no model: those that are for this domain alone
    /// before those that are for all.
    fn serving(&self, api: &ApiName, domain: Option<&str>) -> Vec<PoolIndex> {
        let of = |wanted: Option<&str>| -> Vec<usize> {
            let is_fit = |pool: &PoolEntry| pool.api == *api && pool.domain.as_deref() == wanted;
            (0..self.pools.len()).filter(|i| is_fit(&self.pools[*i])).collect()
        };
        let all = domain.map(|domain| of(Some(domain))).filter(|own| !own.is_empty()).unwrap_or_else(|| of(None));
        let chosen: Vec<usize> = all.iter().copied().filter(|i| self.pools[*i].default).collect();
        let first = || all.iter().copied().filter(|i| !is_behind(&self.pools, *i, &all)).collect();
        let serving: Vec<usize> = if chosen.is_empty() { first() } else { chosen };
        serving.into_iter().map(PoolIndex).collect()
    }

    /// Finds what answers `method path`.
    pub fn find(&self, method: &Method, path: &str) -> Result<Route, NotFound> {
        if let Some(rest) = path.strip_prefix(POOLS) {
            return self.find_in_pool(method, rest);
        }
        match own(path) {
            Some((own, params)) if is_read(method) => {
                return Ok(Route { target: Target::Own(own), params, prefix: 0 });
            }
            Some(_) => return Err(NotFound::Method(vec![Method::GET, Method::HEAD])),
            None => {}
        }
        let matched = self.paths.at(path).map_err(|_| NotFound::Path)?;
        let candidates = of_method(matched.value.iter(), method)?;
        let params = owned(&matched.params);
        if candidates.iter().any(|c| c.by_model) {
            let candidates = candidates.iter().map(|c| (c.api.clone(), c.index)).collect();
            return Ok(Route { target: Target::ByModel { candidates, within: None }, params, prefix: 0 });
        }
        let (pool, index) = self.default_for(&candidates)?;
        Ok(Route { target: Target::Pool(pool, index), params, prefix: 0 })
    }

    fn find_in_pool(&self, method: &Method, rest: &str) -> Result<Route, NotFound> {
        let name = rest.split('/').next().unwrap_or_default();
        let pool = *self.by_name.get(name).ok_or_else(|| NotFound::Pool(name.chars().take(100).collect()))?;
        let (entry, path) = (&self.pools[pool.0], &rest[name.len()..]);
        let api = &entry.api;
        // A pool's models are what it serves under which names; its backends know neither aliases nor permissions.
        if let Some((own @ (Own::Models | Own::Model), mut params)) = own(path)
            && is_read(method)
        {
            params.push(("pool".into(), name.to_owned()));
            return Ok(Route { target: Target::Own(own), params, prefix: POOLS.len() + name.len() });
        }
        let matched = self.paths.at(path).map_err(|_| NotFound::Path)?;
        let offered: Vec<&Candidate> = matched.value.iter().filter(|c| entry.offers(c)).collect();
        if offered.is_empty() {
            return Err(NotFound::Path);
        }
        let candidates = of_method(offered.into_iter(), method)?;
        let Some(candidate) = candidates.first() else { return Err(NotFound::Path) };
        let target = if candidate.by_model {
            Target::ByModel { candidates: vec![(api.clone(), candidate.index)], within: Some(pool) }
        } else {
            Target::Pool(pool, candidate.index)
        };
        Ok(Route { target, params: owned(&matched.params), prefix: POOLS.len() + name.len() })
    }

    /// The default pool of the one API that has one; of several, the pool that comes first in the configuration.
    fn default_for(&self, candidates: &[&Candidate]) -> Result<(PoolIndex, OperationIndex), NotFound> {
        let mut found = Vec::new();
        let mut rivals = Vec::new();
        for candidate in candidates {
            let domains = self.defaults.get(&candidate.api).into_iter().flatten();
            let mut serving = domains.filter(|(domain, _)| *domain == candidate.domain).map(|(_, pools)| &pools[..]);
            match serving.next() {
                Some([one]) => found.push((*one, candidate.index)),
                Some(several) => rivals.extend(several.iter().map(|p| self.pools[p.0].name.clone())),
                None => {}
            }
        }
        found.into_iter().min_by_key(|(pool, _)| pool.0).ok_or(NotFound::NoDefault(rivals))
    }

    /// The pool that serves `model`, among pools whose API is one of `candidates`.
    pub fn model(
        &self,
        model: &str,
        candidates: &[(ApiName, OperationIndex)],
        within: Option<PoolIndex>,
    ) -> Result<(PoolIndex, OperationIndex, &ModelEntry), ModelProblem> {
        let serving = self.models.get(model).ok_or(ModelProblem::Nowhere)?;
        let mut other = None;
        for (pool, entry) in serving {
            if within.is_some_and(|wanted| wanted != *pool) {
                continue;
            }
            let api = &self.pools[pool.0].api;
            if let Some((_, index)) = candidates.iter().find(|(name, _)| name == api) {
                return Ok((*pool, *index, entry));
            }
            other = Some(self.pools[pool.0].name.clone());
        }
        Err(other.map_or(ModelProblem::OtherPool, ModelProblem::OtherOperation))
    }

    /// Every model name that callers may use, with the pools that serve it.
    pub fn models(&self) -> impl Iterator<Item = (&str, &[(PoolIndex, ModelEntry)])> {
        self.models.iter().map(|(name, serving)| (name.as_str(), serving.as_slice()))
    }
}

impl PoolEntry {
    fn offers(&self, operation: &Candidate) -> bool {
        operation.api == self.api && (self.domain.is_none() || self.domain == operation.domain)
    }
}

/// Whether a pool stands behind another of these, and not the other way round.
fn is_behind(pools: &[PoolEntry], pool: usize, others: &[usize]) -> bool {
    let stands = |front: usize, back: usize| pools[front].behind.contains(&PoolIndex(back));
    others.iter().any(|other| *other != pool && stands(*other, pool) && !stands(pool, *other))
}

fn of_method<'a>(
    candidates: impl Iterator<Item = &'a Candidate>,
    method: &Method,
) -> Result<Vec<&'a Candidate>, NotFound> {
    let (fitting, others): (Vec<_>, Vec<_>) = candidates.partition(|c| c.method == *method);
    if fitting.is_empty() {
        let mut allowed: Vec<Method> = others.into_iter().map(|c| c.method.clone()).collect();
        allowed.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        allowed.dedup();
        return Err(NotFound::Method(allowed));
    }
    Ok(fitting)
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn own(path: &str) -> Option<(Own, Vec<(String, String)>)> {
    let own = match path {
        "/v1/health/live" => Own::Live,
        "/v1/health/ready" => Own::Ready,
        "/v1/models" => Own::Models,
        "/v1/metadata" => Own::Metadata,
        "/openapi.json" => Own::OpenApi,
        "/docs" => Own::Docs,
        _ => {
            let model = path.strip_prefix("/v1/models/").filter(|m| !m.is_empty())?;
            return Some((Own::Model, vec![("model".into(), model.to_owned())]));
        }
    };
    Some((own, Vec::new()))
}

fn owned(params: &matchit::Params<'_, '_>) -> Vec<(String, String)> {
    params.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(api: &str, index: usize, method: Method, path: &str, by_model: bool) -> OperationEntry {
        OperationEntry {
            api: api.into(),
            index: OperationIndex(index),
            method,
            path: path.into(),
            by_model,
            domain: None,
        }
    }

    fn pool(name: &str, api: &str, default: bool, models: &[&str]) -> PoolEntry {
        let models = models
            .iter()
            .map(|m| {
                ((*m).into(), ModelEntry { id: (*m).into(), backend: None, output_tokens: None, life: Life::default() })
            })
            .collect();
        PoolEntry { name: name.into(), api: api.into(), domain: None, default, models, behind: Vec::new() }
    }

    fn table() -> RouteTable {
        RouteTable::new(Settings {
            operations: vec![
                operation("llm", 0, Method::POST, "/v1/chat/completions", true),
                operation("text", 1, Method::POST, "/v1/embeddings", true),
                operation("video", 2, Method::POST, "/v1/embeddings", true),
                operation("predict", 3, Method::POST, "/v1/infer", false),
                operation("curator", 4, Method::POST, "/v1/cosmos/datasets/datasets", false),
                operation("curator", 5, Method::GET, "/v1/cosmos/datasets/{dataset_id}", false),
                operation("llm", 6, Method::GET, "/v1/manifest", false),
                operation("predict", 7, Method::GET, "/v1/manifest", false),
            ],
            pools: vec![
                pool("chat", "llm", false, &["a"]),
                pool("text", "text", false, &["e"]),
                pool("video", "video", false, &["v"]),
                pool("small", "predict", false, &[]),
                pool("large", "predict", true, &[]),
                pool("curator", "curator", false, &[]),
            ],
        })
        .unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better in a list of assertions")]
    fn target(method: Method, path: &str) -> Result<Target, NotFound> {
        table().find(&method, path).map(|r| r.target)
    }

    #[test]
    fn a_model_picks_the_api_that_shares_the_path() {
        let table = table();
        let Target::ByModel { candidates, within } = table.find(&Method::POST, "/v1/embeddings").unwrap().target else {
            panic!("by model")
        };
        let served = |model| table.model(model, &candidates, within).map(|(p, o, _)| (p.0, o.0));
        assert_eq!(served("e"), Ok((1, 1)));
        assert_eq!(served("v"), Ok((2, 2)));
        assert_eq!(served("a"), Err(ModelProblem::OtherOperation("chat".into())));
        assert_eq!(served("x"), Err(ModelProblem::Nowhere));
    }

    #[test]
    fn a_prefix_fixes_the_pool() {
        let table = table();
        let route = table.find(&Method::POST, "/pools/small/v1/infer").unwrap();
        assert_eq!(route.target, Target::Pool(PoolIndex(3), OperationIndex(3)));
        assert_eq!(&"/pools/small/v1/infer"[route.prefix..], "/v1/infer");
        assert_eq!(target(Method::POST, "/pools/none/v1/infer"), Err(NotFound::Pool("none".into())));
        assert_eq!(target(Method::POST, "/pools/small/v1/chat/completions"), Err(NotFound::Path));
        let Target::ByModel { candidates, within } = target(Method::POST, "/pools/text/v1/embeddings").unwrap() else {
            panic!("by model")
        };
        assert_eq!(table.model("v", &candidates, within).unwrap_err(), ModelProblem::OtherPool);
    }

    #[test]
    fn operations_without_a_model_go_to_the_default_pool() {
        assert_eq!(target(Method::POST, "/v1/infer"), Ok(Target::Pool(PoolIndex(4), OperationIndex(3))));
        assert_eq!(target(Method::GET, "/v1/manifest"), Ok(Target::Pool(PoolIndex(0), OperationIndex(6))));
    }

    #[test]
    fn parameters_and_fixed_segments_coexist() {
        let table = table();
        let route = table.find(&Method::GET, "/v1/cosmos/datasets/abc").unwrap();
        assert_eq!(route.params, [("dataset_id".to_owned(), "abc".to_owned())]);
        assert_eq!(
            target(Method::POST, "/v1/cosmos/datasets/datasets"),
            Ok(Target::Pool(PoolIndex(5), OperationIndex(4)))
        );
    }

    #[test]
    fn refusals_say_what_would_work() {
        assert_eq!(target(Method::GET, "/nothing"), Err(NotFound::Path));
        assert_eq!(target(Method::GET, "/v1/infer"), Err(NotFound::Method(vec![Method::POST])));
        assert_eq!(target(Method::POST, "/v1/models"), Err(NotFound::Method(vec![Method::GET, Method::HEAD])));
        assert_eq!(target(Method::HEAD, "/v1/health/ready"), Ok(Target::Own(Own::Ready)));
        assert_eq!(target(Method::GET, "/pools/chat/v1/models"), Ok(Target::Own(Own::Models)));
        assert_eq!(target(Method::GET, "/v1/models/a/b"), Ok(Target::Own(Own::Model)));
    }
}
