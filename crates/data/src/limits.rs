//! How long a prompt may be, and what the limit is about.

use std::fmt;
use std::str::FromStr;

use crate::DataError;

/// A list of tokens that the original makes of a record, as `truncation_field` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    /// The prompt.
    ContextIds,
    /// The whole conversation, the answers of the file included.
    InputIds,
    /// What follows the prompt in it.
    AnswerIds,
    /// As long as `input_ids`.
    Mask,
}

impl FromStr for TokenField {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        Ok(match name {
            "context_ids" => Self::ContextIds,
            "input_ids" => Self::InputIds,
            "answer_ids" => Self::AnswerIds,
            "mask" => Self::Mask,
            _ => {
                return Err(DataError::UnknownTruncationField {
                    field: name.into(),
                    expected:
                        "`context_ids`, `input_ids`, `answer_ids` and `mask`, because `model.data.chat=true`"
                            .into(),
                });
            }
        })
    }
}

/// The most tokens a prompt may have. What has more is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LengthLimits {
    /// `model.data.train_ds.max_seq_length`, for each field of `truncation_field`.
    pub fields: Vec<(TokenField, usize)>,
    /// `trainer.generation.trt_llm.max_input_len`, with the fast engine.
    pub max_input_len: Option<usize>,
}

impl LengthLimits {
    /// Limits the prompt alone.
    pub fn of_prompt(max_tokens: usize) -> Self {
        Self { fields: vec![(TokenField::ContextIds, max_tokens)], max_input_len: None }
    }

    /// The length of the first field that is too long, of `num_tokens` for the fields and of the prompt.
    pub(crate) fn exceeded(&self, prompt_tokens: usize, num_tokens: &[usize]) -> Option<usize> {
        let fields = self.fields.iter().zip(num_tokens).map(|(&(_, limit), &actual)| (actual, limit));
        let input = self.max_input_len.map(|limit| (prompt_tokens, limit));
        fields.chain(input).find(|(actual, limit)| actual > limit).map(|(actual, _)| actual)
    }
}

/// The settings, as they are typed.
impl fmt::Display for LengthLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_SEQ_LENGTH: &str = "model.data.train_ds.max_seq_length";
        match self.fields.as_slice() {
            [] => {}
            [(_, limit), rest @ ..] if rest.iter().all(|(_, other)| other == limit) => {
                write!(f, "`{MAX_SEQ_LENGTH}={limit}`")?;
            }
            all => {
                let all: Vec<String> = all.iter().map(|(_, limit)| limit.to_string()).collect();
                write!(f, "`{MAX_SEQ_LENGTH}=[{}]`", all.join(","))?;
            }
        }
        let Some(limit) = self.max_input_len else { return Ok(()) };
        let and = if self.fields.is_empty() { "" } else { " or " };
        write!(f, "{and}`trainer.generation.trt_llm.max_input_len={limit}`")
    }
}
