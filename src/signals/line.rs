//! One sample after its name: `{label="value",…} value [timestamp] [# exemplar]`.

/// Shows each label with its value, escapes left in, and answers what stands after them; `None` when they are broken.
pub(super) fn labels<'a>(text: &'a str, mut see: impl FnMut(&'a str, &'a str)) -> Option<&'a str> {
    let Some(mut rest) = text.trim_ascii_start().strip_prefix('{') else { return Some(text) };
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        let (name, quoted) = rest.split_once('=')?;
        let quoted = quoted.trim_ascii_start().strip_prefix('"')?;
        let end = closing_quote(quoted)?;
        see(name.trim_ascii_end(), &quoted[..end]);
        rest = quoted[end + 1..].trim_ascii_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next,
            None if rest.starts_with('}') => rest,
            None => return None,
        };
    }
}

/// The value of a sample.
pub(super) fn value(text: &str) -> Option<f64> {
    let sample = text.split_once('#').map_or(text, |(sample, _exemplar)| sample);
    let mut words = sample.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let is_timed = words.next().is_none_or(|timestamp| timestamp.parse::<f64>().is_ok());
    (is_timed && words.next().is_none()).then_some(value)
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    })
}
