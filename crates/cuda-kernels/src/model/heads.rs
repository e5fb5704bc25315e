//! Launcher of the norms of query and key heads.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use model_spec::Normalization;
use tch::{Kind, Tensor};

use super::ModelKernels;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Normalises every query and key head over its own elements, in float32, rounded once; values stay.
#[derive(Clone, Copy, Debug)]
pub struct NormHeads<'a> {
    /// Which norm.
    pub normalization: Normalization,
    /// `T[n, G * (q + 2) * d]`: of each group its queries, its key and its value. Changed in place.
    pub qkv: &'a Tensor,
    /// Of queries and of keys, `float32[d]`, or with rows of their own for all heads, `float32[H, d]` and `float32[G, d]`.
    pub gains: [&'a Tensor; 2],
    /// The same.
    pub biases: [Option<&'a Tensor>; 2],
    /// Added to the mean square.
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormHeadsArgs {
    qkv: Address,
    q_gain: Address,
    q_bias: Address,
    k_gain: Address,
    k_bias: Address,
    num_groups: i32,
    is_centred: i32,
    eps: f32,
    is_of_each: i32,
}

impl ModelKernels {
    /// Enqueues it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn norm_heads(&self, stream: &Stream, norm: &NormHeads<'_>) -> Result<(), KernelError> {
        /// A warp takes a head.
        const HEADS_PER_BLOCK: i64 = 8;
        let tensors = Tensors::on(stream);
        let shape @ [num_rows, row_elems] = shape_of(norm.qkv, "qkv")?;
        let group_elems = self.qkv_elems(1);
        if row_elems == 0 || row_elems % group_elems != 0 {
            return Err(bad(
                "elements of a row of `qkv`",
                &format!("a multiple of {group_elems}"),
                row_elems,
            ));
        }
        let num_groups = row_elems / group_elems;
        let [q_gain, k_gain] = norm.gains;
        let is_of_each = q_gain.dim() == 2;
        let shape_for = |num_heads: i64| match is_of_each {
            true => vec![num_heads, self.head_dim()],
            false => vec![self.head_dim()],
        };
        let q_shape = shape_for(num_groups * i64::from(self.config.queries_per_group));
        let k_shape = shape_for(num_groups);
        let [q_bias, k_bias] = norm.biases;
        let args = NormHeadsArgs {
            qkv: tensors.address(norm.qkv, "qkv", self.config.kind, &shape)?,
            q_gain: tensors.address(q_gain, "gain of queries", Kind::Float, &q_shape)?,
            q_bias: tensors.optional(q_bias, "bias of queries", Kind::Float, &q_shape)?,
            k_gain: tensors.address(k_gain, "gain of keys", Kind::Float, &k_shape)?,
            k_bias: tensors.optional(k_bias, "bias of keys", Kind::Float, &k_shape)?,
            num_groups: int(num_groups, "groups")?,
            is_centred: i32::from(norm.normalization == Normalization::LayerNorm),
            eps: norm.eps,
            is_of_each: i32::from(is_of_each),
        };
        let num_heads = num_groups * (i64::from(self.config.queries_per_group) + 1);
        let parts = count((num_heads as u64).div_ceil(HEADS_PER_BLOCK as u64) as i64, "heads of a row")?;
        let launch = Launch {
            grid: [count(num_rows, "rows")?, parts, 1],
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(1, 32 * HEADS_PER_BLOCK as u32)
        };
        Ok(self.norm_heads.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}
