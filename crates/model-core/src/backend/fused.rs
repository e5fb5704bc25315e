//! The fused backend: the project's CPU kernels (`cpu_kernels`).
//!
//! A row is the same sequence of operations in any batch, so nothing here cuts batches into fixed shapes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cpu_kernels::{
    CpuKernels, HeadShape, KvShape, Layout, NormKind, NormParams, PackedLinear, RotaryTable, SequenceSpan,
    SourceDType, StoredLinear,
};
use nemo_format::DType;
use tch::{Kind, Tensor};
use torch_ext::view;

use super::plain::tensor_from_bytes;
use crate::config::{Activation, ModelConfig, Nonlinearity, Normalization};
use crate::kernels::{AttentionStep, Ids, Kernels, Linear, LinearRole, LinearSource, Norm, WeightBytes};
use crate::kv_cache::KvCache;
use crate::{ModelError, Precision};

/// The CPU kernels, one call at a time.
#[derive(Debug)]
pub(crate) struct FusedKernels {
    precision: Precision,
    kernels: Mutex<CpuKernels>,
}

impl FusedKernels {
    /// Kernels on all processors that this process may use.
    pub(crate) fn new(precision: Precision) -> Result<Self, ModelError> {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { precision, kernels: Mutex::new(CpuKernels::new(num_threads)?) })
    }

    fn kernels(&self) -> MutexGuard<'_, CpuKernels> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn packed(linear: &Linear) -> Result<&PackedLinear, ModelError> {
    match linear {
        Linear::Packed(packed) => Ok(packed),
        Linear::Tensors { .. } => {
            Err(ModelError::NoBackend { backend: "fused", reason: "the weights are not packed for it" })
        }
    }
}

fn source_dtype(dtype: DType) -> SourceDType {
    match dtype {
        DType::F64 => SourceDType::F64,
        DType::F16 => SourceDType::F16,
        DType::BF16 => SourceDType::BF16,
        _ => SourceDType::F32,
    }
}

fn function(activation: Activation) -> cpu_kernels::Nonlinearity {
    match activation.nonlinearity {
        Nonlinearity::Gelu => cpu_kernels::Nonlinearity::Gelu,
        Nonlinearity::GeluTanh => cpu_kernels::Nonlinearity::GeluTanh,
        Nonlinearity::QuickGelu => cpu_kernels::Nonlinearity::QuickGelu,
        Nonlinearity::Silu => cpu_kernels::Nonlinearity::Silu,
        Nonlinearity::Relu => cpu_kernels::Nonlinearity::Relu,
        Nonlinearity::SquaredRelu => cpu_kernels::Nonlinearity::SquaredRelu,
    }
}

impl Kernels for FusedKernels {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn tensor(&self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        tensor_from_bytes(source, kind)
    }

    fn pack_linear(&self, source: LinearSource<'_>, role: LinearRole) -> Result<Linear, ModelError> {
        let layout = match role {
            LinearRole::FirstOfMlp(activation) if activation.gated => Layout::Gated,
            _ => Layout::Plain,
        };
        let &[out_features, in_features] = source.weight.shape else {
            return Err(ModelError::NoBackend {
                backend: "fused",
                reason: "a linear weight is not a matrix",
            });
        };
        // Weight and bias are one type to the kernels; a bias of another becomes float32 together with the weight.
        let same = source.bias.is_none_or(|bias| bias.dtype == source.weight.dtype);
        let (mut weight, mut bias) = (source.weight.bytes, source.bias.map(|bias| bias.bytes));
        let mut dtype = source_dtype(source.weight.dtype);
        let widened;
        if !same {
            let wide = |part| tensor_from_bytes(part, Kind::Float);
            widened = (wide(source.weight)?, source.bias.map(wide).transpose()?);
            weight = view::bytes(&widened.0, "weight")?;
            bias = widened.1.as_ref().map(|bias| view::bytes(bias, "bias")).transpose()?;
            dtype = SourceDType::F32;
        }
        let stored = StoredLinear {
            weight,
            bias,
            dtype,
            out_features: out_features as usize,
            in_features: in_features as usize,
        };
        Ok(Linear::Packed(self.kernels().pack(&stored, layout, self.precision.kind())?))
    }

    fn new_cache(&self, num_blocks: usize, config: &ModelConfig) -> Result<KvCache, ModelError> {
        let shape = KvShape {
            num_layers: config.num_layers,
            num_blocks,
            num_query_groups: config.num_query_groups,
            head_dim: config.kv_channels,
        };
        Ok(KvCache::packed(self.kernels().new_kv(shape, self.precision.kind())?))
    }

    fn embedding(&self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        Ok(CpuKernels::select_rows(table, ids.on_host("fused")?.iter().map(|&id| id as usize))?)
    }

    fn tied_embedding(&self, ids: Ids<'_>, output: &Linear) -> Result<Tensor, ModelError> {
        Ok(CpuKernels::select_outputs(packed(output)?, ids.on_host("fused")?.iter().map(|&id| id as usize))?)
    }

    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        let params = NormParams {
            kind: match norm.normalization {
                Normalization::LayerNorm => NormKind::LayerNorm,
                Normalization::RmsNorm => NormKind::RmsNorm,
            },
            weight: view::f32_slice(&norm.gain, "norm weight")?,
            bias: norm.bias.as_ref().map_or(Ok(&[][..]), |bias| view::f32_slice(bias, "norm bias"))?,
            epsilon: norm.epsilon as f32,
        };
        Ok(self.kernels().norm(x, &params)?)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        Ok(self.kernels().linear(x, packed(linear)?)?)
    }

    fn linear_add(&self, x: &Tensor, linear: &Linear, residual: &mut Tensor) -> Result<(), ModelError> {
        Ok(self.kernels().linear_add(x, packed(linear)?, residual)?)
    }

    fn linear_activate(
        &self,
        x: &Tensor,
        fc1: &Linear,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        Ok(self.kernels().linear_activate(x, packed(fc1)?, function(activation))?)
    }

    fn attention(
        &self,
        qkv: &Tensor,
        step: &AttentionStep<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let sequences: Vec<SequenceSpan<'_>> = step
            .context
            .sequences
            .iter()
            .map(|sequence| SequenceSpan {
                query_start: sequence.query_start,
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                block_table: step.context.blocks(sequence),
            })
            .collect();
        let rotary = step.rotary.map_or(RotaryTable { cos: &[], sin: &[], rotary_dim: 0 }, |rotary| {
            RotaryTable { cos: rotary.cos(), sin: rotary.sin(), rotary_dim: 2 * rotary.half_dims() }
        });
        let attention = cpu_kernels::AttentionStep {
            heads: HeadShape {
                num_attention_heads: step.heads.num_attention_heads,
                num_query_groups: step.heads.num_query_groups,
                head_dim: step.heads.kv_channels,
                scale: 1.0 / (step.heads.kv_channels as f32).sqrt(),
            },
            rotary,
            sequences: &sequences,
            layer_idx: step.layer_idx,
        };
        let cache = cache
            .packed_mut()
            .ok_or(ModelError::NoBackend { backend: "fused", reason: "the KV cache is not in its layout" })?;
        Ok(self.kernels().attention(qkv, &attention, cache)?)
    }

    fn logits(&self, hidden: &Tensor, output: &Linear) -> Result<Tensor, ModelError> {
        Ok(self.kernels().linear_f32(hidden, packed(output)?)?)
    }
}
