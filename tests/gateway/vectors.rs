//! Kept vectors at random: whatever the requests, and whatever becomes of the levels, answers are those of the backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use nimgate::cache::{self, *};
use nimgate::store::{self, Store};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::redis::*;
use crate::support::*;

/// Cases of one run; NIMGATE_CASES asks for more.
const CASES: usize = 100_000;

/// A backend whose vectors follow from everything that may change them, and that fails at times.
struct Fake<'a> {
    revision: &'a str,
    /// How it prints numbers.
    is_wide: bool,
    /// How often it does wrong, of a hundred.
    faults: u32,
    asked: &'a AtomicUsize,
    items: &'a AtomicUsize,
}

#[derive(Debug, Clone, PartialEq)]
enum Said {
    Good(Value),
    Refused(String),
    /// Nothing that the backend would have said in its right mind.
    Wrong,
}

impl Fake<'_> {
    fn vector(&self, body: &Value, item: &Value, modality: &Value) -> Vec<f32> {
        let mut seed = Sha256::new();
        let fields = body.as_object().unwrap().iter();
        let fields =
            fields.filter(|(name, _)| !["input", "user", "encoding_format", "modality"].contains(&name.as_str()));
        // A default is as good as nothing.
        let fields = fields.filter(|(name, value)| !(*name == "truncate" && **value == "NONE"));
        let mut fields: Vec<String> = fields.map(|(name, value)| format!("{name}={value}")).collect();
        fields.sort();
        seed.update(format!("{} {fields:?} {item} {modality}", self.revision));
        let digest = seed.finalize();
        let mut random = fastrand::Rng::with_seed(u64::from_le_bytes(digest[..8].try_into().unwrap()));
        let dimensions = body["dimensions"].as_u64().unwrap_or(8);
        (0..dimensions).map(|_| random.f32() * 2.0 - 1.0).collect()
    }

    fn answer(&self, body: &Bytes) -> Said {
        let body: Value = serde_json::from_slice(body).unwrap();
        let items = match &body["input"] {
            Value::Array(items) if !items[0].is_number() => items.clone(),
            one => vec![one.clone()],
        };
        if items.iter().any(|item| item == "bad") {
            return Said::Refused(format!("an item is bad: {}", body["input"]));
        }
        self.items.fetch_add(items.len(), Ordering::Relaxed);
        let is_base64 = body["encoding_format"] == "base64";
        let data = items.iter().enumerate().map(|(index, item)| {
            let modality = match &body["modality"] {
                Value::Array(each) => each.get(index).or(each.first()).unwrap().clone(),
                one => one.clone(),
            };
            let vector = self.vector(&body, item, &modality);
            let embedding = match (is_base64, self.is_wide) {
                (true, _) => json!(STANDARD.encode(vector.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>())),
                (_, true) => json!(vector.iter().map(|n| f64::from(*n)).collect::<Vec<f64>>()),
                // As text, since a JSON value would widen them.
                (_, false) => serde_json::from_str(&serde_json::to_string(&vector).unwrap()).unwrap(),
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        });
        let data: Vec<Value> = data.collect();
        let tokens: usize = items.iter().map(|item| item.to_string().len()).sum();
        Said::Good(json!({ "object": "list", "data": data, "model": body["model"],
                           "usage": { "prompt_tokens": tokens, "total_tokens": tokens } }))
    }

    fn spoil(&self, mut answer: Value) -> Vec<u8> {
        let data = answer["data"].as_array_mut().unwrap();
        match fastrand::u32(..7) {
            0 => drop(data.pop()),
            1 => data[0]["index"] = json!(data.len()),
            // Of an only vector nobody can tell how many numbers it should have.
            2 if data.len() > 1 => data[0]["embedding"] = json!([0.5]),
            3 => data[0]["embedding"] = json!("AADAfw=="),
            2 | 4 => data[0]["embedding"] = json!([0.5, null]),
            5 => return answer.to_string().into_bytes()[..20].to_vec(),
            _ => {
                let index = data[0]["index"].take();
                data.iter_mut().for_each(|item| item["index"] = index.clone());
            }
        }
        answer.to_string().into_bytes()
    }
}

impl Backend for Fake<'_> {
    type Passed = Said;
    type Error = ();

    async fn ask(&mut self, body: Bytes, _: bool, _: Awaited) -> Result<Asked<Said>, ()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if fastrand::bool() {
            tokio::task::yield_now().await;
        }
        if fastrand::u32(..100) < self.faults {
            if fastrand::bool() {
                return Err(());
            }
            if let Said::Good(answer) = self.answer(&body) {
                return Ok(Asked::Good(self.spoil(answer).into(), Said::Wrong));
            }
        }
        Ok(match self.answer(&body) {
            Said::Good(answer) => Asked::Good(answer.to_string().into(), Said::Good(answer)),
            other => Asked::Other(other),
        })
    }

    async fn wait<T: Send>(&mut self, other: impl Future<Output = T> + Send) -> Result<T, ()> {
        Ok(other.await)
    }
}

fn rules() -> Rules {
    let none = "\"NONE\"".to_owned();
    Rules {
        input: "input".into(),
        encoding: Some("encoding_format".into()),
        ignored: vec!["user".into()],
        per_item: vec!["modality".into()],
        defaults: [("truncate".to_owned(), none)].into(),
        batch: 8,
        ..Rules::default()
    }
}

fn choose<T: Clone>(from: &[T]) -> T {
    from[fastrand::usize(..from.len())].clone()
}

fn request() -> Value {
    let item = || match fastrand::u32(..20) {
        0 => json!("bad"),
        1 => json!("https://a/b.png"),
        2..=4 => json!([fastrand::u32(..4), fastrand::u32(..4)]),
        5 => json!("data:image/png;base64,AAAA"),
        6 => json!("[1,2]"),
        7 => json!("ü\n\"\\"),
        _ => json!(choose(&["a", "b", "A", "a ", " a", "1,2", "c", "d", "e", "f", "g", "h"])),
    };
    let count = fastrand::usize(1..=choose(&[1, 3, 10]));
    let input = match fastrand::u32(..6) {
        0 => item(),
        _ => Value::Array((0..count).map(|_| item()).collect()),
    };
    let mut body = json!({ "model": choose(&["m", "m", "m-query"]), "input": input });
    let fields = [
        ("input_type", vec![json!("query"), json!("passage")]),
        ("truncate", vec![json!("NONE"), json!("END")]),
        // Answers with some of the last are kept while they are passed on.
        ("dimensions", [4, 8, 4, 8, 4, 8, 3000].map(|d| json!(d)).to_vec()),
        ("encoding_format", vec![json!("float"), json!("base64")]),
        ("user", vec![json!("x"), json!("y")]),
        ("unknown", vec![json!(1), json!(1.5), json!({"b": [1], "a": null}), json!("1")]),
    ];
    for (name, values) in fields {
        if fastrand::u32(..12) == 0 || name == "encoding_format" {
            body[name] = choose(&values);
        }
    }
    match (&body["input"], fastrand::u32(..4)) {
        (Value::Array(items), 0) if !items[0].is_number() => {
            let each: Vec<&str> = items.iter().map(|_| choose(&["text", "image"])).collect();
            body["modality"] = json!(each);
        }
        (_, 1) => body["modality"] = json!("text"),
        _ => {}
    }
    body
}

struct Replica {
    cache: Arc<Cache>,
    purges: Purges,
}

impl Replica {
    fn new(store: Option<&Store>) -> Self {
        let settings = cache::Settings {
            ttl: Duration::from_secs(fastrand::u64(1..4)),
            jitter: 0.5,
            // Room for few.
            most_bytes: 60_000,
            in_redis: true,
            budget: Duration::from_millis(200),
            largest_value: 16 * 1024,
            keeps_media: true,
            batch: 8,
        };
        Self { cache: Cache::new(settings).into(), purges: Purges::new(store.cloned().map(Remote::new)) }
    }
}

/// What was counted, over all cases.
#[derive(Default)]
struct Counts {
    compared: AtomicU64,
    hits: AtomicU64,
    partial: AtomicU64,
    failed: AtomicU64,
    away: AtomicU64,
}

async fn case(replica: &Replica, is_wide: bool, counts: &Counts) {
    let (asked, items) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let revision = choose(&["1", "1", "1", "2"]);
    let body = request();
    let (org, key) = (choose(&["x", "y"]), choose(&["k", "l"]));
    let scope = choose(&[Scope::Global, Scope::Org(org), Scope::Key(key)]);
    let circumstances = Circumstances {
        api: "a",
        operation: "o",
        revision,
        scope,
        purges: replica.purges.times("p", body["model"].as_str().unwrap(), Some(org)),
    };
    let bytes = Bytes::from(body.to_string());
    let mut backend = Fake { revision, is_wide, faults: 3, asked: &asked, items: &items };
    let Ok(question) = Question::read(&bytes, &rules(), &circumstances, true) else { return };
    let reads = fastrand::u32(..20) > 0;
    let manner = Manner { reads, only_known: fastrand::u32(..50) == 0 };
    let outcome = serve(&replica.cache, replica.purges.remote(), question, manner, "id", &mut backend).await;
    let expected = backend.answer(&bytes);
    let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    match outcome {
        Err(()) | Ok(Outcome::Passed(Said::Wrong, _)) => {
            // The backend's doing, in this very request.
            assert!(asked.load(Ordering::Relaxed) > 0);
            add(&counts.failed);
        }
        Ok(Outcome::Unknown(tally)) => assert!(manner.only_known && tally.misses > 0),
        Ok(Outcome::Passed(said, tally)) => {
            assert_eq!(said, expected, "{body}");
            if tally.away.is_some() {
                add(&counts.away);
            }
            add(&counts.compared);
        }
        Ok(Outcome::Made(made)) => {
            let answer: Value = serde_json::from_slice(&made.body).unwrap();
            let Said::Good(expected) = expected else { panic!("{body} is refused, not {answer}") };
            let bits = |value: &Value| -> Vec<Value> {
                let data = value["data"].as_array().unwrap().clone();
                // Where only f32s are known, they are compared as such.
                let narrow = |mut item: Value| {
                    if let Value::Array(numbers) = &item["embedding"] {
                        let numbers = numbers.iter().map(|n| (n.as_f64().unwrap() as f32).to_bits());
                        item["embedding"] = numbers.collect::<Vec<_>>().into();
                    }
                    item
                };
                data.into_iter().map(narrow).collect()
            };
            assert_eq!(bits(&answer), bits(&expected), "{body}");
            if !is_wide {
                assert_eq!(answer["data"], expected["data"], "{body}");
            }
            assert_eq!((&answer["object"], &answer["model"]), (&expected["object"], &expected["model"]));
            if made.is_exact {
                assert_eq!(answer["usage"], expected["usage"], "{body}");
            }
            add(&counts.compared);
            add(if made.tally.misses == 0 { &counts.hits } else { &counts.partial });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_that_of_the_backend() {
    let redis =
        RedisServer::setup().option("maxmemory", "2mb").option("maxmemory-policy", "allkeys-random").start().await;
    let mut line = Line::to(redis.address()).await;
    let store = Store::new(store::Settings {
        mode: store::Mode::Standalone,
        addresses: vec![("127.0.0.1".into(), line.address().port())],
        tls: None,
        username: None,
        password: None,
        sentinel_password: None,
        database: 0,
        prefix: "nimgate".into(),
        connect_timeout: Duration::from_secs(1),
        reply_timeout: Duration::from_millis(300),
    });
    let keeping = tokio::spawn({
        let store = store.clone();
        async move { store.keep().await }
    });
    until("there is a connection", async || store.link().is_some()).await;
    let cases = std::env::var("NIMGATE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    // Backends that print alike share: two that print short, one that prints wide.
    let replicas = Arc::new([Replica::new(Some(&store)), Replica::new(Some(&store)), Replica::new(None)]);
    let counts = Arc::new(Counts::default());
    let left = Arc::new(AtomicUsize::new(cases));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (replicas, counts, left) = (Arc::clone(&replicas), Arc::clone(&counts), Arc::clone(&left));
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                let at = fastrand::usize(..3);
                case(&replicas[at], at == 2, &counts).await;
            }
        });
    }
    // Meanwhile Redis is cut, spoilt and purged.
    while left.load(Ordering::Relaxed) > 0 {
        match fastrand::u32(..6) {
            0 => {
                line.cut().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                line.mend().await;
            }
            1 => {
                let subject = choose(&[Subject::All, Subject::Org("x".into()), Subject::Model("m".into())]);
                let _ = replicas[fastrand::usize(..3)].purges.purge(&subject).await;
            }
            _ => {
                let key = redis.command(&["RANDOMKEY"]);
                if !key.is_empty() {
                    let other = redis.command(&["RANDOMKEY"]);
                    match fastrand::u32(..3) {
                        0 => drop(redis.try_command(&["SET", &key, "garbage"])),
                        1 => drop(redis.try_command(&["SETRANGE", &key, "30", "x"])),
                        // One vector under the key of another.
                        _ => drop(redis.try_command(&["COPY", &other, &key, "REPLACE"])),
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    tasks.join_all().await;
    keeping.abort();
    let [compared, hits, partial, failed, away] =
        [&counts.compared, &counts.hits, &counts.partial, &counts.failed, &counts.away]
            .map(|n| n.load(Ordering::Relaxed));
    println!(
        "{cases} cases: {compared} compared, {hits} hits, {partial} in part, {failed} failed, {away} without Redis"
    );
    let least = cases as u64 / 50;
    assert!(compared > 4 * least && hits > least && partial > least, "{compared} {hits} {partial}");
}
