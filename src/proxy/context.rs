//! What a request carries from phase to phase.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_error::{Error, ErrorType, Result};
use serde_json::Value;

use super::admit::Source;
use super::asset::Assets;
use super::course::Course;
use super::course::again::Refusal;
use super::exchange;
use super::grpc::Call;
use super::held::Progress;
use super::settings::PoolSettings;
use super::snapshot::Snapshot;
use crate::balance::Lease;
use crate::balance::affinity::Chain;
use crate::cache::Awaited;
use crate::catalogue::{Errors, Format, Operation};
use crate::failure::Failure;
use crate::ids::{OperationIndex, PoolIndex, RequestId};
use crate::meter::Meter;
use crate::owner::Owners;
use crate::quota::{Limiter, Reservation, Standing};
use crate::record::Trail;
use crate::route::Life;
use crate::telemetry::Pieces;
use crate::trace::Kind;
use crate::transcript::Transcript;
use crate::upstream::EnvelopeId;

/// Limits that are asked for longer than this asked somebody else.
const SHORTEST_TRIP: Duration = Duration::from_micros(100);

/// One request's state. Set once where it can be; the phases read it.
pub struct RequestContext {
    /// When its header had arrived.
    pub started: Instant,
    /// The configuration that it runs under, whatever is loaded meanwhile.
    pub snapshot: Arc<Snapshot>,
    /// Its id.
    pub request_id: RequestId,
    /// The dialect in which its failure would be worded.
    pub errors: Errors,
    /// Facts for the record.
    pub trail: Trail,
    /// All that later phases need, once it is admitted.
    pub admitted: Option<Admitted>,
    /// Counts and limits.
    pub limiter: Arc<Limiter>,
    /// What its caller's limits have given it.
    pub reservation: Option<Reservation>,
    /// How the limits stood when one refused it.
    pub standings: Vec<Standing>,
    /// Reads the usage in its answer.
    pub meter: Option<Meter>,
    /// What it asks, where its trace is to tell that.
    pub transcript: Option<Box<Transcript>>,
    /// Usage was asked for on the caller's behalf.
    pub withhold_usage: bool,
    /// Further words for its caller, should it ask too much.
    pub words: Option<Arc<str>>,
    /// Time that its caller allows it, from its header on.
    pub timeout: Option<Duration>,
    /// It is a call of gRPC.
    pub grpc: Option<Call>,
    /// Where it runs.
    pub course: Course,
    /// The endpoint that works on it.
    pub lease: Option<Lease>,
    /// Units of work that it is expected to be.
    pub work: f64,
    /// The beginnings of its conversation.
    pub chain: Option<Chain>,
    /// For how long the backend asked to be left alone.
    pub pause: Option<Duration>,
    /// How the last attempt failed, where no other follows.
    pub lost: Option<Failure>,
    /// Endpoints that could not be reached, by name.
    pub unreached: Vec<String>,
    /// How a call that NVCF holds goes.
    pub progress: Option<Arc<Progress>>,
    /// The exchange in place of the client's session.
    pub exchange: Option<exchange::Handle>,
    /// Body bytes that streamed through.
    pub streamed: usize,
    /// The answer is an event stream, so that its failure can be told in an event.
    pub event_stream: bool,
    /// An event stream was begun here, with comments, before any backend answered.
    pub is_opened: bool,
    /// Something of a backend's answer was passed on.
    pub is_begun: bool,
    /// What refused it, while that may turn out to be a reason to wait.
    pub refusal: Option<Refusal>,
    /// Others who wait for what it asks.
    pub awaited: Awaited,
    /// What of its body was uploaded.
    pub assets: Option<Assets>,
    /// Whose the requests of NVCF are that may be polled.
    pub owners: Arc<Owners>,
    /// It polls a request that nobody made through this gateway.
    pub is_stranger: bool,
    /// How long the far side may hold it before its answer begins.
    pub hold: Option<Duration>,
    /// Reads the name of a request in its answer.
    pub envelope: Option<EnvelopeId>,
    /// Counts the pieces of its streamed answer.
    pub pieces: Option<Pieces>,
    /// Tokens of its answer that no backend computed for it.
    pub known: u64,
    /// Whether no backend was asked for any of it.
    pub is_known: bool,
}

/// What the request was admitted to.
pub struct Admitted {
    /// Where it goes.
    pub pool: PoolIndex,
    /// What it asks for.
    pub operation: OperationIndex,
    /// How many bytes of its path are a pool prefix.
    pub prefix: usize,
    /// Length of the body to send; unknown while it streams.
    pub length: Option<usize>,
    /// Largest body that may stream through.
    pub limit: usize,
    /// What its body was made of; kept where it may go to another pool.
    pub source: Option<Source>,
    /// The model, as its pool has it.
    pub life: Option<Life>,
}

impl Admitted {
    /// The same for a copy that goes to another pool.
    pub fn for_copy(&self, pool: PoolIndex, length: usize) -> Self {
        let Self { operation, prefix, limit, .. } = *self;
        Self { pool, operation, prefix, length: Some(length), limit, source: None, life: None }
    }
}

impl RequestContext {
    /// A request that has just arrived.
    pub fn new(snapshot: Arc<Snapshot>, limiter: Arc<Limiter>, owners: Arc<Owners>) -> Self {
        Self {
            started: Instant::now(),
            snapshot,
            request_id: RequestId::random(),
            errors: Errors { format: Format::OpenAi, violation_status: 400 },
            trail: Trail::default(),
            admitted: None,
            limiter,
            reservation: None,
            standings: Vec::new(),
            meter: None,
            transcript: None,
            withhold_usage: false,
            words: None,
            timeout: None,
            grpc: None,
            course: Course::default(),
            lease: None,
            work: 1.0,
            chain: None,
            pause: None,
            lost: None,
            unreached: Vec::new(),
            progress: None,
            exchange: None,
            streamed: 0,
            event_stream: false,
            is_opened: false,
            is_begun: false,
            refusal: None,
            awaited: Awaited::default(),
            assets: None,
            owners,
            is_stranger: false,
            hold: None,
            envelope: None,
            pieces: None,
            known: 0,
            is_known: false,
        }
    }

    /// What it was admitted to; phases after admission can not be without.
    pub fn admitted(&self) -> Result<&Admitted> {
        self.admitted.as_ref().ok_or_else(|| Error::explain(ErrorType::InternalError, "not admitted"))
    }

    /// It calls this.
    pub fn calls(&mut self, operation: &Operation) {
        self.trail.api = Some(operation.api.clone());
        self.trail.operation = Some(Arc::clone(&operation.id));
        self.trail.gen_ai.clone_from(&operation.gen_ai);
    }

    /// Its body is here, so many bytes of it.
    pub fn received(&mut self, bytes: usize) {
        self.trail.request_bytes = bytes;
        self.trail.received = Some(self.started.elapsed());
    }

    /// Checks it against a schema; that takes a step of its own where it takes long.
    pub fn validate(&mut self, check: impl FnOnce()) {
        let begun = Instant::now();
        check();
        let longest = self.snapshot.sampling.validation;
        if let Some(trace) = self.trail.trace.as_mut().filter(|_| begun.elapsed() >= longest) {
            trace.note(Kind::Validation, begun);
        }
    }

    /// Limits were asked since then; that is a step where somebody else was asked.
    pub fn was_charged(&mut self, begun: Instant) {
        if let Some(trace) = self.trail.trace.as_mut().filter(|_| begun.elapsed() >= SHORTEST_TRIP) {
            trace.note(Kind::Quota, begun);
        }
    }

    /// An attempt at an endpoint of its pool begins.
    pub fn attempt(&mut self, endpoint: &str) {
        let trail = &mut self.trail;
        trail.attempts += 1;
        if trail.attempts == 1 {
            let others = trail.queued.unwrap_or_default() + trail.received.unwrap_or_default();
            trail.overhead = Some(self.started.elapsed().saturating_sub(others));
        }
        if let (Some(trace), Some(pool)) = (&mut trail.trace, &trail.pool) {
            trace.leave(Kind::Cache);
            trace.attempt(pool.as_str(), endpoint);
        }
    }

    /// Keeps what its body asks, where its pool wants that told and somebody may be told of its trace.
    pub fn transcribe(&mut self, pool: &PoolSettings, body: &Value) {
        let sampling = &self.snapshot.sampling;
        let may_be_told = self.trail.trace.as_ref().is_some_and(|trace| trace.may_be_kept(sampling));
        if let (Some(policy), true) = (&pool.transcripts, may_be_told) {
            self.transcript = Transcript::of(policy, body).map(Box::new);
        }
    }

    /// It goes to another pool, which has a say in what is told of it.
    pub fn moved_to(&mut self, pool: &PoolSettings) {
        self.trail.pool = Some(pool.name.clone());
        self.transcript = self.transcript.take().zip(pool.transcripts.as_ref()).map(|(mut transcript, policy)| {
            transcript.also(policy);
            transcript
        });
    }

    /// Notes the failure that ends it; the first one counts.
    pub fn fail(&mut self, failure: Failure) {
        self.trail.failure.get_or_insert(failure);
    }
}

impl RequestContext {
    /// Event streams are OpenAI's whatever the API: their readers look for an `error` object in `data`.
    pub fn errors_for_stream(&self) -> Errors {
        Errors { format: Format::OpenAi, violation_status: self.errors.violation_status }
    }
}
