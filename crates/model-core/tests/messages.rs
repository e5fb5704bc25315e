//! What a user is told when weights, config or batch do not fit: what was found, what is needed, what to do.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::tiny::{VOCAB_SIZE, config, weights};
use common::{BACKENDS, MemorySource, Runner};
use model_core::{
    AttentionSwitches, Backend, Batch, BlockId, Isa, LoadOptions, ModelConfig, ModelError, RawModelConfig,
    Span, load_model,
};
use model_spec::{Float, KvFormat, Numerics};
use serde_json::{Value, json};

/// The error of loading weights that were made for `keys` and then changed.
fn load_error(keys: &Value, change: impl FnOnce(&mut MemorySource)) -> String {
    let config = config(keys);
    let mut source = weights(&config);
    change(&mut source);
    Runner::new(config, &source, Float::Fp32, Backend::Plain).err().unwrap().to_string()
}

/// The error of loading the weights of one config with another.
fn mismatch(stored: &Value, read: &Value) -> String {
    let source = weights(&config(stored));
    Runner::new(config(read), &source, Float::Fp32, Backend::Fused).err().unwrap().to_string()
}

fn config_error(keys: &Value) -> String {
    let raw = serde_json::from_value::<RawModelConfig>(keys.clone()).unwrap();
    ModelConfig::try_from(raw).unwrap_err().to_string()
}

#[test]
fn shapes_that_contradict_the_config() {
    let mismatch = |read| mismatch(&json!({}), &read);
    insta::assert_snapshot!(mismatch(json!({ "ffn_hidden_size": 48 })), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` has shape [40, 36], the model needs [48, 36] because of `ffn_hidden_size: 48` without a gated `activation`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({ "activation": "swiglu" })), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` has shape [40, 36], the model needs [80, 36] because of `ffn_hidden_size: 40` with a gated `activation`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({ "hidden_size": 32 })), @"tensor `model.embedding.position_embeddings.weight` has shape [48, 36], the model needs [48, 32] because of `hidden_size: 32`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({ "num_query_groups": 2 })), @"tensor `model.decoder.layers.0.self_attention.linear_qkv.weight` has shape [144, 36], the model needs [96, 36] because of `num_attention_heads: 4`, `num_query_groups: 2` and `kv_channels: 12`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({ "kv_channels": null })), @"tensor `model.decoder.layers.0.self_attention.linear_qkv.weight` has shape [144, 36], the model needs [108, 36] because of `num_attention_heads: 4`, `num_query_groups: 4` and `kv_channels: 9`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({ "encoder_seq_length": 64 })), @"model config key `encoder_seq_length` must be at most the 48 learned positions of `model.embedding.position_embeddings.weight`, not `64`");
    let untied = json!({ "share_embeddings_and_output_weights": false });
    insta::assert_snapshot!(load_error(&untied, |source| {
        source.insert("model.output_layer.weight", &[VOCAB_SIZE + 6, 36], &[0.0; 56 * 36]);
    }), @"tensor `model.output_layer.weight` has shape [56, 36], the model needs [50, 36] because of the 50 rows of `model.embedding.word_embeddings.weight`, which is padded alike: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(load_error(&json!({}), |source| {
        let name = "model.decoder.layers.1.mlp.linear_fc2.weight";
        source.0.get_mut(name).unwrap().0.dtype = nemo_format::DType::I8;
    }), @"tensor `model.decoder.layers.1.mlp.linear_fc2.weight` holds int8, the model needs floating-point numbers: use a checkpoint that is not quantised");
}

#[test]
fn tensors_that_are_missing() {
    let mismatch = |read| mismatch(&json!({ "bias": false, "normalization": "rmsnorm" }), &read);
    let with = |key: &str, value: Value| {
        let mut keys = json!({ "bias": false, "normalization": "rmsnorm" });
        keys[key] = value;
        keys
    };
    insta::assert_snapshot!(mismatch(with("num_layers", json!(3))), @"the checkpoint has no tensor `model.decoder.layers.2.self_attention.linear_qkv.layer_norm_weight`; `num_layers: 3` needs it, and the checkpoint has 2 layers: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(with("bias", json!(true))), @"the checkpoint has no tensor `model.decoder.layers.0.self_attention.linear_qkv.bias`; `bias: true` needs it: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(with("qkv_bias", json!(true))), @"the checkpoint has no tensor `model.decoder.layers.0.self_attention.linear_qkv.bias`; `qkv_bias: true` needs it: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(with("normalization", json!("layernorm"))), @"the checkpoint has no tensor `model.decoder.layers.0.self_attention.linear_qkv.layer_norm_bias`; `normalization: layernorm` needs it, `rmsnorm` has none: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(with("share_embeddings_and_output_weights", json!(false))), @"the checkpoint has no tensor `model.output_layer.weight`; `share_embeddings_and_output_weights: false` needs it: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(with("output_layer_bias", json!(true))), @"the checkpoint has no tensor `model.output_layer.bias`; `output_layer_bias: true` needs it: correct the model config, or use a complete checkpoint");
    let rope = json!({ "bias": false, "normalization": "rmsnorm", "position_embedding_type": "rope" });
    insta::assert_snapshot!(self::mismatch(&rope, &with("num_layers", json!(2))), @"the checkpoint has no tensor `model.embedding.position_embeddings.weight`; `position_embedding_type: learned_absolute` needs it: correct the model config, or use a complete checkpoint");
    let one_norm = with("mcore_customization_config", json!({ "parallel_attention": true }));
    insta::assert_snapshot!(self::mismatch(&one_norm, &with("num_layers", json!(2))), @"the checkpoint has no tensor `model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight`; a block without `parallel_attention` needs it: correct the model config, or use a complete checkpoint");
    let two_norms = with(
        "mcore_customization_config",
        json!({ "parallel_attention": true, "new_decoder_architecture": true }),
    );
    insta::assert_snapshot!(self::mismatch(&one_norm, &two_norms), @"the checkpoint has no tensor `model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight`; `new_decoder_architecture: true` needs it: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(load_error(&json!({}), |source| {
        drop(source.0.remove("model.decoder.layers.1.mlp.linear_fc2.weight"));
    }), @"the checkpoint has no tensor `model.decoder.layers.1.mlp.linear_fc2.weight`; every model of this kind has it: correct the model config, or use a complete checkpoint");
}

#[test]
fn tensors_that_nobody_asked_for() {
    let mismatch = |read| mismatch(&json!({ "share_embeddings_and_output_weights": false }), &read);
    insta::assert_snapshot!(mismatch(json!({})), @"the config does not account for 1 of the checkpoint's tensors, first `model.output_layer.weight`; the first is used with `share_embeddings_and_output_weights: false`: correct the model config if that is what the model is");
    let untied = |key: &str, value: Value| {
        let mut keys = json!({ "share_embeddings_and_output_weights": false });
        keys[key] = value;
        keys
    };
    insta::assert_snapshot!(mismatch(untied("num_layers", json!(1))), @"the config does not account for 12 of the checkpoint's tensors, first `model.decoder.layers.1.mlp.linear_fc1.bias`, `model.decoder.layers.1.mlp.linear_fc1.layer_norm_bias`, `model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight`; the first is used with a larger `num_layers` than 1: correct the model config if that is what the model is");
    insta::assert_snapshot!(mismatch(untied("bias", json!(false))), @"the config does not account for 8 of the checkpoint's tensors, first `model.decoder.layers.0.mlp.linear_fc1.bias`, `model.decoder.layers.0.mlp.linear_fc2.bias`, `model.decoder.layers.0.self_attention.linear_proj.bias`; the first is used with `bias: true`, or `qkv_bias: true` for those of `linear_qkv` alone: correct the model config if that is what the model is");
    insta::assert_snapshot!(mismatch(untied("normalization", json!("rmsnorm"))), @"the config does not account for 5 of the checkpoint's tensors, first `model.decoder.final_layernorm.bias`, `model.decoder.layers.0.mlp.linear_fc1.layer_norm_bias`, `model.decoder.layers.0.self_attention.linear_qkv.layer_norm_bias`; the first is used with `normalization: layernorm`: correct the model config if that is what the model is");
    insta::assert_snapshot!(mismatch(untied("position_embedding_type", json!("rope"))), @"the config does not account for 1 of the checkpoint's tensors, first `model.embedding.position_embeddings.weight`; the first is used with `position_embedding_type: learned_absolute`: correct the model config if that is what the model is");
    insta::assert_snapshot!(mismatch(untied("mcore_customization_config", json!({ "parallel_attention": true }))), @"the config does not account for 4 of the checkpoint's tensors, first `model.decoder.layers.0.mlp.linear_fc1.layer_norm_bias`, `model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight`, `model.decoder.layers.1.mlp.linear_fc1.layer_norm_bias`; the first is used with `new_decoder_architecture: true`: correct the model config if that is what the model is");
    let extra = |name: &'static str| load_error(&json!({}), |source| source.insert(name, &[1], &[0.0]));
    insta::assert_snapshot!(extra("model.output_layer.bias"), @"the config does not account for 1 of the checkpoint's tensors, first `model.output_layer.bias`; the first is used with `output_layer_bias: true`: correct the model config if that is what the model is");
    insta::assert_snapshot!(extra("model.decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"), @"the config does not account for 1 of the checkpoint's tensors, first `model.decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight`; the first is used with more `num_moe_experts`, and a `moe_layer_freq` that gives the layer experts: correct the model config if that is what the model is");
    insta::assert_snapshot!(extra("model.decoder.layers.0.mlp.experts.weight1"), @"the config does not account for 1 of the checkpoint's tensors, first `model.decoder.layers.0.mlp.experts.weight1`; experts in one matrix, as Megatron-Core's `moe_use_legacy_grouped_gemm` keeps them in memory, are not read: save a distributed checkpoint");
    insta::assert_snapshot!(extra("model.decoder.layers.0.self_attention.q_layernorm.weight"), @"the config does not account for 1 of the checkpoint's tensors, first `model.decoder.layers.0.self_attention.q_layernorm.weight`; the first is used with `qk_layernorm: true`: correct the model config if that is what the model is");
    insta::assert_snapshot!(extra("model.decoder.layers.0.self_attention.adapter_layer.lora.weight"), @"the config does not account for 1 of the checkpoint's tensors, first `model.decoder.layers.0.self_attention.adapter_layer.lora.weight`; adapters are not supported: merge them into the weights first");
    insta::assert_snapshot!(extra("model.decoder.layers.0.mlp.head_scale_tensor"), @"the config does not account for 1 of the checkpoint's tensors, first `model.decoder.layers.0.mlp.head_scale_tensor`; no GPT with `position_embedding_type: learned_absolute` has it: use the model config of this checkpoint");
}

#[test]
fn experts_that_do_not_fit_their_configuration() {
    let keys = |extra: Value| {
        let mut keys = json!({
            "bias": false, "normalization": "rmsnorm", "activation": "fast-swiglu", "num_moe_experts": 4,
            "moe_ffn_hidden_size": 24, "moe_layer_freq": [0, 1],
        });
        for (key, value) in extra.as_object().unwrap() {
            keys[key] = value.clone();
        }
        keys
    };
    let mismatch = |written: Value, read: Value| mismatch(&keys(written), &keys(read));
    insta::assert_snapshot!(mismatch(json!({}), json!({ "num_moe_experts": 5 })), @"tensor `model.decoder.layers.1.mlp.router.weight` has shape [4, 36], the model needs [5, 36] because of `num_moe_experts: 5`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({}), json!({ "num_moe_experts": 3 })), @"tensor `model.decoder.layers.1.mlp.router.weight` has shape [4, 36], the model needs [3, 36] because of `num_moe_experts: 3`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({}), json!({ "moe_ffn_hidden_size": 20 })), @"tensor `model.decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight` has shape [48, 36], the model needs [40, 36] because of `moe_ffn_hidden_size: 20` with a gated `activation`: correct the model config, or use the one that belongs to this checkpoint");
    insta::assert_snapshot!(mismatch(json!({}), json!({ "moe_layer_freq": 1 })), @"the checkpoint has no tensor `model.decoder.layers.0.mlp.router.weight`; `num_moe_experts` and `moe_layer_freq` give the layer experts: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(json!({}), json!({ "moe_layer_freq": [1, 0] })), @"the checkpoint has no tensor `model.decoder.layers.0.mlp.router.weight`; `num_moe_experts` and `moe_layer_freq` give the layer experts: correct the model config, or use a complete checkpoint");
    insta::assert_snapshot!(mismatch(json!({}), json!({ "moe_shared_expert_intermediate_size": 8 })), @"the checkpoint has no tensor `model.decoder.layers.1.mlp.shared_experts.linear_fc1.weight`; `moe_shared_expert_intermediate_size` needs it: correct the model config, or use a complete checkpoint");
    let without = |name: &'static str| load_error(&keys(json!({})), |source| drop(source.0.remove(name)));
    insta::assert_snapshot!(without("model.decoder.layers.1.mlp.experts.local_experts.2.linear_fc2.weight"), @"the checkpoint has no tensor `model.decoder.layers.1.mlp.experts.local_experts.2.linear_fc2.weight`; `num_moe_experts` and `moe_layer_freq` give the layer experts: correct the model config, or use a complete checkpoint");
}

#[test]
fn state_of_training_is_no_weight() {
    let config = config(&json!({}));
    let mut source = weights(&config);
    for name in ["model.decoder.layers.0.mlp.linear_fc2._extra_state", "model.rotary_pos_emb.inv_freq"] {
        source.insert(name, &[1], &[0.0]);
    }
    Runner::new(config, &source, Float::Fp32, Backend::Plain).unwrap();
}

#[test]
fn formats_that_are_not_combined() {
    let config = config(&json!({}));
    let numerics = Numerics { kv: KvFormat::Float(Float::Fp32), ..Numerics::uniform(Float::Bf16) };
    for backend in BACKENDS {
        let attention = AttentionSwitches::default();
        let options =
            LoadOptions { numerics, backend, device: tch::Device::Cpu, attention, isa: Isa::detect() };
        let error = load_model(config.clone(), &weights(&config), options).err().unwrap().to_string();
        insta::allow_duplicates! {
            insta::assert_snapshot!(error, @"computing in bf16 (weights bf16, KV cache fp32) is not supported: the KV cache must have the format that is computed in, weights the same or fp8");
        }
    }
}

#[test]
fn options_that_are_not_computed() {
    let with = |key: &str, value: Value| {
        let mut keys = json!({
            "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "encoder_seq_length": 128,
        });
        keys[key] = value;
        config_error(&keys)
    };
    insta::assert_snapshot!(with("softmax_type", json!("off-by-one")), @"model config key `softmax_type` is `off-by-one`, a softmax with a score of 0 that belongs to no key, which is not supported; use a checkpoint trained without it");
    insta::assert_snapshot!(with("position_embedding_type", json!("alibi")), @"model config key `position_embedding_type` is `alibi`, a position embedding other than `rope` and `learned_absolute`, which is not supported; use a checkpoint trained with one of those");
    insta::assert_snapshot!(with("name", json!("te_gpt_hyena")), @"model config key `name` is `te_gpt_hyena`, a layer specification of its own, which is not supported; use a checkpoint of the GPT, Llama, Gemma, Falcon or Nemotron family");
    insta::assert_snapshot!(with("transformer_block_type", json!("post_ln")), @"model config key `transformer_block_type` is `post_ln`, a norm at another place, which is not supported; use a checkpoint trained with `transformer_block_type: pre_ln`");
    insta::assert_snapshot!(with("attention_type", json!("multiquery")), @"model config key `attention_type` is `multiquery`, another attention, which is not supported; use a checkpoint trained with `attention_type: multihead`");
    insta::assert_snapshot!(with("normalize_attention_scores", json!(false)), @"model config key `normalize_attention_scores` is `false`, attention without its scale, which is not supported; use a checkpoint trained with `normalize_attention_scores: true`");
    insta::assert_snapshot!(with("headscale", json!(true)), @"model config key `headscale` is `true`, scaling of heads, which is not supported; use a checkpoint trained without it");
    insta::assert_snapshot!(with("megatron_legacy", json!(true)), @"model config key `megatron_legacy` is `true`, the row order of the oldest Megatron checkpoints, which is not supported; use a checkpoint that NeMo 1.0 or later has written");
    insta::assert_snapshot!(with("mcore_customization_config", json!({ "window_size": [4, 0] })), @"model config key `mcore_customization_config` is `window_size: a list or dictionary`, sliding-window attention, which is not supported; use a checkpoint trained without it");
    insta::assert_snapshot!(with("mcore_customization_config", json!({ "calculate_per_token_loss": [1] })), @"model config key `mcore_customization_config` is `calculate_per_token_loss: a list or dictionary`, a key of Megatron-Core whose effect is not known here, which is not supported; use a checkpoint trained without it");
    insta::assert_snapshot!(with("mcore_customization_config", json!({ "new_decoder_architecture": true })), @"model config key `mcore_customization_config` must be `parallel_attention: true` where it has `new_decoder_architecture: true`, not `parallel_attention: false`");
    insta::assert_snapshot!(with("mcore_customization_config", json!({ "parallel_attention": "yes" })), @"model config key `mcore_customization_config` must be `true` or `false` at `parallel_attention`, not `yes`");
    insta::assert_snapshot!(with("normalization", json!("batchnorm")), @"model config key `normalization` must be `layernorm`, `layernorm1p` or `rmsnorm`, not `batchnorm`");
    insta::assert_snapshot!(with("activation", json!("mish")), @"model config key `activation` must be `gelu`, `approx-gelu`, `squared-relu`, `[fast-]geglu`, `[fast-]swiglu`, `[fast-]reglu` or `quick-geglu`, not `mish`");
    insta::assert_snapshot!(with("num_query_groups", json!(3)), @"model config key `num_query_groups` must be a divisor of `num_attention_heads`, 4, not `3`");
    insta::assert_snapshot!(with("hidden_size", json!(-64)), @"model config key `hidden_size` must be a whole number from 1 to 2147483647, not `-64`");
    insta::assert_snapshot!(with("hidden_size", json!(null)), @"the model config has no `hidden_size`, which gives a weight its shape: use the whole model config of the checkpoint");
    insta::assert_snapshot!(with("layernorm_epsilon", json!("tiny")), @"model config key `layernorm_epsilon` must be a positive number, not `tiny`");
}

#[test]
fn heads_that_are_too_large_for_the_fused_kernels() {
    let large = json!({ "num_attention_heads": 1, "kv_channels": 288, "num_layers": 1 });
    insta::assert_snapshot!(mismatch(&large, &large), @"model config key `kv_channels` is `288`, a larger head than the fused kernels take, which is not supported; use the plain backend (`trt_llm.enable: false`)");
    Runner::new(config(&large), &weights(&config(&large)), Float::Fp32, Backend::Plain).unwrap();
}

#[test]
fn contradictory_batches_are_refused() {
    let config = config(&json!({}));
    let mut runner = Runner::new(config.clone(), &weights(&config), Float::Fp32, Backend::Plain).unwrap();
    let mut refused = |tokens: &[u32], spans: &[Span], block_tables: &[BlockId]| {
        let batch =
            Batch { tokens: tokens.to_vec(), spans: spans.to_vec(), block_tables: block_tables.to_vec() };
        runner.model.forward(&batch, &mut runner.cache).unwrap_err()
    };
    let span = |context_len, query_len, num_logits, num_blocks| Span {
        context_len,
        query_len,
        num_logits,
        num_blocks,
    };
    let prompt = |query_len, num_blocks| span(0, query_len, 1, num_blocks);
    let is_bad = |error: ModelError| assert!(matches!(error, ModelError::BadBatch { .. }), "{error}");
    is_bad(refused(&[], &[], &[]));
    is_bad(refused(&[1, 2], &[prompt(1, 1)], &[0]));
    is_bad(refused(&[1, 2], &[prompt(2, 1), prompt(0, 1)], &[0, 1]));
    is_bad(refused(&[1, 2], &[prompt(3, 1)], &[0]));
    is_bad(refused(&[1, 2], &[prompt(2, 0)], &[]));
    is_bad(refused(&[1, 2], &[prompt(2, 2)], &[0]));
    is_bad(refused(&[1, 2], &[prompt(2, 1)], &[0, 1]));
    is_bad(refused(&[1, 2], &[span(31, 2, 1, 1)], &[0]));
    insta::assert_snapshot!(refused(&[1, 2], &[span(0, 2, 3, 1)], &[0]), @"batch: rows of logits of a span is 3, must be at most 2");
    assert!(matches!(refused(&[1, 2], &[prompt(2, 1)], &[61]), ModelError::BadBlock { block: 61, .. }));
    insta::assert_snapshot!(refused(&[1, 50], &[prompt(2, 1)], &[0]), @"token id 50 is outside the 50 rows of the embedding table: use the tokenizer that belongs to the checkpoint");
    insta::assert_snapshot!(refused(&[1; 49], &[prompt(49, 2)], &[0, 1]), @"a sequence of 49 tokens exceeds the model's 48 learned positions: lower `encoder_seq_length` or shorten the prompt");
}
