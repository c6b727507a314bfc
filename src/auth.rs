//! Auth: whose request is it?
//!
//! A key reads `ngk_<public id>_<secret>`. The secret is 256 random bits, so one SHA-256 is a sufficient stored form;
//! it is compared in constant time. This module knows nothing of files or HTTP answers.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::ids::{CallerId, Class, ModelId, PoolName};

const PREFIX: &str = "ngk_";
const SECRET_BYTES: usize = 32;

/// Everything a key may be and do, as stored.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The public part of the key.
    pub id: CallerId,
    /// SHA-256 of the secret part.
    pub secret_hash: [u8; 32],
    /// The secret before a rotation.
    pub previous: Option<Previous>,
    /// The organisation that it belongs to.
    pub org: String,
    /// The team within the organisation.
    pub team: String,
    /// What its holder calls it.
    pub name: String,
    /// Scopes granted; `*` grants all.
    pub scopes: Vec<String>,
    /// Models that it may use; empty means all.
    pub models: Vec<ModelId>,
    /// Pools that it may use; empty means all.
    pub pools: Vec<PoolName>,
    /// When a pool is full, whether its requests go first.
    pub class: Class,
    /// Its share of a full pool, 1 to 1000.
    pub weight: u32,
    /// When it ends.
    pub expires: Option<DateTime<Utc>>,
    /// Switched off.
    pub disabled: bool,
}

/// A secret that was replaced, and is still good for a while.
#[derive(Clone, Debug)]
pub struct Previous {
    /// SHA-256 of it.
    pub secret_hash: [u8; 32],
    /// When it ends.
    pub until: DateTime<Utc>,
}

/// Who sends the request, and what they may do.
#[derive(Debug)]
pub struct Caller(Settings);

/// Why nobody is behind the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No credential was sent.
    Missing,
    /// The credential is not one of ours.
    Unknown,
    /// The key has ended.
    Expired,
    /// The key is switched off.
    Disabled,
}

/// Something that a caller asked for and may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAllowed {
    /// The operation needs this scope.
    Scope(String),
    /// The key is not for this model.
    Model(ModelId),
    /// The key is not for this pool.
    Pool(PoolName),
}

/// All keys.
#[derive(Default)]
pub struct KeyRing {
    by_id: HashMap<CallerId, Arc<Caller>>,
}

/// A key as made: shown once, then only its hash remains.
pub struct NewKey {
    /// The public part.
    pub id: CallerId,
    /// The whole key, to hand to its holder.
    pub text: String,
    /// What to store.
    pub secret_hash: [u8; 32],
}

impl KeyRing {
    /// A ring of these keys. A later key of the same id replaces an earlier one; the configuration refuses that.
    pub fn new(keys: impl IntoIterator<Item = Settings>) -> Self {
        Self { by_id: keys.into_iter().map(|key| (key.id.clone(), Arc::new(Caller(key)))).collect() }
    }

    /// Finds the caller behind `Authorization: Bearer <key>` (the scheme in any case) or `x-api-key: <key>`.
    pub fn authenticate(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Result<Arc<Caller>, Denied> {
        let offered = credential(headers).ok_or(Denied::Missing)?;
        let (id, secret) = split(offered).ok_or(Denied::Unknown)?;
        let caller = self.by_id.get(id).ok_or(Denied::Unknown)?;
        let offered_hash: [u8; 32] = Sha256::digest(secret).into();
        // Both are compared always, so that the time tells nothing of which one fits.
        let is_current = offered_hash.ct_eq(&caller.0.secret_hash);
        let (previous, end) = caller.0.previous.as_ref().map_or(([0; 32], now), |p| (p.secret_hash, p.until));
        let is_previous = offered_hash.ct_eq(&previous) & Choice::from(u8::from(now < end));
        if !bool::from(is_current | is_previous) {
            return Err(Denied::Unknown);
        }
        if caller.0.disabled {
            return Err(Denied::Disabled);
        }
        if caller.0.expires.is_some_and(|end| end <= now) {
            return Err(Denied::Expired);
        }
        Ok(Arc::clone(caller))
    }
}

impl Caller {
    /// The public part of the key.
    pub fn id(&self) -> &CallerId {
        &self.0.id
    }

    /// Whether its requests go first, and its share of what is left, when a pool is full.
    pub fn rank(&self) -> (Class, u32) {
        (self.0.class, self.0.weight)
    }

    /// The organisation.
    pub fn org(&self) -> &str {
        &self.0.org
    }

    /// The team.
    pub fn team(&self) -> &str {
        &self.0.team
    }

    /// Whether the key grants `scope`.
    pub fn require_scope(&self, scope: &str) -> Result<(), NotAllowed> {
        let granted = self.0.scopes.iter().any(|s| s == "*" || s == scope);
        if granted { Ok(()) } else { Err(NotAllowed::Scope(scope.to_owned())) }
    }

    /// Whether the key grants any of `scopes`.
    pub fn require_any_scope(&self, scopes: &[String]) -> Result<(), NotAllowed> {
        let granted = scopes.iter().any(|scope| self.require_scope(scope).is_ok());
        if granted { Ok(()) } else { Err(NotAllowed::Scope(scopes.join(" or "))) }
    }

    /// Whether the key is for this pool.
    pub fn require_pool(&self, pool: &PoolName) -> Result<(), NotAllowed> {
        let allowed = self.0.pools.is_empty() || self.0.pools.contains(pool);
        if allowed { Ok(()) } else { Err(NotAllowed::Pool(pool.clone())) }
    }

    /// Whether the key is for this model.
    pub fn require_model(&self, model: &ModelId) -> Result<(), NotAllowed> {
        let allowed = self.0.models.is_empty() || self.0.models.contains(model);
        if allowed { Ok(()) } else { Err(NotAllowed::Model(model.clone())) }
    }
}

impl NewKey {
    /// A new random key.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut id = [0; 6];
        getrandom::fill(&mut id)?;
        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
        Self::renewed(&id)
    }

    /// A new random secret for a key that there is.
    pub fn renewed(id: &str) -> Result<Self, getrandom::Error> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret)?;
        Ok(Self::from_parts(id, &URL_SAFE_NO_PAD.encode(secret)))
    }

    /// Takes a given key apart, for a fixed demo key; `None` when it does not read `ngk_<id>_<secret>`.
    pub fn from_text(text: &str) -> Option<Self> {
        split(text.as_bytes()).and_then(|(id, secret)| Some(Self::from_parts(id, std::str::from_utf8(secret).ok()?)))
    }

    fn from_parts(id: &str, secret: &str) -> Self {
        let secret_hash = Sha256::digest(secret).into();
        Self { id: CallerId::from(id), text: format!("{PREFIX}{id}_{secret}"), secret_hash }
    }

    /// The hash as it is stored: lower-case hexadecimal.
    pub fn hash_text(&self) -> String {
        self.secret_hash.iter().map(|b| format!("{b:02x}")).collect()
    }
}

fn credential(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|v| v.as_bytes().trim_ascii());
    if let Some(value) = bearer {
        let (scheme, rest) = value.split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii()).filter(|key| !key.is_empty());
    }
    headers.get("x-api-key").map(|v| v.as_bytes().trim_ascii()).filter(|key| !key.is_empty())
}

fn split(key: &[u8]) -> Option<(&str, &[u8])> {
    let rest = key.strip_prefix(PREFIX.as_bytes())?;
    let at = rest.iter().position(|b| *b == b'_')?;
    let (id, secret) = (std::str::from_utf8(&rest[..at]).ok()?, &rest[at + 1..]);
    (!id.is_empty() && !secret.is_empty()).then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(key: &NewKey) -> Settings {
        Settings {
            id: key.id.clone(),
            secret_hash: key.secret_hash,
            previous: None,
            org: "org".into(),
            team: "team".into(),
            name: "test".into(),
            scopes: vec!["invoke_function".into()],
            models: vec!["a".into()],
            pools: vec![],
            class: Class::Normal,
            weight: 1,
            expires: None,
            disabled: false,
        }
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn the_scheme_may_be_in_any_case_and_x_api_key_does_too() {
        let key = NewKey::generate().unwrap();
        let ring = KeyRing::new([settings(&key)]);
        for (name, value) in [
            ("authorization", format!("Bearer {}", key.text)),
            ("authorization", format!("bEARER   {}", key.text)),
            ("x-api-key", key.text),
        ] {
            assert!(ring.authenticate(&headers(name, &value), Utc::now()).is_ok(), "{name}: {value}");
        }
    }

    #[test]
    fn each_refusal_has_its_own_name() {
        let key = NewKey::generate().unwrap();
        let now = Utc::now();
        let denied =
            |settings: Settings, headers: HeaderMap| KeyRing::new([settings]).authenticate(&headers, now).err();
        let good = headers("authorization", &format!("Bearer {}", key.text));
        assert_eq!(denied(settings(&key), HeaderMap::new()), Some(Denied::Missing));
        assert_eq!(denied(settings(&key), headers("authorization", "Bearer ")), Some(Denied::Missing));
        assert_eq!(denied(settings(&key), headers("authorization", "Basic abc")), Some(Denied::Missing));
        assert_eq!(denied(settings(&key), headers("x-api-key", &format!("{}x", key.text))), Some(Denied::Unknown));
        assert_eq!(denied(settings(&key), headers("x-api-key", "not-used")), Some(Denied::Unknown));
        assert_eq!(denied(Settings { disabled: true, ..settings(&key) }, good.clone()), Some(Denied::Disabled));
        assert_eq!(denied(Settings { expires: Some(now), ..settings(&key) }, good), Some(Denied::Expired));
    }

    #[test]
    fn a_replaced_secret_is_good_until_its_end() {
        let [old, new, other] = ["old", "new", "other"].map(|s| NewKey::from_text(&format!("ngk_a_{s}")).unwrap());
        let end = Utc::now();
        let previous = Some(Previous { secret_hash: old.secret_hash, until: end });
        let ring = KeyRing::new([Settings { previous, ..settings(&new) }]);
        let asked = |key: &NewKey, seconds| {
            let now = end + chrono::TimeDelta::seconds(seconds);
            ring.authenticate(&headers("x-api-key", &key.text), now).err()
        };
        assert_eq!([asked(&new, -1), asked(&old, -1), asked(&other, -1)], [None, None, Some(Denied::Unknown)]);
        assert_eq!([asked(&new, 0), asked(&old, 0)], [None, Some(Denied::Unknown)]);
        let never = KeyRing::new([settings(&new)]);
        assert!(never.authenticate(&headers("x-api-key", &old.text), end).is_err());
    }

    #[test]
    fn scopes_models_and_pools_are_held() {
        let key = NewKey::generate().unwrap();
        let caller = Caller(settings(&key));
        assert!(caller.require_scope("invoke_function").is_ok());
        assert_eq!(caller.require_scope("delete_function"), Err(NotAllowed::Scope("delete_function".into())));
        assert!(caller.require_model(&"a".into()).is_ok() && caller.require_model(&"b".into()).is_err());
        assert!(caller.require_pool(&"any".into()).is_ok());
    }

    #[test]
    fn a_key_survives_being_taken_apart() {
        let key = NewKey::generate().unwrap();
        assert_eq!(NewKey::from_text(&key.text).unwrap().secret_hash, key.secret_hash);
        assert!(NewKey::from_text("ngk_only").is_none());
    }
}
