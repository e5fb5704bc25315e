use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn tokens() -> Vec<(String, String)> {
    [("bos_token", "<s>"), ("eos_token", "</s>")]
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .to_vec()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new([("default", source)], tokens(), None)
}

fn list(items: &Value) -> Vec<Json> {
    let Ok(Json::Array(items)) = Json::parse(&items.to_string()) else { unreachable!() };
    items
}

fn record(messages: &Value) -> MessagesRecord {
    MessagesRecord { messages: list(messages), ..MessagesRecord::default() }
}

fn with_tools(messages: &Value) -> MessagesRecord {
    MessagesRecord { tools: Some(list(&json!([{"name": "add"}]))), ..record(messages) }
}

#[test]
fn real_templates_equal_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rows = std::fs::read_to_string(folder.join("chat_templates.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let mut templates = BTreeSet::new();
    for row in &rows {
        let name = row["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(format!("chat_templates/{name}.jinja"))).unwrap();
        let template = template(source.strip_suffix('\n').unwrap());
        let tools = row.get("tools").map(list);
        let rendered = template.prompt_text(&MessagesRecord { tools, ..record(&row["messages"]) });
        match row["error"].as_str() {
            None => assert_eq!(rendered.unwrap(), row["text"], "{name} {}", row["messages"]),
            Some(reason) => {
                assert_eq!(rendered, Err(RecordError::Template { reason: reason.into() }), "{name}");
            }
        }
        templates.insert(name);
    }
    assert!(templates.len() == 9 && rows.len() >= 90, "{templates:?}");
}

#[test]
fn what_a_template_sees() {
    let source = "{{ [bos_token, eos_token, pad_token, tools, documents, add_generation_prompt, extra] }}";
    let mut record = record(&json!([{"role": "user", "content": "x"}]));
    let text = template(source).prompt_text(&record).unwrap();
    assert_eq!(text, "['<s>', '</s>', Undefined, None, None, True, Undefined]");
    record.template_kwargs.insert("extra".into(), Json::Number("1e-7".into()));
    record.template_kwargs.insert("bos_token".into(), Json::from("<x>"));
    let text = template(source).conversation_text(&record).unwrap();
    assert_eq!(text, "['<x>', '</s>', Undefined, None, None, False, 1e-07]");
}

#[test]
fn named_templates() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let both =
        ChatTemplate::new([("default", "plain"), ("tool_use", "tools"), ("rag", "{% if")], tokens(), None);
    assert_eq!(both.prompt_text(&record(&messages)).unwrap(), "plain");
    assert_eq!(both.prompt_text(&with_tools(&messages)).unwrap(), "tools");
    let only_default = template("plain");
    assert_eq!(only_default.prompt_text(&with_tools(&messages)).unwrap(), "plain");
    let neither = ChatTemplate::new([("rag", "a"), ("other", "b")], tokens(), None);
    insta::assert_snapshot!(neither.prompt_text(&record(&messages)).unwrap_err(), @"it is a `messages` record, and the tokenizer's chat templates are `rag`, `other`, and none is called `default`");
}

#[test]
fn errors_are_one_sentence() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let error = |source: &str| template(source).prompt_text(&record(&messages)).unwrap_err();
    insta::assert_snapshot!(error("{{ raise_exception('roles must alternate') }}"), @"the chat template failed: roles must alternate");
    insta::assert_snapshot!(error("a\n{% if %}"), @"it is a `messages` record, and the tokenizer's chat template is not valid: Expected an expression, got 'end of statement block' (line 2 of the template)");
    insta::assert_snapshot!(error("{{ strftime_now('%Y') }}"), @"the chat template asks for the date, which no prompt takes from the clock: set one, in the shell write ++model.data.date=2026-01-31");
    let dated =
        ChatTemplate::new([("default", "{{ strftime_now('%d %b %Y') }}")], tokens(), Date::new(2026, 1, 2));
    assert_eq!(dated.prompt_text(&record(&messages)).unwrap(), "02 Jan 2026");
}

#[test]
fn numbers_are_those_that_python_has() {
    for (written, seen) in [
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1.0E5", "100000.0"),
        ("0.10", "0.1"),
        ("1e-7", "1e-07"),
        ("1e-400", "0.0"),
        ("1e400", "inf"),
        ("NaN", "nan"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ] {
        let template = template("{{ x }}");
        let mut record = record(&json!([]));
        record.template_kwargs.insert("x".into(), Json::parse(written).unwrap());
        assert_eq!(template.prompt_text(&record).unwrap(), seen);
    }
    let mut record = record(&json!([]));
    let digits = "9".repeat(50);
    record.template_kwargs.insert("x".into(), Json::Number(digits.clone().into()));
    assert_eq!(
        template("{{ {'a': x} | tojson }}").prompt_text(&record).unwrap(),
        format!("{{\"a\": {digits}}}")
    );
    insta::assert_snapshot!(template("{{ x + 1 }}").prompt_text(&record).unwrap_err(), @"the chat template failed: an integer with more than 38 digits is not supported");
}
