//! One transformer layer: attention, MLP, their norms, and how they are joined.

use crate::{Activation, ExpertsSpec, RotaryConfig};

/// One layer. Layers of a model may differ in everything that is said here.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Self-attention, where the layer has it.
    pub attention: Option<AttentionSpec>,
    /// The feed-forward part, where the layer has it.
    pub ffn: Option<FfnSpec>,
    /// How the two are joined; without meaning where one is missing.
    pub join: BlockStyle,
    /// The norm of a linear layer that stands in the place of attention, where one does.
    pub attention_linear: Option<NormSpec>,
    /// The inputs of attention and feed-forward part have norms.
    pub has_pre_norms: bool,
    /// What outputs are multiplied by before they are added to the residual stream.
    pub residual_multiplier: Option<f64>,
}

impl LayerSpec {
    /// The MLP, where the feed-forward part is one.
    pub fn mlp(&self) -> Option<&MlpSpec> {
        match &self.ffn {
            Some(FfnSpec::Dense(mlp)) => Some(mlp),
            Some(FfnSpec::Moe(_) | FfnSpec::Linear(_)) | None => None,
        }
    }

    /// The mixture of experts, where the feed-forward part is one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match &self.ffn {
            Some(FfnSpec::Moe(moe)) => Some(moe),
            Some(FfnSpec::Dense(_) | FfnSpec::Linear(_)) | None => None,
        }
    }

    /// Whether the MLP reads the very rows that attention reads, and so has no norm of its own.
    pub fn shares_norm(&self) -> bool {
        self.join == BlockStyle::ParallelSharedNorm && self.attention.is_some() && self.ffn.is_some()
    }
}

/// How attention and the MLP of a layer are joined. `n1` and `n2` are norms, `x` the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStyle {
    /// `x += attention(n1(x))`, then `x += mlp(n2(x))`.
    Sequential,
    /// `x += attention(n1(x)) + mlp(n1(x))`.
    ParallelSharedNorm,
    /// `x += attention(n1(x)) + mlp(n2(x))`.
    ParallelOwnNorm,
}

/// Self-attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query, key and value heads.
    pub heads: HeadLayout,
    /// The norm of its input.
    pub norm: NormSpec,
    /// A bias on `linear_qkv`.
    pub qkv_bias: bool,
    /// A bias on `linear_proj`.
    pub proj_bias: bool,
    /// The norm of every query and key head over its own dimensions, before they are rotated.
    pub qk_norm: Option<NormSpec>,
    /// That norm is over all query heads together, and over all key heads together.
    pub norm_across_heads: bool,
    /// That norm has gains of its own for every head.
    pub norm_per_head: bool,
    /// The rotation of queries and keys.
    pub rotary: Option<RotaryConfig>,
    /// How far attention reaches back, where that is not everywhere.
    pub window: Option<AttentionWindow>,
    /// How many positions a row sees, itself among them, where that is not all before it.
    pub local_tokens: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// What products of queries and keys are multiplied by; see [`HeadLayout::default_scale`].
    pub scale: f64,
    /// The norm of its output, before that is added to the residual stream.
    pub post_norm: Option<NormSpec>,
    /// Every query head has a score of its own that belongs to no key: it counts in the sum that probabilities are divided
    /// by, and to nothing else (`softmax_type: learnable`).
    pub has_sinks: bool,
}

/// A window of attention in every layer.
///
/// Attention is computed over all earlier positions: up to the window that is the same, and longer sequences are
/// refused. Windows of which it is known what they count are [computed](AttentionSpec::local_tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWindow {
    /// The longest sequence that it does not cut.
    pub tokens: usize,
    /// The key that states it.
    pub key: &'static str,
}

/// The sizes that give the rows of `linear_qkv` their meaning.
///
/// A row of its output is `[num_query_groups, queries_per_group + 2, kv_channels]`: of each group the query heads, then
/// its key, then its value (Megatron-Core).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadLayout {
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_query_groups: usize,
    /// Dimensions of a head.
    pub kv_channels: usize,
}

impl HeadLayout {
    /// Rows of `linear_qkv`.
    pub const fn qkv_size(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_query_groups) * self.kv_channels
    }

    /// Columns of `linear_proj`.
    pub const fn query_size(&self) -> usize {
        self.num_attention_heads * self.kv_channels
    }

    /// Query heads that share a key head. 0 when the layout has no group.
    pub const fn queries_per_group(&self) -> usize {
        match self.num_attention_heads.checked_div(self.num_query_groups) {
            Some(queries) => queries,
            None => 0,
        }
    }

    /// The root of the head's dimensions, inverted: what every model has unless it says otherwise.
    pub fn default_scale(&self) -> f64 {
        1.0 / (self.kv_channels as f64).sqrt()
    }
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum FfnSpec {
    /// One MLP for every token.
    Dense(MlpSpec),
    /// Several MLPs, of which a router chooses some for each token.
    Moe(MoeSpec),
    /// One linear layer as wide as the residual stream, with this norm in front.
    Linear(NormSpec),
}

/// The feed-forward part of a layer that has a router.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// The experts, of which each is an MLP.
    pub experts: ExpertsSpec,
    /// Biases on the router and on both linear layers of every expert but the shared one.
    pub bias: bool,
    /// The function inside every expert, the shared one included.
    pub activation: Activation,
    /// The norm of the input of router and experts.
    pub norm: NormSpec,
}

/// Two linear layers with an activation between.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    /// Columns of `linear_fc2`, and rows of `linear_fc1`, of one half of them when gated.
    pub ffn_hidden_size: usize,
    /// The function between.
    pub activation: Activation,
    /// The norm of its input, unless the layer [shares](LayerSpec::shares_norm) that of attention.
    pub norm: NormSpec,
    /// Biases on both linear layers.
    pub bias: bool,
    /// The norm of its output, before that is added to the residual stream.
    pub post_norm: Option<NormSpec>,
}

impl MlpSpec {
    /// Rows of `linear_fc1`.
    pub const fn fc1_size(&self) -> usize {
        if self.activation.gated { 2 * self.ffn_hidden_size } else { self.ffn_hidden_size }
    }
}

/// A norm over the hidden size, or over the dimensions of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Which.
    pub normalization: Normalization,
    /// The stored gain lacks 1 (`layernorm1p`, `layernorm_zero_centered_gamma`).
    pub zero_centered_gamma: bool,
    /// Added under the root.
    pub epsilon: f64,
}

impl NormSpec {
    /// NeMo's `normalization` for it; a root mean square that is centred at zero needs
    /// `layernorm_zero_centered_gamma` beside it.
    pub const fn nemo_name(&self) -> &'static str {
        match (self.normalization, self.zero_centered_gamma) {
            (Normalization::RmsNorm, _) => "rmsnorm",
            (Normalization::LayerNorm, false) => "layernorm",
            (Normalization::LayerNorm, true) => "layernorm1p",
        }
    }
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalization {
    /// Mean and variance, gain and bias.
    LayerNorm,
    /// Root mean square, gain only.
    RmsNorm,
}
