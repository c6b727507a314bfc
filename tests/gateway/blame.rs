//! Blame: each row of the table of failures, by the bytes that lead to it, as caller, record and metrics see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use nimgate::sim::LLM_FUNCTION;
use nimgate::upstream::{Answer as Told, ROWS, Row};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::failure::{raw_backend, read_request};
use crate::retry::h2_refusing;
use crate::support::*;

const MODEL: &str = "meta/llama-3.1-8b-instruct";
const UUID: &str = "5a0f1c2e-0000-4000-8000-000000000001";
/// Rows whose bytes another test sends, and which.
const ELSEWHERE: [(&str, &str); 1] = [(
    "request-cut",
    "needs a body that the backend does not read: a_generation_that_was_not_wholly_sent_may_go_elsewhere_and_never_runs_twice",
)];

/// What a backend sends, and what is to come of it.
struct Case {
    row: &'static str,
    pool: &'static str,
    /// Status line and headers, but for those that frame the body.
    head: &'static str,
    body: &'static str,
    label: &'static str,
    /// The caller's status, and whether the body is the gateway's.
    status: u16,
    is_ours: bool,
}

const PROBLEM: &str = "content-type: application/problem+json";
const JSON: &str = "content-type: application/json";
const TEXT: &str = "content-type: text/plain; charset=utf-8";

/// The backend's body passes with its status.
fn theirs(row: &'static str, pool: &'static str, head: &'static str, body: &'static str, label: &'static str) -> Case {
    let status = head[..3].parse().unwrap();
    Case { row, pool, head, body, label, status, is_ours: false }
}

/// The gateway answers in its own words.
fn ours(
    row: &'static str,
    pool: &'static str,
    head: &'static str,
    body: &'static str,
    (label, status): (&'static str, u16),
) -> Case {
    Case { row, pool, head, body, label, status, is_ours: true }
}

/// The reference's bytes. A head begins with the status; `P`, `J` and `T` stand for content types.
#[rustfmt::skip]
fn answers() -> Vec<Case> {
    vec![
        theirs("service-busy", "pexec", "503 Service Unavailable P", r#"{"type":"urn:inference-service:problem-details:service-unavailable","title":"Service Unavailable","status":503,"detail":"Inference error"}"#, "inference_overloaded"),
        theirs("service-validation", "pexec", "400 Bad Request P", r#"{"type":"urn:inference-service:problem-details:bad-request","title":"Bad Request","status":400,"detail":"[{\"type\":\"less_than_equal\",\"loc\":[\"body\",\"max_tokens\"],\"msg\":\"Input should be less than or equal to 1024\",\"input\":8192,\"ctx\":{\"le\":1024}}]"}"#, "inference_rejected"),
        ours("service-unauthorized", "pexec", "401 Unauthorized P", r#"{"type":"urn:inference-service:problem-details:unauthorized","title":"Unauthorized","status":401,"detail":"Unauthorized"}"#, ("inference_unauthorized", 502)),
        theirs("service-rejected", "pexec", "400 Bad Request P", r#"{"type":"urn:inference-service:problem-details:bad-request","title":"Bad Request","status":400,"detail":"invalid datatype for input message","instance":"/v2/nvcf/pexec/functions/{functionId}","requestId":"{requestId}"}"#, "inference_rejected"),
        theirs("service-rejected", "native", "404 Not Found P", r#"{"type":"urn:inference-service:problem-details:not-found","title":"Not Found","status":404,"detail":"Inference error"}"#, "inference_rejected"),
        theirs("service-error", "pexec", "500 Internal Server Error P", r#"{"type":"urn:inference-service:problem-details:internal-server-error","title":"Internal Server Error","status":500,"detail":"Inference error"}"#, "inference_error"),
        theirs("connection", "pexec", "500 Internal Server Error P", r#"{"type":"urn:inference-connection:problem-details:internal-server-error","title":"Internal Server Error","status":500,"detail":"Inference connection error while making inference request"}"#, "inference_unreachable"),
        theirs("worker", "native", "500 Internal Server Error P", r#"{"type":"urn:nvcf-worker-service:problem-details:internal-server-error","title":"Internal Server Error","status":500,"detail":"Internal error while making inference request"}"#, "worker_error"),

        ours("degraded", "direct", "400 Bad Request P", r#"{"status":400,"title":"Bad Request","detail":"Function id '5a0f': DEGRADED function cannot be invoked"}"#, ("function_degraded", 503)),
        theirs("degraded", "native", "400 Bad Request P", r#"{"status":400,"title":"Bad Request","detail":"Function id '5a0f': DEGRADED function cannot be invoked"}"#, "function_degraded"),
        ours("poll-seconds", "pexec", "400 Bad Request P", r#"{"status":400,"title":"Bad Request","detail":"failed to parse poll duration"}"#, ("platform_rejected", 400)),
        theirs("vanity-too-large", "nim", "400 Bad Request T", r#"{"error":{"message":"Please make sure your payload is below 26214400 bytes in size. If larger assets are required please refer to our Assets API.","type":"invalid_request_error","param":null,"code":"invalid_image_format"}}"#, "platform_rejected"),
        theirs("vanity-model-missing", "direct", "400 Bad Request T", r#"{"error":{"message":"model field is required","type":"invalid_request_error","param":null,"code":"missing_required_field"}}"#, "platform_rejected"),
        ours("vanity-malformed-json", "direct", "500 Internal Server Error T", "failed to decode json body: EOF", ("platform_rejected", 400)),
        ours("key-missing", "direct", "401 Unauthorized T", "Header of type `authorization` was missing", ("platform_unauthorized", 502)),
        theirs("key-missing", "native", "401 Unauthorized T", "Header of type `authorization` was missing", "platform_unauthorized"),
        ours("key-unauthorized", "direct", "401 Unauthorized T", "Unauthorized access", ("platform_unauthorized", 502)),
        ours("key-scheme", "direct", "500 Internal Server Error T", "Missing request extension: Extension of type `Auth` was not found.", ("platform_unauthorized", 502)),
        ours("key-wrong", "direct", "403 Forbidden P", r#"{"status":403,"title":"Forbidden","detail":"Authorization failed"}"#, ("platform_unauthorized", 502)),
        ours("key-lacks-function", "direct", "403 Forbidden P", r#"{"status":403,"title":"Forbidden","detail":"Function '5a0f':  Missing resource entry in ApiKey for the function"}"#, ("platform_forbidden", 502)),
        ours("function-not-shared", "direct", "403 Forbidden P", r#"{"status":403,"title":"Forbidden","detail":"Function '5a0f':  Not shared with the account 'nca'"}"#, ("platform_forbidden", 502)),
        ours("credits", "direct", "402 Payment Required P", r#"{"status":402,"title":"Payment Required","detail":"Account 'nca': Cloud credits expired - Please contact NVIDIA representatives"}"#, ("credits_expired", 503)),
        ours("function-not-found", "direct", "404 Not Found P", r#"{"status":404,"title":"Not Found","detail":"Function '5a0f': Not found for account 'nca'"}"#, ("function_not_found", 502)),
        ours("function-not-active", "direct", "404 Not Found P", r#"{"status":404,"title":"Not Found","detail":"Function id '5a0f' version '5a10': Specified function in account 'nca' is not found"}"#, ("function_unavailable", 503)),
        ours("vanity-path", "direct", "404 Not Found T", "404 page not found\n", ("function_not_found", 502)),
        ours("asset-not-found", "pexec", "404 Not Found P", r#"{"status":404,"title":"Not Found","detail":"failed to find asset 5a0f"}"#, ("platform_rejected", 404)),
        ours("queue-full", "direct", "429 Too Many Requests P", r#"{"status":429,"title":"Too Many Requests","detail":"Jetstream error: maximum messages exceeded"}"#, ("platform_queue_full", 503)),
        theirs("queue-full", "native", "429 Too Many Requests P", r#"{"status":429,"title":"Too Many Requests","detail":"Jetstream error: maximum messages exceeded"}"#, "platform_queue_full"),
        ours("job-gone", "pexec", "504 Gateway Timeout P", r#"{"status":504,"title":"Gateway Timeout","detail":"worker did not acknowledge the status request."}"#, ("platform_timeout", 504)),
        ours("no-worker", "direct", "504 Gateway Timeout T", "failed to establish link to worker", ("platform_timeout", 504)),
        ours("proxy-rate", "direct", "429 Too Many Requests T", "exceeded rate limit", ("platform_rate_limited", 429)),
        ours("llm-rate", "direct", "429 Too Many Requests J\r\nx-should-retry: false\r\nretry-after: 61", r#"{"message":"rate limit exceeded"}"#, ("platform_rate_limited", 429)),

        ours("retired", "direct", "410 Gone P", r#"{"type":"about:blank","title":"Gone","status":410,"detail":"The model 'm' has reached its end of life on 2026-08-26T09:00:00Z and is no longer available."}"#, ("model_retired", 410)),
        ours("suspended", "nim", "503 Service Unavailable P\r\nretry-after: 10800", r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Back on Monday."}"#, ("model_suspended", 503)),
        ours("vanity-unavailable", "direct", "503 Service Unavailable P", r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"x"}"#, ("platform_error", 503)),
        ours("vanity-transport", "nim", "502 Bad Gateway P", r#"{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"Upstream request failed."}"#, ("platform_error", 502)),
        theirs("shared-pool-full", "direct", "503 Service Unavailable J", r#"{"error":{"message":"ResourceExhausted: Worker local total request limit reached (16/16)","type":"Service Unavailable","code":503}}"#, "inference_overloaded"),

        theirs("boot-bad-request", "native", "400 Bad Request P", r#"{"type":"urn:nv-boot:problem-details:bad-request","title":"Bad Request","status":400,"detail":"x","instance":"/v2/nvcf/functions"}"#, "platform_rejected"),
        ours("boot-unauthorized", "ngc", "401 Unauthorized P", r#"{"type":"urn:nv-boot:problem-details:unauthorized","title":"Unauthorized","status":401,"detail":"x"}"#, ("platform_unauthorized", 502)),
        theirs("boot-payment-required", "native", "402 Payment Required P", r#"{"type":"urn:nv-boot:problem-details:payment-required","title":"Payment Required","status":402}"#, "credits_expired"),
        ours("boot-forbidden", "direct", "403 Forbidden P", r#"{"type":"urn:nv-boot:problem-details:forbidden","title":"Forbidden","status":403,"detail":"x"}"#, ("platform_forbidden", 502)),
        theirs("boot-not-found", "ngc", "404 Not Found P", r#"{"type":"urn:nv-boot:problem-details:not-found","title":"Not Found","status":404,"detail":"x"}"#, "platform_rejected"),
        theirs("boot-conflict", "native", "409 Conflict P", r#"{"type":"urn:nv-boot:problem-details:conflict","title":"Conflict","status":409,"detail":"x"}"#, "platform_rejected"),
        theirs("boot-unprocessable", "ngc", "422 Unprocessable Entity P", r#"{"type":"urn:nv-boot:problem-details:unprocessable-entity","title":"Unprocessable Entity","status":422,"detail":"x"}"#, "platform_rejected"),
        theirs("boot-too-many-requests", "ngc", "429 Too Many Requests P", r#"{"type":"urn:nv-boot:problem-details:too-many-requests","title":"Too Many Requests","status":429}"#, "platform_rate_limited"),
        theirs("boot-unavailable", "ngc", "503 Service Unavailable P", r#"{"type":"urn:nv-boot:problem-details:upstream","title":"Service Unavailable","status":503}"#, "platform_error"),
        theirs("boot-late", "ngc", "504 Gateway Timeout P", r#"{"type":"urn:nv-boot:problem-details:upstream","title":"Gateway Timeout","status":504}"#, "platform_timeout"),
        theirs("boot-upstream", "native", "502 Bad Gateway P", r#"{"type":"urn:nv-boot:problem-details:upstream","title":"Bad Gateway","status":502,"detail":"x"}"#, "platform_error"),
        theirs("kaizen-forbidden", "native", "403 Forbidden P", r#"{"type":"urn:kaizen:problem-details:forbidden","title":"Forbidden","status":403,"detail":"x"}"#, "platform_forbidden"),
        theirs("kaizen-not-found", "ngc", "404 Not Found P", r#"{"type":"urn:kaizen:problem-details:artifact-not-found","title":"Not Found","status":404,"detail":"x"}"#, "platform_rejected"),

        theirs("grpc-no-worker", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 4\r\ngrpc-message: failed to establish link to worker", "", "platform_timeout"),
        theirs("grpc-session-gone", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ngrpc-message: no existing session found", "", "session_lost"),
        theirs("grpc-rate", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 8\r\ngrpc-message: exceeded rate limit", "", "platform_rate_limited"),
        theirs("grpc-unauthenticated", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 16\r\ngrpc-message: unauthenticated", "", "platform_unauthorized"),
        theirs("grpc-no-function", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 3\r\ngrpc-message: function-id is missing", "", "platform_rejected"),
        theirs("grpc-unavailable", "native", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ngrpc-message: unavailable", "", "platform_error"),
        theirs("grpc-busy", "nim", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ngrpc-message: Exceeds maximum queue size", "", "inference_overloaded"),
        theirs("grpc-rejected", "native", "200 OK\r\ncontent-type: application/grpc\r\nnvcf-reqid: 1\r\ngrpc-status: 3\r\ngrpc-message: unexpected shape", "", "inference_rejected"),
        theirs("grpc-error", "nim", "200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 13\r\ngrpc-message: internal", "", "inference_error"),

        ours("redirect", "nim", "302 Found\r\nlocation: https://10.0.0.1/login", "", ("upstream_redirect", 502)),
        ours("hosted-credits", "direct", "402 Payment Required J", r#"{"detail":"Payment required"}"#, ("credits_expired", 503)),
        theirs("model-unknown", "nim", "404 Not Found J", r#"{"object":"error","message":"The model x does not exist.","type":"NotFoundError","param":null,"code":404}"#, "inference_model_unknown"),
        theirs("model-unknown", "direct", "404 Not Found J", r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}"#, "inference_model_unknown"),
        theirs("triton-model-unknown", "nim", "400 Bad Request J", r#"{"error":"Request for unknown model: 'x' is not found"}"#, "inference_model_unknown"),
        ours("container-unauthorized", "nim", "401 Unauthorized J", r#"{"error":"Unauthorized"}"#, ("inference_unauthorized", 502)),
        theirs("llm-d-dropped", "nim", "429 Too Many Requests T\r\nx-llm-d-request-dropped-reason: saturated", "too many requests", "inference_overloaded"),
        theirs("sglang-full", "nim", "503 Service Unavailable J", r#"{"object":"error","message":"The request queue is full.","type":"Service Unavailable","param":null,"code":503}"#, "inference_overloaded"),
        theirs("dynamo-overload", "nim", "529 Overloaded J", r#"{"error":{"message":"Service temporarily unavailable","type":"Overloaded","code":529}}"#, "inference_overloaded"),
        theirs("triton-unavailable", "nim", "503 Service Unavailable J", r#"{"error":"Exceeds maximum queue size"}"#, "inference_overloaded"),
        theirs("container-busy", "direct", "503 Service Unavailable J", r#"{"object":"error","message":"Service is not ready.","type":"ServiceUnavailableError","param":null,"code":503}"#, "inference_overloaded"),
        theirs("triton-invalid", "nim", "400 Bad Request J", r#"{"error":"unexpected shape for input 'a'"}"#, "inference_rejected"),
        theirs("triton-not-found", "nim", "404 Not Found J", r#"{"error":"Not Found"}"#, "inference_rejected"),
        theirs("triton-unsupported", "nim", "501 Not Implemented J", r#"{"error":"unsupported"}"#, "inference_rejected"),
        theirs("triton-internal", "nim", "500 Internal Server Error J", r#"{"error":"failed to run model"}"#, "inference_error"),
        theirs("vllm-validation", "nim", "400 Bad Request J", r#"{"error":{"message":"max_tokens is too large","type":"Bad Request","param":null,"code":400}}"#, "inference_rejected"),
        theirs("nim1-validation", "nim", "400 Bad Request J", r#"{"object":"error","message":"input too long","detail":{},"type":"invalid_request_error"}"#, "inference_rejected"),
        theirs("fastapi-validation", "nim", "422 Unprocessable Entity J", r#"{"detail":[{"type":"extra_forbidden","loc":["body","prompt_upsampling"],"msg":"Extra inputs are not permitted"}]}"#, "inference_rejected"),
        theirs("guardrail", "nim", "422 Unprocessable Entity J", r#"{"error":{"message":"blocked by the guardrail","type":"guardrail","param":null,"code":422}}"#, "inference_rejected"),
        theirs("fastapi-exception", "nim", "404 Not Found J", r#"{"detail":"Not Found"}"#, "inference_rejected"),
        theirs("container-rejected", "direct", "413 Payload Too Large J", r#"{"error":{"message":"too large","type":"x","code":413}}"#, "inference_rejected"),
        theirs("container-error", "nim", "500 Internal Server Error J", r#"{"object":"error","message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}"#, "inference_error"),

        ours("ingress-unavailable", "nim", "503 Service Temporarily Unavailable\r\ncontent-type: text/html", "<html><center><h1>503</h1></center></html>", ("upstream_proxy_error", 503)),
        ours("ingress-error", "nim", "502 Bad Gateway", "", ("upstream_proxy_error", 502)),
        ours("nim-unauthorized", "nim", "401 Unauthorized T", "Unauthorized", ("inference_unauthorized", 502)),
        theirs("nim-busy", "nim", "429 Too Many Requests T", "slow down", "inference_overloaded"),
        ours("nim-rejected", "nim", "404 Not Found", "", ("inference_rejected", 404)),
        theirs("nim-unsupported", "nim", "501 Not Implemented T", "not here", "inference_rejected"),
        theirs("nim-error", "nim", "500 Internal Server Error T", "Internal Server Error", "inference_error"),

        ours("queue-unclaimed", "direct", "504 Gateway Timeout\r\nnvcf-reqid: 1\r\nnvcf-status: errored", "", ("platform_timeout", 504)),
        theirs("queue-unclaimed", "native", "504 Gateway Timeout\r\nnvcf-reqid: 1\r\nnvcf-status: errored", "", "platform_timeout"),
        ours("dispatched-not-found", "direct", "404 Not Found\r\nnvcf-status: errored", "", ("inference_rejected", 404)),
        theirs("gone-job", "native", "404 Not Found P", r#"{"status":404,"title":"Not Found"}"#, "platform_rejected"),
        ours("bare-rate", "direct", "429 Too Many Requests P", r#"{"status":429,"title":"Too Many Requests"}"#, ("platform_rate_limited", 429)),
        theirs("bare-rate", "native", "429 Too Many Requests P", r#"{"status":429,"title":"Too Many Requests"}"#, "platform_rate_limited"),
        ours("auth-unavailable", "direct", "503 Service Unavailable P", r#"{"status":503,"title":"Service Unavailable"}"#, ("platform_error", 503)),
        ours("auth-late", "direct", "504 Gateway Timeout P", r#"{"status":504,"title":"Gateway Timeout"}"#, ("platform_timeout", 504)),
        ours("auth-exists", "direct", "409 Conflict P", r#"{"status":409,"title":"Conflict"}"#, ("platform_rejected", 409)),
        ours("auth-precondition", "direct", "412 Precondition Failed P", r#"{"status":412,"title":"Precondition Failed"}"#, ("platform_rejected", 412)),
        ours("auth-unimplemented", "direct", "501 Not Implemented P", r#"{"status":501,"title":"Not Implemented"}"#, ("platform_error", 501)),
        ours("request-timeout", "direct", "408 Request Timeout", "", ("platform_timeout", 504)),
        theirs("dispatched-busy", "direct", "503 Service Unavailable T\r\nnvcf-reqid: 1", "busy", "inference_overloaded"),
        theirs("dispatched-rejected", "direct", "400 Bad Request T\r\nnvcf-reqid: 1", "no", "inference_rejected"),
        theirs("dispatched-error", "direct", "500 Internal Server Error T\r\nnvcf-reqid: 1", "oops", "inference_error"),

        ours("platform-unauthorized", "direct", "403 Forbidden P", r#"{"status":403,"title":"Forbidden"}"#, ("platform_unauthorized", 502)),
        ours("platform-credits", "direct", "402 Payment Required P", r#"{"status":402,"title":"Payment Required"}"#, ("credits_expired", 503)),
        ours("platform-function", "direct", "404 Not Found P", r#"{"status":404,"title":"Not Found","detail":"Function '5a0f' is gone"}"#, ("function_not_found", 502)),
        ours("platform-lost", "direct", "404 Not Found T", "nothing here", ("function_not_found", 502)),
        ours("platform-retired", "direct", "410 Gone T", "gone", ("model_retired", 410)),
        ours("platform-rate", "direct", "429 Too Many Requests", "", ("platform_rate_limited", 429)),
        ours("platform-unavailable", "direct", "503 Service Unavailable T", "later", ("platform_error", 503)),
        ours("platform-timeout", "direct", "504 Gateway Timeout T", "late", ("platform_timeout", 504)),
        ours("platform-rejected", "direct", "418 I'm a teapot T", "no", ("platform_rejected", 418)),
        ours("platform-error", "direct", "500 Internal Server Error\r\ncontent-type: text/html", "<html>", ("platform_error", 500)),
    ]
}

/// Rows of what is no answer: the pool that meets it, its label and the caller's status.
const EVENTS: [(&str, &str, &str, u16); 18] = [
    ("unresolved", "unresolved", "upstream_unresolved", 503),
    ("connect-refused", "refused", "connect_refused", 502),
    ("connect-timeout", "blackhole", "connect_timeout", 504),
    ("connect-failed", "unroutable", "connect_failed", 502),
    ("tls-failed", "plain", "tls_failed", 502),
    ("stream-refused", "refusing", "upstream_closed", 502),
    ("closed-before-header", "closing", "upstream_closed", 502),
    ("closed-within", "cutting", "upstream_closed", 502),
    ("reset-before-header", "resetting", "upstream_reset", 502),
    ("reset-within", "tearing", "upstream_reset", 502),
    ("protocol", "garbage", "upstream_protocol", 502),
    ("first-byte-timeout", "silent", "first_byte_timeout", 504),
    ("stalled", "stalling", "upstream_stalled", 504),
    ("total-timeout", "endless", "total_timeout", 504),
    ("stream-unfinished", "unfinished", "stream_unfinished", 200),
    ("platform-stream-unfinished", "far-unfinished", "stream_unfinished", 200),
    ("answer-incomplete", "curated", "answer_incomplete", 502),
    ("platform-answer-incomplete", "ngc-incomplete", "answer_incomplete", 502),
];

fn row(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row {name}"))
}

/// A case as it stands on the wire.
fn wire(case: &Case) -> Vec<u8> {
    let (first, rest) = case.head.split_once("\r\n").unwrap_or((case.head, ""));
    let (line, kind) = match first.rsplit_once(' ') {
        Some((line, "P")) => (line, PROBLEM),
        Some((line, "J")) => (line, JSON),
        Some((line, "T")) => (line, TEXT),
        _ => (first, ""),
    };
    let headers: Vec<&str> = [kind, rest].into_iter().filter(|header| !header.is_empty()).collect();
    let headers = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
    let length = case.body.len();
    format!("HTTP/1.1 {line}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{}", case.body)
        .into_bytes()
}

/// Answers the request that says `x-case: N` with the Nth of these, byte by byte.
async fn wire_backend(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers = std::sync::Arc::new(answers);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = std::sync::Arc::clone(&answers);
            tokio::spawn(async move {
                let request = String::from_utf8_lossy(&read_request(&mut stream).await).to_ascii_lowercase();
                let case = request.lines().find_map(|line| line.strip_prefix("x-case: ")?.parse::<usize>().ok());
                if let Some(answer) = case.and_then(|case| answers.get(case)) {
                    let _ = stream.write_all(answer).await;
                }
                end(stream).await;
            });
        }
    });
    address
}

async fn end(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
}

/// Writes this after a request, and tears the connection down.
async fn resetting(first: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_request(&mut stream).await;
                if !first.is_empty() {
                    let _ = stream.write_all(first).await;
                    // A reset destroys what was not read yet.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let _ = stream.set_zero_linger();
            });
        }
    });
    address
}

/// Writes this after a request, and nothing any more.
async fn silent(first: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(first).await;
                while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

/// A listener whose queue is full, so that nothing answers to a connection.
async fn blackhole() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        held.push(stream);
    }
    (address, held, listener)
}

const CREDENTIAL: &str = "credential: {secret: {file: upstream.key}}";
const PLAIN: &str = "health: {enabled: false}\nmetrics: {enabled: false}\nbreaker: {failures: 10}";

fn model(name: &str, more: &str) -> String {
    format!("models: [{{id: {name}, backend_model: {MODEL}}}]\n{PLAIN}\n{more}")
}

fn function(name: &str, invocation: &str) -> String {
    let function = format!("function: {{id: {LLM_FUNCTION}, invocation: {invocation}, wait: {{degraded_ms: 0}}}}");
    // A refusal in one case is to slow down no other.
    model(name, &format!("kind: nvcf\n{function}\npace: {{learn: false}}\n{CREDENTIAL}"))
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// The pools that all cases are asked of.
fn pools(backend: &str) -> Setup {
    Gateway::setup()
        .pool("nim", "nim-llm", &model("nim", ""), &[backend])
        .pool("direct", "nim-llm", &function("direct", "direct"), &[backend])
        .pool("pexec", "nim-llm", &function("pexec", "pexec"), &[backend])
        .pool("native", "nvcf", &format!("kind: nvcf\n{CREDENTIAL}\n{PLAIN}"), &[backend])
        .pool("ngc", "nemo-curator", &format!("kind: ngc\ndefault: true\n{CREDENTIAL}\n{PLAIN}"), &[backend])
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("upstream.key"), "nvapi-upstream-secret").unwrap();
    directory
}

fn ask<'a>(gateway: &'a Gateway, pool: &str, stream: bool) -> Ask<'a> {
    match pool {
        "native" => gateway.post(&format!("/pools/native/v2/nvcf/pexec/functions/{UUID}"), &json!({ "a": 1 })),
        "ngc" | "ngc-incomplete" | "curated" => {
            let body = json!({ "name": "n", "description": "d", "jobSpec": { "pipeline": "split", "args": {} } });
            gateway.post(&format!("/pools/{pool}/v1/cosmos/datasets"), &body)
        }
        _ => {
            let mut body = chat(stream);
            body["model"] = pool.into();
            gateway.post(&format!("/pools/{pool}/v1/chat/completions"), &body)
        }
    }
}

/// The words are ours, in the dialect of the API.
fn check_words(name: &str, pool: &str, label: &str, answer: &Answer) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{name}: {e}: {}", answer.text()));
    if pool == "ngc" || pool == "ngc-incomplete" || pool == "curated" {
        let kind = format!("urn:nimgate:problem-details:{}", label.replace('_', "-"));
        assert_eq!(
            (answer.header("content-type"), &body["type"]),
            ("application/problem+json", &json!(kind)),
            "{name}"
        );
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 20), "{name}: {body}");
    } else {
        assert_eq!(
            (answer.header("content-type"), &body["error"]["code"]),
            ("application/json", &json!(label)),
            "{name}"
        );
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(message.len() > 20 && (message.contains(". ") || message.ends_with('.')), "{name}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_told_alike_to_the_caller_in_the_record_and_in_the_metrics() {
    let cases = answers();
    let backend = url(wire_backend(cases.iter().map(wire).collect()).await);
    let (blackhole, _held, _listener) = blackhole().await;
    let (refusing, _) = h2_refusing(false).await;
    let plain = simulator(Kind::Llm).await;
    let event = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    let unfinished = url(raw_backend(event).await);
    let incomplete = url(raw_backend(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{\"id\":null}").await);
    let half = b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\nhalf";
    let dns = format!(
        "discovery: {{dns: {{name: nobody.test., port: 1}}, name_servers: ['{}'], timeout_ms: 300}}",
        free_address()
    );
    let gateway = pools(&backend)
        .pool("unresolved", "nim-llm", &model("unresolved", &dns), &[])
        .pool("refused", "nim-llm", &model("refused", ""), &[&url(free_address())])
        .pool("blackhole", "nim-llm", &model("blackhole", "timeouts: {connect_ms: 100}"), &[&url(blackhole)])
        .pool("unroutable", "nim-llm", &model("unroutable", ""), &["http://255.255.255.255:9"])
        .pool("plain", "nim-llm", &model("plain", ""), &[&plain.url().replace("http:", "https:")])
        .pool("refusing", "nim-llm", &model("refusing", "connection: {http2: true}"), &[&url(refusing)])
        .pool("closing", "nim-llm", &model("closing", ""), &[&url(raw_backend(b"").await)])
        .pool("cutting", "nim-llm", &model("cutting", ""), &[&url(raw_backend(half).await)])
        .pool("resetting", "nim-llm", &model("resetting", ""), &[&url(resetting(b"").await)])
        .pool("tearing", "nim-llm", &model("tearing", ""), &[&url(resetting(half).await)])
        .pool("garbage", "nim-llm", &model("garbage", ""), &[&url(raw_backend(b"SSH-2.0-x\r\n\r\n").await)])
        .pool("silent", "nim-llm", &model("silent", "timeouts: {first_byte_ms: 100}"), &[&url(silent(b"").await)])
        .pool(
            "stalling",
            "nim-llm",
            &model("stalling", "timeouts: {between_chunks_ms: 100}"),
            &[&url(silent(half).await)],
        )
        .pool("endless", "nim-llm", &model("endless", "timeouts: {total_ms: 100}"), &[&url(silent(b"").await)])
        .pool("unfinished", "nim-llm", &model("unfinished", ""), &[&unfinished])
        .pool("far-unfinished", "nim-llm", &function("far-unfinished", "direct"), &[&unfinished])
        .pool("curated", "nemo-curator", PLAIN, &[&incomplete])
        .pool("ngc-incomplete", "nemo-curator", &format!("kind: ngc\n{CREDENTIAL}\n{PLAIN}"), &[&incomplete])
        .start_in(directory())
        .await;
    let mut counted = BTreeMap::<(String, String), f64>::new();
    let mut wanted = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let (row, id, name) = (row(case.row), format!("case-{at}"), format!("{} on {}", case.row, case.pool));
        let asked = ask(&gateway, case.pool, false).header("x-case", &at.to_string()).header("x-request-id", &id);
        let answer = asked.send().await;
        assert_eq!(answer.fault(), (case.label, row.blame.word()), "{name}: {}", answer.text());
        assert_eq!((row.fault.label(), answer.status), (case.label, case.status), "{name}: {}", answer.text());
        if case.is_ours {
            check_words(&name, case.pool, case.label, &answer);
            assert_eq!(answer.header("location"), "", "{name}");
        } else {
            assert_eq!(answer.text(), case.body, "{name}");
        }
        if let (Told::Own(status), true) = (row.answer, case.is_ours) {
            assert_eq!(answer.status, status, "{name}");
        }
        let stated = case.head.split("retry-after: ").nth(1).map(str::to_owned);
        let after = stated.or_else(|| row.retry_after.map(|seconds| seconds.to_string())).unwrap_or_default();
        assert_eq!(answer.header("retry-after"), after, "{name}");
        wanted.push((id, name, case.status, case.label, row.blame.word()));
    }
    for (name, pool, label, status) in EVENTS {
        let (row, id) = (row(name), format!("event-{name}"));
        let answer = ask(&gateway, pool, status == 200).header("x-request-id", &id).send().await;
        assert_eq!((row.fault.label(), answer.status), (label, status), "{name}: {}", answer.text());
        if status == 200 {
            assert_eq!(events(&answer.text()).pop().unwrap()["error"]["code"], label, "{name}");
        } else {
            assert_eq!(answer.fault(), (label, row.blame.word()), "{name}: {}", answer.text());
            check_words(name, pool, label, &answer);
        }
        wanted.push((id, name.to_owned(), status, label, row.blame.word()));
    }
    for (id, name, status, label, blame) in wanted {
        let record = gateway.record_of(&id).await;
        let told = (&record["error"], &record["blame"], &record["status"]);
        assert_eq!(told, (&json!(label), &json!(blame), &json!(status)), "{name}: {record}");
        *counted.entry((label.to_owned(), blame.to_owned())).or_default() += 1.0;
    }
    let page = gateway.admin("/metrics").await.text();
    for ((label, blame), count) in counted {
        let (label, blame) = (format!("error=\"{label}\""), format!("blame=\"{blame}\""));
        let lines = page.lines().filter(|line| line.starts_with("nimgate_requests_total{") && line.contains(&label));
        let lines = lines.filter(|line| line.contains(&blame));
        let sum: f64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert_eq!(sum, count, "{label} {blame}");
    }
    gateway.until_idle().await;
}

#[test]
fn every_row_has_a_case() {
    let cases = answers();
    let named = cases.iter().map(|case| case.row).chain(EVENTS.map(|event| event.0)).chain(ELSEWHERE.map(|e| e.0));
    let named: BTreeSet<&str> = named.collect();
    let rows: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(rows.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new(), "rows without a case");
    assert_eq!(named.difference(&rows).collect::<Vec<_>>(), Vec::<&&str>::new(), "cases without a row");
    assert!(rows.len() >= 60);
}

#[tokio::test]
async fn what_the_platform_said_of_a_model_is_told_and_of_an_account_is_not() {
    let cases: Vec<Case> =
        answers().into_iter().filter(|case| ["retired", "function-not-found"].contains(&case.row)).collect();
    let backend = url(wire_backend(cases.iter().map(wire).collect()).await);
    let gateway = pools(&backend).start_in(directory()).await;
    for (at, case) in cases.iter().enumerate() {
        let text = ask(&gateway, "direct", false).header("x-case", &at.to_string()).send().await.text();
        assert_eq!(text.contains("2026-08-26T09:00:00Z"), case.row == "retired", "{text}");
        assert!(!text.contains("'nca'"), "{text}");
    }
}

/// Writes the pieces of a stream with pauses between them.
async fn streaming(pieces: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_request(&mut stream).await;
                for piece in pieces {
                    let _ = stream.write_all(piece.as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(120)).await;
                }
                end(stream).await;
            });
        }
    });
    url(address)
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const FULL: &str = "{\"error\":{\"message\":\"ResourceExhausted: Worker local total request limit reached (16/16)\",\"type\":\"Service Unavailable\",\"code\":503}}";
const FULL_EVENT: &str = "data: {\"error\":{\"message\":\"ResourceExhausted: Worker local total request limit reached (16/16)\",\"type\":\"Service Unavailable\",\"code\":503}}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
const URN: &str = "{\"type\":\"urn:inference-service:problem-details:bad-request\",\"title\":\"Bad Request\",\"status\":400,\"detail\":\"too long\"}";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn an_error_in_the_first_event_becomes_a_status() {
    let full = streaming(&[HEAD, FULL_EVENT, DONE]).await;
    let split = streaming(&[HEAD, "data: {\"error\":{\"message\":\"m\",", "\"code\":429}}\n", "\n", DONE]).await;
    let urn = streaming(&[HEAD, "data:{\"type\":\"urn:inference-service:problem-details:bad-request\",\"title\":\"Bad Request\",\"status\":400,\"detail\":\"too long\"}\n\n"]).await;
    let gateway = Gateway::setup()
        .pool("full", "nim-llm", &model("full", ""), &[&full])
        .pool("split", "nim-llm", &model("split", "timeouts: {first_event_ms: 5000}"), &[&split])
        .pool("urn", "nim-llm", &function("urn", "direct"), &[&urn])
        .start_in(directory())
        .await;
    for (pool, status, label, body, kind) in [
        ("full", 503, "inference_overloaded", FULL, "application/json"),
        ("split", 429, "inference_overloaded", "{\"error\":{\"message\":\"m\",\"code\":429}}", "application/json"),
        ("urn", 400, "inference_rejected", URN, "application/problem+json"),
    ] {
        let answer = ask(&gateway, pool, true).header("x-request-id", pool).send().await;
        assert_eq!((answer.status, answer.fault()), (status, (label, "inference-service")), "{}", answer.text());
        assert_eq!((answer.text().as_str(), answer.header("content-type")), (body, kind));
        let record = gateway.record_of(pool).await;
        assert_eq!((&record["status"], &record["error"]), (&json!(status), &json!(label)), "{record}");
        assert!(record["input_tokens"].is_null(), "a failure costs nothing: {record}");
    }
    let retry_after = ask(&gateway, "full", true).send().await.header("retry-after").to_owned();
    assert_eq!(retry_after, "5");
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_error_in_a_later_event_passes_and_is_labelled() {
    let later = streaming(&[HEAD, TOKEN, FULL_EVENT, DONE]).await;
    let late = streaming(&[HEAD, "", "", FULL_EVENT]).await;
    let comment = streaming(&[HEAD, ": ping\n\n", FULL_EVENT]).await;
    let native = streaming(&[HEAD, FULL_EVENT]).await;
    let gateway = Gateway::setup()
        .pool("later", "nim-llm", &model("later", ""), &[&later])
        .pool("late", "nim-llm", &model("late", "timeouts: {first_event_ms: 50}"), &[&late])
        .pool("comment", "nim-llm", &model("comment", ""), &[&comment])
        .pool("native", "nvcf", &format!("kind: nvcf\n{CREDENTIAL}\n{PLAIN}"), &[&native])
        .start_in(directory())
        .await;
    for (pool, text) in [
        ("later", format!("{TOKEN}{FULL_EVENT}{DONE}")),
        ("late", FULL_EVENT.to_owned()),
        ("comment", format!(": ping\n\n{FULL_EVENT}")),
        ("native", FULL_EVENT.to_owned()),
    ] {
        let answer = ask(&gateway, pool, true).header("x-request-id", pool).send().await;
        assert_eq!((answer.status, answer.text()), (200, text), "{pool}");
        let record = gateway.record_of(pool).await;
        let told = (&record["status"], &record["error"], &record["blame"]);
        assert_eq!(told, (&json!(200), &json!("inference_overloaded"), &json!("inference-service")), "{pool} {record}");
    }
    assert_eq!(gateway.metric("nimgate_requests_total").await, 4.0);
    gateway.until_idle().await;
}

#[tokio::test]
async fn a_stream_without_its_last_event_says_so() {
    let ended = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{}}\n\n";
    let sized = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 57\r\nconnection: close\r\n\r\n";
    assert_eq!(TOKEN.len(), 57);
    let backends = [
        ("cut", streaming(&[HEAD, TOKEN]).await),
        ("whole", streaming(&[HEAD, TOKEN, DONE]).await),
        ("responded", streaming(&[HEAD, "data: {\"type\":\"response.created\"}\n\n"]).await),
        ("completed", streaming(Box::leak(Box::new([HEAD, ended]))).await),
        ("sized", streaming(Box::leak(Box::new([sized, TOKEN]))).await),
        ("empty", streaming(&[HEAD]).await),
    ];
    let mut setup = Gateway::setup();
    for (name, backend) in &backends {
        setup = setup.pool(name, "nim-llm", &model(name, ""), &[backend]);
    }
    let gateway = setup.start().await;
    for (pool, is_unfinished) in
        [("cut", true), ("whole", false), ("responded", true), ("completed", false), ("sized", true)]
    {
        let asked = match pool {
            "responded" | "completed" => {
                let body = json!({ "model": pool, "input": "x", "stream": true });
                gateway.post(&format!("/pools/{pool}/v1/responses"), &body)
            }
            _ => ask(&gateway, pool, true),
        };
        let answer = asked.header("x-request-id", pool).send().await;
        assert_eq!(
            (answer.status, answer.text().contains("\"stream_unfinished\"")),
            (200, is_unfinished),
            "{pool}: {}",
            answer.text()
        );
        assert!(answer.text().ends_with("\n\n"), "{pool}");
        let label = if is_unfinished { json!("stream_unfinished") } else { Value::Null };
        assert_eq!(gateway.record_of(pool).await["error"], label, "{pool}");
    }
    let answer = ask(&gateway, "empty", true).send().await;
    assert_eq!((answer.status, answer.fault()), (502, ("stream_unfinished", "inference-service")), "{}", answer.text());
    gateway.until_idle().await;
}

#[tokio::test]
async fn an_error_event_of_many_megabytes_is_bounded() {
    let huge = format!("data: {{\"error\":{{\"code\":503,\"message\":\"{}\"}}}}\n\n", "x".repeat(40_000_000));
    let huge: &'static str = Box::leak(huge.into_boxed_str());
    let first = streaming(Box::leak(Box::new([HEAD, huge, DONE]))).await;
    let later = streaming(Box::leak(Box::new([HEAD, TOKEN, huge, DONE]))).await;
    let gateway = Gateway::setup()
        .pool("first", "nim-llm", &model("first", ""), &[&first])
        .pool("later", "nim-llm", &model("later", ""), &[&later])
        .start()
        .await;
    gateway.reset_peak();
    let (before, _) = gateway.memory();
    let answer = ask(&gateway, "first", true).header("x-request-id", "first").send().await;
    assert_eq!((answer.status, answer.fault().0), (503, "inference_overloaded"));
    assert!(answer.body.len() < 1000, "{}", answer.body.len());
    check_words("first", "first", "inference_overloaded", &answer);
    let answer = ask(&gateway, "later", true).header("x-request-id", "later").send().await;
    assert_eq!((answer.status, answer.body.len()), (200, TOKEN.len() + huge.len() + DONE.len()));
    assert_eq!(gateway.record_of("later").await["error"], "inference_overloaded");
    assert_eq!(gateway.record_of("first").await["status"], 503);
    let (_, peak) = gateway.memory();
    assert!(peak < before + 32 * 1024, "{before} KiB grew to {peak} KiB");
    gateway.until_idle().await;
}
