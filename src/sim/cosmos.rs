//! `/v1/infer` of Cosmos Predict1: checks as the reference tells them, and a video of any size in constant memory.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use serde_json::{Value, json};

use super::nim::{Nim, Refusal};
use super::store;

/// The most characters an answer's video may have on demand.
const LARGEST: u64 = 400 * 1024 * 1024;
const PIECE: usize = 64 * 1024;
/// Base64 for zeros; its length is a multiple of four, so pieces can be joined.
static VIDEO: [u8; PIECE] = [b'A'; PIECE];

pub(super) async fn answer(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let asked = request.headers().get("x-sim-answer-bytes").and_then(|value| value.to_str().ok()?.parse().ok());
    let payload = match nim.read(request).await {
        Ok(payload) => payload,
        Err(refusal) => return nim.refuse(&refusal),
    };
    let ending = match check(&nim, &payload.value) {
        Ok(()) => ending(&payload.value),
        Err(refusal) => return nim.refuse(&refusal),
    };
    let mut slot = nim.engine.admit(&payload.run).await;
    let steps = payload.value.get("steps").and_then(Value::as_u64).unwrap_or(35).min(1000);
    slot.all(usize::try_from(steps).unwrap_or(usize::MAX)).await;
    slot.complete(0, 0);
    let mut response = store::chunked(video(asked.unwrap_or(nim.settings.answer_bytes), &ending));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(Arc::new(slot));
    response
}

/// The answer's bytes, all video pieces sharing one buffer.
pub(super) fn video(characters: u64, ending: &str) -> Vec<Bytes> {
    let mut left = characters.min(LARGEST).next_multiple_of(4);
    let mut content = vec![Bytes::from_static(b"{\"b64_video\":\"")];
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        content.push(Bytes::from_static(&VIDEO[..length]));
        left -= length as u64;
    }
    content.push(Bytes::from(ending.to_owned()));
    content
}

/// What follows the video in the answer; only text2world reports its prompt.
fn ending(value: &Value) -> String {
    let seed = value.get("seed").and_then(Value::as_u64).unwrap_or_else(|| u64::from(fastrand::u32(..)));
    if value.get("image").or_else(|| value.get("video")).is_some_and(|media| !media.is_null()) {
        return format!("\",\"seed\":{seed}}}");
    }
    let prompt = value.get("prompt").and_then(Value::as_str).unwrap_or_default();
    format!("\",\"upsampled_prompt\":{},\"seed\":{seed}}}", json!(prompt))
}

fn check(nim: &Nim, value: &Value) -> Result<(), Refusal> {
    let present = |name: &str| value.get(name).filter(|value| !value.is_null());
    match present("prompt").map(Value::as_str) {
        Some(Some(prompt)) if !prompt.is_empty() => {}
        _ => return Err(Refusal::bad("prompt: Field required")),
    }
    if present("image").is_some() && present("video").is_some() {
        return Err(Refusal::bad("Only one of image and video may be given"));
    }
    for media in ["image", "video"].iter().filter_map(|name| present(name)) {
        let Some(media) = media.as_str() else { return Err(Refusal::bad("image and video must be strings")) };
        let remote = media.starts_with("http://") || media.starts_with("https://");
        if remote && !nim.settings.allow_url_input {
            return Err(Refusal::bad("URL input is not allowed, send base64"));
        }
    }
    for side in ["height", "width"] {
        let given = present("video_params").and_then(|params| params.get(side)).filter(|side| !side.is_null());
        let valid = given.is_none_or(|given| given.as_u64().is_some_and(|given| given > 0 && given % 8 == 0));
        if !valid {
            return Err(Refusal::bad(format!("Invalid input dimensions: {side} must be a multiple of 8")));
        }
    }
    let seed = present("seed").is_none_or(|seed| seed.as_u64().is_some_and(|seed| u32::try_from(seed).is_ok()));
    if seed { Ok(()) } else { Err(Refusal::bad("seed must be between 0 and 4294967295")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_has_the_asked_length_and_is_valid_json() {
        let content = video(100_001, &ending(&json!({"prompt": "p", "seed": 4}))).concat();
        let value: Value = serde_json::from_slice(&content).unwrap();
        assert_eq!(value["b64_video"].as_str().unwrap().len(), 100_004);
        assert_eq!(value["upsampled_prompt"], "p");
        assert_eq!(value["seed"], 4);
    }
}
