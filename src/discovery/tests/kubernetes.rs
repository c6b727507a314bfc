//! Kubernetes.

use serde_json::json;

use super::api_server::{ApiServer, endpoint, ready, slice};
use super::*;

fn nim(port: Port) -> Source {
    Source::Kubernetes { namespace: "ml".into(), service: "nim".into(), port }
}

fn http() -> Source {
    nim(Port::Name("http".into()))
}

fn shown(ips: &[&str]) -> Vec<String> {
    ips.iter().map(|ip| format!("nim.ml.svc={ip}:8000")).collect()
}

#[tokio::test(start_paused = true)]
async fn slices_are_listed_merged_and_followed() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")]), slice("b", &[ready("10.0.0.2")])]).await;
    let mut followed = Followed::start(http(), server.settings());
    assert_eq!(followed.next().await, shown(&["10.0.0.1", "10.0.0.2"]));
    server.is_watched(1).await;
    server.event("ADDED", &slice("c", &[ready("10.0.0.3"), ready("10.0.0.1")]));
    assert_eq!(followed.next().await, shown(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    server.event("MODIFIED", &slice("a", &[]));
    server.event("DELETED", &slice("b", &[]));
    assert_eq!(followed.next().await, shown(&["10.0.0.1", "10.0.0.3"]));
    server.event("DELETED", &slice("c", &[]));
    assert_eq!(followed.next().await, [""; 0], "the API server knows that there is none");
    let requests = server.requests();
    let path = "/apis/discovery.k8s.io/v1/namespaces/ml/endpointslices?";
    assert!(requests.iter().all(|(r, _)| r.starts_with(path)), "{requests:?}");
    assert!(
        requests.iter().all(|(r, _)| r.contains("labelSelector=kubernetes.io%2Fservice-name%3Dnim")),
        "{requests:?}"
    );
    assert!(requests[1].0.contains("resourceVersion=5"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn only_ready_endpoints_that_stay_take_requests() {
    let conditions = [
        json!({"ready": false, "serving": true, "terminating": true}),
        json!({"ready": true, "terminating": true}),
        json!({"ready": false}),
        json!({}),
        json!({"ready": true}),
    ];
    let all: Vec<_> = conditions.iter().zip(1..).map(|(c, i)| endpoint(&format!("10.0.0.{i}"), c)).collect();
    let server = ApiServer::start(vec![slice("a", &all)]).await;
    let mut followed = Followed::start(http(), server.settings());
    assert_eq!(followed.next().await, shown(&["10.0.0.4", "10.0.0.5"]));
    server.is_watched(1).await;
    for (is_ready, wanted) in [(false, &[][..]), (true, &["10.0.0.5"])] {
        server.event("MODIFIED", &slice("a", &[endpoint("10.0.0.5", &json!({"ready": is_ready}))]));
        assert_eq!(followed.next().await, shown(wanted));
    }
}

#[tokio::test(start_paused = true)]
async fn ports_go_by_name_or_number_and_families_are_told_apart() {
    let pod = |ip: &str, uid: &str| json!({"addresses": [ip], "targetRef": {"kind": "Pod", "uid": uid}});
    let mut six = slice("six", &[pod("fd00::1", "one"), pod("fd00::2", "two"), pod("10.9.9.9", "odd")]);
    six["addressType"] = "IPv6".into();
    let mut named = slice("fqdn", &[ready("nim.example.org")]);
    named["addressType"] = "FQDN".into();
    let four = slice("four", &[pod("10.0.0.1", "one"), ready("fd00::9"), ready("0.0.0.0"), ready("x")]);
    let server = ApiServer::start(vec![six, named, four]).await;
    for (port, number) in [(Port::Name("metrics".into()), 9000), (Port::Number(1234), 1234)] {
        let mut followed = Followed::start(nim(port), server.settings());
        let wanted = [format!("nim.ml.svc=10.0.0.1:{number}"), format!("nim.ml.svc=[fd00::2]:{number}")];
        assert_eq!(followed.next().await, wanted);
    }
    let mut followed = Followed::start(nim(Port::Name("grpc".into())), server.settings());
    assert_eq!(followed.next().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_gone_is_listed_anew() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let mut followed = Followed::start(http(), server.settings());
    followed.next().await;
    server.is_watched(1).await;
    server.list(vec![slice("b", &[ready("10.0.0.2")])]);
    server.event("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}));
    assert_eq!(followed.next().await, shown(&["10.0.0.2"]));
    server.is_watched(2).await;
    server.list(vec![slice("c", &[ready("10.0.0.3")])]);
    server.refuse(410, "{}");
    server.end(false);
    assert_eq!(followed.next().await, shown(&["10.0.0.3"]));
}

fn mark(version: &str) -> serde_json::Value {
    json!({"kind": "EndpointSlice", "apiVersion": "v1", "metadata": {"resourceVersion": version}})
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_or_is_cut_goes_on_where_it_was() {
    for is_cut in [false, true] {
        let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
        let mut followed = Followed::start(http(), server.settings());
        followed.next().await;
        server.is_watched(1).await;
        server.event("BOOKMARK", &mark("99"));
        // A server that cuts may drop what it has not sent, so the last mark comes in one piece with a slice.
        let text = format!(
            "{}\n{}\n",
            json!({"type": "ADDED", "object": slice("b", &[ready("10.0.0.2")])}),
            json!({"type": "BOOKMARK", "object": mark("101")}),
        );
        let (first, second) = text.split_at(40);
        server.send(first.to_owned());
        server.send(second.to_owned());
        assert_eq!(followed.next().await, shown(&["10.0.0.1", "10.0.0.2"]), "events may come in pieces");
        server.end(is_cut);
        followed.none_until(server.is_watched(2)).await;
        assert!(server.requests().last().unwrap().0.contains("resourceVersion=101"), "{:?}", server.requests());
        server.event("DELETED", &slice("a", &[]));
        assert_eq!(followed.next().await, shown(&["10.0.0.2"]));
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_and_refusals_keep_the_last_good_set_and_are_not_repeated_at_once() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let mut followed = Followed::start(http(), server.settings());
    followed.next().await;
    server.is_watched(1).await;
    for body in ["<html>", "{\"items\": 3}", "", "{\"metadata\": {}, \"items\": []}"] {
        server.refuse(200, body);
    }
    for status in [500, 503, 429, 403, 401, 404] {
        server.refuse(status, "{\"kind\": \"Status\"}");
    }
    let begun = Instant::now();
    server.send("not JSON\n");
    followed.none_until(server.is_watched(2)).await;
    assert!(begun.elapsed() > Duration::from_secs(60), "ten failures in {:?}", begun.elapsed());
    server.event("MODIFIED", &slice("a", &[ready("10.0.0.2")]));
    assert_eq!(followed.next().await, shown(&["10.0.0.2"]));
    // What is listed anew is what was watched.
    server.list(vec![slice("a", &[ready("10.0.0.2")])]);
    server.send(vec![b'x'; 5 << 20]);
    followed.none_until(server.is_watched(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_watch_at_once_is_not_asked_without_pause() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let mut followed = Followed::start(http(), server.settings());
    followed.next().await;
    for times in 1..20 {
        followed.none_until(server.is_watched(times)).await;
        server.end(false);
    }
    let begun = Instant::now();
    followed.none_until(server.is_watched(20)).await;
    assert!(begun.elapsed() > Duration::from_secs(10), "again after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_opened_again() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let mut followed = Followed::start(http(), server.settings());
    followed.next().await;
    followed.none_until(server.is_watched(3)).await;
}

#[tokio::test(start_paused = true)]
async fn without_an_api_server_the_last_set_is_given_up_after_the_time_to_keep_it() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let settings = Settings { keep: Some(Duration::from_secs(60)), ..server.settings() };
    let mut followed = Followed::start(http(), settings);
    followed.next().await;
    server.is_watched(1).await;
    for _ in 0..15 {
        server.refuse(500, "");
    }
    let begun = Instant::now();
    server.end(true);
    assert_eq!(followed.next().await, [""; 0]);
    let kept = begun.elapsed().as_secs();
    assert!((59..70).contains(&kept), "kept for {kept} s");
    assert_eq!(followed.next().await, shown(&["10.0.0.1"]));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_quiet_for_long_and_is_cut_takes_nothing_out() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let settings = Settings { keep: Some(Duration::from_secs(60)), ..server.settings() };
    let mut followed = Followed::start(http(), settings);
    followed.next().await;
    server.is_watched(1).await;
    followed.none_until(tokio::time::sleep(Duration::from_secs(100))).await;
    server.end(true);
    followed.none_until(server.is_watched(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_service_is_bounded() {
    let pods = |i| (0..100).map(|j| ready(&format!("10.0.{i}.{j}"))).collect::<Vec<_>>();
    let slice = |i| slice(&format!("s{i}"), &pods(i));
    let server = ApiServer::start((0..4).map(slice).collect()).await;
    let mut followed = Followed::start(http(), server.settings());
    let set = followed.next().await;
    assert_eq!((set.len(), &*set[255]), (256, "nim.ml.svc=10.0.2.55:8000"));
}

#[tokio::test(start_paused = true)]
async fn the_token_comes_from_a_file_and_the_server_from_a_kubeconfig() {
    let server = ApiServer::start(vec![slice("a", &[ready("10.0.0.1")])]).await;
    let directory = tempfile::tempdir().unwrap();
    let (token, file) = (directory.path().join("token"), directory.path().join("config"));
    std::fs::write(&token, "s3cret").unwrap();
    let url: Uri = server.url().parse().unwrap();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": url.to_string()}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    std::fs::write(&file, text.to_string()).unwrap();
    let by_url = Cluster::Url { url, token_file: Some(token.clone()), ca_file: None };
    for cluster in [by_url, Cluster::Kubeconfig { path: file, context: None }] {
        let mut followed = Followed::start(http(), Settings { cluster, ..Settings::default() });
        assert_eq!(followed.next().await, shown(&["10.0.0.1"]));
        assert_eq!(server.requests().last().unwrap().1, "Bearer s3cret");
    }
}
