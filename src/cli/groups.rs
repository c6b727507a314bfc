//! Groups: teams and organisations of a running gateway.

use std::io::Write;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use http::Method;
use serde_json::Value;

use super::limit::Limits;
use super::remote::{Remote, Shape, query};
use super::table;
use crate::directory::encoded;

/// What to do with teams.
#[derive(Subcommand, Debug)]
pub enum Teams {
    /// List the teams that have a record.
    List {
        /// Only those of this organisation.
        #[arg(long)]
        org: Option<String>,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a team and how its limits stand.
    Show {
        /// The organisation and the team.
        #[arg(value_name = "ORG/TEAM")]
        team: String,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a team, or replace its limits.
    Set {
        /// The organisation and the team.
        #[arg(value_name = "ORG/TEAM")]
        team: String,
        /// The new limits.
        #[command(flatten)]
        limits: Limits,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Take away a team that has no keys.
    Delete {
        /// The organisation and the team.
        #[arg(value_name = "ORG/TEAM")]
        team: String,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
}

/// What to do with organisations.
#[derive(Subcommand, Debug)]
pub enum Orgs {
    /// List the organisations that have a record.
    List {
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Show an organisation and how its limits stand.
    Show {
        /// The organisation.
        org: String,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Make an organisation, or replace its limits.
    Set {
        /// The organisation.
        org: String,
        /// The new limits.
        #[command(flatten)]
        limits: Limits,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Take away an organisation that has neither keys nor teams.
    Delete {
        /// The organisation.
        org: String,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn teams(command: Teams, out: &mut impl Write) -> Result<()> {
    match command {
        Teams::List { org, shape, remote } => {
            let query = query(&[("limit", Some("1000")), ("org", org.as_deref())]);
            list(out, &remote.list(&format!("/teams?{query}"), "teams")?, shape)
        }
        Teams::Show { team, shape, remote } => show(out, &remote.json(Method::GET, &team_path(&team)?, None)?, shape),
        Teams::Set { team, limits, shape, remote } => {
            show(out, &remote.json(Method::PUT, &team_path(&team)?, Some(&limits.body()))?, shape)
        }
        Teams::Delete { team, remote } => {
            remote.json(Method::DELETE, &team_path(&team)?, None)?;
            Ok(writeln!(out, "the team {team} is deleted")?)
        }
    }
}

pub(super) fn orgs(command: Orgs, out: &mut impl Write) -> Result<()> {
    match command {
        Orgs::List { shape, remote } => list(out, &remote.list("/orgs?limit=1000", "orgs")?, shape),
        Orgs::Show { org, shape, remote } => show(out, &remote.json(Method::GET, &org_path(&org)?, None)?, shape),
        Orgs::Set { org, limits, shape, remote } => {
            show(out, &remote.json(Method::PUT, &org_path(&org)?, Some(&limits.body()))?, shape)
        }
        Orgs::Delete { org, remote } => {
            remote.json(Method::DELETE, &org_path(&org)?, None)?;
            Ok(writeln!(out, "the organisation {org} is deleted")?)
        }
    }
}

fn org_path(org: &str) -> Result<String> {
    ensure!(!org.is_empty(), "an organisation has a name");
    Ok(format!("/orgs/{}", encoded(org)))
}

fn team_path(team: &str) -> Result<String> {
    let names = team.split_once('/').filter(|(org, team)| !org.is_empty() && !team.is_empty());
    let (org, team) = names.context("expected ORG/TEAM, such as acme/search")?;
    Ok(format!("/teams/{}/{}", encoded(org), encoded(team)))
}

/// The name, with the organisation before it where it has one.
fn name(group: &Value) -> String {
    let org = group["org"].as_str().map(|org| format!("{org}/")).unwrap_or_default();
    format!("{org}{}", table::cell(&group["name"]))
}

fn list(out: &mut impl Write, groups: &[Value], shape: Shape) -> Result<()> {
    if shape.json {
        return table::json(out, &groups.into());
    }
    let row = |group: &Value| vec![name(group), table::cell(&group["source"]), table::limits(&group["limits"])];
    table::print(out, &["name", "source", "limits"], &groups.iter().map(row).collect::<Vec<_>>())
}

fn show(out: &mut impl Write, group: &Value, shape: Shape) -> Result<()> {
    if shape.json {
        return table::json(out, group);
    }
    list(out, std::slice::from_ref(group), shape)?;
    table::standings(out, group["limits"].as_array().into_iter().flatten())
}
