//! Reads a JSON body once, into a value to check and the place of its `model`.
//!
//! Long strings (base64 media) are not copied: the value holds a stand-in that answers every rule a catalogue may
//! state about it. Duplicate members are refused, since backends disagree on which of them counts.

use std::borrow::Cow;
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
/// Characters kept around the first one that can not be base64.
const WINDOW: usize = 64;

/// A request body: what the schema sees of it.
#[derive(Debug)]
pub struct Document {
    /// The body, long strings replaced by stand-ins.
    pub value: Value,
    /// Bytes of the top-level `model` value, quotes included.
    pub model_span: Option<Range<usize>>,
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
        let mut model_span = None;
        let mut reader = serde_json::Deserializer::from_slice(body);
        let top = Top { start: body.as_ptr() as usize, model_span: &mut model_span };
        let value = top.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
        let value = value.map_err(|e| Malformed { reason: e.to_string() })?;
        Ok(Self { value, model_span })
    }

    /// The top-level `model`.
    pub fn model(&self) -> Option<&str> {
        self.value.get("model")?.as_str()
    }

    /// Whether the caller asked for a stream.
    pub fn stream(&self) -> bool {
        self.value.get("stream").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The outermost value: like any other, but notes where `model` stands.
struct Top<'a> {
    start: usize,
    model_span: &'a mut Option<Range<usize>>,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Any value below the top.
struct Node;

impl<'de> DeserializeSeed<'de> for Node {
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
            Ok(v.into())
        }
        fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
            Ok(v.into())
        }
        fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
            Ok(v.into())
        }
        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_str<E>(self, v: &str) -> Result<Value, E> {
            Ok(Value::String(brief(v).into_owned()))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element_seed(Node)? {
                items.push(item);
            }
            Ok(Value::Array(items))
        }
    };
}

impl<'de> Visitor<'de> for Node {
    type Value = Value;

    visit_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Node)?;
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
        while let Some(key) = map.next_key::<String>()? {
            let value = if key == "model" {
                let raw: &RawValue = map.next_value()?;
                let at = raw.get().as_ptr() as usize - self.start;
                *self.model_span = Some(at..at + raw.get().len());
                let mut reader = serde_json::Deserializer::from_str(raw.get());
                Node.deserialize(&mut reader).map_err(A::Error::custom)?
            } else {
                map.next_value_seed(Node)?
            };
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

/// The string itself, or for a long one a stand-in: its head, the first place that can not be base64, its tail. It is
/// longer than any length rule, and a pattern over the base64 alphabet holds for it exactly when it holds for all.
fn brief(text: &str) -> Cow<'_, str> {
    if text.len() <= LONG_STRING {
        return Cow::Borrowed(text);
    }
    let half = LONGEST_LENGTH_RULE / 2;
    let Some((head_end, _)) = text.char_indices().nth(half) else { return Cow::Borrowed(text) };
    let Some((tail_start, _)) = text.char_indices().rev().nth(half) else { return Cow::Borrowed(text) };
    if tail_start <= head_end + WINDOW {
        return Cow::Borrowed(text);
    }
    let mut stand_in = String::with_capacity(LONGEST_LENGTH_RULE + WINDOW * 4);
    stand_in.push_str(&text[..head_end]);
    let middle = &text[head_end..tail_start];
    if let Some(at) = middle.bytes().position(|b| !(b.is_ascii_alphanumeric() || b == b'+' || b == b'/')) {
        let at = middle.floor_char_boundary(at);
        stand_in.extend(middle[at..].chars().take(WINDOW));
    }
    stand_in.push_str(&text[tail_start..]);
    Cow::Owned(stand_in)
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
        assert!(brief(&media).contains('!'));
        let wide = "ü".repeat(200_000);
        assert!(brief(&wide).chars().count() > LONGEST_LENGTH_RULE);
    }
}
