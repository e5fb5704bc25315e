//! One model over several ranks has the bits of one rank: each rank is a thread here, and channels lie between them.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::MemorySource;
use common::ranks::{Layout, logits};
use common::tiny::{VOCAB_SIZE, config, weights};
use model_core::{
    AttentionSwitches, Backend, Exchange, Isa, LoadOptions, ModelConfig, ModelError, ModelPart, Reduction,
    load_part,
};
use model_spec::{ExpertSharing, Float, Numerics, Part, ShardPlace, parse_name};
use nemo_format::{Checkpoint, DType, TensorMeta, TensorSource, WriteOptions, quantize_rows, write_nemo};
use serde_json::{Value, json};

fn options(float: Float, backend: Backend) -> LoadOptions {
    with_numerics(Numerics::uniform(float), backend)
}

fn with_numerics(numerics: Numerics, backend: Backend) -> LoadOptions {
    LoadOptions {
        numerics,
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

/// Layers of many kinds.
fn kinds() -> [Value; 6] {
    [
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
    ]
}

#[test]
fn every_layout_has_the_bits_of_one_rank() {
    for kind in &kinds() {
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

/// Whole experts on each rank, four of which a token has: its slots are on several ranks, in any order.
#[test]
fn ranks_with_whole_experts_have_the_bits_of_one_rank() {
    let kind = json!({
        "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
        "num_moe_experts": 8, "moe_router_topk": 4, "moe_ffn_hidden_size": 12, "moe_layer_freq": [1, 0, 1],
        "moe_shared_expert_intermediate_size": 16, "moe_shared_expert_gate": true,
    });
    let config = wide(&kind);
    let source = weights(&config);
    let numerics = [
        Numerics::uniform(Float::Fp32),
        Numerics::uniform(Float::Bf16),
        Numerics::uniform(Float::Bf16).with_fp8_weights(),
    ];
    for numerics in numerics {
        let options = with_numerics(numerics, Backend::Fused);
        let of = |layout| logits(&config, &source, options, layout, Reduction::Tree);
        let one_rank = of(Layout::from((1, 1)));
        // The width of an expert allows four ranks, and their number eight.
        for (sizes, experts) in [
            ((4, 1), ExpertSharing::Widths),
            ((2, 1), ExpertSharing::Numbers),
            ((4, 1), ExpertSharing::Numbers),
            ((8, 1), ExpertSharing::Numbers),
            ((2, 3), ExpertSharing::Numbers),
        ] {
            let layout = Layout { experts, ..sizes.into() };
            assert_eq!(of(layout), one_rank, "{numerics:?} {layout:?}");
        }
    }
}

#[test]
fn experts_that_ranks_cannot_share_are_refused() {
    let config = wide(&json!({
        "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
        "num_moe_experts": 5, "moe_router_topk": 3, "moe_ffn_hidden_size": 24,
    }));
    let source = weights(&config);
    let place = ShardPlace { tp_rank: 0, tp_size: 2, experts: ExpertSharing::Numbers, layers: 0..3 };
    let part = ModelPart { place, reduction: Reduction::Tree, ranks: None, exchange: Exchange::Auto };
    let error = load_part(config, &source, options(Float::Fp32, Backend::Fused), part).err().unwrap();
    insta::assert_snapshot!(error, @"2 ranks cannot share `model.decoder.layers.0.mlp.experts.local_experts` evenly, whose 5 parts follow from `num_moe_experts: 5`");
}

/// The same weights in a checkpoint whose linear layers are FP8, rounded to `through` before.
fn stored_in_fp8(source: &MemorySource, through: DType) -> (tempfile::TempDir, Checkpoint) {
    let mut stored = MemorySource::default();
    for (name, (meta, bytes)) in &source.0 {
        let is_linear =
            parse_name(name).is_some_and(|id| id.part == Part::Weight && id.module.is_layer_linear());
        if !is_linear {
            stored.0.insert(name.clone(), (meta.clone(), bytes.clone()));
            continue;
        }
        let rows = quantize_rows(bytes, meta.dtype, through, meta.shape[1] as usize).unwrap();
        stored.insert(&format!("{name}_scale"), &meta.shape[..1], &rows.scales);
        let numbers = TensorMeta { dtype: DType::F8E4M3, shape: meta.shape.clone() };
        stored.0.insert(name.clone(), (numbers, rows.numbers));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fp8.nemo");
    write_nemo(&path, "num_layers: 3\n", &[], &stored, &WriteOptions::default()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.num_fp8_weights() > 0);
    (folder, checkpoint)
}

/// Scales are those of whole outputs: neither ranks nor pieces of sums nor the file that they come from change them.
#[test]
fn fp8_weights_are_the_same_stored_or_made_in_every_layout() {
    for kind in &kinds() {
        let config = wide(kind);
        let source = weights(&config);
        for (float, through) in [(Float::Fp32, DType::F32), (Float::Bf16, DType::BF16)] {
            let (_folder, stored) = stored_in_fp8(&source, through);
            let numerics = Numerics::uniform(float).with_fp8_weights();
            for (backend, reduction) in [
                (Backend::Plain, Reduction::Chain),
                (Backend::Fused, Reduction::Chain),
                (Backend::Fused, Reduction::Tree),
            ] {
                let options = with_numerics(numerics, backend);
                let of =
                    |source: &dyn TensorSource, layout| logits(&config, source, options, layout, reduction);
                let one_rank = of(&source, (1, 1));
                let what = format!("{kind} {float:?} {backend:?} {reduction:?}");
                assert_eq!(of(stored.tensors(), (1, 1)), one_rank, "{what}");
                let layouts: &[(usize, usize)] = match reduction {
                    Reduction::Tree => &[(2, 1), (4, 1), (2, 3)],
                    Reduction::Chain => &[(1, 3)],
                };
                for &layout in layouts {
                    assert_eq!(of(&source, layout), one_rank, "{what} {layout:?}");
                    assert_eq!(of(stored.tensors(), layout), one_rank, "{what} {layout:?}, stored");
                }
                // Without FP8 in the run the numbers are others, and all of them are read.
                let plain = with_numerics(Numerics::uniform(float), backend);
                let numbers = logits(&config, stored.tensors(), plain, (1, 1), reduction);
                assert_ne!(numbers, one_rank, "{what}");
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
        let place = ShardPlace { tp_rank: 0, tp_size, experts: ExpertSharing::Widths, layers: 0..3 };
        let part = ModelPart { place, reduction, ranks: None, exchange: Exchange::Auto };
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
    let place = ShardPlace { tp_rank: 0, tp_size: 3, experts: ExpertSharing::Widths, layers: 0..3 };
    let part = ModelPart { place, reduction: Reduction::Tree, ranks: None, exchange: Exchange::Auto };
    let error = load_part(config, &source, options(Float::Fp32, Backend::Fused), part).err().unwrap();
    assert!(error.to_string().contains("so many ranks cannot share the pieces"), "{error}");
}
