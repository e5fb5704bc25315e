//! What decides the token of a row, beside its logits and the rules of the run.

use crate::RowRules;

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
}
