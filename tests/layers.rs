//! Holds the arrows between modules: who may name whom.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Stages know ids, std and their own libraries: neither another stage nor what stands above them.
const STAGES: [&str; 10] =
    ["admission", "auth", "balance", "catalogue", "discovery", "meter", "route", "schema", "signals", "upstream"];
/// Modules of this crate and those that they may name; a module may always name itself and its submodules.
const ARROWS: [(&str, &[&str]); 38] = [
    ("pacer", &["admission", "proxy", "quota", "store"]),
    ("admission", &["ids"]),
    ("ids", &[]),
    ("discovery", &[]),
    ("finder", &["balance", "discovery", "proxy"]),
    ("signals", &[]),
    ("scrape", &["balance", "probe", "proxy", "signals"]),
    ("auth", &["ids"]),
    ("balance", &["ids"]),
    ("catalogue", &["ids"]),
    ("meter", &[]),
    ("route", &["ids"]),
    ("schema", &["ids"]),
    ("upstream", &["ids"]),
    ("store", &[]),
    ("quota", &["ids", "store"]),
    ("cache", &["ids", "store"]),
    ("revision", &["balance", "probe", "proxy"]),
    ("failure", &["ids", "admission", "auth", "balance", "catalogue", "quota", "route", "schema", "upstream"]),
    ("access_log", &[]),
    ("otlp", &[]),
    ("log", &["otlp"]),
    ("telemetry", &["otlp"]),
    ("record", &["access_log", "auth", "failure", "ids", "live", "otlp", "quota", "telemetry", "trace", "transcript"]),
    ("observe", &["balance", "ids", "otlp", "proxy", "quota", "store", "telemetry"]),
    ("trace", &[]),
    ("transcript", &["meter", "schema"]),
    ("live", &["ids"]),
    (
        "proxy",
        &[
            "ids",
            "admission",
            "auth",
            "balance",
            "cache",
            "catalogue",
            "discovery",
            "failure",
            "meter",
            "owner",
            "quota",
            "record",
            "route",
            "schema",
            "signals",
            "telemetry",
            "trace",
            "transcript",
            "upstream",
        ],
    ),
    (
        "config",
        &[
            "ids",
            "admission",
            "auth",
            "balance",
            "catalogue",
            "discovery",
            "log",
            "otlp",
            "proxy",
            "quota",
            "route",
            "schema",
            "store",
            "telemetry",
            "trace",
            "transcript",
            "upstream",
        ],
    ),
    ("probe", &["balance", "proxy"]),
    ("owner", &["ids", "store"]),
    ("directory", &["auth", "config", "proxy", "quota", "store"]),
    ("reload", &["config", "directory", "finder", "probe", "proxy", "quota", "revision", "scrape", "telemetry"]),
    (
        "admin",
        &[
            "admission",
            "auth",
            "balance",
            "cache",
            "config",
            "directory",
            "failure",
            "live",
            "log",
            "observe",
            "otlp",
            "proxy",
            "quota",
            "reload",
            "store",
            "telemetry",
        ],
    ),
    (
        "server",
        &[
            "access_log",
            "admin",
            "cache",
            "config",
            "directory",
            "live",
            "log",
            "observe",
            "otlp",
            "owner",
            "pacer",
            "probe",
            "proxy",
            "quota",
            "record",
            "reload",
            "store",
            "telemetry",
        ],
    ),
    ("sim", &[]),
    ("cli", &["auth", "config", "directory", "proxy", "quota", "server", "sim"]),
];
/// Libraries and the only modules that may name them.
const LIBRARIES: [(&str, &[&str]); 14] = [
    ("ratatui", &["cli"]),
    ("crossterm", &["cli"]),
    ("redis", &["store", "quota", "directory", "cache", "owner", "pacer"]),
    ("hickory_resolver", &["discovery"]),
    ("kube", &["discovery"]),
    ("k8s_openapi", &["discovery"]),
    ("pingora", &["proxy", "server", "admin"]),
    ("jsonschema", &["schema", "config"]),
    ("opentelemetry_proto", &["log", "otlp", "record", "telemetry"]),
    ("prost", &["otlp"]),
    ("x509_parser", &["observe"]),
    ("saphyr_parser", &["config"]),
    ("anyhow", &["cli", "config", "server", "main"]),
    ("axum", &["admin", "server", "sim"]),
];

fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut pending = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push((module(&path), without_tests(&std::fs::read_to_string(&path).unwrap())));
            }
        }
    }
    files
}

/// The top-level module that a file belongs to.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Code before the tests, without comments.
fn without_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// The names right after `crate::`, in `use` groups too.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = after.strip_prefix('{') {
            let mut depth = 0;
            for part in group.split_inclusive([',', '{', '}']) {
                if depth == 0 {
                    names.insert(word(part.trim_start()));
                }
                depth += part.matches('{').count() as i32 - part.matches('}').count() as i32;
                if depth < 0 {
                    break;
                }
            }
        } else {
            names.insert(word(after));
        }
    }
    names.remove("");
    names
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for (module, code) in sources() {
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("the module {module} has no row in ARROWS"));
        for name in named(&code) {
            let is_item = name.chars().next().is_some_and(char::is_uppercase);
            if name != module && !is_item && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{module} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "reversed arrows: {wrong:#?}");
}

#[test]
fn stages_do_not_name_each_other() {
    for stage in STAGES {
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == stage).unwrap();
        assert!(allowed.iter().all(|name| *name == "ids"), "{stage}");
    }
}

#[test]
fn libraries_stay_where_they_belong() {
    let mut wrong = BTreeSet::new();
    for (module, code) in sources() {
        for (library, allowed) in LIBRARIES {
            let is_named = |path: &str| {
                let last = path.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                last == library
                    || last.strip_prefix(library).is_some_and(|rest| library == "pingora" && rest.starts_with('_'))
            };
            // Everything that stands before `::` is the head of a path or a segment of one.
            if !allowed.contains(&module.as_str()) && code.split("::").any(is_named) {
                wrong.insert(format!("{module} names {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_reversed_arrow_would_be_found() {
    let names =
        named("use crate::{auth::Caller, ids::{PoolName, ModelId}, proxy};\nfn f() { crate::failure::render() }");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["auth", "failure", "ids", "proxy"]);
}
