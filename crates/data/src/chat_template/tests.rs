use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn tokens() -> Vec<(String, String)> {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.to_owned(), token.to_owned())).to_vec()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new([("default", source)], tokens(), None)
}

fn record(messages: &Value) -> MessagesRecord {
    MessagesRecord { messages: messages.as_array().unwrap().clone(), ..MessagesRecord::default() }
}

fn with_tools(messages: &Value) -> MessagesRecord {
    MessagesRecord { tools: Some(vec![json!({"name": "add"})]), ..record(messages) }
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
        let tools = row.get("tools").map(|tools| tools.as_array().unwrap().clone());
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
    record.template_kwargs.insert("extra".into(), json!(1e-7));
    record.template_kwargs.insert("bos_token".into(), json!("<x>"));
    let text = template(source).conversation_text(&record).unwrap();
    assert_eq!(text, "['<x>', '</s>', Undefined, None, None, False, 1e-07]");
}

#[test]
fn named_templates() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let both = ChatTemplate::new([("default", "plain"), ("tool_use", "tools"), ("rag", "{% if")], tokens(), None);
    assert_eq!(both.prompt_text(&record(&messages)).unwrap(), "plain");
    assert_eq!(both.prompt_text(&with_tools(&messages)).unwrap(), "tools");
    let only_default = template("plain");
    assert_eq!(only_default.prompt_text(&with_tools(&messages)).unwrap(), "plain");
    let neither = ChatTemplate::new([("rag", "a"), ("other", "b")], tokens(), None);
    insta::assert_snapshot!(neither.prompt_text(&record(&messages)).unwrap_err(), @"`messages` records need the tokenizer's chat template, which cannot be used: it has the names `rag`, `other`, and none is `default`");
}

#[test]
fn errors_are_one_sentence() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let error = |source: &str| template(source).prompt_text(&record(&messages)).unwrap_err();
    insta::assert_snapshot!(error("{{ raise_exception('roles must alternate') }}"), @"the chat template failed: roles must alternate");
    insta::assert_snapshot!(error("a\n{% if %}"), @"`messages` records need the tokenizer's chat template, which cannot be used: Expected an expression, got 'end of statement block' (line 2 of the template)");
    insta::assert_snapshot!(error("{{ strftime_now('%Y') }}"), @"the chat template asks for the date, which no prompt takes from the clock: set one, in the shell write ++model.data.date=2026-01-31");
    let dated = ChatTemplate::new([("default", "{{ strftime_now('%d %b %Y') }}")], tokens(), Date::new(2026, 1, 2));
    assert_eq!(dated.prompt_text(&record(&messages)).unwrap(), "02 Jan 2026");
}
