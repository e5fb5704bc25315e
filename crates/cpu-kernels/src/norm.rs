//! RMSNorm and LayerNorm, one row at a time, sums in float32 in a fixed order.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint rows through one pointer")]

use model_spec::{HeadLayout, Normalization};

use super::buffer::SharedPtr;
use super::elem::Elem;
use super::isa::{Isa, multiversion};
use super::math::sum_lanes;
use super::pool::Pool;

/// A norm's parameters, in float32. A zero-centred gain (`layernorm1p`) has its 1 added already.
#[derive(Clone, Copy, Debug)]
pub struct NormParams<'a> {
    /// Whether the mean is subtracted first.
    pub normalization: Normalization,
    /// `[hidden_size]`.
    pub weight: &'a [f32],
    /// `[hidden_size]`, or empty.
    pub bias: &'a [f32],
    /// Added to the variance or the mean square.
    pub epsilon: f32,
}

/// Rows that one task normalises.
const BLOCK_ROWS: usize = 16;

/// `out` and `x`: `[num_rows, hidden_size]`.
pub(crate) fn norm<E: Elem>(pool: &mut Pool, isa: Isa, params: &NormParams<'_>, x: &[E], out: &mut [E]) {
    let block_elems = BLOCK_ROWS * params.weight.len();
    let shared = SharedPtr::new(out.as_mut_ptr());
    let num_elems = x.len().min(out.len());
    pool.run(num_elems.div_ceil(block_elems), &|block| {
        let range = block * block_elems..((block + 1) * block_elems).min(num_elems);
        // SAFETY: blocks are disjoint and end within `out`.
        let out = unsafe { shared.slice(range.start, range.len()) };
        norm_rows(isa, params, &x[range], out);
    });
}

multiversion! {
    fn norm_rows<E: Elem>(params: &NormParams<'_>, x: &[E], out: &mut [E]) {
        let hidden_size = params.weight.len();
        for (x, out) in x.chunks_exact(hidden_size).zip(out.chunks_exact_mut(hidden_size)) {
            let mean = match params.normalization {
                Normalization::LayerNorm => sum_by(x, |value| value) / hidden_size as f32,
                Normalization::RmsNorm => 0.0,
            };
            let variance = sum_by(x, |value| (value - mean) * (value - mean)) / hidden_size as f32;
            let scale = 1.0 / (variance + params.epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(params.weight) {
                *out = E::from_f32((x.to_f32() - mean) * scale * weight);
            }
            if !params.bias.is_empty() {
                // From float32 again, so that the sum with the bias is rounded once.
                for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(params.weight).zip(params.bias) {
                    *out = E::from_f32((x.to_f32() - mean) * scale * weight + bias);
                }
            }
        }
    }
}

/// `qkv`: `[num_rows, num_query_groups, queries_per_group + 2, kv_channels]`; queries and keys are normalised in place.
pub(crate) fn norm_heads<E: Elem>(
    pool: &mut Pool,
    isa: Isa,
    heads: HeadLayout,
    norms: [&NormParams<'_>; 2],
    qkv: &mut [E],
) {
    let row_elems = heads.qkv_size();
    let block_elems = BLOCK_ROWS * row_elems;
    let num_elems = qkv.len();
    let shared = SharedPtr::new(qkv.as_mut_ptr());
    pool.run(num_elems.div_ceil(block_elems), &|block| {
        let start = block * block_elems;
        // SAFETY: blocks are disjoint and end within `qkv`.
        let rows = unsafe { shared.slice(start, block_elems.min(num_elems - start)) };
        norm_heads_of_rows(isa, heads, norms, rows);
    });
}

multiversion! {
    fn norm_heads_of_rows<E: Elem>(heads: HeadLayout, norms: [&NormParams<'_>; 2], rows: &mut [E]) {
        let [query, key] = norms;
        let queries_per_group = heads.queries_per_group();
        for (idx, head) in rows.chunks_exact_mut(heads.kv_channels).enumerate() {
            let idx_in_row = idx % (heads.num_query_groups * (queries_per_group + 2));
            let (group, slot) = (idx_in_row / (queries_per_group + 2), idx_in_row % (queries_per_group + 2));
            let (params, head_idx) = match slot {
                slot if slot < queries_per_group => (query, group * queries_per_group + slot),
                slot if slot == queries_per_group => (key, group),
                _ => continue,
            };
            let weights = of_head(params.weight, head.len(), head_idx);
            let biases = of_head(params.bias, head.len(), head_idx);
            let num_dims = head.len() as f32;
            let mean = match params.normalization {
                Normalization::LayerNorm => sum_by(head, |value| value) / num_dims,
                Normalization::RmsNorm => 0.0,
            };
            let variance = sum_by(head, |value| (value - mean) * (value - mean)) / num_dims;
            let scale = 1.0 / (variance + params.epsilon).sqrt();
            if biases.is_empty() {
                for (value, weight) in head.iter_mut().zip(weights) {
                    *value = E::from_f32((value.to_f32() - mean) * scale * weight);
                }
            } else {
                for ((value, weight), bias) in head.iter_mut().zip(weights).zip(biases) {
                    *value = E::from_f32((value.to_f32() - mean) * scale * weight + bias);
                }
            }
        }
    }
}

/// Those of all heads, where there are not more, or of one.
#[inline(always)]
fn of_head(values: &[f32], num_dims: usize, head_idx: usize) -> &[f32] {
    match values.len() {
        len if len <= num_dims => values,
        _ => values.get(head_idx * num_dims..(head_idx + 1) * num_dims).unwrap_or_default(),
    }
}

#[inline(always)]
fn sum_by<E: Elem>(x: &[E], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value.to_f32());
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += term(value.to_f32());
    }
    sum_lanes(lanes)
}
