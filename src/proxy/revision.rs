//! Revision: which revision of its model a pool serves, as far as its endpoints agree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

/// What the endpoints of a pool say.
#[derive(Debug, Default)]
pub struct Revision {
    /// By the names of endpoints; those that were not heard are not there.
    heard: Mutex<BTreeMap<String, Arc<String>>>,
    agreed: ArcSwapOption<String>,
}

impl Revision {
    /// An endpoint said which one it serves, or did not answer. True when that changed what the pool serves.
    pub fn note(&self, endpoint: &str, said: Option<String>) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match said {
            Some(said) if heard.get(endpoint).is_some_and(|before| **before == said) => return false,
            Some(said) => drop(heard.insert(endpoint.to_owned(), Arc::new(said))),
            None => drop(heard.remove(endpoint)),
        }
        let first = heard.values().next();
        let agreed = first.filter(|first| heard.values().all(|other| other == *first)).cloned();
        let before = self.agreed.swap(agreed.clone());
        before != agreed
    }

    /// The revision, while those that were heard agree.
    pub fn agreed(&self) -> Option<Arc<String>> {
        self.agreed.load_full()
    }

    /// Whether this endpoint serves this revision, and all others do.
    pub fn is_of(&self, endpoint: &str, revision: &Arc<String>) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let is_agreed = self.agreed.load().as_ref().is_some_and(|agreed| agreed == revision);
        is_agreed && heard.get(endpoint).is_some_and(|own| own == revision)
    }

    /// How many say what.
    pub fn shown(&self) -> BTreeMap<String, usize> {
        let mut shown = BTreeMap::new();
        for said in self.heard.lock().unwrap_or_else(PoisonError::into_inner).values() {
            *shown.entry(said.to_string()).or_default() += 1;
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_all_say_counts() {
        let revision = Revision::default();
        assert!(revision.agreed().is_none());
        assert!(revision.note("a", Some("1".into())));
        assert!(!revision.note("a", Some("1".into())));
        let one = revision.agreed().unwrap();
        assert!(revision.is_of("a", &one) && !revision.is_of("b", &one));
        assert!(revision.note("b", Some("2".into())));
        assert!(revision.agreed().is_none() && !revision.is_of("a", &one));
        assert!(revision.note("a", Some("2".into())));
        assert_eq!(*revision.agreed().unwrap(), "2");
        assert!(!revision.note("a", None));
        assert!(revision.note("b", None));
        assert!(revision.agreed().is_none());
    }
}
