//! The micro-kernel for AVX2 and FMA.
//!
//! There are 16 registers. Six rows of 16 columns take 12 of them, and leave two for columns, one for a row's value and
//! one for a mask, so a panel is walked twice, by halves; one row or two have room for all 32 columns. bfloat16 becomes
//! float32 in the registers: an element is the upper half of a float32, so that the first of a pair is shifted up and the
//! second one masked.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

use std::arch::asm;
use std::arch::x86_64::{
    __m256, _MM_HINT_T1, _mm_prefetch, _mm256_broadcast_ss, _mm256_castsi256_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::{Init, PANEL, Panel};
use crate::elem::Elem;

/// Columns of a register.
const LANES: usize = 8;
/// Rows that are multiplied with the whole panel at once.
const WHOLE_PANEL_ROWS: usize = 2;
const LINE_BYTES: usize = 64;

/// # Safety
/// As [`VectorFn`](super::VectorFn), on a machine with these features.
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
unsafe fn columns<const ROWS: usize, const REGISTERS: usize, E: Elem>(
    words: *const u32,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
    first: usize,
) {
    // SAFETY: `acc` has MAX_ROWS rows of 32 floats, `init` has ROWS rows and factors, words and panel are readable where
    // they are read by the caller's promise, and every load and store is an unaligned one.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); REGISTERS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = init.start.add(row * init.stride_elems + first);
            let factor = _mm256_set1_ps(*init.factors.add(row));
            for (register, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_mul_ps(_mm256_loadu_ps(start.add(register * LANES)), factor);
            }
        }
        let mut words = words.cast::<f32>();
        let mut right = panel.start.add(first * E::GROUP);
        let mut prefetch = panel.prefetch.cast::<i8>().wrapping_add(first * size_of::<f32>());
        for _ in 0..panel.num_groups {
            for line in 0..(REGISTERS * LANES * size_of::<f32>()).div_ceil(LINE_BYTES) {
                _mm_prefetch::<_MM_HINT_T1>(prefetch.wrapping_add(line * LINE_BYTES));
            }
            prefetch = prefetch.wrapping_add(PANEL * size_of::<f32>());
            for within in 0..E::GROUP {
                let mut columns = [_mm256_setzero_ps(); REGISTERS];
                for (register, columns) in columns.iter_mut().enumerate() {
                    *columns = load(right.add(register * LANES * E::GROUP), within);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*words.add(within * ROWS + row));
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = _mm256_fmadd_ps(value, columns, *sum);
                    }
                }
            }
            words = words.add(ROWS * E::GROUP);
            right = right.add(panel.stride_elems);
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = acc.add(row).cast::<f32>().add(first);
            for (register, &sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(out.add(register * LANES), sum);
            }
        }
    }
}

/// Element `within` of the groups of eight columns, as float32.
///
/// # Safety
/// The groups must be readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<E: Elem>(groups: *const E, within: usize) -> __m256 {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if E::GROUP == 1 {
            return _mm256_loadu_ps(groups.cast());
        }
        if within == 0 {
            return _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(groups.cast())));
        }
        // From memory again: the compiler would keep what it has loaded for the first elements, and runs out of
        // registers.
        let columns;
        asm!(
            "vandps {columns}, {upper_halves}, [{groups}]",
            columns = lateout(ymm_reg) columns,
            upper_halves = in(ymm_reg) _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)),
            groups = in(reg) groups,
            options(pure, readonly, nostack, preserves_flags),
        );
        columns
    }
}
