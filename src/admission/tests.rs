//! Over random arrivals, endings and departures: no place is given twice or lost, everybody's turn comes, and work is
//! shared as the weights say.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use fastrand::Rng;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use super::fair::Fair;
use super::tree::{Sums, Tree};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn gate(capacity: usize, queue: usize, per_caller: usize) -> Arc<Gate> {
    let gate = Arc::new(Gate::new(Settings { pool: "p".into(), queue, per_caller }));
    gate.resize(capacity);
    gate
}

fn ask(caller: &str) -> Ask {
    Ask { caller: caller.into(), weight: 1, class: Class::Normal, cost: 1, deadline: Instant::now() + HOUR }
}

fn of_class(caller: &str, class: Class) -> Ask {
    Ask { class, ..ask(caller) }
}

/// Asks in a task of its own, and comes back once it waits or has its answer.
async fn asked(gate: &Arc<Gate>, ask: Ask) -> JoinHandle<Outcome> {
    let gate = Arc::clone(gate);
    let task = tokio::spawn(async move { gate.enter(ask).await });
    yield_now().await;
    task
}

async fn refused(task: JoinHandle<Outcome>) -> Refused {
    task.await.unwrap().unwrap_err()
}

/// Nothing taken, nobody waiting, nobody remembered, and every ask has one ending.
fn assert_clean(gate: &Gate, asks: u64) {
    let view = gate.view();
    assert_eq!((view.in_flight, view.waiting, view.callers.len()), (0, 0, 0), "{view:?}");
    assert_eq!(gate.line().known(), 0);
    let Counts { entered, waited: _, queue_full, caller_full, too_late, expired, evicted, cancelled } = view.counts;
    assert_eq!(entered + queue_full + caller_full + too_late + expired + evicted + cancelled, asks, "{view:?}");
    let pass = gate.places.take();
    assert_eq!(pass, view.capacity > 0, "the way without a lock is open again");
    gate.places.give_back();
}

/// Has callers ask again and again, each by so many tasks at once, and counts the work that each got.
async fn shares(gate: &Arc<Gate>, callers: &[(Ask, usize)], time: Duration) -> Vec<u64> {
    let work: Arc<Vec<AtomicU64>> = Arc::new(callers.iter().map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for (at, (template, count)) in callers.iter().enumerate() {
        for task in 0..*count {
            let (gate, work, template) = (Arc::clone(gate), Arc::clone(&work), template.clone());
            let mut rng = Rng::with_seed((at * 1000 + task) as u64);
            tasks.push(tokio::spawn(async move {
                loop {
                    let cost = rng.u64(1..=100);
                    let pass =
                        gate.enter(Ask { cost, deadline: Instant::now() + HOUR, ..template.clone() }).await.unwrap();
                    sleep(Duration::from_millis(cost)).await;
                    work[at].fetch_add(cost, Ordering::Relaxed);
                    drop(pass);
                }
            }));
        }
    }
    sleep(time).await;
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        assert!(task.await.unwrap_err().is_cancelled());
    }
    work.iter().map(|work| work.load(Ordering::Relaxed)).collect()
}

#[tokio::test(start_paused = true)]
async fn enters_at_once_while_a_place_is_free() {
    let gate = gate(2, 10, 10);
    let (first, second) = (gate.enter(ask("a")).await.unwrap(), gate.try_enter(1).unwrap());
    assert_eq!(first.waited(), Duration::ZERO);
    assert!(gate.try_enter(1).is_none());
    drop(second);
    assert!(gate.try_enter(1).is_some());
    drop(first);
    assert_clean(&gate, 3);
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_those_who_wait() {
    let gate = gate(1, 10, 10);
    let pass = gate.try_enter(1).unwrap();
    let waiting = asked(&gate, ask("a")).await;
    drop(pass);
    assert!(gate.try_enter(1).is_none());
    drop(waiting.await.unwrap().unwrap());
    assert_clean(&gate, 2);
}

#[tokio::test(start_paused = true)]
async fn requests_of_one_caller_keep_their_order_and_know_their_wait() {
    let gate = gate(1, 100, 100);
    let pass = gate.try_enter(1).unwrap();
    let mut tasks = Vec::new();
    for cost in [50, 1, 7, 30] {
        tasks.push(asked(&gate, Ask { cost, ..ask("a") }).await);
        sleep(Duration::from_millis(10)).await;
    }
    drop(pass);
    for (task, waited) in tasks.into_iter().zip([40, 30, 20, 10]) {
        let pass = task.await.unwrap().unwrap();
        assert_eq!(pass.waited(), Duration::from_millis(waited));
    }
    assert_clean(&gate, 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_it_refuses_at_once_and_learns_when_to_come_back() {
    let gate = gate(1, 0, 10);
    for _ in 0..10 {
        let pass = gate.try_enter(5).unwrap();
        let refused = gate.enter(ask("a")).await.unwrap_err();
        assert!(matches!(refused, Refused::QueueFull { .. }));
        sleep(Duration::from_secs(20)).await;
        drop(pass);
    }
    let _pass = gate.try_enter(5).unwrap();
    let retry_after = gate.enter(ask("a")).await.unwrap_err().retry_after();
    assert!((Duration::from_secs(19)..Duration::from_secs(21)).contains(&retry_after), "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn one_caller_may_hold_so_much_of_the_line_and_no_more() {
    let gate = gate(1, 10, 2);
    let pass = gate.try_enter(1).unwrap();
    let waiting = [asked(&gate, ask("a")).await, asked(&gate, ask("a")).await];
    let refused = gate.enter(ask("a")).await.unwrap_err();
    assert_eq!(refused, Refused::CallerFull { retry_after: RETRY_AFTER.0 });
    assert!(!asked(&gate, ask("b")).await.is_finished());
    waiting.iter().for_each(JoinHandle::abort);
    drop(pass);
}

#[tokio::test(start_paused = true)]
async fn equal_callers_get_equal_work_though_one_is_noisy() {
    let gate = gate(4, 1000, 1000);
    let noisy = [(ask("noisy"), 200)];
    let others = (1..20).map(|at| (ask(&format!("c{at}")), 3));
    let callers: Vec<_> = noisy.into_iter().chain(others).collect();
    let work = shares(&gate, &callers, Duration::from_secs(600)).await;
    let (most, least) = (*work.iter().max().unwrap(), *work.iter().min().unwrap());
    println!("equal callers: most/least = {:.4}", most as f64 / least as f64);
    assert!(most as f64 / least as f64 <= 1.1, "{work:?}");
    assert!(work.iter().sum::<u64>() > 4 * 599_000, "no place stood empty: {work:?}");
    let view = gate.view();
    assert_eq!((view.in_flight, view.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn work_follows_the_weights() {
    let gate = gate(3, 1000, 1000);
    let callers: Vec<_> =
        [1, 3, 1000].into_iter().map(|weight| (Ask { weight, ..ask(&format!("w{weight}")) }, 20)).collect();
    let work = shares(&gate, &callers[..2], Duration::from_secs(600)).await;
    let ratio = work[1] as f64 / work[0] as f64;
    println!("weights 1:3: {ratio:.4}");
    assert!((2.85..3.15).contains(&ratio), "{work:?}");
    let work = shares(&gate, &callers, Duration::from_secs(3600)).await;
    assert!(work[0] > 0 && work[2] > 200 * work[1], "{work:?}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_new_passes_a_deep_backlog() {
    let gate = gate(1, 1000, 1000);
    let mut pass = gate.try_enter(1).unwrap();
    let mut noisy = Vec::new();
    for _ in 0..500 {
        noisy.push(asked(&gate, ask("noisy")).await);
    }
    let mut noisy = noisy.into_iter();
    for round in 0..100 {
        let new = asked(&gate, ask(&format!("c{}", round % 50))).await;
        let mut before = 0;
        drop(pass);
        while !{
            yield_now().await;
            new.is_finished()
        } {
            drop(noisy.next().unwrap().await.unwrap().unwrap());
            before += 1;
        }
        assert!(before <= 1, "{before} of another's went first in round {round}");
        pass = new.await.unwrap().unwrap();
    }
}

#[test]
fn callers_who_come_anew_for_ever_do_not_keep_out_one_who_waits() {
    let mut fair = Fair::new(Class::Normal);
    for _ in 0..50 {
        fair.push(&"old".into(), 1, 100, true);
    }
    let (mut since, mut most) = (0, 0);
    for round in 0..1000 {
        while fair.waiting() - fair.held(&"old".into()) < 3 {
            fair.push(&format!("{round}-{}", fair.waiting()).as_str().into(), 1, 100, false);
        }
        let (_, is_old) = fair.pop().unwrap();
        since = if is_old { 0 } else { since + 1 };
        most = most.max(since);
        if fair.held(&"old".into()) == 0 {
            break;
        }
    }
    assert_eq!(fair.held(&"old".into()), 0);
    assert!(most <= 8, "{most}");
}

#[test]
fn who_leaves_before_its_turn_moves_nothing() {
    let mut fair = Fair::new(Class::Normal);
    let (a, b) = (CallerId::from("a"), CallerId::from("b"));
    let tickets: Vec<_> = (0..100).map(|_| fair.push(&a, 1, 1000, 'a')).collect();
    fair.push(&b, 1, 1, 'b');
    tickets.into_iter().for_each(|ticket| assert_eq!(fair.remove(ticket), Some('a')));
    let late = fair.push(&a, 1, 1, 'a');
    assert_eq!([fair.pop(), fair.pop()], [Some((1, 'b')), Some((1, 'a'))]);
    assert_eq!(fair.remove(late), None);
    assert_eq!((fair.known(), fair.waiting(), fair.work()), (0, 0, 0));
}

#[test]
fn who_comes_back_finds_what_it_had() {
    let mut fair = Fair::new(Class::Normal);
    fair.push(&"greedy".into(), 1, 1000, 'g');
    fair.push(&"small".into(), 1, 10, 's');
    fair.push(&"small".into(), 1, 10, 's');
    assert_eq!(fair.pop(), Some((1000, 'g')));
    fair.push(&"greedy".into(), 1, 1, 'g');
    assert_eq!([fair.pop(), fair.pop(), fair.pop()].map(|p| p.unwrap().1), ['s', 's', 'g']);
}

#[test]
fn memory_of_callers_is_bounded() {
    let mut fair = Fair::new(Class::Normal);
    for round in 0..20_000 {
        fair.push(&format!("{round}").as_str().into(), 1, 1 + round % 7, ());
        if round >= 10 {
            fair.pop();
        }
    }
    assert!(fair.known() <= 4096 + 11, "{}", fair.known());
    while fair.pop().is_some() {}
    assert_eq!(fair.known(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_line_makes_room_for_callers_with_less_than_their_share() {
    let gate = gate(1, 6, 6);
    let pass = gate.try_enter(1).unwrap();
    let mut noisy = Vec::new();
    for _ in 0..6 {
        noisy.push(asked(&gate, ask("noisy")).await);
    }
    assert!(matches!(gate.enter(ask("noisy")).await, Err(Refused::CallerFull { .. })));
    let mut others = Vec::new();
    for caller in ["b", "c", "b", "c"] {
        others.push(asked(&gate, ask(caller)).await);
        let evicted = refused(noisy.pop().unwrap()).await;
        assert!(matches!(evicted, Refused::QueueFull { .. }), "the last of noisy's goes");
    }
    for caller in ["noisy", "b", "c"] {
        assert!(matches!(gate.enter(ask(caller)).await, Err(Refused::QueueFull { .. })), "all hold two");
    }
    others.push(asked(&gate, ask("d")).await);
    let view = gate.view();
    assert_eq!((view.waiting, view.callers.len(), view.counts.evicted), (6, 4, 5));
    drop(pass);
    let ends = |task: JoinHandle<Outcome>| tokio::spawn(async { task.await.unwrap().is_ok() });
    let mut entered = 0;
    for task in noisy.into_iter().chain(others).map(ends).collect::<Vec<_>>() {
        entered += u64::from(task.await.unwrap());
    }
    assert_eq!(entered, 6);
    assert_clean(&gate, 16);
}

#[tokio::test(start_paused = true)]
async fn a_higher_class_takes_room_from_the_lowest() {
    let gate = gate(1, 2, 2);
    let _pass = gate.try_enter(1).unwrap();
    let low = asked(&gate, of_class("l", Class::Low)).await;
    let normal = asked(&gate, of_class("n", Class::Normal)).await;
    let high = asked(&gate, of_class("h", Class::High)).await;
    assert!(matches!(refused(low).await, Refused::QueueFull { .. }));
    let another = asked(&gate, of_class("h", Class::High)).await;
    assert!(matches!(refused(normal).await, Refused::QueueFull { .. }));
    for class in [Class::Low, Class::Normal] {
        assert!(matches!(gate.enter(of_class("x", class)).await, Err(Refused::QueueFull { .. })));
    }
    assert!(!high.is_finished() && !another.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_lower_class_gets_its_share_and_no_more() {
    for lower in [&[Class::Low][..], &[Class::Normal, Class::Low], &[Class::Normal]] {
        let gate = gate(1, 1000, 1000);
        let pass = gate.try_enter(1).unwrap();
        let went: Arc<Mutex<Vec<Class>>> = Arc::default();
        for class in [Class::High].iter().chain(lower) {
            for _ in 0..300 {
                let (gate, went, class) = (Arc::clone(&gate), Arc::clone(&went), *class);
                tokio::spawn(async move {
                    let _pass = gate.enter(of_class(class.word(), class)).await.unwrap();
                    went.lock().unwrap().push(class);
                });
            }
        }
        while gate.view().waiting < 300 * (1 + lower.len()) {
            yield_now().await;
        }
        drop(pass);
        while gate.view().in_flight > 0 {
            yield_now().await;
        }
        let went = went.lock().unwrap();
        assert_eq!(went.len(), 300 * (1 + lower.len()));
        for window in went[..200].windows(CLASS_SHARE as usize) {
            for class in lower {
                let count = window.iter().filter(|went| *went == class).count();
                assert!((1..=2).contains(&count), "{count} of {class:?} in {window:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_and_costs_the_others_nothing() {
    let gate = gate(1, 10, 10);
    let pass = gate.try_enter(1).unwrap();
    let start = Instant::now();
    let late = asked(&gate, Ask { deadline: start + Duration::from_millis(70), ..ask("a") }).await;
    let next = asked(&gate, ask("a")).await;
    assert!(matches!(refused(late).await, Refused::Expired { .. }));
    assert_eq!(start.elapsed().as_millis() / 5, 14);
    assert_eq!(gate.view().waiting, 1);
    drop(pass);
    drop(next.await.unwrap().unwrap());
    let over = gate.enter(Ask { deadline: Instant::now(), ..ask("a") }).await;
    assert!(matches!(over, Err(Refused::Expired { .. })), "though a place is free");
    assert_clean(&gate, 4);
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_to_nobody_whose_deadline_is_over() {
    let gate = gate(1, 10, 10);
    let pass = gate.try_enter(1).unwrap();
    let gone = gate.enter(Ask { deadline: Instant::now() + Duration::from_millis(5), ..ask("a") });
    let mut gone = std::pin::pin!(gone);
    assert!(tokio::time::timeout(Duration::ZERO, &mut gone).await.is_err());
    let next = asked(&gate, ask("b")).await;
    tokio::time::advance(Duration::from_millis(50)).await;
    drop(pass);
    assert!(next.await.unwrap().is_ok());
    assert!(matches!(gone.await, Err(Refused::Expired { .. })));
    assert_clean(&gate, 3);
}

#[tokio::test(start_paused = true)]
async fn what_would_come_too_late_is_refused_at_once_when_the_speed_is_known() {
    let gate = gate(1, 100, 100);
    let short = || Ask { deadline: Instant::now() + Duration::from_secs(3), ..ask("a") };
    let pass = gate.try_enter(1).unwrap();
    let mut tasks = Vec::new();
    for _ in 0..30 {
        tasks.push(asked(&gate, ask("a")).await);
    }
    let unknown = asked(&gate, short()).await;
    assert!(!unknown.is_finished(), "nothing is known yet");
    unknown.abort();
    sleep(Duration::from_secs(1)).await;
    drop(pass);
    let mut tasks = tasks.into_iter();
    for _ in 0..10 {
        let pass = tasks.next().unwrap().await.unwrap().unwrap();
        sleep(Duration::from_secs(1)).await;
        drop(pass);
    }
    let Refused::TooLate { wait, retry_after } = gate.enter(short()).await.unwrap_err() else { panic!("another") };
    // 19 wait and one has just begun.
    assert!((19.0..22.0).contains(&wait.as_secs_f64()), "{wait:?}");
    assert!((16.0..19.0).contains(&retry_after.as_secs_f64()), "{retry_after:?}");
    let other = asked(&gate, Ask { caller: "b".into(), ..short() }).await;
    assert!(!other.is_finished(), "a caller with nothing waiting goes before the backlog");
    let rate = gate.view().drain_rate.unwrap();
    assert!((0.9..1.1).contains(&rate), "{rate}");
    tasks.for_each(|task| task.abort());
    other.abort();
    yield_now().await;
    let _pass = gate.try_enter(1).unwrap();
    let first = asked(&gate, Ask { deadline: Instant::now() + Duration::from_millis(1), ..ask("a") }).await;
    assert!(!first.is_finished(), "who finds nobody waiting waits in any case");
}

#[tokio::test(start_paused = true)]
async fn a_pool_from_which_nothing_comes_is_seen_to_be_slow() {
    let gate = gate(2, 100, 100);
    let tasks: Vec<_> = {
        let mut tasks = Vec::new();
        for _ in 0..40 {
            tasks.push(asked(&gate, ask("a")).await);
        }
        tasks
    };
    let mut tasks = tasks.into_iter();
    for _ in 0..20 {
        let pass = tasks.next().unwrap().await.unwrap().unwrap();
        sleep(Duration::from_millis(100)).await;
        drop(pass);
    }
    let before = gate.view().drain_rate.unwrap();
    assert!((5.0..21.0).contains(&before), "{before}");
    sleep(Duration::from_secs(80)).await;
    let after = gate.view().drain_rate.unwrap();
    assert!((0.09..0.11).contains(&after), "{after}");
    gate.resize(0);
    assert_eq!(gate.view().drain_rate, None);
    tasks.for_each(|task| task.abort());
}

#[tokio::test(start_paused = true)]
async fn estimates_come_true() {
    let (mut estimated, mut waited, mut worst) = (0.0, 0.0, 1.0_f64);
    for seed in 0..20 {
        let gate = gate(4, 10_000, 1000);
        let mut rng = Rng::with_seed(seed);
        let run = |ask: Ask| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                let estimate = gate.line().estimate(ask.class, &ask.caller, 4, Instant::now());
                let cost = ask.cost;
                let pass = gate.enter(ask).await.unwrap();
                sleep(Duration::from_millis(cost)).await;
                (estimate, pass.waited())
            })
        };
        let mut random = |callers: u32| {
            let caller = rng.u32(..callers).min(rng.u32(..callers));
            let class = if caller < 4 { Class::High } else { Class::Normal };
            Ask { cost: rng.u64(1..=100), weight: caller % 3 + 1, ..of_class(&format!("c{caller}"), class) }
        };
        let learned: Vec<_> = (0..200).map(|_| run(random(20))).collect();
        for task in learned {
            task.await.unwrap();
        }
        let backlog: Vec<_> = (0..400).map(|_| run(random(20))).collect();
        while gate.view().waiting < 396 {
            yield_now().await;
        }
        let (estimate, true_wait) = run(random(25)).await.unwrap();
        let (estimate, true_wait) = (estimate.unwrap().as_secs_f64(), true_wait.as_secs_f64());
        worst = worst.max((estimate + 0.1) / (true_wait + 0.1)).max((true_wait + 0.1) / (estimate + 0.1));
        (estimated, waited) = (estimated + estimate, waited + true_wait);
        for task in backlog {
            task.await.unwrap();
        }
        assert_clean(&gate, 601);
    }
    println!("estimates: {:.3} of the true waits, the worst off by {worst:.2}", estimated / waited);
    assert!((0.8..1.2).contains(&(estimated / waited)), "{estimated} {waited}");
    assert!(worst < 2.0, "{worst}");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_gives_up_its_turn() {
    let gate = gate(1, 10, 10);
    let pass = gate.try_enter(1).unwrap();
    let first = asked(&gate, ask("a")).await;
    let second = asked(&gate, ask("a")).await;
    let third = asked(&gate, ask("a")).await;
    first.abort();
    yield_now().await;
    assert_eq!((gate.view().waiting, gate.view().counts.cancelled), (2, 1));
    drop(pass);
    // The place is under way to the second, which leaves before it sees it.
    second.abort();
    drop(third.await.unwrap().unwrap());
    assert!(second.await.unwrap_err().is_cancelled());
    let view = gate.view();
    assert_eq!((view.in_flight, view.waiting, view.counts.waited), (0, 0, 2));
    assert_clean(&gate, 4);
}

#[tokio::test(start_paused = true)]
async fn growing_wakes_and_shrinking_cuts_nothing() {
    let gate = gate(0, 10, 10);
    assert!(gate.try_enter(1).is_none());
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(asked(&gate, ask("a")).await);
    }
    gate.resize(3);
    let last = tasks.pop().unwrap();
    let mut passes = Vec::new();
    for task in tasks {
        passes.push(task.await.unwrap().unwrap());
    }
    gate.resize(1);
    for left in [2, 1] {
        passes.pop();
        yield_now().await;
        assert_eq!((gate.view().in_flight, last.is_finished()), (left, false));
    }
    passes.pop();
    assert!(last.await.unwrap().is_ok());
    assert_clean(&gate, 4);
}

#[tokio::test(start_paused = true)]
async fn a_view_shows_who_waits() {
    let gate = gate(1, 1000, 1000);
    let _pass = gate.try_enter(1).unwrap();
    let mut tasks = Vec::new();
    for at in 0..30 {
        for _ in 0..=at {
            tasks.push(asked(&gate, Ask { cost: 2, ..of_class(&format!("c{at}"), Class::ALL[at % 3]) }).await);
        }
        sleep(Duration::from_secs(1)).await;
    }
    let view = gate.view();
    let shown: Vec<_> = view.callers.iter().map(|caller| caller.waiting).collect();
    assert_eq!(shown, (11..=30).rev().collect::<Vec<_>>());
    assert_eq!(view.callers[0].oldest, Duration::from_secs(1));
    assert_eq!((view.callers[0].caller.as_str(), view.callers[0].class), ("c29", Class::Low));
    assert_eq!(view.classes.map(|class| class.waiting).iter().sum::<usize>(), view.waiting);
    assert_eq!(view.classes.map(|class| class.work).iter().sum::<u64>(), 2 * view.waiting as u64);
    gate.configure(0, 0);
    assert!(gate.enter(ask("x")).await.is_err());
    assert_eq!(gate.view().waiting, view.waiting, "who waits already stays");
    drop(tasks);
}

/// Random callers, classes, costs, deadlines, holds, departures and sizes.
#[tokio::test(start_paused = true)]
async fn no_place_is_given_twice_or_lost() {
    for seed in 0..60 {
        let mut rng = Rng::with_seed(seed);
        let (queue, per_caller) = (rng.usize(0..40), rng.usize(1..10));
        let gate = gate(rng.usize(0..6), queue, per_caller);
        let (running, mut asks, mut tasks) = (Arc::new(AtomicUsize::new(0)), 0, Vec::new());
        for _ in 0..rng.u32(200..800) {
            match rng.u32(..20) {
                0 => {
                    let (capacity, before) = (rng.usize(0..6), gate.view().in_flight);
                    gate.resize(capacity);
                    assert!(gate.view().in_flight <= before.max(capacity));
                }
                1..4 => sleep(Duration::from_millis(rng.u64(..20))).await,
                4..6 if !tasks.is_empty() => {
                    let task: JoinHandle<()> = tasks.swap_remove(rng.usize(..tasks.len()));
                    task.abort();
                }
                6..8 => yield_now().await,
                _ => {
                    asks += 1;
                    let ask = Ask {
                        caller: format!("c{}", rng.u32(..8)).as_str().into(),
                        weight: rng.u32(1..=1000),
                        class: Class::ALL[rng.usize(..3)],
                        cost: rng.u64(1..=1000),
                        deadline: Instant::now() + Duration::from_millis(rng.u64(1..400)),
                    };
                    let (gate, running, hold) = (Arc::clone(&gate), Arc::clone(&running), rng.u64(..30));
                    let ends = (rng.u32(..10) == 0).then(|| Duration::from_millis(rng.u64(..50)));
                    tasks.push(tokio::spawn(async move {
                        let enter = gate.enter(ask);
                        let entered = match ends {
                            Some(ends) => timeout_at(Instant::now() + ends, enter).await.ok(),
                            None => Some(enter.await),
                        };
                        if let Some(Ok(pass)) = entered {
                            running.fetch_add(1, Ordering::Relaxed);
                            sleep(Duration::from_millis(hold)).await;
                            running.fetch_sub(1, Ordering::Relaxed);
                            drop(pass);
                        }
                    }));
                    // A task that is aborted before it first runs never asks.
                    yield_now().await;
                }
            }
            let view = gate.view();
            assert!(view.waiting <= queue, "seed {seed}: {view:?}");
            assert!(
                view.waiting == 0 || view.in_flight >= view.capacity,
                "seed {seed}: a place stands empty: {view:?}"
            );
            assert!(view.callers.iter().all(|caller| caller.waiting <= per_caller), "seed {seed}: {view:?}");
            assert!(gate.line().known() <= 24);
        }
        gate.resize(3);
        for task in tasks {
            task.await.unwrap();
        }
        while gate.view().in_flight > 0 {
            yield_now().await;
        }
        assert_clean(&gate, asks);
    }
}

/// The same on real threads, where the moments fall as they like.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_lose_no_place() {
    let (gate, running) = (gate(3, 16, 8), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..24)
        .map(|at| {
            let (gate, running) = (Arc::clone(&gate), Arc::clone(&running));
            tokio::spawn(async move {
                let mut rng = Rng::with_seed(at);
                for _ in 0..1000 {
                    if rng.u32(..50) == 0 {
                        gate.resize(rng.usize(1..=3));
                    }
                    let enter = gate.enter(Ask { class: Class::ALL[rng.usize(..3)], ..ask(&format!("c{}", at % 6)) });
                    let patience = rng.u32(..12);
                    let leave = async {
                        for _ in 0..patience {
                            yield_now().await;
                        }
                    };
                    tokio::select! {
                        biased;
                        entered = enter => if let Ok(pass) = entered {
                            assert!(running.fetch_add(1, Ordering::SeqCst) < 3);
                            if rng.bool() {
                                yield_now().await;
                            }
                            running.fetch_sub(1, Ordering::SeqCst);
                            drop(pass);
                        },
                        () = leave => {}
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let view = gate.view();
    println!("threads: {:?}", view.counts);
    assert!(view.counts.cancelled > 0 && view.counts.waited > 0);
    assert_clean(&gate, 24_000);
}

#[tokio::test(start_paused = true)]
async fn everybody_who_may_wait_long_gets_a_turn() {
    for seed in 0..10 {
        let mut rng = Rng::with_seed(seed);
        let gate = gate(2, 10_000, 10_000);
        let tasks: Vec<_> = (0..1000_u32)
            .map(|_| {
                let (gate, class, weight) = (Arc::clone(&gate), Class::ALL[rng.usize(..3)], rng.u32(1..=1000));
                let (caller, cost) = (format!("c{}", rng.u32(..30)), rng.u64(1..=1000));
                let ask = Ask { class, weight, cost, ..ask(&caller) };
                tokio::spawn(async move {
                    let pass = gate.enter(ask).await;
                    sleep(Duration::from_millis(cost)).await;
                    pass.map(drop)
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_clean(&gate, 1000);
    }
}

#[test]
fn a_tree_is_a_sorted_list() {
    let mut rng = Rng::with_seed(1);
    let (mut tree, mut list) = (Tree::default(), HashMap::new());
    for stamp in 0..20_000 {
        let caller = rng.usize(..300);
        if list.remove(&caller).is_some() {
            tree.remove(caller);
        } else {
            let (tag, weight, head) = (rng.u128(..1000), rng.u32(1..=1000), rng.u64(..100));
            tree.insert(caller, (tag, stamp), weight, head);
            list.insert(caller, ((tag, stamp), u128::from(weight), u128::from(head)));
        }
        let tag = rng.u128(..1100);
        let sum = |sums: Sums, (key, weight, head): &((u128, u64), u128, u128)| Sums {
            weight: sums.weight + weight,
            moment: sums.moment + weight * key.0,
            heads: sums.heads + head,
        };
        assert_eq!(tree.first(), list.iter().min_by_key(|(_, (key, ..))| *key).map(|(caller, _)| *caller));
        assert_eq!(tree.up_to(tag), list.values().filter(|(key, ..)| key.0 <= tag).fold(Sums::default(), sum));
        assert_eq!(tree.all(), list.values().fold(Sums::default(), sum));
    }
}

#[test]
fn work_ahead_is_what_goes_first() {
    let mut rng = Rng::with_seed(3);
    let (mut guessed, mut true_work) = (0.0, 0.0);
    for _ in 0..300 {
        let mut fair = Fair::new(Class::Normal);
        let callers = rng.u32(1..30);
        let weights: Vec<_> = (0..callers).map(|_| rng.u32(1..=5)).collect();
        for _ in 0..rng.u32(1..400) {
            let at = rng.u32(..callers).min(rng.u32(..callers));
            fair.push(&format!("{at}").as_str().into(), weights[at as usize], rng.u64(1..=100), false);
            if rng.u32(..3) == 0 {
                fair.pop();
            }
        }
        let at = rng.u32(..callers);
        let id = CallerId::from(format!("{at}"));
        guessed += fair.ahead(&id);
        fair.push(&id, weights[at as usize], 1, true);
        while let Some((cost, false)) = fair.pop() {
            true_work += cost as f64;
        }
    }
    println!("work ahead: {:.3} of what went first", guessed / true_work);
    assert!((0.85..1.15).contains(&(guessed / true_work)), "{guessed} {true_work}");
}

/// Prints what things cost; the bounds are wide, since this build is not optimised and its machine is shared.
#[tokio::test]
async fn costs_little() {
    const TIMES: u32 = 100_000;
    let gate = gate(1, 20_000, 20_000);
    let each = |start: std::time::Instant| start.elapsed() / TIMES;
    let start = std::time::Instant::now();
    for _ in 0..TIMES {
        drop(gate.try_enter(1));
    }
    let direct = each(start);
    let template = ask("a");
    let start = std::time::Instant::now();
    for _ in 0..TIMES {
        drop(gate.enter(template.clone()).await);
    }
    let awaited = each(start);
    let mut fair = Fair::new(Class::Normal);
    let callers: Vec<CallerId> = (0..2000).map(|at| format!("c{at}").into()).collect();
    let mut rng = Rng::with_seed(5);
    let mut push = |fair: &mut Fair<()>| fair.push(&callers[rng.usize(..2000)], 1, rng.u64(1..1000), ());
    for _ in 0..10_000 {
        push(&mut fair);
    }
    let start = std::time::Instant::now();
    for _ in 0..TIMES {
        push(&mut fair);
        fair.pop();
    }
    println!("try_enter and drop {direct:?}, enter and drop {awaited:?}, join and leave of 10 000 {:?}", each(start));
    assert!(direct < Duration::from_micros(20) && awaited < Duration::from_micros(20));
}
