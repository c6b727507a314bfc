//! `/v1/chat/completions` of LLM and VLM containers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request};
use serde_json::{Value, json};

use super::body::Payload;
use super::engine::Slot;
use super::front::text_of;
use super::nim::{Nim, Refusal, finished};
use super::seen::Run;
use super::{Kind, sse, text};

/// The most tokens one answer may have.
const LONGEST: u64 = 131_072;
/// An image or video counts as so many prompt tokens.
const MEDIA_TOKENS: usize = 256;

/// An answer before it is put into the words of one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: i64,
    pub(super) pieces: Vec<String>,
    pub(super) finish: &'static str,
    pub(super) prompt_tokens: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    prompt: String,
    choices: usize,
    /// A tool's name; the pieces are its arguments then.
    tool: Option<String>,
}

pub(super) async fn answer(State(nim): State<Arc<Nim>>, request: Request<Body>) -> Response {
    let headers = request.headers().clone();
    let planned = nim.read(request).await.and_then(|payload| Ok((plan(&nim, &payload)?, payload.run)));
    let (talk, run) = match planned {
        Ok(planned) => planned,
        Err(refusal) => return nim.refuse(&refusal),
    };
    if talk.stream {
        let events = chunks(&talk).collect::<Vec<_>>();
        return streamed(nim, talk, run, events);
    }
    let mut slot = talk.enter(&nim, &run).await;
    slot.all(talk.pieces.len()).await;
    let body = completion(&talk).to_string();
    let mut response = finished(slot, talk.prompt_tokens, talk.pieces.len(), body);
    report_load(&nim, &headers, response.headers_mut());
    response
}

/// Sends events at the pace of the engine. As with vLLM the headers come at once, the queue is waited for after them.
pub(super) fn streamed(nim: Arc<Nim>, talk: Talk, run: Run, events: Vec<(bool, Bytes)>) -> Response {
    let asked = Arc::new((nim, talk, run));
    let last = events.len();
    let events = events.into_iter().enumerate();
    sse::stream(stream::unfold((events, None), move |(mut events, slot)| {
        let asked = Arc::clone(&asked);
        async move {
            let (nim, talk, run) = &*asked;
            let (at, (paced, event)) = events.next()?;
            let mut slot = match slot {
                Some(slot) => slot,
                None => talk.enter(nim, run).await,
            };
            if at == 0 {
                slot.first().await;
            } else if paced {
                slot.next().await;
            }
            if at + 1 == last {
                slot.complete(talk.prompt_tokens, talk.pieces.len());
            }
            Some((event, (events, Some(slot))))
        }
    }))
}

impl Talk {
    pub(super) fn new(kind: &str, model: &str, prompt: &str, limit: Option<u64>, forced: bool) -> Self {
        let natural = text::natural_length(prompt);
        let limit = limit.map(|limit| usize::try_from(limit.min(LONGEST)).unwrap_or(usize::MAX));
        let length = if forced { limit.unwrap_or(natural) } else { natural.min(limit.unwrap_or(natural)) };
        Self {
            id: format!("{kind}-{}", super::uuid().replace('-', "")),
            model: model.to_owned(),
            created: chrono::Utc::now().timestamp(),
            pieces: text::tokens(prompt, length).collect(),
            finish: if forced || length < natural { "length" } else { "stop" },
            prompt_tokens: 0,
            stream: false,
            include_usage: false,
            prompt: prompt.to_owned(),
            choices: 1,
            tool: None,
        }
    }

    /// Counts the prompt as the engine does, with so many tokens besides its text.
    pub(super) fn counted(mut self, nim: &Nim, besides: usize) -> Self {
        self.prompt_tokens = nim.engine.count_tokens(&self.prompt) + besides;
        self
    }

    /// Hands the request to the engine.
    pub(super) async fn enter(&self, nim: &Nim, run: &Run) -> Slot {
        nim.engine.enter(run, &self.prompt, self.prompt_tokens, self.pieces.len()).await
    }

    /// Takes what clients say about streaming.
    pub(super) fn streaming(mut self, value: &Value) -> Result<Self, Refusal> {
        self.stream = flag(value, "stream");
        let options = value.get("stream_options").filter(|options| !options.is_null());
        if options.is_some() && !self.stream {
            return Err(Refusal::bad("Stream options can only be defined when `stream=True`."));
        }
        self.include_usage = options.is_some_and(|options| flag(options, "include_usage"));
        Ok(self)
    }

    pub(super) fn usage(&self) -> Value {
        let completion = self.pieces.len() * self.choices;
        json!({"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens + completion,
               "completion_tokens": completion})
    }

    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }

    /// Replaces the words by a given text, still cut at the limit.
    fn say(&mut self, said: &str, limit: Option<u64>) {
        self.pieces = text::pieces(said);
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        self.finish = if self.pieces.len() > limit { "length" } else { "stop" };
        self.pieces.truncate(limit);
    }
}

/// The number of tokens a client allows, under either of its names.
pub(super) fn limit(value: &Value, names: &[&str]) -> Result<Option<u64>, Refusal> {
    let given = names.iter().find_map(|name| value.get(name).filter(|limit| !limit.is_null()));
    match given.map(|limit| (limit, limit.as_u64())) {
        None => Ok(None),
        Some((_, Some(limit))) if limit >= 1 => Ok(Some(limit)),
        Some((limit, _)) => Err(Refusal::bad(format!("{} must be at least 1, got {limit}.", names[0]))),
    }
}

pub(super) fn flag(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// Extensions stand in `nvext` for 1.x and at the top for 2.x.
pub(super) fn extension<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| value.get("nvext")?.get(name))
}

fn plan(nim: &Nim, payload: &Payload) -> Result<Talk, Refusal> {
    let value = &payload.value;
    let model = nim.served(value)?;
    let (prompt, media) = prompt(nim, value)?;
    sampling(value)?;
    let limit = limit(value, &["max_tokens", "max_completion_tokens"])?;
    let forced = extension(value, "ignore_eos").is_some_and(|forced| forced == &json!(true)) && limit.is_some();
    let talk = Talk::new("chatcmpl", model, &prompt, limit, forced).counted(nim, media * MEDIA_TOKENS);
    let mut talk = talk.streaming(value)?;
    talk.choices = value.get("n").and_then(Value::as_u64).map_or(1, |n| usize::try_from(n.clamp(1, 8)).unwrap_or(1));
    if let Some((tool, arguments)) = forced_tool(value) {
        talk.say(&arguments.to_string(), None);
        talk.tool = Some(tool);
        talk.finish = "tool_calls";
    } else if let Some(answer) = guided(value)? {
        talk.say(&answer, limit);
    } else if prompt.contains("<think>") && prompt.contains("<answer>") {
        let words = talk.text();
        talk.say(&format!("<think>\n{words}\n</think>\n\n<answer>\n{words}\n</answer>"), limit);
    }
    Ok(talk)
}

/// All text of the messages, and how many images and videos go with it.
fn prompt(nim: &Nim, value: &Value) -> Result<(String, usize), Refusal> {
    let messages =
        value.get("messages").and_then(Value::as_array).ok_or_else(|| Refusal::bad("messages: Field required"))?;
    if messages.is_empty() {
        return Err(Refusal::bad("messages: List should have at least 1 item after validation, not 0"));
    }
    let (mut prompt, mut media) = (String::new(), 0);
    for message in messages {
        if message.get("role").and_then(Value::as_str).is_none() {
            return Err(Refusal::bad("messages: each message needs a role"));
        }
        match message.get("content") {
            Some(Value::String(text)) => prompt = [&prompt, text.as_str(), "\n"].concat(),
            Some(Value::Array(parts)) => {
                for part in parts {
                    match self::part(nim, part)? {
                        Some(text) => prompt = [&prompt, text, "\n"].concat(),
                        None => media += 1,
                    }
                }
            }
            // An assistant's turn of tool calls has no content.
            None | Some(Value::Null) => {}
            Some(_) => return Err(Refusal::bad("messages: content must be a string or a list of parts")),
        }
    }
    Ok((prompt, media))
}

/// The text of one part, or nothing for an image or video that the model can take.
fn part<'a>(nim: &Nim, part: &'a Value) -> Result<Option<&'a str>, Refusal> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind == "text" {
        let text = part.get("text").and_then(Value::as_str);
        return text.map(Some).ok_or_else(|| Refusal::bad("content part of type text needs a string `text`"));
    }
    if !matches!(kind, "image_url" | "video_url") {
        return Err(Refusal::bad(format!("content part has unknown type {kind:?}")));
    }
    if nim.kind != Kind::Vlm {
        return Err(Refusal::bad(format!("{} is not a multimodal model", nim.model())));
    }
    let Some(url) = part.get(kind).and_then(|media| media.get("url")?.as_str()) else {
        return Err(Refusal::bad(format!("{kind} needs an object with a string `url`")));
    };
    let remote = url.starts_with("http://") || url.starts_with("https://");
    let image = ["jpg", "jpeg", "png"].iter().any(|format| url.starts_with(&format!("data:image/{format};base64,")));
    let known = remote || if kind == "image_url" { image } else { url.starts_with("data:video/") };
    if known { Ok(None) } else { Err(Refusal::bad(format!("{kind}: unsupported media"))) }
}

fn sampling(value: &Value) -> Result<(), Refusal> {
    for (name, low, high) in [
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
    ] {
        let given = value.get(name).filter(|given| !given.is_null());
        if given.is_some_and(|given| !given.as_f64().is_some_and(|given| (low..=high).contains(&given))) {
            return Err(Refusal::bad(format!("{name} must be in [{low}, {high}]")));
        }
    }
    let video = value.get("media_io_kwargs").and_then(|kwargs| kwargs.get("video"));
    if video.is_some_and(|video| video.get("fps").is_some() && video.get("num_frames").is_some()) {
        return Err(Refusal::bad("Only one of fps and num_frames can be specified"));
    }
    Ok(())
}

/// The answer that a schema, or a list of choices, leaves as the only one.
fn guided(value: &Value) -> Result<Option<String>, Refusal> {
    if let Some(schema) = extension(value, "guided_json") {
        return Ok(Some(text::instance(schema).to_string()));
    }
    if let Some(choice) = extension(value, "guided_choice").and_then(|choices| choices.get(0)?.as_str()) {
        return Ok(Some(choice.to_owned()));
    }
    let Some(format) = value.get("response_format").filter(|format| !format.is_null()) else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("json_object") => Ok(Some(json!({"answer": "x"}).to_string())),
        Some("json_schema") => {
            let schema = format.get("json_schema").and_then(|named| named.get("schema"));
            let schema = schema.ok_or_else(|| Refusal::bad("response_format.json_schema.schema: Field required"))?;
            Ok(Some(text::instance(schema).to_string()))
        }
        _ => Ok(None),
    }
}

/// A tool the client insists on; `auto` is always decided for words.
fn forced_tool(value: &Value) -> Option<(String, Value)> {
    let tools = value.get("tools")?.as_array()?;
    let choice = value.get("tool_choice")?;
    let named = choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
    let functions = || tools.iter().filter_map(|tool| tool.get("function"));
    let function = match (named, choice.as_str()) {
        (Some(named), _) => functions().find(|function| function.get("name").is_some_and(|name| name == named))?,
        (None, Some("required")) => functions().next()?,
        _ => return None,
    };
    let arguments = function.get("parameters").map_or(json!({}), text::instance);
    Some((function.get("name")?.as_str()?.to_owned(), arguments))
}

fn completion(talk: &Talk) -> Value {
    let message = match &talk.tool {
        Some(tool) => json!({"role": "assistant", "content": null, "tool_calls": [call(talk, tool, &talk.text())]}),
        None => json!({"role": "assistant", "content": talk.text()}),
    };
    let choice = |index| json!({"index": index, "message": message, "logprobs": null, "finish_reason": talk.finish});
    json!({"id": talk.id, "object": "chat.completion", "created": talk.created, "model": talk.model,
           "choices": (0..talk.choices).map(choice).collect::<Vec<_>>(), "usage": talk.usage()})
}

fn call(talk: &Talk, tool: &str, arguments: &str) -> Value {
    json!({"id": format!("{}-0", talk.id), "type": "function", "function": {"name": tool, "arguments": arguments}})
}

/// The events of a stream; those marked come one token interval after the one before.
fn chunks(talk: &Talk) -> impl Iterator<Item = (bool, Bytes)> {
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({"id": talk.id, "object": "chat.completion.chunk", "created": talk.created,
                               "model": talk.model, "choices": choices});
        if talk.include_usage {
            chunk["usage"] = usage;
        }
        sse::event(&chunk)
    };
    let choice = |index, delta: Value, finish: Option<&str>| {
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish});
        Value::Array(vec![choice])
    };
    let delta = |at: usize, piece: &str| match &talk.tool {
        Some(tool) if at == 0 => {
            let mut call = call(talk, tool, piece);
            call["index"] = json!(0);
            json!({"tool_calls": [call]})
        }
        Some(_) => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
        None => json!({"content": piece}),
    };
    let all = move || 0..talk.choices;
    let roles =
        all().map(move |index| chunk(choice(index, json!({"role": "assistant", "content": ""}), None), Value::Null));
    let words = talk.pieces.iter().enumerate().flat_map(move |(at, piece)| {
        all().map(move |index| (index == 0 && at > 0, chunk(choice(index, delta(at, piece), None), Value::Null)))
    });
    let ends = all().map(move |index| chunk(choice(index, json!({}), Some(talk.finish)), Value::Null));
    let usage = talk.include_usage.then(|| chunk(json!([]), talk.usage()));
    let rest = ends.chain(usage).chain([Bytes::from_static(b"data: [DONE]\n\n")]);
    roles.map(|event| (false, event)).chain(words).chain(rest.map(|event| (false, event)))
}

/// The ORCA load report that vLLM adds to unstreamed answers when asked.
fn report_load(nim: &Nim, asked: &HeaderMap, headers: &mut HeaderMap) {
    let (usage, waiting) = (nim.engine.cache_usage(), nim.engine.waiting());
    let report = match text_of(asked, "endpoint-load-metrics-format").map(str::to_ascii_lowercase).as_deref() {
        Some("text") => {
            format!("TEXT named_metrics.kv_cache_usage_perc={usage}, named_metrics.num_requests_waiting={waiting}.0")
        }
        Some("json") => {
            format!(
                "JSON {}",
                json!({"named_metrics": {"kv_cache_usage_perc": usage, "num_requests_waiting": waiting}})
            )
        }
        _ => return,
    };
    if let Ok(report) = HeaderValue::from_str(&report) {
        headers.insert("endpoint-load-metrics", report);
    }
}
