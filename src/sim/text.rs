//! What the simulated language models say: words that follow from the prompt, and JSON that follows from a schema.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

const WORDS: [&str; 32] = [
    "the", "robot", "moves", "slowly", "along", "a", "quiet", "road", "while", "bright", "light", "falls", "on",
    "green", "fields", "and", "every", "frame", "shows", "one", "more", "careful", "step", "toward", "its", "distant",
    "goal", "under", "open", "sky", "with", "patience",
];
/// A schema deeper than this is answered with null.
const DEEPEST: usize = 16;

/// So many tokens, always the same for the same prompt.
pub(super) fn tokens(prompt: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let seed = u64::from_le_bytes(first_eight(&Sha256::digest(prompt)));
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(move |at| {
        let word = WORDS[random.usize(..WORDS.len())];
        if at == 0 { word.to_owned() } else { format!(" {word}") }
    })
}

/// How many tokens the model would like to say.
pub(super) fn natural_length(prompt: &str) -> usize {
    16 + usize::from(Sha256::digest(prompt)[9]) % 32
}

/// Words stand for tokens.
pub(super) fn count(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Cuts a text into token-sized pieces.
pub(super) fn pieces(text: &str) -> Vec<String> {
    text.chars().collect::<Vec<_>>().chunks(4).map(|piece| piece.iter().collect()).collect()
}

/// The first eight bytes of a digest.
pub(super) fn first_eight(digest: &[u8]) -> [u8; 8] {
    std::array::from_fn(|at| digest.get(at).copied().unwrap_or(0))
}

/// A small value that satisfies a JSON schema, as guided decoding would force it.
pub(super) fn instance(schema: &Value) -> Value {
    Filler { root: schema }.fill(schema, 0)
}

struct Filler<'a> {
    root: &'a Value,
}

impl Filler<'_> {
    fn fill(&self, schema: &Value, depth: usize) -> Value {
        if depth > DEEPEST {
            return Value::Null;
        }
        let fixed = schema.get("const").or_else(|| schema.get("default")).or_else(|| schema.get("enum")?.get(0));
        if let Some(value) = fixed {
            return value.clone();
        }
        if let Some(target) = self.target(schema) {
            return self.fill(target, depth + 1);
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, depth),
            "string" => json!("x".repeat(size(schema, "minLength").max(1))),
            "integer" => json!(schema.get("minimum").and_then(Value::as_i64).unwrap_or(1)),
            "number" => json!(schema.get("minimum").and_then(Value::as_f64).unwrap_or(1.0)),
            "boolean" => json!(true),
            _ => Value::Null,
        }
    }

    /// Where a reference or the first of several choices leads.
    fn target<'s>(&'s self, schema: &'s Value) -> Option<&'s Value> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.root.pointer(reference.strip_prefix('#')?);
        }
        ["anyOf", "oneOf", "allOf"].iter().find_map(|word| schema.get(word)?.get(0))
    }

    fn object(&self, schema: &Value, depth: usize) -> Value {
        let required: Vec<&str> = match schema.get("required").and_then(Value::as_array) {
            Some(names) => names.iter().filter_map(Value::as_str).collect(),
            None => Vec::new(),
        };
        let property = |name: &str| schema.get("properties").and_then(|properties| properties.get(name));
        let fields = required.into_iter().map(|name| {
            (name.to_owned(), property(name).map_or(json!("x"), |property| self.fill(property, depth + 1)))
        });
        Value::Object(fields.collect::<Map<_, _>>())
    }

    fn array(&self, schema: &Value, depth: usize) -> Value {
        let item = schema.get("items").map_or(json!("x"), |items| self.fill(items, depth + 1));
        Value::Array(vec![item; size(schema, "minItems").max(1)])
    }
}

fn kind(schema: &Value) -> &str {
    let named = schema.get("type").and_then(|kind| kind.as_str().or_else(|| kind.get(0)?.as_str()));
    named.unwrap_or(if schema.get("properties").is_some() { "object" } else { "null" })
}

fn size(schema: &Value, word: &str) -> usize {
    schema.get(word).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok()).unwrap_or(0).min(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_prompt_gets_the_same_words() {
        let say = |prompt, count| tokens(prompt, count).collect::<String>();
        assert_eq!(say("a", 9), say("a", 9));
        assert_ne!(say("a", 9), say("b", 9));
        assert!(say("a", 9).starts_with(&say("a", 4)));
    }

    #[test]
    fn a_schema_with_references_and_choices_is_filled() {
        let schema = json!({
            "$defs": {"Move": {"type": "object", "required": ["type", "far"],
                               "properties": {"type": {"const": "move"}, "far": {"type": "number"}}}},
            "type": "object", "required": ["actions"],
            "properties": {"actions": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/Move"}]}}}
        });
        assert_eq!(instance(&schema), json!({"actions": [{"type": "move", "far": 1.0}]}));
    }
}
