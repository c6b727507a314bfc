//! Scrape: asks endpoints for their metrics pages.
//!
//! Runs beside the data plane. What a page says is left to `signals`, what it is worth to `balance`. Many backends have
//! no such page or none that tells of load; those are asked seldom and nobody is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
use tokio::task::JoinSet;

use crate::balance::{Endpoint, Report, now};
use crate::probe::{self, Clients, HttpClient};
use crate::proxy::settings::{PoolSettings, ScrapeSettings};
use crate::proxy::snapshot::Snapshot;
use crate::signals::{Signals, Unusable};

/// Failures in a row after which an endpoint is asked seldom.
const PATIENCE: u32 = 3;

/// Time between two questions to an endpoint that has no usable page.
const BACK_OFF: Duration = Duration::from_secs(30);

/// Asks the endpoints of the pools that are asked for their load, as they come and go, until the set is dropped.
pub fn start(snapshot: &Snapshot) -> JoinSet<()> {
    start_with(snapshot, |endpoint, signals| {
        let Signals { running, waiting, capacity, kv_usage } = signals;
        endpoint.report(Report { running, waiting, capacity, kv_usage }, now());
    })
}

/// Hands each good page to `report`.
fn start_with<R>(snapshot: &Snapshot, report: R) -> JoinSet<()>
where
    R: Fn(&Endpoint, Signals) + Clone + Send + Sync + 'static,
{
    let mut tasks = JoinSet::new();
    for state in &snapshot.pools {
        let Some(settings) = &state.settings.scrape else { continue };
        let scraper = Arc::new(Scraper::new(&state.settings, settings.clone()));
        let report = report.clone();
        tasks.spawn(probe::each(Arc::clone(state.pool.members()), move |endpoint| {
            watch(Arc::clone(&scraper), endpoint, report.clone())
        }));
    }
    tasks
}

async fn watch<R: Fn(&Endpoint, Signals)>(scraper: Arc<Scraper>, endpoint: Arc<Endpoint>, report: R) {
    let client = scraper.clients.of(&endpoint);
    let mut pace = Pace { interval: scraper.settings.interval, failures: 0 };
    // Endpoints and gateways that start together do not stay in step.
    tokio::time::sleep(pace.interval.mul_f64(fastrand::f64())).await;
    loop {
        let asked = tokio::time::timeout(scraper.settings.timeout, scraper.ask(&client, &endpoint)).await;
        let asked = asked.unwrap_or(Err(NoSignals::TimedOut));
        if let Ok(signals) = asked {
            report(&endpoint, signals);
        }
        if pace.observe(asked.is_ok()) {
            scraper.log(&endpoint, asked.err());
        }
        tokio::time::sleep(pace.wait().mul_f64(0.9 + 0.1 * fastrand::f64())).await;
    }
}

/// What the tasks of one pool share.
struct Scraper {
    pool: PoolSettings,
    settings: ScrapeSettings,
    clients: Clients,
}

/// Why an endpoint gave no signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoSignals {
    /// It has no such page.
    NoPage,
    /// No connection, or no HTTP: probes tell of that.
    Unreachable,
    /// No whole page in time.
    TimedOut,
    /// Another status than 200 to 299.
    Status(StatusCode),
    /// More than the largest page.
    TooLarge,
    /// The page ended early.
    CutOff,
    /// The page tells nothing.
    Page(Unusable),
}

impl Scraper {
    fn new(pool: &PoolSettings, settings: ScrapeSettings) -> Self {
        Self { pool: pool.clone(), settings, clients: Clients::new(pool.tls.clone(), 1) }
    }

    async fn ask(&self, client: &HttpClient, endpoint: &Endpoint) -> Result<Signals, NoSignals> {
        let scheme = if self.pool.tls.is_some() { "https" } else { "http" };
        let uri = format!("{scheme}://{}{}", endpoint.name(), self.settings.path).parse::<Uri>();
        let mut request = Request::get(uri.map_err(|_| NoSignals::Unreachable)?);
        request = request.header(header::HOST, self.pool.authority(endpoint.settings()));
        for (name, value) in &self.pool.inject {
            request = request.header(name, value.clone());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| NoSignals::Unreachable)?;
        let answer = client.request(request).await.map_err(|_| NoSignals::Unreachable)?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Err(NoSignals::NoPage);
            }
            status => return Err(NoSignals::Status(status)),
        }
        let page = self.collect(answer.into_body()).await?;
        Signals::read(&page).map_err(NoSignals::Page)
    }

    /// Reads the page as it comes. Dropping a body that is too large closes its connection.
    async fn collect(&self, mut body: Incoming) -> Result<Vec<u8>, NoSignals> {
        let max = self.settings.max_bytes;
        if body.size_hint().lower() > max as u64 {
            return Err(NoSignals::TooLarge);
        }
        let mut page = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| NoSignals::CutOff)?.into_data() else { continue };
            if data.len() > max - page.len() {
                return Err(NoSignals::TooLarge);
            }
            page.extend_from_slice(&data);
        }
        Ok(page)
    }

    fn log(&self, endpoint: &Endpoint, failure: Option<NoSignals>) {
        let (pool, endpoint) = (&self.pool.name, endpoint.name());
        match failure {
            None => tracing::info!(%pool, endpoint, "endpoint reports its load again"),
            Some(reason) if reason.is_usual() => {
                tracing::debug!(%pool, endpoint, %reason, "endpoint reports no load; asking seldom");
            }
            Some(reason) => tracing::warn!(%pool, endpoint, %reason, "metrics page is unusable; asking seldom"),
        }
    }
}

impl NoSignals {
    /// Whether this is how many backends are, or known from elsewhere.
    fn is_usual(self) -> bool {
        match self {
            Self::NoPage | Self::Unreachable | Self::Page(Unusable::NothingKnown) => true,
            Self::TimedOut | Self::Status(_) | Self::TooLarge | Self::CutOff | Self::Page(_) => false,
        }
    }
}

impl fmt::Display for NoSignals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPage => f.write_str("no such page"),
            Self::Unreachable => f.write_str("no answer"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Status(status) => write!(f, "status {}", status.as_u16()),
            Self::TooLarge => f.write_str("too large"),
            Self::CutOff => f.write_str("cut off"),
            Self::Page(unusable) => unusable.fmt(f),
        }
    }
}

/// How often one endpoint is asked.
struct Pace {
    interval: Duration,
    /// Failures in a row.
    failures: u32,
}

impl Pace {
    /// Takes one result; answers whether the pace changed with it.
    fn observe(&mut self, success: bool) -> bool {
        let was_slow = self.is_slow();
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        self.is_slow() != was_slow
    }

    fn wait(&self) -> Duration {
        if self.is_slow() { self.interval.max(BACK_OFF) } else { self.interval }
    }

    fn is_slow(&self) -> bool {
        self.failures >= PATIENCE
    }
}

#[cfg(test)]
mod tests;

/// What a configuration with these pools comes to.
#[cfg(test)]
fn snapshot(pools: &str) -> Snapshot {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keys.yaml"), "keys: []\n").unwrap();
    let path = directory.path().join("nimgate.yaml");
    let text = "listeners: [{address: '127.0.0.1:0'}]\ncallers: {keys_file: keys.yaml}\n";
    std::fs::write(&path, format!("{text}pools:\n{pools}")).unwrap();
    let config = crate::config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    Snapshot::build(config.proxy, &crate::quota::Limiter::local(), None).unwrap()
}
