//! What is done to a row of logits before the draw, one file a rule, in plain Rust.
//!
//! The order is NeMo's (`text_generation_utils.py`): minimum length, temperature, repetition penalty,
//! `top_k`, `top_p`. Vocabulary padding is never read: a row here ends at the tokenizer's vocabulary
//! size.

pub(crate) mod min_length;
pub(crate) mod repetition_penalty;
pub(crate) mod temperature;
pub(crate) mod top_k;
pub(crate) mod top_p;

/// Bins of a histogram over the distance from the largest value; the last one takes everything far away.
pub(crate) const NUM_BINS: usize = 2048;

/// Rows are taken in blocks of this many values, so that weights and bins are computed by vector
/// instructions.
pub(crate) const BLOCK: usize = 256;

const BINS_PER_UNIT: f32 = 64.0;

/// Adding this number rounds to an integer, which is left in the low bits of the sum.
const ROUND_TO_INT: f32 = (1 << 23) as f32;

/// The bin of `value`. A larger value never has a larger bin, and equal values share theirs.
pub(crate) fn bin_idx(value: f32, max: f32) -> u32 {
    const LAST_BIN: f32 = (NUM_BINS - 1) as f32;
    let distance = (max - value) * BINS_PER_UNIT;
    let clamped = if distance < LAST_BIN { distance } else { LAST_BIN };
    (clamped + ROUND_TO_INT).to_bits() - ROUND_TO_INT.to_bits()
}

/// The bins of up to [`BLOCK`] values.
pub(crate) fn bin_idxs(block: &[f32], max: f32) -> [u32; BLOCK] {
    let mut bins = [0; BLOCK];
    for (bin, &value) in bins.iter_mut().zip(block) {
        *bin = bin_idx(value, max);
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_fall_as_values_rise() {
        let values: Vec<f32> =
            (0..4000).map(|i| 3.0 - i as f32 * 0.01).chain([-1e30, f32::NEG_INFINITY]).collect();
        let bins: Vec<u32> = values.iter().map(|&value| bin_idx(value, 3.0)).collect();
        assert!(bins.is_sorted());
        assert_eq!((bins[0], bins[1], bins.last()), (0, 1, Some(&(NUM_BINS as u32 - 1))));
    }
}
