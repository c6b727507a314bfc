//! A real Prometheus, with the configuration and the rules of the repository.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tempfile::TempDir;

use super::shown::root;
use crate::support::*;

/// A running `prometheus`; killed when dropped.
pub struct Prometheus {
    child: Child,
    directory: TempDir,
    address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Prometheus {
    /// One that scrapes the gateway with this admin listener every second.
    pub async fn start(gateway: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sample = |name: &str| std::fs::read_to_string(root("config/prometheus").join(name)).unwrap();
        let config = sample("prometheus.yml").replace("_interval: 15s", "_interval: 1s");
        let config = config
            .replace("[\"nimgate-0.example.com:9090\", \"nimgate-1.example.com:9090\"]", &format!("[\"{gateway}\"]"));
        assert!(config.contains(&gateway.to_string()) && !config.contains("15s"), "{config}");
        for (name, text) in [
            ("prometheus.yml", config),
            ("alerts.yaml", sample("alerts.yaml")),
            ("recording.yaml", sample("recording.yaml")),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let address = free_address();
        let output = File::create(directory.path().join("output")).unwrap();
        let mut command = Command::new("prometheus");
        command.current_dir(directory.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        command.args([&format!("--web.listen-address={address}"), "--enable-feature=exemplar-storage"]);
        command.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("prometheus: {e}; tests/setup.sh installs it"));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut prometheus = Self { child, directory, address, client };
        until("prometheus serves", async || {
            let ended = prometheus.child.try_wait().unwrap();
            assert!(ended.is_none(), "prometheus did not start: {ended:?}\n{}", prometheus.output());
            prometheus.page("/-/ready").await.is_some_and(|page| page.status == 200)
        })
        .await;
        prometheus
    }

    /// How many of these series there are now whose value is a number, or why it does not say.
    pub async fn ask(&self, expr: &str) -> Result<usize, String> {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("query", expr).finish();
        let answer = self.json(&format!("/api/v1/query?{query}")).await;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let is_number = |series: &&Value| series["value"][1].as_str().is_some_and(|text| text != "NaN");
        Ok(answer["data"]["result"].as_array().unwrap().iter().filter(is_number).count())
    }

    /// How often it has scraped the gateway.
    pub async fn scrapes(&self) -> usize {
        let page = self.json("/api/v1/query?query=count_over_time(up[1h])").await;
        let count = page["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// Whether traces were seen in a metric, which only OpenMetrics can tell.
    pub async fn has_exemplars(&self, metric: &str) -> bool {
        let answer = self.json(&format!("/api/v1/query_exemplars?query={metric}&start=0&end=9999999999")).await;
        let series = answer["data"].as_array().unwrap();
        series.iter().any(|series| series["exemplars"][0]["labels"]["trace_id"].is_string())
    }

    /// The rules that could not be evaluated.
    pub async fn ill_rules(&self) -> Vec<Value> {
        let answer = self.json("/api/v1/rules").await;
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert!(rules.len() > 20, "{rules:?}");
        rules.into_iter().filter(|rule| rule["health"] != "ok").cloned().collect()
    }

    /// Fails if it complained of anything that it scraped.
    pub fn assert_content(&self) {
        let output = self.output();
        let complaints: Vec<&str> =
            output.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    async fn json(&self, path: &str) -> Value {
        self.page(path).await.unwrap_or_else(|| panic!("{path}: no answer\n{}", self.output())).json()
    }

    async fn page(&self, path: &str) -> Option<Answer> {
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        Some(answer(self.client.get(uri).await.ok()?).await)
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
