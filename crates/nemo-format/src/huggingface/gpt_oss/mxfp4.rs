//! Blocks of MXFP4 (OCP Microscaling Formats 1.0): 32 numbers of e2m1 and the exponent of a power of two.

use half::bf16;

/// Numbers of a block, and the bytes that hold them.
pub(super) const BLOCK: u64 = 32;
pub(super) const BLOCK_BYTES: u64 = 16;

/// What the four bits of a number stand for: a sign, two of an exponent, one of a fraction.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// What stands for an exponent of 0.
const BIAS: i32 = 127;
/// The byte that stands for no number.
const NAN: u8 = 255;

/// The numbers of a block, two a byte, the lower half first: each exactly a bf16, subnormal ones included.
///
/// # Errors
/// When the exponent is none, or a number is larger than any.
pub(super) fn unpack(bytes: &[u8], exponent: u8) -> Result<impl Iterator<Item = bf16>, String> {
    if exponent == NAN {
        return Err("one of its exponents is 255, which stands for no number".to_owned());
    }
    let scale = 2.0_f64.powi(i32::from(exponent) - BIAS);
    let numbers = E2M1.map(|number| bf16::from_f64(f64::from(number) * scale));
    let codes = || bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
    if codes().any(|code| !numbers[usize::from(code)].is_finite()) {
        return Err(format!(
            "one of its exponents is {exponent}, which makes a number larger than bf16 holds"
        ));
    }
    let codes: Vec<u8> = codes().collect();
    Ok(codes.into_iter().map(move |code| numbers[usize::from(code)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(bytes: &[u8], exponent: u8) -> Vec<f32> {
        unpack(bytes, exponent).unwrap().map(bf16::to_f32).collect()
    }

    #[test]
    fn the_lower_half_of_a_byte_comes_first() {
        assert_eq!(numbers(&[0x21, 0xf7], 127), [0.5, 1.0, 6.0, -6.0]);
        assert_eq!(numbers(&[0x21, 0xf7], 129), [2.0, 4.0, 24.0, -24.0]);
        assert_eq!(numbers(&[0x08], 127).map_signs(), [true, false]);
    }

    trait Signs {
        fn map_signs(&self) -> Vec<bool>;
    }

    impl Signs for Vec<f32> {
        fn map_signs(&self) -> Vec<bool> {
            self.iter().map(|number| number.is_sign_negative()).collect()
        }
    }

    /// Every number of every exponent is what float64 makes of it, without rounding.
    #[test]
    fn every_number_is_exact_or_refused() {
        for exponent in 0..=255_u8 {
            for code in 0..16_u8 {
                let exact = f64::from(E2M1[usize::from(code)]) * 2.0_f64.powi(i32::from(exponent) - 127);
                match unpack(&[code], exponent) {
                    Ok(mut found) => assert_eq!(f64::from(found.next().unwrap().to_f32()), exact),
                    Err(_) => assert!(exponent == 255 || exact.abs() > f64::from(bf16::MAX.to_f32())),
                }
            }
        }
    }
}
