//! Members: JSON read no deeper than need be, so that what is not understood stays as it was written.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object, its members in order.
pub struct Members<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for InOrder<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

impl<'a> Members<'a> {
    /// Reads an object whose members have different names.
    pub fn read(text: &'a str) -> Option<Self> {
        let members: Self = serde_json::from_str(text).ok()?;
        let names: std::collections::HashSet<&str> = members.0.iter().map(|(name, _)| name.as_str()).collect();
        (names.len() == members.0.len()).then_some(members)
    }

    /// A member as it was written.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, raw)| raw.get())
    }
}

/// Reads a list.
pub fn list(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// Reads a string.
pub fn string(raw: &str) -> Option<std::borrow::Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).ok().map(std::borrow::Cow::Owned) } else { Some(inner.into()) }
}

/// A form in which values that differ differ, and few that are the same do: members sorted, strings unescaped, numbers
/// as they were written.
pub fn canonical(raw: &str) -> Option<String> {
    let raw = raw.trim();
    Some(match raw.as_bytes().first()? {
        b'{' => {
            let mut members = Members::read(raw)?.0;
            members.sort_by(|a, b| a.0.cmp(&b.0));
            let members = members.iter().map(|(name, value)| Some(format!("{name:?}:{}", canonical(value.get())?)));
            format!("{{{}}}", members.collect::<Option<Vec<_>>>()?.join(","))
        }
        b'[' => {
            let items = list(raw)?.into_iter().map(canonical).collect::<Option<Vec<_>>>()?;
            format!("[{}]", items.join(","))
        }
        b'"' => format!("{:?}", string(raw)?),
        _ => raw.to_owned(),
    })
}

/// Where `part` stands in `whole`, which it was taken from.
pub fn place(whole: &str, part: &str) -> Range<usize> {
    let from = part.as_ptr() as usize - whole.as_ptr() as usize;
    from..from + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_form_joins_only_what_is_the_same() {
        for (one, other, is_same) in [
            (r#"{"b":1,"a":[2, "x"]}"#, r#"{ "a":[2,"\u0078"] ,"b":1}"#, true),
            ("1", "1.0", false),
            (r#""1""#, "1", false),
            ("null", r#""null""#, false),
            (r#"["a,b"]"#, r#"["a","b"]"#, false),
            (r#""a\"""#, r#""a""#, false),
            ("18446744073709551616", "18446744073709551617", false),
        ] {
            assert_eq!(canonical(one) == canonical(other), is_same, "{one} {other}");
        }
        assert!(Members::read(r#"{"a":1,"a":2}"#).is_none());
    }
}
