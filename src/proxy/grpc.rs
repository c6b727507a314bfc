//! gRPC: calls pass as they are, over HTTP/2 both ways, each caller's on a connection of its own.
//!
//! A session of NVCF is a TCP connection, whose credential is looked at once. So a connection to a backend serves one
//! caller on one connection of a client, and ends with that. pingora's loop shares and multiplies connections as it
//! sees fit; calls therefore run beside it (docs/decisions/0017-grpc.md).

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use http::{HeaderMap, HeaderValue, Method, Version, header};
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, Session};

use super::admit::Verdict;
use super::context::{Admitted, RequestContext};
use super::exchange::Payload;
use super::snapshot::{PoolState, Snapshot};
use super::{body, judge, limits, load, respond};
use crate::failure::{Failure, grpc};
use crate::ids::{OperationIndex, PoolIndex, PoolName};
use crate::route::NotFound;
use crate::upstream::{Function, Kind};

mod binding;
mod relay;

pub use binding::Client;
pub use relay::run;

/// A call, as far as it is not like any other request.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The function of NVCF that its metadata names.
    function: Option<Stated>,
}

/// A function as a caller names it.
#[derive(Clone, Debug)]
struct Stated {
    id: HeaderValue,
    version: Option<HeaderValue>,
}

/// The longest deadline that is taken as it is stated.
const LONGEST: Duration = Duration::from_secs(86_400);
/// The pool prefix of paths.
const POOLS: &str = "/pools/";

impl Call {
    /// Whether a request is a call that can be answered as one.
    pub fn of(request: &RequestHeader) -> Option<Self> {
        (is_call(&request.headers) && request.version == Version::HTTP_2).then(Self::default)
    }
}

/// Whether a request means to be a call. gRPC-Web is another protocol.
pub fn is_call(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"application/grpc";
    let Some(stated) = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    let is_kind = stated.get(..KIND.len()).is_some_and(|start| start.eq_ignore_ascii_case(KIND));
    is_kind && matches!(stated.get(KIND.len()), None | Some(b'+' | b';' | b' '))
}

/// Walks a call through the stages before the upstream.
pub async fn admit(session: &mut Session, ctx: &mut RequestContext) -> Result<Verdict, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let request = session.req_header();
    if ctx.grpc.is_none() {
        return Err(Failure::WrongProtocol("gRPC is spoken over HTTP/2 here"));
    }
    let stated = deadline(&request.headers);
    let function = Stated::read(&request.headers);
    let found = find(&snapshot, request, function.as_ref().ok().and_then(Option::as_ref));
    if let Ok(found) = &found {
        let operation = snapshot.catalogue.operation(found.operation);
        ctx.calls(operation);
    }
    let callers = snapshot.callers.load_full();
    let caller = callers.authenticate(&request.headers, Utc::now())?;
    ctx.trail.caller = Some(Arc::clone(&caller));
    ctx.timeout = [ctx.timeout, stated?].into_iter().flatten().min();
    let function = function?;
    let Found { pool, operation: index, prefix } = found?;
    limits::begin(ctx, &callers.book, caller.id()).await?;
    let (operation, state) = (snapshot.catalogue.operation(index), snapshot.pool(pool));
    ctx.trail.pool = Some(state.settings.name.clone());
    caller.require_any_scope(&operation.scopes)?;
    caller.require_pool(&state.settings.name)?;
    // Streams have no length that could be known beforehand: only what the operator says bounds them.
    let limit = state.settings.body_limit.unwrap_or(usize::MAX);
    body::check_declared(session.as_ref(), limit)?;
    limits::reserve(ctx, operation, None, None).await?;
    ctx.grpc = Some(Call { function });
    let admitted = Admitted { pool, operation: index, prefix, length: None, limit, source: None, life: None };
    Ok(Verdict::Forward(admitted, Payload::Streamed))
}

/// Why a request that is no call has no route, where that is because it should be one.
pub fn wanted(snapshot: &Snapshot, path: &str) -> Option<Failure> {
    let named = path.strip_prefix(POOLS).and_then(|rest| rest.split('/').next());
    let mut meant = snapshot.pools.iter().filter(|pool| named.is_none_or(|name| pool.settings.name.as_str() == name));
    let is_grpc = meant.clone().next().is_some() && meant.all(|pool| pool.settings.grpc);
    is_grpc.then_some(Failure::WrongProtocol("this pool takes calls of gRPC over HTTP/2 only"))
}

/// Where a call goes.
struct Found {
    pool: PoolIndex,
    operation: OperationIndex,
    prefix: usize,
}

/// Finds the pool: by the path's prefix, by `x-nimgate-pool`, by the function, or the only one.
fn find(snapshot: &Snapshot, request: &RequestHeader, stated: Option<&Stated>) -> Result<Found, Failure> {
    if request.method != Method::POST {
        return Err(Failure::MethodNotAllowed(vec![Method::POST]));
    }
    let path = request.uri.path();
    let (named, prefix) = match path.strip_prefix(POOLS).and_then(|rest| rest.split('/').next()) {
        Some(name) => (Some(name), POOLS.len() + name.len()),
        None => (request.headers.get("x-nimgate-pool").and_then(|name| name.to_str().ok()), 0),
    };
    let pool = match named {
        Some(name) => by_name(snapshot, name, stated)?,
        None => by_function(snapshot, stated)?,
    };
    let api = snapshot.catalogue.apis.get(&snapshot.pool(pool).settings.api);
    let operation = api.and_then(|api| api.operations.first()).copied();
    operation.map(|operation| Found { pool, operation, prefix }).ok_or(Failure::PathNotFound)
}

fn by_name(snapshot: &Snapshot, name: &str, stated: Option<&Stated>) -> Result<PoolIndex, Failure> {
    let at = snapshot.pools.iter().position(|pool| pool.settings.name.as_str() == name);
    let at = at.ok_or_else(|| Failure::PoolNotFound(name.chars().take(100).collect()))?;
    let state = &snapshot.pools[at];
    if !state.settings.grpc {
        return Err(Failure::WrongProtocol("this pool does not speak gRPC"));
    }
    match (&state.settings.kind, stated) {
        (Kind::Nvcf(Some(function)), Some(stated)) if !stated.is(function) => Err(stated.unknown()),
        (Kind::Nvcf(None), None) => Err(NAMELESS),
        _ => Ok(PoolIndex(at)),
    }
}

const NAMELESS: Failure = Failure::MalformedRequest("the metadata function-id must name the function");

fn by_function(snapshot: &Snapshot, stated: Option<&Stated>) -> Result<PoolIndex, Failure> {
    let all = || snapshot.pools.iter().enumerate().filter(|(_, pool)| pool.settings.grpc);
    let has = |wanted: &dyn Fn(&Kind) -> bool| {
        let mut fitting = all().filter(|(_, pool)| wanted(&pool.settings.kind));
        let first = fitting.next();
        fitting.fold(first, |chosen, other| if other.1.settings.default { Some(other) } else { chosen })
    };
    if let Some(stated) = stated
        && all().any(|(_, pool)| matches!(pool.settings.kind, Kind::Nvcf(_)))
    {
        let is_pinned = |function: &Function| stated.version.is_some() == function.version.is_some();
        let exact = has(&|kind| matches!(kind, Kind::Nvcf(Some(f)) if stated.is(f) && is_pinned(f)));
        let fitting = exact.or_else(|| has(&|kind| matches!(kind, Kind::Nvcf(Some(f)) if stated.is(f))));
        let any = fitting.or_else(|| has(&|kind| matches!(kind, Kind::Nvcf(None))));
        return any.map(|(at, _)| PoolIndex(at)).ok_or_else(|| stated.unknown());
    }
    let defaults: Vec<(usize, &PoolState)> = all().filter(|(_, pool)| pool.settings.default).collect();
    let candidates = if defaults.is_empty() { all().collect() } else { defaults };
    match candidates[..] {
        [(_, pool)] if pool.settings.kind == Kind::Nvcf(None) => Err(NAMELESS),
        [(at, _)] => Ok(PoolIndex(at)),
        _ => {
            let rivals: Vec<PoolName> = candidates.iter().map(|(_, pool)| pool.settings.name.clone()).collect();
            Err(NotFound::NoDefault(rivals).into())
        }
    }
}

impl Stated {
    fn read(headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let id = |name: &str, wrong| match headers.get(name) {
            Some(value) if !is_uuid(value.as_bytes()) => Err(Failure::MalformedRequest(wrong)),
            value => Ok(value.cloned()),
        };
        let version = id("function-version-id", "the metadata function-version-id is no UUID")?;
        let id = id("function-id", "the metadata function-id is no UUID")?;
        Ok(id.map(|id| Self { id, version }))
    }

    /// Whether it means the function of a pool. One that pins no version has all of them.
    fn is(&self, function: &Function) -> bool {
        let same = |stated: &HeaderValue, own: &str| stated.as_bytes().eq_ignore_ascii_case(own.as_bytes());
        let versions = self.version.as_ref().zip(function.version.as_ref());
        same(&self.id, &function.id) && versions.is_none_or(|(stated, own)| same(stated, own))
    }

    fn unknown(&self) -> Failure {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let version = self.version.as_ref().map(|version| format!(" in version {}", text(version)));
        Failure::FunctionUnknown(text(&self.id) + &version.unwrap_or_default())
    }
}

fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The time that a caller allows a call: `grpc-timeout`, at most eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(stated) = headers.get("grpc-timeout") else { return Ok(None) };
    const WRONG: Failure = Failure::MalformedRequest("grpc-timeout is no number of at most eight digits and a unit");
    let text = stated.to_str().map_err(|_| WRONG)?;
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(WRONG)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WRONG);
    }
    let number: u64 = number.parse().map_err(|_| WRONG)?;
    let time = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(WRONG),
    };
    Ok(Some(time.min(LONGEST)))
}

/// What is left of a deadline, as `grpc-timeout` has it.
fn left(time: Duration) -> String {
    match time.as_millis() {
        0..10_000 => format!("{}u", time.as_micros()),
        ms => format!("{ms}m"),
    }
}

/// Answers a call that failed: by a header that is all of the answer, or by trailers where it has begun.
pub async fn fail(session: &mut ServerSession, failure: &Failure, ctx: &mut RequestContext) -> FailToProxy {
    limits::settle(ctx);
    load::release(ctx);
    ctx.course.end();
    let is_gone = matches!(failure, Failure::ClientClosed | Failure::ClientStalled);
    ctx.trail.grpc = Some(grpc::code(failure));
    if is_gone || tell(session, failure, ctx).await.is_err() {
        session.shutdown().await;
    }
    FailToProxy { error_code: failure.status(), can_reuse_downstream: false }
}

async fn tell(session: &mut ServerSession, failure: &Failure, ctx: &RequestContext) -> Result<()> {
    let mut header = ResponseHeader::build(200, Some(12))?;
    header.insert_header("grpc-status", grpc::code(failure))?;
    header.insert_header("grpc-message", grpc::message(failure, ctx.words.as_deref()))?;
    judge::label(&mut header, failure);
    if let Some(ms) = grpc::pushback(failure) {
        header.insert_header("grpc-retry-pushback-ms", ms.to_string())?;
    }
    let task = if session.response_written().is_some() {
        HttpTask::Trailer(Some(Box::new(header.headers.clone())))
    } else {
        header.insert_header(header::CONTENT_TYPE, "application/grpc")?;
        respond::decorate(&mut header, ctx)?;
        HttpTask::Header(Box::new(header), true)
    };
    session.response_duplex_vec(vec![task]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn calls_are_told_by_their_content_type() {
        for kind in ["application/grpc", "Application/GRPC+proto", "application/grpc;charset=utf-8"] {
            assert!(is_call(&headers("content-type", kind)), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "application/json", ""]
        {
            assert!(!is_call(&headers("content-type", kind)), "{kind}");
        }
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let of = |value: &str| deadline(&headers("grpc-timeout", value)).ok().flatten();
        for (text, ms) in
            [("1S", 1000), ("250m", 250), ("2000u", 2), ("0n", 0), ("2M", 120_000), ("99999999H", 86_400_000)]
        {
            assert_eq!(of(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789m", "1.5S", "1 S"] {
            assert!(deadline(&headers("grpc-timeout", text)).is_err(), "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()).ok(), Some(None));
    }

    #[test]
    fn what_is_left_of_a_deadline_has_at_most_eight_digits() {
        for (time, text) in [(Duration::ZERO, "0u"), (Duration::from_micros(1500), "1500u"), (LONGEST, "86400000m")] {
            assert_eq!(left(time), text);
        }
    }

    #[test]
    fn functions_are_uuids_and_versions_count_where_both_sides_name_one() {
        let id = "11111111-2222-4333-8444-55555555555a";
        let stated = |version: Option<&str>| Stated {
            id: id.to_uppercase().parse().unwrap(),
            version: version.map(|text| text.parse().unwrap()),
        };
        let own = |version: Option<&str>| Function {
            id: id.into(),
            version: version.map(Into::into),
            invocation: crate::upstream::Invocation::Direct,
            wait: crate::upstream::Wait::default(),
        };
        assert!(
            stated(None).is(&own(Some("a")))
                && stated(Some("a")).is(&own(None))
                && stated(Some("A")).is(&own(Some("a")))
        );
        assert!(!stated(Some("b")).is(&own(Some("a"))));
        assert!(is_uuid(id.as_bytes()) && !is_uuid(&id.as_bytes()[1..]) && !is_uuid(id.replace('-', "0").as_bytes()));
    }
}
