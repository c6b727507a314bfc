//! An object store with presigned URLs, as the far sides use for uploads and large results.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use sha2::{Digest, Sha256};

use super::front::{Cut, text_of};
use super::reply::{self, Refused};
use super::{body, lock};

/// Bytes of an object that are kept as they are; beyond, only zeros of the same length are given back.
const KEPT: usize = 8 * 1024 * 1024;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The objects of one simulator.
#[derive(Clone, Debug)]
pub(super) struct Store {
    url: String,
    objects: Arc<Mutex<HashMap<String, Object>>>,
}

/// One object, or the permission to make it.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    signature: String,
    expires: DateTime<Utc>,
    /// Headers that an upload must carry with exactly these values.
    required: Vec<(&'static str, String)>,
    content_type: String,
    pub(super) etag: String,
    pub(super) content: Option<Vec<Bytes>>,
}

impl Store {
    pub(super) fn new(url: String) -> Self {
        Self { url, objects: Arc::default() }
    }

    /// The routes that signed URLs point to.
    pub(super) fn router(&self) -> Router {
        Router::new().route("/_store/{*key}", put(upload).get(download)).with_state(self.clone())
    }

    /// A URL by which anyone may upload the object until it expires.
    pub(super) fn sign_upload(&self, key: &str, seconds: i64, required: Vec<(&'static str, String)>) -> String {
        self.sign(key, seconds, |object| object.required = required)
    }

    /// A URL by which anyone may download the object until it expires.
    pub(super) fn sign_download(&self, key: &str, seconds: i64) -> String {
        self.sign(key, seconds, |_| ())
    }

    /// Stores an object without an upload.
    pub(super) fn insert(&self, key: &str, content_type: &str, content: Vec<Bytes>) {
        let object = Object { content_type: content_type.to_owned(), content: Some(content), ..Object::default() };
        lock(&self.objects).insert(key.to_owned(), object);
    }

    pub(super) fn find(&self, key: &str) -> Option<Object> {
        lock(&self.objects).get(key).cloned()
    }

    pub(super) fn remove(&self, key: &str) {
        lock(&self.objects).remove(key);
    }

    fn sign(&self, key: &str, seconds: i64, change: impl FnOnce(&mut Object)) -> String {
        let mut objects = lock(&self.objects);
        let object = objects.entry(key.to_owned()).or_default();
        object.expires = Utc::now() + TimeDelta::try_seconds(seconds).unwrap_or_default();
        if object.signature.is_empty() {
            object.signature = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
        }
        change(object);
        let Object { signature, .. } = object;
        let date = Utc::now().format("%Y%m%dT%H%M%SZ");
        format!(
            "{}/_store/{key}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={seconds}\
             &X-Amz-SignedHeaders=host&X-Amz-Signature={signature}",
            self.url
        )
    }

    /// What S3 checks before it looks at the object.
    fn allowed<B>(&self, key: &str, request: &Request<B>) -> Result<Object, Refused> {
        if request.headers().contains_key(header::AUTHORIZATION) {
            let message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, \
                           Signature query string parameter or the Authorization header should be specified";
            return Err(reply::xml(StatusCode::BAD_REQUEST, "InvalidArgument", message).into());
        }
        let query = request.uri().query().unwrap_or_default();
        let signature = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Signature="));
        let object = self.find(key).filter(|object| signature.is_some_and(|given| given == object.signature));
        let Some(object) = object else { return Err(mismatch().into()) };
        if object.expires < Utc::now() {
            return Err(reply::xml(StatusCode::FORBIDDEN, "AccessDenied", "Request has expired").into());
        }
        Ok(object)
    }
}

async fn upload(State(store): State<Store>, Path(key): Path<String>, request: Request<Body>) -> Response {
    match store.allowed(&key, &request) {
        Ok(object) => store.put(key, object, request).await.into_response(),
        Err(response) => {
            let _ = body::discard(request.into_body()).await;
            response.into_response()
        }
    }
}

async fn download(State(store): State<Store>, Path(key): Path<String>, request: Request<Body>) -> Response {
    match store.allowed(&key, &request) {
        Ok(Object { content: Some(content), content_type, etag, .. }) => {
            let mut response = chunked(content);
            insert(response.headers_mut(), header::CONTENT_TYPE, &content_type);
            insert(response.headers_mut(), header::ETAG, &format!("\"{etag}\""));
            response
        }
        Ok(_) => reply::xml(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist."),
        Err(refused) => refused.into_response(),
    }
}

impl Store {
    async fn put(&self, key: String, mut object: Object, request: Request<Body>) -> Result<Response, Refused> {
        let signed = |(name, value): &(&str, String)| text_of(request.headers(), name) == Some(value.as_str());
        if !object.required.iter().all(signed) {
            let _ = body::discard(request.into_body()).await;
            return Err(mismatch().into());
        }
        object.content_type = text_of(request.headers(), "content-type").unwrap_or("binary/octet-stream").to_owned();
        let (content, etag) = receive(request.into_body())
            .await
            .map_err(|reason| reply::xml(StatusCode::BAD_REQUEST, "IncompleteBody", &reason))?;
        object.content = Some(content);
        object.etag = etag;
        let mut response = reply::bare(StatusCode::OK);
        insert(response.headers_mut(), header::ETAG, &format!("\"{}\"", object.etag));
        lock(&self.objects).insert(key, object);
        Ok(response)
    }
}

/// A body sent piece by piece, its length told before.
pub(super) fn chunked(content: Vec<Bytes>) -> Response {
    let length = length(&content);
    let mut response = Response::new(Body::from_stream(stream::iter(content.into_iter().map(Ok::<_, Cut>))));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

pub(super) fn length(content: &[Bytes]) -> u64 {
    content.iter().map(|chunk| chunk.len() as u64).sum()
}

async fn receive(mut upload: Body) -> Result<(Vec<Bytes>, String), String> {
    let (mut content, mut digest, mut kept) = (Vec::new(), Sha256::new(), 0);
    while let Some(data) = body::next(&mut upload).await? {
        digest.update(&data);
        kept += data.len();
        if kept <= KEPT {
            content.push(data);
        } else {
            content.extend(data.chunks(ZEROS.len()).map(|chunk| Bytes::from_static(&ZEROS[..chunk.len()])));
        }
    }
    let digest = digest.finalize();
    // As long as the MD5 that S3 would give.
    let etag = u128::from_be_bytes(std::array::from_fn(|at| digest[at]));
    Ok((content, format!("{etag:032x}")))
}

fn mismatch() -> Response {
    let message = "The request signature we calculated does not match the signature you provided.";
    reply::xml(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message)
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
