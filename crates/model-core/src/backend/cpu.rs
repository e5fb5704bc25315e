//! The fused backend on the CPU: the in-house CPU kernels (`cpu_kernels`).
//!
//! A row is the same sequence of operations in any batch, so nothing here cuts batches into fixed shapes.

mod attention;
mod linear;

use cpu_kernels::{CpuKernels, HeadShape, Isa, Layout, MAX_HEAD_DIM, NormParams, SourceDType, StoredLinear};
use model_spec::{AttentionSpec, HeadLayout, KvFormat, KvGroup, Numerics};
use tch::{Kind, Tensor};
use torch_ext::view;

pub(crate) use self::attention::CpuAttention;
pub(crate) use self::linear::CpuLinear;
use super::plain::tensor_from_bytes;
use crate::ModelError;
use crate::attention_context::AttentionContext;
use crate::fp8::Fp8Rows;
use crate::ids::Ids;
use crate::kinds::{StoredFloat, TensorFormat};
use crate::kv_cache::{KvCache, KvPool, packed_shape};
use crate::layers::rotary::RotaryTables;
use crate::model_ranks::ModelRanks;
use crate::ops::{
    Experts, HeadNorms, LinearRole, LinearSource, Loader, Norm, StepState, StoredLinearWeight, WeightBytes,
    scale_f32,
};
use crate::ops::{Router, SharedExpert};
use crate::parallel::HostRanks;

/// The CPU kernels with their threads and scratch memory.
#[derive(Debug)]
pub(crate) struct CpuState {
    numerics: Numerics,
    kernels: CpuKernels,
    rotary: RotaryTables,
    ranks: HostRanks,
}

impl StepState for CpuState {
    type Linear = CpuLinear;
    type Attention = CpuAttention;
    type Experts = ();

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn new_pool(&mut self, group: &KvGroup, num_blocks: usize) -> Result<KvPool, ModelError> {
        let shape = packed_shape(group, num_blocks);
        let Numerics { compute, kv, .. } = self.numerics;
        let packed = self.kernels.new_kv(shape, kv.unpacked(compute).kind())?;
        Ok(KvPool::Packed(match kv {
            KvFormat::Float(_) => packed,
            KvFormat::Fp8 => packed.in_e4m3(),
        }))
    }

    fn plan(
        &mut self,
        _tokens: &[u32],
        step: &mut AttentionContext,
        _cache: &KvCache,
    ) -> Result<(), ModelError> {
        self.rotary.grow(step.max_context_len());
        Ok(())
    }

    fn embedding(&mut self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        Ok(CpuKernels::select_rows(table, ids.on_host("fused")?.iter().map(|&id| id as usize))?)
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        Ok(self.kernels.norm(x, &params_of(norm)?)?)
    }

    fn norm_heads(
        &mut self,
        qkv: &mut Tensor,
        heads: HeadLayout,
        norms: &HeadNorms,
    ) -> Result<(), ModelError> {
        let [query, key] = [params_of(&norms.query)?, params_of(&norms.key)?];
        Ok(self.kernels.norm_heads(qkv, heads, &query, &key)?)
    }

    fn ranks(&mut self) -> &mut HostRanks {
        &mut self.ranks
    }
}

fn params_of(norm: &Norm) -> Result<NormParams<'_>, ModelError> {
    Ok(NormParams {
        normalization: norm.normalization,
        weight: view::f32_slice(&norm.gain, "norm weight")?,
        bias: norm.bias.as_ref().map_or(Ok(&[][..]), |bias| view::f32_slice(bias, "norm bias"))?,
        epsilon: norm.epsilon as f32,
    })
}

/// Packs weights for the CPU kernels, with their own threads.
#[derive(Debug)]
pub(crate) struct CpuLoader {
    state: CpuState,
}

impl CpuLoader {
    /// Kernels of an instruction set on all processors that this process may use, for sequences of up to
    /// `max_seq_len_tokens`.
    pub(crate) fn new(
        numerics: Numerics,
        isa: Isa,
        max_seq_len_tokens: usize,
        ranks: Option<Box<dyn ModelRanks>>,
    ) -> Result<Self, ModelError> {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let kernels = CpuKernels::with_isa(num_threads, isa)?;
        let rotary = RotaryTables::new(max_seq_len_tokens);
        Ok(Self { state: CpuState { numerics, kernels, rotary, ranks: HostRanks(ranks) } })
    }
}

impl CpuLoader {
    /// Quantizes a weight, rounded to what is computed in, where it is not stored so, and packs its numbers.
    fn fp8_linear(&mut self, source: LinearSource<'_>) -> Result<CpuLinear, ModelError> {
        let kind = self.state.numerics.compute.kind();
        let rows = match source.weight {
            StoredLinearWeight::Float(weight) => Fp8Rows::of(&tensor_from_bytes(weight, kind)?)?,
            StoredLinearWeight::Fp8(weight) => Fp8Rows::stored(weight)?,
        };
        let (out_features, in_features) = rows.values.size2()?;
        let values = rows.values.f_to_kind(Kind::Float)?;
        let stored = StoredLinear {
            weight: view::bytes(&values, "weight")?,
            bias: None,
            dtype: SourceDType::F32,
            out_features: out_features as usize,
            in_features: in_features as usize,
        };
        Ok(CpuLinear::Fp8 {
            values: self.state.kernels.pack(&stored, Layout::Plain, kind)?,
            scales: rows.scales,
            bias: source.bias.map(|bias| tensor_from_bytes(bias, kind)).transpose()?,
        })
    }
}

impl Loader for CpuLoader {
    type State = CpuState;

    fn numerics(&self) -> Numerics {
        self.state.numerics
    }

    fn tensor(&mut self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        tensor_from_bytes(source, kind)
    }

    fn linear(&mut self, source: LinearSource<'_>, role: LinearRole) -> Result<CpuLinear, ModelError> {
        let numerics = self.state.numerics;
        let of_weight = match source.weight {
            StoredLinearWeight::Float(weight) if !role.is_fp8(numerics) => weight,
            _ => return self.fp8_linear(source),
        };
        let layout = match role {
            LinearRole::FirstOfMlp(activation) if activation.gated => Layout::Gated,
            _ => Layout::Plain,
        };
        let &[out_features, in_features] = of_weight.shape else {
            return Err(ModelError::NoBackend {
                backend: "fused",
                reason: "a linear weight is not a matrix",
            });
        };
        // Weight and bias are one type to the kernels; a bias of another becomes float32 together with the weight.
        let same = source.bias.is_none_or(|bias| bias.dtype == of_weight.dtype);
        let (mut weight, mut bias) = (of_weight.bytes, source.bias.map(|bias| bias.bytes));
        let mut dtype = source_dtype(of_weight.dtype);
        let widened;
        if !same {
            let wide = |part| tensor_from_bytes(part, Kind::Float);
            widened = (wide(of_weight)?, source.bias.map(wide).transpose()?);
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
        let kind = role.kind(numerics);
        Ok(CpuLinear::Float(self.state.kernels.pack(&stored, layout, kind)?))
    }

    fn attention(&mut self, layer_idx: usize, spec: &AttentionSpec) -> Result<CpuAttention, ModelError> {
        let head_dim = spec.heads.kv_channels;
        if head_dim > MAX_HEAD_DIM {
            return Err(ModelError::Unsupported {
                key: "kv_channels",
                value: head_dim.to_string(),
                feature: "a larger head than the fused kernels take",
                needs: "the plain backend (`trt_llm.enable: false`)",
            });
        }
        Ok(CpuAttention {
            layer_idx,
            heads: HeadShape {
                num_attention_heads: spec.heads.num_attention_heads,
                num_query_groups: spec.heads.num_query_groups,
                head_dim,
                scale: scale_f32(spec),
                softcap: spec.softcap.map(|softcap| softcap as f32),
                window: spec.local_tokens,
            },
            rotary: spec.rotary.map(|config| self.state.rotary.add(&config)),
            sinks: None,
        })
    }

    fn group(
        &mut self,
        _router: &Router<CpuState>,
        _experts: &Experts<CpuLinear>,
        _shared: Option<&SharedExpert<CpuState>>,
    ) -> Result<(), ModelError> {
        Ok(())
    }

    fn finish(self) -> Result<CpuState, ModelError> {
        Ok(self.state)
    }
}

fn source_dtype(dtype: StoredFloat) -> SourceDType {
    match dtype {
        StoredFloat::F64 => SourceDType::F64,
        StoredFloat::F32 => SourceDType::F32,
        StoredFloat::F16 => SourceDType::F16,
        StoredFloat::BF16 => SourceDType::BF16,
    }
}
