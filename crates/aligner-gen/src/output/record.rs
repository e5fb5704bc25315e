//! One line of `generations.jsonl`: the guide's four keys, and more only when asked for.

use std::collections::BTreeMap;

use data::{InputOfSample, Json, JsonObject};
use sampling::FinishReason;
use serde::{Deserialize, Serialize};

use super::{Checked, OutputError, python_json};

/// What `model.generation.output_fields` may add to a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) enum OutputField {
    Metadata,
    Index,
    FinishReasons,
    TokenIds,
    Logprobs,
    TopLogprobs,
    /// The record as it was read.
    Input,
    /// The answers without special tokens, turn markers, end strings and thoughts.
    ResponsesClean,
    /// What the model thought before each answer, where the chat template marks it.
    Thinking,
    /// The conversation with each answer appended.
    Messages,
    /// Why there are no responses, or why one of them could not go on; null where all is well.
    Error,
    /// Which of a row's responses they are: fewer than were computed where some are left out.
    ResponseIndices,
    /// What the program of `model.generation.on_response` says.
    Verdicts,
    Scores,
    /// The estimates of a row, by `k`.
    PassAtK,
    /// A key of the record.
    Column(String),
}

/// Keys that every line has, which no column can be given under.
const FIXED_KEYS: [&str; 4] = ["step", "consumed_samples", "prompt", "responses"];

impl OutputField {
    const NAMED: [(&str, Self); 15] = [
        ("metadata", Self::Metadata),
        ("index", Self::Index),
        ("finish_reasons", Self::FinishReasons),
        ("token_ids", Self::TokenIds),
        ("logprobs", Self::Logprobs),
        ("top_logprobs", Self::TopLogprobs),
        ("input", Self::Input),
        ("responses_clean", Self::ResponsesClean),
        ("thinking", Self::Thinking),
        ("messages", Self::Messages),
        ("error", Self::Error),
        ("response_indices", Self::ResponseIndices),
        ("verdicts", Self::Verdicts),
        ("scores", Self::Scores),
        ("pass_at_k", Self::PassAtK),
    ];

    fn name(&self) -> &str {
        match self {
            Self::Column(key) => key,
            named => Self::NAMED.iter().find(|(_, field)| field == named).map_or("", |(name, _)| name),
        }
    }

    /// Whether it is made of clean responses.
    pub(crate) fn is_clean(&self) -> bool {
        matches!(self, Self::ResponsesClean | Self::Thinking | Self::Messages)
    }

    /// Checks that each key of a line is written once.
    ///
    /// # Errors
    /// What is wrong with a list of fields.
    pub(crate) fn check_all(fields: &[Self]) -> Result<(), String> {
        for (idx, field) in fields.iter().enumerate() {
            let name = field.name();
            if FIXED_KEYS.contains(&name) {
                return Err(format!(
                    "`{name}` is a key that lines have anyway: take `input`, which has the whole record"
                ));
            }
            if fields[..idx].contains(field) {
                return Err(format!("it has `{name}` twice"));
            }
        }
        Ok(())
    }
}

impl From<String> for OutputField {
    fn from(name: String) -> Self {
        let named = Self::NAMED.into_iter().find(|(known, _)| *known == name);
        named.map_or(Self::Column(name), |(_, field)| field)
    }
}

impl From<OutputField> for String {
    fn from(field: OutputField) -> Self {
        field.name().to_owned()
    }
}

/// A token that might have stood at a place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TopLogprob {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) logprob: f32,
}

/// One response.
#[derive(Clone, Debug)]
pub(crate) struct ResponseOutput {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Option<Vec<f32>>,
    /// The most likely tokens at the place of each token.
    pub(crate) top_logprobs: Option<Vec<Vec<TopLogprob>>>,
    pub(crate) finish_reason: FinishReason,
    /// Why it could not go on, where that is so.
    pub(crate) error: Option<String>,
    /// Where the output asks for it.
    pub(crate) clean: CleanResponse,
    /// Its number among the responses to its prompt.
    pub(crate) response_idx: u32,
    pub(crate) checked: Checked,
}

/// A response as people read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CleanResponse {
    pub(crate) answer: String,
    pub(crate) thinking: Option<String>,
}

/// One prompt with its responses.
#[derive(Clone, Debug)]
pub(crate) struct SampleOutput {
    /// Line number in the input file, from 0.
    pub(crate) index: u64,
    pub(crate) prompt: String,
    pub(crate) num_prompt_tokens: usize,
    /// Why there are no responses, or why one of them could not go on.
    pub(crate) error: Option<String>,
    pub(crate) metadata: JsonObject,
    /// What the output gives back of the record.
    pub(crate) input: InputOfSample,
    pub(crate) responses: Vec<ResponseOutput>,
    /// Where that is asked for, by `k`; none where there are fewer responses.
    pub(crate) pass_at_k: BTreeMap<u32, Option<f64>>,
}

impl ResponseOutput {
    /// Whether it could not go on.
    pub(crate) fn has_failed(&self) -> bool {
        self.error.is_some() || self.finish_reason == FinishReason::Error
    }
}

impl SampleOutput {
    /// The conversation before the answer with each answer in turn.
    fn conversations(&self) -> Json {
        let before = self.input.conversation.as_deref().unwrap_or_default();
        let with_answer = |response: &ResponseOutput| {
            let CleanResponse { answer, thinking } = &response.clean;
            let mut message = JsonObject::new();
            message.insert("role".to_owned(), "assistant".into());
            if let Some(thinking) = thinking {
                message.insert("reasoning_content".to_owned(), thinking.as_str().into());
            }
            message.insert("content".to_owned(), answer.as_str().into());
            Json::Array(before.iter().cloned().chain([Json::Object(message)]).collect())
        };
        Json::Array(self.responses.iter().map(with_answer).collect())
    }
}

/// A step whose samples are all there, in input order.
#[derive(Clone, Debug)]
pub(crate) struct CompletedStep {
    /// Counted from 1.
    pub(crate) step: u64,
    /// Samples of the whole run up to and including this step.
    pub(crate) consumed_samples: u64,
    pub(crate) samples: Vec<SampleOutput>,
}

/// What lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LineLayout {
    /// The guide's keys and these.
    Fields(Vec<OutputField>),
    /// OpenAI's batch format.
    OpenAiBatch,
}

impl CompletedStep {
    /// All lines of the step, each with its newline.
    pub(crate) fn to_lines(&self, layout: &LineLayout) -> Result<Vec<u8>, OutputError> {
        match layout {
            LineLayout::Fields(fields) => self.to_jsonl(fields),
            LineLayout::OpenAiBatch => {
                let mut out = Vec::new();
                super::batch::append_lines(&mut out, self)
                    .map_err(|source| OutputError::Json { step: self.step, source })?;
                Ok(out)
            }
        }
    }

    /// All lines of the step, each with its newline.
    pub(crate) fn to_jsonl(&self, fields: &[OutputField]) -> Result<Vec<u8>, OutputError> {
        let mut out = Vec::new();
        for sample in &self.samples {
            self.append_line(&mut out, sample, fields)
                .map_err(|source| OutputError::Json { step: self.step, source })?;
            out.push(b'\n');
        }
        Ok(out)
    }

    fn append_line(
        &self,
        out: &mut Vec<u8>,
        sample: &SampleOutput,
        fields: &[OutputField],
    ) -> serde_json::Result<()> {
        let responses = &sample.responses;
        let texts: Vec<_> = responses.iter().map(|response| &response.text).collect();
        let mut line = python_json::ObjectWriter::begin(out);
        line.entry("step", &self.step)?;
        line.entry("consumed_samples", &self.consumed_samples)?;
        // A bad record has none.
        let has_prompt = sample.error.is_none() || !sample.prompt.is_empty();
        line.entry("prompt", &has_prompt.then_some(&sample.prompt))?;
        line.entry("responses", &texts)?;
        for field in fields {
            match field {
                OutputField::Metadata => line.object("metadata", &sample.metadata),
                OutputField::Index => line.entry("index", &sample.index)?,
                OutputField::FinishReasons => {
                    let reasons: Vec<_> = responses.iter().map(|response| response.finish_reason).collect();
                    line.entry("finish_reasons", &reasons)?;
                }
                OutputField::TokenIds => {
                    let ids: Vec<_> = responses.iter().map(|response| &response.token_ids).collect();
                    line.entry("token_ids", &ids)?;
                }
                OutputField::Logprobs => {
                    let logprobs: Vec<_> = responses.iter().map(|response| &response.logprobs).collect();
                    line.entry("logprobs", &logprobs)?;
                }
                OutputField::TopLogprobs => {
                    let top: Vec<_> = responses.iter().map(|response| &response.top_logprobs).collect();
                    line.entry("top_logprobs", &top)?;
                }
                OutputField::Input => match &sample.input.record {
                    Some(record) => line.object("input", record),
                    None => line.json("input", &Json::Null),
                },
                OutputField::Column(key) => {
                    let value = sample.input.record.as_ref().and_then(|record| record.get(key));
                    line.json(key, value.unwrap_or(&Json::Null));
                }
                OutputField::ResponsesClean => {
                    let answers: Vec<_> = responses.iter().map(|response| &response.clean.answer).collect();
                    line.entry("responses_clean", &answers)?;
                }
                OutputField::Thinking => {
                    let thoughts: Vec<_> =
                        responses.iter().map(|response| &response.clean.thinking).collect();
                    line.entry("thinking", &thoughts)?;
                }
                OutputField::Error => line.entry("error", &sample.error)?,
                OutputField::ResponseIndices => {
                    let idxs: Vec<_> = responses.iter().map(|response| response.response_idx).collect();
                    line.entry("response_indices", &idxs)?;
                }
                OutputField::Verdicts => {
                    let verdicts: Vec<_> =
                        responses.iter().map(|response| response.checked.verdict).collect();
                    line.entry("verdicts", &verdicts)?;
                }
                OutputField::Scores => {
                    let scores: Vec<_> = responses.iter().map(|response| response.checked.score).collect();
                    line.entry("scores", &scores)?;
                }
                OutputField::PassAtK => line.entry("pass_at_k", &sample.pass_at_k)?,
                OutputField::Messages => line.json("messages", &sample.conversations()),
            }
        }
        line.end();
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::Verdict;
    use super::*;

    pub(crate) fn sample(index: u64) -> SampleOutput {
        SampleOutput {
            index,
            prompt: format!("<extra_id_1>User\nQ{index}\n"),
            num_prompt_tokens: 5,
            error: None,
            metadata: data::parse_object(br#"{"system":"","score":1e-07,"n":[1.50,NaN]}"#).unwrap(),
            input: InputOfSample {
                record: Some(data::parse_object(br#"{"id": 1.50, "a \"b": null}"#).unwrap()),
                conversation: Some(vec![Json::Object(
                    data::parse_object(br#"{"role": "user", "content": "Q"}"#).unwrap(),
                )]),
                end_strings: None,
                stop_strings: None,
                structured_outputs: None,
            },
            responses: vec![ResponseOutput {
                text: "né\u{fffd}<extra_id_1>".to_owned(),
                token_ids: vec![7, 8],
                logprobs: Some(vec![-0.5, -0.000_01]),
                top_logprobs: Some(vec![
                    vec![TopLogprob { id: 7, text: "né".to_owned(), logprob: -0.5 }],
                    Vec::new(),
                ]),
                finish_reason: FinishReason::EndString,
                error: None,
                clean: CleanResponse { answer: "né".to_owned(), thinking: Some("so".to_owned()) },
                response_idx: 2,
                checked: Checked { verdict: Some(Verdict::Fail), score: Some(0.5) },
            }],
            pass_at_k: BTreeMap::from([(1, Some(0.25)), (8, None)]),
        }
    }

    #[test]
    fn four_keys_as_python_writes_them() {
        let step = CompletedStep { step: 1, consumed_samples: 2, samples: vec![sample(0), sample(1)] };
        insta::assert_snapshot!(String::from_utf8(step.to_jsonl(&[]).unwrap()).unwrap(), @r#"
        {"step": 1, "consumed_samples": 2, "prompt": "<extra_id_1>User\nQ0\n", "responses": ["né�<extra_id_1>"]}
        {"step": 1, "consumed_samples": 2, "prompt": "<extra_id_1>User\nQ1\n", "responses": ["né�<extra_id_1>"]}
        "#);
    }

    #[test]
    fn extra_fields_follow_in_the_order_asked_for() {
        let step = CompletedStep { step: 3, consumed_samples: 9, samples: vec![sample(8)] };
        let fields = [
            OutputField::Index,
            OutputField::Metadata,
            OutputField::FinishReasons,
            OutputField::TokenIds,
            OutputField::Logprobs,
        ];
        insta::assert_snapshot!(String::from_utf8(step.to_jsonl(&fields).unwrap()).unwrap(), @r#"{"step": 3, "consumed_samples": 9, "prompt": "<extra_id_1>User\nQ8\n", "responses": ["né�<extra_id_1>"], "index": 8, "metadata": {"system": "", "score": 1e-07, "n": [1.50, NaN]}, "finish_reasons": ["end_string"], "token_ids": [[7, 8]], "logprobs": [[-0.5, -1e-05]]}"#);
    }

    #[test]
    fn columns_and_answers_come_back() {
        let step = CompletedStep { step: 1, consumed_samples: 1, samples: vec![sample(0)] };
        let fields =
            ["input", "id", "a \"b", "absent", "responses_clean", "thinking", "messages", "top_logprobs"];
        let fields = fields.map(|name| OutputField::from(name.to_owned()));
        let line = String::from_utf8(step.to_jsonl(&fields).unwrap()).unwrap();
        insta::assert_snapshot!(line.split_once("\"input\"").unwrap().1, @r#": {"id": 1.50, "a \"b": null}, "id": 1.50, "a \"b": null, "absent": null, "responses_clean": ["né"], "thinking": ["so"], "messages": [[{"role": "user", "content": "Q"}, {"role": "assistant", "reasoning_content": "so", "content": "né"}]], "top_logprobs": [[[{"id": 7, "text": "né", "logprob": -0.5}], []]]}"#);
        let names: Vec<String> = fields.into_iter().map(String::from).collect();
        assert_eq!(names[..3], ["input", "id", "a \"b"]);
    }

    #[test]
    fn verdicts_stand_beside_responses() {
        let step = CompletedStep { step: 1, consumed_samples: 1, samples: vec![sample(0)] };
        let fields = ["response_indices", "verdicts", "scores", "pass_at_k"];
        let fields = fields.map(|name| OutputField::from(name.to_owned()));
        let line = String::from_utf8(step.to_jsonl(&fields).unwrap()).unwrap();
        insta::assert_snapshot!(line.split_once("\"responses\"").unwrap().1, @r#": ["né�<extra_id_1>"], "response_indices": [2], "verdicts": ["fail"], "scores": [0.5], "pass_at_k": {"1": 0.25, "8": null}}"#);
    }

    #[test]
    fn no_key_is_written_twice() {
        let check = |names: &[&str]| {
            let fields: Vec<_> = names.iter().map(|&name| OutputField::from(name.to_owned())).collect();
            OutputField::check_all(&fields)
        };
        assert_eq!(check(&["index", "id"]), Ok(()));
        insta::assert_snapshot!(check(&["id", "prompt"]).unwrap_err(), @"`prompt` is a key that lines have anyway: take `input`, which has the whole record");
        insta::assert_snapshot!(check(&["id", "index", "id"]).unwrap_err(), @"it has `id` twice");
    }
}
