//! Reads an error body as far as labelling needs, without a copy and however it ends.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Of a text that is no JSON, this much is looked at.
const LONGEST_TEXT: usize = 512;

/// The shapes of error bodies seen behind NIM and NVCF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Shape {
    /// `{"error":{…}}`: vLLM, NIM 2.x.
    ErrorObject = 1,
    /// `{"object":"error",…}`: NIM LLM 1.x, text embedding.
    ObjectError = 2,
    /// `{"detail":[…]}`: FastAPI validation.
    DetailList = 4,
    /// `{"detail":"…"}`: FastAPI.
    DetailText = 8,
    /// `{"error":"…"}`: Triton.
    ErrorText = 16,
    /// RFC 9457 with a `type`: NVCF's worker, vanity gateway and management.
    Problem = 32,
    /// `{"status","title"}` without `type`: NVCF's invocation service.
    BareProblem = 64,
    /// `{"message":"…"}`: NVCF's gateway for LLM functions.
    Message = 128,
    /// Nothing.
    Empty = 256,
    /// A page of HTML.
    Html = 512,
    /// Other text, or what is encoded.
    Text = 1024,
    /// JSON of another kind.
    Other = 2048,
}

impl Shape {
    /// All of them, with the words for documents.
    pub(super) const ALL: [(Self, &str); 12] = [
        (Self::ErrorObject, "`{\"error\":{}}`"),
        (Self::ObjectError, "`{\"object\":\"error\"}`"),
        (Self::DetailList, "`{\"detail\":[]}`"),
        (Self::DetailText, "`{\"detail\":\"\"}`"),
        (Self::ErrorText, "`{\"error\":\"\"}`"),
        (Self::Problem, "problem with `type`"),
        (Self::BareProblem, "problem without `type`"),
        (Self::Message, "`{\"message\":\"\"}`"),
        (Self::Empty, "empty"),
        (Self::Html, "HTML"),
        (Self::Text, "text"),
        (Self::Other, "other JSON"),
    ];
}

/// An error body, read as far as labelling needs.
#[derive(Debug)]
pub struct Body<'a> {
    /// Its shape.
    pub shape: Shape,
    /// Its `type`, where it is a problem.
    pub kind: Cow<'a, str>,
    /// What it says in words.
    pub words: Cow<'a, str>,
    /// The status that it states.
    pub status: Option<u16>,
}

impl<'a> Body<'a> {
    /// Reads a body, which may be cut anywhere: what was there before the cut counts.
    pub fn read(bytes: &'a [u8]) -> Self {
        let bytes = bytes.trim_ascii();
        let bare = |shape, words| Self { shape, kind: Cow::Borrowed(""), words, status: None };
        match bytes.first() {
            None => bare(Shape::Empty, Cow::Borrowed("")),
            Some(b'<') => bare(Shape::Html, Cow::Borrowed("")),
            Some(b'{') => {
                let mut fields = Fields::default();
                let mut reader = serde_json::Deserializer::from_slice(bytes);
                let is_whole = reader.deserialize_map(Top(&mut fields)).is_ok();
                if !is_whole && fields.is_nothing() {
                    return bare(Shape::Text, text(bytes));
                }
                fields.into_body()
            }
            Some(b'[' | b'"') if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => {
                bare(Shape::Other, Cow::Borrowed(""))
            }
            Some(_) => bare(Shape::Text, text(bytes)),
        }
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_TEXT)])
}

/// The members that matter.
#[derive(Default)]
struct Fields<'a> {
    kind: Member<'a>,
    title: Member<'a>,
    status: Member<'a>,
    detail: Member<'a>,
    error: Member<'a>,
    object: Member<'a>,
    message: Member<'a>,
}

/// A member of any type.
#[derive(Default)]
enum Member<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Number(u64),
    List,
    /// Its own `message` and `code`.
    Object(Cow<'a, str>, Option<u16>),
    Other,
}

impl<'a> Fields<'a> {
    fn is_nothing(&self) -> bool {
        let all = [&self.kind, &self.title, &self.status, &self.detail, &self.error, &self.object, &self.message];
        all.iter().all(|member| matches!(member, Member::Absent))
    }

    fn into_body(self) -> Body<'a> {
        let has = |member: &Member<'_>| !matches!(member, Member::Absent);
        let is_titled = has(&self.title) && has(&self.status);
        let is_urn = matches!(&self.kind, Member::Text(kind) if kind.starts_with("urn:"));
        let is_numbered = matches!(self.status, Member::Number(_)) && has(&self.detail);
        let is_error = matches!(&self.object, Member::Text(object) if object == "error");
        let shape = match (&self.error, &self.detail) {
            _ if is_urn || (is_titled && has(&self.kind)) => Shape::Problem,
            // The worker's refusal of a status poll has a status and a detail but no title.
            _ if is_titled || is_numbered => Shape::BareProblem,
            (Member::Object(..), _) => Shape::ErrorObject,
            (Member::Text(_), _) => Shape::ErrorText,
            _ if is_error => Shape::ObjectError,
            (_, Member::List) => Shape::DetailList,
            (_, Member::Text(_)) => Shape::DetailText,
            _ if matches!(self.message, Member::Text(_)) => Shape::Message,
            _ => Shape::Other,
        };
        let stated = match (&self.error, &self.status) {
            (Member::Object(_, Some(code)), _) => Some(*code),
            (_, Member::Number(status)) => u16::try_from(*status).ok(),
            _ => None,
        };
        let kind = match self.kind {
            Member::Text(kind) if shape == Shape::Problem => kind,
            _ => Cow::Borrowed(""),
        };
        let words = match (self.error, self.detail, self.message) {
            (Member::Object(words, _) | Member::Text(words), ..) | (_, Member::Text(words), _) => words,
            (.., Member::Text(words)) => words,
            _ => Cow::Borrowed(""),
        };
        Body { shape, kind, words, status: stated.filter(|status| (400..600).contains(status)) }
    }
}

/// The document itself.
struct Top<'f, 'a>(&'f mut Fields<'a>);

impl<'a> Visitor<'a> for Top<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = members.next_key()? {
            let place = match &*name {
                "type" => &mut self.0.kind,
                "title" => &mut self.0.title,
                "status" => &mut self.0.status,
                "detail" => &mut self.0.detail,
                "error" => &mut self.0.error,
                "object" => &mut self.0.object,
                "message" => &mut self.0.message,
                _ => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            members.next_value_seed(Into { place, is_inner: false })?;
        }
        Ok(())
    }
}

/// The name of a member.
struct Name<'a>(Cow<'a, str>);

impl<'a> Deserialize<'a> for Name<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'a> Visitor<'a> for Text {
            type Value = Name<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Writes a value into its place as soon as it is known what it is.
struct Into<'f, 'a> {
    place: &'f mut Member<'a>,
    /// Lies in an object already: what lies deeper is passed over.
    is_inner: bool,
}

impl<'a> DeserializeSeed<'a> for Into<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Into<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<(), E> {
        *self.place = Member::Text(Cow::Borrowed(text));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        *self.place = Member::Text(Cow::Owned(text.to_owned()));
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        *self.place = Member::Number(number);
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        *self.place = Member::Other;
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        *self.place = Member::Other;
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        *self.place = Member::Other;
        Ok(())
    }

    /// `null` is as good as nothing.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        *self.place = Member::List;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { place, is_inner } = self;
        *place = Member::Object(Cow::Borrowed(""), None);
        while let Some(Name(name)) = members.next_key()? {
            if is_inner || (name != "message" && name != "code") {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            let mut member = Member::Absent;
            members.next_value_seed(Into { place: &mut member, is_inner: true })?;
            if let Member::Object(message, code) = place {
                match member {
                    Member::Text(text) if name == "message" => *message = text,
                    Member::Text(text) => *code = text.parse().ok(),
                    Member::Number(number) if name == "code" => *code = u16::try_from(number).ok(),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_words_and_statuses_are_read() {
        for (body, shape, words, status) in [
            (r#"{"error":{"message":"m","type":"T","param":null,"code":400}}"#, Shape::ErrorObject, "m", Some(400)),
            (r#"{"error":{"code":"503","message":"a\nb"}}"#, Shape::ErrorObject, "a\nb", Some(503)),
            (r#"{"object":"error","message":"m","type":"N","code":404}"#, Shape::ObjectError, "m", None),
            (r#"{"object":"error","message":"m","detail":{}}"#, Shape::ObjectError, "m", None),
            (r#"{"detail":[{"loc":["body"]}]}"#, Shape::DetailList, "", None),
            (r#"{"detail":"d"}"#, Shape::DetailText, "d", None),
            (r#"{"error":"t"}"#, Shape::ErrorText, "t", None),
            (r#"{"status":429,"title":"T"}"#, Shape::BareProblem, "", Some(429)),
            (r#"{"status":504,"detail":"d"}"#, Shape::BareProblem, "d", Some(504)),
            (r#"{"type":"about:blank","title":"T","status":410,"detail":"d"}"#, Shape::Problem, "d", Some(410)),
            (r#"{"type":"urn:x:y"}"#, Shape::Problem, "", None),
            (r#"{"message":"m"}"#, Shape::Message, "m", None),
            (r#"{"error":null,"x":{"error":"no"}}"#, Shape::Other, "", None),
            ("[1]", Shape::Other, "", None),
            (" \r\n", Shape::Empty, "", None),
            ("<html>", Shape::Html, "", None),
            ("404 page not found", Shape::Text, "404 page not found", None),
            ("{broken", Shape::Text, "{broken", None),
            // Cut off: what was there counts.
            (r#"{"error":{"message":"m","code":503,"x":"yyyy"#, Shape::ErrorObject, "m", Some(503)),
            (r#"{"error":{"message":"mmmmm"#, Shape::ErrorObject, "", None),
        ] {
            let read = Body::read(body.as_bytes());
            assert_eq!((read.shape, &*read.words, read.status), (shape, words, status), "{body}");
        }
        assert_eq!(Body::read(br#"{"type":"urn:a:b","status":1e999}"#).kind, "urn:a:b");
    }
}
