//! Shown: keys, teams and organisations as the admin API shows them. Never a secret, nor its hash.

use axum::http::StatusCode;
use chrono::SecondsFormat;
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;
use crate::auth;
use crate::config::{callers, file};
use crate::directory::{Origin, Roster, Subject};
use crate::proxy::snapshot::Callers;
use crate::quota::limit::{Level, Limit, Metric, Pattern};
use crate::quota::price::units;
use crate::quota::{Account, Limiter, Standing};

/// A key and how its limits stand.
pub(super) fn key(settings: &auth::Settings, origin: Origin, callers: &Callers, limiter: &Limiter) -> Value {
    let time = |time: &chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let standings = callers.book.account(&settings.id).map(|account| limits(account, limiter)).unwrap_or_default();
    let (own, above): (Vec<_>, Vec<_>) = standings.into_iter().partition(|(level, _)| *level == Level::Key);
    let bare = |standings: Vec<(Level, Value)>| standings.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>();
    let mut shown = json!({
        "id": settings.id.as_str(),
        "org": settings.org,
        "team": settings.team,
        "name": settings.name,
        "scopes": settings.scopes,
        "models": settings.models.iter().map(|m| m.as_str()).collect::<Vec<_>>(),
        "pools": settings.pools.iter().map(|p| p.as_str()).collect::<Vec<_>>(),
        "priority": settings.class.word(),
        "weight": settings.weight,
        "expires": settings.expires.as_ref().map(time),
        "disabled": settings.disabled,
        "source": word(origin),
        "limits": bare(own),
        "above": bare(above),
    });
    if let Some(previous) = &settings.previous {
        shown["previous_until"] = time(&previous.until).into();
    }
    shown
}

/// A record that can not be used.
pub(super) fn broken(member: &str, name: &str, reason: &str) -> Value {
    json!({ member: name, "source": word(Origin::Redis), "broken": reason })
}

/// An organisation or a team and how its limits stand.
pub(super) fn group(org: &str, team: Option<&str>, origin: Origin, callers: &Callers, limiter: &Limiter) -> Value {
    let account = callers.book.group(org, team);
    let standings = account.map(|account| limits(account, limiter)).unwrap_or_default();
    let standings: Vec<Value> = standings.into_iter().map(|(_, shown)| shown).collect();
    match team {
        Some(team) => json!({ "org": org, "name": team, "source": word(origin), "limits": standings }),
        None => json!({ "name": org, "source": word(origin), "limits": standings }),
    }
}

fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::File => "file",
        Origin::Redis => "redis",
    }
}

fn limits(account: &Account, limiter: &Limiter) -> Vec<(Level, Value)> {
    let standings = limiter.standings(account);
    account.limits().zip(&standings).map(|(limit, standing)| (standing.level, one(limit, standing))).collect()
}

fn one(limit: &Limit, standing: &Standing) -> Value {
    let amount = |amount: u64| if limit.metric == Metric::Spend { units(amount).into() } else { Value::from(amount) };
    let mut shown = json!({
        "name": &*standing.name,
        "metric": limit.metric.word(),
        "per": limit.unit.map(crate::quota::limit::Unit::word),
        "amount": amount(standing.amount),
        "used": amount(standing.amount.saturating_sub(standing.remaining)),
        "remaining": amount(standing.remaining),
        "resets_in_s": limit.unit.map(|_| (standing.reset.as_secs_f64() * 1000.0).round() / 1000.0),
    });
    let filter = &limit.filter;
    for (name, patterns) in [("models", &filter.models), ("pools", &filter.pools), ("operations", &filter.operations)] {
        if !patterns.is_empty() {
            shown[name] = patterns.iter().map(|Pattern(pattern)| pattern.as_str()).collect();
        }
    }
    if !limit.counts_cached {
        shown["count_cached"] = false.into();
    }
    shown
}

impl State {
    /// Learns how limits stand over all replicas.
    pub(super) async fn look(&self, account: Option<&Account>) {
        if let (Some(store), Some(account)) = (&self.store, account) {
            self.limiter.look(store, account).await;
        }
    }

    /// Refuses to change what is in a file.
    pub(super) fn is_writable(&self, subject: &Subject, roster: &Roster) -> Result<(), Problem> {
        let file = self.keys_file.as_ref().map_or("(none)".into(), |path| path.display().to_string());
        if !self.directory.is_shared() {
            return Err(Problem::conflict(format!(
                "keys are kept in the file {file}; change it there, or keep them in Redis (callers.store: redis)"
            )));
        }
        let origin = match subject {
            Subject::Key(id) => roster.keys.get(id).map(|(_, origin)| *origin),
            Subject::Org(org) => roster.orgs.get(org).copied(),
            Subject::Team(org, team) => roster.teams.get(&(org.clone(), team.clone())).copied(),
        };
        if origin == Some(Origin::File) {
            return Err(Problem::conflict(format!("{subject} is kept in the file {file}; change it there")));
        }
        Ok(())
    }
}

/// What a record is held against, as far as it names others.
#[derive(Default)]
pub(super) struct Check<'a> {
    pub(super) key: Option<file::Key>,
    pub(super) org: Option<file::Org>,
    pub(super) team: Option<file::Team>,
    /// The members that change; what was there before may name what is gone. None for all.
    pub(super) touched: Option<&'a [String]>,
}

impl Check<'_> {
    /// Holds one record against those that there are.
    pub(super) fn run(self, roster: &Roster) -> Result<(), Problem> {
        let (kind, subject) = if self.key.is_some() {
            ("keys", None)
        } else if let Some(team) = &self.team {
            ("teams", Some((team.org.clone(), Some(team.name.clone()))))
        } else {
            ("orgs", self.org.as_ref().map(|org| (org.name.clone(), None)))
        };
        let is_other =
            |org: &str, team: Option<&str>| subject.as_ref().is_none_or(|(o, t)| o != org || t.as_deref() != team);
        // The record under test is the first of its kind.
        let orgs = roster.orgs.keys().filter(|org| is_other(org, None));
        let orgs = orgs.map(|org| file::Org { name: org.clone(), limits: Vec::new() });
        let teams = roster.teams.keys().filter(|(org, team)| is_other(org, Some(team)));
        let teams = teams.map(|(org, name)| file::Team { org: org.clone(), name: name.clone(), limits: Vec::new() });
        let records = file::Keys {
            orgs: self.org.into_iter().chain(orgs).collect(),
            teams: self.team.into_iter().chain(teams).collect(),
            keys: self.key.into_iter().collect(),
        };
        let prefix = format!("/{kind}/0");
        let whose = whose(&records);
        let mut findings = callers(records, &roster.known).findings;
        findings.retain_mut(|finding| {
            let Some(rest) = finding.pointer.strip_prefix(&prefix).map(str::to_owned) else { return false };
            if !rest.is_empty() && !rest.starts_with('/') {
                return false;
            }
            let member = rest.split('/').nth(1).unwrap_or_default();
            let is_touched = self.touched.is_none_or(|touched| touched.iter().any(|t| t == member));
            let counts = is_touched || !finding.is_dangling;
            if finding.is_dangling
                && let Some(way) = whose.as_ref().and_then(|whose| way_out(&rest, kind == "keys", whose))
            {
                finding.reason += &way;
            }
            finding.pointer = rest;
            counts
        });
        Problem::findings(StatusCode::UNPROCESSABLE_ENTITY, &findings).map_or(Ok(()), Err)
    }
}

/// The organisation and the team that the record under test names.
fn whose(records: &file::Keys) -> Option<(String, String)> {
    let key = records.keys.first().map(|key| (key.org.clone(), key.team.clone()));
    key.or_else(|| records.teams.first().map(|team| (team.org.clone(), team.name.clone())))
}

/// What to do where an organisation or a team is not listed, ready to be pasted.
fn way_out(place: &str, is_key: bool, (org, team): &(String, String)) -> Option<String> {
    let quoted = |name: &str| {
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        if is_plain { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
    };
    match place {
        "/org" => {
            let option = if is_key { " (--org)" } else { "" };
            Some(format!("; list it (`nimgate orgs set {} --no-limits`) or name another{option}", quoted(org)))
        }
        "/team" => {
            let whole = quoted(&format!("{org}/{team}"));
            Some(format!("; list it (`nimgate teams set {whole} --no-limits`) or name another (--team)"))
        }
        _ => None,
    }
}
