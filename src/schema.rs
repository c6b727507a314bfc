//! Schema: does a request hold to the JSON Schema of its operation?
//!
//! Compiles the schemas that the catalogue's documents carry (JSON Schema 2020-12) and reports every failing place at
//! once, bounded, as pointer + rule + what was expected. It never quotes the caller's values: they may be prompts or
//! secrets. Which schema applies is decided elsewhere.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value, json};

mod adapt;
mod document;
mod place;

pub use document::{Document, LONGEST_LENGTH_RULE, Malformed};
pub use place::Pattern;

/// How a pool wants its requests checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Whether, and how strictly.
    pub validation: Validation,
    /// Whether URLs that the container would fetch are allowed in bodies.
    pub url_input: UrlInput,
    /// The most violations that one answer lists.
    pub max_violations: usize,
}

/// How strictly a pool's requests are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Validation {
    /// Unknown fields pass: NIM versions differ.
    Lenient,
    /// Unknown fields are refused.
    Strict,
    /// Only that the body is JSON.
    Off,
}

/// Whether URLs that the container would fetch are allowed in bodies (`NIM_ALLOW_URL_INPUT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UrlInput {
    /// Any http(s) URL passes.
    Any,
    /// Only inline data passes.
    Off,
}

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    /// The schema as compiled, to find the rule that a failing keyword belongs to.
    source: Value,
    max_violations: usize,
}

/// One failing place of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer into the checked value; empty for the whole.
    pub pointer: String,
    /// The rule's id in the API's document, or the schema keyword where no rule names it.
    pub rule: String,
    /// What would have passed.
    pub expected: String,
}

/// Every failing place found, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations {
    /// The failing places, in the order of the schema.
    pub list: Vec<Violation>,
    /// Whether there were more than the bound lets through.
    pub truncated: bool,
}

/// Why a document's schema can not be used.
#[derive(Debug)]
pub struct BadSchema(String);

impl std::fmt::Display for BadSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Schema {
    /// Compiles `schema`, whose `$ref`s point into `components` (`#/components/…`).
    pub fn compile(schema: &Value, components: &Value, settings: &Settings) -> Result<Self, BadSchema> {
        let mut source = Map::new();
        source.insert("allOf".into(), json!([schema]));
        source.insert("components".into(), adapt::reachable(schema, components));
        let mut source = Value::Object(source);
        adapt::adapt(&mut source, settings)?;
        let validator = jsonschema::draft202012::options()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(&source)
            .map_err(|e| BadSchema(e.to_string()))?;
        Ok(Self { validator, source, max_violations: settings.max_violations })
    }

    /// Checks one value.
    pub fn validate(&self, value: &Value) -> Result<(), Violations> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let mut list: Vec<Violation> = Vec::new();
        let mut truncated = false;
        for error in self.validator.iter_errors(value) {
            let violation = self.violation(&error);
            if list.contains(&violation) {
                continue;
            }
            if list.len() == self.max_violations {
                truncated = true;
                break;
            }
            list.push(violation);
        }
        Err(Violations { list, truncated })
    }

    fn violation(&self, error: &ValidationError<'_>) -> Violation {
        let stated = self.rule_at(error.evaluation_path().as_str());
        let (rule, expected) = match stated {
            Some((id, expected)) => (id.to_owned(), expected.to_owned()),
            None => (error.kind().keyword().to_owned(), expectation(error.kind())),
        };
        Violation { pointer: error.instance_path().to_string(), rule, expected }
    }

    /// The `x-rule` closest around the failing keyword, following `$ref`s on the way.
    fn rule_at(&self, evaluation_path: &str) -> Option<(&str, &str)> {
        let mut place = &self.source;
        let mut found = None;
        for token in evaluation_path.split('/').skip(1) {
            if let Some(rule) = place.get("x-rule") {
                found = Some(rule);
            }
            let token = token.replace("~1", "/").replace("~0", "~");
            let next = match place {
                Value::Array(items) => token.parse::<usize>().ok().and_then(|i| items.get(i)),
                other => other.get(&token),
            };
            place = match (token.as_str(), next) {
                ("$ref", Some(Value::String(target))) => self.source.pointer(target.strip_prefix('#')?)?,
                (_, Some(next)) => next,
                (_, None) => break,
            };
        }
        let found = place.get("x-rule").or(found)?;
        Some((found.get("id")?.as_str()?, found.get("expect")?.as_str()?))
    }
}

/// What a keyword without a stated rule expects.
fn expectation(kind: &ValidationErrorKind) -> String {
    use ValidationErrorKind as K;
    match kind {
        K::Required { property } => format!("{property} is required"),
        K::Type { kind: TypeKind::Single(one) } => format!("of type {one}"),
        K::Type { kind: TypeKind::Multiple(many) } => {
            let names: Vec<String> = many.iter().map(|t| t.to_string()).collect();
            format!("of type {}", names.join(" or "))
        }
        K::Enum { options } => format!("one of {options}"),
        K::Constant { expected_value } => format!("exactly {expected_value}"),
        K::Maximum { limit } => format!("at most {limit}"),
        K::Minimum { limit } => format!("at least {limit}"),
        K::ExclusiveMaximum { limit } => format!("less than {limit}"),
        K::ExclusiveMinimum { limit } => format!("greater than {limit}"),
        K::MultipleOf { multiple_of } => format!("a multiple of {multiple_of}"),
        K::MaxLength { limit } => format!("at most {limit} characters"),
        K::MinLength { limit } => format!("at least {limit} characters"),
        K::MaxItems { limit } => format!("at most {limit} items"),
        K::MinItems { limit } => format!("at least {limit} items"),
        K::MaxProperties { limit } => format!("at most {limit} members"),
        K::MinProperties { limit } => format!("at least {limit} members"),
        K::Pattern { pattern } => format!("text that matches {pattern}"),
        K::Format { format } => format!("text in the format {format}"),
        K::AdditionalProperties { unexpected } | K::UnevaluatedProperties { unexpected } => {
            format!("no unknown members; found {}", quoted(unexpected))
        }
        K::UniqueItems => "items that differ from each other".into(),
        K::AnyOf { .. } | K::OneOfNotValid { .. } => "one of the documented forms".into(),
        K::OneOfMultipleValid { .. } => "exactly one of the documented forms".into(),
        other => format!("to hold to the keyword {}", other.keyword()),
    }
}

/// Member names for a message: bounded in number and length, since they come from the caller.
fn quoted(names: &[String]) -> String {
    let shown: Vec<String> =
        names.iter().take(5).map(|n| format!("`{}`", n.chars().take(60).collect::<String>())).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
