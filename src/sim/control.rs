//! The simulator's own pages below `/_sim/`: put up a fault, open a gate, change speed or metrics, see what was seen.

use axum::body::Body;
use axum::response::Response;
use http::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Faults;
use super::front::Front;
use super::{Signal, body, reply};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    fault: String,
    path: Option<String>,
    times: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Speed {
    factor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    waiting: Option<u64>,
    #[serde(default)]
    frozen: bool,
}

pub(super) async fn answer(front: &Front, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    match (request.method(), path.trim_start_matches("/_sim/")) {
        (&Method::POST, "fault") => fault(front, request).await,
        (&Method::POST, gate) if gate.starts_with("gate/") => {
            let times = request.uri().query().and_then(|query| query.strip_prefix("times=")?.parse().ok());
            let opened = front.gates.open(&gate["gate/".len()..], times.unwrap_or(1));
            reply::json(StatusCode::OK, &json!({"opened": opened}))
        }
        (&Method::POST, "speed") => done(speed(front, request).await),
        (&Method::POST, "signal") => done(signal(front, request).await),
        (&Method::GET, "seen") => reply::json(StatusCode::OK, &seen(front)),
        (&Method::GET, "runs") => reply::json(StatusCode::OK, &json!(front.seen.runs())),
        (&Method::GET, "usage") => usage(front),
        _ => {
            let pages = "POST fault, gate/NAME, speed or signal, GET seen, runs or usage";
            reply::text(StatusCode::NOT_FOUND, pages)
        }
    }
}

async fn fault(front: &Front, request: Request<Body>) -> Response {
    match put_up(front, request).await {
        Ok(fault) => reply::json(StatusCode::OK, &json!({"fault": fault})),
        Err(reason) => reply::text(StatusCode::BAD_REQUEST, &reason),
    }
}

async fn put_up(front: &Front, request: Request<Body>) -> Result<String, String> {
    let payload = body::json(request.into_body()).await?;
    let order = Order::deserialize(payload.value).map_err(|error| error.to_string())?;
    let faults: Faults = order.fault.parse()?;
    front.board.set(faults, order.path, order.times);
    Ok(order.fault)
}

async fn speed(front: &Front, request: Request<Body>) -> Result<(), String> {
    let payload = body::json(request.into_body()).await?;
    let order = Speed::deserialize(payload.value).map_err(|error| error.to_string())?;
    front.set_speed(order.factor)
}

async fn signal(front: &Front, request: Request<Body>) -> Result<(), String> {
    let payload = body::json(request.into_body()).await?;
    let said = Said::deserialize(payload.value).map_err(|error| error.to_string())?;
    front.set_signal(match said {
        Said { frozen: true, .. } => Signal::Frozen,
        Said { waiting: Some(waiting), .. } => Signal::Waiting(waiting),
        Said { .. } => Signal::True,
    })
}

fn done(done: Result<(), String>) -> Response {
    match done {
        Ok(()) => reply::json(StatusCode::OK, &json!({})),
        Err(reason) => reply::text(StatusCode::BAD_REQUEST, &reason),
    }
}

fn usage(front: &Front) -> Response {
    let Some(nim) = &front.nim else { return reply::text(StatusCode::NOT_FOUND, "this backend has no engine") };
    let usage = nim.engine.usage();
    let value = json!({"running": usage.running, "waiting": usage.waiting, "prompt_tokens": usage.prompt_tokens,
        "generated_tokens": usage.generated_tokens, "prefix_queries": usage.prefix_queries,
        "prefix_hits": usage.prefix_hits, "slot_seconds": usage.slot_time.as_secs_f64()});
    reply::json(StatusCode::OK, &value)
}

fn seen(front: &Front) -> Value {
    let seen = &front.seen;
    let last = seen.last().map(|last| {
        let headers =
            last.headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
        json!({"method": last.method.as_str(), "path": last.path, "query": last.query,
               "headers": headers.collect::<Vec<_>>(), "body_length": last.body_length})
    });
    json!({"requests": seen.by_path(), "total": seen.total(), "in_flight": seen.in_flight(),
           "cancelled": seen.cancelled(), "connections": seen.connections(), "last": last})
}
