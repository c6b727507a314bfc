//! `/v1/embeddings` of NeMo Retriever and of Cosmos Embed1: unit vectors that follow from model, kind and text.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::nim::{Nim, Refusal, finished};
use super::seen::Run;
use super::text;

#[derive(Serialize)]
struct Reply<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    #[serde(skip_serializing_if = "Option::is_none")]
    num_videos: Option<usize>,
    prompt_tokens: usize,
    total_tokens: usize,
}

/// What both families boil a request down to.
struct Job<'a> {
    model: &'a str,
    /// The model without a `-query` or `-passage` suffix, which stands for `input_type` and nothing more.
    base: &'a str,
    /// Texts that the vectors follow from.
    items: Vec<String>,
    /// The part of the seed that is neither model nor text.
    kind: &'a str,
    length: usize,
    base64: bool,
    usage: Usage,
}

/// NeMo Retriever text embedding.
pub(super) async fn answer(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let payload = match nim.read(request).await {
        Ok(payload) => payload,
        Err(refusal) => return nim.refuse(&refusal),
    };
    match retriever(&nim, &payload.value) {
        Ok(job) => run(&nim, job, &payload.run).await,
        Err(refusal) => nim.refuse(&refusal),
    }
}

/// Cosmos Embed1.
pub(super) async fn answer_embed1(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let payload = match nim.read(request).await {
        Ok(payload) => payload,
        Err(refusal) => return nim.refuse(&refusal),
    };
    match embed1(&nim, &payload.value) {
        Ok(job) => run(&nim, job, &payload.run).await,
        Err(refusal) => nim.refuse(&refusal),
    }
}

async fn run(nim: &Nim, job: Job<'_>, run: &Run) -> Response {
    let mut slot = nim.engine.admit(run).await;
    slot.items(job.items.len()).await;
    let revision = nim.revision();
    let data = job.items.iter().enumerate().map(|(index, item)| {
        let floats = match revision.as_str() {
            "1.0.0" => vector(&[job.base, job.kind, item], job.length),
            revision => vector(&[job.base, job.kind, item, revision], job.length),
        };
        let embedding = if job.base64 { Vector::Base64(encode(&floats)) } else { Vector::Floats(floats) };
        Item { object: "embedding", index, embedding }
    });
    let prompt_tokens = job.usage.prompt_tokens;
    let reply = Reply { object: "list", data: data.collect(), model: job.model, usage: job.usage };
    finished(slot, prompt_tokens, 0, serde_json::to_string(&reply).unwrap_or_default())
}

fn retriever<'a>(nim: &Nim, value: &'a Value) -> Result<Job<'a>, Refusal> {
    let named =
        value.get("model").and_then(Value::as_str).ok_or_else(|| Refusal::unprocessable("model: Field required"))?;
    let (model, suffix) = match (named.strip_suffix("-query"), named.strip_suffix("-passage")) {
        (Some(model), _) => (model, Some("query")),
        (_, Some(model)) => (model, Some("passage")),
        _ => (named, None),
    };
    if !nim.models.iter().any(|served| served == model) {
        return Err(Refusal::no_model(named));
    }
    let kind = match value.get("input_type").and_then(Value::as_str).or(suffix) {
        Some(kind @ ("query" | "passage")) => kind,
        Some(_) => return Err(Refusal::unprocessable("input_type: Input should be 'query' or 'passage'")),
        None if model.contains("embedqa") => {
            return Err(Refusal::bad("'input_type' parameter is required for asymmetric models"));
        }
        None => "",
    };
    let items = items(value)?;
    let items = fit(items, value.get("truncate").and_then(Value::as_str).unwrap_or("NONE"), longest_input(model))?;
    let tokens = items.iter().map(|item| text::count(item)).sum();
    let usage = Usage { num_videos: None, prompt_tokens: tokens, total_tokens: tokens };
    Ok(Job { model: named, base: model, items, kind, length: dimensions(value, model)?, base64: base64(value)?, usage })
}

fn embed1<'a>(nim: &Nim, value: &'a Value) -> Result<Job<'a>, Refusal> {
    let kind = value.get("request_type").and_then(Value::as_str);
    let Some(kind @ ("query" | "bulk_text" | "bulk_video")) = kind else {
        return Err(Refusal::unprocessable("request_type: Input should be 'query', 'bulk_text' or 'bulk_video'"));
    };
    let model = nim.served(value)?;
    let items = items(value)?;
    let limit = if kind == "query" { usize::MAX } else { 64 };
    if items.len() > limit {
        return Err(Refusal::bad(format!("{kind} accepts at most 64 inputs, got {}", items.len())));
    }
    let videos = items.iter().filter(|item| item.starts_with("data:video")).count();
    let presigned = items.iter().filter(|item| item.starts_with("data:video") && item.contains(";presigned_url,"));
    match kind {
        "bulk_text" if videos > 0 => return Err(Refusal::bad("bulk_text accepts text only")),
        "bulk_video" if presigned.count() < items.len() => {
            return Err(Refusal::bad("bulk_video accepts presigned URLs only"));
        }
        _ => {}
    }
    let text = |item: &&String| !item.starts_with("data:video");
    let tokens = items.iter().filter(text).map(|item| text::count(item)).sum();
    let usage = Usage { num_videos: Some(videos), prompt_tokens: tokens, total_tokens: tokens };
    // Both towers share one space, so the same text has the same vector whatever the request type.
    Ok(Job { model, base: model, items, kind: "", length: 256, base64: base64(value)?, usage })
}

/// A string, a list of strings, one list of token ids, or a list of such lists.
fn items(value: &Value) -> Result<Vec<String>, Refusal> {
    let missing = || Refusal::unprocessable("input: Field required");
    let items = match value.get("input").ok_or_else(missing)? {
        Value::String(text) => vec![text.clone()],
        tokens @ Value::Array(ids) if ids.iter().all(Value::is_u64) && !ids.is_empty() => vec![tokens.to_string()],
        Value::Array(items) => items.iter().map(item).collect::<Option<_>>().unwrap_or_default(),
        _ => Vec::new(),
    };
    if items.is_empty() || items.iter().any(String::is_empty) {
        return Err(Refusal::bad("input must be a non-empty string or a list of non-empty strings"));
    }
    Ok(items)
}

fn item(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(ids) if !ids.is_empty() && ids.iter().all(Value::is_u64) => Some(value.to_string()),
        _ => None,
    }
}

/// Applies the limit on the input's length as `truncate` says.
fn fit(items: Vec<String>, truncate: &str, limit: usize) -> Result<Vec<String>, Refusal> {
    let fit = |item: String| {
        let length = text::count(&item);
        match truncate {
            _ if length <= limit => Ok(item),
            "END" => Ok(item.split_whitespace().take(limit).collect::<Vec<_>>().join(" ")),
            "START" => Ok(item.split_whitespace().skip(length - limit).collect::<Vec<_>>().join(" ")),
            _ => Err(Refusal::bad(format!("Input length {length} exceeds maximum allowed token size {limit}"))),
        }
    };
    match truncate {
        "NONE" | "START" | "END" => items.into_iter().map(fit).collect(),
        _ => Err(Refusal::unprocessable("truncate: Input should be 'NONE', 'START' or 'END'")),
    }
}

fn longest_input(model: &str) -> usize {
    if model.contains("e5-v5") { 512 } else { 8192 }
}

/// Only Matryoshka models take `dimensions`.
fn dimensions(value: &Value, model: &str) -> Result<usize, Refusal> {
    let fixed = model.contains("e5-v5");
    match value.get("dimensions").filter(|asked| !asked.is_null()) {
        None => Ok(if fixed { 1024 } else { 2048 }),
        Some(_) if fixed => Err(Refusal::bad(format!("Model {model} does not support 'dimensions'"))),
        Some(asked) => match asked.as_u64().and_then(|asked| usize::try_from(asked).ok()) {
            Some(length @ 1..=2048) => Ok(length),
            _ => Err(Refusal::bad("dimensions must be between 1 and 2048")),
        },
    }
}

fn base64(value: &Value) -> Result<bool, Refusal> {
    match value.get("encoding_format").and_then(Value::as_str).unwrap_or("float") {
        "float" => Ok(false),
        "base64" => Ok(true),
        _ => Err(Refusal::unprocessable("encoding_format: Input should be 'float' or 'base64'")),
    }
}

/// A unit vector; a shorter one is the longer one cut and normalised anew.
fn vector(parts: &[&str], length: usize) -> Vec<f32> {
    let mut seed = Sha256::new();
    for part in parts {
        seed.update((part.len() as u64).to_le_bytes());
        seed.update(part);
    }
    let mut random = fastrand::Rng::with_seed(u64::from_le_bytes(text::first_eight(&seed.finalize())));
    let raw: Vec<f32> = (0..length).map(|_| random.f32() * 2.0 - 1.0).collect();
    let norm = raw.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.into_iter().map(|value| value / norm).collect()
}

fn encode(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one_and_follow_from_all_parts() {
        let first = vector(&["m", "query", "hello"], 256);
        assert!((first.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-4);
        assert_eq!(first, vector(&["m", "query", "hello"], 256));
        assert_ne!(first, vector(&["m", "passage", "hello"], 256));
        assert_ne!(first, vector(&["m", "queryh", "ello"], 256));
    }

    #[test]
    fn a_list_of_token_ids_is_one_item() {
        let value = serde_json::json!({"input": [1, 2]});
        assert_eq!(items(&value).unwrap(), ["[1,2]"]);
        assert!(items(&serde_json::json!({"input": []})).is_err());
        assert!(items(&serde_json::json!({"input": ["a", 1]})).is_err());
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        assert_eq!(encode(&[1.0]), "AACAPw==");
    }
}
