//! Transcript: what a request asked and what it was answered, for its trace, where its pool says so.
//!
//! Kept within a bound while the request runs; blacked out, cut and put into the form of OpenTelemetry's GenAI
//! conventions when its trace is sent. Nothing else of the gateway ever sees it.

use std::sync::Arc;

use serde_json::{Value, json};

mod asked;
mod redact;

use asked::{Asked, Message, Part};
pub use redact::{Redactor, Rejected};

use crate::meter::Finish;
use crate::meter::said::{Choice, Kept, Piece, Room, Said};

/// Bytes kept beyond those that are shown. Of a text that was cut while it was kept, so many bytes at its end are never
/// shown: a secret that the cut went through can not be told from other text.
const MARGIN: usize = 4096;
/// What parts may cost beside their texts, until that is at the expense of what is shown.
const SLACK: usize = 1024;

/// Bytes to keep, where so many are shown.
const fn kept(most: usize) -> usize {
    most + MARGIN + SLACK
}

/// What a pool wants of it.
#[derive(Debug)]
pub struct Policy {
    /// Bytes of text shown of what was asked, and of what was answered.
    pub most: usize,
    /// What is blacked out.
    pub redactor: Redactor,
}

/// What was asked.
#[derive(Debug)]
pub struct Transcript {
    /// Of every pool that the request was in.
    policies: Vec<Arc<Policy>>,
    asked: Asked,
}

/// What was asked, and what was answered as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    /// What was asked.
    pub asked: &'a Transcript,
    /// What was answered.
    pub said: Option<&'a Said>,
    /// Why the model ended.
    pub finish: Finish,
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
        let asked = Asked::read(body, kept(policy.most));
        asked.is_any().then(|| Self { policies: vec![Arc::clone(policy)], asked })
    }

    /// Another pool has a say too: what it blacks out is blacked out, and the lower bound holds.
    pub fn also(&mut self, policy: &Arc<Policy>) {
        self.policies.push(Arc::clone(policy));
    }

    /// Bytes to keep of the answer.
    pub fn answer_bytes(&self) -> usize {
        kept(self.most())
    }

    fn most(&self) -> usize {
        self.policies.iter().map(|policy| policy.most).min().unwrap_or(0)
    }
}

impl Telling<'_> {
    /// What to send of it.
    pub fn tell(self) -> Told {
        let Self { asked: Transcript { policies, asked }, said, .. } = self;
        let shown = || Shown { policies, room: Room::of(self.asked.most()) };
        let mut system = shown();
        let told_system = (!asked.system.is_empty()).then(|| system.parts(&asked.system).to_string());
        let mut input = shown();
        // In their order, but the oldest are what the bound leaves out.
        let mut messages: Vec<Value> = asked.messages.iter().rev().map_while(|m| input.message(m)).collect();
        messages.reverse();
        let told_input = (!messages.is_empty()).then(|| Value::from(messages).to_string());
        let mut output = shown();
        let is_said_cut = said.is_some_and(Said::is_cut);
        let choices = said.into_iter().flat_map(Said::choices);
        let choices: Vec<Value> = choices.map(|choice| output.choice(choice, is_said_cut, self.finish)).collect();
        let told_output = (!choices.is_empty()).then(|| Value::from(choices).to_string());
        let is_cut = asked.is_cut || is_said_cut || [system, input, output].iter().any(|shown| shown.room.is_cut);
        Told { system: told_system, input: told_input, output: told_output, is_cut }
    }
}

/// What is shown.
struct Shown<'a> {
    policies: &'a [Arc<Policy>],
    room: Room,
}

impl Shown<'_> {
    /// A message; none where there is no room left for any of it.
    fn message(&mut self, message: &Message) -> Option<Value> {
        if self.room.left == 0 {
            self.room.is_cut = true;
            return None;
        }
        Some(json!({ "role": self.redacted(&message.role), "parts": self.parts(&message.parts) }))
    }

    fn parts(&mut self, parts: &[Part]) -> Value {
        parts.iter().map(|part| self.part(part)).collect()
    }

    fn part(&mut self, part: &Part) -> Value {
        match part {
            Part::Text(text) => json!({ "type": "text", "content": self.text(text) }),
            Part::Reasoning(text) => json!({ "type": "reasoning", "content": self.text(text) }),
            Part::Media { modality, url } => json!({ "type": "uri", "modality": modality, "uri": self.text(url) }),
            Part::Call { id, name, arguments } => self.call([id, name, arguments]),
            Part::Result { id, text } => {
                json!({ "type": "tool_call_response", "id": self.text(id), "response": self.text(text) })
            }
        }
    }

    /// A choice. Where anything of the answer was cut, all that may have gone on was.
    fn choice(&mut self, choice: &Choice, is_cut: bool, finish: Finish) -> Value {
        let last = choice.pieces.len().saturating_sub(1);
        let pieces = choice.pieces.iter().enumerate();
        let parts: Vec<Value> = pieces.map(|(at, piece)| self.piece(piece, is_cut, at == last)).collect();
        json!({ "role": "assistant", "parts": parts, "finish_reason": word(choice.finish.or(finish)) })
    }

    fn piece(&mut self, piece: &Piece, is_cut: bool, is_last: bool) -> Value {
        let cut = |kept: &Kept, is_open: bool| Kept { is_cut: kept.is_cut || is_cut && is_open, ..kept.clone() };
        match piece {
            Piece::Text(text) => json!({ "type": "text", "content": self.text(&cut(text, is_last)) }),
            Piece::Reasoning(text) => json!({ "type": "reasoning", "content": self.text(&cut(text, is_last)) }),
            // Pieces of several calls may come in turns.
            Piece::Call { id, name, arguments, .. } => self.call([id, name, &cut(arguments, true)]),
        }
    }

    fn call(&mut self, texts: [&Kept; 3]) -> Value {
        let [id, name, arguments] = texts.map(|text| self.text(text));
        json!({ "type": "tool_call", "id": id, "name": name, "arguments": arguments })
    }

    fn text(&mut self, kept: &Kept) -> String {
        if self.room.left == 0 {
            self.room.is_cut |= !kept.text.is_empty();
            return String::new();
        }
        let text = self.redacted(&kept.text);
        let end = if kept.is_cut { text.floor_char_boundary(text.len().saturating_sub(MARGIN)) } else { text.len() };
        self.room.keep(&text[..end]).text
    }

    fn redacted(&self, text: &str) -> String {
        redact::redacted(self.policies.iter().map(|policy| &policy.redactor), text)
    }
}

/// Why a model ended, in the words of the conventions where they have one.
fn word(finish: Finish) -> &'static str {
    match finish {
        Finish::ToolCalls => "tool_call",
        other => other.word().unwrap_or("unknown"),
    }
}

#[cfg(test)]
mod tests;
