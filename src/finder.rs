//! Finder: keeps the endpoints of pools as their sources say.
//!
//! What a source is and how it is followed is left to `discovery`; what an endpoint is, to `balance`.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::balance::{self, Members};
use crate::discovery::{self, Found};
use crate::proxy::settings::Endpoints;
use crate::proxy::snapshot::{PoolState, Snapshot};

/// The sources that are followed. They are until it is dropped.
#[derive(Default)]
pub struct Finder {
    followed: Vec<(Arc<Members>, JoinSet<()>)>,
}

impl Finder {
    /// Follows the sources of the pools of this snapshot, and no other. Those that are followed already go on.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.followed);
        for state in &snapshot.pools {
            let members = state.pool.members();
            let kept = before.iter().position(|(known, _)| Arc::ptr_eq(known, members));
            let tasks = match kept {
                Some(at) => Some(before.swap_remove(at).1),
                None => start(state),
            };
            self.followed.extend(tasks.map(|tasks| (Arc::clone(members), tasks)));
        }
    }
}

fn start(state: &PoolState) -> Option<JoinSet<()>> {
    let Endpoints::Found { source, how, thresholds } = &state.settings.endpoints else { return None };
    let (members, thresholds) = (Arc::clone(state.pool.members()), *thresholds);
    let endpoint = move |Found { address, host }: Found| {
        let settings = balance::Settings { name: address.to_string(), host, port: address.port(), thresholds };
        (settings, address)
    };
    let apply = move |found: Vec<Found>| members.replace(found.into_iter().map(&endpoint));
    Some(discovery::start(state.settings.name.as_str(), source.clone(), (**how).clone(), apply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Limiter;

    const CLUSTER: &str = "{kubernetes: {namespace: ml, service: nim, port: 80}, cluster: {url: 'http://127.0.0.1:1'}}";

    /// The snapshot of one pool that is found so.
    fn load(discovery: &str, health: &str, previous: Option<&Snapshot>) -> Snapshot {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("keys.yaml"), "keys: []\n").unwrap();
        let path = directory.path().join("nimgate.yaml");
        let pool = format!("{{name: a, api: nemo-curator, discovery: {discovery}, health: {health}}}");
        std::fs::write(&path, format!("callers: {{keys_file: keys.yaml}}\npools: [{pool}]\n")).unwrap();
        let config = crate::config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Snapshot::build(config.proxy, &Limiter::local(), previous).unwrap()
    }

    fn find(snapshot: &Snapshot, port: u16) {
        let Endpoints::Found { thresholds, .. } = &snapshot.pools[0].settings.endpoints else { panic!() };
        let name = format!("10.0.0.1:{port}");
        let settings = balance::Settings { name, host: "nim".into(), port, thresholds: *thresholds };
        snapshot.pools[0].pool.members().replace([(settings, ([10, 0, 0, 1], port).into())]);
    }

    #[test]
    fn what_was_found_stays_as_long_as_the_source_does() {
        let first = load(CLUSTER, "{}", None);
        assert!(!first.is_ready() && first.pools[0].pool.endpoints().is_empty());
        find(&first, 80);
        let found = Arc::clone(&first.pools[0].pool.endpoints()[0]);
        let same = load(CLUSTER, "{interval_ms: 70}", Some(&first));
        assert!(Arc::ptr_eq(first.pools[0].pool.members(), same.pools[0].pool.members()) && same.is_ready());
        let otherwise = load(&CLUSTER.replace("{k", "{timeout_ms: 70, k"), "{}", Some(&same));
        assert!(!Arc::ptr_eq(same.pools[0].pool.members(), otherwise.pools[0].pool.members()));
        assert!(Arc::ptr_eq(&found, &otherwise.pools[0].pool.endpoints()[0]));
        let stricter = load(CLUSTER, "{unhealthy_after: 9}", Some(&otherwise));
        let endpoint = Arc::clone(&stricter.pools[0].pool.endpoints()[0]);
        assert_eq!((endpoint.name(), endpoint.settings().thresholds.unhealthy_after), (found.name(), 9));
        assert_eq!(endpoint.address(), found.address());
        let other = load(&CLUSTER.replace("nim", "vlm"), "{}", Some(&stricter));
        assert!(other.pools[0].pool.endpoints().is_empty(), "another service has other endpoints");
    }

    #[tokio::test]
    async fn a_source_is_followed_once_and_until_its_pool_is_gone() {
        let mut finder = Finder::default();
        let first = load(CLUSTER, "{}", None);
        finder.follow(&first);
        let task = |finder: &Finder| finder.followed[0].0.clone();
        let members = task(&finder);
        let same = load(CLUSTER, "{interval_ms: 70}", Some(&first));
        finder.follow(&same);
        assert!(finder.followed.len() == 1 && Arc::ptr_eq(&members, &task(&finder)));
        let other = load(&CLUSTER.replace("nim", "vlm"), "{}", Some(&same));
        finder.follow(&other);
        assert!(finder.followed.len() == 1 && !Arc::ptr_eq(&members, &task(&finder)));
    }
}
