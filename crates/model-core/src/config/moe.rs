//! Mixtures of experts: Megatron-Core's `moe_*` keys, read where `num_moe_experts` has experts.
//!
//! Keys that choose how experts are dispatched, balanced in training or multiplied leave the numbers alone and are not read.
//! Those that would change them in a way that is not computed are refused here.

use std::fmt;

use model_spec::{BlockStyle, ExpertsSpec, MoeLayers, RouterScore, RouterSpec, SharedExpertSpec};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::raw::{RawModelConfig, RawValue};
use crate::ModelError;

/// `moe_router_load_balancing_type` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawBalancing {
    /// One kind.
    One(String),
    /// Several.
    Several(Vec<String>),
    /// Neither.
    Other(IgnoredAny),
}

const FREQUENCY: &str = "moe_layer_freq";
const TOPK: &str = "moe_router_topk";
const SCORE: &str = "moe_router_score_function";
/// A number below 0 is no limit.
const CAPACITY: &str = "moe_expert_capacity_factor";
const BALANCING: &str = "moe_router_load_balancing_type";
const WITHOUT: &str = "a checkpoint trained without it";
/// In Megatron-Core.
const DEFAULT_TOPK: usize = 2;
/// Kinds of balancing that only add a loss in training, or nothing.
const KNOWN_BALANCING: [&str; 4] = ["aux_loss", "seq_aux_loss", "global_aux_loss", "none"];

/// The layers with experts; `ffn_hidden_size` is what the experts have where no width of theirs is stated.
pub(super) fn parse(
    raw: &RawModelConfig,
    num_layers: usize,
    ffn_hidden_size: usize,
    block_style: BlockStyle,
) -> Result<Option<MoeLayers>, ModelError> {
    let stated = raw.num_moe_experts.as_ref().filter(|number| number.to_f64() != Some(0.0));
    let Some(num_experts) = raw.size("num_moe_experts", stated)? else { return Ok(None) };
    refuse_others(raw, block_style)?;
    let topk = raw.size(TOPK, raw.moe_router_topk.as_ref())?.unwrap_or(DEFAULT_TOPK);
    if topk > num_experts {
        return Err(ModelError::BadValue {
            key: TOPK,
            expected: format!("at most `num_moe_experts`, {num_experts}"),
            actual: topk.to_string(),
        });
    }
    let own_width = raw.size("moe_ffn_hidden_size", raw.moe_ffn_hidden_size.as_ref())?;
    let experts = ExpertsSpec {
        num_experts,
        ffn_hidden_size: own_width.unwrap_or(ffn_hidden_size),
        router: router(raw, topk)?,
        shared: shared(raw)?,
    };
    let is_moe = moe_layers(raw, num_layers)?;
    Ok(is_moe.contains(&true).then_some(MoeLayers { experts, is_moe }))
}

fn router(raw: &RawModelConfig, topk: usize) -> Result<RouterSpec, ModelError> {
    let pre_softmax = raw.moe_router_pre_softmax.unwrap_or(false);
    let score = match raw.moe_router_score_function.as_deref().unwrap_or("softmax") {
        "softmax" if pre_softmax => RouterScore::SoftmaxOfAll,
        "softmax" => RouterScore::SoftmaxOfChosen,
        "sigmoid" => RouterScore::Sigmoid,
        other => {
            return Err(ModelError::BadValue {
                key: SCORE,
                expected: "`softmax` or `sigmoid`".to_owned(),
                actual: other.to_owned(),
            });
        }
    };
    let has_expert_bias = raw.moe_router_enable_expert_bias.unwrap_or(false);
    // Megatron-Core refuses it as well.
    if has_expert_bias && score != RouterScore::Sigmoid {
        return Err(ModelError::BadValue {
            key: "moe_router_enable_expert_bias",
            expected: format!("false where `{SCORE}` is not `sigmoid`"),
            actual: "true".to_owned(),
        });
    }
    // A factor of 0 is none.
    let scaling = raw.moe_router_topk_scaling_factor.as_ref();
    let scaling = scaling.filter(|number| number.to_f64() != Some(0.0));
    let scaling = raw.positive("moe_router_topk_scaling_factor", scaling)?;
    Ok(RouterSpec { topk, score, has_expert_bias, scaling })
}

fn shared(raw: &RawModelConfig) -> Result<Option<SharedExpertSpec>, ModelError> {
    const WIDTH: &str = "moe_shared_expert_intermediate_size";
    let stated = raw.moe_shared_expert_intermediate_size.as_ref();
    let stated = stated.filter(|number| number.to_f64() != Some(0.0));
    let has_gate = raw.moe_shared_expert_gate.unwrap_or(false);
    Ok(raw.size(WIDTH, stated)?.map(|ffn_hidden_size| SharedExpertSpec { ffn_hidden_size, has_gate }))
}

/// For each layer, whether it has experts (`get_gpt_decoder_block_spec`).
fn moe_layers(raw: &RawModelConfig, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    match &raw.moe_layer_freq {
        None => Ok(vec![true; num_layers]),
        Some(frequency) => frequency.layers(FREQUENCY, num_layers, |layer, every| layer % every == 0),
    }
}

/// Refuses what would change the numbers and is not computed.
fn refuse_others(raw: &RawModelConfig, block_style: BlockStyle) -> Result<(), ModelError> {
    let refuse = |key, value: &dyn fmt::Display, feature| {
        Err(ModelError::Unsupported { key, value: value.to_string(), feature, needs: WITHOUT })
    };
    if block_style != BlockStyle::Sequential {
        return refuse("parallel_attention", &true, "experts beside attention instead of behind it");
    }
    let shared = raw.moe_shared_expert_intermediate_size.as_ref();
    if let Some(width) = shared.filter(|number| raw.bias.unwrap_or(true) && number.to_f64() != Some(0.0)) {
        return refuse(
            "moe_shared_expert_intermediate_size",
            width,
            "a shared expert beside experts with biases",
        );
    }
    if raw.post_layernorms.unwrap_or_else(|| raw.is_gemma2()) {
        return refuse("post_layernorms", &true, "experts with a norm behind them");
    }
    let kinds = match &raw.moe_router_load_balancing_type {
        None => &[][..],
        Some(RawBalancing::One(kind)) => std::slice::from_ref(kind),
        Some(RawBalancing::Several(kinds)) => kinds.as_slice(),
        Some(RawBalancing::Other(_)) => {
            return refuse(BALANCING, &"neither a name nor names", "another router");
        }
    };
    if let Some(kind) = kinds.iter().find(|kind| !KNOWN_BALANCING.contains(&kind.as_str())) {
        return refuse(BALANCING, kind, "another router");
    }
    let switches: [(&'static str, &Option<RawValue>, &'static str); 11] = [
        ("moe_apply_probs_on_input", &raw.moe_apply_probs_on_input, "weights on the inputs of experts"),
        (CAPACITY, &raw.moe_expert_capacity_factor, "experts that leave tokens out"),
        ("moe_latent_size", &raw.moe_latent_size, "experts in another space"),
        ("moe_mlp_glu_interleave_size", &raw.moe_mlp_glu_interleave_size, "another order of rows"),
        (
            "moe_router_force_load_balancing",
            &raw.moe_router_force_load_balancing,
            "a router that draws at random",
        ),
        ("moe_router_force_biased", &raw.moe_router_force_biased, "a router that draws at random"),
        ("moe_router_group_topk", &raw.moe_router_group_topk, "experts chosen by groups"),
        ("moe_router_num_groups", &raw.moe_router_num_groups, "experts chosen by groups"),
        ("moe_router_topk_limited_devices", &raw.moe_router_topk_limited_devices, "experts chosen by groups"),
        (
            "moe_shared_expert_glu_interleave_size",
            &raw.moe_shared_expert_glu_interleave_size,
            "another order of rows",
        ),
        ("moe_token_dropping", &raw.moe_token_dropping, "experts that leave tokens out"),
    ];
    match switches.into_iter().find_map(|(key, value, feature)| {
        let is_off = |value: &RawValue| value.is_off() || (key == CAPACITY && value.is_negative());
        let value = value.as_ref().filter(|value| !is_off(value))?;
        Some((key, value, feature))
    }) {
        Some((key, value, feature)) => refuse(key, value, feature),
        None => Ok(()),
    }
}
