use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::*;

/// Long enough for an answer that is not held back, yet no pain to wait for.
const MOMENT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn redis_server_restarts_with_its_data() {
    let (mut lasting, mut forgetful) = (RedisServer::setup().persistent().start().await, RedisServer::start().await);
    for (server, kept) in [(&mut lasting, "1"), (&mut forgetful, "")] {
        server.command(&["SET", "a", "1"]);
        server.stop();
        assert!(server.try_command(&["PING"]).is_err());
        assert!(Connection::open(server.address()).await.is_err());
        server.restart().await;
        assert_eq!(server.command(&["GET", "a"]), kept);
    }
}

#[tokio::test]
async fn redis_server_pauses_and_resumes() {
    let server = RedisServer::start().await;
    let mut client = Connection::open(server.address()).await.unwrap();
    assert_eq!(client.ask(&["SET", "a", "1"]).await.unwrap(), "OK");
    server.pause().await;
    client.send(&["GET", "a"]).await.unwrap();
    assert!(timeout(MOMENT, client.receive()).await.is_err());
    server.resume();
    assert_eq!(client.receive().await.unwrap(), "1");
}

#[tokio::test]
async fn redis_server_knows_passwords_and_users() {
    let setup = RedisServer::setup().password("open-sesame").acl_user("reader", "letters", "~shelf:* +get");
    let server = setup.start().await;
    server.command(&["SET", "shelf:a", "1"]);
    let mut client = Connection::open(server.address()).await.unwrap();
    let mut refused = async |words: &[&str]| client.ask(words).await.unwrap_err().to_string();
    assert!(refused(&["GET", "shelf:a"]).await.starts_with("NOAUTH"));
    assert!(refused(&["AUTH", "reader", "wrong"]).await.starts_with("WRONGPASS"));
    assert_eq!(client.ask(&["AUTH", "reader", "letters"]).await.unwrap(), "OK");
    assert_eq!(client.ask(&["GET", "shelf:a"]).await.unwrap(), "1");
    assert!(client.ask(&["GET", "desk"]).await.unwrap_err().to_string().starts_with("NOPERM"));
}

#[tokio::test]
async fn redis_server_speaks_tls() {
    let server = RedisServer::setup().tls().start().await;
    assert!(server.url().starts_with("rediss://127.0.0.1:"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.ca_file()).unwrap()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connect = async |name: &'static str| {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        connector.connect(ServerName::try_from(name).unwrap(), stream).await
    };
    let mut stream = connect("127.0.0.1").await.unwrap();
    stream.write_all(&resp::request(&["PING"])).await.unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    assert!(connect("localhost").await.is_err());
    assert!(Connection::open(server.address()).await.unwrap().ask(&["PING"]).await.is_err());
    assert_eq!(server.command(&["PING"]), "PONG");
}

#[tokio::test]
async fn a_line_delays_cuts_and_mends() {
    const PIPELINED: u32 = 200;
    let server = RedisServer::start().await;
    let mut line = Line::to(server.address()).await;
    let mut client = Connection::open(line.address()).await.unwrap();
    assert_eq!(client.ask(&["PING"]).await.unwrap(), "PONG");

    let delay = Duration::from_millis(20);
    line.delay(delay);
    let begun = Instant::now();
    assert_eq!(client.ask(&["PING"]).await.unwrap(), "PONG");
    assert!(begun.elapsed() >= 2 * delay);
    let begun = Instant::now();
    for _ in 0..PIPELINED {
        client.send(&["INCR", "counter"]).await.unwrap();
    }
    for count in 1..=PIPELINED {
        assert_eq!(client.receive().await.unwrap(), count.to_string());
    }
    assert!(begun.elapsed() < PIPELINED * delay, "{:?}", begun.elapsed());

    line.cut().await;
    assert!(client.ask(&["PING"]).await.is_err());
    assert!(Connection::open(line.address()).await.is_err());
    assert_eq!(line.accepted(), 1);
    line.mend().await;
    let mut client = Connection::open(line.address()).await.unwrap();
    assert_eq!(client.ask(&["GET", "counter"]).await.unwrap(), PIPELINED.to_string());
    assert_eq!(line.accepted(), 2);
    assert_eq!(line.url(), format!("redis://{}", line.address()));
}

#[tokio::test]
async fn a_line_stalls_and_makes_noise() {
    let mut server = RedisServer::start().await;
    let mut line = Line::to(server.address()).await;
    let mut client = Connection::open(line.address()).await.unwrap();
    assert_eq!(client.ask(&["SET", "a", "1"]).await.unwrap(), "OK");

    line.stall();
    client.send(&["GET", "a"]).await.unwrap();
    assert!(timeout(MOMENT, client.receive()).await.is_err());
    line.mend().await;
    assert_eq!(client.receive().await.unwrap(), "1");

    line.garbage();
    for mut client in [client, Connection::open(line.address()).await.unwrap()] {
        assert!(client.ask(&["INCR", "a"]).await.unwrap_err().to_string().starts_with("not RESP"));
    }
    assert_eq!(server.command(&["GET", "a"]), "1");

    line.mend().await;
    let mut client = Connection::open(line.address()).await.unwrap();
    assert_eq!(client.ask(&["INCR", "a"]).await.unwrap(), "2");
    server.stop();
    assert!(client.ask(&["PING"]).await.is_err());
}

#[tokio::test]
async fn a_cluster_comes_up() {
    let mut cluster = RedisCluster::start().await;
    assert_eq!(cluster.urls().len(), 3);
    for key in ["a", "b", "c"] {
        let owner = cluster.owner(key);
        cluster.nodes[owner].command(&["SET", key, "1"]);
        let moved = cluster.nodes[(owner + 1) % 3].try_command(&["GET", key]).unwrap_err().to_string();
        assert!(moved.ends_with(&cluster.nodes[owner].address().to_string()), "{moved}");
    }
    cluster.nodes[1].restart().await;
    cluster.until_sound().await;
}

#[tokio::test]
async fn a_sentinel_fails_over() {
    let mut group = RedisSentinel::start().await;
    let sentinel = group.sentinel_urls()[0].strip_prefix("redis://").unwrap().parse().unwrap();
    let mut client = Connection::open(sentinel).await.unwrap();
    let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", group.master_name()];
    assert_eq!(client.ask(&question).await.unwrap(), format!("127.0.0.1\n{}", group.master.port()));
    group.master.command(&["SET", "a", "1"]);
    until("the replica has it", async || group.replica.command(&["GET", "a"]) == "1").await;
    group.kill_master();
    group.until_failed_over().await;
    assert_eq!(client.ask(&question).await.unwrap(), format!("127.0.0.1\n{}", group.replica.port()));
    group.replica.command(&["SET", "a", "2"]);
    group.master.restart().await;
    until("the old master follows", async || group.master.command(&["GET", "a"]) == "2").await;
}
