//! The Llama architecture as numbers, whatever file they came from, and the `model_config.yaml` it becomes.
//!
//! Keys and quirks follow NeMo 2.0.0's `convert_llama_hf_to_nemo.py`, except that Llama 3.1's frequency rule does not
//! also set `seq_len_interpolation_factor` (an error of that version, repaired in 2.2).

use hydra_config::Node;

use crate::{DType, FormatError};

/// NeMo's example configuration for Llama, with `???` where a conversion fills in.
const TEMPLATE: &str = include_str!("megatron_llama_config.yaml");

/// What the weights' shapes and the rotary embedding depend on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LlamaArch {
    pub(super) num_layers: u64,
    pub(super) hidden_size: u64,
    pub(super) ffn_hidden_size: u64,
    pub(super) num_attention_heads: u64,
    pub(super) num_query_groups: u64,
    pub(super) head_dim: u64,
    pub(super) vocab_size: u64,
    pub(super) max_position_embeddings: u64,
    pub(super) rotary_percentage: f64,
    pub(super) rotary_base: f64,
    pub(super) rope_scaling: RopeScaling,
    pub(super) layernorm_epsilon: f64,
    pub(super) init_method_std: f64,
    pub(super) tied: bool,
    pub(super) biases: Biases,
}

/// How positions beyond the training length are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// Positions are divided by a factor.
    Linear(f64),
    /// Llama 3.1's rule with the constants that NeMo fixes.
    Llama31,
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    Qkv,
    /// Those that the source lacks are zeros.
    All,
}

/// The factor, low and high frequency factors and original length that `scale_positional_embedding` stands for.
pub(super) const LLAMA31_CONSTANTS: [f64; 4] = [8.0, 1.0, 4.0, 8192.0];
/// The largest divisor that NeMo's converter chooses.
const MAX_VOCAB_DIVISOR: u64 = 128;

impl LlamaArch {
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
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("the head dimension {} is odd", self.head_dim));
        }
        Ok(())
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
        let int = |value: u64| Node::Int(i64::try_from(value).unwrap_or(i64::MAX));
        config.set("encoder_seq_length", int(self.max_position_embeddings));
        config.set("max_position_embeddings", int(self.max_position_embeddings));
        config.set("data.seq_length", int(self.max_position_embeddings));
        config.set("num_layers", int(self.num_layers));
        config.set("hidden_size", int(self.hidden_size));
        config.set("ffn_hidden_size", int(self.ffn_hidden_size));
        config.set("num_attention_heads", int(self.num_attention_heads));
        config.set("num_query_groups", int(self.num_query_groups));
        if self.head_dim * self.num_attention_heads != self.hidden_size {
            config.set("kv_channels", int(self.head_dim));
        }
        config.set("init_method_std", Node::Float(self.init_method_std));
        config.set("layernorm_epsilon", Node::Float(self.layernorm_epsilon));
        config.set("make_vocab_size_divisible_by", int(vocab_divisor(self.vocab_size)));
        config.set("share_embeddings_and_output_weights", Node::Bool(self.tied));
        config.set("rotary_percentage", Node::Float(self.rotary_percentage));
        match self.biases {
            Biases::None => {}
            Biases::Qkv => config.set("qkv_bias", Node::Bool(true)),
            Biases::All => config.set("bias", Node::Bool(true)),
        }
        if let RopeScaling::Linear(factor) = self.rope_scaling {
            config.set("seq_len_interpolation_factor", Node::Float(factor));
        }
        config.set("rotary_base", Node::Float(self.rotary_base));
        config.set("scale_positional_embedding", Node::Bool(self.rope_scaling == RopeScaling::Llama31));
        config.set("tokenizer", tokenizer);
        config.set("precision", precision(dtype));
        Ok(config)
    }
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
