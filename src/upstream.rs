//! Upstream: how a kind of backend is addressed, and what its failures mean.
//!
//! Knows the wire of NIM containers, NVCF and NGC services. Sending is the proxy's work.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

pub mod archive;
mod body;
mod classify;
mod document;
mod fault;
mod grpc;
pub mod hold;
mod nvcf;
mod table;

pub use body::Shape;
pub use classify::{Manner, Reading, event};
pub use document::render as document;
pub use fault::{Blame, Fault, Health};
pub use grpc::GrpcStatus;
pub use nvcf::{EnvelopeId, held_for};
pub use table::{Again, Answer, Event, ROWS, Ran, Row};

/// Where the hosts with fixed paths tell the status of a request.
const VANITY_STATUS: &str = "/v1/status/";
/// Where NVCF's own host does.
const STATUS: &str = "/v2/nvcf/pexec/status/";

/// What stands behind a pool's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A NIM container, or anything that speaks its API over plain HTTP.
    Nim,
    /// NVIDIA Cloud Functions: its own API, or one function offered as if it were a NIM.
    Nvcf(Option<Function>),
    /// An NGC service such as NeMo Curator.
    Ngc,
}

/// A function of NVCF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its id.
    pub id: String,
    /// The version to pin; without one, NVCF picks an active version per request.
    pub version: Option<String>,
    /// How it is invoked.
    pub invocation: Invocation,
    /// How it is waited for.
    pub wait: Wait,
}

/// How a function is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Longest hold of one exchange by pexec, before it is asked for again.
    pub hold: Duration,
    /// How long to wait for a function that has lost its instances.
    pub degraded: Duration,
    /// The largest answer in bytes that is fetched from where NVCF puts large ones.
    pub largest: u64,
    /// Whether it may stand at a private address.
    pub is_private: bool,
}

/// How a function is invoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Any path on the invocation host, the function named by header. Method, path and answer pass unchanged.
    Direct,
    /// `POST /v2/nvcf/pexec/functions/{id}`: NVCF appends the function's own path; 202 and 302 may come back.
    Pexec,
}

impl Kind {
    /// The path and query to ask the backend for.
    pub fn path<'a>(&self, path_and_query: &'a str) -> Cow<'a, str> {
        match self {
            Self::Nvcf(Some(Function { id, version, invocation: Invocation::Pexec, .. })) => match version {
                Some(version) => Cow::Owned(format!("/v2/nvcf/pexec/functions/{id}/versions/{version}")),
                None => Cow::Owned(format!("/v2/nvcf/pexec/functions/{id}")),
            },
            // Hosts with fixed paths have it there; NVCF's own has it here.
            Self::Nvcf(None) if path_and_query.starts_with(VANITY_STATUS) => {
                Cow::Owned(format!("{STATUS}{}", &path_and_query[VANITY_STATUS.len()..]))
            }
            _ => Cow::Borrowed(path_and_query),
        }
    }

    /// The function that it offers as if it were a NIM.
    pub fn function(&self) -> Option<&Function> {
        match self {
            Self::Nvcf(function) => function.as_ref(),
            _ => None,
        }
    }

    /// Headers that name the function on the direct path, where they count before the host name.
    pub fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, http::header::InvalidHeaderValue> {
        let Self::Nvcf(Some(Function { id, version, invocation: Invocation::Direct, .. })) = self else {
            return Ok(Vec::new());
        };
        let mut headers = vec![(HeaderName::from_static("function-id"), HeaderValue::from_str(id)?)];
        if let Some(version) = version {
            headers.push((HeaderName::from_static("function-version-id"), HeaderValue::from_str(version)?));
        }
        Ok(headers)
    }

    /// Whether a client's header stays on this side: routing of NVCF, spoofable identity, our own words. Headers that
    /// an operation documents pass regardless.
    pub fn drops_request_header(name: &HeaderName) -> bool {
        let name = name.as_str();
        matches!(
            name,
            "authorization"
                | "x-api-key"
                | "function-id"
                | "function-version-id"
                | "forwarded"
                | "x-real-ip"
                | "cookie"
                | "endpoint-load-metrics-format"
                | "x-priority"
                | "x-cache-affinity-key"
        ) || name.starts_with("nvcf-")
            || name.starts_with("x-nvcf-")
            || name.starts_with("x-forwarded-")
            || name.starts_with("x-nimgate-")
            || name.starts_with("x-gateway-destination-endpoint")
    }

    /// Whether a backend's header stays on this side.
    pub fn drops_response_header(name: &HeaderName) -> bool {
        let name = name.as_str();
        name.starts_with("x-nimgate-")
            || name.starts_with("access-control-")
            || matches!(
                name,
                "endpoint-load-metrics"
                    | "x-request-id"
                    | "authorization"
                    | "www-authenticate"
                    | "keep-alive"
                    | "proxy-connection"
                    | "upgrade"
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(invocation: Invocation) -> Kind {
        Kind::Nvcf(Some(Function { id: "f".into(), version: Some("v".into()), invocation, wait: Wait::default() }))
    }

    #[test]
    fn direct_invocation_keeps_the_path_and_names_the_function() {
        let kind = function(Invocation::Direct);
        assert_eq!(kind.path("/v1/infer?a=b"), "/v1/infer?a=b");
        let headers: Vec<_> = kind.headers().unwrap().into_iter().map(|(n, v)| format!("{n}={v:?}")).collect();
        assert_eq!(headers, ["function-id=\"f\"", "function-version-id=\"v\""]);
    }

    #[test]
    fn pexec_replaces_the_path() {
        let kind = function(Invocation::Pexec);
        assert_eq!(kind.path("/v1/infer"), "/v2/nvcf/pexec/functions/f/versions/v");
        assert!(kind.headers().unwrap().is_empty());
    }

    #[test]
    fn a_status_is_asked_for_where_the_native_api_has_it() {
        let id = "c0ffee00-1234-4abc-9def-0123456789ab";
        assert_eq!(Kind::Nvcf(None).path(&format!("/v1/status/{id}?a=b")), format!("/v2/nvcf/pexec/status/{id}?a=b"));
        assert_eq!(Kind::Nim.path("/v1/status/a"), "/v1/status/a");
    }

    #[test]
    fn routing_and_identity_headers_of_clients_are_dropped() {
        for name in ["Function-Id", "NVCF-POLL-SECONDS", "X-Forwarded-For", "Authorization", "x-nimgate-pool"] {
            assert!(Kind::drops_request_header(&name.parse().unwrap()), "{name}");
        }
        assert!(!Kind::drops_request_header(&http::header::CONTENT_TYPE));
    }
}
