use serde_json::{Value, json};

use super::*;

/// All that a meter found, and what it let pass.
#[derive(Debug, PartialEq)]
struct Seen {
    usage: Option<Usage>,
    counted: u64,
    text_bytes: u64,
    complete: bool,
    failed: bool,
    passed: Vec<u8>,
}

fn run<'a>(form: Form, withhold: bool, pieces: impl IntoIterator<Item = &'a [u8]>, end: bool) -> Seen {
    let mut meter = Meter::new(form, withhold);
    let mut passed = Vec::new();
    let mut observe = |mut piece: Option<Bytes>, end| {
        meter.observe(&mut piece, end);
        passed.extend_from_slice(&piece.unwrap_or_default());
    };
    for piece in pieces {
        observe(Some(Bytes::copy_from_slice(piece)), false);
    }
    if end {
        observe(None, true);
    }
    Seen {
        usage: meter.usage(),
        counted: meter.counted(),
        text_bytes: meter.text_bytes(),
        complete: meter.is_complete(),
        failed: meter.error().is_some(),
        passed,
    }
}

fn events(stream: &str) -> Seen {
    run(Form::Events, false, [stream.as_bytes()], true)
}

fn usage(input: u64, output: u64) -> Option<Usage> {
    Some(Usage { input, output })
}

fn stream(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).chain(["data: [DONE]\n\n".to_owned()]).collect()
}

fn chunk(choices: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices})
}

fn delta(delta: &Value) -> Value {
    chunk(&json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]))
}

fn chat() -> Vec<Value> {
    let mut events = vec![delta(&json!({"role": "assistant", "content": ""}))];
    events.extend(["Hel", "lo\n", " \"ü\"", "usage", "🙂"].map(|word| delta(&json!({ "content": word }))));
    events.push(chunk(&json!([{"index": 0, "delta": {}, "finish_reason": "stop"}])));
    events
}

/// The chat as it comes when usage was asked for.
fn chat_with_usage() -> Vec<Value> {
    let mut events: Vec<Value> = chat().into_iter().map(|event| with(event, Value::Null)).collect();
    let stated = json!({"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5});
    events.push(with(chunk(&json!([])), stated));
    events
}

fn with(mut event: Value, usage: Value) -> Value {
    event["usage"] = usage;
    event
}

fn named(events: &[Value]) -> String {
    events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())).collect()
}

fn responses() -> String {
    let response = |usage: Value| json!({"id": "r", "output": [{"usage": {"input_tokens": 1}}], "usage": usage});
    named(&[
        json!({"type": "response.created", "response": response(Value::Null)}),
        json!({"type": "response.output_text.delta", "delta": "Hel"}),
        json!({"type": "response.output_text.delta", "delta": "lo"}),
        json!({"type": "response.function_call_arguments.delta", "delta": "{}"}),
        json!({"type": "response.output_text.done", "text": "Hello"}),
        json!({"type": "response.completed", "response":
            response(json!({"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}))}),
    ])
}

fn messages() -> String {
    let block = |delta: Value| json!({"type": "content_block_delta", "index": 0, "delta": delta});
    named(&[
        json!({"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        block(json!({"type": "text_delta", "text": "Hello"})),
        block(json!({"type": "thinking_delta", "thinking": "hm"})),
        block(json!({"type": "input_json_delta", "partial_json": "{\"a\""})),
        block(json!({"type": "signature_delta", "signature": "x"})),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}),
        json!({"type": "message_stop"}),
    ])
}

fn tools() -> Vec<Value> {
    let call = |function: Value| delta(&json!({"tool_calls": [{"index": 0, "function": function}]}));
    let stated = json!({"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2});
    vec![
        call(json!({"name": "f", "arguments": ""})),
        call(json!({"arguments": "{\"a\""})),
        call(json!({"arguments": ":1}"})),
        with(chunk(&json!([])), stated),
    ]
}

fn completions() -> Vec<Value> {
    let word = |text: &str| json!({"object": "text_completion", "choices": [{"index": 0, "text": text}]});
    vec![
        word("a"),
        word(" bc"),
        json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}),
    ]
}

fn continuous() -> Vec<Value> {
    let stated = |n: u64| json!({"prompt_tokens": 4, "completion_tokens": n, "total_tokens": 4 + n});
    let mut events: Vec<Value> = (1..4).map(|n| with(delta(&json!({"content": "x"})), stated(n))).collect();
    events.push(with(chunk(&json!([])), stated(3)));
    events
}

/// Streams of every kind, with line breaks of every kind.
fn samples() -> Vec<String> {
    let plain = vec![
        stream(&chat()),
        stream(&chat_with_usage()),
        stream(&tools()),
        stream(&completions()),
        stream(&continuous()),
        stream(&[with(chunk(&json!([])), json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}))]),
        responses(),
        messages(),
        format!("\u{feff}: comment\n\n\n{}", stream(&completions()).replace("data: ", "data:")),
        "id: 1\ndata: {\"choices\":[],\ndata\ndata: \"usage\":{\"prompt_tokens\":1}}\nretry: 5\n\ndata: [DONE]"
            .to_owned(),
    ];
    let breaks = ["\r\n", "\r"].iter().flat_map(|b| plain.iter().map(|s| s.replace('\n', b)));
    breaks.chain(plain.clone()).collect()
}

#[test]
fn chat_is_metered() {
    let seen = events(&stream(&chat_with_usage()));
    assert_eq!((seen.usage, seen.counted, seen.text_bytes), (usage(7, 5), 5, 3 + 3 + 5 + 5 + 4));
    assert!(seen.complete && !seen.failed);
    let seen = events(&stream(&chat()));
    assert_eq!((seen.usage, seen.counted), (None, 5));
}

#[test]
fn every_kind_of_stream_is_metered() {
    for (text, wanted) in [
        (stream(&tools()), (usage(3, 2), 2, 7)),
        (stream(&completions()), (usage(1, 2), 2, 4)),
        (stream(&continuous()), (usage(4, 3), 3, 3)),
        (responses(), (usage(9, 3), 3, 7)),
        (messages(), (usage(25, 15), 3, 11)),
    ] {
        let seen = run(Form::Events, false, [text.as_bytes()], false);
        assert_eq!((seen.usage, seen.counted, seen.text_bytes), wanted, "{text}");
        assert!(seen.complete && !seen.failed);
    }
}

#[test]
fn reasoning_under_two_names_counts_once() {
    let both = delta(&json!({"reasoning": "abc", "reasoning_content": "abc", "content": null}));
    let seen = events(&stream(&[both]));
    assert_eq!((seen.counted, seen.text_bytes), (1, 3));
}

#[test]
fn usage_is_read_in_every_wording() {
    for (stated, wanted) in [
        (json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}), usage(0, 0)),
        (json!({"prompt_tokens": 8, "total_tokens": 8}), usage(8, 0)),
        (json!({"total_tokens": 8, "completion_tokens": 3}), usage(5, 3)),
        (json!({"total_tokens": 8}), usage(8, 0)),
        (json!({"input_tokens": 2, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 1}}), usage(2, 3)),
        (json!({"prompt_tokens": 2, "completion_tokens": null, "prompt_tokens_details": null}), usage(2, 0)),
        (json!({"prompt_tokens": 2.0, "completion_tokens": -3}), usage(2, 0)),
        (json!({}), None),
        (json!("many"), None),
        (Value::Null, None),
    ] {
        let body = json!({"object": "list", "data": [{"embedding": [0.1]}], "usage": stated}).to_string();
        assert_eq!(run(Form::Json, false, [body.as_bytes()], true).usage, wanted, "{stated}");
        let event = with(chunk(&json!([])), stated.clone());
        assert_eq!(events(&stream(&[event])).usage, wanted, "{stated}");
    }
}

#[test]
fn errors_inside_a_stream_are_seen() {
    for text in [
        "data: {\"error\": {\"message\": \"EngineCore\", \"code\": 500}}\n\n",
        "data: {\"object\": \"error\", \"message\": \"no\", \"type\": \"BadRequestError\", \"code\": 400}\n\n",
        "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\"}}\n\n",
        "event: error\ndata: it broke\n\n",
        "event: response.failed\ndata: {\"type\": \"response.failed\", \"response\": {\"error\": {}}}\n\n",
    ] {
        assert!(events(text).failed, "{text}");
    }
    assert!(!events("data: {\"error\": null, \"choices\": []}\n\ndata: {\"response\": {\"error\": {}}}\n\n").failed);
}

#[test]
fn pieces_do_not_matter() {
    for sample in samples() {
        for withhold in [false, true] {
            let bytes = sample.as_bytes();
            let whole = run(Form::Events, withhold, [bytes], true);
            if !withhold {
                assert_eq!(whole.passed, bytes);
            }
            for at in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(at);
                assert_eq!(run(Form::Events, withhold, [head, tail], true), whole, "split at {at}: {sample}");
            }
            for length in [1, 2, 3, 7, 50] {
                assert_eq!(run(Form::Events, withhold, bytes.chunks(length), true), whole, "by {length}: {sample}");
            }
        }
    }
}

#[test]
fn withheld_usage_leaves_the_stream_that_was_asked_for() {
    for line_break in ["\n", "\r\n", "\r"] {
        let asked = stream(&chat()).replace('\n', line_break);
        let sent = stream(&chat_with_usage()).replace('\n', line_break);
        let seen = run(Form::Events, true, [sent.as_bytes()], true);
        assert_eq!(String::from_utf8(seen.passed).unwrap().replace(",\"usage\":null", ""), asked);
        assert_eq!(seen.usage, usage(7, 5));
    }
    for sample in [stream(&continuous()), stream(&completions()), stream(&tools())] {
        let passed = run(Form::Events, true, [sample.as_bytes()], true).passed;
        let removed = sample.split_inclusive("\n\n").filter(|event| event.contains("\"choices\":[]")).count();
        let kept: String = sample.split_inclusive("\n\n").filter(|event| !event.contains("\"choices\":[]")).collect();
        assert_eq!((removed, String::from_utf8(passed).unwrap()), (1, kept));
    }
}

#[test]
fn what_only_resembles_the_usage_event_passes() {
    for text in [
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}",
    ] {
        assert_eq!(run(Form::Events, true, [text.as_bytes()], true).passed, text.as_bytes(), "{text}");
    }
}

#[test]
fn complete_events_are_never_held() {
    for sample in samples().iter().filter(|sample| !sample.contains("\"choices\":[]") && !sample.contains(":[],")) {
        let bytes = sample.as_bytes();
        let ends = (0..bytes.len()).filter(|end| {
            let rest = &bytes[..*end];
            [&b"\n\n"[..], b"\r\r", b"\r\n\r\n", b"\r\n\r"].iter().any(|b| rest.ends_with(b))
        });
        for end in ends {
            assert_eq!(run(Form::Events, true, bytes[..end].chunks(5), false).passed, &bytes[..end]);
        }
    }
}

#[test]
fn a_passing_piece_is_not_copied() {
    let mut meter = Meter::new(Form::Events, true);
    let sent = Bytes::from(stream(&chat()));
    let mut piece = Some(sent.clone());
    meter.observe(&mut piece, false);
    assert_eq!(piece.map(|piece| piece.as_ptr()), Some(sent.as_ptr()));
}

#[test]
fn a_piece_of_which_nothing_is_left() {
    let event = Bytes::from_static(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n");
    for (end, wanted) in [(false, Some(Bytes::new())), (true, None)] {
        let mut piece = Some(event.clone());
        Meter::new(Form::Events, true).observe(&mut piece, end);
        assert_eq!(piece, wanted);
    }
}

#[test]
fn an_endless_event_is_not_collected() {
    let mut meter = Meter::new(Form::Events, true);
    let filler = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut passed = 0;
    for piece in [Bytes::from_static(b"data: {\"text\":\"")].into_iter().chain(std::iter::repeat_n(filler, 100)) {
        let mut piece = Some(piece);
        meter.observe(&mut piece, false);
        passed += piece.map_or(0, |piece| piece.len());
    }
    assert_eq!(passed, 15 + 100 * 64 * 1024);
    let rest = b"\",\"usage\":{\"input_tokens\":5,\"output_tokens\":6}}\n\n";
    let after = b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    for text in [&rest[..], after] {
        let mut piece = Some(Bytes::copy_from_slice(text));
        meter.observe(&mut piece, false);
        assert_eq!(piece.as_deref(), Some(text));
    }
    assert_eq!((meter.usage(), meter.counted()), (usage(5, 6), 1));
}

#[test]
fn a_large_document_is_read_at_its_ends() {
    let numbers = vec![0.123_456; 20_000];
    let items: Vec<Value> = (0..8).map(|at| json!({"index": at, "embedding": numbers})).collect();
    let items = Value::from(items).to_string();
    let stated = r#""usage" : {"prompt_tokens": 40, "total_tokens": 40}"#;
    let last = format!(r#"{{"object":"list","data":{items},{stated}}}"#);
    let first = format!(r#"{{"object":"list",{stated},"data":{items}}}"#);
    let in_text = format!(r#"{{"data":{items},{stated},"text":"\"usage\":{{\"prompt_tokens\":1}}"}}"#);
    for body in [&last, &first, &in_text] {
        for length in [999, 1000, 4097, 8192, 16_384, 65_536, 65_537, usize::MAX] {
            let pieces = || body.as_bytes().chunks(length);
            let seen = run(Form::Json, true, pieces(), true);
            assert_eq!((seen.usage, seen.text_bytes, seen.counted), (usage(40, 0), body.len() as u64, 0), "{length}");
            assert_eq!(seen.passed, body.as_bytes());
            assert_eq!(run(Form::Json, true, pieces(), false).usage, usage(40, 0));
        }
    }
}

#[test]
fn a_document_of_any_length_is_read() {
    let stated = r#","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;
    for length in [0, 1000, 60_000, 65_400, 65_500, 65_536, 66_000, 80_000, 82_000, 98_000, 115_000, 200_000] {
        let body = format!("{{\"text\":\"{}\"{stated}", "x".repeat(length));
        for pieces in [100, 5000, 30_000, usize::MAX] {
            let seen = run(Form::Json, false, body.as_bytes().chunks(pieces), true);
            assert_eq!(seen.usage, usage(3, 4), "{length} by {pieces}");
        }
    }
}

#[test]
fn only_the_member_of_the_document_counts() {
    let body = r#"{"choices":[{"usage":{"prompt_tokens":1}}],"text":"{\"usage\":{\"prompt_tokens\":2}}"}"#;
    assert_eq!(run(Form::Json, false, [body.as_bytes()], true).usage, None);
}

#[test]
fn forms_follow_the_headers() {
    for (kind, encoding, wanted) in [
        ("text/event-stream; charset=utf-8", None, Form::Events),
        ("Text/Event-Stream", Some("identity"), Form::Events),
        ("application/json", None, Form::Json),
        ("application/json;charset=utf-8", None, Form::Json),
        ("application/problem+json", None, Form::Json),
        ("application/json", Some("gzip"), Form::Opaque),
        ("text/event-stream", Some("br"), Form::Opaque),
        ("text/plain", None, Form::Opaque),
        ("application/jsonl", None, Form::Opaque),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        }
        assert_eq!(Form::of(&headers), wanted, "{kind}");
    }
    assert_eq!(Form::of(&HeaderMap::new()), Form::Opaque);
}

#[test]
fn an_opaque_body_passes_unread() {
    let seen = run(Form::Opaque, true, [stream(&chat_with_usage()).as_bytes()], true);
    assert_eq!((seen.usage, seen.counted, seen.text_bytes, seen.complete), (None, 0, 0, true));
    assert_eq!(seen.passed, stream(&chat_with_usage()).as_bytes());
}

#[test]
fn garbage_is_survived() {
    let mut random = fastrand::Rng::with_seed(7);
    let samples = samples();
    for _ in 0..5000 {
        let mut bytes = samples[random.usize(..samples.len())].clone().into_bytes();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..bytes.len());
            match random.u8(..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.insert(at, *random.choice(b"\r\n{}[]\",:\\").unwrap_or(&0)),
                2 => bytes.truncate(at.max(1)),
                _ => drop(bytes.drain(at..(at + random.usize(..20)).min(bytes.len() - 1).max(at))),
            }
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(400)));
            pieces.push(piece);
            rest = after;
        }
        let passed = run(Form::Events, false, pieces.iter().copied(), true);
        assert_eq!(passed.passed, bytes);
        assert_eq!(passed, run(Form::Events, false, [&bytes[..]], true));
        let withheld = run(Form::Events, true, pieces.iter().copied(), true);
        assert_eq!(withheld, run(Form::Events, true, [&bytes[..]], true));
        assert_eq!(withheld.usage, passed.usage);
        run(Form::Json, true, pieces.iter().copied(), true);
    }
}

#[test]
fn why_a_model_ended_is_read_from_events_and_documents() {
    let finish = |form, pieces: &[String]| {
        let mut meter = Meter::new(form, false);
        for (at, piece) in pieces.iter().enumerate() {
            meter.observe(&mut Some(Bytes::from(piece.clone())), at + 1 == pieces.len());
        }
        meter.finish().word()
    };
    let event = |data: &Value| format!("data: {data}\n\n");
    let ended = |reason: Value| json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] });
    let events = [event(&ended(Value::Null)), event(&ended("length".into())), "data: [DONE]\n\n".into()];
    assert_eq!(finish(Form::Events, &events), Some("length"));
    assert_eq!(finish(Form::Events, &events[..1]), None);
    let message = json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" } });
    assert_eq!(finish(Form::Events, &[event(&message)]), Some("tool_calls"));
    let document = json!({ "choices": [{ "message": { "content": "x" }, "finish_reason": "stop" }] });
    assert_eq!(finish(Form::Json, &[document.to_string()]), Some("stop"));
    let other = json!({ "content": [], "stop_reason": "pause_turn" });
    assert_eq!(finish(Form::Json, &[other.to_string()]), Some("other"));
    assert_eq!(finish(Form::Json, &["garbage".into()]), None);
}
