//! Bad input: whatever a client sends, it gets a clear answer or a closed connection, and nobody else notices.

use std::collections::BTreeMap;

use http_body_util::{BodyExt as _, Full};
use nimgate::sim::ECHO_FUNCTION;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::collector::Collector;
use crate::failure::{raw_backend, read_request};
use crate::support::*;

const UPSTREAM_KEY: &str = "nvapi-upstream-secret";
const COLLECTOR_KEY: &str = "collector-credential-0123456789";
const CHAT: &str = "/v1/chat/completions";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A connection on which a test says what it likes.
pub(crate) struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    pub(crate) async fn to(gateway: &Gateway) -> Self {
        Self { stream: TcpStream::connect(gateway.address).await.unwrap(), unread: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends what the other side may not want any more.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Says that nothing more will come.
    pub(crate) async fn close_half(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// A whole request with the test's key; `headers` end in CRLF each.
    pub(crate) fn post(&self, path: &str, headers: &str, body: &str) -> String {
        request("POST", path, headers, body)
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await.expect("bytes or an end in time");
        read.is_ok_and(|n| n > 0)
    }

    /// The header of the next answer, `100 Continue` included.
    pub(crate) async fn head(&mut self) -> Option<(u16, String)> {
        loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.unread.split_off(at + 4);
                let head = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
                let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
                return Some((status.unwrap_or_else(|| panic!("no status: {head}")), head));
            }
            if !self.more().await {
                assert!(self.unread.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        }
    }

    /// The next final answer, or none when the connection ends without one.
    async fn next(&mut self) -> Option<Answer> {
        let (status, head) = loop {
            let (status, head) = self.head().await?;
            if status >= 200 {
                break (status, head);
            }
        };
        let mut headers = http::HeaderMap::new();
        for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            let name: http::HeaderName = name.to_ascii_lowercase().parse().unwrap();
            headers.append(name, value.trim().parse().unwrap());
        }
        let mut answer = Answer { status, headers, body: Vec::new().into() };
        answer.body = if answer.header("transfer-encoding") == "chunked" {
            self.chunks().await.into()
        } else {
            let length = answer.header("content-length").parse().unwrap_or(0);
            while self.unread.len() < length {
                assert!(self.more().await, "the answer's body is cut");
            }
            let rest = self.unread.split_off(length);
            std::mem::replace(&mut self.unread, rest).into()
        };
        Some(answer)
    }

    async fn chunks(&mut self) -> Vec<u8> {
        while !self.unread.windows(5).any(|w| w == b"0\r\n\r\n") {
            assert!(self.more().await, "the answer's chunks are cut");
        }
        std::mem::take(&mut self.unread)
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        self.next().await.expect("an answer")
    }

    /// Everything until the other side closes.
    pub(crate) async fn until_closed(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned()
    }

    /// A normal request succeeds on this very connection.
    async fn still_serves(&mut self, after: &str) {
        self.send(self.post(CHAT, "", &chat(false).to_string())).await;
        let answer = self.next().await.unwrap_or_else(|| panic!("the connection is closed after: {after}"));
        assert_eq!(answer.status, 200, "after {after}: {}", answer.text());
    }
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         {headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A request whose body is chunked; `chunks` is what follows the header.
fn chunked(path: &str, chunks: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{chunks}"
    )
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

async fn gateway_with(top: &str) -> (Simulator, Gateway) {
    let backend = simulator(Kind::Llm).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nmax_body_mib: 1\nhealth: {enabled: false}";
    let gateway = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).top(top).start().await;
    (backend, gateway)
}

/// Nothing happened: no panic, nothing in flight, and others are served.
async fn unharmed(gateway: &Gateway, backend: &Simulator, after: &str) {
    assert_eq!(gateway.chat(false).send().await.status, 200, "after {after}");
    let output = gateway.output();
    assert!(!output.contains("panicked") && !output.contains("\"ERROR\""), "after {after}: {output}");
    until("nothing is in flight", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
    until("no endpoint is held", async || gateway.metric("nimgate_endpoint_in_flight").await == 0.0).await;
    until("the backend is idle", async || backend.seen().in_flight() == 0).await;
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused_and_the_connection_goes_on() {
    let (backend, gateway) = gateway_with("").await;
    let deep = "[".repeat(100_000);
    let deep_object = format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    let twice = r#"{"model":"meta/llama-3.1-8b-instruct","mod\u0065l":"other","messages":[]}"#;
    let mut wire = Wire::to(&gateway).await;
    for body in [
        "",
        " ",
        "{",
        "}",
        "nul",
        "{\"model\":",
        "{'model':1}",
        "{\"a\":1,}",
        "{} {}",
        "\u{feff}{}",
        "\u{0}",
        "{\"a\":\"\u{0}\"}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":1e999}",
        "{\"a\":01}",
        "{\"a\":NaN}",
        "{\"a\":+1}",
        &deep,
        &deep_object,
        twice,
        "{\"x\":{\"b\":1,\"b\":2}}",
    ] {
        let shown: String = body.chars().take(40).collect();
        wire.send(wire.post(CHAT, "", body)).await;
        let answer = wire.answer().await;
        assert_eq!(
            (answer.status, answer.fault()),
            (400, ("malformed_json", "client")),
            "{shown:?}: {}",
            answer.text()
        );
        assert!(answer.body.len() < 600, "{shown:?}: {}", answer.text());
    }
    wire.still_serves("malformed JSON").await;
    assert_eq!(backend.seen().requests(CHAT), 1);
    unharmed(&gateway, &backend, "malformed JSON").await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let (backend, gateway) = gateway_with("").await;
    for bytes in
        [&b"{\"model\":\"\xff\"}"[..], b"\xff\xfe{\0}\0", b"{\"a\":\"\xed\xa0\x80\"}", b"\x1f\x8b\x08\0\0\0\0\0"]
    {
        let answer = gateway.post(CHAT, &json!(0)).body(bytes).send().await;
        assert_eq!((answer.status, answer.fault().0), (400, "malformed_json"), "{bytes:?}");
    }
    unharmed(&gateway, &backend, "binary bodies").await;
}

#[tokio::test]
async fn json_of_the_wrong_form_is_refused_with_its_places() {
    let (backend, gateway) = gateway_with("").await;
    let mut wire = Wire::to(&gateway).await;
    for (body, label) in [
        ("null", "schema_violation"),
        ("[]", "schema_violation"),
        ("\"x\"", "schema_violation"),
        ("1e400000000", "malformed_json"),
        ("12345678901234567890123456789012345678901234567890", "schema_violation"),
        ("{}", "schema_violation"),
        (r#"{"model":1}"#, "schema_violation"),
        (r#"{"model":null,"messages":[]}"#, "schema_violation"),
        (r#"{"model":["meta/llama-3.1-8b-instruct"]}"#, "schema_violation"),
        (r#"{"model":"","messages":[]}"#, "model_not_found"),
        (r#"{"model":"a\r\nx: y","messages":[]}"#, "model_not_found"),
        (r#"{"model":"meta/llama-3.1-8b-instruct","messages":"hi"}"#, "schema_violation"),
        (r#"{"model":"meta/llama-3.1-8b-instruct","messages":[1]}"#, "schema_violation"),
        (
            r#"{"model":"meta/llama-3.1-8b-instruct","messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#,
            "schema_violation",
        ),
        (
            r#"{"model":"meta/llama-3.1-8b-instruct","messages":[{"role":"user","content":"x"}],"stream":"yes"}"#,
            "schema_violation",
        ),
        (
            r#"{"model":"meta/llama-3.1-8b-instruct","messages":[{"role":"user","content":"x"}],"temperature":1e300}"#,
            "schema_violation",
        ),
    ] {
        wire.send(wire.post(CHAT, "", body)).await;
        let answer = wire.answer().await;
        assert_eq!(answer.fault(), (label, "client"), "{body}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], label, "{body}");
    }
    let long = format!(r#"{{"model":"{}","messages":[]}}"#, "m".repeat(500_000));
    wire.send(wire.post(CHAT, "", &long)).await;
    let answer = wire.answer().await;
    assert!(
        answer.fault().0 == "model_not_found" && answer.body.len() < 600,
        "a model's name is shown cut: {}",
        answer.body.len()
    );
    wire.still_serves("wrong JSON").await;
    assert_eq!(backend.seen().requests(CHAT), 1);
    unharmed(&gateway, &backend, "wrong JSON").await;
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_to_the_next() {
    let (backend, gateway) = gateway_with("").await;
    let body = chat(false).to_string();
    let keyless = |path: &str| request("POST", path, "", &body).replace(KEY, "ngk_no_key");
    let cases = [
        ("401", keyless(CHAT), 401),
        ("401 without a body", "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 401),
        ("404", request("POST", "/v1/nothing", "", &body), 404),
        ("404, chunked", chunked("/v1/nothing", &(chunk(&body) + "0\r\n\r\n")), 404),
        ("404 for a pool", request("POST", "/pools/none/v1/x", "", &body), 404),
        ("405", request("POST", "/v1/models", "", &body), 405),
        ("405 for a method of one's own", request("BREW", CHAT, "", &body), 405),
        ("HEAD", request("HEAD", "/v1/health/live", "", "").replace("content-length: 0\r\n", ""), 200),
        ("415", request("POST", CHAT, "", &body).replace("application/json", "text/plain"), 415),
        ("415 for a packed body", request("POST", CHAT, "content-encoding: gzip\r\n", &body), 415),
        ("413", request("POST", CHAT, "", &" ".repeat(1024 * 1024 + 1)), 413),
        ("413, chunked", chunked(CHAT, &(chunk(&" ".repeat(1024 * 1024 + 1)) + "0\r\n\r\n")), 413),
        ("400", request("POST", CHAT, "", "{"), 400),
        ("a body that nobody asked for", request("GET", "/v1/models", "", &body), 200),
    ];
    for (case, bytes, status) in cases {
        let mut wire = Wire::to(&gateway).await;
        wire.send(bytes).await;
        let (got, head) = wire.head().await.unwrap_or_else(|| panic!("{case}: no answer"));
        assert_eq!(got, status, "{case}: {head}");
        let lower = head.to_ascii_lowercase();
        let length =
            lower.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok()).unwrap_or(0);
        let length = if case == "HEAD" { 0 } else { length };
        while wire.unread.len() < length {
            assert!(wire.more().await, "{case}: a cut body");
        }
        wire.unread.drain(..length);
        wire.still_serves(case).await;
    }
    unharmed(&gateway, &backend, "refusals").await;
}

#[tokio::test]
async fn an_oversize_body_is_refused_before_it_is_sent_when_the_client_asks() {
    let (backend, gateway) = gateway_with("").await;
    let head = |length: usize| {
        request("POST", CHAT, "expect: 100-continue\r\n", "")
            .replace("content-length: 0", &format!("content-length: {length}"))
    };
    for (case, bytes, status) in [
        ("413", head(2 * 1024 * 1024), 413),
        ("401", head(9).replace(KEY, "ngk_no_key"), 401),
        ("404", head(9).replace(CHAT, "/v1/nothing"), 404),
    ] {
        let mut wire = Wire::to(&gateway).await;
        wire.send(bytes).await;
        let (got, head) = wire.head().await.unwrap();
        assert_eq!(got, status, "{case}: a final status, no 100: {head}");
        // The client may now skip the body or send it, so nobody knows where its next request begins.
        assert!(head.to_ascii_lowercase().contains("connection: close"), "{case}: {head}");
        wire.until_closed().await;
    }
    let body = chat(false).to_string();
    let mut wire = Wire::to(&gateway).await;
    wire.send(head(body.len())).await;
    assert_eq!(wire.head().await.unwrap().0, 100);
    wire.send(&body).await;
    assert_eq!(wire.answer().await.status, 200);
    wire.still_serves("an invited body").await;
    let mut wire = Wire::to(&gateway).await;
    wire.send(request("POST", CHAT, "expect: 100-continue\r\n", &body).replace("HTTP/1.1", "HTTP/1.0")).await;
    assert_eq!(wire.head().await.unwrap().0, 200, "HTTP/1.0 knows no 100");
    unharmed(&gateway, &backend, "expectations").await;
}

#[tokio::test]
async fn a_blocking_client_reads_why_its_large_body_is_refused() {
    let (backend, gateway) = gateway_with("").await;
    let piece = " ".repeat(64 * 1024);
    for (case, head, piece) in [
        ("sized", request("POST", CHAT, "", "").replace("content-length: 0", "content-length: 4194304"), piece.clone()),
        ("chunked", chunked(CHAT, ""), chunk(&piece)),
    ] {
        let mut wire = Wire::to(&gateway).await;
        wire.send(head).await;
        for _ in 0..64 {
            wire.try_send(&piece).await;
        }
        if case == "chunked" {
            wire.try_send("0\r\n\r\n").await;
        }
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.fault().0), (413, "body_too_large"), "{case}");
    }
    unharmed(&gateway, &backend, "large bodies").await;
}

#[tokio::test]
async fn truncated_uploads_are_told_from_broken_ones() {
    let (backend, gateway) = gateway_with("client: {body_idle_timeout_ms: 300}").await;
    let body = chat(false).to_string();
    let cut =
        request("POST", CHAT, "", &body).replace(&format!("content-length: {}", body.len()), "content-length: 5000");
    for (case, bytes, half, status, label) in [
        ("a short body", cut.clone(), true, 400, "body_incomplete"),
        ("a chunk that is cut", chunked(CHAT, "10\r\nabc"), true, 400, "body_incomplete"),
        ("no last chunk", chunked(CHAT, &chunk(&body)), true, 400, "body_incomplete"),
        ("a size that is none", chunked(CHAT, "zz\r\nabc\r\n"), false, 400, "malformed_request"),
        ("a negative size", chunked(CHAT, "-1\r\nabc\r\n"), false, 400, "malformed_request"),
        ("an endless size", chunked(CHAT, "ffffffffffffffffffffffff\r\nabc\r\n"), false, 400, "malformed_request"),
        ("a chunk without its end", chunked(CHAT, "2\r\n{}xx0\r\n\r\n"), false, 400, "malformed_request"),
        ("a body that stops", cut, false, 408, "body_timeout"),
        ("chunks that stop", chunked(CHAT, &chunk(&body)), false, 408, "body_timeout"),
    ] {
        let mut wire = Wire::to(&gateway).await;
        wire.send(bytes).await;
        if half {
            wire.close_half().await;
        }
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.fault()), (status, (label, "client")), "{case}");
        assert_eq!(wire.until_closed().await, "", "{case}");
    }
    assert_eq!(backend.seen().requests(CHAT), 0);
    unharmed(&gateway, &backend, "truncated uploads").await;
}

#[tokio::test]
async fn truncated_uploads_that_stream_through_are_told_alike() {
    let nvcf = simulator(Kind::Nvcf).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    let pool = "kind: nvcf\ncredential: {secret: {file: upstream.key}}\nhealth: {enabled: false}";
    let gateway = Gateway::setup()
        .pool("nvcf", "nvcf", pool, &[&nvcf.url()])
        .top("client: {body_idle_timeout_ms: 300}")
        .start_in(directory)
        .await;
    let path = format!("/v2/nvcf/pexec/functions/{ECHO_FUNCTION}");
    for (case, bytes, half, status, label) in [
        (
            "a short body",
            request("POST", &path, "", "abc").replace("content-length: 3", "content-length: 9"),
            true,
            400,
            "body_incomplete",
        ),
        ("a chunk that is cut", chunked(&path, "10\r\nabc"), true, 400, "body_incomplete"),
        ("a size that is none", chunked(&path, "zz\r\nabc\r\n"), false, 400, "malformed_request"),
        ("chunks that stop", chunked(&path, &chunk("abc")), false, 408, "body_timeout"),
    ] {
        let mut wire = Wire::to(&gateway).await;
        wire.send(bytes).await;
        if half {
            wire.close_half().await;
        }
        let answer = wire.next().await.unwrap_or_else(|| panic!("{case}: no answer: {:?}", gateway.records()));
        assert_eq!((answer.status, answer.fault()), (status, (label, "client")), "{case}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{case}");
    }
    until("nothing is in flight", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
    until("the backend is idle", async || nvcf.seen().in_flight() == 0).await;
    assert!(!gateway.output().contains("panicked"));
}

#[tokio::test]
async fn headers_that_break_http_are_refused() {
    let (backend, gateway) = gateway_with("").await;
    let body = chat(false).to_string();
    let with = |headers: &str| request("POST", CHAT, headers, &body);
    let length =
        |value: &str| with("").replace(&format!("content-length: {}", body.len()), &format!("content-length: {value}"));
    let coded = |value: &str| chunked(CHAT, &(chunk(&body) + "0\r\n\r\n")).replace(": chunked", &format!(": {value}"));
    let many = |n: usize| (0..n).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    let cases: Vec<(&str, String, u16)> = vec![
        ("no host", with("").replace("host: gateway\r\n", ""), 400),
        ("two hosts", with("host: other\r\n"), 400),
        ("two lengths", with("content-length: 1\r\n"), 400),
        ("a signed length", length("+5"), 400),
        ("a negative length", length("-5"), 400),
        ("a hexadecimal length", length("0x10"), 400),
        ("an endless length", length("99999999999999999999999999"), 400),
        ("no length in a length", length(""), 400),
        ("length and chunks", with("transfer-encoding: chunked\r\n"), 400),
        ("length and chunks in another case", with("TRANSFER-encoding:chunked\r\n"), 400),
        ("another coding", coded("xchunked"), 400),
        ("packed chunks", coded("gzip, chunked"), 400),
        ("chunks in chunks", coded("chunked, chunked"), 400),
        ("chunked twice", coded("chunked\r\ntransfer-encoding: chunked"), 400),
        ("chunked and then not", coded("chunked, identity"), 400),
        ("a quoted coding", coded("\"chunked\""), 400),
        ("a vertical tab", coded("\u{b}chunked"), 400),
        ("a folded header", with("x-a: b\r\n c\r\n"), 400),
        ("a space before the colon", with("x-a : b\r\n"), 400),
        ("no colon", with("x-a\r\n"), 400),
        ("no name", with(": b\r\n"), 400),
        ("a name of no token", with("x a(): b\r\n"), 400),
        ("a NUL in a value", with("x-a: b\0c\r\n"), 400),
        ("a bare CR in a value", with("x-a: b\rx-b: c\r\n"), 400),
        ("two credentials", with("authorization: Bearer ngk_a_b\r\n"), 400),
        ("a nomination that is none", with("connection: \"x\"\r\n"), 400),
        ("a nominated host", with("connection: host\r\n"), 400),
        ("a large header", with(&format!("x-a: {}\r\n", "b".repeat(100_000))), 431),
        ("many headers", with(&many(150)), 431),
        ("very many headers", with(&many(300)), 400),
        ("a long path", with("").replace(CHAT, &format!("/{}", "a".repeat(60_000))), 404),
        ("a longer path", with("").replace(CHAT, &format!("/{}", "a".repeat(70_000))), 400),
        ("a method of no token", request("P{ST", CHAT, "", &body), 400),
        ("HTTP/1.0 with chunks", coded("chunked").replace("HTTP/1.1", "HTTP/1.0"), 400),
        ("HTTP/1.2", with("").replace("HTTP/1.1", "HTTP/1.2"), 400),
        ("HTTP/2 by name", with("").replace("HTTP/1.1", "HTTP/2.0"), 400),
        ("a space in the path", with("").replace(CHAT, "/v1/chat /completions"), 404),
        ("a path of raw bytes", with("").replace(CHAT, "/v1/models/ü"), 400),
        ("TRACE", request("TRACE", CHAT, "", ""), 405),
        ("CONNECT", "CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n".into(), 405),
    ];
    for (case, bytes, status) in cases {
        let mut wire = Wire::to(&gateway).await;
        wire.try_send(bytes).await;
        let answer = wire.next().await.unwrap_or_else(|| panic!("{case}: no answer"));
        // pingora answers what it can not parse by itself: no body, and 400 or 405.
        let bare = answer.body.is_empty() && answer.fault().0.is_empty();
        let ok = answer.status == status || (status == 404 && bare && answer.status == 400);
        assert!(ok, "{case}: {} {}", answer.status, answer.text());
        assert!(bare || answer.fault().1 == "client" && answer.json()["error"]["code"] == answer.fault().0, "{case}");
    }
    assert_eq!(backend.seen().requests(CHAT), 0, "{:?}", backend.seen().last());
    unharmed(&gateway, &backend, "broken headers").await;
}

#[tokio::test]
async fn what_is_not_http_is_closed() {
    let (backend, gateway) = gateway_with("client: {header_timeout_ms: 300}").await;
    let hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[7; 200]].concat();
    let cases: [(&str, &[u8]); 9] = [
        ("a TLS hello", &hello),
        ("HTTP/0.9", b"GET /v1/models\r\n"),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("SSH", b"SSH-2.0-x\r\n"),
        ("zeros", &[0; 4096]),
        ("high bytes", &[255; 4096]),
        ("empty lines", b"\r\n\r\n\r\n\r\n"),
        ("a lone letter", b"G"),
        ("the PROXY protocol", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n"),
    ];
    for (case, bytes) in cases {
        let mut wire = Wire::to(&gateway).await;
        wire.try_send(bytes).await;
        let text = wire.until_closed().await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{case}: {text}");
    }
    unharmed(&gateway, &backend, "garbage").await;
}

#[tokio::test]
async fn a_dripped_header_is_closed_in_time_also_on_a_kept_connection() {
    let (backend, gateway) = gateway_with("client: {header_timeout_ms: 300, keepalive_timeout_ms: 1000}").await;
    for kept in [false, true] {
        let mut wire = Wire::to(&gateway).await;
        if kept {
            wire.still_serves("nothing").await;
        }
        wire.send("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-drip: ").await;
        until("the connection is closed", async || {
            wire.try_send("x").await;
            let read = wire.stream.try_read_buf(&mut wire.unread);
            !matches!(read, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        })
        .await;
        assert!(wire.unread.is_empty(), "kept {kept}");
    }
    let mut idle = Wire::to(&gateway).await;
    assert_eq!(idle.until_closed().await, "", "a silent connection is closed too");
    unharmed(&gateway, &backend, "dripped headers").await;
}

#[tokio::test]
async fn a_dripped_body_is_refused_when_its_time_is_over() {
    let (backend, gateway) = gateway_with("client: {body_timeout_ms: 300}").await;
    let mut wire = Wire::to(&gateway).await;
    wire.send(request("POST", CHAT, "x-request-id: drip\r\n", "").replace("content-length: 0", "content-length: 5000"))
        .await;
    until("it is recorded", async || {
        wire.try_send(" ").await;
        gateway.records().iter().any(|r| r["request_id"] == "drip")
    })
    .await;
    let record = gateway.record_of("drip").await;
    assert_eq!((&record["error"], &record["status"]), (&json!("body_timeout"), &json!(408)));
    unharmed(&gateway, &backend, "a dripped body").await;
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte_and_with_chunk_extensions_and_trailers() {
    let (backend, gateway) = gateway_with("").await;
    let body = chat(false).to_string();
    let mut wire = Wire::to(&gateway).await;
    for byte in wire.post(CHAT, "", &body).bytes() {
        wire.send([byte]).await;
    }
    assert_eq!(wire.answer().await.status, 200);
    let (front, back) = body.split_at(20);
    let chunks = format!(
        "{:x};name=value;q=\"a;b\"\r\n{front}\r\n{:x}\r\n{back}\r\n0;last\r\ncontent-length: 3\r\nx-injected: 1\r\nhost: other\r\n\r\n",
        front.len(),
        back.len()
    );
    wire.send(chunked(CHAT, &chunks)).await;
    assert_eq!(wire.answer().await.status, 200);
    let seen = backend.seen().last_of(CHAT).unwrap();
    assert_eq!((seen.body, seen.headers.get("x-injected")), (body.into_bytes(), None));
    wire.still_serves("chunk extensions and trailers").await;
    unharmed(&gateway, &backend, "odd but legal requests").await;
}

#[tokio::test]
async fn paths_are_taken_literally_and_never_climb() {
    let curator = simulator(Kind::Curator).await;
    let llm = simulator(Kind::Llm).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    // Without validation nothing but the gateway itself stands between a path and the platform.
    for validation in ["strict", "off"] {
        let pool = format!(
            "kind: ngc\ncredential: {{secret: {{file: {}}}}}\nhealth: {{enabled: false}}\nvalidation: {validation}",
            directory.path().join("upstream.key").display()
        );
        let gateway = Gateway::setup()
            .pool("curator", "nemo-curator", &pool, &[&curator.url()])
            .chat(&[&llm.url()])
            .start()
            .await;
        for path in [
            "/v1/cosmos/datasets/..",
            "/v1/cosmos/datasets/.",
            "/v1/cosmos/datasets/%2e%2e",
            "/v1/cosmos/datasets/.%2E",
            "/v1/cosmos/datasets/..%2f..%2fadmin",
            "/v1/cosmos/datasets/%2e%2e%5cadmin",
            "/v1/cosmos/datasets/a%2f..%2fb",
            "/v1/cosmos/datasets/../captions",
            "/v1/cosmos/datasets/%2e%2e/captions",
            "/v1/cosmos/datasets/..;/captions",
            "/v1/cosmos/datasets/a%00",
            "/v1/cosmos/datasets/a%0d%0ax:%20y",
            "/pools/curator/../../v1/cosmos/datasets",
            "/pools/%2e%2e/v1/cosmos/datasets",
            "/pools/..%2f/v1/cosmos/datasets",
            "/pools/c%75rator/v1/cosmos/datasets",
            "/pools//v1/cosmos/datasets",
            "//v1/cosmos/datasets",
            "/v1//cosmos/datasets",
            "/v1/cosmos/datasets/",
            "/V1/cosmos/datasets",
            "/./v1/cosmos/datasets",
            "/v1/%63osmos/datasets",
            "*",
            "/",
        ] {
            let mut wire = Wire::to(&gateway).await;
            wire.send(request("GET", path, "", "").replace("content-length: 0\r\n", "")).await;
            let answer = wire.answer().await;
            assert!(matches!(answer.status, 400 | 404), "{validation} {path}: {} {}", answer.status, answer.text());
            assert_eq!(answer.fault().1, "client", "{validation} {path}");
        }
        assert_eq!(curator.seen().total(), 0, "{validation}: {:?}", curator.seen().by_path());
        unharmed(&gateway, &llm, "paths").await;
    }
}

#[tokio::test]
async fn encoded_line_ends_and_odd_ids_stay_in_their_place() {
    let (backend, gateway) = gateway_with("").await;
    let body = chat(false).to_string();
    let mut wire = Wire::to(&gateway).await;
    wire.send(wire.post(&format!("{CHAT}?a=%0d%0ax-injected:%201&b=%00"), "x-request-id: id\u{e9}\r\n", &body)).await;
    let answer = wire.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("x-request-id").len() == 32, "an id of other than visible ASCII is replaced");
    let seen = backend.seen().last_of(CHAT).unwrap();
    assert_eq!((seen.query.as_str(), seen.headers.get("x-injected")), ("a=%0d%0ax-injected:%201&b=%00", None));
    for (offered, kept) in [("a b", false), ("abc%0d%0a", true), (&"x".repeat(129), false), ("\"><script>", true)] {
        wire.send(wire.post(CHAT, &format!("x-request-id: {offered}\r\n"), &body)).await;
        assert_eq!(wire.answer().await.header("x-request-id") == offered, kept, "{offered}");
    }
    unharmed(&gateway, &backend, "encoded line ends").await;
}

/// What a backend gets of a request, byte for byte.
async fn as_sent(bytes: &str) -> (Option<Answer>, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = std::sync::Arc::clone(&kept);
            tokio::spawn(async move {
                loop {
                    let request = read_request(&mut stream).await;
                    if request.is_empty() {
                        return;
                    }
                    kept.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                }
            });
        }
    });
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nhealth: {enabled: false}\nmetrics: {enabled: false}";
    let gateway =
        Gateway::setup().pool("chat", "nim-llm", pool, &[&url]).top("client: {header_timeout_ms: 300}").start().await;
    let mut wire = Wire::to(&gateway).await;
    wire.send(bytes).await;
    let answer = wire.next().await;
    // A second request can not hide: this one comes after whatever the first has left.
    assert_eq!(gateway.chat(false).header("x-request-id", "last").send().await.status, 200);
    until("the backend saw it", async || {
        seen.lock().unwrap().iter().any(|r: &String| r.contains("x-request-id: last"))
    })
    .await;
    until("nothing is in flight", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
    assert!(!gateway.output().contains("panicked"));
    let mut seen = seen.lock().unwrap().clone();
    seen.retain(|r| !r.contains("x-request-id: last"));
    (answer, seen)
}

#[tokio::test]
async fn no_request_hides_in_another() {
    let body = chat(false).to_string();
    let hidden = "GET /admin HTTP/1.1\r\nhost: backend\r\nx-hidden: 1\r\n\r\n";
    let smuggled = format!("{body}{hidden}");
    let cases = [
        (
            "CL.TE",
            format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n{hidden}",
                smuggled.len(),
                chunk(&body)
            ),
        ),
        (
            "TE.CL",
            format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{}0\r\n\r\n",
                chunk(&smuggled)
            ),
        ),
        (
            "two codings",
            chunked(CHAT, &format!("{}0\r\n\r\n{hidden}", chunk(&body)))
                .replace(": chunked", ": identity\r\ntransfer-encoding: chunked"),
        ),
        ("an underscore", request("POST", CHAT, "content_length: 5\r\n", &body)),
        ("two lengths", request("POST", CHAT, &format!("content-length: {}\r\n", smuggled.len()), &body) + hidden),
        (
            "a length in a list",
            request("POST", CHAT, "", &body)
                .replace(&format!("content-length: {}", body.len()), &format!("content-length: {0}, {0}", body.len()))
                + hidden,
        ),
        ("bytes behind the body", request("POST", CHAT, "", &body) + hidden),
        ("bytes behind the chunks", chunked(CHAT, &format!("{}0\r\n\r\n{hidden}", chunk(&body)))),
        ("trailers", chunked(CHAT, &format!("{}0\r\nx-hidden: 1\r\n\r\n", chunk(&body)))),
        ("line feeds only", request("POST", CHAT, "", &body).replace("\r\n", "\n") + hidden),
        ("a nominated length", request("POST", CHAT, "connection: content-length\r\n", &body)),
        ("a nominated id", request("POST", CHAT, "connection: x-request-id, content-type\r\n", &body)),
        (
            "an upgrade",
            request(
                "POST",
                CHAT,
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
                &body,
            ),
        ),
        ("a web socket", request("POST", CHAT, "connection: upgrade\r\nupgrade: websocket\r\n", &body)),
        (
            "hop by hop",
            request(
                "POST",
                CHAT,
                "te: trailers\r\nkeep-alive: timeout=9\r\nproxy-authorization: Basic eDp5\r\nproxy-connection: keep-alive\r\n",
                &body,
            ),
        ),
        (
            "another authority",
            request("POST", &format!("http://evil.example{CHAT}"), "", &body)
                .replace("host: gateway", "host: evil.example"),
        ),
        (
            "another authority, with TLS",
            request("POST", &format!("https://evil.example:443{CHAT}"), "", &body)
                .replace("host: gateway", "host: evil.example:443"),
        ),
    ];
    for (case, bytes) in cases {
        let (answer, seen) = as_sent(&bytes).await;
        assert!(seen.len() <= 1, "{case}: {seen:#?}");
        let Some(sent) = seen.first() else {
            let answer = answer.unwrap_or_else(|| panic!("{case}: neither answered nor sent"));
            assert_eq!((answer.status, answer.fault().1 == "platform"), (400, false), "{case}");
            continue;
        };
        let (head, rest) = sent.split_once("\r\n\r\n").unwrap();
        let lower = head.to_ascii_lowercase();
        assert!(head.starts_with(&format!("POST {CHAT} HTTP/1.1\r\n")), "{case}: {head}");
        assert_eq!(rest, body, "{case}: the body and nothing else");
        assert_eq!(lower.matches("content-length:").count(), 1, "{case}: {head}");
        for absent in
            ["x-hidden", "transfer-encoding", "upgrade", "evil", "http2-settings", "keep-alive", "proxy-", "\r\nte:"]
        {
            assert!(!lower.contains(absent), "{case}: {absent} in {head}");
        }
        assert!(lower.contains("\r\nx-request-id: "), "{case}: {head}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_or_not_at_all() {
    let (backend, gateway) = gateway_with("").await;
    let body = chat(false).to_string();
    let mut wire = Wire::to(&gateway).await;
    wire.send(wire.post(CHAT, "x-request-id: one\r\n", &body).repeat(2)).await;
    assert_eq!(wire.answer().await.header("x-request-id"), "one");
    // The second one comes while the first is being worked on; it must not cost the first its answer.
    let mut wire = Wire::to(&gateway).await;
    wire.send(wire.post(CHAT, "x-request-id: two\r\nx-sim-gate-headers: open\r\n", &body)).await;
    until("the backend works", async || backend.seen().in_flight() == 1).await;
    wire.send(wire.post(CHAT, "x-request-id: three\r\n", &body)).await;
    // Proof that the gateway has read it: everything sent before on other connections is served.
    assert_eq!(gateway.chat(false).send().await.status, 200);
    backend.open_gate("open");
    let answer = wire.next().await.expect("the first of two pipelined requests is answered");
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "two"));
    drop(wire);
    unharmed(&gateway, &backend, "pipelined requests").await;
}

#[tokio::test]
async fn http_1_0_gets_no_chunks_and_no_kept_connection() {
    let (backend, gateway) = gateway_with("").await;
    for stream in [false, true] {
        let mut wire = Wire::to(&gateway).await;
        let bytes = request("POST", CHAT, "", &chat(stream).to_string())
            .replace("HTTP/1.1", "HTTP/1.0")
            .replace("host: gateway\r\n", "");
        wire.send(bytes).await;
        let text = wire.until_closed().await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 ") && !head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
        assert!(if stream { body.ends_with("data: [DONE]\n\n") } else { body.ends_with('}') }, "{body}");
    }
    unharmed(&gateway, &backend, "HTTP/1.0").await;
}

#[tokio::test]
async fn a_client_may_leave_after_any_byte() {
    let (backend, gateway) = gateway_with("").await;
    let sized = request("POST", CHAT, "x-sim-fault: delay=1\r\n", &chat(true).to_string());
    let body = chat(false).to_string();
    let pieces = chunked(CHAT, &format!("{}0\r\n\r\n", chunk(&body)));
    for bytes in [sized, pieces] {
        for end in (0..=bytes.len()).step_by(3) {
            let mut wire = Wire::to(&gateway).await;
            wire.send(&bytes[..end]).await;
            if end % 2 == 0 {
                // A reset instead of an orderly end.
                wire.stream.set_zero_linger().unwrap();
            }
        }
    }
    unharmed(&gateway, &backend, "clients that leave").await;
    assert!(gateway.records().iter().all(|r| r["error"] != "internal_error"), "{:?}", gateway.records().last());
}

#[tokio::test]
async fn a_client_may_leave_at_any_point_of_its_answer() {
    let (backend, gateway) = gateway_with("").await;
    for events in 0..8 {
        let gate = format!("g{events}");
        let mut wire = Wire::to(&gateway).await;
        wire.send(wire.post(CHAT, &format!("x-sim-gate: {gate}\r\n"), &chat(true).to_string())).await;
        (0..events).for_each(|_| backend.open_gate(&gate));
        let so_far = |wire: &Wire| String::from_utf8_lossy(&wire.unread).matches("data: ").count();
        while so_far(&wire) < events {
            assert!(wire.more().await);
        }
        until("the backend works", async || backend.seen().in_flight() > 0).await;
        drop(wire);
        until("the backend's work is dropped", async || backend.seen().in_flight() == 0).await;
    }
    until("all are recorded", async || gateway.records().iter().filter(|r| r["error"] == "client_closed").count() == 8)
        .await;
    unharmed(&gateway, &backend, "clients that leave").await;
}

#[tokio::test]
async fn http2_takes_no_more_than_http1_does() {
    let backend = simulator(Kind::Llm).await;
    let pool = "models: [{id: meta/llama-3.1-8b-instruct}]\nmax_body_mib: 1";
    let setup = Gateway::setup().pool("chat", "nim-llm", pool, &[&backend.url()]).listener("http2_cleartext: true");
    let gateway = setup.top("client: {body_idle_timeout_ms: 300}").start().await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let ask = |method: &str, path: &str| {
        let request = http::Request::builder().method(method).uri(format!("http://gateway{path}"));
        request.header("authorization", format!("Bearer {KEY}")).header("content-type", "application/json")
    };
    type Body = http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>;
    let full = |text: &str| -> Body { Full::new(bytes::Bytes::copy_from_slice(text.as_bytes())).boxed() };
    let body = chat(false).to_string();
    let many = (0..150).fold(ask("POST", CHAT), |request, at| request.header(format!("x-{at}"), "y"));
    let endless: Body = http_body_util::StreamBody::new(futures_util::stream::pending()).boxed();
    for (case, request, status, label) in [
        ("malformed JSON", ask("POST", CHAT).body(full("{")).unwrap(), 400, "malformed_json"),
        ("too large", ask("POST", CHAT).body(full(&" ".repeat(1024 * 1024 + 1))).unwrap(), 413, "body_too_large"),
        ("unknown path", ask("POST", "/v1/nothing").body(full(&body)).unwrap(), 404, "path_not_found"),
        ("wrong method", ask("DELETE", CHAT).body(full("")).unwrap(), 405, "method_not_allowed"),
        ("TRACE", ask("TRACE", CHAT).body(full("")).unwrap(), 405, "method_not_allowed"),
        ("many headers", many.body(full(&body)).unwrap(), 431, "headers_too_large"),
        (
            "two credentials",
            ask("POST", CHAT).header("authorization", "Bearer ngk_a_b").body(full(&body)).unwrap(),
            400,
            "malformed_request",
        ),
        ("a climbing path", ask("GET", "/v1/models/../x").body(full("")).unwrap(), 400, "malformed_request"),
        ("a body that does not come", ask("POST", CHAT).body(endless).unwrap(), 408, "body_timeout"),
        ("good", ask("POST", CHAT).body(full(&body)).unwrap(), 200, ""),
    ] {
        let answer = answer(sender.send_request(request).await.unwrap_or_else(|e| panic!("{case}: {e}"))).await;
        assert_eq!((answer.status, answer.fault().0), (status, label), "{case}");
    }
    assert!(!gateway.output().contains("panicked"), "{}", gateway.output());
    until("nothing is in flight", async || gateway.metric("nimgate_requests_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn secrets_appear_nowhere() {
    let (curator, llm) = (simulator(Kind::Curator).await, simulator(Kind::Llm).await);
    let broken = raw_backend(b"garbage with credential\r\n\r\n").await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), UPSTREAM_KEY).unwrap();
    std::fs::write(directory.path().join("collector.key"), COLLECTOR_KEY).unwrap();
    let collector = Collector::start().await;
    let pool = "kind: ngc\ncredential: {secret: {file: upstream.key}}\nhealth: {enabled: false}";
    let gateway = Gateway::setup()
        .pool("curator", "nemo-curator", pool, &[&curator.url()])
        .pool("broken", "nemo-curator", pool, &[&format!("http://{broken}")])
        .chat(&[&llm.url()])
        .top(&format!(
            "client: {{body_idle_timeout_ms: 300}}\ntelemetry: {{otlp: {{endpoint: 'http://{}', delay_ms: 20, \
             headers: {{x-collector: {{file: collector.key}}}}, metrics_interval_s: 1}}, traces: {{sample: 1}}}}\n\
             log: {{level: trace}}",
            collector.address()
        ))
        .start_in(directory)
        .await;
    let secrets = BTreeMap::from([
        ("the key", KEY),
        ("a key that is none", "ngk_test_stolen9876543210"),
        ("the upstream's credential", UPSTREAM_KEY),
        ("the collector's credential", COLLECTOR_KEY),
        ("s3Config", "c2VjcmV0LXMzLWNvbmZpZw=="),
        ("a prompt", "my-own-prompt-text"),
        ("a signature", "X-Amz-Signature-0123456789"),
        ("a cookie", "session-cookie-value"),
    ]);
    let mut answers = Vec::new();
    let dataset = |name: Value| {
        json!({ "name": name, "description": secrets["a prompt"], "s3InputPrefix": "s3://in/", "s3OutputPrefix": "s3://out/",
                "s3Config": secrets["s3Config"], "jobSpec": { "pipeline": "split", "args": {} } })
    };
    let signed = format!("?sig={}", secrets["a signature"]);
    for pool in ["curator", "broken"] {
        for name in [json!("n"), json!(1)] {
            for fault in ["", "null-id", "status=500", "cut", "status=403"] {
                let ask = gateway.post(&format!("/pools/{pool}/v1/cosmos/datasets{signed}"), &dataset(name.clone()));
                let ask = if fault.is_empty() { ask } else { ask.header("x-sim-fault", fault) };
                answers.push(ask.header("cookie", secrets["a cookie"]).send().await);
            }
        }
    }
    let text = format!(
        "{{\"model\":\"meta/llama-3.1-8b-instruct\",\"messages\":[{{\"role\":\"user\",\"content\":\"{}",
        secrets["a prompt"]
    );
    answers.push(
        gateway.post(&format!("{CHAT}{signed}"), &json!(0)).body(text.clone() + "\"}],\"stream\":1}").send().await,
    );
    answers.push(gateway.post(&format!("{CHAT}{signed}"), &json!(0)).body(text.clone()).send().await);
    answers.push(
        gateway.post(&format!("{CHAT}{signed}"), &json!(0)).key(secrets["a key that is none"]).body(text).send().await,
    );
    answers.push(gateway.get(&format!("/v1/nothing{signed}")).send().await);
    for broken in ["x-a: b\0", "x-a : b", "connection: \"x\""] {
        let mut wire = Wire::to(&gateway).await;
        let body = dataset(json!("n")).to_string();
        wire.send(wire.post(&format!("/pools/curator/v1/cosmos/datasets{signed}"), &format!("{broken}\r\n"), &body))
            .await;
        wire.until_closed().await;
    }
    // What a platform says of a dataset that it created is its own, and passes.
    let failed = answers.iter().filter(|a| a.status >= 400);
    let mut places: Vec<(String, String)> =
        failed.map(|a| (format!("an answer of {}", a.status), format!("{:?} {}", a.headers, a.text()))).collect();
    assert!(answers.iter().filter(|a| a.status >= 400).count() > 10);
    until("all are recorded", async || gateway.records().len() >= answers.len()).await;
    places.push(("the output".into(), gateway.output()));
    places.push(("the access log".into(), std::fs::read_to_string(gateway.path("access.log")).unwrap()));
    for page in
        ["/metrics", "/state", "/readyz", "/live", "/recent", "/recent?kind=failed", "/console", "/usage", "/keys"]
    {
        let answer = gateway.admin(page).await;
        assert_eq!(answer.status, 200, "{page}");
        places.push((page.into(), answer.text()));
    }
    let last = collector.spans().len();
    gateway.get(&format!("/v1/nothing{signed}")).send().await;
    until("the collector has them all", async || {
        let has_metrics = collector.metrics().iter().any(|metric| metric.name == "nimgate.requests");
        has_metrics && collector.spans().len() > last && collector.logs().len() >= answers.len()
    })
    .await;
    assert!(collector.spans().len() > answers.len());
    places.push(("a span".into(), format!("{:?}", collector.spans())));
    places.push(("a log record".into(), format!("{:?}", collector.logs())));
    places.push(("a metric".into(), format!("{:?}", collector.metrics())));
    for (place, text) in places {
        for (name, secret) in &secrets {
            assert!(!text.contains(secret), "{name} in {place}: {text}");
        }
    }
}
