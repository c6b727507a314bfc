//! Redaction: what of a text is never shown, whoever switched transcripts on.
//!
//! Regular expressions in linear time. They know credentials that betray themselves by their form or by what they are
//! called; what is secret by its meaning alone, such as a customer's name, is for the operator's own patterns.

use std::ops::Range;

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// What stands in place of what is not shown.
const BLACKED_OUT: &str = "[redacted]";
/// Bytes that a pattern may compile to, and all of them together.
const LARGEST_PATTERN: usize = 1024 * 1024;

/// Where a word may begin: after anything but a letter or a digit, after a line break as JSON writes it, and after a byte
/// as URLs write it. Not `\b`, which takes letters of other scripts for a part of the word, and is slow with them.
macro_rules! word {
    ($($pattern:expr),+ $(,)?) => {
        concat!(r"(?:^|[^A-Za-z0-9]|\\[nrt]|%[0-9A-Fa-f]{2})(?:", $($pattern),+, ")")
    };
}

/// What is blacked out in any case, and what stands there instead. Where a pattern has a group `secret`, that is what.
const ALWAYS: [(&str, &str); 13] = [
    // Media in a data URL, and base64 that came without saying so, in one line or in many.
    (r"(?i)data:[a-z0-9.+/;=_-]*;base64,(?<secret>[A-Za-z0-9+/=_-]+)", "[left out]"),
    (r"[A-Za-z0-9+/_-]{256,}={0,2}", "[base64]"),
    (r"(?:[A-Za-z0-9+/]{60,}(?:\r?\n|\\n|\\r\\n)){3,}[A-Za-z0-9+/]*={0,2}", "[base64]"),
    (
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
        BLACKED_OUT,
    ),
    // Who asks, in a URL, and its query: a presigned one is a credential. JSON may write slashes with a backslash.
    (r#"(?i)[a-z][a-z0-9+.-]*:(?:\\?/){2}(?:(?<secret>[^\s/"'<>?#]+|[^\s/@:"'<>?#]+:[^\s"'<>]*))@"#, BLACKED_OUT),
    (r#"(?i)[a-z][a-z0-9+.-]*:(?:\\?/){2}[^\s?#"'<>]+\?(?<secret>[^\s"'<>)\]]+)"#, BLACKED_OUT),
    (word!(r#"(?i:sig|signature|x-amz-[a-z-]+)=(?<secret>[^&\s"'<>]+)"#), BLACKED_OUT),
    // Keys that begin with the name of who gave them out: NVIDIA, this gateway, OpenAI and its like, Stripe, Hugging
    // Face, GitHub, GitLab, Slack, AWS, Google.
    (
        word!(
            "(?<secret>nvapi-[A-Za-z0-9_-]{8,}|ngk_[A-Za-z0-9_.-]{8,}|sk-[A-Za-z0-9_-]{20,}",
            "|[rs]k_(?:live|test)_[A-Za-z0-9]{10,}|hf_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{20,}",
            "|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}",
            "|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,})",
        ),
        BLACKED_OUT,
    ),
    // JSON Web Tokens.
    (word!(r"(?<secret>eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?)"), BLACKED_OUT),
    (r"(?i)bearer\s+(?<secret>[A-Za-z0-9._~+/=|-]{16,})", BLACKED_OUT),
    (r#"(?i)authorization[\\"'`*]*\s*[:=]\s*[\\"'`]*(?<secret>[^\r\n"'`\\]+)"#, BLACKED_OUT),
    (r#"(?i)cookie[\\"'`*]*\s*:\s*[\\"'`]*(?<secret>[^\r\n"'`\\]+)"#, BLACKED_OUT),
    // What is called a secret: in code, in files of settings, in JSON that JSON quotes, in prose.
    (
        word!(
            r"(?i:[a-z0-9_-]*",
            r"(?:(?:api|access|secret|private|account|signing|encryption|master)[ _-]?(?:access[ _-]?)?key(?:[ _-]?id)?",
            r"|(?:secrets?|passw(?:or)?ds?|passphrase|credentials?)(?:_[a-z0-9_-]+|[0-9]+)?|token)",
            r#"[\\"'`*]*\s*(?::=|=>|={1,3}|:)[ \t*]*)"#,
            // A list or an object, a text of JSON in JSON, a text in quotes of any kind, a word.
            r#"(?<secret>[\[({][^\])}]*[\])}]?|\\"(?:[^"\\]|\\\\\\"|\\\\)*(?:\\")?|\\+"[^"]*"?|"(?:[^"\\]|\\[\s\S])*"?"#,
            r"|'(?:[^'\\]|\\[\s\S])*'?|`[^`]*`?",
            r#"|[^\s,;}"'`]+)"#,
        ),
        BLACKED_OUT,
    ),
];

/// Knows what is to be blacked out.
#[derive(Debug)]
pub struct Redactor {
    rules: Vec<(Regex, &'static str)>,
    /// All of them: which match at all.
    any: RegexSet,
}

/// Why a pattern is none.
#[derive(Debug)]
pub struct Rejected(pub String);

impl Redactor {
    /// What these patterns match, and what is always blacked out. An error comes with the place of its pattern.
    pub fn new(patterns: &[String]) -> Result<Self, (usize, Rejected)> {
        let mut rules = Vec::with_capacity(ALWAYS.len() + patterns.len());
        let own = patterns.iter().map(|pattern| (pattern.as_str(), BLACKED_OUT));
        for (at, (pattern, shown)) in own.chain(ALWAYS).enumerate() {
            let rejected = |error: regex::Error| (at, Rejected(error.to_string().replace('\n', " ")));
            let built = RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).build();
            let rule = built.map_err(rejected)?;
            if rule.is_match("") {
                return Err((at, Rejected("expected a pattern that does not match the empty text".into())));
            }
            rules.push((rule, shown));
        }
        let all = rules.iter().map(|(rule, _)| rule.as_str());
        let any = RegexSetBuilder::new(all).size_limit(LARGEST_PATTERN * rules.len()).build();
        let any = any.map_err(|error| (0, Rejected(error.to_string().replace('\n', " "))))?;
        Ok(Self { rules, any })
    }

    /// Where something of a text is not to be seen, and what stands there instead.
    fn spans(&self, text: &str, found: &mut Vec<(Range<usize>, &'static str)>) {
        for at in &self.any.matches(text) {
            let (rule, shown) = &self.rules[at];
            let all = rule.captures_iter(text);
            found.extend(all.filter_map(|one| Some((one.name("secret").or_else(|| one.get(0))?.range(), *shown))));
        }
    }
}

/// The text, what any of these want blacked out. All look at the text as it came, so that none hides a secret's form
/// from another.
pub(super) fn redacted<'a>(redactors: impl Iterator<Item = &'a Redactor>, text: &str) -> String {
    let mut found = Vec::new();
    redactors.for_each(|redactor| redactor.spans(text, &mut found));
    // Of those that begin together, the longest.
    found.sort_by_key(|(span, _)| (span.start, std::cmp::Reverse(span.end)));
    let (mut shown, mut end) = (String::with_capacity(text.len()), 0);
    for (span, instead) in found {
        if span.start >= end {
            shown.push_str(&text[end..span.start]);
            shown.push_str(instead);
        }
        end = end.max(span.end);
    }
    shown.push_str(&text[end..]);
    shown
}
