//! Twins: the operations of a document that are offered at other paths too, as `x-nimgate-twins` says.

use serde_json::{Map, Value, json};

use super::read::METHODS;

/// Paths that are offered elsewhere too.
struct Twins<'a> {
    /// What their paths begin with.
    of: &'a str,
    /// What stands there in its place.
    at: &'a str,
    /// What is put behind their `operationId`.
    suffix: &'a str,
    /// The domain that has them; that of the originals without.
    domain: Option<&'a str>,
    /// Beginnings of paths that have no twin.
    except: Vec<&'a str>,
    /// Path parameters that the new beginning has, with an `example` each.
    parameters: &'a [Value],
}

/// Adds the twins of all paths to the document.
pub(super) fn add(document: &mut Value) -> Result<(), String> {
    let Some(stated) = document.get("x-nimgate-twins").cloned() else { return Ok(()) };
    let stated = stated.as_array().ok_or("x-nimgate-twins: expected a list")?;
    let paths = document.get_mut("paths").and_then(Value::as_object_mut).ok_or("paths is required")?;
    let mut added = Map::new();
    for twins in stated {
        let twins = Twins::read(twins).ok_or("x-nimgate-twins: expected objects with of, at and suffix")?;
        let fitting = paths.iter().filter_map(|(path, item)| Some((twins.path(path)?, twins.item(path, item))));
        added.extend(fitting);
    }
    paths.extend(added);
    Ok(())
}

impl<'a> Twins<'a> {
    fn read(stated: &'a Value) -> Option<Self> {
        let text = |name: &str| stated.get(name).and_then(Value::as_str);
        let list = |name: &str| stated.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let except = list("except").iter().filter_map(Value::as_str).collect();
        let (of, at, suffix) = (text("of")?, text("at")?, text("suffix")?);
        Some(Self { of, at, suffix, domain: text("domain"), except, parameters: list("parameters") })
    }

    /// Where the twin of a path is, if it has one.
    fn path(&self, path: &str) -> Option<String> {
        let is_excepted = self.except.iter().any(|beginning| path.starts_with(beginning));
        let rest = path.strip_prefix(self.of).filter(|rest| rest.starts_with('/') && !is_excepted)?;
        Some(format!("{}{rest}", self.at))
    }

    /// What stands there: all that a request needs. Answers are described where the original is.
    fn item(&self, path: &str, item: &Value) -> Value {
        let mut twin = Map::new();
        for method in METHODS {
            let Some(mut operation) = item.get(method).and_then(Value::as_object).cloned() else { continue };
            operation.remove("responses");
            let description = format!("The same as `{} {path}`.", method.to_ascii_uppercase());
            operation.insert("description".into(), description.into());
            let id = operation.get("operationId").and_then(Value::as_str).unwrap_or_default();
            operation.insert("operationId".into(), json!(format!("{id}{}", self.suffix)));
            if let Some(domain) = self.domain {
                operation.insert("x-nimgate-domain".into(), json!(domain));
            }
            let own = operation.remove("parameters");
            let own = own.as_ref().and_then(Value::as_array).into_iter().flatten();
            operation.insert("parameters".into(), self.parameters.iter().chain(own).cloned().collect());
            let examples = operation.remove("x-nimgate-examples");
            operation.insert("x-nimgate-examples".into(), self.examples(examples.as_ref()).into());
            twin.insert(method.into(), operation.into());
        }
        if let Some(shared) = item.get("parameters") {
            twin.insert("parameters".into(), shared.clone());
        }
        twin.into()
    }

    /// Its first example, with the parameters of the new path; the others show rules that the original has shown.
    fn examples(&self, examples: Option<&Value>) -> Vec<Value> {
        let mut listed = examples.and_then(Value::as_array).into_iter().flatten();
        let Some(mut example) = listed.find(|example| example["rule"] == "documented").cloned() else {
            return Vec::new();
        };
        let mut path = example["path"].as_object().cloned().unwrap_or_default();
        for parameter in self.parameters {
            if let Some(name) = parameter["name"].as_str() {
                path.insert(name.to_owned(), parameter["example"].clone());
            }
        }
        example["path"] = path.into();
        vec![example]
    }
}
