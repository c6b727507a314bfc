//! The callers: each request leaves at its time, whatever became of those before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::plan::{Plan, Planned};
use crate::scenario::DEADLINE;

/// What a streamed answer ends with.
const END: &[u8] = b"data: [DONE]\n\n";

/// How a request ended, and the times since it was due.
pub struct Outcome {
    /// Which of the plan.
    pub request: usize,
    pub end: End,
    /// The first piece of a good answer's body.
    pub first: Option<Duration>,
    pub total: Duration,
    /// So much later than planned it was sent.
    pub lag: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Answered in time.
    Good,
    /// Given up at the deadline.
    Late,
    /// Answered with a status other than 200.
    Refused(u16),
    /// No answer, or half of one.
    Broken,
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// Sends all requests of a plan, and returns when each has ended.
pub async fn send(plan: &Plan, gateway: SocketAddr, keys: &[String], begun: Instant) -> Result<Vec<Outcome>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Http = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
    let keys: Arc<[String]> = keys.iter().map(|key| format!("Bearer {key}")).collect();
    let mut running = JoinSet::new();
    for (at, planned) in plan.requests.iter().enumerate() {
        let due = begun + planned.at;
        sleep_until(due).await;
        let request = request(planned, gateway, &keys[planned.caller]).context("a request")?;
        let client = client.clone();
        running.spawn(async move { follow(at, due, request, client).await });
    }
    Ok(running.join_all().await)
}

fn request(planned: &Planned, gateway: SocketAddr, key: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::post(format!("http://{gateway}/v1/chat/completions"))
        .header(header::AUTHORIZATION, key)
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-request-timeout", DEADLINE.as_secs())
        .body(Full::new(planned.body.clone()))?)
}

async fn follow(at: usize, due: Instant, request: Request<Full<Bytes>>, client: Http) -> Outcome {
    let lag = due.elapsed();
    let mut first = None;
    let ended = timeout_at(due + DEADLINE, exchange(request, client, due, &mut first)).await;
    let end = match ended {
        Err(_) => End::Late,
        Ok(Err(_)) => End::Broken,
        Ok(Ok(end)) => end,
    };
    Outcome { request: at, end, first, total: due.elapsed(), lag }
}

async fn exchange(
    request: Request<Full<Bytes>>,
    client: Http,
    due: Instant,
    first: &mut Option<Duration>,
) -> Result<End> {
    let response = client.request(request).await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut is_whole = false;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else { continue };
        is_whole = data.ends_with(END);
        if status == 200 {
            first.get_or_insert_with(|| due.elapsed());
        }
    }
    Ok(match status {
        200 if is_whole => End::Good,
        200 => End::Broken,
        _ => End::Refused(status),
    })
}
