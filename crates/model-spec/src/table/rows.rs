//! The rows of the table.

use super::{At, Need, Row, Scope};
use crate::{
    AttentionSpec, BlockStyle, Dim, FfnWidth, HeadLayout, Key, MlpSpec, Module, MoeSpec, NormSpec,
    Normalization, Part, Shard, SharedExpertSpec,
};

const WEIGHT: &[Part] = &[Part::Weight];
const WEIGHT_AND_BIAS: &[Part] = &[Part::Weight, Part::Bias];

/// In the order of the forward pass.
pub(super) static ROWS: [Row; 26] = [
    Row {
        module: Module::WordEmbeddings,
        stem: "model.embedding.word_embeddings.",
        scope: Scope::Outside,
        parts: WEIGHT,
        shard: Shard::Rows,
        dims: |at| Some(vec![at.vocab(), at.hidden()]),
        need: |_, _| Need::Has(Key::Always),
    },
    Row {
        module: Module::PositionEmbeddings,
        stem: "model.embedding.position_embeddings.",
        scope: Scope::Outside,
        parts: WEIGHT,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Positions(at.model.learned_positions?), at.hidden()]),
        need: |at, _| Need::when(at.model.learned_positions.is_some(), Key::LearnedPositions),
    },
    Row {
        module: Module::InputNorm,
        stem: "self_attention.linear_qkv.layer_norm_",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.attention().map(|_| vec![at.hidden()]),
        need: |at, part| match at.attention() {
            Some(_) if !at.has_pre_norms() => Need::Lacks(Key::PreLayernorms),
            Some(attention) => norm(&attention.norm, part, Key::Always),
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::Qkv,
        stem: "self_attention.linear_qkv.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Rows,
        dims: |at| Some(vec![Dim::Qkv(at.attention()?.heads), at.hidden()]),
        need: |at, part| match at.attention() {
            Some(attention) => {
                let key = if attention.proj_bias { Key::Bias } else { Key::QkvBias };
                linear(attention.qkv_bias, part, key)
            }
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::AttentionLinearNorm,
        stem: "self_attention.layer_norm_",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden()]),
        need: |at, part| linear_norm(at.layer.and_then(|layer| layer.attention_linear.as_ref()), part),
    },
    Row {
        module: Module::AttentionLinear,
        stem: "self_attention.",
        scope: Scope::Layer,
        parts: WEIGHT,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden(), at.hidden()]),
        need: |at, part| linear_norm(at.layer.and_then(|layer| layer.attention_linear.as_ref()), part),
    },
    Row {
        module: Module::QNorm,
        stem: "self_attention.q_layernorm.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(head_norm_dims(at.attention()?, Dim::Query, Dim::QueryHeads)),
        need: |at, part| head_norm(at, part),
    },
    Row {
        module: Module::KNorm,
        stem: "self_attention.k_layernorm.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(head_norm_dims(at.attention()?, Dim::Keys, Dim::KeyHeads)),
        need: |at, part| head_norm(at, part),
    },
    Row {
        module: Module::Sinks,
        stem: "self_attention.core_attention.softmax_",
        scope: Scope::Layer,
        parts: &[Part::Offset],
        shard: Shard::Rows,
        dims: |at| Some(vec![Dim::QueryHeads(at.attention()?.heads)]),
        need: |at, _| match at.attention() {
            Some(attention) => Need::when(attention.has_sinks, Key::Sinks),
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::Proj,
        stem: "self_attention.linear_proj.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Query(at.attention()?.heads)]),
        need: |at, part| match at.attention() {
            Some(attention) => linear(attention.proj_bias, part, Key::Bias),
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::PostAttentionNorm,
        stem: "self_attention.linear_proj.post_layernorm.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.attention().map(|_| vec![at.hidden()]),
        need: |at, part| post_norm(at.attention().map(|attention| &attention.post_norm), part),
    },
    Row {
        module: Module::MlpNorm,
        stem: "mlp.linear_fc1.layer_norm_",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.layer?.ffn.as_ref().map(|_| vec![at.hidden()]),
        need: |at, part| match (at.layer, at.mlp(), at.moe()) {
            (Some(layer), ..) if !layer.has_pre_norms => Need::Lacks(Key::PreLayernorms),
            (Some(layer), Some(mlp), _) if !layer.shares_norm() => {
                let is_own = layer.join == BlockStyle::ParallelOwnNorm;
                let key = if is_own { Key::NewDecoderArchitecture } else { Key::NotParallel };
                norm(&mlp.norm, part, key)
            }
            (_, Some(_), _) => Need::Lacks(Key::NewDecoderArchitecture),
            (_, None, Some(moe)) => norm(&moe.norm, part, Key::Experts),
            (_, None, None) => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::Router,
        stem: "mlp.router.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Experts(at.moe()?.experts.num_experts), at.hidden()]),
        need: |at, part| of_experts(at, part),
    },
    Row {
        module: Module::ExpertBias,
        stem: "mlp.router.expert_",
        scope: Scope::Layer,
        parts: &[Part::Bias],
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Experts(at.moe()?.experts.num_experts)]),
        need: |at, _| match at.moe() {
            Some(moe) => Need::when(moe.experts.router.has_expert_bias, Key::ExpertBias),
            None => Need::Lacks(Key::Experts),
        },
    },
    Row {
        module: Module::SharedFc1,
        stem: "mlp.shared_experts.linear_fc1.",
        scope: Scope::Layer,
        parts: WEIGHT,
        shard: Shard::RowsOfHalves,
        dims: |at| {
            let gated = at.moe()?.activation.gated;
            Some(vec![Dim::Fc1 { width: at.shared_width()?, gated }, at.hidden()])
        },
        need: |at, _| shared(at, |_| true, Key::SharedExpert),
    },
    Row {
        module: Module::SharedFc2,
        stem: "mlp.shared_experts.linear_fc2.",
        scope: Scope::Layer,
        parts: WEIGHT,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Ffn(at.shared_width()?)]),
        need: |at, _| shared(at, |_| true, Key::SharedExpert),
    },
    Row {
        module: Module::SharedGate,
        stem: "mlp.shared_experts.gate_",
        scope: Scope::Layer,
        parts: WEIGHT,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Gate, at.hidden()]),
        need: |at, _| shared(at, |shared| shared.has_gate, Key::SharedExpertGate),
    },
    Row {
        module: Module::ExpertFc1,
        stem: "linear_fc1.",
        scope: Scope::Expert,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::RowsOfHalves,
        dims: |at| {
            let MoeSpec { experts, activation, .. } = at.moe()?;
            Some(vec![
                Dim::Fc1 { width: expert_width(experts.ffn_hidden_size), gated: activation.gated },
                at.hidden(),
            ])
        },
        need: |at, part| of_experts(at, part),
    },
    Row {
        module: Module::ExpertFc2,
        stem: "linear_fc2.",
        scope: Scope::Expert,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Ffn(expert_width(at.moe()?.experts.ffn_hidden_size))]),
        need: |at, part| of_experts(at, part),
    },
    Row {
        module: Module::Fc1,
        stem: "mlp.linear_fc1.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::RowsOfHalves,
        dims: |at| {
            let MlpSpec { ffn_hidden_size, activation, .. } = *at.mlp()?;
            Some(vec![Dim::Fc1 { width: mlp_width(ffn_hidden_size), gated: activation.gated }, at.hidden()])
        },
        need: |at, part| mlp_linear(at, part),
    },
    Row {
        module: Module::Fc2,
        stem: "mlp.linear_fc2.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Ffn(mlp_width(at.mlp()?.ffn_hidden_size))]),
        need: |at, part| mlp_linear(at, part),
    },
    Row {
        module: Module::PostMlpNorm,
        stem: "mlp.linear_fc2.post_layernorm.",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.mlp().map(|_| vec![at.hidden()]),
        need: |at, part| post_norm(at.mlp().map(|mlp| &mlp.post_norm), part),
    },
    Row {
        module: Module::MlpLinearNorm,
        stem: "mlp.layer_norm_",
        scope: Scope::Layer,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden()]),
        need: |at, part| linear_norm(at.ffn_linear(), part),
    },
    Row {
        module: Module::MlpLinear,
        stem: "mlp.",
        scope: Scope::Layer,
        parts: WEIGHT,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden(), at.hidden()]),
        need: |at, part| linear_norm(at.ffn_linear(), part),
    },
    Row {
        module: Module::FinalNorm,
        stem: "model.decoder.final_layernorm.",
        scope: Scope::Outside,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden()]),
        need: |at, part| norm(&at.model.final_norm, part, Key::Always),
    },
    Row {
        module: Module::Output,
        stem: "model.output_layer.",
        scope: Scope::Outside,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Rows,
        dims: |at| Some(vec![at.vocab(), at.hidden()]),
        need: |at, part| match part {
            Part::Weight => Need::when(!at.model.output.tied, Key::Untied),
            Part::Bias => Need::when(at.model.output.bias, Key::OutputLayerBias),
            Part::Offset => Need::Lacks(Key::Sinks),
        },
    },
];

fn norm(norm: &NormSpec, part: Part, key: Key) -> Need {
    match part {
        Part::Weight => Need::Has(key),
        Part::Bias => Need::when(norm.normalization == Normalization::LayerNorm, Key::LayerNorm),
        Part::Offset => Need::Lacks(Key::Sinks),
    }
}

fn post_norm(spec: Option<&Option<NormSpec>>, part: Part) -> Need {
    match spec {
        Some(Some(spec)) => norm(spec, part, Key::PostLayernorms),
        Some(None) => Need::Lacks(Key::PostLayernorms),
        None => Need::Lacks(Key::LayerKind),
    }
}

/// What the norm of heads is over: one of them, or all; or one of them, with a row of gains for each.
fn head_norm_dims(
    attention: &AttentionSpec,
    all: fn(HeadLayout) -> Dim,
    each: fn(HeadLayout) -> Dim,
) -> Vec<Dim> {
    let heads = attention.heads;
    match (attention.norm_across_heads, attention.norm_per_head) {
        (true, _) => vec![all(heads)],
        (false, true) => vec![each(heads), Dim::Head(heads)],
        (false, false) => vec![Dim::Head(heads)],
    }
}

/// A linear layer in the place of attention or MLP, or its norm.
fn linear_norm(spec: Option<&NormSpec>, part: Part) -> Need {
    match spec {
        Some(spec) => norm(spec, part, Key::LayerKind),
        None => Need::Lacks(Key::LayerKind),
    }
}

fn head_norm(at: &At<'_>, part: Part) -> Need {
    match at.attention() {
        // Those with gains for every head have no biases in any model.
        Some(AttentionSpec { qk_norm: Some(_), norm_per_head: true, .. }) if part == Part::Bias => {
            Need::Lacks(Key::QkLayernorm)
        }
        Some(AttentionSpec { qk_norm: Some(spec), .. }) => norm(spec, part, Key::QkLayernorm),
        Some(_) => Need::Lacks(Key::QkLayernorm),
        None => Need::Lacks(Key::LayerKind),
    }
}

fn linear(has_bias: bool, part: Part, key: Key) -> Need {
    match part {
        Part::Weight => Need::Has(Key::Always),
        Part::Bias => Need::when(has_bias, key),
        Part::Offset => Need::Lacks(Key::Sinks),
    }
}

/// A router, or a linear layer of an expert.
fn of_experts(at: &At<'_>, part: Part) -> Need {
    match (at.moe(), part) {
        (Some(moe), Part::Bias) => Need::when(moe.bias, Key::Bias),
        (moe, _) => Need::when(moe.is_some(), Key::Experts),
    }
}

fn mlp_linear(at: &At<'_>, part: Part) -> Need {
    match at.mlp() {
        Some(mlp) => linear(mlp.bias, part, Key::Bias),
        None if at.moe().is_some() => Need::Lacks(Key::NoExperts),
        None => Need::Lacks(Key::LayerKind),
    }
}

fn shared(at: &At<'_>, has: fn(&SharedExpertSpec) -> bool, key: Key) -> Need {
    match at.moe().map(|moe| &moe.experts.shared) {
        Some(Some(shared)) => Need::when(has(shared), key),
        Some(None) => Need::Lacks(Key::SharedExpert),
        None => Need::Lacks(Key::Experts),
    }
}

const fn mlp_width(size: usize) -> FfnWidth {
    FfnWidth { size, key: "ffn_hidden_size" }
}

const fn expert_width(size: usize) -> FfnWidth {
    FfnWidth { size, key: "moe_ffn_hidden_size" }
}
