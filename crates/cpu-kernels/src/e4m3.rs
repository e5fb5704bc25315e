//! Keys and values as an FP8 cache holds them: e4m3 with a power of two for each token and head (`model_spec::KvFormat::Fp8`).
//!
//! Nothing here multiplies FP8, and each of these numbers is one of bfloat16 too, so the cache keeps them in what the kernels
//! compute in.

use super::elem::Elem;

/// The exponent of the scale of a head of zeros, and the least there is.
const LEAST_EXPONENT: i32 = -60;

/// The nearest numbers that the cache can hold; ties to even. A head with an infinity or a NaN becomes NaN.
#[inline(always)]
pub(crate) fn round_head<E: Elem>(head: &[E], out: &mut [E]) {
    let max_bits = head.iter().fold(0, |max: u32, elem| max.max(elem.to_f32().to_bits() & 0x7fff_ffff));
    if max_bits >= f32::INFINITY.to_bits() {
        out.fill(E::from_f32(f32::NAN));
        return;
    }
    let exponent = scale_exponent(max_bits);
    let (scale, inverse) = (power_of_two(exponent), power_of_two(-exponent));
    for (out, elem) in out.iter_mut().zip(head) {
        *out = E::from_f32(nearest(elem.to_f32() * inverse) * scale);
    }
}

/// The least `k` with `max <= 448 * 2^k`, where 448 is `1.75 * 2^8`, by the bits of a finite `max`.
#[inline(always)]
fn scale_exponent(max_bits: u32) -> i32 {
    // Above 1.75 a mantissa carries into the exponent.
    const CARRY: u32 = 0x7f_ffff - 0x60_0000;
    (((max_bits + CARRY) >> 23) as i32 - 127 - 8).max(LEAST_EXPONENT)
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The nearest number of e4m3 to one of at most 448 in size.
#[inline(always)]
fn nearest(value: f32) -> f32 {
    /// Of the smallest normal number, 2^-6; below, numbers lie 2^-9 apart.
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    /// Adding it rounds to multiples of 2^-9.
    const TO_NINTHS: f32 = 1.5 * (1 << 14) as f32;
    let bits = value.to_bits();
    // Three bits of the mantissa stay.
    let normal = f32::from_bits((bits + 0x7_ffff + ((bits >> 20) & 1)) & 0xfff0_0000);
    let subnormal = (value + TO_NINTHS) - TO_NINTHS;
    if value.abs() < LEAST_NORMAL { subnormal } else { normal }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn rounded(head: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; head.len()];
        round_head(head, &mut out);
        out
    }

    /// All numbers of e4m3 that are not negative.
    fn numbers() -> Vec<f32> {
        let number = |bits: u32| match (bits >> 3, bits & 7) {
            (0, mantissa) => mantissa as f32 / 512.0,
            (exponent, mantissa) => (8 + mantissa) as f32 / 8.0 * power_of_two(exponent as i32 - 7),
        };
        (0..0x7f).map(number).collect()
    }

    #[test]
    fn numbers_of_e4m3_stay() {
        let numbers = numbers();
        assert_eq!(numbers.last(), Some(&448.0));
        for scale in [1.0, power_of_two(-37), power_of_two(100)] {
            let head: Vec<f32> =
                numbers.iter().flat_map(|&number| [number * scale, -number * scale]).collect();
            assert_eq!(rounded(&head), head);
        }
    }

    #[test]
    fn others_become_the_nearest_and_ties_the_even_one() {
        let numbers = numbers();
        for (idx, pair) in numbers.windows(2).enumerate() {
            let [low, high] = pair else { panic!("two") };
            let middle = (low + high) / 2.0;
            let even = if idx % 2 == 0 { low } else { high };
            // 448 keeps the scale at 1.
            let head = [448.0, middle, -middle, middle.next_down(), middle.next_up()];
            assert_eq!(rounded(&head), [448.0, *even, -*even, *low, *high]);
        }
    }

    #[test]
    fn the_scale_is_the_least_that_fits() {
        for (max, exponent) in
            [(448.0_f32, 0), (448.1, 1), (224.0, -1), (224.1, 0), (1.0, -8), (1.76, -7), (0.0, -60)]
        {
            assert_eq!(scale_exponent(max.to_bits()), exponent, "{max}");
        }
        assert_eq!(scale_exponent(f32::MAX.to_bits()), 120);
        // In units of 1/256, numbers from 256 to 512 are multiples of 32.
        assert_eq!(rounded(&[1.0, 1.0 + 17.0 / 256.0, 0.3]), [1.0, 1.125, 0.3125]);
        assert_eq!(rounded(&[0.0, -0.0, 1e-30]), [0.0, -0.0, 0.0]);
        assert_eq!(rounded(&[f32::MAX, 1.0]), [448.0 * power_of_two(120), 0.0]);
    }

    #[test]
    fn what_is_not_finite_becomes_nan() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(rounded(&[1.0, bad, 0.0]).iter().all(|elem| elem.is_nan()));
        }
    }

    #[test]
    fn bfloat16_holds_each_of_them() {
        let head: Vec<bf16> = (0..256).map(|step| bf16::from_f32((step as f32 * 0.7).sin() * 3.0)).collect();
        let wide: Vec<f32> = head.iter().map(|elem| elem.to_f32()).collect();
        let mut out = vec![bf16::ZERO; head.len()];
        round_head(&head, &mut out);
        assert_eq!(out.iter().map(|elem| elem.to_f32()).collect::<Vec<_>>(), rounded(&wide));
        let mut again = out.clone();
        round_head(&out, &mut again);
        assert_eq!(again, out);
    }
}
