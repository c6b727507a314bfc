//! The labels of what comes from behind the gateway, each with its words: for the caller, for whoever is on call.
//!
//! What leads to which label is in `table.rs`.

/// Whose a failure is: the layer that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The caller.
    Client,
    /// The caller's limits.
    Quota,
    /// This gateway.
    Gateway,
    /// What lies between here and the backend.
    Network,
    /// NVCF or NGC.
    Platform,
    /// The container.
    InferenceService,
}

impl Blame {
    /// The word used in headers, records and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Quota => "quota",
            Self::Gateway => "gateway",
            Self::Network => "network",
            Self::Platform => "platform",
            Self::InferenceService => "inference-service",
        }
    }
}

/// What a failure says of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing: the next request may go well there.
    Fine,
    /// It has no room for now.
    Overloaded,
    /// It can not be used for now.
    Unavailable,
}

/// The words of a label.
#[derive(Debug)]
pub struct Words {
    /// The label.
    pub label: &'static str,
    /// What it says of the endpoint.
    pub health: Health,
    /// What the caller reads, where the gateway answers.
    pub message: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do first.
    pub first: &'static str,
}

macro_rules! faults {
    ($($fault:ident $label:literal $health:ident, $message:literal, $meaning:literal, $first:literal;)*) => {
        /// A failure that came from behind the gateway.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the words of each stand beside it")]
        pub enum Fault { $($fault),* }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$fault),*];

            /// Its words.
            pub const fn words(self) -> &'static Words {
                match self {
                    $(Self::$fault => &Words {
                        label: $label,
                        health: Health::$health,
                        message: $message,
                        meaning: $meaning,
                        first: $first,
                    }),*
                }
            }
        }
    };
}

faults! {
    Unresolved "upstream_unresolved" Unavailable,
        "No address of the pool is known to the gateway: this is not your request's fault. Try again later.",
        "No name of the pool resolves, or its source lists no address.",
        "Ask DNS for the pool's host from the gateway's own pod, or Kubernetes for its EndpointSlices; see `/state`.";
    ConnectRefused "connect_refused" Unavailable,
        "The backend refuses connections: this is not your request's fault. Try again later.",
        "The host answers, but nothing listens on the port: the container is down, still starting, or elsewhere.",
        "Look whether the container runs, and on which port it listens.";
    ConnectTimeout "connect_timeout" Unavailable,
        "The backend can not be reached: this is not your request's fault. Try again later.",
        "No answer to a connection within `timeouts.connect_ms`: a network policy or firewall drops it, or the host is gone.",
        "Connect from the gateway's own pod; look at network policies, security groups and the host.";
    ConnectFailed "connect_failed" Unavailable,
        "The gateway could not connect to any endpoint of the pool: this is not your request's fault. Try again later.",
        "No connection for another reason, such as no route, or each endpoint was tried.",
        "Look at addresses and routes, and at the endpoints on `/state`.";
    TlsFailed "tls_failed" Unavailable,
        "The gateway could not establish TLS with the backend: this is not your request's fault.",
        "The connection stands, its TLS does not: no trust, another name, an ended certificate, or no TLS there.",
        "Look at the certificate that the backend shows, at `tls.ca_file` and `tls.server_name`.";
    UpstreamClosed "upstream_closed" Unavailable,
        "The backend closed the connection before its answer was complete. It may have worked on the request.",
        "The connection ended in order, before the answer or within it.",
        "Look for restarts of the container, and for idle timeouts of what lies between.";
    UpstreamReset "upstream_reset" Unavailable,
        "The connection to the backend was reset before its answer was complete. It may have worked on the request.",
        "The connection was torn down: a crash, a killed container, or a firewall that forgot the connection.",
        "Look whether the container was killed (memory), then at firewalls and load balancers between.";
    UpstreamProtocol "upstream_protocol" Unavailable,
        "The backend's answer was not valid HTTP.",
        "What came is not HTTP as it should be.",
        "Look at what listens there: HTTP for HTTPS, HTTP/2 for HTTP/1.1, or another service.";
    UpstreamRedirect "upstream_redirect" Unavailable,
        "The backend answered with a redirect where there must be none: this is not your request's fault.",
        "A redirect where the API knows none: most often a proxy that wants HTTPS, another host or a login.",
        "Compare the pool's `url` with where the redirect leads.";
    FirstByteTimeout "first_byte_timeout" Unavailable,
        "The backend did not begin to answer in time. It may have worked on the request.",
        "No answer within `timeouts.first_byte_ms`.",
        "Look at the backend's load and queue, or raise the timeout for long prompts.";
    UpstreamStalled "upstream_stalled" Unavailable,
        "The backend stopped in the middle of its answer.",
        "Silence within an answer for longer than `timeouts.between_chunks_ms`.",
        "Look at the backend: a stuck engine, a proxy that buffers.";
    TotalTimeout "total_timeout" Fine,
        "The request took longer than this pool, or its x-request-timeout, allows.",
        "The request took longer than `timeouts.total_ms`, or than its own `x-request-timeout`.",
        "Ask for less, or allow more time.";
    StreamUnfinished "stream_unfinished" Unavailable,
        "The stream ended without its final event: what came before may be incomplete.",
        "A 200 event stream ended in order, but without `data: [DONE]` or its API's last event.",
        "Look for a dying container or worker, and for a proxy that cuts long streams.";
    AnswerIncomplete "answer_incomplete" Unavailable,
        "The backend reported success without what its answer must hold, which means that it failed.",
        "A 2xx answer lacks what it promises, such as a create without `id`.",
        "Treat it as failed; look at the backend.";
    ProxyError "upstream_proxy_error" Unavailable,
        "A proxy in front of the backend answered in its place: this is not your request's fault. Try again later.",
        "502 to 504 without a body, or with a page: a load balancer or ingress before the container.",
        "Look at that proxy: its backends, its timeouts.";
    InferenceRejected "inference_rejected" Fine,
        "The model's container refused the request.",
        "The container refused the request (4xx).",
        "Read its message; the caller can mend it most of the time.";
    ModelUnknown "inference_model_unknown" Fine,
        "The model's container does not know the model that it was asked for.",
        "The container does not serve the `model` that was sent: `backend_model` or an adapter is wrong.",
        "Compare the container's `/v1/models` with `models[].backend_model` of the pool.";
    InferenceUnauthorized "inference_unauthorized" Fine,
        "The model's container refused the gateway's credential. Your API key is good; tell whoever runs the gateway.",
        "The container wants a credential and refused the pool's. The caller's key never goes there.",
        "Check `credential` of the pool, and the container's own API key.";
    InferenceOverloaded "inference_overloaded" Overloaded,
        "The model's container has no room at the moment. Try again later.",
        "The container, or the queue in front of its engine, is full.",
        "Add endpoints or instances; lower `balance.max_in_flight`, so that requests wait in the gateway instead.";
    InferenceError "inference_error" Unavailable,
        "The model's container failed. It may have worked on the request.",
        "The container failed (5xx).",
        "Look at the container's log.";
    InferenceUnreachable "inference_unreachable" Unavailable,
        "The platform could not reach the model's container. It may have worked on the request.",
        "NVCF's worker could not connect to the container, or got no answer; also HTTP sent to a gRPC-only function.",
        "Look at the function's health and inference port, and at its container's log.";
    WorkerError "worker_error" Unavailable,
        "The platform's worker beside the model's container failed. It may have worked on the request.",
        "NVCF's worker failed, or could not get the request's assets.",
        "Try again; then look at the function's deployment and report it with `nvcf-reqid`.";
    FunctionDegraded "function_degraded" Unavailable,
        "The function that serves the model has lost all its instances: this is not your request's fault. Try again later.",
        "NVCF lost all instances of the function. Transient, although a 400: minutes to hours.",
        "Look at the function's deployment; redeploy it when it does not come back.";
    FunctionUnavailable "function_unavailable" Unavailable,
        "The function that serves the model is not deployed: this is not your request's fault.",
        "The function exists, but no version of it is active.",
        "Deploy the function, or correct `function.version`.";
    FunctionNotFound "function_not_found" Fine,
        "The platform does not know the function that serves the model: tell whoever runs the gateway.",
        "NVCF does not know the function, or not for this account; or the front door does not know the model or path.",
        "Check `function.id`, and whether the credential's account may see it.";
    ModelRetired "model_retired" Fine,
        "The model has reached its end of life at the platform. Choose another one.",
        "The platform has retired the model.",
        "Choose another model; state `end_of_life` in the configuration.";
    ModelSuspended "model_suspended" Fine,
        "The platform has taken the model offline for now.",
        "The platform has taken the model offline; its answer says why, and when to come back.",
        "Read its message; let another pool serve the model meanwhile (`spill`).";
    PlatformUnauthorized "platform_unauthorized" Fine,
        "The platform refused the gateway's own credential. Your API key is good; tell whoever runs the gateway.",
        "The platform does not accept the gateway's credential: missing, ended, wrong, or of another service.",
        "Check `credential.secret` of the pool; make a new key where it has ended.";
    PlatformForbidden "platform_forbidden" Fine,
        "The gateway's own credential may not do this at the platform. Your API key is good; tell whoever runs the gateway.",
        "The credential is good, but lacks the function, the resource or the scope.",
        "Share the function with the account, or add function and scope to the key.";
    CreditsExpired "credits_expired" Fine,
        "The credits of the gateway's account at the platform are used up: tell whoever runs the gateway.",
        "The account's credits are used up.",
        "Renew them.";
    PlatformRateLimited "platform_rate_limited" Overloaded,
        "The platform limits the rate of the gateway's own credential; your own limits are not meant. Wait, then try again.",
        "The platform limits the gateway's credential. Each rejected attempt counts there too.",
        "Send less at a time, spread over credentials, or ask for a higher rate.";
    PlatformQueueFull "platform_queue_full" Overloaded,
        "The platform's queue for the model is full. Wait, then try again.",
        "The function's queue is full; this is no quota.",
        "Deploy more instances.";
    PlatformTimeout "platform_timeout" Unavailable,
        "The platform gave up before the model answered. It may have worked on the request.",
        "Nobody took the request in time, its worker is gone, or the platform's own time was over.",
        "Deploy more instances; look at scale-to-zero and cold starts.";
    SessionLost "session_lost" Fine,
        "The platform does not know this session any more. Begin a new one, without its id.",
        "A gRPC or WebSocket session that was to go on is gone.",
        "Drop the id and connect again.";
    PlatformRejected "platform_rejected" Fine,
        "The platform refused the request.",
        "The platform refused the request (other 4xx).",
        "Read its message in the platform's own words, on the native face if need be.";
    PlatformError "platform_error" Unavailable,
        "The platform failed. It may have worked on the request.",
        "The platform failed (other 5xx).",
        "Try again; look at its status page.";
}

impl Fault {
    /// The word that names it everywhere.
    pub const fn label(self) -> &'static str {
        self.words().label
    }
}
