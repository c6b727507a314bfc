//! Reads operations out of an OpenAPI document.

use std::sync::Arc;

use http::{HeaderName, Method};
use serde_json::{Map, Value, json};

use super::{Body, Cacheable, Errors, Format, Operation, Tokens, Video};
use crate::ids::ApiName;

pub(super) const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

pub(super) fn errors(document: &Value) -> Result<Errors, String> {
    let stated = document.get("x-nimgate-errors").ok_or("x-nimgate-errors is required")?;
    let format = match stated.get("format").and_then(Value::as_str) {
        Some("openai") => Format::OpenAi,
        Some("problem") => Format::Problem,
        Some("fastapi") => Format::FastApi,
        Some("grpc") => Format::Grpc,
        other => {
            return Err(format!("x-nimgate-errors.format: expected openai, problem, fastapi or grpc, found {other:?}"));
        }
    };
    match stated.get("violation_status").and_then(Value::as_u64) {
        Some(400) => Ok(Errors { format, violation_status: 400 }),
        Some(422) => Ok(Errors { format, violation_status: 422 }),
        other => Err(format!("x-nimgate-errors.violation_status: expected 400 or 422, found {other:?}")),
    }
}

pub(super) fn operations(api: &ApiName, document: &Value, default_limit: usize) -> Result<Vec<Operation>, String> {
    let paths = document.get("paths").and_then(Value::as_object).ok_or("paths is required")?;
    let limit = body_limit(document)?.unwrap_or(default_limit);
    let mut operations: Vec<Operation> = Vec::new();
    for (path, item) in paths {
        for method in METHODS {
            let Some(source) = item.get(method) else { continue };
            let at = |reason: String| format!("paths.{path}.{method}: {reason}");
            let shared = item.get("parameters");
            let reader = Reader { api, document, path, source, shared };
            let operation = reader.operation(method, limit).map_err(at)?;
            if operations.iter().any(|o| o.id == operation.id) {
                return Err(at(format!("operationId {} is used twice", operation.id)));
            }
            operations.push(operation);
        }
    }
    Ok(operations)
}

fn body_limit(place: &Value) -> Result<Option<usize>, String> {
    let Some(stated) = place.get("x-nimgate-body-limit-mib") else { return Ok(None) };
    let mib = stated.as_u64().filter(|mib| (1..=4096).contains(mib));
    mib.map(|mib| Some(mib as usize * 1024 * 1024)).ok_or_else(|| "x-nimgate-body-limit-mib: expected 1 to 4096".into())
}

struct Reader<'a> {
    api: &'a ApiName,
    document: &'a Value,
    path: &'a str,
    source: &'a Value,
    shared: Option<&'a Value>,
}

impl Reader<'_> {
    fn operation(&self, method: &str, limit: usize) -> Result<Operation, String> {
        let id = self.source.get("operationId").and_then(Value::as_str).ok_or("operationId is required")?;
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(|e| e.to_string())?;
        let flag = |name: &str| self.source.get(name).and_then(Value::as_bool).unwrap_or(false);
        Ok(Operation {
            id: id.into(),
            api: self.api.clone(),
            repeatable: flag("x-nimgate-repeatable") || matches!(method, Method::GET | Method::HEAD),
            method,
            path: self.path.to_owned(),
            scopes: self.scopes()?,
            domain: self.text("x-nimgate-domain"),
            polls: self.text("x-nimgate-polls"),
            media: self.pointers("x-nimgate-media")?,
            names_request: flag("x-nimgate-names-request"),
            gen_ai: self.gen_ai()?,
            routes_by_model: flag("x-nimgate-routes-by-model"),
            answer_requires: self.strings("x-nimgate-answer-requires").into(),
            stream_ends: flag("x-nimgate-stream-ends"),
            tokens: self.source.get("x-nimgate-tokens").map(Tokens::read).transpose()?,
            cacheable: self.source.get("x-nimgate-cacheable").map(Cacheable::read).transpose()?,
            video: self.source.get("x-nimgate-video").map(Video::read).transpose()?,
            body_limit: body_limit(self.source)?.unwrap_or(limit),
            headers: self.header_names()?,
            body: self.body()?,
            query: self.parameters("query"),
            path_params: self.parameters("path"),
            header_params: self.parameters("header"),
            examples: self.source.get("x-nimgate-examples").and_then(Value::as_array).cloned().unwrap_or_default(),
        })
    }

    fn scopes(&self) -> Result<Vec<String>, String> {
        let scopes = match self.source.get("x-nimgate-scope") {
            Some(Value::String(one)) => vec![one.clone()],
            _ => self.strings("x-nimgate-scope"),
        };
        if scopes.is_empty() { Err("x-nimgate-scope is required".into()) } else { Ok(scopes) }
    }

    /// Text that stands in the operation, or in the document for all.
    fn text(&self, name: &str) -> Option<String> {
        let stated = self.source.get(name).or_else(|| self.document.get(name));
        stated.and_then(Value::as_str).map(str::to_owned)
    }

    /// A word that is a label of metrics.
    fn gen_ai(&self) -> Result<Option<Arc<str>>, String> {
        let Some(stated) = self.source.get("x-nimgate-gen-ai") else { return Ok(None) };
        let is_word = |word: &&str| {
            matches!(word.len(), 1..=32)
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let word = stated.as_str().filter(is_word);
        word.map(|word| Some(word.into()))
            .ok_or_else(|| "x-nimgate-gen-ai: expected a word such as text_completion".into())
    }

    fn pointers(&self, name: &str) -> Result<Vec<String>, String> {
        let pointers = self.strings(name);
        let is_good = pointers.iter().all(|pointer| pointer.starts_with('/'));
        if is_good { Ok(pointers) } else { Err(format!("{name}: expected JSON pointers, such as /input/*")) }
    }

    fn strings(&self, name: &str) -> Vec<String> {
        let listed = self.source.get(name).and_then(Value::as_array).into_iter().flatten();
        listed.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    fn body(&self) -> Result<Body, String> {
        let Some(body) = self.source.get("requestBody").map(|b| self.resolved(b)) else { return Ok(Body::None) };
        let content = body.get("content").and_then(Value::as_object).ok_or("requestBody.content is required")?;
        let required = body.get("required").and_then(Value::as_bool).unwrap_or(false);
        match content.get("application/json").and_then(|c| c.get("schema")) {
            Some(schema) => Ok(Body::Json { schema: schema.clone(), required }),
            None => Ok(Body::Opaque),
        }
    }

    fn listed(&self, place: &str) -> impl Iterator<Item = &Value> {
        let lists = self.shared.into_iter().chain(self.source.get("parameters"));
        let all = lists.filter_map(Value::as_array).flatten().map(|p| self.resolved(p));
        all.filter(move |p| p.get("in").and_then(Value::as_str) == Some(place))
    }

    fn header_names(&self) -> Result<Vec<HeaderName>, String> {
        let names = self.listed("header").filter_map(|p| p.get("name").and_then(Value::as_str));
        names.map(|n| HeaderName::from_bytes(n.as_bytes()).map_err(|_| format!("{n} is not a header name"))).collect()
    }

    /// The parameters in `place` as one object schema.
    fn parameters(&self, place: &str) -> Option<Value> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for parameter in self.listed(place) {
            let Some(name) = parameter.get("name").and_then(Value::as_str) else { continue };
            let name = if place == "header" { name.to_ascii_lowercase() } else { name.to_owned() };
            let mut schema = parameter.get("schema").cloned().unwrap_or_else(|| json!({}));
            if let (Some(rule), Value::Object(schema)) = (parameter.get("x-rule"), &mut schema) {
                schema.entry("x-rule").or_insert_with(|| rule.clone());
            }
            if parameter.get("required") == Some(&Value::Bool(true)) {
                required.push(name.clone());
            }
            properties.insert(name, schema);
        }
        let any = !properties.is_empty();
        any.then(|| json!({ "type": "object", "properties": properties, "required": required }))
    }

    fn resolved<'v>(&'v self, value: &'v Value) -> &'v Value {
        let target = value.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix('#'));
        target.and_then(|pointer| self.document.pointer(pointer)).unwrap_or(value)
    }
}

/// Rewrites `#/components/schemas/X` to `#/components/schemas/<api>.X`.
pub(super) fn prefix_refs(value: &mut Value, api: &str) {
    const PREFIX: &str = "#/components/schemas/";
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_refs(item, api)),
        Value::Object(members) => {
            for (key, member) in members {
                match (key.as_str(), &mut *member) {
                    ("$ref", Value::String(target)) => {
                        if let Some(name) = target.strip_prefix(PREFIX) {
                            *target = format!("{PREFIX}{api}.{name}");
                        }
                    }
                    _ => prefix_refs(member, api),
                }
            }
        }
        _ => {}
    }
}

/// The operations of one path item with ids that are unique in the merged document, grouped by API.
pub(super) fn tagged(mut item: Value, api: &ApiName) -> Value {
    for method in METHODS {
        let Some(Value::Object(operation)) = item.get_mut(method) else { continue };
        let id = operation.get("operationId").and_then(Value::as_str).unwrap_or_default();
        operation.insert("operationId".into(), json!(format!("{api}.{id}")));
        operation.insert("tags".into(), json!([api.as_str()]));
        operation.remove("x-nimgate-examples");
    }
    item
}
