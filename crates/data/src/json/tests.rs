//! What Python takes and refuses, how it lays a value out, and what numbers become.

use std::path::Path;

use proptest::prelude::*;

use serde_json::Value;

use super::*;

/// A record of these values.
pub(crate) fn object(value: Value) -> JsonObject {
    match json(value) {
        Json::Object(object) => object,
        other => unreachable!("{other}"),
    }
}

fn json(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(value),
        Value::Number(number) => Json::Number(number.to_string().into()),
        Value::String(text) => Json::String(text),
        Value::Array(items) => Json::Array(items.into_iter().map(json).collect()),
        Value::Object(map) => Json::Object(map.into_iter().map(|(key, value)| (key, json(value))).collect()),
    }
}

#[test]
fn texts_are_taken_refused_and_laid_out_as_python_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/json.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 130, "{}", cases.len());
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let parsed = Json::parse(text);
        match case["dumped"].as_str() {
            Some(dumped) => assert_eq!(parsed.map(|json| json.to_string()).as_deref(), Ok(dumped), "{text}"),
            None => assert!(parsed.is_err(), "Python refuses {text:?}"),
        }
    }
}

#[test]
fn numbers_stay_as_they_are_written() {
    for text in [
        "1.0E5",
        "1e-07",
        "-0",
        "-0.0",
        "0.10",
        "1e400",
        "-1E+400",
        "100000000000000000000000000000000000001",
        "1.50",
        "NaN",
        "Infinity",
        "-Infinity",
        "3.141592653589793238462643383279",
        "0e0",
        "5e-324",
    ] {
        assert_eq!(Json::parse(&format!(" [ {text} ] ")).unwrap().to_string(), format!("[{text}]"));
    }
}

#[test]
fn of_a_key_that_stands_twice_the_last_value_counts() {
    let json = Json::parse(r#"{"a": 1, "b": 2, "a": {"c": 3, "c": 4}}"#).unwrap();
    assert_eq!(json.to_string(), r#"{"a": {"c": 4}, "b": 2}"#);
}

#[test]
fn refusals_say_where_and_what() {
    let reason = |text: &str| {
        let JsonError { column, reason } = Json::parse(text).unwrap_err();
        format!("{column}: {reason}")
    };
    insta::assert_snapshot!(reason(r#""a\ud800""#), @r"3: the escape `\ud800` is half a character (a lone surrogate), which no text can hold");
    insta::assert_snapshot!(reason(r#""\udc00\ud800""#), @r"2: the escape `\udc00` is half a character (a lone surrogate), which no text can hold");
    insta::assert_snapshot!(reason(r#""\ud800\u0041""#), @r"2: the escape `\ud800` is half a character (a lone surrogate), which no text can hold");
    insta::assert_snapshot!(reason("\"a\nb\""), @r"3: a control character (U+000A) in a string; it must be escaped as `\u000a`");
    insta::assert_snapshot!(reason(r#""\x41""#), @r"2: `\x` is no escape of JSON");
    insta::assert_snapshot!(reason("{'a': 1}"), @"2: expected a key in double quotes, found `'`");
    insta::assert_snapshot!(reason(r#"{"a": 1,}"#), @"9: expected a key in double quotes, found `}`");
    insta::assert_snapshot!(reason(r#"{"a": None}"#), @"7: expected a value, found `None`");
    insta::assert_snapshot!(reason(r#"{"a": -NaN}"#), @"8: expected a digit after `-`, found `NaN`");
    insta::assert_snapshot!(reason(r#"{"a": 1"#), @"8: expected `,` or `}` in an object, found the end of the line");
    insta::assert_snapshot!(reason(r#"{"a": "b"#), @"9: the line ends inside a string");
    insta::assert_snapshot!(reason("[007]"), @"2: a number must not begin with 0");
    insta::assert_snapshot!(reason("[1.]"), @"4: expected a digit after the point of a number");
    insta::assert_snapshot!(reason("\u{feff}{}"), @"1: expected a value, found a byte order mark");
    insta::assert_snapshot!(reason("{} {}"), @"4: expected the end, found `{`");
    insta::assert_snapshot!(reason(&"[".repeat(100_000)), @"130: nested deeper than 128 levels");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:\\\\u0-9a-fNInty. -]{0,40}|\\PC{0,20}") {
        if let Ok(json) = Json::parse(&text) {
            prop_assert_eq!(Json::parse(&json.to_string()), Ok(json));
        }
    }

    #[test]
    fn strings_come_back(text in "\\PC{0,20}|[\\x00-\\x7f]{0,20}") {
        let written = Json::from(text.as_str()).to_string();
        prop_assert_eq!(&written, &serde_json::to_string(&text).unwrap());
        prop_assert_eq!(Json::parse(&written), Ok(Json::String(text)));
    }
}
