//! Records against what transformers makes of them, and what is refused.

use std::path::Path;

use serde_json::Value;

use super::*;

fn record(text: &str) -> Result<MessagesRecord, RecordError> {
    MessagesRecord::from_object(crate::jsonl::parse_object(text.as_bytes()).unwrap())
}

#[test]
fn templates_see_what_transformers_shows_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 30, "{}", cases.len());
    for case in &cases {
        let text = case["record"].to_string();
        let Some(seen) = case.get("seen") else {
            assert!(record(&text).is_err(), "transformers raises {} for {text}", case["raised"]);
            continue;
        };
        let record = record(&text).unwrap_or_else(|error| unreachable!("{error} in {text}"));
        // As text, so that the order of the keys counts, too.
        let parsed = |key: &str| Json::parse(&seen[key].to_string()).unwrap().to_string();
        let list = |items: Option<Vec<Json>>| items.map_or(Json::Null, Json::Array).to_string();
        assert_eq!(list(Some(record.messages)), parsed("messages"), "{text}");
        assert_eq!(list(record.tools), parsed("tools"), "{text}");
        assert_eq!(list(record.documents), parsed("documents"), "{text}");
        assert_eq!(Json::Object(record.template_kwargs).to_string(), parsed("kwargs"), "{text}");
    }
}

#[test]
fn bad_records_say_what_is_wrong() {
    let reason = |more: &str| {
        let text = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}], {more}}}");
        record(&text).unwrap_err().to_string()
    };
    insta::assert_snapshot!(reason(r#""tools": 7"#), @"key `tools` is a number, it must be a list of objects");
    insta::assert_snapshot!(reason(r#""tools": {"name": "f"}"#), @"key `tools` is an object, it must be a list of objects");
    insta::assert_snapshot!(reason(r#""tools": "{\"name\": \"f\"}""#), @"key `tools` is an object, it must be a list of objects");
    insta::assert_snapshot!(reason(r#""tools": "none""#), @"key `tools` is a string that is not JSON at column 1: expected a value, found `none`");
    insta::assert_snapshot!(reason(r#""tools": """#), @"key `tools` is a string that is not JSON at column 1: expected a value, found the end of the line");
    insta::assert_snapshot!(reason(r#""tools": "[{\"name\": f}]""#), @"key `tools` is a string that is not JSON at column 11: expected a value, found `f`");
    insta::assert_snapshot!(reason(r#""tools": ["f"]"#), @"key `tools[0]` is a string, it must be an object");
    insta::assert_snapshot!(reason(r#""tools": [{}, null]"#), @"key `tools[1]` is null, it must be an object");
    insta::assert_snapshot!(reason(r#""documents": ["a"]"#), @"key `documents[0]` is a string, it must be an object");
    insta::assert_snapshot!(reason(r#""chat_template_kwargs": []"#), @"key `chat_template_kwargs` is a list, it must be an object");
    insta::assert_snapshot!(reason(r#""chat_template_kwargs": {"continue_final_message": true}"#), @"key `chat_template_kwargs.continue_final_message` sets no variable of the chat template: leave it out");
    let reason = |text: &str| record(text).unwrap_err().to_string();
    insta::assert_snapshot!(reason(r#"{"messages": [{"content": "x"}]}"#), @"key `messages[0].role` is missing");
    insta::assert_snapshot!(reason(r#"{"messages": [{"role": null}]}"#), @"key `messages[0].role` is null");
    insta::assert_snapshot!(reason(r#"{"messages": [null]}"#), @"key `messages[0]` is null, it must be an object");
    insta::assert_snapshot!(reason(r#"{"messages": "[]"}"#), @"key `messages` is a string, it must be a list");
}

#[test]
fn nulls_of_template_variables_are_absent() {
    let text = r#"{"messages": [{"role": "user"}], "tools": null, "documents": null,
        "chat_template_kwargs": {"enable_thinking": false, "think_budget": null}}"#;
    let record = record(text).unwrap();
    assert_eq!((record.tools, record.documents), (None, None));
    assert_eq!(Json::Object(record.template_kwargs).to_string(), r#"{"enable_thinking": false}"#);
    assert_eq!(record.metadata.len(), 3);
}
