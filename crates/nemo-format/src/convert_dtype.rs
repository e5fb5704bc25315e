//! Conversion between floating-point types, rounding to nearest, ties to even.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::DType;

/// Elements that one task converts.
const CHUNK_ELEMS: usize = 1 << 16;

/// Whether `dtype` is one of the types that are converted.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Converts little-endian elements from one of float32, float16, bfloat16 to another. Other types are copied.
#[cfg(test)]
pub(crate) fn convert(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    if from == to {
        return bytes.to_vec();
    }
    let mut out = vec![0; bytes.len() / from.size_bytes() * to.size_bytes()];
    convert_into(bytes, from, &mut out, to, 0.0);
    out
}

/// As [`convert`], into `out`, with `shift` added in float32 between reading and rounding.
pub(crate) fn convert_into(bytes: &[u8], from: DType, out: &mut [u8], to: DType, shift: f32) {
    // Adding zero would turn -0.0 into 0.0.
    let shifted = |value: f32| if shift == 0.0 { value } else { value + shift };
    let f32_of = |elem: [u8; 4]| shifted(f32::from_le_bytes(elem));
    let f16_of = |elem: [u8; 2]| shifted(f16::from_le_bytes(elem).to_f32());
    let bf16_of = |elem: [u8; 2]| shifted(bf16::from_le_bytes(elem).to_f32());
    let to_f16 = |value: f32| f16::from_f32(value).to_le_bytes();
    let to_bf16 = |value: f32| bf16::from_f32(value).to_le_bytes();
    match (from, to) {
        (DType::F32, DType::F32) => map(bytes, out, |elem| f32_of(elem).to_le_bytes()),
        (DType::F32, DType::F16) => map(bytes, out, |elem| to_f16(f32_of(elem))),
        (DType::F32, DType::BF16) => map(bytes, out, |elem| to_bf16(f32_of(elem))),
        (DType::F16, DType::F32) => map(bytes, out, |elem| f16_of(elem).to_le_bytes()),
        (DType::F16, DType::F16) => map(bytes, out, |elem| to_f16(f16_of(elem))),
        (DType::F16, DType::BF16) => map(bytes, out, |elem| to_bf16(f16_of(elem))),
        (DType::BF16, DType::F32) => map(bytes, out, |elem| bf16_of(elem).to_le_bytes()),
        (DType::BF16, DType::F16) => map(bytes, out, |elem| to_f16(bf16_of(elem))),
        (DType::BF16, DType::BF16) => map(bytes, out, |elem| to_bf16(bf16_of(elem))),
        _ => out.copy_from_slice(bytes),
    }
}

fn map<const FROM: usize, const TO: usize>(
    bytes: &[u8],
    out: &mut [u8],
    convert: impl Fn([u8; FROM]) -> [u8; TO] + Sync,
) {
    out.par_chunks_mut(CHUNK_ELEMS * TO).zip(bytes.par_chunks(CHUNK_ELEMS * FROM)).for_each(
        |(out, bytes)| {
            for (out, elem) in out.as_chunks_mut::<TO>().0.iter_mut().zip(bytes.as_chunks::<FROM>().0) {
                *out = convert(*elem);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_nearest_even() {
        let floats = [1.0_f32, 1.003_906_3, -2.5, 1e-40, f32::INFINITY];
        let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        let as_bf16 = convert(&bytes, DType::F32, DType::BF16);
        let back = convert(&as_bf16, DType::BF16, DType::F32);
        let values: Vec<f32> = back.as_chunks::<4>().0.iter().map(|elem| f32::from_le_bytes(*elem)).collect();
        assert_eq!(values, [1.0, 1.0, -2.5, bf16::from_f32(1e-40).to_f32(), f32::INFINITY]);
        assert_eq!(convert(&as_bf16, DType::BF16, DType::F16).len(), 10);
    }
}
