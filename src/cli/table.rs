//! Table: answers as people read them.

use std::io::Write;

use anyhow::Result;
use serde_json::Value;

/// Prints rows under a head, in columns.
pub(super) fn print(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let head: Vec<String> = head.iter().map(|name| name.to_uppercase()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let all = || std::iter::once(&head).chain(&rows);
    let width = |at: usize| all().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A cell that does nothing to a terminal.
pub(super) fn plain(cell: &str) -> String {
    if cell.is_empty() {
        return "-".into();
    }
    // Those that turn the direction of text around make it read as something else.
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    cell.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

/// Text or a number as a cell; lists with commas between.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Limits in one cell, each as `requests=10/second`.
pub(super) fn limits(value: &Value) -> String {
    let all = value.as_array().into_iter().flatten();
    let one = |limit: &Value| {
        let per = limit["per"].as_str().map(|per| format!("/{per}")).unwrap_or_default();
        format!("{}={}{per}{}", cell(&limit["metric"]), cell(&limit["amount"]), filter(limit))
    };
    all.map(one).collect::<Vec<_>>().join(" ")
}

fn filter(limit: &Value) -> String {
    let lists = [("model", "models"), ("pool", "pools"), ("operation", "operations")];
    let all = lists.into_iter().flat_map(|(one, list)| {
        limit[list].as_array().into_iter().flatten().map(move |pattern| format!(",{one}={}", cell(pattern)))
    });
    all.collect()
}

/// How limits stand, one in each row.
pub(super) fn standings<'a>(out: &mut impl Write, limits: impl Iterator<Item = &'a Value>) -> Result<()> {
    let row = |limit: &Value| {
        let resets = limit["resets_in_s"].as_f64().map(|s| format!("{} s", s.ceil())).unwrap_or_default();
        let name = format!("{}{}", cell(&limit["name"]), filter(limit));
        vec![name, cell(&limit["amount"]), cell(&limit["used"]), cell(&limit["remaining"]), resets]
    };
    let rows: Vec<_> = limits.map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    print(out, &["limit", "amount", "used", "remaining", "resets in"], &rows)
}

/// Prints JSON, for programs.
pub(super) fn json(out: &mut impl Write, value: &Value) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut out = Vec::new();
        let rows = [vec!["a".into(), "1".into()], vec!["long\x1b[31m".into(), String::new()]];
        print(&mut out, &["id", "n"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "ID         N\na          1\nlong?[31m  -\n");
    }

    #[test]
    fn limits_read_as_they_are_given() {
        let shown = json!([
            { "metric": "requests", "per": "second", "amount": 10, "models": ["a", "b"] },
            { "metric": "concurrency", "per": null, "amount": 4 },
        ]);
        assert_eq!(limits(&shown), "requests=10/second,model=a,model=b concurrency=4");
    }
}
