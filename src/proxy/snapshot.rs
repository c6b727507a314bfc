//! Snapshot: everything that a reload replaces, compiled and immutable.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::HeaderMap;
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use tokio::sync::Semaphore;
use tower::retry::budget::TpsBudget;

use super::fetch::Fetcher;
use super::fetch::results::Results;
use super::params::{Params, Place};
use super::revision::Revision;
use super::settings::{
    ClientSettings, CorsSettings, Endpoints, MeterSettings, PaceSettings, PoolSettings, QueueSettings, RetrySettings,
    Settings,
};
use crate::admission::pace::Pace;
use crate::admission::{self, Gate};
use crate::auth::{self, Caller, Denied, KeyRing};
use crate::balance::{Endpoint, Members, Pool, now};
use crate::cache::{self, Cache, Rules};
use crate::catalogue::{Body, Cacheable, Catalogue, Operation};
use crate::failure::Failure;
use crate::ids::{ApiName, OperationIndex, PoolIndex};
use crate::quota::{self, Book, Limiter};
use crate::route::{OperationEntry, PoolEntry, RouteTable};
use crate::schema::{self, BadSchema, Schema, Validation};
use crate::trace::Sampling;
use crate::upstream::Wait;

/// The time over which budgets of repeated attempts are kept.
const BUDGET_TIME: Duration = Duration::from_secs(10);
/// The time over which budgets of second attempts are kept; longer, since they are smaller.
const HEDGE_TIME: Duration = Duration::from_secs(60);

/// One loaded configuration.
pub struct Snapshot {
    /// Counts loads, from 1.
    pub generation: u64,
    /// When it was loaded, in Unix seconds.
    pub loaded: i64,
    /// The keys and their limits; changes of the key store replace them.
    pub callers: ArcSwap<Callers>,
    /// The keys and limits that the configuration itself has.
    pub own: Own,
    /// The APIs.
    pub catalogue: Catalogue,
    /// Paths and models.
    pub routes: RouteTable,
    /// The pools; [`PoolIndex`] points into it.
    pub pools: Vec<PoolState>,
    /// Bounds on clients.
    pub client: ClientSettings,
    /// CORS.
    pub cors: CorsSettings,
    /// How usage is found out.
    pub meter: MeterSettings,
    /// Which traces are exported.
    pub sampling: Sampling,
    pub(super) openapi: OnceLock<Bytes>,
    pub(super) docs: OnceLock<Bytes>,
}

/// Keys and limits as the configuration has them.
#[derive(Default)]
pub struct Own {
    /// The keys.
    pub keys: Vec<auth::Settings>,
    /// The limits, prices and estimates.
    pub quota: quota::Settings,
}

/// Who may call, and how much.
#[derive(Default)]
pub struct Callers {
    /// The keys.
    pub keys: KeyRing,
    /// Their limits.
    pub book: Book,
    /// Whether these are all keys that there are.
    pub is_complete: bool,
}

impl Callers {
    /// Finds the caller behind a request. Nobody is unknown before all keys are there.
    pub fn authenticate(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Result<Arc<Caller>, Failure> {
        match self.keys.authenticate(headers, now) {
            Err(Denied::Unknown) if !self.is_complete => Err(Failure::KeysUnknown),
            found => found.map_err(Failure::from),
        }
    }
}

/// One pool, ready for use.
pub struct PoolState {
    /// What it was configured as.
    pub settings: PoolSettings,
    /// Its endpoints.
    pub pool: Pool,
    /// Its places, and those who wait for one.
    pub gate: Arc<Gate>,
    /// Repeated attempts that it allows.
    pub retries: Arc<TpsBudget>,
    /// Second attempts beside slow first ones that it allows.
    pub hedges: Arc<TpsBudget>,
    /// Copies for its shadow that may be in flight.
    pub copies: Arc<Semaphore>,
    fetcher: OnceLock<Fetcher>,
    results: OnceLock<Results>,
    store_fetcher: OnceLock<Fetcher>,
    /// Vectors that were asked for before.
    pub vectors: Option<Vectors>,
    /// The compiled schemas of its API under its settings.
    pub checks: Arc<HashMap<OperationIndex, Checks>>,
    /// Authorities to trust in place of the system's.
    pub(super) authorities: Option<Arc<CaType>>,
    /// Keeps connections apart whose trust or protocol differs; pingora's own key leaves both out.
    pub(super) connection_group: u64,
}

/// The vectors of a pool, and what tells them apart.
pub struct Vectors {
    /// The vectors.
    pub cache: Arc<Cache>,
    /// What the members of requests mean, by operation.
    pub rules: HashMap<OperationIndex, Rules>,
    /// The revision of the model that its endpoints serve.
    pub revision: Arc<Revision>,
}

/// The compiled schemas of one operation.
#[derive(Default)]
pub struct Checks {
    /// Of the body.
    pub body: Option<Schema>,
    /// Of parameters, by place.
    pub params: Vec<(Place, Params)>,
}

impl Snapshot {
    /// Compiles settings, with the keys and limits that they have. Endpoints that `previous` has too live on with their
    /// load and health, limits with their counts.
    pub fn build(settings: Settings, limiter: &Limiter, previous: Option<&Snapshot>) -> Result<Self, String> {
        let snapshot = Self::compile(settings, previous)?;
        let Own { keys, quota } = &snapshot.own;
        let callers = Callers { keys: KeyRing::new(keys.clone()), book: limiter.book(quota), is_complete: true };
        snapshot.callers.store(Arc::new(callers));
        Ok(snapshot)
    }

    /// Compiles settings; callers are to be put in.
    pub fn compile(settings: Settings, previous: Option<&Snapshot>) -> Result<Self, String> {
        let Settings { keys, catalogue, pools, client, cors, quota, meter, sampling } = settings;
        let mut compiled: HashMap<(ApiName, schema::Settings), Arc<HashMap<OperationIndex, Checks>>> = HashMap::new();
        let mut states = Vec::new();
        for settings in pools {
            let key = (settings.api.clone(), settings.schema);
            let checks = match compiled.get(&key) {
                Some(checks) => Arc::clone(checks),
                None => {
                    let checks = Arc::new(compile(&catalogue, &settings)?);
                    compiled.insert(key, Arc::clone(&checks));
                    checks
                }
            };
            states.push(PoolState::new(settings, checks, &catalogue, previous));
        }
        set_paces(&states, previous);
        let routes = RouteTable::new(route_settings(&catalogue, &states))?;
        Ok(Self {
            generation: previous.map_or(1, |p| p.generation + 1),
            loaded: chrono::Utc::now().timestamp(),
            callers: ArcSwap::from_pointee(Callers::default()),
            own: Own { keys, quota },
            catalogue,
            routes,
            pools: states,
            client,
            cors,
            meter,
            sampling,
            openapi: OnceLock::new(),
            docs: OnceLock::new(),
        })
    }

    /// Looks up the endpoints that have no address yet. Blocks: for start and reload only; probes do it again.
    pub fn look_up(&self) {
        for pool in &self.pools {
            for endpoint in pool.pool.endpoints().iter().filter(|endpoint| endpoint.address().is_none()) {
                endpoint.resolved(resolve(&endpoint.settings().host, endpoint.settings().port));
            }
        }
        self.pools.iter().for_each(|state| state.pool.take_over());
        self.pools.iter().for_each(PoolState::resize);
    }

    /// A pool by its index.
    pub fn pool(&self, index: PoolIndex) -> &PoolState {
        &self.pools[index.0]
    }

    /// Whether all keys are known and any pool has an endpoint that takes requests.
    pub fn is_ready(&self) -> bool {
        self.callers.load().is_complete && self.pools.iter().any(|p| p.pool.is_available())
    }

    /// The APIs that pools serve, in the order of their names.
    pub fn served(&self) -> impl Iterator<Item = &ApiName> {
        self.catalogue.apis.keys().filter(|api| self.pools.iter().any(|p| p.settings.api == **api))
    }
}

impl PoolState {
    /// Tells the gate how many places there are now.
    pub fn resize(&self) {
        let places = self.pool.places(now());
        self.gate.resize(self.settings.queue.max_in_flight.map_or(places, |most| most.min(places)));
    }

    /// Sends requests beside pingora's loop.
    pub fn fetcher(&self) -> &Fetcher {
        self.fetcher.get_or_init(|| Fetcher::new(&self.settings))
    }

    /// Fetches large answers of a function that is waited for so.
    pub fn results(&self, wait: Wait) -> &Results {
        self.results.get_or_init(|| Results::new(&self.settings, wait))
    }

    /// Sends what goes to the object stores of the platform.
    pub fn store_fetcher(&self) -> &Fetcher {
        self.store_fetcher.get_or_init(|| Fetcher::elsewhere(&self.settings))
    }

    fn new(
        settings: PoolSettings,
        checks: Arc<HashMap<OperationIndex, Checks>>,
        catalogue: &Catalogue,
        previous: Option<&Snapshot>,
    ) -> Self {
        let before = previous.and_then(|s| s.pools.iter().find(|p| p.settings.name == settings.name));
        let members = members(&settings.endpoints, before);
        let pool = match before {
            Some(before) => Pool::succeeding(&before.pool, members, settings.balance.clone()),
            None => Pool::new(members, settings.balance.clone()),
        };
        let QueueSettings { max, max_per_caller, .. } = settings.queue;
        let gate = match before {
            Some(before) => Arc::clone(&before.gate),
            None => {
                let pool = settings.name.clone();
                Arc::new(Gate::new(admission::Settings { pool, queue: max, per_caller: max_per_caller }))
            }
        };
        gate.configure(max, max_per_caller);
        let RetrySettings { per_second, budget, .. } = settings.retry;
        let retries = match before.filter(|before| before.settings.retry == settings.retry) {
            Some(before) => Arc::clone(&before.retries),
            None => Arc::new(TpsBudget::new(BUDGET_TIME, per_second, budget)),
        };
        let hedges = match before.filter(|before| before.settings.hedge == settings.hedge) {
            Some(before) => Arc::clone(&before.hedges),
            None => Arc::new(TpsBudget::new(HEDGE_TIME, 0, settings.hedge.map_or(0.0, |hedge| hedge.budget))),
        };
        let copies = match before.filter(|before| before.settings.shadow == settings.shadow) {
            Some(before) => Arc::clone(&before.copies),
            None => Arc::new(Semaphore::new(settings.shadow.map_or(0, |shadow| shadow.max_in_flight))),
        };
        let tls = settings.tls.as_ref();
        let authorities = tls.and_then(|t| t.authorities.as_ref());
        let mut hasher = DefaultHasher::new();
        (authorities, settings.http2, tls.map(|t| &t.server_name), &settings.name).hash(&mut hasher);
        let wrapped = authorities.map(|all| {
            let wrapped: Vec<WrappedX509> = all.iter().map(|der| WrappedX509::new(der.clone(), parse_x509)).collect();
            Arc::from(wrapped)
        });
        let state = Self {
            pool,
            gate,
            retries,
            hedges,
            copies,
            fetcher: OnceLock::new(),
            results: OnceLock::new(),
            store_fetcher: OnceLock::new(),
            vectors: vectors(&settings, catalogue, before),
            checks,
            authorities: wrapped,
            connection_group: hasher.finish(),
            settings,
        };
        state.resize();
        state
    }
}

/// Gives each gate its pace: one for all pools that share it, with what was learned before.
fn set_paces(states: &[PoolState], previous: Option<&Snapshot>) {
    let before = previous.iter().flat_map(|snapshot| &snapshot.pools);
    let known = before.filter_map(|state| Some((state.settings.pace.clone()?, state.gate.pace()?)));
    let mut paces: Vec<(PaceSettings, Arc<Pace>)> = known.collect();
    for state in states {
        let pace = state.settings.pace.as_ref().map(|wanted| {
            let found = paces.iter().find(|(settings, _)| settings == wanted).map(|(_, pace)| Arc::clone(pace));
            found.unwrap_or_else(|| {
                let pace = Arc::new(Pace::new(wanted.settings));
                paces.push((wanted.clone(), Arc::clone(&pace)));
                pace
            })
        });
        state.gate.set_pace(pace);
    }
}

/// The vectors of a pool: those that it has, unless they are kept otherwise now.
fn vectors(settings: &PoolSettings, catalogue: &Catalogue, before: Option<&PoolState>) -> Option<Vectors> {
    let wanted = settings.cache.as_ref()?;
    let operations = catalogue.apis.get(&settings.api).map_or(&[][..], |api| &api.operations);
    let cacheable = operations.iter().filter_map(|o| Some((*o, catalogue.operation(*o).cacheable.as_ref()?)));
    let rules: HashMap<OperationIndex, Rules> = cacheable.map(|(o, cacheable)| (o, rules(cacheable))).collect();
    let settings = cache::Settings {
        ttl: wanted.ttl,
        jitter: wanted.jitter,
        most_bytes: wanted.most_bytes,
        in_redis: wanted.in_redis,
        budget: wanted.budget,
        largest_value: wanted.largest_value,
        keeps_media: wanted.keeps_media,
        batch: rules.values().map(|rules| rules.batch).min().unwrap_or_default(),
    };
    let kept = before.and_then(|before| before.vectors.as_ref()).filter(|kept| *kept.cache.settings() == settings);
    let cache = kept.map_or_else(|| Arc::new(Cache::new(settings)), |kept| Arc::clone(&kept.cache));
    Some(Vectors { cache, rules, revision: Arc::default() })
}

fn rules(cacheable: &Cacheable) -> Rules {
    let text = |value: &serde_json::Value| cache::canonical(&value.to_string()).unwrap_or_default();
    let Cacheable { input, encoding, ignored, per_item, defaults, only, never, batch } = cacheable;
    Rules {
        input: input.clone(),
        encoding: encoding.clone(),
        ignored: ignored.clone(),
        per_item: per_item.clone(),
        defaults: defaults.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        only: only.iter().map(|(name, values)| (name.clone(), values.iter().map(text).collect())).collect(),
        never: never.clone(),
        batch: *batch,
    }
}

/// The endpoints that a pool begins with: those that are listed, or those that its source had brought so far.
fn members(wanted: &Endpoints, before: Option<&PoolState>) -> Arc<Members> {
    let known: Vec<Arc<Endpoint>> = before.map(|p| p.pool.endpoints().to_vec()).unwrap_or_default();
    match wanted {
        Endpoints::Listed(listed) => {
            let endpoint = |wanted: &crate::balance::Settings| {
                let kept = known.iter().find(|e| e.settings() == wanted).cloned();
                let namesake = || known.iter().find(|e| e.name() == wanted.name);
                kept.unwrap_or_else(|| Arc::new(Endpoint::new(wanted.clone(), Vec::new()).replacing(namesake())))
            };
            Arc::new(Members::new(listed.iter().map(endpoint).collect()))
        }
        Endpoints::Found { source, thresholds, .. } => {
            let Some(before) = before.filter(|p| p.settings.endpoints.source() == Some(source)) else {
                return Arc::new(Members::new(Vec::new()));
            };
            if before.settings.endpoints == *wanted {
                return Arc::clone(before.pool.members());
            }
            let members = Members::new(known.clone());
            let changed = known.iter().filter_map(|e| {
                let settings = crate::balance::Settings { thresholds: *thresholds, ..e.settings().clone() };
                Some((settings, e.address()?))
            });
            members.replace(changed);
            Arc::new(members)
        }
    }
}

/// What a host resolves to now; empty when it does not. Blocks.
fn resolve(host: &str, port: u16) -> Vec<SocketAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match (host, port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => {
            tracing::warn!(host, %error, "endpoint does not resolve; it will be tried again");
            Vec::new()
        }
    }
}

fn compile(catalogue: &Catalogue, pool: &PoolSettings) -> Result<HashMap<OperationIndex, Checks>, String> {
    let Some(api) = catalogue.apis.get(&pool.api) else { return Err(format!("no API {}", pool.api)) };
    let mut checks = HashMap::new();
    for index in &api.operations {
        let operation = catalogue.operation(*index);
        let compiled = Checks::compile(operation, &api.components, &pool.schema);
        let compiled = compiled.map_err(|e| format!("API {}, operation {}: {e}", pool.api, operation.id))?;
        checks.insert(*index, compiled);
    }
    Ok(checks)
}

impl Checks {
    /// Compiles the schemas of one operation; none when the pool does not validate.
    pub fn compile(
        operation: &Operation,
        components: &serde_json::Value,
        settings: &schema::Settings,
    ) -> Result<Self, BadSchema> {
        if settings.validation == Validation::Off {
            return Ok(Self::default());
        }
        let body = match &operation.body {
            Body::Json { schema, .. } => Some(Schema::compile(schema, components, settings)?),
            Body::None | Body::Opaque => None,
        };
        let places = [
            (Place::Path, &operation.path_params),
            (Place::Query, &operation.query),
            (Place::Header, &operation.header_params),
        ];
        let mut params = Vec::new();
        for (place, source) in places {
            if let Some(source) = source {
                params.push((place, Params::compile(place, source, components, settings)?));
            }
        }
        Ok(Self { body, params })
    }
}

fn route_settings(catalogue: &Catalogue, pools: &[PoolState]) -> crate::route::Settings {
    // Calls of gRPC are found by their metadata.
    let served = |api: &ApiName| pools.iter().any(|p| p.settings.api == *api && !p.settings.grpc);
    let operations = catalogue.operations.iter().enumerate().filter(|(_, o)| served(&o.api));
    let operations = operations.map(|(at, o)| OperationEntry {
        api: o.api.clone(),
        index: OperationIndex(at),
        method: o.method.clone(),
        path: o.path.clone(),
        by_model: o.routes_by_model,
        domain: o.domain.clone(),
    });
    let pools = pools.iter().map(|p| PoolEntry {
        name: p.settings.name.clone(),
        api: p.settings.api.clone(),
        domain: p.settings.domain.clone(),
        default: p.settings.default,
        models: p.settings.models.clone(),
        behind: p.settings.spill.to.iter().copied().chain(p.settings.shadow.map(|shadow| shadow.pool)).collect(),
    });
    crate::route::Settings { operations: operations.collect(), pools: pools.collect() }
}
