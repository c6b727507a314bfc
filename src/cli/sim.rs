//! Sim: one simulated backend as a process of its own.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Sim;
use crate::sim::{self, Kind, Settings};

/// Runs until it is killed.
pub(super) fn run(sim: Sim, out: &mut impl Write) -> Result<()> {
    let settings = Settings {
        listen: sim.address,
        slots: sim.slots,
        time_to_first_token: Duration::from_millis(sim.first_token_ms),
        token_interval: Duration::from_millis(sim.token_ms),
        run_log: sim.run_log,
        ..Settings::default()
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("sim").build()?;
    runtime.block_on(async {
        let simulator = sim::start(sim.kind, settings).await.context("starting the simulator")?;
        writeln!(out, "{}", simulator.url())?;
        out.flush()?;
        std::future::pending().await
    })
}

/// A kind of backend by the name of its API.
pub(super) fn kind(name: &str) -> Result<Kind, String> {
    Ok(match name {
        "nim-llm" => Kind::Llm,
        "nim-vlm" => Kind::Vlm,
        "nim-embedding" => Kind::Embedding,
        "nim-reranking" => Kind::Reranking,
        "cosmos-predict" => Kind::CosmosPredict,
        "cosmos-embed1" => Kind::CosmosEmbed1,
        "nvcf" => Kind::Nvcf,
        "nemo-curator" => Kind::Curator,
        _ => return Err("expected nim-llm, nim-vlm, nim-embedding, nim-reranking, cosmos-predict, cosmos-embed1, nvcf or nemo-curator".into()),
    })
}
