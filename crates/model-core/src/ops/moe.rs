//! A mixture of experts: a router, the experts that it chooses among, and one that every token goes through.
//!
//! Logits, weights and sums are float32; the sum is added to the residual stream and rounded once. How experts are computed
//! is up to the backend ([`StepState::run_experts`]).

use model_spec::{Activation, MoeSpec, Numerics, RouterSpec, WeightFormat, reduction_pieces};
use tch::{Kind, Tensor};
use torch_ext::view;

use crate::ModelError;
use crate::model_ranks::Reduction;
use crate::ops::{Epilogue, Expert, Experts, LinearOp, StepState, TrialLinear};
use crate::parallel::tree_sum;
use crate::routing::{Routing, sigmoid};
use crate::upload::to_device;

/// The feed-forward part of a layer that has experts.
pub(crate) struct Moe<S: StepState> {
    pub(crate) router: Router<S>,
    pub(crate) experts: Experts<S::Linear>,
    pub(crate) shared: Option<SharedExpert<S>>,
    /// What the backend needs of them beside.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "only a GPU's kernels need more than the linear layers")
    )]
    pub(crate) grouped: S::Experts,
    /// Whether tensor-parallel ranks have parts of the sums.
    pub(crate) reduction: Reduction,
}

/// What chooses experts.
pub(crate) struct Router<S: StepState> {
    /// In float32.
    pub(crate) linear: S::Linear,
    /// `[num_experts]`.
    pub(crate) expert_bias: Option<Vec<f32>>,
    pub(crate) rule: RouterSpec,
    pub(crate) num_experts: usize,
}

/// The expert of every token.
pub(crate) struct SharedExpert<S: StepState> {
    pub(crate) expert: Expert<S::Linear>,
    /// One output in float32, whose sigmoid multiplies what the expert makes.
    pub(crate) gate: Option<S::Linear>,
}

impl<S: StepState> Router<S> {
    /// The experts of each row; `x` is float32.
    fn route(&self, x: &Tensor, at: &mut S) -> Result<Routing, ModelError> {
        let logits = on_host(&self.linear.run(x, Epilogue::Float32, at)?)?;
        let logits = view::f32_slice(&logits, "the router's logits")?;
        Ok(Routing::of(logits, self.num_experts, &self.rule, self.expert_bias.as_deref()))
    }
}

impl<S: StepState> SharedExpert<S> {
    /// float32 `[num_tokens, hidden_size]`: this rank's sum, without the gate.
    pub(crate) fn sum(&self, x: &Tensor, activation: Activation, at: &mut S) -> Result<Tensor, ModelError> {
        tree_sum(self.expert.run(x, activation, at)?)
    }

    /// float32 `[num_tokens, 1]`; `x` is float32. On the host, where a row is one sequence of operations.
    fn gate(&self, x: &Tensor, at: &mut S) -> Result<Option<Tensor>, ModelError> {
        let Some(gate) = &self.gate else { return Ok(None) };
        let logits = on_host(&gate.run(x, Epilogue::Float32, at)?)?;
        let logits = view::f32_slice(&logits, "a gate's logits")?;
        let gates: Vec<f32> = logits.iter().map(|&logit| sigmoid(logit)).collect();
        Ok(Some(to_device(&gates, x.device())?.f_view([-1, 1])?))
    }
}

impl<S: StepState> Moe<S> {
    /// `residual += moe(x)`, the router's rule on the host.
    pub(crate) fn add_by_host(
        &self,
        residual: &Tensor,
        x: &Tensor,
        at: &mut S,
    ) -> Result<Tensor, ModelError> {
        let wide = x.f_to_kind(Kind::Float)?;
        let routing = self.router.route(&wide, at)?;
        let own = at.run_experts(&self.experts, x, &routing)?;
        let mut sum = match self.experts.owners.num_ranks {
            1 => self.of_all_ranks(own, at)?,
            // A sum that is whole, behind a zero as any other.
            _ => own.f_zeros_like()?.f_add(&own)?,
        };
        if let Some(shared) = &self.shared {
            let own = shared.sum(x, self.experts.activation, at)?;
            let mut output = self.of_all_ranks(own, at)?;
            if let Some(gate) = shared.gate(&wide, at)? {
                output = output.f_mul(&gate)?;
            }
            sum = sum.f_add(&output)?;
        }
        Ok(residual.f_to_kind(Kind::Float)?.f_add(&sum)?.f_to_kind(residual.kind())?)
    }

    /// What all tensor-parallel ranks have of a sum, added in a tree.
    fn of_all_ranks(&self, own: Tensor, at: &mut S) -> Result<Tensor, ModelError> {
        match self.reduction {
            Reduction::Chain => Ok(own),
            Reduction::Tree => {
                let nothing = own.f_zeros_like()?;
                at.ranks().reduce_add(&nothing, own, None)
            }
        }
    }

    /// The linear layers that every token goes through whatever it chooses, each with the activation that follows it.
    pub(crate) fn dense_linears(&self) -> impl Iterator<Item = TrialLinear<'_, S::Linear>> {
        let activation = self.experts.activation;
        self.shared.iter().flat_map(move |shared| shared.expert.linears(activation))
    }

    /// Memory that its router, its experts and their gate take.
    pub(crate) fn experts_bytes(&self) -> u64 {
        let gate = self.shared.iter().filter_map(|shared| shared.gate.as_ref());
        let experts =
            self.experts.experts.iter().flat_map(|expert| std::iter::once(&expert.fc1).chain(&expert.fc2));
        let bias = self.router.expert_bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()) as u64);
        let others = std::iter::once(&self.router.linear).chain(gate).chain(experts);
        others.map(LinearOp::size_bytes).sum::<u64>() + bias
    }
}

/// What tensor-parallel ranks of GPUs have of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedExperts {
    pub(crate) reduction: Reduction,
    pub(crate) tp_size: usize,
    /// Whether they are whole ones.
    pub(crate) has_some: bool,
}

/// Refuses layers with experts that the kernels of a GPU do not compute. `spec` is a rank's part.
#[cfg_attr(
    not(feature = "cuda"),
    cfg_attr(not(test), expect(dead_code, reason = "only a GPU's loader asks"))
)]
pub(crate) fn refuse_experts_on_gpu(
    spec: &MoeSpec,
    hidden_size: usize,
    numerics: Numerics,
    shared: SharedExperts,
) -> Result<(), ModelError> {
    /// A thread of the kernel that groups rows has an expert, a lane of the router a slot.
    const MAX_EXPERTS: usize = 1024;
    const MAX_TOPK: usize = 32;
    let plain = "the plain backend (`trt_llm.enable: false`), or a CPU";
    let experts = &spec.experts;
    if numerics.weights == WeightFormat::Fp8 {
        return refuse("quantization", &"fp8", "experts in FP8 on a GPU", "bf16, or a CPU");
    }
    if spec.bias {
        return refuse("bias", &true, "experts with biases on a GPU with the fast engine", plain);
    }
    if shared.has_some {
        let feature = "whole experts on each of several GPUs";
        return refuse(
            "expert_model_parallel_size",
            &shared.tp_size,
            feature,
            "1, a part of each expert on every GPU",
        );
    }
    if experts.num_experts > MAX_EXPERTS {
        let feature = "more than 1,024 experts on a GPU with the fast engine";
        return refuse("num_moe_experts", &experts.num_experts, feature, plain);
    }
    if experts.router.topk > MAX_TOPK {
        let feature = "more than 32 experts of a token on a GPU with the fast engine";
        return refuse("moe_router_topk", &experts.router.topk, feature, plain);
    }
    refuse_widths(spec, hidden_size, shared)
}

fn refuse_widths(spec: &MoeSpec, hidden_size: usize, shared: SharedExperts) -> Result<(), ModelError> {
    /// Numbers that are read at once.
    const WIDTH: usize = 8;
    let width = spec.experts.ffn_hidden_size;
    let plain = "the plain backend (`trt_llm.enable: false`), or a CPU";
    let sizes = [("hidden_size", hidden_size), ("moe_ffn_hidden_size", width)];
    if let Some((key, size)) = sizes.into_iter().find(|(_, size)| !size.is_multiple_of(WIDTH)) {
        let feature = "experts whose widths are no multiples of 8 on a GPU with the fast engine";
        return refuse(key, &size, feature, plain);
    }
    if shared.reduction == Reduction::Chain {
        return Ok(());
    }
    let whole = width * shared.tp_size;
    let on_cpu = "a CPU, or one GPU for each replica without `model.generation.reduction: tree`";
    if !whole.is_multiple_of(reduction_pieces(whole) * WIDTH) {
        let feature = "experts whose sums are in pieces that are no multiples of 8 wide on GPUs";
        return refuse("moe_ffn_hidden_size", &whole, feature, on_cpu);
    }
    match spec.experts.shared {
        Some(expert) => {
            let feature = "a shared expert whose sum is in pieces on GPUs";
            let key = "moe_shared_expert_intermediate_size";
            refuse(key, &(expert.ffn_hidden_size * shared.tp_size), feature, on_cpu)
        }
        None => Ok(()),
    }
}

fn refuse(
    key: &'static str,
    value: &dyn std::fmt::Display,
    feature: &'static str,
    needs: &'static str,
) -> Result<(), ModelError> {
    Err(ModelError::Unsupported { key, value: value.to_string(), feature, needs })
}

fn on_host(x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(x.f_to_device(tch::Device::Cpu)?.f_contiguous()?)
}
