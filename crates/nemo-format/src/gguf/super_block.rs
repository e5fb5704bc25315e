//! The block types with two levels of scales (K-quants) and their dequantisation to f32.
//!
//! A block has 256 elements in groups of 16 or 32; a group's scale is an integer times the block's. The arithmetic is that
//! of `dequantize_row_q*_K` in ggml's `ggml-quants.c`, in the same order, so results are equal bit for bit.

use super::block::f16_at;

/// Elements of a block.
pub(super) const BLOCK_ELEMS: usize = 256;

/// 2 bits; scales and minima of 4 bits for groups of 16.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (quants, factors) = rest.split_at(64);
    let (scale, min) = (f16_at(factors, 0), f16_at(factors, 2));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (group_scale, group_min) =
            (scale * f32::from(scales[group] & 15), min * f32::from(scales[group] >> 4));
        let (quants, shift) = two_bits(quants, group);
        for (out, quant) in out.iter_mut().zip(quants) {
            *out = group_scale * f32::from((quant >> shift) & 3) - group_min;
        }
    }
}

/// 2 bits and a third in a mask; scales of 6 bits for groups of 16.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, rest) = block.split_at(32);
    let (quants, rest) = rest.split_at(64);
    let scale = f16_at(rest, 12);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = if group < 8 { rest[group] & 15 } else { rest[group - 8] >> 4 };
        let high = (rest[8 + group % 4] >> (2 * (group / 4))) & 3;
        let group_scale = scale * (f32::from(low | (high << 4)) - 32.0);
        let (quants, shift) = two_bits(quants, group);
        let mask_start = group % 2 * 16;
        let bit = 1 << (group / 2);
        for ((out, quant), mask) in out.iter_mut().zip(quants).zip(&mask[mask_start..]) {
            let offset = if mask & bit == 0 { 4.0 } else { 0.0 };
            *out = group_scale * (f32::from((quant >> shift) & 3) - offset);
        }
    }
}

/// 4 bits; scales and minima of 6 bits for groups of 32.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (header, quants) = block.split_at(16);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(header, group);
        for (out, quant) in out.iter_mut().zip(nibbles(quants, group)) {
            *out = scale * f32::from(quant) - min;
        }
    }
}

/// As [`q4_k`], with a fifth bit apart.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (header, rest) = block.split_at(16);
    let (high, quants) = rest.split_at(32);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(header, group);
        for ((out, quant), high) in out.iter_mut().zip(nibbles(quants, group)).zip(high) {
            *out = scale * f32::from(quant | (((high >> group) & 1) << 4)) - min;
        }
    }
}

/// 6 bits; scales of 8 bits for groups of 16.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, factor) = rest.split_at(16);
    let factor = f16_at(factor, 0);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        // Groups go through a half of the block in four runs of 32 elements.
        let (half, run, in_run) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + run % 2 * 32 + in_run..];
        let high = &high[half * 32 + in_run..];
        let scale = factor * f32::from(scales[group] as i8);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let quant = ((low >> (run / 2 * 4)) & 15) | (((high >> (2 * run)) & 3) << 4);
            *out = scale * (f32::from(quant) - 32.0);
        }
    }
}

/// 8 bits and an f32 scale; the sums behind them are for products only.
pub(super) fn q8_k(block: &[u8], out: &mut [f32]) {
    let (scale, quants) = block.split_at(4);
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = scale * f32::from(*quant as i8);
    }
}

/// The bytes that hold a group of 16 elements of 2 bits, and how far to shift them.
fn two_bits(quants: &[u8], group: usize) -> (&[u8], usize) {
    let start = group / 8 * 32 + group % 2 * 16;
    (&quants[start..start + 16], group % 8 / 2 * 2)
}

/// A group of 32 elements of 4 bits: low halves of 32 bytes, then their high halves.
fn nibbles(quants: &[u8], group: usize) -> impl Iterator<Item = u8> + '_ {
    let start = group / 2 * 32;
    quants[start..start + 32].iter().map(move |byte| (byte >> (group % 2 * 4)) & 15)
}

/// The scale and the minimum of a group of 32; the last four groups keep their upper bits with the first four.
fn scale_and_min(header: &[u8], group: usize) -> (f32, f32) {
    let packed = &header[4..];
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4),
            (packed[group + 4] >> 4) | (packed[group] >> 6 << 4),
        )
    };
    (f16_at(header, 0) * f32::from(scale), f16_at(header, 2) * f32::from(min))
}
