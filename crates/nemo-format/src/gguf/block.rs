//! The block types of GGUF tensors and their dequantisation to f32.
//!
//! The arithmetic is that of `dequantize_row_*` in ggml's `ggml-quants.c`: one multiplication and one addition,
//! each rounded to f32, so results are equal bit for bit. Quantisation is not offered.

use half::{bf16, f16};

use super::super_block as k;

/// How the elements of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

impl BlockType {
    /// The type of a `ggml_type` number.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            15 => Self::Q8K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// The name of a `ggml_type` number, for messages.
    pub(super) fn name_of(id: u32) -> String {
        let name = match id {
            9 => "Q8_1",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => return id.to_string(),
        };
        name.to_owned()
    }

    /// Elements and bytes of one block.
    pub(super) const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (k::BLOCK_ELEMS, 84),
            Self::Q3K => (k::BLOCK_ELEMS, 110),
            Self::Q4K => (k::BLOCK_ELEMS, 144),
            Self::Q5K => (k::BLOCK_ELEMS, 176),
            Self::Q6K => (k::BLOCK_ELEMS, 210),
            Self::Q8K => (k::BLOCK_ELEMS, 292),
        }
    }

    /// Bytes of a row whose length is a multiple of the block.
    pub(super) const fn row_bytes(self, row_elems: usize) -> usize {
        let (block_elems, block_bytes) = self.block();
        row_elems / block_elems * block_bytes
    }

    /// Dequantises a row of whole blocks.
    pub(super) fn dequantize(self, bytes: &[u8], row: &mut [f32]) {
        let (block_elems, block_bytes) = self.block();
        for (block, out) in bytes.chunks_exact(block_bytes).zip(row.chunks_exact_mut(block_elems)) {
            match (self, block) {
                (Self::F32, &[a, b, c, d]) => out[0] = f32::from_le_bytes([a, b, c, d]),
                (Self::F16, &[a, b]) => out[0] = f16::from_le_bytes([a, b]).to_f32(),
                (Self::Bf16, &[a, b]) => out[0] = bf16::from_le_bytes([a, b]).to_f32(),
                (Self::Q4_0, block) => {
                    let scale = f16_at(block, 0);
                    nibbles(&block[2..], out, |_, q| (f32::from(q) - 8.0) * scale);
                }
                (Self::Q4_1, block) => {
                    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
                    nibbles(&block[4..], out, |_, q| f32::from(q) * scale + min);
                }
                (Self::Q5_0, block) => {
                    let scale = f16_at(block, 0);
                    let high = high_bits(block, 2);
                    nibbles(&block[6..], out, |i, q| (f32::from(q | high(i)) - 16.0) * scale);
                }
                (Self::Q5_1, block) => {
                    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
                    let high = high_bits(block, 4);
                    nibbles(&block[8..], out, |i, q| f32::from(q | high(i)) * scale + min);
                }
                (Self::Q2K, block) => k::q2_k(block, out),
                (Self::Q3K, block) => k::q3_k(block, out),
                (Self::Q4K, block) => k::q4_k(block, out),
                (Self::Q5K, block) => k::q5_k(block, out),
                (Self::Q6K, block) => k::q6_k(block, out),
                (Self::Q8K, block) => k::q8_k(block, out),
                (_, block) => {
                    let scale = f16_at(block, 0);
                    for (out, &q) in out.iter_mut().zip(&block[2..]) {
                        *out = f32::from(q as i8) * scale;
                    }
                }
            }
        }
    }
}

pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Element `i` of a block of 32: low nibbles hold the first half, high nibbles the second.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (first, second) = out.split_at_mut(16);
    for (i, ((&byte, first), second)) in packed.iter().zip(first).zip(second).enumerate() {
        *first = value(i, byte & 15);
        *second = value(i + 16, byte >> 4);
    }
}

/// The fifth bit of element `i`, in place.
fn high_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |i| (((bits >> i) & 1) << 4) as u8
}
