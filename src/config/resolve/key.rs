//! Keys: records of the keys file, held against the pools and the catalogue.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use chrono::{DateTime, Utc};

use super::Resolver;
use crate::auth;
use crate::catalogue::Catalogue;
use crate::config::check::dotted;
use crate::config::yaml::Located;
use crate::config::{Mistake, file};

impl Resolver<'_> {
    pub(super) fn keys(
        &mut self,
        path: &Path,
        keys: file::Keys,
        located: &Located,
        pools: &[file::Pool],
        catalogue: Option<&Catalogue>,
    ) -> Vec<auth::Settings> {
        let scopes: BTreeSet<&str> =
            catalogue.into_iter().flat_map(|c| &c.operations).map(|operation| operation.scope.as_str()).collect();
        let unknown_scope = |scope: &str| scope != "*" && catalogue.is_some() && !scopes.contains(scope);
        let models: HashSet<&str> = pools.iter().flat_map(|p| p.models.iter().map(|m| m.id.as_str())).collect();
        let names: HashSet<&str> = pools.iter().map(|p| p.name.as_str()).collect();
        let mut ids = HashSet::new();
        let mut resolved = Vec::new();
        for (at, key) in keys.keys.into_iter().enumerate() {
            let mut wrong = |below: &str, reason: String| {
                let pointer = format!("/keys/{at}{below}");
                let place = Some(located.place(&pointer));
                self.mistakes.push(Mistake { file: path.to_owned(), place, key: dotted(&pointer), reason });
            };
            if !ids.insert(key.id.clone()) {
                wrong("/id", format!("another key has the id {} already", key.id));
            }
            for (i, _) in key.scopes.iter().enumerate().filter(|(_, s)| unknown_scope(s)) {
                let known = scopes.iter().copied().collect::<Vec<_>>().join(", ");
                wrong(&format!("/scopes/{i}"), format!("no operation needs such a scope; expected one of *, {known}"));
            }
            for (i, model) in key.models.iter().enumerate().filter(|(_, m)| !models.contains(m.as_str())) {
                wrong(&format!("/models/{i}"), format!("no pool lists a model with the id {model}"));
            }
            for (i, pool) in key.pools.iter().enumerate().filter(|(_, p)| !names.contains(p.as_str())) {
                wrong(&format!("/pools/{i}"), format!("there is no pool {pool}"));
            }
            let expires = key.expires.as_deref().map(DateTime::parse_from_rfc3339).transpose();
            let expires = expires.unwrap_or_else(|_| {
                wrong("/expires", "expected a time such as 2027-01-31T00:00:00Z".into());
                None
            });
            resolved.push(auth::Settings {
                id: key.id.into(),
                secret_hash: hash(&key.sha256),
                org: key.org,
                team: key.team,
                name: key.name,
                scopes: key.scopes,
                models: key.models.into_iter().map(Into::into).collect(),
                pools: key.pools.into_iter().map(Into::into).collect(),
                expires: expires.map(|t| t.with_timezone(&Utc)),
                disabled: key.disabled,
            });
        }
        resolved
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

    #[test]
    fn a_hash_is_read_in_either_case() {
        assert_eq!(hash(&"aB".repeat(32)), [0xab; 32]);
    }
}
