//! `/v1/completions` and, in its basic form, `/v1/responses`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};

use super::chat::{Talk, extension, limit, streamed};
use super::nim::{Nim, Refusal, finished};
use super::seen::Run;
use super::sse;

type Plan = fn(&Nim, &Value) -> Result<Talk, Refusal>;

pub(super) async fn complete(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let (talk, work) = match plan(&nim, request, plan_completion).await {
        Ok(planned) => planned,
        Err(refusal) => return nim.refuse(&refusal),
    };
    let events = completion_events(&talk);
    run(nim, talk, work, events, completion).await
}

pub(super) async fn respond(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let (talk, work) = match plan(&nim, request, plan_response).await {
        Ok(planned) => planned,
        Err(refusal) => return nim.refuse(&refusal),
    };
    let events = response_events(&talk);
    run(nim, talk, work, events, |talk| response(talk, "completed", &talk.text())).await
}

/// What to answer, and what counts its work.
async fn plan(nim: &Nim, request: Request<Body>, plan: Plan) -> Result<(Talk, Run), Refusal> {
    let payload = nim.read(request).await?;
    Ok((plan(nim, &payload.value)?, payload.run))
}

async fn run(nim: Arc<Nim>, talk: Talk, work: Run, events: Vec<(bool, Bytes)>, whole: fn(&Talk) -> Value) -> Response {
    if talk.stream {
        return streamed(nim, talk, work, events);
    }
    let mut slot = talk.enter(&nim, &work).await;
    slot.all(talk.pieces.len()).await;
    finished(slot, talk.prompt_tokens, talk.pieces.len(), whole(&talk).to_string())
}

fn plan_completion(nim: &Nim, value: &Value) -> Result<Talk, Refusal> {
    let model = nim.served(value)?;
    let prompt = match value.get("prompt") {
        Some(Value::String(prompt)) => prompt.clone(),
        Some(Value::Array(prompts)) if !prompts.is_empty() => prompts.iter().map(Value::to_string).collect(),
        _ => return Err(Refusal::bad("prompt: Field required")),
    };
    // The default of this endpoint is 16 tokens.
    let limit = limit(value, &["max_tokens"])?.unwrap_or(16);
    let forced = extension(value, "ignore_eos").is_some_and(|forced| forced == &json!(true));
    Talk::new("cmpl", model, &prompt, Some(limit), forced).counted(nim, 0).streaming(value)
}

fn completion(talk: &Talk) -> Value {
    completion_body(
        talk,
        &json!([{"index": 0, "text": talk.text(), "logprobs": null, "finish_reason": talk.finish}]),
        talk.usage(),
    )
}

fn completion_body(talk: &Talk, choices: &Value, usage: Value) -> Value {
    let mut body = json!({"id": talk.id, "object": "text_completion", "created": talk.created, "model": talk.model,
                          "choices": choices});
    if talk.include_usage || !talk.stream {
        body["usage"] = usage;
    }
    body
}

fn completion_events(talk: &Talk) -> Vec<(bool, Bytes)> {
    let last = talk.pieces.len().saturating_sub(1);
    let words = talk.pieces.iter().enumerate().map(|(at, piece)| {
        let finish = (at == last).then_some(talk.finish);
        let choice = json!([{"index": 0, "text": piece, "logprobs": null, "finish_reason": finish}]);
        (true, sse::event(&completion_body(talk, &choice, Value::Null)))
    });
    let usage = talk.include_usage.then(|| (false, sse::event(&completion_body(talk, &json!([]), talk.usage()))));
    words.chain(usage).chain([(false, Bytes::from_static(b"data: [DONE]\n\n"))]).collect()
}

fn plan_response(nim: &Nim, value: &Value) -> Result<Talk, Refusal> {
    let model = nim.served(value)?;
    let prompt = match value.get("input") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if !items.is_empty() => items.iter().map(Value::to_string).collect(),
        _ => return Err(Refusal::bad("input: Field required")),
    };
    let limit = limit(value, &["max_output_tokens"])?;
    let mut talk = Talk::new("resp", model, &prompt, limit, false).counted(nim, 0);
    talk.stream = super::chat::flag(value, "stream");
    Ok(talk)
}

fn response(talk: &Talk, status: &str, text: &str) -> Value {
    let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
    let output = if text.is_empty() {
        json!([])
    } else {
        let id = format!("msg_{}", talk.id);
        json!([{"id": id, "type": "message", "role": "assistant", "status": status, "content": content}])
    };
    let incomplete = talk.finish == "length" && status == "completed";
    let usage = json!({"input_tokens": talk.prompt_tokens, "output_tokens": talk.pieces.len(),
                       "total_tokens": talk.prompt_tokens + talk.pieces.len()});
    json!({"id": talk.id, "object": "response", "created_at": talk.created, "model": talk.model,
           "status": if incomplete { "incomplete" } else { status },
           "incomplete_details": incomplete.then(|| json!({"reason": "max_output_tokens"})),
           "output": output, "usage": if text.is_empty() { Value::Null } else { usage }})
}

/// This endpoint names its events and has no `[DONE]`.
fn response_events(talk: &Talk) -> Vec<(bool, Bytes)> {
    let item = format!("msg_{}", talk.id);
    let mut events = vec![(false, "response.created", json!({"response": response(talk, "in_progress", "")}))];
    events.extend(talk.pieces.iter().map(|piece| {
        let delta = json!({"item_id": item, "output_index": 0, "content_index": 0, "delta": piece});
        (true, "response.output_text.delta", delta)
    }));
    let done = json!({"item_id": item, "output_index": 0, "content_index": 0, "text": talk.text()});
    events.push((false, "response.output_text.done", done));
    events.push((false, "response.completed", json!({"response": response(talk, "completed", &talk.text())})));
    let numbered = events.into_iter().enumerate().map(|(at, (paced, name, mut value))| {
        value["type"] = json!(name);
        value["sequence_number"] = json!(at);
        (paced, sse::named_event(name, &value))
    });
    numbered.collect()
}
