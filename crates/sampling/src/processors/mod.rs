//! What is done to a row of logits before the draw, one file a rule, in plain Rust.
//!
//! The order is NeMo's (`text_generation_utils.py`): minimum length, temperature, repetition penalty, `top_k`,
//! `top_p`. Vocabulary padding is never looked at: a row here ends at the tokenizer's vocabulary size.

pub(crate) mod min_length;
pub(crate) mod repetition_penalty;
pub(crate) mod temperature;
pub(crate) mod top_k;
pub(crate) mod top_p;

/// Bins of a histogram over the distance from the largest value; the last one takes everything far away.
pub(crate) const NUM_BINS: usize = 2048;

const BINS_PER_UNIT: f32 = 64.0;

/// The bin of `value`. A larger value never has a larger bin, and equal values share theirs.
pub(crate) fn bin_idx(value: f32, max: f32) -> usize {
    (((max - value) * BINS_PER_UNIT) as usize).min(NUM_BINS - 1)
}
