//! Redis late at the worst moment: while a window ends.

use super::*;
use crate::shared::above;

const SECOND: u64 = 1_000_000;

/// Waits until the clock is so many microseconds within the second that it is in, or within the next.
async fn until_within_second(at: u64) {
    let now = micros() % SECOND;
    tokio::time::sleep(Duration::from_micros((at + SECOND - now) % SECOND)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_at_a_key_across_a_boundary_forgets_nothing() {
    const LIMIT: usize = 5;
    const ROUNDS: usize = 8;
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let setup = replica(&backend, redis.address(), &format!("[{{requests: {LIMIT}, per: second}}]"), "on_outage: deny");
    let gateway = setup.start().await;
    until_shared(&gateway).await;
    let gateways = Arc::new(vec![gateway]);
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        until_within_second(850_000).await;
        redis.command(&["CLIENT", "PAUSE", "400", "ALL"]);
        let mut looks = JoinSet::new();
        for _ in 0..6 {
            let gateways = Arc::clone(&gateways);
            looks.spawn(async move { gateways[0].admin("/keys/limited").await });
        }
        until_within_second(5_000).await;
        let load = Load::on(&gateways, 12);
        until_within_second(850_000).await;
        all.extend(load.end().await);
        for page in looks.join_all().await {
            assert_eq!(page.json()["limits"][0]["amount"], LIMIT, "{}", page.text());
        }
    }
    let spans: Vec<(u64, u64)> = all.iter().filter(|a| a.status == 200).map(|a| (a.sent, a.answered)).collect();
    println!("{:?} in {ROUNDS} seconds of {LIMIT} each", counts(&all));
    assert_eq!(above(&spans, LIMIT), 0, "{:?}", by_second(&spans));
    assert!(spans.len() > ROUNDS && counts(&all)[&429] > 0);
}

/// How many were admitted in which second.
fn by_second(spans: &[(u64, u64)]) -> BTreeMap<u64, usize> {
    let mut seconds = BTreeMap::new();
    spans.iter().for_each(|(sent, _)| *seconds.entry(sent / SECOND).or_default() += 1);
    seconds
}
