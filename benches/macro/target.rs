//! What is measured: the ways from the load generator to the upstream.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nimgate::auth::NewKey;
use tokio::time::{Instant, sleep};

use crate::bodies;
use crate::client::{Connection, metrics};
use crate::process::{Process, await_listener, free_addresses};
use crate::redis::RedisServer;
use crate::workload::Workload;

/// Threads, or worker processes, that every proxy has.
pub const THREADS: usize = 2;

/// A way from the load generator to the upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// No proxy.
    Direct,
    /// A bare pingora pass-through.
    Pingora,
    /// nginx without buffering.
    Nginx,
    /// nimgate with keys, validation, routing, probes, access log and metrics.
    Nimgate,
    /// The same without access log.
    NimgateUnlogged,
    /// The same, counting nothing.
    NimgateUncounted,
    /// The same as the one without a log, and one trace in a hundred is sent, metrics too.
    NimgateTraced1,
    /// The same, and every trace is sent.
    NimgateTraced100,
    /// The same to a collector that nobody serves.
    NimgateTracedGone,
    /// The same to a collector that takes everything and never answers.
    NimgateTracedHung,
    /// The same to a collector that answers after two seconds.
    NimgateTracedSlow,
    /// nimgate without access log and validation: what its path costs with the optional parts off.
    NimgatePlain,
    /// As nimgate, with limits on organisation, team and key that never refuse.
    NimgateLimits,
    /// The same limits, shared through Redis.
    NimgateShared,
}

/// A target that takes requests.
pub struct Running {
    /// Which one.
    pub target: Target,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process; absent for the direct way.
    pub process: Option<Process>,
}

/// The upstream, the targets in front of it, and the directory of their files.
pub struct Stage {
    /// The targets.
    pub targets: Vec<Running>,
    /// The key that nimgate takes.
    pub key: String,
    access_log: PathBuf,
    /// Where the targets with limits answer for themselves.
    admins: Vec<(Target, SocketAddr)>,
    // Fields are dropped in this order: the proxies above, what they lean on below.
    _upstream: Process,
    _redis: Option<RedisServer>,
    _directory: tempfile::TempDir,
}

impl Target {
    /// All, in the order of the table.
    pub const ALL: [Self; 14] = [
        Self::Direct,
        Self::Pingora,
        Self::Nginx,
        Self::Nimgate,
        Self::NimgateUnlogged,
        Self::NimgatePlain,
        Self::NimgateLimits,
        Self::NimgateShared,
        Self::NimgateUncounted,
        Self::NimgateTraced1,
        Self::NimgateTraced100,
        Self::NimgateTracedGone,
        Self::NimgateTracedHung,
        Self::NimgateTracedSlow,
    ];

    /// Its name in the table and for `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pingora => "pingora",
            Self::Nginx => "nginx",
            Self::Nimgate => "nimgate",
            Self::NimgateUnlogged => "nimgate-unlogged",
            Self::NimgatePlain => "nimgate-plain",
            Self::NimgateLimits => "nimgate-limits",
            Self::NimgateShared => "nimgate-shared",
            Self::NimgateUncounted => "nimgate-uncounted",
            Self::NimgateTraced1 => "nimgate-traced-1",
            Self::NimgateTraced100 => "nimgate-traced-100",
            Self::NimgateTracedGone => "nimgate-traced-gone",
            Self::NimgateTracedHung => "nimgate-traced-hung",
            Self::NimgateTracedSlow => "nimgate-traced-slow",
        }
    }

    /// Measured only when it is named.
    pub fn is_extra(self) -> bool {
        matches!(self, Self::NimgateUnlogged | Self::NimgatePlain | Self::NimgateUncounted)
            || self.share().is_some()
            || self.has_limits()
    }

    /// Whether it can be had on this machine.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Nginx => nginx().is_some(),
            Self::NimgateShared => RedisServer::is_installed(),
            _ => true,
        }
    }

    /// The share of traces that it sends, if it sends any. It sends metrics then too.
    fn share(self) -> Option<f64> {
        match self {
            Self::NimgateTraced1 => Some(0.01),
            Self::NimgateTraced100 | Self::NimgateTracedGone | Self::NimgateTracedHung | Self::NimgateTracedSlow => {
                Some(1.0)
            }
            _ => None,
        }
    }

    /// Where it sends what it tells: the upstream plays the collector.
    fn collector(self, upstream: SocketAddr) -> String {
        match self {
            // The discard service, which hardly anybody runs.
            Self::NimgateTracedGone => "http://127.0.0.1:9".to_owned(),
            Self::NimgateTracedHung => format!("http://{upstream}/hung"),
            Self::NimgateTracedSlow => format!("http://{upstream}/slow"),
            _ => format!("http://{upstream}"),
        }
    }

    fn has_limits(self) -> bool {
        matches!(self, Self::NimgateLimits | Self::NimgateShared)
    }
}

impl Stage {
    /// Starts the upstream and the targets, and waits until each takes connections.
    pub async fn set(targets: &[Target]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nimgate-bench-").tempdir()?;
        let path = directory.path();
        let key = NewKey::generate().map_err(|e| anyhow!("no random numbers: {e}"))?;
        // One for the upstream, and two for each target: nimgate has an admin listener.
        let mut addresses = free_addresses(1 + 2 * targets.len())?.into_iter();
        let mut next = || addresses.next().context("addresses for each target");
        let backend = next()?;
        let mut upstream = Process::start("upstream", &mut role("upstream", backend, None)?, path)?;
        await_listener(&mut upstream, backend).await?;
        let redis = targets.contains(&Target::NimgateShared).then(RedisServer::start).transpose()?;
        let (mut running, mut admins) = (Vec::new(), Vec::new());
        for target in targets {
            let (listen, admin) = (next()?, next()?);
            let mut command = match target {
                Target::Direct => {
                    running.push(Running { target: *target, address: backend, process: None });
                    continue;
                }
                Target::Pingora => role("pingora", listen, Some(backend))?,
                Target::Nginx => nginx_command(path, listen, backend)?,
                _ => {
                    let redis = redis.as_ref().map(RedisServer::address).filter(|_| *target == Target::NimgateShared);
                    nimgate_command(*target, path, [listen, admin, backend], redis, &key)?
                }
            };
            if target.has_limits() {
                admins.push((*target, admin));
            }
            let mut process = Process::start(target.name(), &mut command, path)?;
            await_listener(&mut process, listen).await?;
            running.push(Running { target: *target, address: listen, process: Some(process) });
        }
        let access_log = path.join(access_log(Target::Nimgate));
        Ok(Self {
            targets: running,
            key: key.text,
            access_log,
            admins,
            _upstream: upstream,
            _redis: redis,
            _directory: directory,
        })
    }

    /// Proves that each target does what it is there for: right answers, and from nimgate refusals where they are due.
    pub async fn rehearse(&self, workloads: &[Workload]) -> Result<()> {
        for (target, admin) in &self.admins {
            let expected = if *target == Target::NimgateShared { "1" } else { "-1" };
            let begun = Instant::now();
            while metrics(*admin, "nimgate_quota_shared").await? != [expected] {
                ensure!(begun.elapsed() < Duration::from_secs(10), "{} does not share its limits", target.name());
                sleep(Duration::from_millis(50)).await;
            }
        }
        for running in &self.targets {
            for workload in workloads {
                let answer =
                    Connection::open(running.address).await?.exchange(&workload.request(Some(&self.key))).await;
                let checked = answer.and_then(|answer| workload.expected.check(&answer));
                checked.with_context(|| format!("{} by {}", workload.name, running.target.name()))?;
            }
        }
        let Some(nimgate) = self.targets.iter().find(|r| r.target == Target::Nimgate) else { return Ok(()) };
        let all = Workload::all();
        let chat = all.first().context("a workload")?;
        let status = async |request: Vec<u8>| -> Result<u16> {
            Ok(Connection::open(nimgate.address).await?.exchange(&request).await?.status)
        };
        ensure!(status(chat.request(None)).await? == 401, "nimgate takes requests without a key");
        ensure!(status(chat.broken_request(&self.key)).await? == 400, "nimgate takes requests that break the schema");
        Ok(())
    }

    /// How many checks of limits each target with limits has made.
    pub async fn checks(&self) -> Result<Vec<(Target, f64)>> {
        let mut all = Vec::new();
        for (target, admin) in &self.admins {
            let counts = metrics(*admin, "nimgate_quota_checks_total").await?;
            all.push((*target, counts.iter().filter_map(|count| count.parse::<f64>().ok()).sum()));
        }
        Ok(all)
    }

    /// Lines of nimgate's access log; its writer is given a moment to catch up.
    pub async fn logged(&self) -> Result<usize> {
        sleep(Duration::from_millis(300)).await;
        let log = fs::File::open(&self.access_log)?;
        let mut lines = 0;
        let mut reader = std::io::BufReader::with_capacity(1 << 20, log);
        loop {
            let chunk = std::io::BufRead::fill_buf(&mut reader)?;
            if chunk.is_empty() {
                return Ok(lines);
            }
            lines += chunk.iter().filter(|b| **b == b'\n').count();
            let length = chunk.len();
            std::io::BufRead::consume(&mut reader, length);
        }
    }
}

/// This executable in another part.
fn role(role: &str, listen: SocketAddr, upstream: Option<SocketAddr>) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--role", role, "--listen", &listen.to_string()]);
    if let Some(upstream) = upstream {
        command.args(["--upstream", &upstream.to_string()]);
    }
    Ok(command)
}

fn nginx() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps it where only root looks.
    let places = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|place| place.join("nginx")).find(|file| file.is_file())
}

fn nginx_command(directory: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {};\n", directory.join(kind).display()))
        .concat();
    let config = format!(
        "worker_processes {THREADS};\n\
         daemon off;\n\
         pid {pid};\n\
         error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         {temporary}    access_log off;\n    \
             client_max_body_size 64m;\n    \
             client_body_buffer_size 1m;\n    \
             keepalive_requests 1000000000;\n    \
             upstream nim {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n    \
             server {{\n        \
                 listen {listen};\n        \
                 location / {{\n            \
                     proxy_pass http://nim;\n            \
                     proxy_http_version 1.1;\n            \
                     proxy_set_header Connection \"\";\n            \
                     proxy_buffering off;\n        \
                 }}\n    \
             }}\n\
         }}\n",
        pid = directory.join("nginx.pid").display(),
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new(nginx().context("nginx is not installed")?);
    command.arg("-p").arg(directory).arg("-e").arg("stderr").arg("-c").arg(file);
    Ok(command)
}

fn access_log(target: Target) -> String {
    format!("{}.log", target.name())
}

/// Limits of each kind, so large that none refuses.
const LIMITS: &str = "[{requests: 1000000000, per: second}, {requests: 100000000000, per: minute}, \
    {total_tokens: 1000000000000, per: minute}, {concurrency: 1000000}, {spend: 5000000, per: month}]";
/// What makes spend count.
const PRICES: &str = "prices: [{model: \"*\", input_per_million: 0.2, output_per_million: 0.6}]\n";

fn nimgate_command(
    target: Target,
    directory: &Path,
    addresses: [SocketAddr; 3],
    redis: Option<SocketAddr>,
    key: &NewKey,
) -> Result<Command> {
    let [listen, admin, upstream] = addresses;
    let name = target.name();
    let is_logged = target == Target::Nimgate || target.has_limits();
    let log = if is_logged { format!("{{file: {}}}", access_log(target)) } else { "\"off\"".to_owned() };
    // Patient: a busy machine is not an outage.
    let redis = redis.map_or_else(String::new, |at| format!("redis: {{addresses: [\"{at}\"], timeout_ms: 500}}\n"));
    let prices = if target.has_limits() { PRICES } else { "" };
    let telemetry = match target.share() {
        None => format!("telemetry: {{metrics: {{enabled: {}}}}}\n", target != Target::NimgateUncounted),
        Some(share) => format!(
            "telemetry: {{otlp: {{endpoint: \"{collector}\", logs: false, queue: 100000, queue_mib: 256, batch: 4096, delay_ms: 200}}, \
             traces: {{sample: {share}}}}}\n",
            collector = target.collector(upstream),
        ),
    };
    let validation = if target == Target::NimgatePlain { "off" } else { "lenient" };
    let (chat, embedding) = (bodies::CHAT_MODEL, bodies::EMBEDDING_MODEL);
    let config = format!(
        "listeners: [{{address: \"{listen}\"}}]\n\
         admin: {{address: \"{admin}\"}}\n\
         callers: {{keys_file: {name}-keys.yaml}}\n\
         {redis}{prices}{telemetry}\
         access_log: {{target: {log}}}\n\
         runtime: {{threads: {THREADS}}}\n\
         pools:\n  \
         - name: chat\n    \
           api: nim-llm\n    \
           models: [{{id: {chat}}}]\n    \
           endpoints: [{{url: \"http://{upstream}\"}}]\n    \
           validation: \"{validation}\"\n    \
           health: {{interval_ms: 5000}}\n  \
         - name: embed\n    \
           api: nim-embedding\n    \
           models: [{{id: {embedding}}}]\n    \
           endpoints: [{{url: \"http://{upstream}\"}}]\n    \
           validation: \"{validation}\"\n    \
           health: {{interval_ms: 5000}}\n"
    );
    let mut keys = String::new();
    let mut limits = String::new();
    if target.has_limits() {
        keys = format!(
            "orgs:\n  - {{name: default, limits: {LIMITS}}}\n\
             teams:\n  - {{org: default, name: default, limits: {LIMITS}}}\n"
        );
        limits = format!("    limits: {LIMITS}\n");
    }
    keys += &format!("keys:\n  - id: \"{}\"\n    sha256: {}\n    name: bench\n{limits}", key.id, key.hash_text());
    fs::write(directory.join(format!("{name}-keys.yaml")), keys)?;
    let file = directory.join(format!("{name}.yaml"));
    fs::write(&file, config)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_nimgate"));
    command.args(["serve", "--config"]).arg(file);
    Ok(command)
}
