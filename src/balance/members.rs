//! Members: the endpoints of a pool, which may come and go while it runs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::{Endpoint, Settings};

/// All endpoints of a pool at one moment. Cheap to get and to hold for a while.
pub type Present = Guard<Arc<Vec<Arc<Endpoint>>>>;

/// The endpoints of a pool. Pools of one source share it, also across reloads.
#[derive(Debug)]
pub struct Members {
    present: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Those that were taken out and may still have requests: one that comes back is the same as before.
    leaving: Mutex<Vec<Weak<Endpoint>>>,
    changes: watch::Sender<()>,
}

impl Members {
    /// These, until they are replaced.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { present: ArcSwap::from_pointee(endpoints), leaving: Mutex::default(), changes: watch::Sender::new(()) }
    }

    /// Those that there are now.
    pub fn present(&self) -> Present {
        self.present.load()
    }

    /// Tells of each replacement from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Those that were taken out and still have requests.
    pub(super) fn leaving(&self) -> Vec<Arc<Endpoint>> {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.iter().filter_map(Weak::upgrade).filter(|endpoint| endpoint.in_flight() > 0).collect()
    }

    /// Comes after these: what is not here of them is leaving.
    pub(super) fn follow(&self, before: &Self) {
        let present = self.present();
        let is_gone = |e: &Arc<Endpoint>| !present.iter().any(|kept| Arc::ptr_eq(kept, e));
        let earlier = before.present();
        let gone = before.leaving().into_iter().chain(earlier.iter().cloned()).filter(is_gone);
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.extend(gone.map(|endpoint| Arc::downgrade(&endpoint)));
    }

    /// Replaces all. Those that stay keep their load, health and pace; those that go finish what they have.
    pub fn replace(&self, wanted: impl IntoIterator<Item = (Settings, SocketAddr)>) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.present.load_full();
        let known = leaving.iter().filter_map(Weak::upgrade).chain(before.iter().cloned());
        let mut known: HashMap<String, Arc<Endpoint>> = known.map(|e| (e.name().to_owned(), e)).collect();
        let mut endpoint = |(settings, address): (Settings, SocketAddr)| {
            let before = known.remove(&settings.name);
            let same = before.clone().filter(|e| *e.settings() == settings);
            same.unwrap_or_else(|| Arc::new(Endpoint::new(settings, vec![address]).replacing(before.as_ref())))
        };
        let present: Vec<_> = wanted.into_iter().map(&mut endpoint).collect();
        *leaving = known.values().map(Arc::downgrade).collect();
        self.present.store(Arc::new(present));
        self.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Ask, Pool, Thresholds, Tuning, now};

    fn wanted(ports: &[u16]) -> Vec<(Settings, SocketAddr)> {
        let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
        let one = |port: &u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], *port));
            (Settings { name: address.to_string(), host: "h".into(), port: *port, thresholds }, address)
        };
        ports.iter().map(one).collect()
    }

    fn ports(members: &Members) -> Vec<u16> {
        members.present().iter().map(|e| e.settings().port).collect()
    }

    fn pool(ports: &[u16]) -> Pool {
        let members = Members::new(Vec::new());
        members.replace(wanted(ports));
        Pool::new(Arc::new(members), Tuning::default())
    }

    #[test]
    fn those_that_stay_are_the_same_and_picks_see_what_changed() {
        let pool = pool(&[1, 2]);
        let kept = Arc::clone(&pool.endpoints()[1]);
        pool.members().replace(wanted(&[2, 3]));
        assert_eq!(ports(pool.members()), [2, 3]);
        assert!(Arc::ptr_eq(&kept, &pool.endpoints()[0]));
        let held: Vec<_> = (0..10).map(|_| pool.pick(&Ask::default(), now()).unwrap()).collect();
        assert!(held.iter().all(|lease| lease.endpoint().settings().port != 1));
        pool.members().replace(wanted(&[]));
        assert!(pool.pick(&Ask::default(), now()).is_err() && !pool.is_available());
    }

    #[test]
    fn one_that_comes_back_while_it_has_requests_is_the_same() {
        let pool = pool(&[1]);
        let lease = pool.pick(&Ask::default(), now()).unwrap();
        pool.members().replace(wanted(&[2]));
        pool.members().replace(wanted(&[3]));
        assert_eq!(lease.endpoint().in_flight(), 1);
        pool.members().replace(wanted(&[1]));
        assert!(Arc::ptr_eq(lease.endpoint(), &pool.endpoints()[0]));
        pool.members().replace(wanted(&[2]));
        drop(lease);
        pool.members().replace(wanted(&[1]));
        assert_eq!(pool.endpoints()[0].in_flight(), 0);
    }

    #[test]
    fn other_settings_make_another_endpoint() {
        let pool = pool(&[1]);
        let before = Arc::clone(&pool.endpoints()[0]);
        let mut other = wanted(&[1]);
        other[0].0.host = "other".into();
        pool.members().replace(other);
        assert!(!Arc::ptr_eq(&before, &pool.endpoints()[0]));
    }

    #[test]
    fn what_was_tried_and_is_gone_leaves_others_to_try() {
        let pool = pool(&[1, 2]);
        let tried: Vec<_> = pool.endpoints().to_vec();
        assert!(!pool.has_others(&tried) && pool.has_others(&tried[..1]));
        pool.members().replace(wanted(&[3]));
        assert!(pool.has_others(&tried));
    }

    #[tokio::test]
    async fn each_replacement_is_told() {
        let pool = pool(&[1]);
        let mut changes = pool.members().changes();
        assert!(!changes.has_changed().unwrap());
        pool.members().replace(wanted(&[1, 2]));
        changes.changed().await.unwrap();
        assert_eq!(ports(pool.members()), [1, 2]);
    }
}
