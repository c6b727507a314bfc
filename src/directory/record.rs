//! Record: one key, team or organisation as it is stored.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

use crate::config::{Finding, Form, file};

/// What stands for itself in the name of a record.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A key, by its id.
    Key(String),
    /// An organisation.
    Org(String),
    /// A team of an organisation.
    Team(String, String),
}

impl Subject {
    /// Its field in Redis.
    pub(super) fn field(&self) -> String {
        match self {
            Self::Key(id) => format!("key/{}", encoded(id)),
            Self::Org(org) => format!("org/{}", encoded(org)),
            Self::Team(org, team) => format!("team/{}/{}", encoded(org), encoded(team)),
        }
    }

    fn from_field(field: &str) -> Option<Self> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let (kind, name) = field.split_once('/')?;
        let subject = match kind {
            "key" => Self::Key(decoded(name)?),
            "org" => Self::Org(decoded(name)?),
            "team" => {
                let (org, team) = name.split_once('/')?;
                Self::Team(decoded(org)?, decoded(team)?)
            }
            _ => return None,
        };
        // One way to write each, so that nothing is there twice.
        (subject.field() == field).then_some(subject)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(id) => write!(f, "the key {id}"),
            Self::Org(org) => write!(f, "the organisation {org}"),
            Self::Team(org, team) => write!(f, "the team {org}/{team}"),
        }
    }
}

/// A name as a part of a path or a field.
pub fn encoded(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// What is stored of a subject.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "lives for one request of the admin API")]
pub enum Record {
    /// A key.
    Key(file::Key),
    /// An organisation.
    Org(file::Org),
    /// A team.
    Team(file::Team),
}

impl Record {
    /// As it is stored: JSON without what is not there.
    pub(super) fn text(&self) -> String {
        let value = match self {
            Self::Key(key) => serde_json::to_value(key),
            Self::Org(org) => serde_json::to_value(org),
            Self::Team(team) => serde_json::to_value(team),
        };
        compact(value.unwrap_or_default()).to_string()
    }
}

/// Leaves out members that are null or empty lists.
pub fn compact(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().map(|(name, member)| (name, compact(member)));
            // An empty list of scopes differs from none, which has a default.
            let is_something = |name: &str, value: &Value| {
                !value.is_null() && (name == "scopes" || value.as_array().is_none_or(|a| !a.is_empty()))
            };
            Value::Object(kept.filter(|(name, member)| is_something(name, member)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(compact).collect()),
        other => other,
    }
}

/// A record as it was found.
#[derive(Debug)]
pub struct Stored {
    /// The text in Redis.
    pub(super) text: String,
    /// Whose it is; absent where the field is none of ours.
    pub(super) subject: Option<Subject>,
    /// What it says, or why it can not be understood.
    pub record: Result<Record, String>,
}

/// What records have to look like.
pub(super) struct Forms {
    key: Form<file::Key>,
    org: Form<file::Org>,
    team: Form<file::Team>,
}

impl Forms {
    pub(super) fn new() -> Result<Self, String> {
        Ok(Self { key: Form::new()?, org: Form::new()?, team: Form::new()? })
    }

    pub(super) fn read(&self, field: &str, text: String) -> Stored {
        let subject = Subject::from_field(field);
        let record = self.record(subject.as_ref(), &text);
        Stored { text, subject, record }
    }

    fn record(&self, subject: Option<&Subject>, text: &str) -> Result<Record, String> {
        let subject = subject.ok_or("the field is neither key/…, org/… nor team/…/…")?;
        // Serde's own words may quote what is there.
        let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON (column {})", e.column()))?;
        let told = |findings: Vec<Finding>| findings.first().map(ToString::to_string).unwrap_or_default();
        let (record, named) = match subject {
            Subject::Key(_) => {
                let key = self.key.read(value).map_err(told)?;
                let named = Subject::Key(key.id.clone());
                (Record::Key(key), named)
            }
            Subject::Org(_) => {
                let org = self.org.read(value).map_err(told)?;
                let named = Subject::Org(org.name.clone());
                (Record::Org(org), named)
            }
            Subject::Team(..) => {
                let team = self.team.read(value).map_err(told)?;
                let named = Subject::Team(team.org.clone(), team.name.clone());
                (Record::Team(team), named)
            }
        };
        if named == *subject { Ok(record) } else { Err("it stands under another name than its own".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_one_field() {
        let subjects = [
            (Subject::Key("a-1".into()), "key/a-1"),
            (Subject::Org("a/b c".into()), "org/a%2Fb%20c"),
            (Subject::Team("ä".into(), "x/y".into()), "team/%C3%A4/x%2Fy"),
        ];
        for (subject, field) in subjects {
            assert_eq!(subject.field(), field);
            assert_eq!(Subject::from_field(field), Some(subject));
        }
        for other in ["key", "key/a b", "key/%41", "team/a", "team/a/b/c", "user/a", ""] {
            assert_eq!(Subject::from_field(other), None, "{other}");
        }
    }

    #[test]
    fn what_can_not_be_understood_is_told_without_a_value() {
        let forms = Forms::new().unwrap();
        let secret = "ngk_a_secret";
        for (field, text) in [
            ("key/a", format!("{{\"id\": {secret}")),
            ("key/a", format!("{{\"id\": \"a\", \"sha256\": \"{secret}\"}}")),
            ("key/b", format!("{{\"id\": \"a\", \"sha256\": \"{}\"}}", "00".repeat(32))),
            ("org/a", "{\"name\": \"a\", \"limits\": [{\"sheep\": 1}]}".into()),
            ("sheep/a", "{}".into()),
        ] {
            let reason = forms.read(field, text).record.unwrap_err();
            assert!(!reason.contains("secret") && !reason.is_empty(), "{field}: {reason}");
        }
        let key = format!(
            "{{\"id\":\"a\",\"sha256\":\"{}\",\"scopes\":[],\"limits\":[{{\"spend\":0.5,\"per\":\"day\"}}]}}",
            "0a".repeat(32)
        );
        let stored = forms.read("key/a", key);
        let text = stored.record.unwrap().text();
        let again = forms.read("key/a", text.clone());
        assert_eq!(again.record.unwrap().text(), text, "writing and reading change nothing");
        assert!(text.contains("\"scopes\":[]") && !text.contains("null"), "{text}");
    }
}
