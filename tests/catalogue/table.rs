//! docs/constraints.md: operation × constraint × test.

use nimgate::catalogue::Catalogue;
use serde_json::Value;

use crate::example::Example;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/constraints.md");

pub fn render(catalogue: &Catalogue, examples: &[Example]) -> String {
    let mut text = String::from(
        "# Constraints and their tests\n\nMade from the catalogue by `NIMGATE_WRITE_DOCS=1 cargo test --test catalogue`; a test holds it to the documents.\n\
         Each example is a test of its own: `cargo test --test catalogue -- RULE` runs those of a rule.\n",
    );
    for (name, api) in catalogue.apis.iter().filter(|(name, _)| !catalogue.is_grpc(name)) {
        text += &format!(
            "\n## {name}\n\n| Operation | Rule | Constraint | Passing examples | Failing examples |\n|---|---|---|---|---|\n"
        );
        for index in &api.operations {
            let operation = catalogue.operation(*index);
            let of = |e: &&Example| e.api == name.as_str() && e.operation == *operation.id;
            let mut rules: Vec<&str> = Vec::new();
            examples.iter().filter(of).for_each(|e| {
                if !rules.contains(&e.rule.as_str()) {
                    rules.push(&e.rule);
                }
            });
            for rule in rules {
                let titles = |valid: bool| {
                    let fitting = examples.iter().filter(of).filter(|e| e.rule == rule && e.valid == valid);
                    fitting.map(|e| e.title.replace('|', "\\|")).collect::<Vec<_>>().join("; ")
                };
                let constraint = expectation(&api.document, rule).replace('|', "\\|");
                text += &format!(
                    "| `{} {}` | {rule} | {constraint} | {} | {} |\n",
                    operation.method,
                    operation.path,
                    titles(true),
                    titles(false)
                );
            }
        }
    }
    text
}

fn expectation(document: &Value, rule: &str) -> String {
    fn find<'a>(value: &'a Value, rule: &str) -> Option<&'a str> {
        match value {
            Value::Array(items) => items.iter().find_map(|item| find(item, rule)),
            Value::Object(members) => {
                let stated = members.get("x-rule").filter(|r| r["id"] == rule).and_then(|r| r["expect"].as_str());
                stated.or_else(|| members.values().find_map(|v| find(v, rule)))
            }
            _ => None,
        }
    }
    match rule {
        "documented" => "the request as its documentation shows it".into(),
        "url_input" => "no URLs where the pool takes none".into(),
        _ => find(document, rule).map_or_else(|| format!("the schema keyword `{rule}`"), str::to_owned),
    }
}

pub fn check(table: &str) -> Result<(), libtest_mimic::Failed> {
    if std::env::var_os("NIMGATE_WRITE_DOCS").is_some() {
        return std::fs::write(PATH, table).map_err(|e| e.to_string().into());
    }
    let stored = std::fs::read_to_string(PATH).unwrap_or_default();
    if stored == table { Ok(()) } else { Err("run NIMGATE_WRITE_DOCS=1 cargo test --test catalogue".into()) }
}
