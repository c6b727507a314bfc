use super::*;

fn settings() -> Settings {
    Settings { validation: Validation::Lenient, url_input: UrlInput::Any, max_violations: 3 }
}

fn components() -> Value {
    json!({ "schemas": { "Size": {
        "type": "object",
        "properties": { "height": { "type": "integer", "multipleOf": 8, "x-rule": { "id": "P2", "expect": "a multiple of 8" } } },
    } } })
}

fn schema(settings: &Settings) -> Schema {
    let source = json!({
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": { "type": "string" },
            "size": { "$ref": "#/components/schemas/Size" },
            "image": { "type": "string", "x-nimgate-url-input": true },
        },
        "allOf": [{ "not": { "required": ["image", "video"] }, "x-rule": { "id": "P1", "expect": "image or video, not both" } }],
    });
    Schema::compile(&source, &components(), settings).unwrap()
}

fn rules(settings: &Settings, value: &Value) -> Vec<(String, String)> {
    let violations = schema(settings).validate(value).err();
    violations.map(|v| v.list.into_iter().map(|v| (v.pointer, v.rule)).collect()).unwrap_or_default()
}

#[test]
fn every_failing_place_is_named_by_its_closest_rule() {
    let value = json!({ "size": { "height": 7 }, "image": "a", "video": "b" });
    let mut found = rules(&settings(), &value);
    found.sort();
    assert_eq!(
        found,
        [(String::new(), "P1".into()), (String::new(), "required".into()), ("/size/height".into(), "P2".into()),]
    );
}

#[test]
fn strict_refuses_unknown_members_and_lenient_lets_them_pass() {
    let value = json!({ "prompt": "x", "size": { "height": 8, "depth": 1 } });
    assert!(rules(&settings(), &value).is_empty());
    let strict = Settings { validation: Validation::Strict, ..settings() };
    assert_eq!(rules(&strict, &value), [("/size".into(), "additionalProperties".into())]);
}

#[test]
fn urls_are_refused_where_the_pool_takes_none() {
    let value = json!({ "prompt": "x", "image": "https://host/a.png" });
    assert!(rules(&settings(), &value).is_empty());
    let off = Settings { url_input: UrlInput::Off, ..settings() };
    assert_eq!(rules(&off, &value), [("/image".into(), "url_input".into())]);
}

#[test]
fn the_list_is_bounded_and_says_so() {
    let source = json!({ "items": { "type": "integer" } });
    let schema = Schema::compile(&source, &json!({}), &settings()).unwrap();
    let violations = schema.validate(&json!(["a", "b", "c", "d"])).unwrap_err();
    assert_eq!((violations.list.len(), violations.truncated), (3, true));
}

#[test]
fn expectations_never_quote_the_callers_value() {
    let source = json!({ "properties": { "a": { "pattern": "^b" }, "c": { "enum": ["d"] } } });
    let schema = Schema::compile(&source, &json!({}), &settings()).unwrap();
    let violations = schema.validate(&json!({ "a": "secret", "c": "secret" })).unwrap_err();
    assert!(!format!("{violations:?}").contains("secret"));
}

#[test]
fn a_length_rule_that_a_stand_in_could_not_answer_is_refused() {
    assert!(Schema::compile(&json!({ "maxLength": 40_000 }), &json!({}), &settings()).is_err());
}
