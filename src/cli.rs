//! Cli: the commands, and what each of them does.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{self, file};
use crate::proxy::snapshot::Snapshot;
use crate::quota::Limiter;
use crate::server;

mod cache;
mod demo;
mod groups;
mod keys;
mod limit;
mod remote;
mod sim;
mod table;
mod top;
mod usage;

pub use cache::Cache;
pub use demo::DEMO_KEY;
pub use groups::{Orgs, Teams};
pub use keys::{Keys, NewKeyArgs};
pub use top::Top;
pub use usage::Usage;

/// The gateway in front of NVIDIA inference: keys, schema validation, routing and blame for NIM and NVCF.
#[derive(Parser, Debug)]
#[command(version, about, long_about = None, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve by a configuration file. SIGHUP reloads it, SIGTERM stops without cutting requests.
    Serve {
        /// The configuration file; config/nimgate.yaml shows every key.
        #[arg(long, short, value_name = "FILE", env = "NIMGATE_CONFIG")]
        config: PathBuf,
    },
    /// Check a configuration file and all that it names. Lists every mistake with file, line and key; exits with 1 if
    /// there are any.
    Check {
        /// The configuration file.
        #[arg(long, short, value_name = "FILE", env = "NIMGATE_CONFIG")]
        config: PathBuf,
    },
    /// Serve with simulated NIM, NVCF and Curator backends, and print commands to try.
    Demo(Demo),
    /// Run one simulated backend by itself, to try a gateway against backends that are slowed, stopped or killed.
    Sim(Sim),
    /// Make API keys, and manage those that a running gateway keeps in Redis.
    Keys {
        /// What to do with keys.
        #[command(subcommand)]
        command: Keys,
    },
    /// Manage teams and their limits.
    Teams {
        /// What to do with teams.
        #[command(subcommand)]
        command: Teams,
    },
    /// Manage organisations and their limits.
    Orgs {
        /// What to do with organisations.
        #[command(subcommand)]
        command: Orgs,
    },
    /// See and forget kept vectors.
    Cache {
        /// What to do with them.
        #[command(subcommand)]
        command: Cache,
    },
    /// Show who used what.
    Usage(Usage),
    /// Watch a running gateway in a terminal: rates, pools, callers, failures. The page /console shows more.
    Top(Top),
    /// Print the JSON Schema of the configuration file, for editors.
    Schema {
        /// Of the keys file instead.
        #[arg(long)]
        keys: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where the demo listens, and its key.
#[derive(Args, Debug)]
pub struct Demo {
    /// Where callers connect.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where operators connect.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub admin: SocketAddr,
    /// The key that callers send; `ngk_ID_SECRET`.
    #[arg(long, value_name = "KEY", default_value = DEMO_KEY)]
    pub key: String,
}

/// Which backend to simulate, and how.
#[derive(Args, Debug)]
pub struct Sim {
    /// The API of the container: nim-llm, nim-vlm, nim-embedding, nim-reranking, cosmos-predict, cosmos-embed1; or nvcf,
    /// nemo-curator.
    #[arg(long, value_name = "API", value_parser = sim::kind)]
    pub kind: crate::sim::Kind,
    /// Where it listens.
    #[arg(long, value_name = "ADDR")]
    pub address: SocketAddr,
    /// Requests that it computes at once.
    #[arg(long, default_value_t = 8)]
    pub slots: usize,
    /// Milliseconds to the first token, and for a whole embedding or ranking.
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub first_token_ms: u64,
    /// Milliseconds between two tokens.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    pub token_ms: u64,
    /// Append the x-request-id of each request that it begins to compute to this file.
    #[arg(long, value_name = "FILE")]
    pub run_log: Option<PathBuf>,
}

/// Runs one command. What it has to say goes to `out`; `Ok(false)` means that it found mistakes.
pub fn run(cli: Cli, mut out: impl Write + Send + 'static) -> Result<bool> {
    match cli.command {
        Command::Serve { config } => {
            let loaded = config::load(&config)?;
            let listeners = loaded.listeners.iter().map(|l| l.address.to_string()).collect::<Vec<_>>().join(", ");
            let admin = loaded.admin.address;
            server::run(loaded, Some(config), move || tracing::info!(%listeners, %admin, "serving"))?;
        }
        Command::Check { config } => return check(&config, &mut out),
        Command::Demo(demo) => demo::run(&demo, out)?,
        Command::Sim(sim) => sim::run(sim, &mut out)?,
        Command::Keys { command } => keys::run(command, &mut out)?,
        Command::Teams { command } => groups::teams(command, &mut out)?,
        Command::Orgs { command } => groups::orgs(command, &mut out)?,
        Command::Cache { command } => cache::run(command, &mut out)?,
        Command::Usage(usage) => usage::run(&usage, &mut out)?,
        Command::Top(top) => top::run(&top, &mut out)?,
        Command::Schema { keys } => {
            let schema = if keys { config::schema::<file::Keys>() } else { config::schema::<file::File>() };
            writeln!(out, "{}", serde_json::to_string_pretty(&schema)?)?;
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "nimgate", &mut out);
        }
    }
    Ok(true)
}

fn check(path: &Path, out: &mut impl Write) -> Result<bool> {
    let checked = config::load(path).map_err(|mistakes| mistakes.to_string()).and_then(|config| {
        let (pools, keys) = (config.proxy.pools.len(), config.proxy.keys.len());
        Snapshot::build(config.proxy, &Limiter::local(), None).map(|_| (pools, keys))
    });
    match &checked {
        Ok((pools, keys)) => writeln!(out, "{}: ok, {pools} pools, {keys} keys", path.display())?,
        Err(mistakes) => writeln!(out, "{mistakes}")?,
    }
    Ok(checked.is_ok())
}
