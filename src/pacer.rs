//! Pacer: replicas tell each other what they learned of the rates that somebody else lets pass.
//!
//! A lesson is a rate and a moment, by Redis's clock; the newest counts. What has been told is not asked for more often
//! than once a second, and a replica without Redis learns for itself.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::Script;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admission::pace::{Lesson, Pace};
use crate::proxy::snapshot::Snapshot;
use crate::quota::Limiter;
use crate::store::{self, Link, Store};

/// How often replicas look.
const LOOK: Duration = Duration::from_secs(1);
/// For how long a lesson is kept, in seconds: long after every rate has risen again.
const KEPT: u64 = 86_400;
/// Lessons that are this close are the same one.
const SAME: Duration = Duration::from_millis(50);

/// `base age closed` in, the newest out; an empty base asks only. Times are microseconds.
static TELL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
          local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
          local known = redis.call('HMGET', KEYS[1], 'base', 'since', 'open')
          if ARGV[1] ~= '' then
              local since = now - tonumber(ARGV[2])
              if not known[2] or tonumber(known[2]) < since then
                  known = {ARGV[1], string.format('%.0f', since), string.format('%.0f', now + tonumber(ARGV[3]))}
                  redis.call('HSET', KEYS[1], 'base', known[1], 'since', known[2], 'open', known[3])
                  redis.call('EXPIRE', KEYS[1], ARGV[4])
              end
          end
          if not known[1] or not known[2] or not known[3] then return {} end
          return {known[1], string.format('%.0f', now - tonumber(known[2])),
                  string.format('%.0f', math.max(0, tonumber(known[3]) - now))}",
    )
});

/// Shares what is learned through Redis, and the rates among the replicas, for ever.
pub async fn share(snapshot: Arc<ArcSwap<Snapshot>>, limiter: Arc<Limiter>, store: Store) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let current = snapshot.load_full();
        for state in &current.pools {
            let (Some(settings), Some(pace)) = (&state.settings.pace, state.gate.pace()) else { continue };
            pace.set_replicas(limiter.replicas());
            if let Some(mut link) = store.link().filter(|_| settings.settings.learns) {
                let key = store.key(&settings.shared, "pace");
                match exchange(&mut link, &key, &pace).await {
                    Ok(()) => store.works(&link),
                    Err(error) => {
                        tracing::debug!(reason = store::describe(&error), "a pace could not be shared");
                        store.fail(&link, &error);
                    }
                }
            }
        }
    }
}

async fn exchange(link: &mut Link, key: &str, pace: &Pace) -> redis::RedisResult<()> {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let own = pace.lesson(Instant::now());
    let mut call = TELL.prepare_invoke();
    call.key(key);
    match own {
        Some((lesson, true)) => {
            call.arg(lesson.base.to_string()).arg(micros(lesson.age)).arg(micros(lesson.closed)).arg(KEPT);
        }
        _ => {
            call.arg("").arg(0).arg(0).arg(KEPT);
        }
    }
    let reply: Vec<String> = match call.invoke_async(link).await {
        Ok(reply) => reply,
        Err(error) => {
            if own.is_some_and(|(_, is_news)| is_news) {
                pace.untold();
            }
            return Err(error);
        }
    };
    let [base, age, closed] = &reply[..] else { return Ok(()) };
    let (Ok(base), Ok(age), Ok(closed)) = (base.parse::<f64>(), age.parse(), closed.parse()) else { return Ok(()) };
    let lesson = Lesson { base, age: Duration::from_micros(age), closed: Duration::from_micros(closed) };
    let is_newer = own.is_none_or(|(own, _)| lesson.age + SAME < own.age);
    if is_newer && base.is_finite() && base > 0.0 {
        pace.learn(lesson, Instant::now());
    }
    Ok(())
}
