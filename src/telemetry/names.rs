//! Names of OpenTelemetry's semantic conventions, so that a change of theirs is a change here.
//!
//! HTTP: <https://opentelemetry.io/docs/specs/semconv/http/http-spans> (stable). GenAI, whose names begin with `gen_ai`:
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai>, all in development.

/// The method of a request.
pub const METHOD: &str = "http.request.method";
/// The template of its path.
pub const ROUTE: &str = "http.route";
/// Its path.
pub const PATH: &str = "url.path";
/// The status of its answer.
pub const STATUS: &str = "http.response.status_code";
/// How often it was sent before.
pub const RESEND_COUNT: &str = "http.request.resend_count";
/// Bytes of its body.
pub const REQUEST_SIZE: &str = "http.request.body.size";
/// Bytes of its answer's body.
pub const RESPONSE_SIZE: &str = "http.response.body.size";
/// The version of HTTP.
pub const PROTOCOL_VERSION: &str = "network.protocol.version";
/// The address of who asks.
pub const CLIENT_ADDRESS: &str = "client.address";
/// The host that is asked.
pub const SERVER_ADDRESS: &str = "server.address";
/// The port that is asked.
pub const SERVER_PORT: &str = "server.port";
/// What failed.
pub const ERROR_TYPE: &str = "error.type";
/// The status of gRPC.
pub const GRPC_STATUS: &str = "rpc.grpc.status_code";

/// What a model is asked for: `chat`, `embeddings`, …
pub const GEN_AI_OPERATION: &str = "gen_ai.operation.name";
/// Who runs it.
pub const GEN_AI_PROVIDER: &str = "gen_ai.provider.name";
/// The model that was asked for.
pub const GEN_AI_REQUEST_MODEL: &str = "gen_ai.request.model";
/// Tokens of a prompt.
pub const GEN_AI_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens of an answer.
pub const GEN_AI_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Why the model ended.
pub const GEN_AI_FINISH: &str = "gen_ai.response.finish_reasons";
/// What the model was told to be, where it is told apart from the conversation.
pub const GEN_AI_SYSTEM_INSTRUCTIONS: &str = "gen_ai.system_instructions";
/// The conversation.
pub const GEN_AI_INPUT: &str = "gen_ai.input.messages";
/// The answer.
pub const GEN_AI_OUTPUT: &str = "gen_ai.output.messages";
/// Whether tokens are of a prompt or of an answer.
pub const GEN_AI_TOKEN_TYPE: &str = "gen_ai.token.type";
/// A request to a model.
pub const GEN_AI_DURATION: &str = "gen_ai.client.operation.duration";
/// The first piece of a stream.
pub const GEN_AI_FIRST_CHUNK: &str = "gen_ai.client.operation.time_to_first_chunk";
/// Two pieces of a stream.
pub const GEN_AI_BETWEEN_CHUNKS: &str = "gen_ai.client.operation.time_per_output_chunk";
/// Tokens.
pub const GEN_AI_TOKEN_USAGE: &str = "gen_ai.client.token.usage";
/// Who runs all models behind this gateway.
pub const PROVIDER: &str = "nvidia";
