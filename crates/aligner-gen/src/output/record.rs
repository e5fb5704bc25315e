//! One line of `generations.jsonl`: the guide's four keys, and more only when asked for.

use sampling::FinishReason;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{OutputError, python_json};

/// What `model.generation.output_fields` may add to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputField {
    Metadata,
    Index,
    FinishReasons,
    TokenIds,
    Logprobs,
}

/// One response.
#[derive(Clone, Debug)]
pub(crate) struct ResponseOutput {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Option<Vec<f32>>,
    pub(crate) finish_reason: FinishReason,
}

/// One prompt with its responses.
#[derive(Clone, Debug)]
pub(crate) struct SampleOutput {
    /// Line number in the input file, from 0.
    pub(crate) index: u64,
    pub(crate) prompt: String,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) responses: Vec<ResponseOutput>,
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

struct Line<'a> {
    step: &'a CompletedStep,
    sample: &'a SampleOutput,
    fields: &'a [OutputField],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let responses = &self.sample.responses;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step.step)?;
        map.serialize_entry("consumed_samples", &self.step.consumed_samples)?;
        map.serialize_entry("prompt", &self.sample.prompt)?;
        map.serialize_entry(
            "responses",
            &responses.iter().map(|response| &response.text).collect::<Vec<_>>(),
        )?;
        for field in self.fields {
            match field {
                OutputField::Metadata => map.serialize_entry("metadata", &self.sample.metadata)?,
                OutputField::Index => map.serialize_entry("index", &self.sample.index)?,
                OutputField::FinishReasons => {
                    let reasons: Vec<_> = responses.iter().map(|response| response.finish_reason).collect();
                    map.serialize_entry("finish_reasons", &reasons)?;
                }
                OutputField::TokenIds => {
                    let ids: Vec<_> = responses.iter().map(|response| &response.token_ids).collect();
                    map.serialize_entry("token_ids", &ids)?;
                }
                OutputField::Logprobs => {
                    let logprobs: Vec<_> = responses.iter().map(|response| &response.logprobs).collect();
                    map.serialize_entry("logprobs", &logprobs)?;
                }
            }
        }
        map.end()
    }
}

impl CompletedStep {
    /// All lines of the step, each with its newline.
    pub(crate) fn to_jsonl(&self, fields: &[OutputField]) -> Result<Vec<u8>, OutputError> {
        let mut out = Vec::new();
        for sample in &self.samples {
            python_json::append(&mut out, &Line { step: self, sample, fields })
                .map_err(|source| OutputError::Json { step: self.step, source })?;
            out.push(b'\n');
        }
        Ok(out)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(index: u64) -> SampleOutput {
        SampleOutput {
            index,
            prompt: format!("<extra_id_1>User\nQ{index}\n"),
            metadata: [("system".to_owned(), "".into()), ("score".to_owned(), 1e-7.into())]
                .into_iter()
                .collect(),
            responses: vec![ResponseOutput {
                text: "né\u{fffd}<extra_id_1>".to_owned(),
                token_ids: vec![7, 8],
                logprobs: Some(vec![-0.5, -0.000_01]),
                finish_reason: FinishReason::EndString,
            }],
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
        insta::assert_snapshot!(String::from_utf8(step.to_jsonl(&fields).unwrap()).unwrap(), @r#"{"step": 3, "consumed_samples": 9, "prompt": "<extra_id_1>User\nQ8\n", "responses": ["né�<extra_id_1>"], "index": 8, "metadata": {"system": "", "score": 1e-07}, "finish_reasons": ["end_string"], "token_ids": [[7, 8]], "logprobs": [[-0.5, -1e-05]]}"#);
    }
}
