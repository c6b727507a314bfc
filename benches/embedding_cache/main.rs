//! Embedding cache bench: what do kept vectors cost and save, in time and CPU, beside the same requests without a cache?
//!
//! `cargo bench --bench embedding_cache [-- --rounds 3 --seconds 0.5 --items 32 --dimensions 1024 --encodings base64
//! --hits 0,100 --delays-ms 0]`; what is measured and how stands in docs/benchmarks.md. One connection, one request at a
//! time; all of it runs on loopback.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use nimgate::auth::NewKey;
use tokio::time::{Instant, sleep};

mod backend;
#[path = "../macro/client.rs"]
mod client;
#[path = "../macro/process.rs"]
#[expect(dead_code, reason = "memory is read as it is, not at its peak")]
mod process;
#[path = "../macro/redis.rs"]
#[expect(dead_code, reason = "it is required")]
mod redis_server;
mod report;

use self::client::{Connection, metrics};
use self::process::{Process, await_listener, free_addresses};
use self::redis_server::RedisServer;

/// Measures batches of embeddings that are known, known in part and unknown, and the same without a cache.
#[derive(Parser)]
#[command(name = "cargo bench --bench embedding_cache --")]
struct Options {
    /// Rounds; each measures every row once, and their requests are counted together.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds for which a row is measured in a round.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Items of a request, 1 to 64.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 64])]
    items: Vec<usize>,
    /// Numbers of a vector.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096])]
    dimensions: Vec<usize>,
    /// How answers write vectors.
    #[arg(long, value_delimiter = ',', default_values = ["float", "base64"])]
    encodings: Vec<String>,
    /// Known items in a hundred.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 50, 100])]
    hits: Vec<usize>,
    /// Times that the backend takes. Where it takes any, only what has misses is measured.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20])]
    delays_ms: Vec<u64>,
    /// Another build of the gateway to measure.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Says that cargo runs it as a bench and not as a test.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// What the backend takes for it.
    pub delay: Duration,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// How the answer writes it.
    pub is_base64: bool,
    /// How many.
    pub items: usize,
    /// How many of a hundred are known.
    pub hits: usize,
}

/// Where vectors are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nowhere.
    Off,
    /// In the process.
    Memory,
    /// In Redis alone.
    Redis,
}

/// What was measured of a row.
pub struct Cell {
    /// The row.
    pub row: Row,
    /// Where vectors were kept.
    pub place: Place,
    /// Times from request to whole answer.
    pub times: Vec<Duration>,
    /// CPU time of the gateway.
    pub cpu: Duration,
    /// Items that were known and items that were not, by the gateway's count.
    pub found: [f64; 2],
}

/// A running gateway.
struct Gateway {
    place: Place,
    process: Process,
    address: SocketAddr,
    admin: SocketAddr,
}

struct Stage {
    gateways: Vec<Gateway>,
    key: String,
    // Fields are dropped in this order.
    redis: RedisServer,
    _directory: tempfile::TempDir,
}

const PLACES: [Place; 3] = [Place::Off, Place::Memory, Place::Redis];
/// Bytes of the vectors that are known before anything is measured.
const KNOWN: usize = 48 * 1024 * 1024;
const WARM_UP: Duration = Duration::from_millis(100);
/// Items of the requests that make them known.
const TOGETHER: usize = 50;

fn main() -> ExitCode {
    // As a test (`cargo test --all-targets`) it only has to build: nobody waits for figures there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // Dropping the bench ends its processes.
            tokio::select! {
                done = bench(&options) => done,
                _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "embedding_cache: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(options: &Options) -> Result<()> {
    let mut out = std::io::stdout();
    if cfg!(debug_assertions) {
        writeln!(out, "A debug build: its figures mean nothing.")?;
    }
    ensure!(options.items.iter().all(|items| (1..=64).contains(items)), "1 to 64 items");
    let mut fresh = 0;
    let mut cells = Vec::new();
    for delay in &options.delays_ms {
        let delay = Duration::from_millis(*delay);
        let stage = Stage::set(delay, &options.dimensions, options.binary.as_ref()).await?;
        for dimensions in &options.dimensions {
            if delay.is_zero() {
                writeln!(out, "{}", stage.sizes(*dimensions).await?)?;
            }
            for encoding in &options.encodings {
                for items in &options.items {
                    let is_base64 = encoding == "base64";
                    let row = Row { delay, dimensions: *dimensions, is_base64, items: *items, hits: 0 };
                    cells.extend(rounds(options, &stage, row, &mut fresh).await?);
                    let _ = write!(std::io::stderr(), "{row:?}\x1b[K\r");
                }
            }
        }
    }
    writeln!(out, "\n{}", report::table(&cells))?;
    Ok(())
}

/// The row with every share of hits in every place, next to each other and in turning order.
async fn rounds(options: &Options, stage: &Stage, row: Row, fresh: &mut u64) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for place in PLACES {
        for hits in &options.hits {
            let is_wanted = if place == Place::Off { cells.is_empty() } else { row.delay.is_zero() || *hits < 100 };
            if is_wanted {
                let row = Row { hits: if place == Place::Off { 0 } else { *hits }, ..row };
                cells.push(Cell { row, place, times: Vec::new(), cpu: Duration::ZERO, found: [0.0; 2] });
            }
        }
    }
    let count = cells.len();
    for round in 0..options.rounds as usize {
        for turn in 0..count {
            let cell = &mut cells[(turn + round) % count];
            let measured = stage.measure(cell, Duration::from_secs_f64(options.seconds), fresh).await;
            measured.with_context(|| format!("{:?} {:?}", cell.row, cell.place))?;
        }
    }
    Ok(cells)
}

impl Stage {
    /// Starts a backend that takes so long, and the gateways.
    async fn set(delay: Duration, dimensions: &[usize], binary: Option<&PathBuf>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nimgate-bench-").tempdir()?;
        let path = directory.path();
        let key = NewKey::generate().map_err(|e| anyhow!("no random numbers: {e}"))?;
        let keys = format!("keys:\n  - id: \"{}\"\n    sha256: {}\n    name: bench\n", key.id, key.hash_text());
        fs::write(path.join("keys.yaml"), keys)?;
        let addresses = free_addresses(1 + 2 * PLACES.len())?;
        backend::serve(addresses[0], delay)?;
        let redis = RedisServer::start().context("redis-server")?;
        let mut link = ::redis::Client::open(format!("redis://{}", redis.address()))?.get_connection()?;
        for (name, value) in [("maxmemory", "2gb"), ("maxmemory-policy", "allkeys-lru")] {
            let () = ::redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query(&mut link)?;
        }
        let mut gateways = Vec::new();
        for (place, own) in PLACES.into_iter().zip(addresses[1..].chunks_exact(2)) {
            let (name, listen, admin) = (place.name(), own[0], own[1]);
            let cache = match place {
                Place::Off => "{enabled: false}",
                Place::Memory => "{enabled: true, redis: false}",
                // Patient: a busy machine is not a slow Redis.
                Place::Redis => "{enabled: true, max_mib: 0, budget_ms: 500}",
            };
            let mut config = format!(
                "listeners: [{{address: \"{listen}\"}}]\nadmin: {{address: \"{admin}\"}}\ncallers: {{keys_file: keys.yaml}}\n\
                 redis: {{addresses: [\"{}\"], timeout_ms: 500}}\naccess_log: {{target: {{file: {name}.log}}}}\n\
                 runtime: {{threads: 2}}\npools:\n",
                redis.address()
            );
            for dimensions in dimensions {
                config += &format!(
                    "  - name: \"{dimensions}\"\n    api: nim-embedding\n    models: [{{id: bench-{dimensions}}}]\n    \
                     endpoints: [{{url: \"http://{}\"}}]\n    health: {{interval_ms: 5000}}\n    \
                     metrics: {{enabled: false}}\n    cache: {cache}\n",
                    addresses[0]
                );
            }
            let file = path.join(format!("{name}.yaml"));
            fs::write(&file, config)?;
            let mut command = Command::new(binary.map_or(env!("CARGO_BIN_EXE_nimgate").as_ref(), PathBuf::as_path));
            let mut process = Process::start(name, command.args(["serve", "--config"]).arg(file), path)?;
            await_listener(&mut process, listen).await?;
            gateways.push(Gateway { place, process, address: listen, admin });
        }
        let stage = Self { gateways, key: key.text, redis, _directory: directory };
        for dimensions in dimensions {
            stage.rehearse(*dimensions).await?;
        }
        Ok(stage)
    }

    fn gateway(&self, place: Place) -> Result<&Gateway> {
        self.gateways.iter().find(|gateway| gateway.place == place).context("a gateway")
    }

    /// Waits until vectors are kept: the revision is known, and Redis is there.
    async fn rehearse(&self, dimensions: usize) -> Result<()> {
        let row = Row { delay: Duration::ZERO, dimensions, is_base64: true, items: 1, hits: 0 };
        for gateway in self.gateways.iter().filter(|gateway| gateway.place != Place::Off) {
            let mut connection = Connection::open(gateway.address).await?;
            let begun = Instant::now();
            while gateway.found(dimensions).await?[0] == 0.0 {
                ensure!(begun.elapsed() < Duration::from_secs(10), "{} keeps nothing", gateway.place.name());
                connection.exchange(&self.request(&row, ["rehearsal".to_owned()].iter())).await?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Asks for what is to be known; how many items that is.
    async fn prepare(&self, gateway: &Gateway, dimensions: usize) -> Result<usize> {
        let row = Row { delay: Duration::ZERO, dimensions, is_base64: true, items: TOGETHER, hits: 100 };
        let mut connection = Connection::open(gateway.address).await?;
        let count = KNOWN / (4 * dimensions);
        for begin in (0..count).step_by(TOGETHER) {
            let texts: Vec<String> = (begin..count.min(begin + TOGETHER)).map(known).collect();
            let answer = connection.exchange(&self.request(&row, texts.iter())).await?;
            ensure!(answer.status == 200, "status {}", answer.status);
        }
        Ok(count)
    }

    /// What a vector takes, by what many take.
    async fn sizes(&self, dimensions: usize) -> Result<String> {
        let (memory, redis) = (self.gateway(Place::Memory)?, self.gateway(Place::Redis)?);
        let of_metric = async |name: &str| -> Result<f64> {
            let found = metrics(memory.admin, &format!("{name}{{pool=\"{dimensions}\"}}")).await?;
            Ok(found.first().context("a metric")?.parse()?)
        };
        let resident = memory.process.memory("VmRSS:");
        let count = self.prepare(memory, dimensions).await? as f64;
        let grown = memory.process.memory("VmRSS:").saturating_sub(resident) as f64 / count;
        let counted = of_metric("nimgate_cache_bytes").await? / of_metric("nimgate_cache_entries").await?;
        let mut link = ::redis::Client::open(format!("redis://{}", self.redis.address()))?.get_connection()?;
        let mut used = || -> Result<u64> {
            let told: String = ::redis::cmd("INFO").arg("memory").query(&mut link)?;
            let line = told.lines().find_map(|line| line.strip_prefix("used_memory:")).context("used_memory")?;
            Ok(line.trim().parse()?)
        };
        let before = used()?;
        self.prepare(redis, dimensions).await?;
        sleep(Duration::from_millis(500)).await;
        let in_redis = used()?.saturating_sub(before) as f64 / count;
        let key: String = ::redis::cmd("RANDOMKEY").query(&mut link)?;
        let value: u64 = ::redis::cmd("STRLEN").arg(key).query(&mut link)?;
        Ok(format!(
            "{dimensions} dimensions: goal {} bytes; a value {value}, in memory {counted:.0} counted, {grown:.0} resident, \
             in Redis {in_redis:.0}",
            4 * dimensions + 64
        ))
    }

    /// Adds a measurement.
    async fn measure(&self, cell: &mut Cell, time: Duration, fresh: &mut u64) -> Result<()> {
        let (row, gateway) = (cell.row, self.gateway(cell.place)?);
        let count = if row.hits > 0 { self.prepare(gateway, row.dimensions).await? } else { 1 };
        let mut connection = Connection::open(gateway.address).await?;
        let length = backend::length(&row, row.items);
        let (mut turn, mut next) = (0, fastrand::usize(..count));
        let mut begun: Option<(Instant, Duration, [f64; 2])> = None;
        let warm = Instant::now();
        loop {
            if begun.is_none() && warm.elapsed() > WARM_UP {
                begun = Some((Instant::now(), gateway.process.cpu()?, gateway.found(row.dimensions).await?));
            }
            let texts: Vec<String> = (0..row.items)
                .map(|_| {
                    turn += row.hits;
                    if turn >= 100 {
                        turn -= 100;
                        next = (next + 1) % count;
                        known(next)
                    } else {
                        *fresh += 1;
                        format!("new {fresh:09}: {PROSE}")
                    }
                })
                .collect();
            let request = self.request(&row, texts.iter());
            let sent = Instant::now();
            let answer = connection.exchange(&request).await?;
            let took = sent.elapsed();
            ensure!(answer.status == 200, "status {}", answer.status);
            ensure!(answer.length.abs_diff(length) * 50 <= length, "{} bytes, not {length}", answer.length);
            let Some((begun, cpu, found)) = begun else { continue };
            cell.times.push(took);
            if begun.elapsed() > time {
                // What is still being kept belongs to what was measured.
                sleep(Duration::from_millis(20)).await;
                cell.cpu += gateway.process.cpu()?.saturating_sub(cpu);
                let now = gateway.found(row.dimensions).await?;
                (0..2).for_each(|at| cell.found[at] += now[at] - found[at]);
                return Ok(());
            }
        }
    }

    fn request<'t>(&self, row: &Row, texts: impl Iterator<Item = &'t String>) -> Vec<u8> {
        let texts: Vec<String> = texts.map(|text| format!("\"{text}\"")).collect();
        let body = format!(
            r#"{{"model":"bench-{}","input":[{}],"input_type":"passage","encoding_format":"{}","truncate":"END"}}"#,
            row.dimensions,
            texts.join(","),
            row.encoding()
        );
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: bench.local\r\naccept: application/json\r\n\
             content-type: application/json\r\nuser-agent: OpenAI/Python 1.109.1\r\nauthorization: Bearer {}\r\n\
             content-length: {}\r\n\r\n",
            self.key,
            body.len()
        );
        [head, body].concat().into_bytes()
    }
}

/// Some 160 characters.
const PROSE: &str = "The scheduler keeps every slot of the batch busy, and a request that waits is told so. Its time to \
    first token then counts from the slot on, not from the queue.";

fn known(at: usize) -> String {
    format!("known {at:07}: {PROSE}")
}

impl Gateway {
    /// Items that were known so far, and that were not.
    async fn found(&self, dimensions: usize) -> Result<[f64; 2]> {
        let mut found = [0.0; 2];
        for (found, result) in found.iter_mut().zip(["hit", "miss"]) {
            let name = format!("nimgate_cache_items_total{{pool=\"{dimensions}\",result=\"{result}\"}}");
            let values = metrics(self.admin, &name).await?;
            *found = values.first().map_or(Ok(0.0), |value| value.parse())?;
        }
        Ok(found)
    }
}

impl Row {
    /// The request's word for how vectors are written.
    pub fn encoding(&self) -> &'static str {
        if self.is_base64 { "base64" } else { "float" }
    }
}

impl Place {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}
