//! What a request asks, in the words of any API: messages, prompts, queries.

use serde_json::Value;

use super::Room;
use super::redact::without_media;

/// What a part costs beside its text, so that empty ones have a bound too.
const PART_COST: usize = 16;
/// The longest name of a role that is kept whole.
const LONGEST_ROLE: usize = 32;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Who wrote it: `user`, `assistant`, `system`, `tool`, …
    pub(super) role: String,
    /// What it consists of.
    pub(super) parts: Vec<Part>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text.
    Text(String),
    /// What a model thought before.
    Reasoning(String),
    /// An image, a video, a sound: where it is, or how it was encoded.
    Media { modality: &'static str, url: String },
    /// A tool that was called.
    Call { id: String, name: String, arguments: String },
    /// What a tool answered.
    Result { id: String, text: String },
}

/// What the model was told to be, and the messages, in their order. What finds no room is left out, the oldest first.
pub(super) fn read(body: &Value, room: &mut Room) -> (Vec<Part>, Vec<Message>) {
    // Of NVCF's older way to invoke a function.
    let body = body.get("requestBody").filter(|inner| inner.is_object()).unwrap_or(body);
    let system = ["system", "instructions"].into_iter().find_map(|name| body.get(name));
    let system = system.map(|system| parts(system, room)).unwrap_or_default();
    let mut messages = Vec::new();
    // Newest first, until there is no room: lists of messages and of items, then what is no conversation.
    for name in ["passages", "query", "prompt", "input", "messages"] {
        let Some(stated) = body.get(name) else { continue };
        let items = std::slice::from_ref(stated);
        let items = stated.as_array().filter(|items| items.iter().all(is_message)).map_or(items, Vec::as_slice);
        for item in items.iter().rev() {
            if room.left < PART_COST {
                room.is_cut = true;
                break;
            }
            messages.extend(message(item, room));
        }
    }
    messages.reverse();
    (system, messages)
}

/// Whether it is a message or an item of a conversation, and no text or document.
fn is_message(item: &Value) -> bool {
    item.get("role").is_some() || item.get("type").is_some_and(|kind| kind != "text")
}

fn message(item: &Value, room: &mut Room) -> Option<Message> {
    let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
    let role = match (item.get("role").and_then(Value::as_str), kind) {
        (Some(role), _) => role[..role.floor_char_boundary(role.len().min(LONGEST_ROLE))].to_owned(),
        (None, "function_call" | "reasoning") => "assistant".to_owned(),
        (None, "function_call_output") => "tool".to_owned(),
        (None, _) => "user".to_owned(),
    };
    let mut found = match (item.get("content"), item.get("tool_call_id")) {
        (Some(content), Some(id)) => vec![Part::Result { id: word(id, room), text: joined(content, room) }],
        (Some(content), None) => parts(content, room),
        (None, _) => parts(item, room),
    };
    for call in item.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        found.extend(called(&call["id"], &call["function"], room));
    }
    (!found.is_empty()).then_some(Message { role, parts: found })
}

/// The parts of a content: a text, a list of texts, or a list of typed parts. Tokens are no text.
fn parts(content: &Value, room: &mut Room) -> Vec<Part> {
    match content {
        Value::Array(items) => {
            let mut found = Vec::new();
            for item in items {
                if room.left < PART_COST {
                    room.is_cut = true;
                    break;
                }
                found.extend(part(item, room));
            }
            found
        }
        one => part(one, room).into_iter().collect(),
    }
}

fn part(item: &Value, room: &mut Room) -> Option<Part> {
    if !item.is_string() && !item.is_object() {
        return None;
    }
    room.left = room.left.saturating_sub(PART_COST);
    let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "thinking" | "reasoning" => {
            return Some(Part::Reasoning(match item.get("thinking") {
                Some(thought) => word(thought, room),
                None => joined(&item["summary"], room),
            }));
        }
        "tool_use" => {
            let arguments = Value::from(item["input"].to_string());
            let (id, name) = (word(&item["id"], room), word(&item["name"], room));
            return Some(Part::Call { id, name, arguments: word(&arguments, room) });
        }
        "function_call" => return called(&item["call_id"], item, room),
        "tool_result" => {
            return Some(Part::Result { id: word(&item["tool_use_id"], room), text: joined(&item["content"], room) });
        }
        "function_call_output" => {
            return Some(Part::Result { id: word(&item["call_id"], room), text: joined(&item["output"], room) });
        }
        _ => {}
    }
    for (name, modality) in
        [("image_url", "image"), ("video_url", "video"), ("audio_url", "audio"), ("source", "image")]
    {
        let Some(place) = item.get(name) else { continue };
        let url = place.as_str().or_else(|| place.get("url").and_then(Value::as_str)).unwrap_or("data:[left out]");
        return Some(Part::Media { modality, url: room.take(&without_media(url)).to_owned() });
    }
    if item.get("input_audio").is_some() {
        return Some(Part::Media { modality: "audio", url: "data:[left out]".to_owned() });
    }
    let text = if item.is_string() { item } else { item.get("text")? };
    let text = text.as_str().filter(|text| !text.is_empty())?;
    Some(Part::Text(room.take(&without_media(text)).to_owned()))
}

/// A call of a function.
fn called(id: &Value, function: &Value, room: &mut Room) -> Option<Part> {
    let name = function.get("name")?;
    room.left = room.left.saturating_sub(PART_COST);
    let (id, name) = (word(id, room), word(name, room));
    Some(Part::Call { id, name, arguments: word(&function["arguments"], room) })
}

fn word(value: &Value, room: &mut Room) -> String {
    room.take(&without_media(value.as_str().unwrap_or_default())).to_owned()
}

/// All text of a content.
fn joined(content: &Value, room: &mut Room) -> String {
    let texts = parts(content, room).into_iter().filter_map(|part| match part {
        Part::Text(text) | Part::Reasoning(text) => Some(text),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}
