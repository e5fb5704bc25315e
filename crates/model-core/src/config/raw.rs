//! The model section as it is written: optional keys, tolerant numbers, unknown keys ignored.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::moe::RawBalancing;
use super::window::{RawHuggingFace, RawWindow};
use crate::ModelError;

/// A number however it was written: YAML 1.1 reads `1e-5` as a string, and integers stand for floats.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawNumber {
    /// A whole number.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A string that should be a number.
    Text(String),
}

/// Which layers have something: Megatron-Core's frequencies, as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawPerLayer {
    /// One of every so many.
    Every(RawNumber),
    /// For each layer, 1 or 0.
    Each(Vec<RawNumber>),
    /// Neither.
    Other(IgnoredAny),
}

impl RawPerLayer {
    /// For each layer whether it has it; `is_one` says so of a layer, counted from 0, where there is one of every so many.
    ///
    /// # Errors
    /// When it is neither a whole number from 1 nor a 0 or 1 for each layer.
    pub(super) fn layers(
        &self,
        key: &'static str,
        num_layers: usize,
        is_one: impl Fn(i64, i64) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let bad = |actual: String| ModelError::BadValue {
            key,
            expected: format!("null, a whole number from 1, or a list of {num_layers} numbers 0 and 1"),
            actual,
        };
        match self {
            Self::Every(number) => match number.to_whole() {
                Some(every) if every > 0 => {
                    Ok((0..num_layers as i64).map(|layer| is_one(layer, every)).collect())
                }
                _ => Err(bad(number.to_string())),
            },
            Self::Each(numbers) if numbers.len() == num_layers => {
                let flag = |number: &RawNumber| match number.to_whole() {
                    Some(0) => Ok(false),
                    Some(1) => Ok(true),
                    _ => Err(bad(format!("a list with {number}"))),
                };
                numbers.iter().map(flag).collect()
            }
            Self::Each(numbers) => Err(bad(format!("a list of {}", numbers.len()))),
            Self::Other(_) => Err(bad("neither a number nor a list of numbers".to_owned())),
        }
    }
}

impl RawNumber {
    /// The number, if it is whole.
    pub(super) fn to_whole(&self) -> Option<i64> {
        let number = self.to_f64().filter(|number| number.fract() == 0.0)?;
        (number.abs() <= f64::from(i32::MAX)).then_some(number as i64)
    }

    pub(super) fn to_f64(&self) -> Option<f64> {
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

/// A value of `mcore_customization_config`, which may be anything.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawValue {
    /// A flag.
    Bool(bool),
    /// A number or a string.
    Number(RawNumber),
    /// A list or a dictionary.
    Other(IgnoredAny),
}

impl RawValue {
    /// Whether it switches off what its key stands for.
    pub(super) fn is_off(&self) -> bool {
        match self {
            Self::Bool(flag) => !flag,
            Self::Number(number) => number.to_f64() == Some(0.0),
            Self::Other(_) => false,
        }
    }
}

impl RawValue {
    /// Whether it is a number below 0.
    pub(super) fn is_negative(&self) -> bool {
        matches!(self, Self::Number(number) if number.to_f64().is_some_and(|number| number < 0.0))
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Other(_) => f.write_str("a list or dictionary"),
        }
    }
}

/// The dictionary `rope_scaling`, unchecked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawRopeScaling {
    pub(super) factor: Option<RawNumber>,
    pub(super) low_freq_factor: Option<RawNumber>,
    pub(super) high_freq_factor: Option<RawNumber>,
    pub(super) original_max_position_embeddings: Option<RawNumber>,
    pub(super) factors: Option<Vec<RawNumber>>,
    pub(super) short_factor: Option<Vec<RawNumber>>,
    pub(super) long_factor: Option<Vec<RawNumber>>,
    pub(super) attention_factor: Option<RawNumber>,
    pub(super) dynamic_factor: Option<RawNumber>,
}

const SQRT_SCALAR: &str = "sqrt_query_pre_attn_scalar";
const BLOCK_SPECS: &str = "heterogeneous_block_specs";

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
    pub(super) activation_func_clamp_value: Option<RawNumber>,
    pub(super) glu_linear_offset: Option<RawNumber>,
    pub(super) openai_gelu: Option<bool>,
    pub(super) bias_activation_fusion: Option<bool>,
    pub(super) bias_gelu_fusion: Option<bool>,
    pub(super) bias: Option<bool>,
    pub(super) qkv_bias: Option<bool>,
    pub(super) position_embedding_type: Option<String>,
    pub(super) rotary_percentage: Option<RawNumber>,
    pub(super) rotary_base: Option<RawNumber>,
    pub(super) rotary_interleaved: Option<bool>,
    pub(super) seq_len_interpolation_factor: Option<RawNumber>,
    pub(super) scale_positional_embedding: Option<bool>,
    pub(super) rope_scaling: Option<RawRopeScaling>,
    pub(super) share_embeddings_and_output_weights: Option<bool>,
    pub(super) output_layer_bias: Option<bool>,
    pub(super) apply_embedding_scaling: Option<bool>,
    pub(super) name: Option<String>,
    pub(super) mcore_customization_config: Option<BTreeMap<String, Option<RawValue>>>,
    pub(super) num_moe_experts: Option<RawNumber>,
    pub(super) moe_apply_probs_on_input: Option<RawValue>,
    pub(super) moe_expert_capacity_factor: Option<RawValue>,
    pub(super) moe_ffn_hidden_size: Option<RawNumber>,
    pub(super) moe_latent_size: Option<RawValue>,
    pub(super) moe_layer_freq: Option<RawPerLayer>,
    pub(super) moe_mlp_glu_interleave_size: Option<RawValue>,
    pub(super) moe_router_enable_expert_bias: Option<bool>,
    pub(super) moe_router_force_biased: Option<RawValue>,
    pub(super) moe_router_force_load_balancing: Option<RawValue>,
    pub(super) moe_router_group_topk: Option<RawValue>,
    pub(super) moe_router_load_balancing_type: Option<RawBalancing>,
    pub(super) moe_router_num_groups: Option<RawValue>,
    pub(super) moe_router_pre_softmax: Option<bool>,
    pub(super) moe_router_score_function: Option<String>,
    pub(super) moe_router_topk: Option<RawNumber>,
    pub(super) moe_router_topk_limited_devices: Option<RawValue>,
    pub(super) moe_router_topk_scaling_factor: Option<RawNumber>,
    pub(super) moe_shared_expert_gate: Option<bool>,
    pub(super) moe_shared_expert_glu_interleave_size: Option<RawValue>,
    pub(super) moe_shared_expert_intermediate_size: Option<RawNumber>,
    pub(super) moe_token_dropping: Option<RawValue>,
    transformer_block_type: Option<String>,
    headscale: Option<bool>,
    attention_type: Option<String>,
    normalize_attention_scores: Option<bool>,
    pub(super) qk_layernorm: Option<bool>,
    pub(super) qk_layernorm_across_heads: Option<bool>,
    pub(super) parallel_attention: Option<bool>,
    pub(super) new_decoder_architecture: Option<bool>,
    pub(super) window_size: Option<RawWindow>,
    pub(super) huggingface: Option<RawHuggingFace>,
    megatron_legacy: Option<bool>,
    multi_latent_attention: Option<bool>,
    apply_residual_connection_post_layernorm: Option<RawValue>,
    pub(super) attn_logit_softcapping: Option<RawNumber>,
    pub(super) final_logit_softcapping: Option<RawNumber>,
    heterogeneous_block_specs: Option<RawValue>,
    hybrid_override_pattern: Option<RawValue>,
    is_hybrid_model: Option<RawValue>,
    mm_cfg: Option<RawValue>,
    mrope_section: Option<RawValue>,
    pub(super) query_pre_attn_scalar: Option<RawNumber>,
    retro: Option<RawValue>,
    pub(super) softmax_scale: Option<RawNumber>,
    pub(super) softmax_type: Option<String>,
    sqrt_query_pre_attn_scalar: Option<RawValue>,
    pub(super) window_attn_skip_freq: Option<RawPerLayer>,
    pub(super) rotary_base_local: Option<RawNumber>,
    pub(super) post_layernorms: Option<bool>,
    pub(super) pre_layernorms: Option<bool>,
    pub(super) qk_layernorm_per_head: Option<bool>,
    pub(super) embedding_multiplier: Option<RawNumber>,
    pub(super) residual_multiplier: Option<RawNumber>,
    pub(super) logits_multiplier: Option<RawNumber>,
    pub(super) heterogeneous_layers_config_encoded_json: Option<String>,
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

    /// Whether some layers may have experts.
    pub(super) fn has_experts(&self) -> bool {
        self.num_moe_experts.as_ref().is_some_and(|number| number.to_f64() != Some(0.0))
    }

    /// Whether NeMo builds the layers of Gemma 2 (`megatron_gpt_model.py`).
    pub(super) fn is_gemma2(&self) -> bool {
        self.name.as_deref() == Some("megatron_gemma2")
    }

    /// Refuses every key that would change the arithmetic in a way this model does not compute.
    pub(super) fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let refuse = |key, value: &dyn fmt::Display, feature, needs| {
            Err(ModelError::Unsupported { key, value: value.to_string(), feature, needs })
        };
        if let Some(name @ "te_gpt_hyena") = self.name.as_deref() {
            let needs = "a checkpoint of the GPT, Llama, Gemma, Falcon or Nemotron family";
            return refuse("name", &name, "a layer specification of its own", needs);
        }
        if let Some(block) = self.transformer_block_type.as_deref().filter(|&block| block != "pre_ln") {
            let needs = "a checkpoint trained with `transformer_block_type: pre_ln`";
            return refuse("transformer_block_type", &block, "a norm at another place", needs);
        }
        if let Some(attention) = self.attention_type.as_deref().filter(|&attention| attention != "multihead")
        {
            let needs = "a checkpoint trained with `attention_type: multihead`";
            return refuse("attention_type", &attention, "another attention", needs);
        }
        if self.normalize_attention_scores == Some(false) {
            let needs = "a checkpoint trained with `normalize_attention_scores: true`";
            return refuse("normalize_attention_scores", &false, "attention without its scale", needs);
        }
        const WITHOUT: &str = "a checkpoint trained without it";
        let flags = [
            ("headscale", self.headscale, "scaling of heads", WITHOUT),
            ("multi_latent_attention", self.multi_latent_attention, "latent attention", WITHOUT),
            (
                "megatron_legacy",
                self.megatron_legacy,
                "the row order of the oldest Megatron checkpoints",
                "a checkpoint that NeMo 1.0 or later has written",
            ),
        ];
        for (key, value, feature, needs) in flags {
            if value == Some(true) {
                return refuse(key, &true, feature, needs);
            }
        }
        for (key, value, feature) in self.keys_of_other_models() {
            // In every Gemma 2 of NeMo, whose layers read the other key; what the layers are stands in another key.
            let is_unread = (key == SQRT_SCALAR && self.is_gemma2())
                || (key == BLOCK_SPECS && self.heterogeneous_layers_config_encoded_json.is_some());
            if let Some(value) = value.as_ref().filter(|value| !value.is_off() && !is_unread) {
                return refuse(key, value, feature, WITHOUT);
            }
        }
        self.refuse_customizations()
    }

    /// Keys of Megatron-Core's other models, which change nothing as long as they are off.
    fn keys_of_other_models(&self) -> [(&'static str, &Option<RawValue>, &'static str); 8] {
        const SCALE: &str = "another scale of attention scores";
        [
            (
                "apply_residual_connection_post_layernorm",
                &self.apply_residual_connection_post_layernorm,
                "a residual stream taken behind the norm",
            ),
            (BLOCK_SPECS, &self.heterogeneous_block_specs, "layers of several kinds"),
            ("hybrid_override_pattern", &self.hybrid_override_pattern, "layers of several kinds"),
            ("is_hybrid_model", &self.is_hybrid_model, "layers of several kinds"),
            ("mm_cfg", &self.mm_cfg, "a model of text and images"),
            ("mrope_section", &self.mrope_section, "positions of several axes"),
            ("retro", &self.retro, "a model that retrieves"),
            (SQRT_SCALAR, &self.sqrt_query_pre_attn_scalar, SCALE),
        ]
    }
}
