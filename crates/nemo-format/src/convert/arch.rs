//! A decoder's architecture as numbers, whatever file they came from, and the `model_config.yaml` it becomes.
//!
//! Keys and quirks follow NeMo 2.0.0's Hugging Face converters, except that Llama 3.1's frequency rule does not also set
//! `seq_len_interpolation_factor` (an error of that version, repaired in 2.2). What NeMo has no key for gets one of this
//! project's own: `output_layer_bias` and `rope_scaling`, and
//! `huggingface`, which only the way back to a Hugging Face folder reads.

use hydra_config::Node;
use model_spec::{
    Activation, BlockStyle, HeadLayout, ModelSpec, NormSpec, OutputSpec, PositionEmbedding, RopeScaling,
    RotaryConfig, RotaryPairing, TableRows, UniformSpec,
};

use super::family::Family;
use crate::{DType, FormatError};

/// NeMo's example configuration for Llama, with `???` where a conversion fills in.
const TEMPLATE: &str = include_str!("megatron_llama_config.yaml");

/// What the weights' shapes and the forward pass depend on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelArch {
    pub(super) family: Family,
    pub(super) num_layers: u64,
    pub(super) hidden_size: u64,
    pub(super) ffn_hidden_size: u64,
    pub(super) num_attention_heads: u64,
    pub(super) num_query_groups: u64,
    pub(super) head_dim: u64,
    pub(super) vocab_size: u64,
    pub(super) max_position_embeddings: u64,
    /// Attention reaches back this far; longer sequences than that are not attempted.
    pub(super) sliding_window: Option<u64>,
    pub(super) positions: Positions,
    pub(super) norm: NormSpec,
    pub(super) activation: Activation,
    pub(super) block: BlockStyle,
    pub(super) init_method_std: f64,
    pub(super) tied: bool,
    pub(super) biases: Biases,
    /// Query and key heads have norms.
    pub(super) qk_norm: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Positions {
    Learned,
    Rope(Rope),
}

/// The rotary embedding.
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
    /// Refuses sizes that no tensor could have, so that later arithmetic is safe.
    pub(super) fn check(&self, file: &str) -> Result<(), FormatError> {
        let bad = |reason: String| Err(FormatError::BadConfig { file: file.to_owned(), reason });
        let sizes = [
            ("number of layers", self.num_layers, 1 << 12),
            ("hidden size", self.hidden_size, 1 << 20),
            ("feed-forward size", self.ffn_hidden_size, 1 << 22),
            ("number of attention heads", self.num_attention_heads, 1 << 12),
            ("number of key-value heads", self.num_query_groups, 1 << 12),
            ("head dimension", self.head_dim, 1 << 12),
            ("vocabulary size", self.vocab_size, 1 << 24),
            ("context length", self.max_position_embeddings, 1 << 32),
            ("sliding window", self.sliding_window.unwrap_or(1), 1 << 32),
        ];
        for (what, value, limit) in sizes {
            if value == 0 || value > limit {
                return bad(format!("the {what} is {value}, expected 1 to {limit}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_query_groups) {
            return bad(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.num_attention_heads, self.num_query_groups
            ));
        }
        let Positions::Rope(rope) = self.positions else { return Ok(()) };
        let rotary_dim = (self.head_dim as f64 * rope.percentage) as u64;
        if !(rope.percentage > 0.0 && rope.percentage <= 1.0) || rotary_dim == 0 {
            return bad(format!("the rotary embedding turns the share {} of a head", rope.percentage));
        }
        if !rotary_dim.is_multiple_of(2) {
            let head_dim = self.head_dim;
            return bad(format!(
                "{rotary_dim} of {head_dim} dimensions of a head are rotated, an odd number"
            ));
        }
        Ok(())
    }

    /// How far back sequences may reach: NeMo's `encoder_seq_length`.
    fn encoder_seq_length(&self) -> u64 {
        self.sliding_window.unwrap_or(u64::MAX).min(self.max_position_embeddings)
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
        config.set("encoder_seq_length", int(self.encoder_seq_length()));
        config.set("max_position_embeddings", int(self.max_position_embeddings));
        config.set("data.seq_length", int(self.encoder_seq_length()));
        config.set("num_layers", int(self.num_layers));
        config.set("hidden_size", int(self.hidden_size));
        config.set("ffn_hidden_size", int(self.ffn_hidden_size));
        config.set("num_attention_heads", int(self.num_attention_heads));
        config.set("num_query_groups", int(self.num_query_groups));
        if self.head_dim * self.num_attention_heads != self.hidden_size {
            config.set("kv_channels", int(self.head_dim));
        }
        config.set("init_method_std", Node::Float(self.init_method_std));
        config.set("normalization", Node::from(self.norm.nemo_name()));
        config.set("layernorm_epsilon", Node::Float(self.norm.epsilon));
        config.set("make_vocab_size_divisible_by", int(vocab_divisor(self.vocab_size)));
        config.set("share_embeddings_and_output_weights", Node::Bool(self.tied));
        let (activation, openai_gelu) = self.activation.to_nemo().ok_or_else(|| FormatError::BadConfig {
            file: "megatron_llama_config.yaml".into(),
            reason: format!("NeMo has no name for the activation {:?}", self.activation),
        })?;
        config.set("activation", Node::from(activation));
        config.set("openai_gelu", Node::Bool(openai_gelu));
        match self.biases {
            Biases::None => {}
            Biases::Qkv => config.set("qkv_bias", Node::Bool(true)),
            Biases::All => config.set("bias", Node::Bool(true)),
        }
        if self.qk_norm {
            config.set("qk_layernorm", Node::Bool(true));
        }
        self.set_positions(&mut config);
        self.set_block(&mut config);
        config.set("tokenizer", tokenizer);
        config.set("precision", precision(dtype));
        Ok(config)
    }

    fn set_positions(&self, config: &mut Node) {
        let Positions::Rope(rope) = self.positions else {
            config.set("position_embedding_type", Node::from("learned_absolute"));
            config.set("rotary_base", Node::Int(10_000));
            config.set("scale_positional_embedding", Node::Bool(false));
            return;
        };
        config.set("rotary_percentage", Node::Float(rope.percentage));
        config.set("rotary_base", Node::Float(rope.base));
        if rope.interleaved {
            config.set("rotary_interleaved", Node::Bool(true));
        }
        config
            .set("scale_positional_embedding", Node::Bool(matches!(rope.scaling, RopeExtension::Llama3(_))));
        match rope.scaling {
            RopeExtension::None => {}
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

    /// What only some families have.
    fn set_block(&self, config: &mut Node) {
        let facts = self.family.facts();
        if self.block != BlockStyle::Sequential {
            config.set("mcore_customization_config.parallel_attention", Node::Bool(true));
            let has_two_norms = self.block == BlockStyle::ParallelOwnNorm;
            config.set("mcore_customization_config.new_decoder_architecture", Node::Bool(has_two_norms));
        } else if facts.nemo_name.is_some() {
            // Such layers are parallel by default.
            config.set("mcore_customization_config.parallel_attention", Node::Bool(false));
        }
        if let Some(name) = facts.nemo_name {
            config.set("name", Node::from(name));
        }
        if facts.overrides_vocab_size {
            config.set("override_vocab_size", int(self.vocab_size));
        }
        if facts.scales_embeddings {
            config.set("apply_embedding_scaling", Node::Bool(true));
        }
        if facts.has_output_bias {
            config.set("output_layer_bias", Node::Bool(true));
        }
        if facts.has_window {
            config.set("huggingface.model_type", Node::from(facts.name));
            config.set("huggingface.sliding_window", self.sliding_window.map_or(Node::Null, int));
        }
    }

    /// The model that it becomes. Sizes have been [checked](Self::check).
    pub(super) fn spec(&self) -> ModelSpec {
        let heads = HeadLayout {
            num_attention_heads: self.num_attention_heads as usize,
            num_query_groups: self.num_query_groups as usize,
            kv_channels: self.head_dim as usize,
        };
        let facts = self.family.facts();
        let uniform = UniformSpec {
            num_layers: self.num_layers as usize,
            hidden_size: self.hidden_size as usize,
            ffn_hidden_size: self.ffn_hidden_size as usize,
            heads,
            block_style: self.block,
            norm: self.norm,
            activation: self.activation,
            bias: self.biases == Biases::All,
            qkv_bias: self.biases != Biases::None,
            qk_layernorm: self.qk_norm,
            position_embedding: self.position_embedding(heads),
            window: None,
            apply_embedding_scaling: facts.scales_embeddings,
            output: OutputSpec { tied: self.tied, bias: facts.has_output_bias },
        };
        uniform.spec(TableRows { vocab: self.vocab_size, positions: self.max_position_embeddings })
    }

    fn position_embedding(&self, heads: HeadLayout) -> PositionEmbedding {
        let Positions::Rope(rope) = self.positions else { return PositionEmbedding::LearnedAbsolute };
        PositionEmbedding::Rope(RotaryConfig {
            rotary_dims: (heads.kv_channels as f64 * rope.percentage) as usize,
            pairing: if rope.interleaved { RotaryPairing::Interleaved } else { RotaryPairing::HalfSplit },
            rotary_base: rope.base,
            seq_len_interpolation_factor: match rope.scaling {
                RopeExtension::Linear(factor) => factor,
                RopeExtension::None | RopeExtension::Llama3(_) => 1.0,
            },
            rope_scaling: match rope.scaling {
                RopeExtension::Llama3(rule) => Some(rule),
                RopeExtension::None | RopeExtension::Linear(_) => None,
            },
        })
    }
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
