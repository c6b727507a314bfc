//! Request bodies of a given size, as SDKs send them. The micro-benches read them too.

use serde_json::{Value, json};

/// The model of the chat requests.
pub const CHAT_MODEL: &str = "meta/llama-3.1-8b-instruct";
/// The model of the embedding requests.
pub const EMBEDDING_MODEL: &str = "nvidia/nv-embedqa-e5-v5";

const PROSE: &str = "The scheduler keeps every slot of the batch busy, and a request that waits is told so.\nIts \
    \"time to first token\" then counts from the slot on, not from the queue. ";

/// A chat request of about `bytes` bytes: a conversation of so many messages.
pub fn chat(bytes: usize, messages: usize, stream: bool) -> Vec<u8> {
    let envelope = chat_with(0, messages, stream).len();
    chat_with(bytes.saturating_sub(envelope) / messages.max(1), messages, stream)
}

/// An embedding request of so many passages of some 160 characters each.
pub fn embeddings(texts: usize) -> Vec<u8> {
    let input: Vec<String> = (0..texts).map(|at| format!("{at}: {}", prose(160))).collect();
    let body = json!({ "model": EMBEDDING_MODEL, "input": input, "input_type": "passage", "encoding_format": "float",
        "truncate": "END" });
    body.to_string().into_bytes()
}

fn chat_with(characters: usize, messages: usize, stream: bool) -> Vec<u8> {
    let role = |at: usize| match at {
        0 => "system",
        odd if odd % 2 == 1 => "user",
        _ => "assistant",
    };
    let messages: Vec<Value> =
        (0..messages).map(|at| json!({ "role": role(at), "content": prose(characters) })).collect();
    // The upstream of the macro bench looks for `stream` in the first bytes.
    let (model, messages) = (json!(CHAT_MODEL), json!(messages));
    let head = format!(r#"{{"model":{model},"stream":{stream},"temperature":0.2,"top_p":0.7,"max_tokens":256"#);
    format!(r#"{head},"messages":{messages}}}"#).into_bytes()
}

fn prose(characters: usize) -> String {
    PROSE.chars().cycle().take(characters).collect()
}
