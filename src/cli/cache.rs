//! Cache: kept vectors of a running gateway.

use std::io::Write;

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::remote::Remote;

/// What to do with kept vectors.
#[derive(Subcommand, Debug)]
pub enum Cache {
    /// Forget vectors, in every replica.
    Purge {
        /// Whose.
        #[command(flatten)]
        subject: Subject,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what pools keep, as JSON.
    Show {
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Which vectors.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// Those of a pool.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Those of a model.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Those of an organisation's callers.
    #[arg(long, value_name = "NAME")]
    org: Option<String>,
    /// All.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(command: Cache, out: &mut impl Write) -> Result<()> {
    match command {
        Cache::Purge { subject, remote } => {
            let Subject { pool, model, org, .. } = subject;
            let named = [("pool", pool), ("model", model), ("org", org)];
            let named = named.into_iter().find_map(|(name, value)| Some(json!({ name: value? })));
            remote.json(Method::POST, "/cache/purge", Some(&named.unwrap_or_else(|| json!({ "all": true }))))?;
            writeln!(out, "forgotten")?;
        }
        Cache::Show { remote } => {
            let state = remote.json(Method::GET, "/state", None)?;
            let pools = state["pools"].as_array().into_iter().flatten();
            let kept: serde_json::Map<String, Value> = pools
                .filter(|pool| !pool["cache"].is_null())
                .map(|pool| (pool["name"].as_str().unwrap_or_default().to_owned(), pool["cache"].clone()))
                .collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&kept)?)?;
        }
    }
    Ok(())
}
