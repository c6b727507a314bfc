//! The scraper against a backend that does as each test says. Time is paused: it jumps whenever nobody has anything to do.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use super::*;

/// What the backend does with one request.
#[derive(Clone, Copy, Debug)]
enum Act {
    Page(&'static str),
    Status(&'static str),
    Hang,
    Close,
    /// Promises 100 MB.
    Promise,
    /// Sends chunks for ever.
    Endless,
    /// One byte at a time, for ever, a second apart.
    Drip,
}

const GOOD: Act = Act::Page("num_requests_running 2\nnum_requests_waiting 1\n");
const HTML: Act = Act::Page("<!doctype html><title>Sign in</title>");
const OTHER: Act = Act::Page("gpu_utilization 0.5\n");

/// A backend, and what it saw.
struct Backend {
    port: u16,
    asked: UnboundedReceiver<(Instant, String)>,
    connections: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
}

impl Backend {
    /// Does what `acts` says, one by one, and the last of them from then on.
    async fn start(acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, asked) = unbounded_channel();
        let (connections, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let acts = Arc::new(Mutex::new(VecDeque::from(acts.to_vec())));
        let (counted, bytes) = (Arc::clone(&connections), Arc::clone(&sent));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (acts, seen, bytes) = (Arc::clone(&acts), seen.clone(), Arc::clone(&bytes));
                tokio::spawn(async move {
                    while let Some(head) = head(&mut stream).await {
                        seen.send((Instant::now(), head)).ok();
                        let act = {
                            let mut acts = acts.lock().unwrap();
                            if acts.len() > 1 { acts.pop_front() } else { acts.front().copied() }
                        };
                        if act.unwrap().run(&mut stream, &bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, asked, connections, sent }
    }

    fn pool(&self, name: &str, more: &str) -> String {
        let port = self.port;
        format!(
            "  - {{name: {name}, api: nim-llm, default: {}, models: [{{id: {name}}}], {more}
                    endpoints: [{{url: 'http://127.0.0.1:{port}'}}]}}\n",
            name == "chat"
        )
    }

    /// The pauses before the next questions, in milliseconds.
    async fn pauses(&mut self, count: usize) -> Vec<u128> {
        let mut last = self.asked.recv().await.unwrap().0;
        let mut pauses = Vec::new();
        for _ in 0..count {
            let next = self.asked.recv().await.unwrap().0;
            pauses.push((next - last).as_millis());
            last = next;
        }
        pauses
    }
}

impl Act {
    async fn run(self, stream: &mut TcpStream, sent: &AtomicUsize) -> std::io::Result<()> {
        let whole = |status: &str, page: &str| {
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{page}", page.len()).into_bytes()
        };
        match self {
            Self::Page(page) => stream.write_all(&whole("200 OK", page)).await,
            Self::Status(status) => stream.write_all(&whole(status, "{\"detail\":\"no\"}")).await,
            Self::Hang => std::future::pending().await,
            Self::Close => Err(std::io::ErrorKind::ConnectionAborted.into()),
            Self::Promise => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\nnum_").await?;
                std::future::pending().await
            }
            Self::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = [b"2000\r\n".as_slice(), &b"a 1\n".repeat(0x800), b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                    sent.fetch_add(chunk.len(), Ordering::SeqCst);
                }
            }
            Self::Drip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                loop {
                    stream.write_all(b"\n").await?;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

/// One request's header; `None` when the client has gone.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Scrapes one backend until dropped.
struct Scraped {
    backend: Backend,
    reports: UnboundedReceiver<Signals>,
    _tasks: JoinSet<()>,
}

async fn scrape(acts: &[Act]) -> Scraped {
    let backend = Backend::start(acts).await;
    let (sender, reports) = unbounded_channel();
    let report = move |_: &Endpoint, signals| assert!(sender.send(signals).is_ok());
    let tasks = start_with(&snapshot(&backend.pool("chat", "")), report);
    Scraped { backend, reports, _tasks: tasks }
}

fn is_beat(pause: &u128) -> bool {
    (890..=1010).contains(pause)
}

fn is_slow(pause: &u128) -> bool {
    (26_900..=30_100).contains(pause)
}

#[tokio::test(start_paused = true)]
async fn good_pages_are_reported_at_the_interval_over_one_connection() {
    let mut scraped = scrape(&[GOOD]).await;
    for _ in 0..20 {
        let signals = scraped.reports.recv().await.unwrap();
        assert_eq!((signals.running, signals.waiting, signals.kv_usage), (Some(2.0), Some(1.0), None));
    }
    let pauses = scraped.backend.pauses(10).await;
    assert!(pauses.iter().all(is_beat), "{pauses:?}");
    assert_eq!(scraped.backend.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_question_names_the_path_and_carries_the_pools_credential() {
    let mut backend = Backend::start(&[GOOD]).await;
    let more = "metrics: {path: '/metrics?all=1'}, headers: {x-team: research}, credential: {secret: {env: PATH}},";
    let _tasks = start_with(&snapshot(&backend.pool("chat", more)), |_, _| {});
    let (_, head) = backend.asked.recv().await.unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap();
    assert_eq!(line, "GET /metrics?all=1 HTTP/1.1");
    let fields = fields.to_ascii_lowercase();
    assert!(fields.contains("x-team: research\r\n") && fields.contains("authorization: bearer "), "{fields}");
}

#[tokio::test(start_paused = true)]
async fn pools_that_are_not_asked_by_default_are_left_alone() {
    let (mut nim, mut ngc, mut off) =
        (Backend::start(&[GOOD]).await, Backend::start(&[GOOD]).await, Backend::start(&[GOOD]).await);
    let ngc_pool = format!(
        "  - {{name: c, api: nemo-curator, kind: ngc, endpoints: [{{url: 'http://127.0.0.1:{}'}}]}}\n",
        ngc.port
    );
    let pools = [nim.pool("chat", ""), ngc_pool, off.pool("silent", "metrics: {enabled: false},")].concat();
    let snapshot = snapshot(&pools);
    let _tasks = start(&snapshot);
    nim.pauses(5).await;
    assert!(ngc.asked.try_recv().is_err() && off.asked.try_recv().is_err());
    let heard = |pool: usize| snapshot.pools[pool].pool.endpoints()[0].heard().latest(now());
    assert_eq!(heard(0).unwrap().0.waiting, Some(1.0));
    assert!(heard(1).is_none() && heard(2).is_none());
}

#[tokio::test(start_paused = true)]
async fn whatever_is_no_page_slows_down_after_three() {
    for act in [
        Act::Status("404 Not Found"),
        OTHER,
        Act::Close,
        HTML,
        Act::Page(""),
        Act::Status("401 Unauthorized"),
        Act::Status("503 Service Unavailable"),
        Act::Status("301 Moved Permanently\r\nlocation: /elsewhere"),
        Act::Promise,
    ] {
        let mut scraped = scrape(&[act]).await;
        let pauses = scraped.backend.pauses(8).await;
        assert!(pauses[..2].iter().all(is_beat) && pauses[2..].iter().all(is_slow), "{act:?}: {pauses:?}");
        assert!(scraped.reports.try_recv().is_err(), "{act:?}");
    }
}

#[test]
fn only_a_change_of_pace_is_told() {
    let changes = |results: &str| {
        let mut pace = Pace { interval: Duration::from_secs(1), failures: 0 };
        results.chars().map(|result| if pace.observe(result == '+') { '!' } else { '.' }).collect::<String>()
    };
    assert_eq!(changes("++--+--+---------+++---"), "..........!......!....!");
    let slow = Pace { interval: Duration::from_secs(60), failures: PATIENCE };
    assert_eq!(slow.wait(), Duration::from_secs(60), "the longer of the two");
}

#[test]
fn operators_are_warned_of_what_is_neither_usual_nor_known_from_probes() {
    let usual = [NoSignals::NoPage, NoSignals::Unreachable, NoSignals::Page(Unusable::NothingKnown)];
    assert!(usual.iter().all(|reason| reason.is_usual()));
    let told = [
        (NoSignals::TimedOut, "timed out"),
        (NoSignals::Status(StatusCode::UNAUTHORIZED), "status 401"),
        (NoSignals::TooLarge, "too large"),
        (NoSignals::CutOff, "cut off"),
        (NoSignals::Page(Unusable::Html), "a web page"),
    ];
    assert!(told.iter().all(|(reason, text)| !reason.is_usual() && reason.to_string() == *text));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_or_dripping_backend_costs_the_timeout_only() {
    for act in [Act::Hang, Act::Drip] {
        let mut scraped = scrape(&[act]).await;
        let pauses = scraped.backend.pauses(4).await;
        // Its timeout of two seconds, then the pause.
        assert!(pauses[..2].iter().all(|pause| (2880..=3010).contains(pause)), "{act:?}: {pauses:?}");
        assert!(pauses[2..].iter().all(|pause| (28_900..=32_100).contains(pause)), "{act:?}: {pauses:?}");
        assert!(scraped.reports.try_recv().is_err(), "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_page_is_not_read_to_its_end() {
    let mut scraped = scrape(&[Act::Endless]).await;
    scraped.backend.pauses(3).await;
    // Three pages of 1 MiB, and what sockets hold.
    let sent = scraped.backend.sent.load(Ordering::SeqCst);
    assert!((3 << 20..64 << 20).contains(&sent), "{sent}");
    assert!(scraped.reports.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_comes_back_restores_the_interval() {
    let mut scraped = scrape(&[GOOD, HTML, HTML, HTML, HTML, GOOD]).await;
    let pauses = scraped.backend.pauses(8).await;
    assert!(pauses[..3].iter().all(is_beat) && pauses[3..5].iter().all(is_slow), "{pauses:?}");
    assert!(pauses[5..].iter().all(is_beat), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_flaps_keeps_its_interval() {
    let mut scraped = scrape(&[HTML, HTML, GOOD, Act::Close, HTML, GOOD, Act::Status("500 Oops"), HTML, GOOD]).await;
    let pauses = scraped.backend.pauses(12).await;
    assert!(pauses.iter().all(is_beat), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_after_the_set_is_dropped() {
    let mut scraped = scrape(&[GOOD]).await;
    scraped.reports.recv().await.unwrap();
    drop(scraped._tasks);
    tokio::time::sleep(Duration::from_secs(100)).await;
    while scraped.reports.try_recv().is_ok() {}
    assert!(scraped.reports.recv().await.is_none());
}
