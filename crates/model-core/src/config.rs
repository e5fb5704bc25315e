//! The model section of a NeMo config, checked: what the arithmetic depends on, and nothing else.
//!
//! Keys, defaults and meanings are NeMo's (`megatron_gpt_config.yaml`, Megatron-Core's `TransformerConfig`). What this
//! model does not compute is refused here, before any weight is read.

mod block;
mod position;
mod raw;
mod window;

pub use model_spec::{
    Activation, AttentionWindow, BlockStyle, Nonlinearity, Normalization, PositionEmbedding, RopeScaling,
    RotaryConfig, RotaryPairing,
};
use model_spec::{HeadLayout, KvGroup, ModelSpec, NormSpec, OutputSpec, TableRows, UniformSpec};
pub use raw::RawModelConfig;

use crate::ModelError;

/// A checked model config.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP, of one half when gated.
    pub ffn_hidden_size: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_query_groups: usize,
    /// Dimensions of a head.
    pub kv_channels: usize,
    /// How attention and the MLP of a layer are joined.
    pub block_style: BlockStyle,
    /// Which norm.
    pub normalization: Normalization,
    /// The stored gain lacks 1 (`layernorm1p`, `layernorm_zero_centered_gamma`).
    pub zero_centered_gamma: bool,
    /// Added under the root.
    pub layernorm_epsilon: f64,
    /// The function of the MLP.
    pub activation: Activation,
    /// Biases on the projections other than QKV.
    pub bias: bool,
    /// A bias on QKV.
    pub qkv_bias: bool,
    /// How positions enter.
    pub position_embedding: PositionEmbedding,
    /// The output layer is the embedding table.
    pub share_embeddings_and_output_weights: bool,
    /// A bias on the output layer, which GPT-J has.
    pub output_layer_bias: bool,
    /// Embeddings are multiplied by the root of the hidden size.
    pub apply_embedding_scaling: bool,
    /// Tokens that a sequence may have, prompt and response together.
    pub encoder_seq_length: usize,
    /// Positions the model was trained with.
    pub max_position_embeddings: usize,
    /// How far attention reaches back, where that is not everywhere.
    pub attention_window: Option<AttentionWindow>,
}

impl ModelConfig {
    /// What every layer and the model consist of.
    pub fn uniform(&self) -> UniformSpec {
        UniformSpec {
            num_layers: self.num_layers,
            hidden_size: self.hidden_size,
            ffn_hidden_size: self.ffn_hidden_size,
            heads: HeadLayout {
                num_attention_heads: self.num_attention_heads,
                num_query_groups: self.num_query_groups,
                kv_channels: self.kv_channels,
            },
            block_style: self.block_style,
            norm: NormSpec {
                normalization: self.normalization,
                zero_centered_gamma: self.zero_centered_gamma,
                epsilon: self.layernorm_epsilon,
            },
            activation: self.activation,
            bias: self.bias,
            qkv_bias: self.qkv_bias,
            position_embedding: self.position_embedding,
            window: self.attention_window,
            apply_embedding_scaling: self.apply_embedding_scaling,
            output: OutputSpec {
                tied: self.share_embeddings_and_output_weights,
                bias: self.output_layer_bias,
            },
        }
    }

    /// The groups of layers of its KV cache, which do not depend on the sizes of tables.
    pub fn kv_groups(&self) -> Vec<KvGroup> {
        self.spec(TableRows { vocab: 0, positions: 0 }).kv_groups()
    }

    /// The model, with tables of these sizes.
    pub fn spec(&self, rows: TableRows) -> ModelSpec {
        self.uniform().spec(rows)
    }
}

impl TryFrom<RawModelConfig> for ModelConfig {
    type Error = ModelError;

    fn try_from(raw: RawModelConfig) -> Result<Self, ModelError> {
        raw.refuse_unsupported()?;
        let hidden_size = required(raw.size("hidden_size", raw.hidden_size.as_ref())?, "hidden_size")?;
        let num_attention_heads = required(
            raw.size("num_attention_heads", raw.num_attention_heads.as_ref())?,
            "num_attention_heads",
        )?;
        let num_query_groups =
            raw.size("num_query_groups", raw.num_query_groups.as_ref())?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_query_groups != 0 {
            return Err(ModelError::BadValue {
                key: "num_query_groups",
                expected: format!("a divisor of `num_attention_heads`, {num_attention_heads}"),
                actual: num_query_groups.to_string(),
            });
        }
        let kv_channels = match raw.size("kv_channels", raw.kv_channels.as_ref())? {
            Some(kv_channels) => kv_channels,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(ModelError::BadValue {
                    key: "num_attention_heads",
                    expected: format!(
                        "a divisor of `hidden_size`, {hidden_size}, when `kv_channels` is not set"
                    ),
                    actual: num_attention_heads.to_string(),
                });
            }
        };
        let encoder_seq_length =
            required(raw.size("encoder_seq_length", raw.encoder_seq_length.as_ref())?, "encoder_seq_length")?;
        let (normalization, zero_centered_gamma) = parse_normalization(&raw)?;
        let bias = raw.bias.unwrap_or(true);
        Ok(Self {
            num_layers: required(raw.size("num_layers", raw.num_layers.as_ref())?, "num_layers")?,
            hidden_size,
            ffn_hidden_size: raw
                .size("ffn_hidden_size", raw.ffn_hidden_size.as_ref())?
                .unwrap_or(4 * hidden_size),
            num_attention_heads,
            num_query_groups,
            kv_channels,
            block_style: block::parse(&raw)?,
            normalization,
            zero_centered_gamma,
            layernorm_epsilon: raw
                .positive("layernorm_epsilon", raw.layernorm_epsilon.as_ref())?
                .unwrap_or(1e-5),
            activation: parse_activation(&raw)?,
            bias,
            qkv_bias: bias || raw.qkv_bias.unwrap_or(false),
            position_embedding: position::parse(&raw, kv_channels)?,
            share_embeddings_and_output_weights: raw.share_embeddings_and_output_weights.unwrap_or(true),
            output_layer_bias: raw.output_layer_bias.unwrap_or(false),
            apply_embedding_scaling: raw.apply_embedding_scaling.unwrap_or(false),
            encoder_seq_length,
            max_position_embeddings: raw
                .size("max_position_embeddings", raw.max_position_embeddings.as_ref())?
                .unwrap_or(encoder_seq_length),
            attention_window: window::parse(&raw)?,
        })
    }
}

fn required(value: Option<usize>, key: &'static str) -> Result<usize, ModelError> {
    value.ok_or(ModelError::MissingKey { key })
}

fn parse_normalization(raw: &RawModelConfig) -> Result<(Normalization, bool), ModelError> {
    let text = raw.normalization.as_deref().unwrap_or("layernorm");
    let zero_centered_gamma = raw.layernorm_zero_centered_gamma.unwrap_or(false);
    match text.to_ascii_lowercase().as_str() {
        "layernorm" => Ok((Normalization::LayerNorm, zero_centered_gamma)),
        "layernorm1p" => Ok((Normalization::LayerNorm, true)),
        "rmsnorm" => Ok((Normalization::RmsNorm, zero_centered_gamma)),
        _ => Err(ModelError::BadValue {
            key: "normalization",
            expected: "`layernorm`, `layernorm1p` or `rmsnorm`".to_owned(),
            actual: text.to_owned(),
        }),
    }
}

fn parse_activation(raw: &RawModelConfig) -> Result<Activation, ModelError> {
    let text = raw.activation.as_deref().unwrap_or("gelu");
    Activation::from_nemo(text, raw.openai_gelu.unwrap_or(false)).ok_or_else(|| ModelError::BadValue {
        key: "activation",
        expected: "`gelu`, `approx-gelu`, `squared-relu`, `[fast-]geglu`, `[fast-]swiglu` or `[fast-]reglu`"
            .to_owned(),
        actual: text.to_owned(),
    })
}

#[cfg(test)]
mod tests;
