//! What an answer says: its texts, its reasoning and its calls of tools, choice by choice, within a bound. Read only
//! where somebody keeps it.

use std::collections::BTreeMap;
use std::mem::discriminant;

use bytes::Bytes;
use serde_json::Value;

use super::Finish;

/// A document above this many bytes is not read.
const LARGEST_DOCUMENT: usize = 1024 * 1024;
/// What a part costs beside its text, so that empty ones have a bound too.
pub const PART_COST: usize = 16;

/// How much may still be kept.
#[derive(Clone, Debug)]
pub struct Room {
    /// In bytes.
    pub left: usize,
    /// Whether something found none.
    pub is_cut: bool,
}

/// A text, as far as there was room for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The beginning of it, or all.
    pub text: String,
    /// Whether it goes on.
    pub is_cut: bool,
}

/// What an answer says.
#[derive(Debug)]
pub struct Said {
    room: Room,
    choices: BTreeMap<u64, Choice>,
    document: Vec<u8>,
}

/// One of several answers to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What it consists of, in its order.
    pub pieces: Vec<Piece>,
    /// Why it ended, where it says so itself.
    pub finish: Finish,
}

/// A part of what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for the caller.
    Text(Kept),
    /// What the model thought.
    Reasoning(Kept),
    /// A tool that it calls.
    Call {
        /// The place of the call in its stream, by which later pieces of it go on.
        at: Option<u64>,
        /// The id of the call.
        id: Kept,
        /// The tool.
        name: Kept,
        /// Its arguments: JSON, as far as it has come.
        arguments: Kept,
    },
}

impl Room {
    /// So many bytes.
    pub fn of(bytes: usize) -> Self {
        Self { left: bytes, is_cut: false }
    }

    /// Takes the place of a part, if there is any.
    pub fn enter(&mut self) -> bool {
        let left = self.left.checked_sub(PART_COST);
        self.is_cut |= left.is_none();
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// What fits of a text.
    pub fn keep(&mut self, text: &str) -> Kept {
        let mut kept = Kept::default();
        kept.append(text, self);
        kept
    }
}

impl Kept {
    /// Adds what there is room for.
    pub fn append(&mut self, text: &str, room: &mut Room) {
        let fitting = text.floor_char_boundary(text.len().min(room.left));
        self.is_cut |= fitting < text.len();
        room.is_cut |= self.is_cut;
        room.left = if fitting < text.len() { 0 } else { room.left - fitting };
        self.text.push_str(&text[..fitting]);
    }
}

impl Said {
    /// Nothing yet. At most so many bytes are kept.
    pub(super) fn new(most: usize) -> Self {
        Self { room: Room::of(most), choices: BTreeMap::new(), document: Vec::new() }
    }

    /// The choices, in their order.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.values()
    }

    /// Whether there was more than is kept.
    pub fn is_cut(&self) -> bool {
        self.room.is_cut
    }

    /// Something went by unread.
    pub(super) fn skip(&mut self) {
        self.room.is_cut = true;
    }

    /// Bytes of a document.
    pub(super) fn piece(&mut self, bytes: &Bytes) {
        if self.room.is_cut || self.document.len() + bytes.len() > LARGEST_DOCUMENT {
            self.room.is_cut = true;
            self.document = Vec::new();
        } else {
            self.document.extend_from_slice(bytes);
        }
    }

    /// The document has ended, or will not go on.
    pub(super) fn end(&mut self) {
        let document = std::mem::take(&mut self.document);
        if document.is_empty() {
            return;
        }
        let Ok(document) = serde_json::from_slice::<Value>(&document) else { return self.skip() };
        self.choices_of(&document);
        // The Responses API, the Messages API, Llama Stack.
        let items = [&document["output"], &document["content"]].into_iter().filter_map(Value::as_array).flatten();
        items.for_each(|item| self.item(0, None, item));
        self.message(0, &document["completion_message"]);
        self.text(0, &document["content"]);
    }

    /// The data of an event, in the words of any API.
    pub(super) fn event(&mut self, data: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return };
        self.choices_of(&event);
        let delta = &event["delta"];
        let [output, block] = ["output_index", "index"].map(|name| event[name].as_u64());
        match event["type"].as_str().unwrap_or_default() {
            "response.output_text.delta" | "response.refusal.delta" => self.text(0, delta),
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => self.reasoning(0, delta),
            "response.function_call_arguments.delta" => self.arguments(0, output, delta),
            // What comes later in pieces is empty here.
            "response.output_item.added" => self.item(0, output, &event["item"]),
            "content_block_start" => self.item(0, block, &event["content_block"]),
            "content_block_delta" => {
                self.text(0, &delta["text"]);
                self.reasoning(0, &delta["thinking"]);
                self.arguments(0, block, &delta["partial_json"]);
            }
            _ => {}
        }
        // Llama Stack.
        let delta = &event["event"]["delta"];
        [delta, &delta["text"]].into_iter().for_each(|text| self.text(0, text));
    }

    /// Choices of chat and of completions, whole or a piece of them.
    fn choices_of(&mut self, object: &Value) {
        let listed = object["choices"].as_array().into_iter().flatten();
        for (at, choice) in listed.enumerate() {
            let index = choice["index"].as_u64().unwrap_or(at as u64);
            self.text(index, &choice["text"]);
            self.message(index, &choice["message"]);
            self.message(index, &choice["delta"]);
            if let Some(reason) = choice["finish_reason"].as_str()
                && let Some(choice) = self.choice(index)
            {
                choice.finish = Finish::named(reason);
            }
        }
    }

    fn message(&mut self, index: u64, message: &Value) {
        // Some releases send the same reasoning under both names.
        let reasoning = [&message["reasoning_content"], &message["reasoning"]].into_iter().find(|r| r.is_string());
        reasoning.into_iter().for_each(|reasoning| self.reasoning(index, reasoning));
        self.text(index, &message["content"]);
        self.text(index, &message["refusal"]);
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        calls.for_each(|call| self.call(index, call["index"].as_u64(), &call["id"], &call["function"]));
        // What tools were called before they had ids.
        if message["function_call"].is_object() {
            self.call(index, Some(0), &Value::Null, &message["function_call"]);
        }
    }

    /// An item of an answer's content: what it is stands in its `type`.
    fn item(&mut self, index: u64, at: Option<u64>, item: &Value) {
        match item["type"].as_str().unwrap_or_default() {
            "message" => item["content"].as_array().into_iter().flatten().for_each(|part| self.item(index, at, part)),
            "text" | "output_text" => self.text(index, &item["text"]),
            "refusal" => self.text(index, &item["refusal"]),
            "thinking" => self.reasoning(index, &item["thinking"]),
            "reasoning_text" | "summary_text" => self.reasoning(index, &item["text"]),
            "reasoning" => {
                let parts = [&item["summary"], &item["content"]].into_iter().filter_map(Value::as_array).flatten();
                parts.for_each(|part| self.item(index, at, part));
            }
            "function_call" => self.call(index, at, &item["call_id"], item),
            "tool_use" => {
                self.call(index, at, &item["id"], item);
                let input = &item["input"];
                if input.as_object().is_some_and(|input| !input.is_empty()) {
                    self.arguments(index, at, &Value::from(input.to_string()));
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
    fn add(&mut self, index: u64, text: &Value, kind: fn(Kept) -> Piece) {
        let Some(text) = text.as_str().filter(|text| !text.is_empty()) else { return };
        let new = kind(Kept::default());
        let last = self.choices.get(&index).and_then(|choice| choice.pieces.last());
        if last.is_none_or(|last| discriminant(last) != discriminant(&new)) && !self.begin(index, new) {
            return;
        }
        let last = self.choices.get_mut(&index).and_then(|choice| choice.pieces.last_mut());
        if let Some(Piece::Text(last) | Piece::Reasoning(last)) = last {
            last.append(text, &mut self.room);
        }
    }

    /// A call of a function, or the next piece of one.
    fn call(&mut self, index: u64, at: Option<u64>, id: &Value, function: &Value) {
        let (id, name) = (id.as_str(), function["name"].as_str());
        let goes_on = at.is_some()
            && match called(&mut self.choices, index, at) {
                Some(Piece::Call { id: own, .. }) => id.is_none_or(|id| id == own.text),
                _ => false,
            };
        if !goes_on {
            let [id, name] = [id, name].map(|text| self.room.keep(text.unwrap_or_default()));
            self.begin(index, Piece::Call { at, id, name, arguments: Kept::default() });
        }
        self.arguments(index, at, &function["arguments"]);
    }

    fn arguments(&mut self, index: u64, at: Option<u64>, text: &Value) {
        let text = match text {
            Value::Null => return,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match called(&mut self.choices, index, at) {
            Some(Piece::Call { arguments, .. }) => arguments.append(&text, &mut self.room),
            _ => self.skip(),
        }
    }

    /// Begins a piece, if there is room.
    fn begin(&mut self, index: u64, piece: Piece) -> bool {
        if !self.room.enter() {
            return false;
        }
        let Some(choice) = self.choice(index) else { return false };
        choice.pieces.push(piece);
        true
    }

    /// A choice, if there is room for it where it is new.
    fn choice(&mut self, index: u64) -> Option<&mut Choice> {
        if !self.choices.contains_key(&index) && !self.room.enter() {
            return None;
        }
        Some(self.choices.entry(index).or_default())
    }
}

/// The last call at a place of a choice, or its last one where no place is said.
fn called(choices: &mut BTreeMap<u64, Choice>, index: u64, place: Option<u64>) -> Option<&mut Piece> {
    let is_meant = |piece: &&mut Piece| match piece {
        Piece::Call { at, .. } => place.is_none() || *at == place,
        _ => false,
    };
    choices.get_mut(&index)?.pieces.iter_mut().rev().find(is_meant)
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

    fn kept(text: &str) -> Kept {
        Kept { text: text.into(), is_cut: false }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(kept(text))
    }

    fn reasoning(text: &str) -> Piece {
        Piece::Reasoning(kept(text))
    }

    fn call(id: &str, name: &str, arguments: &str) -> Piece {
        let [id, name, arguments] = [id, name, arguments].map(kept);
        Piece::Call { at: None, id, name, arguments }
    }

    /// The choices; where in their streams calls came does not matter.
    fn choices(said: &Said) -> Vec<(Vec<Piece>, Finish)> {
        let anywhere = |piece: &Piece| match piece.clone() {
            Piece::Call { id, name, arguments, .. } => Piece::Call { at: None, id, name, arguments },
            other => other,
        };
        said.choices().map(|choice| (choice.pieces.iter().map(anywhere).collect(), choice.finish)).collect()
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
                "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "c2", "function": {"name": "g", "arguments": ""}}]}},
            {"index": 1, "message": {"content": "other"}}]}));
        let pieces = vec![reasoning("hm"), text("Hello"), call("c1", "f", "{\"a\":1}"), call("c2", "g", "")];
        for said in [&chat, &whole] {
            let wanted = [(pieces.clone(), Finish::ToolCalls), (vec![text("other")], Finish::Unknown)];
            assert_eq!(choices(said), wanted);
            assert!(!said.is_cut());
        }
    }

    #[test]
    fn pieces_of_calls_find_their_call() {
        let delta = |calls: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]});
        let piece = |at: u64, text: &str| json!([{"index": at, "function": {"arguments": text}}]);
        let whole = |at: u64, id: &str, text: &str| json!([{"index": at, "id": id, "function": {"name": "f", "arguments": text}}]);
        // A place that counts from one, the same place twice, and each piece with the call's id.
        let said = of_events(&[
            delta(whole(1, "a", "")),
            delta(piece(1, "1")),
            delta(whole(1, "b", "2")),
            delta(whole(1, "b", "3")),
            delta(piece(1, "4")),
        ]);
        let wanted = vec![call("a", "f", "1"), call("b", "f", "234")];
        assert_eq!(choices(&said), [(wanted, Finish::Unknown)]);
        let item = |at: u64, id: &str| {
            json!({"type": "response.output_item.added", "output_index": at,
            "item": {"type": "function_call", "call_id": id, "name": "f", "arguments": ""}})
        };
        let more = |at: u64, text: &str| json!({"type": "response.function_call_arguments.delta", "output_index": at, "delta": text});
        let said = of_events(&[item(0, "a"), item(1, "b"), more(0, "1"), more(1, "2")]);
        assert_eq!(choices(&said), [(vec![call("a", "f", "1"), call("b", "f", "2")], Finish::Unknown)]);
        // What belongs to no call is said to be missing.
        assert!(of_events(&[more(3, "x")]).is_cut());
        let old = json!({"choices": [{"message": {"function_call": {"name": "f", "arguments": "{}"}}, "finish_reason": "function_call"}]});
        assert_eq!(choices(&of_document(&old)), [(vec![call("", "f", "{}")], Finish::ToolCalls)]);
    }

    #[test]
    fn every_api_is_understood() {
        let completion = of_document(&json!({"choices": [{"text": "once", "finish_reason": "length"}]}));
        assert_eq!(choices(&completion), [(vec![text("once")], Finish::Length)]);
        let filtered =
            of_document(&json!({"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}));
        assert_eq!(choices(&filtered), [(vec![], Finish::ContentFilter)]);
        let responses = of_document(&json!({"output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": null},
            {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}));
        let all = vec![reasoning("hm"), text("yes"), call("c", "f", "{}")];
        assert_eq!(choices(&responses), [(all.clone(), Finish::Unknown)]);
        let streamed = of_events(&[
            json!({"type": "response.reasoning_text.delta", "delta": "hm"}),
            json!({"type": "response.output_text.delta", "delta": "y"}),
            json!({"type": "response.output_text.delta", "delta": "es"}),
            json!({"type": "response.output_item.added", "item": {"type": "function_call", "call_id": "c", "name": "f"}}),
            json!({"type": "response.function_call_arguments.delta", "delta": "{}"}),
        ]);
        assert_eq!(choices(&streamed), [(all, Finish::Unknown)]);
        let message =
            of_document(&json!({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}], "stop_reason": "tool_use"}));
        let events = of_events(&[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "yes"}}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"a\":1}"}}),
        ]);
        for said in [message, events] {
            let all = vec![reasoning("hm"), text("yes"), call("t", "f", "{\"a\":1}")];
            assert_eq!(choices(&said), [(all, Finish::Unknown)]);
        }
        let stack =
            of_events(&[json!({"event": {"delta": {"type": "text", "text": "ye"}}}), json!({"event": {"delta": "s"}})]);
        assert_eq!(choices(&stack), [(vec![text("yes")], Finish::Unknown)]);
        let stack = of_document(&json!({"completion_message": {"role": "assistant", "content": "yes"}}));
        assert_eq!(choices(&stack), [(vec![text("yes")], Finish::Unknown)]);
        let vectors = of_document(&json!({"data": [{"embedding": [0.5]}]}));
        assert_eq!(choices(&vectors), []);
        assert!(!vectors.is_cut());
    }

    #[test]
    fn nothing_is_kept_beyond_the_bound() {
        let mut said = Said::new(2 * PART_COST + 24);
        let event = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string();
        (0..100).for_each(|_| said.event(event("äöü").as_bytes()));
        let wanted = Piece::Text(Kept { text: "äöüäöüäöüäöü".into(), is_cut: true });
        assert_eq!(choices(&said), [(vec![wanted], Finish::Unknown)]);
        assert!(said.is_cut());
        // Why it ended is still heard.
        said.event(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).to_string().as_bytes());
        assert_eq!(choices(&said)[0].1, Finish::Stop);
        // Neither by many choices nor by many calls.
        let mut said = Said::new(200);
        let one = |at: u64| json!({"choices": [{"index": at, "delta": {}, "finish_reason": "stop"}]});
        (0..100).for_each(|at| said.event(one(at).to_string().as_bytes()));
        assert!(said.choices().count() <= 12 && said.is_cut());
        let calls: Vec<Value> = (0..1000).map(|_| json!({"function": {"name": ""}})).collect();
        let said = of_document(&json!({"choices": [{"message": {"tool_calls": calls}}]}));
        assert!(said.is_cut() && said.choices().all(|choice| choice.pieces.len() <= ROOM / PART_COST));
    }

    #[test]
    fn what_can_not_be_read_is_said_to_be_missing() {
        let mut said = Said::new(ROOM);
        said.piece(&Bytes::from(vec![b' '; LARGEST_DOCUMENT]));
        said.piece(&Bytes::from_static(b"{}"));
        said.end();
        assert!(said.is_cut() && said.choices().next().is_none());
        let mut said = Said::new(ROOM);
        said.piece(&Bytes::from_static(b"{\"choices\": [{\"text\": \"on"));
        said.end();
        assert!(said.is_cut());
    }
}
