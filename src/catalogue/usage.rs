//! What an operation uses, as its requests state it: tokens and seconds of video.

use std::num::NonZeroU32;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest video that a request is taken to ask for, in seconds.
const LONGEST_VIDEO: f64 = 24.0 * 60.0 * 60.0;
/// Frames per second that a request may state.
const RATES: std::ops::RangeInclusive<f64> = 1.0..=240.0;

/// How an operation uses tokens: `x-nimgate-tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// JSON pointers into the request: the first number found is the most tokens that one choice may have.
    #[serde(default)]
    pub limit: Vec<String>,
    /// The limit of a request that states none.
    #[serde(default)]
    pub default_limit: Option<u64>,
    /// Where the request says how many choices it wants.
    #[serde(default)]
    pub choices: Option<String>,
    /// Where the request may hold several prompts, each answered on its own.
    #[serde(default)]
    pub prompts: Option<String>,
    /// Whether a stream states its usage when `stream_options.include_usage` asks for it.
    #[serde(default)]
    pub usage_in_stream: bool,
    /// Whether tokens are generated at all.
    #[serde(default = "yes")]
    pub output: bool,
}

/// How an operation makes a video: `x-nimgate-video`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Video {
    /// Where the request states the number of frames.
    pub frames: String,
    /// The frames of a request that states none.
    pub default_frames: NonZeroU32,
    /// Where the request states the frames per second.
    pub rate: String,
    /// The frames per second of a request that states none.
    pub default_rate: NonZeroU32,
}

impl Tokens {
    pub(super) fn read(stated: &Value) -> Result<Self, String> {
        let tokens: Self = object("x-nimgate-tokens", stated)?;
        let at = |reason: String| format!("x-nimgate-tokens.{reason}");
        for (index, limit) in tokens.limit.iter().enumerate() {
            check_pointer(&format!("limit[{index}]"), limit).map_err(at)?;
        }
        for (name, pointer) in [("choices", &tokens.choices), ("prompts", &tokens.prompts)] {
            pointer.iter().try_for_each(|pointer| check_pointer(name, pointer)).map_err(at)?;
        }
        if !tokens.output && (!tokens.limit.is_empty() || tokens.default_limit.is_some() || tokens.usage_in_stream) {
            return Err(at("output: false leaves nothing to limit and no stream".into()));
        }
        Ok(tokens)
    }

    /// The most tokens that the request lets its answer have; `None` when nothing says so.
    pub fn most_output(&self, body: &Value) -> Option<u64> {
        if !self.output {
            return Some(0);
        }
        let limit = self.limit.iter().find_map(|limit| count(body, limit)).or(self.default_limit)?;
        let choices = self.choices.as_ref().and_then(|choices| count(body, choices)).unwrap_or(1).max(1);
        let prompts = self.prompts.as_ref().map_or(1, |prompts| prompts_at(body, prompts));
        Some(limit.saturating_mul(choices).saturating_mul(prompts))
    }
}

impl Video {
    pub(super) fn read(stated: &Value) -> Result<Self, String> {
        let video: Self = object("x-nimgate-video", stated)?;
        for (name, pointer) in [("frames", &video.frames), ("rate", &video.rate)] {
            check_pointer(name, pointer).map_err(|e| format!("x-nimgate-video.{e}"))?;
        }
        Ok(video)
    }

    /// The length of the video that the request asks for, from 0 to one day.
    pub fn seconds(&self, body: &Value) -> f64 {
        let number = |pointer: &str| body.pointer(pointer).and_then(Value::as_f64);
        let frames = number(&self.frames).unwrap_or(f64::from(self.default_frames.get()));
        let rate = number(&self.rate).unwrap_or(f64::from(self.default_rate.get()));
        (frames / rate.clamp(*RATES.start(), *RATES.end())).clamp(0.0, LONGEST_VIDEO)
    }
}

fn yes() -> bool {
    true
}

/// Reads an extension; serde alone would take a list for an object.
fn object<T: DeserializeOwned>(name: &str, stated: &Value) -> Result<T, String> {
    if !stated.is_object() {
        return Err(format!("{name}: expected an object"));
    }
    T::deserialize(stated).map_err(|e| format!("{name}: {e}"))
}

fn check_pointer(name: &str, pointer: &str) -> Result<(), String> {
    if pointer.starts_with('/') { Ok(()) } else { Err(format!("{name}: expected a JSON pointer, found {pointer:?}")) }
}

/// The number at `pointer`; one below zero is zero.
fn count(body: &Value, pointer: &str) -> Option<u64> {
    let number = body.pointer(pointer)?;
    // A cast of a float saturates.
    number.as_u64().or_else(|| number.as_f64().map(|number| number as u64))
}

/// How many prompts there are: a list of numbers is one.
fn prompts_at(body: &Value, pointer: &str) -> u64 {
    match body.pointer(pointer) {
        Some(Value::Array(items)) if !items.iter().all(Value::is_number) => items.len() as u64,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_most_output_is_limit_times_choices_times_prompts() {
        let tokens = Tokens::read(&json!({"limit": ["/a", "/b/c"], "choices": "/n", "prompts": "/prompt"})).unwrap();
        for (body, wanted) in [
            (json!({"a": 5, "b": {"c": 7}}), Some(5)),
            (json!({"a": null, "b": {"c": 7}, "n": 3}), Some(21)),
            (json!({"a": "5", "b": {"c": 7.5}, "n": null}), Some(7)),
            (json!({"a": -4, "n": 0}), Some(0)),
            (json!({"a": 5, "n": 0}), Some(5)),
            (json!({"a": 1e300, "n": 2}), Some(u64::MAX)),
            (json!({"a": u64::MAX, "n": 2}), Some(u64::MAX)),
            (json!({"a": 5, "prompt": ["x", "y"], "n": 2}), Some(20)),
            (json!({"a": 5, "prompt": [[1], [2], [3]]}), Some(15)),
            (json!({"a": 5, "prompt": [1, 2, 3]}), Some(5)),
            (json!({"a": 5, "prompt": []}), Some(5)),
            (json!({"n": 3}), None),
            (json!([]), None),
        ] {
            assert_eq!(tokens.most_output(&body), wanted, "{body}");
        }
    }

    #[test]
    fn without_a_stated_limit_the_default_counts() {
        let tokens = Tokens::read(&json!({"limit": ["/a"], "default_limit": 16, "choices": "/n"})).unwrap();
        assert_eq!(tokens.most_output(&json!({"n": 2})), Some(32));
        assert_eq!(tokens.most_output(&json!({"a": 1})), Some(1));
        let tokens = Tokens::read(&json!({"limit": [], "output": false})).unwrap();
        assert_eq!(tokens.most_output(&json!({"a": 1})), Some(0));
    }

    #[test]
    fn a_video_has_a_bounded_length() {
        let stated = json!({"frames": "/p/f", "default_frames": 120, "rate": "/p/r", "default_rate": 24});
        let video = Video::read(&stated).unwrap();
        for (params, wanted) in [
            (json!(null), 5.0),
            (json!({"f": 240}), 10.0),
            (json!({"f": 240, "r": 12}), 20.0),
            (json!({"f": 240, "r": 0}), 240.0),
            (json!({"f": 240, "r": -1}), 240.0),
            (json!({"f": 240, "r": 1e300}), 1.0),
            (json!({"f": -5}), 0.0),
            (json!({"f": 1e300, "r": 1e-300}), LONGEST_VIDEO),
            (json!({"f": "x", "r": []}), 5.0),
        ] {
            let seconds = video.seconds(&json!({ "p": params }));
            assert!((seconds - wanted).abs() < 1e-9, "{params}: {seconds}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (stated, wanted) in [
            (json!([]), "x-nimgate-tokens: expected an object"),
            (json!({"limits": []}), "x-nimgate-tokens: unknown field `limits`"),
            (
                json!({"limit": ["max_tokens"]}),
                "x-nimgate-tokens.limit[0]: expected a JSON pointer, found \"max_tokens\"",
            ),
            (json!({"choices": "n"}), "x-nimgate-tokens.choices: expected a JSON pointer"),
            (json!({"default_limit": -1}), "x-nimgate-tokens: invalid value"),
            (json!({"limit": ["/a"], "output": false}), "x-nimgate-tokens.output: false leaves nothing"),
        ] {
            let reason = Tokens::read(&stated).unwrap_err();
            assert!(reason.contains(wanted), "{reason}");
        }
        for (stated, wanted) in [
            (json!({"frames": "/f"}), "x-nimgate-video: missing field"),
            (json!({"frames": "/f", "default_frames": 0, "rate": "/r", "default_rate": 1}), "expected a nonzero u32"),
            (
                json!({"frames": "/f", "default_frames": 1, "rate": "r", "default_rate": 1}),
                "x-nimgate-video.rate: expected",
            ),
        ] {
            let reason = Video::read(&stated).unwrap_err();
            assert!(reason.contains(wanted), "{reason}");
        }
    }
}
