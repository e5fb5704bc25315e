//! The micro-kernel of every GEMM on the CPU: a few rows times a panel of 32 columns.
//!
//! `acc[m][n] = init[m][n] + sum over k of a[m][k] * b[k][n]`, k strictly ascending, sums in float32. Each output is the same
//! sequence of operations whatever the number of rows, so a row's result never depends on what shares its batch.
//! The summed axis comes in groups of [`Elem::GROUP`]; a panel stores `[group][column][within group]`, so that one
//! vector register holds 16 columns and one broadcast holds a row's group.
#![expect(unsafe_code, reason = "vector instructions take raw pointers")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use half::bf16;

#[cfg(target_arch = "aarch64")]
use self::neon::tile as tile_neon;
#[cfg(target_arch = "x86_64")]
use self::{
    avx2::tile as tile_avx2,
    avx512::{tile as tile_avx512, tile_dot},
};
use super::elem::Elem;
use super::isa::{Isa, multiversion};

#[cfg(target_arch = "x86_64")]
pub(crate) use self::amx::peak as amx_peak;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 32;
/// Most rows of the vector units.
pub(crate) const VECTOR_ROWS: usize = 11;

/// Rows as they lie in memory.
#[derive(Clone, Copy)]
pub(crate) struct Rows<E> {
    /// The first element of the first row.
    pub(crate) start: *const E,
    /// From one row to the next.
    pub(crate) stride_elems: usize,
    /// How many rows, at most [`Tiles::max_rows`].
    pub(crate) len: usize,
}

/// Rows to multiply with a panel. The vector units read `words`, the matrix units `rows`.
#[derive(Clone, Copy)]
pub(crate) struct Left<E> {
    /// The rows themselves.
    pub(crate) rows: Rows<E>,
    /// What [`Tiles::pack`] made of them.
    pub(crate) words: *const u32,
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

/// A micro-kernel for a fixed number of rows, whose words it reads: `acc[..ROWS] = init + words x panel`.
///
/// # Safety
/// As [`Tiles::run`].
type VectorFn<E> = unsafe fn(*const u32, Panel<E>, Init, *mut [f32; PANEL]);

/// A micro-kernel for any number of rows.
#[cfg(target_arch = "x86_64")]
type MatrixFn<E> = unsafe fn(Rows<E>, Panel<E>, Init, *mut [f32; PANEL]);

/// The micro-kernels of one element type.
#[derive(Clone, Copy)]
pub(crate) enum Tiles<E: Elem> {
    /// Of the vector units, one for each number of rows, and how many words of a row they read for a group.
    Vector(&'static [VectorFn<E>], WordsOfGroup),
    /// Of the matrix units.
    #[cfg(target_arch = "x86_64")]
    Matrix(MatrixFn<E>),
}

/// What a row's group is to a micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WordsOfGroup {
    /// A word for each element, as float32.
    Elements,
    /// One word with the pair of elements as it is.
    Pair,
}

impl<E: Elem> Tiles<E> {
    /// Most rows that one call should get on this machine.
    pub(crate) fn max_rows(&self) -> usize {
        match self {
            Self::Vector(by_rows, _) => by_rows.len(),
            #[cfg(target_arch = "x86_64")]
            Self::Matrix(_) => MAX_ROWS,
        }
    }

    /// What each of the first tiles on a panel fetches of the next one, and how many of `num_tiles` do.
    pub(crate) fn prefetch_share(&self, num_tiles: usize) -> (Share, usize) {
        match self {
            Self::Vector(..) => (Share::All, 1),
            #[cfg(target_arch = "x86_64")]
            Self::Matrix(_) => Share::among(num_tiles),
        }
    }

    /// Whether sums over part of a block of 32 elements are to take in the zeros behind it: the matrix units sum 32
    /// elements at once, and what is summed otherwise is rounded otherwise.
    pub(crate) fn sums_whole_blocks(&self) -> bool {
        !matches!(self, Self::Vector(..))
    }

    /// How many words [`pack`](Self::pack) makes of a row of `num_elems`; none for the matrix units.
    pub(crate) fn row_words(&self, num_elems: usize) -> usize {
        match self {
            Self::Vector(_, WordsOfGroup::Elements) => num_elems.next_multiple_of(E::GROUP),
            Self::Vector(_, WordsOfGroup::Pair) => num_elems.div_ceil(E::GROUP),
            #[cfg(target_arch = "x86_64")]
            Self::Matrix(_) => 0,
        }
    }

    /// Lays the rows of a tile out as the vector units read them: `[word][row]`, so that one address steps through all of
    /// them. `words` has `row_words(num_elems) * rows.len` words; what is missing of the last group is zero.
    ///
    /// # Safety
    /// `rows` must be readable over `num_elems` elements each.
    pub(crate) unsafe fn pack(&self, isa: Isa, rows: Rows<E>, num_elems: usize, words: &mut [u32]) {
        if let Self::Vector(_, words_of_group) = *self {
            for row in 0..rows.len {
                // SAFETY: guaranteed by the caller.
                let elems =
                    unsafe { std::slice::from_raw_parts(rows.start.add(row * rows.stride_elems), num_elems) };
                pack_row(isa, elems, words_of_group, &mut words[row..], rows.len);
            }
        }
    }

    /// `acc[..rows.len] = init + rows x panel`.
    ///
    /// # Safety
    /// `panel` must be readable over `PANEL * GROUP` elements at each of its groups. Of `left`, what this machine reads must
    /// be there, for as many groups: `words` as [`pack`](Self::pack) made them, or `num_groups * GROUP` elements of each
    /// row. `1 <= rows.len <= max_rows`; `init` must still be there, and if it is of sums then of `acc`.
    #[inline(always)]
    pub(crate) unsafe fn run(
        &self,
        units: &mut Units,
        left: Left<E>,
        panel: Panel<E>,
        init: Init,
        acc: &mut Acc,
    ) {
        let Left { rows, words } = left;
        match self {
            // SAFETY: guaranteed by the caller; the kernels were chosen for this machine in `for_isa`.
            Self::Vector(by_rows, _) => unsafe {
                by_rows[rows.len - 1](words, panel, init, acc.as_mut_ptr());
            },
            #[cfg(target_arch = "x86_64")]
            Self::Matrix(kernel) => {
                if units.num_rows != rows.len {
                    // SAFETY: these kernels are only chosen on a machine that has the units.
                    unsafe { amx::configure(rows.len) };
                    units.num_rows = rows.len;
                }
                // SAFETY: as above.
                unsafe { kernel(rows, panel, init, acc.as_mut_ptr()) }
            }
        }
    }
}

multiversion! {
    /// Writes a row's words, `stride` apart.
    fn pack_row<E: Elem>(elems: &[E], words_of_group: WordsOfGroup, words: &mut [u32], stride: usize) {
        let mut words = words.iter_mut().step_by(stride);
        match words_of_group {
            WordsOfGroup::Elements => {
                // In this order: a zip takes one more of its first part than it yields.
                for (elem, word) in elems.iter().zip(words.by_ref()) {
                    *word = elem.to_f32().to_bits();
                }
                let missing = elems.len().next_multiple_of(E::GROUP) - elems.len();
                words.take(missing).for_each(|word| *word = 0);
            }
            WordsOfGroup::Pair => {
                for (pair, word) in elems.chunks(E::GROUP).zip(words) {
                    let [low, high] = [pair.first(), pair.get(1)].map(|elem| elem.map_or(0, |elem| elem.to_f32().to_bits()));
                    *word = low >> 16 | high & 0xffff_0000;
                }
            }
        }
    }
}

macro_rules! by_rows {
    ($name:ident, [$($rows:literal)*]) => { &[$($name::<$rows>),*] };
    ($name:ident::<$elem:ty>, [$($rows:literal)*]) => { &[$($name::<$rows, $elem>),*] };
}

impl Tiles<f32> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        let by_rows: &[VectorFn<f32>] = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
                by_rows!(tile_avx512::<f32>, [1 2 3 4 5 6 7 8 9 10 11])
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_rows!(tile_avx2::<f32>, [1 2 3 4 5 6]),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => by_rows!(tile_neon::<f32>, [1 2 3 4 5 6]),
            _ => by_rows!(tile_portable::<f32>, [1 2 3 4]),
        };
        Self::Vector(by_rows, WordsOfGroup::Elements)
    }
}

/// With the bfloat16 dot product.
#[cfg(target_arch = "x86_64")]
pub(super) static BF16_DOT: &[VectorFn<bf16>] = by_rows!(tile_dot, [1 2 3 4 5 6 7 8 9 10 11]);

impl Tiles<bf16> {
    pub(crate) fn for_isa(isa: Isa) -> Self {
        let by_rows: &[VectorFn<bf16>] = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => return Self::Matrix(amx::tile_bf16_amx),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => return Self::Vector(BF16_DOT, WordsOfGroup::Pair),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => by_rows!(tile_avx512::<bf16>, [1 2 3 4 5 6 7 8 9 10 11]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_rows!(tile_avx2::<bf16>, [1 2 3 4 5 6]),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => by_rows!(tile_neon::<bf16>, [1 2 3 4 5 6]),
            _ => by_rows!(tile_portable::<bf16>, [1 2 3 4]),
        };
        Self::Vector(by_rows, WordsOfGroup::Elements)
    }
}

/// Columns of a panel that the portable loop takes at once, so that the sums fit 16 registers of four.
const PORTABLE_COLUMNS: usize = 8;

const _: () = assert!(cfg!(target_endian = "little"), "pairs of bfloat16 are taken apart as words");

/// What the compiler makes of plain loops.
///
/// # Safety
/// As [`Tiles::run`].
unsafe fn tile_portable<const ROWS: usize, E: Elem>(
    words: *const u32,
    panel: Panel<E>,
    init: Init,
    acc: *mut [f32; PANEL],
) {
    for first in (0..PANEL).step_by(PORTABLE_COLUMNS) {
        let mut sums = [[0.0_f32; PORTABLE_COLUMNS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `init` has as many rows as `rows` by the caller's promise.
            let values = unsafe { init.read_row(row) };
            sums.copy_from_slice(&values[first..first + PORTABLE_COLUMNS]);
        }
        for group in 0..panel.num_groups {
            // SAFETY: a column's group is four bytes, of one element or a pair, and those from `first` on are inside the
            // panel by the caller's promise.
            let columns = unsafe {
                let start = panel.start.add(group * panel.stride_elems + first * E::GROUP);
                start.cast::<[u32; PORTABLE_COLUMNS]>().read_unaligned()
            };
            for within in 0..E::GROUP {
                // The upper half of a float32 is a bfloat16; the first of a pair is the lower half of a word.
                let right = columns.map(|word| match (E::GROUP, within) {
                    (1, _) => f32::from_bits(word),
                    (_, 0) => f32::from_bits(word << 16),
                    _ => f32::from_bits(word & 0xffff_0000),
                });
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: there is a word for every element of every row by the caller's promise.
                    let left = unsafe { *words.cast::<f32>().add((group * E::GROUP + within) * ROWS + row) };
                    sums.iter_mut().zip(right).for_each(|(sum, right)| *sum += left * right);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: `acc` has MAX_ROWS rows, and this one's columns from `first` on.
            unsafe { acc.add(row).cast::<f32>().add(first).cast::<[f32; PORTABLE_COLUMNS]>().write(*sums) };
        }
    }
}
