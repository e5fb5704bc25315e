//! The model section as it is written: optional keys, tolerant numbers, unknown keys ignored.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::ModelError;

/// A number however it was written: YAML 1.1 reads `1e-5` as text, and integers stand for floats.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawNumber {
    /// A whole number.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text that should be a number.
    Text(String),
}

impl RawNumber {
    fn to_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Text(text) => text.trim().parse().ok(),
        }
    }
}

impl fmt::Display for RawNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// The keys of `model_config.yaml` that the model looks at, unchecked. A null is a key that is not there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawModelConfig {
    pub(super) num_layers: Option<RawNumber>,
    pub(super) hidden_size: Option<RawNumber>,
    pub(super) ffn_hidden_size: Option<RawNumber>,
    pub(super) num_attention_heads: Option<RawNumber>,
    pub(super) num_query_groups: Option<RawNumber>,
    pub(super) kv_channels: Option<RawNumber>,
    pub(super) encoder_seq_length: Option<RawNumber>,
    pub(super) max_position_embeddings: Option<RawNumber>,
    pub(super) normalization: Option<String>,
    pub(super) layernorm_zero_centered_gamma: Option<bool>,
    pub(super) layernorm_epsilon: Option<RawNumber>,
    pub(super) activation: Option<String>,
    pub(super) openai_gelu: Option<bool>,
    pub(super) bias: Option<bool>,
    pub(super) qkv_bias: Option<bool>,
    pub(super) position_embedding_type: Option<String>,
    pub(super) rotary_percentage: Option<RawNumber>,
    pub(super) rotary_base: Option<RawNumber>,
    pub(super) rotary_interleaved: Option<bool>,
    pub(super) seq_len_interpolation_factor: Option<RawNumber>,
    pub(super) scale_positional_embedding: Option<bool>,
    pub(super) share_embeddings_and_output_weights: Option<bool>,
    pub(super) apply_embedding_scaling: Option<bool>,
    name: Option<String>,
    num_moe_experts: Option<RawNumber>,
    transformer_block_type: Option<String>,
    headscale: Option<bool>,
    attention_type: Option<String>,
    normalize_attention_scores: Option<bool>,
    qk_layernorm: Option<bool>,
    parallel_attention: Option<bool>,
    new_decoder_architecture: Option<bool>,
    window_size: Option<IgnoredAny>,
    megatron_legacy: Option<bool>,
    multi_latent_attention: Option<bool>,
    mcore_customization_config: Option<BTreeMap<String, IgnoredAny>>,
}

impl RawModelConfig {
    /// A positive whole number.
    pub(super) fn size(
        &self,
        key: &'static str,
        value: Option<&RawNumber>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(raw) = value else { return Ok(None) };
        // Every size fits in 32 bits, which keeps all products of two in 64.
        match raw.to_f64() {
            Some(number) if number.fract() == 0.0 && number >= 1.0 && number <= f64::from(i32::MAX) => {
                Ok(Some(number as usize))
            }
            _ => Err(ModelError::BadValue {
                key,
                expected: format!("a whole number from 1 to {}", i32::MAX),
                actual: raw.to_string(),
            }),
        }
    }

    /// A positive number.
    pub(super) fn positive(
        &self,
        key: &'static str,
        value: Option<&RawNumber>,
    ) -> Result<Option<f64>, ModelError> {
        let Some(raw) = value else { return Ok(None) };
        match raw.to_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(ModelError::BadValue {
                key,
                expected: "a positive number".to_owned(),
                actual: raw.to_string(),
            }),
        }
    }

    /// Refuses every key that would change the arithmetic in a way this model does not compute.
    pub(super) fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let refuse = |key, value: &dyn fmt::Display, feature| {
            Err(ModelError::Unsupported { key, value: value.to_string(), feature })
        };
        if let Some(name @ ("megatron_falcon_gpt" | "megatron_gemma2" | "te_gpt_hyena")) =
            self.name.as_deref()
        {
            return refuse("name", &name, "this layer specification");
        }
        if let Some(experts) = &self.num_moe_experts
            && experts.to_f64() != Some(0.0)
        {
            return refuse("num_moe_experts", experts, "a mixture of experts");
        }
        if let Some(block) = self.transformer_block_type.as_deref().filter(|&block| block != "pre_ln") {
            return refuse("transformer_block_type", &block, "any block but `pre_ln`");
        }
        if let Some(attention) = self.attention_type.as_deref().filter(|&attention| attention != "multihead")
        {
            return refuse("attention_type", &attention, "any attention but `multihead`");
        }
        if self.normalize_attention_scores == Some(false) {
            return refuse("normalize_attention_scores", &false, "attention without the scale of the scores");
        }
        if self.window_size.is_some() {
            return refuse("window_size", &"set", "sliding-window attention");
        }
        let flags = [
            ("headscale", self.headscale, "scaling of heads"),
            ("qk_layernorm", self.qk_layernorm, "a norm of queries and keys"),
            ("rotary_interleaved", self.rotary_interleaved, "rotation of neighbouring dimensions"),
            ("parallel_attention", self.parallel_attention, "attention beside the MLP"),
            ("new_decoder_architecture", self.new_decoder_architecture, "the Falcon block"),
            ("megatron_legacy", self.megatron_legacy, "the row order of the oldest Megatron checkpoints"),
            ("multi_latent_attention", self.multi_latent_attention, "latent attention"),
        ];
        for (key, value, feature) in flags {
            if value == Some(true) {
                return refuse(key, &true, feature);
            }
        }
        if let Some(keys) = self.mcore_customization_config.as_ref().filter(|keys| !keys.is_empty()) {
            let names = keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return refuse("mcore_customization_config", &names, "overriding Megatron-Core's own config");
        }
        Ok(())
    }
}
