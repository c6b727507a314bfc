//! Document: the admin API's own OpenAPI description.

use std::sync::LazyLock;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Json, Response};
use serde_json::Value;

use super::problem::Problem;
use crate::config::yaml;

static DOCUMENT: LazyLock<Result<Value, String>> =
    LazyLock::new(|| Ok(yaml::parse(include_str!("../../docs/admin-api.yaml")).map_err(|e| e.reason)?.value));

pub(super) async fn show() -> Response {
    match &*DOCUMENT {
        Ok(document) => Json(document).into_response(),
        Err(reason) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, reason.as_str()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin;

    #[test]
    fn the_document_has_the_routes_that_there_are() {
        let document = DOCUMENT.as_ref().unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
                described.insert((method.to_uppercase(), path.clone()));
                assert!(operation["operationId"].is_string() && operation["summary"].is_string(), "{method} {path}");
                assert!(operation["responses"].is_object(), "{method} {path}");
            }
        }
        let there = admin::routes().into_iter().map(|(method, path)| (method.to_string(), path.to_owned()));
        assert_eq!(described, there.collect());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = DOCUMENT.as_ref().unwrap();
        let mut pending = vec![document];
        while let Some(value) = pending.pop() {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
                assert!(target.is_some(), "{reference}");
            }
            match value {
                Value::Object(members) => pending.extend(members.values()),
                Value::Array(items) => pending.extend(items),
                _ => {}
            }
        }
    }
}
