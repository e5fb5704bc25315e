//! Gemma 1, 2 and 3, of text alone.
//!
//! Read from transformers' `GemmaConfig`, `Gemma2Config` and `Gemma3TextConfig`, of which the last two list the layers that
//! have the window, or have it in a pattern.

use model_spec::{Activation, LocalLayers, Nonlinearity};

use super::{FULL, SLIDING, listed_layers, llama, rope_scaling};
use crate::FormatError;
use crate::convert::arch::{ModelArch, NO_WINDOW, Rope, RopeExtension, size};
use crate::convert::family::Family;
use crate::huggingface::{HfConfig, HfRope};

/// `sliding_window` of classes that do not say otherwise.
const DEFAULT_WINDOW: u64 = 4096;
/// Of the layers of Gemma 3, one in so many has no window.
const GEMMA3_PATTERN: u64 = 6;
const GEMMA3_BASES: [f64; 2] = [10_000.0, 1_000_000.0];

pub(super) fn gemma(config: &HfConfig) -> Result<ModelArch, FormatError> {
    // The first release said `gelu` and meant the tanh form, which is how transformers reads it.
    let mut arch = common(config, Family::Gemma, &["gelu", "gelu_pytorch_tanh"])?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(8192);
    Ok(arch)
}

/// What all generations have.
fn common(config: &HfConfig, family: Family, activations: &[&str]) -> Result<ModelArch, FormatError> {
    for key in ["hidden_activation", "hidden_act"] {
        let activation = config.text(&[key])?.unwrap_or("gelu_pytorch_tanh");
        if !activations.contains(&activation) {
            return Err(
                config.unsupported(&format!("activation `{activation}`"), "Gemma uses `gelu_pytorch_tanh`")
            );
        }
    }
    if config.bool("use_bidirectional_attention")? == Some(true) {
        return Err(config.unsupported("bidirectional attention", "only causal models generate text"));
    }
    let mut arch = llama(config, family)?;
    // The classes' own default, which the first release relied on.
    arch.set_head_dim(config.u64(&["head_dim"])?.unwrap_or(256));
    arch.model.activation = Activation { nonlinearity: Nonlinearity::GeluTanh, gated: true };
    arch.model.output.tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    Ok(arch)
}

/// Caps, norms of outputs, and a window in every other layer, from the first on.
pub(super) fn gemma2(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = newer(config, Family::Gemma2)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(8192);
    let cap = |key: &str, default: f64| -> Result<Option<f64>, FormatError> {
        let default = (!config.mentions(key)).then_some(default);
        positive(config, key, config.f64(&[key])?.or(default))
    };
    arch.model.attention.softcap = cap("attn_logit_softcapping", 50.0)?;
    arch.model.output.softcap = cap("final_logit_softcapping", 30.0)?;
    let local = local_layers(config, arch.model.num_layers, 2)?;
    arch.model.attention.local = Some(local).filter(|local| local.tokens != NO_WINDOW);
    Ok(arch)
}

/// Norms of query and key heads, and layers with a window that rotate otherwise.
pub(super) fn gemma3(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = newer(config, Family::Gemma3)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(131_072);
    if config.has("attn_logit_softcapping") {
        let hint = "transformers does not compute it for this class: set it to null";
        return Err(config.unsupported("`attn_logit_softcapping`", hint));
    }
    let key = "final_logit_softcapping";
    arch.model.output.softcap = positive(config, key, config.f64(&[key])?)?;
    let pattern = config.u64(&["sliding_window_pattern"])?.unwrap_or(GEMMA3_PATTERN);
    // What transformers itself made of that key, and does not read.
    let _ = config.has("_sliding_window_pattern");
    let mut local = local_layers(config, arch.model.num_layers, pattern)?;
    let [sliding, full] = gemma3_rotation(config)?;
    local.rotary_base = Some(sliding.base);
    arch.set_rope(full);
    if local.is_local.contains(&true) {
        arch.model.attention.local = Some(local);
    }
    Ok(arch)
}

fn newer(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let mut arch = common(config, family, &["gelu_pytorch_tanh"])?;
    let heads = &mut arch.model.heads;
    heads.num_query_groups = match config.u64(&["num_key_value_heads"])? {
        Some(groups) => size(groups),
        None if config.mentions("num_key_value_heads") => heads.num_attention_heads,
        None => 4,
    };
    arch.model.norm.zero_centered_gamma = true;
    arch.model.post_layernorms = true;
    let key = "query_pre_attn_scalar";
    let scalar = positive(config, key, Some(config.f64(&[key])?.unwrap_or(256.0)))?;
    arch.model.attention.scale = scalar.map(|scalar| 1.0 / scalar.sqrt());
    Ok(arch)
}

fn positive(config: &HfConfig, key: &str, value: Option<f64>) -> Result<Option<f64>, FormatError> {
    match value {
        Some(number) if !(number > 0.0 && number.is_finite()) => {
            Err(config.bad(format!("the key `{key}` is `{number}`, expected a number above 0")))
        }
        value => Ok(value),
    }
}

/// The layers with a window: those that `layer_types` lists, or all but every `pattern`th.
fn local_layers(config: &HfConfig, num_layers: usize, pattern: u64) -> Result<LocalLayers, FormatError> {
    let default = (!config.mentions("sliding_window")).then_some(DEFAULT_WINDOW);
    let tokens = config.u64(&["sliding_window", "sliding_window_size"])?.or(default);
    let is_local: Vec<bool> = if config.has("layer_types") {
        listed_layers(config, num_layers)?
    } else if pattern == 0 {
        return Err(config.bad("the key `sliding_window_pattern` is `0`, expected at least 1".to_owned()));
    } else {
        (1..=num_layers as u64).map(|layer| !layer.is_multiple_of(pattern)).collect()
    };
    match tokens {
        Some(0) => Err(config.bad("the key `sliding_window` is `0`, expected at least 1".to_owned())),
        tokens => Ok(LocalLayers { tokens: tokens.map_or(NO_WINDOW, size), is_local, rotary_base: None }),
    }
}

/// How layers with and without a window rotate: by kind of layer (transformers 5), or by `rope_local_base_freq`, `rope_theta`
/// and `rope_scaling`, of which the last is for layers without.
fn gemma3_rotation(config: &HfConfig) -> Result<[Rope; 2], FormatError> {
    let bases = [config.f64(&["rope_local_base_freq"])?, config.f64(&["rope_theta"])?];
    let by_kind = [config.rope_of(SLIDING)?, config.rope_of(FULL)?];
    let is_by_kind = by_kind.iter().any(Option::is_some);
    let flat = if is_by_kind { HfRope::default() } else { config.rope()? };
    let kinds = if is_by_kind { by_kind.map(Option::unwrap_or_default) } else { [HfRope::default(), flat] };
    let mut ropes = Vec::new();
    for ((kind, base), default) in kinds.into_iter().zip(bases).zip(GEMMA3_BASES) {
        if let Some(share) = kind.partial_rotary_factor.filter(|&share| share != 1.0) {
            let hint = "models of this type rotate whole heads: remove the key or set it to 1";
            return Err(config.unsupported(&format!("partial_rotary_factor {share}"), hint));
        }
        if let (Some(inside), Some(outside)) = (kind.rope_theta, base)
            && inside != outside
        {
            let reason = format!("a base of the rotation is {inside} and {outside}; remove the wrong one");
            return Err(config.bad(reason));
        }
        let scaling = rope_scaling(&kind, config)?;
        let base = kind.rope_theta.or(base).unwrap_or(default);
        ropes.push(Rope { percentage: 1.0, base, scaling, interleaved: false });
    }
    match ropes.as_slice() {
        [sliding, full] if sliding.scaling == RopeExtension::None => Ok([*sliding, *full]),
        _ => Err(config.unsupported(
            "scaled frequencies of layers with a window",
            "only those of layers without are scaled: use the `default` type",
        )),
    }
}
