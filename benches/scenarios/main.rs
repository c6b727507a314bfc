//! Scenario bench: what do callers get when the gateway balances LLM engines that are unequal, slow down, fill up or lie?
//!
//! `cargo bench --bench scenarios [-- --scenario noisy,overload --policy work,random --seconds 9 --markdown]`; the whole
//! matrix takes under ten minutes. The gateway is the real process; its endpoints are simulated NIMs that batch
//! continuously. All of it runs on loopback and ends by itself; what is measured and how stands in docs/benchmarks.md.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

mod figures;
mod load;
mod options;
mod plan;
mod policy;
#[path = "../../tests/gateway/port.rs"]
mod port;
#[path = "../macro/process.rs"]
#[expect(dead_code, reason = "here nobody asks for a process's time and memory")]
mod process;
mod report;
mod scenario;
mod stage;

use self::figures::{Figures, Observed};
use self::options::Options;
use self::plan::{Plan, WARM_UP};
use self::policy::Policy;
use self::scenario::{DEADLINE, Scenario};
use self::stage::{Endpoints, Gateway};

/// Time for the gateway and the endpoints to start and to end.
const AROUND: Duration = Duration::from_secs(30);
/// A generator whose requests leave this late measures what else takes the cores.
const LAG: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    // As a test (`cargo test --all-targets`) it only has to build: nobody waits for figures there.
    if !std::env::args().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "scenarios: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // Dropping the bench ends its processes.
        tokio::select! {
            done = bench(options) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn bench(options: &Options) -> Result<()> {
    let (scenarios, policies) = (options.scenarios()?, options.policies()?);
    let mut progress = std::io::stderr();
    let cells = scenarios.len() * policies.len();
    let least = (WARM_UP + options.seconds()).as_secs() * cells as u64;
    writeln!(progress, "{cells} runs: {least} s and up to three more for each")?;
    if cfg!(debug_assertions) {
        writeln!(progress, "A debug build: generator and endpoints cost more than they should.")?;
    }
    let mut all = Vec::new();
    for scenario in scenarios {
        // Both are the same for each policy.
        let capacity = scenario.capacity();
        let plan = Plan::draw(scenario, capacity, options.seconds(), options.seed);
        for policy in &policies {
            let observed = observe(options, scenario, policy, &plan);
            let longest = plan.counted.1 + DEADLINE + AROUND;
            let observed = timeout(longest, observed).await.context("took too long").and_then(|done| done);
            let observed = observed.with_context(|| format!("{} by {}", scenario.name, policy.name))?;
            let figures = Figures::of(scenario, policy.name, capacity, &plan, &observed);
            check(&figures, &mut progress)?;
            all.push(figures);
        }
    }
    let text = if options.markdown { report::markdown(&all) } else { report::table(&all) };
    let mut out = std::io::stdout();
    write!(out, "{text}")?;
    for late in all.iter().filter(|figures| figures.lag > LAG) {
        let (scenario, policy) = (late.scenario, late.policy);
        writeln!(out, "Not to be trusted: {scenario} by {policy}, whose requests left {:?} late", late.lag)?;
    }
    let twice: usize = all.iter().map(|figures| figures.ran_twice).sum();
    ensure!(twice == 0, "{twice} requests ran more than once");
    Ok(())
}

/// One scenario under one policy.
async fn observe(options: &Options, scenario: &Scenario, policy: &Policy, plan: &Plan) -> Result<Observed> {
    let endpoints = Endpoints::start(scenario)?;
    let mut gateway = Gateway::start(&options.gateway, policy, &endpoints).await?;
    let begun = Instant::now();
    let watch = async {
        sleep_until(begun + plan.counted.0).await;
        let before = endpoints.slot_times();
        sleep_until(begun + plan.counted.1).await;
        let after = endpoints.slot_times();
        Ok(after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect())
    };
    let sent = load::send(plan, gateway.address, &gateway.keys, begun);
    let (outcomes, busy, ()) = tokio::try_join!(sent, watch, endpoints.play(scenario, plan, begun))?;
    gateway.require_running()?;
    Ok(Observed { outcomes, busy, hits: endpoints.hits(), ran_twice: endpoints.ran_twice()? })
}

/// Says what would make the figures wrong.
fn check(figures: &Figures, progress: &mut impl std::io::Write) -> Result<()> {
    let (scenario, policy) = (figures.scenario, figures.policy);
    writeln!(progress, "{scenario} by {policy}: {:.0} of {:.0}/s in time", figures.goodput, figures.offered)?;
    if figures.ran_twice > 0 {
        writeln!(progress, "  {} requests ran more than once", figures.ran_twice)?;
    }
    Ok(())
}
