//! Linear layers: rows times packed weights, with what follows fused into the store.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint outputs through one pointer")]

use super::activation::Activation;
use super::buffer::Shared;
use super::elem::Elem;
use super::isa::{Isa, multiversion};
use super::packed::{Layout, Packed};
use super::pool::Pool;
use super::tile::{Acc, MAX_ROWS, PANEL, Rows, Tiles};

/// Rows that one task multiplies with its panels: their activations stay in the second-level cache.
const BLOCK_ROWS: usize = 8 * MAX_ROWS;

/// What becomes of a sum.
#[derive(Clone, Copy)]
pub(crate) enum Store<E> {
    /// Rounded into `[num_rows, out_features]`.
    Assign(Shared<E>),
    /// Added to what is there, rounded once.
    Add(Shared<E>),
    /// Kept in float32.
    Float(Shared<f32>),
    /// Through the activation; for [`Layout::Gated`] into `[num_rows, out_features / 2]`.
    Activate(Shared<E>, Activation),
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
    let num_blocks = call.num_rows.div_ceil(BLOCK_ROWS);
    let block_rows = call.num_rows.div_ceil(num_blocks);
    let num_chunks = (pool.num_threads() * 8).div_ceil(num_blocks).min(num_panels);
    let source = Shared::new(x.as_ptr().cast_mut());
    pool.run(num_blocks * num_chunks, &|task_idx| {
        let (chunk, block) = (task_idx / num_blocks, task_idx % num_blocks);
        let rows = block * block_rows..((block + 1) * block_rows).min(call.num_rows);
        let num_tiles = rows.len().div_ceil(tiles.max_rows());
        let tile_rows = rows.len().div_ceil(num_tiles.max(1)).max(1);
        for panel_idx in chunk * num_panels / num_chunks..(chunk + 1) * num_panels / num_chunks {
            for first_row in rows.clone().step_by(tile_rows) {
                let len = tile_rows.min(rows.end - first_row);
                let mut acc: Acc = [[0.0; PANEL]; MAX_ROWS];
                if !call.packed.bias.is_empty() {
                    let bias = &call.packed.bias[panel_idx * PANEL..(panel_idx + 1) * PANEL];
                    acc[..len].iter_mut().for_each(|row| row.copy_from_slice(bias));
                }
                // SAFETY: rows `first_row..first_row + len` of `x` exist and are `stride_elems` apart, a multiple of
                // GROUP; the panel has as many groups as a row; `len` is at most `max_rows`.
                unsafe {
                    let start = source.at(first_row * stride_elems).cast_const();
                    tiles.run(Rows { start, stride_elems, len }, call.packed.panel(panel_idx), &mut acc);
                }
                store_tile(isa, &mut acc, call.packed, Place { first_row, len, panel_idx }, call.store);
            }
        }
    });
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
struct Place {
    first_row: usize,
    len: usize,
    panel_idx: usize,
}

multiversion! {
    fn store_tile<E: Elem>(acc: &mut Acc, packed: &Packed<E>, place: Place, store: Store<E>) {
        let gated = packed.layout == Layout::Gated && matches!(store, Store::Activate(..));
        let (row_elems, panel_columns) =
            if gated { (packed.out_features / 2, PANEL / 2) } else { (packed.out_features, PANEL) };
        let first_column = place.panel_idx * panel_columns;
        let num_columns = panel_columns.min(row_elems - first_column);
        for (row, sums) in acc[..place.len].iter_mut().enumerate() {
            let at_elems = (place.first_row + row) * row_elems + first_column;
            match store {
                Store::Float(out) => {
                    // SAFETY: these outputs belong to this tile alone, and the buffer holds them.
                    let out = unsafe { out.slice(at_elems, num_columns) };
                    out.copy_from_slice(&sums[..num_columns]);
                }
                // SAFETY: as above.
                Store::Assign(out) => round_into(unsafe { out.slice(at_elems, num_columns) }, sums),
                // SAFETY: as above.
                Store::Add(out) => add_into(unsafe { out.slice(at_elems, num_columns) }, sums),
                Store::Activate(out, activation) => {
                    if gated {
                        let (gates, values) = sums.split_at_mut(PANEL / 2);
                        activation.apply(gates);
                        gates.iter_mut().zip(values).for_each(|(gate, value)| *gate *= *value);
                    } else {
                        activation.apply(sums);
                    }
                    // SAFETY: as above.
                    round_into(unsafe { out.slice(at_elems, num_columns) }, sums);
                }
            }
        }
    }
}

#[inline(always)]
fn round_into<E: Elem>(out: &mut [E], sums: &[f32; PANEL]) {
    out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(sum));
}

#[inline(always)]
fn add_into<E: Elem>(out: &mut [E], sums: &[f32; PANEL]) {
    out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = E::from_f32(out.to_f32() + sum));
}
