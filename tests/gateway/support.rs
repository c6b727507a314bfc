//! Starts the executable with a temporary configuration and speaks HTTP to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nimgate::auth::NewKey;
use serde_json::Value;
use tempfile::TempDir;

pub use nimgate::sim::{Kind, Settings, Simulator};
pub use port::free_address;

#[path = "port.rs"]
mod port;

/// The key of [`Gateway::start`]: every scope, model and pool.
pub const KEY: &str = "ngk_test_0123456789abcdef";

/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a gateway is started with.
#[derive(Default)]
pub struct Setup {
    pools: String,
    top: String,
    keys: String,
    accounts: String,
    listener: String,
    admin: String,
    callers: String,
    access_log: String,
    env: Vec<(String, String)>,
}

/// A running gateway; stopped when dropped.
pub struct Gateway {
    child: Child,
    pub directory: TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer, read whole.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Label and blame.
    pub fn fault(&self) -> (&str, &str) {
        (self.header("x-nimgate-error"), self.header("x-nimgate-blame"))
    }
}

/// Starts a simulator with quick settings.
pub async fn simulator(kind: Kind) -> Simulator {
    simulator_with(kind, |_| {}).await
}

/// Starts a simulator with quick settings, changed by `change`.
pub async fn simulator_with(kind: Kind, change: impl FnOnce(&mut Settings)) -> Simulator {
    let mut settings = Settings {
        time_to_first_token: Duration::from_millis(1),
        token_interval: Duration::from_millis(1),
        ..Settings::default()
    };
    change(&mut settings);
    nimgate::sim::start(kind, settings).await.unwrap()
}

impl Setup {
    /// Adds a pool: its name, its API, the rest of its YAML and its endpoints, unless the YAML says where they are.
    pub fn pool(mut self, name: &str, api: &str, yaml: &str, urls: &[&str]) -> Self {
        self.pools += &format!("  - name: {name}\n    api: {api}\n");
        yaml.lines().for_each(|line| self.pools += &format!("    {line}\n"));
        if !urls.is_empty() {
            self.pools += "    endpoints:\n";
        }
        urls.iter().for_each(|url| self.pools += &format!("      - url: {url}\n"));
        self
    }

    /// Adds a pool of the model `m` of the API `nim-llm`.
    pub fn chat(self, urls: &[&str]) -> Self {
        self.pool("chat", "nim-llm", "models: [{id: meta/llama-3.1-8b-instruct}]", urls)
    }

    /// Adds top-level YAML.
    pub fn top(mut self, yaml: &str) -> Self {
        self.top += yaml;
        self.top += "\n";
        self
    }

    /// Adds YAML of the one listener, such as `tls: {…}`.
    pub fn listener(mut self, yaml: &str) -> Self {
        self.listener += &format!("    {yaml}\n");
        self
    }

    /// Wants this token on the admin listener.
    pub fn admin_token(mut self, token: &str) -> Self {
        self.admin = token.to_owned();
        self
    }

    /// Keeps records of callers in Redis too.
    pub fn callers_in_redis(mut self) -> Self {
        self.callers = ", store: redis".to_owned();
        self
    }

    /// Adds YAML of the access log, such as `sample: 0.5`.
    pub fn access_log(mut self, yaml: &str) -> Self {
        self.access_log = format!(", {yaml}");
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a key with this YAML.
    pub fn key(mut self, key: &str, yaml: &str) -> Self {
        self.keys += &record(key, yaml);
        self
    }

    /// Adds top-level YAML of the keys file: `orgs` and `teams`.
    pub fn accounts(mut self, yaml: &str) -> Self {
        self.accounts += yaml;
        self.accounts += "\n";
        self
    }

    pub async fn start(self) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        self.start_in(directory).await
    }

    /// Starts in a directory that holds files which the configuration names.
    pub async fn start_in(self, directory: TempDir) -> Gateway {
        let (address, admin) = (free_address(), free_address());
        let keys = format!("{}keys:\n{}{}", self.accounts, record(KEY, "scopes: ['*']"), self.keys);
        std::fs::write(directory.path().join("keys.yaml"), keys).unwrap();
        let token = if self.admin.is_empty() { "" } else { ", token: {file: admin.token}" };
        std::fs::write(directory.path().join("admin.token"), &self.admin).unwrap();
        let config = format!(
            "listeners:\n  - address: {address}\n{}admin: {{address: '{admin}'{token}}}\n\
             callers: {{keys_file: keys.yaml{}}}\naccess_log: {{target: {{file: access.log}}{}}}\nreload: {{interval_ms: 50}}\n{}pools:\n{}",
            self.listener, self.callers, self.access_log, self.top, self.pools
        );
        std::fs::write(directory.path().join("nimgate.yaml"), config).unwrap();
        let output = std::fs::File::create(directory.path().join("output")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nimgate"))
            .args(["serve", "--config"])
            .arg(directory.path().join("nimgate.yaml"))
            .envs(self.env)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut gateway = Gateway { child, directory, address, admin, client };
        gateway.until_listening().await;
        gateway
    }
}

/// A record for the keys file.
pub fn record(key: &str, yaml: &str) -> String {
    let key = NewKey::from_text(key).unwrap();
    let rest: String = yaml.lines().map(|line| format!("    {line}\n")).collect();
    format!("  - id: {:?}\n    sha256: {:?}\n{rest}", key.id.as_str(), key.hash_text())
}

/// Waits until `condition` holds; fails with `what` when it does not in time.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Gateway {
    pub fn setup() -> Setup {
        Setup::default()
    }

    async fn until_listening(&mut self) {
        let begun = Instant::now();
        loop {
            let reached = [self.address, self.admin].map(|a| std::net::TcpStream::connect(a).is_ok());
            if reached == [true, true] {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "gateway did not start: {ended:?}\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Begins a request with the test's key.
    pub fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        Ask { gateway: self, request: request.header("authorization", format!("Bearer {KEY}")), body: Bytes::new() }
    }

    pub fn get(&self, path: &str) -> Ask<'_> {
        self.ask(Method::GET, path)
    }

    /// Begins a POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Ask<'_> {
        let mut ask = self.ask(Method::POST, path).header("content-type", "application/json");
        ask.body = body.to_string().into();
        ask
    }

    /// Begins a chat of the model that [`Setup::chat`] serves.
    pub fn chat(&self, stream: bool) -> Ask<'_> {
        self.post("/v1/chat/completions", &chat(stream))
    }

    /// Reads a page of the admin listener.
    pub async fn admin(&self, path: &str) -> Answer {
        let uri = format!("http://{}{path}", self.admin).parse().unwrap();
        answer(self.client.get(uri).await.unwrap()).await
    }

    /// Reads a page of the admin listener in a format.
    pub async fn get_admin_as(&self, path: &str, accept: &str) -> Answer {
        let request = Request::get(format!("http://{}{path}", self.admin)).header("accept", accept);
        answer(self.client.request(request.body(Full::default()).unwrap()).await.unwrap()).await
    }

    /// The metrics of this name with these labels, in any order and maybe among others, summed.
    pub async fn metric(&self, wanted: &str) -> f64 {
        let page = self.admin("/metrics").await.text();
        let (name, labels) = wanted.split_once('{').unwrap_or((wanted, ""));
        let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
        let is_wanted = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        page.lines().filter(is_wanted).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The state page's entry of a pool.
    pub async fn pool(&self, name: &str) -> Value {
        let state = self.admin("/state").await.json();
        let pools = state["pools"].as_array().unwrap().clone();
        pools.into_iter().find(|pool| pool["name"] == name).unwrap()
    }

    /// Waits until so many requests wait for a place in a pool.
    pub async fn until_waiting(&self, pool: &str, count: u64) {
        until("requests wait", async || self.pool(pool).await["queue"]["waiting"] == count).await;
    }

    /// Waits until nothing is in flight or waits anywhere: no request, no place, no lease.
    pub async fn until_idle(&self) {
        let mut state = Value::Null;
        let begun = Instant::now();
        loop {
            state["all"] = self.admin("/state").await.json();
            let pools = state["all"]["pools"].as_array().unwrap();
            let is_idle = |pool: &Value| {
                let endpoints = pool["endpoints"].as_array().unwrap();
                let queue = &pool["queue"];
                queue["in_flight"] == 0 && queue["waiting"] == 0 && endpoints.iter().all(|e| e["in_flight"] == 0)
            };
            if state["all"]["in_flight"] == 0 && pools.iter().all(is_idle) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "something leaks: {state}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The access log's records so far.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("access.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the record of a request.
    pub async fn record_of(&self, request_id: &str) -> Value {
        let mut found = None;
        until("the record is written", async || {
            found = self.records().into_iter().find(|r| r["request_id"] == request_id);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Resident memory in KiB: now, and at its highest.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Sets the highest memory back to what it is now.
    pub fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway printed:\n{}", self.output());
        }
    }
}

/// The events of a stream, without comments.
pub fn events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.trim_start().strip_prefix("data: "));
    let read = |data: &str| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
    data.filter(|data| *data != "[DONE]").map(read).collect()
}

/// The body of a chat.
pub fn chat(stream: bool) -> Value {
    serde_json::json!({
        "model": "meta/llama-3.1-8b-instruct",
        "messages": [{ "role": "user", "content": "one two three" }],
        "max_tokens": 8,
        "stream": stream,
    })
}

/// A request that is being made.
pub struct Ask<'a> {
    gateway: &'a Gateway,
    request: http::request::Builder,
    body: Bytes,
}

impl Ask<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Without the test's key.
    pub fn anonymous(mut self) -> Self {
        self.request.headers_mut().unwrap().remove("authorization");
        self
    }

    /// With another key.
    pub fn key(self, key: &str) -> Self {
        self.anonymous().header("authorization", &format!("Bearer {key}"))
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it; the answer's body is still to come.
    pub async fn begin(self) -> Response<Incoming> {
        let request = self.request.body(Full::new(self.body)).unwrap();
        self.gateway.client.request(request).await.unwrap()
    }

    /// Sends it and reads the whole answer.
    pub async fn send(self) -> Answer {
        answer(self.begin().await).await
    }
}

pub async fn answer(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// Writes a file beside the configuration by replacing it, as deployment tools do.
pub fn replace(path: &Path, content: &str) {
    let aside = path.with_extension("new");
    std::fs::write(&aside, content).unwrap();
    std::fs::rename(aside, path).unwrap();
}
