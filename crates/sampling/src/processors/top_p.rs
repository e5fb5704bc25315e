//! `top_p`: the smallest prefix whose probability exceeds p stays, in order of value, ties in order of id.
//!
//! The most likely token and the one that crosses p both stay; a prefix of exactly p takes in one token more.

use super::{BLOCK, NUM_BINS, bin_idx, bin_idxs};
use crate::weights::weight;

/// The last token that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LastKept {
    value: f32,
    idx: usize,
}

impl LastKept {
    /// Whether the token at `idx` stays.
    pub(crate) fn keeps(&self, idx: usize, value: f32) -> bool {
        value > self.value || (value == self.value && idx <= self.idx)
    }
}

/// Finds where the prefix ends, sorting only the tokens of one histogram bin. `max`: the largest value,
/// finite.
pub(crate) fn last_kept(values: &[f32], max: f32, p: f32) -> LastKept {
    let mut masses = [0.0_f64; NUM_BINS];
    for block in values.chunks(BLOCK) {
        let mut weights = [0.0; BLOCK];
        for (weight_of, &value) in weights.iter_mut().zip(block) {
            *weight_of = weight(value, max);
        }
        for (bin, weight) in bin_idxs(block, max).iter().zip(&weights[..block.len()]) {
            masses[*bin as usize] += weight;
        }
    }
    let target = f64::from(p) * masses.iter().sum::<f64>();
    let mut cumulative = 0.0;
    for (bin, &mass) in (0..).zip(&masses) {
        if cumulative + mass <= target {
            cumulative += mass;
            continue;
        }
        for (idx, value) in sorted_bin(values, max, bin) {
            cumulative += weight(value, max);
            if cumulative > target {
                return LastKept { value, idx };
            }
        }
    }
    LastKept { value: f32::NEG_INFINITY, idx: usize::MAX }
}

fn sorted_bin(values: &[f32], max: f32, bin: u32) -> Vec<(usize, f32)> {
    let mut in_bin: Vec<(usize, f32)> =
        values.iter().copied().enumerate().filter(|&(_, value)| bin_idx(value, max) == bin).collect();
    // Both zeros are one value, which `total_cmp` would tell apart; there is no NaN here.
    in_bin.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0)));
    in_bin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f32], p: f32, expect: &[usize]) {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let last = last_kept(values, max, p);
        let kept: Vec<usize> = (0..values.len()).filter(|&idx| last.keeps(idx, values[idx])).collect();
        assert_eq!(kept, expect);
    }

    #[test]
    fn the_crossing_token_stays() {
        check(&[0.0; 4], 0.3, &[0, 1]);
        check(&[0.0; 4], 0.6, &[0, 1, 2]);
        check(&[0.0, 9.0, 0.0], 0.01, &[1]);
    }

    #[test]
    fn exactly_p_takes_in_one_more() {
        check(&[0.0; 4], 0.25, &[0, 1]);
        check(&[0.0; 4], 0.5, &[0, 1, 2]);
    }

    #[test]
    fn ties_go_by_index_and_both_zeros_are_equal() {
        check(&[0.0, -0.0, 0.0, -0.0], 0.4, &[0, 1]);
        check(&[1.0, 2.0, 2.0, 1.0], 0.5, &[1, 2]);
    }
}
