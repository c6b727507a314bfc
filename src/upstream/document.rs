//! `docs/failures.md`, made from the table.

use super::body::Shape;
use super::fault::Fault;
use super::table::{Again, Answer, DIRECT, Event, NATIVE, NGC, NIM, PEXEC, ROWS, Ran, Row, Says, Seen};

const HEAD: &str = "# Failures from behind the gateway

Made from `src/upstream/table.rs` by `NIMGATE_WRITE_DOCS=1 cargo test --test config`; a test holds it to the table. What the gateway
itself refuses is in the [README](../README.md#failures-label-and-blame), why it is so in decision [0016](decisions/0016-failure-table.md).

## On the wire

The first row that fits counts. *Kinds* are those of pools: `nim`, `direct` and `pexec` (a function offered as a model), `native` (`/v2/nvcf/**`)
and `ngc`. *Executed* says how much of the request may have run. *Retried* says what the gateway does by itself: `yes` at another endpoint or
in another pool, `if repeatable` only where the operation may run twice, `later` that the caller may do so after a while, `no` that it would
fail alike. *Answered with* is for callers of models; the native face passes all as it came, with label and blame in headers. A body that is
empty or a page of HTML never passes to callers of models. *Sources* are named in the table's head; `own` is the gateway's own sight,
`derived` follows from other rows, `obs` was seen in the open. `Retry-After` of the backend always passes; the seconds here are what the
gateway states where there is none. An error event of a stream is read by the same rows, by the status that it states, or 500.

| Seen | Kinds | Label | Blame | Executed | Retried | Answered with | Retry-After | Source |
|---|---|---|---|---|---|---|---|---|
";

/// The page.
pub fn render() -> String {
    let mut text = HEAD.to_owned();
    for row in ROWS {
        let cells = [
            seen(row),
            kinds(row.kinds),
            format!("`{}`", row.fault.label()),
            row.blame.word().to_owned(),
            executed(row.ran).to_owned(),
            retried(row).to_owned(),
            answered(row),
            row.retry_after.map_or(String::new(), |seconds| format!("{seconds} s")),
            row.source.to_owned(),
        ];
        text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text += "\n## For whoever is on call\n";
    for fault in Fault::ALL {
        let words = fault.words();
        let mut blames: Vec<&str> = ROWS.iter().filter(|row| row.fault == *fault).map(|row| row.blame.word()).collect();
        blames.sort_unstable();
        blames.dedup();
        text += &format!("\n### `{}`\n\nBlame: {}.\n\n", words.label, blames.join(" or "));
        text += &format!("{}\n\nFirst: {}\n", words.meaning, words.first);
    }
    text
}

fn seen(row: &Row) -> String {
    let mut parts = vec![match row.seen {
        Seen::Status(statuses) => statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
        Seen::Within(from, to) => format!("{from} to {to}"),
        Seen::Grpc([]) => "any other `grpc-status`".into(),
        Seen::Grpc(statuses) => format!("`grpc-status` {}", statuses.join(", ")),
        Seen::Event(event) => happened(event).into(),
    }];
    if row.shapes != u16::MAX {
        let shapes = Shape::ALL.iter().filter(|(shape, _)| row.shapes & *shape as u16 != 0).map(|(_, words)| *words);
        parts.push(shapes.collect::<Vec<_>>().join(" or "));
    }
    if !row.urn.is_empty() {
        parts.push(format!("`type` has `{}`", row.urn));
    }
    match row.words {
        Says::Anything => {}
        Says::Nothing => parts.push("without words".into()),
        Says::Starts(words) => parts.push(format!("words begin with ``{words}``")),
        Says::Has(words) => parts.push(format!("words hold ``{words}``")),
    }
    match row.header {
        Some((name, "")) => parts.push(format!("header `{name}`")),
        Some((name, value)) => parts.push(format!("header `{name}: {value}`")),
        None => {}
    }
    match row.dispatched {
        Some(true) => parts.push("header `nvcf-reqid`".into()),
        Some(false) => parts.push("no header `nvcf-reqid`".into()),
        None => {}
    }
    parts.join("; ")
}

fn happened(event: Event) -> &'static str {
    match event {
        Event::Unresolved => "no address of the pool is known",
        Event::ConnectRefused => "connection refused",
        Event::ConnectTimeout => "no connection within `timeouts.connect_ms`",
        Event::ConnectFailed => "no connection for another reason, or no endpoint is left",
        Event::TlsFailed => "no TLS",
        Event::RequestCut => "the connection ended before it had taken the whole request",
        Event::StreamRefused => "HTTP/2: the stream was refused, or came after the last one that is taken",
        Event::ClosedBeforeHeader => "the connection was closed before the answer's header",
        Event::ClosedWithin => "the connection was closed within the answer",
        Event::ResetBeforeHeader => "the connection was reset before the answer's header",
        Event::ResetWithin => "the connection was reset within the answer",
        Event::Protocol => "what came is not HTTP as it should be",
        Event::FirstByteTimeout => "no header within `timeouts.first_byte_ms`",
        Event::Stalled => "silence within the answer above `timeouts.between_chunks_ms`",
        Event::TotalTimeout => "`timeouts.total_ms` or `x-request-timeout` is over",
        Event::StreamUnfinished => "an event stream ended without its last event",
        Event::AnswerIncomplete => "a 2xx answer lacks what its operation promises",
    }
}

fn kinds(kinds: u8) -> String {
    let all = [(NIM, "nim"), (DIRECT, "direct"), (PEXEC, "pexec"), (NATIVE, "native"), (NGC, "ngc")];
    let named: Vec<&str> = all.iter().filter(|(bit, _)| kinds & bit != 0).map(|(_, word)| *word).collect();
    if named.len() == all.len() { "all".into() } else { named.join(", ") }
}

fn executed(ran: Ran) -> &'static str {
    match ran {
        Ran::No => "no",
        Ran::Maybe => "maybe",
        Ran::Yes => "yes",
    }
}

fn retried(row: &Row) -> &'static str {
    match (row.again, row.ran) {
        (Again::Never, _) | (_, Ran::Yes) => "no",
        (Again::Later, _) => "later",
        (Again::Elsewhere, Ran::No) => "yes",
        (Again::Elsewhere, Ran::Maybe) => "if repeatable",
    }
}

fn answered(row: &Row) -> String {
    let quoted = if row.quotes { ", quoting it" } else { "" };
    match row.answer {
        Answer::Passed => "its status and body".into(),
        Answer::Worded => format!("its status, our words{quoted}"),
        Answer::Own(status) => format!("{status}, our words{quoted}"),
    }
}
