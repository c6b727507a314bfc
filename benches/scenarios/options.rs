//! What to run, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use crate::policy::Policy;
use crate::scenario::Scenario;

/// Drives the gateway over simulated NIMs through named scenarios, one policy of balancing after the other.
#[derive(Parser)]
#[command(name = "cargo bench --bench scenarios --")]
pub struct Options {
    /// Scenarios; all but the extra ones unless named.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Policies; all but `default`, which writes no policy into the configuration, unless named.
    #[arg(long, value_delimiter = ',')]
    policy: Vec<String>,
    /// Seconds of traffic that count; what comes before and after takes up to five more.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// What the traffic follows from; the same for each policy.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Prints the table in Markdown.
    #[arg(long)]
    pub markdown: bool,
    /// Drives another gateway than the one built with this bench.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_nimgate"))]
    pub gateway: PathBuf,
    /// Says that cargo runs it as a bench and not as a test.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub fn seconds(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub fn scenarios(&self) -> Result<Vec<&'static Scenario>> {
        chosen(Scenario::ALL, &self.scenario, |s| s.name, |s| s.is_extra)
    }

    pub fn policies(&self) -> Result<Vec<&'static Policy>> {
        chosen(Policy::ALL, &self.policy, |p| p.name, |p| p.is_extra)
    }
}

/// Those that are named, in the order of the table, or all that are not extra.
fn chosen<T>(
    all: &'static [T],
    named: &[String],
    name: fn(&T) -> &'static str,
    is_extra: fn(&T) -> bool,
) -> Result<Vec<&'static T>> {
    if let Some(unknown) = named.iter().find(|n| !all.iter().any(|one| name(one) == n.as_str())) {
        let names: Vec<&str> = all.iter().map(name).collect();
        bail!("{unknown}: expected some of {}", names.join(", "));
    }
    let is_chosen = |one: &&T| if named.is_empty() { !is_extra(one) } else { named.iter().any(|n| n == name(one)) };
    Ok(all.iter().filter(is_chosen).collect())
}
