//! What to measure, and for how long.

use std::path::PathBuf;

use clap::Parser;

use crate::stage::Setting;

/// Measures how exactly replicas share a limit on requests per second, or at a time, through Redis, and what that costs.
#[derive(Parser)]
#[command(name = "cargo bench --bench quota_accuracy --")]
pub struct Options {
    /// Whole windows, of a second each, that are measured in each cell; held places are measured for as long.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Numbers of replicas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    pub replicas: Vec<usize>,
    /// Limits, in requests per second; without any, only held places are measured.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [10, 100, 10_000],
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub limits: Vec<u64>,
    /// Milliseconds added to each round trip to Redis.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 2, 10],
        value_parser = clap::value_parser!(u64).range(0..=200))]
    pub rtt: Vec<u64>,
    /// Limits, in requests at a time; without any, only windows are measured.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [10, 100, 1000],
        value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub places: Vec<u64>,
    /// Numbers of replicas that share places.
    #[arg(long, value_delimiter = ',', default_values_t = [4])]
    pub place_replicas: Vec<usize>,
    /// Mean milliseconds that a place is held.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub hold_ms: u64,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Says that cargo runs it as a bench and not as a test.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// A cell for each of these limits, delay, and number of replicas.
    pub fn settings(&self, limits: &[u64], replicas: &[usize]) -> Vec<Setting> {
        let mut settings = Vec::new();
        for limit in limits {
            for rtt in &self.rtt {
                settings.extend(replicas.iter().map(|r| Setting { replicas: *r, limit: *limit, rtt: *rtt }));
            }
        }
        settings
    }
}
