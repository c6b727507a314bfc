//! Named gates, by which a test decides when a simulator takes its next step.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::watch;

use super::lock;

/// Counts per name how often the gate was opened.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<HashMap<String, watch::Sender<u64>>>);

impl Gates {
    pub(super) fn open(&self, name: &str, times: u64) -> u64 {
        let mut gates = lock(&self.0);
        let gate = gates.entry(name.to_owned()).or_insert_with(|| watch::Sender::new(0));
        gate.send_modify(|opened| *opened += times);
        *gate.borrow()
    }

    /// Waits until the gate was opened `times` times in all.
    pub(super) async fn pass(&self, name: &str, times: u64) {
        let mut opened = lock(&self.0).entry(name.to_owned()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        // Gates are never removed, so the sender outlives the wait.
        let _ = opened.wait_for(|opened| *opened >= times).await;
    }
}
