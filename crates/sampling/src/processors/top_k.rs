//! `top_k`: everything strictly below the k-th largest value goes; ties with it all stay, so more than k may
//! remain.

use super::{BLOCK, NUM_BINS, bin_idx, bin_idxs};

/// The k-th largest of `values`, found without sorting them. `max`: the largest, finite; `k > 0`.
pub(crate) fn threshold(values: &[f32], max: f32, k: usize) -> f32 {
    let mut counts = [0_usize; NUM_BINS];
    for block in values.chunks(BLOCK) {
        for bin in &bin_idxs(block, max)[..block.len()] {
            counts[*bin as usize] += 1;
        }
    }
    let mut num_above = 0;
    for (bin, &count) in (0..).zip(&counts) {
        if num_above + count >= k {
            let mut in_bin: Vec<f32> =
                values.iter().copied().filter(|&value| bin_idx(value, max) == bin).collect();
            let (_, kth, _) = in_bin.select_nth_unstable_by(k - num_above - 1, |a, b| b.total_cmp(a));
            return *kth;
        }
        num_above += count;
    }
    f32::NEG_INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f32], k: usize, expect: f32) {
        assert_eq!(threshold(values, values.iter().copied().fold(f32::NEG_INFINITY, f32::max), k), expect);
    }

    #[test]
    fn kth_largest() {
        let values = [1.0, 5.0, 3.0, 3.0, -200.0, f32::NEG_INFINITY, -300.0];
        check(&values, 1, 5.0);
        check(&values, 2, 3.0);
        check(&values, 3, 3.0);
        check(&values, 4, 1.0);
        check(&values, 5, -200.0);
        check(&values, 6, -300.0);
        check(&values, 7, f32::NEG_INFINITY);
        check(&values, 100, f32::NEG_INFINITY);
    }
}
