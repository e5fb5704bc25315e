//! One tensor: its name, its axes, how it is sharded, and the configuration key that it follows from.

use std::fmt;

use crate::HeadLayout;

/// What a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// The embedding table.
    WordEmbeddings,
    /// The table of learned positions.
    PositionEmbeddings,
    /// The norm in front of attention.
    InputNorm,
    /// Queries, keys and values in one linear layer.
    Qkv,
    /// The norm of a linear layer in the place of attention.
    AttentionLinearNorm,
    /// That linear layer.
    AttentionLinear,
    /// The norm of each query head.
    QNorm,
    /// The norm of each key head.
    KNorm,
    /// The scores of query heads that belong to no key.
    Sinks,
    /// The output of attention.
    Proj,
    /// The norm of that output.
    PostAttentionNorm,
    /// The norm in front of the MLP, or of router and experts.
    MlpNorm,
    /// The router of a mixture of experts.
    Router,
    /// What is added to the scores that experts are chosen by.
    ExpertBias,
    /// The first linear layer of the shared expert; when gated, both halves.
    SharedFc1,
    /// Its second linear layer.
    SharedFc2,
    /// What its gate multiplies a token with.
    SharedGate,
    /// The first linear layer of an expert; when gated, both halves.
    ExpertFc1,
    /// Its second linear layer.
    ExpertFc2,
    /// The first linear layer of the MLP; when gated, both halves.
    Fc1,
    /// The second linear layer of the MLP.
    Fc2,
    /// The norm of its output.
    PostMlpNorm,
    /// The norm of a linear layer in the place of the MLP.
    MlpLinearNorm,
    /// That linear layer.
    MlpLinear,
    /// The norm behind the last layer.
    FinalNorm,
    /// The layer that makes logits.
    Output,
}

impl Module {
    /// Whether it is a linear layer of attention, MLP or experts, the router excepted.
    pub const fn is_layer_linear(self) -> bool {
        matches!(
            self,
            Self::Qkv
                | Self::Proj
                | Self::SharedFc1
                | Self::SharedFc2
                | Self::ExpertFc1
                | Self::ExpertFc2
                | Self::Fc1
                | Self::Fc2
                | Self::AttentionLinear
                | Self::MlpLinear
        )
    }

    /// Whether its tensors are held in float32, whatever the other weights are held in: norms, sinks, and what decides which
    /// experts count how much.
    pub const fn is_float32(self) -> bool {
        self.is_norm() || matches!(self, Self::Sinks | Self::Router | Self::ExpertBias | Self::SharedGate)
    }

    /// Whether it is a norm.
    pub const fn is_norm(self) -> bool {
        match self {
            Self::InputNorm
            | Self::QNorm
            | Self::KNorm
            | Self::PostAttentionNorm
            | Self::MlpNorm
            | Self::PostMlpNorm
            | Self::AttentionLinearNorm
            | Self::MlpLinearNorm
            | Self::FinalNorm => true,
            Self::WordEmbeddings
            | Self::PositionEmbeddings
            | Self::Qkv
            | Self::Sinks
            | Self::Proj
            | Self::Router
            | Self::ExpertBias
            | Self::SharedFc1
            | Self::SharedFc2
            | Self::SharedGate
            | Self::ExpertFc1
            | Self::ExpertFc2
            | Self::Fc1
            | Self::Fc2
            | Self::AttentionLinear
            | Self::MlpLinear
            | Self::Output => false,
        }
    }
}

/// Which tensor of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The matrix of a linear layer, the gain of a norm, the rows of a table.
    Weight,
    /// What is added.
    Bias,
    /// What is added to the sum of a softmax, before the exponential.
    Offset,
}

impl Part {
    /// The last part of the tensor's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::Offset => "offset",
        }
    }
}

/// Which tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId {
    /// The layer, for modules of a layer.
    pub layer: Option<usize>,
    /// The expert, for modules of an expert.
    pub expert: Option<usize>,
    /// What it belongs to.
    pub module: Module,
    /// Which tensor of it.
    pub part: Part,
}

/// How tensor-parallel ranks share a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// All have it whole.
    Replicated,
    /// Each has some rows, in order of the ranks.
    Rows,
    /// Each has some rows of the first half, then as many of the second.
    RowsOfHalves,
    /// Each has some columns, in order of the ranks.
    Columns,
}

/// A tensor that a model has.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Which it is.
    pub id: TensorId,
    /// Its canonical name, Megatron-Core's.
    pub name: String,
    /// Its axes, outermost first.
    pub dims: Vec<Dim>,
    /// How tensor-parallel ranks share it.
    pub shard: Shard,
    /// What makes it necessary.
    pub because: Key,
}

impl TensorSpec {
    /// Its whole shape.
    pub fn shape(&self) -> Vec<u64> {
        self.dims.iter().map(|dim| dim.size()).collect()
    }

    /// Number of elements; the greatest number when it overflows.
    pub fn num_elems(&self) -> u64 {
        self.dims.iter().fold(1, |product: u64, dim| product.saturating_mul(dim.size()))
    }

    /// What the axes follow from that do not fit a shape; what all of them do, when even their number is another.
    pub fn contradicted(&self, actual: &[u64]) -> String {
        let mut origins: Vec<String> = Vec::new();
        for (idx, dim) in self.dims.iter().enumerate() {
            let fits = actual.len() == self.dims.len() && actual.get(idx) == Some(&dim.size());
            let origin = dim.to_string();
            if !fits && !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        origins.join(" and ")
    }
}

/// One axis of a tensor, by what its size follows from, which [`Display`](fmt::Display) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// The residual stream.
    Hidden(usize),
    /// The MLP's inner width.
    Ffn(FfnWidth),
    /// Outputs of `linear_fc1`, which are two halves when gated.
    Fc1 {
        /// The MLP's inner width.
        width: FfnWidth,
        /// Whether there are two halves.
        gated: bool,
    },
    /// The experts of a layer.
    Experts(usize),
    /// The one row of the gate of a shared expert.
    Gate,
    /// Outputs of `linear_qkv`.
    Qkv(HeadLayout),
    /// Inputs of `linear_proj`.
    Query(HeadLayout),
    /// The dimensions of a head.
    Head(HeadLayout),
    /// The dimensions of all key heads.
    Keys(HeadLayout),
    /// The key and value heads.
    KeyHeads(HeadLayout),
    /// The query heads.
    QueryHeads(HeadLayout),
    /// Rows of the embedding table, as the checkpoint has them.
    Vocab(u64),
    /// Rows of the table of learned positions, as the checkpoint has them.
    Positions(u64),
}

/// The inner width of an MLP or an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfnWidth {
    /// How wide.
    pub size: usize,
    /// The configuration key that says so.
    pub key: &'static str,
}

impl Dim {
    /// How long the axis is.
    pub const fn size(self) -> u64 {
        match self {
            Self::Hidden(size)
            | Self::Experts(size)
            | Self::Ffn(FfnWidth { size, .. })
            | Self::Fc1 { width: FfnWidth { size, .. }, gated: false } => size as u64,
            Self::Fc1 { width, gated: true } => 2 * width.size as u64,
            Self::Gate => 1,
            Self::Qkv(heads) => heads.qkv_size() as u64,
            Self::Query(heads) => heads.query_size() as u64,
            Self::Head(heads) => heads.kv_channels as u64,
            Self::Keys(heads) => (heads.num_query_groups * heads.kv_channels) as u64,
            Self::KeyHeads(heads) => heads.num_query_groups as u64,
            Self::QueryHeads(heads) => heads.num_attention_heads as u64,
            Self::Vocab(rows) | Self::Positions(rows) => rows,
        }
    }

    /// What is never cut when `tp_size` ranks share the axis: a query group with all its heads, a head where there are more
    /// ranks than groups, else one element.
    pub const fn unit_for(self, tp_size: u32) -> u64 {
        match self {
            Self::Qkv(heads) => ((heads.queries_per_group() + 2) * heads.kv_channels) as u64,
            Self::Query(heads) if tp_size as usize > heads.num_query_groups => heads.kv_channels as u64,
            Self::Query(heads) => (heads.queries_per_group() * heads.kv_channels) as u64,
            Self::Hidden(_)
            | Self::Ffn(_)
            | Self::Fc1 { .. }
            | Self::Experts(_)
            | Self::Gate
            | Self::Head(_)
            | Self::Keys(_)
            | Self::KeyHeads(_)
            | Self::QueryHeads(_)
            | Self::Vocab(_)
            | Self::Positions(_) => 1,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden(size) => write!(f, "`hidden_size: {size}`"),
            Self::Ffn(FfnWidth { size, key }) => write!(f, "`{key}: {size}`"),
            Self::Fc1 { width: FfnWidth { size, key }, gated } => {
                let with = if *gated { "with" } else { "without" };
                write!(f, "`{key}: {size}` {with} a gated `activation`")
            }
            Self::Experts(count) => write!(f, "`num_moe_experts: {count}`"),
            Self::Gate => f.write_str("`moe_shared_expert_gate: true`, which has one row"),
            Self::Qkv(heads) => write!(
                f,
                "`num_attention_heads: {}`, `num_query_groups: {}` and `kv_channels: {}`",
                heads.num_attention_heads, heads.num_query_groups, heads.kv_channels
            ),
            Self::Query(heads) => write!(
                f,
                "`num_attention_heads: {}` and `kv_channels: {}`",
                heads.num_attention_heads, heads.kv_channels
            ),
            Self::Head(heads) => write!(f, "`kv_channels: {}`", heads.kv_channels),
            Self::KeyHeads(heads) => write!(f, "`num_query_groups: {}`", heads.num_query_groups),
            Self::QueryHeads(heads) => write!(f, "`num_attention_heads: {}`", heads.num_attention_heads),
            Self::Keys(heads) => write!(
                f,
                "`num_query_groups: {}` and `kv_channels: {}`",
                heads.num_query_groups, heads.kv_channels
            ),
            Self::Vocab(rows) => {
                let name = TensorId::outside(Module::WordEmbeddings, Part::Weight).name();
                write!(f, "the {rows} rows of `{name}`, which is padded alike")
            }
            Self::Positions(rows) => {
                let name = TensorId::outside(Module::PositionEmbeddings, Part::Weight).name();
                write!(f, "the {rows} rows of `{name}`")
            }
        }
    }
}

/// What of a configuration decides whether a model has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing: every model has it.
    Always,
    /// `share_embeddings_and_output_weights`.
    Untied,
    /// `output_layer_bias`.
    OutputLayerBias,
    /// `position_embedding_type`.
    LearnedPositions,
    /// `normalization`, for the biases of norms.
    LayerNorm,
    /// `bias`.
    Bias,
    /// `qkv_bias`.
    QkvBias,
    /// `qk_layernorm`.
    QkLayernorm,
    /// `softmax_type`.
    Sinks,
    /// `post_layernorms`.
    PostLayernorms,
    /// `pre_layernorms`.
    PreLayernorms,
    /// `parallel_attention`, for the norm of the MLP.
    NotParallel,
    /// `new_decoder_architecture`, for the norm of the MLP.
    NewDecoderArchitecture,
    /// `num_moe_experts` and `moe_layer_freq`, for what a mixture of experts has.
    Experts,
    /// The same, for what an MLP has.
    NoExperts,
    /// `moe_router_enable_expert_bias`.
    ExpertBias,
    /// `moe_shared_expert_intermediate_size`.
    SharedExpert,
    /// `moe_shared_expert_gate`.
    SharedExpertGate,
    /// What the layer consists of.
    LayerKind,
}

impl Key {
    /// Why a model has the tensor: a sentence without its stop.
    pub const fn needs_it(self) -> &'static str {
        match self {
            Self::Always => "every model of this kind has it",
            Self::Untied => "`share_embeddings_and_output_weights: false` needs it",
            Self::OutputLayerBias => "`output_layer_bias: true` needs it",
            Self::LearnedPositions => "`position_embedding_type: learned_absolute` needs it",
            Self::LayerNorm => "`normalization: layernorm` needs it, `rmsnorm` has none",
            Self::Bias => "`bias: true` needs it",
            Self::QkvBias => "`qkv_bias: true` needs it",
            Self::QkLayernorm => "`qk_layernorm: true` needs it",
            Self::Sinks => "`softmax_type: learnable` needs it",
            Self::PostLayernorms => "`post_layernorms: true` needs it, as `name: megatron_gemma2` does",
            Self::PreLayernorms => "`pre_layernorms`, which is true by default, needs it",
            Self::NotParallel => "a block without `parallel_attention` needs it",
            Self::NewDecoderArchitecture => "`new_decoder_architecture: true` needs it",
            Self::Experts => "`num_moe_experts` and `moe_layer_freq` give the layer experts",
            Self::NoExperts => "`num_moe_experts` and `moe_layer_freq` give the layer no experts",
            Self::ExpertBias => "`moe_router_enable_expert_bias: true` needs it",
            Self::SharedExpert => "`moe_shared_expert_intermediate_size` needs it",
            Self::SharedExpertGate => "`moe_shared_expert_gate: true` needs it",
            Self::LayerKind => "a layer of this kind has it",
        }
    }

    /// The setting with which a model would have the tensor.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Always => "any setting",
            Self::Untied => "`share_embeddings_and_output_weights: false`",
            Self::OutputLayerBias => "`output_layer_bias: true`",
            Self::LearnedPositions => "`position_embedding_type: learned_absolute`",
            Self::LayerNorm => "`normalization: layernorm`",
            Self::Bias | Self::QkvBias => "`bias: true`, or `qkv_bias: true` for those of `linear_qkv` alone",
            Self::QkLayernorm => "`qk_layernorm: true`",
            Self::Sinks => "`softmax_type: learnable`",
            Self::PostLayernorms => "`post_layernorms: true`, which `name: megatron_gemma2` stands for",
            Self::PreLayernorms => "`pre_layernorms: true`",
            Self::NotParallel => "`parallel_attention: false`",
            Self::NewDecoderArchitecture => "`new_decoder_architecture: true`",
            Self::Experts => "more `num_moe_experts`, and a `moe_layer_freq` that gives the layer experts",
            Self::NoExperts => {
                "`num_moe_experts: null`, or a `moe_layer_freq` that gives the layer no experts"
            }
            Self::ExpertBias => "`moe_router_enable_expert_bias: true`",
            Self::SharedExpert => "a `moe_shared_expert_intermediate_size`",
            Self::SharedExpertGate => "`moe_shared_expert_gate: true`",
            Self::LayerKind => "a layer of another kind",
        }
    }
}
