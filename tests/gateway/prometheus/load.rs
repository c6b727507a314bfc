//! A gateway in which everything happens that metrics count.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nimgate::sim::{ECHO_FUNCTION, UNREACHABLE_FUNCTION};
use serde_json::{Value, json};

use crate::collector::Collector;
use crate::redis::RedisServer;
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "meta/llama-3.1-8b-instruct";
const TEXTS: &str = "nvidia/nv-embedqa-e5-v5";
/// A key with limits of its own, its team's and its organisation's, which it soon reaches.
const LIMITED: &str = "ngk_limited_0123456789abcdef";
/// Requests in which endpoints are not known to be slow yet.
const WARM: usize = 10;

/// A gateway with all that stands around it.
pub struct Loaded {
    pub gateway: Gateway,
    slow: Simulator,
    rounds: AtomicUsize,
    _backends: Vec<Simulator>,
    _redis: RedisServer,
    _collector: Collector,
}

/// A pool of chats with a model of this name.
fn chats(name: &str, more: &str) -> String {
    format!("models: [{{id: {name}, backend_model: {MODEL}}}]\ntimeouts: {{first_event_ms: 0}}\n{more}")
}

impl Loaded {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("upstream.key"), "nvapi-upstream").unwrap();
        crate::tls::certificate(directory.path(), "edge", "gateway.test");
        let (redis, collector) = (RedisServer::start().await, Collector::start().await);
        let (llm, other, platform) =
            (simulator(Kind::Llm).await, simulator(Kind::Llm).await, simulator(Kind::Nvcf).await);
        let (slow, quick) = (simulator(Kind::Embedding).await, simulator(Kind::Embedding).await);
        let dead = format!("http://{}", free_address());
        let (url, dead) = (llm.url(), dead.as_str());
        let one = "health: {enabled: false}\nmetrics: {enabled: false}\nbalance: {max_in_flight: 1}";
        let turns = "health: {enabled: false}\nmetrics: {enabled: false}\nbalance: {policy: round_robin}";
        let function = |name: &str, id: &str, more: &str| {
            let function =
                format!("function: {{id: {id}, invocation: pexec}}\ncredential: {{secret: {{file: upstream.key}}}}");
            format!("kind: nvcf\nmodels: [{{id: {name}, backend_model: {MODEL}}}]\n{function}\n{more}")
        };
        let texts =
            |name: &str, more: &str| format!("models: [{{id: {name}, backend_model: {TEXTS}}}]\n{turns}\n{more}");
        let top = format!(
            "redis: {{addresses: ['{}'], timeout_ms: 500}}\nquotas: {{write_every_ms: 100}}\n\
             prices: [{{model: '*', input_per_million: 1000, output_per_million: 1000, per_request: 1}}]\n\
             telemetry: {{traces: {{sample: 1}}, otlp: {{endpoint: 'http://{}', delay_ms: 20, metrics_interval_s: 1}}}}",
            redis.address(),
            collector.address()
        );
        let setup = Gateway::setup()
            .listener(&format!(
                "http2_cleartext: false\n  - address: {}\n    tls: {{certificate_file: edge.crt, key_file: edge.key}}",
                free_address()
            ))
            .top(&top)
            .accounts(
                "orgs: [{name: default}, {name: acme, limits: [{requests: 1000, per: month}]}]\n\
                 teams: [{org: default, name: default}, {org: acme, name: search, limits: [{requests: 100, per: day}]}]",
            )
            .key(LIMITED, "org: acme\nteam: search\nlimits: [{requests: 4, per: day}, {spend: 1000, per: month}]")
            .pool(
                "chat",
                "nim-llm",
                &format!("models: [{{id: {MODEL}}}]\nmetrics: {{interval_ms: 50}}\nshadow: {{pool: next, percent: 100}}"),
                &[&url, &other.url()],
            )
            .pool("next", "nim-llm", &format!("models: [{{id: {MODEL}}}]\nvalidation: 'off'"), &[&url])
            .pool("narrow", "nim-llm", &chats("narrow", &format!("{one}\nqueue: {{max: 1}}")), &[&url])
            .pool("near", "nim-llm", &chats("near", &format!("{one}\nspill: {{to: [far]}}")), &[&url])
            .pool("far", "nim-llm", &chats("near", "health: {enabled: false}"), &[&url])
            .pool("flaky", "nim-llm", &chats("flaky", turns), &[dead, &url])
            .pool("down", "nim-llm", &chats("down", "health: {enabled: false}\nbreaker: {open_ms: 10, longest_ms: 10}"), &[dead])
            .pool("unreachable", "nim-llm", &function("unreachable", UNREACHABLE_FUNCTION, ""), &[&platform.url()])
            .pool("vision", "nim-vlm", &function("eyes", ECHO_FUNCTION, "assets: {above_kib: 1}"), &[&platform.url()])
            .pool(
                "texts",
                "nim-embedding",
                &texts("texts", "cache: {enabled: true, revision_interval_ms: 50}"),
                &[&quick.url()],
            )
            .pool(
                "hedged",
                "nim-embedding",
                &texts("hedged", "hedge: {enabled: true, budget_percent: 100, after_ms: 20}"),
                &[&slow.url(), &quick.url()],
            );
        let gateway = setup.start_in(directory).await;
        until("limits are shared", async || gateway.admin("/readyz").await.json()["redis"]["limits"] == "shared").await;
        until("the cache is in use", async || gateway.pool("texts").await["cache"]["revision"].is_string()).await;
        let loaded = Self {
            gateway,
            slow,
            rounds: AtomicUsize::new(0),
            _backends: vec![llm, other, platform, quick],
            _redis: redis,
            _collector: collector,
        };
        for _ in 0..WARM {
            assert_eq!(loaded.embed("hedged", &json!("warm")).await.status, 200);
        }
        loaded.slow.fault("hang").unwrap();
        loaded
    }

    /// Lets everything happen once more.
    pub async fn round(&self) {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        for stream in [true, false] {
            assert_eq!(self.gateway.chat(stream).send().await.status, 200);
        }
        self.fail().await;
        self.crowd(round).await;
        for texts in [json!(["known"]), json!(["known", format!("new {round}")])] {
            assert_eq!(self.embed("texts", &texts).await.status, 200);
        }
        for _ in 0..2 {
            assert_eq!(self.embed("hedged", &json!(["x"])).await.status, 200);
        }
        let image = format!("data:image/png;base64,{}", STANDARD.encode(vec![7; 2000]));
        let part = json!({"type": "image_url", "image_url": {"url": image}});
        let look = json!({"model": "eyes", "messages": [{"role": "user", "content": [part]}]});
        let seen = self.gateway.post(CHAT, &look).send().await;
        assert_eq!(seen.status, 200, "{}", seen.text());
        for _ in 0..2 {
            assert_eq!(self.chat("flaky", false).send().await.status, 200);
        }
        until("a limit refuses", async || self.gateway.chat(false).key(LIMITED).send().await.status == 429).await;
    }

    /// One failure of everybody's.
    async fn fail(&self) {
        let broken = self.gateway.chat(false).header("x-sim-fault", "status=500");
        for (ask, blame) in [
            (self.gateway.chat(false).anonymous(), "client"),
            (broken, "inference-service"),
            (self.chat("down", false), "network"),
            (self.chat("unreachable", false), "platform"),
        ] {
            let answer = ask.send().await;
            assert_eq!(answer.fault().1, blame, "{}", answer.text());
        }
    }

    /// One request too many for the pools with one place: the first waits or goes elsewhere, the second is refused.
    async fn crowd(&self, round: usize) {
        let gate = format!("held-{round}");
        let hold = async |model: &str| self.chat(model, true).header("x-sim-gate", &gate).begin().await;
        let held = [hold("narrow").await, hold("near").await];
        assert_eq!(self.chat("near", false).send().await.header("x-nimgate-pool"), "far");
        let waits = self.chat("narrow", false).send();
        let release = async {
            self.gateway.until_waiting("narrow", 1).await;
            let refused = self.chat("narrow", false).send().await;
            assert_eq!(refused.fault(), ("queue_full", "gateway"), "{}", refused.text());
            drop(held);
        };
        let (waited, ()) = tokio::join!(waits, release);
        assert_eq!(waited.status, 200, "{}", waited.text());
        // The next round finds both places free.
        self.gateway.until_idle().await;
    }

    fn chat(&self, model: &str, stream: bool) -> Ask<'_> {
        let mut body = chat(stream);
        body["model"] = model.into();
        self.gateway.post(CHAT, &body)
    }

    async fn embed(&self, model: &str, input: &Value) -> Answer {
        let body = json!({"model": model, "input": input, "input_type": "query"});
        self.gateway.post("/v1/embeddings", &body).send().await
    }
}
