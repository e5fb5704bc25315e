//! Unnormalised probabilities, `exp(logit - max)`, on a grid where sums are exact.
//!
//! A weight is a multiple of 2^-34 held in an `f64`, so adding up a whole vocabulary never rounds: the sum is
//! the same in any order, on any number of threads, and on another kind of device. Tokens less likely than
//! 2^-35 of the most likely one get weight 0 and are never drawn. The loops here are written for the compiler
//! to vectorise.

/// Largest vocabulary whose weights, 1 at most each, add up exactly in 53 bits.
pub(crate) const MAX_VOCAB_SIZE: usize = 1 << 19;

/// The spacing of `f64` in [2^18, 2^19) is 2^-34: adding and taking away this number rounds to the grid.
const ROUND_TO_GRID: f64 = 1.5 * (1_u64 << 18) as f64;

/// Adding and taking away this number rounds an `f32` to an integer, which is left in the low bits of the
/// sum.
const ROUND_TO_INT: f32 = 1.5 * (1 << 23) as f32;

const LANES: usize = 8;

/// The weight of a token: `exp(value - max)` rounded to the grid. `value <= max`, `max` finite.
pub(crate) fn weight(value: f32, max: f32) -> f64 {
    (f64::from(exp_nonpositive(value - max)) + ROUND_TO_GRID) - ROUND_TO_GRID
}

/// The exact sum of the weights of `values`, at most [`MAX_VOCAB_SIZE`] of them.
pub(crate) fn sum_weights(values: &[f32], max: f32) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += weight(value, max);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&value| weight(value, max)).sum::<f64>()
}

/// `exp(x)` for `x <= 0` without branches; relative error below 2e-7. Below -80 it stays at `exp(-80)`, which
/// is weight 0.
///
/// Cody and Waite's reduction to `|r| <= ln(2) / 2`, then a polynomial of degree 6 (Cephes `expf`).
fn exp_nonpositive(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -80.0 { x } else { -80.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND_TO_INT;
    let exponent = shifted - ROUND_TO_INT;
    let r = (x - exponent * LN2_HIGH) - exponent * LN2_LOW;
    let mut poly = 1.987_569_1e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = poly * r + coefficient;
    }
    let mantissa = poly * (r * r) + r + 1.0;
    // The integer sits in the low bits of `shifted`; the bits of `ROUND_TO_INT` itself fall out at the top.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    mantissa * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_in_ten_million() {
        for step in 0..800_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(weight(3.5, 3.5), 1.0);
        assert_eq!(weight(f32::NEG_INFINITY, 3.5), 0.0);
        assert_eq!(weight(-30.0, 0.0), 0.0);
        assert!(weight(-23.0, 0.0) > 0.0);
    }

    #[test]
    fn sums_do_not_depend_on_the_order() {
        let mut values: Vec<f32> = (0..10_007).map(|i| -((i * 7919 % 10_007) as f32) * 2e-3).collect();
        let sum = sum_weights(&values, 0.0);
        values.reverse();
        assert_eq!(sum, sum_weights(&values, 0.0));
        values.sort_by(f32::total_cmp);
        assert_eq!(sum, values.iter().map(|&value| weight(value, 0.0)).sum::<f64>());
    }
}
