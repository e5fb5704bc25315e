//! The rules of the original as tables. With a token a byte, lengths in characters are lengths in tokens.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::test_tokenizer::ByteTokenizer;
use crate::tokenizer::{TokenizerSpec, open_tokenizer};

const TEMPLATE: &str = "Context:  {context} Question: {question} Answer: {label}";

fn format(template: &str) -> PromptResponseFormat {
    PromptResponseFormat::new(PromptTemplate::parse(template, "label").unwrap(), AddedTokens::default())
}

fn record(value: Value) -> JsonObject {
    crate::json::tests::object(value)
}

fn tokenizer(spec: Value) -> Box<dyn Tokenizer> {
    let spec: TokenizerSpec = serde_json::from_value(spec).unwrap();
    open_tokenizer(&spec, &|name| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers");
        Ok(std::fs::read(root.join(name))?)
    })
    .unwrap()
}

fn pieces(format: &PromptResponseFormat, tokenizer: &dyn Tokenizer, value: Value) -> Vec<String> {
    let filled = format.fill(&record(value), tokenizer).unwrap();
    filled.pieces.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn a_space_is_kept_or_implied() {
    let xyz = json!({"context": "xxx", "question": "  yyy ", "label": "zzz"});
    let kept = ["Context:", "  xxx", " Question:", " yyy", " Answer:", " zzz"];
    let implied = ["Context:", " xxx", "Question:", "yyy", "Answer:", "zzz"];
    let gpt2 = json!({"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "gpt2_bpe/vocab.json",
                      "merge_file": "gpt2_bpe/merges.txt"});
    let llama =
        json!({"library": "sentencepiece", "model": "llama_bpe.model", "sentencepiece_legacy": false});
    assert_eq!(pieces(&format(TEMPLATE), &ByteTokenizer::default(), xyz.clone()), kept);
    assert_eq!(pieces(&format(TEMPLATE), &*tokenizer(gpt2), xyz.clone()), kept);
    assert_eq!(pieces(&format(TEMPLATE), &*tokenizer(llama.clone()), xyz.clone()), implied);
    // Each piece is a text of its own for the tokenizer.
    let llama = tokenizer(llama);
    let filled = format(TEMPLATE).fill(&record(xyz), &*llama).unwrap();
    let expected: Vec<u32> = implied[..5].iter().flat_map(|piece| llama.encode(piece).unwrap()).collect();
    assert_eq!(filled.ids, expected);
    assert_eq!(filled.text, "Context: xxxQuestion:yyyAnswer:");
}

#[test]
fn templates_outside_ascii_stay_as_they_are() {
    let template = r"Rôle : {input}\n答え: {label}";
    let filled = format(template)
        .fill(&record(json!({"input": "été", "label": "x"})), &ByteTokenizer::default())
        .unwrap();
    assert_eq!(filled.text, "Rôle : été\n答え:");
}

#[test]
fn bos_and_separator_stand_around_the_prompt() {
    let added = AddedTokens { bos: true, sep: true, eos: true };
    let format = PromptResponseFormat::new(PromptTemplate::parse("{q}:{label}", "label").unwrap(), added);
    let filled = format.fill(&record(json!({"q": "a", "label": "b"})), &ByteTokenizer::default()).unwrap();
    assert_eq!(filled.ids, [256, 97, 58, 0]);
    assert_eq!(filled.text, "a:");
}

#[test]
fn metadata_is_every_key_outside_the_template() {
    let record = record(json!({"id": 1, "q": "a", "label": "b", "source": null}));
    let format = format("Q {q}\n{label}");
    assert_eq!(Json::Object(format.metadata(&record)).to_string(), r#"{"id": 1, "source": null}"#);
    let filled = format.fill(&record, &ByteTokenizer::default()).unwrap();
    let name = |text: &str| text.to_owned();
    assert_eq!(
        filled.pieces,
        [("<template>", "Q"), ("q", " a"), ("<template>", "\n"), ("label", "b")]
            .map(|(key, text)| (name(key), name(text)))
    );
}

/// One row of the table: fields, method, limit, added tokens, and the pieces that are left.
fn check_cut(fields: &[&str], method: TruncationMethod, limit: usize, eos: bool, expected: [&str; 4]) {
    let template = PromptTemplate::parse("{a}|{b}{label}", "label").unwrap();
    let added = AddedTokens { eos, ..AddedTokens::default() };
    let format = PromptResponseFormat::new(template, added).with_truncation(fields, method, limit).unwrap();
    let value = json!({"a": "abcdef", "b": "ghijkl", "label": "LMN"});
    assert_eq!(pieces(&format, &ByteTokenizer::default(), value), expected, "{fields:?} {method:?} {limit}");
}

#[test]
fn what_is_too_long_is_cut_where_the_original_cuts() {
    use TruncationMethod::{Left, Right};
    // Sixteen tokens in all.
    check_cut(&["a"], Right, 16, false, ["abcdef", "|", "ghijkl", "LMN"]);
    check_cut(&["a"], Right, 16, true, ["abcde", "|", "ghijkl", "LMN"]);
    check_cut(&["a"], Right, 12, false, ["ab", "|", "ghijkl", "LMN"]);
    check_cut(&["a"], Left, 12, false, ["ef", "|", "ghijkl", "LMN"]);
    // Five too many over two fields: the first gives three, in the order of the template.
    check_cut(&["b", "a"], Right, 11, false, ["abc", "|", "ghij", "LMN"]);
    check_cut(&["a", "b"], Left, 11, false, ["def", "|", "ijkl", "LMN"]);
    check_cut(&["label"], Right, 14, false, ["abcdef", "|", "ghijkl", "L"]);
    // A field that is too short is emptied; the rest is taken from the end, the response first, or from the start.
    check_cut(&["a"], Right, 8, false, ["", "|", "ghijkl", "L"]);
    check_cut(&["a"], Right, 4, false, ["", "|", "ghi", ""]);
    check_cut(&["a"], Left, 8, false, ["", "", "hijkl", "LMN"]);
    check_cut(&["a", "b"], Right, 1, false, ["", "|", "", ""]);
}

#[test]
fn an_old_field_name_means_the_input() {
    let template = || PromptTemplate::parse("{input} {output}", "output").unwrap();
    let with = |field: &str| {
        let format = PromptResponseFormat::new(template(), AddedTokens::default());
        format.with_truncation(&[field], TruncationMethod::Right, 8)
    };
    assert_eq!(with("context").unwrap(), with("input").unwrap());
    insta::assert_snapshot!(with("question").unwrap_err(), @"`model.data.train_ds.truncation_field` names `question`, it may name the keys of the prompt template: `input`, `output`");
}

#[test]
fn records_that_do_not_fit_the_template_say_why() {
    let error = |value| format("{q} {label}").fill(&record(value), &ByteTokenizer::default()).err().unwrap();
    insta::assert_snapshot!(error(json!({"question": "x", "label": "y"})), @"key `q` of the prompt template is missing");
    insta::assert_snapshot!(error(json!({"q": 7, "label": "y"})), @"key `q` is a number, it must be a string");
    insta::assert_snapshot!(error(json!({"q": null, "label": "y"})), @"key `q` of the prompt template is null");
    insta::assert_snapshot!(error(json!({"q": "x", "label": null, "messages": null})), @"key `label` of the prompt template is null");
    insta::assert_snapshot!(error(json!({"q": null, "label": null, "messages": [1]})), @"it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`");
    insta::assert_snapshot!(error(json!({"q": "x"})), @"key `label` of the prompt template is missing");
    insta::assert_snapshot!(error(json!({"conversations": []})), @"it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`");
}

proptest! {
    #[test]
    fn a_cut_prompt_is_never_too_long(
        a in "[a-z]{0,12}", b in "[a-z]{0,12}", label in "[a-z]{0,6}", limit in 1usize..40,
        both in any::<bool>(), left in any::<bool>(), eos in any::<bool>(),
    ) {
        let fields: &[&str] = if both { &["a", "b"] } else { &["b"] };
        let method = if left { TruncationMethod::Left } else { TruncationMethod::Right };
        let template = PromptTemplate::parse("{a} - {b}{label}", "label").unwrap();
        let added = AddedTokens { eos, ..AddedTokens::default() };
        let format = PromptResponseFormat::new(template, added).with_truncation(fields, method, limit).unwrap();
        let value = json!({"a": a, "b": b, "label": label});
        let filled = format.fill(&record(value), &ByteTokenizer::default()).unwrap();
        let kept: usize = filled.pieces.iter().map(|(_, text)| text.len()).sum();
        let whole = a.len() + 3 + b.len() + label.len();
        prop_assert_eq!(kept, whole.min(limit - usize::from(eos)));
        prop_assert_eq!(filled.ids.len(), filled.text.len());
    }
}
