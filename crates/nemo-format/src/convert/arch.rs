//! A decoder's architecture as numbers, whatever file they came from, and the `model_config.yaml` it becomes.
//!
//! Keys and quirks follow NeMo 2.0.0's Hugging Face converters, except that Llama 3.1's frequency rule does not also set
//! `seq_len_interpolation_factor` (an error of that version, repaired in 2.2). What NeMo has no key for gets one of this
//! project's own: `output_layer_bias` and `rope_scaling`, and
//! `huggingface`, which only the way back to a Hugging Face folder reads.

use hydra_config::Node;
use model_spec::{
    AttentionRule, AttentionWindow, BlockStyle, ExpertsSpec, GLU_CLAMP, ModelSpec, MoeLayers, Multipliers,
    Nonlinearity, Normalization, PositionEmbedding, RopeScaling, RotaryConfig, RotaryPairing, RouterScore,
    TableRows, UniformSpec,
};

use super::family::Family;
use crate::{DType, FormatError};

/// NeMo's example configuration for Llama, with `???` where a conversion fills in.
const TEMPLATE: &str = include_str!("megatron_llama_config.yaml");

/// What a layer sees that has no window.
pub(super) const NO_WINDOW: usize = i32::MAX as usize;

/// The key under which a window of attention is kept.
const SLIDING_WINDOW: &str = "huggingface.sliding_window";

/// A model, and what only configurations say of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelArch {
    pub(super) family: Family,
    /// Every layer, and what is around them.
    pub(super) model: UniformSpec,
    /// Rows of the tables. Those of positions are the context length, also where positions are not learned.
    pub(super) tables: TableRows,
    /// The part of a head that rotates, as it is written; `model` has the dimensions that follow.
    rotary_percentage: f64,
    has_rope_lists: bool,
    pub(super) init_method_std: f64,
    /// What frequencies are divided by, where that takes lists.
    pub(super) rope_factors: Option<RopeFactors>,
    /// The text of `block_configs`, where layers are of several kinds.
    pub(super) block_configs: Option<String>,
}

/// The rotary embedding, as it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) percentage: f64,
    pub(super) base: f64,
    pub(super) scaling: RopeExtension,
    /// Pairs are neighbours instead of halves.
    pub(super) interleaved: bool,
}

/// How positions beyond the training length are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeExtension {
    None,
    /// Positions are divided by a factor.
    Linear(f64),
    /// Llama 3.1's rule.
    Llama3(RopeScaling),
    /// Frequencies have a factor each, which [`ModelArch::rope_factors`] has.
    Factors,
}

/// Lists of what frequencies are divided by, one number for each pair of rotated dimensions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeFactors {
    /// One list, whatever the length.
    Fixed { factors: Vec<f64>, attention_factor: f64 },
    /// Two: up to the original length, and beyond.
    ByLength { short: Vec<f64>, long: Vec<f64>, original_length: u64, attention_factor: f64 },
    /// None up to this length; beyond, they follow from the longest sequence of a batch (`dynamic`).
    UpTo { length: u64, factor: f64 },
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    Qkv,
    /// Those missing in the source are zeros.
    All,
}

/// The largest divisor that NeMo's converter chooses.
const MAX_VOCAB_DIVISOR: u64 = 128;

impl ModelArch {
    /// Without rotary embedding.
    pub(super) fn new(family: Family, model: UniformSpec, tables: TableRows, init_method_std: f64) -> Self {
        Self {
            family,
            model,
            tables,
            rotary_percentage: 1.0,
            has_rope_lists: false,
            init_method_std,
            rope_factors: None,
            block_configs: None,
        }
    }

    /// Refuses sizes that no tensor could have, so that later arithmetic is safe.
    pub(super) fn check(&self, file: &str) -> Result<(), FormatError> {
        let bad = |reason: String| Err(FormatError::BadConfig { file: file.to_owned(), reason });
        let heads = self.model.heads;
        let experts = self.model.moe.as_ref().map(|moe| moe.experts);
        let sizes = [
            ("number of layers", self.model.num_layers as u64, 1 << 12),
            ("hidden size", self.model.hidden_size as u64, 1 << 20),
            ("feed-forward size", self.model.ffn_hidden_size as u64, 1 << 22),
            ("number of experts", experts.map_or(1, |experts| experts.num_experts as u64), 1 << 12),
            (
                "experts' feed-forward size",
                experts.map_or(1, |experts| experts.ffn_hidden_size as u64),
                1 << 22,
            ),
            (
                "shared expert's feed-forward size",
                experts.and_then(|experts| experts.shared).map_or(1, |shared| shared.ffn_hidden_size as u64),
                1 << 22,
            ),
            ("number of attention heads", heads.num_attention_heads as u64, 1 << 12),
            ("number of key-value heads", heads.num_query_groups as u64, 1 << 12),
            ("head dimension", heads.kv_channels as u64, 1 << 12),
            ("vocabulary size", self.tables.vocab, 1 << 24),
            ("context length", self.tables.positions, 1 << 32),
            ("sliding window", self.sliding_window().unwrap_or(1), 1 << 32),
        ];
        for (what, value, limit) in sizes {
            if value == 0 || value > limit {
                return bad(format!("the {what} is {value}, expected 1 to {limit}"));
            }
        }
        if !heads.num_attention_heads.is_multiple_of(heads.num_query_groups) {
            return bad(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                heads.num_attention_heads, heads.num_query_groups
            ));
        }
        let PositionEmbedding::Rope(RotaryConfig { rotary_dims, .. }) = self.model.position_embedding else {
            return Ok(());
        };
        let percentage = self.rotary_percentage;
        if !(percentage > 0.0 && percentage <= 1.0) || rotary_dims == 0 {
            return bad(format!("the rotary embedding turns the share {percentage} of a head"));
        }
        if !rotary_dims.is_multiple_of(2) {
            let head_dim = heads.kv_channels;
            return bad(format!(
                "{rotary_dims} of {head_dim} dimensions of a head are rotated, an odd number"
            ));
        }
        Ok(())
    }

    /// Sets the dimensions of a head.
    pub(super) fn set_head_dim(&mut self, head_dim: u64) {
        self.model.heads.kv_channels = size(head_dim);
        if let PositionEmbedding::Rope(rotary) = &mut self.model.position_embedding {
            rotary.rotary_dims = rotary_dims(self.model.heads.kv_channels, self.rotary_percentage);
        }
    }

    /// Whether the rotation has lists of factors, which are not read with it.
    pub(super) fn needs_rope_factors(&self) -> bool {
        self.has_rope_lists
    }

    /// Lets positions enter by rotation.
    pub(super) fn set_rope(&mut self, rope: Rope) {
        self.rotary_percentage = rope.percentage;
        self.has_rope_lists = rope.scaling == RopeExtension::Factors;
        self.model.position_embedding = PositionEmbedding::Rope(RotaryConfig {
            rotary_dims: rotary_dims(self.model.heads.kv_channels, rope.percentage),
            pairing: if rope.interleaved { RotaryPairing::Interleaved } else { RotaryPairing::HalfSplit },
            rotary_base: rope.base,
            seq_len_interpolation_factor: match rope.scaling {
                RopeExtension::Linear(factor) => factor,
                RopeExtension::None | RopeExtension::Llama3(_) | RopeExtension::Factors => 1.0,
            },
            rope_scaling: match rope.scaling {
                RopeExtension::Llama3(rule) => Some(rule),
                RopeExtension::None | RopeExtension::Linear(_) | RopeExtension::Factors => None,
            },
            factors: None,
        });
    }

    /// Lets attention reach back this far; longer sequences than that are not attempted.
    pub(super) fn set_sliding_window(&mut self, tokens: Option<u64>) {
        let window = |tokens| AttentionWindow { tokens: size(tokens), key: SLIDING_WINDOW };
        self.model.window = tokens.map(window);
    }

    /// How far attention reaches back, if that is not everywhere.
    pub(super) fn sliding_window(&self) -> Option<u64> {
        self.model.window.map(|window| window.tokens as u64)
    }

    pub(super) fn set_biases(&mut self, biases: Biases) {
        self.model.bias = biases == Biases::All;
        self.model.qkv_bias = biases != Biases::None;
    }

    pub(super) fn biases(&self) -> Biases {
        match (self.model.bias, self.model.qkv_bias) {
            (true, _) => Biases::All,
            (false, true) => Biases::Qkv,
            (false, false) => Biases::None,
        }
    }

    /// How far back sequences may reach: NeMo's `encoder_seq_length`.
    fn encoder_seq_length(&self) -> u64 {
        // With a list for each of two lengths, the shorter length and its list are what sequences begin with.
        let short = match &self.rope_factors {
            Some(RopeFactors::ByLength { original_length, .. }) => *original_length,
            _ => u64::MAX,
        };
        self.sliding_window().unwrap_or(u64::MAX).min(self.tables.positions).min(short)
    }

    /// The complete `model_config.yaml`, with `tokenizer` as its section of that name.
    pub(super) fn model_config(&self, tokenizer: Node, dtype: DType) -> Result<Node, FormatError> {
        let mut config =
            hydra_config::yaml::parse(TEMPLATE, "megatron_llama_config.yaml").map_err(|error| {
                FormatError::BadConfig {
                    file: "megatron_llama_config.yaml".into(),
                    reason: error.to_string(),
                }
            })?;
        let model = &self.model;
        config.set("encoder_seq_length", int(self.encoder_seq_length()));
        config.set("max_position_embeddings", int(self.tables.positions));
        config.set("data.seq_length", int(self.encoder_seq_length()));
        config.set("num_layers", int(model.num_layers as u64));
        config.set("hidden_size", int(model.hidden_size as u64));
        config.set("ffn_hidden_size", int(model.ffn_hidden_size as u64));
        config.set("num_attention_heads", int(model.heads.num_attention_heads as u64));
        config.set("num_query_groups", int(model.heads.num_query_groups as u64));
        if model.heads.query_size() != model.hidden_size {
            config.set("kv_channels", int(model.heads.kv_channels as u64));
        }
        config.set("init_method_std", Node::Float(self.init_method_std));
        config.set("normalization", Node::from(model.norm.nemo_name()));
        config.set("layernorm_epsilon", Node::Float(model.norm.epsilon));
        if model.norm.normalization == Normalization::RmsNorm && model.norm.zero_centered_gamma {
            config.set("layernorm_zero_centered_gamma", Node::Bool(true));
        }
        config.set("make_vocab_size_divisible_by", int(vocab_divisor(self.tables.vocab)));
        config.set("share_embeddings_and_output_weights", Node::Bool(model.output.tied));
        let (activation, openai_gelu) = model.activation.to_nemo().ok_or_else(|| FormatError::BadConfig {
            file: "megatron_llama_config.yaml".into(),
            reason: format!("NeMo has no name for the activation {:?}", model.activation),
        })?;
        config.set("activation", Node::from(activation));
        config.set("openai_gelu", Node::Bool(openai_gelu));
        if model.activation.nonlinearity == Nonlinearity::ClampedQuickGelu {
            config.set("activation_func_clamp_value", Node::Float(f64::from(GLU_CLAMP)));
            config.set("glu_linear_offset", Node::Float(1.0));
        }
        config.set("bias_activation_fusion", Node::Bool(false));
        match self.biases() {
            Biases::None => {}
            Biases::Qkv => config.set("qkv_bias", Node::Bool(true)),
            Biases::All => config.set("bias", Node::Bool(true)),
        }
        if model.qk_layernorm {
            config.set("qk_layernorm", Node::Bool(true));
        }
        self.set_experts(&mut config);
        self.set_positions(&mut config);
        self.set_rope_factors(&mut config);
        self.set_attention(&mut config);
        self.set_block(&mut config);
        config.set("tokenizer", tokenizer);
        config.set("precision", precision(dtype));
        Ok(config)
    }

    /// Megatron-Core's keys of experts.
    fn set_experts(&self, config: &mut Node) {
        let Some(MoeLayers { experts, is_moe }) = &self.model.moe else { return };
        let ExpertsSpec { num_experts, ffn_hidden_size, router, shared } = *experts;
        config.set("num_moe_experts", int(num_experts as u64));
        config.set("moe_ffn_hidden_size", int(ffn_hidden_size as u64));
        config.set("moe_router_topk", int(router.topk as u64));
        config.set("moe_router_pre_softmax", Node::Bool(router.score == RouterScore::SoftmaxOfAll));
        if router.score == RouterScore::Sigmoid {
            config.set("moe_router_score_function", Node::from("sigmoid"));
        }
        if router.has_expert_bias {
            config.set("moe_router_enable_expert_bias", Node::Bool(true));
        }
        if let Some(scaling) = router.scaling {
            config.set("moe_router_topk_scaling_factor", Node::Float(scaling));
        }
        if is_moe.contains(&false) {
            let flags = is_moe.iter().map(|&is_moe| Node::Int(i64::from(is_moe)));
            config.set("moe_layer_freq", Node::List(flags.collect()));
        }
        if let Some(shared) = shared {
            config.set("moe_shared_expert_intermediate_size", int(shared.ffn_hidden_size as u64));
            config.set("moe_shared_expert_gate", Node::Bool(shared.has_gate));
        }
    }

    fn set_positions(&self, config: &mut Node) {
        let PositionEmbedding::Rope(rotary) = self.model.position_embedding else {
            config.set("position_embedding_type", Node::from("learned_absolute"));
            config.set("rotary_base", Node::Int(10_000));
            config.set("scale_positional_embedding", Node::Bool(false));
            return;
        };
        config.set("rotary_percentage", Node::Float(self.rotary_percentage));
        config.set("rotary_base", Node::Float(rotary.rotary_base));
        if rotary.pairing == RotaryPairing::Interleaved {
            config.set("rotary_interleaved", Node::Bool(true));
        }
        config.set("scale_positional_embedding", Node::Bool(rotary.rope_scaling.is_some()));
        match RopeExtension::of(&rotary) {
            RopeExtension::None | RopeExtension::Factors => {}
            RopeExtension::Linear(factor) => config.set("seq_len_interpolation_factor", Node::Float(factor)),
            RopeExtension::Llama3(rule) if rule == RopeScaling::LLAMA_3_1 => {}
            RopeExtension::Llama3(rule) => {
                for (key, value) in RopeScaling::KEYS.iter().zip(rule.values()) {
                    config.set(&format!("rope_scaling.{key}"), Node::Float(value));
                }
                let original_length = rule.original_max_position_embeddings as u64;
                config.set("rope_scaling.original_max_position_embeddings", int(original_length));
            }
        }
    }

    /// What attention and the outputs do otherwise than most.
    fn set_attention(&self, config: &mut Node) {
        let AttentionRule { scale, softcap, local, norm_across_heads, norm_per_head, has_sinks } =
            &self.model.attention;
        if *has_sinks {
            config.set("softmax_type", Node::from("learnable"));
        }
        if *norm_per_head {
            config.set("qk_layernorm_per_head", Node::Bool(true));
        }
        if *norm_across_heads {
            config.set("qk_layernorm_across_heads", Node::Bool(true));
        }
        if let Some(scalar) = scale.map(inverse_square) {
            config.set("query_pre_attn_scalar", Node::Float(scalar));
        }
        if let Some(softcap) = softcap {
            config.set("attn_logit_softcapping", Node::Float(*softcap));
        }
        if let Some(softcap) = self.model.output.softcap {
            config.set("final_logit_softcapping", Node::Float(softcap));
        }
        if self.model.post_layernorms {
            config.set("post_layernorms", Node::Bool(true));
        }
        let Some(local) = local else { return };
        // Transformer Engine counts the positions before a row, without its own.
        let left = if local.tokens >= NO_WINDOW { Node::Int(-1) } else { int(local.tokens as u64 - 1) };
        config.set("window_size", Node::List(vec![left, Node::Int(0)]));
        let flags = local.is_local.iter().map(|&is_local| Node::Int(i64::from(is_local)));
        config.set("window_attn_skip_freq", Node::List(flags.collect()));
        if let Some(base) = local.rotary_base {
            config.set("rotary_base_local", Node::Float(base));
        }
    }

    fn set_rope_factors(&self, config: &mut Node) {
        let Some(factors) = &self.rope_factors else { return };
        let mut set_list = |key: &str, values: &[f64]| {
            let values = values.iter().map(|&value| Node::Float(value)).collect();
            config.set(&format!("rope_scaling.{key}"), Node::List(values));
        };
        let attention_factor = match factors {
            RopeFactors::Fixed { factors, attention_factor } => {
                set_list("factors", factors);
                attention_factor
            }
            RopeFactors::ByLength { short, long, original_length, attention_factor } => {
                set_list("short_factor", short);
                set_list("long_factor", long);
                config.set("rope_scaling.original_max_position_embeddings", int(*original_length));
                attention_factor
            }
            RopeFactors::UpTo { length, factor } => {
                config.set("rope_scaling.dynamic_factor", Node::Float(*factor));
                config.set("rope_scaling.original_max_position_embeddings", int(*length));
                return;
            }
        };
        config.set("rope_scaling.attention_factor", Node::Float(*attention_factor));
    }

    /// Keys of this project, for models that NeMo does not have.
    fn set_own_keys(&self, config: &mut Node) {
        let Multipliers { embedding, residual, logits } = self.model.multipliers;
        for (key, number) in [
            ("embedding_multiplier", embedding),
            ("residual_multiplier", residual),
            ("logits_multiplier", logits),
        ] {
            if let Some(number) = number {
                config.set(key, Node::Float(number));
            }
        }
        if !self.model.pre_layernorms {
            config.set("pre_layernorms", Node::Bool(false));
        }
        if let Some(blocks) = &self.block_configs {
            config.set("heterogeneous_layers_config_encoded_json", Node::from(blocks.as_str()));
        }
    }

    /// What only some families have.
    fn set_block(&self, config: &mut Node) {
        self.set_own_keys(config);
        let facts = self.family.facts();
        if self.model.block_style != BlockStyle::Sequential {
            config.set("mcore_customization_config.parallel_attention", Node::Bool(true));
            let has_two_norms = self.model.block_style == BlockStyle::ParallelOwnNorm;
            config.set("mcore_customization_config.new_decoder_architecture", Node::Bool(has_two_norms));
        } else if facts.nemo_name.is_some() {
            // Such layers are parallel by default.
            config.set("mcore_customization_config.parallel_attention", Node::Bool(false));
        }
        if let Some(name) = facts.nemo_name {
            config.set("name", Node::from(name));
        }
        if facts.overrides_vocab_size {
            config.set("override_vocab_size", int(self.tables.vocab));
        }
        if self.model.apply_embedding_scaling {
            config.set("apply_embedding_scaling", Node::Bool(true));
        }
        if self.model.output.bias {
            config.set("output_layer_bias", Node::Bool(true));
        }
        if facts.has_window {
            config.set("huggingface.model_type", Node::from(facts.name));
            config.set(SLIDING_WINDOW, self.sliding_window().map_or(Node::Null, int));
        }
    }

    /// The model that it becomes. Sizes have been [checked](Self::check).
    pub(super) fn spec(&self) -> ModelSpec {
        self.model.spec(self.tables)
    }
}

impl RopeExtension {
    pub(super) fn of(rotary: &RotaryConfig) -> Self {
        match (rotary.rope_scaling, rotary.seq_len_interpolation_factor) {
            (Some(rule), _) => Self::Llama3(rule),
            (None, 1.0) => Self::None,
            (None, factor) => Self::Linear(factor),
        }
    }
}

/// The number whose root, inverted, is this scale: a whole one where that is what it was.
pub(super) fn inverse_square(scale: f64) -> f64 {
    let scalar = 1.0 / (scale * scale);
    if (scalar - scalar.round()).abs() < 1e-9 * scalar { scalar.round() } else { scalar }
}

/// A size that was read; [`ModelArch::check`] refuses the largest.
pub(super) fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn rotary_dims(head_dim: usize, percentage: f64) -> usize {
    (head_dim as f64 * percentage) as usize
}

fn int(value: u64) -> Node {
    Node::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// What NeMo's converter writes for `precision`.
pub(super) fn precision(dtype: DType) -> Node {
    match dtype {
        DType::BF16 => Node::from("bf16"),
        DType::F16 => Node::Int(16),
        _ => Node::Int(32),
    }
}

/// The largest power of two that divides the vocabulary, so that loading pads nothing.
fn vocab_divisor(vocab_size: u64) -> u64 {
    (1_u64 << vocab_size.trailing_zeros().min(63)).min(MAX_VOCAB_DIVISOR)
}
