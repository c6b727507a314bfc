use anyhow::anyhow;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::*;

fn seen() -> Seen {
    let endpoint = |name: &str, drained: bool| {
        json!({ "name": name, "healthy": true, "drained": drained, "in_flight": 3, "max_in_flight": 64,
            "breaker": "closed", "paused_s": null, "expected_s": 0.25,
            "report": { "running": 2.0, "waiting": 1.0, "kv_usage": 0.5 } })
    };
    let failure = |at: usize| {
        json!({ "time": format!("2027-01-01T12:00:{at:02}.000Z"), "error": "connect_refused", "blame": "network",
            "status": 502, "pool": "chat", "request_id": format!("request-{at}"), "caller": "evil\u{1b}[2Jname" })
    };
    Seen {
        state: json!({ "version": "9.9.9", "generation": 4, "draining": false, "in_flight": 6, "pools": [
            { "name": "chat", "queue": { "places": 128, "in_flight": 6, "waiting": 2 },
              "endpoints": [endpoint("10.0.0.1:8000", false), endpoint("10.0.0.2:8000", true)] },
        ] }),
        ready: json!({ "ready": true }),
        live: json!({ "uptime_s": 3700.0, "series": { "requests": [1, 50, 12], "total_p99": [null, 80.0, 1250.0],
            "input_tokens": [0, 10, 20], "output_tokens": [0, 5, 400] },
            "pools": [{ "pool": "chat", "requests": 90, "failures": 7, "p50_ms": 12.0, "p99_ms": 1250.0 }],
            "callers": [{ "key": "alice", "requests": 12345, "failures": 1, "input_tokens": 5, "output_tokens": 6 },
                { "key": null, "requests": 3, "failures": 0, "input_tokens": 5, "output_tokens": 6 }] }),
        failed: json!({ "requests": (0..30).rev().map(failure).collect::<Vec<_>>() }),
    }
}

fn shown(app: &mut App, size: (u16, u16)) -> String {
    picture(app, size).unwrap().join("\n")
}

fn press(app: &mut App, code: KeyCode) -> bool {
    app.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn a_picture_has_what_was_seen() {
    let mut app = App::new("http://gateway:9090");
    assert!(shown(&mut app, SIZE).contains("asking"));
    app.take(Ok(seen()));
    let picture = shown(&mut app, SIZE);
    for part in [
        "nimgate 9.9.9 · ready · generation 4 · up 1 h 1 min · in flight 6 · no Redis · http://gateway:9090",
        "requests/s 12 (most 50)",
        "p99 1.2 s",
        "tokens/s 420",
        "10.0.0.1:8000",
        "drained",
        "2 waiting",
        "6/128",
        "250 ms",
        "12.3k",
        "all others",
        "request-29",
        "12:00:29",
        "connect_refused",
    ] {
        assert!(picture.contains(part), "{part} in\n{picture}");
    }
    assert!(!picture.contains('\u{1b}'), "strangers' text does nothing to a terminal");
}

#[test]
fn keys_move_between_lists_and_in_them() {
    let mut app = App::new("a");
    app.take(Ok(seen()));
    assert!(shown(&mut app, SIZE).contains("request-29"));
    assert!([KeyCode::Tab, KeyCode::Tab, KeyCode::Down, KeyCode::Down].into_iter().all(|code| press(&mut app, code)));
    let picture = shown(&mut app, SIZE);
    assert!(picture.contains("failures (30, from 3)") && !picture.contains("request-29"), "{picture}");
    (0..9).for_each(|_| assert!(press(&mut app, KeyCode::PageDown)));
    assert!(shown(&mut app, SIZE).contains("request-0"), "the last one stays");
    assert!(press(&mut app, KeyCode::Home));
    assert!(shown(&mut app, SIZE).contains("request-29"));
    assert!(!press(&mut app, KeyCode::Char('q')) && !press(&mut app, KeyCode::Esc));
}

#[test]
fn what_was_known_stays_while_the_gateway_is_away() {
    let mut app = App::new("a");
    app.take(Err(anyhow!("connection refused")));
    assert!(shown(&mut app, SIZE).contains("away for 0 s, trying again: connection refused"));
    app.take(Ok(seen()));
    app.take(Err(anyhow!("connection refused")));
    let picture = shown(&mut app, SIZE);
    assert!(picture.contains("connection refused") && picture.contains("10.0.0.1:8000"), "{picture}");
    app.take(Ok(seen()));
    assert!(!shown(&mut app, SIZE).contains("connection refused"));
}

#[test]
fn a_paused_picture_does_not_change() {
    let mut app = App::new("a");
    app.take(Ok(seen()));
    assert!(press(&mut app, KeyCode::Char('p')));
    let mut later = seen();
    later.state["generation"] = 5.into();
    app.take(Ok(later));
    let picture = shown(&mut app, SIZE);
    assert!(picture.contains("PAUSED") && picture.contains("generation 4"), "{picture}");
}

#[test]
fn any_size_will_do() {
    let mut app = App::new("a");
    app.take(Ok(seen()));
    for size in [(1, 1), (20, 5), (80, 24), (300, 100)] {
        shown(&mut app, size);
    }
}

#[test]
fn answers_that_lack_everything_are_drawn_too() {
    let mut app = App::new("a");
    let nothing = || json!({});
    app.take(Ok(Seen { state: nothing(), ready: nothing(), live: nothing(), failed: nothing() }));
    assert!(shown(&mut app, SIZE).contains("not ready"));
}
