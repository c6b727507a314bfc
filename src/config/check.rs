//! Holds configuration text against the JSON Schema that the types of `file.rs` generate.

use std::marker::PhantomData;
use std::path::Path;

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{ValidationError, Validator};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::yaml::{self, Located};
use super::{Finding, Mistake, Mistakes};

/// The JSON Schema of `T`, as editors use it.
pub fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// A schema that was compiled once, to hold many records against.
pub struct Form<T> {
    schema: Value,
    validator: Validator,
    made: PhantomData<fn() -> T>,
}

impl<T: JsonSchema + DeserializeOwned> Form<T> {
    /// Compiles the schema of `T`.
    pub fn new() -> Result<Self, String> {
        let schema = schema::<T>();
        let validator = jsonschema::draft202012::new(&schema)
            .map_err(|e| format!("the configuration's own schema is broken: {e}"))?;
        Ok(Self { schema, validator, made: PhantomData })
    }

    /// Takes a value that fits; all that does not is found at once.
    pub fn read(&self, mut value: Value) -> Result<T, Vec<Finding>> {
        // Most records are good, and to learn that alone is several times faster.
        if !self.validator.is_valid(&value) {
            let violations = self.validator.iter_errors(&value).flat_map(|error| explain(&self.schema, &error));
            return Err(violations.map(|(pointer, reason)| Finding::wrong(pointer, reason)).collect());
        }
        whole_numbers(&mut value);
        // What the schema lets pass, serde takes; should the two ever differ, serde's words may quote a value.
        let reason = "this fits its schema but can not be read; please report this";
        serde_json::from_value(value).map_err(|_| vec![Finding::wrong("", reason)])
    }
}

/// Parses and checks text. All structural mistakes are found at once. Of what was located, the places stay.
pub(super) fn typed<T: JsonSchema + DeserializeOwned>(path: &Path, text: &str) -> Result<(T, Located), Mistakes> {
    let mistake = |place, key: String, reason| Mistake { file: path.to_owned(), place: Some(place), key, reason };
    let one = |mistake| Mistakes(vec![mistake]);
    let mut located = yaml::parse(text).map_err(|bad| one(mistake(bad.place, String::new(), bad.reason)))?;
    let form = Form::<T>::new().map_err(|reason| one(mistake(located.place(""), String::new(), reason)))?;
    let typed = form.read(std::mem::take(&mut located.value)).map_err(|findings| {
        let told = |finding: Finding| mistake(located.place(&finding.pointer), finding.key(), finding.reason);
        let mut mistakes: Vec<Mistake> = findings.into_iter().map(told).collect();
        mistakes.sort_by_key(|m| m.place);
        Mistakes(mistakes)
    })?;
    Ok((typed, located))
}

/// A violation as places and reasons: an unknown key stands for itself. Reasons name what was expected and never quote
/// a value, which may be a secret in the wrong place.
fn explain(schema: &Value, error: &ValidationError<'_>) -> Vec<(String, String)> {
    let at = error.instance_path().to_string();
    let keyword = schema.pointer(error.schema_path().as_str());
    let parent = error.schema_path().as_str().rsplit_once('/').and_then(|(parent, _)| schema.pointer(parent));
    let stated = |name: &str| parent.and_then(|p| p.get(name));
    let found = kind_of(error.instance());
    let reason = match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let known = stated("properties").and_then(Value::as_object).into_iter().flatten();
            let known: Vec<&str> = known.map(|(k, _)| k.as_str()).collect();
            let reason = format!("unknown key; expected one of {}", known.join(", "));
            return unexpected.iter().map(|key| (format!("{at}/{}", escaped(key)), reason.clone())).collect();
        }
        Kind::Required { property } => format!("the key {} is required", property.as_str().unwrap_or_default()),
        Kind::Type { .. } if is_grouped(error.instance()) => {
            format!("{}; write its digits without anything between", expected_types(error.kind(), found))
        }
        Kind::Type { .. } => expected_types(error.kind(), found),
        // An optional section that is there: what is wrong stands within it.
        Kind::AnyOf { context } if context.len() == 2 => {
            let inner = context.iter().find(|errors| !errors.iter().all(is_null_wanted));
            return inner.into_iter().flatten().flat_map(|error| explain(schema, error)).collect();
        }
        Kind::OneOfNotValid { .. } | Kind::OneOfMultipleValid { .. } | Kind::AnyOf { .. } => {
            expected(&listed(&forms(schema, keyword)), found)
        }
        Kind::Minimum { .. } | Kind::Maximum { .. } => {
            let number = if is_whole(stated("type")) { "a whole number" } else { "a number" };
            match (stated("minimum"), stated("maximum")) {
                (Some(least), Some(most)) => format!("expected {number} from {least} to {most}"),
                (Some(least), None) => format!("expected {number} of at least {least}"),
                (None, Some(most)) => format!("expected {number} of at most {most}"),
                (None, None) => "expected another number".into(),
            }
        }
        Kind::MinItems { limit } => format!("expected at least {limit} in the list"),
        Kind::MaxItems { limit } => format!("expected at most {limit} in the list"),
        Kind::MinLength { .. } | Kind::MaxLength { .. } => match (stated("minLength"), stated("maxLength")) {
            (Some(least), Some(most)) => format!("expected {least} to {most} characters"),
            (None, Some(most)) => format!("expected at most {most} characters"),
            _ => "expected text, found none".into(),
        },
        Kind::Pattern { pattern } => format!("expected text that matches {pattern}"),
        other => format!("does not hold to the keyword {} of the schema (nimgate schema)", other.keyword()),
    };
    vec![(at, reason)]
}

fn expected_types(kind: &Kind, found: &str) -> String {
    let names: Vec<String> = match kind {
        Kind::Type { kind: TypeKind::Single(one) } => vec![one.to_string()],
        Kind::Type { kind: TypeKind::Multiple(many) } => {
            many.iter().map(|t| t.to_string()).filter(|t| t != "null").collect()
        }
        _ => Vec::new(),
    };
    expected(&names.iter().map(|n| word(n)).collect::<Vec<_>>().join(" or "), found)
}

/// Whether `type` of a schema is that of whole numbers.
fn is_whole(types: Option<&Value>) -> bool {
    match types {
        Some(Value::Array(types)) => types.iter().any(|t| t == "integer"),
        one => one.is_some_and(|t| t == "integer"),
    }
}

/// Whether text is a number to people, such as `1_000_000`.
fn is_grouped(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.contains(['_', ',', '\'', ' '])
        && text.bytes().all(|b| b.is_ascii_digit() || b"_,.' ".contains(&b))
}

fn expected(what: &str, found: &str) -> String {
    let hint = if what == "text" && matches!(found, "a number" | "true or false") { "; put it in quotes" } else { "" };
    format!("expected {what}, found {found}{hint}")
}

/// The branch of an optional value that only nothing would satisfy.
fn is_null_wanted(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), Kind::Type { kind: TypeKind::Single(jsonschema::JsonType::Null) })
}

/// The alternatives of a `oneOf` or `anyOf` in words.
fn forms(schema: &Value, alternatives: Option<&Value>) -> Vec<String> {
    let mut words = Vec::new();
    for form in alternatives.and_then(Value::as_array).into_iter().flatten() {
        let target = form.get("$ref").and_then(Value::as_str).and_then(|t| schema.pointer(t.strip_prefix('#')?));
        let form = target.unwrap_or(form);
        if let Some(constant) = form.get("const") {
            words.push(constant.as_str().map_or_else(|| constant.to_string(), str::to_owned));
        } else if let Some(properties) = form.get("properties").and_then(Value::as_object) {
            let names: Vec<&str> = properties.keys().map(String::as_str).collect();
            words.push(format!("{{{}: …}}", names.join(", ")));
        } else if let Some(kind) = form.get("type").and_then(Value::as_str) {
            words.push(word(kind).to_owned());
        }
    }
    words
}

/// `a, b or c`.
fn listed(words: &[String]) -> String {
    match words {
        [] => "another form".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A type of JSON Schema as YAML's readers call it.
fn word(kind: &str) -> &str {
    match kind {
        "null" => "nothing",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// `1e3` is a whole number in YAML as in JSON Schema, but not to serde.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0 && f.abs() <= 9e15);
            if let Some(whole) = whole {
                *value = (whole as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(members) => members.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// A key as a step of a JSON pointer.
pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
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
