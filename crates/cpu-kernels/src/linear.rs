//! Linear layers: rows times packed weights, with what follows fused into the store.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint outputs through one pointer")]

use std::ops::Range;

use model_spec::Nonlinearity;

use super::buffer::SharedPtr;
use super::elem::Elem;
use super::isa::{Isa, multiversion};
use super::nonlinearity::activate;
use super::packed::{Layout, Packed};
use super::pool::Pool;
use super::tile::{Acc, Init, MAX_ROWS, PANEL, Rows, Share, Tiles, Units, VECTOR_ROWS};

/// Tiles that one task multiplies with each of its panels: their activations stay in the second-level cache.
const BLOCK_TILES: usize = 8;

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
}

/// Runs the layer on all threads.
pub(crate) fn linear<E: Elem>(pool: &mut Pool, isa: Isa, tiles: &Tiles<E>, call: &LinearCall<'_, E>) {
    let in_features = call.packed.in_features;
    debug_assert_eq!(call.x.len(), call.num_rows * in_features);
    if call.num_rows == 0 {
        return;
    }
    let padded;
    let (x, stride_elems) = if in_features.is_multiple_of(E::GROUP) {
        (call.x, in_features)
    } else {
        padded = pad_rows(call.x, in_features, in_features.next_multiple_of(E::GROUP));
        (padded.as_slice(), in_features.next_multiple_of(E::GROUP))
    };
    let num_panels = call.packed.num_panels();
    let num_blocks = call.num_rows.div_ceil(BLOCK_TILES * tiles.max_rows().max(VECTOR_ROWS));
    let block_rows = call.num_rows.div_ceil(num_blocks);
    let chunks = guided_chunks(num_panels, pool.num_threads());
    let source = SharedPtr::new(x.as_ptr().cast_mut());
    pool.run(num_blocks * chunks.len(), &|task_idx| {
        let (chunk, block) = (&chunks[task_idx / num_blocks], task_idx % num_blocks);
        let rows = block * block_rows..((block + 1) * block_rows).min(call.num_rows);
        let num_tiles = rows.len().div_ceil(tiles.max_rows());
        let tile_rows = rows.len().div_ceil(num_tiles.max(1)).max(1);
        let mut acc: Acc = [[0.0; PANEL]; MAX_ROWS];
        let mut units = Units::default();
        let (share, num_sharing) = tiles.prefetch_share(num_tiles);
        for panel_idx in chunk.clone() {
            let mut panel = call.packed.panel(panel_idx);
            let init = call.packed.bias.get(panel_idx).map_or_else(Init::zero, Init::row);
            let next = panel.prefetch;
            for (tile_idx, first_row) in rows.clone().step_by(tile_rows).enumerate() {
                let len = tile_rows.min(rows.end - first_row);
                // The first tiles fetch the next panel; the others have nothing to fetch.
                if tile_idx < num_sharing {
                    let part_elems = panel.num_groups * panel.stride_elems / num_sharing;
                    (panel.prefetch, panel.prefetch_share) =
                        (next.wrapping_add(tile_idx * part_elems), share);
                } else {
                    (panel.prefetch, panel.prefetch_share) = (panel.start, Share::Nothing);
                }
                // SAFETY: rows `first_row..first_row + len` of `x` exist and are `stride_elems` apart, a multiple of
                // GROUP; the panel has as many groups as a row; `len` is at most `max_rows`.
                unsafe {
                    let start = source.at(first_row * stride_elems).cast_const();
                    tiles.run(&mut units, Rows { start, stride_elems, len }, panel, init, &mut acc);
                }
                store_tile(isa, &mut acc, call.packed, TileOutputs { first_row, len, panel_idx }, call.store);
            }
        }
    });
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
