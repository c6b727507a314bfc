//! NIM containers: what all families share, and which family serves which inference path.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::body::Payload;
use super::engine::{Engine, Slot};
use super::front::text_of;
use super::reply::{self, Shape};
use super::{Kind, Settings, body, chat, completion, cosmos, embedding, management, ranking};

/// One container.
#[derive(Debug)]
pub(super) struct Nim {
    pub(super) kind: Kind,
    pub(super) settings: Settings,
    pub(super) models: Vec<String>,
    pub(super) engine: Engine,
    /// Which revision of its model it serves.
    pub(super) revision: Mutex<String>,
    shape: Shape,
}

/// Why a container refuses a request.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    shape: Option<Shape>,
}

impl Refusal {
    /// 400 in the family's own words.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), shape: None }
    }

    /// 422 as FastAPI words it.
    pub(super) fn unprocessable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, message: message.into(), shape: Some(Shape::D) }
    }

    /// 404 for a model that is not served here.
    pub(super) fn no_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self { status: StatusCode::NOT_FOUND, message, shape: None }
    }
}

/// One container and its routes.
pub(super) fn router(kind: Kind, settings: Settings, shape: Shape) -> (Arc<Nim>, Router) {
    let engine = Engine::new(&settings);
    let models = if settings.models.is_empty() { usual_models(kind) } else { settings.models.clone() };
    let nim = Arc::new(Nim { kind, settings, models, engine, revision: Mutex::new("1.0.0".into()), shape });
    let routes = match kind {
        Kind::Llm | Kind::Vlm => Router::new()
            .route("/v1/chat/completions", post(chat::answer))
            .route("/v1/completions", post(completion::complete))
            .route("/v1/responses", post(completion::respond)),
        Kind::Embedding => Router::new().route("/v1/embeddings", post(embedding::answer)),
        Kind::Reranking => Router::new().route("/v1/ranking", post(ranking::answer)),
        Kind::CosmosEmbed1 => Router::new().route("/v1/embeddings", post(embedding::answer_embed1)),
        Kind::CosmosPredict => Router::new().route("/v1/infer", post(cosmos::answer)),
        Kind::Nvcf | Kind::Curator => Router::new(),
    };
    let routes = routes
        .merge(management::routes(kind))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&nim), authenticate))
        .with_state(Arc::clone(&nim));
    (nim, routes)
}

impl Nim {
    /// Which revision of its model it serves.
    pub(super) fn revision(&self) -> String {
        self.revision.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first model is the one that metrics and metadata are about.
    pub(super) fn model(&self) -> &str {
        self.models.first().map_or("", String::as_str)
    }

    /// Reads a request's body.
    pub(super) async fn read(&self, request: Request<Body>) -> Result<Payload, Refusal> {
        let run = request.extensions().get().cloned().unwrap_or_default();
        let payload = body::json(request.into_body()).await.map_err(Refusal::bad)?;
        Ok(Payload { run, ..payload })
    }

    /// The answer to a refused request.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response {
        self.engine.refused();
        reply::error(refusal.shape.unwrap_or(self.shape), refusal.status, &refusal.message)
    }

    /// Checks the field `model`, which has to name a served one.
    pub(super) fn served<'a>(&self, value: &'a Value) -> Result<&'a str, Refusal> {
        let Some(model) = value.get("model").and_then(Value::as_str) else {
            return Err(Refusal::bad("[{'type': 'missing', 'loc': ('body', 'model'), 'msg': 'Field required'}]"));
        };
        if self.models.iter().any(|served| served == model) { Ok(model) } else { Err(Refusal::no_model(model)) }
    }

    /// The metrics page.
    pub(super) fn metrics(&self) -> String {
        self.engine.metrics(self.kind, self.model())
    }
}

/// A finished answer; the slot stays taken until its headers are sent.
pub(super) fn finished(mut slot: Slot, prompt_tokens: usize, generated_tokens: usize, body: String) -> Response {
    slot.complete(prompt_tokens, generated_tokens);
    let mut response = Response::new(Body::from(Bytes::from(body)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(Arc::new(slot));
    response
}

/// vLLM asks for a key on its API paths only, probes and scrapes stay open.
async fn authenticate(State(nim): State<Arc<Nim>>, request: Request<Body>, next: Next) -> Response {
    let path = request.uri().path();
    let open = path.starts_with("/v1/health") || path == "/v1/metrics" || !path.starts_with("/v1");
    let given = text_of(request.headers(), "authorization").and_then(|value| value.strip_prefix("Bearer "));
    match &nim.settings.api_key {
        Some(key) if !open && given != Some(key.as_str()) => {
            reply::json(StatusCode::UNAUTHORIZED, &json!({"error": "Unauthorized"}))
        }
        _ => next.run(request).await,
    }
}

async fn not_found() -> Response {
    reply::error(Shape::E, StatusCode::NOT_FOUND, "Not Found")
}

async fn not_allowed() -> Response {
    reply::error(Shape::E, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

fn usual_models(kind: Kind) -> Vec<String> {
    let models: &[&str] = match kind {
        Kind::Llm => &["meta/llama-3.1-8b-instruct"],
        Kind::Vlm => &["nvidia/cosmos-reason1-7b"],
        Kind::Embedding => &["nvidia/nv-embedqa-e5-v5", "nvidia/llama-3.2-nv-embedqa-1b-v2"],
        Kind::Reranking => &["nvidia/nv-rerankqa-mistral-4b-v3"],
        Kind::CosmosPredict => &["nvidia/cosmos-predict1-7b-text2world"],
        Kind::CosmosEmbed1 => &["nvidia/cosmos-embed1"],
        Kind::Nvcf | Kind::Curator => &[],
    };
    models.iter().map(|model| (*model).to_owned()).collect()
}
