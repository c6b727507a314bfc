//! Reserve, settle and release through the whole gateway: over random endings, what is charged is what the records
//! state, and nothing leaks. `NIMGATE_SEED=N` repeats the run that printed N.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use nimgate::sim::Sighting;
use serde_json::{Value, json};

use crate::admin;
use crate::redis::*;
use crate::support::*;

const SERVED: &str = "meta/llama-3.1-8b-instruct";
/// Requests under way at a time: more than [`AT_A_TIME`] allows for a key, a team or the organisation.
const WORKERS: usize = 10;
/// Limits on concurrency of a key, a team and the organisation.
const AT_A_TIME: [u64; 3] = [4, 7, 8];
/// The limit on tokens of an answer that [`Ending::TooMuch`] does not fit.
const MOST_OUTPUT: u64 = 500_000;
/// Requests that the key `few` has, and those that the key `a` has for [`Ending::Few`].
const FEW: u64 = 12;
/// Keys and their teams.
const KEYS: [(&str, &str); 4] = [("a", "lab"), ("b", "lab"), ("c", "web"), ("few", "web")];
/// Who is refused by one of these is charged nothing.
const REFUSALS: [&str; 5] = ["rate_limit_exceeded", "quota_exceeded", "budget_exceeded", BUSY, "limits_unknown"];

/// The refusal that ends by itself.
const BUSY: &str = "concurrency_exceeded";
/// How long a caller waits after it.
const PAUSE: Duration = Duration::from_millis(20);

/// How a request is to end, if no limit refuses it.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Whole,
    Stream,
    StreamWithUsage,
    Schema,
    /// It asks for more than the limit ever allows.
    TooMuch,
    /// It is for a model of which the key `a` may ask a few times.
    Few,
    /// The caller leaves within the stream.
    Left,
    /// The caller leaves before anything came.
    Gone,
    /// The caller leaves at any moment.
    Whenever,
    /// The backend breaks the connection instead of answering.
    Cut,
    /// The backend breaks the stream.
    CutWithin,
    /// The backend ends in the middle of a document.
    Truncated,
    /// The backend ends the stream by an error.
    ErrorEvent,
    Status(u16),
    /// Nothing comes in time.
    Hang,
    /// The stream falls silent.
    Stall,
    /// The stream takes too long.
    Long,
    /// The first endpoint may be one that nobody listens on.
    Twice,
    /// No endpoint can be reached.
    NoBackend,
    /// No endpoint of its pool can be reached, so that it runs in another.
    Spilled,
    /// The same, and the backend breaks the stream.
    SpilledCutWithin,
}

const ENDINGS: [Ending; 25] = [
    Ending::Whole,
    Ending::Whole,
    Ending::Stream,
    Ending::StreamWithUsage,
    Ending::Schema,
    Ending::TooMuch,
    Ending::Few,
    Ending::Left,
    Ending::Left,
    Ending::Gone,
    Ending::Whenever,
    Ending::Cut,
    Ending::CutWithin,
    Ending::Truncated,
    Ending::ErrorEvent,
    Ending::Status(500),
    Ending::Status(429),
    Ending::Status(400),
    Ending::Hang,
    Ending::Stall,
    Ending::Long,
    Ending::Twice,
    Ending::NoBackend,
    Ending::Spilled,
    Ending::SpilledCutWithin,
];

/// One request.
struct Plan {
    id: String,
    ending: Ending,
    key: &'static str,
    gateway: usize,
    /// Tokens of the answer, or events of it, or moments.
    size: u64,
}

/// What its record has to say.
#[derive(Debug)]
struct Expected {
    id: String,
    ending: Ending,
    /// One of these labels; `""` for none, no list for any.
    labels: Vec<&'static str>,
    output: RangeInclusive<u64>,
    /// Whether the prompt is charged.
    input: Option<bool>,
}

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    requests: u64,
    input: u64,
    output: u64,
    /// In billionths.
    spend: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input += other.input;
        self.output += other.output;
        self.spend += other.spend;
    }

    /// What one record states.
    fn of_record(record: &Value) -> Self {
        let count = |name: &str| record[name].as_u64().unwrap_or(0);
        let is_refused = record["error"].as_str().is_some_and(|label| REFUSALS.contains(&label));
        let spend = nano(record["spend"].as_f64().unwrap_or(0.0));
        Self { requests: u64::from(!is_refused), input: count("input_tokens"), output: count("output_tokens"), spend }
    }

    /// A row of the admin API's usage.
    fn of_row(row: &Value) -> Self {
        let count = |name: &str| row[name].as_u64().unwrap();
        let spend = nano(row["spend"].as_str().unwrap().parse().unwrap());
        Self { requests: count("requests"), input: count("input_tokens"), output: count("output_tokens"), spend }
    }
}

fn nano(units: f64) -> u64 {
    (units * 1e9).round() as u64
}

fn key_text(id: &str) -> String {
    format!("ngk_{id}_0123456789abcdef")
}

/// Every kind of limit, so large that only concurrency refuses, or what never fits.
fn limits(level: usize, requests: u64) -> String {
    let at_a_time = AT_A_TIME[level];
    format!(
        "{{requests: {requests}, per: month}}, {{input_tokens: 100000000, per: month}}, \
         {{output_tokens: {MOST_OUTPUT}, per: month}}, {{total_tokens: 100000000, per: month}}, \
         {{spend: 100000, per: month}}, {{concurrency: {at_a_time}}}"
    )
}

fn setup(backend: &Simulator, dead: &str, top: &str) -> Setup {
    let url = backend.url();
    let model = |name: &str| format!("models: [{{id: {name}, backend_model: {SERVED}}}]\nhealth: {{enabled: false}}");
    let short = "timeouts: {first_byte_ms: 60, between_chunks_ms: 60, total_ms: 150}";
    let (team, org) = (limits(1, 1_000_000), limits(2, 1_000_000));
    let accounts = format!(
        "orgs:\n  - {{name: default}}\n  - {{name: acme, limits: [{org}]}}\n\
         teams:\n  - {{org: default, name: default}}\n  - {{org: acme, name: lab, limits: [{team}]}}\n  \
         - {{org: acme, name: web, limits: [{team}]}}"
    );
    let prices = "prices: [{model: '*', input_per_million: 0.2, output_per_million: 0.6, per_request: 0.001}]";
    let mut setup = Gateway::setup()
        .chat(&[&url])
        .pool("few", "nim-llm", &model("few"), &[&url])
        .pool("short", "nim-llm", &format!("{}\n{short}", model("short")), &[&url])
        .pool("twice", "nim-llm", &model("twice"), &[dead, &url])
        .pool("gone", "nim-llm", &model("gone"), &[dead])
        .pool("front", "nim-llm", &format!("{}\nspill: {{to: [there]}}", model("spilled")), &[dead])
        .pool("there", "nim-llm", &model("spilled"), &[&url])
        .admin_token(admin::TOKEN)
        .top(prices)
        .top(top)
        .accounts(&accounts);
    for (id, team) in KEYS {
        let mut all = limits(0, if id == "few" { FEW } else { 1_000_000 });
        all +=
            ", {requests: 1000000, per: month, pools: [there]}, {total_tokens: 100000000, per: month, pools: [there]}";
        all += ", {total_tokens: 100000000, per: month, pools: [front]}";
        if id == "a" {
            all = format!("{all}, {{requests: {FEW}, per: month, models: [few]}}");
        }
        setup = setup.key(&key_text(id), &format!("org: acme\nteam: {team}\nlimits: [{all}]"));
    }
    setup
}

impl Plan {
    fn draw(random: &mut Rng, at: usize, gateways: usize) -> Self {
        let ending = ENDINGS[random.usize(..ENDINGS.len())];
        let mut key = KEYS[random.usize(..KEYS.len())].0;
        if matches!(ending, Ending::Few) {
            key = "a";
        }
        Self { id: format!("{at}-{ending:?}"), ending, key, gateway: random.usize(..gateways), size: random.u64(1..30) }
    }

    fn model(&self) -> &'static str {
        match self.ending {
            Ending::Few => "few",
            Ending::Hang | Ending::Stall | Ending::Long => "short",
            Ending::Twice => "twice",
            Ending::NoBackend => "gone",
            Ending::Spilled | Ending::SpilledCutWithin => "spilled",
            _ => SERVED,
        }
    }

    /// The most tokens that its answer may have.
    fn most(&self) -> u64 {
        match self.ending {
            Ending::TooMuch => MOST_OUTPUT + 1,
            Ending::Left => self.size + 20,
            Ending::Long => 3000,
            _ => self.size,
        }
    }

    fn body(&self) -> Value {
        let is_whole = matches!(
            self.ending,
            Ending::Whole
                | Ending::Schema
                | Ending::TooMuch
                | Ending::Few
                | Ending::Truncated
                | Ending::Twice
                | Ending::Spilled
                | Ending::Hang
        );
        let mut body = chat(!is_whole);
        body["model"] = self.model().into();
        body["max_tokens"] = self.most().into();
        body["ignore_eos"] = true.into();
        match self.ending {
            Ending::Schema => body["messages"] = json!([]),
            Ending::StreamWithUsage => body["stream_options"] = json!({"include_usage": true}),
            _ => {}
        }
        body
    }

    fn fault(&self) -> Option<String> {
        let size = self.size;
        Some(match self.ending {
            Ending::Gone | Ending::Hang => "hang".into(),
            Ending::Cut => "cut".into(),
            Ending::CutWithin | Ending::SpilledCutWithin => format!("cut-after={}", size / 2),
            Ending::Truncated => "truncated-json".into(),
            Ending::ErrorEvent => format!("error-event={}", size / 2),
            Ending::Stall => format!("stall-after={}", size / 2),
            Ending::Status(status) => format!("status={status}"),
            _ => return None,
        })
    }

    /// Whether the connection is fit for another request afterwards, whatever happens.
    fn ends_well(&self) -> bool {
        matches!(self.ending, Ending::Whole | Ending::Stream | Ending::StreamWithUsage | Ending::Schema | Ending::Few)
    }

    /// Makes the request, again and again while too many are under way, and says what each record is to be.
    async fn run(mut self, gateways: &[Gateway], backend: &Simulator) -> Vec<Expected> {
        let mut all = Vec::new();
        let mut is_refused = true;
        while is_refused {
            is_refused = false;
            if let Some(expected) = self.attempt(gateways, backend).await {
                is_refused = expected.labels == [BUSY];
                all.push(expected);
            }
            if is_refused {
                self.id += "'";
                tokio::time::sleep(PAUSE).await;
            }
        }
        all
    }

    /// Nothing where it is open how it ends.
    async fn attempt(&self, gateways: &[Gateway], backend: &Simulator) -> Option<Expected> {
        let mut ask = gateways[self.gateway].post("/v1/chat/completions", &self.body());
        ask = ask.key(&key_text(self.key)).header("x-request-id", &self.id);
        if !self.ends_well() {
            ask = ask.header("connection", "close");
        }
        if let Some(fault) = self.fault() {
            ask = ask.header("x-sim-fault", &fault);
        }
        if let Ending::Left = self.ending {
            ask = ask.header("x-sim-gate", &self.id);
            // The first event names the role, each further one brings a token.
            (0..=self.size).for_each(|_| backend.open_gate(&self.id));
        }
        let expected = |labels: &[&'static str], output, input| {
            Some(Expected { id: self.id.clone(), ending: self.ending, labels: labels.to_vec(), output, input })
        };
        let response = match self.ending {
            Ending::Whenever => {
                let moment = Duration::from_micros(self.size * self.size * 20);
                let _ = tokio::time::timeout(moment, async { read(ask.begin().await, u64::MAX).await }).await;
                return None;
            }
            Ending::Gone => tokio::select! {
                response = ask.begin() => response,
                () = until("the backend has it", async || has_seen(backend, &self.id)) => {
                    return expected(&["client_closed"], 0..=0, Some(false));
                }
            },
            _ => ask.begin().await,
        };
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let refusal = REFUSALS.into_iter().find(|label| *label == header("x-nimgate-error"));
        if let Some(label) = refusal {
            return expected(&[label], 0..=0, Some(false));
        }
        let status = response.status().as_u16();
        let enough = if matches!(self.ending, Ending::Left) { self.size } else { u64::MAX };
        let (text, tokens) = read(response, enough).await;
        let most = self.most();
        match self.ending {
            Ending::Whole | Ending::Few | Ending::Twice | Ending::Spilled => {
                assert_eq!(status, 200, "{} {text}", self.id);
                let usage = &serde_json::from_str::<Value>(&text).unwrap()["usage"];
                let output = usage["completion_tokens"].as_u64().unwrap();
                expected(&[""], output..=output, Some(true))
            }
            Ending::Stream | Ending::StreamWithUsage => {
                assert_eq!((status, tokens), (200, most), "{} {text}", self.id);
                expected(&[""], tokens..=tokens, Some(true))
            }
            Ending::Schema => expected(&["schema_violation"], 0..=0, Some(false)),
            Ending::TooMuch => panic!("{} was not refused: {status} {text}", self.id),
            Ending::Left => {
                // Where the gateway reads on, it finds more: all of it, if it does so before it hears that the caller left.
                let goes_on = self.size.is_multiple_of(2);
                (0..100).filter(|_| goes_on).for_each(|_| backend.open_gate(&self.id));
                expected(if goes_on { &["client_closed", ""] } else { &["client_closed"] }, tokens..=most, Some(true))
            }
            Ending::Cut => expected(&["upstream_closed", "upstream_reset"], 0..=0, Some(false)),
            Ending::CutWithin | Ending::SpilledCutWithin => {
                assert!(text.contains("\"upstream_closed\""), "{}: the caller is told: {text}", self.id);
                expected(&["upstream_closed"], tokens..=tokens, Some(true))
            }
            Ending::ErrorEvent => expected(&[], tokens..=tokens, Some(status == 200)),
            Ending::Truncated => expected(&[], 0..=most, Some(true)),
            Ending::Status(_) => {
                expected(&["inference_error", "inference_overloaded", "inference_rejected"], 0..=0, Some(false))
            }
            Ending::Hang => expected(&["first_byte_timeout", "total_timeout"], 0..=0, Some(false)),
            Ending::Stall | Ending::Long => {
                let input = (tokens > 0).then_some(true);
                expected(&["first_byte_timeout", "upstream_stalled", "total_timeout"], tokens..=tokens, input)
            }
            Ending::NoBackend => expected(&["connect_refused"], 0..=0, Some(false)),
            Ending::Gone | Ending::Whenever => unreachable!("these returned above"),
        }
    }
}

/// Whether the backend has the whole of a request.
fn has_seen(backend: &Simulator, id: &str) -> bool {
    let is_it = |seen: &Sighting| seen.headers.get("x-request-id").is_some_and(|found| found == id);
    let is_whole = |seen: &Sighting| {
        seen.headers.get("content-length").is_some_and(|length| *length == *seen.body_length.to_string())
    };
    backend.seen().history().iter().any(|seen| is_it(seen) && is_whole(seen))
}

/// Reads an answer to its end, however that comes, or to so many tokens; returns its text and its tokens.
async fn read(response: Response<Incoming>, enough: u64) -> (String, u64) {
    let mut body = response.into_body();
    let mut text = String::new();
    loop {
        let tokens = tokens_of(&text);
        if tokens >= enough {
            return (text, tokens);
        }
        match tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("a frame in time") {
            Some(Ok(frame)) => text += &String::from_utf8_lossy(frame.data_ref().unwrap()),
            Some(Err(_)) | None => return (text, tokens),
        }
    }
}

/// Events with text.
fn tokens_of(text: &str) -> u64 {
    let has_text = |data: &&str| {
        let event: Value = serde_json::from_str(data).unwrap_or_default();
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
    };
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(has_text).count() as u64
}

/// All differences between what the records state and what limits and usage say.
async fn differences(gateways: &[Gateway], records: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut hold = |what: String, stated: String, found: String| {
        if stated != found {
            wrong.push(format!("{what}: records {stated}, found {found}"));
        }
    };
    let sums = |by: &dyn Fn(&Value) -> String| {
        let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
        for record in records {
            sums.entry(by(record)).or_default().add(&Sum::of_record(record));
        }
        sums.retain(|_, sum| *sum != Sum::default());
        sums
    };
    let field = |name: &'static str| move |record: &Value| record[name].as_str().unwrap_or_default().to_owned();
    let (keys, teams, orgs) = (sums(&field("caller")), sums(&field("team")), sums(&field("org")));
    for (at, gateway) in gateways.iter().enumerate() {
        let today = chrono::Utc::now().date_naive();
        let (from, to) = (today.pred_opt().unwrap(), today.succ_opt().unwrap());
        for (by, stated) in [("key", &keys), ("team", &teams), ("org", &orgs)] {
            let page = admin::ask(gateway, "GET", &format!("/usage?from={from}&to={to}&by={by}"), None).await.json();
            let rows = page["rows"].as_array().unwrap().iter();
            let found: BTreeMap<String, Sum> =
                rows.map(|row| (row[by].as_str().unwrap().to_owned(), Sum::of_row(row))).collect();
            hold(format!("usage by {by} at {at}"), format!("{stated:?}"), format!("{found:?}"));
        }
        let key_pages = KEYS.map(|(id, _)| (format!("/keys/{id}"), keys.get(id).copied()));
        let team_pages = ["lab", "web"].map(|team| (format!("/teams/acme/{team}"), teams.get(team).copied()));
        let org_page = ("/orgs/acme".to_owned(), orgs.get("acme").copied());
        for (path, stated) in key_pages.into_iter().chain(team_pages).chain([org_page]) {
            let stated = stated.unwrap_or_default();
            let page = admin::ask(gateway, "GET", &path, None).await.json();
            for limit in page["limits"].as_array().unwrap() {
                let amount = |name: &str| match &limit[name] {
                    Value::String(money) => nano(money.parse().unwrap()),
                    number => number.as_u64().unwrap(),
                };
                let due = match limit["metric"].as_str().unwrap() {
                    // Charged by where it ran in the end.
                    metric if limit.get("pools").is_some() => {
                        let is_there = |record: &&Value| {
                            record["caller"] == path["/keys/".len()..] && record["pool"] == limit["pools"][0]
                        };
                        let sums = records.iter().filter(is_there).map(Sum::of_record);
                        sums.map(|sum| if metric == "requests" { sum.requests } else { sum.input + sum.output }).sum()
                    }
                    "requests" if limit.get("models").is_some() => {
                        let few = records.iter().filter(|r| r["caller"] == "a" && r["model"] == "few");
                        few.map(|record| Sum::of_record(record).requests).sum()
                    }
                    "requests" => stated.requests,
                    "input_tokens" => stated.input,
                    "output_tokens" => stated.output,
                    "total_tokens" => stated.input + stated.output,
                    "spend" => stated.spend,
                    "concurrency" => 0,
                    other => panic!("{other}"),
                };
                let name = format!("{path} {} at {at}", limit["name"]);
                let found = (amount("used"), amount("remaining"));
                // What was used beyond a limit, as may be while Redis is away, is not shown here.
                let due = due.min(amount("amount"));
                hold(name, format!("{:?}", (due, amount("amount") - due)), format!("{found:?}"));
            }
        }
    }
    let mut metrics = [0.0; 4];
    for gateway in gateways {
        for (sum, name) in metrics.iter_mut().zip([
            "nimgate_requests_in_flight",
            "nimgate_endpoint_in_flight",
            "nimgate_tokens_total",
            "nimgate_spend_total",
        ]) {
            *sum += gateway.metric(name).await;
        }
    }
    let all = orgs.get("acme").copied().unwrap_or_default();
    let [in_flight, at_endpoints, tokens, spend] = metrics;
    hold("in flight".into(), "(0.0, 0.0)".into(), format!("{:?}", (in_flight, at_endpoints)));
    let stated = format!("{:?}", (all.input + all.output, all.spend));
    hold("metrics".into(), stated, format!("{:?}", (tokens as u64, nano(spend))));
    wrong
}

/// Runs random requests against replicas, and holds what is charged against what the records state.
async fn balance(gateways: &[Gateway], backend: &Simulator, count: usize) {
    let seed = std::env::var("NIMGATE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("NIMGATE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let plans: Vec<Plan> = (0..count).map(|at| Plan::draw(&mut random, at, gateways.len())).collect();
    let runs = stream::iter(plans).map(|plan| plan.run(gateways, backend)).buffer_unordered(WORKERS);
    let expected: Vec<Expected> = runs.collect::<Vec<_>>().await.into_iter().flatten().collect();
    let records = || gateways.iter().flat_map(Gateway::records).collect::<Vec<_>>();
    let mut last = Vec::new();
    until("what is charged is what the records state", async || {
        let records = records();
        let wrong = differences(gateways, &records).await;
        if wrong != last {
            println!("{wrong:#?}");
            last = wrong;
        }
        last.is_empty() && records.len() >= expected.len()
    })
    .await;
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    for record in records() {
        let id = record["request_id"].as_str().unwrap().to_owned();
        assert!(found.insert(id.clone(), record).is_none(), "{id} has two records");
    }
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    for expected in &expected {
        let record = found.get(&expected.id).unwrap_or_else(|| panic!("{} has no record", expected.id));
        let label = record["error"].as_str().unwrap_or_default();
        assert!(expected.labels.is_empty() || expected.labels.contains(&label), "{expected:?} {record}");
        let sum = Sum::of_record(record);
        assert!(expected.output.contains(&sum.output), "{expected:?} {record}");
        assert!(expected.input.is_none_or(|is_charged| is_charged == (sum.input > 0)), "{expected:?} {record}");
        let ending = if REFUSALS.contains(&label) { label.to_owned() } else { format!("{:?}", expected.ending) };
        *endings.entry(ending).or_default() += 1;
    }
    let twice = found.values().filter(|r| r["model"] == "twice" && r["attempts"] == 2 && r["status"] == 200).count();
    let mut total = Sum::default();
    found.values().for_each(|record| total.add(&Sum::of_record(record)));
    let spilled = found.values().filter(|r| r["pool"] == "there" && r["spilled_from"] == "front").count();
    println!(
        "{endings:?}; {spilled} in another pool, {twice} at the second endpoint; {} records, {total:?}",
        found.len()
    );
    // The backend is rid of all of them.
    until("nothing is left at the backend", async || backend.seen().in_flight() == 0).await;
}

async fn quick() -> Simulator {
    simulator_with(Kind::Llm, |settings| settings.slots = 1000).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_random_endings_charges_equal_usage_at_one_replica() {
    let (backend, dead) = (quick().await, format!("http://{}", free_address()));
    let gateways = [setup(&backend, &dead, "").start().await];
    balance(&gateways, &backend, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_random_endings_charges_equal_usage_where_streams_are_read_on() {
    let (backend, dead) = (quick().await, format!("http://{}", free_address()));
    let gateways = [setup(&backend, &dead, "quotas: {drain_ms: 50}").start().await];
    balance(&gateways, &backend, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_random_endings_charges_equal_usage_at_two_replicas() {
    let (redis, backend) = (RedisServer::start().await, quick().await);
    let gateways = two(&backend, [redis.address(); 2], "deny").await;
    balance(&gateways, &backend, 300).await;
    none_is_negative(&redis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_random_endings_charges_equal_usage_while_the_line_to_redis_breaks() {
    for on_outage in ["deny", "local_share"] {
        let (redis, backend) = (RedisServer::start().await, quick().await);
        let mut line = Line::to(redis.address()).await;
        let gateways = two(&backend, [line.address(), redis.address()], on_outage).await;
        let breaking = async {
            // Three times, each as soon as it has been noticed that it was mended.
            for _ in 0..3 {
                line.cut().await;
                until("one is cut off", async || limits_are(&gateways[0], "away").await).await;
                line.mend().await;
                until("it is back", async || limits_are(&gateways[0], "shared").await).await;
            }
        };
        tokio::join!(balance(&gateways, &backend, 300), breaking);
        none_is_negative(&redis);
    }
}

async fn limits_are(gateway: &Gateway, word: &str) -> bool {
    gateway.admin("/readyz").await.json()["redis"]["limits"] == word
}

/// Two replicas, each with its own way to Redis.
async fn two(backend: &Simulator, redis: [SocketAddr; 2], on_outage: &str) -> [Gateway; 2] {
    let dead = format!("http://{}", free_address());
    let start = async |redis: SocketAddr| {
        let top = format!(
            "redis: {{addresses: ['{redis}'], timeout_ms: 500}}\n\
             quotas: {{on_outage: {on_outage}, write_every_ms: 50}}"
        );
        setup(backend, &dead, &top).start().await
    };
    let gateways = [start(redis[0]).await, start(redis[1]).await];
    for gateway in &gateways {
        until("limits are shared by both", async || {
            let redis = &gateway.admin("/readyz").await.json()["redis"];
            redis["limits"] == "shared" && redis["replicas"] == 2
        })
        .await;
    }
    gateways
}

fn none_is_negative(redis: &RedisServer) {
    for key in redis.command(&["KEYS", "nimgate:*"]).lines().filter(|key| key.contains(":w:") || key.contains(":h:")) {
        for value in redis.command(&["HVALS", key]).lines() {
            assert!(!value.starts_with('-'), "{key} has {value}");
        }
    }
}
