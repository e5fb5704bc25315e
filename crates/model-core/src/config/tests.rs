use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde_json::json;

use model_spec::{
    BlockStyle, ExpertsSpec, Nonlinearity, PositionEmbedding, RopeScaling, RotaryConfig, RotaryPairing,
    RouterScore, RouterSpec, SharedExpertSpec,
};

use super::*;

/// Asks a structure for the names of its fields.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("not a structure"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields);
        Err(Self::Error::custom("the names were asked for"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn field_names<T: DeserializeOwned>() -> Vec<&'static str> {
    let mut names = Vec::new();
    assert!(T::deserialize(FieldNames(&mut names)).is_err());
    names
}

/// Opening a checkpoint names the keys that it does not know; what is read here must not be among them.
#[test]
fn every_key_that_is_read_is_known_to_the_reader_of_checkpoints() {
    let names = field_names::<RawModelConfig>();
    assert!(names.len() > 50);
    let strangers: Vec<_> = names.into_iter().filter(|name| !nemo_format::is_known_model_key(name)).collect();
    assert_eq!(strangers, [""; 0]);
}

fn parse(extra: &serde_json::Value) -> Result<ModelConfig, ModelError> {
    let mut keys = json!({
        "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "encoder_seq_length": 128,
        "some_unknown_key": {"a": [1, 2]}, "kv_channels": null,
    });
    for (key, value) in extra.as_object().unwrap() {
        keys[key] = value.clone();
    }
    serde_json::from_value::<RawModelConfig>(keys).unwrap().try_into()
}

#[test]
fn nulls_and_absent_keys_take_the_defaults_of_nemo() {
    let config = parse(&json!({})).unwrap();
    let heads = HeadLayout { num_attention_heads: 4, num_query_groups: 4, kv_channels: 16 };
    assert_eq!((config.uniform.heads, config.uniform.ffn_hidden_size), (heads, 256));
    assert_eq!(config.uniform.norm.normalization, Normalization::LayerNorm);
    assert_eq!(config.uniform.activation, Activation { nonlinearity: Nonlinearity::GeluTanh, gated: false });
    assert_eq!(config.uniform.position_embedding, PositionEmbedding::LearnedAbsolute);
    assert!(config.uniform.bias && config.uniform.qkv_bias && config.uniform.output.tied);
    assert_eq!(config.uniform.norm.epsilon, 1e-5);
    assert_eq!(config.max_position_embeddings, 128);
}

#[test]
fn numbers_may_be_integers_or_text() {
    let config = parse(&json!({
        "layernorm_epsilon": "1e-6", "rotary_base": 500000, "position_embedding_type": "rope",
        "rotary_percentage": 0.5, "seq_len_interpolation_factor": 2, "normalization": "RMSNorm",
    }))
    .unwrap();
    assert_eq!(config.uniform.norm.epsilon, 1e-6);
    assert_eq!(config.uniform.norm.normalization, Normalization::RmsNorm);
    assert_eq!(
        config.uniform.position_embedding,
        PositionEmbedding::Rope(RotaryConfig {
            rotary_dims: 8,
            rotary_base: 500_000.0,
            seq_len_interpolation_factor: 2.0,
            pairing: RotaryPairing::HalfSplit,
            rope_scaling: None,
            factors: None,
        })
    );
}

#[test]
fn every_activation_has_its_function_and_gate() {
    let cases = [
        ("gelu", Nonlinearity::Gelu, false),
        ("approx-gelu", Nonlinearity::QuickGelu, false),
        ("squared-relu", Nonlinearity::SquaredRelu, false),
        ("fast-geglu", Nonlinearity::Gelu, true),
        ("swiglu", Nonlinearity::Silu, true),
        ("fast-reglu", Nonlinearity::Relu, true),
    ];
    for (name, nonlinearity, gated) in cases {
        let config = parse(&json!({ "activation": name, "bias_activation_fusion": false })).unwrap();
        assert_eq!(config.uniform.activation, Activation { nonlinearity, gated });
        let config = parse(&json!({ "activation": name, "openai_gelu": true })).unwrap();
        assert_eq!(config.uniform.activation, Activation { nonlinearity: Nonlinearity::GeluTanh, gated });
    }
}

#[test]
fn which_gelu_it_is_follows_from_the_keys_of_fusion() {
    let of = |keys: serde_json::Value| parse(&keys).map(|config| config.uniform.activation.nonlinearity);
    assert_eq!(of(json!({})).unwrap(), Nonlinearity::GeluTanh);
    assert_eq!(of(json!({ "bias_gelu_fusion": true })).unwrap(), Nonlinearity::GeluTanh);
    assert_eq!(of(json!({ "bias": false })).unwrap(), Nonlinearity::Gelu);
    let both = json!({ "bias_gelu_fusion": false, "bias_activation_fusion": false });
    assert_eq!(of(both).unwrap(), Nonlinearity::Gelu);
    let other = json!({ "bias_gelu_fusion": false, "activation": "squared-relu" });
    assert_eq!(of(other).unwrap(), Nonlinearity::SquaredRelu);
    let refused = |keys| of(keys).unwrap_err().to_string();
    insta::assert_snapshot!(refused(json!({ "bias_gelu_fusion": false })), @"model config key `bias_gelu_fusion` is `false`, a GELU that NeMo up to 1.9 computes by the error function and later versions in its tanh form, which is not supported; use `++model.bias_activation_fusion=false` for the former, `=true` for the latter");
    insta::assert_snapshot!(refused(json!({ "bias": false, "bias_activation_fusion": true })), @"model config key `bias_activation_fusion` must be `false` with `activation: gelu` and `bias: false`, which NeMo does not fuse, not `true`");
}

/// A model with experts and these keys, which come last.
fn moe(extra: serde_json::Value) -> serde_json::Value {
    let mut keys = json!({ "num_moe_experts": 4, "bias": false });
    let serde_json::Value::Object(extra) = extra else { unreachable!("{extra}") };
    for (key, value) in extra {
        keys.as_object_mut().unwrap().shift_remove(&key);
        keys[key] = value;
    }
    keys
}

#[test]
fn experts_follow_from_the_keys_of_megatron_core() {
    let of = |extra| parse(&moe(extra)).unwrap().uniform.moe;
    let plain = of(json!({})).unwrap();
    assert_eq!(plain.is_moe, [true, true]);
    let router =
        RouterSpec { topk: 2, score: RouterScore::SoftmaxOfChosen, has_expert_bias: false, scaling: None };
    assert_eq!(plain.experts, ExpertsSpec { num_experts: 4, ffn_hidden_size: 256, router, shared: None });
    let all = of(json!({
        "moe_layer_freq": 2, "moe_ffn_hidden_size": 24, "moe_router_topk": 3, "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": true, "moe_router_topk_scaling_factor": 2.5, "moe_router_pre_softmax": true,
        "moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": true, "moe_expert_capacity_factor": -1,
        "moe_router_num_groups": null, "moe_router_load_balancing_type": ["seq_aux_loss", "none"],
    }))
    .unwrap();
    assert_eq!(all.is_moe, [true, false]);
    let router =
        RouterSpec { topk: 3, score: RouterScore::Sigmoid, has_expert_bias: true, scaling: Some(2.5) };
    let shared = Some(SharedExpertSpec { ffn_hidden_size: 40, has_gate: true });
    assert_eq!(all.experts, ExpertsSpec { num_experts: 4, ffn_hidden_size: 24, router, shared });
    let of_all = of(json!({ "moe_router_pre_softmax": true })).unwrap();
    assert_eq!(of_all.experts.router.score, RouterScore::SoftmaxOfAll);
    assert_eq!(of(json!({ "moe_layer_freq": [0, 1] })).unwrap().is_moe, [false, true]);
    assert_eq!(of(json!({ "moe_layer_freq": [0, 0] })), None);
    assert_eq!(of(json!({ "num_moe_experts": 0, "moe_router_topk": 9 })), None);
}

#[test]
fn what_the_model_cannot_compute_is_refused_by_key() {
    let cases = [
        json!({ "num_moe_experts": 8.5 }),
        moe(json!({ "bias": true, "moe_shared_expert_intermediate_size": 8 })),
        json!({ "softmax_type": "off-by-one" }),
        json!({ "softmax_type": "soft" }),
        json!({ "activation": "quick-geglu", "activation_func_clamp_value": 7, "glu_linear_offset": 0 }),
        json!({ "activation": "quick-geglu", "glu_linear_offset": 1, "activation_func_clamp_value": 6 }),
        json!({ "activation": "fast-swiglu", "activation_func_clamp_value": 7 }),
        json!({ "glu_linear_offset": "one" }),
        moe(json!({ "moe_router_topk": 5 })),
        moe(json!({ "moe_router_topk": 0 })),
        moe(json!({ "moe_router_score_function": "sqrtsoftplus" })),
        moe(json!({ "moe_router_enable_expert_bias": true })),
        moe(json!({ "moe_router_load_balancing_type": "sinkhorn" })),
        moe(json!({ "moe_router_load_balancing_type": ["aux_loss", "quantile_balancing"] })),
        moe(json!({ "moe_router_topk_scaling_factor": -1 })),
        moe(json!({ "moe_router_num_groups": 2 })),
        moe(json!({ "moe_router_group_topk": 1 })),
        moe(json!({ "moe_expert_capacity_factor": 1.5 })),
        moe(json!({ "moe_apply_probs_on_input": true })),
        moe(json!({ "moe_latent_size": 16 })),
        moe(json!({ "moe_layer_freq": 0 })),
        moe(json!({ "moe_layer_freq": [1] })),
        moe(json!({ "moe_layer_freq": [1, 2] })),
        moe(json!({ "moe_layer_freq": "[1]*2" })),
        moe(json!({ "moe_ffn_hidden_size": 0 })),
        moe(json!({ "post_layernorms": true })),
        json!({ "position_embedding_type": "alibi" }),
        json!({ "transformer_block_type": "post_ln" }),
        json!({ "headscale": true }),
        json!({ "window_size": "wide" }),
        json!({ "sqrt_query_pre_attn_scalar": 14.9666 }),
        json!({ "attn_logit_softcapping": -50.0 }),
        json!({ "final_logit_softcapping": "much" }),
        json!({ "name": "megatron_gemma2", "query_pre_attn_scalar": null }),
        json!({ "query_pre_attn_scalar": 0 }),
        json!({ "query_pre_attn_scalar": 4, "softmax_scale": 0.1 }),
        json!({ "window_size": [8, 0], "window_attn_skip_freq": [1] }),
        json!({ "window_size": [8, 0], "window_attn_skip_freq": [1, 2] }),
        json!({ "window_size": [8, 0], "window_attn_skip_freq": 0 }),
        json!({ "rotary_base_local": 100 }),
        json!({ "apply_residual_connection_post_layernorm": true }),
        json!({ "mm_cfg": {"llm": 1} }),
        json!({ "mcore_customization_config": {"add_bias_linear": false} }),
        json!({ "qk_layernorm_across_heads": true }),
        json!({ "qk_layernorm": true, "rotary_interleaved": true, "qk_layernorm_across_heads": true }),
        json!({ "normalization": "batchnorm" }),
        json!({ "activation": "mish" }),
        json!({ "num_query_groups": 3 }),
        json!({ "num_layers": 0 }),
        json!({ "hidden_size": -64 }),
        json!({ "layernorm_epsilon": "tiny" }),
        json!({ "position_embedding_type": "rope", "rotary_percentage": 0.2 }),
    ];
    for case in cases {
        let key = case.as_object().unwrap().keys().next_back().unwrap();
        let error = parse(&case).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{case}: {error}");
    }
}

#[test]
fn the_block_style_follows_the_name_and_the_customization() {
    let style = |keys| parse(&keys).unwrap().uniform.block_style;
    let customized = |name: &str, parallel_attention, new_decoder_architecture| {
        json!({
            "name": name,
            "mcore_customization_config": {
                "parallel_attention": parallel_attention, "new_decoder_architecture": new_decoder_architecture,
            },
        })
    };
    assert_eq!(style(json!({})), BlockStyle::Sequential);
    assert_eq!(style(json!({ "name": "megatron_falcon_gpt" })), BlockStyle::ParallelSharedNorm);
    assert_eq!(style(customized("megatron_falcon_gpt", Some(false), Some(false))), BlockStyle::Sequential);
    assert_eq!(style(customized("megatron_falcon_gpt", None, Some(true))), BlockStyle::ParallelOwnNorm);
    assert_eq!(style(customized("", Some(true), None)), BlockStyle::ParallelSharedNorm);
    assert_eq!(style(customized("te_gpt", Some(true), Some(true))), BlockStyle::ParallelOwnNorm);
}

#[test]
fn norms_of_heads_are_asked_for_by_either_key() {
    let is_normed = |keys| parse(&keys).unwrap().uniform.qk_layernorm;
    assert!(!is_normed(json!({})));
    assert!(is_normed(json!({ "qk_layernorm": true })));
    assert!(is_normed(json!({ "mcore_customization_config": { "qk_layernorm": true } })));
    assert!(!is_normed(
        json!({ "qk_layernorm": true, "mcore_customization_config": { "qk_layernorm": false } })
    ));
}

/// The layers that see a part, what they see, and what else Gemma has.
#[test]
fn windows_of_some_layers_are_read_as_each_software_means_them() {
    let local = |keys: serde_json::Value| {
        let uniform = parse(&keys).unwrap().uniform;
        (uniform.attention.local.map(|local| (local.is_local, local.tokens)), uniform.window.is_some())
    };
    let seen = |is_local: &[bool], tokens| (Some((is_local.to_vec(), tokens)), false);
    assert_eq!(local(json!({ "window_size": [8, 0] })), (None, true));
    assert_eq!(local(json!({ "window_size": [8, 0], "window_attn_skip_freq": 2 })), seen(&[true, false], 9));
    assert_eq!(
        local(json!({ "window_size": [8, 0], "window_attn_skip_freq": [0, 1] })),
        seen(&[false, true], 9)
    );
    assert_eq!(local(json!({ "window_size": null, "window_attn_skip_freq": 2 })), (None, false));
    // As NeMo's converter writes it, over its example configuration.
    let gemma2 = json!({
        "name": "megatron_gemma2", "window_size": [8, 0], "sqrt_query_pre_attn_scalar": 14.9666,
        "mcore_customization_config": { "query_pre_attn_scalar": 224 },
    });
    assert_eq!(local(gemma2.clone()), seen(&[false, true], 9));
    let uniform = parse(&gemma2).unwrap().uniform;
    assert!(uniform.post_layernorms);
    assert_eq!(uniform.attention.scale, Some(1.0 / 224.0_f64.sqrt()));
    let customized = json!({ "mcore_customization_config": {
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30, "query_pre_attn_scalar": 16,
    } });
    let uniform = parse(&customized).unwrap().uniform;
    assert_eq!((uniform.attention.softcap, uniform.attention.scale), (Some(50.0), Some(0.25)));
    assert_eq!(uniform.output.softcap, Some(30.0));
}

#[test]
fn customizations_without_effect_are_let_through() {
    let config = parse(&json!({
        "mcore_customization_config": {
            "bias_dropout_fusion": true, "attention_dropout": 0.1, "recompute_granularity": "full",
            "tensor_model_parallel_size": 2, "final_logit_softcapping": null, "qk_layernorm": false,
        },
    }))
    .unwrap();
    assert_eq!(config, parse(&json!({})).unwrap());
}

#[test]
fn the_constants_of_the_llama_3_1_rule_can_be_set() {
    let scaling = |extra: serde_json::Value| {
        let mut keys = json!({ "position_embedding_type": "rope", "scale_positional_embedding": true });
        for (key, value) in extra.as_object().unwrap() {
            keys[key] = value.clone();
        }
        parse(&keys).map(|config| match config.uniform.position_embedding {
            PositionEmbedding::Rope(rotary) => rotary.rope_scaling,
            PositionEmbedding::LearnedAbsolute => None,
        })
    };
    assert_eq!(scaling(json!({})).unwrap(), Some(RopeScaling::LLAMA_3_1));
    let factor = json!({ "rope_scaling": { "factor": "32.0", "low_freq_factor": 1 } });
    assert_eq!(scaling(factor).unwrap(), Some(RopeScaling { factor: 32.0, ..RopeScaling::LLAMA_3_1 }));
    let off = json!({ "scale_positional_embedding": false, "rope_scaling": { "factor": 32 } });
    assert_eq!(scaling(off).unwrap(), None);
    let crossed = json!({ "rope_scaling": { "low_freq_factor": 4 } });
    assert_eq!(
        scaling(crossed).unwrap_err().to_string(),
        "model config key `rope_scaling` must be a `high_freq_factor` above its `low_freq_factor`, 4, not `4`"
    );
}
