//! Sources against a DNS server and a Kubernetes API server of their own, under paused time.

use hickory_resolver::proto::rr::RecordType;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use super::*;

mod api_server;
mod kubernetes;
mod name_server;
mod names;

use api_server::ApiServer;
use name_server::NameServer;

/// A followed source and the sets that it brought.
struct Followed {
    sets: UnboundedReceiver<Vec<Found>>,
    _tasks: JoinSet<()>,
}

impl Followed {
    fn start(source: Source, settings: Settings) -> Self {
        let (send, sets) = unbounded_channel();
        let tasks = start("pool", source, settings, move |set| send.send(set).unwrap());
        Self { sets, _tasks: tasks }
    }

    /// The next set, each as `host=address`.
    async fn next(&mut self) -> Vec<String> {
        let set = tokio::time::timeout(Duration::from_secs(1000), self.sets.recv()).await;
        set.expect("no set came").unwrap().iter().map(|found| format!("{}={}", found.host, found.address)).collect()
    }

    /// Fails if a set comes before something else happens.
    async fn none_until<T>(&mut self, event: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            happened = event => happened,
            set = self.sets.recv() => panic!("a set came: {set:?}"),
        }
    }
}

/// Waits for what another task brings about.
async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(1000);
    while !condition() {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl NameServer {
    fn settings(&self) -> Settings {
        Settings { name_servers: vec![self.address()], ..Settings::default() }
    }

    /// Waits until it was asked this once more.
    async fn is_asked(&self, name: &str, kind: RecordType) {
        let before = self.asked(name, kind).len();
        until(|| self.asked(name, kind).len() > before).await;
    }
}

impl ApiServer {
    fn settings(&self) -> Settings {
        let cluster = Cluster::Url { url: self.url().parse().unwrap(), token_file: None, ca_file: None };
        Settings { cluster, ..Settings::default() }
    }

    async fn is_watched(&self, times: usize) {
        until(|| self.watches() >= times).await;
    }
}
