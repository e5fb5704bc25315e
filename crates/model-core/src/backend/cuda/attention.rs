//! Attention on a GPU: whole prompts by flash attention, decode steps by the in-house kernel.

use cuda_kernels::{DecodeAttention, DecodeAttentionQkv, LayerCache, RopeAndCache};
use model_spec::HeadLayout;
use tch::{Kind, Tensor};
use torch_ext::cuda::flash;

use super::{CudaState, HeadKernels, NO_ROOM, NOT_PLANNED, device_context};
use crate::ModelError;
use crate::attention_context::{AttentionContext, DeviceAttention};
use crate::backend::plain::attend;
use crate::kinds::TensorFormat;
use crate::kv_cache::KvCache;
use crate::layers::rotary::RotaryId;
use crate::ops::AttentionOp;

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct CudaAttention {
    pub(super) layer_idx: usize,
    pub(super) heads: HeadLayout,
    /// Of the scores, as libtorch takes it.
    pub(super) scale: f64,
    /// The same as the in-house kernels take it.
    pub(super) scale_f32: f32,
    /// Index of its [`HeadKernels`].
    pub(super) heads_idx: usize,
    pub(super) rotary: Option<RotaryId>,
}

impl AttentionOp<CudaState> for CudaAttention {
    fn run(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut CudaState,
    ) -> Result<Tensor, ModelError> {
        let stream = at.stream()?;
        let context = device_context(step)?;
        let HeadKernels { kernels, plan, .. } = at.heads.get(self.heads_idx).ok_or(NOT_PLANNED)?;
        let kind = at.numerics.compute.kind();
        let num_rows = qkv.size2()?.0;
        let channels = self.heads.kv_channels as i64;
        let (heads, groups) = (self.heads.num_attention_heads as i64, self.heads.num_query_groups as i64);
        let (keys, values) = cache.device_layer(self.layer_idx)?;
        let layer = LayerCache { keys: &keys, values: &values };
        let rotary = self.rotary.map(|id| at.rotary(id)).transpose()?;
        let scale = self.scale_f32;
        let attended = match &context.attention {
            DeviceAttention::Prefill { slots, cu_seqlens, max_len_tokens } => {
                let queries = at.empty(&[num_rows, heads, channels], kind)?;
                let new_keys = at.empty(&[num_rows, groups, channels], kind)?;
                let new_values = at.empty(&[num_rows, groups, channels], kind)?;
                let launch = RopeAndCache {
                    qkv,
                    positions: &context.positions,
                    slots,
                    rotary,
                    cache: layer,
                    q_out: &queries,
                    kv_out: Some((&new_keys, &new_values)),
                };
                kernels.rope_and_cache(&stream, &launch)?;
                if kind == Kind::Float {
                    self.attend_f32([&queries, &new_keys, &new_values], step)?
                } else {
                    let qkv = [&queries, &new_keys, &new_values];
                    flash::varlen(qkv, cu_seqlens, *max_len_tokens as i64, f64::from(scale))?
                }
            }
            DeviceAttention::Decode { block_tables, has_drafts: true, .. } => {
                let plan = plan.as_ref().ok_or(NO_ROOM)?;
                let queries = at.empty(&[num_rows, heads, channels], kind)?;
                let out = at.empty(&[num_rows, heads, channels], kind)?;
                // A row attends to tokens of other rows, so two kernels: the fused one is bitwise identical, but each of its
                // blocks writes the keys of its own rows only.
                let launch = RopeAndCache {
                    qkv,
                    positions: &context.positions,
                    slots: &plan.slots(num_rows)?,
                    rotary,
                    cache: layer,
                    q_out: &queries,
                    kv_out: None,
                };
                kernels.rope_and_cache(&stream, &launch)?;
                let launch =
                    DecodeAttention { q: &queries, cache: layer, block_tables, plan, scale, out: &out };
                kernels.decode_attention(&stream, &launch)?;
                out
            }
            DeviceAttention::Decode { block_tables, has_drafts: false, .. } => {
                let plan = plan.as_ref().ok_or(NO_ROOM)?;
                let out = at.empty(&[num_rows, heads, channels], kind)?;
                let launch =
                    DecodeAttentionQkv { qkv, rotary, cache: layer, block_tables, plan, scale, out: &out };
                kernels.decode_attention_qkv(&stream, &launch)?;
                out
            }
        };
        Ok(attended.f_view([num_rows, heads * channels])?)
    }
}

impl CudaAttention {
    /// Causal attention of whole prompts where flash attention has no float32, sequence by sequence.
    fn attend_f32(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        step: &AttentionContext,
    ) -> Result<Tensor, ModelError> {
        let (num_rows, heads, channels) = queries.size3()?;
        let (groups, per_group) = (self.heads.num_query_groups as i64, self.heads.queries_per_group() as i64);
        let out = Tensor::f_zeros([num_rows, heads, channels], (Kind::Float, queries.device()))?;
        for sequence in &step.sequences {
            let rows =
                |tensor: &Tensor| tensor.f_narrow(0, sequence.query_start as i64, sequence.query_len as i64);
            let of_group = |tensor: &Tensor| rows(tensor)?.f_transpose(0, 1)?.f_contiguous();
            let queries = rows(queries)?.f_view([-1, groups, per_group, channels])?;
            let attended = attend(&queries, &of_group(keys)?, &of_group(values)?, self.scale, 0)?;
            rows(&out)?.f_copy_(&attended.f_view([-1, heads, channels])?)?;
        }
        Ok(out)
    }
}
