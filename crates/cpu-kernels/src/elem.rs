//! The two element types the CPU kernels compute in, float32 and bfloat16, and their conversions.

use half::{bf16, f16};

/// An element type of weights, activations and the KV cache. All sums are kept in float32.
pub(crate) trait Elem: Copy + Default + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// How many consecutive elements of the summed axis a kernel multiplies at once.
    const GROUP: usize;

    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Exact.
    fn to_f32(self) -> f32;
}

impl Elem for f32 {
    const GROUP: usize = 1;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Elem for bf16 {
    const GROUP: usize = 2;

    /// Branch-free, so that loops of it become vector code, which `half`'s own conversion does not.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { quiet_nan as u16 } else { rounded as u16 })
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// The element type of stored weights, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl SourceDType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Converts stored elements; `src` may lie at any alignment and holds `dst.len()` elements.
    pub(crate) fn convert<E: Elem>(self, src: &[u8], dst: &mut [E]) {
        match self {
            Self::F64 => {
                for (out, bytes) in dst.iter_mut().zip(src.chunks_exact(8)) {
                    let value = bytes.iter().rev().fold(0, |bits, &byte| (bits << 8) | u64::from(byte));
                    *out = E::from_f32(f64::from_bits(value) as f32);
                }
            }
            Self::F32 => {
                for (out, bytes) in dst.iter_mut().zip(src.chunks_exact(4)) {
                    *out = E::from_f32(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                }
            }
            Self::F16 => {
                for (out, bytes) in dst.iter_mut().zip(src.chunks_exact(2)) {
                    *out = E::from_f32(f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
                }
            }
            Self::BF16 => {
                for (out, bytes) in dst.iter_mut().zip(src.chunks_exact(2)) {
                    *out = E::from_f32(bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_equals_the_half_crate() {
        for step in 0..200_000_u32 {
            let value = f32::from_bits(step.wrapping_mul(21_474));
            let expected = bf16::from_f32(value);
            let actual = <bf16 as Elem>::from_f32(value);
            assert!(actual == expected || (actual.is_nan() && expected.is_nan()), "{value:e}");
        }
    }
}
