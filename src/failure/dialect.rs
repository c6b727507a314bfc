//! A failure in the words of the API that was called.

use serde_json::{Value, json};

use super::{BadInput, Failure};
use crate::catalogue::{Errors, Format};
use crate::ids::RequestId;

/// An error answer, but for the headers that every answer carries.
pub struct Body {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub bytes: Vec<u8>,
}

/// Words `failure` as the API does.
pub fn render(failure: &Failure, errors: Errors, request_id: &RequestId) -> Body {
    render_with(failure, errors, request_id, None)
}

/// The same, with further words of the operator for callers who ask too much.
pub fn render_with(failure: &Failure, errors: Errors, request_id: &RequestId, words: Option<&str>) -> Body {
    let status = match failure {
        Failure::SchemaViolation(_) => errors.violation_status,
        other => other.status(),
    };
    worded(failure, status, errors, request_id, words.filter(|_| status == 429))
}

/// What a backend answered with this status, in our words; `quote` is what it said.
pub fn reword(failure: &Failure, status: u16, errors: Errors, request_id: &RequestId, quote: Option<&str>) -> Body {
    let quote = quote.map(|quote| format!("It said: {quote}"));
    worded(failure, status, errors, request_id, quote.as_deref())
}

fn worded(failure: &Failure, status: u16, errors: Errors, request_id: &RequestId, more: Option<&str>) -> Body {
    let mut message = failure.message();
    if let Some(more) = more {
        message = format!("{message} {more}");
    }
    let (content_type, value) = match errors.format {
        // What is no call of gRPC is answered in JSON, whatever pool it was for.
        Format::OpenAi | Format::Grpc => ("application/json", openai(failure, status, &message)),
        Format::Problem => ("application/problem+json", problem(failure, status, &message, request_id)),
        Format::FastApi => ("application/json", fastapi(failure, &message)),
    };
    Body { status, content_type, bytes: value.to_string().into_bytes() }
}

/// The body of an OpenAI error: what the `openai` SDKs read `message`, `type`, `param` and `code` from.
pub(super) fn openai(failure: &Failure, status: u16, message: &str) -> Value {
    let kind = match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    let mut error = json!({ "message": message, "type": kind, "param": null, "code": failure.label() });
    if let Failure::SchemaViolation(input) = failure {
        error["param"] = json!(input.violations.first().map(|v| &v.pointer));
        error["violations"] = violations(input);
    }
    json!({ "error": error })
}

/// RFC 9457. The `type` never contains `inference-service`, by which NVCF marks the container's own errors.
fn problem(failure: &Failure, status: u16, message: &str, request_id: &RequestId) -> Value {
    let title = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
    let mut body = json!({
        "type": format!("urn:nimgate:problem-details:{}", failure.label().replace('_', "-")),
        "title": title,
        "status": status,
        "detail": message,
        "requestId": request_id.as_str(),
    });
    if let Failure::SchemaViolation(input) = failure {
        body["violations"] = violations(input);
    }
    body
}

fn fastapi(failure: &Failure, message: &str) -> Value {
    let Failure::SchemaViolation(input) = failure else {
        return json!({ "detail": message });
    };
    let entry =
        |v: &crate::schema::Violation| json!({ "type": v.rule, "loc": location(&v.pointer), "msg": v.expected });
    json!({ "detail": input.violations.iter().map(entry).collect::<Vec<_>>() })
}

fn violations(input: &BadInput) -> Value {
    let entry = |v: &crate::schema::Violation| json!({ "pointer": v.pointer, "rule": v.rule, "expected": v.expected });
    Value::Array(input.violations.iter().map(entry).collect())
}

/// A pointer as FastAPI's `loc`: where, then the path to it.
fn location(pointer: &str) -> Vec<Value> {
    if let Some(name) = pointer.strip_prefix('?') {
        return vec![json!("query"), json!(name)];
    }
    if let Some(name) = pointer.strip_prefix('{') {
        return vec![json!("path"), json!(name.trim_end_matches('}'))];
    }
    if let Some(name) = pointer.strip_prefix("header:") {
        return vec![json!("header"), json!(name)];
    }
    let steps = pointer.split('/').skip(1).map(|step| {
        let step = step.replace("~1", "/").replace("~0", "~");
        step.parse::<u64>().map_or_else(|_| json!(step), |index| json!(index))
    });
    std::iter::once(json!("body")).chain(steps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Violation;

    fn violation() -> Failure {
        let one = Violation { pointer: "/a/0".into(), rule: "P2".into(), expected: "a multiple of 8".into() };
        let two = Violation { pointer: "?b".into(), rule: "type".into(), expected: "of type boolean".into() };
        Failure::SchemaViolation(BadInput { violations: vec![one, two], truncated: false })
    }

    fn body(format: Format, failure: &Failure) -> (u16, Value) {
        let body = render(failure, Errors { format, violation_status: 422 }, &RequestId::accept(Some(b"r1")));
        (body.status, serde_json::from_slice(&body.bytes).unwrap())
    }

    #[test]
    fn openai_sdks_find_message_type_param_and_code() {
        let (status, value) = body(Format::OpenAi, &violation());
        assert_eq!(
            (status, &value["error"]["param"], &value["error"]["code"]),
            (422, &json!("/a/0"), &json!("schema_violation"))
        );
        assert_eq!(value["error"]["violations"][1]["pointer"], "?b");
        assert_eq!(body(Format::OpenAi, &Failure::KeyMissing).1["error"]["type"], "authentication_error");
    }

    #[test]
    fn problems_carry_our_type_and_the_request_id() {
        let (status, value) = body(Format::Problem, &Failure::ConnectFailed);
        assert_eq!(status, 502);
        assert_eq!(
            (&value["type"], &value["requestId"]),
            (&json!("urn:nimgate:problem-details:connect-failed"), &json!("r1"))
        );
    }

    #[test]
    fn fastapi_lists_locations() {
        let (_, value) = body(Format::FastApi, &violation());
        assert_eq!(value["detail"][0]["loc"], json!(["body", "a", 0]));
        assert_eq!(value["detail"][1]["loc"], json!(["query", "b"]));
        assert!(body(Format::FastApi, &Failure::PathNotFound).1["detail"].is_string());
    }
}
