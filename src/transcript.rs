//! Transcript: what a request asked and what it was answered, for its trace, where its pool says so.
//!
//! Kept within a bound while the request runs; blacked out, cut and put into the form of OpenTelemetry's GenAI
//! conventions when its trace is sent. Nothing else of the gateway ever sees it.

use std::sync::Arc;

use serde_json::{Value, json};

mod asked;
mod redact;

use asked::{Message, Part};
pub use redact::{Redactor, Rejected};

use crate::meter::said::{Piece, Said};

/// Bytes kept beyond those that are shown, so that a secret across the bound is still seen for what it is.
const MARGIN: usize = 4096;

/// What a pool wants of it.
#[derive(Debug)]
pub struct Policy {
    /// Bytes of text shown of what was asked, and of what was answered.
    pub most: usize,
    /// What is blacked out.
    pub redactor: Redactor,
}

impl Policy {
    /// Bytes that are kept while a request runs.
    pub fn kept(&self) -> usize {
        self.most + MARGIN
    }
}

/// What was asked.
#[derive(Debug)]
pub struct Transcript {
    policy: Arc<Policy>,
    system: Vec<Part>,
    messages: Vec<Message>,
    is_cut: bool,
}

/// What was asked, and what was answered as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    /// What was asked.
    pub asked: &'a Transcript,
    /// What was answered.
    pub said: Option<&'a Said>,
}

/// A transcript to send: JSON in the form of the conventions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What the model was told to be, apart from the conversation.
    pub system: Option<String>,
    /// The conversation.
    pub input: Option<String>,
    /// The answer.
    pub output: Option<String>,
    /// Whether there was more than is told.
    pub is_cut: bool,
}

impl Transcript {
    /// Keeps what a body asks; nothing where it holds no text for a model.
    pub fn of(policy: &Arc<Policy>, body: &Value) -> Option<Self> {
        let mut room = Room { left: policy.kept(), is_cut: false };
        let (system, messages) = asked::read(body, &mut room);
        let any = !system.is_empty() || !messages.is_empty();
        any.then(|| Self { policy: Arc::clone(policy), system, messages, is_cut: room.is_cut })
    }

    /// Bytes to keep of the answer.
    pub fn answer_bytes(&self) -> usize {
        self.policy.kept()
    }
}

impl Telling<'_> {
    /// What to send of it.
    pub fn tell(self) -> Told {
        let Self { asked, said } = self;
        let Policy { most, redactor } = &*asked.policy;
        let mut shown = Shown { redactor, room: Room { left: *most, is_cut: asked.is_cut } };
        let system = (!asked.system.is_empty()).then(|| shown.parts(&asked.system).to_string());
        // In their order, but the oldest are what the bound leaves out.
        let mut messages: Vec<Value> = asked.messages.iter().rev().map_while(|m| shown.message(m)).collect();
        messages.reverse();
        let input = (!messages.is_empty()).then(|| Value::from(messages).to_string());
        let is_input_cut = shown.room.is_cut;
        let mut shown = Shown { redactor, room: Room { left: *most, is_cut: said.is_some_and(Said::is_cut) } };
        let choices: Vec<Value> = said
            .into_iter()
            .flat_map(Said::choices)
            .map(|choice| {
                let parts: Vec<Value> = choice.pieces.iter().map(|piece| shown.piece(piece)).collect();
                json!({ "role": "assistant", "parts": parts, "finish_reason": finish(choice.finish.as_deref()) })
            })
            .collect();
        let output = (!choices.is_empty()).then(|| Value::from(choices).to_string());
        Told { system, input, output, is_cut: is_input_cut || shown.room.is_cut }
    }
}

/// How much may still be kept, or shown.
#[derive(Debug)]
struct Room {
    left: usize,
    is_cut: bool,
}

impl Room {
    /// What fits of a text.
    fn take<'a>(&mut self, text: &'a str) -> &'a str {
        let fitting = text.floor_char_boundary(text.len().min(self.left));
        self.is_cut |= fitting < text.len();
        self.left = if fitting < text.len() { 0 } else { self.left - fitting };
        &text[..fitting]
    }
}

/// What is shown.
struct Shown<'a> {
    redactor: &'a Redactor,
    room: Room,
}

impl Shown<'_> {
    /// A message; none where there is no room left for any of it.
    fn message(&mut self, message: &Message) -> Option<Value> {
        if self.room.left == 0 {
            self.room.is_cut = true;
            return None;
        }
        let role = self.redactor.redact(&message.role);
        Some(json!({ "role": role, "parts": self.parts(&message.parts) }))
    }

    fn parts(&mut self, parts: &[Part]) -> Value {
        parts.iter().map(|part| self.part(part)).collect()
    }

    fn part(&mut self, part: &Part) -> Value {
        match part {
            Part::Text(text) => json!({ "type": "text", "content": self.text(text) }),
            Part::Reasoning(text) => json!({ "type": "reasoning", "content": self.text(text) }),
            Part::Media { modality, url } => json!({ "type": "uri", "modality": modality, "uri": self.text(url) }),
            Part::Call { id, name, arguments } => self.call(id, name, arguments),
            Part::Result { id, text } => {
                json!({ "type": "tool_call_response", "id": self.text(id), "response": self.text(text) })
            }
        }
    }

    fn piece(&mut self, piece: &Piece) -> Value {
        match piece {
            Piece::Text(text) => json!({ "type": "text", "content": self.text(text) }),
            Piece::Reasoning(text) => json!({ "type": "reasoning", "content": self.text(text) }),
            Piece::Call { id, name, arguments } => self.call(id, name, arguments),
        }
    }

    fn call(&mut self, id: &str, name: &str, arguments: &str) -> Value {
        let [id, name, arguments] = [id, name, arguments].map(|text| self.text(text));
        json!({ "type": "tool_call", "id": id, "name": name, "arguments": arguments })
    }

    fn text(&mut self, text: &str) -> String {
        let text = self.redactor.redact(text);
        self.room.take(&text).to_owned()
    }
}

/// Why a model ended, in the words of the conventions where they have one.
fn finish(reason: Option<&str>) -> &str {
    match reason {
        Some("stop" | "end_turn" | "stop_sequence") => "stop",
        Some("length" | "max_tokens") => "length",
        Some("tool_calls" | "tool_use" | "function_call") => "tool_call",
        Some("content_filter" | "refusal") => "content_filter",
        Some(other) => other,
        None => "unknown",
    }
}

#[cfg(test)]
mod tests;
