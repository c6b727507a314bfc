//! A cluster of masters.

use super::{RedisServer, until};

const SLOTS: usize = 16384;
const NODES: usize = 3;

/// Three masters without replicas that share all slots in order.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub async fn start() -> Self {
        let nodes = (0..NODES).map(|_| RedisServer::setup().cluster().start());
        let cluster = Self { nodes: futures_util::future::join_all(nodes).await };
        cluster.assign_slots();
        cluster.introduce_nodes();
        cluster.until_sound().await;
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The index of the node that holds `key`.
    pub fn owner(&self, key: &str) -> usize {
        let slot: usize = self.nodes[0].command(&["CLUSTER", "KEYSLOT", key]).parse().unwrap();
        (0..NODES).find(|node| slot < first_slot(node + 1)).unwrap()
    }

    /// Waits until every node serves and knows that all others do.
    pub async fn until_sound(&self) {
        for node in &self.nodes {
            until("the cluster is sound", async || {
                let info = node.try_command(&["CLUSTER", "INFO"]).unwrap_or_default();
                let sound = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"];
                sound.into_iter().all(|line| info.contains(line))
            })
            .await;
        }
    }

    fn assign_slots(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let (first, last) = (first_slot(index), first_slot(index + 1) - 1);
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
    }

    fn introduce_nodes(&self) {
        for node in &self.nodes[1..] {
            let bus = node.command(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().unwrap();
            self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus]);
        }
    }
}

fn first_slot(node: usize) -> usize {
    node * SLOTS / NODES
}
