//! Admit: the path of a request up to its pool, in the order in which it is walked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use http::{HeaderMap, header};
use pingora_proxy::Session;

use super::body::Edit;
use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::params::{Place, decoded};
use super::respond::Reply;
use super::snapshot::{Checks, Snapshot};
use super::{body, grpc, guard, limits, native, own};
use crate::auth::Caller;
use crate::catalogue::{Body, Operation};
use crate::failure::{BadInput, Failure};
use crate::ids::{ApiName, OperationIndex, PoolIndex, PoolName, RequestId};
use crate::record::{Spill, SpillReason};
use crate::route::{Life, ModelEntry, NotFound, Route, Target};
use crate::schema::{Document, Violation};

/// What becomes of a request.
pub enum Verdict {
    /// It goes to a backend, with this body.
    Forward(Admitted, Payload),
    /// It is answered here.
    Answer(Reply),
}

/// Walks a request through the stages before the upstream.
pub async fn admit(session: &mut Session, ctx: &mut RequestContext) -> Result<Verdict, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let headers = &session.req_header().headers;
    ctx.request_id = RequestId::accept(headers.get("x-request-id").map(|v| v.as_bytes()));
    ctx.grpc = grpc::Call::of(session.req_header());
    guard::check(session.as_ref(), &snapshot.client)?;
    let (method, uri) = (session.req_header().method.clone(), session.req_header().uri.clone());
    ctx.trail.method = method.clone();
    ctx.trail.origin = header_text(headers, header::ORIGIN);
    ctx.timeout = timeout(headers)?;
    if let Some(reply) = own::preflight(&method, headers, &snapshot.cors) {
        return Ok(Verdict::Answer(reply));
    }
    if grpc::is_call(headers) {
        return grpc::admit(session, ctx).await;
    }
    let found = snapshot.routes.find(&method, uri.path());
    note_api(ctx, &found, uri.path());
    if let Ok(Route { target: Target::Own(endpoint), .. }) = &found
        && let Some(reply) = own::public(*endpoint, &snapshot, headers)
    {
        ctx.trail.operation = Some(own::name(*endpoint));
        return Ok(Verdict::Answer(reply));
    }

    let callers = snapshot.callers.load_full();
    let caller = callers.authenticate(headers, Utc::now())?;
    ctx.trail.caller = Some(Arc::clone(&caller));
    let route = found.map_err(|missing| grpc::wanted(&snapshot, uri.path()).unwrap_or_else(|| missing.into()))?;
    if !matches!(route.target, Target::Own(_)) {
        limits::begin(ctx, &callers.book, caller.id()).await?;
    }
    let request = Request { snapshot: &snapshot, caller, path: uri.path(), query: uri.query(), route: &route };
    match &route.target {
        Target::Own(endpoint) => {
            ctx.trail.operation = Some(own::name(*endpoint));
            own::answer(*endpoint, &snapshot, &request.caller, &route).map(Verdict::Answer)
        }
        Target::Pool(pool, operation) => request.to_pool(session, ctx, *pool, *operation).await,
        Target::ByModel { candidates, within } => request.to_model(session, ctx, candidates, *within).await,
    }
}

/// What a body to send is made of: kept where the request may go to another pool, which may want another.
pub struct Source {
    /// The body as it came.
    pub bytes: Bytes,
    /// What it says.
    pub document: Option<Arc<Document>>,
    /// The model, as it was named.
    pub model: Option<String>,
    /// The question for usage, where it is asked here.
    pub ask_usage: Option<Edit>,
}

/// What is known of a request before its body.
struct Request<'a> {
    snapshot: &'a Snapshot,
    caller: Arc<Caller>,
    path: &'a str,
    query: Option<&'a str>,
    route: &'a Route,
}

impl Request<'_> {
    /// An operation whose pool is known from the path.
    async fn to_pool(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        pool: PoolIndex,
        index: OperationIndex,
    ) -> Result<Verdict, Failure> {
        let operation = self.snapshot.catalogue.operation(index);
        let state = self.snapshot.pool(pool);
        ctx.trail.pool = Some(state.settings.name.clone());
        self.caller.require_any_scope(&operation.scopes)?;
        self.caller.require_pool(&state.settings.name)?;
        native::check_owner(ctx, operation, &state.settings, &self.route.params, self.caller.id()).await?;
        let limit = state.settings.body_limit.unwrap_or(operation.body_limit);
        let checks = state.checks.get(&index);
        let mut found = self.check_params(checks, &session.req_header().headers);
        let mut read = None;
        let mut source = None;
        let payload = match &operation.body {
            Body::Json { required, .. } => {
                require_json(&session.req_header().headers)?;
                let bytes = body::read(session.as_mut(), limit, &self.snapshot.client).await?;
                ctx.received(bytes.len());
                if !bytes.is_empty() || *required {
                    let document = body::parse(&bytes).await?;
                    ctx.validate(|| check_body(checks, &document, &mut found));
                    read = Some(document);
                }
                if state.settings.has_others() {
                    source = Some(Source { bytes: bytes.clone(), document: None, model: None, ask_usage: None });
                }
                Payload::Buffered(vec![bytes])
            }
            Body::None | Body::Opaque => {
                body::check_declared(session.as_ref(), limit)?;
                Payload::Streamed
            }
        };
        refuse_violations(found, state.settings.schema.max_violations)?;
        let envelope = read.as_ref().map(|document| &document.value);
        ctx.hold = native::hold(operation, &state.settings.kind, &session.req_header().headers, envelope);
        limits::reserve(ctx, operation, None, read.as_ref()).await?;
        read.iter().for_each(|document| ctx.transcribe(&state.settings, &document.value));
        if let Some(source) = &mut source {
            source.document = read.map(Arc::new);
        }
        Ok(self.forward(pool, index, limit, payload, source, None))
    }

    /// An operation whose body names the model that picks the pool.
    async fn to_model(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        candidates: &[(ApiName, OperationIndex)],
        within: Option<PoolIndex>,
    ) -> Result<Verdict, Failure> {
        let operations: Vec<&Operation> =
            candidates.iter().map(|(_, i)| self.snapshot.catalogue.operation(*i)).collect();
        let Some(first) = operations.first() else { return Err(Failure::PathNotFound) };
        self.caller.require_any_scope(&first.scopes)?;
        require_json(&session.req_header().headers)?;
        let bytes = body::read(session.as_mut(), self.largest(&operations, within), &self.snapshot.client).await?;
        ctx.received(bytes.len());
        let document = body::parse(&bytes).await?;
        let Some(model) = document.model() else { return Err(self.without_model(candidates, within, &document)) };
        let shown = || model.chars().take(200).collect::<String>();
        let (pool, index, entry) = self
            .snapshot
            .routes
            .model(model, candidates, within)
            .map_err(|problem| Failure::ModelNotFound(shown(), problem))?;
        let home = pool;
        let (pool, entry) = self.living(ctx, model, pool, index, entry)?;
        let (operation, state) = (self.snapshot.catalogue.operation(index), self.snapshot.pool(pool));
        self.note(ctx, pool, index);
        ctx.trail.model = Some(entry.id.clone());
        ctx.trail.stream = document.stream();
        self.caller.require_any_scope(&operation.scopes)?;
        self.caller.require_model(&entry.id)?;
        self.caller.require_pool(&state.settings.name)?;
        let limit = state.settings.body_limit.unwrap_or(operation.body_limit);
        if bytes.len() > limit {
            return Err(Failure::BodyTooLarge(limit));
        }
        let checks = state.checks.get(&index);
        let backend = entry.backend.as_deref();
        let mut found = self.check_params(checks, &session.req_header().headers);
        ctx.validate(|| match backend {
            Some(name) => check_body(checks, &with_backend_name(&document, name), &mut found),
            None => check_body(checks, &document, &mut found),
        });
        refuse_violations(found, state.settings.schema.max_violations)?;
        ctx.words.clone_from(&entry.life.rate_limited);
        limits::reserve(ctx, operation, Some((&entry.id, entry.output_tokens)), Some(&document)).await?;
        ctx.transcribe(&self.snapshot.pool(home).settings, &document.value);
        if pool != home {
            ctx.moved_to(&state.settings);
        }
        let rename = backend.and_then(|name| Edit::model(&document, name));
        let states_usage = operation.tokens.as_ref().is_some_and(|tokens| tokens.usage_in_stream);
        let ask_usage = self.snapshot.meter.stream_usage && states_usage;
        let ask_usage = ask_usage.then(|| Edit::ask_usage(&document)).flatten();
        ctx.withhold_usage = ask_usage.is_some();
        let mut source = None;
        if state.settings.has_others() {
            let (model, ask_usage) = (Some(model.to_owned()), ask_usage.clone());
            source = Some(Source { bytes: bytes.clone(), document: Some(Arc::new(document)), model, ask_usage });
        }
        let payload = body::edited(bytes, rename.into_iter().chain(ask_usage).collect());
        let life = (entry.life != Life::default()).then(|| entry.life.clone());
        Ok(self.forward(pool, index, limit, payload, source, life))
    }

    /// Where the model is still served: in its pool, or in one that takes what has ended there.
    fn living<'a>(
        &'a self,
        ctx: &mut RequestContext,
        model: &str,
        pool: PoolIndex,
        index: OperationIndex,
        entry: &'a ModelEntry,
    ) -> Result<(PoolIndex, &'a ModelEntry), Failure> {
        let now = Utc::now();
        if entry.life.is_alive(now) {
            return Ok((pool, entry));
        }
        let state = self.snapshot.pool(pool);
        self.note(ctx, pool, index);
        let is_offline = entry.life.offline.is_some();
        let reason = if is_offline { SpillReason::Outage } else { SpillReason::EndOfLife };
        let others = state.settings.spill.to.iter().filter(|_| state.settings.spill.is_for(reason));
        for other in others {
            let candidates = [(state.settings.api.clone(), index)];
            let found = self.snapshot.routes.model(model, &candidates, Some(*other)).ok();
            let name = &self.snapshot.pool(*other).settings.name;
            if let Some((other, _, entry)) = found.filter(|(_, _, entry)| entry.life.is_alive(now))
                && self.caller.require_pool(name).is_ok()
            {
                ctx.trail.spill = Some(Spill { from: state.settings.name.clone(), reason });
                return Ok((other, entry));
            }
        }
        Err(match &entry.life {
            Life { offline: Some(message), .. } => Failure::ModelOffline(Arc::clone(message)),
            Life { end, .. } => {
                let day = end.map(|end| end.format("%Y-%m-%d").to_string()).unwrap_or_default();
                Failure::ModelEnded(entry.id.to_string(), day)
            }
        })
    }

    fn note(&self, ctx: &mut RequestContext, pool: PoolIndex, index: OperationIndex) {
        let operation = self.snapshot.catalogue.operation(index);
        ctx.trail.pool = Some(self.snapshot.pool(pool).settings.name.clone());
        ctx.calls(operation);
        if let Some(api) = self.snapshot.catalogue.apis.get(&operation.api) {
            ctx.errors = api.errors;
        }
    }

    /// The largest body that any pool in question takes.
    fn largest(&self, operations: &[&Operation], within: Option<PoolIndex>) -> usize {
        let pools = self.snapshot.pools.iter().enumerate();
        let limits = pools.filter(|(at, _)| within.is_none_or(|w| w.0 == *at)).filter_map(|(_, pool)| {
            let operation = operations.iter().find(|o| o.api == pool.settings.api)?;
            Some(pool.settings.body_limit.unwrap_or(operation.body_limit))
        });
        limits.max().unwrap_or(0)
    }

    /// A body without a model breaks the schema of whichever API was meant.
    fn without_model(
        &self,
        candidates: &[(ApiName, OperationIndex)],
        within: Option<PoolIndex>,
        document: &Document,
    ) -> Failure {
        let meant = self.snapshot.pools.iter().enumerate().find_map(|(at, pool)| {
            let offered = candidates.iter().find(|(api, _)| *api == pool.settings.api)?;
            within.is_none_or(|w| w.0 == at).then_some((pool, offered.1))
        });
        let mut found = BadInput::default();
        if let Some((pool, index)) = meant {
            check_body(pool.checks.get(&index), document, &mut found);
        }
        if found.violations.is_empty() {
            found.violations.push(Violation {
                pointer: String::new(),
                rule: "required".into(),
                expected: "an object whose `model` names a model".into(),
            });
        }
        Failure::SchemaViolation(found)
    }

    fn check_params(&self, checks: Option<&Checks>, headers: &HeaderMap) -> BadInput {
        let mut found = BadInput::default();
        for (place, params) in checks.into_iter().flat_map(|c| &c.params) {
            let pairs: Vec<(String, String)> = match place {
                Place::Path => self.route.params.iter().map(|(name, text)| (name.clone(), decoded(text))).collect(),
                Place::Query => {
                    form_urlencoded::parse(self.query.unwrap_or_default().as_bytes()).into_owned().collect()
                }
                Place::Header => {
                    let known = headers.iter().filter(|(name, _)| params.knows(name.as_str()));
                    known
                        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
                        .collect()
                }
            };
            found.violations.extend(params.check(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
        }
        found
    }

    fn forward(
        &self,
        pool: PoolIndex,
        operation: OperationIndex,
        limit: usize,
        payload: Payload,
        source: Option<Source>,
        life: Option<Life>,
    ) -> Verdict {
        debug_assert!(self.path.len() >= self.route.prefix);
        let length = payload.len();
        let admitted = Admitted { pool, operation, prefix: self.route.prefix, length, limit, source, life };
        Verdict::Forward(admitted, payload)
    }
}

/// Takes dialect and names from the route as soon as they are known, so that every later failure has them.
fn note_api(ctx: &mut RequestContext, found: &Result<Route, NotFound>, path: &str) {
    let index = match found.as_ref().map(|route| &route.target) {
        Ok(Target::Pool(_, index)) => Some(*index),
        Ok(Target::ByModel { candidates, .. }) => candidates.first().map(|(_, index)| *index),
        Ok(Target::Own(_)) | Err(_) => None,
    };
    let snapshot = Arc::clone(&ctx.snapshot);
    let operation = index.map(|index| snapshot.catalogue.operation(index));
    let api = operation.map(|o| o.api.as_str()).or_else(|| meant(&snapshot, found, path));
    if let Some(api) = api.and_then(|name| snapshot.catalogue.apis.get(name)) {
        ctx.errors = api.errors;
    }
    if let Some(operation) = operation {
        ctx.calls(operation);
    }
}

/// The API that a request without a route was probably for, to refuse it in that dialect.
fn meant<'a>(snapshot: &'a Snapshot, found: &Result<Route, NotFound>, path: &str) -> Option<&'a str> {
    let named = match (found, path.strip_prefix("/pools/")) {
        (Err(NotFound::NoDefault(rivals)), _) => rivals.first().map(PoolName::as_str),
        (_, rest) => rest.and_then(|rest| rest.split('/').next()),
    };
    if let Some(name) = named {
        let pool = snapshot.pools.iter().find(|pool| pool.settings.name.as_str() == name)?;
        return Some(pool.settings.api.as_str());
    }
    match path {
        _ if path.starts_with("/v2/nvcf/") || path.starts_with("/v2/orgs/") => Some("nvcf"),
        _ if path.starts_with("/v1/nvct/") => Some("nvct"),
        _ if path.starts_with("/v1/cosmos/") => Some("nemo-curator"),
        _ => None,
    }
}

/// The longest time that a request may ask for.
const LONGEST: f64 = 86_400.0;

/// How long the caller lets the request take: `x-request-timeout`, in seconds, as clients that wait state it.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(stated) = headers.get("x-request-timeout") else { return Ok(None) };
    let seconds = stated.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    match seconds.filter(|seconds| *seconds > 0.0 && *seconds <= LONGEST) {
        Some(seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        None => Err(Failure::MalformedRequest("x-request-timeout is no number of seconds above 0 and up to 86400")),
    }
}

/// Adds what the body's schema finds wrong.
pub(super) fn check_body(checks: Option<&Checks>, document: &Document, found: &mut BadInput) {
    let schema = checks.and_then(|c| c.body.as_ref());
    if let Some(Err(wrong)) = schema.map(|schema| schema.validate(&document.value)) {
        found.violations.extend(wrong.list);
        found.truncated |= wrong.truncated;
    }
}

/// The document as the backend will see it: a schema may name the backend's model.
fn with_backend_name(document: &Document, name: &str) -> Document {
    let mut value = document.value.clone();
    if let Some(model) = value.get_mut("model") {
        *model = name.into();
    }
    Document { value, ..Document::default() }
}

fn refuse_violations(mut found: BadInput, most: usize) -> Result<(), Failure> {
    if found.violations.is_empty() {
        return Ok(());
    }
    found.truncated |= found.violations.len() > most;
    found.violations.truncate(most);
    Err(Failure::SchemaViolation(found))
}

/// `application/json`, with or without parameters, or nothing said; and not compressed.
fn require_json(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity") {
        return Err(Failure::UnsupportedMediaType);
    }
    let Some(stated) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = stated.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let json = kind.is_empty() || kind == b"application/json" || kind.ends_with(b"+json");
    if json { Ok(()) } else { Err(Failure::UnsupportedMediaType) }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// An answer of the gateway to a JSON question.
pub(super) fn json_reply(status: u16, value: &serde_json::Value) -> Reply {
    Reply {
        status,
        headers: vec![(header::CONTENT_TYPE, "application/json".into())],
        body: Bytes::from(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn json_may_be_stated_with_parameters_or_not_at_all() {
        let headers = |value: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(require_json(&headers(good)).is_ok(), "{good}");
        }
        assert!(require_json(&HeaderMap::new()).is_ok());
        for bad in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"] {
            assert!(require_json(&headers(bad)).is_err(), "{bad}");
        }
        let packed = HeaderMap::from_iter([(header::CONTENT_ENCODING, "gzip".parse().unwrap())]);
        assert!(require_json(&packed).is_err());
    }

    #[test]
    fn violations_are_bounded_over_all_places() {
        let one = Violation { pointer: String::new(), rule: "r".into(), expected: "e".into() };
        let Err(Failure::SchemaViolation(input)) =
            refuse_violations(BadInput { violations: vec![one; 5], truncated: false }, 3)
        else {
            panic!("refused")
        };
        assert_eq!((input.violations.len(), input.truncated), (3, true));
        assert!(refuse_violations(BadInput::default(), 3).is_ok());
    }

    #[test]
    fn preflight_is_not_a_method_of_ours() {
        assert!(own::preflight(&Method::OPTIONS, &HeaderMap::new(), &Default::default()).is_none());
    }
}
