//! `/v1/ranking` of NeMo Retriever: logits that follow from query and passage.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::Request;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::nim::{Nim, Refusal, finished};
use super::text;

pub(super) async fn answer(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let payload = match nim.read(request).await {
        Ok(payload) => payload,
        Err(refusal) => return nim.refuse(&refusal),
    };
    let (rankings, tokens) = match rank(&nim, &payload.value) {
        Ok(ranked) => ranked,
        Err(refusal) => return nim.refuse(&refusal),
    };
    let mut slot = nim.engine.admit(&payload.run).await;
    slot.items(rankings.len()).await;
    let rankings: Vec<Value> =
        rankings.into_iter().map(|(index, logit)| json!({"index": index, "logit": logit})).collect();
    finished(slot, tokens, 0, json!({"rankings": rankings}).to_string())
}

/// Passages by logit, best first, and the tokens read.
fn rank(nim: &Nim, value: &Value) -> Result<(Vec<(usize, f64)>, usize), Refusal> {
    nim.served(value)?;
    if value.get("top_k").is_some() {
        return Err(Refusal::bad("top_k: Extra inputs are not permitted"));
    }
    if !matches!(value.get("truncate").and_then(Value::as_str), None | Some("NONE" | "END")) {
        return Err(Refusal::unprocessable("truncate: Input should be 'NONE' or 'END'"));
    }
    let query = value.get("query").and_then(|query| query.get("text")).and_then(Value::as_str).unwrap_or_default();
    if query.is_empty() {
        return Err(Refusal::bad("query.text must be a non-empty string"));
    }
    let passages = match value.get("passages").and_then(Value::as_array) {
        Some(passages) if (1..=512).contains(&passages.len()) => passages,
        Some(passages) => {
            return Err(Refusal::bad(format!("passages must hold 1 to 512 items, got {}", passages.len())));
        }
        None => return Err(Refusal::unprocessable("passages: Field required")),
    };
    let texts = passages.iter().map(passage).collect::<Option<Vec<_>>>();
    let texts = texts.ok_or_else(|| Refusal::bad("each passage needs text or image"))?;
    let tokens = text::count(query) * texts.len() + texts.iter().map(|text| text::count(text)).sum::<usize>();
    let mut rankings: Vec<(usize, f64)> = texts.iter().map(|text| logit(query, text)).enumerate().collect();
    rankings.sort_by(|(_, left), (_, right)| right.total_cmp(left));
    Ok((rankings, tokens))
}

fn passage(value: &Value) -> Option<String> {
    let part = |name| value.get(name).and_then(Value::as_str);
    match (part("text"), part("image")) {
        (None, None) => None,
        (text, image) => Some([text.unwrap_or_default(), image.unwrap_or_default()].join(" ")),
    }
}

/// Shared words count most, a hash breaks ties.
fn logit(query: &str, passage: &str) -> f64 {
    let words = |text: &str| text.to_lowercase().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let known = words(query);
    let shared = words(passage).iter().filter(|word| known.contains(word)).count();
    let digest = Sha256::digest([query, "\0", passage].concat());
    let noise = f64::from(u16::from_le_bytes([digest[0], digest[1]])) / 16_384.0;
    f64::from(u32::try_from(shared).unwrap_or(u32::MAX)).mul_add(4.0, noise) - 12.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_words_rank_higher() {
        assert!(logit("where is the cat", "the cat is here") > logit("where is the cat", "dogs bark"));
    }
}
