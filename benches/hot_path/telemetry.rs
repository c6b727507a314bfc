//! Telemetry: what counting a request costs, and writing the page, with as many names as its bounds allow.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use divan::{Bencher, black_box};
use nimgate::telemetry::page::Format;
use nimgate::telemetry::{Bounds, Ended, Telemetry};

/// What is to be said when all benches are through.
static REMARKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How large the pages were.
pub fn finish() -> Vec<String> {
    std::mem::take(&mut *REMARKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Callers, models and endpoints that were seen.
const SIZES: [usize; 2] = [10, 10_000];

/// One that has counted requests of so many callers, models and endpoints, with the bounds that are the default.
fn filled(names: usize) -> Telemetry {
    let bounds = Bounds { counts: true, callers: 500, models: 50, endpoints: 1000 };
    let telemetry = Telemetry::new(bounds, Arc::new(AtomicU64::new(0)));
    for at in 0..names {
        let (key, model, endpoint) = (format!("key-{at}"), format!("vendor/model-{at}"), format!("10.0.0.1:{at}"));
        let result = (if at % 2 == 0 { 200 } else { 503 }, ["", "no_healthy_endpoint"][at % 2]);
        count(&telemetry, &key, &model, result);
        telemetry.connect_failed("chat", &endpoint);
    }
    telemetry
}

fn count(telemetry: &Telemetry, key: &str, model: &str, (status, error): (u16, &str)) {
    telemetry.begin();
    telemetry.end(&Ended {
        api: "nim-llm",
        operation: "create_chat_completion",
        gen_ai: Some("chat"),
        pool: "chat",
        caller: Some(["organisation", "team", key]),
        status,
        error,
        blame: if error.is_empty() { "" } else { "inference-service" },
        total: Duration::from_millis(2),
        overhead: Some(Duration::from_micros(50)),
        first_byte: Some(Duration::from_millis(1)),
        first_chunk: Some(Duration::from_millis(1)),
        request_bytes: 1024,
        response_bytes: 1024,
        model,
        tokens: Some((200, 100, true)),
        spend: Some(500_000_000),
        attempts: 1,
        ..Ended::default()
    });
}

#[divan::bench(args = SIZES)]
fn count_a_request(bencher: Bencher<'_, '_>, names: usize) {
    let telemetry = filled(names);
    let last = names - 1;
    let (key, model) = (format!("key-{last}"), format!("vendor/model-{last}"));
    bencher.bench(|| count(&telemetry, black_box(&key), black_box(&model), (200, "")));
}

#[divan::bench(args = SIZES)]
fn page(bencher: Bencher<'_, '_>, names: usize) {
    let telemetry = filled(names);
    let size = telemetry.page(Format::Text, |_| ()).len();
    let said = format!("page after {names} callers, models and endpoints: {size} bytes");
    REMARKS.lock().unwrap_or_else(PoisonError::into_inner).push(said);
    bencher.bench(|| telemetry.page(Format::Text, |_| ()));
}
