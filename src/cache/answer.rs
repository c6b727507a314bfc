//! Answer: a backend's answer, taken apart into vectors, and an answer put together as the backend would have.
//!
//! What is not understood is not kept: other members of an item, another number of vectors, indexes that are not each
//! there once, numbers that are none.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::members::Members;
use super::scan::Scan;
use super::value::{Encoding, Form, Value, Vector};

/// What the answers of a space have in common: members and their text. Empty text stands for what differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    top: Vec<(String, String)>,
    item: Vec<(String, String)>,
    usage: Vec<(String, String)>,
}

/// A backend's answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    /// What it has in common with others.
    pub frame: Frame,
    /// Its vectors, in order of the items.
    pub vectors: Vec<Vector>,
    /// Tokens that it states.
    pub tokens: Option<u64>,
    /// Videos that it states.
    pub media: Option<u64>,
}

/// What an answer's usage comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Tokens.
    pub tokens: u64,
    /// Videos.
    pub media: u64,
}

/// The members of usage that count tokens.
const TOKENS: [&str; 2] = ["prompt_tokens", "total_tokens"];
const MEDIA: &str = "num_videos";

impl Answer {
    /// Takes an answer to `count` items apart; nothing if it is not what it should be.
    pub fn read(body: &[u8], count: usize, encoding: Encoding) -> Option<Self> {
        let mut scan = Scan::new(std::str::from_utf8(body).ok()?);
        let (mut top, mut data, mut usage) = (Vec::new(), None, (None, None, Vec::new()));
        scan.members(|scan, name| {
            let mut text = String::new();
            match name {
                "data" => data = Some(read_data(scan, count, encoding)?),
                "usage" => usage = read_usage(scan.value()?)?,
                "id" | "created" => drop(scan.value()?),
                _ => text = scan.value()?.to_owned(),
            }
            top.push((name.to_owned(), text));
            Some(())
        })?;
        let ((vectors, item), (tokens, media, usage)) = (data.filter(|_| scan.is_end())?, usage);
        Some(Self { frame: Frame { top, item, usage }, vectors, tokens, media })
    }

    /// The widest form in which it printed numbers.
    pub fn form(&self) -> Form {
        self.vectors.iter().map(|vector| vector.form).max().unwrap_or(Form::Bits)
    }
}

impl Frame {
    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// As it was kept.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Puts an answer together; nothing when a vector can not be written so. `id` names it where the backend's answers
    /// have names.
    pub fn answer(&self, values: &[&Value], encoding: Encoding, usual: Form, sum: Sum, id: &str) -> Option<Bytes> {
        let text = |value: &&Value| match encoding {
            Encoding::Float => value.data().len() * 3,
            Encoding::Base64 => value.data().len().div_ceil(3) * 4,
        };
        let size = values.iter().map(text).sum::<usize>() + values.len() * 128;
        let mut out = Vec::with_capacity(size + 1024);
        let mut is_good = true;
        object(&mut out, &self.top, |out, name| match name {
            "data" => {
                out.push(b'[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    object(out, &self.item, |out, name| {
                        if name == "index" {
                            out.extend_from_slice(index.to_string().as_bytes());
                        } else {
                            is_good &= value.write(encoding, usual, out);
                        }
                    });
                }
                out.push(b']');
            }
            "usage" => object(out, &self.usage, |out, name| {
                let number = if name == MEDIA { sum.media } else { sum.tokens };
                out.extend_from_slice(number.to_string().as_bytes());
            }),
            "created" => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                out.extend_from_slice(now.as_secs().to_string().as_bytes());
            }
            _ => out.extend_from_slice(format!("\"embd-{id}\"").as_bytes()),
        });
        is_good.then(|| out.into())
    }
}

fn object(out: &mut Vec<u8>, members: &[(String, String)], mut blank: impl FnMut(&mut Vec<u8>, &str)) {
    out.push(b'{');
    for (at, (name, text)) in members.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        // Names of members come from JSON, and go back as such.
        out.extend_from_slice(&serde_json::to_vec(name).unwrap_or_default());
        out.push(b':');
        if text.is_empty() { blank(out, name) } else { out.extend_from_slice(text.as_bytes()) }
    }
    out.push(b'}');
}

fn blanked(members: &Members<'_>, blank: &[&str]) -> Vec<(String, String)> {
    let text = |name: &str, raw: &str| if blank.contains(&name) { String::new() } else { raw.to_owned() };
    members.0.iter().map(|(name, raw)| (name.clone(), text(name, raw.get()))).collect()
}

/// Vectors in order of their indexes, and what their items have in common.
#[expect(clippy::type_complexity, reason = "members and their texts, as in a frame")]
fn read_data(scan: &mut Scan<'_>, count: usize, encoding: Encoding) -> Option<(Vec<Vector>, Vec<(String, String)>)> {
    let mut vectors: Vec<Option<Vector>> = vec![None; count];
    let mut common: Option<Vec<(String, String)>> = None;
    let mut dimensions = None;
    scan.entries(|scan| {
        let (mut index, mut vector, mut frame) = (None, None, Vec::new());
        scan.members(|scan, name| {
            let mut text = String::new();
            match name {
                "index" => index = Some(scan.value()?.parse::<usize>().ok()?),
                "embedding" => {
                    vector = Some(match encoding {
                        Encoding::Float => Vector::scan_numbers(scan, usize::from(dimensions.unwrap_or_default()))?,
                        Encoding::Base64 => Vector::from_base64(&scan.string()?)?,
                    });
                }
                "object" => text = scan.value()?.to_owned(),
                _ => return None,
            }
            frame.push((name.to_owned(), text));
            Some(())
        })?;
        let vector = vector?;
        let place = vectors.get_mut(index?)?;
        let is_alike = *dimensions.get_or_insert(vector.dimensions) == vector.dimensions;
        let is_first = place.replace(vector).is_none();
        // Order of members counts, since answers are put together in it.
        let is_framed_alike = common.get_or_insert_with(|| frame.clone()) == &frame;
        (is_alike && is_first && is_framed_alike).then_some(())
    })?;
    Some((vectors.into_iter().collect::<Option<_>>()?, common?))
}

/// Tokens, videos, and what usage is made of. A count that is not known to add up is not understood.
#[expect(clippy::type_complexity, reason = "three facts of one place")]
fn read_usage(raw: &str) -> Option<(Option<u64>, Option<u64>, Vec<(String, String)>)> {
    let members = Members::read(raw)?;
    let (mut tokens, mut media) = (None, None);
    for (name, raw) in &members.0 {
        let raw = raw.get();
        if TOKENS.contains(&name.as_str()) {
            let number: u64 = raw.parse().ok().filter(|n| *n <= u64::from(u32::MAX))?;
            if tokens.is_some_and(|before| before != number) {
                return None;
            }
            tokens = Some(number);
        } else if name == MEDIA {
            media = Some(raw.parse().ok()?);
        } else if !matches!(raw, "0" | "null") {
            return None;
        }
    }
    let usage = blanked(&members, &[TOKENS[0], TOKENS[1], MEDIA]);
    Some((tokens, media, usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"object":"list","data":[{"object":"embedding","index":1,"embedding":[0.5,1.0]},
        {"object":"embedding","index":0,"embedding":[0.25,2.0]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#;

    fn read(body: &str) -> Option<Answer> {
        Answer::read(body.as_bytes(), 2, Encoding::Float)
    }

    #[test]
    fn vectors_go_where_their_indexes_say() {
        let answer = read(GOOD).unwrap();
        assert_eq!(answer.vectors[0], Vector::from_numbers("[0.25,2.0]").unwrap());
        assert_eq!((answer.tokens, answer.media), (Some(3), None));
        assert_eq!(Frame::read(&answer.frame.to_bytes()).unwrap(), answer.frame);
    }

    #[test]
    fn what_is_not_as_it_should_be_is_not_kept() {
        for (from, to) in [
            ("\"index\":1", "\"index\":0"),
            ("\"index\":1", "\"index\":2"),
            ("\"index\":1", "\"index\":-1"),
            ("[0.5,1.0]", "[0.5]"),
            ("[0.5,1.0]", "[0.5,NaN]"),
            ("[0.5,1.0]", "[0.5,null]"),
            ("[0.5,1.0]", "\"AACAPwAAgD8=\""),
            ("\"index\":1,", "\"index\":1,\"new\":1,"),
            ("\"object\":\"embedding\",\"index\":1", "\"object\":\"other\",\"index\":1"),
            ("\"total_tokens\":3", "\"total_tokens\":4"),
            ("\"total_tokens\":3", "\"total_tokens\":3,\"cached\":1"),
            ("}]", "},{\"object\":\"embedding\",\"index\":2,\"embedding\":[1.0,1.0]}]"),
            ("\"model\":\"m\"", "\"model\":\"m"),
            ("\"data\"", "\"error\""),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(read(&GOOD.replacen(from, to, 1)).is_none(), "{from} {to}");
        }
        assert!(read(&GOOD[..GOOD.len() - 5]).is_none());
        assert!(Answer::read(GOOD.as_bytes(), 3, Encoding::Float).is_none());
        assert!(Answer::read(GOOD.as_bytes(), 1, Encoding::Float).is_none());
    }
}
