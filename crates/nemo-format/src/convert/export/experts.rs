//! Experts: which of the families that are written has what Megatron-Core's `moe_*` keys say, and its own keys for it.

use hydra_config::Node;
use model_spec::{ExpertsSpec, MoeLayers, RouterScore, RouterSpec, SharedExpertSpec, UniformSpec};
use serde_json::{Value, json};

use super::config::{NemoConfig, bad};
use super::shown;
use crate::FormatError;
use crate::convert::arch::size;
use crate::convert::family::Family;

/// Keys that must be off: no family that is written has what they stand for.
const OFF: [&str; 13] = [
    "moe_apply_probs_on_input",
    "moe_expert_capacity_factor",
    "moe_latent_size",
    "moe_mlp_glu_interleave_size",
    "moe_router_enable_expert_bias",
    "moe_router_force_biased",
    "moe_router_force_load_balancing",
    "moe_router_group_topk",
    "moe_router_num_groups",
    "moe_router_topk_limited_devices",
    "moe_router_topk_scaling_factor",
    "moe_shared_expert_glu_interleave_size",
    "moe_token_dropping",
];
const BALANCING: [&str; 4] = ["aux_loss", "seq_aux_loss", "global_aux_loss", "none"];

fn refused(what: &str) -> FormatError {
    FormatError::NotExported {
        what: what.to_owned(),
        hint: "of models with experts it writes Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE folders only; leave `--to hf` out to write a \
               `.nemo`, which generates as it is"
            .to_owned(),
    }
}

/// The layers with experts; `ffn_hidden_size` is the experts' width where none is stated.
pub(super) fn read(
    config: &NemoConfig<'_>,
    num_layers: u64,
    ffn_hidden_size: u64,
) -> Result<Option<MoeLayers>, FormatError> {
    let Some(num_experts) = config.u64("num_moe_experts")?.filter(|&count| count > 0) else {
        return Ok(None);
    };
    for key in OFF {
        let is_off = |value: &Node| {
            matches!(value, Node::Bool(false)) || value.as_f64().is_some_and(|number| number <= 0.0)
        };
        if let Some(value) = config.find(key).filter(|value| !is_off(value)) {
            return Err(refused(&format!("{key} `{}`", shown(value))));
        }
    }
    if let Some(value) = config.find("moe_router_load_balancing_type") {
        let kinds = value.as_list().unwrap_or(std::slice::from_ref(value));
        if kinds.iter().any(|kind| !kind.as_str().is_some_and(|kind| BALANCING.contains(&kind))) {
            return Err(refused(&format!("moe_router_load_balancing_type `{}`", shown(value))));
        }
    }
    let function = config.text("moe_router_score_function")?.unwrap_or("softmax");
    if function != "softmax" {
        return Err(refused(&format!("moe_router_score_function `{function}`")));
    }
    let score = match config.bool("moe_router_pre_softmax")?.unwrap_or(false) {
        true => RouterScore::SoftmaxOfAll,
        false => RouterScore::SoftmaxOfChosen,
    };
    let topk = config.u64("moe_router_topk")?.unwrap_or(2);
    if topk == 0 || topk > num_experts {
        return Err(bad(format!("the key `moe_router_topk` is `{topk}`, expected 1 to {num_experts}")));
    }
    let shared = config.u64("moe_shared_expert_intermediate_size")?.filter(|&width| width > 0);
    let has_gate = config.bool("moe_shared_expert_gate")?.unwrap_or(false);
    let experts = ExpertsSpec {
        num_experts: size(num_experts),
        ffn_hidden_size: size(config.u64("moe_ffn_hidden_size")?.unwrap_or(ffn_hidden_size)),
        router: RouterSpec { topk: size(topk), score, has_expert_bias: false, scaling: None },
        shared: shared.map(|width| SharedExpertSpec { ffn_hidden_size: size(width), has_gate }),
    };
    let is_moe = layers(config, num_layers)?;
    Ok(is_moe.contains(&true).then_some(MoeLayers { experts, is_moe }))
}

fn layers(config: &NemoConfig<'_>, num_layers: u64) -> Result<Vec<bool>, FormatError> {
    const KEY: &str = "moe_layer_freq";
    let strange = |value: &Node| {
        let expected = format!("a whole number from 1, or a list of {num_layers} numbers 0 and 1");
        bad(format!("the key `{KEY}` is `{}`, expected {expected}", shown(value)))
    };
    match config.find(KEY) {
        None => Ok((0..num_layers).map(|_| true).collect()),
        Some(Node::Int(every @ 1..)) => {
            Ok((0..num_layers).map(|layer| layer.is_multiple_of(*every as u64)).collect())
        }
        Some(list @ Node::List(flags)) if flags.len() as u64 == num_layers => {
            let flag = |flag: &Node| match flag {
                Node::Int(0) => Ok(false),
                Node::Int(1) => Ok(true),
                _ => Err(strange(list)),
            };
            flags.iter().map(flag).collect()
        }
        Some(other) => Err(strange(other)),
    }
}

/// The norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    EachHead,
    AllHeads,
}

/// The family with such experts, and norms and biases of attention as these.
pub(super) fn family(moe: &MoeLayers, qk_norm: QkNorm, has_biases: bool) -> Result<Family, FormatError> {
    let leaves_out = moe.is_moe.contains(&false);
    let is_normed = moe.experts.router.score == RouterScore::SoftmaxOfChosen;
    match moe.experts.shared {
        Some(SharedExpertSpec { has_gate: true, .. }) if qk_norm == QkNorm::None => Ok(Family::Qwen2Moe),
        Some(_) => Err(refused("a shared expert without a gate, or beside norms of queries and keys,")),
        None if qk_norm == QkNorm::EachHead => Ok(Family::Qwen3Moe),
        None if leaves_out => Err(refused("a moe_layer_freq that leaves layers out")),
        None if qk_norm == QkNorm::AllHeads => Ok(Family::Olmoe),
        None if has_biases => Err(refused("biases of queries, keys and values without a shared expert")),
        None if !is_normed => Err(refused("moe_router_pre_softmax `true` without norms of queries and keys")),
        None => Ok(Family::Mixtral),
    }
}

/// What `config.json` says of them.
pub(super) fn keys(family: Family, model: &UniformSpec) -> Vec<(&'static str, Value)> {
    let Some(MoeLayers { experts, is_moe }) = &model.moe else { return Vec::new() };
    let mut keys = vec![("num_experts_per_tok", json!(experts.router.topk))];
    if family == Family::Mixtral {
        keys.extend([
            ("num_local_experts", json!(experts.num_experts)),
            ("intermediate_size", json!(experts.ffn_hidden_size)),
        ]);
        return keys;
    }
    if family == Family::Olmoe {
        keys.extend([
            ("num_experts", json!(experts.num_experts)),
            ("intermediate_size", json!(experts.ffn_hidden_size)),
            ("norm_topk_prob", json!(experts.router.score == RouterScore::SoftmaxOfChosen)),
        ]);
        return keys;
    }
    let dense = is_moe.iter().enumerate().filter(|(_, is_moe)| !**is_moe).map(|(layer, _)| layer);
    keys.extend([
        ("num_experts", json!(experts.num_experts)),
        ("moe_intermediate_size", json!(experts.ffn_hidden_size)),
        ("norm_topk_prob", json!(experts.router.score == RouterScore::SoftmaxOfChosen)),
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!(dense.collect::<Vec<_>>())),
    ]);
    if let Some(shared) = experts.shared {
        keys.push(("shared_expert_intermediate_size", json!(shared.ffn_hidden_size)));
    }
    keys
}
