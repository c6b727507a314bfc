//! What to measure, and for how long.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use crate::target::Target;
use crate::workload::Workload;

/// Compares nimgate with no proxy, a bare pingora pass-through and nginx on the same upstream, in interleaved rounds.
#[derive(Parser)]
#[command(name = "cargo bench --bench macro --")]
pub struct Options {
    /// Rounds; each measures every cell once, and the medians over the rounds are printed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Times that everything is started anew, with all rounds each time: one process of a program may be a tenth faster
    /// than the next, for as long as it lives.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub stages: u32,
    /// Seconds for which a cell is measured in a round.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Workloads and targets to measure, separated by commas; all but the extra ones if none is named.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// Connections of the load generator, each with one request at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32], value_parser = clap::value_parser!(u16).range(1..=512))]
    pub connections: Vec<u16>,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Says that cargo runs it as a bench and not as a test.
    #[arg(long, hide = true)]
    bench: bool,
    /// The part that this process plays for the bench that started it.
    #[arg(long, hide = true)]
    pub role: Option<Role>,
    /// Where the part listens.
    #[arg(long, hide = true, requires = "role")]
    pub listen: Option<SocketAddr>,
    /// What the part forwards to.
    #[arg(long, hide = true, requires = "role")]
    pub upstream: Option<SocketAddr>,
}

/// A part that a child process plays.
#[derive(Clone, Copy, ValueEnum)]
pub enum Role {
    /// The backend.
    Upstream,
    /// The pass-through.
    Pingora,
}

impl Options {
    /// The chosen workloads, in their order.
    pub fn workloads(&self) -> Result<Vec<Workload>> {
        let all = Workload::all();
        let named = |name: &str| self.only.iter().any(|n| n == name);
        if let Some(unknown) = self.only.iter().find(|n| {
            let is_target = Target::ALL.iter().any(|t| t.name() == n.as_str());
            !is_target && all.iter().all(|w| w.name != n.as_str())
        }) {
            let workloads = all.iter().map(|w| w.name);
            let names: Vec<&str> = workloads.chain(Target::ALL.iter().map(|t| t.name())).collect();
            bail!("--only {unknown}: expected some of {}", names.join(", "));
        }
        let any = all.iter().any(|w| named(w.name));
        Ok(all.into_iter().filter(|w| if any { named(w.name) } else { !w.extra }).collect())
    }

    /// Whether a target was chosen.
    pub fn chose(&self, target: Target) -> bool {
        let named = |t: Target| self.only.iter().any(|n| n == t.name());
        named(target) || (!target.is_extra() && !Target::ALL.into_iter().any(named))
    }
}

fn seconds(text: &str) -> Result<f64> {
    let seconds: f64 = text.parse()?;
    if !(0.05..=60.0).contains(&seconds) {
        bail!("expected 0.05 to 60");
    }
    Ok(seconds)
}
