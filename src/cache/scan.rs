//! Scan: JSON in one pass. Objects and lists are walked here, so that large ones are read once; what stands in them is
//! read by serde_json, or by whoever knows better.

use serde_json::value::RawValue;

use super::members::string;

/// Most members of an object.
const MOST_MEMBERS: usize = 64;

/// A text, and how far it was read.
pub struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    /// At the beginning.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// What was not read yet, blanks passed over.
    #[inline]
    pub fn rest(&mut self) -> &'a str {
        let mut rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        while let [b' ' | b'\t' | b'\n' | b'\r', after @ ..] = rest {
            rest = after;
            self.at += 1;
        }
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Passes over so many bytes.
    pub fn pass(&mut self, count: usize) {
        self.at += count;
    }

    /// Passes over this byte, if it comes next.
    #[inline]
    pub fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.rest().as_bytes().first() == Some(&byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Whether nothing is left.
    pub fn is_end(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// The next value, as it is written.
    pub fn value(&mut self) -> Option<&'a str> {
        self.rest();
        let mut values = serde_json::Deserializer::from_str(self.text.get(self.at..)?).into_iter::<&'a RawValue>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value.get())
    }

    /// The next value, a string, without its quotes. Whether the characters of one without escapes may stand there is left
    /// to whoever reads it.
    pub fn string(&mut self) -> Option<std::borrow::Cow<'a, str>> {
        let inner = self.rest().as_bytes().strip_prefix(b"\"")?;
        let end = memchr::memchr2(b'"', b'\\', inner)?;
        if inner[end] == b'\\' {
            return string(self.value()?);
        }
        let begin = self.at + 1;
        self.at = begin + end + 1;
        self.text.get(begin..begin + end).map(Into::into)
    }

    /// Reads an object whose members have different names. `member` reads the value of each.
    pub fn members(&mut self, mut member: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        let mut names = Vec::new();
        self.each(*b"{}", |scan| {
            let name = string(scan.value()?)?;
            if !scan.takes(b':') || names.contains(&name) || names.len() == MOST_MEMBERS {
                return None;
            }
            member(scan, &name)?;
            names.push(name);
            Some(())
        })
    }

    /// Reads a list. `entry` reads each.
    #[inline]
    pub fn entries(&mut self, entry: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.each(*b"[]", entry)
    }

    #[inline]
    fn each(&mut self, [open, close]: [u8; 2], mut one: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        if !self.takes(open) {
            return None;
        }
        if self.takes(close) {
            return Some(());
        }
        loop {
            one(self)?;
            if !self.takes(b',') {
                return self.takes(close).then_some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        let (mut scan, mut shown) = (Scan::new(text), String::new());
        scan.members(|scan, name| {
            shown += &format!("{name}=");
            match name {
                "list" => scan.entries(|scan| {
                    shown += &format!("{}|", scan.value()?);
                    Some(())
                }),
                "text" => {
                    shown += &scan.string()?;
                    Some(())
                }
                _ => {
                    shown += scan.value()?;
                    Some(())
                }
            }
        })?;
        scan.is_end().then_some(shown)
    }

    #[test]
    fn objects_and_lists_are_walked() {
        let text = " {\"a\" : 1.50,\"list\":[ 1 , [2, 3],\"]\" ],\"text\": \"x\\\"y\",\"b\\u0063\":{\"d\":null}} ";
        assert_eq!(shown(text).unwrap(), "a=1.50list=1|[2, 3]|\"]\"|text=x\"ybc={\"d\":null}");
        assert_eq!(shown("{}").unwrap(), "");
        assert_eq!(shown("{\"list\":[]}").unwrap(), "list=");
    }

    #[test]
    fn what_is_no_json_is_nothing() {
        for text in [
            "",
            "{",
            "}",
            "[]",
            "{\"a\":1",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{a:1}",
            "{\"a\":1}}",
            "{\"a\":1} x",
            "{\"a\":01}",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}",
            "{\"list\":[1,]}",
            "{\"list\":[1 2]}",
            "{\"list\":[1}",
            "{\"list\":1}",
            "{\"a\":NaN}",
            "{\"text\":\"x}",
            "{\"text\":x}",
            "{,}",
            "{\"a\":1 \"b\":2}",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
        let many: Vec<String> = (0..65).map(|n| format!("\"{n}\":1")).collect();
        assert_eq!(shown(&format!("{{{}}}", many.join(","))), None);
    }
}
