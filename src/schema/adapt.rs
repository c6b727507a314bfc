//! Turns a document's schema into the variant that a pool's settings ask for.
//!
//! Strict mode and `url_input: off` are transformations of the schema, so that no rule about an API is in Rust.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{BadSchema, LONGEST_LENGTH_RULE, Settings, UrlInput, Validation};

/// Marks a string whose value may be a URL that the container fetches.
const URL_INPUT: &str = "x-nimgate-url-input";

pub(super) fn adapt(source: &mut Value, settings: &Settings) -> Result<(), BadSchema> {
    if settings.validation == Validation::Strict {
        close_objects(source);
    }
    bound_and_guard(source, settings.url_input == UrlInput::Off)
}

/// Adds `additionalProperties: false` to every object schema reached through `properties`, `items` and `$ref`. Schemas
/// below `allOf`, `if` and the like describe parts of an object, so closing them would refuse what others allow.
fn close_objects(source: &mut Value) {
    let mut pending: Vec<String> = vec!["/allOf/0".into()];
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some(pointer) = pending.pop() {
        if !seen.insert(pointer.clone()) {
            continue;
        }
        let Some(Value::Object(schema)) = source.pointer_mut(&pointer) else { continue };
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix('#')) {
            pending.push(target.to_owned());
        }
        if schema.get("items").is_some_and(Value::is_object) {
            pending.push(format!("{pointer}/items"));
        }
        let Some(Value::Object(properties)) = schema.get("properties") else { continue };
        let names = properties.keys().map(|n| n.replace('~', "~0").replace('/', "~1"));
        pending.extend(names.map(|n| format!("{pointer}/properties/{n}")));
        if !schema.contains_key("additionalProperties") {
            schema.insert("additionalProperties".into(), json!(false));
        }
    }
}

/// Refuses length rules that a stand-in could not answer, and forbids URLs where the pool does.
fn bound_and_guard(value: &mut Value, forbid_urls: bool) -> Result<(), BadSchema> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| bound_and_guard(item, forbid_urls)),
        Value::Object(members) => {
            members.values_mut().try_for_each(|member| bound_and_guard(member, forbid_urls))?;
            if members.get("maxLength").and_then(Value::as_u64).is_some_and(|l| l > LONGEST_LENGTH_RULE as u64) {
                return Err(BadSchema(format!("maxLength above {LONGEST_LENGTH_RULE} can not be checked")));
            }
            if forbid_urls && members.get(URL_INPUT) == Some(&Value::Bool(true)) {
                let guard = json!({
                    "not": { "type": "string", "pattern": "^[hH][tT][tT][pP][sS]?://" },
                    "x-rule": { "id": "url_input", "expect": "inline data: this pool does not accept URLs" },
                });
                match members.get_mut("allOf") {
                    Some(Value::Array(all)) => all.push(guard),
                    _ => drop(members.insert("allOf".into(), json!([guard]))),
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The part of `components` that `schema` refers to, directly or through others: compiled schemas keep their source,
/// and most operations need a few of an API's many schemas.
pub(super) fn reachable(schema: &Value, components: &Value) -> Value {
    let mut schemas = serde_json::Map::new();
    let mut pending = Vec::new();
    references(schema, &mut pending);
    while let Some(name) = pending.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        if let Some(found) = components.get("schemas").and_then(|all| all.get(&name)) {
            references(found, &mut pending);
            schemas.insert(name, found.clone());
        }
    }
    json!({ "schemas": schemas })
}

fn references(value: &Value, names: &mut Vec<String>) {
    const PREFIX: &str = "#/components/schemas/";
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        Value::Object(members) => {
            let target = members.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix(PREFIX));
            names.extend(target.map(|t| t.split('/').next().unwrap_or_default().to_owned()));
            members.values().for_each(|member| references(member, names));
        }
        _ => {}
    }
}
