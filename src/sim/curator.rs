//! NeMo Curator on DGX Cloud: datasets, multipart uploads by presigned URLs, processing, captions.
//!
//! What the reference leaves open (list envelope, error bodies, later status values) follows NGC's habits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, patch, post};
use axum::{Extension, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::{Fault, Faults};
use super::front::text_of;
use super::reply::{self, Refused, Shape};
use super::store::Store;
use super::{Settings, body, lock, uuid, zip};

/// How long a download URL stays valid, in seconds.
const DOWNLOAD_SECONDS: i64 = 3600;
/// S3 allows so many parts in one upload.
const MOST_PARTS: u64 = 10_000;

struct Curator {
    settings: Settings,
    store: Store,
    datasets: Mutex<BTreeMap<String, Dataset>>,
}

struct Dataset {
    /// As `GET` shows it, save for `lastStatus`.
    shown: Value,
    upload: Option<Upload>,
    uploaded: bool,
    stage: Stage,
    captions: BTreeMap<String, String>,
}

struct Upload {
    id: String,
    key: String,
}

#[derive(Clone, Copy)]
enum Stage {
    Creating,
    Processing(Instant),
    Terminated,
}

type Answer = Result<Response, Refused>;

/// The routes of the API and of its object store.
pub(super) fn router(settings: Settings, url: String) -> Router {
    let store = Store::new(url);
    let objects = store.router();
    let curator = Arc::new(Curator { settings, store, datasets: Mutex::default() });
    let dataset = Router::new()
        .route("/", get(show).delete(remove))
        .route("/upload/initialize", post(initialize))
        .route("/upload/getPreSignedUrls", post(sign_parts))
        .route("/upload/finalize", post(finalize))
        .route("/download/getPreSignedUrls", get(sign_download))
        .route("/process", post(process))
        .route("/captions", get(captions))
        .route("/captions/{caption}", patch(recaption));
    Router::new()
        .route("/v1/cosmos/datasets", get(list).post(create))
        .route("/v1/cosmos/datasets/datasets", post(create))
        .route("/v1/cosmos/jobs", delete(terminate))
        .nest("/v1/cosmos/datasets/{id}", dataset)
        .fallback(async || refuse(StatusCode::NOT_FOUND, "Not found"))
        .layer(middleware::from_fn_with_state(Arc::clone(&curator), authenticate))
        .with_state(curator)
        .merge(objects)
}

async fn authenticate(State(curator): State<Arc<Curator>>, request: Request, next: Next) -> Answer {
    let given = text_of(request.headers(), "authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = curator.settings.api_key.as_deref();
    match given.filter(|given| !given.is_empty()) {
        None => Err(refuse(StatusCode::UNAUTHORIZED, "Authentication required")),
        Some(given) if key.is_some_and(|key| key != given) => Err(refuse(StatusCode::FORBIDDEN, "Invalid API key")),
        Some(_) => Ok(next.run(request).await),
    }
}

async fn create(State(curator): State<Arc<Curator>>, Extension(faults): Extension<Faults>, request: Request) -> Answer {
    let asked = read(request.into_body()).await?;
    check_creation(&asked).map_err(|reason| bad(&reason))?;
    if faults.has(Fault::NullId) {
        return Ok(reply::json(StatusCode::OK, &json!({"id": null})));
    }
    let dataset = Dataset::new(&asked);
    let shown = dataset.show(&curator.settings);
    lock(&curator.datasets).insert(dataset.id().to_owned(), dataset);
    Ok(reply::json(StatusCode::OK, &shown))
}

async fn list(State(curator): State<Arc<Curator>>) -> Response {
    let datasets = lock(&curator.datasets);
    let shown: Vec<Value> = datasets.values().map(|dataset| dataset.show(&curator.settings)).collect();
    reply::json(StatusCode::OK, &json!({"datasets": shown}))
}

async fn show(State(curator): State<Arc<Curator>>, Path(id): Path<String>) -> Answer {
    curator.with(&id, |dataset| Ok(reply::json(StatusCode::OK, &dataset.show(&curator.settings))))
}

async fn remove(State(curator): State<Arc<Curator>>, Path(id): Path<String>) -> Answer {
    let removed = lock(&curator.datasets).remove(&id);
    removed.map(|_| confirm("Dataset deleted")).ok_or_else(|| unknown(&id))
}

/// The body is documented as none, and sent as `{}`: both are fine.
async fn initialize(State(curator): State<Arc<Curator>>, Path(id): Path<String>, request: Request) -> Answer {
    body::discard(request.into_body()).await.map_err(|reason| bad(&reason))?;
    curator.with(&id, |dataset| {
        let file = uuid();
        let key = format!("datasets/{id}/{file}.zip");
        let reply = json!({"fileId": file, "fileKey": key});
        dataset.upload = Some(Upload { id: file, key });
        dataset.uploaded = false;
        Ok(reply::json(StatusCode::OK, &reply))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignParts {
    file_id: String,
    file_key: String,
    parts: u64,
    expires: u64,
}

async fn sign_parts(State(curator): State<Arc<Curator>>, Path(id): Path<String>, request: Request) -> Answer {
    let asked: SignParts = parse(request).await?;
    let seconds = i64::try_from(asked.expires).unwrap_or(i64::MAX);
    if !(1..=MOST_PARTS).contains(&asked.parts) || !(1..=604_800).contains(&seconds) {
        return Err(bad("parts must be 1 to 10000, expires 1 to 604800"));
    }
    curator.with(&id, |dataset| {
        let upload = dataset.upload(&asked.file_id, &asked.file_key)?;
        let part = |number| {
            let url = curator.store.sign_upload(&upload.part(number), seconds, Vec::new());
            json!({"PartNumber": number, "signedUrl": url})
        };
        Ok(reply::json(StatusCode::OK, &json!({"parts": (1..=asked.parts).map(part).collect::<Vec<_>>()})))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Finalize {
    file_id: String,
    file_key: String,
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    e_tag: String,
    #[serde(alias = "partNumber")]
    part_number: u64,
}

async fn finalize(State(curator): State<Arc<Curator>>, Path(id): Path<String>, request: Request) -> Answer {
    let asked: Finalize = parse(request).await?;
    curator.with(&id, |dataset| {
        let upload = dataset.upload(&asked.file_id, &asked.file_key)?;
        let content = curator.assemble(upload, &asked.parts).map_err(|reason| bad(&reason))?;
        curator.store.insert(&format!("{}/source.zip", dataset.id()), "application/zip", content);
        dataset.uploaded = true;
        Ok(confirm("Upload completed"))
    })
}

#[derive(Deserialize)]
struct Download {
    #[serde(default)]
    processed: bool,
}

async fn sign_download(
    State(curator): State<Arc<Curator>>,
    Path(id): Path<String>,
    Query(asked): Query<Download>,
) -> Answer {
    curator.with(&id, |dataset| {
        let key = match (asked.processed, dataset.finished(&curator.settings), dataset.uploaded) {
            (true, false, _) => return Err(refuse(StatusCode::CONFLICT, "The dataset is not processed yet")),
            (false, _, false) => return Err(refuse(StatusCode::CONFLICT, "The dataset has no uploaded file")),
            (true, true, _) => {
                let key = format!("{id}/processed.zip");
                let captions = Bytes::from(json!(dataset.captions).to_string());
                curator.store.insert(&key, "application/zip", zip::stored("captions.json", vec![captions]));
                key
            }
            (false, _, true) => format!("{id}/source.zip"),
        };
        let url = curator.store.sign_download(&key, DOWNLOAD_SECONDS);
        Ok(reply::json(StatusCode::OK, &json!({"url": url})))
    })
}

#[derive(Deserialize)]
struct Process {
    url: String,
}

async fn process(State(curator): State<Arc<Curator>>, Path(id): Path<String>, request: Request) -> Answer {
    let asked: Process = parse(request).await?;
    if !asked.url.starts_with("http") {
        return Err(bad("url must be the presigned download URL of the dataset"));
    }
    curator.with(&id, |dataset| {
        if !dataset.uploaded {
            return Err(refuse(StatusCode::CONFLICT, "The dataset has no uploaded file"));
        }
        dataset.stage = Stage::Processing(Instant::now());
        Ok(confirm("Processing started"))
    })
}

async fn captions(State(curator): State<Arc<Curator>>, Path(id): Path<String>) -> Answer {
    curator.with(&id, |dataset| {
        let captions = if dataset.finished(&curator.settings) { json!(dataset.captions) } else { json!({}) };
        Ok(reply::json(StatusCode::OK, &captions))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recaption {
    caption: String,
}

async fn recaption(
    State(curator): State<Arc<Curator>>,
    Path((id, caption)): Path<(String, String)>,
    request: Request,
) -> Answer {
    let asked: Recaption = parse(request).await?;
    curator.with(&id, |dataset| match dataset.captions.get_mut(&caption) {
        Some(text) => {
            *text = asked.caption;
            Ok(confirm("Caption updated"))
        }
        None => Err(refuse(StatusCode::NOT_FOUND, &format!("Caption '{caption}' not found"))),
    })
}

async fn terminate(State(curator): State<Arc<Curator>>) -> Response {
    for dataset in lock(&curator.datasets).values_mut() {
        if matches!(dataset.stage, Stage::Processing(_)) && !dataset.finished(&curator.settings) {
            dataset.stage = Stage::Terminated;
        }
    }
    confirm("All jobs terminated")
}

impl Curator {
    fn with(&self, id: &str, act: impl FnOnce(&mut Dataset) -> Answer) -> Answer {
        lock(&self.datasets).get_mut(id).map_or_else(|| Err(unknown(id)), act)
    }

    /// Puts the parts together as S3 does: in order, each as its ETag says. ETags may come with their quotes.
    fn assemble(&self, upload: &Upload, parts: &[Part]) -> Result<Vec<Bytes>, String> {
        if parts.is_empty() || !parts.is_sorted_by(|left, right| left.part_number < right.part_number) {
            return Err("The list of parts was empty or not in ascending order".to_owned());
        }
        let mut whole = Vec::new();
        for part in parts {
            let object = self.store.find(&upload.part(part.part_number));
            match object.and_then(|object| Some((object.etag, object.content?))) {
                Some((etag, content)) if etag == part.e_tag.trim_matches('"') => whole.extend(content),
                _ => return Err(format!("Part {} could not be found, or its ETag did not match", part.part_number)),
            }
        }
        Ok(whole)
    }
}

impl Upload {
    fn part(&self, number: u64) -> String {
        format!("{}/part/{number}", self.key)
    }
}

impl Dataset {
    fn new(asked: &Value) -> Self {
        let text = |name: &str| asked.get(name).and_then(Value::as_str).unwrap_or_default();
        let s3 = asked.get("s3Config").is_some();
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let shown = json!({
            "name": text("name"), "userDescription": text("description"), "humanAttributesEnabled": false,
            "org": "0461422519424422", "ncaId": "sim-nca", "team": "no_team", "owner": "sim-owner",
            "type": if s3 { "S3" } else { "ZipFile" }, "url": "",
            "inputS3Prefix": text("s3InputPrefix"), "outputS3Prefix": text("s3OutputPrefix"),
            "s3Config": text("s3Config"),
            "videoType": "", "videoPrompt": "", "jobSpec": asked.get("jobSpec"),
            "dateCreated": now, "lastModifiedTimestamp": now, "lastStatus": null,
            "user": {"email": "sim@example.com", "name": "sim"}, "id": uuid()
        });
        let captions = (0..2).map(|video| (video.to_string(), format!("The video {video} shows a road."))).collect();
        let stage = if s3 { Stage::Processing(Instant::now()) } else { Stage::Creating };
        Self { shown, upload: None, uploaded: false, stage, captions }
    }

    fn id(&self) -> &str {
        self.shown["id"].as_str().unwrap_or_default()
    }

    fn show(&self, settings: &Settings) -> Value {
        let (status, message, details) = match self.stage {
            Stage::Creating => ("CREATING", "Waiting for user to upload files and proceed to processing", "0%"),
            Stage::Processing(_) if self.finished(settings) => ("COMPLETED", "Processing completed", "100%"),
            Stage::Processing(_) => ("PROCESSING", "Generating captions", "50%"),
            Stage::Terminated => ("TERMINATED", "Terminated by user", "0%"),
        };
        let mut shown = self.shown.clone();
        shown["lastStatus"] = json!({"status": status, "message": message, "details": details});
        shown
    }

    fn finished(&self, settings: &Settings) -> bool {
        matches!(self.stage, Stage::Processing(since) if since.elapsed() >= settings.work)
    }

    fn upload(&self, id: &str, key: &str) -> Result<&Upload, Refused> {
        let upload = self.upload.as_ref().filter(|upload| upload.id == id && upload.key == key);
        upload.ok_or_else(|| bad("fileId and fileKey do not belong to an initialized upload"))
    }
}

fn check_creation(asked: &Value) -> Result<(), String> {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    text(asked, "name").filter(|name| !name.is_empty()).ok_or("name is required")?;
    let spec = asked.get("jobSpec").ok_or("jobSpec is required")?;
    if !matches!(text(spec, "pipeline").as_deref(), Some("split" | "shard")) {
        return Err("jobSpec.pipeline must be split or shard".to_owned());
    }
    spec.get("args").filter(|args| args.is_object()).ok_or("jobSpec.args must be an object")?;
    let s3 = ["s3InputPrefix", "s3OutputPrefix", "s3Config"].map(|name| text(asked, name));
    match s3 {
        [None, None, None] => Ok(()),
        [Some(input), Some(output), Some(config)] => {
            let prefixes = input.starts_with("s3://") && output.starts_with("s3://");
            let readable = STANDARD.decode(config).is_ok();
            if prefixes && readable { Ok(()) } else { Err("the S3 prefixes or s3Config are malformed".to_owned()) }
        }
        _ => Err("s3InputPrefix, s3OutputPrefix and s3Config come together".to_owned()),
    }
}

async fn read(body: Body) -> Result<Value, Refused> {
    body::json(body).await.map(|payload| payload.value).map_err(|reason| bad(&reason))
}

async fn parse<T: for<'de> Deserialize<'de>>(request: Request) -> Result<T, Refused> {
    let value = read(request.into_body()).await?;
    T::deserialize(value).map_err(|error| bad(&error.to_string()))
}

fn refuse(status: StatusCode, detail: &str) -> Refused {
    reply::error(Shape::NvBoot, status, detail).into()
}

fn bad(detail: &str) -> Refused {
    refuse(StatusCode::BAD_REQUEST, detail)
}

fn unknown(id: &str) -> Refused {
    refuse(StatusCode::NOT_FOUND, &format!("Dataset '{id}' not found"))
}

fn confirm(message: &str) -> Response {
    reply::json(StatusCode::OK, &json!({"message": message}))
}
