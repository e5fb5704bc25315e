//! Weights on their way to a GPU.

use cuda_kernels::{E4M3, KernelConfig, ModelKernels, ScoreKind};
use cuda_runtime::{Device, Uploader, kernel_cache};
use model_spec::{Activation, AttentionSpec, KvFormat, MoeSpec, Nonlinearity, Numerics, ShardPlace};
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use super::linear::CudaWeight;
use super::ranks::DeviceRanks;
use super::stages::DeviceStages;
use super::{CudaAttention, CudaExperts, CudaLinear, CudaState, HeadKernels, HeadShape};
use crate::ModelError;
use crate::fp8::{Fp8Bytes, Fp8Rows};
use crate::kinds::TensorFormat;
use crate::layers::rotary::RotaryTables;
use crate::model_ranks::{Exchange, ModelRanks, Reduction};
use crate::ops::{
    Experts, LinearRole, LinearSource, Loader, SharedExperts, StoredLinearWeight, WeightBytes, no_sinks,
    scale_f32, split_pieces,
};
use crate::ops::{Router, SharedExpert};
use crate::parallel::HostRanks;

/// A part of a model among the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joining<'a> {
    pub(crate) place: &'a ShardPlace,
    pub(crate) reduction: Reduction,
    pub(crate) exchange: Exchange,
    /// Of the whole model.
    pub(crate) num_layers: usize,
    pub(crate) hidden_size: usize,
}

/// Uploads weights and compiles kernels; its page-locked memory goes when the model is loaded.
#[derive(Debug)]
pub(crate) struct CudaLoader {
    pub(super) state: CudaState,
    uploader: Uploader,
    max_seq_len_tokens: usize,
    pub(super) shared_experts: SharedExperts,
}

impl CudaLoader {
    /// For sequences of up to `max_seq_len_tokens` on this GPU.
    pub(crate) fn new(
        numerics: Numerics,
        device_idx: usize,
        max_seq_len_tokens: usize,
    ) -> Result<Self, ModelError> {
        let device = Device::open(device_idx)?;
        blas::prefer_invariant()?;
        let state = CudaState {
            numerics,
            device,
            heads: Vec::new(),
            max_small_batch: 0,
            experts: Vec::new(),
            rotary: RotaryTables::new(max_seq_len_tokens),
            device_rotary: Vec::new(),
            ranks: HostRanks::default(),
            device_ranks: None,
            stages: DeviceStages::default(),
        };
        let shared_experts = SharedExperts { reduction: Reduction::Chain, tp_size: 1, has_some: false };
        Ok(Self { state, uploader: Uploader::new(&device)?, max_seq_len_tokens, shared_experts })
    }

    /// The same for a part of a model, which shares memory with the ranks of the others.
    pub(crate) fn join(
        mut self,
        mut others: Option<Box<dyn ModelRanks>>,
        joining: &Joining<'_>,
    ) -> Result<Self, ModelError> {
        if joining.reduction == Reduction::Tree {
            self.state.device_ranks = Some(DeviceRanks::join(&self.state, others.as_deref_mut(), joining)?);
        }
        self.state.stages = DeviceStages::join(&self.state, others.as_deref_mut(), joining)?;
        self.state.ranks = HostRanks(others);
        self.shared_experts = SharedExperts {
            reduction: joining.reduction,
            tp_size: joining.place.tp_size as usize,
            has_some: joining.place.has_some_experts(),
        };
        Ok(self)
    }

    /// Index of the kernels for such attention, which are compiled, or taken from the cache on disk.
    fn heads(&mut self, shape: HeadShape) -> Result<usize, ModelError> {
        let CudaState { numerics, device, heads: known, .. } = &mut self.state;
        if let Some(idx) = known.iter().position(|other| other.shape == shape) {
            return Ok(idx);
        }
        let HeadShape { heads, is_capped, local_tokens } = shape;
        let config = KernelConfig {
            kind: numerics.compute.kind(),
            head_dim: heads.kv_channels as u32,
            queries_per_group: heads.queries_per_group() as u32,
            has_fp8_kv: numerics.kv == KvFormat::Fp8,
            scores: ScoreKind { is_capped, is_local: local_tokens.is_some() },
        };
        let kernels = ModelKernels::load(device, &config, kernel_cache().as_deref())?;
        known.push(HeadKernels { shape, kernels, layers: Vec::new(), plans: Vec::new() });
        Ok(known.len() - 1)
    }
}

impl CudaLoader {
    /// A weight that is stored in FP8: half the bytes to bring over, and nothing to compute.
    fn stored_fp8(&mut self, weight: Fp8Bytes<'_>) -> Result<Fp8Rows, ModelError> {
        let shape: Vec<i64> = weight.shape.iter().map(|&dim| dim as i64).collect();
        let values = self.state.empty(&shape, E4M3)?;
        self.uploader.upload(weight.numbers, &values)?;
        let scales = Tensor::f_from_slice(weight.scales)?.f_to_device(values.device())?;
        Ok(Fp8Rows { values, scales })
    }
}

impl Loader for CudaLoader {
    type State = CudaState;

    fn numerics(&self) -> Numerics {
        self.state.numerics
    }

    fn tensor(&mut self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        let shape: Vec<i64> = source.shape.iter().map(|&dim| dim as i64).collect();
        let stored = self.state.empty(&shape, source.dtype.kind())?;
        self.uploader.upload(source.bytes, &stored)?;
        // Converted there: the GPU is faster at it, and fewer bytes may have to be brought over.
        Ok(stored.f_to_kind(kind)?)
    }

    fn linear(&mut self, source: LinearSource<'_>, role: LinearRole) -> Result<CudaLinear, ModelError> {
        let numerics = self.numerics();
        if let LinearRole::FirstOfMlp(Activation { nonlinearity: Nonlinearity::ClampedQuickGelu, .. }) = role
        {
            return Err(ModelError::Unsupported {
                key: "activation",
                value: "quick-geglu".to_owned(),
                feature: "an MLP with limits on a GPU with the fast engine",
                needs: "the plain backend (`trt_llm.enable: false`), or a CPU",
            });
        }
        let kind = role.kind(numerics);
        let weight = match source.weight {
            StoredLinearWeight::Fp8(stored) => CudaWeight::Fp8(self.stored_fp8(stored)?),
            StoredLinearWeight::Float(weight) => {
                let weight = self.tensor(weight, kind)?;
                match role.is_fp8(numerics) {
                    true => CudaWeight::Fp8(self.state.fp8_rows(&weight)?),
                    false => CudaWeight::Float(weight),
                }
            }
        };
        if let CudaWeight::Fp8(rows) = &weight {
            let (num_out, num_in) = rows.values.size2()?;
            self.state.kernels()?.load_fp8(num_out, num_in)?;
        }
        let bias = source.bias.map(|bias| self.tensor(bias, kind)).transpose()?;
        Ok(CudaLinear { weight, bias })
    }

    fn pieces(&mut self, source: LinearSource<'_>, num_pieces: usize) -> Result<Vec<CudaLinear>, ModelError> {
        // One batched GEMM has all pieces; FP8 has a scale for each.
        match LinearRole::Plain.is_fp8(self.numerics()) {
            true => split_pieces(self, source, num_pieces),
            false => Ok(vec![self.linear(source, LinearRole::Plain)?]),
        }
    }

    fn attention(&mut self, layer_idx: usize, spec: &AttentionSpec) -> Result<CudaAttention, ModelError> {
        if spec.has_sinks {
            return Err(no_sinks());
        }
        // A window as long as the longest sequence is none.
        let local_tokens = spec.local_tokens.filter(|&tokens| tokens < self.max_seq_len_tokens);
        let shape = HeadShape { heads: spec.heads, is_capped: spec.softcap.is_some(), local_tokens };
        let heads_idx = self.heads(shape)?;
        if let Some(heads) = self.state.heads.get_mut(heads_idx) {
            heads.layers.push(layer_idx);
        }
        Ok(CudaAttention {
            layer_idx,
            heads: spec.heads,
            scale: spec.scale,
            scale_f32: scale_f32(spec),
            softcap: spec.softcap,
            local_tokens,
            heads_idx,
            rotary: spec.rotary.map(|config| self.state.rotary.add(&config)),
        })
    }

    fn check_experts(&self, spec: &MoeSpec, hidden_size: usize) -> Result<(), ModelError> {
        self.check_moe(spec, hidden_size)
    }

    fn group(
        &mut self,
        router: &Router<CudaState>,
        experts: &Experts<CudaLinear>,
        shared: Option<&SharedExpert<CudaState>>,
    ) -> Result<CudaExperts, ModelError> {
        self.group_experts(router, experts, shared)
    }

    fn finish(self) -> Result<CudaState, ModelError> {
        Ok(self.state)
    }
}
