//! The configuration as operators meet it: samples that pass, mistakes that are explained, commands that print.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails should say where")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nimgate::config::{self, file, yaml};
use nimgate::telemetry::metric::Form;
use nimgate::upstream::Fault;
use serde_json::{Value, json};

const SAMPLES: [&str; 7] = ["nimgate", "one-nim", "many-nims", "nvcf", "curator", "mixed", "shared"];
/// Samples that take no credential from the environment.
const PLAIN: [&str; 4] = ["nimgate", "one-nim", "many-nims", "shared"];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(format!("{name}.yaml"))
}

fn nimgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nimgate"));
    command.args(arguments).env_clear().env("NIMGATE_LOG", "off");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A directory with a keys file and the configuration under test.
struct Files(tempfile::TempDir);

impl Files {
    fn new(config: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("keys.yaml", "keys: []\n");
        files.write("c.yaml", config);
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn run(&self, command: &str) -> Output {
        nimgate(&[command, "--config", "c.yaml"]).current_dir(self.0.path()).output().unwrap()
    }

    /// The lines that `check` prints, having made sure that its exit code fits them.
    fn check(&self) -> Vec<String> {
        let output = self.run("check");
        let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
        let good = lines.len() == 1 && lines[0].contains(": ok, ");
        assert_eq!(output.status.code(), Some(i32::from(!good)), "{lines:?}");
        lines
    }
}

const HEAD: &str = "callers:\n  keys_file: keys.yaml\n";
const POOL: &str = "pools:\n  - name: a\n    api: nemo-curator\n    endpoints:\n      - url: http://127.0.0.1:1\n";

/// A good configuration with `more` at its end, which begins at line 8: on the level of the pool where it is indented.
fn with(more: &str) -> String {
    format!("{HEAD}{POOL}{more}")
}

/// A pool whose endpoints are found so.
fn found(name: &str, discovery: &str) -> String {
    format!("  - {{name: {name}, api: nemo-curator, discovery: {discovery}}}\n")
}

#[test]
fn every_sample_passes_check() {
    for name in SAMPLES {
        let mut command = nimgate(&["check", "--config", sample(name).to_str().unwrap()]);
        if !PLAIN.contains(&name) {
            command.envs([("NVIDIA_API_KEY", "x"), ("NGC_API_KEY", "x"), ("NIMGATE_ADMIN_TOKEN", "x")]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success() && stdout(&output).contains(": ok, "), "{name}: {}", stdout(&output));
    }
}

#[test]
fn every_sample_is_tested() {
    let listed = std::fs::read_dir(sample("nimgate").parent().unwrap()).unwrap();
    let mut found: BTreeSet<String> = listed
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    // The one is a template of `nimgate demo`, the other is read by every sample.
    assert!(found.remove("demo") && found.remove("keys"));
    assert_eq!(found, SAMPLES.map(str::to_owned).into());
}

/// The text with its examples switched on: `#key` becomes `key`, `#- item` an item; prose behind `# ` stays a comment.
fn switched_on(text: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) || setting.starts_with("- ") => {
            format!("{}{setting}\n", " ".repeat(line.len() - line.trim_start().len()))
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Walks value and schema together and notes every key of the schema that the value states.
fn states(schema: &Value, place: &Value, value: &Value, stated: &mut BTreeSet<String>) {
    if let Some(target) = place.get("$ref").and_then(Value::as_str) {
        return states(schema, schema.pointer(target.trim_start_matches('#')).unwrap(), value, stated);
    }
    for form in ["anyOf", "oneOf"].iter().filter_map(|k| place.get(k)?.as_array()).flatten() {
        states(schema, form, value, stated);
    }
    for item in value.as_array().into_iter().flatten() {
        states(schema, &place["items"], item, stated);
    }
    for (key, below) in place.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(member) = value.get(key) {
            stated.insert(format!("{}.{key}", place["description"].as_str().unwrap_or_default()));
            states(schema, below, member, stated);
        }
    }
}

/// Every key that the schema knows, as [`states`] notes it.
fn known(place: &Value, keys: &mut BTreeSet<String>) {
    if let Some(members) = place.as_object() {
        for key in members.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k) {
            keys.insert(format!("{}.{key}", place["description"].as_str().unwrap_or_default()));
        }
    }
    let below: Vec<&Value> = match place {
        Value::Object(members) => members.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    below.into_iter().for_each(|place| known(place, keys));
}

#[test]
fn the_annotated_references_state_every_key() {
    let all = [("nimgate", config::schema::<file::File>()), ("keys", config::schema::<file::Keys>())];
    for (name, schema) in all {
        let text = switched_on(&std::fs::read_to_string(sample(name)).unwrap());
        let value = yaml::parse_value(&text).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
        let broken: Vec<String> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&value)
            .map(|e| format!("{} at {}", e, e.instance_path()))
            .collect();
        assert!(broken.is_empty(), "{name}: {broken:?}");
        let (mut stated, mut keys) = (BTreeSet::new(), BTreeSet::new());
        states(&schema, &schema, &value, &mut stated);
        known(&schema, &mut keys);
        // One of two forms each; both are shown, and the comment at `target` shows the third.
        let elsewhere = |key: &String| key == "Appended to this file..file";
        let missing: Vec<&String> = keys.difference(&stated).filter(|key| !elsewhere(key)).collect();
        assert!(missing.is_empty(), "{name} does not show {missing:?}");
    }
}

/// What `value` states beyond what the code has by default, as dotted keys.
fn beyond(at: &str, value: &Value, default: &Value, found: &mut Vec<String>) {
    match (value, default) {
        (Value::Object(members), Value::Object(defaults)) => {
            for (key, member) in members {
                beyond(&format!("{at}.{key}"), member, defaults.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(items), Value::Array(defaults)) if items.len() == defaults.len() => {
            items.iter().zip(defaults).for_each(|(item, default)| beyond(at, item, default, found));
        }
        _ if value == default || value.as_f64().is_some_and(|number| default.as_f64() == Some(number)) => {}
        _ => found.push(at.trim_start_matches('.').to_owned()),
    }
}

#[test]
fn the_annotated_references_state_the_codes_defaults() {
    let bare = json!({ "callers": { "keys_file": "keys.yaml" }, "pools": [{
        "name": "chat", "api": "nim-llm", "models": [{ "id": "meta/llama-3.1-8b-instruct" }],
        "endpoints": [{ "url": "http://nim-0.example.com:8000" }] }] });
    let defaults: file::File = serde_json::from_value(bare).unwrap();
    let defaults = serde_json::to_value(defaults).unwrap();
    let text = std::fs::read_to_string(sample("nimgate")).unwrap();
    let mut found = Vec::new();
    beyond("", &yaml::parse_value(&text).unwrap(), &defaults, &mut found);
    assert!(found.is_empty(), "nimgate.yaml states as default what is none: {found:?}");
    // What is switched off there is off in the code, but for the keys of sections that are themselves off.
    beyond("", &yaml::parse_value(&switched_on(&text)).unwrap(), &defaults, &mut found);
    let off = [
        "listeners.tls",
        "admin.token",
        "pools.function",
        "pools.models.backend_model",
        "pools.models.output_tokens",
        "pools.models.end_of_life",
        "pools.models.offline_message",
        "pools.models.rate_limit_message",
        "pools.queue.max_in_flight",
        "pools.pace.learn",
        "pools.pace.per_minute",
        "pools.hedge.after_ms",
        "pools.shadow",
        "pools.transcripts",
        "pools.assets",
        "pools.domain",
        "prices",
        "quotas.state_file",
        "redis",
        "pools.credential",
        "pools.discovery",
        "pools.max_body_mib",
        "pools.metrics.enabled",
        "pools.health.enabled",
        "pools.tls.ca_file",
        "pools.tls.server_name",
        "catalogue.directory",
        "telemetry.service",
        "telemetry.otlp",
        "telemetry.traces.keep_slower_ms",
    ];
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), off.map(str::to_owned).into());
    let stated = yaml::parse_value(&switched_on(&text)).unwrap();
    let function = serde_json::from_value::<file::Function>(json!({ "id": "x" })).unwrap();
    assert_eq!(stated["pools"][0]["function"]["invocation"], json!(function.invocation));
    let credential = serde_json::from_value::<file::Credential>(json!({ "secret": { "env": "X" } })).unwrap();
    assert_eq!(stated["pools"][0]["credential"]["header"], credential.header);
    assert_eq!(stated["pools"][0]["credential"]["scheme"], credential.scheme);
    let redis: file::Redis = serde_json::from_value(json!({ "addresses": ["redis.example.com:6379"] })).unwrap();
    let mut found = Vec::new();
    beyond("", &stated["redis"], &serde_json::to_value(redis).unwrap(), &mut found);
    assert_eq!(found, ["master", "password", "sentinel_password", "tls", "username"]);
    let discovery = serde_json::to_value(file::Discovery::default()).unwrap();
    let mut found = Vec::new();
    beyond("", &stated["pools"][0]["discovery"], &discovery, &mut found);
    assert_eq!(found, ["cluster", "dns", "keep_ms", "kubernetes", "name_servers", "srv"]);
    let otlp = serde_json::to_value(file::Otlp::default()).unwrap();
    let mut found = Vec::new();
    beyond("", &stated["telemetry"]["otlp"], &otlp, &mut found);
    let none = ["ca_file", "certificate_file", "compression", "endpoint", "headers.authorization", "key_file"];
    assert_eq!(found, [&none[..], &["protocol", "timeout_ms"]].concat());
    let price: file::Price = serde_json::from_value(json!({ "model": "meta/*" })).unwrap();
    let mut found = Vec::new();
    beyond("", &stated["prices"][0], &serde_json::to_value(price).unwrap(), &mut found);
    assert_eq!(found, ["input_per_million", "output_per_million"]);

    let key: file::Key = serde_json::from_value(json!({ "id": "x", "sha256": "x" })).unwrap();
    let mut found = Vec::new();
    let keys = yaml::parse_value(&std::fs::read_to_string(sample("keys")).unwrap()).unwrap();
    beyond("", &keys["keys"][0], &serde_json::to_value(key).unwrap(), &mut found);
    assert_eq!(found, ["id", "sha256"]);
}

#[test]
fn each_mistake_is_told_with_file_line_key_and_expectation() {
    let cases: &[(&str, String, &[&str])] = &[
        (
            "unknown key",
            with("    nmae: x\n"),
            &[
                "c.yaml:8:5: pools[0].nmae: unknown key; expected one of api, assets, balance, breaker, cache, connection, credential, default, discovery, domain, endpoints, function, headers, health, hedge, kind, max_body_mib, metrics, models, name, pace, polls, queue, retry, shadow, spill, stream, timeouts, tls, transcripts, url_input, validation",
            ],
        ),
        (
            "wrong type",
            with("client:\n  max_headers: many\n"),
            &["c.yaml:9:3: client.max_headers: expected a whole number, found text"],
        ),
        (
            "a number where text belongs",
            with("    headers: {x: 1}\n"),
            &["c.yaml:8:15: pools[0].headers.x: expected text, found a number; put it in quotes"],
        ),
        (
            "out of range",
            with("client:\n  max_headers: 5\n  max_violations: 1001\n"),
            &[
                "c.yaml:9:3: client.max_headers: expected a whole number from 10 to 250",
                "c.yaml:10:3: client.max_violations: expected a whole number from 1 to 1000",
            ],
        ),
        (
            "not a whole number",
            with("runtime: {threads: 1.5}\n"),
            &["c.yaml:8:11: runtime.threads: expected a whole number, found a number"],
        ),
        (
            "not one of the words",
            with("    validation: hard\n"),
            &["c.yaml:8:5: pools[0].validation: expected lenient, strict or off, found text"],
        ),
        (
            "no form of a target",
            with("access_log: {target: {path: x}}\n"),
            &["c.yaml:8:14: access_log.target: expected stdout, off or {file: …}, found a mapping"],
        ),
        ("an empty section", with("cors:\n"), &["c.yaml:8:1: cors: expected a mapping, found nothing"]),
        ("duplicate key", with("cors: {}\ncors: {}\n"), &["c.yaml:9:1: the key `cors` stands here twice"]),
        (
            "missing keys",
            "pools:\n  - name: a\n".into(),
            &["c.yaml:1:1: the key callers is required", "c.yaml:2:5: pools[0]: the key api is required"],
        ),
        ("no pools", format!("{HEAD}pools: []\n"), &["c.yaml:3:1: pools: expected at least 1 in the list"]),
        ("an empty file", String::new(), &["c.yaml:1:1: expected a mapping, found nothing"]),
        (
            "a bad name",
            with("  - name: a b\n    api: nvcf\n    endpoints: [{url: http://a}]\n"),
            &["c.yaml:8:5: pools[1].name: expected text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"],
        ),
        (
            "inside an optional section",
            with("    function: {id: x, bogus: 1}\n"),
            &[
                "c.yaml:8:16: pools[0].function.id: expected text that matches ^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
                "c.yaml:8:23: pools[0].function.bogus: unknown key; expected one of id, invocation, version, wait",
            ],
        ),
        (
            "bad URLs",
            format!(
                "{HEAD}pools:\n  - name: a\n    api: nemo-curator\n    endpoints:\n      - url: 127.0.0.1:8000\n      - url: http://a/v1\n      - url: http://a:99999\n      - url: http://a:1\n      - url: http://A:1\n      - url: https://b\n"
            ),
            &[
                "c.yaml:7:9: pools[0].endpoints[0].url: expected http://host[:port] or https://host[:port], without a path",
                "c.yaml:8:9: pools[0].endpoints[1].url: expected http://host[:port] or https://host[:port], without a path",
                "c.yaml:9:9: pools[0].endpoints[2].url: expected http://host[:port] or https://host[:port], without a path",
                "c.yaml:11:9: pools[0].endpoints[4].url: this endpoint is listed twice",
                "c.yaml:12:9: pools[0].endpoints[5].url: the endpoints of a pool are all http or all https",
            ],
        ),
        (
            "a domain that its API does not have, and assets of what takes none",
            format!(
                "{HEAD}pools:\n  - {{name: a, api: nvcf, kind: nvcf, endpoints: [{{url: http://a}}], domain: managment}}\n  - {{name: b, api: nvcf, kind: nvcf, endpoints: [{{url: http://a}}], domain: management, assets: {{above_kib: 1}}}}\n  - {{name: c, api: nvcf, kind: nvcf, endpoints: [{{url: http://a}}], spill: {{to: [b]}}}}\n"
            ),
            &[
                "c.yaml:4:68: pools[0].domain: no operation of the API nvcf is of this domain",
                "c.yaml:5:88: pools[1].assets: only a function that is invoked by pexec takes assets",
                "c.yaml:6:81: pools[2].spill.to[0]: the pool b serves another domain of the API",
            ],
        ),
        (
            "no endpoints, or twice",
            format!("{HEAD}pools:\n  - {{name: a, api: nvcf}}\n  - {{name: b, api: nemo-curator, endpoints: []}}\n"),
            &["c.yaml:5:34: pools[1].endpoints: expected at least 1 in the list"],
        ),
        (
            "sources that are none or many",
            format!(
                "{HEAD}pools:\n  - {{name: a, api: nvcf}}\n{}{}{}{}",
                found("b", "{}"),
                found("c", "{dns: {name: a, port: 1}, srv: {name: a}}"),
                found("d", "{srv: {name: a}}, endpoints: [{url: http://a}]"),
                found("e", "{srv: {name: a}, min_ttl_ms: 2000, max_ttl_ms: 1000, cluster: {url: http://a}}"),
            ),
            &[
                "c.yaml:4:5: pools[0]: expected the key endpoints or the key discovery, found neither",
                "c.yaml:5:34: pools[1].discovery: expected one of dns, srv and kubernetes, found none",
                "c.yaml:6:34: pools[2].discovery: expected one of dns, srv and kubernetes, found more",
                "c.yaml:7:34: pools[3].discovery: the pool lists its endpoints; leave this out, or the key endpoints",
                "c.yaml:8:62: pools[4].discovery.min_ttl_ms: expected no more than max_ttl_ms",
                "c.yaml:8:98: pools[4].discovery.cluster: only kubernetes asks an API server",
            ],
        ),
        (
            "sources that can not be",
            format!(
                "{HEAD}pools:\n{}{}{}{}",
                found("a", "{dns: {name: 10.0.0.1, port: 1}, name_servers: [a, 10.0.0.1:0]}"),
                found("b", "{srv: {name: a..b}}"),
                found("c", "{kubernetes: {namespace: m, service: s, port: 1}, name_servers: [10.0.0.1]}"),
                found("d", "{kubernetes: {namespace: m, service: s, port: p}, cluster: {context: x}}"),
            ),
            &[
                "c.yaml:4:52: pools[0].discovery.dns.name: expected a name in DNS; an address belongs into endpoints",
                "c.yaml:4:93: pools[0].discovery.name_servers[0]: expected an IP address, or one with a port, such as 10.0.0.10:53",
                "c.yaml:4:96: pools[0].discovery.name_servers[1]: expected an IP address, or one with a port, such as 10.0.0.10:53",
                "c.yaml:5:52: pools[1].discovery.srv.name: expected a name in DNS, such as nim.example.com",
                "c.yaml:6:95: pools[2].discovery.name_servers: only dns and srv ask name servers",
                "c.yaml:7:95: pools[3].discovery.cluster: expected url or kubeconfig_file; leave this out for the gateway's own cluster",
            ],
        ),
        (
            "clusters that can not be",
            format!(
                "{HEAD}pools:\n{}{}{}",
                found(
                    "a",
                    "{kubernetes: {namespace: m, service: s, port: p}, cluster: {url: http://a, kubeconfig_file: k}}"
                ),
                found(
                    "b",
                    "{kubernetes: {namespace: m, service: s, port: p}, cluster: {url: http://a/b, token_file: t, context: x}}"
                ),
                found(
                    "c",
                    "{kubernetes: {namespace: m, service: s, port: p}, cluster: {kubeconfig_file: k, ca_file: k}}"
                ),
            ),
            &[
                "c.yaml:4:95: pools[0].discovery.cluster: expected url or kubeconfig_file, found both",
                "c.yaml:5:105: pools[1].discovery.cluster.url: expected http://host[:port] or https://host[:port], without a path",
                "c.yaml:5:122: pools[1].discovery.cluster.token_file: expected the path of a file",
                "c.yaml:5:137: pools[1].discovery.cluster.context: this goes with kubeconfig_file",
                "c.yaml:6:105: pools[2].discovery.cluster.kubeconfig_file: expected the path of a file",
                "c.yaml:6:125: pools[2].discovery.cluster.ca_file: this goes with url; a kubeconfig file has its own",
            ],
        ),
        (
            "bounds of discovery",
            format!(
                "{HEAD}pools:\n{}{}{}",
                found("a", "{kubernetes: {namespace: M, service: s, port: 70000}}"),
                found("b", "{kubernetes: {namespace: m, service: s, port: true}, max_endpoints: 10001}"),
                found("c", "{dns: {name: a, port: 0}, scheme: ftp}"),
            ),
            &[
                "c.yaml:4:59: pools[0].discovery.kubernetes.namespace: expected text that matches ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
                "c.yaml:4:85: pools[0].discovery.kubernetes.port: expected a whole number from 1 to 65535",
                "c.yaml:5:85: pools[1].discovery.kubernetes.port: expected a whole number or text, found true or false",
                "c.yaml:5:98: pools[1].discovery.max_endpoints: expected a whole number from 1 to 10000",
                "c.yaml:6:61: pools[2].discovery.dns.port: expected a whole number from 1 to 65535",
                "c.yaml:6:71: pools[2].discovery.scheme: expected http or https, found text",
            ],
        ),
        (
            "unknown API",
            with("  - name: b\n    api: nim-lmm\n    endpoints: [{url: http://a}]\n"),
            &[
                "c.yaml:9:5: pools[1].api: expected an API of the catalogue: cosmos-embed1, cosmos-predict, grpc, nemo-curator, nim-embedding, nim-llm, nim-reranking, nim-vlm, nvcf, nvct",
            ],
        ),
        (
            "models are missing",
            with("  - name: b\n    api: nim-llm\n    endpoints: [{url: http://a}]\n"),
            &["c.yaml:8:5: pools[1]: requests of the API nim-llm name a model; list the pool's models"],
        ),
        (
            "duplicate pool, two defaults",
            format!(
                "{HEAD}pools:\n  - {{name: a, api: nvcf, default: true, endpoints: [{{url: http://a}}]}}\n  - {{name: a, api: nvcf, default: true, endpoints: [{{url: http://a}}]}}\n"
            ),
            &[
                "c.yaml:5:6: pools[1].name: another pool is named a already",
                "c.yaml:5:26: pools[1].default: the API nvcf has a default pool already",
            ],
        ),
        (
            "names used twice",
            format!(
                "{HEAD}pools:\n  - name: a\n    api: nim-llm\n    models: [{{id: m, aliases: [x, x]}}]\n    endpoints: [{{url: http://a}}]\n  - name: b\n    api: nim-vlm\n    models: [{{id: n, aliases: [x]}}, {{id: m}}]\n    endpoints: [{{url: http://a}}]\n  - name: c\n    api: nim-reranking\n    models: [{{id: m}}]\n    endpoints: [{{url: http://a}}]\n"
            ),
            &[
                "c.yaml:6:35: pools[0].models[0].aliases[1]: this pool has that name already",
                "c.yaml:10:32: pools[1].models[0].aliases[0]: the pool a serves a model of that name already",
                "c.yaml:10:38: pools[1].models[1].id: the pool a serves a model of that name already",
            ],
        ),
        (
            "tls where it has no place",
            with("    tls: {server_name: a}\n    function: {id: 00000000-0000-0000-0000-000000000000}\n"),
            &[
                "c.yaml:8:5: pools[0].tls: the pool's endpoints are not https",
                "c.yaml:9:5: pools[0].function: only a pool of kind nvcf has a function",
            ],
        ),
        (
            "tls that could not verify",
            format!(
                "{HEAD}pools:\n  - name: a\n    api: nvcf\n    endpoints: [{{url: https://a}}]\n    tls: {{server_name: \"\", ca_file: keys.yaml}}\n"
            ),
            &[
                "c.yaml:7:11: pools[0].tls.server_name: expected a host name, such as nim.example.com",
                "c.yaml:7:28: pools[0].tls.ca_file: expected a PEM file with at least one certificate",
            ],
        ),
        (
            "headers that can not be set",
            with("    headers:\n      Connection: close\n      \"a/b\": c\n      d: \"\\u0001\"\n"),
            &[
                "c.yaml:9:7: pools[0].headers.Connection: this header belongs to the connection and can not be set",
                "c.yaml:10:7: pools[0].headers.a/b: not a header name",
                "c.yaml:11:7: pools[0].headers.d: not a header value",
            ],
        ),
        (
            "health path",
            with("    health: {path: ready}\n"),
            &["c.yaml:8:14: pools[0].health.path: expected a path that begins with /"],
        ),
        (
            "listeners",
            with(
                "listeners:\n  - address: localhost:80\n  - address: 127.0.0.1:1\n  - address: 127.0.0.1:1\n    http2_cleartext: true\n    tls: {certificate_file: no.pem, key_file: keys.yaml}\nadmin: {address: \"0.0.0.0:1\"}\n",
            ),
            &[
                "c.yaml:9:5: listeners[0].address: expected an IP address and port, such as 0.0.0.0:8080 or [::]:8080",
                "c.yaml:11:5: listeners[2].address: another listener has this address already",
                "c.yaml:12:5: listeners[2].http2_cleartext: a TLS listener has HTTP/2 by ALPN; leave this out",
                "c.yaml:13:11: listeners[2].tls.certificate_file: no.pem can not be read: No such file or directory (os error 2)",
                "c.yaml:14:9: admin.address: an admin address beyond loopback needs admin.token",
            ],
        ),
        (
            "no certificate",
            with("listeners:\n  - address: 127.0.0.1:1\n    tls: {certificate_file: keys.yaml, key_file: keys.yaml}\n"),
            &["c.yaml:10:5: listeners[0].tls: certificate_file: expected a PEM file with at least one certificate"],
        ),
        (
            "origins",
            with("cors:\n  allow_origins: [\"*\", \"https://a.example/\", a.example]\n"),
            &[
                "c.yaml:9:24: cors.allow_origins[1]: expected * or an origin such as https://app.example.com, without a path",
                "c.yaml:9:46: cors.allow_origins[2]: expected * or an origin such as https://app.example.com, without a path",
            ],
        ),
        (
            "log directory",
            with("access_log: {target: {file: none/access.log}}\n"),
            &["c.yaml:8:23: access_log.target.file: there is no directory none"],
        ),
        (
            "missing secrets",
            with("    credential: {secret: {env: NIMGATE_TEST_UNSET}}\nadmin: {token: {file: none}}\n"),
            &[
                "c.yaml:8:18: pools[0].credential.secret: the environment variable NIMGATE_TEST_UNSET is not set or not text",
                "c.yaml:9:9: admin.token: expected the path of a file that holds the secret; it can not be read: No such file or directory (os error 2)",
            ],
        ),
        (
            "no keys file",
            format!("callers: {{keys_file: none.yaml}}\n{POOL}"),
            &["c.yaml:1:11: callers.keys_file: none.yaml can not be read: No such file or directory (os error 2)"],
        ),
        (
            "no keys file where it is needed",
            format!("callers: {{}}\n{POOL}"),
            &["c.yaml:1:1: callers: store: file needs the key keys_file"],
        ),
        (
            "a store without Redis",
            format!("callers: {{store: redis}}\n{POOL}"),
            &["c.yaml:1:11: callers.store: store: redis needs the section redis"],
        ),
        (
            "Redis without an address",
            with("redis: {mode: single, timeout_ms: 0, database: 65536, prefix: \"a:b\", port: 6379}\n"),
            &[
                "c.yaml:8:1: redis: the key addresses is required",
                "c.yaml:8:9: redis.mode: expected standalone, sentinel or cluster, found text",
                "c.yaml:8:23: redis.timeout_ms: expected a whole number from 1 to 1000",
                "c.yaml:8:38: redis.database: expected a whole number from 0 to 65535",
                "c.yaml:8:55: redis.prefix: expected text that matches ^[A-Za-z0-9._-]{1,64}$",
                "c.yaml:8:70: redis.port: unknown key; expected one of addresses, connect_timeout_ms, database, master, mode, password, prefix, reply_timeout_ms, sentinel_password, timeout_ms, tls, username",
            ],
        ),
        (
            "one Redis that is several",
            with(
                "redis:\n  addresses: [\"a:1\", \"A:1\", a, \"redis://b:1\", \"::1:2\", \"c:0\"]\n  master: m\n  sentinel_password: {file: keys.yaml}\n  username: u\n",
            ),
            &[
                "c.yaml:9:3: redis.addresses: one server has one address; expected one, or another mode",
                "c.yaml:9:22: redis.addresses[1]: this address is listed twice",
                "c.yaml:9:29: redis.addresses[2]: expected host:port, such as redis.example.com:6379 or [::1]:6379",
                "c.yaml:9:32: redis.addresses[3]: expected host:port, such as redis.example.com:6379 or [::1]:6379",
                "c.yaml:9:47: redis.addresses[4]: expected host:port, such as redis.example.com:6379 or [::1]:6379",
                "c.yaml:9:56: redis.addresses[5]: expected host:port, such as redis.example.com:6379 or [::1]:6379",
                "c.yaml:10:3: redis.master: only mode sentinel has it; leave this out",
                "c.yaml:11:3: redis.sentinel_password: only mode sentinel has it; leave this out",
                "c.yaml:12:3: redis.username: a user needs the key password",
            ],
        ),
        (
            "sentinels and clusters",
            with("redis: {mode: sentinel, addresses: [\"[::1]:1\", \"b:1\"]}\n"),
            &["c.yaml:8:1: redis: mode sentinel needs the key master"],
        ),
        (
            "a database of a cluster, secrets and certificates that are not there",
            with(
                "redis:\n  mode: cluster\n  addresses: [\"a:1\"]\n  database: 1\n  password: {env: NIMGATE_TEST_UNSET}\n  tls: {ca_file: keys.yaml}\n",
            ),
            &[
                "c.yaml:11:3: redis.database: a cluster has only database 0",
                "c.yaml:12:3: redis.password: the environment variable NIMGATE_TEST_UNSET is not set or not text",
                "c.yaml:13:9: redis.tls.ca_file: expected a PEM file with at least one certificate",
            ],
        ),
        (
            "numbers of quotas",
            with(
                "quotas:\n  on_outage: maybe\n  replicas: 0\n  estimate: {bytes_per_token: 0, output_tokens: -1}\n  currency: \"\"\n  write_every_ms: 1e9\n  usage_days: 4_000\n",
            ),
            &[
                "c.yaml:9:3: quotas.on_outage: expected local_share, allow or deny, found text",
                "c.yaml:10:3: quotas.replicas: expected a whole number from 1 to 1000",
                "c.yaml:11:14: quotas.estimate.bytes_per_token: expected a number from 1 to 16",
                "c.yaml:11:34: quotas.estimate.output_tokens: expected a whole number from 0 to 10000000",
                "c.yaml:12:3: quotas.currency: expected 1 to 16 characters",
                "c.yaml:13:3: quotas.write_every_ms: expected a whole number from 50 to 60000",
                "c.yaml:14:3: quotas.usage_days: expected a whole number, found text; write its digits without anything between",
            ],
        ),
        (
            "counts in a directory that is not there, replicas that share nothing",
            with("quotas: {replicas: 2, state_file: none/state}\n"),
            &[
                "c.yaml:8:10: quotas.replicas: replicas share limits through Redis; add the section redis",
                "c.yaml:8:23: quotas.state_file: there is no directory none",
            ],
        ),
        (
            "counts in a directory",
            with("quotas: {state_file: .}\n"),
            &["c.yaml:8:10: quotas.state_file: expected the path of a file, found a directory"],
        ),
        (
            "counts in a file and in Redis",
            with("redis: {addresses: [\"a:1\"]}\nquotas: {state_file: state}\n"),
            &["c.yaml:9:10: quotas.state_file: Redis keeps the counts; leave this out, or the section redis"],
        ),
        (
            "absurd prices",
            with(
                "prices:\n  - {model: \"*\", per_request: -1, per_video_second: .inf, input_per_million: 1e7}\n  - {}\n",
            ),
            &[
                "c.yaml:9:18: prices[0].per_request: expected a number from 0 to 1000000",
                "c.yaml:9:35: prices[0].per_video_second: expected a number, found text",
                "c.yaml:9:59: prices[0].input_per_million: expected a number from 0 to 1000000",
                "c.yaml:10:5: prices[1]: the key model is required",
            ],
        ),
        (
            "prices of nothing",
            with("prices: [{model: \"*\"}, {model: x*}, {model: \"*\"}]\n"),
            &[
                "c.yaml:8:25: prices[1].model: no pool lists a model that fits x*",
                "c.yaml:8:38: prices[2].model: an earlier price is for the same models, so this one never counts",
            ],
        ),
        (
            "a pool of gRPC with what only HTTP has",
            with(
                "  - name: g\n    api: grpc\n    kind: nvcf\n    function: {id: 11111111-2222-3333-4444-555555555555, invocation: pexec}\n    \
                 models: [{id: m}]\n    health: {enabled: true}\n    hedge: {enabled: true}\n    endpoints: [{url: http://b}]\n",
            ),
            &[
                "c.yaml:11:58: pools[1].function.invocation: gRPC functions are called directly; leave this out",
                "c.yaml:12:5: pools[1].models: calls of gRPC name no model that could be read; leave this out",
                "c.yaml:13:14: pools[1].health.enabled: probes speak HTTP/1, which endpoints of gRPC do not",
                "c.yaml:14:13: pools[1].hedge.enabled: connections of gRPC are bound to one pool and endpoint; leave this out",
            ],
        ),
        (
            "telemetry that goes nowhere",
            with("telemetry:\n  otlp:\n    batch: 10\n"),
            &["c.yaml:9:3: telemetry.otlp: the key endpoint is required where OTEL_EXPORTER_OTLP_ENDPOINT is not set"],
        ),
        (
            "telemetry that can not be sent so",
            with("telemetry:\n  resource: {'': x}\n  otlp:\n    endpoint: collector:4317\n    protocol: http\n"),
            &["c.yaml:12:5: telemetry.otlp.protocol: expected grpc or http/protobuf, found text"],
        ),
        (
            "a collector without a scheme, a file that is not there, a header of the protocol, a certificate without a key",
            with(
                "telemetry:\n  resource: {'': x}\n  otlp:\n    endpoint: http://user:secret@c\n    \
                 headers: {te: {file: keys.yaml}}\n",
            ),
            &[
                "c.yaml:9:14: telemetry.resource.: expected a name of 1 to 256 characters and a value of at most 4096",
                "c.yaml:11:5: telemetry.otlp.endpoint: expected http://host:port or https://host:port, without a user, a query or a fragment",
            ],
        ),
        (
            "telemetry with files that are of no use",
            with(
                "telemetry:\n  otlp:\n    endpoint: https://c\n    ca_file: keys.yaml\n    certificate_file: none.pem\n    \
                 headers: {te: {file: keys.yaml}}\n",
            ),
            &[
                "c.yaml:9:3: telemetry.otlp: certificate_file and key_file go together",
                "c.yaml:11:5: telemetry.otlp.ca_file: keys.yaml: expected a PEM file with at least one certificate",
                "c.yaml:12:5: telemetry.otlp.certificate_file: none.pem can not be read: No such file or directory (os error 2)",
                "c.yaml:13:15: telemetry.otlp.headers.te: expected the name of a header that the protocol does not have itself, and one line of text",
            ],
        ),
        (
            "a tab",
            "callers:\n\tkeys_file: x\n".into(),
            &["c.yaml:2:2: tabs disallowed within this context (block indentation)"],
        ),
        ("a YAML alias", with("cors: &c {}\nreload: *c\n"), &["c.yaml:9:9: aliases are not supported"]),
        ("a YAML tag", with("cors: !x {}\n"), &["c.yaml:8:10: tags such as !x are not supported"]),
        ("a second document", with("---\ncors: {}\n"), &["c.yaml:8:1: expected one document, found a second"]),
    ];
    let wrong = cases.iter().filter_map(|(name, text, expected)| {
        let told = Files::new(text).check();
        (told != *expected).then(|| format!("{name}: expected\n{}\ntold\n{}", expected.join("\n"), told.join("\n")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn mistakes_of_keys_stand_at_their_place_in_the_keys_file() {
    let model = "pools:\n  - {name: a, api: nim-llm, models: [{id: m, aliases: [alias]}], endpoints: [{url: http://127.0.0.1:1}]}\n";
    let hash = "00".repeat(32);
    let good = format!("id: k, sha256: \"{hash}\"");
    let limits = |limits: &str| format!("keys:\n  - id: k\n    sha256: \"{hash}\"\n    limits: {limits}\n");
    let cases: &[(&str, String, &[&str])] = &[
        ("half written", "keys:\n".into(), &["keys.yaml:1:1: keys: expected a list, found nothing"]),
        (
            "half written before its keys",
            "orgs:\n  - name: o\nteams:\n  - name: t\n".into(),
            &["keys.yaml:1:1: the key keys is required"],
        ),
        (
            "half written in a limit",
            limits("").trim_end().to_owned(),
            &["keys.yaml:4:5: keys[0].limits: expected a list, found nothing"],
        ),
        (
            "half written in a record",
            "keys:\n  - id: k\n    sha256: \"00\n".into(),
            &["keys.yaml:3:13: while scanning a quoted scalar, found unexpected end of stream"],
        ),
        ("half a record", "keys:\n  - id: k\n".into(), &["keys.yaml:2:5: keys[0]: the key sha256 is required"]),
        (
            "a key for its hash",
            "keys:\n  - {id: k, sha256: ngk_k_secret}\n".into(),
            &["keys.yaml:2:13: keys[0].sha256: expected text that matches ^[0-9a-fA-F]{64}$"],
        ),
        (
            "names that are not there",
            format!("keys:\n  - {{{good}, models: [m, alias], pools: [b], scopes: [invoke]}}\n"),
            &[
                "keys.yaml:2:101: keys[0].models[1]: no pool lists a model with the id alias",
                "keys.yaml:2:117: keys[0].pools[0]: there is no pool b",
                "keys.yaml:2:130: keys[0].scopes[0]: no operation needs such a scope; expected one of *, invoke_function, read_backend",
            ],
        ),
        (
            "bad expiry, duplicate id",
            format!("keys:\n  - {{{good}, expires: tomorrow}}\n  - {{{good}, expires: \"2027-01-31\"}}\n"),
            &[
                "keys.yaml:2:89: keys[0].expires: expected a time such as 2027-01-31T00:00:00Z",
                "keys.yaml:3:6: keys[1].id: another key has the id k already",
                "keys.yaml:3:89: keys[1].expires: expected a time such as 2027-01-31T00:00:00Z",
            ],
        ),
        (
            "limits that say nothing, or two things",
            limits("[{}, {per: day}, {requests: 1, spend: 1, per: day}, {requests: 1}, {concurrency: 1, per: day}]"),
            &[
                "keys.yaml:4:14: keys[0].limits[0]: a limit counts something; expected one of requests, input_tokens, output_tokens, total_tokens, concurrency, spend",
                "keys.yaml:4:18: keys[0].limits[1]: a limit counts something; expected one of requests, input_tokens, output_tokens, total_tokens, concurrency, spend",
                "keys.yaml:4:44: keys[0].limits[2].spend: a limit counts one thing, and this one has requests already",
                "keys.yaml:4:65: keys[0].limits[3]: the key per is required: second, minute, hour, day or month",
                "keys.yaml:4:97: keys[0].limits[4].per: concurrency counts requests at the same time; leave this out",
            ],
        ),
        (
            "amounts out of range",
            limits(
                "[{requests: -1}, {input_tokens: 9000000000000001}, {output_tokens: 99999999999999999999999}, {spend: 9000000.1}, {spend: -1}, {concurrency: 1.5}, {total_tokens: 1_000_000}, {total_tokens: many}]",
            ),
            &[
                "keys.yaml:4:15: keys[0].limits[0].requests: expected a whole number from 0 to 9000000000000000",
                "keys.yaml:4:31: keys[0].limits[1].input_tokens: expected a whole number from 0 to 9000000000000000",
                "keys.yaml:4:65: keys[0].limits[2].output_tokens: expected a whole number from 0 to 9000000000000000",
                "keys.yaml:4:107: keys[0].limits[3].spend: expected a number from 0 to 9000000",
                "keys.yaml:4:127: keys[0].limits[4].spend: expected a number from 0 to 9000000",
                "keys.yaml:4:140: keys[0].limits[5].concurrency: expected a whole number, found a number",
                "keys.yaml:4:160: keys[0].limits[6].total_tokens: expected a whole number, found text; write its digits without anything between",
                "keys.yaml:4:187: keys[0].limits[7].total_tokens: expected a whole number, found text",
            ],
        ),
        (
            "less money than there is",
            limits("[{spend: 1e-12, per: day}, {spend: 0, per: day}]"),
            &[
                "keys.yaml:4:15: keys[0].limits[0].spend: expected 0, or a number from 0.000000001 to 9000000",
                "keys.yaml:4:41: keys[0].limits[1].spend: no price is for any model that this limit fits, so nothing would ever count",
            ],
        ),
        (
            "not one of the words",
            limits("[{requests: 1, per: week}, {tokens: 1, per: day}]"),
            &[
                "keys.yaml:4:28: keys[0].limits[0].per: expected second, minute, hour, day or month, found text",
                "keys.yaml:4:41: keys[0].limits[1].tokens: unknown key; expected one of concurrency, count_cached, input_tokens, models, operations, output_tokens, per, pools, requests, spend, total_tokens",
            ],
        ),
        (
            "limits that say of a cache what they may not",
            limits("[{concurrency: 1, count_cached: true}]"),
            &[
                "keys.yaml:4:31: keys[0].limits[0].count_cached: concurrency counts whatever is under way; leave this out",
            ],
        ),
        (
            "limits that differ in what they count of a cache",
            limits(
                "[{requests: 1, per: day}, {requests: 1, per: day, count_cached: false}, {requests: 2, per: day, count_cached: true}]",
            ),
            &[
                "keys.yaml:4:85: keys[0].limits[2]: the same limit stands here already, with another amount or the same; leave one out",
            ],
        ),
        (
            "limits that share a count",
            limits(
                "[{requests: 1, per: day}, {requests: 2, per: day}, {requests: 1, per: day, pools: [a, a*]}, {requests: 1, per: day, pools: [a*, a]}, {requests: 1, per: hour}]",
            ),
            &[
                "keys.yaml:4:39: keys[0].limits[1]: the same limit stands here already, with another amount or the same; leave one out",
                "keys.yaml:4:105: keys[0].limits[3]: the same limit stands here already, with another amount or the same; leave one out",
            ],
        ),
        (
            "an empty pattern",
            limits(
                "[{concurrency: 1, models: [m, alias, \"*x\", \"*\"], pools: [b*], operations: [nim-llm/*, nvcf/chat*, \"*\", \"\"]}]",
            ),
            &["keys.yaml:4:116: keys[0].limits[0].operations[3]: expected 1 to 200 characters"],
        ),
        (
            "patterns that fit nothing",
            limits(
                "[{concurrency: 1, models: [m, alias, \"*x\", \"*\"], pools: [b*], operations: [nim-llm/*, nvcf/chat*, \"*\"]}]",
            ),
            &[
                "keys.yaml:4:43: keys[0].limits[0].models[1]: no pool lists a model that fits alias",
                "keys.yaml:4:50: keys[0].limits[0].models[2]: no pool lists a model that fits *x",
                "keys.yaml:4:70: keys[0].limits[0].pools[0]: no pool fits b*",
                "keys.yaml:4:99: keys[0].limits[0].operations[1]: the catalogue has no operation that fits nvcf/chat*",
            ],
        ),
        (
            "more limits than a subject may have",
            limits(&format!("[{}]", "{requests: 1, per: day}, ".repeat(33))),
            &["keys.yaml:4:5: keys[0].limits: expected at most 32 in the list"],
        ),
        (
            "more patterns than a limit may have",
            limits(&format!("[{{concurrency: 1, models: [{}]}}]", "m, ".repeat(101))),
            &["keys.yaml:4:31: keys[0].limits[0].models: expected at most 100 in the list"],
        ),
        (
            "orgs and teams twice, or not at all",
            format!(
                "orgs: [{{name: o}}, {{name: o}}]\nteams:\n  - {{org: o, name: t}}\n  - {{org: o, name: t}}\n  - {{name: t}}\nkeys:\n  - {{{good}, org: o, team: t}}\n  - {{id: l, sha256: \"{hash}\", org: o}}\n"
            ),
            &[
                "keys.yaml:1:20: orgs[1].name: another organisation has that name already",
                "keys.yaml:4:14: teams[1].name: another team of the organisation has that name already",
                "keys.yaml:5:5: teams[2].org: orgs lists no organisation \"default\"",
                "keys.yaml:8:5: keys[1].team: teams lists no team \"default\" of the organisation \"o\"",
            ],
        ),
        (
            "names that are none",
            format!("orgs: [{{name: \"\"}}]\nteams: [{{name: {}}}]\nkeys: [{{{good}, org: \"\"}}]\n", "t".repeat(129)),
            &[
                "keys.yaml:1:9: orgs[0].name: expected 1 to 128 characters",
                "keys.yaml:2:10: teams[0].name: expected 1 to 128 characters",
                "keys.yaml:3:92: keys[0].org: expected 1 to 128 characters",
            ],
        ),
        (
            "names with control characters",
            format!("orgs: [{{name: \"o\\n\"}}]\nkeys: [{{{good}, org: \"o\\n\", team: \"\\u0085\"}}]\n"),
            &[
                "keys.yaml:1:9: orgs[0].name: expected a name without control characters",
                "keys.yaml:2:92: keys[0].org: expected a name without control characters",
                "keys.yaml:2:104: keys[0].team: expected a name without control characters",
            ],
        ),
        (
            "a secret before a rotation",
            format!("keys: [{{{good}, previous: {{sha256: x}}}}]\n"),
            &[
                "keys.yaml:1:92: keys[0].previous: the key until is required",
                "keys.yaml:1:103: keys[0].previous.sha256: expected text that matches ^[0-9a-fA-F]{64}$",
            ],
        ),
        (
            "no end of a rotation",
            format!("keys: [{{{good}, previous: {{sha256: \"{hash}\", until: soon}}}}]\n"),
            &["keys.yaml:1:179: keys[0].previous.until: expected a time such as 2027-01-31T00:00:00Z"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, text, expected) in cases {
        let files = Files::new(&format!("{HEAD}{model}"));
        files.write("keys.yaml", text);
        let told = files.check();
        // The list of scopes grows with the catalogue.
        let fits = |(told, wanted): (&String, &&str)| match wanted.split_once("*, ") {
            Some((head, _)) => told.starts_with(head) && told.contains("*, ") && told.contains("invoke_function"),
            None => told == wanted,
        };
        if !(told.len() == expected.len() && told.iter().zip(*expected).all(fits)) {
            wrong.push(format!("{name}: expected\n{}\ntold\n{}", expected.join("\n"), told.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn redis_may_have_the_records_of_callers() {
    let redis = "redis: {addresses: [\"a:1\"]}\n";
    let files = Files::new(&format!("callers: {{store: redis}}\n{POOL}{redis}"));
    assert_eq!(files.check(), ["c.yaml: ok, 1 pools, 0 keys"]);
    let config = |text: &str| {
        files.write("c.yaml", text);
        config::load(&files.0.path().join("c.yaml")).unwrap()
    };
    let with_both = config(&format!("callers: {{store: redis, keys_file: keys.yaml}}\n{POOL}{redis}"));
    assert_eq!((with_both.callers, with_both.files.len()), (file::CallerStore::Redis, 2));
}

#[test]
fn settings_of_redis_and_quotas_become_types() {
    use nimgate::quota::OnOutage;
    use nimgate::store::Mode;
    use std::time::Duration;
    let files = Files::new(&with(
        "redis:\n  mode: sentinel\n  addresses: [\"[::1]:1\", \"B:2\"]\n  master: m\n  password: {file: secret}\n  tls: {ca_file: ca.pem}\n  timeout_ms: 5\nquotas: {replicas: 3, on_outage: deny, write_every_ms: 50, drain_ms: 7, currency: EUR}\nprices: [{model: \"*\", input_per_million: 0.2}]\n",
    ));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    files.write("ca.pem", &made.cert.pem());
    files.write("secret", "s\n");
    let config = config::load(&files.0.path().join("c.yaml")).unwrap();
    let redis = config.redis.unwrap();
    assert_eq!(redis.addresses, [("::1".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!((redis.mode, redis.password.as_deref()), (Mode::Sentinel("m".into()), Some("s")));
    assert_eq!(redis.tls.unwrap().authorities.unwrap(), made.cert.pem().into_bytes());
    let sharing = config.sharing;
    assert_eq!((sharing.on_outage, sharing.replicas), (OnOutage::Deny, 3));
    assert_eq!((sharing.budget, sharing.flush), (Duration::from_millis(5), Duration::from_millis(50)));
    assert!(config.counts.file.is_none());
    let proxy = config.proxy;
    assert_eq!((proxy.meter.drain, proxy.meter.currency.as_str()), (Duration::from_millis(7), "EUR"));
    assert_eq!(proxy.quota.prices[0].input_per_million, 200_000_000);
    let files = Files::new(&with("quotas: {state_file: state.json}\n"));
    let config = config::load(&files.0.path().join("c.yaml")).unwrap();
    assert_eq!(config.counts.file, Some(files.0.path().join("state.json")));
}

/// Run it alone, with --release and --nocapture, to see the times.
#[test]
fn ten_thousand_keys_load() {
    const KEYS: usize = 10_000;
    const TEAMS: usize = 1000;
    const ORGS: usize = 50;
    use std::fmt::Write as _;
    let mut text = String::from("orgs:\n");
    for org in 0..ORGS {
        writeln!(text, "  - name: org-{org}\n    limits:\n      - {{spend: 1000.5, per: month}}").unwrap();
    }
    text.push_str("teams:\n");
    for team in 0..TEAMS {
        let org = team % ORGS;
        writeln!(text, "  - org: org-{org}\n    name: team-{team}\n    limits:\n      - {{total_tokens: 1000000, per: day}}\n      - {{concurrency: 64}}").unwrap();
    }
    text.push_str("keys:\n");
    for key in 0..KEYS {
        let (team, org) = (key % TEAMS, key % TEAMS % ORGS);
        writeln!(text, "  - id: key-{key}\n    sha256: \"{key:064x}\"\n    org: org-{org}\n    team: team-{team}\n    name: a key of a team\n    scopes: [invoke_function]\n    models: [meta/model-{}]\n    limits:\n      - {{requests: 10, per: second}}\n      - {{total_tokens: 1000000, per: day, models: [\"meta/model-1*\", \"*-7\"]}}\n      - {{concurrency: 4}}", key % 100).unwrap();
    }
    let models: String = (0..100).map(|model| format!("{{id: meta/model-{model}}}, ")).collect();
    let files = Files::new(&format!(
        "{HEAD}prices: [{{model: \"*\", per_request: 1}}]\npools:\n  - {{name: a, api: nim-llm, models: [{models}], endpoints: [{{url: http://127.0.0.1:1}}]}}\n"
    ));
    files.write("keys.yaml", &text);
    let path = files.0.path().join("c.yaml");
    // The catalogue is read in any case.
    let begun = std::time::Instant::now();
    let bare = Files::new(&with(""));
    config::load(&bare.0.path().join("c.yaml")).unwrap();
    let without = begun.elapsed();
    let begun = std::time::Instant::now();
    let config = config::load(&path).unwrap();
    let loaded = begun.elapsed();
    let begun = std::time::Instant::now();
    let limiter = nimgate::quota::Limiter::local();
    let book = limiter.book(&config.proxy.quota);
    let booked = begun.elapsed();
    println!(
        "{KEYS} keys in {TEAMS} teams, {} KiB: {} ms to load, {} ms to book; a file without keys: {} ms",
        text.len() / 1024,
        loaded.as_millis(),
        booked.as_millis(),
        without.as_millis()
    );
    assert_eq!(config.proxy.keys.len(), KEYS);
    assert!(book.account(&"key-9999".into()).is_some());
}

#[test]
fn all_mistakes_of_both_files_are_told_at_once() {
    let files = Files::new(&with("    bogus: 1\nclient: {max_headers: 1}\n"));
    files.write("keys.yaml", "keys: 1\n");
    let told = files.check();
    let places: Vec<&str> = told.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["c.yaml:8:5", "c.yaml:9:10", "keys.yaml:1:1"]);
    let files = Files::new(&with("    default: true\n  - {name: a, api: x, endpoints: [{url: x}]}\n"));
    files.write("keys.yaml", "keys: 1\n");
    assert_eq!(files.check().len(), 4);
}

#[test]
fn a_secret_in_the_wrong_place_is_refused_and_never_quoted() {
    const SECRET: &str = "nvapi-Secret0Secret1";
    for text in [
        with(&format!("    credential: {SECRET}\n")),
        with(&format!("    credential: {{secret: {SECRET}}}\n")),
        with(&format!("    credential: {{secret: {{value: {SECRET}}}}}\n")),
        with(&format!("    credential: {{secret: {{env: {SECRET}}}}}\n")),
        with(&format!("    credential: {{secret: {{file: {SECRET}}}}}\n")),
        with(&format!("    credential: {{secret: {{env: [{SECRET}]}}}}\n")),
        with(&format!("    credential: [{SECRET}]\n")),
        with(&format!("    headers: {{Authorization: Bearer {SECRET}}}\n")),
        with(&format!("    headers: {{X-API-Key: {SECRET}}}\n")),
        with(&format!("admin: {{token: {SECRET}}}\n")),
        with(&format!("    validation: {SECRET}\n    max_body_mib: {SECRET}\n    function: {{id: {SECRET}}}\n")),
        with(&format!("listeners: [{{address: {SECRET}}}]\n")),
        format!("{HEAD}pools: [{{name: a, api: nvcf, endpoints: [{{url: \"https://{SECRET}@host\"}}]}}]\n"),
    ] {
        let told = Files::new(&text).check().join("\n");
        assert!(told.starts_with("c.yaml:") && !told.contains("Secret0"), "{text}\n{told}");
    }
    let files = Files::new(&with("    credential: {secret: {file: blank}}\n"));
    files.write("blank", " \n");
    assert_eq!(files.check(), ["c.yaml:8:18: pools[0].credential.secret: the secret is empty"]);
}

#[test]
fn whole_numbers_may_be_written_as_yaml_knows_them() {
    let files = Files::new(&with("client: {max_connections: 1e3, max_headers: 0x20, max_body_mib: 10.0}\n"));
    assert_eq!(files.check(), ["c.yaml: ok, 1 pools, 0 keys"]);
}

#[test]
fn serve_refuses_what_check_refuses() {
    let files = Files::new(&with("    bogus: 1\n    worse: 2\n"));
    let output = files.run("serve");
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("c.yaml:8:5: pools[0].bogus: ") && told.contains("c.yaml:9:5: pools[0].worse: "), "{told}");
}

#[test]
fn a_configuration_that_is_not_there_is_told() {
    for command in ["check", "serve"] {
        let output = nimgate(&[command, "--config", "/none/c.yaml"]).output().unwrap();
        let told = stdout(&output) + &String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(told.contains("/none/c.yaml: can not be read: No such file"), "{told}");
    }
}

#[test]
fn a_new_keys_record_pastes_into_a_keys_file_and_is_its_keys() {
    let arguments = [
        "keys",
        "new",
        "--org",
        "o: \"1\"",
        "--team",
        "#t",
        "--scope",
        "*",
        "--model",
        "m",
        "--pool",
        "a",
        "--expires",
        "2099-01-31T00:00:00Z",
    ];
    let output = nimgate(&arguments).output().unwrap();
    assert!(output.status.success());
    let printed = stdout(&output);
    let key = printed.lines().find(|line| line.starts_with("ngk_")).unwrap();
    let record: String = printed.lines().filter(|line| line.starts_with("  ")).map(|l| format!("{l}\n")).collect();
    let files = Files::new(&format!(
        "{HEAD}pools:\n  - {{name: a, api: nim-llm, models: [{{id: m}}], endpoints: [{{url: http://127.0.0.1:1}}]}}\n"
    ));
    files.write("keys.yaml", &format!("keys:\n{record}"));
    assert_eq!(files.check(), ["c.yaml: ok, 1 pools, 1 keys"]);
    let made = nimgate::auth::NewKey::from_text(key).unwrap();
    let keys = yaml::parse_value(&format!("keys:\n{record}")).unwrap();
    assert_eq!(keys["keys"][0]["id"], made.id.as_str());
    assert_eq!(keys["keys"][0]["sha256"], made.hash_text());
    assert_eq!((&keys["keys"][0]["org"], &keys["keys"][0]["team"]), (&json!("o: \"1\""), &json!("#t")));
    assert!(!record.contains(key.rsplit('_').next().unwrap()), "the record holds the secret");
    let another = stdout(&nimgate(&["keys", "new"]).output().unwrap());
    assert!(!another.contains(key), "two keys are the same");
}

#[test]
fn no_record_is_printed_that_no_keys_file_may_have() {
    let long = "x".repeat(129);
    for (option, value, wanted) in [
        ("--org", "", "--org: expected 1 to 128 characters"),
        ("--team", "", "--team: expected 1 to 128 characters"),
        ("--org", &long, "--org: expected 1 to 128 characters"),
        ("--team", &long, "--team: expected 1 to 128 characters"),
        ("--org", "a\u{7}", "--org: expected a name without control characters"),
        ("--team", "a\nb", "--team: expected a name without control characters"),
        ("--scope", "", "a scope has a name"),
        ("--model", "", "a model has a name"),
        ("--pool", "", "a pool has a name"),
    ] {
        let output = nimgate(&["keys", "new", option, value]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(wanted), "{option} {value:?}: {told}");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{option} {value:?}");
    }
}

#[test]
fn a_limit_on_spend_wants_a_price() {
    let pool = "pools:\n  - {name: a, api: nim-llm, models: [{id: m/one}, {id: m/two}], endpoints: [{url: http://127.0.0.1:1}]}\n";
    let hash = "00".repeat(32);
    let reason = "no price is for any model that this limit fits, so nothing would ever count";
    for (prices, models, is_good) in [
        ("", "[]", false),
        ("", "[\"*\"]", false),
        ("prices: [{model: m/two, per_request: 1}]", "[m/one]", false),
        ("prices: [{model: m/two, per_request: 1}]", "[m/one, m/t*]", true),
        ("prices: [{model: \"*one\", per_request: 1}]", "[\"m/*\"]", true),
        ("prices: [{model: \"*\", per_request: 0}]", "[]", true),
    ] {
        let files = Files::new(&format!("{HEAD}{pool}{prices}\n"));
        let limits = format!("[{{spend: 1, per: day, models: {models}}}]");
        files.write("keys.yaml", &format!("keys:\n  - id: k\n    sha256: \"{hash}\"\n    limits: {limits}\n"));
        let wanted = if is_good {
            "c.yaml: ok, 1 pools, 1 keys".to_owned()
        } else {
            format!("keys.yaml:4:15: keys[0].limits[0].spend: {reason}")
        };
        assert_eq!(files.check(), [wanted], "{prices} {models}");
    }
}

#[test]
fn schemas_are_valid_json_schema() {
    for arguments in [&["schema"][..], &["schema", "--keys"]] {
        let output = nimgate(arguments).output().unwrap();
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        jsonschema::meta::validate(&schema).unwrap();
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = nimgate(&["completions", shell]).output().unwrap();
        let script = stdout(&output);
        assert!(output.status.success());
        assert!(["serve", "check", "demo", "keys", "schema"].iter().all(|c| script.contains(c)), "{shell}");
    }
}

#[test]
fn every_command_explains_itself() {
    let commands: [&[&str]; 8] =
        [&[], &["serve"], &["check"], &["demo"], &["keys"], &["keys", "new"], &["schema"], &["completions"]];
    for command in commands {
        let output = nimgate(&[command, &["--help"]].concat()).output().unwrap();
        assert!(output.status.success() && stdout(&output).contains("Usage: nimgate"), "{command:?}");
    }
    let version = stdout(&nimgate(&["--version"]).output().unwrap());
    assert_eq!(version, concat!("nimgate ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(nimgate(&["no-such-command"]).output().unwrap().status.code(), Some(2));
}

/// The first cell of every row of the README's tables.
fn listed_in_readme() -> BTreeSet<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let cells = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(str::to_owned).collect()
}

/// What stands between `before` and the next quote, wherever `text` says `before`.
fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(before).filter_map(move |(at, _)| text[at + before.len()..].split('"').next())
}

/// The page of metrics, made from their declarations.
fn page_of_metrics() -> String {
    let mut page = String::from(
        "# Metrics\n\nMade from `src/telemetry/table.rs`. Each metric stands on the Prometheus page (`GET /metrics` of the \
         admin listener) under its first name, and is sent by OTLP under its second; there, histograms are exponential and \
         empty labels are left out. Labels on the page have underscores for dots. Past its bound, further series of a \
         metric share one whose labels are all `other`; `telemetry.metrics` bounds callers, models and endpoints.\n\n\
         | On the page | By OTLP | Kind | Unit | Labels | Bound | What it says |\n|---|---|---|---|---|--:|---|\n",
    );
    for metric in nimgate::telemetry::table::ALL {
        let (kind, total) = match metric.form {
            Form::Counter => ("counter", "_total"),
            Form::Gauge => ("gauge", ""),
            Form::Histogram(_) => ("histogram", ""),
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, on_page, unit, most, help) = (metric.name, metric.page, metric.unit, metric.most, metric.help);
        let labels = labels.join(", ");
        page += &format!("| `{on_page}{total}` | `{name}` | {kind} | {unit} | {labels} | {most} | {help} |\n");
    }
    page
}

#[test]
fn the_page_of_metrics_is_made_from_their_declarations() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let made = page_of_metrics();
    if std::env::var_os("NIMGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == made, "run NIMGATE_WRITE_DOCS=1 cargo test --test config");
}

#[test]
fn the_readme_lists_every_label() {
    let source = |path| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let failure = source("src/failure.rs");
    let labels = quoted(&failure, "Row(\"").chain(Fault::ALL.iter().map(|fault| fault.label()));
    let wanted: BTreeSet<String> = labels.map(str::to_owned).collect();
    assert!(wanted.len() > 30, "the sources read otherwise than this test expects: {wanted:?}");
    let listed = listed_in_readme();
    let missing: Vec<&String> = wanted.difference(&listed).collect();
    assert!(missing.is_empty(), "the README does not list {missing:?}");
}

#[test]
fn the_page_of_failures_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/failures.md");
    let made = nimgate::upstream::document();
    if std::env::var_os("NIMGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == made, "run NIMGATE_WRITE_DOCS=1 cargo test --test config");
}

#[test]
fn the_readme_lists_every_section_of_the_configuration() {
    let listed = listed_in_readme();
    for section in config::schema::<file::File>()["properties"].as_object().unwrap().keys() {
        assert!(listed.contains(section) || listed.contains(&format!("{section}[]")), "{section}");
    }
}

#[test]
fn a_listeners_certificate_must_fit_its_key() {
    let files = Files::new(&with(
        "listeners:\n  - address: 127.0.0.1:1\n    tls: {certificate_file: cert.pem, key_file: key.pem, client_ca_file: cert.pem}\n",
    ));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    files.write("cert.pem", &made.cert.pem());
    files.write("key.pem", &made.signing_key.serialize_pem());
    assert_eq!(files.check(), ["c.yaml: ok, 1 pools, 0 keys"]);
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    files.write("key.pem", &other.signing_key.serialize_pem());
    let told = files.check();
    assert!(
        told.len() == 1
            && told[0]
                .starts_with("c.yaml:10:5: listeners[0].tls: certificate_file and key_file can not be used together: "),
        "{told:?}"
    );
    files.write("key.pem", "-----BEGIN NOTHING-----\n");
    assert_eq!(files.check(), ["c.yaml:10:5: listeners[0].tls: key_file: expected a PEM file with a private key"]);
}
