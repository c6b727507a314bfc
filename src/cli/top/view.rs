//! View: one picture of what was seen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, Wrap};
use serde_json::Value;

use super::super::table::plain;
use super::app::{App, Focus};
use super::seen::{Seen, list};

const SOFT: Style = Style::new().fg(Color::DarkGray);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(app: &mut App, frame: &mut Frame<'_>) {
    let [head, charts, body, foot] = Layout::vertical([
        Constraint::Length(if app.trouble.is_some() { 2 } else { 1 }),
        Constraint::Length(6),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(header(app)).wrap(Wrap { trim: true }), head);
    let pause = if app.is_paused { "go on" } else { "pause" };
    let keys = format!("q quit · Tab next list · ↑↓ move · p {pause}");
    frame.render_widget(Paragraph::new(keys).style(SOFT), foot);
    let Some(seen) = app.seen.take() else { return };
    figures(&seen, frame, charts);
    let weight = |focus| Constraint::Fill(if app.focus() == focus { 3 } else { 2 });
    let areas = Layout::vertical([weight(Focus::Pools), weight(Focus::Callers), weight(Focus::Failures)]);
    let [pools, callers, failures] = areas.areas(body);
    lists::pools(app, &seen, frame, pools);
    lists::callers(app, &seen, frame, callers);
    lists::failures(app, &seen, frame, failures);
    app.seen = Some(seen);
}

fn header(app: &App) -> Vec<Line<'static>> {
    let mut parts = vec![Span::styled("nimgate ", STRONG)];
    if let Some(seen) = &app.seen {
        let (state, ready) = (&seen.state, &seen.ready);
        let standing = match (&state["draining"], &ready["ready"]) {
            (Value::Bool(true), _) => Span::styled("stopping", Color::Yellow),
            (_, Value::Bool(true)) => Span::styled("ready", Color::Green),
            _ => Span::styled("not ready", Color::Red),
        };
        let redis = &ready["redis"];
        let redis = match redis["up"].as_bool() {
            None => "no Redis".to_owned(),
            Some(true) => format!("Redis up, {} replicas", redis["replicas"]),
            Some(false) => format!("Redis away: {}", text(&redis["reason"])),
        };
        parts.push(format!("{} · ", text(&state["version"])).into());
        parts.push(standing);
        let up = seen.live["uptime_s"].as_f64().unwrap_or_default();
        let facts = [format!("generation {}", state["generation"]), format!("up {}", span(up))];
        let facts = facts.into_iter().chain([format!("in flight {}", state["in_flight"]), redis]);
        parts.extend(facts.map(|fact| format!(" · {fact}").into()));
    }
    parts.push(Span::styled(format!(" · {}", plain(&app.address)), SOFT));
    if app.is_paused {
        parts.push(Span::styled("  PAUSED", Style::new().fg(Color::Yellow)));
    }
    let mut lines = vec![Line::from(parts)];
    if let Some(trouble) = &app.trouble {
        let since = span(trouble.since.elapsed().as_secs_f64());
        let words = format!("away for {since}, trying again: {}", plain(&trouble.reason.replace('\n', "; ")));
        lines.push(Line::styled(words, Color::Red));
    } else if app.seen.is_none() {
        lines[0].push_span("· asking …");
    }
    lines
}

/// Rates and times of the last minutes.
fn figures(seen: &Seen, frame: &mut Frame<'_>, area: Rect) {
    let [requests, slow, tokens] = Layout::horizontal([Constraint::Fill(1); 3]).areas(area);
    let all = [
        ("requests/s", seen.column("requests"), Color::Cyan, requests, rate as fn(f64) -> String),
        ("p99", seen.column("total_p99"), Color::Red, slow, millis),
        ("tokens/s", seen.tokens(), Color::Magenta, tokens, rate),
    ];
    for (name, values, color, area, shown) in all {
        let last = values.last().copied().unwrap_or_default();
        let most = values.iter().copied().fold(0.0, f64::max);
        let title = format!(" {name} {} (most {}) ", shown(last), shown(most));
        let block = Block::new().borders(Borders::ALL).border_style(SOFT).title(title);
        let width = usize::from(area.width.saturating_sub(2));
        let shown = &values[values.len().saturating_sub(width)..];
        // In hundredths: the bars are of whole numbers.
        let data: Vec<u64> = shown.iter().map(|value| (value * 100.0) as u64).collect();
        frame.render_widget(Sparkline::default().block(block).data(data).style(color), area);
    }
}

mod lists {
    use super::*;

    pub(super) fn pools(app: &mut App, seen: &Seen, frame: &mut Frame<'_>, area: Rect) {
        let mut rows = Vec::new();
        for pool in list(&seen.state["pools"]) {
            let (queue, sum) = (&pool["queue"], seen.sum(pool["name"].as_str().unwrap_or_default()));
            let requests = sum["requests"].as_f64().unwrap_or_default();
            let cells = [
                text(&pool["name"]),
                format!("{} waiting", queue["waiting"]),
                format!("{}/{}", queue["in_flight"], queue["places"]),
                format!("{}/s", rate(requests / 60.0)),
                format!("p50 {}", or_none(&sum["p50_ms"], millis)),
                format!("p99 {}", or_none(&sum["p99_ms"], millis)),
                format!("{} failed", sum["failures"].as_u64().unwrap_or_default()),
            ];
            rows.push(Row::new(cells).style(STRONG));
            rows.extend(list(&pool["endpoints"]).iter().map(endpoint));
        }
        let head = ["pool, endpoint", "standing", "in flight", "expected", "kv cache", "reports", "breaker"];
        let widths = [28, 12, 11, 10, 12, 18, 12].map(Constraint::Min);
        show(app, Focus::Pools, "pools", rows, head, widths, frame, area);
    }

    fn endpoint(endpoint: &Value) -> Row<'static> {
        let (word, color) = match endpoint {
            e if e["drained"] == true => ("drained", Color::Yellow),
            e if e["healthy"] == false => ("unhealthy", Color::Red),
            e if e["breaker"] == "open" => ("broken", Color::Red),
            e if e["paused_s"].is_number() => ("paused", Color::Yellow),
            _ => ("well", Color::Green),
        };
        let report = &endpoint["report"];
        let reports = if report.is_null() {
            "-".into()
        } else {
            format!("{} run, {} wait", or_none(&report["running"], rate), or_none(&report["waiting"], rate))
        };
        Row::new([
            Cell::from(format!("  {}", text(&endpoint["name"]))),
            Cell::from(word).style(color),
            Cell::from(format!("{}/{}", endpoint["in_flight"], endpoint["max_in_flight"])),
            Cell::from(or_none(&endpoint["expected_s"], |seconds| millis(seconds * 1e3))),
            Cell::from(or_none(&report["kv_usage"], |share| format!("{:.0} %", share * 100.0))),
            Cell::from(reports),
            Cell::from(text(&endpoint["breaker"])),
        ])
    }

    pub(super) fn callers(app: &mut App, seen: &Seen, frame: &mut Frame<'_>, area: Rect) {
        let row = |used: &Value| {
            let key = used["key"].as_str().map_or_else(|| "all others".into(), plain);
            let count = |name: &str| or_none(&used[name], rate);
            Row::new([key, count("requests"), count("failures"), count("input_tokens"), count("output_tokens")])
        };
        let rows: Vec<_> = list(&seen.live["callers"]).iter().map(row).collect();
        let head = ["key", "requests", "failed", "tokens in", "tokens out"];
        show(
            app,
            Focus::Callers,
            "callers, 5 minutes",
            rows,
            head,
            [32, 10, 10, 10, 10].map(Constraint::Min),
            frame,
            area,
        );
    }

    pub(super) fn failures(app: &mut App, seen: &Seen, frame: &mut Frame<'_>, area: Rect) {
        let row = |failed: &Value| {
            let color = match failed["blame"].as_str() {
                Some("client" | "quota") => Color::Reset,
                _ => Color::Red,
            };
            let time = text(&failed["time"]).get(11..19).unwrap_or_default().to_owned();
            let cells = ["error", "blame", "status", "pool", "endpoint", "caller", "request_id"];
            Row::new(std::iter::once(time).chain(cells.map(|name| text(&failed[name])))).style(color)
        };
        let rows: Vec<_> = list(&seen.failed["requests"]).iter().map(row).collect();
        let head = ["UTC", "label", "blame", "status", "pool", "endpoint", "caller", "request id"];
        let widths = [8, 22, 17, 6, 10, 15, 12, 16].map(Constraint::Min);
        show(app, Focus::Failures, "failures", rows, head, widths, frame, area);
    }

    #[expect(clippy::too_many_arguments, reason = "what a list is made of")]
    fn show<const N: usize>(
        app: &mut App,
        focus: Focus,
        title: &str,
        mut rows: Vec<Row<'static>>,
        head: [&'static str; N],
        widths: [Constraint; N],
        frame: &mut Frame<'_>,
        area: Rect,
    ) {
        let (all, first) = (rows.len(), app.first(focus, rows.len()));
        let is_focused = app.focus() == focus;
        rows.drain(..first);
        let place =
            if first > 0 { format!(" {title} ({all}, from {}) ", first + 1) } else { format!(" {title} ({all}) ") };
        let style = if is_focused { Style::new().fg(Color::Cyan) } else { SOFT };
        let block = Block::new().borders(Borders::TOP).border_style(style).title(place);
        frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(SOFT)).block(block), area);
    }
}

/// A text that does nothing to a terminal.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Null => "-".into(),
        other => plain(&other.to_string()),
    }
}

fn or_none(value: &Value, shown: impl Fn(f64) -> String) -> String {
    value.as_f64().map_or_else(|| "-".into(), shown)
}

fn rate(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1}G", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n if n >= 100.0 || n.fract() == 0.0 => format!("{n:.0}"),
        n if n >= 1.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms if ms < 60e3 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} min", ms / 60e3),
    }
}

fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}
