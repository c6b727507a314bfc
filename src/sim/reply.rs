//! Answers and error bodies in each of the shapes that backends are known to use.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// The error body shapes of the reference, by its letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `{"error":{…}}`
    A,
    /// `{"object":"error",…}`
    B,
    /// as B with `detail`, of the embedding NIM
    C,
    /// `{"detail":[…]}`
    D,
    /// `{"detail":"…"}`
    E,
    /// `{"error":"…"}`
    F,
    /// problem+json with the `type` of an inference service
    G,
    /// problem+json of the NVCF invocation service, without `type`
    H,
    /// problem+json of the NGC management services
    NvBoot,
    /// a load balancer's page
    Html,
}

impl Shape {
    pub(super) fn from_fault(kind: &str) -> Option<Self> {
        Some(match kind {
            "body-a" => Self::A,
            "body-b" => Self::B,
            "body-c" => Self::C,
            "body-d" => Self::D,
            "body-e" => Self::E,
            "body-f" => Self::F,
            "body-g" => Self::G,
            "body-h" => Self::H,
            "body-html" => Self::Html,
            _ => return None,
        })
    }

    /// The status such a body usually comes with.
    pub(super) fn usual_status(self) -> StatusCode {
        match self {
            Self::A | Self::B => StatusCode::INTERNAL_SERVER_ERROR,
            Self::C | Self::G | Self::NvBoot => StatusCode::BAD_REQUEST,
            Self::D => StatusCode::UNPROCESSABLE_ENTITY,
            Self::E => StatusCode::PAYMENT_REQUIRED,
            Self::F => StatusCode::SERVICE_UNAVAILABLE,
            Self::H => StatusCode::TOO_MANY_REQUESTS,
            Self::Html => StatusCode::BAD_GATEWAY,
        }
    }
}

/// An answer that ends a request early; boxed, for results are moved often.
#[derive(Debug)]
pub(super) struct Refused(Box<Response>);

impl From<Response> for Refused {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// An error answer in one shape.
pub(super) fn error(shape: Shape, status: StatusCode, message: &str) -> Response {
    let kind = error_type(status);
    let code = status.as_u16();
    match shape {
        Shape::A => json(status, &json!({"error": {"message": message, "type": kind, "param": null, "code": code}})),
        Shape::B => {
            json(status, &json!({"object": "error", "message": message, "type": kind, "param": null, "code": code}))
        }
        Shape::C => {
            json(status, &json!({"object": "error", "message": message, "detail": {}, "type": "invalid_request_error"}))
        }
        Shape::D => json(status, &json!({"detail": [{"type": "value_error", "loc": ["body"], "msg": message}]})),
        Shape::E => json(status, &json!({"detail": message})),
        Shape::F => json(status, &json!({"error": message})),
        Shape::G => problem(status, Some("urn:inference-service"), Some(message)),
        Shape::H => problem(status, None, Some(message).filter(|_| status != StatusCode::TOO_MANY_REQUESTS)),
        Shape::NvBoot => problem(status, Some("urn:nv-boot"), Some(message)),
        Shape::Html => html(status),
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A plain text answer.
pub(super) fn text(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text.to_owned()).into_response()
}

/// An answer without body.
pub(super) fn bare(status: StatusCode) -> Response {
    (status, [(header::CONTENT_LENGTH, "0")], Body::empty()).into_response()
}

/// RFC 9457 problem details; `source` is the URN up to the word `problem-details`.
pub(super) fn problem(status: StatusCode, source: Option<&str>, detail: Option<&str>) -> Response {
    let title = status.canonical_reason().unwrap_or("Unknown");
    let mut body = serde_json::Map::new();
    if let Some(source) = source {
        let word = title.to_ascii_lowercase().replace(' ', "-");
        body.insert("type".to_owned(), json!(format!("{source}:problem-details:{word}")));
        body.insert("title".to_owned(), json!(title));
    }
    body.insert("status".to_owned(), json!(status.as_u16()));
    body.entry("title").or_insert_with(|| json!(title));
    if let Some(detail) = detail {
        body.insert("detail".to_owned(), json!(detail));
    }
    let mut response = json(status, &Value::Object(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// An error of an object store such as S3.
pub(super) fn xml(status: StatusCode, code: &str, message: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

/// The word that vLLM puts in `type`.
pub(super) fn error_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "AuthenticationError",
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        code if code < 500 => "BadRequestError",
        _ => "InternalServerError",
    }
}

fn html(status: StatusCode) -> Response {
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Unknown"));
    let page = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    );
    (status, [(header::CONTENT_TYPE, "text/html")], page).into_response()
}
