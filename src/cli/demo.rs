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

const CHAT: &str =
    r#"{"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}"#;
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
    // The simulators live as long as this runtime.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("sim").build()?;
    let simulators = runtime.block_on(simulators())?;
    let directory = write_files(demo, &key, &simulators)?;
    let path = directory.join("nimgate.yaml");
    let config = config::load(&path)?;
    let banner = banner(demo, &directory);
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
fn write_files(demo: &Demo, key: &NewKey, simulators: &[(&'static str, Simulator)]) -> Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("nimgate-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut text = CONFIG.replace("${LISTEN}", &demo.listen.to_string()).replace("${ADMIN}", &demo.admin.to_string());
    text = text.replace("${LLM_FUNCTION}", LLM_FUNCTION);
    for (name, simulator) in simulators {
        text = text.replace(&format!("${{{name}}}"), &simulator.url());
    }
    let keys = format!(
        "keys:\n  - id: {:?}\n    sha256: {:?}\n    name: demo\n    scopes: [\"*\"]\n",
        key.id.as_str(),
        key.hash_text()
    );
    for (name, content) in [("nimgate.yaml", text.as_str()), ("keys.yaml", &keys), ("upstream.key", "nvapi-demo\n")] {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(directory)
}

fn banner(demo: &Demo, directory: &Path) -> String {
    let (url, key) = (format!("http://{}", demo.listen), &demo.key);
    let post = |path: &str, body: &str| {
        format!("curl -sS {url}{path} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'")
    };
    [
        format!("nimgate {} demo: simulated NIM, NVCF and Curator backends\n", env!("CARGO_PKG_VERSION")),
        format!("  gateway   {url}   (base URL of an OpenAI SDK: {url}/v1)"),
        format!("  key       {key}"),
        format!("  APIs      {url}/docs"),
        format!("  admin     http://{}/state, /metrics", demo.admin),
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
        "\nStop with Ctrl-C.\n".into(),
    ]
    .join("\n")
}
