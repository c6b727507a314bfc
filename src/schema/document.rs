//! Reads a JSON body once, into a value to check, the places that may be edited, and how much text and media it holds.
//!
//! Long strings (base64 media) are not copied: the value holds a stand-in that answers every rule a catalogue may
//! state about it. Duplicate members are refused, since backends disagree on which of them counts.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The largest `maxLength` that a catalogue may state: stand-ins are longer than this.
pub const LONGEST_LENGTH_RULE: usize = 32_768;
/// Strings above this many bytes are replaced by a stand-in.
const LONG_STRING: usize = 65_536;
/// Bytes of text that a number counts as: it may be the id of a token.
const NUMBER_BYTES: usize = 4;
/// A data URL names its encoding within so many bytes.
const DATA_URL_HEAD: usize = 256;
/// Characters kept around the first one that can not be base64.
const WINDOW: usize = 64;

/// A request body: what the schema sees of it.
#[derive(Debug, Default)]
pub struct Document {
    /// The body, long strings replaced by stand-ins.
    pub value: Value,
    /// Bytes of the top-level `model` value, quotes included.
    pub model_span: Option<Range<usize>>,
    /// Bytes of the top-level `stream_options` value.
    pub stream_options_span: Option<Range<usize>>,
    /// The place right behind the top-level `{`.
    pub object_start: Option<usize>,
    /// Bytes of all strings that are not media, member names excepted. A number counts as four, since it may be the id
    /// of a token.
    pub text_bytes: usize,
    /// Strings that are base64 data URLs, and long ones that are base64 throughout.
    pub media: usize,
}

/// Why bytes are not a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong and where; never quotes more of the body than a member name.
    pub reason: String,
}

impl Document {
    /// Parses a whole body. At most 128 levels deep.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let (facts, mut spans) = (Facts::default(), Spans::default());
        let mut reader = serde_json::Deserializer::from_slice(body);
        let top = Top { start: body.as_ptr() as usize, facts: &facts, spans: &mut spans };
        let value = top.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
        let value = value.map_err(|e| Malformed { reason: e.to_string() })?;
        let object_start = value.is_object().then(|| body.iter().position(|b| *b == b'{')).flatten();
        Ok(Self {
            value,
            model_span: spans.model,
            stream_options_span: spans.stream_options,
            object_start: object_start.map(|at| at + 1),
            text_bytes: facts.text_bytes.get(),
            media: facts.media.get(),
        })
    }

    /// Of a string of the value, what stands in the body just so: all of it, or of one that may be a stand-in its head.
    pub fn genuine(text: &str) -> &str {
        if text.len() <= LONGEST_LENGTH_RULE {
            return text;
        }
        text.char_indices().nth(LONGEST_LENGTH_RULE / 2).map_or(text, |(end, _)| &text[..end])
    }

    /// The top-level `model`.
    pub fn model(&self) -> Option<&str> {
        self.value.get("model")?.as_str()
    }

    /// Whether the caller asked for a stream.
    pub fn stream(&self) -> bool {
        self.value.get("stream").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Whether the caller asked for the usage of a stream.
    pub fn include_usage(&self) -> bool {
        self.value.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// What is counted on the way.
#[derive(Default)]
struct Facts {
    text_bytes: Cell<usize>,
    media: Cell<usize>,
}

impl Facts {
    fn add_text(&self, bytes: usize) {
        self.text_bytes.set(self.text_bytes.get() + bytes);
    }

    /// Counts a string, and returns what to keep of it.
    fn take(&self, text: &str) -> String {
        let brief = brief(text);
        if brief.is_base64 || is_data_url(text) {
            self.media.set(self.media.get() + 1);
        } else {
            self.add_text(text.len());
        }
        brief.kept.into_owned()
    }
}

/// Where the members stand that may be edited.
#[derive(Default)]
struct Spans {
    model: Option<Range<usize>>,
    stream_options: Option<Range<usize>>,
}

/// The outermost value: like any other, but notes where some members stand.
struct Top<'a> {
    start: usize,
    facts: &'a Facts,
    spans: &'a mut Spans,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Any value below the top.
#[derive(Clone, Copy)]
struct Node<'a> {
    facts: &'a Facts,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! visit_scalars {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON value")
        }
        fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
            Ok(Value::Bool(v))
        }
        fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
            self.facts.add_text(NUMBER_BYTES);
            Ok(v.into())
        }
        fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
            self.facts.add_text(NUMBER_BYTES);
            Ok(v.into())
        }
        fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
            self.facts.add_text(NUMBER_BYTES);
            Ok(v.into())
        }
        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_str<E>(self, v: &str) -> Result<Value, E> {
            Ok(Value::String(self.facts.take(v)))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
            let mut items = Vec::new();
            let node = Node { facts: self.facts };
            while let Some(item) = seq.next_element_seed(node)? {
                items.push(item);
            }
            Ok(Value::Array(items))
        }
    };
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    visit_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            insert_once(&mut members, key, value)?;
        }
        Ok(Value::Object(members))
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Value;

    visit_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        let node = Node { facts: self.facts };
        while let Some(key) = map.next_key::<String>()? {
            let span = match key.as_str() {
                "model" => &mut self.spans.model,
                "stream_options" => &mut self.spans.stream_options,
                _ => {
                    let value = map.next_value_seed(node)?;
                    insert_once(&mut members, key, value)?;
                    continue;
                }
            };
            let raw: &RawValue = map.next_value()?;
            let at = raw.get().as_ptr() as usize - self.start;
            *span = Some(at..at + raw.get().len());
            let mut reader = serde_json::Deserializer::from_str(raw.get());
            let value = node.deserialize(&mut reader).map_err(A::Error::custom)?;
            insert_once(&mut members, key, value)?;
        }
        Ok(Value::Object(members))
    }
}

fn insert_once<E: serde::de::Error>(members: &mut Map<String, Value>, key: String, value: Value) -> Result<(), E> {
    match members.entry(key) {
        Entry::Vacant(vacant) => {
            vacant.insert(value);
            Ok(())
        }
        Entry::Occupied(occupied) => {
            let shown: String = occupied.key().chars().take(60).collect();
            Err(E::custom(format_args!("duplicate member `{shown}`")))
        }
    }
}

/// What is kept of a string.
struct Brief<'a> {
    kept: Cow<'a, str>,
    /// The string is long and base64 throughout.
    is_base64: bool,
}

/// The string itself, or for a long one a stand-in: its head, the first place that can not be base64, its tail. It is
/// longer than any length rule, and a pattern over the base64 alphabet holds for it exactly when it holds for all.
fn brief(text: &str) -> Brief<'_> {
    let whole = Brief { kept: Cow::Borrowed(text), is_base64: false };
    if text.len() <= LONG_STRING {
        return whole;
    }
    let half = LONGEST_LENGTH_RULE / 2;
    let Some((head_end, _)) = text.char_indices().nth(half) else { return whole };
    let Some((tail_start, _)) = text.char_indices().rev().nth(half) else { return whole };
    if tail_start <= head_end + WINDOW {
        return whole;
    }
    let mut stand_in = String::with_capacity(LONGEST_LENGTH_RULE + WINDOW * 4);
    stand_in.push_str(&text[..head_end]);
    let middle = &text[head_end..tail_start];
    let odd = middle.bytes().position(|b| !is_base64(b));
    if let Some(at) = odd {
        let at = middle.floor_char_boundary(at);
        stand_in.extend(middle[at..].chars().take(WINDOW));
    }
    stand_in.push_str(&text[tail_start..]);
    let is_base64 = odd.is_none() && stand_in.trim_end_matches('=').bytes().all(is_base64);
    Brief { kept: Cow::Owned(stand_in), is_base64 }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

/// Prose may begin with `data:` too.
fn is_data_url(text: &str) -> bool {
    let head = &text.as_bytes()[..text.len().min(DATA_URL_HEAD)];
    head.starts_with(b"data:") && head.windows(8).any(|window| window == b";base64,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_model_even_when_it_is_escaped() {
        let body = br#"{"a":[1,{"model":"no"}], "model" : "meta\/llama" ,"stream":true}"#;
        let document = Document::parse(body).unwrap();
        assert_eq!(document.model(), Some("meta/llama"));
        assert_eq!(&body[document.model_span.clone().unwrap()], br#""meta\/llama""#);
        assert!(document.stream());
    }

    #[test]
    fn refuses_what_backends_read_differently() {
        for (body, wanted) in [
            (&br#"{"model":"a","model":"b"}"#[..], "duplicate member `model`"),
            (br#"{"a":{"b":1,"b":2}}"#, "duplicate member `b`"),
            (b"{\"a\":\"\xff\"}", "invalid unicode"),
            (b"{} {}", "trailing characters"),
            (b"", "EOF"),
            (br#"{"a":"#, "EOF"),
        ] {
            let reason = Document::parse(body).unwrap_err().reason;
            assert!(reason.contains(wanted), "{reason}");
        }
        let deep = "[".repeat(100_000);
        assert!(Document::parse(deep.as_bytes()).unwrap_err().reason.contains("recursion limit"));
    }

    #[test]
    fn a_stand_in_is_short_yet_longer_than_any_length_rule() {
        let media = format!("data:video/mp4;base64,{}==", "A".repeat(1_000_000));
        let body = serde_json::to_vec(&serde_json::json!({ "video": media })).unwrap();
        let document = Document::parse(&body).unwrap();
        let kept = document.value["video"].as_str().unwrap();
        assert!(kept.len() < 40_000 && kept.chars().count() > LONGEST_LENGTH_RULE);
        assert!(kept.starts_with("data:video/mp4;base64,AAAA") && kept.ends_with("AA=="));
    }

    #[test]
    fn a_stand_in_keeps_what_is_not_base64() {
        let mut media = "A".repeat(1_000_000);
        media.replace_range(600_000..600_001, "!");
        assert!(brief(&media).kept.contains('!'));
        let wide = "ü".repeat(200_000);
        assert!(brief(&wide).kept.chars().count() > LONGEST_LENGTH_RULE);
    }

    fn facts(body: &Value) -> (usize, usize) {
        let document = Document::parse(body.to_string().as_bytes()).unwrap();
        (document.text_bytes, document.media)
    }

    #[test]
    fn counts_text_and_media() {
        use serde_json::json;
        let long = "A".repeat(LONG_STRING + 1);
        for (body, wanted) in [
            (json!({"model": "abc", "input": ["de", "ü\n"], "other": null, "flag": true}), (8, 0)),
            (json!({"input": [[1, 2], [-3, 4.5]]}), (16, 0)),
            (json!("text"), (4, 0)),
            (json!({"stream_options": {"a": "bc", "b": 1}}), (6, 0)),
            (json!({"url": "data:image/png;base64,AAAA", "text": "data: see below"}), (15, 1)),
            (json!({"video": long, "image": format!("data:video/mp4;base64,{long}=")}), (0, 2)),
            (json!({"video": format!("{long}==")}), (0, 1)),
            (json!({"text": format!("{long} {long}")}), (2 * LONG_STRING + 3, 0)),
            (json!({"text": format!(" {long}")}), (LONG_STRING + 2, 0)),
            (json!({"text": format!("{long}.")}), (LONG_STRING + 2, 0)),
        ] {
            let shown: String = body.to_string().chars().take(80).collect();
            assert_eq!(facts(&body), wanted, "{shown}");
        }
    }

    #[test]
    fn finds_the_stream_options_and_the_object() {
        let body = br#" {"a":{"stream_options":1},"stream\u005foptions" : {"include_usage":true} }"#;
        let document = Document::parse(body).unwrap();
        assert_eq!(document.object_start, Some(2));
        assert_eq!(&body[document.stream_options_span.clone().unwrap()], br#"{"include_usage":true}"#);
        assert!(document.include_usage());
        let document = Document::parse(br#"[{"stream_options":{"include_usage":true}}]"#).unwrap();
        assert_eq!((document.object_start, document.stream_options_span.clone()), (None, None));
        assert!(!document.include_usage());
        assert!(!Document::parse(br#"{"stream_options":null}"#).unwrap().include_usage());
    }
}
