//! Holds configuration text against the JSON Schema that the types of `file.rs` generate.

use std::path::Path;

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::yaml::{self, Located};
use super::{Mistake, Mistakes};

/// The JSON Schema of `T`, as editors use it.
pub fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Parses and checks text. All structural mistakes are found at once.
pub(super) fn typed<T: JsonSchema + DeserializeOwned>(path: &Path, text: &str) -> Result<(T, Located), Mistakes> {
    let mistake = |place, key: String, reason| Mistake { file: path.to_owned(), place: Some(place), key, reason };
    let one = |mistake| Mistakes(vec![mistake]);
    let located = yaml::parse(text).map_err(|bad| one(mistake(bad.place, String::new(), bad.reason)))?;
    let schema = schema::<T>();
    let start = located.place("");
    let validator = jsonschema::draft202012::new(&schema)
        .map_err(|e| one(mistake(start, String::new(), format!("the configuration's own schema is broken: {e}"))))?;
    let mut mistakes: Vec<Mistake> = Vec::new();
    for error in validator.iter_errors(&located.value) {
        for (pointer, reason) in explain(&schema, &error) {
            mistakes.push(mistake(located.place(&pointer), dotted(&pointer), reason));
        }
    }
    if !mistakes.is_empty() {
        mistakes.sort_by_key(|m| m.place);
        return Err(Mistakes(mistakes));
    }
    let typed = serde_json::from_value(located.value.clone());
    typed.map(|typed| (typed, located)).map_err(|e| one(mistake(start, String::new(), e.to_string())))
}

/// A violation as places and reasons: an unknown key stands for itself.
fn explain(schema: &Value, error: &ValidationError<'_>) -> Vec<(String, String)> {
    let at = error.instance_path().to_string();
    let keyword = schema.pointer(error.schema_path().as_str());
    let parent = error.schema_path().as_str().rsplit_once('/').and_then(|(parent, _)| schema.pointer(parent));
    let reason = match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let known: Vec<&str> = parent
                .and_then(|p| p.get("properties")?.as_object())
                .into_iter()
                .flatten()
                .map(|(k, _)| k.as_str())
                .collect();
            let reason = format!("unknown key; expected one of {}", known.join(", "));
            return unexpected.iter().map(|key| (format!("{at}/{key}"), reason.clone())).collect();
        }
        Kind::Required { property } => format!("the key {property} is required"),
        Kind::Type { kind: TypeKind::Single(one) } => format!("expected {one}, found {}", kind_of(error.instance())),
        Kind::Type { kind: TypeKind::Multiple(many) } => {
            let names: Vec<String> = many.iter().map(|t| t.to_string()).collect();
            format!("expected {}, found {}", names.join(" or "), kind_of(error.instance()))
        }
        Kind::OneOfNotValid { .. } | Kind::OneOfMultipleValid { .. } | Kind::AnyOf { .. } => {
            format!("expected {}", forms(schema, keyword))
        }
        Kind::Pattern { pattern } => format!("expected text that matches {pattern}"),
        _ => error.to_string(),
    };
    vec![(at, reason)]
}

/// The alternatives of a `oneOf` or `anyOf` in words.
fn forms(schema: &Value, alternatives: Option<&Value>) -> String {
    let mut words = Vec::new();
    for form in alternatives.and_then(Value::as_array).into_iter().flatten() {
        let target = form.get("$ref").and_then(Value::as_str).and_then(|t| schema.pointer(t.strip_prefix('#')?));
        if let Some(inner) = target.and_then(|t| t.get("oneOf")) {
            words.push(forms(schema, Some(inner)));
            continue;
        }
        let form = target.unwrap_or(form);
        if let Some(constant) = form.get("const") {
            words.push(constant.to_string());
        } else if let Some(options) = form.get("enum").and_then(Value::as_array) {
            words.extend(options.iter().map(ToString::to_string));
        } else if let Some(properties) = form.get("properties").and_then(Value::as_object) {
            let names: Vec<&str> = properties.keys().map(String::as_str).collect();
            words.push(format!("{{{}: …}}", names.join(", ")));
        } else if let Some(kind) = form.get("type").and_then(Value::as_str) {
            words.push(kind.to_owned());
        }
    }
    words.join(" or ")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// `/pools/0/name` as `pools[0].name`.
pub(super) fn dotted(pointer: &str) -> String {
    let mut key = String::new();
    for token in pointer.split('/').skip(1) {
        if token.bytes().all(|b| b.is_ascii_digit()) && !token.is_empty() {
            key.push_str(&format!("[{token}]"));
        } else {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(&token.replace("~1", "/").replace("~0", "~"));
        }
    }
    key
}
