//! Records to prompts, and what is left out on the way.

use super::*;
use crate::test_tokenizer::ByteTokenizer;

fn builder() -> PromptBuilder {
    PromptBuilder::new(Arc::new(ByteTokenizer::default()), ChatPromptTokens::default())
}

fn load(text: &str, limits: &LengthLimits, on_bad: OnBadRecord) -> Result<PromptSet, DataError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    load_prompts(&path, &builder(), limits, on_bad)
}

fn line(question: &str) -> String {
    format!(
        "{{\"system\": \"\", \"id\": 1, \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}]}}\n"
    )
}

#[test]
fn bad_and_long_records_keep_the_numbering() {
    let text = [line("a"), "nonsense\n".into(), line(&"b".repeat(100)), line("c")].concat();
    let limits = LengthLimits { max_input_len: Some(100), ..LengthLimits::of_prompt(4096) };
    let set = load(&text, &limits, OnBadRecord::Skip).unwrap();
    assert_eq!(set.num_read, 4);
    assert_eq!(
        set.prompts.iter().map(|prompt| (prompt.line, prompt.index)).collect::<Vec<_>>(),
        [(1, 0), (4, 3)]
    );
    assert_eq!(set.too_long, [(3, 160)]);
    assert_eq!(set.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2]);
    assert_eq!(set.notes.len(), 2);
    assert_eq!(set.prompts[0].metadata.len(), 2);
}

#[test]
fn refusal_lists_the_first_ten() {
    let text = [line("a"), "{}\n".repeat(6), "\n\n".into(), "[]\n{\n".repeat(3), line("a")].concat();
    let error = load(&text, &LengthLimits::default(), OnBadRecord::Refuse).unwrap_err();
    let message = error.to_string();
    let (head, listed) = message.split_once('\n').unwrap();
    assert!(
        head.starts_with("14 of 16 records of `") && head.ends_with("data.jsonl` cannot be used:"),
        "{head}"
    );
    insta::assert_snapshot!(listed, @r"
line 2: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 3: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 4: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 5: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 6: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 7: it has neither `conversations` nor `messages`; for prompt-response records set `model.data.chat=false` and `model.data.train_ds.prompt_template`
line 8: the line is blank
line 9: the line is blank
line 10: the line is a list, not an object
line 11: not JSON at column 1: EOF while parsing an object
and 4 more
");
}

fn object(json: &str) -> Map<String, Value> {
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
    insta::assert_snapshot!(chat.err().unwrap(), @"BOS is to be put before the prompts, but the tokenizer has no BOS token: set `model.generation.sampling_params.add_BOS=false` and `model.data.train_ds.add_bos=false`");
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
    let template = ChatTemplate::new("{{ messages[0].content }}:", "", "").unwrap();
    assert_eq!(builder().with_template(template).build(record).unwrap().text, "x:");
}

#[test]
fn every_token_field_has_its_limit() {
    let record = r#"{"system": "", "conversations": [{"from": "User", "value": "Q"}, {"from": "Assistant", "value": "AAAA"}]}"#;
    let prompt = builder().build(object(record)).unwrap();
    let num_prompt = prompt.ids.len();
    // The answer, the end of its turn, and the start of the next.
    let num_answer = "AAAA\n<extra_id_1>".len();
    for (field, num_tokens) in [
        ("context_ids", num_prompt),
        ("input_ids", num_prompt + num_answer),
        ("answer_ids", num_answer),
        ("mask", num_prompt + num_answer),
    ] {
        let left_out = |limit| {
            let fields = vec![(field.parse().unwrap(), limit)];
            let limits = LengthLimits { fields, max_input_len: None };
            load(record, &limits, OnBadRecord::Refuse).unwrap().too_long
        };
        assert_eq!((left_out(num_tokens), left_out(num_tokens - 1)), (vec![], vec![(1, num_tokens)]));
    }
    insta::assert_snapshot!("context".parse::<TokenField>().unwrap_err(), @"`model.data.train_ds.truncation_field` names `context`, it may name `context_ids`, `input_ids`, `answer_ids` and `mask`, because `model.data.chat=true`");
}

#[test]
fn metadata_is_kept_as_asked() {
    let record = r#"{"id": 7, "conversations": [{"from": "User", "value": "x"}], "system": "s"}"#;
    let metadata = |kept| {
        let prompt = builder().with_metadata(kept).build(object(record)).unwrap();
        Value::Object(prompt.metadata).to_string()
    };
    assert_eq!(metadata(KeptMetadata::Nothing), "{}");
    assert_eq!(metadata(KeptMetadata::OtherKeys), r#"{"id":7,"system":"s"}"#);
    assert_eq!(
        metadata(KeptMetadata::OtherKeysAndText),
        r#"{"id":7,"system":"s","conversations":[{"from":"User","value":"x"}]}"#
    );
}
