//! Micro-benches of what runs per request, by the library's own interface: `cargo bench --bench hot_path`.
//!
//! Allocations are counted too, since the path is to have few; counting them costs some nanoseconds each.
#![expect(clippy::expect_used, reason = "a bench without its input has nothing to measure")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use chrono::Utc;
use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher, black_box};
use http::{HeaderMap, Method, header};
use mimalloc::MiMalloc;
use nimgate::auth::{self, KeyRing, NewKey};
use nimgate::balance::{self, Endpoint, Pool, Thresholds};
use nimgate::catalogue::{Catalogue, Errors, Format, Operation};
use nimgate::config::yaml;
use nimgate::failure::{BadInput, Failure, render};
use nimgate::ids::{OperationIndex, RequestId};
use nimgate::meter::first;
use nimgate::proxy::snapshot::Checks;
use nimgate::route::{Life, ModelEntry, OperationEntry, PoolEntry, RouteTable, Settings, Target};
use nimgate::schema::{self, Document, Schema, UrlInput, Validation, Violation};
use nimgate::upstream::{Kind, Manner};

#[path = "macro/bodies.rs"]
mod bodies;
#[path = "hot_path/quota.rs"]
mod quota;
#[path = "macro/redis.rs"]
mod redis_server;
#[path = "hot_path/telemetry.rs"]
mod telemetry;

#[global_allocator]
static ALLOCATOR: AllocProfiler<MiMalloc> = AllocProfiler::new(MiMalloc);

fn main() {
    divan::main();
    for remark in quota::finish().into_iter().chain(telemetry::finish()) {
        let _ = writeln!(std::io::stderr(), "{remark}");
    }
}

const KIB: usize = 1024;
/// Keys of a large organisation.
const KEYS: usize = 1000;

/// The bodies that are parsed and checked.
#[derive(Clone, Copy, Debug)]
enum Input {
    Chat1k,
    Chat100kOf400Messages,
    Chat100kOfOneBlob,
    Embeddings32,
}

const INPUTS: [Input; 4] = [Input::Chat1k, Input::Chat100kOf400Messages, Input::Chat100kOfOneBlob, Input::Embeddings32];

impl Input {
    fn body(self) -> Vec<u8> {
        match self {
            Self::Chat1k => bodies::chat(KIB, 2, false),
            Self::Chat100kOf400Messages => bodies::chat(100 * KIB, 400, false),
            Self::Chat100kOfOneBlob => bodies::chat(100 * KIB, 1, false),
            Self::Embeddings32 => bodies::embeddings(32),
        }
    }

    fn schema(self) -> Schema {
        let checks = match self {
            Self::Embeddings32 => checks("nim-embedding", "create_embedding"),
            _ => checks("nim-llm", "create_chat_completion"),
        };
        checks.body.expect("the operation has a body")
    }
}

fn catalogue() -> Catalogue {
    Catalogue::load(None, yaml::parse_value, 25 * KIB * KIB).expect("the embedded documents load")
}

fn checks(api: &str, operation: &str) -> Checks {
    let catalogue = catalogue();
    let found = catalogue.operations.iter().find(|o| o.api.as_str() == api && &*o.id == operation);
    let found: &Operation = found.expect("the operation exists");
    let settings = schema::Settings { validation: Validation::Lenient, url_input: UrlInput::Any, max_violations: 20 };
    let api = catalogue.apis.get(api).expect("the API exists");
    Checks::compile(found, &api.components, &settings).expect("the schemas compile")
}

mod authenticate {
    use super::*;

    fn record(key: &NewKey) -> auth::Settings {
        auth::Settings {
            id: key.id.clone(),
            secret_hash: key.secret_hash,
            previous: None,
            org: "org".into(),
            team: "team".into(),
            name: "bench".into(),
            scopes: vec!["invoke_function".into()],
            models: Vec::new(),
            pools: Vec::new(),
            class: nimgate::ids::Class::Normal,
            weight: 1,
            expires: None,
            disabled: false,
        }
    }

    fn bench(bencher: Bencher<'_, '_>, spoil: &str) {
        let keys: Vec<NewKey> = (0..KEYS).map(|_| NewKey::generate().expect("random numbers")).collect();
        let ring = KeyRing::new(keys.iter().map(record));
        let offered = format!("Bearer {}{spoil}", keys[KEYS / 2].text);
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, offered.parse().expect("a header"))]);
        bencher.bench(|| ring.authenticate(black_box(&headers), Utc::now()).is_ok());
    }

    #[divan::bench]
    fn good_key(bencher: Bencher<'_, '_>) {
        bench(bencher, "");
    }

    #[divan::bench]
    fn wrong_secret(bencher: Bencher<'_, '_>) {
        bench(bencher, "x");
    }
}

mod route {
    use super::*;

    /// All operations of the catalogue, one pool per API, a hundred models in the pool of `nim-llm`.
    fn table(catalogue: &Catalogue) -> RouteTable {
        let operations = catalogue.operations.iter().enumerate().map(|(at, o)| OperationEntry {
            api: o.api.clone(),
            index: OperationIndex(at),
            method: o.method.clone(),
            path: o.path.clone(),
            by_model: o.routes_by_model,
            domain: o.domain.clone(),
        });
        let model = |name: String| {
            (name.clone(), ModelEntry { id: name.into(), backend: None, output_tokens: None, life: Life::default() })
        };
        let pools = catalogue.apis.keys().map(|api| PoolEntry {
            behind: Vec::new(),
            name: api.as_str().into(),
            api: api.clone(),
            domain: None,
            default: true,
            models: match api.as_str() {
                "nim-llm" => {
                    let others = (0..99).map(|at| format!("meta/model-{at}"));
                    others.chain([bodies::CHAT_MODEL.into()]).map(model).collect()
                }
                _ => Vec::new(),
            },
        });
        let settings = Settings { operations: operations.collect(), pools: pools.collect() };
        RouteTable::new(settings).expect("the table compiles")
    }

    #[divan::bench(args = [
        ("POST", "/v1/chat/completions"),
        ("POST", "/pools/nim-llm/v1/chat/completions"),
        ("POST", "/v1/infer"),
        ("GET", "/v1/cosmos/datasets/0b5c8f2e-2f1e-4b52-9d0c-2f7d3f0b9a11"),
        ("POST", "/v1/unknown"),
    ])]
    fn find(bencher: Bencher<'_, '_>, (method, path): (&str, &str)) {
        let table = table(&catalogue());
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        bencher.bench(|| table.find(black_box(&method), black_box(path)));
    }

    #[divan::bench]
    fn model(bencher: Bencher<'_, '_>) {
        let table = table(&catalogue());
        let route = table.find(&Method::POST, "/v1/chat/completions").expect("a route");
        let Target::ByModel { candidates, within } = route.target else { return };
        bencher.bench(|| table.model(black_box(bodies::CHAT_MODEL), &candidates, within).map(|found| found.0));
    }
}

mod body {
    use super::*;

    #[divan::bench(args = INPUTS)]
    fn parse(bencher: Bencher<'_, '_>, input: Input) {
        let body = input.body();
        bencher.counter(BytesCount::of_slice(&body)).bench(|| Document::parse(black_box(&body)).expect("valid JSON"));
    }

    /// What `Document::parse` adds to the plain parser: refusal of duplicates, place of the model, stand-ins.
    #[divan::bench(args = INPUTS)]
    fn parse_by_serde_json(bencher: Bencher<'_, '_>, input: Input) {
        let body = input.body();
        bencher
            .counter(BytesCount::of_slice(&body))
            .bench(|| serde_json::from_slice::<serde_json::Value>(black_box(&body)).expect("valid JSON"));
    }

    #[divan::bench(args = INPUTS)]
    fn validate(bencher: Bencher<'_, '_>, input: Input) {
        let body = input.body();
        let (schema, document) = (input.schema(), Document::parse(&body).expect("valid JSON"));
        schema.validate(&document.value).expect("the body holds to the schema");
        bencher.counter(BytesCount::of_slice(&body)).bench(|| schema.validate(black_box(&document.value)).is_ok());
    }

    #[divan::bench]
    fn validate_with_three_violations(bencher: Bencher<'_, '_>) {
        let text = String::from_utf8(Input::Chat1k.body()).expect("text");
        let text = text.replace("\"temperature\":0.2", "\"temperature\":9");
        let text = text.replace("\"top_p\":0.7", "\"top_p\":7").replace("\"max_tokens\":256", "\"max_tokens\":\"x\"");
        let (schema, document) = (Input::Chat1k.schema(), Document::parse(text.as_bytes()).expect("valid JSON"));
        assert_eq!(schema.validate(&document.value).expect_err("three rules are broken").list.len(), 3);
        bencher.bench(|| schema.validate(black_box(&document.value)));
    }

    /// Parse and validate, as one request does.
    #[divan::bench(args = INPUTS)]
    fn parse_and_validate(bencher: Bencher<'_, '_>, input: Input) {
        let (body, schema) = (input.body(), input.schema());
        bencher.counter(BytesCount::of_slice(&body)).bench(|| {
            let document = Document::parse(black_box(&body)).expect("valid JSON");
            schema.validate(&document.value).is_ok() && document.model().is_some()
        });
    }
}

mod params {
    use super::*;

    fn bench(bencher: Bencher<'_, '_>, operation: &str, pairs: &[(&str, &str)]) {
        let checks = checks("nemo-curator", operation);
        assert!(!checks.params.is_empty(), "{operation} documents parameters");
        let check = |pairs: &[(&str, &str)]| -> usize {
            checks.params.iter().map(|(_, params)| params.check(pairs.iter().copied()).len()).sum()
        };
        assert_eq!(check(pairs), 0);
        bencher.bench(|| check(black_box(pairs)));
    }

    #[divan::bench]
    fn query(bencher: Bencher<'_, '_>) {
        bench(bencher, "list_datasets", &[("filter", "by:org")]);
    }

    #[divan::bench]
    fn path(bencher: Bencher<'_, '_>) {
        bench(bencher, "get_dataset", &[("dataset_id", "0b5c8f2e-2f1e-4b52-9d0c-2f7d3f0b9a11")]);
    }
}

mod pick {
    use super::*;

    fn pool(size: u16) -> Pool {
        let thresholds = Thresholds { unhealthy_after: 3, healthy_after: 1 };
        let endpoint = |port: u16| {
            let settings =
                balance::Settings { name: format!("127.0.0.1:{port}"), host: "127.0.0.1".into(), port, thresholds };
            Arc::new(Endpoint::new(settings, vec![SocketAddr::from(([127, 0, 0, 1], port))]))
        };
        let members = Arc::new(balance::Members::new((1..=size).map(endpoint).collect()));
        Pool::new(members, balance::Tuning::default())
    }

    /// A pick and the end of its lease.
    #[divan::bench(args = [1, 8, 32, 256])]
    fn among(bencher: Bencher<'_, '_>, endpoints: u16) {
        let pool = pool(endpoints);
        bencher.bench(|| pool.pick(black_box(&balance::Ask::default()), balance::now()).map(|lease| lease.address()));
    }

    /// The same from two threads, which share the counters.
    #[divan::bench(args = [4, 32], threads = 2)]
    fn among_from_two_threads(bencher: Bencher<'_, '_>, endpoints: u16) {
        let pool = pool(endpoints);
        bencher.bench(|| pool.pick(black_box(&balance::Ask::default()), balance::now()).map(|lease| lease.address()));
    }
}

mod failure {
    use super::*;

    fn violations() -> Failure {
        let at =
            |pointer: &str| Violation { pointer: pointer.into(), rule: "maximum".into(), expected: "at most 2".into() };
        let violations = vec![at("/temperature"), at("/top_p"), at("/messages/0/content")];
        Failure::SchemaViolation(BadInput { violations, truncated: false })
    }

    #[divan::bench(args = [Format::OpenAi, Format::Problem, Format::FastApi])]
    fn render_violations(bencher: Bencher<'_, '_>, format: Format) {
        let (failure, id) = (violations(), RequestId::random());
        let errors = Errors { format, violation_status: 400 };
        bencher.bench(|| render(black_box(&failure), errors, &id).bytes);
    }

    #[divan::bench]
    fn render_key_invalid(bencher: Bencher<'_, '_>) {
        let id = RequestId::random();
        let errors = Errors { format: Format::OpenAi, violation_status: 400 };
        bencher.bench(|| render(black_box(&Failure::KeyInvalid), errors, &id).bytes);
    }
}

/// What an error answer means, as far as its bytes are concerned. Nothing of it runs on success.
mod classify {
    use super::*;

    const OBJECT: &str =
        r#"{"error":{"message":"max_tokens is too large: 9000","type":"Bad Request","param":"max_tokens","code":400}}"#;
    const URN: &str = r#"{"type":"urn:inference-service:problem-details:bad-request","title":"Bad Request","status":400,"detail":"invalid datatype for input message","instance":"/v2/nvcf/pexec/functions/f","requestId":"r"}"#;
    const LOST: &str = r#"{"status":404,"title":"Not Found","detail":"Function '5a0f': Not found for account 'a'"}"#;

    #[divan::bench(args = [(400, OBJECT), (400, URN), (404, LOST), (429, r#"{"status":429,"title":"Too Many Requests"}"#), (504, ""), (599, "<html>")])]
    fn answer(bencher: Bencher<'_, '_>, (status, body): (u16, &str)) {
        let (kind, headers) = (Kind::Nvcf(None), HeaderMap::new());
        bencher.bench(|| {
            kind.read_answer(Manner::Other, status, &headers, black_box(body.as_bytes())).map(|r| r.row.fault)
        });
    }

    /// What retries look at, before there is a body.
    #[divan::bench(args = [429, 500, 504])]
    fn header(bencher: Bencher<'_, '_>, status: u16) {
        let (kind, headers) = (Kind::Nim, HeaderMap::new());
        bencher.bench(|| kind.preview(black_box(status), &headers).map(|(row, _)| row.fault));
    }

    /// Whether the first event of a good stream is an error.
    #[divan::bench]
    fn first_event(bencher: Bencher<'_, '_>) {
        let event = br#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

"#;
        bencher.bench(|| first::is_decided(black_box(event)) && first::error(black_box(event)).is_some());
    }
}

mod request_id {
    use super::*;

    #[divan::bench]
    fn random() -> RequestId {
        RequestId::random()
    }

    #[divan::bench]
    fn accept() -> RequestId {
        RequestId::accept(black_box(Some(b"0123456789abcdef0123456789abcdef")))
    }
}
