//! What an answer says: its texts, its reasoning and its calls of tools, choice by choice, within a bound. Read only
//! where somebody keeps it.

use std::collections::BTreeMap;
use std::mem::discriminant;

use bytes::Bytes;
use serde_json::Value;

/// A document above this many bytes is not read.
const LARGEST_DOCUMENT: usize = 1024 * 1024;
/// What a piece costs beside its text, so that empty ones have a bound too.
const PIECE_COST: usize = 16;

/// What an answer says.
#[derive(Debug)]
pub struct Said {
    /// Bytes that may still be kept.
    room: usize,
    choices: BTreeMap<u64, Choice>,
    is_cut: bool,
    document: Vec<u8>,
}

/// One of several answers to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What it consists of, in its order.
    pub pieces: Vec<Piece>,
    /// Why it ended, in the words of its API.
    pub finish: Option<String>,
}

/// A part of what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for the caller.
    Text(String),
    /// What the model thought.
    Reasoning(String),
    /// A tool that it calls.
    Call {
        /// The id of the call.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments: JSON, as far as it has come.
        arguments: String,
    },
}

impl Said {
    /// Nothing yet. At most so many bytes are kept.
    pub(super) fn new(room: usize) -> Self {
        Self { room, choices: BTreeMap::new(), is_cut: false, document: Vec::new() }
    }

    /// The choices, in their order.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.values()
    }

    /// Whether there was more than is kept.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Something went by unread.
    pub(super) fn skip(&mut self) {
        self.is_cut = true;
    }

    /// Bytes of a document.
    pub(super) fn piece(&mut self, bytes: &Bytes) {
        if self.is_cut || self.document.len() + bytes.len() > LARGEST_DOCUMENT {
            self.is_cut = true;
            self.document = Vec::new();
        } else {
            self.document.extend_from_slice(bytes);
        }
    }

    /// The document has ended.
    pub(super) fn end(&mut self) {
        let document = std::mem::take(&mut self.document);
        let Ok(document) = serde_json::from_slice::<Value>(&document) else { return };
        self.choices_of(&document);
        // The Responses API, the Messages API, Llama Stack.
        let items = [&document["output"], &document["content"]].into_iter().filter_map(Value::as_array).flatten();
        items.for_each(|item| self.item(0, item));
        self.message(0, &document["completion_message"]);
        self.text(0, &document["content"]);
        self.finish(0, &document["stop_reason"]);
    }

    /// The data of an event, in the words of any API.
    pub(super) fn event(&mut self, data: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return };
        self.choices_of(&event);
        let delta = &event["delta"];
        match event["type"].as_str().unwrap_or_default() {
            "response.output_text.delta" | "response.refusal.delta" => self.text(0, delta),
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => self.reasoning(0, delta),
            "response.function_call_arguments.delta" => self.arguments(0, None, delta),
            // What comes later in pieces is empty here.
            "response.output_item.added" => self.item(0, &event["item"]),
            "content_block_start" => self.item(0, &event["content_block"]),
            "content_block_delta" => {
                self.text(0, &delta["text"]);
                self.reasoning(0, &delta["thinking"]);
                self.arguments(0, None, &delta["partial_json"]);
            }
            "message_delta" => self.finish(0, &delta["stop_reason"]),
            _ => {}
        }
    }

    /// Choices of chat and of completions, whole or a piece of them.
    fn choices_of(&mut self, object: &Value) {
        let listed = object["choices"].as_array().into_iter().flatten();
        for (at, choice) in listed.enumerate() {
            let index = choice["index"].as_u64().unwrap_or(at as u64);
            self.text(index, &choice["text"]);
            self.message(index, &choice["message"]);
            self.message(index, &choice["delta"]);
            self.finish(index, &choice["finish_reason"]);
        }
    }

    fn message(&mut self, index: u64, message: &Value) {
        // Some releases send the same reasoning under both names.
        let reasoning = [&message["reasoning_content"], &message["reasoning"]].into_iter().find(|r| r.is_string());
        reasoning.into_iter().for_each(|reasoning| self.reasoning(index, reasoning));
        self.text(index, &message["content"]);
        self.text(index, &message["refusal"]);
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if call["id"].is_string() || function["name"].is_string() {
                self.call(index, &call["id"], &function["name"], call["index"].as_u64());
            }
            self.arguments(index, call["index"].as_u64(), &function["arguments"]);
        }
    }

    /// An item of an answer's content: what it is stands in its `type`.
    fn item(&mut self, index: u64, item: &Value) {
        match item["type"].as_str().unwrap_or_default() {
            "message" => item["content"].as_array().into_iter().flatten().for_each(|part| self.item(index, part)),
            "text" | "output_text" => self.text(index, &item["text"]),
            "refusal" => self.text(index, &item["refusal"]),
            "thinking" => self.reasoning(index, &item["thinking"]),
            "reasoning_text" | "summary_text" => self.reasoning(index, &item["text"]),
            "reasoning" => {
                let parts = [&item["summary"], &item["content"]].into_iter().filter_map(Value::as_array).flatten();
                parts.for_each(|part| self.item(index, part));
            }
            "function_call" => {
                self.call(index, &item["call_id"], &item["name"], None);
                self.arguments(index, None, &item["arguments"]);
            }
            "tool_use" => {
                self.call(index, &item["id"], &item["name"], None);
                let input = &item["input"];
                if input.as_object().is_some_and(|input| !input.is_empty()) {
                    self.arguments(index, None, &Value::from(input.to_string()));
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, index: u64, text: &Value) {
        self.add(index, text, Piece::Text);
    }

    fn reasoning(&mut self, index: u64, text: &Value) {
        self.add(index, text, Piece::Reasoning);
    }

    /// Adds to the last piece where it is of the kind, else begins one.
    fn add(&mut self, index: u64, text: &Value, kind: fn(String) -> Piece) {
        let Some(text) = text.as_str().filter(|text| !text.is_empty()) else { return };
        let new = kind(String::new());
        let last = self.choices.get(&index).and_then(|choice| choice.pieces.last());
        let goes_on = last.is_some_and(|last| discriminant(last) == discriminant(&new));
        if !goes_on && !self.begin(index, new) {
            return;
        }
        let last = self.choices.get_mut(&index).and_then(|choice| choice.pieces.last_mut());
        if let Some(Piece::Text(last) | Piece::Reasoning(last)) = last {
            append(last, text, &mut self.room, &mut self.is_cut);
        }
    }

    fn call(&mut self, index: u64, id: &Value, name: &Value, at: Option<u64>) {
        // The one that is there already, where each of its pieces names it.
        if let (Some(_), Some(Piece::Call { id: own, .. })) = (at, self.called(index, at))
            && id.as_str().is_none_or(|id| id == own)
        {
            return;
        }
        let [id, name] = [id, name].map(|text| {
            let mut kept = String::new();
            append(&mut kept, text.as_str().unwrap_or_default(), &mut self.room, &mut self.is_cut);
            kept
        });
        self.begin(index, Piece::Call { id, name, arguments: String::new() });
    }

    fn arguments(&mut self, index: u64, at: Option<u64>, text: &Value) {
        let Some(text) = text.as_str() else { return };
        let (mut room, mut is_cut) = (self.room, self.is_cut);
        if let Some(Piece::Call { arguments, .. }) = self.called(index, at) {
            append(arguments, text, &mut room, &mut is_cut);
        }
        (self.room, self.is_cut) = (room, is_cut);
    }

    /// The call at a place among the calls of a choice, or its last one.
    fn called(&mut self, index: u64, at: Option<u64>) -> Option<&mut Piece> {
        let pieces = self.choices.get_mut(&index)?.pieces.iter_mut();
        let mut calls = pieces.filter(|piece| matches!(piece, Piece::Call { .. }));
        match at {
            Some(at) => calls.nth(usize::try_from(at).ok()?),
            None => calls.next_back(),
        }
    }

    /// Begins a piece, if there is room.
    fn begin(&mut self, index: u64, piece: Piece) -> bool {
        let Some(room) = self.room.checked_sub(PIECE_COST) else {
            self.is_cut = true;
            return false;
        };
        self.room = room;
        self.choices.entry(index).or_default().pieces.push(piece);
        true
    }

    fn finish(&mut self, index: u64, reason: &Value) {
        let (Some(reason), Some(choice)) = (reason.as_str(), self.choices.get_mut(&index)) else { return };
        let mut kept = String::new();
        append(&mut kept, reason, &mut self.room, &mut self.is_cut);
        choice.finish = Some(kept);
    }
}

/// Adds what there is room for.
fn append(to: &mut String, text: &str, room: &mut usize, is_cut: &mut bool) {
    let fitting = text.floor_char_boundary(text.len().min(*room));
    *is_cut |= fitting < text.len();
    *room = if fitting < text.len() { 0 } else { *room - fitting };
    to.push_str(&text[..fitting]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROOM: usize = 4096;

    fn of_events(events: &[Value]) -> Said {
        let mut said = Said::new(ROOM);
        events.iter().for_each(|event| said.event(event.to_string().as_bytes()));
        said
    }

    fn of_document(document: &Value) -> Said {
        let mut said = Said::new(ROOM);
        let text = Bytes::from(document.to_string());
        let (head, tail) = (text.slice(..text.len() / 2), text.slice(text.len() / 2..));
        said.piece(&head);
        said.piece(&tail);
        said.end();
        said
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn call(id: &str, name: &str, arguments: &str) -> Piece {
        Piece::Call { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    fn choices(said: &Said) -> Vec<(Vec<Piece>, Option<&str>)> {
        said.choices().map(|choice| (choice.pieces.clone(), choice.finish.as_deref())).collect()
    }

    #[test]
    fn streams_say_what_whole_answers_say() {
        let chat = of_events(&[
            json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"index": 0, "delta": {"reasoning_content": "hm", "reasoning": "hm"}}]}),
            json!({"choices": [{"index": 1, "delta": {"content": "other"}}, {"index": 0, "delta": {"content": "Hel"}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "lo"}}]}),
            json!({"choices": [{"index": 0, "delta": {"tool_calls": [
                {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{\"a\""}},
                {"index": 1, "id": "c2", "function": {"name": "g", "arguments": ""}}]}}]}),
            json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}}]}),
            json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 1}}),
        ]);
        let whole = of_document(&json!({"choices": [
            {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "reasoning": "hm", "content": "Hello",
                "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{\"a\":1}"}},
                    {"id": "c2", "function": {"name": "g", "arguments": ""}}]}},
            {"index": 1, "message": {"content": "other"}}]}));
        let pieces =
            vec![Piece::Reasoning("hm".into()), text("Hello"), call("c1", "f", "{\"a\":1}"), call("c2", "g", "")];
        for said in [&chat, &whole] {
            assert_eq!(choices(said), [(pieces.clone(), Some("tool_calls")), (vec![text("other")], None)]);
            assert!(!said.is_cut());
        }
    }

    #[test]
    fn every_api_is_understood() {
        let completion = of_document(&json!({"choices": [{"text": "once", "finish_reason": "length"}]}));
        assert_eq!(choices(&completion), [(vec![text("once")], Some("length"))]);
        let responses = of_document(&json!({"output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}));
        let all = vec![Piece::Reasoning("hm".into()), text("yes"), call("c", "f", "{}")];
        assert_eq!(choices(&responses), [(all.clone(), None)]);
        let streamed = of_events(&[
            json!({"type": "response.reasoning_text.delta", "delta": "hm"}),
            json!({"type": "response.output_text.delta", "delta": "y"}),
            json!({"type": "response.output_text.delta", "delta": "es"}),
            json!({"type": "response.output_item.added", "item": {"type": "function_call", "call_id": "c", "name": "f"}}),
            json!({"type": "response.function_call_arguments.delta", "delta": "{}"}),
        ]);
        assert_eq!(choices(&streamed), [(all, None)]);
        let message =
            of_document(&json!({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}], "stop_reason": "tool_use"}));
        let events = of_events(&[
            json!({"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "yes"}}),
            json!({"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}}),
            json!({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{\"a\":1}"}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
        ]);
        for said in [message, events] {
            let all = vec![Piece::Reasoning("hm".into()), text("yes"), call("t", "f", "{\"a\":1}")];
            assert_eq!(choices(&said), [(all, Some("tool_use"))]);
        }
        let stack = of_document(&json!({"completion_message": {"role": "assistant", "content": "yes"}}));
        assert_eq!(choices(&stack), [(vec![text("yes")], None)]);
        let vectors = of_document(&json!({"data": [{"embedding": [0.5]}]}));
        assert_eq!(choices(&vectors), []);
    }

    #[test]
    fn nothing_is_kept_beyond_the_bound() {
        let mut said = Said::new(40);
        let event = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string();
        (0..100).for_each(|_| said.event(event("äöü").as_bytes()));
        assert_eq!(choices(&said), [(vec![text("äöüäöüäöüäöü")], None)]);
        assert!(said.is_cut());
        // Neither by many choices nor by many calls.
        let mut said = Said::new(100);
        (0..100).for_each(|at| {
            said.event(json!({"choices": [{"index": at, "delta": {"content": "x"}}]}).to_string().as_bytes())
        });
        assert!(said.choices().count() < 10 && said.is_cut());
        let mut said = Said::new(ROOM);
        said.piece(&Bytes::from(vec![b' '; LARGEST_DOCUMENT]));
        said.piece(&Bytes::from_static(b"{}"));
        said.end();
        assert!(said.is_cut() && said.choices().next().is_none());
    }
}
