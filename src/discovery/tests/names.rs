//! DNS.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType::{A, AAAA, SRV};

use super::name_server::{NameServer, Say, a, aaaa, srv};
use super::*;

fn nim() -> Source {
    Source::Dns(Record::Addresses { name: "nim.test.".into(), port: 80 })
}

fn services() -> Source {
    Source::Dns(Record::Srv { name: "_http._tcp.nim.test.".into() })
}

const SERVICE: &str = "_http._tcp.nim.test";

#[tokio::test(start_paused = true)]
async fn each_address_of_both_families_is_an_endpoint() {
    let server = NameServer::start().await;
    server.records("nim.test", A, 60, [a([10, 0, 0, 2]), a([10, 0, 0, 1]), a([0, 0, 0, 0]), a([224, 0, 0, 1])]);
    server.records("nim.test", AAAA, 60, [aaaa("fd00::1"), aaaa("::")]);
    let mut followed = Followed::start(nim(), server.settings());
    assert_eq!(followed.next().await, ["nim.test=10.0.0.1:80", "nim.test=10.0.0.2:80", "nim.test=[fd00::1]:80"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_again_as_its_ttl_ends_within_bounds() {
    for (ttl, least, most) in [(20, 18.0, 20.1), (0, 0.9, 1.1), (86_400, 270.0, 300.1)] {
        let server = NameServer::start().await;
        server.records("nim.test", A, ttl, [a([10, 0, 0, 1])]);
        let mut followed = Followed::start(nim(), server.settings());
        followed.next().await;
        followed.none_until(until(|| server.asked("nim.test", A).len() > 2)).await;
        for pair in server.asked("nim.test", A).windows(2) {
            let gap = (pair[1] - pair[0]).as_secs_f64();
            assert!((least..most).contains(&gap), "TTL {ttl}: asked after {gap} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_keeps_the_last_good_set_and_is_not_asked_again_at_once() {
    let bad = [
        Say::Records(1, Vec::new()),
        Say::Code(ResponseCode::NXDomain),
        Say::Code(ResponseCode::ServFail),
        Say::Garbage,
        Say::Silence,
    ];
    for say in bad {
        let server = NameServer::start().await;
        server.records("nim.test", A, 1, [a([10, 0, 0, 1])]);
        let mut followed = Followed::start(nim(), server.settings());
        followed.next().await;
        server.say("nim.test", A, say);
        let begun = Instant::now();
        followed.none_until(tokio::time::sleep(Duration::from_secs(600))).await;
        let asked = server.asked("nim.test", A).iter().filter(|at| **at > begun).count();
        assert!((10..150).contains(&asked), "asked {asked} times in 600 s");
        server.records("nim.test", A, 1, [a([10, 0, 0, 2])]);
        let back = Instant::now();
        assert_eq!(followed.next().await, ["nim.test=10.0.0.2:80"]);
        assert!(back.elapsed() < Duration::from_secs(45));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_set_is_given_up_after_the_time_to_keep_it() {
    let server = NameServer::start().await;
    server.records("nim.test", A, 10, [a([10, 0, 0, 1])]);
    let settings = Settings { keep: Some(Duration::from_secs(60)), ..server.settings() };
    let mut followed = Followed::start(nim(), settings);
    followed.next().await;
    server.say("nim.test", A, Say::Silence);
    let begun = Instant::now();
    assert_eq!(followed.next().await, [""; 0]);
    let kept = begun.elapsed().as_secs();
    assert!((59..75).contains(&kept), "kept for {kept} s");
    server.records("nim.test", A, 10, [a([10, 0, 0, 1])]);
    assert_eq!(followed.next().await, ["nim.test=10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_over_before_there_is_an_answer() {
    let server = NameServer::start().await;
    server.say("nim.test", A, Say::Silence);
    let mut followed = Followed::start(nim(), server.settings());
    followed.none_until(server.is_asked("nim.test", A)).await;
    server.records("nim.test", A, 10, [a([10, 0, 0, 1])]);
    assert_eq!(followed.next().await, ["nim.test=10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_fails_keeps_its_addresses_and_one_that_is_empty_loses_them() {
    let server = NameServer::start().await;
    server.records("nim.test", A, 5, [a([10, 0, 0, 1])]);
    server.records("nim.test", AAAA, 5, [aaaa("fd00::1")]);
    let mut followed = Followed::start(nim(), server.settings());
    assert_eq!(followed.next().await.len(), 2);
    server.say("nim.test", AAAA, Say::Silence);
    server.records("nim.test", A, 5, [a([10, 0, 0, 2])]);
    assert_eq!(followed.next().await, ["nim.test=10.0.0.2:80", "nim.test=[fd00::1]:80"]);
    server.records("nim.test", AAAA, 5, []);
    assert_eq!(followed.next().await, ["nim.test=10.0.0.2:80"]);
}

#[tokio::test(start_paused = true)]
async fn srv_gives_the_ports_of_the_lowest_priority_that_resolves() {
    let server = NameServer::start().await;
    let targets = [
        srv(1, 7, 8000, "main.test."),
        srv(1, 0, 8001, "less.test."),
        srv(2, 1, 8002, "spare.test."),
        srv(0, 1, 9, "."),
        srv(0, 1, 0, "main.test."),
    ];
    server.records(SERVICE, SRV, 5, targets);
    server.records("main.test", A, 5, [a([10, 0, 0, 1]), a([10, 0, 0, 2])]);
    server.records("less.test", A, 5, [a([10, 0, 0, 3])]);
    server.records("spare.test", A, 5, [a([10, 0, 0, 4])]);
    let mut followed = Followed::start(services(), server.settings());
    let both = ["main.test=10.0.0.1:8000", "main.test=10.0.0.2:8000", "less.test=10.0.0.3:8001"];
    assert_eq!(followed.next().await, both);
    server.say("main.test", A, Say::Code(ResponseCode::NXDomain));
    assert_eq!(followed.next().await, ["less.test=10.0.0.3:8001"]);
    server.say("less.test", A, Say::Code(ResponseCode::NXDomain));
    assert_eq!(followed.next().await, ["spare.test=10.0.0.4:8002"]);
    server.say("spare.test", A, Say::Code(ResponseCode::NXDomain));
    followed.none_until(tokio::time::sleep(Duration::from_secs(100))).await;
    server.records("less.test", A, 5, [a([10, 0, 0, 3])]);
    assert_eq!(followed.next().await, ["less.test=10.0.0.3:8001"]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_times_out_keeps_its_addresses() {
    let server = NameServer::start().await;
    server.records(SERVICE, SRV, 5, [srv(1, 8, 80, "one.test."), srv(1, 3, 80, "two.test.")]);
    server.records("one.test", A, 5, [a([10, 0, 0, 1]), a([10, 0, 0, 2])]);
    server.records("two.test", A, 5, [a([10, 0, 0, 3])]);
    let mut followed = Followed::start(services(), server.settings());
    followed.next().await;
    server.say("one.test", A, Say::Silence);
    server.records("two.test", A, 5, [a([10, 0, 0, 4])]);
    let kept = ["one.test=10.0.0.1:80", "one.test=10.0.0.2:80", "two.test=10.0.0.4:80"];
    assert_eq!(followed.next().await, kept);
}

#[tokio::test(start_paused = true)]
async fn more_addresses_than_one_datagram_holds_come_over_tcp_and_are_bounded() {
    let server = NameServer::start().await;
    let many: Vec<_> = (0..300_u16).map(|i| a([10, 0, i.to_be_bytes()[0], i.to_be_bytes()[1]])).collect();
    server.records("nim.test", A, 5, many);
    let mut followed = Followed::start(nim(), server.settings());
    let set = followed.next().await;
    assert_eq!((set.len(), &*set[0], &*set[255]), (256, "nim.test=10.0.0.0:80", "nim.test=10.0.0.255:80"));
}
