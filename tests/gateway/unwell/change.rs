//! Limits that change while they are used.

use super::*;

/// For how long a file is half written.
const HALF: Duration = Duration::from_millis(50);
/// Any longer, and it may be taken for what was meant.
const TOO_LONG: Duration = Duration::from_millis(90);

/// The keys file of [`Setup::key`], with [`LIMITED`] as its last record.
fn keys(limits: &str) -> String {
    format!("keys:\n{}{}", record(KEY, "scopes: ['*']"), record(LIMITED, &format!("limits: {limits}")))
}

async fn generation(gateway: &Gateway) -> f64 {
    gateway.metric("nimgate_config_generation").await
}

async fn reload(gateway: &Gateway, limits: &str) {
    let before = generation(gateway).await;
    replace(&gateway.path("keys.yaml"), &keys(limits));
    until("it is loaded", async || generation(gateway).await > before).await;
}

#[tokio::test]
async fn a_limit_that_goes_and_comes_back_remembers() {
    const LIMITS: &str = "[{requests: 3, per: day}]";
    let (redis, backend) = (RedisServer::start().await, simulator(Kind::Llm).await);
    let local = Gateway::setup().chat(&[&backend.url()]).key(LIMITED, &format!("limits: {LIMITS}")).start().await;
    let shared = replica(&backend, redis.address(), LIMITS, "on_outage: deny").start().await;
    until_shared(&shared).await;
    for (name, gateway) in [("local", &local), ("shared", &shared)] {
        use_up(gateway, 3).await;
        for round in 1..=2 {
            reload(gateway, "[]").await;
            for _ in 0..2 {
                assert_eq!(chat_once(gateway).await, 200, "{name}, without a limit, round {round}");
            }
            reload(gateway, LIMITS).await;
            for at in 0..5 {
                assert_eq!(chat_once(gateway).await, 429, "{name}, {at} after round {round}");
            }
        }
    }
}

/// Uses a limit up, writes the keys file in halves some times under load, and raises the limit by two. How many were
/// admitted above the first limit, and for how long at most the file was half written.
async fn write_in_halves() -> (usize, Duration) {
    const LIMIT: usize = 5;
    let limits = |amount: usize| format!("[{{requests: {amount}, per: day}}]");
    let backend = simulator(Kind::Llm).await;
    let setup = Gateway::setup().chat(&[&backend.url()]).key(LIMITED, &format!("limits: {}", limits(LIMIT)));
    let gateways = Arc::new(vec![setup.start().await]);
    let gateway = &gateways[0];
    use_up(gateway, LIMIT).await;
    let (path, whole) = (gateway.path("keys.yaml"), keys(&limits(LIMIT)));
    let half = whole[..whole.rfind("limits:").unwrap()].to_owned();
    let load = Load::on(&gateways, 4);
    let writing = tokio::task::spawn_blocking(move || {
        let mut longest = Duration::ZERO;
        for _ in 0..8 {
            // In place, as an editor writes that is slow.
            let begun = Instant::now();
            std::fs::write(&path, &half).unwrap();
            std::thread::sleep(HALF);
            std::fs::write(&path, &whole).unwrap();
            longest = longest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(fastrand::u64(..150)));
        }
        longest
    });
    let longest = writing.await.unwrap();
    // A file that is whole comes into force.
    reload(gateway, &limits(LIMIT + 2)).await;
    until_refused(gateway).await;
    load.until_answered(20).await;
    let all = load.end().await;
    println!("half written for {longest:?} at most; {:?}", counts(&all));
    assert!(counts(&all).keys().all(|status| [200, 429].contains(status)));
    (admitted(&all), longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_written_keys_file_lifts_no_limit() {
    // Where the machine was too busy to go on writing in time, nothing can be told.
    for _ in 0..8 {
        let (admitted, longest) = write_in_halves().await;
        if longest < TOO_LONG {
            assert!(admitted <= 2, "{admitted} above the limit, where it was raised by 2");
            return;
        }
    }
    println!("nothing can be told: no file was written within {TOO_LONG:?}");
}
