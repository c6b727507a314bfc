use super::*;

fn ended<'a>(pool: Option<&'a PoolName>) -> Ended<'a> {
    Ended { request_id: "r", pool, attempts: 1, status: 200, total: Duration::from_millis(10), ..Ended::default() }
}

fn seconds(second: u64) -> Duration {
    Duration::from_secs(second)
}

#[test]
fn seconds_are_counted_by_pool_and_together() {
    let live = Live::new(KEPT);
    let [chat, embed] = ["chat", "embed"].map(PoolName::from);
    let failed = Ended { failure: Some(("connect_refused", "network")), attempts: 3, ..ended(Some(&chat)) };
    let spilled = Ended { spill: Some(("chat", "overload")), tokens: Some((3, 4)), ..ended(Some(&embed)) };
    let queued = Ended { queued: Some(Duration::from_millis(5)), cache: Some(("hit", 2, 1)), ..ended(None) };
    for (at, ended) in [(1, &failed), (1, &spilled), (2, &queued), (4, &failed)] {
        live.end_at(ended, seconds(at));
    }
    let all = live.view_at(Step::Second, None, None, seconds(4));
    assert_eq!((all.series.from, all.next), (live.epoch, live.epoch + 4), "what is under way is not shown");
    assert_eq!(all.series.requests, [0, 2, 1, 0]);
    assert_eq!(all.series.retries, [0, 2, 0, 0]);
    assert_eq!((&all.series.input_tokens[1], &all.series.output_tokens[1], all.series.spills[1]), (&3, &4, 1));
    assert_eq!((all.series.queue_ms[2], all.series.cache_hits[2], all.series.cache_misses[2]), (Some(5.0), 2, 1));
    let median = all.series.total_p50[1].unwrap();
    assert!((8.0..12.0).contains(&median) && all.series.total_p50[0].is_none(), "{median}");
    let shown = serde_json::to_value(&all).unwrap();
    assert_eq!(shown["series"]["failures"]["network"], serde_json::json!([0, 1, 0, 0]));
    let later = live.view_at(Step::Second, Some(all.next), Some("chat"), seconds(6));
    assert_eq!((later.series.from, later.series.requests), (all.next, vec![1, 0]));
    let sums: Vec<_> = later.pools.iter().map(|sum| (sum.pool.as_str(), sum.requests, sum.failures)).collect();
    assert_eq!(sums, [("", 1, 0), ("chat", 2, 2), ("embed", 1, 0)]);
}

#[test]
fn what_is_old_is_forgotten() {
    let live = Live::new(KEPT);
    let chat = PoolName::from("chat");
    (0..10_000).for_each(|at| live.end_at(&ended(Some(&chat)), seconds(at)));
    let view = |step| live.view_at(step, None, None, seconds(10_000)).series;
    assert_eq!(view(Step::Second).requests, [1; 299]);
    let quarters = view(Step::Quarter).requests;
    assert_eq!(quarters.len(), 239);
    // Its first second may stand within a step.
    assert!(quarters.iter().all(|count| *count == 15), "{quarters:?}");
    assert_eq!(live.view_at(Step::Second, None, None, seconds(20_000)).series.requests, [0; 299]);
}

#[test]
fn a_future_cursor_has_nothing() {
    let live = Live::new(KEPT);
    let view = live.view_at(Step::Quarter, Some(u64::MAX), None, seconds(100));
    assert!(view.series.requests.is_empty());
    let unknown = live.view_at(Step::Second, None, Some("nobody"), seconds(3));
    assert_eq!(unknown.series.requests, [0, 0, 0]);
}

#[test]
fn pools_and_callers_beyond_the_bound_count_together() {
    let live = Live::new(KEPT);
    let pools: Vec<_> = (0..100).map(|at| PoolName::from(format!("pool-{at}"))).collect();
    let callers: Vec<_> = (0..1000).map(|at| CallerId::from(format!("caller-{at}"))).collect();
    for at in 0..1000 {
        let ended = Ended { caller: Some(&callers[at]), tokens: Some((1, 1)), ..ended(Some(&pools[at % 100])) };
        live.end_at(&ended, seconds(1));
    }
    let heavy = Ended { caller: Some(&callers[7]), ..ended(None) };
    (0..5).for_each(|_| live.end_at(&heavy, seconds(2)));
    let view = live.view_at(Step::Second, None, None, seconds(3));
    assert!(view.pools.len() <= MOST_POOLS + 1 && view.pools.iter().any(|sum| sum.pool == OTHER));
    assert_eq!(view.pools.iter().map(|sum| sum.requests).sum::<u32>(), 1005);
    assert_eq!((view.callers[0].key.as_deref(), view.callers[0].requests), (Some("caller-7"), 6));
    let last = view.callers.last().unwrap();
    assert_eq!((view.callers.len(), &last.key), (51, &None));
    assert_eq!(view.callers.iter().map(|used| used.requests).sum::<u64>(), 1005);
    assert!(live.view_at(Step::Second, None, None, seconds(400)).callers.is_empty());
    let old = PoolName::from("later");
    live.end_at(&ended(Some(&old)), seconds(4000));
    let view = live.view_at(Step::Second, None, None, seconds(4001));
    assert_eq!(view.pools.iter().map(|sum| sum.pool.as_str()).collect::<Vec<_>>(), ["later"]);
}

#[test]
fn each_kind_is_found_and_a_flood_hides_no_other_failure() {
    let live = Live::new(KEPT);
    let chat = PoolName::from("chat");
    let plain = ended(Some(&chat));
    let of = |request_id, change: fn(&mut Ended<'_>)| {
        let mut ended = Ended { request_id, ..plain };
        change(&mut ended);
        live.end_at(&ended, seconds(1));
    };
    of("failed", |e| e.failure = Some(("connect_refused", "network")));
    of("queued", |e| e.queued = Some(Duration::from_millis(1)));
    of("retried", |e| e.attempts = 2);
    of("spilled", |e| e.spill = Some(("a", "outage")));
    of("cached", |e| e.cache = Some(("partial", 1, 1)));
    of("missed", |e| e.cache = Some(("miss", 0, 1)));
    of("slow", |e| e.total = Duration::from_secs(9));
    let flood = Ended { failure: Some(("rate_limit_exceeded", "quota")), ..plain };
    (0..100_000).for_each(|at| live.end_at(&flood, seconds(2 + at / 10_000)));
    for kind in Kind::ALL {
        let rows = live.recent(kind);
        let found = rows.iter().filter(|row| row.request_id == kind.word()).count();
        assert_eq!(found, 1, "{} {}", kind.word(), rows.len());
        assert!(rows.len() <= BLAMES.len() * KEPT);
    }
    assert_eq!(live.recent(Kind::Failed).len(), KEPT + 1);
    assert_eq!(live.recent(Kind::Slow)[0].request_id, "slow");
}

#[test]
fn texts_of_strangers_are_cut() {
    let live = Live::new(1);
    let long = "ü".repeat(5000);
    for _ in 0..3 {
        let failure = Some(("model_not_found", "client"));
        live.end_at(&Ended { path: &long, model: Some(&long), failure, ..ended(None) }, seconds(1));
    }
    let rows = live.recent(Kind::Failed);
    assert_eq!((rows.len(), rows[0].path.len(), rows[0].model.as_ref().unwrap().len()), (1, 256, 256));
}

/// `cargo test --lib live -- --ignored --nocapture` prints what a request costs, in time of processors.
#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    const COUNT: u32 = 2_000_000;
    let live = Live::new(KEPT);
    let pools: Vec<_> = (0..8).map(|at| PoolName::from(format!("pool-{at}"))).collect();
    let callers: Vec<_> = (0..100).map(|at| CallerId::from(format!("caller-{at}"))).collect();
    let cpu = || {
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
    };
    let run = || {
        let begun = cpu();
        for at in 0..COUNT as usize {
            let caller = Some(&callers[at % callers.len()]);
            let tokens = Some((10, 20));
            live.end(&Ended { caller, tokens, first_byte: Some(seconds(1)), ..ended(Some(&pools[at % pools.len()])) });
        }
        (cpu() - begun) / COUNT
    };
    let alone = run();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let begun = cpu();
    let size = serde_json::to_vec(&live.view(Step::Second, None, None)).unwrap().len();
    println!("{alone:?} alone, {together:?} with 4 threads; a view of {size} bytes takes {:?}", cpu() - begun);
}
