//! The console in a real browser, what it asks for, drains, and `nimgate top`. The script stands in `sdk/`; `tests/setup.sh`
//! installs browser and driver. Pictures of the page go to `target/console`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::admin::{TOKEN, ask, cli};
use crate::sdk::Script;
use crate::support::*;

const MODEL: &str = "meta/llama-3.1-8b-instruct";
const ELSEWHERE: &str = "llama-elsewhere";
const TEXTS: &str = "nvidia/nv-embedqa-e5-v5";
const LIMITED: &str = "ngk_batch_0123456789abcdef";
const STRANGE: &str = "ngk_strange_0123456789abcdef";
/// A name as a stranger would choose it.
const NAME: &str = "<img src=x onerror=\"globalThis.strange=true\">";
/// A request id can have no space.
const ID: &str = "<img/src=x/onerror=globalThis.strange=true>";

struct Stage {
    near: [Simulator; 2],
    far: Simulator,
    texts: Simulator,
    gateway: Arc<Gateway>,
}

impl Stage {
    async fn start() -> Self {
        let timed =
            |first: u64| move |settings: &mut Settings| settings.time_to_first_token = Duration::from_millis(first);
        let near = [simulator_with(Kind::Llm, timed(20)).await, simulator_with(Kind::Llm, timed(60)).await];
        let far = simulator_with(Kind::Llm, |settings| {
            timed(90)(settings);
            settings.models = vec![ELSEWHERE.into()];
        });
        let far = far.await;
        let texts = simulator_with(Kind::Embedding, timed(15)).await;
        let pool = format!(
            "models: [{{id: {MODEL}}}]\nbalance: {{max_in_flight: 2, affinity: 0}}\nqueue: {{max: 4}}\n\
             spill: {{to: [far], after_ms: 25}}"
        );
        let other = format!("models: [{{id: {MODEL}, backend_model: {ELSEWHERE}}}]\nbalance: {{max_in_flight: 3}}");
        let cached = format!(
            "models: [{{id: {TEXTS}}}]\nvalidation: 'off'\ncache: {{enabled: true, revision_interval_ms: 50, budget_ms: 250}}"
        );
        let dead = format!("http://{}", free_address());
        let gateway = Gateway::setup()
            .pool("chat", "nim-llm", &pool, &[&near[0].url(), &near[1].url()])
            .pool("far", "nim-llm", &other, &[&far.url()])
            .pool("texts", "nim-embedding", &cached, &[&texts.url()])
            .pool("lost", "nim-llm", "models: [{id: lost}]\nhealth: {enabled: false}", &[&dead])
            .key(
                LIMITED,
                "name: nightly batch\nlimits: [{requests: 5, per: second}, {total_tokens: 2000000, per: day}]",
            )
            .key(STRANGE, &format!("name: '{NAME}'"))
            .admin_token(TOKEN)
            .start()
            .await;
        until("the revision is known", async || {
            let state = ask(&gateway, "GET", "/state", None).await.json();
            state["pools"][2]["cache"]["revision"].is_string()
        })
        .await;
        Self { near, far, texts, gateway: Arc::new(gateway) }
    }

    /// One request of a kind.
    async fn send(&self, kind: usize, at: usize) {
        let gateway = &self.gateway;
        let model = |model: &str| {
            let mut body = chat(false);
            body["model"] = model.into();
            gateway.post("/v1/chat/completions", &body)
        };
        let request = match kind {
            0 => gateway.chat(true),
            1 => gateway.chat(false).key(LIMITED),
            2 => {
                let input = [format!("text {}", at % 40), format!("text {}", at % 7)];
                gateway.post("/v1/embeddings", &json!({ "model": TEXTS, "input": input, "input_type": "query" }))
            }
            3 => gateway.chat(false).header("x-sim-fault", "status=500"),
            4 => model("lost"),
            5 => model(NAME).key(STRANGE).header("x-request-id", ID),
            6 => gateway.chat(false).key("ngk_nobody_0123456789abcdef"),
            _ => gateway.chat(true).key(STRANGE),
        };
        request.send().await;
    }

    /// Mixed load, until it is told to end: much that goes well, some of each failure.
    fn load(self: &Arc<Self>) -> (Arc<AtomicBool>, JoinSet<()>) {
        let ended = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        // The kind, how many send it, and milliseconds between.
        for (kind, senders_of, pause) in
            [(0, 5, 15), (1, 2, 120), (2, 2, 30), (3, 1, 400), (4, 1, 700), (5, 1, 900), (6, 1, 1500), (7, 1, 150)]
        {
            for _ in 0..senders_of {
                let (stage, ended) = (Arc::clone(self), Arc::clone(&ended));
                senders.spawn(async move {
                    for at in 0.. {
                        if ended.load(Ordering::Relaxed) {
                            return;
                        }
                        stage.send(kind, at).await;
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                });
            }
        }
        // Now and then an endpoint has no room for a moment, so that others are tried.
        let (stage, told) = (Arc::clone(self), Arc::clone(&ended));
        senders.spawn(async move {
            while !told.load(Ordering::Relaxed) {
                stage.near[0].fault_times("status=503", 1, Some("/v1/chat")).unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        });
        (ended, senders)
    }
}

fn pictures() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/console");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn browse(gateway: &Gateway, mode: &str, token: &str) -> Script {
    let (admin, out) = (format!("http://{}", gateway.admin), pictures());
    let variables = [("ADMIN", admin.as_str()), ("TOKEN", token), ("MODE", mode), ("OUT", out.to_str().unwrap())];
    Script::start("console.cjs", gateway, &variables)
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list")).clone()
}

fn is_clean(seen: &Value) {
    assert_eq!((&seen["complaints"], &seen["strangers"]), (&json!([]), &json!([])), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_a_loaded_gateway_in_both_themes_and_by_keys_alone() {
    let stage = Arc::new(Stage::start().await);
    let (ended, mut senders) = stage.load();
    let live = async || ask(&stage.gateway, "GET", "/live", None).await.json();
    until("some seconds are counted", async || live().await["uptime_s"].as_f64().unwrap() > load_time()).await;
    let seen = browse(&stage.gateway, "look", TOKEN).finish().await;
    ended.store(true, Ordering::Relaxed);
    while senders.join_next().await.is_some() {}
    is_clean(&seen);
    assert_eq!(seen["refused"], json!([]), "a wrong token shows nothing");
    for colours in list(&seen["charts"]) {
        assert!(colours.as_u64().unwrap() > 10, "a chart is not drawn: {}", seen["charts"]);
    }
    let described = list(&seen["described"]);
    assert_eq!(described.len(), 6);
    assert!(described[1].as_str().unwrap().starts_with("Latency, header to end, at last: p50 "), "{described:?}");
    assert!(list(&seen["table"]).len() > 3, "a chart is a table too");
    assert_eq!(seen["strange"], json!({ "images": 0, "isRun": false, "shown": true }));
    let kind = |name: &str| {
        list(&seen["kinds"][name]).iter().map(|cell| cell.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kind("spilled")[4], "chat → far");
    assert!(kind("cached")[1].starts_with("cache ") && kind("retried")[11] != "1" && kind("queued")[10] != "–");
    assert!(!kind("failed")[2].is_empty() && kind("slow")[8].ends_with('s'));
    let explained = seen["explained"].as_str().unwrap();
    assert!(explained.contains("nothing listens on the port") && explained.contains("First: "), "{explained}");
    assert_eq!(seen["held"], "true", "focus stays while tables change");
    assert_eq!(
        (&seen["light"], &seen["dark"]),
        (&seen["toggled"], &seen["back"]),
        "the toggle goes to light, then to dark"
    );
    assert_ne!(seen["light"], seen["dark"]);
    assert!(
        seen["wide"].as_u64() <= Some(1280) && seen["narrow"].as_u64() <= Some(390),
        "{} {}",
        seen["wide"],
        seen["narrow"]
    );
    let reached = list(&seen["reached"]);
    for name in ["pool", "window", "pause", "theme", "h-pools"] {
        assert!(reached.iter().any(|one| one[0] == name), "{name} is not reached: {reached:?}");
    }
    assert!(reached.iter().any(|one| one[0].as_str().unwrap().starts_with("Drain ")), "{reached:?}");
    assert!(reached.iter().all(|one| one[1] == true), "focus is seen: {reached:?}");
}

/// Seconds of load before pictures are taken; NIMGATE_LOAD_S asks for more, for those in the docs.
fn load_time() -> f64 {
    std::env::var("NIMGATE_LOAD_S").ok().and_then(|text| text.parse().ok()).unwrap_or(4.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_numbers_are_those_of_the_state_and_of_the_metrics() {
    let stage = Stage::start().await;
    for kind in 0..8 {
        stage.send(kind, 0).await;
    }
    stage.send(2, 0).await;
    // These fill the pool.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(stage.gateway.chat(true).header("x-sim-gate", "held").begin().await);
    }
    let state = async || ask(&stage.gateway, "GET", "/state", None).await.json();
    until("all are held", async || state().await["in_flight"] == 4).await;
    let script = browse(&stage.gateway, "read", TOKEN);
    let home = stage.gateway.path("stop");
    until("the page was read", async || home.exists()).await;
    let (state, metrics) = (state().await, ask(&stage.gateway, "GET", "/metrics", None).await.text());
    // A process that does not answer is away.
    stage.gateway.signal("STOP");
    until("the page says so", async || stage.gateway.path("start").exists()).await;
    stage.gateway.signal("CONT");
    let seen = script.finish().await;
    is_clean(&seen);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!(seen["facts"]["version"], state["version"]);
    assert_eq!(text(&seen["facts"]["in flight"]), "4");
    let pools = list(&seen["pools"]);
    let row = |name: &str| pools.iter().find(|row| text(&row[0]).starts_with(name)).unwrap().clone();
    assert!(text(&row("chat")[1]).contains("4 / 4 places"), "{}", row("chat"));
    for endpoint in list(&state["pools"][0]["endpoints"]) {
        let row = row(endpoint["name"].as_str().unwrap());
        assert_eq!(text(&row[2]), format!("{} / {}", endpoint["in_flight"], endpoint["max_in_flight"]));
        assert_eq!((text(&row[1]), text(&row[7])), ("well".into(), text(&endpoint["breaker"])));
    }
    let cache = &state["pools"][2]["cache"];
    let shown = list(&seen["cache"])[0].clone();
    assert_eq!((text(&shown[2]), text(&shown[5])), (cache["hits"]["process"].to_string(), cache["misses"].to_string()));
    // What ended, by caller and by label, as the metrics have it.
    let ended: f64 = metrics.lines().filter(|line| line.starts_with("nimgate_requests_total{")).map(value).sum();
    let callers = list(&seen["callers"]);
    let named: f64 = callers.iter().map(|row| text(&row[2]).parse::<f64>().unwrap()).sum();
    assert_eq!((ended, named), (9.0, 8.0), "one had no caller: {callers:?}");
    let mut labels: Vec<String> = list(&seen["recent"]).iter().map(|row| text(&row[1])).collect();
    let of_metrics = metrics.lines().filter(|line| line.starts_with("nimgate_requests_total{"));
    let mut wanted: Vec<String> = of_metrics
        .filter_map(|line| line.split("error=\"").nth(1)?.split('"').next())
        .filter(|label| !label.is_empty())
        .map(str::to_owned)
        .collect();
    labels.sort();
    wanted.sort();
    assert_eq!(labels, wanted);
    // The first endpoint was drained by keys, and let go.
    assert!(list(&seen["drained"]).iter().any(|row| row[1] == "drained"), "{}", seen["drained"]);
    assert!(text(&seen["notice"]).contains("gets no new requests"));
    assert_eq!(seen["paused"], json!(["true", "Go on"]));
    assert!(text(&seen["away"][0]).contains("does not answer") && seen["away"][1] == "status", "{}", seen["away"]);
    assert_eq!(text(&seen["back"]), "The gateway is back.");
    drop(held);
}

fn value(line: &str) -> f64 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn without_a_token_on_loopback_the_page_just_works() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).start().await;
    let seen = browse(&gateway, "bare", "").finish().await;
    is_clean(&seen);
    assert_eq!(seen["isAsked"], false);
    assert_eq!(list(&seen["pools"]).len(), 2, "{seen}");
}

#[tokio::test]
async fn its_files_are_open_and_strict_and_its_data_is_not() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).admin_token(TOKEN).start().await;
    let lead = gateway.admin("/").await;
    assert_eq!((lead.status, lead.header("location")), (307, "console"));
    for (path, kind) in [
        ("/console", "text/html; charset=utf-8"),
        ("/console/console.js", "text/javascript; charset=utf-8"),
        ("/console/uplot.js", "text/javascript; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/uplot-license.txt", "text/plain; charset=utf-8"),
    ] {
        let file = gateway.admin(path).await;
        assert_eq!((file.status, file.header("content-type")), (200, kind), "{path}");
        let policy = file.header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
        }
        assert_eq!((file.header("x-content-type-options"), file.header("referrer-policy")), ("nosniff", "no-referrer"));
    }
    let page = gateway.admin("/console").await.text();
    assert!(
        !page.contains("<style")
            && !page.contains(" style=")
            && !page.contains("<script>")
            && !page.contains(" onclick")
    );
    assert_eq!(gateway.admin("/console/../keys.yaml").await.status, 404);
    for path in ["/live", "/recent", "/labels", "/state", "/keys", "/usage"] {
        assert_eq!(gateway.admin(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn what_happened_of_late_is_told_step_by_step() {
    let backend = simulator(Kind::Llm).await;
    let gateway = Gateway::setup().chat(&[&backend.url()]).admin_token(TOKEN).start().await;
    let get = async |path: &str| ask(&gateway, "GET", path, None).await;
    let secret = "prompt-that-nobody-else-may-read";
    let mut body = chat(false);
    body["messages"][0]["content"] = secret.into();
    let good = gateway.post("/v1/chat/completions?api_secret=in-the-query", &body).header("x-request-id", "good");
    good.send().await;
    gateway
        .post("/v1/chat/completions", &body)
        .header("x-sim-fault", "status=500")
        .header("x-request-id", "bad")
        .send()
        .await;
    gateway.get("/nowhere?token=in-the-query").send().await;
    let sum =
        |page: &Value, column: &str| list(&page["series"][column]).iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    let mut page = Value::Null;
    until("they are counted", async || {
        page = get("/live").await.json();
        sum(&page, "requests") == 3
    })
    .await;
    assert_eq!(list(&page["series"]["failures"]["inference-service"]).iter().filter(|n| **n == json!(1)).count(), 1);
    let later = get(&format!("/live?since={}", page["next"])).await.json();
    assert_eq!((sum(&later, "requests"), &later["series"]["from"]), (0, &page["next"]));
    assert_eq!(sum(&get("/live?pool=chat").await.json(), "requests"), 2);
    assert_eq!(sum(&get("/live?pool=").await.json(), "requests"), 1);
    assert!(page["callers"][0]["requests"] == 3 && page["callers"][0]["key"] == "test", "{}", page["callers"]);
    let failed = get("/recent?kind=failed").await.json();
    let rows = list(&failed["requests"]);
    let bad = rows.iter().find(|row| row["request_id"] == "bad").unwrap();
    let record = gateway.record_of("bad").await;
    for name in [
        "trace_id", "error", "blame", "status", "pool", "endpoint", "caller", "model", "method", "path", "total_ms",
        "attempts",
    ] {
        assert_eq!(bad[name], record[name], "{name}");
    }
    assert_eq!(rows[0]["error"], "path_not_found", "the latest first: {rows:?}");
    let slow = get("/recent?kind=slow").await.json();
    assert!(list(&slow["requests"]).iter().any(|row| row["request_id"] == "good"));
    let labels = get("/labels").await.json();
    assert!(labels["inference_error"]["first"].as_str().is_some_and(|text| !text.is_empty()));
    for path in ["/live?step=2", "/live?since=x", "/recent?kind=odd", "/recent?limit=0", "/live?x=1"] {
        assert_eq!(get(path).await.status, 400, "{path}");
    }
    for path in ["/live", "/recent?kind=failed", "/recent?kind=slow", "/state"] {
        let text = get(path).await.text();
        for secret in [secret, "in-the-query", TOKEN, KEY] {
            assert!(!text.contains(secret), "{secret} in {path}");
        }
    }
}

#[tokio::test]
async fn a_drained_endpoint_is_left_alone_over_reloads_until_it_is_let_go() {
    let backends = [simulator(Kind::Llm).await, simulator(Kind::Llm).await];
    let [first, second] = &backends;
    let pool = format!("models: [{{id: {MODEL}}}]\nbalance: {{affinity: 0}}");
    let setup = Gateway::setup().pool("chat", "nim-llm", &pool, &[&first.url(), &second.url()]).admin_token(TOKEN);
    let gateway = setup.start().await;
    let name = first.address().to_string();
    let path = format!("/pools/chat/endpoints/{}/drain", name.replace(':', "%3A"));
    let running = loop {
        let before = first.seen().requests("/v1/chat/completions");
        let response = gateway.chat(true).header("x-sim-gate", "held").begin().await;
        if first.seen().requests("/v1/chat/completions") > before {
            break response;
        }
        (0..100).for_each(|_| second.open_gate("held"));
        answer(response).await;
    };
    let told = ask(&gateway, "POST", &path, None).await;
    assert_eq!((told.status, &told.json()["drained"], &told.json()["in_flight"]), (200, &json!(true), &json!(1)));
    let given = || first.seen().requests("/v1/chat/completions");
    let before = given();
    let many = async || {
        for _ in 0..20 {
            assert_eq!(gateway.chat(false).send().await.status, 200);
        }
    };
    many().await;
    assert_eq!(given(), before);
    // Another pool's settings change, then the endpoint's own.
    for change in ["reload: {interval_ms: 60}", "health: {unhealthy_after: 7}"] {
        let config = std::fs::read_to_string(gateway.path("nimgate.yaml")).unwrap();
        let changed = if change.starts_with("health") {
            config.replace("    balance: {affinity: 0}", &format!("    balance: {{affinity: 0}}\n    {change}"))
        } else {
            config.replace("reload: {interval_ms: 50}", change)
        };
        assert_ne!(config, changed);
        let generation = ask(&gateway, "GET", "/state", None).await.json()["generation"].as_u64().unwrap();
        replace(&gateway.path("nimgate.yaml"), &changed);
        until("it is loaded", async || {
            ask(&gateway, "GET", "/state", None).await.json()["generation"].as_u64() > Some(generation)
        })
        .await;
        many().await;
        assert_eq!(given(), before, "{change}");
    }
    // What ran goes on, to its good end.
    (0..100).for_each(|_| first.open_gate("held"));
    let text = answer(running).await.text();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let told = ask(&gateway, "DELETE", &path, None).await;
    assert_eq!((told.status, &told.json()["drained"]), (200, &json!(false)));
    until("it gets requests again", async || {
        many().await;
        given() > before
    })
    .await;
    for wrong in ["/pools/chat/endpoints/nobody/drain", "/pools/nobody/endpoints/x/drain"] {
        assert_eq!(ask(&gateway, "POST", wrong, None).await.status, 404);
    }
}

#[tokio::test]
async fn a_pool_that_is_drained_whole_gives_its_requests_to_another() {
    let stage = Stage::start().await;
    for backend in &stage.near {
        let told =
            ask(&stage.gateway, "POST", &format!("/pools/chat/endpoints/{}/drain", backend.address()), None).await;
        assert_eq!(told.status, 200);
    }
    let answer = stage.gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.header("x-nimgate-spill")), (200, "outage; from=chat"));
    for (pool, backend) in [("far", &stage.far), ("texts", &stage.texts)] {
        ask(&stage.gateway, "POST", &format!("/pools/{pool}/endpoints/{}/drain", backend.address()), None).await;
    }
    let answer = stage.gateway.chat(false).send().await;
    assert_eq!((answer.status, answer.fault().0), (503, "no_healthy_endpoint"));
}

#[tokio::test]
async fn top_prints_one_picture_where_there_is_no_terminal() {
    let stage = Stage::start().await;
    for kind in [0, 1, 4, 5] {
        stage.send(kind, 0).await;
    }
    let first = stage.near[0].address().to_string();
    let mut picture = String::new();
    until("they are counted", async || {
        picture = cli::good(&stage.gateway, &["top", "--once"]).await;
        picture.contains("connect_refused") && picture.contains("strange")
    })
    .await;
    for part in [
        "nimgate ",
        "ready",
        "requests/s",
        "p99",
        "tokens/s",
        "texts",
        first.as_str(),
        "well",
        "batch",
        "model_not_found",
    ] {
        assert!(picture.contains(part), "{part} in\n{picture}");
    }
    assert!(!picture.contains('\u{1b}'), "plain text");
    println!("{picture}");
    ask(&stage.gateway, "POST", &format!("/pools/chat/endpoints/{first}/drain"), None).await;
    assert!(cli::good(&stage.gateway, &["top"]).await.contains("drained"), "a pipe is no terminal");
    stage.gateway.signal("KILL");
    until("it is gone", async || std::net::TcpStream::connect(stage.gateway.admin).is_err()).await;
    let told = cli::bad(&stage.gateway, &["top", "--once"]).await;
    assert!(told.contains("Connection refused") || told.contains("connection"), "{told}");
}
