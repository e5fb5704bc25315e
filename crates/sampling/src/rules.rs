//! The input of both samplers: the parameters and the facts about the vocabulary.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::{SamplingError, SamplingParams, weights::MAX_VOCAB_SIZE};

/// What decides the tokens of a row, beside its logits: the run's, or a row's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRules {
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// Of the random draws.
    pub seed: u64,
    /// Tokens that are not chosen among the first `min_length` tokens of a response.
    pub end_token_ids: Vec<u32>,
    /// Fewest tokens of a response.
    pub min_length: u32,
    /// What the text must be, as [`Structures`](crate::Structures) reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<String>,
}

impl RowRules {
    /// Whether end tokens may not be chosen yet. Where there is a structure, its tokens say so.
    pub(crate) fn holds_back_end(&self, state: &RowState<'_>) -> bool {
        self.structure.is_none() && state.num_generated < self.min_length && !self.end_token_ids.is_empty()
    }
}

/// What the sampler must know about one row of a step's logits.
#[derive(Clone, Copy, Debug)]
pub struct RowState<'a> {
    /// Position of the sample in the input file: the Philox key together with the run's seed.
    pub sample_idx: u64,
    /// Which response of the sample.
    pub response_idx: u32,
    /// Tokens generated so far: 0 for the first.
    pub num_generated: u32,
    /// Prompt and generated tokens so far, for the repetition penalty.
    pub history: &'a [u32],
    /// Rules of its own, in place of the run's.
    pub own: Option<&'a RowRules>,
    /// Bits of the tokens that may be chosen, `[ceil(vocab_size / 32)]`, where not all may.
    pub allowed: Option<&'a [u32]>,
}

/// What decides the tokens of a run, beside the logits.
#[derive(Clone, Debug)]
pub struct SamplingRules {
    /// What holds for rows without rules of their own.
    pub row: RowRules,
    /// The tokenizer's; logits past it are padding.
    pub vocab_size: usize,
    /// Added to the logits of these tokens, before everything else; minus infinity bans a token. No token twice.
    pub bias: Vec<(u32, f32)>,
}

impl SamplingRules {
    pub(crate) fn check(self) -> Result<Self, SamplingError> {
        if self.vocab_size == 0 || self.vocab_size > MAX_VOCAB_SIZE {
            return Err(SamplingError::BadVocabSize { actual: self.vocab_size, limit: MAX_VOCAB_SIZE });
        }
        if let Some(&(token, _)) = self.bias.iter().find(|&&(token, _)| token as usize >= self.vocab_size) {
            return Err(SamplingError::BadBias { token, vocab_size: self.vocab_size });
        }
        Ok(self)
    }

    /// What holds for a row.
    pub(crate) fn of<'a>(&'a self, state: &RowState<'a>) -> &'a RowRules {
        state.own.unwrap_or(&self.row)
    }

    /// Adds the bias to `row`, `[vocab_size]`.
    pub(crate) fn add_bias(&self, row: &mut [f32]) {
        for &(token, bias) in &self.bias {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    /// Masks what may not be chosen in `row`, `[vocab_size]`, whatever else holds for it.
    pub(crate) fn mask(row: &mut [f32], allowed: Option<&[u32]>) {
        let Some(allowed) = allowed else { return };
        for (logits, word) in
            row.chunks_mut(u32::BITS as usize).zip(allowed.iter().copied().chain(std::iter::repeat(0)))
        {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// [`to_host`] of logits for its vocabulary.
    pub(crate) fn to_host(&self, logits: &Tensor, num_rows: usize) -> Result<(Tensor, usize), SamplingError> {
        to_host(logits, num_rows, self.vocab_size)
    }
}

/// `logits` on the CPU and contiguous, `[num_rows, padded_vocab_size]`, and `padded_vocab_size`.
pub(crate) fn to_host(
    logits: &Tensor,
    num_rows: usize,
    vocab_size: usize,
) -> Result<(Tensor, usize), SamplingError> {
    let shape = logits.size();
    match shape[..] {
        [actual_rows, padded] if actual_rows == num_rows as i64 && padded >= vocab_size as i64 => {
            let host = logits.f_to_device(Device::Cpu)?.f_contiguous()?; // [num_rows, padded_vocab_size]
            Ok((host, padded as usize))
        }
        _ => Err(SamplingError::BadShape { actual: shape, num_rows, vocab_size }),
    }
}

/// The error for a row that no token can be chosen from.
pub(crate) fn bad_logits(state: &RowState<'_>, problem: &'static str) -> SamplingError {
    SamplingError::BadLogits {
        sample_idx: state.sample_idx,
        response_idx: state.response_idx,
        token_idx: state.num_generated,
        problem,
    }
}
