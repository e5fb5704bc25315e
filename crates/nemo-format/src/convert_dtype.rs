//! Conversion between floating-point types, rounding to nearest, ties to even.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::DType;

/// Elements that one task converts.
const CHUNK_ELEMS: usize = 1 << 16;

/// Converts little-endian elements from one of float32, float16, bfloat16 to another. Other types are copied.
pub(crate) fn convert(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    if from == to {
        return bytes.to_vec();
    }
    let (from_bytes, to_bytes) = (from.size_bytes(), to.size_bytes());
    let mut out = vec![0; bytes.len() / from_bytes * to_bytes];
    out.par_chunks_mut(CHUNK_ELEMS * to_bytes).zip(bytes.par_chunks(CHUNK_ELEMS * from_bytes)).for_each(
        |(out, bytes)| {
            for (out, elem) in out.chunks_exact_mut(to_bytes).zip(bytes.chunks_exact(from_bytes)) {
                store(to, load(from, elem), out);
            }
        },
    );
    out
}

fn load(from: DType, elem: &[u8]) -> f32 {
    match (from, elem) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    }
}

fn store(to: DType, value: f32, out: &mut [u8]) {
    match to {
        DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        _ => out.copy_from_slice(&value.to_le_bytes()),
    }
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
        let values: Vec<f32> = back.chunks(4).map(|elem| load(DType::F32, elem)).collect();
        assert_eq!(values, [1.0, 1.0, -2.5, bf16::from_f32(1e-40).to_f32(), f32::INFINITY]);
        assert_eq!(convert(&as_bf16, DType::BF16, DType::F16).len(), 10);
    }
}
