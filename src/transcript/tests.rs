use super::*;
use crate::meter::{Form, Meter};

fn policy(most: usize, patterns: &[&str]) -> Arc<Policy> {
    let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Arc::new(Policy { most, redactor: Redactor::new(&patterns).unwrap() })
}

fn told(most: usize, patterns: &[&str], body: &Value, answer: Option<&Value>) -> Told {
    let transcript = Transcript::of(&policy(most, patterns), body).unwrap();
    let mut meter = Meter::new(Form::Json, false);
    meter.listen(transcript.answer_bytes());
    let mut answer = answer.map(|answer| answer.to_string().into());
    meter.observe(&mut answer, true);
    Telling { asked: &transcript, said: meter.said() }.tell()
}

fn input(told: &Told) -> Value {
    serde_json::from_str(told.input.as_deref().unwrap_or("null")).unwrap()
}

fn texts(value: &Value) -> String {
    let messages = value.as_array().unwrap().iter();
    let parts = messages.flat_map(|message| message["parts"].as_array().unwrap());
    parts.map(|part| part["content"].as_str().unwrap_or_default()).collect::<Vec<_>>().join("|")
}

#[test]
fn a_conversation_has_the_form_of_the_conventions() {
    let body = json!({"model": "m", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "https://bucket.example/a.png?X-Amz-Signature=abc"}}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"at\":1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"}]});
    let answer = json!({"choices": [{"index": 0, "message": {"content": "A cat."}, "finish_reason": "stop"}]});
    let told = told(4096, &[], &body, Some(&answer));
    assert_eq!(
        input(&told),
        json!([
            {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
            {"role": "user", "parts": [{"type": "text", "content": "What is this?"},
                {"type": "uri", "modality": "image", "uri": "data:image/png;base64,[left out]"},
                {"type": "uri", "modality": "image", "uri": "https://bucket.example/a.png?[redacted]"}]},
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "look", "arguments": "{\"at\":1}"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "a cat"}]}])
    );
    let output: Value = serde_json::from_str(told.output.as_deref().unwrap()).unwrap();
    assert_eq!(
        output,
        json!([{"role": "assistant", "parts": [{"type": "text", "content": "A cat."}], "finish_reason": "stop"}])
    );
    assert!(!told.is_cut);
}

#[test]
fn every_api_asks_in_its_own_words() {
    let user = |content: &str| json!([{"role": "user", "parts": [{"type": "text", "content": content}]}]);
    for (body, wanted) in [
        (json!({"prompt": "Once"}), user("Once")),
        (json!({"input": "embed"}), user("embed")),
        (json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}), user("hi")),
        (json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}), user("hi")),
        (json!({"requestBody": {"prompt": "deep"}}), user("deep")),
    ] {
        assert_eq!(input(&told(4096, &[], &body, None)), wanted, "{body}");
    }
    let list = told(4096, &[], &json!({"input": ["a", "b"]}), None);
    assert_eq!(texts(&input(&list)), "a|b");
    let rank = told(4096, &[], &json!({"query": {"text": "q"}, "passages": [{"text": "p1"}, {"text": "p2"}]}), None);
    assert_eq!(texts(&input(&rank)), "q|p1|p2");
    let message =
        told(4096, &[], &json!({"system": "Be kind.", "messages": [{"role": "user", "content": "hi"}]}), None);
    assert_eq!(message.system.as_deref(), Some(r#"[{"content":"Be kind.","type":"text"}]"#));
    for nothing in
        [json!({"input": [1, 2, 3]}), json!({"input": [[1], [2]]}), json!({"s3Config": {"secret": "x"}}), json!([])]
    {
        assert!(Transcript::of(&policy(4096, &[]), &nothing).is_none(), "{nothing}");
    }
}

#[test]
fn the_oldest_is_left_out_first() {
    let messages: Vec<Value> =
        (0..100).map(|at| json!({"role": "user", "content": format!("message {at:03}")})).collect();
    let told = told(64, &[], &json!({ "messages": messages }), None);
    let shown = input(&told);
    assert_eq!(texts(&shown), "message 0|message 095|message 096|message 097|message 098|message 099", "{shown}");
    assert!(told.is_cut);
    let long = "wörd ".repeat(100_000);
    let told = self::told(256, &[], &json!({ "prompt": long }), None);
    let text = texts(&input(&told));
    assert!(text.len() <= 256 && text.starts_with("wörd wörd") && told.is_cut, "{text}");
}

#[test]
fn secrets_are_blacked_out() {
    let shown = |text: &str, patterns: &[&str]| texts(&input(&told(4096, patterns, &json!({ "prompt": text }), None)));
    for (text, wanted) in [
        ("my key is nvapi-AbC_123-xyzxyz, ok?", "my key is [redacted], ok?"),
        ("ngk_team_0123456789abcdef", "[redacted]"),
        ("use sk-proj-0123456789 now", "use [redacted] now"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM", "[redacted]"),
        ("password = hunter2; then", "password = [redacted]; then"),
        (r#"{"aws_secret_access_key": "a b/c", "x": 1}"#, r#"{"aws_secret_access_key": [redacted], "x": 1}"#),
        (
            "s3://me:pw@host/a see https://h.example/x?sig=1&b=2 .",
            "s3://[redacted]@host/a see https://h.example/x?[redacted] .",
        ),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "[redacted]\nend"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "[redacted]"),
        ("data:video/mp4;base64,AAAA", "data:video/mp4;base64,[left out]"),
        ("a skeleton of tokens and keys", "a skeleton of tokens and keys"),
    ] {
        assert_eq!(shown(text, &[]), wanted);
    }
    assert_eq!(shown(&format!("see {}==", "Ab1/".repeat(100)), &[]), "see [base64]");
    assert_eq!(shown("customer AB123456 called", &[r"\b[A-Z]{2}\d{6}\b"]), "customer [redacted] called");
    // One that the bound would cut in two is whole when it is looked for.
    let (most, head) = (100, "x ".repeat(45));
    let told = told(most, &[], &json!({ "prompt": format!("{head}nvapi-{}", "a".repeat(80)) }), None);
    let text = texts(&input(&told));
    assert!(!text.contains("nvapi") && text.ends_with("[redacted]"), "{text}");
}

#[test]
fn answers_are_blacked_out_and_cut_too() {
    let content = format!("the key is nvapi-0123456789 {}", "and so on ".repeat(100));
    let answer = json!({"choices": [{"message": {"content": content}, "finish_reason": "length"}]});
    let told = told(64, &[], &json!({"prompt": "x"}), Some(&answer));
    let output = told.output.unwrap();
    assert!(output.contains("the key is [redacted] and so on") && output.len() < 200 && told.is_cut, "{output}");
}

#[test]
fn patterns_are_checked() {
    let rejected = |pattern: &str| Redactor::new(&["ok".to_owned(), pattern.to_owned()]).unwrap_err();
    for (pattern, wanted) in
        [("(", "unclosed group"), ("a*", "does not match the empty text"), (r"\w{1000}{1000}", "size limit")]
    {
        let (at, Rejected(reason)) = rejected(pattern);
        assert!(at == 1 && reason.contains(wanted), "{reason}");
    }
}
