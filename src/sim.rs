//! Simulators of the backends: NIM containers, NVIDIA Cloud Functions and the Curator API.
//!
//! They speak the wire formats of the public references and can be told to fail in any way those references describe
//! (see [`Simulator::fault`] and the header `x-sim-fault`). `nimgate demo` and the tests start them in process.
//! They know nothing of the gateway.
//!
//! Request headers that steer a single request:
//!
//! | Header | Effect |
//! |---|---|
//! | `x-sim-fault: kind[=value],…` | `status=N`, `body-a` to `body-h`, `body-html`, `delay=MS`, `hang`, `cut`, `cut-after=N`, `stall-after=N`, `error-event=N`, `empty`, `truncated-json`, `not-ready`, `unready-once`, `null-id`, `degraded`, `rate-limit`, `inference-service`, `inference-connection`, `worker` |
//! | `x-sim-gate: NAME` | event k of a stream waits until the gate was opened k times |
//! | `x-sim-gate-headers: NAME` | the headers wait until the gate was opened, an unstreamed answer keeping its slot |
//! | `x-sim-gate-work: NAME` | the work of a slow function ends when the gate was opened |
//! | `x-sim-work-ms: N` | how long that work takes instead of [`Settings::work`] |
//! | `x-sim-answer-bytes: N` | length of `b64_video` from world models and the large function |
//! | `x-sim-container-status: N` | status of the failing function's container |
//!
//! Besides, `POST /_sim/fault {"fault":"…","path":"/v1/…","times":N}` puts a fault in force, `POST /_sim/gate/NAME[?times=N]`
//! opens a gate, and `GET /_sim/seen` tells what was seen. Of NIM containers, `POST /_sim/speed {"factor":0.1}` changes the
//! speed, `POST /_sim/signal {"waiting":N}` or `{"frozen":true}` makes the metrics page lie or stand still until `{}`, and
//! `GET /_sim/usage` and `GET /_sim/runs` tell what the engine did and how often it ran each `x-request-id`.
//!
//! Out of the box every slot has the same pace. [`Settings::batching`] makes a language model an engine that batches
//! continuously, and [`Settings::item_time`] makes the time of embeddings and rankings follow from their items.

mod batch;
mod body;
mod chat;
mod completion;
mod control;
mod cosmos;
mod curator;
mod embedding;
mod engine;
mod fault;
mod front;
mod gate;
mod grpc;
mod kv;
mod management;
mod metrics;
mod nim;
mod nvcf;
mod nvcf_api;
mod nvcf_function;
mod nvcf_job;
mod nvcf_worker;
mod nvct;
mod ranking;
mod reply;
mod seen;
mod sse;
mod store;
mod text;
mod zip;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

pub use batch::Batching;
use fault::Faults;
use front::Front;
pub use grpc::{GrpcConnection, GrpcSeen, GrpcSimulator, start_grpc};
pub use nvcf_function::{
    DEGRADED_FUNCTION, ECHO_FUNCTION, FAILING_FUNCTION, LARGE_FUNCTION, LLM_FUNCTION, PROGRESS_FUNCTION,
    QUEUED_FUNCTION, QUEUED_REQUEST, SLOW_FUNCTION, UNREACHABLE_FUNCTION, version_of,
};
pub use seen::{Seen, Sighting};

/// Which backend to imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NIM for LLMs.
    Llm,
    /// NIM for VLMs, Cosmos Reason1.
    Vlm,
    /// NeMo Retriever text embedding.
    Embedding,
    /// NeMo Retriever reranking.
    Reranking,
    /// Cosmos Predict1 world model.
    CosmosPredict,
    /// Cosmos Embed1.
    CosmosEmbed1,
    /// NVIDIA Cloud Functions: direct invocation, pexec, exec and management.
    Nvcf,
    /// NeMo Curator on DGX Cloud, with its object store.
    Curator,
}

/// Which names the LLM and VLM metrics page uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricNames {
    /// `num_requests_waiting` and so on, without prefix.
    #[default]
    Nim1,
    /// `vllm:num_requests_waiting` and so on, as vLLM and NIM 2.x.
    Vllm,
}

/// What a metrics page says of its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signal {
    /// The truth.
    #[default]
    True,
    /// The truth, save that so many requests wait.
    Waiting(u64),
    /// Always what it said when this came into force.
    Frozen,
}

/// What an engine did so far, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests in slots.
    pub running: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Prompt tokens of finished answers.
    pub prompt_tokens: u64,
    /// Tokens of finished answers.
    pub generated_tokens: u64,
    /// Prompt tokens that were looked for in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens that were found there.
    pub prefix_hits: u64,
    /// Time that slots were taken, all added up.
    pub slot_time: Duration,
}

/// How LLM and VLM containers word their errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `{"object":"error","message":…}` of NIM 1.x.
    #[default]
    Flat,
    /// `{"error":{"message":…}}` of NIM 2.x.
    Nested,
}

/// What a simulator is told at its start; the default suits a quick demo.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes any free port.
    pub listen: SocketAddr,
    /// Served model names; empty means the family's usual ones.
    pub models: Vec<String>,
    /// Requests computed at once; further ones wait in an unbounded queue, as vLLM's do.
    pub slots: usize,
    /// Time from taking a slot to the first output, and the whole time of an embedding or ranking.
    pub time_to_first_token: Duration,
    /// Time between two tokens, or between two steps of a world model.
    pub token_interval: Duration,
    /// Makes an LLM or VLM batch continuously, in place of the two times above.
    pub batching: Option<Batching>,
    /// Time for each item of an embedding or ranking, in place of one time for all.
    pub item_time: Option<Duration>,
    /// How long slow cloud functions and dataset processing take.
    pub work: Duration,
    /// Generation of the metric names.
    pub metrics: MetricNames,
    /// Generation of the error bodies.
    pub errors: ErrorStyle,
    /// A fault in force from the start, in the syntax of `x-sim-fault`.
    pub default_fault: Option<String>,
    /// The only accepted bearer token. Without it NIMs ask for none, while NVCF and Curator take any.
    pub api_key: Option<String>,
    /// Invocations of cloud functions that pass in a second; refused ones count as well.
    pub rate: Option<usize>,
    /// Length of `b64_video` in characters, unless the header `x-sim-answer-bytes` says otherwise.
    pub answer_bytes: u64,
    /// Whether world models take `http` URLs as media (`NIM_ALLOW_URL_INPUT`).
    pub allow_url_input: bool,
    /// A file to which the `x-request-id` of each run is appended, a line each, as the run begins: it outlives a
    /// process that is killed.
    pub run_log: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            models: Vec::new(),
            slots: 8,
            time_to_first_token: Duration::from_millis(20),
            token_interval: Duration::from_millis(5),
            batching: None,
            item_time: None,
            work: Duration::from_secs(3),
            metrics: MetricNames::default(),
            errors: ErrorStyle::default(),
            default_fault: None,
            api_key: None,
            rate: None,
            answer_bytes: 256 * 1024,
            allow_url_input: true,
            run_log: None,
        }
    }
}

/// A running simulator; dropping it stops it and closes its connections.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    front: Arc<Front>,
    acceptor: AbortHandle,
}

/// Starts one simulator and returns once it listens.
///
/// # Errors
/// When the address cannot be bound, `run_log` not be opened or `default_fault` not be read.
pub async fn start(kind: Kind, settings: Settings) -> io::Result<Simulator> {
    let faults = match &settings.default_fault {
        Some(text) => text.parse().map_err(|reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason))?,
        None => Faults::default(),
    };
    let listener = TcpListener::bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let log = settings.run_log.as_ref().map(|path| File::options().create(true).append(true).open(path)).transpose()?;
    let front = Arc::new(Front::new(kind, settings, base_url(address), faults, log));
    let acceptor = tokio::spawn(accept(listener, Arc::clone(&front))).abort_handle();
    Ok(Simulator { address, front, acceptor })
}

impl Simulator {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> String {
        base_url(self.address)
    }

    /// What it saw so far.
    pub fn seen(&self) -> &Seen {
        &self.front.seen
    }

    /// Stops listening and drops every connection, as a killed process would.
    pub fn kill(&self) {
        self.front.seen.close();
        self.acceptor.abort();
    }

    /// Puts a fault in force for every later request, until the next call; an empty text clears it.
    ///
    /// # Errors
    /// When the text names no known fault.
    pub fn fault(&self, text: &str) -> Result<(), String> {
        self.front.board.set(text.parse()?, None, None);
        Ok(())
    }

    /// As [`Simulator::fault`], but only for so many requests, and only below a path if one is given.
    ///
    /// # Errors
    /// When the text names no known fault.
    pub fn fault_times(&self, text: &str, times: u64, path: Option<&str>) -> Result<(), String> {
        self.front.board.set(text.parse()?, path.map(str::to_owned), Some(times));
        Ok(())
    }

    /// Multiplies all rates of a NIM by a factor, 0.001 to 1000, from now on; the factor is on its first speed.
    ///
    /// # Errors
    /// When the factor is out of range or the backend has no engine.
    pub fn speed(&self, factor: f64) -> Result<(), String> {
        self.front.set_speed(factor)
    }

    /// Makes the metrics page of a NIM lie, stand still, or tell the truth again.
    ///
    /// # Errors
    /// When the backend has no engine.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        self.front.set_signal(signal)
    }

    /// What the engine of a NIM did; nothing for other backends.
    pub fn usage(&self) -> Usage {
        self.front.nim.as_ref().map_or_else(Usage::default, |nim| nim.engine.usage())
    }

    /// Has a NIM serve another revision of its model from now on.
    pub fn revise(&self, revision: &str) {
        if let Some(nim) = &self.front.nim {
            *nim.revision.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = revision.to_owned();
        }
    }

    /// Opens a gate once more, as `POST /_sim/gate/NAME` does.
    pub fn open_gate(&self, name: &str) {
        self.front.gates.open(name, 1);
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The connections live in this task's set, so aborting it aborts them all.
async fn accept(listener: TcpListener, front: Arc<Front>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    front.seen.connected();
                    connections.spawn(serve(stream, Arc::clone(&front)));
                }
                Err(error) => {
                    tracing::debug!(%error, "a simulator could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, front: Arc<Front>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a simulator could not set TCP_NODELAY");
    }
    let service = service_fn(move |request| Arc::clone(&front).answer(request));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a simulator's connection ended early");
    }
}

fn base_url(address: SocketAddr) -> String {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

/// Nothing here can leave a value half changed, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random version 4 UUID.
fn uuid() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whether a text has the form of a UUID.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests;
