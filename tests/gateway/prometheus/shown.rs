//! What is shown and watched: the queries of the dashboards and the rules, as files have them.

use std::path::{Path, PathBuf};

use nimgate::config::yaml;
use serde_json::Value;

/// Something that Prometheus is asked.
pub struct Query {
    /// Where it stands.
    pub name: String,
    /// All of it.
    pub whole: String,
    /// What of it has to have data.
    pub parts: Vec<String>,
}

/// A rule of Prometheus: an alert, or a recorded expression.
pub struct Rule {
    pub name: String,
    pub is_alert: bool,
    pub yaml: Value,
}

impl Query {
    /// One that has to have data itself.
    fn plain(name: String, expr: &str) -> Self {
        let whole = filled(expr);
        Self { name, parts: vec![whole.clone()], whole }
    }

    /// One that has data only when something is amiss: what it compares has to.
    fn watching(name: String, expr: &str) -> Self {
        let whole = filled(expr);
        Self { name, parts: parts(&whole), whole }
    }

    pub fn of_rule(rule: &Rule) -> Self {
        let expr = rule.yaml["expr"].as_str().unwrap();
        if rule.is_alert { Self::watching(rule.name.clone(), expr) } else { Self::plain(rule.name.clone(), expr) }
    }
}

pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The dashboards by the names of their files.
pub fn boards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(root("config/grafana")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let board = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        (path.file_name().unwrap().to_str().unwrap().to_owned(), board)
    };
    files.map(read).collect()
}

/// The panels of a dashboard. None stands within a collapsed row.
pub fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    let panels = board["panels"].as_array().unwrap().iter();
    panels.inspect(|panel| assert!(panel["panels"].as_array().is_none_or(Vec::is_empty), "{panel}"))
}

/// The queries of panels, variables and annotations.
pub fn queries_of_board(name: &str, board: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels(board) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let name = format!("{name}: {} {}", panel["title"].as_str().unwrap(), target["refId"].as_str().unwrap());
            queries.push(Query::plain(name, target["expr"].as_str().unwrap()));
        }
    }
    for variable in board["templating"]["list"].as_array().unwrap().iter().filter(|v| v["type"] == "query") {
        let asked = variable["query"]["query"].as_str().unwrap();
        let inner = asked.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).unwrap_or_else(|| panic!("{asked}"));
        let name = format!("{name}: ${}", variable["name"].as_str().unwrap());
        // Without the label, all of them are one group of no label: an empty one is taken out.
        queries.push(Query::plain(name, &format!("group by ({label}) ({selector}) unless group({selector})")));
    }
    for annotation in board["annotations"]["list"].as_array().unwrap() {
        let name = format!("{name}: {}", annotation["name"].as_str().unwrap());
        queries.push(Query::watching(name, annotation["expr"].as_str().unwrap()));
    }
    queries
}

/// The alerts and the recorded expressions.
pub fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for file in ["alerts.yaml", "recording.yaml"] {
        let text = std::fs::read_to_string(root("config/prometheus").join(file)).unwrap();
        let yaml = yaml::parse_value(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        let groups = yaml["groups"].as_array().unwrap();
        for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
            let name = |key: &str| rule[key].as_str().map(str::to_owned);
            let is_alert = rule["alert"].is_string();
            let name = name("alert").or(name("record")).unwrap();
            rules.push(Rule { name, is_alert, yaml: rule.clone() });
        }
    }
    rules
}

/// A query with its variables filled in: every choice, and times that fit a test.
fn filled(expr: &str) -> String {
    let expr = expr.trim().replace("$__rate_interval", "30s").replace("$__range", "1m");
    let mut pieces = expr.split('$');
    let mut whole = pieces.next().unwrap().to_owned();
    for piece in pieces {
        whole += ".*";
        whole += piece.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    }
    whole
}

/// The words of an expression that may be names of metrics: those outside of quotes.
pub fn words(expr: &str) -> impl Iterator<Item = &str> {
    let outside = expr.split('"').step_by(2);
    outside.flat_map(|text| text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')))
}

/// What an alert's expression compares and combines, without the bounds and as of now: what has to have data for the
/// alert to be able to fire.
pub fn parts(expr: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut depth, mut is_quoted, mut is_selector) = (0, false, false);
    let mut rest = expr;
    while let Some(c) = rest.chars().next() {
        is_quoted ^= c == '"';
        if !is_quoted {
            is_selector = c == '{' || is_selector && c != '}';
        }
        let is_free = !is_quoted && !is_selector;
        if is_free && matches!(c, '=' | '!' | '<' | '>') {
            let side = rest.trim_start_matches(['=', '!', '<', '>']).trim_start();
            let beyond = side.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
            let is_bound = beyond.is_empty() || beyond.starts_with(')') || joined(beyond).is_some();
            assert!(is_bound || depth == 0, "a comparison within brackets: {expr}");
            if !is_bound {
                parts.push(std::mem::take(&mut part));
            }
            rest = if is_bound { beyond } else { side };
            continue;
        }
        if let Some(next) = joined(rest).filter(|_| is_free && depth == 0 && !part.ends_with(is_word)) {
            parts.push(std::mem::take(&mut part));
            rest = next;
            continue;
        }
        if let Some(after) = rest.strip_prefix(" offset ").filter(|_| is_free) {
            rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
            continue;
        }
        depth += i32::from(is_free && c == '(') - i32::from(is_free && c == ')');
        part.push(c);
        rest = &rest[c.len_utf8()..];
    }
    parts.push(part);
    parts.iter().map(|part| part.trim()).map(|part| part.strip_prefix("absent").unwrap_or(part).to_owned()).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What follows a word that combines two vectors, if such a word stands here.
fn joined(rest: &str) -> Option<&str> {
    let after = ["and", "or", "unless"].iter().find_map(|word| rest.strip_prefix(word))?;
    if after.starts_with(is_word) {
        return None;
    }
    let after = after.trim_start();
    match after.strip_prefix("on ").or(after.strip_prefix("ignoring ")) {
        Some(labels) => labels.split_once(')').map(|(_, after)| after.trim_start()),
        None => Some(after),
    }
}
