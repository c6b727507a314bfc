//! Failure: the closed list of what can go wrong with a request, and whose it is.
//!
//! The same label stands in the answer (`x-nimgate-error`), the record and the metrics. What the client reads and what
//! the log says are two texts.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::ids::PoolName;
use crate::quota::limit::{Metric, Unit};
use crate::schema::Violation;
use crate::upstream::{self, Again, Answer, Event, Fault, Health, Ran};
use crate::{auth, balance, quota, route, schema};

mod dialect;
pub mod grpc;
mod words;

pub use crate::upstream::Blame;
pub use dialect::{Body, render, render_with, reword};
pub use words::{Meaning, meanings};

/// One way in which a request fails.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The request breaks HTTP: what is wrong.
    MalformedRequest(&'static str),
    /// The header block is above its bound.
    HeadersTooLarge,
    /// The body is above the operation's bound of so many bytes.
    BodyTooLarge(usize),
    /// The client ended its body early.
    BodyIncomplete,
    /// The client did not send its body in time.
    BodyTimeout,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// The pool speaks another protocol, or not in this way: what to do.
    WrongProtocol(&'static str),
    /// The body is not JSON.
    MalformedJson(schema::Malformed),
    /// The request breaks the schema of its operation.
    SchemaViolation(BadInput),
    /// No operation has this path.
    PathNotFound,
    /// The path has no such method; these it has.
    MethodNotAllowed(Vec<Method>),
    /// The path names a pool that does not exist.
    PoolNotFound(String),
    /// No pool has the function of NVCF that the call names.
    FunctionUnknown(String),
    /// Several pools, or none, could serve it and the path does not say which.
    NoDefaultPool(Vec<PoolName>),
    /// No pool serves the model for this operation.
    ModelNotFound(String, route::ModelProblem),
    /// There is no such request, or it is another caller's.
    RequestNotFound,
    /// Redis is away, and may know whose the request is.
    RequestsUnknown,
    /// No credential.
    KeyMissing,
    /// The keys were not read yet from where they are kept.
    KeysUnknown,
    /// Not one of our keys.
    KeyInvalid,
    /// The key has ended.
    KeyExpired,
    /// The key is switched off.
    KeyDisabled,
    /// The key is good, but not for this.
    NotAllowed(auth::NotAllowed),
    /// A limit is reached.
    Exceeded(quota::Exceeded),
    /// Redis is away, and the limits are to be held strictly.
    LimitsUnknown,
    /// The client left.
    ClientClosed,
    /// The client does not take its answer.
    ClientStalled,
    /// No endpoint of the pool is healthy.
    NoHealthyEndpoint(Blame),
    /// No connection to the backend.
    ConnectFailed,
    /// The pool is full, and as many requests wait for it as may; when to try again.
    QueueFull(Duration),
    /// The pool is full, and as many requests of this caller wait for it as may; when to try again.
    CallerQueueFull(Duration),
    /// The request waited for a place as long as the pool allows, or would have; when to try again.
    QueueTimeout(Duration),
    /// No place would come free before the request's own deadline; when to try again.
    DeadlineUnmet(Duration),
    /// Not all of it is known, and the client wants nothing else.
    NotCached,
    /// The model has reached its end of life: its name, and the day.
    ModelEnded(String, String),
    /// The model is offline, for this reason.
    ModelOffline(Arc<str>),
    /// No TLS with the backend.
    TlsFailed,
    /// The backend closed the connection before or within its answer.
    UpstreamClosed,
    /// The backend does not speak HTTP as it should.
    UpstreamProtocol,
    /// No answer within the pool's first-byte time.
    FirstByteTimeout,
    /// Silence within an answer for longer than the pool allows.
    UpstreamStalled,
    /// The request took longer than the pool allows in all.
    TotalTimeout,
    /// The platform never gave the request to a worker in the time that it had.
    NotStarted,
    /// A worker began, and was not done in the time that there was; percent done, where the container said.
    NotFinished(Option<u8>),
    /// The inference ran, and its answer can not be had, for this reason.
    ResultLost(&'static str),
    /// A defect of the gateway; the detail is for the log.
    Internal(String),
    /// What came from behind the gateway is a failure; so says this row of the table.
    Upstream(&'static upstream::Row),
}

/// Every failing place of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadInput {
    /// The failing places; pointers of query parameters begin with `?`, of path parameters with `{`, of headers with
    /// `header:`.
    pub violations: Vec<Violation>,
    /// Whether there were more.
    pub truncated: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

impl std::error::Error for Failure {}

/// Label, status and blame of a failure in one row.
struct Row(&'static str, u16, Blame);

impl Failure {
    fn row(&self) -> Row {
        use Blame::{Client, Gateway, InferenceService, Platform, Quota};
        match self {
            Self::MalformedRequest(_) => Row("malformed_request", 400, Client),
            Self::HeadersTooLarge => Row("headers_too_large", 431, Client),
            Self::BodyTooLarge(_) => Row("body_too_large", 413, Client),
            Self::BodyIncomplete => Row("body_incomplete", 400, Client),
            Self::BodyTimeout => Row("body_timeout", 408, Client),
            Self::UnsupportedMediaType => Row("unsupported_media_type", 415, Client),
            Self::WrongProtocol(_) => Row("wrong_protocol", 415, Client),
            Self::MalformedJson(_) => Row("malformed_json", 400, Client),
            Self::SchemaViolation(_) => Row("schema_violation", 400, Client),
            Self::PathNotFound => Row("path_not_found", 404, Client),
            Self::MethodNotAllowed(_) => Row("method_not_allowed", 405, Client),
            Self::PoolNotFound(_) => Row("pool_not_found", 404, Client),
            Self::FunctionUnknown(_) => Row("function_unknown", 404, Client),
            Self::NoDefaultPool(_) => Row("no_default_pool", 404, Client),
            Self::ModelNotFound(..) => Row("model_not_found", 404, Client),
            Self::RequestNotFound => Row("request_not_found", 404, Client),
            Self::RequestsUnknown => Row("requests_unknown", 503, Gateway),
            Self::KeyMissing => Row("key_missing", 401, Client),
            Self::KeysUnknown => Row("keys_unknown", 503, Gateway),
            Self::KeyInvalid => Row("key_invalid", 401, Client),
            Self::KeyExpired => Row("key_expired", 401, Client),
            Self::KeyDisabled => Row("key_disabled", 401, Client),
            Self::NotAllowed(_) => Row("not_allowed", 403, Client),
            Self::Exceeded(exceeded) => Row(exceeded_label(exceeded), 429, Quota),
            Self::LimitsUnknown => Row("limits_unknown", 503, Gateway),
            Self::ClientClosed => Row("client_closed", 499, Client),
            Self::ClientStalled => Row("client_stalled", 499, Client),
            Self::NoHealthyEndpoint(blame) => Row("no_healthy_endpoint", 503, *blame),
            Self::QueueFull(_) => Row("queue_full", 503, Gateway),
            Self::CallerQueueFull(_) => Row("caller_queue_full", 429, Quota),
            Self::QueueTimeout(_) => Row("queue_timeout", 503, Gateway),
            Self::DeadlineUnmet(_) => Row("deadline_unmet", 503, Gateway),
            Self::NotCached => Row("not_cached", 504, Client),
            Self::ModelEnded(..) => Row("model_ended", 410, Client),
            Self::ModelOffline(_) => Row("model_offline", 503, Gateway),
            Self::NotStarted => Row("not_started", 504, Platform),
            Self::NotFinished(_) => Row("not_finished", 504, InferenceService),
            Self::ResultLost(_) => Row("result_lost", 502, Platform),
            Self::Internal(_) => Row("internal_error", 500, Gateway),
            Self::ConnectFailed
            | Self::TlsFailed
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::FirstByteTimeout
            | Self::UpstreamStalled
            | Self::TotalTimeout
            | Self::Upstream(_) => self.seen().map_or(Row("internal_error", 500, Gateway), told),
        }
    }

    /// The row of what came from behind the gateway, if it came from there.
    pub fn seen(&self) -> Option<&'static upstream::Row> {
        let event = match self {
            Self::Upstream(row) => return Some(row),
            Self::ConnectFailed => Event::ConnectFailed,
            Self::TlsFailed => Event::TlsFailed,
            Self::UpstreamClosed => Event::ClosedBeforeHeader,
            Self::UpstreamProtocol => Event::Protocol,
            Self::FirstByteTimeout => Event::FirstByteTimeout,
            Self::UpstreamStalled => Event::Stalled,
            Self::TotalTimeout => Event::TotalTimeout,
            _ => return None,
        };
        Some(upstream::event(event))
    }

    /// Something happened that is no answer.
    pub fn event(event: Event) -> Self {
        Self::Upstream(upstream::event(event))
    }

    /// How much ran before it, where trying again is of use.
    pub fn repeatable(&self) -> Option<Ran> {
        self.seen().filter(|row| row.again == Again::Elsewhere).map(|row| row.ran)
    }

    /// Whether no connection came about.
    pub fn is_unreached(&self) -> bool {
        use Fault::{ConnectFailed, ConnectRefused, ConnectTimeout, TlsFailed};
        let fault = self.seen().map(|row| row.fault);
        matches!(fault, Some(ConnectFailed | ConnectRefused | ConnectTimeout | TlsFailed))
    }

    /// What it says of the endpoint. Whatever a client did says nothing.
    pub fn health(&self) -> Health {
        self.seen().map_or(Health::Fine, |row| row.fault.words().health)
    }

    /// The word that names it everywhere.
    pub fn label(&self) -> &'static str {
        self.row().0
    }

    /// The status to answer with when the gateway answers; an API may word violations with 422.
    pub fn status(&self) -> u16 {
        self.row().1
    }

    /// Whose it is.
    pub fn blame(&self) -> Blame {
        self.row().2
    }

    /// No endpoint of a pool could be picked; `by_platform` says that the pool is not a container
    /// itself.
    pub fn no_endpoint(none: balance::NoEndpoint, by_platform: bool) -> Self {
        match none {
            balance::NoEndpoint::AllUnhealthy if by_platform => Self::NoHealthyEndpoint(Blame::Platform),
            balance::NoEndpoint::AllUnhealthy => Self::NoHealthyEndpoint(Blame::InferenceService),
            balance::NoEndpoint::AllTried => Self::ConnectFailed,
            balance::NoEndpoint::AllFull => Self::QueueFull(Duration::from_secs(1)),
        }
    }

    /// What the client reads. Never holds a value that the client or the backend sent, save names of models and pools.
    pub fn message(&self) -> String {
        match self {
            Self::MalformedRequest(what) => format!("The request is malformed: {what}."),
            Self::HeadersTooLarge => "The request's headers are too large or too many.".into(),
            Self::BodyTooLarge(limit) => format!("The request body is above this operation's limit of {limit} bytes."),
            Self::BodyIncomplete => "The request body ended before its declared length.".into(),
            Self::BodyTimeout => "The request body did not arrive in time.".into(),
            Self::UnsupportedMediaType => "This operation takes a body of Content-Type application/json.".into(),
            Self::WrongProtocol(what) => format!("This can not be served: {what}."),
            Self::MalformedJson(malformed) => format!("The request body is not valid JSON: {}.", malformed.reason),
            Self::SchemaViolation(input) => input.message(),
            Self::PathNotFound => "No API behind this gateway has this path; /openapi.json lists them.".into(),
            Self::MethodNotAllowed(allowed) => format!("This path takes {} only.", join(allowed)),
            Self::PoolNotFound(name) => format!("There is no pool `{name}`."),
            Self::FunctionUnknown(id) => format!("No pool has the function `{id}`."),
            Self::NoDefaultPool(rivals) if rivals.is_empty() => "No pool serves this operation.".into(),
            Self::NoDefaultPool(rivals) => {
                format!("Several pools serve this operation ({}); put /pools/NAME before the path.", join(rivals))
            }
            Self::ModelNotFound(model, problem) => problem.message(model),
            Self::RequestNotFound => "There is no such request of this API key; it may have ended.".into(),
            Self::RequestsUnknown => {
                "The gateway can not reach the store of its requests at the moment, and may not guess whose it is."
                    .into()
            }
            Self::KeyMissing => "No API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`.".into(),
            Self::KeyInvalid => "The API key is not valid.".into(),
            Self::KeyExpired => "The API key has expired.".into(),
            Self::KeyDisabled => "The API key is disabled.".into(),
            Self::NotAllowed(auth::NotAllowed::Scope(scope)) => format!("This API key lacks the scope `{scope}`."),
            Self::NotAllowed(auth::NotAllowed::Model(model)) => {
                format!("This API key may not use the model `{model}`.")
            }
            Self::NotAllowed(auth::NotAllowed::Pool(pool)) => format!("This API key may not use the pool `{pool}`."),
            Self::Exceeded(exceeded) => exceeded_message(exceeded),
            Self::KeysUnknown => "The gateway has not read its keys yet, and can not tell whether this is one.".into(),
            Self::LimitsUnknown => {
                "The gateway can not reach the store of its limits at the moment, and may not guess.".into()
            }
            Self::ClientClosed => "The client closed the request.".into(),
            Self::ClientStalled => "The client stopped reading the answer.".into(),
            Self::NoHealthyEndpoint(_) => "No endpoint of the pool is healthy at the moment.".into(),
            Self::QueueFull(_) => "The pool is full, and as many requests wait for it as may.".into(),
            Self::CallerQueueFull(_) => {
                "The pool is full, and as many requests of this API key wait for it as may.".into()
            }
            Self::QueueTimeout(_) => "The pool is full, and no place comes free in the time that it lets wait.".into(),
            Self::DeadlineUnmet(_) => "The pool is full, and no place comes free before x-request-timeout ends.".into(),
            Self::NotCached => "Not all of it is known here, and the request is for what is known only.".into(),
            Self::ModelEnded(model, day) => format!("The model `{model}` reached its end of life on {day}."),
            Self::ModelOffline(reason) => reason.to_string(),
            Self::NotStarted => {
                "The request was queued at the platform and never started: no instance was free in time.".into()
            }
            Self::NotFinished(None) => "The request was started and not finished in time.".into(),
            Self::NotFinished(Some(percent)) => {
                format!("The request was started and not finished in time: {percent} % were done.")
            }
            Self::ResultLost(reason) => format!("The request ran, and its answer can not be had: {reason}."),
            Self::Internal(_) => "The gateway failed; the request id helps to find out why.".into(),
            Self::ConnectFailed
            | Self::TlsFailed
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::FirstByteTimeout
            | Self::UpstreamStalled
            | Self::TotalTimeout
            | Self::Upstream(_) => self.seen().map_or("", |row| row.fault.words().message).into(),
        }
    }

    /// Only this request was refused: the connection may serve the client's next one.
    pub fn is_refusal(&self) -> bool {
        let is_ours = matches!(self.blame(), Blame::Client | Blame::Quota)
            || matches!(self, Self::LimitsUnknown | Self::KeysUnknown | Self::RequestsUnknown | Self::ModelOffline(_))
            || matches!(self, Self::QueueFull(_) | Self::QueueTimeout(_) | Self::DeadlineUnmet(_));
        self.is_framed() && is_ours && self.status() != 499
    }

    /// Where the request's body ends is known, and the client is still sending it.
    pub fn is_framed(&self) -> bool {
        !matches!(self, Self::MalformedRequest(_) | Self::HeadersTooLarge | Self::BodyIncomplete | Self::BodyTimeout)
    }
}

fn told(row: &upstream::Row) -> Row {
    let status = if let Answer::Own(status) = row.answer { status } else { 502 };
    Row(row.fault.label(), status, row.blame)
}

/// Rates recover by waiting a moment, quotas do not; money and requests at a time are neither.
fn exceeded_label(exceeded: &quota::Exceeded) -> &'static str {
    match (exceeded.metric, exceeded.unit) {
        (Metric::Spend, _) => "budget_exceeded",
        (Metric::Concurrency, _) => "concurrency_exceeded",
        (_, Some(Unit::Day | Unit::Month)) => "quota_exceeded",
        _ => "rate_limit_exceeded",
    }
}

fn exceeded_message(exceeded: &quota::Exceeded) -> String {
    let quota::Exceeded { level, name, metric, amount, unit, asked, retry_after } = exceeded;
    let whose = match level {
        quota::limit::Level::Org => "organisation",
        quota::limit::Level::Team => "team",
        quota::limit::Level::Key => "API key",
    };
    let shown = |n: &u64| if *metric == Metric::Spend { quota::price::units(*n) } else { n.to_string() };
    let what = match metric {
        Metric::Requests => "requests",
        Metric::InputTokens => "input tokens",
        Metric::OutputTokens => "output tokens",
        Metric::TotalTokens => "tokens",
        Metric::Concurrency => "requests at a time",
        Metric::Spend => "units of spend",
    };
    let per = unit.map_or(String::new(), |unit| format!(" per {}", unit.word()));
    let limit = format!("the {whose}'s limit of {} {what}{per} ({name})", shown(amount));
    match retry_after {
        None => format!("This request alone may need {} {what}: more than {limit} ever allows.", shown(asked)),
        Some(_) if *metric == Metric::Concurrency => format!("This request is above {limit}; wait for one to end."),
        Some(wait) => {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            format!("This request is above {limit}; it begins anew in {seconds} s.")
        }
    }
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl BadInput {
    fn message(&self) -> String {
        let shown = self.violations.iter().map(|v| {
            let place = if v.pointer.is_empty() { "the body" } else { &v.pointer };
            format!("{place}: {} (rule {})", v.expected, v.rule)
        });
        let more = if self.truncated { "; and more" } else { "" };
        format!("The request does not hold to the API's schema: {}{more}.", shown.collect::<Vec<_>>().join("; "))
    }
}

impl From<auth::Denied> for Failure {
    fn from(denied: auth::Denied) -> Self {
        match denied {
            auth::Denied::Missing => Self::KeyMissing,
            auth::Denied::Unknown => Self::KeyInvalid,
            auth::Denied::Expired => Self::KeyExpired,
            auth::Denied::Disabled => Self::KeyDisabled,
        }
    }
}

impl From<auth::NotAllowed> for Failure {
    fn from(refused: auth::NotAllowed) -> Self {
        Self::NotAllowed(refused)
    }
}

impl From<quota::Refused> for Failure {
    fn from(refused: quota::Refused) -> Self {
        match refused {
            quota::Refused::Exceeded(exceeded) => Self::Exceeded(exceeded),
            quota::Refused::Unknown => Self::LimitsUnknown,
        }
    }
}

impl From<route::NotFound> for Failure {
    fn from(missing: route::NotFound) -> Self {
        match missing {
            route::NotFound::Path => Self::PathNotFound,
            route::NotFound::Method(allowed) => Self::MethodNotAllowed(allowed),
            route::NotFound::Pool(name) => Self::PoolNotFound(name),
            route::NotFound::NoDefault(rivals) => Self::NoDefaultPool(rivals),
        }
    }
}

impl From<schema::Malformed> for Failure {
    fn from(malformed: schema::Malformed) -> Self {
        Self::MalformedJson(malformed)
    }
}
