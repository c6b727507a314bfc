//! Telemetry: every instrument that requests add to, and the readings of all of them.
//!
//! Labels come from the configuration, the catalogue and closed enums; names that are made elsewhere (callers, models,
//! endpoints) are bounded by settings, and each metric has a bound of its own: past it, series share one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub mod histogram;
pub mod metric;
pub mod names;
pub mod otlp;
pub mod page;
pub mod process;
pub mod table;

use histogram::Histogram;
use metric::{Counter, Family, Kept, Labelled, Names, Reading};
use page::Format;

/// What is counted, and how many names of a kind have series of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Whether requests are counted at all.
    pub counts: bool,
    /// Keys of callers.
    pub callers: usize,
    /// Models.
    pub models: usize,
    /// Endpoints.
    pub endpoints: usize,
}

/// What a metric needs of an ended request.
#[derive(Default)]
pub struct Ended<'a> {
    /// The API, or empty.
    pub api: &'a str,
    /// The operation, or empty.
    pub operation: &'a str,
    /// What a model is asked for, if it is inference.
    pub gen_ai: Option<&'a str>,
    /// The pool, or empty.
    pub pool: &'a str,
    /// The organisation, the team and the key of its caller.
    pub caller: Option<[&'a str; 3]>,
    /// The status that the client got.
    pub status: u16,
    /// The label of its failure, or empty.
    pub error: &'a str,
    /// Whose failure, or empty.
    pub blame: &'a str,
    /// A limit of its caller refused it.
    pub is_refused: bool,
    /// How long it took.
    pub total: Duration,
    /// Until the first attempt, without the wait for a place.
    pub overhead: Option<Duration>,
    /// Until the backend's answer began.
    pub first_byte: Option<Duration>,
    /// Until the first piece of a streamed answer.
    pub first_chunk: Option<Duration>,
    /// Bytes of its body.
    pub request_bytes: usize,
    /// Bytes of its answer's body.
    pub response_bytes: usize,
    /// The model, or empty.
    pub model: &'a str,
    /// Tokens of its prompt and of its answer, and whether the backend stated them.
    pub tokens: Option<(u64, u64, bool)>,
    /// What it cost, in nano-units of money.
    pub spend: Option<u64>,
    /// Attempts at endpoints.
    pub attempts: u32,
    /// How long it waited for a place, if it did.
    pub queued: Option<Duration>,
    /// The pool that it should have run in, and why it did not.
    pub spill: Option<(&'a str, &'a str)>,
    /// How a second attempt beside the first ended, if there was one.
    pub hedge: Option<&'a str>,
    /// What a cache had of it, and how many items were known and asked for.
    pub cache: Option<(&'a str, usize, usize)>,
    /// The trace and the span that tell of it, where these are exported.
    pub seen_in: Option<(u128, u64)>,
}

/// The series that requests of one kind add to, found together. All that their labels are made of tells the kind from
/// others. Pairs are of both directions.
#[derive(Default)]
struct Kind {
    requests: Kept<Counter>,
    duration: Kept<Histogram>,
    first_byte: Kept<Histogram>,
    overhead: Kept<Histogram>,
    bytes: [Kept<Counter>; 2],
    tokens: [Kept<Counter>; 2],
    spend: Kept<Counter>,
    operation_duration: Kept<Histogram>,
    first_chunk: Kept<Histogram>,
    token_usage: [Kept<Histogram>; 2],
}

/// The series that requests of one caller with one result add to, found together. They are apart from those of kinds,
/// for there are as many of both as kinds and callers, and not as many as each kind by each caller.
#[derive(Default)]
struct Account {
    requests: Kept<Counter>,
    tokens: [Kept<Counter>; 2],
    spend: Kept<Counter>,
}

/// The instruments.
pub struct Telemetry {
    bounds: Bounds,
    kinds: Labelled<Kind>,
    accounts: Labelled<Account>,
    callers: Names,
    models: Names,
    endpoints: Names,
    in_flight: AtomicI64,
    generation: AtomicU64,
    /// The last reload was refused.
    stale: AtomicBool,
    requests: Family<Counter>,
    duration: Family<Histogram>,
    first_byte: Family<Histogram>,
    overhead: Family<Histogram>,
    bytes: Family<Counter>,
    operation_duration: Family<Histogram>,
    first_chunk: Family<Histogram>,
    between_chunks: Family<Histogram>,
    token_usage: Family<Histogram>,
    tokens: Family<Counter>,
    spend: Family<Counter>,
    caller_requests: Family<Counter>,
    caller_tokens: Family<Counter>,
    caller_spend: Family<Counter>,
    connect_failures: Family<Counter>,
    queue_wait: Family<Histogram>,
    retries: Family<Counter>,
    spills: Family<Counter>,
    hedges: Family<Counter>,
    shadows: Family<Counter>,
    assets: Family<Counter>,
    cache_requests: Family<Counter>,
    cache_items: Family<Counter>,
    reloads: Family<Counter>,
    render: Family<Histogram>,
    dropped: Arc<AtomicU64>,
}

impl Telemetry {
    /// Nothing counted yet. `dropped` counts access-log lines.
    pub fn new(bounds: Bounds, dropped: Arc<AtomicU64>) -> Self {
        std::sync::LazyLock::force(&process::BEGUN);
        Self {
            bounds,
            kinds: Labelled::new(table::REQUESTS.most),
            accounts: Labelled::new(table::CALLER_REQUESTS.most),
            callers: Names::new(bounds.callers),
            models: Names::new(bounds.models),
            endpoints: Names::new(bounds.endpoints),
            in_flight: AtomicI64::new(0),
            generation: AtomicU64::new(0),
            stale: AtomicBool::new(false),
            requests: Family::new(&table::REQUESTS),
            duration: Family::new(&table::DURATION),
            first_byte: Family::new(&table::FIRST_BYTE),
            overhead: Family::new(&table::OVERHEAD),
            bytes: Family::new(&table::BODY_BYTES),
            operation_duration: Family::new(&table::OPERATION_DURATION),
            first_chunk: Family::new(&table::FIRST_CHUNK),
            between_chunks: Family::new(&table::BETWEEN_CHUNKS),
            token_usage: Family::new(&table::TOKEN_USAGE),
            tokens: Family::new(&table::TOKENS_USED),
            spend: Family::new(&table::SPEND),
            caller_requests: Family::new(&table::CALLER_REQUESTS),
            caller_tokens: Family::new(&table::CALLER_TOKENS),
            caller_spend: Family::new(&table::CALLER_SPEND),
            connect_failures: Family::new(&table::CONNECT_FAILURES),
            queue_wait: Family::new(&table::QUEUE_WAIT),
            retries: Family::new(&table::RETRIES),
            spills: Family::new(&table::SPILLS),
            hedges: Family::new(&table::HEDGES),
            shadows: Family::new(&table::SHADOWS),
            assets: Family::new(&table::ASSETS),
            cache_requests: Family::new(&table::CACHE_REQUESTS),
            cache_items: Family::new(&table::CACHE_ITEMS),
            reloads: Family::new(&table::RELOADS),
            render: Family::new(&table::RENDER),
            dropped,
        }
    }

    /// How many names of a kind have series of their own.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A request has arrived.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub fn end(&self, ended: &Ended<'_>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.bounds.counts {
            return;
        }
        let mut digits = [0; 3];
        let status = status_text(ended.status, &mut digits);
        let model = self.models.bounded(ended.model);
        let Ended { api, operation, pool, error, blame, .. } = *ended;
        let asked = ended.gen_ai.unwrap_or_default();
        let labels = [api, operation, pool, status, error, blame, model, asked, source(ended)];
        self.kinds.on_or_fresh(&labels, |kind| {
            let labels = [api, operation, pool, status, error, blame];
            kind.requests.on(&self.requests, &labels, |counter| counter.add(1));
            self.end_of_kind(ended, kind);
            self.end_inference(ended, kind, model);
        });
        self.end_rarities(ended);
        self.end_for_caller(ended);
    }

    fn end_of_kind(&self, ended: &Ended<'_>, kind: &Kind) {
        let Ended { pool, operation, seen_in, .. } = *ended;
        let time = |series: &Kept<Histogram>, family: &Family<Histogram>, labels: &[&str], time: Duration| {
            series.on(family, labels, |histogram| histogram.observe(time.as_secs_f64(), seen_in));
        };
        time(&kind.duration, &self.duration, &[pool, operation], ended.total);
        if let Some(first) = ended.first_byte {
            time(&kind.first_byte, &self.first_byte, &[pool, operation], first);
        }
        if let Some(overhead) = ended.overhead {
            time(&kind.overhead, &self.overhead, &[pool], overhead);
        }
        let bytes = [("request", ended.request_bytes), ("response", ended.response_bytes)];
        for (series, (direction, bytes)) in kind.bytes.iter().zip(bytes) {
            if bytes > 0 {
                series.on(&self.bytes, &[pool, direction], |counter| counter.add(bytes as u64));
            }
        }
    }

    fn end_inference(&self, ended: &Ended<'_>, kind: &Kind, model: &str) {
        let Ended { pool, seen_in, .. } = *ended;
        for (series, (direction, tokens)) in kind.tokens.iter().zip(tokens(ended)) {
            series.on(&self.tokens, &[pool, model, direction, source(ended)], |counter| counter.add(tokens));
        }
        if let Some(spend) = ended.spend {
            kind.spend.on(&self.spend, &[pool, model], |counter| counter.add(spend));
        }
        // What never reached a pool is no operation of a model.
        let Some(operation) = ended.gen_ai.filter(|_| !pool.is_empty()) else { return };
        let labels = [operation, names::PROVIDER, model, pool];
        let time = |series: &Kept<Histogram>, family: &Family<Histogram>, time: Duration| {
            series.on(family, &labels, |histogram| histogram.observe(time.as_secs_f64(), seen_in));
        };
        time(&kind.operation_duration, &self.operation_duration, ended.total);
        if let Some(first) = ended.first_chunk {
            time(&kind.first_chunk, &self.first_chunk, first);
        }
        for (series, (direction, tokens)) in kind.token_usage.iter().zip(tokens(ended)) {
            let labels = [operation, names::PROVIDER, model, direction, pool];
            series.on(&self.token_usage, &labels, |histogram| histogram.observe(tokens as f64, seen_in));
        }
    }

    /// What few requests have.
    fn end_rarities(&self, ended: &Ended<'_>) {
        let Ended { pool, seen_in, .. } = *ended;
        let one = |counter: &Counter| counter.add(1);
        if ended.attempts > 1 {
            self.retries.on(&[pool], |counter| counter.add(u64::from(ended.attempts - 1)));
        }
        if let Some(queued) = ended.queued {
            self.queue_wait.on(&[pool], |histogram| histogram.observe(queued.as_secs_f64(), seen_in));
        }
        if let Some((from, reason)) = ended.spill {
            self.spills.on(&[from, pool, reason], one);
        }
        if let Some(result) = ended.hedge {
            self.hedges.on(&[pool, result], one);
        }
        if let Some((result, hits, misses)) = ended.cache {
            self.cache_requests.on(&[pool, result], one);
            for (result, items) in [("hit", hits), ("miss", misses)] {
                self.cache_items.on(&[pool, result], |counter| counter.add(items as u64));
            }
        }
    }

    fn end_for_caller(&self, ended: &Ended<'_>) {
        let Some([org, team, key]) = ended.caller else { return };
        let is_named = self.callers.bounded(key) == key;
        let [org, team, key] = if is_named { [org, team, key] } else { [metric::OTHER; 3] };
        let result = match ended.cache {
            _ if ended.is_refused => "refused",
            _ if !ended.error.is_empty() => "failed",
            Some(("hit", ..)) => "cached",
            _ => "good",
        };
        let labels = [org, team, key, result];
        self.accounts.on_or_fresh(&labels, |account| {
            account.requests.on(&self.caller_requests, &labels, |counter| counter.add(1));
            for (series, (direction, tokens)) in account.tokens.iter().zip(tokens(ended)) {
                series.on(&self.caller_tokens, &[org, team, key, direction], |counter| counter.add(tokens));
            }
            if let Some(spend) = ended.spend {
                account.spend.on(&self.caller_spend, &[org, team, key], |counter| counter.add(spend));
            }
        });
    }

    /// The callers that have a name here: organisation, team and key.
    pub fn callers(&self) -> Vec<[Arc<str>; 3]> {
        let mut callers: Vec<[Arc<str>; 3]> = self
            .caller_requests
            .labels()
            .into_iter()
            .filter_map(|labels| match labels.as_slice() {
                [org, team, key, _] => Some([org, team, key].map(Arc::clone)),
                _ => None,
            })
            .collect();
        callers.sort_unstable();
        callers.dedup();
        callers
    }

    /// Counts the time between two pieces of a streamed answer.
    pub fn pieces(&self, asked: &str, model: &str, pool: &str) -> Option<Pieces> {
        if !self.bounds.counts {
            return None;
        }
        let labels = [asked, names::PROVIDER, self.models.bounded(model), pool];
        Some(Pieces { last: None, between: self.between_chunks.of(&labels) })
    }

    /// Requests that are being served.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// An endpoint could not be reached.
    pub fn connect_failed(&self, pool: &str, endpoint: &str) {
        self.connect_failures.on(&[pool, self.endpoints.bounded(endpoint)], |counter| counter.add(1));
    }

    /// A copy of a request has ended, or was not made.
    pub fn shadowed(&self, pool: &str, result: &str) {
        self.shadows.on(&[pool, result], |counter| counter.add(1));
    }

    /// An asset was uploaded, could not be, was deleted, or was left behind.
    pub fn asset(&self, pool: &str, result: &str) {
        self.assets.on(&[pool, result], |counter| counter.add(1));
    }

    /// A configuration was loaded, or could not be.
    pub fn reloaded(&self, generation: Option<u64>) {
        let result = if generation.is_some() { "loaded" } else { "refused" };
        self.reloads.on(&[result], |counter| counter.add(1));
        self.stale.store(generation.is_none(), Ordering::Relaxed);
        generation.iter().for_each(|generation| self.generation.store(*generation, Ordering::Relaxed));
    }

    /// All that was counted, and what is known of the process.
    pub fn readings(&self) -> Vec<Reading> {
        let counters = [
            &self.requests,
            &self.bytes,
            &self.tokens,
            &self.spend,
            &self.caller_requests,
            &self.caller_tokens,
            &self.caller_spend,
            &self.connect_failures,
            &self.retries,
            &self.spills,
            &self.hedges,
            &self.shadows,
            &self.assets,
            &self.cache_requests,
            &self.cache_items,
            &self.reloads,
        ];
        let histograms = [
            &self.duration,
            &self.first_byte,
            &self.overhead,
            &self.operation_duration,
            &self.first_chunk,
            &self.between_chunks,
            &self.token_usage,
            &self.queue_wait,
            &self.render,
        ];
        let overflown = counters.iter().filter(|family| family.is_full()).count()
            + histograms.iter().filter(|family| family.is_full()).count();
        let now = |metric, value: f64| Reading::new(metric).with(&[], value);
        let mut readings: Vec<Reading> = counters.iter().map(|family| family.read()).collect();
        readings.extend(histograms.iter().map(|family| family.read()));
        readings.extend([
            now(&table::IN_FLIGHT, self.in_flight() as f64),
            now(&table::GENERATION, self.generation.load(Ordering::Relaxed) as f64),
            now(&table::STALE, f64::from(u8::from(self.stale.load(Ordering::Relaxed)))),
            now(&table::LOG_DROPPED, self.dropped.load(Ordering::Relaxed) as f64),
            now(&table::OVERFLOW, overflown as f64),
            Reading::new(&table::BUILD).with(&[env!("CARGO_PKG_VERSION")], 1.0),
        ]);
        readings.extend(process::readings());
        readings
    }

    /// The Prometheus page of all readings; `observe` adds what is known elsewhere.
    pub fn page(&self, format: Format, observe: impl FnOnce(&mut Vec<Reading>)) -> String {
        let begun = Instant::now();
        let mut readings = self.readings();
        observe(&mut readings);
        let page = page::render(&readings, format);
        self.render.on(&[], |histogram| histogram.observe(begun.elapsed().as_secs_f64(), None));
        page
    }
}

/// Counts the time between the pieces of one streamed answer.
pub struct Pieces {
    last: Option<Instant>,
    between: Arc<Histogram>,
}

impl Pieces {
    /// Another piece has come.
    pub fn came(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.between.observe(now.duration_since(last).as_secs_f64(), None);
        }
    }
}

/// A request's tokens by their direction, if they are known.
fn tokens(ended: &Ended<'_>) -> impl Iterator<Item = (&'static str, u64)> {
    ended.tokens.into_iter().flat_map(|(input, output, _)| [("input", input), ("output", output)])
}

/// Who counted a request's tokens, as a label.
fn source(ended: &Ended<'_>) -> &'static str {
    if matches!(ended.tokens, Some((.., false))) { "counted" } else { "stated" }
}

/// A status as a label: its digits where it has a name, `other` where a backend made one up, `none` for no answer.
fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    if status == 0 {
        return "none";
    }
    let named = http::StatusCode::from_u16(status).is_ok_and(|s| s.canonical_reason().is_some());
    if !named && !matches!(status, 499 | 529) {
        return "other";
    }
    *digits = [b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    std::str::from_utf8(digits).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BOUNDS: Bounds = Bounds { counts: true, callers: 3, models: 3, endpoints: 3 };

    fn telemetry() -> Telemetry {
        Telemetry::new(BOUNDS, Arc::default())
    }

    fn page(telemetry: &Telemetry) -> String {
        telemetry.page(Format::Text, |_| ())
    }

    #[test]
    fn statuses_without_a_name_share_a_label() {
        let text = |status| status_text(status, &mut [0; 3]).to_owned();
        assert_eq!([text(200), text(529), text(0), text(299), text(799)], ["200", "529", "none", "other", "other"]);
    }

    #[test]
    fn names_from_outside_do_not_fill_the_page() {
        let telemetry = telemetry();
        for i in ["0", "1", "2", "3", "4", "1"] {
            telemetry.connect_failed("p", i);
            telemetry.begin();
            telemetry.end(&Ended {
                caller: Some(["o", "t", i]),
                model: i,
                tokens: Some((1, 1, true)),
                ..Ended::default()
            });
        }
        let page = page(&telemetry);
        for line in [
            r#"nimgate_connect_failures_total{pool="p",endpoint="1"} 2"#,
            r#"nimgate_connect_failures_total{pool="p",endpoint="other"} 2"#,
            r#"nimgate_caller_requests_total{org="o",team="t",key="1",result="good"} 2"#,
            r#"nimgate_caller_requests_total{org="other",team="other",key="other",result="good"} 2"#,
            r#"nimgate_tokens_total{pool="",model="other",direction="input",source="stated"} 2"#,
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    /// How many requests there are by error, by key and by direction of tokens.
    fn numbers(telemetry: &Telemetry) -> Vec<(Vec<String>, f64)> {
        let shown = ["nimgate.requests", "nimgate.caller.requests", "nimgate.tokens"];
        let readings = telemetry.readings();
        let points = readings.iter().filter(|r| shown.contains(&r.metric.name)).flat_map(|r| &r.points);
        let number = |value: &metric::Value| match value {
            metric::Value::Number(number) => *number,
            metric::Value::Spread(_) => f64::NAN,
        };
        points.map(|p| (p.labels.iter().map(ToString::to_string).collect(), number(&p.value))).collect()
    }

    fn mixed(error: usize) -> Ended<'static> {
        Ended {
            gen_ai: Some("chat"),
            pool: "p",
            caller: Some(["o", "t", ["k", "l"][error % 2]]),
            error: ["", "a", "b", "c", "d"][error],
            total: Duration::from_millis(1),
            tokens: Some((1, 2, error == 0)),
            ..Ended::default()
        }
    }

    #[test]
    fn requests_beyond_the_bound_of_what_is_kept_count_the_same() {
        let (kept, mut unkept) = (telemetry(), telemetry());
        unkept.kinds = Labelled::new(2);
        unkept.accounts = Labelled::new(1);
        for telemetry in [&kept, &unkept] {
            (0..50).for_each(|at| telemetry.end(&mixed(at % 5)));
        }
        assert_eq!(numbers(&kept), numbers(&unkept));
        let total =
            |start: &str| -> f64 { numbers(&unkept).iter().filter(|(l, _)| l[0] == start).map(|(_, n)| n).sum() };
        // Requests have no API here; those of callers begin with the organisation, tokens with the pool.
        assert_eq!([total(""), total("o"), total("p")], [50.0, 50.0, 150.0]);
        let duration = |telemetry: &Telemetry| {
            page(telemetry).contains(r#"nimgate_request_duration_seconds_count{pool="p",operation=""} 50"#)
        };
        assert!(duration(&kept) && duration(&unkept));
    }

    #[test]
    fn requests_that_differ_in_one_label_have_series_of_their_own() {
        let plain = || mixed(0);
        let others = [
            Ended { api: "x", ..plain() },
            Ended { operation: "x", ..plain() },
            Ended { gen_ai: Some("x"), ..plain() },
            Ended { gen_ai: None, ..plain() },
            Ended { pool: "x", ..plain() },
            Ended { caller: Some(["x", "t", "k"]), ..plain() },
            Ended { caller: Some(["o", "x", "k"]), ..plain() },
            Ended { caller: Some(["o", "t", "x"]), ..plain() },
            Ended { caller: None, ..plain() },
            Ended { status: 400, ..plain() },
            Ended { error: "x", ..plain() },
            Ended { blame: "x", ..plain() },
            Ended { is_refused: true, ..plain() },
            Ended { cache: Some(("hit", 1, 0)), ..plain() },
            Ended { model: "x", ..plain() },
            Ended { tokens: Some((1, 2, false)), ..plain() },
        ];
        let series = |requests: &[&Ended<'_>]| -> BTreeSet<(&str, Vec<Arc<str>>)> {
            let telemetry = telemetry();
            requests.iter().for_each(|ended| telemetry.end(ended));
            let readings = telemetry.readings().into_iter();
            readings.flat_map(|r| r.points.into_iter().map(move |p| (r.metric.name, p.labels))).collect()
        };
        let first = plain();
        for other in &others {
            // Together they have the series that each has alone.
            let (before, both) = (series(&[&first]), series(&[&first, other]));
            assert_eq!(both, before.union(&series(&[other])).cloned().collect());
        }
    }

    #[test]
    fn what_a_request_has_not_is_not_on_the_page() {
        let telemetry = telemetry();
        let missing = ["first_byte", "overhead", "body", "tokens", "spend", "caller", "gen_ai"];
        let series = |page: &str, word: &str| page.lines().any(|line| !line.starts_with('#') && line.contains(word));
        telemetry.end(&Ended { pool: "p", model: "m", ..Ended::default() });
        let before = page(&telemetry);
        assert!(series(&before, "nimgate_requests_total") && series(&before, "nimgate_request_duration"));
        assert_eq!(missing.map(|word| series(&before, word)), [false; 7], "{before}");
        // The same kind of request, and now with all of it.
        telemetry.end(&Ended {
            overhead: Some(Duration::ZERO),
            first_byte: Some(Duration::ZERO),
            request_bytes: 1,
            caller: Some(["o", "t", "k"]),
            gen_ai: Some("chat"),
            tokens: Some((1, 1, true)),
            spend: Some(1),
            pool: "p",
            model: "m",
            ..Ended::default()
        });
        let after = page(&telemetry);
        assert_eq!(missing.map(|word| series(&after, word)), [true; 7], "{after}");
        assert!(!after.contains(r#"direction="response""#), "{after}");
    }

    #[test]
    fn the_page_shows_what_ended() {
        let telemetry = telemetry();
        telemetry.begin();
        telemetry.end(&Ended {
            api: "a",
            operation: "create_chat_completion",
            gen_ai: Some("chat"),
            pool: "p",
            caller: Some(["o", "t", "k"]),
            status: 503,
            error: "no_healthy_endpoint",
            blame: "inference-service",
            is_refused: false,
            total: Duration::from_millis(2),
            overhead: Some(Duration::from_micros(50)),
            first_byte: None,
            first_chunk: Some(Duration::from_millis(1)),
            request_bytes: 1,
            response_bytes: 2,
            model: "m",
            tokens: Some((3, 4, true)),
            spend: Some(500_000_000),
            attempts: 3,
            queued: Some(Duration::from_millis(2)),
            spill: Some(("own", "overload")),
            hedge: Some("won"),
            cache: Some(("partial", 3, 2)),
            seen_in: None,
        });
        telemetry.reloaded(Some(3));
        let mut pieces = telemetry.pieces("chat", "m", "p").unwrap();
        (0..3).for_each(|_| pieces.came());
        let page = page(&telemetry);
        for line in [
            r#"nimgate_requests_total{api="a",operation="create_chat_completion",pool="p",status="503",error="no_healthy_endpoint",blame="inference-service"} 1"#,
            "nimgate_requests_in_flight 0",
            "nimgate_config_generation 3",
            r#"nimgate_tokens_total{pool="p",model="m",direction="output",source="stated"} 4"#,
            r#"nimgate_spend_total{pool="p",model="m"} 0.5"#,
            r#"nimgate_retries_total{pool="p"} 2"#,
            r#"nimgate_queue_wait_seconds_count{pool="p"} 1"#,
            r#"nimgate_spills_total{from="own",pool="p",reason="overload"} 1"#,
            r#"nimgate_hedges_total{pool="p",result="won"} 1"#,
            r#"nimgate_cache_requests_total{pool="p",result="partial"} 1"#,
            r#"nimgate_cache_items_total{pool="p",result="hit"} 3"#,
            r#"nimgate_caller_requests_total{org="o",team="t",key="k",result="failed"} 1"#,
            r#"nimgate_overhead_seconds_count{pool="p"} 1"#,
            r#"gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="nvidia",gen_ai_request_model="m",pool="p"} 1"#,
            r#"gen_ai_client_operation_time_per_output_chunk_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="nvidia",gen_ai_request_model="m",pool="p"} 2"#,
            r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="nvidia",gen_ai_request_model="m",gen_ai_token_type="output",pool="p"} 4"#,
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut pages: Vec<&str> = table::ALL.iter().map(|metric| metric.page).collect();
        let mut names: Vec<&str> = table::ALL.iter().map(|metric| metric.name).collect();
        let count = pages.len();
        for list in [&mut pages, &mut names] {
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), count);
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(pages.iter().all(|page| page.chars().all(is_word)));
        assert!(table::ALL.iter().all(|metric| metric.help.ends_with('.') && metric.most > 0));
    }
}
