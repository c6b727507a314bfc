//! Roster: the configuration's own callers and the stored ones, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::record::{Record, Stored, Subject};
use crate::auth::{self, KeyRing};
use crate::config::{self, Known, file};
use crate::proxy::snapshot::{Callers, Snapshot};
use crate::quota::limit::Limit;
use crate::quota::{self, Limiter};

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the keys file.
    File,
    /// In Redis.
    Redis,
}

/// Who there is. By name, so that lists have an order.
#[derive(Default)]
pub struct Roster {
    /// The keys, by id.
    pub keys: BTreeMap<String, (auth::Settings, Origin)>,
    /// The organisations that are listed.
    pub orgs: BTreeMap<String, Origin>,
    /// The teams that are listed, by organisation and name.
    pub teams: BTreeMap<(String, String), Origin>,
    /// Records that can not be used, and why; and keys that can not because of such a record.
    pub broken: BTreeMap<Subject, String>,
    /// The names that records may use.
    pub known: Known,
    /// Limits of stored teams and organisations, as they were last understood.
    understood: BTreeMap<Subject, Vec<Limit>>,
    /// What records name that is not there; told when it changes.
    dangling: BTreeSet<(Subject, String)>,
}

/// Compiles callers. The file wins over a record of the same name. Records that are wrong in themselves are left out:
/// such a key does not work. The limits of such a team or organisation stay what they were `before`; where nobody knows
/// them, none of its keys works.
pub(super) fn build(
    snapshot: &Snapshot,
    limiter: &Limiter,
    records: &BTreeMap<String, Arc<Stored>>,
    before: &Roster,
    is_complete: bool,
) -> (Callers, Roster) {
    let own = &snapshot.own;
    let pools = snapshot.pools.iter().map(|pool| &pool.settings);
    let known = Known::new(&snapshot.catalogue, pools).priced(&own.quota.prices);
    let mut roster = Roster { known, ..Roster::default() };
    roster.keys.extend(own.keys.iter().map(|key| (key.id.to_string(), (key.clone(), Origin::File))));
    roster.orgs.extend(own.quota.orgs.keys().map(|org| (org.clone(), Origin::File)));
    roster.teams.extend(own.quota.teams.keys().map(|team| (team.clone(), Origin::File)));
    let sorted = sort(records, &mut roster);
    let subjects = Subjects::of(&sorted);
    let config::Callers { keys, mut quota, findings } = config::callers(sorted, &roster.known);
    for finding in findings {
        let Some(subject) = subjects.at(&finding.pointer) else { continue };
        if !finding.is_dangling {
            roster.broken.entry(subject).or_insert(finding.reason);
        } else if !finding.pointer.ends_with("/org") && !finding.pointer.ends_with("/team") {
            // That a team is listed nowhere is no reason to tell anybody: it has no limits then.
            roster.dangling.insert((subject, finding.reason));
        }
    }
    let unclear = unclear(&mut roster, before, &mut quota);
    let is_clear = |org: &str, team: &str| {
        unclear.is_empty()
            || !unclear.contains(&Subject::Org(org.to_owned()))
                && !unclear.contains(&Subject::Team(org.to_owned(), team.to_owned()))
    };
    let mut merged = quota::Settings { orgs: quota.orgs, teams: quota.teams, ..own.quota.clone() };
    merged.keys.retain(|key| is_clear(&key.org, &key.team));
    roster.orgs.extend(merged.orgs.keys().map(|org| (org.clone(), Origin::Redis)));
    roster.teams.extend(merged.teams.keys().map(|team| (team.clone(), Origin::Redis)));
    merged.orgs.extend(own.quota.orgs.clone());
    merged.teams.extend(own.quota.teams.clone());
    for (key, limits) in keys.into_iter().zip(quota.keys) {
        if is_clear(&key.org, &key.team) {
            merged.keys.push(limits);
        }
        roster.keys.insert(key.id.to_string(), (key, Origin::Redis));
    }
    let all = || roster.keys.values().map(|(key, _)| key);
    let ring = KeyRing::new(all().filter(|key| is_clear(&key.org, &key.team)).cloned());
    let cut_off = all().filter(|key| !is_clear(&key.org, &key.team)).map(|key| {
        let reason = format!("its team {}/{} or that organisation can not be understood", key.org, key.team);
        (Subject::Key(key.id.to_string()), reason)
    });
    let cut_off: Vec<_> = cut_off.collect();
    let count = cut_off.len();
    roster.broken.extend(cut_off);
    warn(&roster, before, count);
    (Callers { keys: ring, book: limiter.book(&merged), is_complete }, roster)
}

/// Gives broken teams and organisations the limits that they had, and tells whose limits nobody knows.
fn unclear(roster: &mut Roster, before: &Roster, quota: &mut quota::Settings) -> BTreeSet<Subject> {
    let mut unclear = BTreeSet::new();
    for subject in roster.broken.keys() {
        let held = before.understood.get(subject).cloned();
        match (subject, held) {
            (Subject::Key(_), _) => {}
            (Subject::Org(org), Some(limits)) => drop(quota.orgs.insert(org.clone(), limits)),
            (Subject::Team(org, team), Some(limits)) => {
                quota.teams.insert((org.clone(), team.clone()), limits);
            }
            (subject, None) => drop(unclear.insert(subject.clone())),
        }
    }
    let orgs = quota.orgs.iter().map(|(org, limits)| (Subject::Org(org.clone()), limits.clone()));
    let teams =
        quota.teams.iter().map(|((org, team), limits)| (Subject::Team(org.clone(), team.clone()), limits.clone()));
    roster.understood = orgs.chain(teams).filter(|(subject, _)| !unclear.contains(subject)).collect();
    unclear
}

/// What can be understood and is not the file's.
fn sort(records: &BTreeMap<String, Arc<Stored>>, roster: &mut Roster) -> file::Keys {
    let mut sorted = file::Keys::default();
    for (field, stored) in records {
        let record = match (&stored.record, &stored.subject) {
            (Ok(record), _) => record,
            (Err(reason), subject) => {
                let subject = subject.clone().unwrap_or_else(|| Subject::Key(field.clone()));
                roster.broken.insert(subject, reason.clone());
                continue;
            }
        };
        match record {
            Record::Key(key) if !roster.keys.contains_key(&key.id) => sorted.keys.push(key.clone()),
            Record::Org(org) if !roster.orgs.contains_key(&org.name) => sorted.orgs.push(org.clone()),
            Record::Team(team) if !roster.teams.contains_key(&(team.org.clone(), team.name.clone())) => {
                sorted.teams.push(team.clone());
            }
            _ => {}
        }
    }
    // A file's names are beyond question.
    roster.broken.retain(|subject, _| match subject {
        Subject::Key(id) => !roster.keys.contains_key(id),
        Subject::Org(org) => !roster.orgs.contains_key(org),
        Subject::Team(org, team) => !roster.teams.contains_key(&(org.clone(), team.clone())),
    });
    sorted
}

/// Whose records are at which place, for findings.
struct Subjects {
    keys: Vec<Subject>,
    orgs: Vec<Subject>,
    teams: Vec<Subject>,
}

impl Subjects {
    fn of(records: &file::Keys) -> Self {
        Self {
            keys: records.keys.iter().map(|key| Subject::Key(key.id.clone())).collect(),
            orgs: records.orgs.iter().map(|org| Subject::Org(org.name.clone())).collect(),
            teams: records.teams.iter().map(|t| Subject::Team(t.org.clone(), t.name.clone())).collect(),
        }
    }

    fn at(&self, pointer: &str) -> Option<Subject> {
        let mut steps = pointer.split('/').skip(1);
        let list = match steps.next()? {
            "keys" => &self.keys,
            "orgs" => &self.orgs,
            "teams" => &self.teams,
            _ => return None,
        };
        list.get(steps.next()?.parse::<usize>().ok()?).cloned()
    }
}

fn warn(roster: &Roster, before: &Roster, cut_off: usize) {
    const SHOWN: usize = 5;
    let shown = |all: &mut dyn Iterator<Item = (&Subject, &String)>| {
        let some: Vec<String> = all.take(SHOWN).map(|(subject, reason)| format!("{subject}: {reason}")).collect();
        some.join("; ")
    };
    if !roster.broken.is_empty() {
        let first = shown(&mut roster.broken.iter());
        tracing::warn!(
            count = roster.broken.len(),
            cut_off,
            first,
            "stored records can not be used; a group keeps the limits that it had, other keys do not work"
        );
    }
    // Records are read again at every change; what stays as it was is told once.
    let new = || roster.dangling.difference(&before.dangling);
    if new().next().is_some() {
        let subjects: BTreeSet<&Subject> = roster.dangling.iter().map(|(subject, _)| subject).collect();
        let first = shown(&mut new().map(|(subject, reason)| (subject, reason)));
        tracing::warn!(count = subjects.len(), first, "stored records name what is not there");
    }
}
