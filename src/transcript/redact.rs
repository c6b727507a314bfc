//! Redaction: what of a text is never shown, whoever switched transcripts on.
//!
//! Regular expressions in linear time. They know the forms of credentials that name themselves; what is secret by its
//! meaning alone, such as a customer's name, is for the operator's own patterns.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};

/// What stands in place of what is not shown.
const BLACKED_OUT: &str = "[redacted]";
/// Bytes that a pattern may compile to.
const LARGEST_PATTERN: usize = 256 * 1024;
/// A data URL names its type within so many bytes.
const MEDIA_HEAD: usize = 128;

/// What is blacked out in any case, and what stands there instead.
const ALWAYS: [(&str, &str); 8] = [
    // Base64: media that came without saying so.
    (r"[A-Za-z0-9+/]{256,}={0,2}", "[base64]"),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", BLACKED_OUT),
    // Who asks, in a URL, and its query: a presigned one is a credential.
    (r"([a-z][a-z0-9+.-]*://)[^/\s@?#]+@", "${1}[redacted]@"),
    (r#"([a-z][a-z0-9+.-]*://[^\s?#"'<>]+)\?[^\s"'<>)\]]*"#, "${1}?[redacted]"),
    // Keys that begin with the name of who gave them out: NVIDIA, this gateway, OpenAI and its like, Hugging Face,
    // GitHub, GitLab, Slack, AWS, Google.
    (
        r"\b(?:nvapi-|ngk_|sk-|hf_|gh[opsur]_|github_pat_|glpat-|xox[abeoprs]-|AKIA|ASIA|AIza)[A-Za-z0-9_.-]{8,}",
        BLACKED_OUT,
    ),
    // JSON Web Tokens.
    (r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", BLACKED_OUT),
    (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", "${1} [redacted]"),
    // What is called a secret.
    (
        r#"(?i)\b([a-z0-9_-]*(?:api_?-?key|access_?-?key(?:_?id)?|secret|passw(?:or)?d|credential|token)["']?\s*[:=]\s*)(?:"[^"]*"?|'[^']*'?|[^\s,;}"']+)"#,
        "${1}[redacted]",
    ),
];

/// Blacks out.
#[derive(Debug)]
pub struct Redactor {
    rules: Vec<(Regex, &'static str)>,
}

/// Why a pattern is none.
#[derive(Debug)]
pub struct Rejected(pub String);

impl Redactor {
    /// What is always blacked out, and what these patterns match. The error comes with the pattern's place.
    pub fn new(patterns: &[String]) -> Result<Self, (usize, Rejected)> {
        let mut rules = Vec::with_capacity(ALWAYS.len() + patterns.len());
        for (at, pattern) in patterns.iter().enumerate() {
            let rule = compile(pattern).map_err(|rejected| (at, rejected))?;
            if rule.is_match("") {
                return Err((at, Rejected("expected a pattern that does not match the empty text".into())));
            }
            rules.push((rule, BLACKED_OUT));
        }
        for (pattern, shown) in ALWAYS {
            rules.push((compile(pattern).map_err(|rejected| (patterns.len(), rejected))?, shown));
        }
        Ok(Self { rules })
    }

    /// The text, what is not to be seen blacked out.
    pub(super) fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for (rule, shown) in &self.rules {
            if let Cow::Owned(changed) = rule.replace_all(&text, *shown) {
                text = Cow::Owned(changed);
            }
        }
        text
    }
}

fn compile(pattern: &str) -> Result<Regex, Rejected> {
    let built = RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN).build();
    built.map_err(|error| Rejected(error.to_string().replace('\n', " ")))
}

/// A text, or of a data URL its type alone: media are long, and no text.
pub(super) fn without_media(text: &str) -> Cow<'_, str> {
    let head = &text[..text.floor_char_boundary(text.len().min(MEDIA_HEAD))];
    match head.split_once(";base64,") {
        Some((kind, _)) if kind.starts_with("data:") => Cow::Owned(format!("{kind};base64,[left out]")),
        _ => Cow::Borrowed(text),
    }
}
