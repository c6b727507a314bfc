//! Faults on demand: their syntax, and the board that holds the one in force.
//!
//! `x-sim-fault: kind[=value][,kind[=value]…]` on a request wins over a fault put on the board.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use http::{Request, StatusCode};

use super::lock;
use super::reply::Shape;

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Status(StatusCode),
    Shape(Shape),
    Delay(Duration),
    Hang,
    Cut,
    CutAfter(u64),
    StallAfter(u64),
    ErrorEvent(u64),
    NotReady,
    UnreadyOnce,
    Empty,
    NullId,
    Degraded,
    RateLimit,
    InferenceService,
    InferenceConnection,
    Worker,
    TruncatedJson,
}

/// The faults that apply to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    pub(super) fn find<T>(&self, choose: impl FnMut(&Fault) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(choose)
    }

    /// The status asked for by `status=N`.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.find(|fault| if let Fault::Status(status) = fault { Some(*status) } else { None })
    }

    pub(super) fn unready(&self) -> bool {
        self.has(Fault::NotReady) || self.has(Fault::UnreadyOnce)
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(Fault::from_str)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, value) = text.split_once('=').unwrap_or((text, "0"));
        let number = value.parse::<u64>().map_err(|_| format!("x-sim-fault: {text}: the value is not a number"))?;
        Ok(match kind {
            "status" => Self::Status(status(number)?),
            "delay" => Self::Delay(Duration::from_millis(number)),
            "hang" => Self::Hang,
            "cut" => Self::Cut,
            "cut-after" => Self::CutAfter(number),
            "stall-after" => Self::StallAfter(number),
            "error-event" => Self::ErrorEvent(number),
            "not-ready" => Self::NotReady,
            "unready-once" => Self::UnreadyOnce,
            "empty" => Self::Empty,
            "null-id" => Self::NullId,
            "degraded" => Self::Degraded,
            "rate-limit" => Self::RateLimit,
            "inference-service" => Self::InferenceService,
            "inference-connection" => Self::InferenceConnection,
            "worker" => Self::Worker,
            "truncated-json" => Self::TruncatedJson,
            _ => Self::Shape(Shape::from_fault(kind).ok_or_else(|| format!("x-sim-fault: {kind} is unknown"))?),
        })
    }
}

fn status(number: u64) -> Result<StatusCode, String> {
    let code = u16::try_from(number).ok().and_then(|code| StatusCode::from_u16(code).ok());
    code.filter(|code| code.as_u16() >= 200).ok_or_else(|| format!("x-sim-fault: {number} is no final status"))
}

/// The fault in force for requests that bring none of their own.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Standing>);

#[derive(Debug, Default)]
struct Standing {
    faults: Faults,
    path: Option<String>,
    left: Option<u64>,
}

impl Board {
    pub(super) fn new(faults: Faults) -> Self {
        Self(Mutex::new(Standing { faults, ..Standing::default() }))
    }

    /// Holds for paths that start with `path`, and `times` times at most.
    pub(super) fn set(&self, faults: Faults, path: Option<String>, times: Option<u64>) {
        *lock(&self.0) = Standing { faults, path, left: times };
    }

    pub(super) fn faults_for<B>(&self, request: &Request<B>) -> Result<Faults, String> {
        match request.headers().get("x-sim-fault") {
            Some(value) => value.to_str().map_err(|error| error.to_string())?.parse(),
            None => Ok(lock(&self.0).take(request.uri().path())),
        }
    }
}

impl Standing {
    fn take(&mut self, path: &str) -> Faults {
        if self.faults.0.is_empty() || self.left == Some(0) {
            return Faults::default();
        }
        let faults = match &self.path {
            Some(prefix) if !path.starts_with(prefix.as_str()) => return Faults::default(),
            None if is_management(path) => Faults(self.faults.0.iter().copied().filter(about_readiness).collect()),
            _ => self.faults.clone(),
        };
        if path.ends_with("/health/ready") {
            self.faults.0.retain(|fault| *fault != Fault::UnreadyOnce);
        }
        if !faults.0.is_empty() {
            self.left = self.left.map(|left| left - 1);
        }
        faults
    }
}

fn about_readiness(fault: &Fault) -> bool {
    matches!(fault, Fault::NotReady | Fault::UnreadyOnce)
}

/// Probes and scrapes stay healthy unless a fault names their path or their readiness.
fn is_management(path: &str) -> bool {
    const PAGES: [&str; 6] =
        ["/v1/models", "/v1/metrics", "/v1/metadata", "/v1/manifest", "/v1/license", "/v1/version"];
    path.starts_with("/v1/health/") || PAGES.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_faults_combine() {
        let faults: Faults = "status=429, body-a,delay=5".parse().unwrap();
        assert_eq!(faults.status(), Some(StatusCode::TOO_MANY_REQUESTS));
        assert!(faults.has(Fault::Shape(Shape::A)) && faults.has(Fault::Delay(Duration::from_millis(5))));
    }

    #[test]
    fn unknown_faults_are_refused() {
        assert!("teapot".parse::<Faults>().is_err());
        assert!("status=99".parse::<Faults>().is_err());
        assert!("status=abc".parse::<Faults>().is_err());
    }

    #[test]
    fn a_standing_fault_spares_probes_and_ends_after_its_times() {
        let mut standing = Standing { faults: "cut".parse().unwrap(), path: None, left: Some(1) };
        assert_eq!(standing.take("/v1/health/ready"), Faults::default());
        assert!(standing.take("/v1/embeddings").has(Fault::Cut));
        assert_eq!(standing.take("/v1/embeddings"), Faults::default());
    }

    #[test]
    fn unready_once_is_spent_by_the_first_probe() {
        let mut standing = Standing { faults: "unready-once".parse().unwrap(), path: None, left: None };
        assert!(standing.take("/v1/health/ready").unready());
        assert!(!standing.take("/v1/health/ready").unready());
    }
}
