//! FP8 weights: numbers of e4m3 with a scale for each row, as jobs compute with them.
//!
//! A row is scaled so that its largest element becomes 448, the largest number of e4m3. `crates/model-core/src/fp8.rs` and the
//! CUDA kernel take the same steps in float32; a test there compares the bits. In a checkpoint the numbers have the name of the
//! weight and dtype `float8_e4m3fn`, and the scales, float32, have that name with `_scale` behind it.

mod dequantized;
mod quantized;

use half::{bf16, f16};
use rayon::prelude::*;

pub(crate) use self::dequantized::{Dequantized, Factors, Weight, plain_dtype};
pub(crate) use self::quantized::{Quantized, ScaleShape};
use crate::{DType, FormatError, Region};

/// The largest number of e4m3.
const LARGEST: f32 = 448.0;
/// 2^-100: a row of smaller numbers is scaled as if this were its largest, or the factor would leave the range of float32.
const SMALLEST_MAX: f32 = f32::from_bits(27 << 23);
/// What the name of a weight's scales has behind that of the weight.
const SUFFIX: &str = "_scale";
/// A bit pattern without its sign that is no number.
const NAN: u8 = 0x7f;

/// Weights that are stored as numbers of e4m3 with a factor for each row, and how to get at them.
pub trait Fp8Weights {
    /// The factors of all rows of a weight, where it is stored so.
    fn row_scales(&self, name: &str) -> Option<Vec<f32>>;

    /// Fills `dst` with the numbers of a region of such a weight, a byte each.
    ///
    /// # Errors
    /// When the weight is not stored so, the region leaves it, `dst` has another size, or the bytes cannot be read.
    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError>;

    /// All numbers of such a weight where they lie in a mapped file in one row-major piece.
    fn mapped_numbers(&self, _name: &str) -> Option<&[u8]> {
        None
    }
}

/// What the scales of a weight are called.
pub(crate) fn scale_name(weight: &str) -> String {
    format!("{weight}{SUFFIX}")
}

/// The weight whose scales these are, by their name.
pub(crate) fn weight_of_scale(name: &str) -> Option<&str> {
    name.strip_suffix(SUFFIX).filter(|weight| weight.ends_with("weight"))
}

/// Rows made e4m3.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Rows {
    /// Numbers of e4m3, row by row.
    pub numbers: Vec<u8>,
    /// The factor of each row.
    pub scales: Vec<f32>,
}

/// Rows of `width` little-endian elements made e4m3, rounded to `through` before anything is computed of them. A row with an
/// infinity or a NaN becomes NaN, its factor is not finite.
pub fn quantize_rows(bytes: &[u8], dtype: DType, through: DType, width: usize) -> Option<Fp8Rows> {
    let is_read = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    if !is_read || !matches!(through, DType::F32 | DType::F16 | DType::BF16) {
        return None;
    }
    let row_bytes = (width * dtype.size_bytes()).max(1);
    let num_rows = bytes.len() / row_bytes;
    let mut numbers = vec![0; num_rows * width];
    let mut scales = vec![0.0; num_rows];
    numbers.par_chunks_mut(width.max(1)).zip(&mut scales).zip(bytes.par_chunks(row_bytes)).for_each_init(
        Vec::new,
        |row, ((numbers, scale), bytes)| {
            row.clear();
            extend_floats(row, bytes, dtype, through);
            *scale = quantize_row(row, numbers);
        },
    );
    Some(Fp8Rows { numbers, scales })
}

/// Elements in float32, rounded to another type.
fn extend_floats(row: &mut Vec<f32>, bytes: &[u8], dtype: DType, through: DType) {
    let rounded = |value: f32| match through {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    };
    match dtype {
        DType::F64 => {
            row.extend(bytes.as_chunks().0.iter().map(|elem| rounded(f64::from_le_bytes(*elem) as f32)));
        }
        DType::F32 => row.extend(bytes.as_chunks().0.iter().map(|elem| rounded(f32::from_le_bytes(*elem)))),
        DType::F16 => {
            row.extend(bytes.as_chunks().0.iter().map(|elem| rounded(f16::from_le_bytes(*elem).to_f32())));
        }
        _ => row.extend(bytes.as_chunks().0.iter().map(|elem| rounded(bf16::from_le_bytes(*elem).to_f32()))),
    }
}

/// The numbers of a row; the result is their factor.
fn quantize_row(row: &[f32], numbers: &mut [u8]) -> f32 {
    // Sizes are in the order of their bits; those of NaN are the largest.
    let max = f32::from_bits(row.iter().fold(0, |max, value| max.max(value.abs().to_bits())));
    let max = if max < SMALLEST_MAX { SMALLEST_MAX } else { max };
    let factor = LARGEST / max;
    for (number, value) in numbers.iter_mut().zip(row) {
        *number = nearest(value * factor);
    }
    max / LARGEST
}

/// The nearest number of e4m3, ties to even; beyond the largest there is none.
fn nearest(value: f32) -> u8 {
    /// 480, to which 448 would be the nearest no more.
    const BEYOND: u32 = (127 + 8) << 23 | 0x70_0000;
    /// 2^-6, the smallest that is not subnormal.
    const NORMAL: u32 = (127 - 6) << 23;
    /// 2^14: numbers of its size are 2^-9 apart, as subnormal ones are.
    const SHIFTED: u32 = (127 + 14) << 23;
    /// Bits of mantissa that e4m3 lacks.
    const DROPPED: u32 = 20;
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let size = value.to_bits() & 0x7fff_ffff;
    let bits = if size >= BEYOND {
        u32::from(NAN)
    } else if size < NORMAL {
        (f32::from_bits(size) + f32::from_bits(SHIFTED)).to_bits() - SHIFTED
    } else {
        // The bias of the exponent is 7, not 127; a half is rounded up where the last bit that stays is odd.
        let odd = size >> DROPPED & 1;
        (size - ((127 - 7) << 23) + (1 << (DROPPED - 1)) - 1 + odd) >> DROPPED
    };
    sign | bits as u8
}

/// A number of e4m3: a bit of sign, four of exponent, three of mantissa, no infinity.
fn value_of(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), bits & 7);
    let size = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => f32::from(mantissa) / 512.0,
        // The exponents of e4m3 are biased by 7, those of float32 by 127.
        _ => f32::from_bits((exponent + 120) << 23 | u32::from(mantissa) << 20),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests;
