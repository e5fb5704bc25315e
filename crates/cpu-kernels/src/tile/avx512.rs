//! The micro-kernels for AVX-512, with the bfloat16 dot product and without.
//!
//! There are 32 registers: 11 rows of 32 columns take 22. With more the compiler, which loads the values of rows early,
//! runs out of them. Without the dot product bfloat16 becomes float32 in the registers, as in `avx2.rs`.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_castsi512_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_mov_epi16, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::bf16;

use super::{Init, PANEL, Panel};
use crate::elem::Elem;

/// Columns of a register.
const LANES: usize = 16;
/// The upper halves of 16 float32.
const UPPER_HALVES: u32 = 0xaaaa_aaaa;

// Two macros, since a function that is not inlined would keep the sums in memory, and `inline(always)` is not to be had
// together with target features.

/// The sums of a tile before the first group; `init` must have as many rows.
macro_rules! first_sums {
    ($init:expr, $rows:expr) => {{
        let mut sums = [[_mm512_setzero_ps(); 2]; $rows];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = $init.start.add(row * $init.stride_elems);
            let factor = _mm512_set1_ps(*$init.factors.add(row));
            let low = _mm512_mul_ps(_mm512_loadu_ps(start), factor);
            *sums = [low, _mm512_mul_ps(_mm512_loadu_ps(start.add(LANES)), factor)];
        }
        sums
    }};
}

macro_rules! store_sums {
    ($sums:expr, $acc:expr) => {
        for (row, sums) in $sums.iter().enumerate() {
            let out = $acc.add(row).cast::<f32>();
            _mm512_storeu_ps(out, sums[0]);
            _mm512_storeu_ps(out.add(LANES), sums[1]);
        }
    };
}

/// Brings one group's share of what is fetched ahead into the second-level cache. Fetching nothing is no faster than
/// fetching lines that are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fetch<E>(prefetch: *const E) {
    _mm_prefetch::<_MM_HINT_T1>(prefetch.cast());
    _mm_prefetch::<_MM_HINT_T1>(prefetch.cast::<i8>().wrapping_add(64));
}

/// With the dot product: a word is a row's group.
///
/// # Safety
/// As [`VectorFn`](super::VectorFn), on a machine with these features.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn tile_dot<const ROWS: usize>(
    words: *const u32,
    panel: Panel<bf16>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    let as_bf16 = |bits: __m512i| -> __m512bh {
        // SAFETY: both are 512 bits without invalid values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
    };
    // SAFETY: `acc` has MAX_ROWS rows of 32 floats, `init` has ROWS rows and factors, words and panel are readable where
    // they are read by the caller's promise, and every load and store is an unaligned one.
    unsafe {
        let mut sums = first_sums!(init, ROWS);
        let (mut words, mut right, mut prefetch) = (words.cast::<i32>(), panel.start, panel.prefetch);
        for _ in 0..panel.num_groups {
            fetch(prefetch);
            prefetch = prefetch.wrapping_add(2 * PANEL);
            let low = as_bf16(_mm512_loadu_si512(right.cast()));
            let high = as_bf16(_mm512_loadu_si512(right.add(PANEL).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = as_bf16(_mm512_set1_epi32(words.add(row).read()));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, high);
            }
            words = words.add(ROWS);
            right = right.add(panel.stride_elems);
        }
        store_sums!(sums, acc);
    }
}

/// With fused multiply-adds of float32: a word is an element.
///
/// # Safety
/// As [`VectorFn`](super::VectorFn), on a machine with these features.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn tile<const ROWS: usize, E: Elem>(
    words: *const u32,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: as in `tile_dot`.
    unsafe {
        let mut sums = first_sums!(init, ROWS);
        let (mut words, mut right, mut prefetch) = (words.cast::<f32>(), panel.start, panel.prefetch);
        for _ in 0..panel.num_groups {
            fetch(prefetch);
            prefetch = prefetch.wrapping_add(PANEL * E::GROUP);
            for within in 0..E::GROUP {
                let low = load(right, within);
                let high = load(right.add(LANES * E::GROUP), within);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(words.add(within * ROWS + row).read());
                    sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
                    sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
                }
            }
            words = words.add(ROWS * E::GROUP);
            right = right.add(panel.stride_elems);
        }
        store_sums!(sums, acc);
    }
}

/// Element `within` of the groups of 16 columns, as float32.
///
/// # Safety
/// The groups must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load<E: Elem>(groups: *const E, within: usize) -> __m512 {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if E::GROUP == 1 {
            return _mm512_loadu_ps(groups.cast());
        }
        let pairs = _mm512_loadu_si512(groups.cast());
        _mm512_castsi512_ps(if within == 0 {
            _mm512_slli_epi32::<16>(pairs)
        } else {
            _mm512_maskz_mov_epi16(UPPER_HALVES, pairs)
        })
    }
}
