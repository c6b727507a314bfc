//! What one JSON text of an answer says about tokens. Everything else in it is skipped, and nothing is copied.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The data of one event, in the words of any API.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Event {
    choices: Choices,
    usage: Stated,
    /// The whole answer, in events of the Responses API.
    response: Holder,
    /// The whole answer, in the first event of the Messages API.
    message: Holder,
    #[serde(rename = "type")]
    kind: Kind,
    object: Kind,
    delta: Delta,
    error: Present,
}

/// Token counts as stated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stated {
    present: bool,
    input: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
}

impl Event {
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        if data.first() == Some(&b'{') { serde_json::from_slice(data).ok() } else { None }
    }

    /// Bytes of generated text.
    pub(super) fn text_bytes(&self) -> u64 {
        let delta = match self.kind {
            Kind::Delta => self.delta.plain,
            Kind::BlockDelta => self.delta.fields,
            _ => 0,
        };
        self.choices.text_bytes + delta
    }

    pub(super) fn usage(&self) -> Stated {
        let places = [self.usage, self.response.usage, self.message.usage];
        places.into_iter().find(|stated| stated.is_some()).unwrap_or_default()
    }

    /// Why the model ended, if this event says so.
    pub(super) fn finish(&self) -> Finish {
        self.choices.finish.or(self.delta.finish).or(self.response.finish)
    }

    /// The event that `stream_options.include_usage` adds.
    pub(super) fn is_usage_only(&self) -> bool {
        self.usage.present && self.choices.is_empty_list
    }

    pub(super) fn is_last(&self) -> bool {
        self.kind == Kind::Last
    }

    pub(super) fn is_error(&self) -> bool {
        self.error.0 || self.kind == Kind::Error || self.object == Kind::Error
    }
}

/// Why a model ended, in the words of OpenAI's API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// Nothing says so.
    #[default]
    Unknown,
    /// It was done, or met a word to stop at.
    Stop,
    /// It had no tokens left.
    Length,
    /// It wants a tool.
    ToolCalls,
    /// What it had to say was withheld.
    ContentFilter,
    /// Something else.
    Other,
}

impl Finish {
    /// The word for records; none where nothing says so.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Stop => Some("stop"),
            Self::Length => Some("length"),
            Self::ToolCalls => Some("tool_calls"),
            Self::ContentFilter => Some("content_filter"),
            Self::Other => Some("other"),
        }
    }

    /// By the word of any API.
    pub(super) fn named(word: &str) -> Self {
        match word {
            "stop" | "end_turn" | "stop_sequence" => Self::Stop,
            "length" | "max_tokens" | "max_output_tokens" => Self::Length,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "content_filter" | "refusal" => Self::ContentFilter,
            _ => Self::Other,
        }
    }

    /// This one, or the other where this one is unknown.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Unknown { other } else { self }
    }
}

impl Digest for Finish {
    fn text(text: &str) -> Self {
        Self::named(text)
    }
}

/// How a whole answer of the Responses API stands, as far as that says why the model ended.
#[derive(Debug, Default)]
struct Status(Finish);

impl Digest for Status {
    fn text(text: &str) -> Self {
        Self(if text == "completed" { Finish::Stop } else { Finish::Unknown })
    }

    /// `incomplete_details`.
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            reason: Finish,
        }
        Ok(Self(Members::deserialize(MapAccessDeserializer::new(members))?.reason))
    }
}

impl Stated {
    /// The member `usage` of a whole document, and why the model ended; absent when that is no document.
    pub(super) fn of_document(text: &[u8]) -> Option<(Self, Finish)> {
        serde_json::from_slice::<Holder>(text).ok().map(|holder| (holder.usage, holder.finish))
    }

    /// The object at the head of `text`, where it states tokens.
    pub(super) fn of_object(text: &[u8]) -> Option<Self> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        Self::deserialize(&mut reader).ok().filter(|stated| stated.is_some())
    }

    pub(super) fn input(&self) -> Option<u64> {
        self.input.or_else(|| Some(self.total?.saturating_sub(self.output.unwrap_or(0))))
    }

    pub(super) fn output(&self) -> Option<u64> {
        self.output.or_else(|| Some(self.total?.saturating_sub(self.input?)))
    }

    fn is_some(&self) -> bool {
        self.input().or(self.output).is_some()
    }
}

/// What a JSON value of any type comes down to; types without a meaning are skipped.
trait Digest: Default {
    fn text(_: &str) -> Self {
        Self::default()
    }

    fn number(_: u64) -> Self {
        Self::default()
    }

    fn truth(_: bool) -> Self {
        Self::default()
    }

    fn list<'de, A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }

    fn object<'de, A: MapAccess<'de>>(mut members: A) -> Result<Self, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

struct Digesting<T>(PhantomData<T>);

impl<'de, T: Digest> Visitor<'de> for Digesting<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::text(text))
    }

    fn visit_u64<E>(self, number: u64) -> Result<T, E> {
        Ok(T::number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<T, E> {
        Ok(T::number(u64::try_from(number).unwrap_or(0)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<T, E> {
        // Saturates.
        Ok(T::number(number as u64))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<T, E> {
        Ok(T::truth(truth))
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<T, A::Error> {
        T::list(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::object(members)
    }
}

macro_rules! deserialize_any {
    ($($digest:ty),*) => {$(
        impl<'de> Deserialize<'de> for $digest {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Digesting(PhantomData))
            }
        }
    )*};
}

deserialize_any!(
    Call, Calls, Choice, Choices, Count, Delta, Finish, Function, Holder, Kind, Length, Present, Stated, Status
);

/// What kind of event it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// None that matters.
    #[default]
    Other,
    /// The Responses API: `delta` is generated text.
    Delta,
    /// The Messages API: `delta` holds generated text.
    BlockDelta,
    /// Nothing follows.
    Last,
    Error,
}

impl Digest for Kind {
    fn text(text: &str) -> Self {
        match text {
            "content_block_delta" => Self::BlockDelta,
            "response.completed" | "response.incomplete" | "response.cancelled" | "message_stop" => Self::Last,
            "error" | "response.failed" => Self::Error,
            // NVCF's worker states its failures as problems.
            _ if text.starts_with("urn:") => Self::Error,
            _ if text.ends_with(".delta") => Self::Delta,
            _ => Self::Other,
        }
    }
}

/// Whether there is anything.
#[derive(Debug, Default)]
struct Present(bool);

impl Digest for Present {
    fn text(text: &str) -> Self {
        Self(!text.is_empty())
    }

    fn number(_: u64) -> Self {
        Self(true)
    }

    fn truth(truth: bool) -> Self {
        Self(truth)
    }

    fn object<'de, A: MapAccess<'de>>(mut members: A) -> Result<Self, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self(true))
    }
}

/// The bytes of a string.
#[derive(Debug, Default)]
struct Length(u64);

impl Digest for Length {
    fn text(text: &str) -> Self {
        Self(text.len() as u64)
    }
}

#[derive(Debug, Default)]
struct Count(Option<u64>);

impl Digest for Count {
    fn number(number: u64) -> Self {
        Self(Some(number))
    }
}

impl Digest for Stated {
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            prompt_tokens: Count,
            input_tokens: Count,
            completion_tokens: Count,
            output_tokens: Count,
            total_tokens: Count,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        Ok(Self {
            present: true,
            input: members.prompt_tokens.0.or(members.input_tokens.0),
            output: members.completion_tokens.0.or(members.output_tokens.0),
            total: members.total_tokens.0,
        })
    }
}

/// An object with a usage.
#[derive(Debug, Default)]
struct Holder {
    usage: Stated,
    finish: Finish,
}

impl Digest for Holder {
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            usage: Stated,
            choices: Choices,
            stop_reason: Finish,
            status: Status,
            incomplete_details: Status,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        let finish = members.choices.finish.or(members.stop_reason).or(members.incomplete_details.0);
        Ok(Self { usage: members.usage, finish: finish.or(members.status.0) })
    }
}

#[derive(Debug, Default)]
struct Choices {
    is_empty_list: bool,
    text_bytes: u64,
    finish: Finish,
}

impl Digest for Choices {
    fn list<'de, A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut choices = Self { is_empty_list: true, ..Self::default() };
        while let Some(choice) = items.next_element::<Choice>()? {
            choices.is_empty_list = false;
            choices.text_bytes += choice.text_bytes;
            choices.finish = choices.finish.or(choice.finish);
        }
        Ok(choices)
    }
}

#[derive(Debug, Default)]
struct Choice {
    text_bytes: u64,
    finish: Finish,
}

impl Digest for Choice {
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            delta: Delta,
            text: Length,
            finish_reason: Finish,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        Ok(Self { text_bytes: members.delta.fields + members.text.0, finish: members.finish_reason })
    }
}

/// What an event adds: a string, or an object whose fields hold text.
#[derive(Debug, Default)]
struct Delta {
    plain: u64,
    fields: u64,
    finish: Finish,
}

impl Digest for Delta {
    fn text(text: &str) -> Self {
        Self { plain: text.len() as u64, ..Self::default() }
    }

    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            content: Length,
            reasoning_content: Length,
            reasoning: Length,
            refusal: Length,
            tool_calls: Calls,
            text: Length,
            partial_json: Length,
            thinking: Length,
            stop_reason: Finish,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        // Some releases send the same reasoning under both names.
        let reasoning = members.reasoning_content.0.max(members.reasoning.0);
        let chat = members.content.0 + reasoning + members.refusal.0 + members.tool_calls.0;
        let fields = chat + members.text.0 + members.partial_json.0 + members.thinking.0;
        Ok(Self { plain: 0, fields, finish: members.stop_reason })
    }
}

/// The bytes of all arguments of tool calls.
#[derive(Debug, Default)]
struct Calls(u64);

impl Digest for Calls {
    fn list<'de, A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut bytes = 0;
        while let Some(call) = items.next_element::<Call>()? {
            bytes += call.0;
        }
        Ok(Self(bytes))
    }
}

#[derive(Debug, Default)]
struct Call(u64);

impl Digest for Call {
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            function: Function,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        Ok(Self(members.function.0))
    }
}

/// The bytes of the arguments of a call.
#[derive(Debug, Default)]
struct Function(u64);

impl Digest for Function {
    fn object<'de, A: MapAccess<'de>>(members: A) -> Result<Self, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Members {
            arguments: Length,
        }
        let members = Members::deserialize(MapAccessDeserializer::new(members))?;
        Ok(Self(members.arguments.0))
    }
}
