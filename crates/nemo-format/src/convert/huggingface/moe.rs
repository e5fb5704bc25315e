//! Mixtures of experts: Mixtral, Qwen 2 and 3, OLMoE, GPT-OSS.
//!
//! Read from transformers' `MixtralConfig`, `Qwen2MoeConfig`, `Qwen3MoeConfig`, `OlmoeConfig` and `GptOssConfig`. Their routers take the softmax of all
//! logits and then the best experts. Where the weights of these are divided by their sum (always in Mixtral, with
//! `norm_topk_prob` elsewhere), that is the softmax of the chosen logits, as Megatron-Core has it without
//! `moe_router_pre_softmax`; else it is that with it.

use model_spec::{
    Activation, ExpertsSpec, GLU_CLAMP, LocalLayers, MoeLayers, Nonlinearity, PositionEmbedding, RouterScore,
    RouterSpec, SharedExpertSpec,
};

use super::{listed_layers, llama};
use crate::FormatError;
use crate::convert::arch::{ModelArch, size};
use crate::convert::family::Family;
use crate::huggingface::HfConfig;

/// Mistral's layers with experts in every one of them.
pub(super) fn mixtral(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, Family::Mixtral)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(131_072);
    set_groups(config, &mut arch, 8)?;
    arch.set_sliding_window(config.u64(&["sliding_window"])?);
    let stated = Experts {
        num_experts: config.u64(&["num_local_experts", "num_experts"])?.unwrap_or(8),
        topk: config.u64(&["num_experts_per_tok"])?.unwrap_or(2),
        ffn_hidden_size: arch.model.ffn_hidden_size as u64,
        is_normed: true,
        shared: None,
    };
    let is_moe = vec![true; arch.model.num_layers];
    stated.set(config, &mut arch, is_moe)?;
    Ok(arch)
}

/// Qwen with experts in all or some layers: beside a shared one (2), or with norms of query and key heads (3).
pub(super) fn qwen(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, family)?;
    arch.model.attention.local = windows(config, family, arch.model.num_layers)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(32_768);
    let (default_groups, default_topk, default_width, default_experts) = match family {
        Family::Qwen2Moe => (16, 4, 1408, 60),
        _ => (4, 8, 768, 128),
    };
    set_groups(config, &mut arch, default_groups)?;
    let shared = match family {
        Family::Qwen2Moe => {
            let width = config.u64(&["shared_expert_intermediate_size"])?.unwrap_or(5632);
            Some(SharedExpertSpec { ffn_hidden_size: size(width), has_gate: true })
        }
        _ => None,
    };
    let stated = Experts {
        num_experts: config.u64(&["num_experts", "num_local_experts"])?.unwrap_or(default_experts),
        topk: config.u64(&["num_experts_per_tok"])?.unwrap_or(default_topk),
        ffn_hidden_size: config.u64(&["moe_intermediate_size"])?.unwrap_or(default_width),
        is_normed: config.bool("norm_topk_prob")?.unwrap_or(false),
        shared,
    };
    let is_moe = sparse_layers(config, arch.model.num_layers)?;
    stated.set(config, &mut arch, is_moe)?;
    Ok(arch)
}

/// Norms over all query heads and over all key heads, and experts in every layer.
pub(super) fn olmoe(config: &HfConfig) -> Result<ModelArch, FormatError> {
    if let Some(limit) = config.f64(&["clip_qkv"])? {
        let hint = "queries, keys and values are not limited; a model trained so has `clip_qkv: null`";
        return Err(config.unsupported(&format!("`clip_qkv: {limit}`"), hint));
    }
    let mut arch = llama(config, Family::Olmoe)?;
    arch.model.norm.epsilon = config.f64(&["rms_norm_eps"])?.unwrap_or(1e-5);
    arch.model.attention.norm_across_heads = true;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(4096);
    let heads = &mut arch.model.heads;
    heads.num_query_groups = config.u64(&["num_key_value_heads"])?.map_or(heads.num_attention_heads, size);
    let stated = Experts {
        num_experts: config.u64(&["num_experts", "num_local_experts"])?.unwrap_or(64),
        topk: config.u64(&["num_experts_per_tok"])?.unwrap_or(8),
        ffn_hidden_size: arch.model.ffn_hidden_size as u64,
        is_normed: config.bool("norm_topk_prob")?.unwrap_or(false),
        shared: None,
    };
    let is_moe = vec![true; arch.model.num_layers];
    stated.set(config, &mut arch, is_moe)?;
    Ok(arch)
}

/// Scores that belong to no key, biases on experts and router, an MLP with limits, and windows on every second layer.
pub(super) fn gpt_oss(config: &HfConfig) -> Result<ModelArch, FormatError> {
    for (key, only) in [("swiglu_alpha", 1.702), ("swiglu_limit", f64::from(GLU_CLAMP))] {
        if let Some(value) = config.f64(&[key])?.filter(|&value| value != only) {
            return Err(
                config.unsupported(&format!("`{key}: {value}`"), &format!("models of this type have {only}"))
            );
        }
    }
    if !["rope_parameters", "rope_scaling"].into_iter().any(|key| config.has(key)) {
        return Err(
            config.bad("neither `rope_parameters` nor `rope_scaling` says how positions enter".to_owned())
        );
    }
    let mut arch = llama(config, Family::GptOss)?;
    let model = &mut arch.model;
    model.norm.epsilon = config.f64(&["rms_norm_eps"])?.unwrap_or(1e-5);
    model.activation = Activation { nonlinearity: Nonlinearity::ClampedQuickGelu, gated: true };
    let num_layers = model.num_layers;
    let is_local = match config.has("layer_types") {
        true => listed_layers(config, num_layers)?,
        false => (0..num_layers).map(|layer| layer % 2 == 0).collect(),
    };
    let tokens = match config.u64(&["sliding_window"])? {
        Some(tokens @ 1..) => tokens,
        None if !config.mentions("sliding_window") => 128,
        other => {
            let hint = "layers of these models have a window of at least 1 token";
            let found = other.map_or_else(|| "null".to_owned(), |tokens| tokens.to_string());
            return Err(config.unsupported(&format!("`sliding_window: {found}`"), hint));
        }
    };
    model.attention.has_sinks = true;
    if is_local.contains(&true) {
        model.attention.local = Some(LocalLayers { tokens: size(tokens), is_local, rotary_base: None });
    }
    if !config.has("head_dim") {
        arch.set_head_dim(64);
    }
    if config.rope()?.rope_theta.is_none()
        && let PositionEmbedding::Rope(rotary) = &mut arch.model.position_embedding
    {
        rotary.rotary_base = 150_000.0;
    }
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(131_072);
    set_groups(config, &mut arch, 8)?;
    let stated = Experts {
        num_experts: config.u64(&["num_local_experts", "num_experts"])?.unwrap_or(128),
        topk: config.u64(&["num_experts_per_tok", "experts_per_token"])?.unwrap_or(4),
        ffn_hidden_size: arch.model.ffn_hidden_size as u64,
        is_normed: true,
        shared: None,
    };
    stated.set(config, &mut arch, vec![true; num_layers])?;
    Ok(arch)
}

/// A null is as many as heads.
fn set_groups(config: &HfConfig, arch: &mut ModelArch, default: usize) -> Result<(), FormatError> {
    let heads = &mut arch.model.heads;
    let default = if config.mentions("num_key_value_heads") { heads.num_attention_heads } else { default };
    heads.num_query_groups = config.u64(&["num_key_value_heads"])?.map_or(default, size);
    Ok(())
}

/// For each layer, whether it has experts: one in `decoder_sparse_step`, without those that `mlp_only_layers` lists.
fn sparse_layers(config: &HfConfig, num_layers: usize) -> Result<Vec<bool>, FormatError> {
    let step = config.u64(&["decoder_sparse_step"])?.unwrap_or(1);
    if step == 0 {
        return Err(config.bad("decoder_sparse_step is 0, expected a number from 1".to_owned()));
    }
    let dense = config.u64s("mlp_only_layers")?.unwrap_or_default();
    Ok((0..num_layers as u64).map(|layer| !dense.contains(&layer) && (layer + 1) % step == 0).collect())
}

/// The layers with a window, which `use_sliding_window` switches on: in Qwen 3 all of them; in Qwen 2 those that are listed, or
/// every second one, from the first on, below `max_window_layers`. Every key is asked for, whichever of them count.
fn windows(config: &HfConfig, family: Family, num_layers: usize) -> Result<Option<LocalLayers>, FormatError> {
    let is_used = config.bool("use_sliding_window")?.unwrap_or(false);
    let default = (!config.mentions("sliding_window")).then_some(4096);
    let window = config.u64(&["sliding_window"])?.or(default).filter(|_| is_used);
    let num_windowed = config.u64(&["max_window_layers"])?.unwrap_or(28);
    let listed = config.has("layer_types").then(|| listed_layers(config, num_layers)).transpose()?;
    let is_local = match (family, listed) {
        (Family::Qwen2Moe, Some(listed)) => listed,
        (Family::Qwen2Moe, None) => {
            (0..num_layers as u64).map(|layer| is_used && layer % 2 == 0 && layer < num_windowed).collect()
        }
        // transformers does not look at a list there.
        (_, Some(listed)) if listed.contains(&true) => {
            let hint = "every layer of these models has the window that `use_sliding_window` switches on";
            return Err(config.unsupported("`layer_types` with `sliding_attention`", hint));
        }
        _ => vec![window.is_some(); num_layers],
    };
    match (window, is_local.contains(&true)) {
        (_, false) => Ok(None),
        (Some(tokens @ 1..), true) => {
            Ok(Some(LocalLayers { tokens: size(tokens), is_local, rotary_base: None }))
        }
        _ => {
            let hint = "set `use_sliding_window` and `sliding_window`, or leave windows out";
            Err(config.unsupported("layers with a window, and none of at least 1 token,", hint))
        }
    }
}

/// What a configuration says of experts.
struct Experts {
    num_experts: u64,
    topk: u64,
    ffn_hidden_size: u64,
    /// Their weights add up to 1.
    is_normed: bool,
    shared: Option<SharedExpertSpec>,
}

impl Experts {
    fn set(self, config: &HfConfig, arch: &mut ModelArch, is_moe: Vec<bool>) -> Result<(), FormatError> {
        let Self { num_experts, topk, ffn_hidden_size, is_normed, shared } = self;
        if !is_moe.contains(&true) || num_experts == 0 {
            return Ok(());
        }
        if topk == 0 || topk > num_experts {
            return Err(config.bad(format!(
                "num_experts_per_tok is {topk}, expected 1 to {num_experts}, as many as there are experts"
            )));
        }
        let score = if is_normed { RouterScore::SoftmaxOfChosen } else { RouterScore::SoftmaxOfAll };
        let router = RouterSpec { topk: size(topk), score, has_expert_bias: false, scaling: None };
        let experts = ExpertsSpec {
            num_experts: size(num_experts),
            ffn_hidden_size: size(ffn_hidden_size),
            router,
            shared,
        };
        arch.model.moe = Some(MoeLayers { experts, is_moe });
        Ok(())
    }
}
