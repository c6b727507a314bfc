//! Reserve, settle, release: over random endings, charges equal usage, nothing is negative and nothing leaks.

use super::counter::Reply;
use super::limit::{Filter, Pattern};
use super::*;

const METRICS: [(Metric, Option<Unit>); 6] = [
    (Metric::Requests, Some(Unit::Month)),
    (Metric::InputTokens, Some(Unit::Month)),
    (Metric::OutputTokens, Some(Unit::Month)),
    (Metric::TotalTokens, Some(Unit::Month)),
    (Metric::Concurrency, None),
    (Metric::Spend, Some(Unit::Month)),
];

fn limits(amount: u64) -> Vec<Limit> {
    let limit = |(metric, unit)| Limit { metric, amount, unit, filter: Filter::default(), counts_cached: true };
    METRICS.into_iter().map(limit).collect()
}

fn settings(limits: Vec<Limit>) -> Settings {
    let key = |id: &str, team: &str, limits| KeySettings { id: id.into(), org: "o".into(), team: team.into(), limits };
    Settings {
        orgs: HashMap::from([("o".into(), limits.clone())]),
        teams: HashMap::from([(("o".into(), "t".into()), limits.clone())]),
        keys: vec![key("a", "t", limits.clone()), key("b", "t", limits), key("c", "other", vec![])],
        prices: Arc::from([Price {
            model: Pattern("*".into()),
            input_per_million: 200_000_000,
            output_per_million: 600_000_000,
            per_request: 1000,
            per_video_second: 50_000_000,
        }]),
        estimate: Estimate::default(),
    }
}

fn asked<'a>(pool: &'a crate::ids::PoolName, model: &'a ModelId) -> Asked<'a> {
    Asked { model: Some(model), pool, api: "nim-llm", operation: "chat" }
}

fn standing(limiter: &Limiter, book: &Book, key: &str, level: Level, metric: Metric) -> Standing {
    let all = limiter.standings(book.account(&key.into()).unwrap());
    all.into_iter().find(|s| s.level == level && s.metric == metric).unwrap()
}

fn all_usage(limiter: &Limiter) -> Amounts {
    let table = limiter.ledger().read(chrono::NaiveDate::MIN, chrono::NaiveDate::MAX);
    let mut sum = Amounts::default();
    table.values().flat_map(|rows| rows.values()).for_each(|amounts| sum.add(amounts));
    sum
}

#[tokio::test]
async fn over_random_endings_charges_equal_usage_and_nothing_leaks() {
    const PLENTY: u64 = 1_000_000_000_000;
    let limiter = Arc::new(Limiter::local());
    let book = limiter.book(&settings(limits(PLENTY)));
    let (pool, model) = ("p".into(), "m".into());
    let mut open: Vec<Reservation> = Vec::new();
    let (mut by_a, mut refused) = (Amounts::default(), 0);
    for _ in 0..5000 {
        let id: CallerId = ["a", "b", "c"][fastrand::usize(..3)].into();
        let account = book.account(&id).unwrap();
        let mut reservation = limiter.begin(account).await.unwrap();
        let is_a = id.as_str() == "a";
        by_a.requests += u64::from(is_a);
        let most = Most { input: fastrand::u64(..2000), output: fastrand::u64(..2000), video_seconds: 0.0 };
        match fastrand::u8(..8) {
            // Refused before its body was read, or by its schema.
            0 => continue,
            // More than the limit ever allows: nothing of it stays, not even the request.
            1 if !matches!(id.as_str(), "c") => {
                let absurd = Most { input: PLENTY + 1, ..most };
                let refusal = reservation.reserve(&asked(&pool, &model), absurd).await;
                assert!(matches!(refusal, Err(Refused::Exceeded(e)) if e.retry_after.is_none()));
                by_a.requests -= u64::from(is_a);
                refused += 1;
                continue;
            }
            _ => reservation.reserve(&asked(&pool, &model), most).await.unwrap(),
        }
        match fastrand::u8(..4) {
            // Never reached a backend, was cut before anything came, or failed.
            0 => {}
            // Finished or cut: less, as much as, or more than was reserved.
            kind => {
                let spread = |n: u64| if kind == 3 { n + fastrand::u64(..100) } else { fastrand::u64(..=n) };
                let used = Used {
                    input: spread(most.input),
                    output: spread(most.output),
                    answered: kind != 1,
                    ..Used::default()
                };
                reservation.note(Used { input: 1, ..Used::default() });
                reservation.note(used);
                if is_a {
                    by_a.input_tokens += used.input;
                    by_a.output_tokens += used.output;
                    by_a.spend += reservation.spend();
                }
            }
        }
        if fastrand::bool() {
            open.push(reservation);
        }
        if open.len() > 20 {
            open.swap_remove(fastrand::usize(..open.len()));
        }
    }
    drop(open);
    assert!(refused > 100);
    let used = |metric| PLENTY - standing(&limiter, &book, "a", Level::Key, metric).remaining;
    assert_eq!(used(Metric::Requests), by_a.requests);
    assert_eq!(used(Metric::InputTokens), by_a.input_tokens);
    assert_eq!(used(Metric::OutputTokens), by_a.output_tokens);
    assert_eq!(used(Metric::TotalTokens), by_a.input_tokens + by_a.output_tokens);
    assert_eq!(used(Metric::Spend), by_a.spend);
    assert_eq!(used(Metric::Concurrency), 0);
    let all = all_usage(&limiter);
    let org = |metric| PLENTY - standing(&limiter, &book, "c", Level::Org, metric).remaining;
    assert_eq!(
        [all.requests, all.input_tokens, all.output_tokens, all.spend],
        [Metric::Requests, Metric::InputTokens, Metric::OutputTokens, Metric::Spend].map(org)
    );
    assert_eq!(org(Metric::Concurrency), 0);
}

#[tokio::test]
async fn all_that_apply_must_hold_and_the_one_that_refused_is_named() {
    let limiter = Arc::new(Limiter::local());
    let limit = |metric, amount, unit, filter| Limit { metric, amount, unit, filter, counts_cached: true };
    let mut all = settings(vec![]);
    all.orgs.insert("o".into(), vec![limit(Metric::Requests, 5, Some(Unit::Day), Filter::default())]);
    let models = Filter { models: vec![Pattern("meta/*".into())], ..Filter::default() };
    all.keys[0].limits = vec![
        limit(Metric::Concurrency, 2, None, Filter::default()),
        limit(Metric::TotalTokens, 100, Some(Unit::Month), models),
    ];
    let book = limiter.book(&all);
    let account = book.account(&"a".into()).unwrap();
    let (pool, meta, other) = ("p".into(), ModelId::from("meta/x"), ModelId::from("other"));
    let most = Most { input: 30, output: 30, video_seconds: 0.0 };
    let start = async |model: &ModelId| {
        let mut reservation = limiter.begin(account).await?;
        reservation.reserve(&asked(&pool, model), most).await.map(|()| reservation)
    };
    let name = |refused: Refused| match refused {
        Refused::Exceeded(exceeded) => exceeded.name.to_string(),
        Refused::Unknown => "unknown".into(),
    };
    let first = start(&meta).await.ok().unwrap();
    assert_eq!(name(start(&meta).await.err().unwrap()), "key-total-tokens-month");
    // Not this model's tokens.
    let second = start(&other).await.ok().unwrap();
    assert_eq!(name(start(&other).await.err().unwrap()), "key-concurrency");
    // Those that were refused are not counted: two of five requests are.
    assert_eq!(standing(&limiter, &book, "a", Level::Org, Metric::Requests).remaining, 3);
    drop((first, second));
    for _ in 0..3 {
        drop(start(&other).await.ok().unwrap());
    }
    assert_eq!(name(start(&other).await.err().unwrap()), "org-requests-day");
    assert_eq!(all_usage(&limiter).requests, 5);
}

#[tokio::test]
async fn a_changed_limit_keeps_what_was_used() {
    let limiter = Arc::new(Limiter::local());
    let ten = limiter.book(&settings(limits(10)));
    for _ in 0..7 {
        drop(limiter.begin(ten.account(&"a".into()).unwrap()).await.ok().unwrap());
    }
    let twelve = limiter.book(&settings(limits(12)));
    assert_eq!(standing(&limiter, &twelve, "a", Level::Key, Metric::Requests).remaining, 5);
    let five = limiter.book(&settings(limits(5)));
    assert_eq!(standing(&limiter, &five, "a", Level::Key, Metric::Requests).remaining, 0);
    assert!(limiter.begin(five.account(&"a".into()).unwrap()).await.is_err());
}

#[tokio::test]
async fn a_state_file_brings_counts_and_usage_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    let run = async |expected: u64| {
        let limiter = Arc::new(Limiter::local());
        let book = limiter.book(&settings(limits(10)));
        state::load(&limiter, &path).unwrap();
        assert_eq!(standing(&limiter, &book, "a", Level::Key, Metric::Requests).remaining, expected);
        drop(limiter.begin(book.account(&"a".into()).unwrap()).await.ok().unwrap());
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let settings = state::Settings { file: Some(path.clone()), every: Duration::from_secs(3600), usage_days: 30 };
        let kept = tokio::spawn(state::keep(Arc::clone(&limiter), settings, stopped));
        stop.send(true).unwrap();
        kept.await.unwrap();
        all_usage(&limiter).requests
    };
    assert_eq!(run(10).await, 1);
    assert_eq!(run(9).await, 2);
    std::fs::write(&path, "{\"counts\": {").unwrap();
    assert!(state::load(&Limiter::local(), &path).is_err());
}

#[test]
fn leases_last_for_the_pace_at_which_requests_come() {
    let counter = Counter::new("c".into(), "o".into(), Some(Unit::Hour), limit::LARGEST);
    let (mut now, mut trips) = (3_600_000_000, 0);
    let mut trip = |now: u64, want: u64| {
        let report = counter.report(now, want, want, false);
        let reply = Reply { more: report.want + report.extra, left: limit::LARGEST / 2, is_wanted: false };
        counter.granted(&report, now, reply);
        trips += 1;
    };
    // 10 000 in a second.
    for _ in 0..10_000 {
        now += 100;
        if counter.take(now, 1, Authority::Shared) == Take::Short {
            trip(now, 1);
            assert!(matches!(counter.take(now, 1, Authority::Shared), Take::Done(_)));
        }
        if counter.calls_for_more(now) {
            assert!(!counter.calls_for_more(now), "once is enough");
            trip(now, 0);
        }
    }
    assert!((20..100).contains(&trips), "{trips}");
    let report = counter.report(now, 0, 0, false);
    assert!((10_000..11_100).contains(&(report.granted + report.extra)), "two leases at most: {report:?}");
}

#[test]
fn a_time_that_was_read_before_a_window_began_forgets_nothing_of_it() {
    let counter = Counter::new("c".into(), "o".into(), Some(Unit::Second), 2);
    let now = 10_000_000_000;
    assert!(matches!(counter.take(now, 2, Authority::Local), Take::Done(_)));
    let (_, _, window) = counter.standing(now - 1000, Authority::Local);
    assert_eq!(window.start, now);
    assert_eq!(counter.take(now + 1, 1, Authority::Local), Take::Refused);
    // What was seen of another window says nothing of this one.
    counter.seen(now + 1, now - 1_000_000, 0);
    assert_eq!(counter.standing(now + 1, Authority::Shared).1, 0);
    // A clock that went back begins anew.
    assert!(matches!(counter.take(now - 3_600_000_000, 1, Authority::Local), Take::Done(_)));
}

#[tokio::test]
async fn a_limit_that_goes_and_comes_back_remembers() {
    let limiter = Arc::new(Limiter::local());
    let with = settings(limits(3));
    let book = limiter.book(&with);
    for _ in 0..3 {
        limiter.begin(book.account(&"a".into()).unwrap()).await.unwrap().settle();
    }
    limiter.book(&settings(Vec::new()));
    let book = limiter.book(&with);
    let refused = limiter.begin(book.account(&"a".into()).unwrap()).await.err();
    assert!(matches!(refused, Some(Refused::Exceeded(_))), "{refused:?}");
}

#[test]
fn places_that_nobody_can_ask_for_are_shared_again_after_a_while() {
    let counter = Counter::new("c".into(), "o".into(), None, 4);
    let away = Authority::Away(OnOutage::LocalShare, 2, 2_000_000);
    let report = counter.report(1, 1, 1, false);
    counter.granted(&report, 1, Reply { more: 0, left: 0, is_wanted: true });
    assert_eq!(counter.take(2, 1, away), Take::Refused);
    assert!(matches!(counter.take(2_000_002, 2, away), Take::Done(_)));
    assert_eq!(counter.take(2_000_003, 1, away), Take::Refused);
}

#[test]
fn a_reply_that_is_lost_is_asked_for_again() {
    let counter = Counter::new("c".into(), "o".into(), Some(Unit::Month), 4);
    let report = counter.report(1, 1, 1, false);
    assert!(!counter.is_due(500_000, 1) && !counter.is_resting(500_000) && !counter.is_idle(500_000));
    assert!(counter.is_due(1_500_000, 1), "Redis may have granted something");
    counter.granted(&report, 1_500_000, Reply { more: 0, left: 4, is_wanted: false });
    assert!(!counter.is_due(3_000_000, 1) && counter.is_resting(3_000_000) && counter.is_idle(3_000_000));
}

#[test]
fn amounts_do_not_overflow() {
    let mut sum = Amounts { input_tokens: u64::MAX - 1, ..Amounts::default() };
    sum.add(&Amounts { input_tokens: 5, requests: 1, ..Amounts::default() });
    assert_eq!((sum.input_tokens, sum.requests), (u64::MAX, 1));
}
