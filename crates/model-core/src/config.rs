//! The model section of a NeMo config, checked: what the arithmetic depends on, and nothing else.
//!
//! Keys, defaults and meanings are NeMo's (`megatron_gpt_config.yaml`, Megatron-Core's `TransformerConfig`). What this
//! model does not compute is refused here, before any weight is read.

mod attention;
mod block;
mod blocks;
mod moe;
mod position;
mod raw;
mod window;

use model_spec::{
    Activation, BadActivation, GLU_CLAMP, HeadLayout, ModelSpec, Module, Multipliers, NemoActivation,
    Nonlinearity, NormSpec, Normalization, OutputSpec, Part, TableRows, TensorId, UniformSpec,
};
use nemo_format::TensorSource;
pub use raw::RawModelConfig;

use crate::ModelError;

/// A checked model config.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What every layer and the model consist of.
    pub uniform: UniformSpec,
    /// Tokens that a sequence may have, prompt and response together.
    pub encoder_seq_length: usize,
    /// Positions the model was trained with.
    pub max_position_embeddings: usize,
}

impl ModelConfig {
    /// The model, with tables of these sizes.
    pub fn spec(&self, rows: TableRows) -> ModelSpec {
        self.uniform.spec(rows)
    }

    /// The model with the tables of a checkpoint; one that it lacks has no rows, and is an error when weights are read.
    pub fn spec_of(&self, source: &dyn TensorSource) -> ModelSpec {
        let rows = |module| {
            let name = TensorId::outside(module, Part::Weight).name();
            source.meta(&name).and_then(|meta| meta.shape.first()).copied().unwrap_or(0)
        };
        let positions = rows(Module::PositionEmbeddings);
        self.spec(TableRows { vocab: rows(Module::WordEmbeddings), positions })
    }
}

impl TryFrom<RawModelConfig> for ModelConfig {
    type Error = ModelError;

    fn try_from(raw: RawModelConfig) -> Result<Self, ModelError> {
        raw.refuse_unsupported()?;
        let hidden_size = required(raw.size("hidden_size", raw.hidden_size.as_ref())?, "hidden_size")?;
        let heads = parse_heads(&raw, hidden_size)?;
        let encoder_seq_length =
            required(raw.size("encoder_seq_length", raw.encoder_seq_length.as_ref())?, "encoder_seq_length")?;
        let norm = parse_norm(&raw)?;
        let bias = raw.bias.unwrap_or(true);
        let num_layers = required(raw.size("num_layers", raw.num_layers.as_ref())?, "num_layers")?;
        let ffn_hidden_size = raw.size("ffn_hidden_size", raw.ffn_hidden_size.as_ref())?;
        let ffn_hidden_size = ffn_hidden_size.unwrap_or(4 * hidden_size);
        let block_style = block::parse(&raw)?;
        let windows = window::parse(&raw)?;
        let mut attention = attention::parse(&raw, num_layers)?;
        attention.local = attention.local.or_else(|| windows.local(num_layers, encoder_seq_length));
        let uniform = UniformSpec {
            attention,
            post_layernorms: raw.post_layernorms.unwrap_or_else(|| raw.is_gemma2()),
            pre_layernorms: block::pre_layernorms(&raw, block_style)?,
            multipliers: multipliers(&raw)?,
            blocks: blocks::parse(&raw, (num_layers, hidden_size), heads, block_style)?,
            num_layers,
            hidden_size,
            ffn_hidden_size,
            moe: moe::parse(&raw, num_layers, ffn_hidden_size, block_style)?,
            heads,
            block_style,
            norm,
            activation: parse_activation(&raw)?,
            bias,
            qkv_bias: bias || raw.qkv_bias.unwrap_or(false),
            qk_layernorm: raw.customized_flag("qk_layernorm")?.or(raw.qk_layernorm).unwrap_or(false),
            position_embedding: position::parse(&raw, heads.kv_channels, encoder_seq_length)?,
            window: windows.limit,
            apply_embedding_scaling: raw.apply_embedding_scaling.unwrap_or(false),
            output: OutputSpec {
                tied: raw.share_embeddings_and_output_weights.unwrap_or(true),
                bias: raw.output_layer_bias.unwrap_or(false),
                softcap: attention::logit_softcap(&raw)?,
            },
        };
        Ok(Self {
            uniform,
            encoder_seq_length,
            max_position_embeddings: raw
                .size("max_position_embeddings", raw.max_position_embeddings.as_ref())?
                .unwrap_or(encoder_seq_length),
        })
    }
}

fn parse_heads(raw: &RawModelConfig, hidden_size: usize) -> Result<HeadLayout, ModelError> {
    let num_attention_heads =
        required(raw.size("num_attention_heads", raw.num_attention_heads.as_ref())?, "num_attention_heads")?;
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
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            return Err(ModelError::BadValue {
                key: "num_attention_heads",
                expected: format!("a divisor of `hidden_size`, {hidden_size}, when `kv_channels` is not set"),
                actual: num_attention_heads.to_string(),
            });
        }
    };
    Ok(HeadLayout { num_attention_heads, num_query_groups, kv_channels })
}

/// What embeddings, outputs and logits are multiplied by: keys of this project, for models that NeMo does not have.
fn multipliers(raw: &RawModelConfig) -> Result<Multipliers, ModelError> {
    // A factor of 1 is none.
    let number = |key, value: &Option<raw::RawNumber>| {
        Ok::<_, ModelError>(raw.positive(key, value.as_ref())?.filter(|&number| number != 1.0))
    };
    let found = Multipliers {
        embedding: number("embedding_multiplier", &raw.embedding_multiplier)?,
        residual: number("residual_multiplier", &raw.residual_multiplier)?,
        logits: number("logits_multiplier", &raw.logits_multiplier)?,
    };
    let refuse = |key, expected: &str, actual: f64| {
        Err(ModelError::BadValue { key, expected: expected.to_owned(), actual: actual.to_string() })
    };
    match found {
        Multipliers { embedding: Some(factor), .. } if raw.apply_embedding_scaling == Some(true) => {
            refuse("embedding_multiplier", "null with `apply_embedding_scaling: true`", factor)
        }
        Multipliers { residual: Some(factor), .. } if raw.has_experts() => {
            refuse("residual_multiplier", "null with `num_moe_experts`", factor)
        }
        found => Ok(found),
    }
}

fn required(value: Option<usize>, key: &'static str) -> Result<usize, ModelError> {
    value.ok_or(ModelError::MissingKey { key })
}

fn parse_norm(raw: &RawModelConfig) -> Result<NormSpec, ModelError> {
    let text = raw.normalization.as_deref().unwrap_or("layernorm");
    let is_zero_centered = raw.layernorm_zero_centered_gamma.unwrap_or(false);
    let (normalization, zero_centered_gamma) = match text.to_ascii_lowercase().as_str() {
        "layernorm" => (Normalization::LayerNorm, is_zero_centered),
        "layernorm1p" => (Normalization::LayerNorm, true),
        "rmsnorm" => (Normalization::RmsNorm, is_zero_centered),
        _ => {
            return Err(ModelError::BadValue {
                key: "normalization",
                expected: "`layernorm`, `layernorm1p` or `rmsnorm`".to_owned(),
                actual: text.to_owned(),
            });
        }
    };
    let epsilon = raw.positive("layernorm_epsilon", raw.layernorm_epsilon.as_ref())?.unwrap_or(1e-5);
    Ok(NormSpec { normalization, zero_centered_gamma, epsilon })
}

fn parse_activation(raw: &RawModelConfig) -> Result<Activation, ModelError> {
    let keys = NemoActivation {
        name: raw.activation.as_deref().unwrap_or("gelu"),
        openai_gelu: raw.openai_gelu.unwrap_or(false),
        bias_activation_fusion: raw.bias_activation_fusion,
        bias: raw.bias.unwrap_or(true),
    };
    let bad = |key, expected: &str, actual: &str| ModelError::BadValue {
        key,
        expected: expected.to_owned(),
        actual: actual.to_owned(),
    };
    let activation = keys.function().map_err(|error| match error {
        BadActivation::UnknownName => bad(
            "activation",
            "`gelu`, `approx-gelu`, `squared-relu`, `[fast-]geglu`, `[fast-]swiglu`, `[fast-]reglu` or `quick-geglu`",
            keys.name,
        ),
        BadActivation::FusedWithoutBias => bad(
            "bias_activation_fusion",
            "`false` with `activation: gelu` and `bias: false`, which NeMo does not fuse",
            "true",
        ),
    })?;
    check_limits(raw, activation)?;
    // NeMo 1.5 to 1.9 read the function from this key; later versions do not look at it, and fuse.
    let is_older_key_read = raw.bias_activation_fusion.is_none() && raw.bias_gelu_fusion == Some(false);
    let is_plain_tanh = activation == Activation { nonlinearity: Nonlinearity::GeluTanh, gated: false };
    if is_older_key_read && is_plain_tanh && !keys.openai_gelu {
        return Err(ModelError::Unsupported {
            key: "bias_gelu_fusion",
            value: false.to_string(),
            feature: "a GELU that NeMo up to 1.9 computes by the error function and later versions in its tanh form",
            needs: "`++model.bias_activation_fusion=false` for the former, `=true` for the latter",
        });
    }
    Ok(activation)
}

/// The limit of an MLP's numbers, and what is added to those that a gate multiplies: `quick-geglu` has both, and nothing else
/// has any.
fn check_limits(raw: &RawModelConfig, activation: Activation) -> Result<(), ModelError> {
    let is_limited = activation.nonlinearity == Nonlinearity::ClampedQuickGelu;
    for (key, value, only) in [
        ("activation_func_clamp_value", &raw.activation_func_clamp_value, f64::from(GLU_CLAMP)),
        ("glu_linear_offset", &raw.glu_linear_offset, 1.0),
    ] {
        let number = value.as_ref().map(|value| value.to_f64());
        let fits = match number {
            None | Some(Some(0.0)) => !is_limited,
            Some(number) => is_limited && number == Some(only),
        };
        if !fits {
            let actual = value.as_ref().map_or_else(|| "null".to_owned(), ToString::to_string);
            let expected = match is_limited {
                true => format!("{only} with `activation: quick-geglu`"),
                false => "null or 0 without `activation: quick-geglu`".to_owned(),
            };
            return Err(ModelError::BadValue { key, expected, actual });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
