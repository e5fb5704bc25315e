//! How attention and the MLP of a layer are joined, and `mcore_customization_config`, which says so.
//!
//! NeMo copies that dictionary onto Megatron-Core's config; its Falcon layers read the block's keys from there. Every
//! other key in it is known to leave the arithmetic alone, or is refused.

use model_spec::BlockStyle;

use super::raw::{RawModelConfig, RawNumber, RawValue};
use crate::ModelError;

const CUSTOMIZATION: &str = "mcore_customization_config";

/// Keys of Megatron-Core's config that choose kernels, memory, precision of training or nothing at all here.
const WITHOUT_EFFECT: [&str; 9] = [
    "apply_query_key_layer_scaling",
    "attention_softmax_in_fp32",
    "batch_p2p_comm",
    "deterministic_mode",
    "init_method_std",
    "masked_softmax_fusion",
    "persist_layer_norm",
    "sequence_parallel",
    "use_cpu_initialization",
];
/// Parts of such keys.
const WITHOUT_EFFECT_PARTS: [&str; 7] =
    ["_fusion", "dropout", "recompute", "parallel_size", "tp_comm_", "cpu_offloading", "fp8"];

/// Keys that are read from there before they are read as NeMo's own.
const COMPUTED: [&str; 7] = [
    "parallel_attention",
    "new_decoder_architecture",
    "qk_layernorm",
    "rotary_interleaved",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
];

/// Keys that change nothing as long as they are off.
const OFF_WHEN_FALSE: [(&str, &str); 3] = [
    ("multi_latent_attention", "latent attention"),
    ("num_moe_experts", "a mixture of experts"),
    ("window_size", "sliding-window attention"),
];

/// How attention and the MLP of a layer are joined.
pub(super) fn parse(raw: &RawModelConfig) -> Result<BlockStyle, ModelError> {
    let is_falcon = raw.name.as_deref() == Some("megatron_falcon_gpt");
    let parallel = raw.customized_flag("parallel_attention")?.or(raw.parallel_attention).unwrap_or(is_falcon);
    let own_norm =
        raw.customized_flag("new_decoder_architecture")?.or(raw.new_decoder_architecture).unwrap_or(false);
    match (parallel, own_norm) {
        (false, false) => Ok(BlockStyle::Sequential),
        (true, false) => Ok(BlockStyle::ParallelSharedNorm),
        (true, true) => Ok(BlockStyle::ParallelOwnNorm),
        (false, true) => Err(ModelError::BadValue {
            key: CUSTOMIZATION,
            expected: "`parallel_attention: true` where it has `new_decoder_architecture: true`".to_owned(),
            actual: "parallel_attention: false".to_owned(),
        }),
    }
}

/// Whether the inputs of attention and MLP have norms: a key of this project, false in OLMo 2 alone.
pub(super) fn pre_layernorms(raw: &RawModelConfig, style: BlockStyle) -> Result<bool, ModelError> {
    let has_pre_norms = raw.pre_layernorms.unwrap_or(true);
    if !has_pre_norms && (style != BlockStyle::Sequential || raw.has_experts()) {
        return Err(ModelError::BadValue {
            key: "pre_layernorms",
            expected: "true with `parallel_attention` and with `num_moe_experts`".to_owned(),
            actual: "false".to_owned(),
        });
    }
    Ok(has_pre_norms)
}

impl RawModelConfig {
    /// A flag that `mcore_customization_config` sets.
    pub(super) fn customized_flag(&self, key: &'static str) -> Result<Option<bool>, ModelError> {
        match self.customization(key) {
            None => Ok(None),
            Some(RawValue::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(ModelError::BadValue {
                key: CUSTOMIZATION,
                expected: format!("`true` or `false` at `{key}`"),
                actual: other.to_string(),
            }),
        }
    }

    /// A number that `mcore_customization_config` sets.
    pub(super) fn customized_number(&self, key: &'static str) -> Result<Option<&RawNumber>, ModelError> {
        match self.customization(key) {
            None => Ok(None),
            Some(RawValue::Number(number)) => Ok(Some(number)),
            Some(other) => Err(ModelError::BadValue {
                key: CUSTOMIZATION,
                expected: format!("a number at `{key}`"),
                actual: other.to_string(),
            }),
        }
    }

    fn customization(&self, key: &str) -> Option<&RawValue> {
        self.mcore_customization_config.as_ref()?.get(key)?.as_ref()
    }

    /// Refuses keys of `mcore_customization_config` whose effect is not computed here, or not known.
    pub(super) fn refuse_customizations(&self) -> Result<(), ModelError> {
        for (key, value) in self.mcore_customization_config.iter().flatten() {
            let Some(value) = value else { continue };
            let is_known = COMPUTED.contains(&key.as_str())
                || WITHOUT_EFFECT.contains(&key.as_str())
                || WITHOUT_EFFECT_PARTS.iter().any(|part| key.contains(part));
            let feature = OFF_WHEN_FALSE.iter().find(|(name, _)| name == key).map(|(_, feature)| *feature);
            if is_known || (feature.is_some() && value.is_off()) {
                continue;
            }
            return Err(ModelError::Unsupported {
                key: CUSTOMIZATION,
                value: format!("{key}: {value}"),
                feature: feature.unwrap_or("a key of Megatron-Core whose effect is not known here"),
                needs: "a checkpoint trained without it",
            });
        }
        Ok(())
    }
}
