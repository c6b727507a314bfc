//! Value: a vector as it is kept, and as it is written into answers.
//!
//! 21 bytes and the numbers: version, form, dimensions, tokens, media, end of life, checksum. Numbers are f32 in little
//! endian; f64 where an f32 would print as another number than the backend did.

use base64_simd::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::key::Key;
use super::number;
use super::scan::Scan;

const VERSION: u8 = 1;
/// Bytes before the numbers.
pub const HEAD: usize = 21;
const CHECK: std::ops::Range<usize> = 13..21;
const IS_EXACT: u8 = 0x80;

/// How numbers are kept, and how the backend wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Form {
    /// f32, from base64: nobody knows how the backend would have printed them.
    Bits = 0,
    /// f32, printed as the shortest text that reads back as the same f32.
    Short = 1,
    /// f32, printed as the f64 of the same value.
    Wide = 2,
    /// f64.
    Double = 3,
    /// No numbers: what the answers of a space have in common.
    Frame = 4,
}

/// How answers write vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As lists of numbers.
    Float,
    /// As base64 of f32 in little endian.
    Base64,
}

/// Numbers, as read out of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// How they are kept.
    pub form: Form,
    /// How many.
    pub dimensions: u16,
    data: Vec<u8>,
}

/// What a vector came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Tokens of the item.
    pub tokens: u32,
    /// Whether the backend stated them for this item alone.
    pub is_exact: bool,
    /// Videos that the backend counted.
    pub media: u8,
    /// When it may not be used any more, Unix seconds.
    pub expires: u32,
}

/// A value whose checksum was good, or that was made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Bytes);

impl Vector {
    /// Reads a JSON list of numbers; nothing for anything else, or when one of them is not finite.
    pub fn from_numbers(raw: &str) -> Option<Self> {
        let mut scan = Scan::new(raw);
        let vector = Self::scan_numbers(&mut scan, 0)?;
        scan.is_end().then_some(vector)
    }

    /// Reads the list of numbers that comes next, about `expected` of them.
    pub(super) fn scan_numbers(scan: &mut Scan<'_>, expected: usize) -> Option<Self> {
        let mut numbers: Vec<f64> = Vec::with_capacity(expected);
        let (mut is_short, mut is_wide) = (true, true);
        let mut printer = zmij::Buffer::new();
        // A loop of its own: there are some ten thousand of them in an answer.
        let rest = scan.rest();
        let bytes = rest.as_bytes();
        let blank = |at: usize| bytes.get(at).is_some_and(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        let mut at = 0;
        loop {
            if bytes.get(at) != Some(if at == 0 { &b'[' } else { &b',' }) {
                break;
            }
            at += 1;
            while blank(at) {
                at += 1;
            }
            let (number, length) = number::read(rest.get(at..)?)?;
            let narrow = number as f32;
            is_wide = is_wide && f64::from(narrow) == number;
            if is_short {
                let printed = if narrow.is_finite() { printer.format_finite(narrow) } else { "" };
                is_short = printed.as_bytes() == &bytes[at..at + length] || printed.parse() == Ok(number);
            }
            numbers.push(number);
            at += length;
            while blank(at) {
                at += 1;
            }
        }
        scan.pass(at);
        if !scan.takes(b']') {
            return None;
        }
        let dimensions = u16::try_from(numbers.len()).ok().filter(|dimensions| *dimensions > 0)?;
        let form = match (is_short, is_wide) {
            (true, _) => Form::Short,
            (_, true) => Form::Wide,
            _ => Form::Double,
        };
        let data = match form {
            Form::Double => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|n| (*n as f32).to_le_bytes()).collect(),
        };
        Some(Self { form, dimensions, data })
    }

    /// Reads base64 of f32; nothing for anything else, or when one of them is not finite.
    pub fn from_base64(text: &str) -> Option<Self> {
        let data = STANDARD.decode_to_vec(text).ok()?;
        let dimensions = u16::try_from(data.len() / 4).ok()?;
        let is_whole = data.len() % 4 == 0 && !data.is_empty();
        (is_whole && floats(&data).all(f32::is_finite)).then_some(Self { form: Form::Bits, dimensions, data })
    }
}

impl Value {
    /// A vector as it is kept under `key`.
    pub fn of(key: &Key, vector: &Vector, facts: Facts) -> Self {
        Self::seal(key, vector.form, vector.dimensions, facts, &vector.data)
    }

    /// A frame as it is kept under `key`.
    pub fn of_frame(key: &Key, frame: &[u8], dimensions: u16, expires: u32) -> Self {
        let facts = Facts { tokens: 0, is_exact: true, media: 0, expires };
        Self::seal(key, Form::Frame, dimensions, facts, frame)
    }

    fn seal(key: &Key, form: Form, dimensions: u16, facts: Facts, data: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEAD + data.len());
        bytes.extend([VERSION, form as u8 | if facts.is_exact { IS_EXACT } else { 0 }]);
        bytes.extend(dimensions.to_le_bytes());
        bytes.extend(facts.tokens.to_le_bytes());
        bytes.push(facts.media);
        bytes.extend(facts.expires.to_le_bytes());
        let check = check(key, &bytes, data);
        bytes.extend(check);
        bytes.extend(data);
        Self(bytes.into())
    }

    /// Takes what was found under `key`; nothing if that is not what was put there.
    pub fn open(key: &Key, bytes: Bytes) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(HEAD)?;
        if head[0] != VERSION || head[CHECK] != check(key, &head[..CHECK.start], data) {
            return None;
        }
        let value = Self(bytes);
        let dimensions = usize::from(value.dimensions());
        let length = match value.form()? {
            Form::Frame => return Some(value),
            Form::Double => dimensions * 8,
            Form::Bits | Form::Short | Form::Wide => dimensions * 4,
        };
        (value.data().len() == length).then_some(value)
    }

    /// What is stored.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// How numbers are kept.
    pub fn form(&self) -> Option<Form> {
        Some(match self.0[1] & !IS_EXACT {
            0 => Form::Bits,
            1 => Form::Short,
            2 => Form::Wide,
            3 => Form::Double,
            4 => Form::Frame,
            _ => return None,
        })
    }

    /// How many numbers.
    pub fn dimensions(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// What it came with.
    pub fn facts(&self) -> Facts {
        let number = |at: usize| u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]]);
        Facts { tokens: number(4), is_exact: self.0[1] & IS_EXACT != 0, media: self.0[8], expires: number(9) }
    }

    /// The numbers, or the frame.
    pub fn data(&self) -> &[u8] {
        &self.0[HEAD..]
    }

    /// Whether it can be written so.
    pub fn is_writable(&self, encoding: Encoding, usual: Form) -> bool {
        match (self.form(), encoding) {
            (None | Some(Form::Frame), _) | (Some(Form::Double), Encoding::Base64) => false,
            (Some(Form::Bits), Encoding::Float) => usual != Form::Double,
            _ => true,
        }
    }

    /// Writes the vector as the backend would; `usual` is how the backend prints what it prints. False when nobody here
    /// can know.
    pub fn write(&self, encoding: Encoding, usual: Form, out: &mut Vec<u8>) -> bool {
        let form = match (self.form(), encoding) {
            (None | Some(Form::Frame), _) => return false,
            // Its f32 is that of a number which the backend rounded for print.
            (Some(Form::Double), Encoding::Base64) => return false,
            (Some(_), Encoding::Base64) => {
                out.push(b'"');
                STANDARD.encode_append(self.data(), out);
                out.push(b'"');
                return true;
            }
            (Some(Form::Bits), Encoding::Float) => match usual {
                Form::Wide => Form::Wide,
                Form::Double => return false,
                _ => Form::Short,
            },
            (Some(form), Encoding::Float) => form,
        };
        let mut printer = zmij::Buffer::new();
        let mut separator = b'[';
        let mut add = |text: &str| {
            out.push(separator);
            separator = b',';
            out.extend_from_slice(text.as_bytes());
        };
        match form {
            Form::Wide => floats(self.data()).for_each(|n| add(printer.format_finite(f64::from(n)))),
            Form::Double => self.data().chunks_exact(8).for_each(|eight| {
                let number = f64::from_le_bytes(eight.try_into().unwrap_or_default());
                add(printer.format_finite(number));
            }),
            _ => floats(self.data()).for_each(|n| add(printer.format_finite(n))),
        }
        out.push(b']');
        true
    }
}

fn floats(data: &[u8]) -> impl Iterator<Item = f32> {
    data.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap_or_default()))
}

fn check(key: &Key, head: &[u8], data: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(key.secret());
    hash.update(head);
    hash.update(data);
    let digest = hash.finalize();
    let mut check = [0; 8];
    check.copy_from_slice(&digest[..8]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key::{Circumstances, Scope, Space};

    const FACTS: Facts = Facts { tokens: 7, is_exact: true, media: 1, expires: 99 };

    fn key(item: &str) -> Key {
        let circumstances =
            Circumstances { api: "a", operation: "o", revision: "r", scope: Scope::Global, purges: [0; 4] };
        Space::new(&circumstances, []).item("text", item.as_bytes(), &[])
    }

    fn written(raw: &str, encoding: Encoding) -> String {
        let value = Value::of(&key("a"), &Vector::from_numbers(raw).unwrap(), FACTS);
        let mut out = Vec::new();
        assert!(value.write(encoding, Form::Bits, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_print_as_the_backend_printed_them() {
        for (raw, form) in [
            ("[0.012345679,-1.0,1e-7]", Form::Short),
            ("[0.012345679104328156,0.5]", Form::Wide),
            ("[0.0123456789,0.1]", Form::Double),
            ("[1e300]", Form::Double),
            ("[ 1 , -0.0 ]", Form::Short),
        ] {
            let vector = Vector::from_numbers(raw).unwrap();
            assert_eq!(vector.form, form, "{raw}");
            let (was, is): (Vec<f64>, Vec<f64>) =
                (serde_json::from_str(raw).unwrap(), serde_json::from_str(&written(raw, Encoding::Float)).unwrap());
            assert_eq!(was, is, "{raw}");
        }
        assert_eq!(written("[1.0]", Encoding::Base64), "\"AACAPw==\"");
        for wrong in ["[]", "[NaN]", "[1e999]", "[null]", "[[1]]", "{}", "[inf]", "[1,]", "[\"1\"]"] {
            assert!(Vector::from_numbers(wrong).is_none(), "{wrong}");
        }
        for wrong in ["", "AAAA", "AACAfw==", "AADAfw==", "?"] {
            assert!(Vector::from_base64(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn any_f32_comes_back_from_either_encoding() {
        for _ in 0..20_000 {
            let number = f32::from_bits(fastrand::u32(..));
            if !number.is_finite() {
                continue;
            }
            let coded = STANDARD.encode_to_string(number.to_le_bytes());
            let mut out = Vec::new();
            let value = Value::of(&key("a"), &Vector::from_base64(&coded).unwrap(), FACTS);
            assert!(value.write(Encoding::Float, Form::Bits, &mut out));
            let text = String::from_utf8(out).unwrap();
            let inner = text.trim_matches(['[', ']']);
            assert_eq!(inner.parse::<f32>().unwrap().to_bits(), number.to_bits());
            assert_eq!(written(&text, Encoding::Base64), format!("\"{coded}\""));
        }
    }

    #[test]
    fn what_is_not_as_it_was_put_is_nothing() {
        let vector = Vector::from_numbers("[0.25,0.5]").unwrap();
        let value = Value::of(&key("a"), &vector, FACTS);
        assert_eq!(value.bytes().len(), 4 * 2 + HEAD);
        assert_eq!(Value::open(&key("a"), value.bytes().clone()).unwrap().facts(), FACTS);
        assert!(Value::open(&key("b"), value.bytes().clone()).is_none());
        for at in 0..value.bytes().len() {
            let mut bytes = value.bytes().to_vec();
            bytes[at] ^= 1 << fastrand::u32(..8);
            assert!(Value::open(&key("a"), bytes.into()).is_none(), "{at}");
            assert!(Value::open(&key("a"), value.bytes().slice(..at)).is_none(), "{at}");
        }
    }
}
