//! Experts and their router, which chooses some of them for each token.
//!
//! Rules and keys are those of Megatron-Core's `TopKRouter` (`moe_utils.py`, `topk_routing_with_score_function`).

/// What a configuration says of the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// How many there are to choose from (`num_moe_experts`).
    pub num_experts: usize,
    /// The inner width of each, of one half when gated (`moe_ffn_hidden_size`).
    pub ffn_hidden_size: usize,
    /// How they are chosen and weighted.
    pub router: RouterSpec,
    /// The one that every token goes through.
    pub shared: Option<SharedExpertSpec>,
}

/// How a token's experts follow from the router's logits, one for each expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    /// How many experts a token gets (`moe_router_topk`), at most [`ExpertsSpec::num_experts`]. Of equal scores that of the
    /// lower expert counts as the larger.
    pub topk: usize,
    /// What makes scores of logits.
    pub score: RouterScore,
    /// A number for each expert is added to the scores that experts are chosen by, and to nothing else
    /// (`moe_router_enable_expert_bias`).
    pub has_expert_bias: bool,
    /// What the weights of the chosen experts are multiplied by (`moe_router_topk_scaling_factor`).
    pub scaling: Option<f64>,
}

/// What makes scores of a router's logits, and weights of the scores that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouterScore {
    /// Logits are the scores; the weights are the softmax of those that were chosen.
    SoftmaxOfChosen,
    /// The softmax of all logits gives scores and weights, which do not add up to 1 (`moe_router_pre_softmax`).
    SoftmaxOfAll,
    /// The sigmoids of the logits (`moe_router_score_function: sigmoid`); the weights are divided by their sum where there
    /// is more than one.
    Sigmoid,
}

/// An expert that every token goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpertSpec {
    /// Its inner width, of one half when gated (`moe_shared_expert_intermediate_size`).
    pub ffn_hidden_size: usize,
    /// Its output is multiplied by the sigmoid of a product of the token with `gate_weight` (`moe_shared_expert_gate`).
    pub has_gate: bool,
}

/// The layers of a model that are mixtures of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeLayers {
    /// The experts of each.
    pub experts: ExpertsSpec,
    /// For each layer, whether it is one of them (`moe_layer_freq`).
    pub is_moe: Vec<bool>,
}
