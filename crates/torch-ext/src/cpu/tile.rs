//! The micro-kernel under every product on the CPU: a few rows times a panel of 32 columns.
//!
//! `acc[m][n] = init[m][n] + sum over k of a[m][k] * b[k][n]`, k strictly ascending, sums in float32. Each output is the same
//! sequence of operations whatever the number of rows, so a row's result never depends on what shares its batch.
//! The summed axis comes in groups of [`Elem::GROUP`]; a panel stores `[group][column][within group]`, so that one
//! vector register holds 16 columns and one broadcast holds a row's group.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

use half::bf16;

use super::elem::Elem;
use super::isa::Isa;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Most rows of a tile: 28 accumulators, 2 panel registers and 1 broadcast fill AVX-512's 32 registers.
pub(crate) const MAX_ROWS: usize = 14;

/// Rows to multiply with a panel.
#[derive(Clone, Copy)]
pub(crate) struct Rows<E> {
    /// The first element of the first row.
    pub(crate) start: *const E,
    /// From one row to the next.
    pub(crate) stride_elems: usize,
    /// How many rows, at most [`MAX_ROWS`].
    pub(crate) len: usize,
}

/// A panel: `[num_groups][PANEL][GROUP]` with a stride between groups.
#[derive(Clone, Copy)]
pub(crate) struct Panel<E> {
    /// The first element.
    pub(crate) start: *const E,
    /// From one group to the next.
    pub(crate) stride_elems: usize,
    /// Groups of the summed axis.
    pub(crate) num_groups: usize,
    /// Memory to bring into the cache meanwhile, as much as this panel has: most often the next panel. The
    /// processor's own prefetching stops at page borders. Any address will do; it is never read.
    pub(crate) prefetch: *const E,
}

/// What the sums of a tile start from: a row of [`PANEL`] floats for each row of the tile.
#[derive(Clone, Copy)]
pub(crate) struct Init {
    start: *const f32,
    stride_elems: usize,
}

static ZEROS: [f32; PANEL] = [0.0; PANEL];

impl Init {
    /// From zero.
    pub(crate) fn zero() -> Self {
        Self::row(&ZEROS)
    }

    /// From the same values in every row.
    pub(crate) fn row(values: &[f32; PANEL]) -> Self {
        Self { start: values.as_ptr(), stride_elems: 0 }
    }

    /// From earlier sums.
    pub(crate) fn sums(acc: &mut Acc) -> Self {
        Self { start: acc.as_mut_ptr().cast_const().cast(), stride_elems: PANEL }
    }
}

/// The accumulators of a tile.
pub(crate) type Acc = [[f32; PANEL]; MAX_ROWS];

type TileFn<E> = unsafe fn(Rows<E>, Panel<E>, Init, *mut [f32; PANEL]);

/// The micro-kernels of one element type, by number of rows.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<E: Elem> {
    by_rows: [TileFn<E>; MAX_ROWS],
    max_rows: usize,
}

impl<E: Elem> Tiles<E> {
    /// Most rows that one call should get on this machine.
    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// `acc[..rows.len] = init + rows x panel`.
    ///
    /// # Safety
    /// `rows` and `panel` must be readable over `num_groups * GROUP` elements of each row, and over `PANEL * GROUP`
    /// elements at each of the panel's groups; `1 <= rows.len <= MAX_ROWS`; `init` must still be there, and if it is
    /// of sums then of `acc`.
    #[inline(always)]
    pub(crate) unsafe fn run(&self, rows: Rows<E>, panel: Panel<E>, init: Init, acc: &mut Acc) {
        // SAFETY: handed on from the caller; the table was chosen for this machine in `for_isa`.
        unsafe { self.by_rows[rows.len - 1](rows, panel, init, acc.as_mut_ptr()) }
    }
}

macro_rules! by_rows {
    ($name:ident $(, $generic:ty)?) => {
        [
            $name::<1 $(, $generic)?>, $name::<2 $(, $generic)?>, $name::<3 $(, $generic)?>, $name::<4 $(, $generic)?>,
            $name::<5 $(, $generic)?>, $name::<6 $(, $generic)?>, $name::<7 $(, $generic)?>, $name::<8 $(, $generic)?>,
            $name::<9 $(, $generic)?>, $name::<10 $(, $generic)?>, $name::<11 $(, $generic)?>, $name::<12 $(, $generic)?>,
            $name::<13 $(, $generic)?>, $name::<14 $(, $generic)?>,
        ]
    };
}

impl Tiles<f32> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Self { by_rows: by_rows!(tile_f32_avx512), max_rows: MAX_ROWS },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { by_rows: by_rows!(tile_avx2, f32), max_rows: 3 },
            _ => Self { by_rows: by_rows!(tile_portable, f32), max_rows: 3 },
        }
    }
}

impl Tiles<bf16> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Self { by_rows: by_rows!(tile_bf16_avx512), max_rows: MAX_ROWS },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self { by_rows: by_rows!(tile_avx512, bf16), max_rows: 6 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { by_rows: by_rows!(tile_avx2, bf16), max_rows: 3 },
            _ => Self { by_rows: by_rows!(tile_portable, bf16), max_rows: 3 },
        }
    }
}

/// The loop that the compiler vectorises where no hand-written kernel stands.
///
/// # Safety
/// As [`Tiles::run`].
#[inline(always)]
unsafe fn tile_loop<const ROWS: usize, E: Elem, const FUSED: bool>(
    rows: Rows<E>,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    let mut sums = [[0.0_f32; PANEL]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: every row of `init` has PANEL floats by the caller's promise.
        *sums = unsafe { init.start.add(row * init.stride_elems).cast::<[f32; PANEL]>().read() };
    }
    for group in 0..panel.num_groups {
        for within in 0..E::GROUP {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: inside the row by the caller's promise.
                let left =
                    unsafe { *rows.start.add(row * rows.stride_elems + group * E::GROUP + within) }.to_f32();
                for (column, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: inside the panel by the caller's promise.
                    let right =
                        unsafe { *panel.start.add(group * panel.stride_elems + column * E::GROUP + within) }
                            .to_f32();
                    *sum = if FUSED { left.mul_add(right, *sum) } else { left * right + *sum };
                }
            }
        }
    }
    // SAFETY: `acc` has MAX_ROWS rows.
    unsafe { acc.cast::<[[f32; PANEL]; ROWS]>().write(sums) };
}

/// # Safety
/// As [`Tiles::run`].
unsafe fn tile_portable<const ROWS: usize, E: Elem>(
    rows: Rows<E>,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: handed on from the caller.
    unsafe { tile_loop::<ROWS, E, false>(rows, panel, init, acc) }
}

/// # Safety
/// As [`Tiles::run`], on a machine with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const ROWS: usize, E: Elem>(
    rows: Rows<E>,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: handed on from the caller.
    unsafe { tile_loop::<ROWS, E, true>(rows, panel, init, acc) }
}

/// # Safety
/// As [`Tiles::run`], on a machine with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn tile_avx512<const ROWS: usize, E: Elem>(
    rows: Rows<E>,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: handed on from the caller.
    unsafe { tile_loop::<ROWS, E, true>(rows, panel, init, acc) }
}

/// # Safety
/// As [`Tiles::run`], on a machine with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_bf16_avx512<const ROWS: usize>(
    rows: Rows<bf16>,
    panel: Panel<bf16>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    let as_bf16 = |bits: __m512i| -> __m512bh {
        // SAFETY: both are 512 bits without invalid values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
    };
    // SAFETY: `acc` has MAX_ROWS rows of 32 floats; rows and panel are readable where they are read by the caller's
    // promise, and every load and store is an unaligned one.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = init.start.add(row * init.stride_elems);
            *sums = [_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(16))];
        }
        let (mut left, mut right, mut prefetch) = (rows.start, panel.start, panel.prefetch);
        for _ in 0..panel.num_groups {
            _mm_prefetch::<_MM_HINT_T1>(prefetch.cast());
            _mm_prefetch::<_MM_HINT_T1>(prefetch.wrapping_add(PANEL).cast());
            prefetch = prefetch.wrapping_add(2 * PANEL);
            let right_low = as_bf16(_mm512_loadu_si512(right.cast()));
            let right_high = as_bf16(_mm512_loadu_si512(right.add(PANEL).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = left.add(row * rows.stride_elems).cast::<i32>().read_unaligned();
                let pair = as_bf16(_mm512_set1_epi32(pair));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, right_low);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, right_high);
            }
            left = left.add(2);
            right = right.add(panel.stride_elems);
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = acc.add(row).cast::<f32>();
            _mm512_storeu_ps(out, sums[0]);
            _mm512_storeu_ps(out.add(16), sums[1]);
        }
    }
}

/// # Safety
/// As [`Tiles::run`], on a machine with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32_avx512<const ROWS: usize>(
    rows: Rows<f32>,
    panel: Panel<f32>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    use std::arch::x86_64::{
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    // SAFETY: as in `tile_bf16_avx512`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = init.start.add(row * init.stride_elems);
            *sums = [_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(16))];
        }
        let (mut left, mut right) = (rows.start, panel.start);
        for _ in 0..panel.num_groups {
            let (right_low, right_high) = (_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*left.add(row * rows.stride_elems));
                sums[0] = _mm512_fmadd_ps(value, right_low, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, right_high, sums[1]);
            }
            left = left.add(1);
            right = right.add(panel.stride_elems);
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = acc.add(row).cast::<f32>();
            _mm512_storeu_ps(out, sums[0]);
            _mm512_storeu_ps(out.add(16), sums[1]);
        }
    }
}
