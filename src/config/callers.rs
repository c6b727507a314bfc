//! Callers: records of organisations, teams and keys, held against the pools and the catalogue.
//!
//! The same rules hold for the keys file and for records that come as JSON: [`Form`](super::Form) takes what fits the
//! schema, [`callers`] does the rest.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};

use super::check::dotted;
use super::file;
use crate::catalogue::Catalogue;
use crate::ids::{CallerId, Class};
use crate::proxy::settings::PoolSettings;
use crate::quota::limit::Limit;
use crate::quota::price::Price;
use crate::{auth, quota};

mod limit;

use limit::Limits;

/// The names that records may use.
#[derive(Clone, Debug, Default)]
pub struct Known {
    scopes: BTreeSet<String>,
    models: BTreeSet<String>,
    pools: BTreeSet<String>,
    operations: BTreeSet<String>,
    /// Those of the models, and none, that have a price.
    priced: BTreeSet<String>,
}

impl Known {
    /// What a catalogue and its pools have.
    pub fn new<'a>(catalogue: &Catalogue, pools: impl IntoIterator<Item = &'a PoolSettings>) -> Self {
        let mut known = Self::default();
        for operation in &catalogue.operations {
            known.scopes.extend(operation.scopes.iter().cloned());
            known.operations.insert(operation.id.to_string());
            known.operations.insert(format!("{}/{}", operation.api, operation.id));
        }
        for pool in pools {
            known.pools.insert(pool.name.to_string());
            known.models.extend(pool.models.iter().map(|(_, model)| model.id.to_string()));
        }
        known
    }

    /// With what has a price.
    pub fn priced(mut self, prices: &[Price]) -> Self {
        let has_price = |model: &&str| prices.iter().any(|price| price.model.fits(model));
        // A request that names no model has the empty one.
        let models = self.models.iter().map(String::as_str).chain([""]);
        self.priced = models.filter(has_price).map(str::to_owned).collect();
        self
    }

    /// Whether any model fits.
    pub(super) fn has_model(&self, pattern: &quota::limit::Pattern) -> bool {
        is_any(&self.models, pattern)
    }
}

/// Whether `pattern` fits any of `names`, or everything.
fn is_any(names: &BTreeSet<String>, pattern: &quota::limit::Pattern) -> bool {
    names.contains(&pattern.0) || pattern.fits("") || names.iter().any(|name| pattern.fits(name))
}

/// Something about records that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, as a JSON pointer.
    pub pointer: String,
    /// What is wrong and what was expected.
    pub reason: String,
    /// Whether the record is sound in itself and only names what is not there: a model, a pool, a team. That makes a
    /// mistake of a file; a record stored earlier goes on without it.
    pub is_dangling: bool,
}

impl Finding {
    pub(super) fn wrong(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), reason: reason.into(), is_dangling: false }
    }

    fn dangling(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { is_dangling: true, ..Self::wrong(pointer, reason) }
    }

    /// Where, as in `keys[0].limits[1].per`.
    pub fn key(&self) -> String {
        dotted(&self.pointer)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.key();
        if key.is_empty() { f.write_str(&self.reason) } else { write!(f, "{key}: {}", self.reason) }
    }
}

/// What records come to.
#[derive(Debug, Default)]
pub struct Callers {
    /// The keys, but for those that are wrong in themselves.
    pub keys: Vec<auth::Settings>,
    /// Limits of organisations, teams and the same keys. Without prices, and with the usual estimates.
    pub quota: quota::Settings,
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
}

/// Turns records into settings. Pointers of findings lead into `records`.
pub fn callers(records: file::Keys, known: &Known) -> Callers {
    let orgs: HashSet<String> = records.orgs.iter().map(|org| org.name.clone()).collect();
    let teams: HashSet<(String, String)> = records.teams.iter().map(|t| (t.org.clone(), t.name.clone())).collect();
    let mut reader = Reader { known, limits: Limits::new(known), orgs, teams, made: Callers::default() };
    reader.read_orgs(records.orgs);
    reader.read_teams(records.teams);
    reader.read_keys(records.keys);
    reader.made
}

struct Reader<'a> {
    known: &'a Known,
    limits: Limits<'a>,
    /// Those listed; none when they need not be.
    orgs: HashSet<String>,
    teams: HashSet<(String, String)>,
    made: Callers,
}

impl Reader<'_> {
    fn read_orgs(&mut self, orgs: Vec<file::Org>) {
        let mut seen = HashSet::new();
        for (at, org) in orgs.into_iter().enumerate() {
            let pointer = format!("/orgs/{at}");
            self.plain(&format!("{pointer}/name"), &org.name);
            let limits = self.limits(&pointer, org.limits);
            if seen.insert(org.name.clone()) {
                self.made.quota.orgs.insert(org.name, limits);
            } else {
                self.wrong(format!("{pointer}/name"), "another organisation has that name already");
            }
        }
    }

    fn read_teams(&mut self, teams: Vec<file::Team>) {
        let mut seen = HashSet::new();
        for (at, team) in teams.into_iter().enumerate() {
            let pointer = format!("/teams/{at}");
            self.plain(&format!("{pointer}/name"), &team.name);
            self.org(&pointer, &team.org);
            let limits = self.limits(&pointer, team.limits);
            let whole = (team.org, team.name);
            if seen.insert(whole.clone()) {
                self.made.quota.teams.insert(whole, limits);
            } else {
                self.wrong(format!("{pointer}/name"), "another team of the organisation has that name already");
            }
        }
    }

    fn read_keys(&mut self, keys: Vec<file::Key>) {
        let mut seen = HashSet::with_capacity(keys.len());
        for (at, key) in keys.into_iter().enumerate() {
            let pointer = format!("/keys/{at}");
            let before = self.made.findings.len();
            if !seen.insert(key.id.clone()) {
                self.wrong(format!("{pointer}/id"), format!("another key has the id {} already", key.id));
            }
            let team = (key.org, key.team);
            self.org(&pointer, &team.0);
            self.team(&pointer, &team);
            let (org, team) = team;
            self.names(&pointer, [&key.scopes, &key.models, &key.pools]);
            let expires = key.expires.as_deref().and_then(|text| self.time(&format!("{pointer}/expires"), text));
            let previous = key.previous.and_then(|previous| {
                let until = self.time(&format!("{pointer}/previous/until"), &previous.until)?;
                Some(auth::Previous { secret_hash: hash(&previous.sha256), until })
            });
            let limits = self.limits(&pointer, key.limits);
            if self.made.findings[before..].iter().any(|finding| !finding.is_dangling) {
                continue;
            }
            let id = CallerId::from(key.id);
            let quota = quota::KeySettings { id: id.clone(), org: org.clone(), team: team.clone(), limits };
            self.made.quota.keys.push(quota);
            self.made.keys.push(auth::Settings {
                id,
                secret_hash: hash(&key.sha256),
                previous,
                org,
                team,
                name: key.name,
                scopes: key.scopes,
                models: key.models.into_iter().map(Into::into).collect(),
                pools: key.pools.into_iter().map(Into::into).collect(),
                class: match key.priority {
                    file::Priority::High => Class::High,
                    file::Priority::Normal => Class::Normal,
                    file::Priority::Low => Class::Low,
                },
                weight: key.weight,
                expires,
                disabled: key.disabled,
            });
        }
    }

    fn wrong(&mut self, pointer: String, reason: impl Into<String>) {
        self.made.findings.push(Finding::wrong(pointer, reason));
    }

    fn dangling(&mut self, pointer: String, reason: impl Into<String>) {
        self.made.findings.push(Finding::dangling(pointer, reason));
    }

    fn limits(&mut self, pointer: &str, limits: Vec<file::Limit>) -> Vec<Limit> {
        self.limits.read(pointer, limits, &mut self.made.findings)
    }

    /// Control characters part names where usage is kept.
    fn plain(&mut self, pointer: &str, name: &str) {
        if name.chars().any(char::is_control) {
            self.wrong(pointer.to_owned(), "expected a name without control characters");
        }
    }

    fn org(&mut self, pointer: &str, org: &str) {
        let pointer = format!("{pointer}/org");
        self.plain(&pointer, org);
        if !self.orgs.is_empty() && !self.orgs.contains(org) {
            self.dangling(pointer, format!("orgs lists no organisation {org:?}"));
        }
    }

    fn team(&mut self, pointer: &str, whole: &(String, String)) {
        let pointer = format!("{pointer}/team");
        self.plain(&pointer, &whole.1);
        if !self.teams.is_empty() && !self.teams.contains(whole) {
            self.dangling(pointer, format!("teams lists no team {:?} of the organisation {:?}", whole.1, whole.0));
        }
    }

    /// What a key is for.
    fn names(&mut self, pointer: &str, [scopes, models, pools]: [&[String]; 3]) {
        let known = self.known;
        for (i, _) in scopes.iter().enumerate().filter(|(_, s)| *s != "*" && !known.scopes.contains(*s)) {
            let all = known.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let reason = format!("no operation needs such a scope; expected one of *, {all}");
            self.dangling(format!("{pointer}/scopes/{i}"), reason);
        }
        for (i, model) in models.iter().enumerate().filter(|(_, m)| !known.models.contains(*m)) {
            let reason = format!("no pool lists a model with the id {model}");
            self.dangling(format!("{pointer}/models/{i}"), reason);
        }
        for (i, pool) in pools.iter().enumerate().filter(|(_, p)| !known.pools.contains(*p)) {
            self.dangling(format!("{pointer}/pools/{i}"), format!("there is no pool {pool}"));
        }
    }

    fn time(&mut self, pointer: &str, text: &str) -> Option<DateTime<Utc>> {
        let time = DateTime::parse_from_rfc3339(text);
        if time.is_err() {
            self.wrong(pointer.to_owned(), "expected a time such as 2027-01-31T00:00:00Z");
        }
        time.ok().map(|t| t.with_timezone(&Utc))
    }
}

/// 64 hexadecimal digits, which the schema has checked.
fn hash(hex: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Form;
    use serde_json::json;

    fn known() -> Known {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Known {
            scopes: set(&["invoke_function"]),
            models: set(&["m"]),
            pools: set(&["p"]),
            operations: set(&["chat", "nim-llm/chat"]),
            priced: set(&["m"]),
        }
    }

    fn read(records: serde_json::Value) -> Callers {
        callers(Form::new().unwrap().read(records).unwrap(), &known())
    }

    fn told(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_hash_is_read_in_either_case() {
        assert_eq!(hash(&"aB".repeat(32)), [0xab; 32]);
    }

    #[test]
    fn a_record_comes_as_json_too() {
        let form = Form::<file::Key>::new().unwrap();
        let sha256 = "00".repeat(32);
        let findings = form.read(json!({ "id": "k", "sha256": sha256, "limits": [{ "requests": -1 }] })).unwrap_err();
        assert_eq!(told(&findings), ["limits[0].requests: expected a whole number from 0 to 9000000000000000"]);
        let key = json!({ "id": "k", "sha256": sha256, "limits": [{ "requests": 1.0, "per": "day" }, { "spend": 2 }] });
        let keys = vec![form.read(key).unwrap()];
        let made = callers(file::Keys { keys, ..file::Keys::default() }, &known());
        let reason = "keys[0].limits[1]: the key per is required: second, minute, hour, day or month";
        assert_eq!(told(&made.findings), [reason]);
        assert!(made.keys.is_empty() && made.quota.keys.is_empty(), "what is wrong is left out");
    }

    #[test]
    fn what_is_not_there_any_more_breaks_no_stored_record() {
        let limits = json!([{ "requests": 1, "per": "day", "models": ["gone"] }]);
        let key = json!({
            "id": "k", "sha256": "00".repeat(32), "org": "o", "models": ["gone"], "pools": ["gone"],
            "scopes": ["gone"], "limits": limits });
        let made = read(json!({ "orgs": [{ "name": "x" }], "teams": [{ "name": "x" }], "keys": [key] }));
        assert!(made.findings.len() == 7 && made.findings.iter().all(|f| f.is_dangling), "{:?}", told(&made.findings));
        assert_eq!((made.keys.len(), made.quota.keys[0].limits.len()), (1, 1));
    }

    #[test]
    fn limits_stand_at_their_subjects() {
        let limit = |amount: u64| json!([{ "requests": amount, "per": "minute" }]);
        let made = read(json!({
            "orgs": [{ "name": "o", "limits": limit(3) }],
            "teams": [{ "org": "o", "name": "t", "limits": limit(2) }],
            "keys": [{
                "id": "k", "sha256": "00".repeat(32), "org": "o", "team": "t", "limits": limit(1),
                "previous": { "sha256": "11".repeat(32), "until": "2027-01-31T01:00:00+01:00" } }] }));
        assert_eq!(told(&made.findings), [""; 0]);
        assert_eq!(made.quota.orgs["o"][0].amount, 3);
        assert_eq!(made.quota.teams[&("o".into(), "t".into())][0].amount, 2);
        assert_eq!(made.quota.keys[0].limits[0].amount, 1);
        let previous = made.keys[0].previous.as_ref().unwrap();
        assert_eq!((previous.secret_hash[0], previous.until.to_rfc3339()), (0x11, "2027-01-31T00:00:00+00:00".into()));
    }
}
