use super::*;
use crate::meter::{Form, Meter};
use crate::schema::Document;

fn policy(most: usize, patterns: &[&str]) -> Arc<Policy> {
    let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Arc::new(Policy { most, redactor: Redactor::new(&patterns).unwrap() })
}

fn told(most: usize, patterns: &[&str], body: &Value, answer: Option<&Value>) -> Told {
    tell(&Transcript::of(&policy(most, patterns), body).unwrap(), answer)
}

fn tell(transcript: &Transcript, answer: Option<&Value>) -> Told {
    let mut meter = Meter::new(Form::Json, false);
    meter.listen(transcript.answer_bytes());
    let mut answer = answer.map(|answer| answer.to_string().into());
    meter.observe(&mut answer, true);
    let finish = meter.finish();
    Telling { asked: transcript, said: meter.said(), finish }.tell()
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
        (json!({"content": "Once"}), user("Once")),
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
    assert_eq!(texts(&input(&rank)), "p1|p2|q");
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
    let long = "wörd ".repeat(5_000);
    let told = self::told(256, &[], &json!({ "prompt": long }), None);
    let text = texts(&input(&told));
    assert!(text.len() <= 256 && text.starts_with("wörd wörd") && told.is_cut, "{text}");
    // Neither a long system prompt nor long passages leave no room for what is asked.
    let body = json!({"system": long, "messages": [{"role": "user", "content": "and?"}]});
    assert_eq!(texts(&input(&self::told(256, &[], &body, None))), "and?");
    let body = json!({"query": {"text": "and?"}, "passages": [{"text": long}]});
    assert!(texts(&input(&self::told(256, &[], &body, None))).ends_with("|and?"));
}

#[test]
fn what_a_cut_went_through_is_not_shown() {
    // Much that is blacked out makes room for the end of what was kept, where a secret may be cut in two.
    let most = 4096;
    let newest = "Ab1/".repeat(1_500);
    for older in ["x postgres://admin:Super", "x AB1234"] {
        let (head, secret) = older.split_at(2);
        // So that what is kept ends in the secret.
        let left = kept(most) - newest.len() - 4 * 16 - secret.len();
        let older = format!("{}{secret}Secret56@db and more", head.repeat(left / 2));
        let body = json!({"messages": [{"role": "user", "content": older}, {"role": "user", "content": newest}]});
        let told = told(most, &["AB[0-9]{6}"], &body, None);
        let text = texts(&input(&told));
        assert!(told.is_cut && !text.contains("Super") && !text.contains("AB12"), "{text}");
    }
    // Many small parts cost room too, but not that of the margin.
    let mut messages: Vec<Value> = (0..260).map(|_| json!({"role": "user", "content": "ok"})).collect();
    messages.insert(0, json!({"role": "user", "content": format!("{}nvapi-{}", "x ".repeat(1000), "a".repeat(4000))}));
    let told = told(most, &[], &json!({ "messages": messages }), None);
    assert!(told.is_cut && !told.input.unwrap().contains("nvapi"));
}

#[test]
fn of_a_text_that_is_known_by_its_ends_the_head_is_shown() {
    let body = json!({"prompt": format!("{}TAIL", "word ".repeat(50_000))}).to_string();
    let document = Document::parse(body.as_bytes()).unwrap();
    let told = told(16_384, &[], &document.value, None);
    let text = texts(&input(&told));
    assert!(told.is_cut && text.starts_with("word word") && !text.contains("TAIL"), "{text}");
}

#[test]
fn what_has_many_parts_is_bounded_too() {
    let call = json!({"function": {"name": "", "arguments": ""}});
    let calls: Vec<Value> = (0..100_000).map(|_| call.clone()).collect();
    let empty = json!({"role": "tool", "tool_call_id": "", "content": ""});
    let results: Vec<Value> = (0..100_000).map(|_| empty.clone()).collect();
    let texts: Vec<Value> = (0..100_000).map(|_| json!("")).collect();
    for body in [
        json!({"messages": [{"role": "assistant", "content": null, "tool_calls": calls}]}),
        json!({ "messages": results }),
        json!({ "input": texts }),
    ] {
        let policy = policy(4096, &[]);
        let Some(transcript) = Transcript::of(&policy, &body) else { continue };
        let parts: usize = transcript.asked.messages.iter().map(|message| message.parts.len()).sum();
        assert!(parts <= kept(4096) / 16 && transcript.asked.is_cut, "{parts}");
    }
}

#[test]
fn every_pool_has_a_say() {
    let mut transcript = Transcript::of(&policy(4096, &["red"]), &json!({"prompt": "red and blue and long"})).unwrap();
    transcript.also(&policy(24, &["blue"]));
    let told = tell(&transcript, None);
    assert_eq!(texts(&input(&told)), "[redacted] and [redacted");
    assert!(told.is_cut);
}

#[test]
fn what_is_asked_is_told_as_it_was_meant() {
    let parts = |message: Value| {
        let mut body = json!({"messages": [{"role": "user"}]});
        body["messages"][0].as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
        input(&told(4096, &[], &body, None))[0]["parts"].clone()
    };
    let text = |text: &str| json!([{"type": "text", "content": text}]);
    assert_eq!(parts(json!({"content": "hi", "tool_call_id": null})), text("hi"));
    assert_eq!(parts(json!({"content": [{"text": "a passage", "source": "wiki"}]})), text("a passage"));
    assert_eq!(
        parts(json!({"content": "data:text/plain;base64,SGk= please decode"}))[0]["content"],
        "data:text/plain;base64,[left out] please decode"
    );
    let called = json!([{"type": "tool_call", "id": "", "name": "f", "arguments": "{\"a\":1}"}]);
    assert_eq!(parts(json!({"content": null, "function_call": {"name": "f", "arguments": {"a": 1}}})), called);
    assert_eq!(
        parts(json!({"content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\":1}"}}]})),
        called
    );
    let document = parts(json!({"content": [{"type": "document", "source": {"type": "base64", "data": "AAAA"}}]}));
    assert_eq!(document, json!([{"type": "uri", "modality": "document", "uri": "data:;base64,[left out]"}]));
    let image = format!("data:image/png;base64,{}", "AAAA".repeat(25_000));
    let body = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]});
    let body = Document::parse(body.to_string().as_bytes()).unwrap().value;
    let told = self::told(4096, &[], &body, None);
    assert_eq!(input(&told)[0]["parts"][0]["uri"], "data:image/png;base64,[left out]");
    assert!(!told.is_cut);
    let item = json!({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": null},
        {"type": "function_call_output", "call_id": "c", "output": "done"}], "system": null, "instructions": "Be kind."});
    let told = self::told(4096, &[], &item, None);
    assert_eq!(
        input(&told),
        json!([{"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "done"}]}])
    );
    assert!(told.system.unwrap().contains("Be kind."));
}

#[test]
fn reasons_are_those_of_the_conventions() {
    for (answer, wanted) in [
        (json!({"choices": [{"message": {"content": "x"}, "finish_reason": "tool_calls"}]}), "tool_call"),
        (json!({"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}), "content_filter"),
        (json!({"choices": [{"message": {"content": "y".repeat(20_000)}, "finish_reason": "length"}]}), "length"),
        (
            json!({"output": [{"type": "message", "content": [{"type": "output_text", "text": "x"}]}], "status": "completed"}),
            "stop",
        ),
        (
            json!({"output": [{"type": "message", "content": [{"type": "output_text", "text": "x"}]}], "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"}}),
            "length",
        ),
        (json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn"}), "stop"),
        (json!({"choices": [{"message": {"content": "x"}}]}), "unknown"),
    ] {
        let told = told(4096, &[], &json!({"prompt": "x"}), Some(&answer));
        let output: Value = serde_json::from_str(told.output.as_deref().unwrap()).unwrap();
        assert_eq!(output[0]["finish_reason"], wanted);
    }
}

#[test]
fn secrets_are_blacked_out() {
    let shown = |text: &str, patterns: &[&str]| texts(&input(&told(4096, patterns, &json!({ "prompt": text }), None)));
    for (text, wanted) in [
        ("my key is nvapi-AbC_123-xyzxyz, ok?", "my key is [redacted], ok?"),
        ("我的密钥是nvapi-AbCdEf0123456789", "我的密钥是[redacted]"),
        ("ngk_team_0123456789abcdef", "[redacted]"),
        ("use sk-proj-0123456789abcdefgh now", "use [redacted] now"),
        (r"A=1\nnvapi-AbCdEf0123456789", r"A=1\n[redacted]"),
        ("k%3Dnvapi-AbCdEf0123456789", "k%3D[redacted]"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("STRIPE=sk_live_0123456789ab", "STRIPE=[redacted]"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: [redacted]"),
        ("Authorization: Token 0123", "Authorization: [redacted]"),
        ("send bearer 0123456789abcdef!", "send bearer [redacted]!"),
        ("Cookie: sid=1; a=b", "Cookie: [redacted]"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM", "[redacted]"),
        ("password = hunter2; then", "password = [redacted]; then"),
        ("密码password: hunter2", "密码password: [redacted]"),
        (r#"{"aws_secret_access_key": "a b/c", "x": 1}"#, r#"{"aws_secret_access_key": [redacted], "x": 1}"#),
        (r#"{"body":"{\"password\":\"hunter2\"}"}"#, r#"{"body":"{\"password\":[redacted]}"}"#),
        (r#"{"cmd":"export DB_PASSWORD=\"hunter2\""}"#, r#"{"cmd":"export DB_PASSWORD=[redacted]"}"#),
        ("**Password:** hunter2", "**Password:** [redacted]"),
        ("password := \"hunter2\"", "password := [redacted]"),
        ("'password' => 'hunter2'", "'password' => [redacted]"),
        (r#""token": ["abc"]"#, r#""token": [redacted]"#),
        (r#""password":"hun\"ter2""#, r#""password":[redacted]"#),
        ("`password`: `hunter2`", "`password`: [redacted]"),
        ("SECRET_KEY = \"a\", secretKey: b", "SECRET_KEY = [redacted], secretKey: [redacted]"),
        ("API key: abc def", "API key: [redacted] def"),
        ("AccountKey=abc==;x", "AccountKey=[redacted];x"),
        ("sv=2020&sig=abc%3D&se=1", "sv=2020&sig=[redacted]&se=1"),
        (
            "s3://me:pw@host/a see https://h.example/x?sig=1&b=2 .",
            "s3://[redacted]@host/a see https://h.example/x?[redacted] .",
        ),
        (
            "HTTPS://u:p@h/x?X-Amz-Signature=1 postgres://u:p/ss@host",
            "HTTPS://[redacted]@h/x?[redacted] postgres://[redacted]@host",
        ),
        (r"https:\/\/b\/a?X-Amz-Signature=1", r"https:\/\/b\/a?[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "[redacted]\nend"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "[redacted]"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nx", "[redacted]"),
        ("data:video/mp4;base64,AAAA", "data:video/mp4;base64,[left out]"),
        ("see data:video/mp4;base64,AAAA and", "see data:video/mp4;base64,[left out] and"),
        (
            "postgres://u:p@ssw0rd@db/x postgres://u:p#ss@host/x postgres://u:p?ss@host",
            "postgres://[redacted]@db/x postgres://[redacted]@host/x postgres://[redacted]",
        ),
        ("签名sig=abcd", "签名sig=[redacted]"),
        (r#"{"secret": ["first", "second"], "x": 1}"#, r#"{"secret": [redacted], "x": 1}"#),
        (r#"{"credentials": {"user":"a","pass":"b"}, "x": 1}"#, r#"{"credentials": [redacted], "x": 1}"#),
        (r#"{\"password\":\"hun\\\"ter2\", \"x\": 1}"#, r#"{\"password\":[redacted], \"x\": 1}"#),
        (
            "PASSWORD_PROD=hunter2 password1=a client_secret_value: b",
            "PASSWORD_PROD=[redacted] password1=[redacted] client_secret_value: [redacted]",
        ),
        ("password:\n\nHow do I reset it?", "password:\n\nHow do I reset it?"),
        // And nothing of what people write.
        ("a skeleton of tokens and keys", "a skeleton of tokens and keys"),
        (
            "max_tokens: 5, tokens=5, a basic understanding of physics",
            "max_tokens: 5, tokens=5, a basic understanding of physics",
        ),
        (
            "ASIA-Pacific hf_hub_download sk-learn-contrib bearer certificates",
            "ASIA-Pacific hf_hub_download sk-learn-contrib bearer certificates",
        ),
        ("https://www.npmjs.com/package/@scope/x", "https://www.npmjs.com/package/@scope/x"),
    ] {
        assert_eq!(shown(text, &[]), wanted);
    }
    let wrapped = format!("{}\n", "Ab1/".repeat(19)).repeat(5);
    assert_eq!(shown(&format!("see {wrapped}end"), &[]), "see [base64]");
    assert_eq!(shown(&format!("see {}==", "Ab1/".repeat(100)), &[]), "see [base64]");
    assert_eq!(shown("customer AB123456 called", &[r"\b[A-Z]{2}\d{6}\b"]), "customer [redacted] called");
    // Patterns of one's own hide nothing from the others.
    assert_eq!(shown("nvapi-Ab1x123456zzzzQQQQ", &["[0-9]{6}"]), "[redacted]");
    assert_eq!(shown("postgres://admin:hunter!2@db.example.com/x", &[r"[\w.+-]+@[\w.-]+"]), "postgres://[redacted]/x");
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
