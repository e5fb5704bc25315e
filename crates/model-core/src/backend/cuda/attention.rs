//! Attention on a GPU: prompts by flash attention, decode steps by the in-house kernel.

use cuda_kernels::{DecodeAttention, DecodeAttentionQkv, GatherCache, LayerKv, RopeAndCache};
use model_spec::HeadLayout;
use tch::{Kind, Tensor};
use torch_ext::cuda::flash::{self, Mask, PackedRows, Varlen};

use super::{CudaState, HeadKernels, NOT_PLANNED, device_context};
use crate::ModelError;
use crate::attention_context::{AttentionContext, DeviceAttention, DevicePrompts};
use crate::backend::plain::{QUERIES_PER_CHUNK, ScoreRule, attend};
use crate::kinds::TensorFormat;
use crate::kv_cache::KvCache;
use crate::layers::rotary::RotaryId;
use crate::ops::AttentionOp;

/// Flash attention gives a row the same bits in a part of a prompt that starts at a multiple of this as in the whole
/// (`aligner-gen bench --measures cuts` compares them, and `family_check` where there are windows): blocks of keys begin at
/// the same keys, and one that a row does not see changes no bit of it.
const FLASH_CUT_TOKENS: usize = 32;
/// Libtorch takes another path when every sequence has one query, and that path takes no padding.
const MIN_MAX_QUERIES: usize = 2;

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct CudaAttention {
    pub(super) layer_idx: usize,
    pub(super) heads: HeadLayout,
    /// Of the scores, as libtorch takes it.
    pub(super) scale: f64,
    /// The same as the in-house kernels take it.
    pub(super) scale_f32: f32,
    /// What scores are capped at.
    pub(super) softcap: Option<f64>,
    /// How many keys a row sees, its own among them, where that is not all before it.
    pub(super) local_tokens: Option<usize>,
    /// Index of its [`HeadKernels`].
    pub(super) heads_idx: usize,
    pub(super) rotary: Option<RotaryId>,
}

/// Where the keys and values of a decode step are.
#[derive(Clone, Copy)]
struct Cached<'a> {
    layer: LayerKv<'a>,
    /// `int32[num_rows, max_blocks_per_seq]`.
    block_tables: &'a Tensor,
    /// Which of the cache's tables they are.
    table: usize,
}

/// Prompts in one of the cache's tables.
#[derive(Clone, Copy)]
struct OfTable<'a> {
    prompts: &'a DevicePrompts,
    table: usize,
}

/// Rotated queries, and keys and values, of the sequences of a step one behind the other.
#[derive(Clone, Copy)]
struct PackedQkv<'a> {
    /// `[num_rows, heads, channels]`.
    queries: &'a Tensor,
    /// `[num_keys, groups, channels]`.
    keys: &'a Tensor,
    /// As `keys`.
    values: &'a Tensor,
}

impl AttentionOp<CudaState> for CudaAttention {
    fn run(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut CudaState,
    ) -> Result<Tensor, ModelError> {
        let num_rows = qkv.size2()?.0;
        let (keys, values) = cache.device_layer(self.layer_idx)?;
        let layer = LayerKv { keys: &keys, values: &values };
        let table = cache.table_of(self.layer_idx);
        let attended = match &device_context(step)?.attention {
            DeviceAttention::Prefill(prompts) => {
                self.prefill(qkv, step, OfTable { prompts, table }, layer, at)?
            }
            DeviceAttention::Decode { block_tables, has_drafts: true, .. } => {
                let block_tables = block_tables.get(table).ok_or(NOT_PLANNED)?;
                self.decode_drafts(qkv, step, Cached { layer, block_tables, table }, at)?
            }
            DeviceAttention::Decode { block_tables, has_drafts: false, .. } => {
                let block_tables = block_tables.get(table).ok_or(NOT_PLANNED)?;
                let heads = at.heads.get(self.heads_idx).ok_or(NOT_PLANNED)?;
                let (kernels, plan) = (&heads.kernels, heads.plan(table)?);
                let rotary = self.rotary.map(|id| at.rotary(id)).transpose()?;
                let out = at.empty(&self.query_shape(num_rows), at.numerics.compute.kind())?;
                let (scale, softcap) = (self.scale_f32, self.softcap_f32());
                let launch = DecodeAttentionQkv {
                    qkv,
                    rotary,
                    cache: layer,
                    block_tables,
                    plan,
                    scale,
                    softcap,
                    out: &out,
                };
                kernels.decode_attention_qkv(&at.stream()?, &launch)?;
                out
            }
        };
        Ok(attended.f_view([num_rows, self.heads.query_size() as i64])?)
    }

    fn prompt_cut_tokens(&self, at: &CudaState) -> Option<usize> {
        match at.numerics.compute.kind() {
            // cuBLAS's float32 GEMMs have other bits with other numbers of rows.
            Kind::Float => None,
            // Products of the same shapes, when they are cut where they are cut.
            _ if self.softcap.is_some() => Some(QUERIES_PER_CHUNK),
            _ => Some(FLASH_CUT_TOKENS),
        }
    }
}

impl CudaAttention {
    fn query_shape(&self, num_rows: i64) -> [i64; 3] {
        [num_rows, self.heads.num_attention_heads as i64, self.heads.kv_channels as i64]
    }

    /// Rotates and caches what the step has of each prompt, and attends to that and to what is cached before it.
    fn prefill(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        OfTable { prompts, table }: OfTable<'_>,
        cache: LayerKv<'_>,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        let (stream, context) = (at.stream()?, device_context(step)?);
        let HeadKernels { kernels, .. } = at.heads.get(self.heads_idx).ok_or(NOT_PLANNED)?;
        let kind = at.numerics.compute.kind();
        let DevicePrompts { slots, cu_seqlens, max_len_tokens, cached } = prompts;
        let slots = slots.get(table).ok_or(NOT_PLANNED)?;
        let num_rows = qkv.size2()?.0;
        let num_keys = match cached {
            Some(cached) => cached.slots.get(table).ok_or(NOT_PLANNED)?.size1()?,
            None => num_rows,
        };
        let key_shape = [num_keys, self.heads.num_query_groups as i64, self.heads.kv_channels as i64];
        let queries = at.empty(&self.query_shape(num_rows), kind)?;
        let (keys, values) = (at.empty(&key_shape, kind)?, at.empty(&key_shape, kind)?);
        let launch = RopeAndCache {
            qkv,
            positions: &context.positions,
            slots,
            rotary: self.rotary.map(|id| at.rotary(id)).transpose()?,
            cache,
            q_out: &queries,
            kv_out: cached.is_none().then_some((&keys, &values)),
        };
        kernels.rope_and_cache(&stream, &launch)?;
        if let Some(cached) = cached {
            let slots = cached.slots.get(table).ok_or(NOT_PLANNED)?;
            let launch = GatherCache { cache, slots, k_out: &keys, v_out: &values };
            kernels.gather_cache(&stream, &launch)?;
        }
        // Flash attention has neither float32 nor caps.
        if kind == Kind::Float || self.softcap.is_some() {
            let packed = PackedQkv { queries: &queries, keys: &keys, values: &values };
            return Ok(self.attend_unfused(packed, step)?.f_to_kind(kind)?);
        }
        let (key_starts, max_keys) = match cached {
            Some(cached) => (&cached.cu_seqlens, cached.max_len_tokens),
            None => (cu_seqlens, *max_len_tokens),
        };
        let max_queries = (*max_len_tokens).max(MIN_MAX_QUERIES);
        Ok(flash::varlen_with(&Varlen {
            q: &queries,
            k: &keys,
            v: &values,
            queries: PackedRows { cu_seqlens, max_len: max_queries as i64 },
            keys: PackedRows { cu_seqlens: key_starts, max_len: max_keys as i64 },
            used_keys: None,
            scale: f64::from(self.scale_f32),
            mask: self.local_tokens.map_or(Mask::Causal, Mask::Window),
        })?)
    }

    /// Rotates and caches all tokens of the step, and then attends: a row reads tokens of other rows. The fused kernel has
    /// the same bits, but each of its blocks writes the keys of its own rows only.
    fn decode_drafts(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cached: Cached<'_>,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        let (stream, context) = (at.stream()?, device_context(step)?);
        let kind = at.numerics.compute.kind();
        let num_rows = qkv.size2()?.0;
        let Cached { layer: cache, block_tables, table } = cached;
        let heads = at.heads.get(self.heads_idx).ok_or(NOT_PLANNED)?;
        let (kernels, plan) = (&heads.kernels, heads.plan(table)?);
        let queries = at.empty(&self.query_shape(num_rows), kind)?;
        let out = at.empty(&self.query_shape(num_rows), kind)?;
        let launch = RopeAndCache {
            qkv,
            positions: &context.positions,
            slots: &plan.slots(num_rows)?,
            rotary: self.rotary.map(|id| at.rotary(id)).transpose()?,
            cache,
            q_out: &queries,
            kv_out: None,
        };
        kernels.rope_and_cache(&stream, &launch)?;
        let (scale, softcap) = (self.scale_f32, self.softcap_f32());
        let launch = DecodeAttention { q: &queries, cache, block_tables, plan, scale, softcap, out: &out };
        kernels.decode_attention(&stream, &launch)?;
        Ok(out)
    }

    fn softcap_f32(&self) -> Option<f32> {
        self.softcap.map(|softcap| softcap as f32)
    }

    /// Causal attention in float32, where flash attention computes none, sequence by sequence.
    fn attend_unfused(&self, packed: PackedQkv<'_>, step: &AttentionContext) -> Result<Tensor, ModelError> {
        let PackedQkv { queries, keys, values } = packed;
        let (num_rows, heads, channels) = queries.size3()?;
        let (groups, per_group) = (self.heads.num_query_groups as i64, self.heads.queries_per_group() as i64);
        let out = Tensor::f_zeros([num_rows, heads, channels], (Kind::Float, queries.device()))?;
        let rule = ScoreRule { scale: self.scale, softcap: self.softcap, local_tokens: self.local_tokens };
        let mut key_start = 0;
        for sequence in &step.sequences {
            let num_keys = sequence.num_keys() as i64;
            let rows =
                |tensor: &Tensor| tensor.f_narrow(0, sequence.query_start as i64, sequence.query_len as i64);
            let of_group = |tensor: &Tensor| {
                tensor
                    .f_narrow(0, key_start, num_keys)?
                    .f_transpose(0, 1)?
                    .f_to_kind(Kind::Float)?
                    .f_contiguous()
            };
            let queries = rows(queries)?.f_view([-1, groups, per_group, channels])?;
            let attended =
                attend(&queries, &of_group(keys)?, &of_group(values)?, (rule, sequence.context_len), None)?;
            rows(&out)?.f_copy_(&attended.f_view([-1, heads, channels])?)?;
            key_start += num_keys;
        }
        Ok(out)
    }
}
