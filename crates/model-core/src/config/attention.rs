//! What attention does otherwise than most: the scale and the caps of Gemma's scores, and windows in some of the layers.
//!
//! `window_size` with `window_attn_skip_freq` means what it does in Megatron-Core's `is_layer_window_attention`; with
//! NeMo's `name: megatron_gemma2` every second layer has the window, as in its `gemma2_modules.py`, unless the frequencies
//! say otherwise.

use model_spec::{AttentionRule, LocalLayers};

use super::raw::{RawModelConfig, RawNumber};
use super::window;
use crate::ModelError;

const SKIPS: &str = "window_attn_skip_freq";
const ATTENTION_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";
const SCALAR: &str = "query_pre_attn_scalar";
const LOCAL_BASE: &str = "rotary_base_local";
/// In NeMo, whose layers count from 1.
const GEMMA2_EVERY: usize = 2;
/// No sequence is longer.
const NO_WINDOW: usize = i32::MAX as usize;

pub(super) fn parse(raw: &RawModelConfig, num_layers: usize) -> Result<AttentionRule, ModelError> {
    Ok(AttentionRule {
        scale: scale(raw)?,
        softcap: cap(raw, ATTENTION_CAP, raw.attn_logit_softcapping.as_ref())?,
        local: local(raw, num_layers)?,
        norm_across_heads: norm_across_heads(raw)?,
        norm_per_head: norm_per_head(raw)?,
        has_sinks: has_sinks(raw)?,
    })
}

/// Whether query heads have a score that belongs to no key, as those of GPT-OSS.
fn has_sinks(raw: &RawModelConfig) -> Result<bool, ModelError> {
    const TYPE: &str = "softmax_type";
    match raw.softmax_type.as_deref() {
        None | Some("vanilla") => Ok(false),
        Some("learnable") => Ok(true),
        Some(other @ "off-by-one") => Err(ModelError::Unsupported {
            key: TYPE,
            value: other.to_owned(),
            feature: "a softmax with a score of 0 that belongs to no key",
            needs: "a checkpoint trained without it",
        }),
        Some(other) => Err(ModelError::BadValue {
            key: TYPE,
            expected: "`vanilla` or `learnable`".to_owned(),
            actual: other.to_owned(),
        }),
    }
}

/// Whether queries and keys have norms over all heads, as those of OLMoE.
fn norm_across_heads(raw: &RawModelConfig) -> Result<bool, ModelError> {
    let is_on = raw.qk_layernorm_across_heads.unwrap_or(false);
    let has_norms = raw.customized_flag("qk_layernorm")?.or(raw.qk_layernorm).unwrap_or(false);
    let is_interleaved =
        raw.customized_flag("rotary_interleaved")?.or(raw.rotary_interleaved).unwrap_or(false);
    if is_on && (!has_norms || is_interleaved) {
        return Err(ModelError::BadValue {
            key: "qk_layernorm_across_heads",
            expected: "false without `qk_layernorm`, and with `rotary_interleaved`".to_owned(),
            actual: "true".to_owned(),
        });
    }
    Ok(is_on)
}

/// Whether every head has gains of its own, as in StableLM 2 and Command R+.
fn norm_per_head(raw: &RawModelConfig) -> Result<bool, ModelError> {
    let is_on = raw.qk_layernorm_per_head.unwrap_or(false);
    let has_norms = raw.customized_flag("qk_layernorm")?.or(raw.qk_layernorm).unwrap_or(false);
    if is_on && (!has_norms || raw.qk_layernorm_across_heads == Some(true)) {
        return Err(ModelError::BadValue {
            key: "qk_layernorm_per_head",
            expected: "false without `qk_layernorm`, and with `qk_layernorm_across_heads`".to_owned(),
            actual: "true".to_owned(),
        });
    }
    Ok(is_on)
}

/// The cap of the logits.
pub(super) fn logit_softcap(raw: &RawModelConfig) -> Result<Option<f64>, ModelError> {
    cap(raw, LOGIT_CAP, raw.final_logit_softcapping.as_ref())
}

/// A number of 0 is none.
fn cap(raw: &RawModelConfig, key: &'static str, own: Option<&RawNumber>) -> Result<Option<f64>, ModelError> {
    let number = raw.customized_number(key)?.or(own);
    raw.positive(key, number.filter(|number| number.to_f64() != Some(0.0)))
}

/// `softmax_scale`, or the root of `query_pre_attn_scalar`, inverted.
fn scale(raw: &RawModelConfig) -> Result<Option<f64>, ModelError> {
    let scale = raw.positive("softmax_scale", raw.softmax_scale.as_ref())?;
    let scalar = raw.customized_number(SCALAR)?.or(raw.query_pre_attn_scalar.as_ref());
    let of_scalar = raw.positive(SCALAR, scalar)?.map(|scalar| 1.0 / scalar.sqrt());
    match (scale, of_scalar) {
        (Some(scale), Some(other)) if (scale - other).abs() > 1e-6 * scale => Err(ModelError::BadValue {
            key: "softmax_scale",
            expected: format!("{other}, which follows from `{SCALAR}`, or null"),
            actual: scale.to_string(),
        }),
        // NeMo's layers divide by its root, and by nothing else.
        (None, None) if raw.is_gemma2() => Err(ModelError::MissingKey { key: SCALAR }),
        (scale, of_scalar) => Ok(scale.or(of_scalar)),
    }
}

/// The layers with a window, where only some have one.
fn local(raw: &RawModelConfig, num_layers: usize) -> Result<Option<LocalLayers>, ModelError> {
    let rotary_base = raw.positive(LOCAL_BASE, raw.rotary_base_local.as_ref())?;
    let Some(is_local) = local_layers(raw, num_layers)? else {
        return match rotary_base {
            None => Ok(None),
            Some(base) => Err(ModelError::BadValue {
                key: LOCAL_BASE,
                expected: format!("null where `{SKIPS}` names no layers that it is for"),
                actual: base.to_string(),
            }),
        };
    };
    match window::tokens_seen(raw)? {
        Some(tokens) => Ok(Some(LocalLayers { tokens, is_local, rotary_base })),
        // Layers without a window may still rotate otherwise.
        None if rotary_base.is_some() => Ok(Some(LocalLayers { tokens: NO_WINDOW, is_local, rotary_base })),
        None => Ok(None),
    }
}

/// For each layer whether it is one of those with a window; `None` where there is no word of some.
fn local_layers(raw: &RawModelConfig, num_layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    match &raw.window_attn_skip_freq {
        // Counted from 1, the layers that Megatron-Core calls even.
        None if raw.is_gemma2() => {
            Ok(Some((1..=num_layers).map(|layer| layer % GEMMA2_EVERY == 0).collect()))
        }
        None => Ok(None),
        Some(skips) => skips.layers(SKIPS, num_layers, |layer, every| (layer + 1) % every != 0).map(Some),
    }
}
