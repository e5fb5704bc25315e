//! The micro-kernel for NEON, which every 64-bit Arm processor has.
//!
//! There are 32 registers. Six rows of 16 columns take 24 of them, and leave four for columns, one for a row's value and one
//! for a mask, so a panel is walked twice, by halves; one row or two have room for all 32 columns. bfloat16 becomes float32
//! in the registers: an element is the upper half of a float32, so that the first of a pair is shifted up and the second
//! one masked. The sums are those of `avx2.rs`, bit for bit.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

use std::arch::aarch64::{
    float32x4_t, vandq_u32, vdupq_n_f32, vdupq_n_u32, vfmaq_n_f32, vld1q_f32, vld1q_u32, vmulq_n_f32,
    vreinterpretq_f32_u32, vshlq_n_u32, vst1q_f32,
};
use std::arch::asm;

use super::{Init, PANEL, Panel};
use crate::elem::Elem;

/// Columns of a register.
const LANES: usize = 4;
/// Rows that are multiplied with the whole panel at once.
const WHOLE_PANEL_ROWS: usize = 2;
const LINE_BYTES: usize = 64;

/// # Safety
/// As [`VectorFn`](super::VectorFn).
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile<const ROWS: usize, E: Elem>(
    words: *const u32,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if ROWS <= WHOLE_PANEL_ROWS {
            columns::<ROWS, { PANEL / LANES }, E>(words, panel, init, acc, 0);
        } else {
            columns::<ROWS, { PANEL / LANES / 2 }, E>(words, panel, init, acc, 0);
            columns::<ROWS, { PANEL / LANES / 2 }, E>(words, panel, init, acc, PANEL / 2);
        }
    }
}

/// `REGISTERS * LANES` columns from `first` on.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn columns<const ROWS: usize, const REGISTERS: usize, E: Elem>(
    words: *const u32,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
    first: usize,
) {
    // SAFETY: `acc` has MAX_ROWS rows of 32 floats, `init` has ROWS rows and factors, words and panel are readable where
    // they are read by the caller's promise, and every load and store of a vector is an unaligned one.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = init.start.add(row * init.stride_elems + first);
            let factor = *init.factors.add(row);
            for (register, sum) in sums.iter_mut().enumerate() {
                *sum = vmulq_n_f32(vld1q_f32(start.add(register * LANES)), factor);
            }
        }
        let mut words = words.cast::<f32>();
        let mut right = panel.start.add(first * E::GROUP);
        let mut prefetch = panel.prefetch.cast::<i8>().wrapping_add(first * size_of::<f32>());
        for _ in 0..panel.num_groups {
            for line in 0..(REGISTERS * LANES * size_of::<f32>()).div_ceil(LINE_BYTES) {
                fetch(prefetch.wrapping_add(line * LINE_BYTES));
            }
            prefetch = prefetch.wrapping_add(PANEL * size_of::<f32>());
            for within in 0..E::GROUP {
                let mut columns = [vdupq_n_f32(0.0); REGISTERS];
                for (register, columns) in columns.iter_mut().enumerate() {
                    *columns = load(right.add(register * LANES * E::GROUP), within);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = *words.add(within * ROWS + row);
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = vfmaq_n_f32(*sum, columns, value);
                    }
                }
            }
            words = words.add(ROWS * E::GROUP);
            right = right.add(panel.stride_elems);
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = acc.add(row).cast::<f32>().add(first);
            for (register, &sum) in sums.iter().enumerate() {
                vst1q_f32(out.add(register * LANES), sum);
            }
        }
    }
}

/// Element `within` of the groups of four columns, as float32.
///
/// # Safety
/// The groups must be readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load<E: Elem>(groups: *const E, within: usize) -> float32x4_t {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if E::GROUP == 1 {
            return vld1q_f32(groups.cast());
        }
        let pairs = vld1q_u32(groups.cast());
        vreinterpretq_f32_u32(match within {
            0 => vshlq_n_u32::<16>(pairs),
            _ => vandq_u32(pairs, vdupq_n_u32(0xffff_0000)),
        })
    }
}

/// Brings a line into the second-level cache. Any address will do.
#[inline]
fn fetch(line: *const i8) {
    // SAFETY: the instruction is a hint, and does nothing where there is no memory.
    unsafe {
        asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(readonly, nostack, preserves_flags));
    }
}
