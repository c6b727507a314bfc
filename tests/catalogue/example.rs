//! One example of the catalogue as a request.

use http::Method;
use nimgate::catalogue::{Catalogue, Operation};
use serde_json::Value;

use crate::support::{Answer, Gateway, Kind, Simulator, simulator};

/// The pools' APIs, and the simulator behind each.
const APIS: [(&str, Kind); 9] = [
    ("nim-llm", Kind::Llm),
    ("nim-vlm", Kind::Vlm),
    ("cosmos-predict", Kind::CosmosPredict),
    ("cosmos-embed1", Kind::CosmosEmbed1),
    ("nim-embedding", Kind::Embedding),
    ("nim-reranking", Kind::Reranking),
    ("nvcf", Kind::Nvcf),
    ("nvct", Kind::Nvcf),
    ("nemo-curator", Kind::Curator),
];

pub struct Example {
    pub api: String,
    pub operation: String,
    pub rule: String,
    pub title: String,
    pub valid: bool,
    method: Method,
    path: String,
    violation_status: u16,
    source: Value,
}

pub struct Running {
    gateway: Gateway,
    _backends: Vec<Simulator>,
}

/// Every example, in the order of the documents.
pub fn all(catalogue: &Catalogue) -> Vec<Example> {
    let one = |operation: &Operation| {
        let text = |source: &Value, key: &str| source[key].as_str().unwrap_or_default().to_owned();
        let errors = catalogue.apis[&operation.api].errors;
        let (api, id, path, method) =
            (operation.api.to_string(), operation.id.to_string(), operation.path.clone(), operation.method.clone());
        let examples = operation.examples.clone();
        examples.into_iter().map(move |source| Example {
            api: api.clone(),
            operation: id.clone(),
            rule: text(&source, "rule"),
            title: text(&source, "name"),
            valid: source["valid"] == true,
            method: method.clone(),
            path: path.clone(),
            violation_status: errors.violation_status,
            source,
        })
    };
    catalogue.operations.iter().flat_map(one).collect()
}

/// Rules that lack a passing or a failing example, and operations without a documented one.
pub fn without_both_kinds(catalogue: &Catalogue, examples: &[Example]) -> Vec<String> {
    let mut missing = Vec::new();
    // What is called by gRPC has no rules.
    for (name, api) in catalogue.apis.iter().filter(|(name, _)| !catalogue.is_grpc(name)) {
        let mut rules = Vec::new();
        collect(&api.document, &mut rules);
        for rule in rules {
            for valid in [true, false] {
                if !examples.iter().any(|e| e.api == name.as_str() && e.rule == rule && e.valid == valid) {
                    missing.push(format!("{name}: {rule} has no example that is valid: {valid}"));
                }
            }
        }
        for index in &api.operations {
            let id = &catalogue.operation(*index).id;
            if !examples.iter().any(|e| e.api == name.as_str() && e.operation == **id && e.rule == "documented") {
                missing.push(format!("{name}: {id} has no documented example"));
            }
        }
    }
    missing
}

fn collect(value: &Value, rules: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, rules)),
        Value::Object(members) => {
            if let Some(id) = members.get("x-rule").and_then(|r| r["id"].as_str())
                && !rules.iter().any(|r| r == id)
            {
                rules.push(id.to_owned());
            }
            members.iter().filter(|(k, _)| *k != "x-nimgate-examples").for_each(|(_, v)| collect(v, rules));
        }
        _ => {}
    }
}

/// A gateway with a pool for each API, and one that takes no URLs.
pub async fn gateway() -> Running {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-test").unwrap();
    let catalogue = Catalogue::load(None, nimgate::config::yaml::parse_value, 1 << 20).unwrap();
    let mut setup = Gateway::setup();
    let mut backends = Vec::new();
    for (api, kind) in APIS {
        let backend = simulator(kind).await;
        for url_input in ["any", "off"] {
            let mut yaml = format!(
                "url_input: '{url_input}'\nhealth: {{enabled: false}}\ncredential: {{secret: {{file: upstream.key}}}}\n"
            );
            match api {
                "nvcf" | "nvct" => yaml += "kind: nvcf\npolls: any\n",
                "nemo-curator" => yaml += "kind: ngc\n",
                _ => {}
            }
            let models = models(&catalogue, api);
            if !models.is_empty() {
                let model = |m: &String| {
                    format!(
                        "{{id: {}, backend_model: {}}}",
                        Value::from(own_name(m, api, url_input)),
                        Value::from(m.as_str())
                    )
                };
                let listed: Vec<String> = models.iter().map(model).collect();
                yaml += &format!("models: [{}]\n", listed.join(", "));
            }
            setup = setup.pool(&format!("{api}-{url_input}"), api, &yaml, &[&backend.url()]);
        }
        backends.push(backend);
    }
    Running { gateway: setup.start_in(directory).await, _backends: backends }
}

/// No two pools can list one model, so each lists its own name of it.
fn own_name(model: &str, api: &str, url_input: &str) -> String {
    format!("{model} of {api} with {url_input} URLs")
}

/// The models that the examples of an API name.
fn models(catalogue: &Catalogue, api: &str) -> Vec<String> {
    let operations = catalogue.operations.iter().filter(|o| o.api.as_str() == api && o.routes_by_model);
    let mut models: Vec<String> = operations
        .flat_map(|o| &o.examples)
        .filter_map(|e| e["body"]["model"].as_str().map(str::to_owned))
        .filter(|m| !m.is_empty() && m.len() < 200)
        .collect();
    models.sort();
    models.dedup();
    models
}

impl Example {
    pub fn name(&self) -> String {
        let kind = if self.valid { "valid" } else { "invalid" };
        format!("{}::{}::{} {kind}: {}", self.api, self.operation, self.rule, self.title)
    }

    /// Sends it. A valid one must pass the gateway, whatever the backend makes of it; an invalid one must be refused
    /// here, naming rule and place.
    pub async fn check(&self, running: &Running) -> Result<(), String> {
        let answer = self.send(&running.gateway).await;
        let (label, _) = answer.fault();
        let refused = matches!(
            label,
            "schema_violation"
                | "malformed_json"
                | "unsupported_media_type"
                | "path_not_found"
                | "method_not_allowed"
                | "model_not_found"
        );
        if self.valid {
            return if refused { Err(format!("refused: {}", answer.text())) } else { Ok(()) };
        }
        // A model outside its enumeration is unknown to routing before a schema could say so.
        if label == "model_not_found" && self.source["at"] == "/model" {
            return Ok(());
        }
        if (answer.status, label) != (self.violation_status, "schema_violation") {
            return Err(format!("expected a violation, got {} {label}: {}", answer.status, answer.text()));
        }
        let found = violations(&answer.json());
        let at = self.source["at"].as_str().unwrap_or_default();
        let named = |(place, rule): &(String, String)| {
            let place = place.trim_start_matches("header:");
            (place.eq_ignore_ascii_case(at)
                || place.trim_end_matches('}') == at.trim_end_matches('}')
                || (at.starts_with('?') && place == "?"))
                && *rule == self.rule
        };
        if found.iter().any(named) { Ok(()) } else { Err(format!("expected {} at {at:?}, found {found:?}", self.rule)) }
    }

    async fn send(&self, gateway: &Gateway) -> Answer {
        let encode =
            |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut path = self.path.clone();
        for (name, value) in self.source["path"].as_object().into_iter().flatten() {
            path = path.replace(&format!("{{{name}}}"), &encode(&plain(value)));
        }
        let pairs: Vec<String> = self.source["query"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(n, v)| format!("{n}={}", encode(&plain(v))))
            .collect();
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let url_input =
            if self.source["url_input"] == "off" || self.source["url_input"] == false { "off" } else { "any" };
        let mut ask = gateway.ask(self.method.clone(), &format!("/pools/{}-{url_input}{path}{query}", self.api));
        for (name, value) in self.source["headers"].as_object().into_iter().flatten() {
            ask = ask.header(name, &plain(value));
        }
        // Slow simulated work would say nothing about the gateway.
        ask = ask.header("x-sim-fault", "status=418");
        if let Some(body) = self.body(url_input) {
            ask = ask.header("content-type", "application/json").body(body.to_string());
        }
        ask.send().await
    }

    fn body(&self, url_input: &str) -> Option<Value> {
        let mut body = self.source.get("body")?.clone();
        if let (Some(pointer), Some(times)) =
            (self.source["repeat"]["pointer"].as_str(), self.source["repeat"]["times"].as_u64())
        {
            let items = body.pointer_mut(pointer)?.as_array_mut()?;
            let one = items.first()?.clone();
            *items = vec![one; times as usize];
        }
        if let Some(model) = body.get_mut("model")
            && let Some(name) = model.as_str()
        {
            *model = own_name(name, &self.api, url_input).into();
        }
        Some(body)
    }
}

/// Places and rules of an answer in any of the dialects.
fn violations(answer: &Value) -> Vec<(String, String)> {
    if let Some(detail) = answer["detail"].as_array() {
        let place = |loc: &Value| {
            let steps: Vec<String> = loc
                .as_array()
                .into_iter()
                .flatten()
                .map(|s| s.as_str().map_or_else(|| s.to_string(), |s| s.replace('~', "~0").replace('/', "~1")))
                .collect();
            match steps.first().map(String::as_str) {
                Some("query") => format!("?{}", steps[1]),
                Some("path") => format!("{{{}}}", steps[1]),
                Some("header") => steps[1].clone(),
                _ => steps[1..].iter().map(|s| format!("/{s}")).collect(),
            }
        };
        return detail.iter().map(|d| (place(&d["loc"]), d["type"].as_str().unwrap_or_default().to_owned())).collect();
    }
    let listed = answer["error"]["violations"].as_array().or_else(|| answer["violations"].as_array());
    listed
        .into_iter()
        .flatten()
        .map(|v| {
            (v["pointer"].as_str().unwrap_or_default().to_owned(), v["rule"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}
