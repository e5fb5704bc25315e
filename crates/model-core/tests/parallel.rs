//! One model over several ranks has the bits of one rank: each rank is a thread here, and channels lie between them.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::ranks::logits;
use common::tiny::{VOCAB_SIZE, config, weights};
use model_core::{
    AttentionSwitches, Backend, Isa, LoadOptions, ModelConfig, ModelError, ModelPart, Reduction, load_part,
};
use model_spec::{Float, Numerics, ShardPlace};
use serde_json::{Value, json};

fn options(float: Float, backend: Backend) -> LoadOptions {
    LoadOptions {
        numerics: Numerics::uniform(float),
        backend,
        device: tch::Device::Cpu,
        attention: AttentionSwitches::default(),
        isa: Isa::detect(),
    }
}

fn wide(extra: &Value) -> ModelConfig {
    let mut keys = json!({
        "num_layers": 3, "num_attention_heads": 8, "num_query_groups": 2, "kv_channels": 6, "ffn_hidden_size": 48,
    });
    for (key, value) in extra.as_object().unwrap() {
        keys[key] = value.clone();
    }
    config(&keys)
}

#[test]
fn every_layout_has_the_bits_of_one_rank() {
    let kinds = [
        json!({ "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
                "share_embeddings_and_output_weights": false }),
        json!({ "normalization": "rmsnorm", "bias": false, "qkv_bias": true, "qk_layernorm": true,
                "activation": "fast-swiglu", "position_embedding_type": "rope" }),
        json!({ "num_query_groups": 8, "position_embedding_type": "learned_absolute" }),
        json!({ "num_query_groups": 1, "name": "megatron_falcon_gpt", "bias": false, "position_embedding_type": "rope" }),
        json!({ "num_query_groups": 4, "position_embedding_type": "rope", "rotary_interleaved": true, "output_layer_bias": true,
                "share_embeddings_and_output_weights": false,
                "mcore_customization_config": { "parallel_attention": true, "new_decoder_architecture": true } }),
        json!({ "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
                "num_moe_experts": 5, "moe_router_topk": 3, "moe_ffn_hidden_size": 24, "moe_layer_freq": [1, 0, 1],
                "moe_shared_expert_intermediate_size": 16, "moe_shared_expert_gate": true }),
    ];
    for kind in &kinds {
        let config = wide(kind);
        let source = weights(&config);
        for float in [Float::Fp32, Float::Bf16] {
            let options = options(float, Backend::Fused);
            let of = |layout| logits(&config, &source, options, layout, Reduction::Tree);
            let one_rank = of((1, 1));
            assert!(one_rank.iter().all(|row| row.len() == VOCAB_SIZE as usize));
            for layout in [(2, 1), (4, 1), (8, 1), (1, 2), (1, 3), (2, 3)] {
                assert_eq!(of(layout), one_rank, "{kind} {float:?} {layout:?}");
            }
        }
    }
}

#[test]
fn stages_of_the_plain_backend_have_the_bits_of_one_rank() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let of =
        |layout| logits(&config, &source, options(Float::Fp32, Backend::Plain), layout, Reduction::Chain);
    assert_eq!(of((1, 3)), of((1, 1)));
}

#[test]
fn the_tree_differs_from_the_chain_by_rounding_only() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let of = |reduction| logits(&config, &source, options(Float::Fp32, Backend::Fused), (1, 1), reduction);
    let (tree, chain) = (of(Reduction::Tree), of(Reduction::Chain));
    for (tree, chain) in tree.iter().flatten().zip(chain.iter().flatten()) {
        let (tree, chain) = (f32::from_bits(*tree), f32::from_bits(*chain));
        assert!((tree - chain).abs() <= 1e-5 * chain.abs().max(1.0), "{tree} {chain}");
    }
}

#[test]
fn parts_that_have_other_bits_are_refused() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let refusal = |backend, reduction, tp_size| {
        let place = ShardPlace { tp_rank: 0, tp_size, layers: 0..3 };
        let part = ModelPart { place, reduction, ranks: None };
        let error: ModelError =
            load_part(config.clone(), &source, options(Float::Fp32, backend), part).err().unwrap();
        error.to_string()
    };
    insta::assert_snapshot!(refusal(Backend::Plain, Reduction::Tree, 1), @"the plain backend is not available: libtorch's products have other bits for each number of tensor-parallel ranks (`trt_llm.enable: true` computes them)");
    insta::assert_snapshot!(refusal(Backend::Fused, Reduction::Chain, 2), @"the tensor-parallel backend is not available: ranks that share a layer add in a tree");
    insta::assert_snapshot!(refusal(Backend::Fused, Reduction::Tree, 16), @"16 ranks cannot share `model.decoder.layers.0.self_attention.linear_qkv.weight` evenly, whose 8 parts follow from `num_attention_heads: 8`, `num_query_groups: 2` and `kv_channels: 6`");
}

/// Three ranks can share these heads and this MLP, but not the pieces of their sums.
#[test]
fn ranks_that_do_not_share_the_pieces_are_refused() {
    let config = wide(&json!({
        "num_attention_heads": 6, "num_query_groups": 3, "position_embedding_type": "rope",
    }));
    let source = weights(&config);
    let place = ShardPlace { tp_rank: 0, tp_size: 3, layers: 0..3 };
    let part = ModelPart { place, reduction: Reduction::Tree, ranks: None };
    let error = load_part(config, &source, options(Float::Fp32, Backend::Fused), part).err().unwrap();
    assert!(error.to_string().contains("so many ranks cannot share the pieces"), "{error}");
}
