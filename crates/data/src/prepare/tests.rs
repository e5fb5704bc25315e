//! Records to prompts.

use super::*;
use crate::test_tokenizer::ByteTokenizer;

fn builder() -> PromptBuilder {
    PromptBuilder::new(Arc::new(ByteTokenizer::default()), ChatPromptTokens::default())
}

fn line(question: &str) -> String {
    format!(
        "{{\"system\": \"\", \"id\": 1, \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}]}}\n"
    )
}

fn object(json: &str) -> JsonObject {
    crate::jsonl::parse_object(json.as_bytes()).unwrap()
}

#[test]
fn bos_is_added_once() {
    let plain = builder().build(object(&line("a"))).unwrap();
    let with_bos = builder().with_bos().unwrap().build(object(&line("a"))).unwrap();
    assert_eq!(plain.text, with_bos.text);
    assert_eq!(with_bos.ids, [&[256], &plain.ids[..]].concat());
}

#[test]
fn what_makes_no_prompt_says_why() {
    let no_bos = || Arc::new(ByteTokenizer(crate::tokenizer::SpecialTokens::default()));
    let chat = PromptBuilder::new(no_bos(), ChatPromptTokens::default()).with_bos();
    insta::assert_snapshot!(chat.err().unwrap(), @"BOS is to be put before the prompts, but the tokenizer has no BOS token; in the shell write model.generation.sampling_params.add_BOS=false model.data.train_ds.add_bos=false");
    let template = crate::PromptTemplate::parse("{q}{label}", "label").unwrap();
    let added = crate::AddedTokens { bos: true, ..Default::default() };
    let format = |added| PromptResponseFormat::new(template.clone(), added);
    assert!(matches!(PromptBuilder::prompt_response(no_bos(), format(added)), Err(DataError::NoBosToken)));
    let builder = PromptBuilder::prompt_response(no_bos(), format(Default::default())).unwrap();
    insta::assert_snapshot!(builder.build(object(r#"{"q": " ", "label": "x"}"#)).unwrap_err(), @"the prompt has no tokens: its text is empty");
}

#[test]
fn messages_need_a_template() {
    let record = object(r#"{"messages": [{"role": "user", "content": "x"}]}"#);
    assert_eq!(builder().build(record.clone()).unwrap_err(), RecordError::NoChatTemplate);
    let template = ChatTemplate::new([("default", "{{ messages[0].content }}:")], Vec::new(), None);
    assert_eq!(builder().with_template(template).build(record).unwrap().text, "x:");
}

#[test]
fn metadata_is_kept_as_asked() {
    let record = r#"{"id": 7, "conversations": [{"from": "User", "value": "x"}], "system": "s"}"#;
    let metadata = |kept| {
        let prompt = builder().with_metadata(kept).build(object(record)).unwrap();
        Json::Object(prompt.metadata).to_string()
    };
    assert_eq!(metadata(KeptMetadata::Nothing), "{}");
    assert_eq!(metadata(KeptMetadata::OtherKeys), r#"{"id": 7, "system": "s"}"#);
    assert_eq!(
        metadata(KeptMetadata::OtherKeysAndText),
        r#"{"id": 7, "system": "s", "conversations": [{"from": "User", "value": "x"}]}"#
    );
}

#[test]
fn a_template_that_cannot_be_used_stops_messages_only() {
    let builder =
        builder().with_template(ChatTemplate::new([("default", "{% nonsense %}")], Vec::new(), None));
    assert!(builder.build(object(&line("a"))).is_ok());
    let error = builder.build(object(r#"{"messages": [{"role": "user", "content": "x"}]}"#)).unwrap_err();
    insta::assert_snapshot!(error, @"it is a `messages` record, and the tokenizer's chat template is not valid: Encountered unknown tag 'nonsense'. (line 1 of the template)");
}

#[test]
fn metadata_keeps_messages_as_they_stand() {
    let record =
        r#"{"messages": [{"role": "user", "content": "x", "tool_calls": null, "n": 1.50}], "tools": "[]"}"#;
    let template = ChatTemplate::new([("default", "{{ messages[0] | length }}")], Vec::new(), None);
    let builder = builder().with_template(template).with_metadata(KeptMetadata::OtherKeysAndText);
    let prompt = builder.build(object(record)).unwrap();
    assert_eq!(prompt.text, "3");
    assert_eq!(
        Json::Object(prompt.metadata).to_string(),
        r#"{"tools": "[]", "messages": [{"role": "user", "content": "x", "tool_calls": null, "n": 1.50}]}"#
    );
}

#[test]
fn the_text_alone_is_that_of_the_prompt() {
    let template = crate::PromptTemplate::parse("Q: {q} A: {label}", "label").unwrap();
    let format = PromptResponseFormat::new(template, crate::AddedTokens::default());
    let cutting = format.clone().with_truncation(&["q"], crate::TruncationMethod::Right, 9).unwrap();
    let record = object(r#"{"id": 7, "q": "one two three", "label": "x"}"#);
    for format in [format, cutting] {
        for kept in [KeptMetadata::Nothing, KeptMetadata::OtherKeys, KeptMetadata::OtherKeysAndText] {
            let tokenizer = Arc::new(ByteTokenizer::default());
            let builder = PromptBuilder::prompt_response(tokenizer, format.clone()).unwrap();
            let builder = builder.with_metadata(kept);
            let BuiltPrompt { text, metadata, .. } = builder.build(record.clone()).unwrap();
            assert_eq!(builder.build_text(record.clone()).unwrap(), (text, metadata));
        }
    }
}
