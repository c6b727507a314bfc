//! The names and numbers by which the stages speak of the same thing.
//!
//! Text becomes one of these once, when the configuration is resolved or a request is admitted.

use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// An API of the catalogue, such as `nim-llm`: the stem of its OpenAPI file.
    ApiName
}
name! {
    /// A pool of the configuration.
    PoolName
}
name! {
    /// A model as callers name it.
    ModelId
}
name! {
    /// The public part of a key: names its caller in logs.
    CallerId
}

/// Where a pool stands in the snapshot's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolIndex(pub usize);

/// Where an operation stands in the catalogue's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationIndex(pub usize);

/// Names one request in the answer, the record and towards the backend (`x-request-id`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

/// The longest request id taken from a client; a longer one is replaced.
const LONGEST_REQUEST_ID: usize = 128;

impl RequestId {
    /// Takes over the client's id when it is short, visible ASCII; otherwise makes a new one.
    pub fn accept(offered: Option<&[u8]>) -> Self {
        offered
            .filter(|id| !id.is_empty() && id.len() <= LONGEST_REQUEST_ID && id.iter().all(u8::is_ascii_graphic))
            .and_then(|id| std::str::from_utf8(id).ok())
            .map_or_else(Self::random, |id| Self(id.to_owned()))
    }

    /// 128 random bits in hexadecimal. Not a secret, so not from the system's generator.
    pub fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which requests go first. It belongs to the caller: one who asks under two classes counts as two callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Before all others.
    High,
    /// What is usual.
    Normal,
    /// When nobody else waits, and now and then otherwise.
    Low,
}

impl Class {
    /// All, the highest first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The word for settings and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_short_visible_id_and_replaces_others() {
        assert_eq!(RequestId::accept(Some(b"req-1")).as_str(), "req-1");
        for bad in [None, Some(&b""[..]), Some(b"a b"), Some(b"a\x01"), Some(&[b'x'; 129])] {
            assert_eq!(RequestId::accept(bad).as_str().len(), 32);
        }
    }
}
