//! The table of failures: what was seen on the wire, and what it means. Its order is its priority: the first row that
//! fits counts. `docs/failures.md` is made from it, and each row has a case in `tests/gateway/blame.rs`.
//!
//! Sources are those of NVCF's open code and documents: IS is its invocation service, WK its worker, VG its vanity
//! gateway, GP its gRPC proxy, LG its gateway for LLM functions, RL its limiter, CP and NB its management, API-L its older
//! API page; VL is vLLM, L1 NIM LLM 1.x, EM text embedding, C3 Cosmos3, TR Triton, SG SGLang, DY Dynamo, LD llm-d; obs was
//! seen in the open.

use super::body::Shape;
use super::fault::Blame::{Gateway, InferenceService, Network, Platform};
use super::fault::{Blame, Fault};

/// How much of a request ran before its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ran {
    /// Nothing: the backend refused it, or never had all of it.
    No,
    /// Nobody knows.
    Maybe,
    /// It was at work already.
    Yes,
}

/// Whether it is of use to send it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No: it would fail alike.
    Never,
    /// Yes, after a while.
    Later,
    /// Yes, at once at another endpoint or in another pool.
    Elsewhere,
}

/// What the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The backend's status and body, unless the body is empty or a page.
    Passed,
    /// The backend's status and our words.
    Worded,
    /// This status and our words.
    Own(u16),
}

/// What is no answer, or none that shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table has the words of each")]
pub enum Event {
    Unresolved,
    ConnectRefused,
    ConnectTimeout,
    ConnectFailed,
    TlsFailed,
    RequestCut,
    StreamRefused,
    ClosedBeforeHeader,
    ClosedWithin,
    ResetBeforeHeader,
    ResetWithin,
    Protocol,
    FirstByteTimeout,
    Stalled,
    TotalTimeout,
    StreamUnfinished,
    AnswerIncomplete,
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Names it, for tests.
    pub name: &'static str,
    /// The kinds of backend that it is for.
    pub(super) kinds: u8,
    pub(super) seen: Seen,
    /// Any of these shapes.
    pub(super) shapes: u16,
    /// Stands in the `type` of a problem.
    pub(super) urn: &'static str,
    pub(super) words: Says,
    /// A header, and what it is to be; anything where that is empty.
    pub(super) header: Option<(&'static str, &'static str)>,
    /// `nvcf-reqid`: the platform gave it to a worker.
    pub(super) dispatched: Option<bool>,
    /// The label.
    pub fault: Fault,
    /// Whose it is.
    pub blame: Blame,
    /// How much of the request ran.
    pub ran: Ran,
    /// Whether it is of use to send it again.
    pub again: Again,
    /// What the caller gets.
    pub answer: Answer,
    /// Whether our words tell what the backend said.
    pub quotes: bool,
    /// Seconds for `Retry-After`, where the backend states none.
    pub retry_after: Option<u32>,
    /// Where it is known from.
    pub source: &'static str,
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen {
    Status(&'static [u16]),
    /// From and to.
    Within(u16, u16),
    /// A gRPC status in the header of a 200; any but 0 where there are none.
    Grpc(&'static [&'static str]),
    Event(Event),
}

/// What the words of a body are to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Says {
    Anything,
    Nothing,
    Starts(&'static str),
    Has(&'static str),
}

pub(super) const NIM: u8 = 1;
pub(super) const DIRECT: u8 = 2;
pub(super) const PEXEC: u8 = 4;
pub(super) const NATIVE: u8 = 8;
pub(super) const NGC: u8 = 16;
const NVCF: u8 = DIRECT | PEXEC | NATIVE;
const PLATFORM: u8 = NVCF | NGC;
/// Where a container's own answer may come from.
const BEHIND: u8 = NIM | NVCF;
const ANY: u8 = NIM | PLATFORM;

/// The shapes that only containers use.
const CONTAINER: &[Shape] =
    &[Shape::ErrorObject, Shape::ObjectError, Shape::DetailList, Shape::DetailText, Shape::ErrorText];
const PROBLEM: &[Shape] = &[Shape::Problem, Shape::BareProblem];
const BARE: &[Shape] = &[Shape::BareProblem];
const OBJECT: &[Shape] = &[Shape::ErrorObject];
const NIM1: &[Shape] = &[Shape::ObjectError];
const TRITON: &[Shape] = &[Shape::ErrorText];
const TEXT: &[Shape] = &[Shape::Text];
/// The shapes that nobody in particular uses.
const STRANGE: &[Shape] = &[Shape::Empty, Shape::Html, Shape::Text, Shape::Message, Shape::Other];
const NO_WORDS: &[Shape] = &[Shape::Empty, Shape::Html, Shape::Text];

/// Who says that a container's answer is one.
const SERVICE: &str = "urn:inference-service";

const fn on(name: &'static str, kinds: u8, statuses: &'static [u16]) -> Row {
    row(name, kinds, Seen::Status(statuses))
}

const fn within(name: &'static str, kinds: u8, from: u16, to: u16) -> Row {
    row(name, kinds, Seen::Within(from, to))
}

const fn grpc(name: &'static str, kinds: u8, statuses: &'static [&'static str]) -> Row {
    row(name, kinds, Seen::Grpc(statuses))
}

const fn event(name: &'static str, event: Event) -> Row {
    row(name, ANY, Seen::Event(event))
}

const fn row(name: &'static str, kinds: u8, seen: Seen) -> Row {
    Row {
        name,
        kinds,
        seen,
        shapes: u16::MAX,
        urn: "",
        words: Says::Anything,
        header: None,
        dispatched: None,
        fault: Fault::PlatformError,
        blame: Platform,
        ran: Ran::No,
        again: Again::Never,
        answer: Answer::Passed,
        quotes: false,
        retry_after: None,
        source: "",
    }
}

impl Row {
    const fn kinds(mut self, kinds: u8) -> Self {
        self.kinds = kinds;
        self
    }

    const fn shape(mut self, shapes: &[Shape]) -> Self {
        self.shapes = 0;
        let mut at = 0;
        while at < shapes.len() {
            self.shapes |= shapes[at] as u16;
            at += 1;
        }
        self
    }

    const fn urn(mut self, urn: &'static str) -> Self {
        self.urn = urn;
        self
    }

    const fn starts(mut self, words: &'static str) -> Self {
        self.words = Says::Starts(words);
        self
    }

    const fn has(mut self, words: &'static str) -> Self {
        self.words = Says::Has(words);
        self
    }

    const fn silent(mut self) -> Self {
        self.words = Says::Nothing;
        self
    }

    const fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    const fn dispatched(mut self, is: bool) -> Self {
        self.dispatched = Some(is);
        self
    }

    const fn is(mut self, fault: Fault, blame: Blame) -> Self {
        self.fault = fault;
        self.blame = blame;
        self
    }

    const fn ran(mut self, ran: Ran, again: Again) -> Self {
        self.ran = ran;
        self.again = again;
        self
    }

    const fn worded(mut self) -> Self {
        self.answer = Answer::Worded;
        self
    }

    const fn own(mut self, status: u16) -> Self {
        self.answer = Answer::Own(status);
        self
    }

    const fn quoted(mut self) -> Self {
        self.quotes = true;
        self
    }

    const fn after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    const fn from(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }
}

use Again::{Elsewhere, Later, Never};
use Ran::{Maybe, No, Yes};

/// All rows. One line each, so that they can be read as a table.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    // The container's own answer, in the words of NVCF's worker.
    on("service-busy", ANY, &[429, 503, 529]).urn(SERVICE).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(5).from("WK, API-L"),
    on("service-validation", ANY, &[400, 422]).urn(SERVICE).starts("[{").is(Fault::InferenceRejected, InferenceService).from("obs"),
    on("service-unauthorized", ANY, &[401]).urn(SERVICE).is(Fault::InferenceUnauthorized, InferenceService).own(502).from("WK"),
    within("service-rejected", ANY, 400, 499).urn(SERVICE).is(Fault::InferenceRejected, InferenceService).from("WK, API-L, obs"),
    within("service-error", ANY, 500, 599).urn(SERVICE).is(Fault::InferenceError, InferenceService).ran(Maybe, Elsewhere).from("WK, API-L"),
    on("connection", ANY, &[500, 502, 504]).urn("urn:inference-connection").is(Fault::InferenceUnreachable, Platform).ran(Maybe, Elsewhere).from("WK, obs"),
    on("worker", ANY, &[500, 502, 504]).urn("urn:nvcf-worker-service").is(Fault::WorkerError, Platform).ran(Maybe, Elsewhere).from("WK, obs"),

    // What NVCF says in words, whoever of it says them.
    on("degraded", PLATFORM, &[400]).has("DEGRADED function").is(Fault::FunctionDegraded, Platform).ran(No, Elsewhere).own(503).after(60).from("CP, obs"),
    on("poll-seconds", PLATFORM, &[400]).has("failed to parse poll duration").is(Fault::PlatformRejected, Platform).worded().quoted().from("IS"),
    on("vanity-too-large", ANY, &[400]).shape(OBJECT).starts("Please make sure your payload is below").is(Fault::PlatformRejected, Platform).from("VG, obs"),
    on("vanity-model-missing", PLATFORM, &[400]).shape(OBJECT).starts("model field is required").is(Fault::PlatformRejected, Platform).from("VG"),
    on("vanity-malformed-json", PLATFORM, &[500]).shape(TEXT).starts("failed to decode json body").is(Fault::PlatformRejected, Platform).own(400).from("VG"),
    on("key-missing", PLATFORM, &[401]).has("authorization` was missing").is(Fault::PlatformUnauthorized, Platform).own(502).from("IS"),
    on("key-unauthorized", PLATFORM, &[401]).has("Unauthorized access").is(Fault::PlatformUnauthorized, Platform).own(502).from("IS"),
    on("key-scheme", PLATFORM, &[500]).has("Missing request extension").is(Fault::PlatformUnauthorized, Platform).own(502).from("IS"),
    on("key-wrong", PLATFORM, &[403]).has("Authorization failed").is(Fault::PlatformUnauthorized, Platform).own(502).from("obs"),
    on("key-lacks-function", PLATFORM, &[403]).has("Missing resource entry in ApiKey").is(Fault::PlatformForbidden, Platform).own(502).from("CP"),
    on("function-not-shared", PLATFORM, &[403]).has("Not shared with the account").is(Fault::PlatformForbidden, Platform).own(502).from("CP"),
    on("credits", PLATFORM, &[402]).has("Cloud credits expired").is(Fault::CreditsExpired, Platform).ran(No, Elsewhere).own(503).from("CP, IS"),
    on("function-not-found", PLATFORM, &[404]).has("Not found for account").is(Fault::FunctionNotFound, Platform).own(502).from("CP, obs"),
    on("function-not-active", PLATFORM, &[404]).has("Specified function in account").is(Fault::FunctionUnavailable, Platform).ran(No, Later).own(503).from("CP"),
    on("vanity-path", PLATFORM, &[404]).shape(TEXT).starts("404 page not found").is(Fault::FunctionNotFound, Platform).own(502).from("VG, obs"),
    on("asset-not-found", PLATFORM, &[404]).has("failed to find asset").is(Fault::PlatformRejected, Platform).worded().quoted().from("IS"),
    on("queue-full", PLATFORM, &[429]).starts("Jetstream error").is(Fault::PlatformQueueFull, Platform).ran(No, Elsewhere).own(503).after(5).from("IS"),
    on("job-gone", PLATFORM, &[504]).has("worker did not acknowledge").is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).worded().from("IS, obs"),
    on("no-worker", PLATFORM, &[504]).has("failed to establish link to worker").is(Fault::PlatformTimeout, Platform).ran(No, Elsewhere).worded().from("GP, API-L"),
    on("proxy-rate", PLATFORM, &[429]).shape(TEXT).has("exceeded rate limit").is(Fault::PlatformRateLimited, Platform).ran(No, Elsewhere).worded().after(60).from("GP"),
    on("llm-rate", PLATFORM, &[429]).shape(&[Shape::Message]).has("rate limit exceeded").is(Fault::PlatformRateLimited, Platform).ran(No, Elsewhere).worded().after(60).from("LG"),

    // The front door: integrate, ai and health hosts.
    on("retired", ANY, &[410]).urn("about:blank").is(Fault::ModelRetired, Platform).worded().quoted().from("VG, obs"),
    on("suspended", ANY, &[503]).urn("about:blank").header("retry-after", "").is(Fault::ModelSuspended, Platform).ran(No, Later).worded().quoted().from("VG"),
    on("vanity-unavailable", ANY, &[503]).urn("about:blank").is(Fault::PlatformError, Platform).ran(No, Elsewhere).worded().from("VG"),
    on("vanity-transport", ANY, &[502]).urn("about:blank").is(Fault::PlatformError, Platform).ran(Maybe, Elsewhere).worded().from("VG"),
    on("shared-pool-full", ANY, &[503]).shape(OBJECT).starts("ResourceExhausted: Worker local total request limit reached").is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(5).from("obs"),

    // Management: NVCF's and NGC's.
    on("boot-bad-request", PLATFORM, &[400]).urn("urn:nv-boot").is(Fault::PlatformRejected, Platform).from("NB"),
    on("boot-unauthorized", PLATFORM, &[401]).urn("urn:nv-boot").is(Fault::PlatformUnauthorized, Platform).own(502).from("NB"),
    on("boot-payment-required", PLATFORM, &[402]).urn("urn:nv-boot").is(Fault::CreditsExpired, Platform).ran(No, Elsewhere).own(503).from("NB"),
    on("boot-forbidden", PLATFORM, &[403]).urn("urn:nv-boot").is(Fault::PlatformForbidden, Platform).own(502).from("NB"),
    on("boot-not-found", PLATFORM, &[404]).urn("urn:nv-boot").is(Fault::PlatformRejected, Platform).from("NB"),
    on("boot-conflict", PLATFORM, &[409]).urn("urn:nv-boot").is(Fault::PlatformRejected, Platform).from("NB"),
    on("boot-unprocessable", PLATFORM, &[422]).urn("urn:nv-boot").is(Fault::PlatformRejected, Platform).from("NB"),
    on("boot-too-many-requests", PLATFORM, &[429]).urn("urn:nv-boot").is(Fault::PlatformRateLimited, Platform).ran(No, Elsewhere).after(60).from("NB"),
    on("boot-unavailable", PLATFORM, &[503]).urn("urn:nv-boot").is(Fault::PlatformError, Platform).ran(No, Elsewhere).from("derived"),
    on("boot-late", PLATFORM, &[504]).urn("urn:nv-boot").is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).from("derived"),
    within("boot-upstream", PLATFORM, 500, 599).urn("urn:nv-boot").is(Fault::PlatformError, Platform).ran(Maybe, Elsewhere).from("NB"),
    on("kaizen-forbidden", PLATFORM, &[401, 403]).urn("urn:kaizen").is(Fault::PlatformForbidden, Platform).own(502).from("obs"),
    on("kaizen-not-found", PLATFORM, &[404]).urn("urn:kaizen").is(Fault::PlatformRejected, Platform).from("obs"),

    // gRPC, whose HTTP status is 200.
    grpc("grpc-no-worker", NVCF, &["4"]).has("failed to establish link to worker").is(Fault::PlatformTimeout, Platform).ran(No, Elsewhere).from("GP"),
    grpc("grpc-session-gone", NVCF, &["5"]).has("no existing session found").is(Fault::SessionLost, Platform).from("GP, U-TS"),
    grpc("grpc-rate", NVCF, &["8"]).has("exceeded rate limit").is(Fault::PlatformRateLimited, Platform).ran(No, Later).after(60).from("GP"),
    grpc("grpc-unauthenticated", NVCF, &["16"]).is(Fault::PlatformUnauthorized, Platform).from("GP"),
    grpc("grpc-no-function", NVCF, &["3"]).dispatched(false).has("function-id").is(Fault::PlatformRejected, Platform).from("GP"),
    grpc("grpc-unavailable", NVCF, &["14"]).dispatched(false).is(Fault::PlatformError, Platform).ran(Maybe, Later).from("GP"),
    grpc("grpc-busy", BEHIND, &["8", "14"]).is(Fault::InferenceOverloaded, InferenceService).ran(No, Later).from("TR, derived"),
    grpc("grpc-rejected", BEHIND, &["1", "3", "4", "5", "6", "7", "9", "10", "11", "12", "16"]).is(Fault::InferenceRejected, InferenceService).from("TR, derived"),
    grpc("grpc-error", BEHIND, &[]).is(Fault::InferenceError, InferenceService).ran(Maybe, Later).from("TR, derived"),

    // Containers, whatever stands between.
    on("redirect", NIM | DIRECT, &[301, 302, 303, 307, 308]).is(Fault::UpstreamRedirect, Network).own(502).from("derived"),
    on("hosted-credits", PLATFORM, &[402]).shape(&[Shape::DetailText]).is(Fault::CreditsExpired, Platform).ran(No, Elsewhere).own(503).from("KS"),
    on("model-unknown", BEHIND, &[404]).shape(&[Shape::ErrorObject, Shape::ObjectError]).has("does not exist").is(Fault::ModelUnknown, InferenceService).from("VL, L1"),
    on("triton-model-unknown", BEHIND, &[400, 404]).shape(TRITON).starts("Request for unknown model").is(Fault::ModelUnknown, InferenceService).from("TR"),
    on("container-unauthorized", BEHIND, &[401]).shape(CONTAINER).is(Fault::InferenceUnauthorized, InferenceService).own(502).from("VL"),
    on("llm-d-dropped", BEHIND, &[429, 503]).header("x-llm-d-request-dropped-reason", "").is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("LD"),
    on("sglang-full", BEHIND, &[503]).has("The request queue is full").is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("SG"),
    on("dynamo-overload", BEHIND, &[529]).shape(CONTAINER).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("DY"),
    on("triton-unavailable", BEHIND, &[503]).shape(TRITON).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("TR"),
    on("container-busy", BEHIND, &[429, 503]).shape(CONTAINER).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("DY, LD, L1, SG"),
    on("triton-invalid", BEHIND, &[400]).shape(TRITON).is(Fault::InferenceRejected, InferenceService).from("TR"),
    on("triton-not-found", BEHIND, &[404]).shape(TRITON).is(Fault::InferenceRejected, InferenceService).from("TR"),
    on("triton-unsupported", BEHIND, &[501]).shape(TRITON).is(Fault::InferenceRejected, InferenceService).from("TR"),
    on("triton-internal", BEHIND, &[500]).shape(TRITON).is(Fault::InferenceError, InferenceService).ran(Maybe, Elsewhere).from("TR"),
    on("vllm-validation", BEHIND, &[400]).shape(OBJECT).is(Fault::InferenceRejected, InferenceService).from("VL"),
    on("nim1-validation", BEHIND, &[400, 422]).shape(NIM1).is(Fault::InferenceRejected, InferenceService).from("L1, EM"),
    on("fastapi-validation", BEHIND, &[422]).shape(&[Shape::DetailList]).is(Fault::InferenceRejected, InferenceService).from("EM, MS"),
    on("guardrail", BEHIND, &[422]).shape(CONTAINER).is(Fault::InferenceRejected, InferenceService).from("C3"),
    within("fastapi-exception", BEHIND, 400, 499).shape(&[Shape::DetailText]).is(Fault::InferenceRejected, InferenceService).from("EM, MS"),
    within("container-rejected", BEHIND, 400, 499).shape(CONTAINER).is(Fault::InferenceRejected, InferenceService).from("VL, L1, C3"),
    within("container-error", BEHIND, 500, 599).shape(CONTAINER).is(Fault::InferenceError, InferenceService).ran(Maybe, Elsewhere).from("VL, L1, C3"),

    // A container without anything between but the network.
    on("ingress-unavailable", NIM, &[503]).shape(NO_WORDS).is(Fault::ProxyError, Network).ran(No, Elsewhere).from("derived"),
    on("ingress-error", NIM, &[502, 504]).shape(NO_WORDS).is(Fault::ProxyError, Network).ran(Maybe, Elsewhere).from("derived"),
    on("nim-unauthorized", NIM, &[401]).is(Fault::InferenceUnauthorized, InferenceService).own(502).from("derived"),
    on("nim-busy", NIM, &[429, 503, 529]).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("derived"),
    within("nim-rejected", NIM, 400, 499).is(Fault::InferenceRejected, InferenceService).from("derived"),
    on("nim-unsupported", NIM, &[501]).is(Fault::InferenceRejected, InferenceService).from("derived"),
    within("nim-error", NIM, 500, 599).is(Fault::InferenceError, InferenceService).ran(Maybe, Elsewhere).from("derived"),

    // NVCF's invocation service, which says little.
    on("queue-unclaimed", NVCF, &[504]).shape(&[Shape::Empty]).is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).worded().from("IS, obs"),
    on("dispatched-not-found", NVCF, &[404]).shape(&[Shape::Empty]).header("nvcf-status", "errored").is(Fault::InferenceRejected, InferenceService).from("obs"),
    on("gone-job", NVCF, &[404]).shape(BARE).silent().is(Fault::PlatformRejected, Platform).worded().from("IS"),
    on("bare-rate", PLATFORM, &[429]).shape(PROBLEM).is(Fault::PlatformRateLimited, Platform).ran(No, Elsewhere).worded().after(60).from("IS, obs"),
    on("auth-unavailable", NVCF, &[503]).shape(BARE).is(Fault::PlatformError, Platform).ran(No, Elsewhere).worded().after(5).from("IS"),
    on("auth-late", NVCF, &[504]).shape(BARE).is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).worded().from("IS"),
    on("auth-exists", NVCF, &[409]).shape(BARE).is(Fault::PlatformRejected, Platform).worded().quoted().from("IS"),
    on("auth-precondition", NVCF, &[412]).shape(BARE).is(Fault::PlatformRejected, Platform).worded().quoted().from("IS"),
    on("auth-unimplemented", NVCF, &[501]).shape(BARE).is(Fault::PlatformError, Platform).worded().from("IS"),
    on("request-timeout", PLATFORM, &[408]).is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).own(504).from("IS"),
    on("dispatched-busy", NVCF, &[429, 503, 529]).dispatched(true).is(Fault::InferenceOverloaded, InferenceService).ran(No, Elsewhere).after(1).from("derived"),
    within("dispatched-rejected", NVCF, 400, 499).shape(STRANGE).dispatched(true).is(Fault::InferenceRejected, InferenceService).from("derived"),
    within("dispatched-error", NVCF, 500, 599).shape(STRANGE).dispatched(true).is(Fault::InferenceError, InferenceService).ran(Maybe, Elsewhere).from("derived"),

    // What is left of the platform.
    on("platform-unauthorized", PLATFORM, &[401, 403]).is(Fault::PlatformUnauthorized, Platform).own(502).from("derived"),
    on("platform-credits", PLATFORM, &[402]).is(Fault::CreditsExpired, Platform).ran(No, Elsewhere).own(503).from("derived"),
    on("platform-function", PLATFORM, &[404]).starts("Function ").is(Fault::FunctionNotFound, Platform).own(502).from("CP"),
    on("platform-lost", PLATFORM, &[404]).shape(TEXT).is(Fault::FunctionNotFound, Platform).own(502).from("VG"),
    on("platform-retired", PLATFORM, &[410]).is(Fault::ModelRetired, Platform).worded().quoted().from("derived"),
    on("platform-rate", PLATFORM, &[429]).is(Fault::PlatformRateLimited, Platform).ran(No, Elsewhere).worded().after(60).from("derived"),
    on("platform-unavailable", PLATFORM, &[503]).is(Fault::PlatformError, Platform).ran(No, Elsewhere).worded().from("derived"),
    on("platform-timeout", PLATFORM, &[504]).is(Fault::PlatformTimeout, Platform).ran(Maybe, Elsewhere).worded().from("derived"),
    within("platform-rejected", PLATFORM, 400, 499).is(Fault::PlatformRejected, Platform).worded().quoted().from("derived"),
    within("platform-error", PLATFORM, 500, 599).is(Fault::PlatformError, Platform).ran(Maybe, Elsewhere).worded().from("derived"),

    // No answer, or none that shows it.
    event("unresolved", Event::Unresolved).is(Fault::Unresolved, Network).ran(No, Elsewhere).own(503).from("own"),
    event("connect-refused", Event::ConnectRefused).is(Fault::ConnectRefused, Network).ran(No, Elsewhere).own(502).from("own"),
    event("connect-timeout", Event::ConnectTimeout).is(Fault::ConnectTimeout, Network).ran(No, Elsewhere).own(504).from("own"),
    event("connect-failed", Event::ConnectFailed).is(Fault::ConnectFailed, Network).ran(No, Elsewhere).own(502).from("own"),
    event("tls-failed", Event::TlsFailed).is(Fault::TlsFailed, Network).ran(No, Elsewhere).own(502).from("own"),
    event("request-cut", Event::RequestCut).is(Fault::UpstreamClosed, Network).ran(No, Elsewhere).own(502).from("own"),
    event("stream-refused", Event::StreamRefused).is(Fault::UpstreamClosed, Network).ran(No, Elsewhere).own(502).from("own"),
    event("closed-before-header", Event::ClosedBeforeHeader).is(Fault::UpstreamClosed, Network).ran(Maybe, Elsewhere).own(502).from("own, U-HTTP"),
    event("closed-within", Event::ClosedWithin).is(Fault::UpstreamClosed, Network).ran(Yes, Never).own(502).from("own, obs"),
    event("reset-before-header", Event::ResetBeforeHeader).is(Fault::UpstreamReset, Network).ran(Maybe, Elsewhere).own(502).from("own"),
    event("reset-within", Event::ResetWithin).is(Fault::UpstreamReset, Network).ran(Yes, Never).own(502).from("own"),
    event("protocol", Event::Protocol).is(Fault::UpstreamProtocol, InferenceService).ran(Maybe, Elsewhere).own(502).from("own"),
    event("first-byte-timeout", Event::FirstByteTimeout).is(Fault::FirstByteTimeout, InferenceService).ran(Maybe, Elsewhere).own(504).from("own"),
    event("stalled", Event::Stalled).is(Fault::UpstreamStalled, InferenceService).ran(Yes, Never).own(504).from("own"),
    event("total-timeout", Event::TotalTimeout).is(Fault::TotalTimeout, Gateway).ran(Maybe, Never).own(504).from("own"),
    event("platform-stream-unfinished", Event::StreamUnfinished).kinds(PLATFORM).is(Fault::StreamUnfinished, Platform).ran(Yes, Never).own(502).from("own, obs"),
    event("stream-unfinished", Event::StreamUnfinished).kinds(NIM).is(Fault::StreamUnfinished, InferenceService).ran(Yes, Never).own(502).from("own"),
    event("platform-answer-incomplete", Event::AnswerIncomplete).kinds(PLATFORM).is(Fault::AnswerIncomplete, Platform).ran(Maybe, Never).own(502).from("S0"),
    event("answer-incomplete", Event::AnswerIncomplete).kinds(NIM).is(Fault::AnswerIncomplete, InferenceService).ran(Maybe, Never).own(502).from("own"),
];
