//! One draw from unnormalised log-probabilities, by walking the cumulative distribution in order of index.

use crate::weights::{sum_weights, weight};

const BLOCK: usize = 512;

/// The first index whose cumulative weight exceeds `uniform` times the total. `max`: the largest value,
/// finite.
///
/// `block_sums` is scratch. Sums are exact (see [`crate::weights`]), so cutting the walk into blocks changes
/// nothing.
pub(crate) fn draw(values: &[f32], max: f32, uniform: f64, block_sums: &mut Vec<f64>) -> usize {
    block_sums.clear();
    block_sums.extend(values.chunks(BLOCK).map(|block| sum_weights(block, max)));
    let target = uniform * block_sums.iter().sum::<f64>();
    let mut cumulative = 0.0;
    let mut up_to_block = 0.0;
    let mut last_block_idx = 0;
    for (block_idx, &sum) in block_sums.iter().enumerate() {
        if sum == 0.0 {
            continue;
        }
        last_block_idx = block_idx;
        up_to_block = cumulative;
        cumulative += sum;
        if cumulative > target {
            break;
        }
    }
    cumulative = up_to_block;
    // The product may have rounded up to the total itself; then the last token that has a weight is the one.
    let mut last_possible = 0;
    for (idx, &value) in values.iter().enumerate().skip(last_block_idx * BLOCK).take(BLOCK) {
        let weight = weight(value, max);
        if weight > 0.0 {
            last_possible = idx;
        }
        cumulative += weight;
        if cumulative > target {
            break;
        }
    }
    last_possible
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f32], uniform: f64, expect: usize) {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(draw(values, max, uniform, &mut Vec::new()), expect);
    }

    #[test]
    fn quarters() {
        let values = [0.0; 4];
        check(&values, 0.0, 0);
        check(&values, 0.249, 0);
        check(&values, 0.25, 1);
        check(&values, 0.999_999, 3);
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let none = f32::NEG_INFINITY;
        check(&[none, 0.0, none, 0.0, none], 0.0, 1);
        check(&[none, 0.0, none, 0.0, none], 0.5, 3);
        check(&[none, 0.0, none, 0.0, none], 1.0, 3);
    }

    #[test]
    fn blocks_join_without_a_seam() {
        let values = vec![0.0; 4 * BLOCK];
        for idx in [0, BLOCK - 1, BLOCK, 2 * BLOCK + 1, 4 * BLOCK - 1] {
            check(&values, (idx as f64 + 0.5) / values.len() as f64, idx);
        }
    }
}
