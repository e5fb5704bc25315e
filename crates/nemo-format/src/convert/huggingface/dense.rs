//! Dense families that differ from Llama or GPT in a few places: Phi 3 and 4, OLMo 2, Granite 3, StarCoder 2, StableLM 2,
//! Command R.
//!
//! Read from transformers' configuration classes of these names, defaults included.

use model_spec::{Activation, BlockStyle, Nonlinearity, Normalization};

use super::{common, llama, plain_activation, rope};
use crate::FormatError;
use crate::convert::arch::{ModelArch, size};
use crate::convert::family::Family;
use crate::huggingface::HfConfig;

/// Llama with fused tensors, and perhaps partial or stretched rotation.
pub(super) fn phi3(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = gated(config, Family::Phi3, 1.0)?;
    arch.model.norm.normalization = Normalization::RmsNorm;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(4096);
    set_groups(config, &mut arch, None)?;
    arch.set_sliding_window(config.u64(&["sliding_window"])?);
    // Layers of this class have none, whatever it says; the length counts with the lists of the rotation.
    config.bool("attention_bias")?;
    config.u64(&["original_max_position_embeddings"])?;
    Ok(arch)
}

/// Norms behind attention and MLP and none in front, and over all query heads and all key heads.
pub(super) fn olmo2(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, Family::Olmo2)?;
    arch.model.norm.epsilon = config.f64(&["rms_norm_eps"])?.unwrap_or(1e-5);
    arch.model.pre_layernorms = false;
    arch.model.post_layernorms = true;
    arch.model.attention.norm_across_heads = true;
    Ok(arch)
}

/// Llama with four multipliers.
pub(super) fn granite(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, Family::Granite)?;
    let number = |key: &str| match config.f64(&[key])?.unwrap_or(1.0) {
        number if number > 0.0 && number.is_finite() => Ok(number),
        other => Err(config.bad(format!("the key `{key}` is `{other}`, expected a number above 0"))),
    };
    arch.model.attention.scale = Some(number("attention_multiplier")?);
    let other_than_one = |number: f64| (number != 1.0).then_some(number);
    arch.model.multipliers.embedding = other_than_one(number("embedding_multiplier")?);
    arch.model.multipliers.residual = other_than_one(number("residual_multiplier")?);
    // Logits are divided by it.
    arch.model.multipliers.logits = other_than_one(1.0 / number("logits_scaling")?);
    Ok(arch)
}

/// A GPT with groups of heads, biases everywhere, and rotation.
pub(super) fn starcoder2(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = common(config, Family::StarCoder2)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(4096);
    set_groups(config, &mut arch, Some(2))?;
    arch.set_rope(whole_rope(config)?);
    arch.model.activation = plain_activation(config, &["hidden_act"], "gelu_pytorch_tanh")?;
    arch.model.output.tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    arch.set_sliding_window(config.u64(&["sliding_window"])?);
    Ok(arch)
}

/// Llama with LayerNorms, partial rotation, and perhaps a parallel block and norms of every head.
pub(super) fn stablelm(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = gated(config, Family::StableLm, 0.25)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(4096);
    set_groups(config, &mut arch, Some(32))?;
    if config.bool("use_parallel_residual")?.unwrap_or(false) {
        arch.model.block_style = BlockStyle::ParallelSharedNorm;
    }
    if config.bool("qk_layernorm")?.unwrap_or(false) {
        arch.model.qk_layernorm = true;
        arch.model.attention.norm_per_head = true;
    }
    Ok(arch)
}

/// A parallel block with one norm without biases, neighbours that rotate together, and scaled logits.
pub(super) fn cohere(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = gated(config, Family::Cohere, 1.0)?;
    let mut rotation = whole_rope(config)?;
    // The class's own default has changed between versions of transformers.
    if config.rope()?.rope_theta.is_none() {
        return Err(config.bad("the key `rope_theta` is missing".to_owned()));
    }
    rotation.interleaved = true;
    arch.set_rope(rotation);
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(8192);
    set_groups(config, &mut arch, None)?;
    arch.model.block_style = BlockStyle::ParallelSharedNorm;
    arch.model.output.tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    let scale = match config.f64(&["logit_scale"])? {
        None if config.mentions("logit_scale") => 1.0,
        scale => scale.unwrap_or(0.0625),
    };
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(config.bad(format!("the key `logit_scale` is `{scale}`, expected a number above 0")));
    }
    arch.model.multipliers.logits = (scale != 1.0).then_some(scale);
    if config.bool("use_qk_norm")?.unwrap_or(false) {
        arch.model.qk_layernorm = true;
        arch.model.attention.norm_per_head = true;
    }
    Ok(arch)
}

/// What these have of Llama: a gated MLP, and no more of its defaults.
fn gated(config: &HfConfig, family: Family, percentage: f64) -> Result<ModelArch, FormatError> {
    let activation = config.text(&["hidden_act"])?.unwrap_or("silu");
    if !["silu", "swish"].contains(&activation) {
        let hint = "models of this type use `silu`";
        return Err(config.unsupported(&format!("hidden_act `{activation}`"), hint));
    }
    let mut arch = common(config, family)?;
    if let Some(head_dim) = config.u64(&["head_dim"])? {
        arch.set_head_dim(head_dim);
    }
    arch.set_rope(rope(config, percentage)?);
    arch.model.activation = Activation { nonlinearity: Nonlinearity::Silu, gated: true };
    Ok(arch)
}

/// The rotation of a class that knows of no partial one.
fn whole_rope(config: &HfConfig) -> Result<super::Rope, FormatError> {
    let rope = rope(config, 1.0)?;
    if rope.percentage == 1.0 {
        return Ok(rope);
    }
    let hint = "models of this type rotate whole heads: remove the key or set it to 1";
    Err(config.unsupported(&format!("partial_rotary_factor {}", rope.percentage), hint))
}

/// `default` is for a key that is not there, as many as heads for a null.
fn set_groups(config: &HfConfig, arch: &mut ModelArch, default: Option<usize>) -> Result<(), FormatError> {
    let heads = &mut arch.model.heads;
    let default = default.filter(|_| !config.mentions("num_key_value_heads"));
    let default = default.unwrap_or(heads.num_attention_heads);
    heads.num_query_groups = config.u64(&["num_key_value_heads"])?.map_or(default, size);
    Ok(())
}
