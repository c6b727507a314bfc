//! Key: under what a vector is kept. Two requests may share one only if no backend could tell them apart.
//!
//! What goes in, and why:
//! - a version byte, so that a change of this file never reads what an older one wrote;
//! - API and operation: the same body means different things to different ones;
//! - the revision of the pool's model: the same name has other weights after an update;
//! - the scope: whoever may see a hit can tell that somebody asked the same before;
//! - the times of purges that concern it: what was purged is under another key;
//! - every member of the body that is not known to leave vectors alone, unknown ones as well, in a canonical form that
//!   never joins what differs: members are sorted and strings unescaped, numbers stay as they were written. A member
//!   that states its documented default is as good as absent;
//! - the item: its kind, its exact bytes, and its own entry of members that have one for each item.
//!
//! `user` and the encoding of the answer are left out. Every part is preceded by its length, so that none runs into the
//! next. SHA-256 throughout: 160 bits are the address; the other 96 are never written anywhere, and go into the checksum
//! of the value, so that a value under a wrong address is no hit.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Changes with everything that this file or the form of values means.
const VERSION: u8 = 1;

/// Under what one thing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

/// Who shares hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Everybody.
    Global,
    /// The callers of an organisation.
    Org(&'a str),
    /// One key.
    Key(&'a str),
}

/// What a request has in common with those that it may share vectors with, beside its body.
#[derive(Clone, Debug)]
pub struct Circumstances<'a> {
    /// The API.
    pub api: &'a str,
    /// The operation.
    pub operation: &'a str,
    /// The revision of the model.
    pub revision: &'a str,
    /// Who shares hits.
    pub scope: Scope<'a>,
    /// When what concerns it was purged.
    pub purges: [u64; 4],
}

/// Everything but the item.
#[derive(Clone, Copy, Debug)]
pub struct Space([u8; 32]);

impl Key {
    /// How it is named in Redis.
    pub fn address(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.0[..20])
    }

    /// The part that nobody can read off the address.
    pub(super) fn secret(&self) -> &[u8] {
        &self.0[20..]
    }
}

impl Space {
    /// The space of a request. `members` are names and canonical values, sorted by name.
    pub fn new<'m>(circumstances: &Circumstances<'_>, members: impl IntoIterator<Item = (&'m str, &'m str)>) -> Self {
        let mut hash = Sha256::new();
        hash.update([VERSION]);
        let (scope, name) = match circumstances.scope {
            Scope::Global => ("global", ""),
            Scope::Org(org) => ("org", org),
            Scope::Key(key) => ("key", key),
        };
        let Circumstances { api, operation, revision, purges, .. } = circumstances;
        for part in [api, operation, revision, &scope, &name] {
            add(&mut hash, part.as_bytes());
        }
        purges.iter().for_each(|time| hash.update(time.to_le_bytes()));
        for (name, value) in members {
            add(&mut hash, name.as_bytes());
            add(&mut hash, value.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The key of what all answers of the space have in common.
    pub fn frame(&self) -> Key {
        self.key("frame", b"", &[])
    }

    /// The key of an item. `own` are its entries of members that have one for each item.
    pub fn item(&self, kind: &str, bytes: &[u8], own: &[(&str, &str)]) -> Key {
        self.key(kind, bytes, own)
    }

    fn key(&self, kind: &str, bytes: &[u8], own: &[(&str, &str)]) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.0);
        add(&mut hash, kind.as_bytes());
        add(&mut hash, bytes);
        for (name, value) in own {
            add(&mut hash, name.as_bytes());
            add(&mut hash, value.as_bytes());
        }
        Key(hash.finalize().into())
    }
}

fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_none_runs_into_the_next() {
        let plain = Circumstances { api: "a", operation: "o", revision: "r", scope: Scope::Org("x"), purges: [0; 4] };
        let other = |change: fn(&mut Circumstances<'static>)| {
            let mut circumstances = plain.clone();
            change(&mut circumstances);
            Space::new(&circumstances, [("m", "1")]).frame()
        };
        let mut all = vec![
            other(|_| {}),
            other(|c| c.api = "b"),
            other(|c| c.operation = "b"),
            other(|c| (c.api, c.operation) = ("ao", "")),
            other(|c| c.revision = "s"),
            other(|c| c.scope = Scope::Global),
            other(|c| c.scope = Scope::Key("x")),
            other(|c| c.scope = Scope::Org("y")),
            other(|c| c.purges[3] = 1),
            Space::new(&plain, [("m", "2")]).frame(),
            Space::new(&plain, []).frame(),
        ];
        let space = Space::new(&plain, [("m", "1")]);
        all.extend([
            space.item("text", b"a", &[]),
            space.item("tokens", b"a", &[]),
            space.item("text", b"b", &[]),
            space.item("text", b"", &[]),
            space.item("text", b"a", &[("modality", "text")]),
            space.item("text", b"a", &[("modality", "image")]),
        ]);
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(space.frame(), all[0]);
        assert_eq!(all[0].address().len(), 27);
    }
}
