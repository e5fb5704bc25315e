//! Elementary functions in float32 without branches, so that loops over them become vector code. Each is a fixed
//! sequence of operations: a value's result never depends on its neighbours or on the vector width.

/// e to the `x`, within 2 units in the last place; 0 below -87.3, clamped above 88.3.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first exact in the products that occur (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (clamped - power * LN2_HIGH) - power * LN2_LOW;
    // Cephes' minimax polynomial for e^r on [-ln2/2, ln2/2].
    let mut poly = 1.987_569_1e-4;
    poly = poly * r + 1.398_199_9e-3;
    poly = poly * r + 8.333_452e-3;
    poly = poly * r + 4.166_579_5e-2;
    poly = poly * r + 0.166_666_65;
    poly = poly * r + 0.5;
    let value = poly * (r * r) + r + 1.0;
    let scale = f32::from_bits(((shifted.to_bits() as i32) << 23).wrapping_add(127 << 23) as u32);
    let result = value * scale;
    if x < -87.3 { 0.0 } else { result }
}

/// Logistic sigmoid.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, absolute error below 3e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Error function, absolute error below 5e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut poly = 1.061_405_4;
    poly = poly * t - 1.453_152;
    poly = poly * t + 1.421_413_8;
    poly = poly * t - 0.284_496_72;
    poly = poly * t + 0.254_829_6;
    let value = 1.0 - poly * t * exp(-magnitude * magnitude);
    value.copysign(x)
}

/// The sum of 16 lanes as a fixed binary tree.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; 16]) -> f32 {
    let mut sums = lanes;
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        actual: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        range: std::ops::Range<i32>,
        bound: f64,
    ) {
        for step in range {
            let x = step as f32 / 512.0;
            let want = exact(f64::from(x));
            let error = (f64::from(actual(x)) - want).abs();
            assert!(error <= bound * want.abs().max(1.0), "at {x}: {} against {want}", actual(x));
        }
    }

    #[test]
    fn exp_is_accurate_to_its_last_places() {
        for step in -44_000..44_000 {
            let x = step as f32 / 512.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 2.5e-7, "at {x}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sigmoid_and_tanh_are_accurate() {
        check(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -10_000..10_000, 3e-7);
        check(tanh, f64::tanh, -10_000..10_000, 3e-7);
    }

    #[test]
    fn erf_is_accurate() {
        // Values of the error function from Abramowitz and Stegun, table 7.1.
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916),
            (0.5, 0.520_499_878),
            (1.0, 0.842_700_793),
            (2.0, 0.995_322_265),
        ] {
            assert!((f64::from(erf(x)) - want).abs() < 5e-7, "at {x}");
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
