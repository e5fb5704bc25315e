//! A sampler for texts that are known: it draws the tokens that it is told and says how likely they were.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tch::Tensor;
use torch_ext::view::f32_slice;

use crate::{
    RowState, SampledToken, SamplingError, TokenSampler,
    rules::{bad_logits, to_host},
    sampler::RawRow,
    top_tokens::top_tokens,
    weights::MAX_VOCAB_SIZE,
};

/// The texts of a run, by the number of their sample. Shared with who changes them between runs.
pub type ForcedTexts = Arc<Mutex<Vec<Vec<u32>>>>;

/// Draws the tokens of known texts.
#[derive(Clone, Debug)]
pub struct ForcedSampler {
    texts: ForcedTexts,
    vocab_size: usize,
    num_top: u32,
}

impl ForcedSampler {
    /// A sampler for `texts`, each of which is the only response of its sample. `vocab_size`: the tokenizer's; `num_top`:
    /// how many most likely tokens it gives at each place.
    ///
    /// # Errors
    /// When the vocabulary is empty or too large.
    pub fn new(texts: ForcedTexts, vocab_size: usize, num_top: u32) -> Result<Self, SamplingError> {
        if vocab_size == 0 || vocab_size > MAX_VOCAB_SIZE {
            return Err(SamplingError::BadVocabSize { actual: vocab_size, limit: MAX_VOCAB_SIZE });
        }
        Ok(Self { texts, vocab_size, num_top })
    }

    fn sample_row(
        &self,
        raw: &[f32],
        state: &RowState<'_>,
        token: u32,
    ) -> Result<SampledToken, SamplingError> {
        let row = RawRow::new(raw).map_err(|problem| bad_logits(state, problem))?;
        let logit = raw.get(token as usize).copied().ok_or_else(|| bad_logits(state, "no such token"))?;
        let top = top_tokens(raw, self.num_top as usize, |logit| row.logprob(logit));
        Ok(SampledToken { token, logprob: Some(row.logprob(logit)), top })
    }
}

impl TokenSampler for ForcedSampler {
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let (logits, padded_vocab_size) = to_host(logits, rows.len(), self.vocab_size)?;
        let logits = f32_slice(&logits, "logits")?;
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let token_of = |state: &RowState<'_>| {
            let text = usize::try_from(state.sample_idx).ok().and_then(|idx| texts.get(idx))?;
            text.get(state.num_generated as usize).copied()
        };
        let tokens: Vec<Option<u32>> = rows.iter().map(token_of).collect();
        drop(texts);
        rows.par_iter()
            .zip(&tokens)
            .zip(logits.par_chunks(padded_vocab_size))
            .map(|((state, token), row)| {
                let token = token.ok_or_else(|| bad_logits(state, "more places than the text has"))?;
                self.sample_row(&row[..self.vocab_size], state, token)
            })
            .collect()
    }

    fn is_greedy(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuSampler, RowRules, SamplingParams, SamplingRules};

    #[test]
    fn log_probabilities_are_those_of_a_draw() {
        let params = SamplingParams {
            use_greedy: true,
            compute_logprob: true,
            top_logprobs: 2,
            ..SamplingParams::PLAIN
        };
        let row = RowRules { params, seed: 1, end_token_ids: vec![], min_length: 0, structure: None };
        let mut drawing = CpuSampler::new(SamplingRules { row, vocab_size: 3, bias: vec![] }).unwrap();
        let logits = Tensor::from_slice(&[0.5_f32, 2.0, -1.0, 9.0]).view([1, 4]);
        let state = RowState {
            sample_idx: 1,
            response_idx: 0,
            num_generated: 1,
            history: &[7],
            own: None,
            allowed: None,
        };
        let drawn = drawing.sample(&logits, &[state]).unwrap();
        let texts: ForcedTexts = Arc::new(Mutex::new(vec![vec![], vec![0, 1]]));
        let mut forced = ForcedSampler::new(Arc::clone(&texts), 3, 2).unwrap();
        assert_eq!(forced.sample(&logits, &[state]).unwrap(), drawn);
        let first = RowState { num_generated: 0, ..state };
        let other = forced.sample(&logits, &[first]).unwrap().remove(0);
        assert!(other.token == 0 && other.logprob < drawn[0].logprob && other.top == drawn[0].top);
        let past = RowState { num_generated: 2, ..state };
        let error = forced.sample(&logits, &[past]).unwrap_err().to_string();
        assert_eq!(
            error,
            "logits of sample 1, response 0, generated token 2 hold more places than the text has"
        );
    }
}
