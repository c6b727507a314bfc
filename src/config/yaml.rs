//! YAML text into a JSON value that remembers where everything stood.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

/// A place in a file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// A document and where each of its values stands, by JSON pointer.
#[derive(Debug)]
pub struct Located {
    /// The document.
    pub value: Value,
    places: HashMap<String, Place>,
}

impl Located {
    /// Where `pointer` stands, or the closest thing around it.
    pub fn place(&self, pointer: &str) -> Place {
        let mut pointer = pointer;
        loop {
            if let Some(place) = self.places.get(pointer) {
                return *place;
            }
            match pointer.rfind('/') {
                Some(at) => pointer = &pointer[..at],
                None => return Place { line: 1, column: 1 },
            }
        }
    }
}

/// Why text is not a YAML document that can be used, and where.
#[derive(Debug)]
pub struct BadYaml {
    /// Where.
    pub place: Place,
    /// What.
    pub reason: String,
}

/// Parses one document: scalars by the YAML 1.2 core schema; aliases, tags, duplicate keys and further
/// documents are refused.
pub fn parse(text: &str) -> Result<Located, BadYaml> {
    let mut reader = Reader { events: Parser::new_from_str(text), places: HashMap::new() };
    let value = loop {
        match reader.next()? {
            (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
            (Event::StreamEnd | Event::DocumentEnd, _) => break Value::Null,
            (event, span) => {
                let value = reader.value(event, span, "")?;
                reader.end()?;
                break value;
            }
        }
    };
    Ok(Located { value, places: reader.places })
}

/// Parses one document whose places do not matter.
pub fn parse_value(text: &str) -> Result<Value, String> {
    parse(text)
        .map(|located| located.value)
        .map_err(|bad| format!("line {}, column {}: {}", bad.place.line, bad.place.column, bad.reason))
}

struct Reader<'a, I: saphyr_parser::Input> {
    events: Parser<'a, I>,
    places: HashMap<String, Place>,
}

/// Deeper nesting is refused rather than recursed into.
const DEEPEST: usize = 64;

impl<'a, I: saphyr_parser::Input> Reader<'a, I> {
    fn next(&mut self) -> Result<(Event<'a>, Span), BadYaml> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => {
                let place = Place { line: e.marker().line(), column: e.marker().col() + 1 };
                Err(BadYaml { place, reason: e.info().to_owned() })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// Nothing may follow the document: it would not be read.
    fn end(&mut self) -> Result<(), BadYaml> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentEnd | Event::Nothing => {}
                _ => {
                    return Err(BadYaml {
                        place: place_of(span),
                        reason: "expected one document, found a second".into(),
                    });
                }
            }
        }
    }

    fn value(&mut self, event: Event<'a>, span: Span, pointer: &str) -> Result<Value, BadYaml> {
        let place = place_of(span);
        self.places.entry(pointer.to_owned()).or_insert(place);
        let bad = |reason: String| Err(BadYaml { place, reason });
        if pointer.matches('/').count() > DEEPEST {
            return bad(format!("nested deeper than {DEEPEST} levels"));
        }
        match event {
            Event::Alias(_) => bad("aliases are not supported".into()),
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => bad(format!("tags such as !{} are not supported", tag.suffix)),
            Event::Scalar(text, style, ..) => Ok(scalar(&text, style)),
            Event::SequenceStart(..) => self.sequence(pointer),
            Event::MappingStart(..) => self.mapping(pointer),
            other => bad(format!("unexpected {other:?}")),
        }
    }

    fn sequence(&mut self, pointer: &str) -> Result<Value, BadYaml> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Value::Array(items));
            }
            let item = self.value(event, span, &format!("{pointer}/{}", items.len()))?;
            items.push(item);
        }
    }

    fn mapping(&mut self, pointer: &str) -> Result<Value, BadYaml> {
        let mut members = Map::new();
        loop {
            let (event, span) = self.next()?;
            let place = place_of(span);
            let key = match event {
                Event::MappingEnd | Event::StreamEnd => return Ok(Value::Object(members)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(BadYaml { place, reason: "a key must be plain text".into() }),
            };
            if members.contains_key(&key) {
                return Err(BadYaml { place, reason: format!("the key `{key}` stands here twice") });
            }
            let below = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
            self.places.insert(below.clone(), place);
            let (event, span) = self.next()?;
            let value = self.value(event, span, &below)?;
            members.insert(key, value);
        }
    }
}

fn place_of(span: Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::String(text.to_owned());
    }
    if let Ok(integer) = text.parse::<i64>() {
        return integer.into();
    }
    let hex = text.strip_prefix("0x").and_then(|digits| i64::from_str_radix(digits, 16).ok());
    let octal = text.strip_prefix("0o").and_then(|digits| i64::from_str_radix(digits, 8).ok());
    if let Some(integer) = hex.or(octal) {
        return integer.into();
    }
    let number = text.parse::<f64>().ok().filter(|_| text.bytes().all(|b| b"+-.eE0123456789".contains(&b)));
    number.and_then(serde_json::Number::from_f64).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_follow_the_core_schema() {
        let text =
            "{a: 1, b: 1.5, c: yes, d: true, e: ~, f: '1', g: 127.0.0.1:80, h: 0x10, i: 1e3, j: -2, k: no-1, l: 3.1.0}";
        let expected = json!({ "a": 1, "b": 1.5, "c": "yes", "d": true, "e": null, "f": "1", "g": "127.0.0.1:80", "h": 16, "i": 1000.0, "j": -2, "k": "no-1", "l": "3.1.0" });
        assert_eq!(parse(text).unwrap().value, expected);
    }

    #[test]
    fn every_value_knows_its_line() {
        let located = parse("# comment\npools:\n  - name: a\n    endpoints: []\n").unwrap();
        assert_eq!(located.place("/pools/0/name"), Place { line: 3, column: 5 });
        assert_eq!(located.place("/pools/0/endpoints/3/url"), Place { line: 4, column: 5 });
    }

    #[test]
    fn what_could_be_misread_is_refused_with_its_place() {
        for (text, line, wanted) in [
            ("a: 1\nb: 2\na: 3\n", 3, "twice"),
            ("a: &x 1\nb: *x\n", 2, "aliases"),
            ("a: !secret x\n", 1, "tags"),
            ("a:\nb: !map {}\n", 2, "tags"),
            ("a: [1\nb: 2", 2, ""),
            ("a: 1\n---\nb: 2\n", 2, "a second"),
            ("a:\n\tb: 1\n", 2, "tab"),
        ] {
            let bad = parse(text).unwrap_err();
            assert!(bad.place.line >= line && bad.reason.contains(wanted), "{bad:?}");
        }
    }
}
