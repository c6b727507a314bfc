use super::*;

fn endpoint(port: u16) -> Arc<Endpoint> {
    let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
    let settings = Settings { name: port.to_string(), host: "h".into(), port, thresholds };
    Arc::new(Endpoint::new(settings, vec![([127, 0, 0, 1], port).into()]))
}

fn pool_with(size: u16, tuning: Tuning) -> Pool {
    Pool::new(Arc::new(Members::new((1..=size).map(endpoint).collect())), tuning)
}

fn pool(size: u16) -> Pool {
    pool_with(size, Tuning::default())
}

fn pick(pool: &Pool) -> Result<Lease, NoEndpoint> {
    pool.pick(&Ask::default(), now())
}

#[test]
fn a_busy_endpoint_gets_less_and_a_dropped_lease_gives_back() {
    for policy in [Policy::Work, Policy::LeastInFlight] {
        let pool = pool_with(2, Tuning { policy, ..Tuning::default() });
        let busy: Vec<Lease> = (0..10).map(|_| pick(&pool).unwrap()).collect();
        let loads: Vec<usize> = pool.endpoints().iter().map(|e| e.in_flight()).collect();
        assert_eq!(loads, [5, 5]);
        drop(busy);
        assert!(pool.endpoints().iter().all(|e| e.in_flight() == 0 && e.work() == 0.0));
    }
}

#[test]
fn unhealthy_and_tried_endpoints_are_left_out() {
    let pool = pool_with(3, Tuning { try_sick: false, ..Tuning::default() });
    pool.endpoints()[0].probed(false, 1);
    let first = pick(&pool).unwrap().endpoint().clone();
    let ask = |tried: &[Arc<Endpoint>]| pool.pick(&Ask { tried, ..Ask::default() }, now());
    let second = ask(std::slice::from_ref(&first)).unwrap().endpoint().clone();
    assert!(!Arc::ptr_eq(&first, &second) && ![first.name(), second.name()].contains(&"1"));
    assert_eq!(ask(&[first, second]).unwrap_err(), NoEndpoint::AllTried);
    for endpoint in pool.endpoints().iter() {
        endpoint.probed(false, 1);
    }
    assert_eq!(pick(&pool).unwrap_err(), NoEndpoint::AllUnhealthy);
    assert!(!pool.is_available());
}

#[test]
fn when_all_look_bad_the_best_is_tried() {
    let pool = pool(3);
    for (at, endpoint) in pool.endpoints().iter().enumerate() {
        if at < 2 {
            endpoint.probed(false, 1);
        }
    }
    let last = pool.endpoints()[2].clone();
    for _ in 0..10 {
        let mut lease = pool.pick(&Ask { tried: &pool.endpoints()[..2], ..Ask::default() }, now()).unwrap();
        lease.judge(Verdict::Unavailable);
    }
    assert!(last.is_open());
    assert_eq!(pick(&pool).unwrap().endpoint().name(), "3");
}

#[test]
fn an_endpoint_has_no_more_in_flight_than_it_may() {
    let pool = pool_with(2, Tuning { max_in_flight: 3, ..Tuning::default() });
    let leases: Vec<Lease> = (0..6).map(|_| pick(&pool).unwrap()).collect();
    assert_eq!(pick(&pool).unwrap_err(), NoEndpoint::AllFull);
    drop(leases);
    pick(&pool).unwrap();
}

#[test]
fn a_large_pool_is_used_whole() {
    for policy in [Policy::Work, Policy::LeastInFlight, Policy::RoundRobin, Policy::Random] {
        let pool = pool_with(40, Tuning { policy, ..Tuning::default() });
        let leases: Vec<Lease> = (0..4000).map(|_| pick(&pool).unwrap()).collect();
        assert!(pool.endpoints().iter().all(|e| (50..160).contains(&e.in_flight())), "{policy:?}");
        drop(leases);
    }
}

/// Runs requests through endpoints that take so many seconds for each, without slowing down, as the clock goes on by
/// `every` seconds; answers how many each got.
fn run(pool: &Pool, seconds: &[f64], every: f64, requests: usize) -> Vec<usize> {
    let mut given = vec![0; seconds.len()];
    let mut under_way: Vec<(u64, Lease)> = Vec::new();
    let start = now();
    for request in 0..requests {
        let time = start + (request as f64 * every * 1e6) as u64;
        let (ended, going): (Vec<_>, Vec<_>) = under_way.into_iter().partition(|(end, _)| *end <= time);
        under_way = going;
        for (end, mut lease) in ended {
            // Leases end by the real clock; what they learned is told by hand.
            let took = (end - lease.begun) as f64 / 1e6;
            lease.endpoint.pace.learn(lease.work, lease.ahead, took, time);
            lease.common.pace.learn(lease.work, lease.ahead, took, time);
            lease.judge(Verdict::Good);
        }
        let lease = pool.pick(&Ask::default(), time).unwrap();
        let at = usize::from(lease.endpoint().settings().port) - 1;
        given[at] += 1;
        under_way.push((time + (seconds[at] * 1e6) as u64, lease));
    }
    given
}

#[test]
fn a_fast_endpoint_gets_more_than_slow_ones() {
    let pool = pool(3);
    let given = run(&pool, &[0.1, 1.0, 1.0], 0.05, 2000);
    assert!(given[0] > 8 * given[1] && given[0] > 8 * given[2], "{given:?}");
    assert!(given[1] > 0 && given[2] > 0, "{given:?}");
}

#[test]
fn a_hung_endpoint_gets_little_though_it_never_answers() {
    let pool = pool(3);
    run(&pool, &[0.1, 0.1, 0.1], 0.02, 500);
    let given = run(&pool, &[0.1, 0.1, 1e6], 0.02, 1000);
    assert!(given[2] < 60, "{given:?}");
}

#[test]
fn conversations_stay_where_they_began_unless_it_is_full() {
    let pool = pool_with(4, Tuning { affinity: 1000, ..Tuning::default() });
    let chain = |conversation: u64, turns: u64| Chain::new((0..turns).map(|t| conversation * 1000 + t).collect());
    let place = |chain: &Chain| {
        let lease = pool.pick(&Ask { chain: Some(chain), ..Ask::default() }, now()).unwrap();
        lease.endpoint().name().to_owned()
    };
    let mut used = std::collections::BTreeSet::new();
    for conversation in 0..40 {
        let first = place(&chain(conversation, 1));
        assert!((2..10).all(|turns| place(&chain(conversation, turns)) == first));
        used.insert(first);
    }
    assert_eq!(used.len(), 4);
    let one = chain(1, 3);
    let ask = Ask { chain: Some(&one), ..Ask::default() };
    let leases: Vec<Lease> = (0..40).map(|_| pool.pick(&ask, now()).unwrap()).collect();
    let most = pool.endpoints().iter().map(|e| e.in_flight()).max().unwrap();
    assert!(most <= 18, "{most}");
    drop(leases);
}

#[test]
fn an_endpoint_that_got_nothing_for_long_is_tried_by_one_request() {
    let pool = pool(2);
    let [slow, quick] = [0, 1].map(|at| Arc::clone(&pool.endpoints()[at]));
    let begun = 1_000_000;
    for (endpoint, seconds) in [(&slow, 10.0), (&quick, 0.01)] {
        (0..20).for_each(|_| endpoint.pace.learn(1.0, 0.0, seconds, begun));
        endpoint.given.store(begun, Ordering::Relaxed);
    }
    let to_slow = |from: u64| {
        let picks = (0..200).map(|at| pool.pick(&Ask::default(), from + at).unwrap());
        picks.filter(|lease| Arc::ptr_eq(lease.endpoint(), &slow)).count()
    };
    assert_eq!(to_slow(begun), 0);
    assert_eq!(to_slow(begun + LONG + 1), 1);
    assert_eq!(to_slow(begun + LONG + 1000), 0);
}

#[test]
fn a_full_endpoint_takes_half_as_many_again_of_what_it_has_cached() {
    let pool = pool_with(2, Tuning { max_in_flight: 4, affinity: 1000, ..Tuning::default() });
    let chain = Chain::of_key("conversation");
    let ask = Ask { chain: Some(&chain), ..Ask::default() };
    let mut held = vec![pool.pick(&ask, now()).unwrap()];
    let home = Arc::clone(held[0].endpoint());
    held.extend((0..3).map(|_| {
        let lease = pool.take(&home, 4, 1.0, now());
        lease.unwrap()
    }));
    for expected in [true, true, false] {
        let lease = pool.pick(&ask, now()).unwrap();
        assert_eq!(Arc::ptr_eq(lease.endpoint(), &home), expected, "{} in flight", home.in_flight());
        held.push(lease);
    }
    let other = pool.pick(&Ask::default(), now()).unwrap();
    assert!(!Arc::ptr_eq(other.endpoint(), &home), "what is not cached there goes elsewhere");
}

#[test]
fn a_drained_endpoint_gets_nothing_new_and_keeps_what_it_has() {
    for policy in [Policy::Work, Policy::LeastInFlight, Policy::RoundRobin, Policy::Random] {
        let pool = pool_with(2, Tuning { policy, affinity: 100, ..Tuning::default() });
        let chain = Chain::of_key("conversation");
        let ask = Ask { chain: Some(&chain), ..Ask::default() };
        let held = pool.pick(&ask, now()).unwrap();
        let home = Arc::clone(held.endpoint());
        home.drain(true);
        let others: Vec<Lease> = (0..20).map(|_| pool.pick(&ask, now()).unwrap()).collect();
        assert!(others.iter().all(|lease| !Arc::ptr_eq(lease.endpoint(), &home)), "{policy:?}");
        assert_eq!(home.in_flight(), 1);
        assert!(pool.lease(&home, 1.0, now()).is_some(), "what is bound to it goes on");
        // Its requests count as places that are taken, so that the others get no more than theirs.
        assert_eq!(pool.places(now()), pool.tuning().max_in_flight + 1);
        others[0].endpoint().drain(true);
        assert_eq!(pick(&pool).unwrap_err(), NoEndpoint::AllUnhealthy);
        assert!(!pool.is_available() && !pool.is_resting() && !pool.has_others(&[]));
        home.drain(false);
        assert!(Arc::ptr_eq(pick(&pool).unwrap().endpoint(), &home));
    }
}

#[test]
fn a_drained_endpoint_that_is_set_up_anew_is_still_drained() {
    let settings = |healthy_after| Settings {
        name: "a:1".into(),
        host: "h".into(),
        port: 1,
        thresholds: Thresholds { unhealthy_after: 1, healthy_after },
    };
    let members = Members::new(Vec::new());
    let address = ([127, 0, 0, 1], 1).into();
    members.replace([(settings(1), address)]);
    members.present()[0].drain(true);
    members.replace([(settings(2), address)]);
    assert!(members.present()[0].is_drained());
}
