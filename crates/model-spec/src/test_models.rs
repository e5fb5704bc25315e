//! Models for the tests of this crate.

use crate::{
    Activation, AttentionRule, BlockStyle, ExpertsSpec, HeadLayout, ModelSpec, MoeLayers, Multipliers,
    Nonlinearity, NormSpec, Normalization, OutputSpec, PositionEmbedding, RotaryConfig, RotaryPairing,
    RouterScore, RouterSpec, SharedExpertSpec, TableRows, UniformSpec,
};

pub(crate) const ROWS: TableRows = TableRows { vocab: 48, positions: 16 };

/// A small Llama.
pub(crate) fn llama() -> UniformSpec {
    UniformSpec {
        num_layers: 2,
        hidden_size: 16,
        ffn_hidden_size: 24,
        moe: None,
        heads: HeadLayout { num_attention_heads: 4, num_query_groups: 2, kv_channels: 6 },
        block_style: BlockStyle::Sequential,
        norm: NormSpec { normalization: Normalization::RmsNorm, zero_centered_gamma: false, epsilon: 1e-5 },
        activation: Activation { nonlinearity: Nonlinearity::Silu, gated: true },
        bias: false,
        qkv_bias: false,
        qk_layernorm: false,
        position_embedding: PositionEmbedding::Rope(RotaryConfig {
            rotary_dims: 6,
            pairing: RotaryPairing::HalfSplit,
            rotary_base: 1e4,
            seq_len_interpolation_factor: 1.0,
            rope_scaling: None,
            factors: None,
        }),
        window: None,
        apply_embedding_scaling: false,
        attention: AttentionRule::default(),
        post_layernorms: false,
        output: OutputSpec { tied: false, bias: false, softcap: None },
        pre_layernorms: true,
        multipliers: Multipliers::default(),
        blocks: None,
    }
}

/// A small GPT with everything that has a tensor.
pub(crate) fn gpt() -> UniformSpec {
    UniformSpec {
        norm: NormSpec { normalization: Normalization::LayerNorm, ..llama().norm },
        activation: Activation { nonlinearity: Nonlinearity::Gelu, gated: false },
        bias: true,
        qkv_bias: true,
        position_embedding: PositionEmbedding::LearnedAbsolute,
        output: OutputSpec { tied: true, bias: true, softcap: None },
        ..llama()
    }
}

/// A small mixture of experts with everything that has a tensor; its first layer is dense.
pub(crate) fn moe() -> UniformSpec {
    let router =
        RouterSpec { topk: 2, score: RouterScore::Sigmoid, has_expert_bias: true, scaling: Some(2.5) };
    let shared = Some(SharedExpertSpec { ffn_hidden_size: 8, has_gate: true });
    let experts = ExpertsSpec { num_experts: 3, ffn_hidden_size: 12, router, shared };
    UniformSpec { moe: Some(MoeLayers { experts, is_moe: vec![false, true] }), ..llama() }
}

/// The same with biases and sinks.
pub(crate) fn gpt_oss() -> UniformSpec {
    UniformSpec {
        activation: Activation { nonlinearity: Nonlinearity::ClampedQuickGelu, gated: true },
        bias: true,
        qkv_bias: true,
        attention: AttentionRule { has_sinks: true, ..AttentionRule::default() },
        ..moe()
    }
}

/// Its layers differ: all there is, attention alone, an MLP alone, attention of another shape.
pub(crate) fn mixed() -> ModelSpec {
    let mut model = UniformSpec { num_layers: 4, ..llama() }.spec(ROWS);
    let mut layers = model.layers.to_vec();
    layers[1].ffn = None;
    layers[2].attention = None;
    layers[2].join = BlockStyle::ParallelSharedNorm;
    if let Some(attention) = &mut layers[3].attention {
        attention.heads.num_query_groups = 4;
    }
    model.layers = layers.into();
    model
}
