//! Demo: the real gateway over simulated backends, by a configuration that is written out to read and change.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use super::Demo;
use crate::auth::NewKey;
use crate::config;
use crate::server;
use crate::sim::{self, Kind, LLM_FUNCTION, Settings, Simulator};

/// The key that the demo takes unless told otherwise.
pub const DEMO_KEY: &str = "ngk_demo_0123456789abcdef";

const CONFIG: &str = include_str!("../../config/demo.yaml");

/// Limits of the demo's second key, small enough to be met by hand.
const LIMITS: &str = "[{requests: 2, per: second}, {concurrency: 2}, {total_tokens: 20000, per: day}]";

const CHAT: &str =
    r#"{"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}"#;
const SHORT_CHAT: &str =
    r#"{"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}"#;
const VISION: &str =
    r#"{"model": "nvidia/cosmos-reason1-7b", "messages": [{"role": "user", "content": "Count"}], "stream": true}"#;

/// The simulators, and the names by which the configuration calls their URLs.
const BACKENDS: [(&str, Kind); 9] = [
    ("CHAT_0", Kind::Llm),
    ("CHAT_1", Kind::Llm),
    ("VISION", Kind::Vlm),
    ("PREDICT", Kind::CosmosPredict),
    ("EMBED_VIDEO", Kind::CosmosEmbed1),
    ("EMBED_TEXT", Kind::Embedding),
    ("RERANK", Kind::Reranking),
    ("NVCF", Kind::Nvcf),
    ("CURATOR", Kind::Curator),
];

/// Runs until interrupted.
pub(super) fn run(demo: &Demo, mut out: impl Write + Send + 'static) -> Result<()> {
    let key = NewKey::from_text(&demo.key).ok_or_else(|| anyhow!("--key: expected the form ngk_ID_SECRET"))?;
    let limited = limited(&key)?;
    // The simulators live as long as this runtime.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("sim").build()?;
    let simulators = runtime.block_on(simulators())?;
    let directory = write_files(demo, [&key, &limited], &simulators)?;
    let path = directory.join("nimgate.yaml");
    let config = config::load(&path)?;
    let banner = banner(demo, &limited, &directory);
    server::run(config, Some(path), move || {
        let _ = out.write_all(banner.as_bytes()).and_then(|()| out.flush());
    })?;
    let _ = std::fs::remove_dir_all(directory);
    Ok(())
}

async fn simulators() -> Result<Vec<(&'static str, Simulator)>> {
    let mut started = Vec::new();
    for (name, kind) in BACKENDS {
        started.push((name, sim::start(kind, Settings::default()).await.context("starting a simulator")?));
    }
    Ok(started)
}

/// Writes the configuration, the keys file and a stand-in credential into a directory of this process.
fn write_files(demo: &Demo, [key, limited]: [&NewKey; 2], simulators: &[(&'static str, Simulator)]) -> Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("nimgate-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut text = CONFIG.replace("${LISTEN}", &demo.listen.to_string()).replace("${ADMIN}", &demo.admin.to_string());
    text = text.replace("${LLM_FUNCTION}", LLM_FUNCTION);
    for (name, simulator) in simulators {
        text = text.replace(&format!("${{{name}}}"), &simulator.url());
    }
    let record = |key: &NewKey, name: &str, limits: &str| {
        let (id, hash) = (key.id.as_str(), key.hash_text());
        format!("  - id: {id:?}\n    sha256: {hash:?}\n    name: {name}\n    scopes: [\"*\"]\n    limits: {limits}\n")
    };
    let keys = format!("keys:\n{}{}", record(key, "demo", "[]"), record(limited, "limited", LIMITS));
    for (name, content) in [("nimgate.yaml", text.as_str()), ("keys.yaml", &keys), ("upstream.key", "nvapi-demo\n")] {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(directory)
}

/// A second key with the same secret, so that whoever chose one has chosen both.
fn limited(key: &NewKey) -> Result<NewKey> {
    let secret = key.text.splitn(3, '_').nth(2).unwrap_or_default();
    NewKey::from_text(&format!("ngk_{}-limited_{secret}", key.id))
        .ok_or_else(|| anyhow!("--key: no id before its secret"))
}

fn banner(demo: &Demo, limited: &NewKey, directory: &Path) -> String {
    let (url, key, limited) = (format!("http://{}", demo.listen), &demo.key, &limited.text);
    let post_as = |key: &str, path: &str, body: &str| {
        format!("curl -sS {url}{path} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'")
    };
    let post = |path: &str, body: &str| post_as(key, path, body);
    [
        format!("nimgate {} demo: simulated NIM, NVCF and Curator backends\n", env!("CARGO_PKG_VERSION")),
        format!("  gateway   {url}   (base URL of an OpenAI SDK: {url}/v1)"),
        format!("  key       {key}"),
        format!("  limited   {limited}   (2 requests a second, 2 at a time, 20000 tokens a day)"),
        format!("  APIs      {url}/docs"),
        format!("  admin     http://{}/console, /state, /metrics", demo.admin),
        format!("  files     {}   (nimgate.yaml is reloaded when it changes; access.log)", directory.display()),
        "\nA chat:".into(),
        post("/v1/chat/completions", CHAT),
        "\nA stream from a vision model:".into(),
        format!("{} -N", post("/v1/chat/completions", VISION)),
        "\nEmbeddings:".into(),
        post("/v1/embeddings", r#"{"model": "nvidia/nv-embedqa-e5-v5", "input": ["GPU"], "input_type": "query"}"#),
        "\nRefused before a GPU second is spent, since the width is no multiple of 8:".into(),
        post("/v1/infer", r#"{"prompt": "a rainy street", "video_params": {"height": 704, "width": 1281}}"#),
        "\nA slow cloud function, which answers 202 to be polled:".into(),
        format!(
            "{} -i -H 'NVCF-POLL-SECONDS: 1'",
            post(&format!("/v2/nvcf/pexec/functions/{}", sim::SLOW_FUNCTION), "{}")
        ),
        "\nCurator's datasets:".into(),
        format!("curl -sS '{url}/v1/cosmos/datasets?filter=by:org' -H 'Authorization: Bearer {key}'"),
        "\nA failure, and whose it is (x-nimgate-error, x-nimgate-blame):".into(),
        format!("{} -i -H 'x-sim-fault: status=503'", post("/v1/chat/completions", CHAT)),
        "\nOf four requests in a second, limits refuse two (429), and say when to come back:".into(),
        format!(
            "for i in 1 2 3 4; do {} -w '\\n%{{http_code}}\\n'; done",
            post_as(limited, "/v1/chat/completions", SHORT_CHAT)
        ),
        "\nStop with Ctrl-C.\n".into(),
    ]
    .join("\n")
}
