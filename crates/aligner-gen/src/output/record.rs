//! One line of `generations.jsonl`: the guide's four keys, and more only when asked for.

use data::JsonObject;
use sampling::FinishReason;
use serde::{Deserialize, Serialize};

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
    pub(crate) metadata: JsonObject,
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

impl CompletedStep {
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
        line.entry("prompt", &sample.prompt)?;
        line.entry("responses", &texts)?;
        for field in fields {
            match field {
                OutputField::Metadata => line.metadata("metadata", &sample.metadata),
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
            }
        }
        line.end();
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(index: u64) -> SampleOutput {
        SampleOutput {
            index,
            prompt: format!("<extra_id_1>User\nQ{index}\n"),
            metadata: data::parse_object(br#"{"system":"","score":1e-07,"n":[1.50,NaN]}"#).unwrap(),
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
        insta::assert_snapshot!(String::from_utf8(step.to_jsonl(&fields).unwrap()).unwrap(), @r#"{"step": 3, "consumed_samples": 9, "prompt": "<extra_id_1>User\nQ8\n", "responses": ["né�<extra_id_1>"], "index": 8, "metadata": {"system": "", "score": 1e-07, "n": [1.50, NaN]}, "finish_reasons": ["end_string"], "token_ids": [[7, 8]], "logprobs": [[-0.5, -1e-05]]}"#);
    }
}
