//! The plain backend: every operation written with libtorch's own.
//!
//! The clear implementation that the fused one is measured against. libtorch picks kernels, and so roundings, by shape:
//! rows are therefore fed in blocks of one fixed shape, and attention goes sequence by sequence.

use nemo_format::DType;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};
use torch_ext::mkl;

use crate::attention_context::SequenceSpan;
use crate::config::{Activation, ModelConfig, Nonlinearity, Normalization};
use crate::kernels::{
    AttentionStep, HeadLayout, Ids, Kernels, Linear, LinearRole, LinearSource, Norm, WeightBytes,
};
use crate::kv_cache::{BLOCK_SIZE_TOKENS, CacheLayout, KvCache};
use crate::layers::rotary::Rotary;
use crate::{AttentionBackend, ModelError, Precision};

/// Rows in every matrix product and norm.
const ROWS_PER_BLOCK: i64 = 32;
/// Query rows whose scores exist at once: bounds the memory of a long prefill.
const QUERIES_PER_CHUNK: usize = 128;
/// Below this many elements libtorch runs an elementwise operation on one thread (`at::internal::GRAIN_SIZE`).
const SERIAL_ELEMS: i64 = 32_768;
/// No vector loop of libtorch takes more elements at once, so whole multiples leave no scalar remainder.
const VECTOR_ELEMS: i64 = 64;

/// Kernels made of libtorch operations.
#[derive(Debug)]
pub(crate) struct PlainKernels {
    precision: Precision,
    device: Device,
    attention: AttentionBackend,
}

impl PlainKernels {
    pub(crate) fn new(
        precision: Precision,
        device: Device,
        attention: AttentionBackend,
    ) -> Result<Self, ModelError> {
        mkl::check_mode()?;
        Ok(Self { precision, device, attention })
    }

    fn index(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        to_device(&ids, self.device)
    }
}

/// A list of the host on `device`; a GPU is not waited for.
pub(crate) fn to_device<T: Element>(values: &[T], device: Device) -> Result<Tensor, ModelError> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Ok(torch_ext::cuda::send(values, index)?),
        _ => Ok(Tensor::f_from_slice(values)?.f_to_device(device)?),
    }
}

/// Copies stored numbers into a tensor of the given kind.
pub(crate) fn tensor_from_bytes(weight: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
    let shape: Vec<i64> = weight.shape.iter().map(|&dim| dim as i64).collect();
    Ok(Tensor::f_from_data_size(weight.bytes, &shape, stored_kind(weight.dtype))?.f_to_kind(kind)?)
}

/// libtorch's name of a stored type.
pub(crate) fn stored_kind(dtype: DType) -> Kind {
    match dtype {
        DType::F64 => Kind::Double,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        _ => Kind::Float,
    }
}

fn tensors(linear: &Linear) -> Result<(&Tensor, Option<&Tensor>), ModelError> {
    match linear {
        Linear::Tensors { weight, bias } => Ok((weight, bias.as_ref())),
        Linear::Packed(_) => {
            Err(ModelError::NoBackend { backend: "plain", reason: "the weights are packed for another" })
        }
    }
}

/// Applies `op` to blocks of exactly `rows_per_block` rows, the last one filled up with zeros.
fn by_row_blocks(
    x: &Tensor,
    rows_per_block: i64,
    op: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
) -> Result<Tensor, ModelError> {
    let (num_rows, _) = x.size2()?;
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < num_rows {
        let len = rows_per_block.min(num_rows - start);
        let rows = x.f_narrow(0, start, len)?;
        if len == rows_per_block {
            blocks.push(op(&rows.f_contiguous()?)?);
        } else {
            let padded = rows.f_constant_pad_nd([0, 0, 0, rows_per_block - len])?;
            blocks.push(op(&padded)?.f_narrow(0, 0, len)?);
        }
        start += len;
    }
    Ok(Tensor::f_cat(&blocks, 0)?)
}

/// Rows that an elementwise operation may take at once so that an element's bits do not depend on its row: either
/// every block runs on one thread without a scalar remainder, or a block is a single row.
fn rows_per_elementwise_block(num_columns: i64) -> i64 {
    let rows = (SERIAL_ELEMS / num_columns.max(1)).min(ROWS_PER_BLOCK);
    let rows = if rows >= 1 { 1 << rows.ilog2() } else { 1 };
    if rows * num_columns % VECTOR_ELEMS == 0 { rows } else { 1 }
}

impl Kernels for PlainKernels {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn tensor(&self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        Ok(tensor_from_bytes(source, kind)?.f_to_device(self.device)?)
    }

    fn pack_linear(&self, source: LinearSource<'_>, _role: LinearRole) -> Result<Linear, ModelError> {
        let kind = self.precision.kind();
        let weight = self.tensor(source.weight, kind)?;
        let bias = source.bias.map(|bias| self.tensor(bias, kind)).transpose()?;
        Ok(Linear::Tensors { weight, bias })
    }

    fn new_cache(&self, num_blocks: usize, config: &ModelConfig) -> Result<KvCache, ModelError> {
        let block_shape =
            vec![BLOCK_SIZE_TOKENS as i64, config.num_query_groups as i64, config.kv_channels as i64];
        let layout = CacheLayout {
            num_layers: config.num_layers,
            key_block_shape: block_shape.clone(),
            value_block_shape: block_shape,
            kind: self.precision.kind(),
            device: self.device,
        };
        KvCache::new(num_blocks, &layout)
    }

    fn embedding(&self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        Ok(table.f_index_select(0, &self.index(ids.on_host("plain")?)?)?)
    }

    fn tied_embedding(&self, ids: Ids<'_>, output: &Linear) -> Result<Tensor, ModelError> {
        self.embedding(ids, tensors(output)?.0)
    }

    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        by_row_blocks(x, ROWS_PER_BLOCK, |rows| {
            let rows = rows.f_to_kind(Kind::Float)?;
            let normalized = match norm.normalization {
                Normalization::LayerNorm => rows.f_layer_norm(
                    norm.gain.size(),
                    Some(&norm.gain),
                    norm.bias.as_ref(),
                    norm.epsilon,
                    false,
                )?,
                Normalization::RmsNorm => {
                    let mean_square = rows.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
                    let scale = mean_square.f_add_scalar(norm.epsilon)?.f_rsqrt()?;
                    rows.f_mul(&scale)?.f_mul(&norm.gain)?
                }
            };
            Ok(normalized.f_to_kind(self.precision.kind())?)
        })
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        let (weight, bias) = tensors(linear)?;
        by_row_blocks(x, ROWS_PER_BLOCK, |rows| Ok(rows.f_linear(weight, bias)?))
    }

    fn linear_add(&self, x: &Tensor, linear: &Linear, residual: &mut Tensor) -> Result<(), ModelError> {
        let _ = residual.f_add_(&self.linear(x, linear)?)?;
        Ok(())
    }

    fn linear_activate(
        &self,
        x: &Tensor,
        fc1: &Linear,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        let x = self.linear(x, fc1)?;
        let (_, num_columns) = x.size2()?;
        let ffn = if activation.gated { num_columns / 2 } else { num_columns };
        let gate = x.f_narrow(1, 0, ffn)?;
        let activated = by_row_blocks(&gate, rows_per_elementwise_block(ffn), |rows| {
            nonlinearity(rows, activation.nonlinearity)
        })?;
        if activation.gated { Ok(activated.f_mul(&x.f_narrow(1, ffn, ffn)?)?) } else { Ok(activated) }
    }

    fn attention(
        &self,
        qkv: &Tensor,
        step: &AttentionStep<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let HeadLayout { num_attention_heads, num_query_groups, kv_channels } = step.heads;
        let (num_tokens, _) = qkv.size2()?;
        let (groups, channels) = (num_query_groups as i64, kv_channels as i64);
        let queries_per_group = num_attention_heads as i64 / groups;
        let grouped = qkv.f_view([num_tokens, groups, queries_per_group + 2, channels])?;
        let mut queries_and_keys = grouped.f_narrow(2, 0, queries_per_group + 1)?.f_to_kind(Kind::Float)?;
        if let Some(rotary) = step.rotary {
            queries_and_keys = rotate(&queries_and_keys, rotary, &step.context.positions, self.device)?;
        }
        // Rounded here so that a row sees the same numbers whether its keys come from the cache or from this step.
        let queries_and_keys = queries_and_keys.f_to_kind(self.precision.kind())?;
        let queries = queries_and_keys.f_narrow(2, 0, queries_per_group)?;
        let keys = queries_and_keys.f_select(2, queries_per_group)?;
        let values = grouped.f_select(2, queries_per_group + 1)?;

        let layer = cache.layer(step.layer_idx)?;
        let slots = self.index(&step.context.slots)?;
        let _ = layer.keys.f_view([-1, groups, channels])?.f_index_copy_(0, &slots, &keys)?;
        let _ = layer.values.f_view([-1, groups, channels])?.f_index_copy_(0, &slots, &values)?;

        let mut outputs = Vec::with_capacity(step.context.sequences.len());
        for sequence in &step.context.sequences {
            let blocks = self.index(step.context.blocks(sequence))?;
            let keys = gather(&layer.keys, &blocks, sequence)?;
            let values = gather(&layer.values, &blocks, sequence)?;
            let rows = queries.f_narrow(0, sequence.query_start as i64, sequence.query_len as i64)?;
            outputs.push(match self.attention {
                AttentionBackend::Flash => flash_attend(&rows, &keys, &values)?,
                AttentionBackend::Fused => fused_attend(&rows, &keys, &values)?,
                AttentionBackend::Unfused => {
                    attend(&rows, &by_group(&keys)?, &by_group(&values)?, sequence.context_len)?
                }
            });
        }
        let output = Tensor::f_cat(&outputs, 0)?;
        Ok(output
            .f_view([num_tokens, num_attention_heads as i64 * channels])?
            .f_to_kind(self.precision.kind())?)
    }

    fn logits(&self, hidden: &Tensor, output: &Linear) -> Result<Tensor, ModelError> {
        Ok(self.linear(hidden, output)?.f_to_kind(Kind::Float)?)
    }
}

fn nonlinearity(x: &Tensor, nonlinearity: Nonlinearity) -> Result<Tensor, ModelError> {
    Ok(match nonlinearity {
        Nonlinearity::Gelu => x.f_gelu("none")?,
        Nonlinearity::GeluTanh => x.f_gelu("tanh")?,
        Nonlinearity::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(x)?,
        Nonlinearity::Silu => x.f_silu()?,
        Nonlinearity::Relu => x.f_relu()?,
        Nonlinearity::SquaredRelu => x.f_relu()?.f_square()?,
    })
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

/// All cached keys or values of a sequence, `[num_keys, groups, channels]`.
fn gather(stored: &Tensor, blocks: &Tensor, sequence: &SequenceSpan) -> Result<Tensor, ModelError> {
    let num_keys = (sequence.context_len + sequence.query_len) as i64;
    Ok(stored.f_index_select(0, blocks)?.f_flatten(0, 1)?.f_narrow(0, 0, num_keys)?)
}

/// `[num_keys, groups, channels]` to float32 `[groups, num_keys, channels]`.
fn by_group(stored: &Tensor) -> Result<Tensor, ModelError> {
    Ok(stored.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// [`attend`] by FlashAttention, the rows being the last of the keys.
#[cfg(feature = "cuda")]
fn flash_attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, ModelError> {
    use torch_ext::cuda::flash::{Keys, Mask, varlen_with};

    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
    let num_keys = keys.size3()?.0;
    let starts = |len: i64| to_device(&[0, len as i32], queries.device());
    let rows = queries.f_reshape([num_rows, groups * queries_per_group, channels])?;
    let attended = varlen_with(
        [&rows, keys, values],
        (&starts(num_rows)?, num_rows),
        &Keys { cu_seqlens: &starts(num_keys)?, max_len: num_keys, used: None },
        1.0 / (channels as f64).sqrt(),
        Mask::Causal,
    )?;
    Ok(attended.f_view([num_rows, groups, queries_per_group, channels])?)
}

#[cfg(not(feature = "cuda"))]
fn flash_attend(_: &Tensor, _: &Tensor, _: &Tensor) -> Result<Tensor, ModelError> {
    Err(ModelError::NoBackend {
        backend: "flash attention",
        reason: "this program was built without feature `cuda`",
    })
}

/// [`attend`] by libtorch's `scaled_dot_product_attention`. Rows are either all of the keys or the last one alone, so
/// that its causal mask, which starts at the first key, is right.
fn fused_attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, ModelError> {
    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
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
        Some(1.0 / (channels as f64).sqrt()),
        queries_per_group > 1,
    )?;
    let attended = attended.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_contiguous()?;
    Ok(attended.f_view([num_rows, groups, queries_per_group, channels])?)
}

/// Causal attention of one sequence's rows `[num_rows, groups, queries_per_group, channels]` over its keys and values
/// `[groups, num_keys, channels]`: float32 `[num_rows, groups, queries_per_group, channels]`.
pub(crate) fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    context_len: usize,
) -> Result<Tensor, ModelError> {
    let (num_rows, groups, queries_per_group, channels) = queries.size4()?;
    let scale = 1.0 / (channels as f64).sqrt();
    let mut chunks = Vec::new();
    for start in (0..num_rows).step_by(QUERIES_PER_CHUNK) {
        let len = (num_rows - start).min(QUERIES_PER_CHUNK as i64);
        let num_keys = context_len as i64 + start + len;
        let rows = queries.f_narrow(0, start, len)?.f_to_kind(Kind::Float)?.f_mul_scalar(scale)?;
        let rows = rows.f_permute([1, 2, 0, 3])?.f_reshape([groups, queries_per_group * len, channels])?;
        let scores = rows.f_matmul(&keys.f_narrow(1, 0, num_keys)?.f_transpose(1, 2)?)?;
        let scores = scores.f_view([groups, queries_per_group, len, num_keys])?;
        let visible = Tensor::f_ones([len, num_keys], (Kind::Bool, scores.device()))?
            .f_tril(context_len as i64 + start)?;
        let scores = scores.f_masked_fill(&visible.f_logical_not()?, f64::NEG_INFINITY)?;
        let weights =
            scores.f_softmax(-1, Kind::Float)?.f_view([groups, queries_per_group * len, num_keys])?;
        let attended = weights.f_matmul(&values.f_narrow(1, 0, num_keys)?)?;
        chunks.push(attended.f_view([groups, queries_per_group, len, channels])?.f_permute([2, 0, 1, 3])?);
    }
    Ok(Tensor::f_cat(&chunks, 0)?.f_contiguous()?)
}
