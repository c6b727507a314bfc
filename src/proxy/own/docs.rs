//! The catalogue as one readable page, without scripts.

use serde_json::Value;

use crate::catalogue::{Body, Catalogue, Operation};
use crate::ids::ApiName;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}\
code{font-family:ui-monospace,monospace}summary{cursor:pointer;padding:.3rem 0}details{border-top:1px solid #8884;padding-left:.5rem}\
.m{display:inline-block;min-width:4.5rem;font-weight:600}table{border-collapse:collapse}td{padding:.15rem .8rem .15rem 0;vertical-align:top}pre{overflow:auto;background:#8882;padding:.6rem}";

/// Renders the operations of `apis`.
pub(super) fn page<'a>(catalogue: &Catalogue, apis: impl Iterator<Item = &'a ApiName>) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>nimgate APIs</title><style>{STYLE}</style>\
        <h1>APIs behind this gateway</h1><p>Machine-readable: <a href=/openapi.json>/openapi.json</a>. Send your key as <code>Authorization: Bearer KEY</code>. \
        Put <code>/pools/NAME</code> before a path to choose a pool.</p>"
    );
    for name in apis {
        let Some(api) = catalogue.apis.get(name) else { continue };
        let text = |pointer: &str| escape(api.document.pointer(pointer).and_then(Value::as_str).unwrap_or_default());
        html.push_str(&format!(
            "<h2 id={name}>{} <small><code>{name}</code></small></h2><p>{}</p>",
            text("/info/title"),
            text("/info/description")
        ));
        for index in &api.operations {
            operation(&mut html, catalogue.operation(*index), &api.document);
        }
    }
    html
}

fn operation(html: &mut String, operation: &Operation, document: &Value) {
    let source =
        document.get("paths").and_then(|p| p.get(&operation.path)?.get(operation.method.as_str().to_ascii_lowercase()));
    let text = |key: &str| escape(source.and_then(|s| s.get(key)?.as_str()).unwrap_or_default());
    html.push_str(&format!(
        "<details><summary><span class=m>{}</span> <code>{}</code> {}</summary><p>{}</p><p>Scope <code>{}</code>, body up to {} MiB.</p>",
        operation.method, escape(&operation.path), text("summary"), text("description"), escape(&operation.scopes.join(" or ")), operation.body_limit / 1024 / 1024,
    ));
    let mut rules = Vec::new();
    let components = document.get("components").unwrap_or(&Value::Null);
    if let Body::Json { schema, .. } = &operation.body {
        collect(schema, components, &mut rules, 0);
    }
    for schema in [&operation.path_params, &operation.query, &operation.header_params].into_iter().flatten() {
        collect(schema, components, &mut rules, 0);
    }
    if !rules.is_empty() {
        html.push_str("<table>");
        rules.iter().for_each(|(id, expect)| {
            html.push_str(&format!("<tr><td><code>{}</code><td>{}", escape(id), escape(expect)));
        });
        html.push_str("</table>");
    }
    let documented =
        |e: &&Value| e.get("rule").and_then(Value::as_str) == Some("documented") && e.get("body").is_some();
    if let Some(body) = operation.examples.iter().find(documented).and_then(|e| e.get("body")) {
        let shown = serde_json::to_string_pretty(body).unwrap_or_default();
        html.push_str(&format!("<pre>{}</pre>", escape(&shown)));
    }
    html.push_str("</details>");
}

/// The rules that a schema states, in its order, each once; references are followed to a bounded depth.
fn collect(schema: &Value, components: &Value, rules: &mut Vec<(String, String)>, depth: usize) {
    if depth > 24 {
        return;
    }
    match schema {
        Value::Array(items) => items.iter().for_each(|item| collect(item, components, rules, depth + 1)),
        Value::Object(members) => {
            if let Some(rule) = members.get("x-rule") {
                let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                let stated = (text("id"), text("expect"));
                if !rules.contains(&stated) {
                    rules.push(stated);
                }
            }
            if let Some(target) =
                members.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix("#/components"))
            {
                components.pointer(target).into_iter().for_each(|s| collect(s, components, rules, depth + 1));
            }
            members.iter().filter(|(k, _)| *k != "x-rule").for_each(|(_, v)| collect(v, components, rules, depth + 1));
        }
        _ => {}
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}
