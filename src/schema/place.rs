//! Finds where in a body the strings stand that some patterns lead to, so that each can be replaced alone.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A way to strings: a JSON pointer in which `*` stands for every element of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// Reads `/messages/*/content`.
    pub fn read(text: &str) -> Option<Self> {
        let steps = text.strip_prefix('/')?.split('/');
        Some(Self(steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()))
    }

    /// Where the strings stand that any of `patterns` leads to, quotes included, in their order; at most so many.
    pub fn find(patterns: &[Self], body: &[u8], most: usize) -> Vec<Range<usize>> {
        let ways = patterns.iter().map(|pattern| &pattern.0[..]).collect();
        let mut found = Found { start: body.as_ptr() as usize, places: Vec::new(), most };
        let walk = Walk { ways, found: &mut found };
        // What is no JSON has been refused before.
        let _ = walk.deserialize(&mut serde_json::Deserializer::from_slice(body));
        found.places
    }
}

struct Found {
    start: usize,
    places: Vec<Range<usize>>,
    most: usize,
}

/// A value, and the ways that go on from it.
struct Walk<'a, 'p> {
    ways: Vec<&'p [String]>,
    found: &'a mut Found,
}

impl<'p> Walk<'_, 'p> {
    /// What the ways become when they go through this step.
    fn through(&self, fits: impl Fn(&str) -> bool) -> Vec<&'p [String]> {
        let ways = self.ways.iter().filter_map(|way| way.split_first().filter(|(step, _)| fits(step)));
        ways.map(|(_, rest)| rest).collect()
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.ways.is_empty() {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|_| ());
        }
        if self.ways.iter().all(|way| !way.is_empty()) {
            return deserializer.deserialize_any(self);
        }
        let raw: &RawValue = serde::Deserialize::deserialize(deserializer)?;
        if raw.get().starts_with('"') && self.found.places.len() < self.found.most {
            let at = raw.get().as_ptr() as usize - self.found.start;
            self.found.places.push(at..at + raw.get().len());
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let ways = self.through(|step| step == "*");
        while seq.next_element_seed(Walk { ways: ways.clone(), found: &mut *self.found })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let ways = self.through(|step| step == key);
            map.next_value_seed(Walk { ways, found: &mut *self.found })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str, patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<Pattern> = patterns.iter().map(|text| Pattern::read(text).unwrap()).collect();
        Pattern::find(&patterns, body.as_bytes(), 3).into_iter().map(|place| body[place].to_owned()).collect()
    }

    #[test]
    fn patterns_lead_to_strings() {
        let body = r#" {"a": [{"u": {"url": "one"}}, {"u": {"url" : "t\/wo"}, "v": "no"}, {"u": 7}, "no"], "b": "three",
                        "c": {"url": "no"}, "n": [1, -2, 3.5, true, null]} "#;
        assert_eq!(found(body, &["/a/*/u/url", "/b"]), [r#""one""#, r#""t\/wo""#, r#""three""#]);
        assert_eq!(found(body, &["/a", "/c", "/n/*", "/a/u/url", "/*/url"]), Vec::<String>::new());
        assert_eq!(found(r#"["1", "2", "3", "4"]"#, &["/*"]).len(), 3, "no more than are wanted");
        assert!(found(r#"{"a": "#, &["/a"]).is_empty());
    }
}
