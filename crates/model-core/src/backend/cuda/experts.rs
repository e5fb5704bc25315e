//! Mixtures of experts on a GPU: the router, all experts at once and their sum, without a word from the host.

use cuda_kernels::{KernelConfig, MoeKernels, MoeWeights, RunMoe, ScoreKind};
use cuda_runtime::kernel_cache;
use model_spec::{Activation, MoeSpec};
use tch::Tensor;

use super::linear::{CudaWeight, gating};
use super::{CudaLinear, CudaLoader, CudaState};
use crate::ModelError;
use crate::kinds::TensorFormat;
use crate::ops::{Experts, Moe, Router, SharedExpert, refuse_experts_on_gpu};
use crate::upload::to_device;

/// What the kernels need of a layer with experts; the experts' weights are the linear layers'.
#[derive(Debug)]
pub(crate) struct CudaExperts {
    weights: MoeWeights,
    kernels_idx: usize,
}

/// The kernels for experts with this activation.
#[derive(Debug)]
pub(super) struct ExpertKernels {
    activation: Activation,
    kernels: MoeKernels,
}

impl CudaLoader {
    /// Whether the kernels compute a layer.
    pub(super) fn check_moe(&self, spec: &MoeSpec, hidden_size: usize) -> Result<(), ModelError> {
        refuse_experts_on_gpu(spec, hidden_size, self.state.numerics, self.state.device_ranks.is_some())
    }

    /// Puts together what the kernels need.
    pub(super) fn group_experts(
        &mut self,
        router: &Router<CudaState>,
        experts: &Experts<CudaLinear>,
        shared: Option<&SharedExpert<CudaState>>,
    ) -> Result<CudaExperts, ModelError> {
        let device = self.state.tch_device();
        let fc2 = experts.experts.iter().flat_map(|expert| &expert.fc2);
        let ffn = match fc2.clone().next() {
            Some(linear) => linear.weight.values().size2()?.1,
            None => 0,
        };
        let weights = MoeWeights {
            router: router.linear.weight.values().shallow_clone(),
            bias: router.expert_bias.as_ref().map(|bias| to_device(bias, device)).transpose()?,
            gate: shared
                .and_then(|shared| shared.gate.as_ref())
                .map(|gate| gate.weight.values().shallow_clone()),
            fc1: self.addresses(experts.experts.iter().map(|expert| &expert.fc1))?,
            fc2: self.addresses(fc2)?,
            ffn,
            score: router.rule.score,
            topk: router.rule.topk as i64,
            scaling: router.rule.scaling.map(|scaling| scaling as f32),
        };
        Ok(CudaExperts { weights, kernels_idx: self.expert_kernels(experts.activation)? })
    }

    /// Where the weights of some layers lie on the GPU, int64.
    fn addresses<'a>(&self, linears: impl Iterator<Item = &'a CudaLinear>) -> Result<Tensor, ModelError> {
        let mut addresses = Vec::new();
        for linear in linears {
            let CudaWeight::Float(weight) = &linear.weight else { continue };
            let address = cuda_runtime::address(weight, &self.state.device, "an expert's weight")?;
            addresses.push(address.cast_signed());
        }
        to_device(&addresses, self.state.tch_device())
    }

    fn expert_kernels(&mut self, activation: Activation) -> Result<usize, ModelError> {
        let known = &self.state.experts;
        if let Some(idx) = known.iter().position(|known| known.activation == activation) {
            return Ok(idx);
        }
        // Nothing of these kernels has to do with heads.
        let config = KernelConfig {
            kind: self.state.numerics.compute.kind(),
            head_dim: 16,
            queries_per_group: 1,
            has_fp8_kv: false,
            scores: ScoreKind::default(),
        };
        let inside = (activation.nonlinearity, gating(activation));
        let kernels = MoeKernels::load(&self.state.device, &config, inside, kernel_cache().as_deref())?;
        self.state.experts.push(ExpertKernels { activation, kernels });
        Ok(self.state.experts.len() - 1)
    }
}

impl CudaState {
    /// `residual += moe(x)`, in place.
    pub(super) fn add_moe(
        &mut self,
        moe: &Moe<Self>,
        residual: Tensor,
        x: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let shared = match &moe.shared {
            Some(shared) => Some(shared.sum(x, moe.experts.activation, self)?),
            None => None,
        };
        let grouped = &moe.grouped;
        let known = self.experts.get(grouped.kernels_idx);
        let ExpertKernels { kernels, .. } = known
            .ok_or(ModelError::NoBackend { backend: "CUDA", reason: "no kernels of experts were loaded" })?;
        let run = RunMoe { x, residual: &residual, weights: &grouped.weights, shared: shared.as_ref() };
        kernels.run(&self.stream()?, &run)?;
        Ok(residual)
    }
}
