//! Reading request bodies: parsed while small, only skimmed and counted when large.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

use super::seen::Run;

/// Bodies up to this many bytes are kept and parsed.
const KEPT: usize = 4 * 1024 * 1024;
/// Of larger bodies, so much of either end is skimmed for fields.
const SKIMMED: usize = 64 * 1024;
/// The fields looked for in a large body.
const FIELDS: [&str; 22] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "request_type",
    "input_type",
    "encoding_format",
    "dimensions",
    "truncate",
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "video_params",
    "image",
    "video",
    "input",
    "messages",
    "query",
    "passages",
    "name",
];

/// A request body.
#[derive(Debug)]
pub(super) struct Payload {
    /// What it says; for a large body only the fields that could be made out.
    pub(super) value: Value,
    /// Notes when the work on it begins.
    pub(super) run: Run,
}

/// A body as it came, the bytes of large ones left out.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) kept: Vec<u8>,
    pub(super) tail: Vec<u8>,
    pub(super) length: u64,
}

/// Reads a JSON body; the error is a message for the client.
pub(super) async fn json(body: Body) -> Result<Payload, String> {
    raw(body).await?.parse()
}

/// Reads a body to its end and keeps what is small enough.
pub(super) async fn raw(mut body: Body) -> Result<Raw, String> {
    let mut raw = Raw::default();
    while let Some(data) = next(&mut body).await? {
        raw.take(&data);
    }
    Ok(raw)
}

/// Reads a body to its end and keeps nothing; returns its length.
pub(super) async fn discard(mut body: Body) -> Result<u64, String> {
    let mut length = 0;
    while let Some(data) = next(&mut body).await? {
        length += data.len() as u64;
    }
    Ok(length)
}

/// The next data frame.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, String> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the request body broke off: {error}"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

impl Raw {
    /// The body if it was small enough to keep.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        (self.length <= KEPT as u64).then_some(self.kept.as_slice())
    }

    pub(super) fn parse(&self) -> Result<Payload, String> {
        match self.whole() {
            Some([]) => Err("Field required: the request body is empty".to_owned()),
            Some(bytes) => {
                let value = serde_json::from_slice(bytes).map_err(|error| format!("JSON decode error: {error}"))?;
                Ok(Payload { value, run: Run::default() })
            }
            None => Ok(Payload { value: self.skim(), run: Run::default() }),
        }
    }

    /// The body to be read again; of a large one only both ends.
    pub(super) fn into_body(self) -> Body {
        Body::from([self.kept, self.tail].concat())
    }

    fn take(&mut self, data: &Bytes) {
        self.length += data.len() as u64;
        let room = KEPT.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            self.tail.extend_from_slice(&data[room..]);
            let surplus = self.tail.len().saturating_sub(SKIMMED);
            self.tail.drain(..surplus);
        }
    }

    fn skim(&self) -> Value {
        let head = String::from_utf8_lossy(&self.kept[..SKIMMED.min(self.kept.len())]);
        let tail = String::from_utf8_lossy(&self.tail);
        let found = |name| field(&head, name).or_else(|| field(&tail, name)).map(|value| (name.to_owned(), value));
        Value::Object(FIELDS.into_iter().filter_map(found).collect::<Map<_, _>>())
    }
}

/// A field's value, or a stand-in where the value reaches beyond the text.
fn field(text: &str, name: &str) -> Option<Value> {
    let quoted = format!("\"{name}\"");
    let rest = text[text.find(&quoted)? + quoted.len()..].trim_start().strip_prefix(':')?;
    let value = serde_json::Deserializer::from_str(rest).into_iter().next()?;
    Some(value.unwrap_or_else(|_| match name {
        "messages" => json!([{"role": "user", "content": "skimmed"}]),
        "input" => json!(["skimmed"]),
        "passages" => json!([{"text": "skimmed"}]),
        _ => json!("skimmed"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_body_is_skimmed_at_both_ends() {
        let text = format!(r#"{{"model":"m","image":"{}","seed": 4}}"#, "A".repeat(KEPT));
        let payload = json(Body::from(text)).await.unwrap();
        assert_eq!(payload.value, json!({"model": "m", "seed": 4, "image": "skimmed"}));
    }

    #[tokio::test]
    async fn malformed_json_is_told() {
        assert!(json(Body::from("{")).await.unwrap_err().starts_with("JSON decode error"));
    }
}
