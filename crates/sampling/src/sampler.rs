//! The trait that turns a step's logits into tokens.

use tch::Tensor;

use crate::SamplingError;

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
}

/// One chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The token id, below the tokenizer's vocabulary size.
    pub token: u32,
    /// Log-softmax of the raw fp32 logits over the tokenizer's vocabulary, when asked for.
    pub logprob: Option<f32>,
}

/// Chooses one token a row.
pub trait TokenSampler: Send {
    /// `logits`: float32 `[num_rows, padded_vocab_size]`, any device; `rows`: one state a row.
    ///
    /// # Errors
    /// When the shapes do not fit or the device fails.
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError>;
}
