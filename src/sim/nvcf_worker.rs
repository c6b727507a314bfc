//! The words of NVCF's workers and of its invocation service: marks on requests, stamps on answers, problems.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::nvcf_function::Function;
use super::reply::{self, Shape};
use super::store::{self, Store};
use super::{body, uuid, zip};

/// Stands for the function in a fault that is not about a particular one.
pub(super) const ANY_FUNCTION: &str = "00000000-0000-4000-8000-000000000000";

const LARGEST_INLINE: u64 = 5 * 1024 * 1024;
/// How long the URL of a large result stays valid, in seconds.
const RESULT_SECONDS: i64 = 35 * 60;

/// What the worker tells the container.
pub(super) fn mark(headers: &mut HeaderMap, id: &str, function: &Function) {
    let told = [
        ("nvcf-reqid", id),
        ("nvcf-function-id", &function.id),
        ("nvcf-function-version-id", &function.version),
        ("nvcf-function-name", function.name()),
        ("nvcf-ncaid", "sim-nca"),
        ("nvcf-sub", "sim-sub"),
    ];
    for (name, value) in told {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The worker's reading of a container's answer: errors in its own words, large results by reference.
pub(super) async fn translate(store: &Store, id: &str, response: Response) -> Response {
    let (parts, mut body) = response.into_parts();
    let mut content = Vec::new();
    loop {
        match body::next(&mut body).await {
            Ok(Some(data)) => content.push(data),
            Ok(None) => break,
            Err(_) => return worker_failure(),
        }
    }
    if parts.status.as_u16() >= 400 {
        let told = serde_json::from_slice::<Value>(&content.concat()).ok();
        let detail = told.as_ref().and_then(|body| body.get("error")?.as_str());
        return inference_service(parts.status, detail);
    }
    if store::length(&content) > LARGEST_INLINE {
        let key = format!("results/{id}.zip");
        store.insert(&key, "application/zip", zip::stored(&format!("{id}.response"), content));
        let location = store.sign_download(&key, RESULT_SECONDS);
        return (StatusCode::FOUND, [(header::LOCATION, location), (header::CONTENT_LENGTH, "0".to_owned())])
            .into_response();
    }
    Response::from_parts(parts, Body::from(content.concat()))
}

/// Keeps something until the body's end.
pub(super) fn attached<T: Send + 'static>(response: Response, kept: T) -> Response {
    let length = hyper::body::Body::size_hint(response.body()).exact();
    let mut response = response.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |data| {
            let _ = &kept;
            data
        }))
    });
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

pub(super) fn accepted(progress: Option<(u8, Value)>) -> Response {
    let Some((percent, partial)) = progress else { return reply::bare(StatusCode::ACCEPTED) };
    let mut response = reply::json(StatusCode::ACCEPTED, &partial);
    response.headers_mut().insert("nvcf-percent-complete", HeaderValue::from(u16::from(percent)));
    response
}

/// What every dispatched request's answer carries.
pub(super) fn stamp(response: &mut Response, id: &str) {
    let word = match response.status().as_u16() {
        202 => "in-progress",
        200..=399 => "fulfilled",
        _ => "errored",
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.append("nvcf-reqid", id);
    }
    headers.append("nvcf-status", HeaderValue::from_static(word));
    headers.append(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("nvcf-reqid"));
}

/// A failure the platform reports on its own behalf, or another family's own words for the same status.
pub(super) fn own_error(shape: Shape, status: StatusCode) -> Response {
    if shape != Shape::H {
        return reply::error(shape, status, "Fault on demand");
    }
    match status.as_u16() {
        401 => reply::text(status, "Header of type `authorization` was missing"),
        402 => {
            let detail = "Account 'sim-nca': Cloud credits expired - Please contact NVIDIA representatives";
            reply::problem(status, None, Some(detail))
        }
        403 => reply::problem(status, None, Some("Authorization failed")),
        504 => dispatched(reply::bare(status)),
        _ => reply::problem(status, None, None),
    }
}

/// A function without instances; a 400 although waiting helps.
pub(super) fn degraded(function: &str) -> Response {
    let detail = format!("Function id '{function}': DEGRADED function cannot be invoked");
    reply::problem(StatusCode::BAD_REQUEST, None, Some(&detail))
}

/// The container's failure in the worker's words.
pub(super) fn inference_service(status: StatusCode, detail: Option<&str>) -> Response {
    reply::problem(status, Some("urn:inference-service"), Some(detail.unwrap_or("Inference error")))
}

/// The worker could not reach the container.
pub(super) fn inference_connection() -> Response {
    let detail = "Inference connection error while making inference request";
    reply::problem(StatusCode::INTERNAL_SERVER_ERROR, Some("urn:inference-connection"), Some(detail))
}

/// The worker itself failed.
pub(super) fn worker_failure() -> Response {
    let detail = "Internal error while making inference request";
    reply::problem(StatusCode::INTERNAL_SERVER_ERROR, Some("urn:nvcf-worker-service"), Some(detail))
}

/// An answer as if a worker had been involved.
pub(super) fn dispatched(mut response: Response) -> Response {
    stamp(&mut response, &uuid());
    response
}
