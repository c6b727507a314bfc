//! Question: a request, taken apart into items. What its members mean is in the rules, which come from the catalogue.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::key::{Circumstances, Key, Space};
use super::members::{Members, canonical, list, place, string};
use super::value::Encoding;

/// Most bytes of members other than items; they are read more than once.
const MOST_MEMBERS: usize = 16 * 1024;
/// A data URL says within so many bytes what it is.
const HEAD: usize = 256;

/// What the members of requests mean.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The one that holds the items.
    pub input: String,
    /// The one that says how vectors are written.
    pub encoding: Option<String>,
    /// Those that vectors do not depend on.
    pub ignored: Vec<String>,
    /// Those that may be a list with one entry for each item.
    pub per_item: Vec<String>,
    /// Canonical values that are as good as leaving a member out.
    pub defaults: BTreeMap<String, String>,
    /// Those whose canonical values have to be one of these.
    pub only: BTreeMap<String, Vec<String>>,
    /// Those that may not be there.
    pub never: Vec<String>,
    /// Items of the largest request that every backend takes.
    pub batch: usize,
}

/// Why a request is not for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its items are none that are kept, or it has none.
    Items,
    /// A member keeps it away.
    Member,
    /// Its members are too large to be compared.
    Large,
    /// It does not say how vectors are written, or says what is not known here.
    Encoding,
}

/// A request, taken apart.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its body, as it came.
    pub body: Bytes,
    /// Its items, in order.
    pub items: Vec<Item>,
    /// How it wants vectors written.
    pub encoding: Encoding,
    /// Under what it is kept what its answers have in common.
    pub frame: Key,
    spans: Spans,
}

/// Where the lists stand that have an entry for each item, and their entries.
#[derive(Clone, Debug, Default)]
struct Spans {
    lists: Vec<(Range<usize>, Vec<Range<usize>>)>,
}

/// One item.
#[derive(Clone, Debug)]
pub struct Item {
    /// Under what its vector is kept; absent for what must be asked each time.
    pub key: Option<Key>,
    /// Its length, for a share of the tokens.
    pub length: usize,
    /// Whether it is an image or a video.
    pub is_media: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Text,
    Media,
    /// Names something that is elsewhere, and may change there.
    Reference,
}

impl Question {
    /// Takes a request apart.
    pub fn read(
        body: &Bytes,
        rules: &Rules,
        circumstances: &Circumstances<'_>,
        keeps_media: bool,
    ) -> Result<Self, Unfit> {
        let text = std::str::from_utf8(body).map_err(|_| Unfit::Items)?;
        let members = Members::read(text).ok_or(Unfit::Items)?;
        let input = members.get(&rules.input).ok_or(Unfit::Items)?;
        let (raws, is_list) = items(input)?;
        let encoding = match rules.encoding.as_ref().and_then(|name| members.get(name)) {
            None => Encoding::Float,
            Some(raw) => match string(raw).as_deref() {
                Some("float") => Encoding::Float,
                Some("base64") => Encoding::Base64,
                _ => return Err(Unfit::Encoding),
            },
        };
        let mut spans = Spans::default();
        if is_list {
            spans.lists.push((place(text, input), raws.iter().map(|raw| place(text, raw)).collect()));
        }
        let mut common: BTreeMap<&str, String> = BTreeMap::new();
        let mut own: Vec<Vec<(&str, String)>> = vec![Vec::new(); raws.len()];
        let mut size = 0;
        for (name, raw) in &members.0 {
            let (name, raw) = (name.as_str(), raw.get());
            if rules.never.iter().any(|never| never == name) {
                return Err(Unfit::Member);
            }
            let is_known = name == rules.input || rules.encoding.as_deref() == Some(name);
            if is_known || rules.ignored.iter().any(|ignored| ignored == name) {
                continue;
            }
            size += raw.len();
            if size > MOST_MEMBERS {
                return Err(Unfit::Large);
            }
            if rules.per_item.iter().any(|per| per == name) {
                let entries = if raw.starts_with('[') { list(raw).ok_or(Unfit::Member)? } else { vec![raw] };
                match entries.len() {
                    1 => {}
                    // One for each, or the backend refuses it.
                    count if count == raws.len() => {
                        spans.lists.push((place(text, raw), entries.iter().map(|e| place(text, e)).collect()));
                    }
                    _ => return Err(Unfit::Member),
                }
                for (at, own) in own.iter_mut().enumerate() {
                    let entry = entries.get(at).or(entries.first()).ok_or(Unfit::Member)?;
                    own.push((name, canonical(entry).ok_or(Unfit::Member)?));
                }
                continue;
            }
            let value = canonical(raw).ok_or(Unfit::Member)?;
            if rules.only.get(name).is_some_and(|only| !only.contains(&value)) {
                return Err(Unfit::Member);
            }
            if rules.defaults.get(name) != Some(&value) {
                common.insert(name, value);
            }
        }
        let space = Space::new(circumstances, common.iter().map(|(name, value)| (*name, value.as_str())));
        let mut read = Vec::with_capacity(raws.len());
        for (raw, mut own) in raws.iter().zip(own) {
            own.sort();
            read.push(item(&space, raw, &own, keeps_media)?);
        }
        Ok(Self { body: body.clone(), items: read, encoding, frame: space.frame(), spans })
    }

    /// The same request for these items alone, in this order; `body` is this request's, or one like it that names
    /// another model.
    pub fn part(&self, chosen: &[usize]) -> Option<Bytes> {
        let mut lists: Vec<_> = self.spans.lists.iter().collect();
        if lists.is_empty() {
            return None;
        }
        lists.sort_by_key(|(span, _)| span.start);
        let mut part = BytesMut::new();
        let mut from = 0;
        for (span, entries) in lists {
            part.extend_from_slice(&self.body[from..span.start]);
            part.extend_from_slice(b"[");
            for (at, chosen) in chosen.iter().enumerate() {
                if at > 0 {
                    part.extend_from_slice(b",");
                }
                part.extend_from_slice(&self.body[entries.get(*chosen)?.clone()]);
            }
            part.extend_from_slice(b"]");
            from = span.end;
        }
        part.extend_from_slice(&self.body[from..]);
        Some(part.freeze())
    }
}

/// The items as they are written, and whether they are a list of items.
fn items(input: &str) -> Result<(Vec<&str>, bool), Unfit> {
    if input.starts_with('"') {
        return Ok((vec![input], false));
    }
    let entries = list(input).ok_or(Unfit::Items)?;
    match entries.first().and_then(|first| first.as_bytes().first()) {
        // A list of ids is one item.
        Some(b'0'..=b'9') => Ok((vec![input], false)),
        Some(b'"' | b'[') => Ok((entries, true)),
        _ => Err(Unfit::Items),
    }
}

fn item(space: &Space, raw: &str, own: &[(&str, String)], keeps_media: bool) -> Result<Item, Unfit> {
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if raw.starts_with('[') {
        let ids = list(raw).ok_or(Unfit::Items)?;
        if ids.is_empty() || ids.iter().any(|id| id.parse::<u64>().is_err()) {
            return Err(Unfit::Items);
        }
        let key = space.item("tokens", ids.join(",").as_bytes(), &own);
        return Ok(Item { key: Some(key), length: ids.len() * 4, is_media: false });
    }
    let text = string(raw).ok_or(Unfit::Items)?;
    let is_plain = own.iter().all(|(_, value)| *value == "\"text\"");
    let nature = nature(&text, is_plain);
    let is_kept = nature == Nature::Text || nature == Nature::Media && keeps_media;
    let key = is_kept.then(|| space.item("text", text.as_bytes(), &own));
    Ok(Item { key, length: text.len(), is_media: nature != Nature::Text })
}

fn nature(text: &str, is_plain: bool) -> Nature {
    let head = text[..text.floor_char_boundary(HEAD)].trim_start().to_ascii_lowercase();
    if let Some(url) = head.strip_prefix("data:") {
        match url.split_once(',') {
            Some((meta, _)) if meta.ends_with(";base64") => return Nature::Media,
            Some((meta, _)) if meta.contains(';') => return Nature::Reference,
            _ => {}
        }
    }
    let scheme = head.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| scheme.bytes().all(|b| b.is_ascii_alphanumeric())) {
        return Nature::Reference;
    }
    match is_plain {
        true => Nature::Text,
        false if text.contains("://") || text.contains("presigned_url") => Nature::Reference,
        false if text.contains(";base64,") => Nature::Media,
        false => Nature::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Scope;
    use super::*;

    fn rules() -> Rules {
        Rules {
            input: "input".into(),
            encoding: Some("encoding_format".into()),
            ignored: vec!["user".into()],
            per_item: vec!["modality".into()],
            defaults: [("truncate".to_owned(), "\"NONE\"".to_owned())].into(),
            only: [("embedding_type".to_owned(), vec!["\"float\"".to_owned()])].into(),
            never: vec!["cache_salt".into()],
            batch: 50,
        }
    }

    fn read(body: &str) -> Result<Question, Unfit> {
        let circumstances =
            Circumstances { api: "a", operation: "o", revision: "r", scope: Scope::Global, purges: [0; 4] };
        Question::read(&Bytes::copy_from_slice(body.as_bytes()), &rules(), &circumstances, true)
    }

    fn keys(body: &str) -> Vec<Option<Key>> {
        read(body).unwrap().items.iter().map(|item| item.key).collect()
    }

    #[test]
    fn equal_items_meet_and_others_do_not() {
        let plain = keys(r#"{"model":"m","input":"A"}"#);
        for same in [
            r#"{"input":["\u0041"],"model":"m"}"#,
            r#"{"input":["A"],"model":"m","user":"x","encoding_format":"base64"}"#,
            r#"{"input":["A"],"model":"m","truncate":"NONE"}"#,
        ] {
            assert_eq!(keys(same), plain, "{same}");
        }
        for other in [
            r#"{"model":"n","input":"A"}"#,
            r#"{"model":"m","input":"A "}"#,
            r#"{"model":"m","input":"a"}"#,
            r#"{"model":"m","input":[65]}"#,
            r#"{"model":"m","input":"A","truncate":"END"}"#,
            r#"{"model":"m","input":"A","truncate":null}"#,
            r#"{"model":"m","input":"A","dimensions":256}"#,
            r#"{"model":"m","input":"A","modality":"text"}"#,
            r#"{"model":"m","input":"A","new":{"b":1}}"#,
        ] {
            assert_ne!(keys(other), plain, "{other}");
        }
        assert_eq!(keys(r#"{"model":"m","input":[1,2]}"#), keys(r#"{"model":"m","input":[[1,2]]}"#));
        assert_ne!(keys(r#"{"model":"m","input":[1,2]}"#), keys(r#"{"model":"m","input":"1,2"}"#));
        let mixed = keys(r#"{"model":"m","input":["a","b"],"modality":["text","image"]}"#);
        assert_eq!(mixed[0], keys(r#"{"model":"m","input":"a","modality":"text"}"#)[0]);
        assert_eq!(mixed[1], keys(r#"{"model":"m","input":["b"],"modality":["image"]}"#)[0]);
    }

    #[test]
    fn what_is_elsewhere_has_no_key() {
        for text in [
            "https://a/b.png",
            " HTTP://a",
            "s3://a",
            "data:video/mp4;presigned_url,https://a",
            "data:video/mp4;asset_id,1",
        ] {
            let body = serde_json::json!({ "model": "m", "input": [text, "see https://a"] }).to_string();
            let keys = keys(&body);
            assert!(keys[0].is_none() && keys[1].is_some(), "{text}");
        }
        let body = r#"{"model":"m","input":["see https://a/b.png"],"modality":"text_image"}"#;
        assert!(keys(body)[0].is_none());
        let media = read(r#"{"model":"m","input":["data:video/mp4;base64,AAAA","data:video is a prefix"]}"#).unwrap();
        assert_eq!([media.items[0].is_media, media.items[1].is_media], [true, false]);
    }

    #[test]
    fn what_is_not_understood_stays_away() {
        for (body, reason) in [
            (r#"{"model":"m","input":"a","cache_salt":"x"}"#, Unfit::Member),
            (r#"{"model":"m","input":"a","embedding_type":"int8"}"#, Unfit::Member),
            (r#"{"model":"m","input":"a","embedding_type":null}"#, Unfit::Member),
            (r#"{"model":"m","input":["a","b"],"modality":["text","text","text"]}"#, Unfit::Member),
            (r#"{"model":"m","input":"a","encoding_format":null}"#, Unfit::Encoding),
            (r#"{"model":"m","input":[]}"#, Unfit::Items),
            (r#"{"model":"m","input":["a",1]}"#, Unfit::Items),
            (r#"{"model":"m","input":[1,-2]}"#, Unfit::Items),
            (r#"{"model":"m","input":[1,2.0]}"#, Unfit::Items),
            (r#"{"model":"m","input":[[]]}"#, Unfit::Items),
            (r#"{"model":"m","input":{"text":"a"}}"#, Unfit::Items),
            (r#"{"model":"m"}"#, Unfit::Items),
        ] {
            assert_eq!(read(body).err(), Some(reason), "{body}");
        }
        let large = format!(r#"{{"model":"m","input":"a","x":"{}"}}"#, "y".repeat(20_000));
        assert_eq!(read(&large).err(), Some(Unfit::Large));
    }

    #[test]
    fn a_part_has_the_chosen_items() {
        let question =
            read(r#"{"modality":["text","image","text"], "input": [ "a","b" , "c\n"],"model":"m"}"#).unwrap();
        let part = question.part(&[2, 0]).unwrap();
        assert_eq!(part, r#"{"modality":["text","text"], "input": ["c\n","a"],"model":"m"}"#);
        assert!(read(r#"{"model":"m","input":"a"}"#).unwrap().part(&[0]).is_none());
    }
}
