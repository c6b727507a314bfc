//! Owner: whose is a request of NVCF's? The caller who made it may poll it, nobody else.
//!
//! To NVCF all callers are one: they share the organisation's credential. So each request that may be polled is
//! remembered with its caller for as long as NVCF knows it: here, and in Redis where there is one, for the other
//! replicas. Ids pass unchanged, since clients read them.

use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache as Map;

use crate::ids::CallerId;
use crate::store::{Link, Store};

/// How long NVCF knows a request after its last poll.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// Time after which the same request is written to Redis again.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// Most requests that are remembered here; the oldest are forgotten first.
const MOST: u64 = 100_000;
/// The longest wait for Redis.
const PATIENCE: Duration = Duration::from_millis(500);
/// A request that nobody knows is looked for again after this time: its caller may ask one replica before another has
/// written it.
const GRACE: Duration = Duration::from_millis(100);

/// The callers of requests that may be polled.
pub struct Owners {
    known: Map<u128, Known>,
    store: Option<Store>,
}

#[derive(Clone)]
struct Known {
    owner: CallerId,
    /// When it was written to Redis, or read from there.
    shared: Instant,
}

/// Whose a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This caller's.
    Of(CallerId),
    /// Nobody made it through this gateway, or too long ago.
    Nobody,
    /// Another replica may know, but Redis is away.
    Unknown,
}

impl Owners {
    /// None yet; shared with other replicas through `store`.
    pub fn new(store: Option<Store>) -> Self {
        // The default policy would rather forget a request that was just made than one that is polled often.
        let known = Map::builder().max_capacity(MOST).time_to_live(LIFE).eviction_policy(EvictionPolicy::lru());
        Self { known: known.build(), store }
    }

    /// Remembers whose a request is, here at once, for other replicas once the future has run. The first caller counts.
    pub fn note(&self, id: &str, caller: &CallerId) -> impl Future<Output = ()> + Send + use<> {
        let key = number(id).filter(|key| self.remember(*key, caller));
        let write = key.zip(self.store.clone()).map(|(key, store)| (key, store, caller.clone()));
        async move {
            if let Some((key, store, caller)) = write {
                write_to(&store, key, &caller).await;
            }
        }
    }

    /// Whether Redis has to be told.
    fn remember(&self, key: u128, caller: &CallerId) -> bool {
        let known = self.known.get(&key);
        if known.as_ref().is_some_and(|known| known.owner != *caller) {
            return false;
        }
        let is_fresh = known.as_ref().is_some_and(|known| known.shared.elapsed() < FRESH);
        let shared = known.filter(|_| is_fresh).map_or_else(Instant::now, |known| known.shared);
        self.known.insert(key, Known { owner: caller.clone(), shared });
        !is_fresh
    }

    /// Finds out whose a request is.
    pub async fn find(&self, id: &str) -> Whose {
        let Some(key) = number(id) else { return Whose::Nobody };
        if let Some(known) = self.known.get(&key) {
            return Whose::Of(known.owner);
        }
        let Some(store) = &self.store else { return Whose::Nobody };
        for pause in [GRACE, Duration::ZERO] {
            match read_from(store, key).await {
                Ok(Some(owner)) => {
                    self.known.insert(key, Known { owner: owner.clone(), shared: Instant::now() });
                    return Whose::Of(owner);
                }
                Ok(None) => tokio::time::sleep(pause).await,
                Err(()) => return Whose::Unknown,
            }
        }
        Whose::Nobody
    }
}

async fn write_to(store: &Store, key: u128, caller: &CallerId) {
    let Some(mut link) = store.link() else { return };
    let mut command = redis::cmd("SET");
    command.arg(name(store, key)).arg(caller.as_str()).arg("EX").arg(LIFE.as_secs());
    let written = tokio::time::timeout(PATIENCE, command.query_async::<()>(&mut link)).await;
    if let Ok(Err(error)) = written {
        failed(store, &link, &error);
    }
}

async fn read_from(store: &Store, key: u128) -> Result<Option<CallerId>, ()> {
    let mut link = store.link().ok_or(())?;
    let mut command = redis::cmd("GET");
    command.arg(name(store, key));
    match tokio::time::timeout(PATIENCE, command.query_async::<Option<String>>(&mut link)).await {
        Ok(Ok(found)) => Ok(found.map(CallerId::from)),
        Ok(Err(error)) => {
            failed(store, &link, &error);
            Err(())
        }
        Err(_) => Err(()),
    }
}

fn failed(store: &Store, link: &Link, error: &redis::RedisError) {
    // An error that the server worded leaves the connection whole.
    if error.code().is_none() {
        store.fail(link, error);
    }
}

fn name(store: &Store, key: u128) -> String {
    store.key(&format!("{key:032x}"), "owner")
}

/// The number that a UUID is, however it is written.
fn number(id: &str) -> Option<u128> {
    let digits: String = id.chars().filter(|c| *c != '-').collect();
    (digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u128::from_str_radix(&digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "c0ffee00-1234-4abc-9def-0123456789ab";

    #[tokio::test]
    async fn the_first_caller_counts_and_the_writing_of_the_id_does_not() {
        let owners = Owners::new(None);
        assert_eq!(owners.find(ID).await, Whose::Nobody);
        owners.note(ID, &"a".into()).await;
        owners.note(&ID.to_uppercase(), &"b".into()).await;
        assert_eq!(owners.find(&ID.to_uppercase()).await, Whose::Of("a".into()));
    }

    #[tokio::test]
    async fn what_is_no_id_is_nobodys() {
        let owners = Owners::new(None);
        for id in ["", "latest", "c0ffee00-1234-4abc-9def-0123456789a", "+0ffee00-1234-4abc-9def-0123456789ab"] {
            owners.note(id, &"a".into()).await;
            assert_eq!(owners.find(id).await, Whose::Nobody, "{id}");
        }
    }

    #[test]
    fn redis_is_told_once_in_a_while() {
        let owners = Owners::new(None);
        let told: Vec<bool> = (0..3).map(|_| owners.remember(1, &"a".into())).collect();
        assert_eq!(told, [true, false, false]);
    }
}
