//! Level: which of the gateway's own words are logged, changed while it runs.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{self, Problem};
use crate::log;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: String,
}

pub(super) async fn show() -> Json<Value> {
    Json(json!({ "level": log::level() }))
}

pub(super) async fn put(request: Request) -> Result<Json<Value>, Problem> {
    let body = problem::read(request).await?;
    let Ok(Wanted { level }) = serde_json::from_value(body) else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "expected {\"level\": \"…\"}"));
    };
    log::set_level(&level).map_err(|reason| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason))?;
    tracing::info!(level, "the log's level was changed");
    Ok(show().await)
}
