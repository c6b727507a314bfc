//! Stage: replicas that share one limit, and the way from them to Redis.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nimgate::quota::limit::Limit;
use redis::aio::MultiplexedConnection;

use crate::line::Line;
use crate::redis_server::RedisServer;
use crate::replica::Replica;

/// What is measured in one cell.
#[derive(Clone, Copy)]
pub struct Setting {
    /// How many share the limit.
    pub replicas: usize,
    /// Its amount.
    pub limit: u64,
    /// Milliseconds added to a round trip.
    pub rtt: u64,
}

/// Replicas that share.
pub struct Stage {
    /// All of them.
    pub replicas: Vec<Replica>,
    /// A connection of the bench's own, without delay.
    pub redis: MultiplexedConnection,
    /// Of all keys in Redis.
    pub prefix: String,
    /// The median of some round trips, as the replicas have them.
    pub round_trip: Duration,
    _line: Option<Line>,
}

/// Longest time until all replicas share and know of each other.
const PATIENCE: Duration = Duration::from_secs(10);

impl Stage {
    /// Starts the replicas and waits until they know of each other.
    pub async fn set(setting: Setting, server: &RedisServer, limit: Limit) -> Result<Self> {
        // Without added delay there is no line at all.
        let line = match setting.rtt {
            0 => None,
            rtt => {
                let line = Line::to(server.address()).await;
                line.delay(Duration::from_micros(rtt * 500));
                Some(line)
            }
        };
        let address = line.as_ref().map_or(server.address(), Line::address);
        let prefix = format!("accuracy{:x}", fastrand::u64(..));
        let start = |_| Replica::start(address, &prefix, limit.clone());
        let replicas: Vec<Replica> = (0..setting.replicas).map(start).collect::<Result<_>>()?;
        let begun = Instant::now();
        while replicas.iter().any(|r| !r.is_sharing(replicas.len())) {
            ensure!(begun.elapsed() < PATIENCE, "the replicas do not share");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (redis, round_trip) = (connect(server.address()).await?, ping(address).await?);
        Ok(Self { replicas, redis, prefix, round_trip, _line: line })
    }

    /// Ends the replicas.
    pub fn strike(self) -> Result<()> {
        // Together, as each says goodbye to Redis.
        self.replicas.iter().for_each(Replica::stop);
        self.replicas.into_iter().try_for_each(Replica::join)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replicas, a limit of {}, {} ms added", self.replicas, self.limit, self.rtt)
    }
}

async fn connect(address: SocketAddr) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://{address}"))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

async fn ping(address: SocketAddr) -> Result<Duration> {
    let mut redis = connect(address).await?;
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        redis::cmd("PING").query_async::<String>(&mut redis).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
