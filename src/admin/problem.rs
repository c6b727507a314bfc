//! Problem: what the admin API answers when it can not do what was asked, and how it reads what it is asked.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::{Finding, Form};
use crate::directory::Fault;

/// The longest body.
const LONGEST: usize = 64 * 1024;

/// Why something was not done.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: String,
    /// Where in the body, or which parameter.
    place: Option<String>,
    further: Vec<(String, String)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), place: None, further: Vec::new() }
    }

    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    pub(super) fn missing(what: &impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no record of {what}"))
    }

    /// A parameter of the query.
    pub(super) fn parameter(name: &str, error: impl Into<String>) -> Self {
        Self { place: Some(name.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, error) }
    }

    /// What is wrong with a body; the first stands for all.
    pub(super) fn findings(status: StatusCode, findings: &[Finding]) -> Option<Self> {
        let mut told = findings.iter().map(|finding| (finding.key(), finding.reason.clone()));
        let (place, error) = told.next()?;
        let place = Some(place).filter(|place| !place.is_empty());
        Some(Self { status, error, place, further: told.collect() })
    }

    /// The gateway's own defect.
    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Away(reason) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("nothing was changed: {reason}; try again later"))
            }
            Fault::Unsure(reason) => {
                let error = format!("it may have been changed or not: {reason}; look before trying again");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
            }
            Fault::Busy => Self::conflict("nothing was changed: others change the same at this moment; try again"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut page = json!({ "error": self.error });
        if let Some(place) = self.place {
            page["where"] = place.into();
        }
        if !self.further.is_empty() {
            let further = self.further.into_iter().map(|(place, error)| json!({ "error": error, "where": place }));
            page["further"] = further.collect();
        }
        let mut response = (self.status, Json(page)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Reads a body of JSON. It has to say that it is JSON, which no page of another site can make a browser send.
pub(super) async fn read(request: Request) -> Result<Value, Problem> {
    let declared = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" && kind != "application/merge-patch+json" {
        return Err(undeclared());
    }
    let body = whole(request).await?;
    if body.trim_ascii().is_empty() {
        return Ok(json!({}));
    }
    // Serde's own words may quote what is there.
    let value: Value = serde_json::from_slice(&body).map_err(|e| {
        let error = format!("expected JSON; it breaks in line {}, column {}", e.line(), e.column());
        Problem::new(StatusCode::BAD_REQUEST, error)
    })?;
    if value.is_object() { Ok(value) } else { Err(Problem::new(StatusCode::BAD_REQUEST, "expected a JSON object")) }
}

/// Reads a body that may be left out, and then is declared as nothing.
pub(super) async fn read_if_any(request: Request) -> Result<Value, Problem> {
    if request.headers().contains_key(header::CONTENT_TYPE) {
        return read(request).await;
    }
    if whole(request).await?.is_empty() { Ok(json!({})) } else { Err(undeclared()) }
}

fn undeclared() -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected a body of the type application/json")
}

async fn whole(request: Request) -> Result<Bytes, Problem> {
    axum::body::to_bytes(request.into_body(), LONGEST).await.map_err(|_| {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("expected a body of at most {LONGEST} bytes, sent whole"))
    })
}

/// Takes what fits a form.
pub(super) fn fit<T: JsonSchema + DeserializeOwned>(
    form: &Result<Form<T>, String>,
    value: Value,
) -> Result<T, Problem> {
    let form = form.as_ref().map_err(Problem::internal)?;
    form.read(value).map_err(|findings| {
        Problem::findings(StatusCode::BAD_REQUEST, &findings).unwrap_or_else(|| Problem::internal("no finding"))
    })
}

/// The parameters of a query; others than the `known` are refused.
pub(super) fn query(uri: &Uri, known: &[&'static str]) -> Result<BTreeMap<&'static str, String>, Problem> {
    let mut read = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        let Some(known) = known.iter().find(|known| **known == name) else {
            let error = format!("unknown parameter; expected one of {}", known.join(", "));
            return Err(Problem::parameter(&name, error));
        };
        if read.insert(*known, value.into_owned()).is_some() {
            return Err(Problem::parameter(known, "expected once"));
        }
    }
    Ok(read)
}

/// A part of a list: how many at most.
pub(super) fn page_size(asked: &BTreeMap<&'static str, String>) -> Result<usize, Problem> {
    const MOST: usize = 1000;
    let Some(text) = asked.get("limit") else { return Ok(MOST) };
    let size = text.parse().ok().filter(|size| (1..=MOST).contains(size));
    size.ok_or_else(|| Problem::parameter("limit", format!("expected a whole number from 1 to {MOST}")))
}
