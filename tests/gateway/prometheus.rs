//! Dashboards and alerts: each of their queries has data in a real Prometheus that scrapes a loaded gateway, each alert
//! fires on what it is for, and everything that they name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use futures_util::{StreamExt as _, stream};
use nimgate::telemetry::metric::{Form, Metric};
use nimgate::telemetry::table;
use serde_json::json;

use crate::support::*;

mod load;
mod server;
mod shown;

use load::Loaded;
use server::Prometheus;
use shown::*;

/// Queries without data in a gateway that works as it should, each with the reason.
const SILENT: [(&str, &str); 0] = [];
/// Metrics that stand in no dashboard and no alert, each with the reason.
const UNSHOWN: [(&str, &str); 0] = [];

/// What is wrong with a query: refused, without data, or nothing.
async fn flaw(prometheus: &Prometheus, query: &Query) -> Option<String> {
    if let Err(reason) = prometheus.ask(&query.whole).await {
        return Some(format!("{}: {reason}: {}", query.name, query.whole));
    }
    for part in &query.parts {
        match prometheus.ask(part).await {
            Err(reason) => return Some(format!("{}: {reason}: {part}", query.name)),
            Ok(0) => return Some(format!("{}: no data: {part}", query.name)),
            Ok(_) => {}
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_dashboards_and_alerts_has_data() {
    let loaded = Loaded::start().await;
    let prometheus = Prometheus::start(loaded.gateway.admin).await;
    let mut queries: Vec<Query> = boards().iter().flat_map(|(name, board)| queries_of_board(name, board)).collect();
    queries.extend(rules().iter().map(Query::of_rule));
    assert!(queries.len() > 150, "the dashboards read otherwise than this test expects: {}", queries.len());
    queries.retain(|query| !SILENT.iter().any(|(name, _)| query.name == *name));

    // Rates need a series that was there twice, so what happens once has to happen again.
    let mut flaws = Vec::new();
    for _ in 0..20 {
        loaded.round().await;
        let scraped = prometheus.scrapes().await;
        until("it has scraped twice", async || prometheus.scrapes().await > scraped + 1).await;
        flaws.clear();
        for query in &queries {
            flaws.extend(flaw(&prometheus, query).await);
        }
        if flaws.is_empty() {
            break;
        }
    }
    assert!(flaws.is_empty(), "{} of {}:\n{}", flaws.len(), queries.len(), flaws.join("\n"));
    prometheus.assert_content();
    assert!(prometheus.has_exemplars("nimgate_request_duration_seconds_bucket").await);
    let ill = prometheus.ill_rules().await;
    assert!(ill.is_empty(), "{ill:?}");
}

#[test]
fn promtool_finds_nothing_wrong_and_alerts_fire_on_what_they_are_for() {
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        let output = output.unwrap_or_else(|e| panic!("promtool: {e}; tests/setup.sh installs it"));
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
    };
    promtool(&["check", "rules", "config/prometheus/alerts.yaml", "config/prometheus/recording.yaml"]);
    promtool(&["check", "config", "config/prometheus/prometheus.yml"]);
    promtool(&["test", "rules", "tests/prometheus/alerts.yaml"]);
    let tests = std::fs::read_to_string(root("tests/prometheus/alerts.yaml")).unwrap();
    for rule in rules().iter().filter(|rule| rule.is_alert) {
        assert!(tests.contains(&format!("alertname=\"{}\"", rule.name)), "no test lets {} fire", rule.name);
    }
}

/// The names under which a metric's samples stand on the page.
fn samples(metric: &Metric) -> Vec<String> {
    let suffixes: &[&str] = match metric.form {
        Form::Counter => &["_total"],
        Form::Gauge => &[""],
        Form::Histogram(_) => &["_bucket", "_sum", "_count"],
    };
    suffixes.iter().map(|suffix| format!("{}{suffix}", metric.page)).collect()
}

#[test]
fn every_metric_named_exists_and_every_metric_is_shown() {
    let known: BTreeMap<String, &str> =
        table::ALL.iter().flat_map(|metric| samples(metric).into_iter().map(|name| (name, metric.page))).collect();
    let labels: BTreeSet<String> =
        table::ALL.iter().flat_map(|metric| metric.labels.iter().map(|label| label.replace('.', "_"))).collect();
    let rules = rules();
    let recorded: BTreeSet<&str> = rules.iter().filter(|rule| !rule.is_alert).map(|rule| rule.name.as_str()).collect();
    let mut queries: Vec<Query> = boards().iter().flat_map(|(name, board)| queries_of_board(name, board)).collect();
    queries.extend(rules.iter().map(Query::of_rule));
    let mut shown = BTreeSet::new();
    for query in &queries {
        for word in words(&query.whole) {
            if let Some(page) = known.get(word) {
                shown.insert(*page);
            } else if word.contains(':') {
                assert!(recorded.contains(word), "{}: nothing records {word}", query.name);
            } else if ["nimgate_", "gen_ai_", "process_"].iter().any(|prefix| word.starts_with(prefix)) {
                assert!(labels.contains(word), "{}: there is no metric {word}", query.name);
            }
        }
    }
    let unshown: Vec<&str> = table::ALL.iter().map(|metric| metric.page).filter(|page| !shown.contains(page)).collect();
    assert_eq!(unshown, UNSHOWN.map(|(page, _)| page), "in no dashboard and no alert");
}

#[test]
fn every_link_to_a_runbook_leads_somewhere_and_every_runbook_has_its_alert() {
    let text = std::fs::read_to_string(root("docs/runbooks.md")).unwrap();
    let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
    let sections: BTreeSet<String> = headings.map(|heading| heading.to_lowercase().replace(' ', "-")).collect();
    let leads = |link: &str, from: &str| {
        let (page, anchor) = link.split_once('#').unwrap_or_else(|| panic!("{from}: {link}"));
        assert!(page.ends_with("/nimgate/nimgate/blob/main/docs/runbooks.md"), "{from}: {link}");
        assert!(sections.contains(anchor), "{from}: the runbooks have no section {anchor}");
        anchor.to_owned()
    };
    let rules = rules();
    for rule in rules.iter().filter(|rule| rule.is_alert) {
        let note = |name: &str| rule.yaml["annotations"][name].as_str().unwrap_or_default();
        assert_eq!(leads(note("runbook_url"), &rule.name), rule.name.to_lowercase());
        assert!(!note("summary").is_empty() && !note("description").is_empty(), "{}", rule.name);
        let severity = rule.yaml["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{}: {severity}", rule.name);
    }
    for (name, board) in boards() {
        for panel in panels(&board).filter(|panel| panel["type"] != "row") {
            let title = format!("{name}: {}", panel["title"].as_str().unwrap());
            leads(panel["links"][0]["url"].as_str().unwrap_or_default(), &title);
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
            let source = |of: &serde_json::Value| of["datasource"]["uid"] == "${datasource}";
            assert!(source(panel) && panel["targets"].as_array().unwrap().iter().all(source), "{title}");
        }
    }
    for section in sections.iter().filter(|section| section.starts_with("nimgate")) {
        assert!(rules.iter().any(|rule| rule.name.to_lowercase() == *section), "no alert leads to {section}");
    }
}

#[test]
fn dashboards_are_written_in_one_way() {
    let mut uids = BTreeSet::new();
    for (name, board) in boards() {
        let text = std::fs::read_to_string(root("config/grafana").join(&name)).unwrap();
        assert!(serde_json::to_string_pretty(&board).unwrap() + "\n" == text, "{name}: two spaces, keys in order");
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()), "{name}: another has its uid");
        let ids: Vec<u64> = panels(&board).map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{name}: two panels have one id");
    }
    assert_eq!(uids.len(), 5);
}

#[test]
fn alerts_are_taken_apart_as_they_are_meant() {
    for (expr, wanted) in [
        ("up{job=\"a>b\"} == 0", vec!["up{job=\"a>b\"}"]),
        ("absent(x)", vec!["(x)"]),
        ("(a - time()) / 86400 < 14", vec!["(a - time()) / 86400"]),
        ("a > 3 * avg_over_time(b[1d] offset 1h)\nand c > 1", vec!["a", "3 * avg_over_time(b[1d])", "c"]),
        ("count by (job) (x)\nunless count by (job) (y == 1)", vec!["count by (job) (x)", "count by (job) (y )"]),
        ("a / b > 0.8 and on (job, instance) c or d", vec!["a / b", "c", "d"]),
    ] {
        assert_eq!(parts(expr), wanted, "{expr}");
    }
}

/// Names in the outside world do not fill the page: beyond the bounds they are `other`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_and_models_keep_the_page_small() {
    const MANY: usize = 10_000;
    let backend = simulator(Kind::Embedding).await;
    let models: String =
        (0..MANY).map(|at| format!("  - {{id: m-{at}, backend_model: nvidia/nv-embedqa-e5-v5}}\n")).collect();
    let key = |at: usize| format!("ngk_k{at}_0123456789abcdef");
    let setup = (0..MANY).fold(Gateway::setup(), |setup, at| setup.key(&key(at), "scopes: ['*']"));
    let gateway = setup.pool("many", "nim-embedding", &format!("models:\n{models}"), &[&backend.url()]).start().await;
    let gateway = &gateway;
    let asks = (0..MANY).map(|at| async move {
        let body = json!({"model": format!("m-{at}"), "input": ["a"], "input_type": "query"});
        let status = gateway.post("/v1/embeddings", &body).key(&key(at)).send().await.status;
        assert_eq!(status, 200);
    });
    stream::iter(asks).buffer_unordered(32).collect::<Vec<()>>().await;
    gateway.until_idle().await;
    for format in ["text/plain", "application/openmetrics-text"] {
        let page = gateway.get_admin_as("/metrics", format).await.text();
        println!("{format}: {} bytes", page.len());
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
    }
    let other = "nimgate_caller_requests_total{org=\"other\",team=\"other\",key=\"other\",result=\"good\"}";
    assert_eq!(gateway.metric(other).await, (MANY - 500) as f64);
    let seconds = gateway.metric("nimgate_metrics_render_seconds_sum").await;
    let pages = gateway.metric("nimgate_metrics_render_seconds_count").await;
    println!("{pages} pages were rendered in {:.1} ms each", seconds * 1e3 / pages);
}
