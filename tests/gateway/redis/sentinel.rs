//! A master with a replica, watched by a sentinel.

use super::{RedisServer, until};

const MASTER: &str = "nimgate-test";
/// Looks and tells often. A busy machine must not make a sentinel distrust its own clock for half a minute.
const PACE: [&str; 8] = ["info-period", "250", "ping-period", "250", "publish-period", "250", "tilt-period", "1000"];

/// A master, its replica and one sentinel that decides alone.
pub struct RedisSentinel {
    pub master: RedisServer,
    pub replica: RedisServer,
    sentinel: RedisServer,
}

impl RedisSentinel {
    pub async fn start() -> Self {
        let master = RedisServer::start().await;
        let place = format!("127.0.0.1 {}", master.port());
        let replica = RedisServer::setup().option("replicaof", &place).start().await;
        until("the replica follows", async || {
            replica.command(&["INFO", "replication"]).contains("master_link_status:up")
        })
        .await;
        let sentinel = RedisServer::setup()
            .sentinel()
            .option("sentinel monitor", &format!("{MASTER} {place} 1"))
            .option("sentinel down-after-milliseconds", &format!("{MASTER} 500"))
            .option("sentinel failover-timeout", &format!("{MASTER} 2000"))
            .start()
            .await;
        sentinel.command(&[&["SENTINEL", "DEBUG"], &PACE[..]].concat());
        until("the sentinel knows the replica", async || {
            let replicas = sentinel.command(&["SENTINEL", "REPLICAS", MASTER]);
            replicas.contains("flags\nslave\n") && replicas.contains("master-link-status\nok\n")
        })
        .await;
        Self { master, replica, sentinel }
    }

    pub fn sentinel_urls(&self) -> Vec<String> {
        vec![self.sentinel.url()]
    }

    /// The name under which sentinels know the master.
    pub fn master_name(&self) -> &'static str {
        MASTER
    }

    pub fn kill_master(&mut self) {
        self.master.stop();
    }

    /// Waits until the replica has become the master and the sentinel says so.
    pub async fn until_failed_over(&self) {
        let place = format!("127.0.0.1\n{}", self.replica.port());
        until("the replica is the master", async || {
            self.sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]) == place
                && self.replica.command(&["ROLE"]).starts_with("master")
        })
        .await;
    }
}
