//! Attention of the plain backend, sequence by sequence over its gathered keys and values.

use model_spec::{HeadLayout, KvFormat};
use tch::{Device, Kind, Tensor};

use super::PlainState;
use crate::attention_context::{AttentionContext, SequenceSpan};
use crate::kinds::TensorFormat;
use crate::kv_cache::KvCache;
use crate::layers::rotary::{Rotary, RotaryId};
use crate::ops::{AttentionOp, tensor_bytes};
use crate::upload::to_device;
use crate::{AttentionAlgorithm, ModelError, fp8};

/// Query rows whose scores exist at once: bounds the memory of a long prefill.
pub(crate) const QUERIES_PER_CHUNK: usize = 128;

/// What becomes of products of queries and keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreRule {
    pub(crate) scale: f64,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub(crate) softcap: Option<f64>,
    /// How many keys a row sees, its own among them, where that is not all before it.
    pub(crate) local_tokens: Option<usize>,
}

impl ScoreRule {
    /// Keys at the front of a sequence that no row from the one at `position` on sees.
    pub(crate) fn num_unseen(self, position: usize) -> usize {
        self.local_tokens.map_or(0, |tokens| (position + 1).saturating_sub(tokens))
    }
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct PlainAttention {
    pub(super) layer_idx: usize,
    pub(super) heads: HeadLayout,
    pub(super) scores: ScoreRule,
    pub(super) rotary: Option<RotaryId>,
    pub(super) algorithm: AttentionAlgorithm,
    /// float32 `[num_attention_heads]`.
    pub(super) sinks: Option<Tensor>,
}

impl AttentionOp<PlainState> for PlainAttention {
    fn run(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut PlainState,
    ) -> Result<Tensor, ModelError> {
        let HeadLayout { num_attention_heads, num_query_groups, kv_channels } = self.heads;
        let (num_tokens, _) = qkv.size2()?;
        let (groups, channels) = (num_query_groups as i64, kv_channels as i64);
        let queries_per_group = self.heads.queries_per_group() as i64;
        let grouped = qkv.f_view([num_tokens, groups, queries_per_group + 2, channels])?;
        let mut queries_and_keys = grouped.f_narrow(2, 0, queries_per_group + 1)?.f_to_kind(Kind::Float)?;
        if let Some(id) = self.rotary {
            let rotary = at.rotary.get(id)?;
            queries_and_keys = rotate(&queries_and_keys, rotary, &step.positions, at.device)?;
        }
        // Rounded here so that a row sees the same numbers whether its keys come from the cache or from this step.
        let queries_and_keys = queries_and_keys.f_to_kind(at.numerics.compute.kind())?;
        let queries = queries_and_keys.f_narrow(2, 0, queries_per_group)?;
        let keys = queries_and_keys.f_select(2, queries_per_group)?;
        let values = grouped.f_select(2, queries_per_group + 1)?;
        let (keys, values) = match at.numerics.kv {
            KvFormat::Float(_) => (keys, values),
            KvFormat::Fp8 => (fp8::rounded_heads(&keys)?, fp8::rounded_heads(&values)?),
        };

        let (layer, table) = (cache.layer(self.layer_idx)?, cache.table_of(self.layer_idx));
        let slots = at.index(step.slots(table))?;
        let _ = layer.keys.f_view([-1, groups, channels])?.f_index_copy_(0, &slots, &keys)?;
        let _ = layer.values.f_view([-1, groups, channels])?.f_index_copy_(0, &slots, &values)?;

        let mut outputs = Vec::with_capacity(step.sequences.len());
        for sequence in &step.sequences {
            let blocks = at.index(step.blocks(table, sequence))?;
            let num_unseen = self.scores.num_unseen(sequence.context_len);
            let keys = gather(&layer.keys, &blocks, sequence, num_unseen)?;
            let values = gather(&layer.values, &blocks, sequence, num_unseen)?;
            let rows = queries.f_narrow(0, sequence.query_start as i64, sequence.query_len as i64)?;
            outputs.push(match self.algorithm {
                AttentionAlgorithm::Flash => flash_attend(&rows, &keys, &values, self.scores.scale)?,
                AttentionAlgorithm::Sdpa => sdpa_attend(&rows, &keys, &values, self.scores.scale)?,
                AttentionAlgorithm::Unfused => {
                    let (keys, values) = (by_group(&keys)?, by_group(&values)?);
                    let from = (self.scores, sequence.context_len);
                    attend(&rows, &keys, &values, from, self.sinks.as_ref())?
                }
            });
        }
        let output = Tensor::f_cat(&outputs, 0)?;
        Ok(output
            .f_view([num_tokens, num_attention_heads as i64 * channels])?
            .f_to_kind(at.numerics.compute.kind())?)
    }

    fn set_sinks(&mut self, sinks: Tensor) -> Result<(), ModelError> {
        self.sinks = Some(sinks);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.sinks.as_ref().map_or(0, tensor_bytes)
    }

    fn prompt_cut_tokens(&self, _at: &PlainState) -> Option<usize> {
        match self.algorithm {
            // The products of a prompt have the same shapes when it is cut where they are cut.
            AttentionAlgorithm::Unfused => Some(QUERIES_PER_CHUNK),
            // Libtorch computes one row by other kernels than many, and what is behind a cut may be one row.
            AttentionAlgorithm::Flash | AttentionAlgorithm::Sdpa => None,
        }
    }
}

/// Rotates the first dimensions of every head, pairs `(i, i + half)`: `[num_tokens, groups, heads, channels]`.
fn rotate(x: &Tensor, rotary: &Rotary, positions: &[u32], device: Device) -> Result<Tensor, ModelError> {
    let half = rotary.half_dims();
    let rows_of = |table: &[f32]| -> Result<Tensor, ModelError> {
        let mut rows = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            let start = position as usize * half;
            rows.extend_from_slice(table.get(start..start + half).unwrap_or_default());
        }
        let rows = to_device(&rows, device)?;
        Ok(rows.f_view([positions.len() as i64, 1, 1, half as i64])?)
    };
    let (cos, sin) = (rows_of(rotary.cos())?, rows_of(rotary.sin())?);
    let half = half as i64;
    let first = x.f_narrow(3, 0, half)?;
    let second = x.f_narrow(3, half, half)?;
    let passed_through = x.f_slice(3, 2 * half, None, 1)?;
    let rotated_first = first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?;
    let rotated_second = second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?;
    Ok(Tensor::f_cat(&[rotated_first, rotated_second, passed_through], 3)?)
}

/// All cached keys or values of a sequence, `[num_keys, groups, channels]`. The first `num_unseen` are zeros: what lies
/// there may be another sequence's, and 0 times what is no number is none.
fn gather(
    stored: &Tensor,
    blocks: &Tensor,
    sequence: &SequenceSpan,
    num_unseen: usize,
) -> Result<Tensor, ModelError> {
    let num_keys = sequence.num_keys() as i64;
    let gathered = stored.f_index_select(0, blocks)?.f_flatten(0, 1)?.f_narrow(0, 0, num_keys)?;
    let _ = gathered.f_narrow(0, 0, num_unseen as i64)?.f_zero_()?;
    Ok(gathered)
}

/// `[num_keys, groups, channels]` to float32 `[groups, num_keys, channels]`.
fn by_group(stored: &Tensor) -> Result<Tensor, ModelError> {
    Ok(stored.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// [`attend`] by FlashAttention, the rows being the last of the keys.
#[cfg(feature = "cuda")]
fn flash_attend(queries: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> Result<Tensor, ModelError> {
    use torch_ext::cuda::flash::{Mask, PackedRows, Varlen, varlen_with};

    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
    let num_keys = keys.size3()?.0;
    let starts = |len: i64| to_device(&[0, len as i32], queries.device());
    let rows = queries.f_reshape([num_rows, groups * queries_per_group, channels])?;
    let attended = varlen_with(&Varlen {
        q: &rows,
        k: keys,
        v: values,
        queries: PackedRows { cu_seqlens: &starts(num_rows)?, max_len: num_rows },
        keys: PackedRows { cu_seqlens: &starts(num_keys)?, max_len: num_keys },
        used_keys: None,
        scale,
        mask: Mask::Causal,
    })?;
    Ok(attended.f_view([num_rows, groups, queries_per_group, channels])?)
}

#[cfg(not(feature = "cuda"))]
fn flash_attend(_: &Tensor, _: &Tensor, _: &Tensor, _: f64) -> Result<Tensor, ModelError> {
    Err(ModelError::NoBackend {
        backend: "flash attention",
        reason: "this program was built without feature `cuda`",
    })
}

/// [`attend`] by libtorch's `scaled_dot_product_attention`. Its causal mask starts at the first key, so rows must be either
/// all of the keys or the last one alone; chunks and drafts are refused.
fn sdpa_attend(queries: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> Result<Tensor, ModelError> {
    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
    if num_rows > 1 && num_rows != keys.size3()?.0 {
        return Err(ModelError::NoBackend {
            backend: "scaled_dot_product_attention",
            reason: "it computes whole prompts and single tokens, not parts of a sequence",
        });
    }
    let heads = groups * queries_per_group;
    let by_head = |rows: &Tensor| rows.f_transpose(0, 1)?.f_unsqueeze(0); // [1, heads, num_rows, channels]
    let rows = by_head(&queries.f_reshape([num_rows, heads, channels])?)?;
    let attended = Tensor::f_scaled_dot_product_attention(
        &rows,
        &by_head(keys)?,
        &by_head(values)?,
        None::<Tensor>,
        0.0,
        num_rows > 1,
        Some(scale),
        queries_per_group > 1,
    )?;
    let attended = attended.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_contiguous()?;
    Ok(attended.f_view([num_rows, groups, queries_per_group, channels])?)
}

/// Causal attention of one sequence's rows `[num_rows, groups, queries_per_group, channels]` over its keys and values
/// `[groups, num_keys, channels]`: float32 `[num_rows, groups, queries_per_group, channels]`. `sinks`: a score for each head
/// that counts in the softmax as that of a key without a value.
pub(crate) fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    (rule, context_len): (ScoreRule, usize),
    sinks: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
    let mut chunks = Vec::new();
    for start in (0..num_rows).step_by(QUERIES_PER_CHUNK) {
        let len = (num_rows - start).min(QUERIES_PER_CHUNK as i64);
        let num_keys = context_len as i64 + start + len;
        let rows = queries.f_narrow(0, start, len)?.f_to_kind(Kind::Float)?.f_mul_scalar(rule.scale)?;
        let rows = rows.f_permute([1, 2, 0, 3])?.f_reshape([groups, queries_per_group * len, channels])?;
        let mut scores = rows.f_matmul(&keys.f_narrow(1, 0, num_keys)?.f_transpose(1, 2)?)?;
        if let Some(softcap) = rule.softcap {
            scores = scores.f_div_scalar(softcap)?.f_tanh()?.f_mul_scalar(softcap)?;
        }
        let scores = scores.f_view([groups, queries_per_group, len, num_keys])?;
        let first_position = context_len as i64 + start;
        let mut visible =
            Tensor::f_ones([len, num_keys], (Kind::Bool, scores.device()))?.f_tril(first_position)?;
        if let Some(tokens) = rule.local_tokens {
            visible = visible.f_triu(first_position + 1 - tokens as i64)?;
        }
        let scores = scores.f_masked_fill(&visible.f_logical_not()?, f64::NEG_INFINITY)?;
        let weights = match sinks {
            None => scores.f_softmax(-1, Kind::Float)?,
            Some(sinks) => {
                let sinks = sinks.f_view([groups, queries_per_group, 1, 1])?;
                let sinks = sinks.f_expand([groups, queries_per_group, len, 1], false)?;
                let all = Tensor::f_cat(&[scores, sinks], -1)?.f_softmax(-1, Kind::Float)?;
                all.f_narrow(3, 0, num_keys)?
            }
        };
        let weights = weights.f_reshape([groups, queries_per_group * len, num_keys])?;
        let attended = weights.f_matmul(&values.f_narrow(1, 0, num_keys)?)?;
        chunks.push(attended.f_view([groups, queries_per_group, len, channels])?.f_permute([2, 0, 1, 3])?);
    }
    Ok(Tensor::f_cat(&chunks, 0)?.f_contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_that_starts_at_the_first_key_is_not_laid_over_a_part() {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, Device::Cpu)).unwrap();
        let attended = |num_rows| {
            let (keys, values) = (zeros(&[6, 1, 8]), zeros(&[6, 1, 8]));
            sdpa_attend(&zeros(&[num_rows, 1, 2, 8]), &keys, &values, 1.0)
        };
        for num_rows in [1, 6] {
            assert_eq!(attended(num_rows).unwrap().size(), [num_rows, 1, 2, 8]);
        }
        insta::assert_snapshot!(attended(3).unwrap_err(), @"the scaled_dot_product_attention backend is not available: it computes whole prompts and single tokens, not parts of a sequence");
    }
}
