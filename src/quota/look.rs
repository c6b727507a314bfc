//! Look: how limits stand over all replicas, for those who ask to see it.

use std::collections::HashMap;

use redis::{FromRedisValue as _, RedisResult, Value};

use super::{Account, Bound, Limiter};
use crate::store::Store;

impl Limiter {
    /// Learns from Redis how the limits of an account stand. Best effort: when Redis is away, what is known here stays.
    pub async fn look(&self, store: &Store, account: &Account) {
        let begun = self.clock.now();
        let Some(mut link) = store.link().filter(|_| account.bounds().next().is_some()) else { return };
        let mut asked = redis::pipe();
        let mut windows = Vec::new();
        for Bound { counter, .. } in account.bounds() {
            let window = counter.window(begun).start;
            windows.push(window);
            let place = match counter.unit {
                Some(_) => format!("w:{}:{}", counter.id, window / 1_000_000),
                None => format!("h:{}", counter.id),
            };
            let command = if counter.unit.is_some() { "HMGET" } else { "HGETALL" };
            let asked = asked.cmd(command).arg(store.key(&counter.tag, &place));
            if counter.unit.is_some() {
                asked.arg("s");
            }
        }
        let replies: RedisResult<Vec<Value>> = asked.query_async(&mut link).await;
        let now = self.clock.now();
        for ((bound, window), reply) in account.bounds().zip(windows).zip(replies.unwrap_or_default()) {
            let granted = match bound.counter.unit {
                Some(_) => Vec::<Option<u64>>::from_redis_value(reply).ok().map(|s| s.into_iter().flatten().sum()),
                None => HashMap::<String, String>::from_redis_value(reply).ok().map(|held| all_held(&held, now)),
            };
            if let Some(granted) = granted {
                bound.counter.seen(now, window, granted);
            }
        }
    }
}

/// What replicas hold that have not vanished; each entry is a count and until when it holds.
fn all_held(held: &HashMap<String, String>, now: u64) -> u64 {
    let count = |entry: &String| {
        let (count, until) = entry.split_once(' ')?;
        let until: u64 = until.parse().ok()?;
        count.parse::<u64>().ok().filter(|_| until > now)
    };
    held.values().filter_map(count).sum()
}
