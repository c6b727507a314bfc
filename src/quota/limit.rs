//! Limit: how much of what, in which time, for which requests.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::ids::{ModelId, PoolName};

/// Nano-units in one unit of money. Spend is counted in nano-units, so that a token has a price too.
pub const NANO: u64 = 1_000_000_000;
/// The largest amount of any limit: what a double, which Redis's scripts count in, holds exactly.
pub const LARGEST: u64 = 9_000_000_000_000_000;

/// What stands for itself in the name of a count.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-').remove(b'*');

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Requests.
    Requests,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens of answers.
    OutputTokens,
    /// Both.
    TotalTokens,
    /// Requests at the same time.
    Concurrency,
    /// Money, in nano-units.
    Spend,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 6] =
        [Self::Requests, Self::InputTokens, Self::OutputTokens, Self::TotalTokens, Self::Concurrency, Self::Spend];

    /// The word for it in configuration, headers and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::TotalTokens => "total_tokens",
            Self::Concurrency => "concurrency",
            Self::Spend => "spend",
        }
    }

    /// Whether it counts tokens.
    pub fn is_tokens(self) -> bool {
        matches!(self, Self::InputTokens | Self::OutputTokens | Self::TotalTokens)
    }
}

/// The time after which a count begins anew. Windows are aligned: a minute begins when the clock's minute does, days and
/// months are those of the calendar in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day, from midnight UTC.
    Day,
    /// A month, from the midnight UTC of its first day.
    Month,
}

impl Unit {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The organisation's.
    Org,
    /// The team's.
    Team,
    /// The key's own.
    Key,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Team => "team",
            Self::Key => "key",
        }
    }
}

/// A name in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(pub String);

impl Pattern {
    /// Whether `name` fits.
    pub fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

/// The requests that a limit is for; an empty list is for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// By model.
    pub models: Vec<Pattern>,
    /// By pool.
    pub pools: Vec<Pattern>,
    /// By operation: its id, or its API and id as `nim-llm/createChatCompletion`.
    pub operations: Vec<Pattern>,
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The model, where the request names one.
    pub model: Option<&'a ModelId>,
    /// The pool.
    pub pool: &'a PoolName,
    /// The API.
    pub api: &'a str,
    /// The operation.
    pub operation: &'a str,
}

impl Filter {
    /// Whether it is for every request.
    pub fn is_open(&self) -> bool {
        self.models.is_empty() && self.pools.is_empty() && self.operations.is_empty()
    }

    /// Whether it is for this request.
    pub fn fits(&self, asked: &Asked<'_>) -> bool {
        let model = asked.model.map_or("", ModelId::as_str);
        let any = |patterns: &[Pattern], name: &str| patterns.is_empty() || patterns.iter().any(|p| p.fits(name));
        let operation = || {
            let whole = format!("{}/{}", asked.api, asked.operation);
            self.operations.iter().any(|p| p.fits(asked.operation) || p.fits(&whole))
        };
        any(&self.models, model) && any(&self.pools, asked.pool.as_str()) && (self.operations.is_empty() || operation())
    }
}

/// A part of the name of a count. Patterns are encoded, so that none reads as several.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, patterns) in [("m", &self.models), ("p", &self.pools), ("o", &self.operations)] {
            for pattern in patterns {
                write!(f, "/{sign}={}", utf8_percent_encode(&pattern.0, KEPT))?;
            }
        }
        Ok(())
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// What is counted.
    pub metric: Metric,
    /// How much is allowed: requests, tokens, requests at a time, nano-units of money.
    pub amount: u64,
    /// In which time; none for concurrency.
    pub unit: Option<Unit>,
    /// For which requests.
    pub filter: Filter,
    /// Whether what a cache knew counts.
    pub counts_cached: bool,
}

impl Limit {
    /// What tells its count apart from others of the same subject, metric and unit.
    pub fn mark(&self) -> String {
        format!("{}{}", self.filter, if self.counts_cached { "" } else { "/asked" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, fits) in [
            ("meta/llama", "meta/llama", true),
            ("meta/llama", "meta/llama-3", false),
            ("meta/*", "meta/llama", true),
            ("*", "", true),
            ("*llama*8b", "meta/llama-3.1-8b", true),
            ("*llama*8b", "meta/llama-3.1-8b-instruct", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
            ("", "x", false),
        ] {
            assert_eq!(Pattern(pattern.into()).fits(name), fits, "{pattern} on {name}");
        }
    }

    #[test]
    fn filters_that_differ_have_other_names() {
        let filter = |models: &[&str], pools: &[&str]| {
            let patterns = |list: &[&str]| list.iter().map(|p| Pattern((*p).into())).collect();
            Filter { models: patterns(models), pools: patterns(pools), ..Filter::default() }.to_string()
        };
        assert_ne!(filter(&["a/p=b"], &[]), filter(&["a"], &["b"]));
        assert_ne!(filter(&["a/m=b"], &[]), filter(&["a", "b"], &[]));
        assert_ne!(filter(&["a%2Fb"], &[]), filter(&["a/b"], &[]));
        assert_eq!(filter(&["meta/*"], &["p_1.a-b"]), "/m=meta%2F*/p=p_1.a-b");
    }

    #[test]
    fn a_filter_holds_in_every_list_that_it_has() {
        let pool = PoolName::from("p");
        let model = ModelId::from("m");
        let asked = Asked { model: Some(&model), pool: &pool, api: "nim-llm", operation: "chat" };
        let filter = |models: &[&str], operations: &[&str]| Filter {
            models: models.iter().map(|m| Pattern((*m).into())).collect(),
            operations: operations.iter().map(|o| Pattern((*o).into())).collect(),
            ..Filter::default()
        };
        assert!(Filter::default().fits(&asked));
        assert!(filter(&["x", "m"], &["nim-llm/*"]).fits(&asked));
        assert!(!filter(&["m"], &["embeddings"]).fits(&asked));
        assert!(!filter(&["x"], &[]).fits(&asked));
    }
}
