//! What a backend's error answer means: which layer made it, and why.
//!
//! NVCF's `type` decides where it is present; elsewhere the shape of the body, `nvcf-*` headers and the status do.

use http::HeaderMap;
use serde_json::Value;

use super::Kind;

/// A failure that somebody behind the gateway answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The container refused the request (4xx).
    InferenceRejected,
    /// The container has no room (429, 503, 529).
    InferenceOverloaded,
    /// The container failed (5xx).
    InferenceError,
    /// A proxy between here and the container answered in its place.
    ProxyError,
    /// NVCF can not invoke the function: all its instances are lost.
    FunctionDegraded,
    /// NVCF does not know the function, or not for this account.
    FunctionNotFound,
    /// The platform does not accept the gateway's credential.
    PlatformUnauthorized,
    /// The account's credits are used up.
    CreditsExpired,
    /// The model has reached its end of life.
    ModelRetired,
    /// The platform limits the rate of the gateway's credential.
    PlatformRateLimited,
    /// The function's queue is full.
    PlatformQueueFull,
    /// The platform could not reach the container.
    InferenceUnreachable,
    /// The worker beside the container failed.
    WorkerError,
    /// Nobody took the request in time.
    PlatformTimeout,
    /// The platform refused the request (other 4xx).
    PlatformRejected,
    /// The platform failed (other 5xx).
    PlatformError,
    /// A 2xx answer lacks what its operation promises: a failure in disguise.
    AnswerIncomplete,
}

/// The shapes of error bodies seen behind NIM and NVCF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"error":{…}}`: vLLM, NIM 2.x.
    ErrorObject,
    /// `{"object":"error",…}`: NIM LLM 1.x, text embedding.
    ObjectError,
    /// `{"detail":[…]}`: FastAPI validation.
    DetailList,
    /// `{"detail":"…"}`: FastAPI.
    DetailText,
    /// `{"error":"…"}`: Triton.
    ErrorText,
    /// RFC 9457 with a `type`: NVCF's worker, vanity gateway and management.
    Problem,
    /// `{"status","title"}` without `type`: NVCF's invocation service.
    BareProblem,
    /// Nothing.
    Empty,
    /// HTML or other text.
    Text,
    /// JSON of another kind.
    Other,
}

/// An error body, read as far as labelling needs.
struct Body {
    shape: Shape,
    kind: String,
    detail: String,
}

impl Kind {
    /// Names the failure behind an answer of status 400 or above. `body` may be cut at a bound.
    pub fn read_fault(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> (Fault, Shape) {
        let body = Body::read(body);
        let fault = match self {
            Self::Nim if (502..=504).contains(&status) && matches!(body.shape, Shape::Empty | Shape::Text) => {
                Fault::ProxyError
            }
            Self::Nim => inference(status),
            Self::Nvcf(_) => nvcf(status, headers, &body),
            Self::Ngc => platform(status, &body),
        };
        (fault, body.shape)
    }
}

fn nvcf(status: u16, headers: &HeaderMap, body: &Body) -> Fault {
    if body.kind.contains("inference-service") {
        return inference(status);
    }
    if body.kind.contains("inference-connection") {
        return Fault::InferenceUnreachable;
    }
    if body.kind.contains("nvcf-worker-service") {
        return Fault::WorkerError;
    }
    let dispatched = headers.contains_key("nvcf-reqid");
    match body.shape {
        Shape::Problem | Shape::BareProblem => platform(status, body),
        Shape::ErrorObject | Shape::ObjectError | Shape::DetailList | Shape::DetailText | Shape::ErrorText => {
            inference(status)
        }
        Shape::Empty if status == 504 => Fault::PlatformTimeout,
        _ if dispatched => inference(status),
        _ => platform(status, body),
    }
}

fn inference(status: u16) -> Fault {
    match status {
        429 | 503 | 529 => Fault::InferenceOverloaded,
        400..=499 => Fault::InferenceRejected,
        _ => Fault::InferenceError,
    }
}

fn platform(status: u16, body: &Body) -> Fault {
    match status {
        400 if body.detail.contains("DEGRADED function") => Fault::FunctionDegraded,
        401 | 403 => Fault::PlatformUnauthorized,
        402 => Fault::CreditsExpired,
        404 if body.detail.starts_with("Function ") || body.shape == Shape::Text => Fault::FunctionNotFound,
        410 => Fault::ModelRetired,
        429 if body.detail.starts_with("Jetstream error") => Fault::PlatformQueueFull,
        429 => Fault::PlatformRateLimited,
        504 => Fault::PlatformTimeout,
        400..=499 => Fault::PlatformRejected,
        _ => Fault::PlatformError,
    }
}

impl Body {
    fn read(bytes: &[u8]) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        if bytes.trim_ascii().is_empty() {
            return Self { shape: Shape::Empty, kind: String::new(), detail: String::new() };
        }
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
            return Self { shape: Shape::Text, kind: String::new(), detail: String::new() };
        };
        let shape = shape(&value);
        let kind = if shape == Shape::Problem { text(value.get("type")) } else { String::new() };
        Self { shape, kind, detail: text(value.get("detail")) }
    }
}

fn shape(value: &Value) -> Shape {
    let titled = value.get("title").is_some() && value.get("status").is_some();
    let urn = value.get("type").and_then(Value::as_str).is_some_and(|t| t.starts_with("urn:"));
    match (value.get("error"), value.get("detail")) {
        _ if urn || (titled && value.get("type").is_some()) => Shape::Problem,
        // The worker's refusal of a status poll has a status and a detail but no title.
        _ if titled || (value.get("status").is_some_and(Value::is_u64) && value.get("detail").is_some()) => {
            Shape::BareProblem
        }
        (Some(Value::Object(_)), _) => Shape::ErrorObject,
        (Some(Value::String(_)), _) => Shape::ErrorText,
        _ if value.get("object").and_then(Value::as_str) == Some("error") => Shape::ObjectError,
        (_, Some(Value::Array(_))) => Shape::DetailList,
        (_, Some(Value::String(_))) => Shape::DetailText,
        _ => Shape::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &Kind, status: u16, dispatched: bool, body: &str) -> (Fault, Shape) {
        let mut headers = HeaderMap::new();
        if dispatched {
            headers.insert("nvcf-reqid", "1".parse().unwrap());
        }
        kind.read_fault(status, &headers, body.as_bytes())
    }

    #[test]
    fn nim_shapes_are_recognised() {
        for (body, shape) in [
            (r#"{"error":{"message":"m","type":"Bad Request","param":null,"code":400}}"#, Shape::ErrorObject),
            (r#"{"object":"error","message":"m","type":"NotFoundError","param":null,"code":404}"#, Shape::ObjectError),
            (r#"{"object":"error","message":"m","detail":{},"type":"invalid_request_error"}"#, Shape::ObjectError),
            (r#"{"detail":[{"loc":["body"],"msg":"m","type":"t"}]}"#, Shape::DetailList),
            (r#"{"detail":"text"}"#, Shape::DetailText),
            (r#"{"error":"text"}"#, Shape::ErrorText),
        ] {
            assert_eq!(read(&Kind::Nim, 400, false, body), (Fault::InferenceRejected, shape), "{body}");
            assert_eq!(read(&Kind::Nim, 503, false, body).0, Fault::InferenceOverloaded);
            assert_eq!(read(&Kind::Nvcf(None), 500, true, body).0, Fault::InferenceError);
        }
        assert_eq!(read(&Kind::Nim, 502, false, "<html>"), (Fault::ProxyError, Shape::Text));
        assert_eq!(read(&Kind::Nim, 500, false, ""), (Fault::InferenceError, Shape::Empty));
    }

    #[test]
    fn nvcf_bodies_name_their_layer() {
        let nvcf = Kind::Nvcf(None);
        let urn = |source: &str| {
            format!(r#"{{"type":"urn:{source}:problem-details:x","title":"T","status":500,"detail":"d"}}"#)
        };
        for (status, dispatched, body, fault) in [
            (400, true, urn("inference-service"), Fault::InferenceRejected),
            (500, true, urn("inference-service"), Fault::InferenceError),
            (500, true, urn("inference-connection"), Fault::InferenceUnreachable),
            (500, true, urn("nvcf-worker-service"), Fault::WorkerError),
            (500, false, urn("nv-boot"), Fault::PlatformError),
            (400, false, r#"{"status":400,"title":"Bad Request","detail":"Function id 'x': DEGRADED function cannot be invoked"}"#.into(), Fault::FunctionDegraded),
            (401, false, "Header of type `authorization` was missing".into(), Fault::PlatformUnauthorized),
            (402, false, r#"{"status":402,"title":"Payment Required","detail":"Account 'a': Cloud credits expired"}"#.into(), Fault::CreditsExpired),
            (403, false, r#"{"status":403,"title":"Forbidden","detail":"Authorization failed"}"#.into(), Fault::PlatformUnauthorized),
            (404, false, r#"{"status":404,"title":"Not Found","detail":"Function 'x': Not found for account 'a'"}"#.into(), Fault::FunctionNotFound),
            (404, false, "404 page not found".into(), Fault::FunctionNotFound),
            (404, true, String::new(), Fault::InferenceRejected),
            (404, false, r#"{"status":404,"title":"Not Found"}"#.into(), Fault::PlatformRejected),
            (410, false, r#"{"type":"about:blank","title":"Gone","status":410,"detail":"end of life"}"#.into(), Fault::ModelRetired),
            (429, false, r#"{"status":429,"title":"Too Many Requests"}"#.into(), Fault::PlatformRateLimited),
            (429, false, r#"{"status":429,"title":"Too Many Requests","detail":"Jetstream error: full"}"#.into(), Fault::PlatformQueueFull),
            (503, true, r#"{"error":{"message":"ResourceExhausted","type":"Service Unavailable","code":503}}"#.into(), Fault::InferenceOverloaded),
            (504, true, String::new(), Fault::PlatformTimeout),
            (504, true, r#"{"status":504,"detail":"worker did not acknowledge the status request."}"#.into(), Fault::PlatformTimeout),
        ] {
            assert_eq!(read(&nvcf, status, dispatched, &body).0, fault, "{status} {body}");
        }
    }
}
