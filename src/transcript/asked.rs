//! What a request asks, in the words of any API: messages, prompts, queries.

use std::borrow::Cow;

use serde_json::Value;

use crate::meter::said::{Kept, Room};
use crate::schema::Document;

/// The longest name of a role that is kept whole.
const LONGEST_ROLE: usize = 32;
/// A data URL names its type within so many bytes.
const MEDIA_HEAD: usize = 256;
/// What stands in place of media.
const LEFT_OUT: &str = "[left out]";
/// What stands for media of which nothing is shown.
const MEDIA: &str = "data:;base64,[left out]";

/// What a request asks.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the model was told to be, apart from the conversation.
    pub(super) system: Vec<Part>,
    /// The conversation, in its order.
    pub(super) messages: Vec<Message>,
    /// Whether there was more than is kept.
    pub(super) is_cut: bool,
}

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
    Text(Kept),
    /// What a model thought before.
    Reasoning(Kept),
    /// An image, a video, a sound: where it is, or how it was encoded.
    Media { modality: &'static str, url: Kept },
    /// A tool that was called.
    Call { id: Kept, name: Kept, arguments: Kept },
    /// What a tool answered.
    Result { id: Kept, text: Kept },
}

impl Asked {
    /// Reads a body. At most so many bytes are kept of what the model was told to be, and of the conversation, whose
    /// oldest messages are what finds no room.
    pub(super) fn read(body: &Value, most: usize) -> Self {
        // Of NVCF's older way to invoke a function.
        let body = body.get("requestBody").filter(|inner| inner.is_object()).unwrap_or(body);
        let member = |name: &str| body.get(name).filter(|stated| !stated.is_null());
        let mut room = Room::of(most);
        let system = ["system", "instructions"].into_iter().find_map(member);
        let system = system.map(|system| parts(system, &mut room)).unwrap_or_default();
        let is_system_cut = room.is_cut;
        let mut room = Room::of(most);
        let mut messages = Vec::new();
        // The newest first. What is no conversation is one message.
        for stated in ["query", "passages", "content", "prompt", "input", "messages"].into_iter().filter_map(member) {
            let one = std::slice::from_ref(stated);
            let items = stated.as_array().filter(|items| items.iter().all(is_message)).map_or(one, Vec::as_slice);
            for item in items.iter().rev() {
                if !room.enter() {
                    break;
                }
                messages.extend(message(item, &mut room));
            }
        }
        messages.reverse();
        Self { system, messages, is_cut: is_system_cut || room.is_cut }
    }

    /// Whether it asks anything.
    pub(super) fn is_any(&self) -> bool {
        !self.system.is_empty() || !self.messages.is_empty()
    }
}

/// Whether it is a message or an item of a conversation, and no text or document.
fn is_message(item: &Value) -> bool {
    item.get("role").is_some() || item.get("type").is_some_and(|kind| kind != "text")
}

fn message(item: &Value, room: &mut Room) -> Option<Message> {
    let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
    let role = match (item.get("role").and_then(Value::as_str), kind) {
        (Some(role), _) => &role[..role.floor_char_boundary(role.len().min(LONGEST_ROLE))],
        (None, "function_call" | "reasoning") => "assistant",
        (None, "function_call_output") => "tool",
        (None, _) => "user",
    };
    let content = item.get("content").filter(|content| !content.is_null());
    let mut found = match (content, item.get("tool_call_id").filter(|id| id.is_string())) {
        (Some(content), Some(id)) => vec![Part::Result { id: word(id, room), text: joined(content, room) }],
        (Some(content), None) => parts(content, room),
        (None, _) if item.is_array() => parts(item, room),
        (None, _) => part(item, room).into_iter().collect(),
    };
    if item.get("role").is_some() {
        let reasoning = ["reasoning_content", "reasoning"].into_iter().filter_map(|name| item.get(name));
        found.extend(reasoning.filter(|text| text.is_string()).take(1).map(|text| Part::Reasoning(word(text, room))));
        for call in item.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            if !room.enter() {
                break;
            }
            found.push(called(&call["id"], &call["function"], room));
        }
        // What tools were called before they had ids.
        let call = item.get("function_call").filter(|call| call.is_object());
        found.extend(call.map(|call| called(&Value::Null, call, room)));
    }
    (!found.is_empty()).then(|| Message { role: role.to_owned(), parts: found })
}

/// The parts of a content: a text, a list of texts, or a list of typed parts. Tokens are no text.
fn parts(content: &Value, room: &mut Room) -> Vec<Part> {
    let items = content.as_array().map_or(std::slice::from_ref(content), Vec::as_slice);
    let mut found = Vec::new();
    for item in items.iter().filter(|item| item.is_string() || item.is_object()) {
        if !room.enter() {
            break;
        }
        found.extend(part(item, room));
    }
    found
}

fn part(item: &Value, room: &mut Room) -> Option<Part> {
    let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "thinking" => Some(Part::Reasoning(word(&item["thinking"], room))),
        "reasoning_text" => Some(Part::Reasoning(word(&item["text"], room))),
        "reasoning" => Some(Part::Reasoning(joined(&item["summary"], room))),
        "tool_use" => {
            let (id, name) = (word(&item["id"], room), word(&item["name"], room));
            Some(Part::Call { id, name, arguments: word(&item["input"], room) })
        }
        "function_call" => Some(called(&item["call_id"], item, room)),
        "tool_result" => {
            Some(Part::Result { id: word(&item["tool_use_id"], room), text: joined(&item["content"], room) })
        }
        "function_call_output" => {
            Some(Part::Result { id: word(&item["call_id"], room), text: joined(&item["output"], room) })
        }
        "image_url" | "input_image" | "image" => Some(media("image", item, room)),
        "video_url" | "input_video" | "video" => Some(media("video", item, room)),
        "audio_url" | "input_audio" | "audio" => Some(media("audio", item, room)),
        "input_file" | "file" | "document" => Some(media("document", item, room)),
        _ => {
            let text = ["text", "refusal"].into_iter().find_map(|name| item.get(name)?.as_str());
            let text = item.as_str().or(text).filter(|text| !text.is_empty());
            match text {
                Some(text) => Some(Part::Text(kept(text, room))),
                None => item.get("image").map(|_| media("image", item, room)),
            }
        }
    }
}

/// Something that is no text: its URL, where it has one.
fn media(modality: &'static str, item: &Value, room: &mut Room) -> Part {
    const PLACES: [&str; 6] = ["image_url", "video_url", "audio_url", "image", "file_url", "source"];
    let stated = PLACES.into_iter().find_map(|name| item.get(name));
    let url = stated.and_then(|stated| stated.as_str().or_else(|| stated.get("url").and_then(Value::as_str)));
    Part::Media { modality, url: kept(url.unwrap_or(MEDIA), room) }
}

/// A call of a function.
fn called(id: &Value, function: &Value, room: &mut Room) -> Part {
    let (id, name) = (word(id, room), word(&function["name"], room));
    Part::Call { id, name, arguments: word(&function["arguments"], room) }
}

/// A text, or an object as one.
fn word(value: &Value, room: &mut Room) -> Kept {
    match value {
        Value::Null => Kept::default(),
        Value::String(text) => kept(text, room),
        other => kept(&other.to_string(), room),
    }
}

/// All text of a content.
fn joined(content: &Value, room: &mut Room) -> Kept {
    let mut all = Kept::default();
    for (at, part) in parts(content, room).into_iter().enumerate() {
        if let Part::Text(more) | Part::Reasoning(more) = part {
            all.text += if at > 0 { "\n" } else { "" };
            all.text += &more.text;
            all.is_cut |= more.is_cut;
        }
    }
    all
}

/// What there is room for, without media.
fn kept(text: &str, room: &mut Room) -> Kept {
    let genuine = Document::genuine(text);
    let shown = without_media(genuine);
    // Of media nothing would be shown however long they are.
    let is_media = matches!(shown, Cow::Owned(_)) && shown.ends_with(LEFT_OUT);
    let mut kept = room.keep(&shown);
    kept.is_cut |= genuine.len() < text.len() && !is_media;
    room.is_cut |= kept.is_cut;
    kept
}

/// A text; of a data URL that it begins with, the type alone.
fn without_media(text: &str) -> Cow<'_, str> {
    let head = &text[..text.floor_char_boundary(text.len().min(MEDIA_HEAD))];
    match head.split_once(";base64,").filter(|(kind, _)| kind.starts_with("data:")) {
        Some((kind, _)) => {
            let encoded = &text[kind.len() + ";base64,".len()..];
            let is_encoded = |b: u8| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b);
            let end = encoded.bytes().position(|b| !is_encoded(b)).unwrap_or(encoded.len());
            let shown = if end > 0 { LEFT_OUT } else { "" };
            Cow::Owned(format!("{kind};base64,{shown}{}", &encoded[end..]))
        }
        None => Cow::Borrowed(text),
    }
}
