//! Query, path and header parameters held against their documented schemas.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::schema::{BadSchema, Schema, Settings, Violation};

/// Where parameters stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// After `?`.
    Query,
    /// In the path template.
    Path,
    /// In the header.
    Header,
}

/// The documented parameters of an operation in one place.
pub struct Params {
    place: Place,
    schema: Schema,
    /// The JSON type that the text of each parameter is read as, where one is stated.
    kinds: HashMap<String, Option<String>>,
}

impl Params {
    /// Compiles an object schema of parameters.
    pub fn compile(place: Place, source: &Value, components: &Value, settings: &Settings) -> Result<Self, BadSchema> {
        let properties = source.get("properties").and_then(Value::as_object).into_iter().flatten();
        let kinds = properties.map(|(name, schema)| (name.clone(), kind(schema, components))).collect();
        // Undocumented query parameters pass in strict mode too: a closed object speaks of bodies.
        let lenient = Settings { validation: crate::schema::Validation::Lenient, ..*settings };
        Ok(Self { place, schema: Schema::compile(source, components, &lenient)?, kinds })
    }

    /// Whether the parameter is documented here.
    pub fn knows(&self, name: &str) -> bool {
        self.kinds.contains_key(name)
    }

    /// Checks parameters as they came, percent-encoded where the place says so.
    pub fn check<'a>(&self, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Violation> {
        let mut object = Map::new();
        for (name, text) in pairs {
            let value = self.typed(name, text);
            match object.get_mut(name) {
                Some(Value::Array(items)) if self.is_list(name) => items.push(value),
                _ if self.is_list(name) => drop(object.insert(name.to_owned(), Value::Array(vec![value]))),
                _ => drop(object.insert(name.to_owned(), value)),
            }
        }
        let Err(violations) = self.schema.validate(&Value::Object(object)) else { return Vec::new() };
        let placed = |v: Violation| Violation { pointer: self.placed(&v.pointer), ..v };
        violations.list.into_iter().map(placed).collect()
    }

    fn kind_of(&self, name: &str) -> Option<&str> {
        self.kinds.get(name)?.as_deref()
    }

    fn is_list(&self, name: &str) -> bool {
        self.kind_of(name) == Some("array")
    }

    fn typed(&self, name: &str, text: &str) -> Value {
        let typed = match self.kind_of(name) {
            Some("integer") => text.parse::<i64>().ok().map(Value::from),
            Some("number") => text.parse::<f64>().ok().map(Value::from),
            Some("boolean") => text.parse::<bool>().ok().map(Value::from),
            _ => None,
        };
        typed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    fn placed(&self, pointer: &str) -> String {
        let name = pointer.split('/').nth(1).unwrap_or_default();
        match self.place {
            Place::Query => format!("?{name}"),
            Place::Path => format!("{{{name}}}"),
            Place::Header => format!("header:{name}"),
        }
    }
}

/// The type that a schema states, by itself or by reference.
fn kind(schema: &Value, components: &Value) -> Option<String> {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix("#/components"));
    let schema = target.and_then(|pointer| components.pointer(pointer)).unwrap_or(schema);
    schema.get("type")?.as_str().map(str::to_owned)
}

/// A path parameter as text.
pub fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{UrlInput, Validation};
    use serde_json::json;

    #[test]
    fn a_parameter_whose_schema_is_referred_to_is_known_and_typed() {
        let settings = Settings { validation: Validation::Lenient, url_input: UrlInput::Any, max_violations: 9 };
        let components = json!({ "schemas": { "Count": { "type": "integer", "maximum": 3 } } });
        let source = json!({ "properties": { "count": { "$ref": "#/components/schemas/Count" } } });
        let params = Params::compile(Place::Header, &source, &components, &settings).unwrap();
        assert!(params.knows("count") && params.check([("count", "3")].into_iter()).is_empty());
        assert_eq!(params.check([("count", "4")].into_iter())[0].pointer, "header:count");
    }

    fn params() -> Params {
        let settings = Settings { validation: Validation::Strict, url_input: UrlInput::Any, max_violations: 9 };
        let source = json!({ "type": "object", "required": ["id"], "properties": {
            "processed": { "type": "boolean" }, "n": { "type": "integer", "minimum": 1 }, "id": { "type": "string" } } });
        Params::compile(Place::Query, &source, &json!({}), &settings).unwrap()
    }

    fn failing(pairs: &[(&str, &str)]) -> Vec<String> {
        params().check(pairs.iter().copied()).into_iter().map(|v| v.pointer).collect()
    }

    #[test]
    fn text_is_read_as_its_documented_type() {
        assert!(failing(&[("processed", "false"), ("n", "2"), ("id", "7"), ("other", "x")]).is_empty());
        assert_eq!(failing(&[("processed", "maybe"), ("n", "0"), ("id", "")]), ["?n", "?processed"]);
        assert_eq!(failing(&[]), ["?"]);
    }
}
