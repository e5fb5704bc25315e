//! Interleaved rotary pairs made half-split ones, by the order of the rows of `linear_qkv`.
//!
//! Which of a head's dimensions are rotated together is a matter of their order, and queries and keys are only ever
//! multiplied with each other: with the rows of both put in the same new order, dimensions `(2 i, 2 i + 1)` come to lie
//! at `(i, i + half)`, and the layers need no second rotation. Transformers' Llama converter does the same. Norms of the
//! heads get the same order.

use model_spec::{AttentionSpec, RotaryPairing};

/// The stored row that belongs at each row, or `None` when they are in order already.
pub(super) fn row_order(attention: &AttentionSpec) -> Option<Vec<usize>> {
    let rotary = attention.rotary?;
    if rotary.pairing == RotaryPairing::HalfSplit {
        return None;
    }
    let heads = attention.heads;
    let half = rotary.rotary_dims / 2;
    let slots = heads.queries_per_group() + 2;
    let order = |row: usize| {
        let (head, dim) = (row / heads.kv_channels, row % heads.kv_channels);
        let is_value = head % slots == slots - 1;
        let stored_dim = match dim {
            _ if is_value || dim >= rotary.rotary_dims => dim,
            _ if dim < half => 2 * dim,
            _ => 2 * (dim - half) + 1,
        };
        head * heads.kv_channels + stored_dim
    };
    Some((0..heads.qkv_size()).map(order).collect())
}

/// The stored dimension that belongs at each dimension of a query or key head: the first head's rows.
pub(super) fn head_order(attention: &AttentionSpec) -> Option<Vec<usize>> {
    let mut order = row_order(attention)?;
    order.truncate(attention.heads.kv_channels);
    Some(order)
}

/// The same order for so many heads, one after the other.
pub(super) fn repeated(order: &[usize], num_heads: usize) -> Vec<usize> {
    (0..num_heads).flat_map(|head| order.iter().map(move |dim| head * order.len() + dim)).collect()
}

/// The rows of `elems` in another order.
pub(super) fn reorder<T: Copy>(elems: &[T], order: &[usize]) -> Vec<T> {
    let row_elems = elems.len() / order.len().max(1);
    let mut reordered = Vec::with_capacity(elems.len());
    for &row in order {
        reordered.extend_from_slice(elems.get(row * row_elems..(row + 1) * row_elems).unwrap_or_default());
    }
    reordered
}
