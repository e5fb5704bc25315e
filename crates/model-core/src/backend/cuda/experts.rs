//! Mixtures of experts on a GPU: the router, all experts at once and their sum, without a word from the host.

use cuda_kernels::{KernelConfig, MoeKernels, MoeWeights, RunMoe, RunMoePieces, ScoreKind};
use cuda_runtime::kernel_cache;
use model_spec::{Activation, MoeSpec};
use tch::{Kind, Tensor};

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
    /// Of the inputs of the experts' second layers, as far as this rank has them.
    num_pieces: i64,
    kernels_idx: usize,
}

/// What the outputs of experts in pieces take at most at once.
const PIECES_BYTES: i64 = 512 << 20;

/// The kernels for experts with this activation.
#[derive(Debug)]
pub(super) struct ExpertKernels {
    activation: Activation,
    kernels: MoeKernels,
}

impl CudaLoader {
    /// Whether the kernels compute a layer.
    pub(super) fn check_moe(&self, spec: &MoeSpec, hidden_size: usize) -> Result<(), ModelError> {
        refuse_experts_on_gpu(spec, hidden_size, self.state.numerics, self.shared_experts)
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
        let num_pieces = experts.experts.first().map_or(1, |expert| expert.num_pieces as i64);
        Ok(CudaExperts { weights, num_pieces, kernels_idx: self.expert_kernels(experts.activation)? })
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
        if self.device_ranks.is_some() {
            self.add_moe_pieces(moe, &residual, x)?;
            return Ok(residual);
        }
        let shared = match &moe.shared {
            Some(shared) => Some(shared.sum(x, moe.experts.activation, self)?),
            None => None,
        };
        let grouped = &moe.grouped;
        let run = RunMoe { x, residual: &residual, weights: &grouped.weights, shared: shared.as_ref() };
        self.kernels_of(grouped)?.run(&self.stream()?, &run)?;
        Ok(residual)
    }

    /// The same where sums are taken in a tree, with those of the other ranks. A row's result does not depend on the rows
    /// beside it, so some follow the others where their outputs take much memory.
    fn add_moe_pieces(&self, moe: &Moe<Self>, residual: &Tensor, x: &Tensor) -> Result<(), ModelError> {
        let (num_rows, width) = x.size2()?;
        let CudaExperts { weights, num_pieces, .. } = &moe.grouped;
        let kernels = self.kernels_of(&moe.grouped)?;
        let row_bytes = (weights.topk * num_pieces * width).max(1) * size_of::<f32>() as i64;
        let at_once = (PIECES_BYTES / row_bytes).max(1);
        let mut start = 0;
        while start < num_rows {
            let rows = at_once.min(num_rows - start);
            let partials = self.empty(&[*num_pieces, rows, width], Kind::Float)?;
            let x = x.f_narrow(0, start, rows)?;
            kernels.run_pieces(&self.stream()?, &RunMoePieces { x: &x, weights, partials: &partials })?;
            self.add_partials(&partials, &residual.f_narrow(0, start, rows)?)?;
            start += rows;
        }
        Ok(())
    }

    fn kernels_of(&self, experts: &CudaExperts) -> Result<&MoeKernels, ModelError> {
        match self.experts.get(experts.kernels_idx) {
            Some(known) => Ok(&known.kernels),
            None => {
                Err(ModelError::NoBackend { backend: "CUDA", reason: "no kernels of experts were loaded" })
            }
        }
    }
}
