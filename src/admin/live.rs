//! Live: what happened of late, and what labels mean.

use axum::extract::State as Extract;
use axum::http::Uri;
use axum::response::Json;
use serde_json::{Value, json};

use super::State;
use super::problem::{Problem, page_size, query};
use crate::failure::{Meaning, meanings};
use crate::live::{Kind, Step, View};

pub(super) async fn show(Extract(state): Extract<State>, uri: Uri) -> Result<Json<View>, Problem> {
    let asked = query(&uri, &["since", "step", "pool"])?;
    let step = match asked.get("step").map_or("1", String::as_str) {
        "1" => Step::Second,
        "15" => Step::Quarter,
        _ => return Err(Problem::parameter("step", "expected 1 or 15")),
    };
    let since = asked.get("since").map(|since| since.parse());
    let since = since.transpose().map_err(|_| Problem::parameter("since", "expected `next` of an earlier answer"))?;
    Ok(Json(state.live.view(step, since, asked.get("pool").map(String::as_str))))
}

pub(super) async fn recent(Extract(state): Extract<State>, uri: Uri) -> Result<Json<Value>, Problem> {
    let asked = query(&uri, &["kind", "limit"])?;
    let wanted = asked.get("kind").map_or("failed", String::as_str);
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word() == wanted) else {
        let error = format!("expected one of {}", Kind::ALL.map(Kind::word).join(", "));
        return Err(Problem::parameter("kind", error));
    };
    let mut rows = state.live.recent(kind);
    rows.truncate(page_size(&asked)?);
    let rows: Vec<_> = rows.iter().map(|row| &**row).collect();
    Ok(Json(json!({ "kind": kind.word(), "requests": rows })))
}

pub(super) async fn labels() -> Json<Value> {
    let one = |told: Meaning| (told.label.to_owned(), json!({ "meaning": told.meaning, "first": told.first }));
    Json(Value::Object(meanings().map(one).collect()))
}
