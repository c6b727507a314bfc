//! Embed: answers a request of a pool that keeps vectors. What is known needs no place and no endpoint; what is not goes
//! the way of every other request: a place, an endpoint, and another one when that fails.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::time::Instant;

use super::admit::Source;
use super::body::{self, Edit};
use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::fetch::{Answer, Stream};
use super::respond::into_error;
use super::settings::CacheScope;
use super::snapshot::Snapshot;
use super::{Gateway, course, hedge, shadow};
use crate::balance::Verdict;
use crate::cache::{
    Asked, Awaited, Backend, Cache, Circumstances, Made, Manner, Outcome, Purges, Question, Scope, Tally, Unfit, serve,
};
use crate::failure::Failure;
use crate::ids::PoolIndex;
use crate::meter::Form;
use crate::record::Cached;
use crate::trace::Kind;

/// The largest answer that is kept; a larger one is passed on as it comes.
const MOST: usize = 64 * 1024 * 1024;

/// A request that the cache may answer.
pub struct Plan {
    question: Question,
    manner: Manner,
    /// What the pool served when the request came.
    revision: Arc<String>,
    cache: Arc<Cache>,
}

/// What `cache-control` of a request says.
#[derive(Clone, Copy, Default)]
struct Control {
    no_store: bool,
    no_cache: bool,
    only_if_cached: bool,
}

/// Takes a request apart, if its pool keeps vectors and it is fit for that. Notes why not.
pub fn plan(
    session: &Session,
    ctx: &mut RequestContext,
    admitted: &Admitted,
    payload: &Payload,
    purges: &Purges,
) -> Option<Plan> {
    ctx.snapshot.pool(admitted.pool).vectors.as_ref()?;
    let snapshot = Arc::clone(&ctx.snapshot);
    let state = snapshot.pool(admitted.pool);
    let vectors = state.vectors.as_ref()?;
    let rules = vectors.rules.get(&admitted.operation)?;
    let settings = state.settings.cache.as_ref()?;
    let Payload::Buffered(pieces) = payload else { return None };
    let control = control(session.req_header());
    let fit = || {
        if control.no_store {
            return Err("no_store");
        }
        let revision = vectors.revision.agreed().ok_or("revision")?;
        let caller = ctx.trail.caller.as_ref().ok_or("caller")?;
        let (scope, org) = match settings.scope {
            CacheScope::Global => (Scope::Global, None),
            CacheScope::Org => (Scope::Org(caller.org()), Some(caller.org())),
            CacheScope::Key => (Scope::Key(caller.id().as_str()), Some(caller.org())),
        };
        let model = ctx.trail.model.as_ref().map_or("", |model| model.as_str());
        let operation = snapshot.catalogue.operation(admitted.operation);
        let circumstances = Circumstances {
            api: operation.api.as_str(),
            operation: &operation.id,
            revision: &revision,
            scope,
            purges: purges.times(state.settings.name.as_str(), model, org),
        };
        let body = match &pieces[..] {
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        };
        let question = Question::read(&body, rules, &circumstances, settings.keeps_media);
        let question = question.map_err(|unfit| match unfit {
            Unfit::Items => "items",
            Unfit::Member => "member",
            Unfit::Large => "large",
            Unfit::Encoding => "encoding",
        })?;
        if question.items.iter().all(|item| item.key.is_none()) {
            return Err("items");
        }
        let manner = Manner { reads: !control.no_cache, only_known: control.only_if_cached };
        Ok(Plan { question, manner, revision, cache: Arc::clone(&vectors.cache) })
    };
    match fit() {
        Ok(plan) => Some(plan),
        Err(reason) => {
            let bypass = Cached { result: "bypass", hits: 0, misses: 0, reason: Some(reason), is_exact: None };
            ctx.trail.cache = Some(bypass);
            None
        }
    }
}

/// Answers the request.
pub async fn run(
    session: &mut Session,
    ctx: &mut RequestContext,
    admitted: Admitted,
    plan: Plan,
    gateway: &Gateway,
) -> Result<()> {
    let Plan { question, manner, revision, cache } = plan;
    let home = admitted.pool;
    let snapshot = Arc::clone(&ctx.snapshot);
    let remote = gateway.purges.remote();
    let id = ctx.request_id.as_str().to_owned();
    let mut admitted = admitted;
    let source = admitted.source.take();
    let whole = (ctx.work, question.body.len().max(1));
    let admitted = Some(admitted);
    let mut caller = Call { session, ctx, snapshot, home, admitted, source, revision, whole, verdict: None, gateway };
    caller.ctx.trail.trace.iter_mut().for_each(|trace| trace.enter(Kind::Cache));
    let outcome = serve(&cache, remote, question, manner, &id, &mut caller).await;
    let Call { session, ctx, admitted, .. } = caller;
    ctx.trail.trace.iter_mut().for_each(|trace| trace.leave(Kind::Cache));
    let answer = match outcome.map_err(into_error)? {
        Outcome::Unknown(tally) => {
            ctx.trail.cache = Some(cached(tally, None));
            return Err(into_error(Failure::NotCached));
        }
        Outcome::Passed(answer, tally) => {
            ctx.trail.cache = Some(cached(tally, Some(true)));
            answer
        }
        Outcome::Made(Made { body, tally, is_exact, free }) => {
            ctx.trail.cache = Some(cached(tally, Some(is_exact)));
            (ctx.known, ctx.is_known) = (free, tally.misses == 0);
            // Unless a backend was asked, in which case it has it.
            ctx.admitted = ctx.admitted.take().or(admitted);
            let mut header = ResponseHeader::build(200, Some(8))?;
            header.insert_header(header::CONTENT_TYPE, "application/json")?;
            header.insert_header(header::CONTENT_LENGTH, body.len())?;
            Answer { header, body: Stream::of(body) }
        }
    };
    let was_asked = ctx.trail.attempts > 0;
    hedge::pour(session, ctx, answer).await?;
    if !was_asked {
        // No backend answered.
        ctx.trail.first_byte = None;
    }
    Ok(())
}

fn cached(tally: Tally, is_exact: Option<bool>) -> Cached {
    let Tally { hits, misses, away } = tally;
    let reason = away.filter(|_| misses > 0).map(|away| away.word());
    let result = match (hits, misses) {
        _ if reason.is_some() => "bypass",
        (_, 0) => "hit",
        (0, _) => "miss",
        _ => "partial",
    };
    Cached { result, hits, misses, reason, is_exact }
}

fn control(request: &RequestHeader) -> Control {
    let mut control = Control::default();
    for stated in request.headers.get_all(header::CACHE_CONTROL) {
        for directive in stated.as_bytes().split(|b| *b == b',') {
            match directive.trim_ascii().to_ascii_lowercase().as_slice() {
                b"no-store" => control.no_store = true,
                b"no-cache" => control.no_cache = true,
                b"only-if-cached" => control.only_if_cached = true,
                _ => {}
            }
        }
    }
    control
}

/// Asks the pool's endpoints on behalf of one request.
struct Call<'a> {
    session: &'a mut Session,
    ctx: &'a mut RequestContext,
    snapshot: Arc<Snapshot>,
    /// The pool that it was admitted to.
    home: PoolIndex,
    /// What it was admitted to, until it is asked.
    admitted: Option<Admitted>,
    /// What the whole body was made of.
    source: Option<Source>,
    revision: Arc<String>,
    /// Units of work of the whole, and its length.
    whole: (f64, usize),
    /// What the last answer says of its endpoint, if that is nothing good.
    verdict: Option<Verdict>,
    gateway: &'a Gateway,
}

impl Call<'_> {
    /// What a body is made of, for pools that want another: the same with the name that the caller used.
    async fn source_of(&self, body: &Bytes, is_whole: bool) -> Result<Option<Source>, Failure> {
        let Some(whole) = &self.source else { return Ok(None) };
        let (bytes, model) = match (is_whole, &whole.model) {
            (true, model) => (whole.bytes.clone(), model),
            (false, None) => (body.clone(), &None),
            (false, Some(model)) => {
                let document = body::parse(body).await?;
                let edits = Edit::model(&document, model).into_iter().collect();
                (hedge::whole(body::edited(body.clone(), edits)), &whole.model)
            }
        };
        let document = match (is_whole, &whole.document) {
            (true, Some(document)) => Some(Arc::clone(document)),
            _ => Some(Arc::new(body::parse(&bytes).await?)),
        };
        Ok(Some(Source { bytes, document, model: model.clone(), ask_usage: None }))
    }

    /// Whether an answer may be kept: all of it, from an endpoint that still serves what the pool did.
    fn is_good(&self, answer: &Answer) -> bool {
        let is_home = self.ctx.admitted.as_ref().is_some_and(|admitted| admitted.pool == self.home);
        let is_json = Form::of(&answer.header.headers) == Form::Json;
        answer.header.status == 200 && is_home && is_json && self.is_current()
    }

    fn is_current(&self) -> bool {
        let revision = self.snapshot.pool(self.home).vectors.as_ref().map(|vectors| &vectors.revision);
        let endpoint = self.ctx.lease.as_ref().map(|lease| lease.endpoint().name());
        revision.zip(endpoint).is_some_and(|(revision, endpoint)| revision.is_of(endpoint, &self.revision))
    }
}

impl Backend for Call<'_> {
    type Passed = Answer;
    type Error = Failure;

    async fn ask(&mut self, body: Bytes, is_whole: bool, awaited: Awaited) -> Result<Asked<Answer>, Failure> {
        let source = self.source_of(&body, is_whole).await?;
        let is_first = self.admitted.is_some();
        let admitted = self.admitted.take().or_else(|| self.ctx.admitted.take());
        let Some(mut admitted) = admitted else { return Err(Failure::Internal("not admitted".into())) };
        if !is_first {
            // What was asked before has ended.
            if let Some(mut lease) = self.ctx.lease.take() {
                match self.verdict.take() {
                    Some(verdict) => lease.judge(verdict),
                    None => lease.finished(None),
                }
            }
            self.ctx.course = course::Course::default();
        }
        self.ctx.work = (self.whole.0 * body.len() as f64 / self.whole.1 as f64).max(1.0);
        (admitted.pool, admitted.length, admitted.source) = (self.home, Some(body.len()), source);
        self.ctx.trail.pool = Some(self.snapshot.pool(self.home).settings.name.clone());
        let payload = Payload::Buffered(vec![body]);
        let payload = course::begin(self.session.as_mut(), self.ctx, &mut admitted, payload).await?;
        if is_first {
            shadow::copy(self.session, self.ctx, &admitted, &payload, &self.gateway.recorder);
        }
        self.ctx.admitted = Some(admitted);
        self.ctx.awaited = awaited;
        let answered = hedge::first_answer(self.session, self.ctx, payload).await;
        self.ctx.awaited = Awaited::default();
        let mut answer = answered?;
        if !self.is_good(&answer) {
            if answer.header.status.as_u16() >= 400 {
                self.verdict = Some(hedge::bad(&answer, self.snapshot.pool(self.home)));
            }
            return Ok(Asked::Other(answer));
        }
        match answer.body.collect(MOST).await? {
            // It may have been replaced while it answered.
            Some(body) if self.is_current() => Ok(Asked::Good(body, answer)),
            _ => Ok(Asked::Other(answer)),
        }
    }

    async fn wait<T: Send>(&mut self, other: impl Future<Output = T> + Send) -> Result<T, Failure> {
        let total = self.snapshot.pool(self.home).settings.timeouts.total;
        let end: Instant = course::end(self.ctx, total);
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return Ok(done),
                () = tokio::time::sleep_until(end) => return Err(Failure::TotalTimeout),
                left = self.session.as_mut().read_body_or_idle(true) => {
                    if left.is_err() {
                        return Err(Failure::ClientClosed);
                    }
                }
            }
        }
    }
}
