//! Linear layers: rows times packed weights, with what follows fused into the store.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint outputs through one pointer")]

use std::ops::Range;

use model_spec::Nonlinearity;

use super::buffer::SharedPtr;
use super::elem::Elem;
use super::isa::{Isa, multiversion};
use super::nonlinearity::{activate, prepare_multiplied};
use super::packed::{Layout, Packed};
use super::pool::Pool;
use super::tile::{Acc, Init, Left, MAX_ROWS, PANEL, Rows, Share, Tiles, Units, VECTOR_ROWS};

/// Tiles that one task multiplies with each of its panels: their activations stay in the second-level cache.
const BLOCK_TILES: usize = 8;

/// Rows that are packed at once: the memory for them is bounded, and each weight read is used this often.
const PACKED_ROWS: usize = 512;
/// Words that are worth another thread's packing.
const PACKED_WORDS: usize = 8 << 10;

/// What becomes of a sum.
#[derive(Clone, Copy)]
pub(crate) enum Store<E> {
    /// Rounded into `[num_rows, out_features]`.
    Assign(SharedPtr<E>),
    /// Added to what is there, rounded once.
    Add(SharedPtr<E>),
    /// Kept in float32.
    Float(SharedPtr<f32>),
    /// Through the activation; for [`Layout::Gated`] into `[num_rows, out_features / 2]`.
    Activate(SharedPtr<E>, Nonlinearity),
}

/// One linear layer on some rows. `x` has `num_rows * in_features` elements, and the pointer in `store` reaches
/// `num_rows` rows of the output; both are checked by the tensor-level callers.
pub(crate) struct LinearCall<'a, E: Elem> {
    pub(crate) x: &'a [E],
    pub(crate) num_rows: usize,
    pub(crate) packed: &'a Packed<E>,
    pub(crate) store: Store<E>,
    /// Room for packed rows, kept from call to call.
    pub(crate) words: &'a mut Vec<u32>,
}

/// Runs the layer on all threads.
pub(crate) fn linear<E: Elem>(pool: &mut Pool, isa: Isa, tiles: &Tiles<E>, call: LinearCall<'_, E>) {
    let LinearCall { x, num_rows, packed, store, words } = call;
    let in_features = packed.in_features;
    debug_assert_eq!(x.len(), num_rows * in_features);
    let row_words = tiles.row_words(in_features);
    // The matrix units read whole groups.
    let stride_elems = if row_words > 0 { in_features } else { in_features.next_multiple_of(E::GROUP) };
    let padded;
    let x = if stride_elems == in_features {
        x
    } else {
        padded = pad_rows(x, in_features, stride_elems);
        padded.as_slice()
    };
    let part_rows = if row_words > 0 { PACKED_ROWS } else { num_rows.max(1) };
    for first_row in (0..num_rows).step_by(part_rows) {
        let num_rows = part_rows.min(num_rows - first_row);
        let cuts = Cuts::of(num_rows, tiles.max_rows());
        let num_words = num_rows * row_words;
        if words.len() < num_words {
            words.resize(num_words, 0);
        }
        let x = &x[first_row * stride_elems..];
        let shared = SharedPtr::new(words.as_mut_ptr());
        let part = Part { isa, tiles, packed, store, first_row, x, stride_elems, row_words, words: shared };
        if row_words > 0 {
            part.pack(pool, &cuts);
        }
        part.multiply(pool, &cuts);
    }
}

/// How rows are cut into blocks, which are tasks, and these into tiles.
struct Cuts {
    num_rows: usize,
    block_rows: usize,
    max_rows: usize,
}

impl Cuts {
    fn of(num_rows: usize, max_rows: usize) -> Self {
        let num_blocks = num_rows.div_ceil(BLOCK_TILES * max_rows.max(VECTOR_ROWS));
        Self { num_rows, block_rows: num_rows.div_ceil(num_blocks), max_rows }
    }

    fn num_blocks(&self) -> usize {
        self.num_rows.div_ceil(self.block_rows)
    }

    /// The first row and the number of rows of each tile of a block; how many tiles there are.
    fn tiles(&self, block: usize) -> (impl Iterator<Item = (usize, usize)> + Clone, usize) {
        let rows = block * self.block_rows..((block + 1) * self.block_rows).min(self.num_rows);
        let num_tiles = rows.len().div_ceil(self.max_rows);
        let tile_rows = rows.len().div_ceil(num_tiles.max(1)).max(1);
        let end = rows.end;
        (rows.step_by(tile_rows).map(move |first_row| (first_row, tile_rows.min(end - first_row))), num_tiles)
    }
}

/// Some rows of a call. The words of a tile begin at `first_row * row_words`.
struct Part<'a, E: Elem> {
    isa: Isa,
    tiles: &'a Tiles<E>,
    packed: &'a Packed<E>,
    store: Store<E>,
    /// Of the call.
    first_row: usize,
    x: &'a [E],
    stride_elems: usize,
    row_words: usize,
    words: SharedPtr<u32>,
}

impl<E: Elem> Part<'_, E> {
    fn rows(&self, first_row: usize, len: usize) -> Rows<E> {
        Rows { start: self.x[first_row * self.stride_elems..].as_ptr(), stride_elems: self.stride_elems, len }
    }

    fn pack(&self, pool: &mut Pool, cuts: &Cuts) {
        let tiles: Vec<_> = (0..cuts.num_blocks()).flat_map(|block| cuts.tiles(block).0).collect();
        let task_tiles = (PACKED_WORDS / (self.row_words * cuts.max_rows)).max(1);
        pool.run(tiles.len().div_ceil(task_tiles), &|task_idx| {
            for &(first_row, len) in tiles.iter().skip(task_idx * task_tiles).take(task_tiles) {
                // SAFETY: there are words for every row, and no other task has this tile; its rows are in `x`.
                unsafe {
                    let words = self.words.slice(first_row * self.row_words, len * self.row_words);
                    self.tiles.pack(self.isa, self.rows(first_row, len), self.packed.in_features, words);
                }
            }
        });
    }

    fn multiply(&self, pool: &mut Pool, cuts: &Cuts) {
        let chunks = guided_chunks(self.packed.num_panels(), pool.num_threads());
        let num_blocks = cuts.num_blocks();
        pool.run(num_blocks * chunks.len(), &|task_idx| {
            let (chunk, block) = (&chunks[task_idx / num_blocks], task_idx % num_blocks);
            let (tiles, num_tiles) = cuts.tiles(block);
            let mut acc: Acc = [[0.0; PANEL]; MAX_ROWS];
            let mut units = Units::default();
            let (share, num_sharing) = self.tiles.prefetch_share(num_tiles);
            for panel_idx in chunk.clone() {
                let mut panel = self.packed.panel(panel_idx);
                let init = self.packed.bias.get(panel_idx).map_or_else(Init::zero, Init::row);
                let next = panel.prefetch;
                for (tile_idx, (first_row, len)) in tiles.clone().enumerate() {
                    // The first tiles fetch the next panel; the others have nothing to fetch.
                    if tile_idx < num_sharing {
                        let part_elems = panel.num_groups * panel.stride_elems / num_sharing;
                        (panel.prefetch, panel.prefetch_share) =
                            (next.wrapping_add(tile_idx * part_elems), share);
                    } else {
                        (panel.prefetch, panel.prefetch_share) = (panel.start, Share::Nothing);
                    }
                    // SAFETY: the tile's rows and words exist, and the panel has as many groups as a row; `len` is at
                    // most `max_rows`.
                    unsafe {
                        let words = self.words.at(first_row * self.row_words).cast_const();
                        let left = Left { rows: self.rows(first_row, len), words };
                        self.tiles.run(&mut units, left, panel, init, &mut acc);
                    }
                    let outputs = TileOutputs { first_row: self.first_row + first_row, len, panel_idx };
                    store_tile(self.isa, &mut acc, self.packed, outputs, self.store);
                }
            }
        });
    }
}

/// Splits `num_panels` into ranges for `num_threads` threads: long ones first, so that a thread mostly walks memory
/// in order, and short ones last, so that all threads end together.
fn guided_chunks(num_panels: usize, num_threads: usize) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < num_panels {
        let len = (num_panels - start).div_ceil(2 * num_threads);
        chunks.push(start..start + len);
        start += len;
    }
    chunks
}

fn pad_rows<E: Elem>(x: &[E], from: usize, to: usize) -> Vec<E> {
    let mut padded = vec![E::default(); x.len() / from * to];
    for (row, out) in x.chunks_exact(from).zip(padded.chunks_exact_mut(to)) {
        out[..from].copy_from_slice(row);
    }
    padded
}

/// Which outputs a tile holds.
#[derive(Clone, Copy)]
struct TileOutputs {
    first_row: usize,
    len: usize,
    panel_idx: usize,
}

multiversion! {
    fn store_tile<E: Elem>(acc: &mut Acc, packed: &Packed<E>, outputs: TileOutputs, store: Store<E>) {
        let gated = packed.layout == Layout::Gated && matches!(store, Store::Activate(..));
        let (row_elems, panel_columns) =
            if gated { (packed.out_features / 2, PANEL / 2) } else { (packed.out_features, PANEL) };
        let first_column = outputs.panel_idx * panel_columns;
        let num_columns = panel_columns.min(row_elems - first_column);
        for (row, sums) in acc[..outputs.len].iter_mut().enumerate() {
            let at_elems = (outputs.first_row + row) * row_elems + first_column;
            match store {
                // SAFETY: these outputs belong to this tile alone, and the buffer holds them.
                Store::Float(out) => round_into(unsafe { out.slice(at_elems, num_columns) }, sums),
                // SAFETY: as above.
                Store::Assign(out) => round_into(unsafe { out.slice(at_elems, num_columns) }, sums),
                // SAFETY: as above.
                Store::Add(out) => add_into(unsafe { out.slice(at_elems, num_columns) }, sums),
                Store::Activate(out, activation) => {
                    if gated {
                        activate(activation, &mut sums[..PANEL / 2]);
                        prepare_multiplied(activation, &mut sums[PANEL / 2..]);
                        for column in 0..PANEL / 2 {
                            sums[column] *= sums[column + PANEL / 2];
                        }
                    } else {
                        activate(activation, sums);
                    }
                    // SAFETY: as above.
                    round_into(unsafe { out.slice(at_elems, num_columns) }, sums);
                }
            }
        }
    }
}

/// Full panels have a loop of fixed length, which becomes a few vector instructions.
#[inline(always)]
fn round_into<E: Elem>(out: &mut [E], sums: &[f32; PANEL]) {
    match <&mut [E; PANEL]>::try_from(&mut *out) {
        Ok(full) => full.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(sum)),
        Err(_) => out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(sum)),
    }
}

#[inline(always)]
fn add_into<E: Elem>(out: &mut [E], sums: &[f32; PANEL]) {
    match <&mut [E; PANEL]>::try_from(&mut *out) {
        Ok(full) => full.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(out.to_f32() + sum)),
        Err(_) => out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(out.to_f32() + sum)),
    }
}
