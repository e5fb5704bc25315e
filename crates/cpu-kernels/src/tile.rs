//! The micro-kernel of every GEMM on the CPU: a few rows times a panel of 32 columns.
//!
//! `acc[m][n] = init[m][n] + sum over k of a[m][k] * b[k][n]`, k strictly ascending, sums in float32. Each output is the same
//! sequence of operations whatever the number of rows, so a row's result never depends on what shares its batch.
//! The summed axis comes in groups of [`Elem::GROUP`]; a panel stores `[group][column][within group]`, so that one
//! vector register holds 16 columns and one broadcast holds a row's group.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

#[cfg(target_arch = "x86_64")]
mod amx;

use half::bf16;

use super::elem::Elem;
use super::isa::Isa;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 32;
/// Most rows of the vector units: 28 accumulators, 2 panel registers and 1 broadcast fill AVX-512's 32 registers.
pub(crate) const VECTOR_ROWS: usize = 14;

/// Rows to multiply with a panel.
#[derive(Clone, Copy)]
pub(crate) struct Rows<E> {
    /// The first element of the first row.
    pub(crate) start: *const E,
    /// From one row to the next.
    pub(crate) stride_elems: usize,
    /// How many rows, at most [`Tiles::max_rows`].
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
    /// How much of it this call fetches.
    pub(crate) prefetch_share: Share,
}

/// A part of what is fetched ahead. Several tiles on one panel share it out, for a core waits for 16 lines at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Nothing,
    Quarter,
    Half,
    All,
}

impl Share {
    /// What each of `num_tiles` calls fetches, and how many of them fetch.
    pub(crate) fn among(num_tiles: usize) -> (Self, usize) {
        match num_tiles {
            0..=1 => (Self::All, 1),
            2..=3 => (Self::Half, 2),
            _ => (Self::Quarter, 4),
        }
    }

    /// In quarters.
    pub(crate) fn chunks(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Quarter => 1,
            Self::Half => 2,
            Self::All => 4,
        }
    }
}

/// How the thread's matrix units are set up; made anew in every task of a loop, since what runs between loops may set
/// them up otherwise.
#[derive(Debug, Default)]
pub(crate) struct Units {
    #[cfg(target_arch = "x86_64")]
    num_rows: usize,
}

/// What the sums of a tile start from: a row of [`PANEL`] floats for each row of the tile, times a factor.
#[derive(Clone, Copy)]
pub(crate) struct Init {
    start: *const f32,
    stride_elems: usize,
    factors: *const f32,
}

static ZEROS: [f32; PANEL] = [0.0; PANEL];
static ONES: [f32; MAX_ROWS] = [1.0; MAX_ROWS];

impl Init {
    /// From zero.
    pub(crate) fn zero() -> Self {
        Self::row(&ZEROS)
    }

    /// From the same values in every row.
    pub(crate) fn row(values: &[f32; PANEL]) -> Self {
        Self { start: values.as_ptr(), stride_elems: 0, factors: ONES.as_ptr() }
    }

    /// From earlier sums, each row times its factor.
    pub(crate) fn scaled(acc: &mut Acc, factors: &[f32; MAX_ROWS]) -> Self {
        Self { factors: factors.as_ptr(), ..Self::sums(acc.as_mut_ptr()) }
    }

    /// From earlier sums as they are.
    pub(super) fn sums(acc: *mut [f32; PANEL]) -> Self {
        Self { start: acc.cast_const().cast(), stride_elems: PANEL, factors: ONES.as_ptr() }
    }

    /// Whether it is [`Self::zero`].
    pub(super) fn is_zero(&self) -> bool {
        self.start == ZEROS.as_ptr()
    }

    /// Row `row` of what the sums start from.
    ///
    /// # Safety
    /// What this was made from must still be there, and have this row.
    #[inline(always)]
    pub(super) unsafe fn read_row(&self, row: usize) -> [f32; PANEL] {
        // SAFETY: every row has PANEL floats and a factor by the caller's promise.
        let (mut values, factor) = unsafe {
            let start = self.start.add(row * self.stride_elems);
            (start.cast::<[f32; PANEL]>().read(), *self.factors.add(row))
        };
        values.iter_mut().for_each(|value| *value *= factor);
        values
    }
}

/// The accumulators of a tile.
pub(crate) type Acc = [[f32; PANEL]; MAX_ROWS];

type TileFn<E> = unsafe fn(Rows<E>, Panel<E>, Init, *mut [f32; PANEL]);

/// The micro-kernels of one element type.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<E: Elem> {
    kernels: Kernels<E>,
    max_rows: usize,
}

#[derive(Clone, Copy)]
enum Kernels<E: Elem> {
    /// One for each number of rows.
    Vector(&'static [TileFn<E>; VECTOR_ROWS]),
    /// One for all.
    #[cfg(target_arch = "x86_64")]
    Matrix(TileFn<E>),
}

impl<E: Elem> Tiles<E> {
    /// Most rows that one call should get on this machine.
    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// What each of the first tiles on a panel fetches of the next one, and how many of `num_tiles` do.
    pub(crate) fn prefetch_share(&self, num_tiles: usize) -> (Share, usize) {
        match self.kernels {
            Kernels::Vector(_) => (Share::All, 1),
            #[cfg(target_arch = "x86_64")]
            Kernels::Matrix(_) => Share::among(num_tiles),
        }
    }

    /// Whether sums over part of a block of 32 elements are to take in the zeros behind it: the matrix units sum 32
    /// elements at once, and what is summed otherwise is rounded otherwise.
    pub(crate) fn sums_whole_blocks(&self) -> bool {
        !matches!(self.kernels, Kernels::Vector(_))
    }

    /// `acc[..rows.len] = init + rows x panel`.
    ///
    /// # Safety
    /// `rows` and `panel` must be readable over `num_groups * GROUP` elements of each row, and over `PANEL * GROUP`
    /// elements at each of the panel's groups; `1 <= rows.len <= max_rows`; `init` must still be there, and if it is
    /// of sums then of `acc`.
    #[inline(always)]
    pub(crate) unsafe fn run(
        &self,
        units: &mut Units,
        rows: Rows<E>,
        panel: Panel<E>,
        init: Init,
        acc: &mut Acc,
    ) {
        let kernel = match self.kernels {
            Kernels::Vector(by_rows) => by_rows[rows.len - 1],
            #[cfg(target_arch = "x86_64")]
            Kernels::Matrix(kernel) => {
                if units.num_rows != rows.len {
                    // SAFETY: these kernels are only chosen on a machine that has the units.
                    unsafe { amx::configure(rows.len) };
                    units.num_rows = rows.len;
                }
                kernel
            }
        };
        // SAFETY: guaranteed by the caller; the kernels were chosen for this machine in `for_isa`.
        unsafe { kernel(rows, panel, init, acc.as_mut_ptr()) }
    }
}

macro_rules! by_rows {
    ($name:ident $(, $generic:ty)?) => {
        &[
            $name::<1 $(, $generic)?>, $name::<2 $(, $generic)?>, $name::<3 $(, $generic)?>, $name::<4 $(, $generic)?>,
            $name::<5 $(, $generic)?>, $name::<6 $(, $generic)?>, $name::<7 $(, $generic)?>, $name::<8 $(, $generic)?>,
            $name::<9 $(, $generic)?>, $name::<10 $(, $generic)?>, $name::<11 $(, $generic)?>, $name::<12 $(, $generic)?>,
            $name::<13 $(, $generic)?>, $name::<14 $(, $generic)?>,
        ]
    };
}

impl<E: Elem> Tiles<E> {
    fn vector(kernels: &'static [TileFn<E>; VECTOR_ROWS], max_rows: usize) -> Self {
        Self { kernels: Kernels::Vector(kernels), max_rows }
    }
}

impl Tiles<f32> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => Self::vector(by_rows!(tile_f32_avx512), VECTOR_ROWS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::vector(by_rows!(tile_avx2, f32), 3),
            _ => Self::vector(by_rows!(tile_portable, f32), 3),
        }
    }
}

/// With the bfloat16 dot product.
#[cfg(target_arch = "x86_64")]
pub(super) static BF16_AVX512: &[TileFn<bf16>; VECTOR_ROWS] = by_rows!(tile_bf16_avx512);

impl Tiles<bf16> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Self { kernels: Kernels::Matrix(amx::tile_bf16_amx), max_rows: MAX_ROWS },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Self::vector(BF16_AVX512, VECTOR_ROWS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self::vector(by_rows!(tile_avx512, bf16), 6),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::vector(by_rows!(tile_avx2, bf16), 3),
            _ => Self::vector(by_rows!(tile_portable, bf16), 3),
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
        // SAFETY: `init` has as many rows as `rows` by the caller's promise.
        *sums = unsafe { init.read_row(row) };
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
    // SAFETY: guaranteed by the caller.
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
    // SAFETY: guaranteed by the caller.
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
    // SAFETY: guaranteed by the caller.
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
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
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
            let factor = _mm512_set1_ps(*init.factors.add(row));
            let low = _mm512_mul_ps(_mm512_loadu_ps(start), factor);
            *sums = [low, _mm512_mul_ps(_mm512_loadu_ps(start.add(16)), factor)];
        }
        let (mut left, mut right, mut prefetch) = (rows.start, panel.start, panel.prefetch);
        for _ in 0..panel.num_groups {
            // Fetching nothing is no faster than fetching lines that are there.
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
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    // SAFETY: as in `tile_bf16_avx512`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let start = init.start.add(row * init.stride_elems);
            let factor = _mm512_set1_ps(*init.factors.add(row));
            let low = _mm512_mul_ps(_mm512_loadu_ps(start), factor);
            *sums = [low, _mm512_mul_ps(_mm512_loadu_ps(start.add(16)), factor)];
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
