//! The backend: answers in the shape of NIM, from memory, as fast as it can.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::bodies;

/// Stands in the first bytes of a request whose answer is to come at the pace of a model.
pub const PACED: &str = "\"user\":\"paced\"";

const CHUNKS: usize = 20;
const PACE: Duration = Duration::from_millis(5);
/// How far into a request `stream` is looked for.
const LOOKED_AT: usize = 160;
const DIMENSIONS: usize = 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Answers {
    chat: Bytes,
    events: Arc<[Bytes]>,
    embeddings: Bytes,
}

/// How long a slow collector takes.
const SLOW: Duration = Duration::from_secs(2);

/// Serves until the process ends.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let answers = Arc::new(Answers { chat: chat_answer(), events: events().into(), embeddings: embeddings_answer() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answers = Arc::clone(&answers);
            let service = service_fn(move |request| answer(Arc::clone(&answers), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(answers: Arc<Answers>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, mut body) = request.into_parts();
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        if let (Ok(data), true) = (frame?.into_data(), first.is_empty()) {
            first = data;
        }
    }
    let start = String::from_utf8_lossy(&first[..first.len().min(LOOKED_AT)]);
    Ok(match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/v1/chat/completions") if start.contains("\"stream\":true") => {
            streamed(&answers.events, start.contains(PACED))
        }
        (&Method::POST, "/v1/chat/completions") => whole(StatusCode::OK, answers.chat.clone()),
        (&Method::POST, "/v1/embeddings") => whole(StatusCode::OK, answers.embeddings.clone()),
        // Played for those targets that send telemetry.
        (&Method::POST, "/v1/traces" | "/v1/metrics") => whole(StatusCode::OK, Bytes::new()),
        (&Method::POST, path) if path.starts_with("/hung/") => std::future::pending().await,
        (&Method::POST, path) if path.starts_with("/slow/") => {
            tokio::time::sleep(SLOW).await;
            whole(StatusCode::OK, Bytes::new())
        }
        (&Method::GET, "/v1/health/ready") => whole(StatusCode::OK, Bytes::from_static(b"{\"object\":\"health\"}")),
        _ => whole(StatusCode::NOT_FOUND, Bytes::from_static(b"{\"detail\":\"Not Found\"}")),
    })
}

fn whole(status: StatusCode, bytes: Bytes) -> Response<Body> {
    with_type(status, "application/json", Full::new(bytes).boxed_unsync())
}

/// One write per event: between two of them the connection's task gives way, whether or not it waits.
fn streamed(events: &Arc<[Bytes]>, paced: bool) -> Response<Body> {
    let events = Arc::clone(events);
    let frames = stream::unfold(0, move |at| {
        let event = events.get(at).cloned();
        async move {
            match at {
                0 => {}
                _ if paced => tokio::time::sleep(PACE).await,
                _ => tokio::task::yield_now().await,
            }
            event.map(|event| (Ok(Frame::data(event)), at + 1))
        }
    });
    with_type(StatusCode::OK, "text/event-stream; charset=utf-8", StreamBody::new(frames).boxed_unsync())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::SERVER, header::HeaderValue::from_static("uvicorn"));
    response
}

/// A chat answer of about one KiB.
pub fn chat_answer() -> Bytes {
    let content = "Tokens leave the batch in turn. ".repeat(21);
    let value = json!({ "id": "chatcmpl-0123456789abcdef0123456789abcdef", "object": "chat.completion",
        "created": 1_763_700_000, "model": bodies::CHAT_MODEL,
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": content, "tool_calls": [] },
            "logprobs": null, "finish_reason": "stop", "stop_reason": null }],
        "usage": { "prompt_tokens": 210, "total_tokens": 357, "completion_tokens": 147 }, "prompt_logprobs": null });
    Bytes::from(value.to_string())
}

/// Twenty chunks of an answer, and the event that ends it.
pub fn events() -> Vec<Bytes> {
    let chunk = |at: usize| {
        let finish = if at + 1 == CHUNKS { json!("stop") } else { Value::Null };
        let value = json!({ "id": "chatcmpl-0123456789abcdef0123456789abcdef", "object": "chat.completion.chunk",
            "created": 1_763_700_000, "model": bodies::CHAT_MODEL,
            "choices": [{ "index": 0, "delta": { "content": " token" }, "logprobs": null, "finish_reason": finish }] });
        Bytes::from(format!("data: {value}\n\n"))
    };
    (0..CHUNKS).map(chunk).chain([Bytes::from_static(b"data: [DONE]\n\n")]).collect()
}

/// The vectors of 32 texts, as text: some 340 KiB.
pub fn embeddings_answer() -> Bytes {
    let vector = |at: usize| {
        let numbers: Vec<String> =
            (0..DIMENSIONS).map(|d| format!("{:.6}", ((at * DIMENSIONS + d) as f64).sin() / 32.0)).collect();
        format!("{{\"object\":\"embedding\",\"index\":{at},\"embedding\":[{}]}}", numbers.join(","))
    };
    let data: Vec<String> = (0..32).map(vector).collect();
    Bytes::from(format!(
        "{{\"object\":\"list\",\"data\":[{}],\"model\":\"{}\",\"usage\":{{\"prompt_tokens\":960,\"total_tokens\":960}}}}",
        data.join(","),
        bodies::EMBEDDING_MODEL
    ))
}
