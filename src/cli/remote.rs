//! Remote: speaks to the admin API of a running gateway.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

/// The environment variable of the admin token.
const TOKEN: &str = "NIMGATE_ADMIN_TOKEN";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const LONGEST: usize = 256 * 1024 * 1024;

/// Which gateway, and the credential. The token comes from the environment variable NIMGATE_ADMIN_TOKEN or from a file.
#[derive(Args, Clone, Debug)]
pub struct Remote {
    /// The admin listener of any replica.
    #[arg(long, value_name = "URL", env = "NIMGATE_ADMIN_URL", default_value = "http://127.0.0.1:9090")]
    pub admin: String,
    /// File with the admin token, in place of the environment variable NIMGATE_ADMIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How answers are printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Shape {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

impl Remote {
    /// Asks, and reads an answer of JSON.
    pub(super) fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = self.ask(method, path, body)?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).with_context(|| format!("{} did not answer with JSON", self.admin))
    }

    /// Reads a whole list, page by page. `path` has a query already.
    pub(super) fn list(&self, path: &str, member: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let mut page = self.json(Method::GET, &format!("{path}{after}"), None)?;
            if let Value::Array(items) = page[member].take() {
                all.extend(items);
            }
            let Some(next) = page["next"].as_str() else { return Ok(all) };
            after = format!("&{}", query(&[("after", Some(next))]));
        }
    }

    /// Asks, and reads the answer, which is a good one.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let (status, bytes) = self.line(PATIENCE)?.ask(method, path, body)?;
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    }

    /// A line for many questions, which keeps its connection; each waits so long at most.
    pub(super) fn line(&self, patience: Duration) -> Result<Line> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Line { remote: self.clone(), runtime, client: client(), patience })
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>> {
        let base = self.admin.trim_end_matches('/');
        let uri: Uri = format!("{base}{path}").parse().with_context(|| format!("--admin: {base} is no URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            bail!("--admin: expected http://HOST:PORT or https://HOST:PORT");
        }
        let mut request = Request::builder().method(method).uri(uri).header(header::ACCEPT, "application/json");
        if let Some(token) = self.token()? {
            request = request.header(header::AUTHORIZATION, token);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        Ok(request.body(Full::new(body.map(Value::to_string).unwrap_or_default().into()))?)
    }

    fn token(&self) -> Result<Option<HeaderValue>> {
        let token = match &self.token_file {
            Some(path) => Some(
                std::fs::read_to_string(path).with_context(|| format!("--token-file: reading {}", path.display()))?,
            ),
            None => std::env::var(TOKEN).ok(),
        };
        let Some(token) = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let header = HeaderValue::from_str(&format!("Bearer {token}"));
        // The error's own words say nothing of the token, and neither do ours.
        let mut header = header.map_err(|_| anyhow!("the admin token has characters that no header may have"))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// A line to one gateway.
pub(super) struct Line {
    remote: Remote,
    runtime: tokio::runtime::Runtime,
    client: HttpClient,
    patience: Duration,
}

impl Line {
    /// Reads a page of JSON. `/readyz` has one with a status of 503 too.
    pub(super) fn page(&self, path: &str) -> Result<Value> {
        let (status, bytes) = self.ask(Method::GET, path, None)?;
        let tells_why = status == StatusCode::SERVICE_UNAVAILABLE && path == "/readyz";
        if !status.is_success() && !tells_why {
            return Err(refusal(status, &bytes));
        }
        serde_json::from_slice(&bytes).with_context(|| format!("{} did not answer with JSON", self.remote.admin))
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes)> {
        let request = self.remote.request(method, path, body)?;
        let attempt = async {
            let answer = self.client.request(request).await.map_err(|e| reason(&e))?;
            let (status, body) = (answer.status(), answer.into_body());
            let body = Limited::new(body, LONGEST).collect().await.map_err(|e| anyhow!(e.to_string()))?;
            Ok::<_, anyhow::Error>((status, body.to_bytes()))
        };
        let answered = self.runtime.block_on(async { tokio::time::timeout(self.patience, attempt).await });
        answered
            .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", self.patience.as_secs())))
            .with_context(|| format!("asking {}", self.remote.admin))
    }
}

type HttpClient = Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client() -> HttpClient {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().unwrap_or_default());
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
    Client::builder(TokioExecutor::new()).build(connector.wrap_connector(http))
}

/// The innermost reason: the outer ones say no more than that a request failed.
fn reason(error: &dyn std::error::Error) -> anyhow::Error {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    anyhow!(inner.to_string())
}

/// What the admin API says about why not.
fn refusal(status: StatusCode, bytes: &[u8]) -> anyhow::Error {
    let Ok(page) = serde_json::from_slice::<Value>(bytes) else { return anyhow!("the answer was {status}") };
    let line = |problem: &Value| {
        let error = problem["error"].as_str().unwrap_or_default();
        problem["where"].as_str().map_or_else(|| error.to_owned(), |place| format!("{place}: {error}"))
    };
    let mut lines = vec![line(&page)];
    lines.extend(page["further"].as_array().into_iter().flatten().map(line));
    if status == StatusCode::UNAUTHORIZED {
        lines.push(format!("put it into the environment variable {TOKEN} or name a file with --token-file"));
    }
    anyhow!(lines.join("\n"))
}

/// A query of what is there.
pub(super) fn query(parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}
