//! What cannot be converted: each error says what was found, what is needed and what to do.

use super::families::folder as family;
use super::*;

#[test]
fn what_cannot_be_converted_is_named() {
    let check = |input: &Path, name: &str| {
        let folder = tempfile::tempdir().unwrap();
        let error = convert_checkpoint(input, &folder.path().join("out.nemo"), &ConvertOptions::default());
        error.unwrap_err().to_string().replace(&input.display().to_string(), name)
    };
    let edited = |edit: &dyn Fn(&mut serde_json::Value)| check(edited_folder(edit).path(), "FOLDER");
    insta::assert_snapshot!(edited(&|c| c["model_type"] = "gemma".into()), @"activation `silu` in `FOLDER/config.json` cannot be read: Gemma uses `gelu_pytorch_tanh`");
    insta::assert_snapshot!(edited(&|c| c["hidden_act"] = "gelu".into()), @"hidden_act `gelu` in `FOLDER/config.json` cannot be read: models of this type use `silu`");
    insta::assert_snapshot!(edited(&|c| c["rope_scaling"] = serde_json::json!({"type": "ntk", "factor": 4.0})), @"rope_scaling of type `ntk` in `FOLDER/config.json` cannot be read: supported types are `default`, `linear`, `dynamic`, `llama3`, `longrope` and `yarn`");
    insta::assert_snapshot!(edited(&|c| c["num_attention_heads"] = 3.into()), @"`FOLDER/config.json` is not a model configuration: 3 attention heads cannot share 2 key-value heads evenly");
    insta::assert_snapshot!(edited(&|c| c["head_dim"] = 32.into()), @"tensor `model.layers.0.self_attn.q_proj.weight` is inconsistent: its shape [64, 64] does not hold rows 64..128 that `model.decoder.layers.0.self_attention.linear_qkv.weight` of shape [256, 64] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(edited(&|c| c["num_hidden_layers"] = 3.into()), @"tensor `model.layers.2.input_layernorm.weight` is inconsistent: the weights do not have it, and `model.decoder.layers.2.self_attention.linear_qkv.layer_norm_weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
    let empty = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(check(empty.path(), "FOLDER"), @"`FOLDER`, a folder without `config.json` or `model_config.yaml`, cannot be read: supported inputs are a Hugging Face folder with its `config.json`, a GGUF file of architecture `llama`, and a `.nemo` archive or folder");
    let weights = format!("{FIXTURE}/model.safetensors");
    insta::assert_snapshot!(check(Path::new(&weights), "FILE"), @"`FILE`, one safetensors file; give the folder with its `config.json`, cannot be read: supported inputs are a Hugging Face folder with its `config.json`, a GGUF file of architecture `llama`, and a `.nemo` archive or folder");
    let quantised = format!("{GOLDEN}/quantised.gguf");
    insta::assert_snapshot!(check(Path::new(&quantised), "FILE"), @"`FILE`, a GGUF file of architecture `test`, cannot be read: only GGUF files of architecture `llama` are converted so far");
}

/// A copy of a family's folder with an edited `config.json`, converted; the error without the folder's name.
fn family_error(name: &str, edit: &dyn Fn(&mut serde_json::Value)) -> String {
    let folder = copy_of(&family(name));
    edit_config(folder.path(), edit);
    let out = folder.path().join("out.nemo");
    let error = convert_checkpoint(folder.path(), &out, &ConvertOptions::default()).unwrap_err();
    assert!(!out.exists());
    error.to_string().replace(&folder.path().display().to_string(), "FOLDER")
}

#[test]
fn options_that_have_no_counterpart_are_named() {
    let check = family_error;
    insta::assert_snapshot!(check("falcon7b", &|c| c["alibi"] = true.into()), @"alibi position biases (`alibi: true`) in `FOLDER/config.json` cannot be read: only Falcon models with rotary embeddings (7B, 11B, 40B, 180B) are converted; set `alibi` to false if the model was trained so");
    insta::assert_snapshot!(check("falcon7b", &|c| c["activation"] = "silu".into()), @"activation `silu` in `FOLDER/config.json` cannot be read: supported are `gelu`, `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`, `quick_gelu` and `relu2`");
    insta::assert_snapshot!(check("gpt2", &|c| c["scale_attn_by_inverse_layer_idx"] = true.into()), @"`scale_attn_by_inverse_layer_idx: true` in `FOLDER/config.json` cannot be read: attention scores divided by the layer's number are not supported");
    insta::assert_snapshot!(check("gpt2", &|c| c["scale_attn_weights"] = false.into()), @"`scale_attn_weights: false` in `FOLDER/config.json` cannot be read: attention scores are always divided by the root of the head dimension");
    insta::assert_snapshot!(check("gpt2", &|c| c["add_cross_attention"] = true.into()), @"cross attention in `FOLDER/config.json` cannot be read: only decoders without an encoder are converted");
    insta::assert_snapshot!(check("gptj", &|c| c["rotary_dim"] = 100.into()), @"`FOLDER/config.json` is not a model configuration: rotary_dim is 100, the head dimension is 8");
    insta::assert_snapshot!(check("gptj", &|c| c["rotary_dim"] = 3.into()), @"`FOLDER/config.json` is not a model configuration: 3 of 8 dimensions of a head are rotated, an odd number");
    insta::assert_snapshot!(check("gpt_neox", &|c| c["rope_parameters"]["partial_rotary_factor"] = 1.5.into()), @"`FOLDER/config.json` is not a model configuration: the rotary embedding turns the share 1.5 of a head");
    insta::assert_snapshot!(check("gemma", &|c| c["model_type"] = "gemma3".into()), @"`FOLDER/config.json`, model_type `gemma3` (GemmaForCausalLM), cannot be read: supported model types are `llama`, `mistral`, `gemma`, `gemma2`, `gemma3_text`, `cohere`, `falcon`, `gpt2`, `gptj`, `gpt_neox`, `gpt_oss`, `granite`, `mixtral`, `nemotron`, `nemotron-nas`, `olmo2`, `olmoe`, `phi3`, `qwen2`, `qwen2_moe`, `qwen3`, `qwen3_moe`, `stablelm` and `starcoder2`");
    insta::assert_snapshot!(check("gemma2", &|c| c["layer_types"] = serde_json::json!(["full_attention"])), @"`FOLDER/config.json` is not a model configuration: `layer_types` has 1 entries and `num_hidden_layers` is 2");
    insta::assert_snapshot!(check("gemma2", &|c| c["layer_types"][1] = "linear_attention".into()), @"`layer_types` with `linear_attention` in `FOLDER/config.json` cannot be read: layers of these models are of `sliding_attention` and `full_attention`");
    insta::assert_snapshot!(check("gemma2", &|c| c["attn_logit_softcapping"] = 0.0.into()), @"`FOLDER/config.json` is not a model configuration: the key `attn_logit_softcapping` is `0`, expected a number above 0");
    insta::assert_snapshot!(check("gemma2", &|c| c["hidden_activation"] = "gelu".into()), @"activation `gelu` in `FOLDER/config.json` cannot be read: Gemma uses `gelu_pytorch_tanh`");
    insta::assert_snapshot!(check("gemma3", &|c| c["attn_logit_softcapping"] = 50.0.into()), @"`attn_logit_softcapping` in `FOLDER/config.json` cannot be read: transformers does not compute it for this class: set it to null");
    insta::assert_snapshot!(check("gemma3", &|c| c["rope_local_base_freq"] = 7.into()), @"`FOLDER/config.json` is not a model configuration: a base of the rotation is 100 and 7; remove the wrong one");
    insta::assert_snapshot!(check("gemma3", &|c| c["rope_parameters"]["sliding_attention"]["rope_type"] = "linear".into()), @"`FOLDER/config.json` is not a model configuration: rope_scaling of type `linear` has no `factor`");
    insta::assert_snapshot!(check("mistral", &|c| c["model_type"] = "jamba".into()), @"`FOLDER/config.json`, model_type `jamba` (MistralForCausalLM), cannot be read: supported model types are `llama`, `mistral`, `gemma`, `gemma2`, `gemma3_text`, `cohere`, `falcon`, `gpt2`, `gptj`, `gpt_neox`, `gpt_oss`, `granite`, `mixtral`, `nemotron`, `nemotron-nas`, `olmo2`, `olmoe`, `phi3`, `qwen2`, `qwen2_moe`, `qwen3`, `qwen3_moe`, `stablelm` and `starcoder2`");
    insta::assert_snapshot!(check("mistral", &|c| c["quantization_config"] = serde_json::json!({"bits": 4})), @"quantised weights in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(check("llama31", &|c| c["rope_parameters"]["rope_type"] = "ntk".into()), @"rope_scaling of type `ntk` in `FOLDER/config.json` cannot be read: supported types are `default`, `linear`, `dynamic`, `llama3`, `longrope` and `yarn`");
    insta::assert_snapshot!(check("llama31", &|c| c["rope_parameters"]["factor"] = serde_json::Value::Null), @"`FOLDER/config.json` is not a model configuration: rope_scaling of type `llama3` needs `factor`, a number above 0");
    insta::assert_snapshot!(check("llama31", &|c| c["rope_parameters"]["low_freq_factor"] = 4.0.into()), @"`FOLDER/config.json` is not a model configuration: rope_scaling of type `llama3` has low_freq_factor 4, which is not below high_freq_factor 4");
    insta::assert_snapshot!(check("llama31", &|c| c["partial_rotary_factor"] = 0.5.into()), @"partial_rotary_factor 0.5 in `FOLDER/config.json` cannot be read: models of this type rotate whole heads: remove the key or set it to 1");
    insta::assert_snapshot!(check("llama31", &|c| c["hidden_size"] = "wide".into()), @r#"`FOLDER/config.json` is not a model configuration: the key `hidden_size` is `"wide"`, expected a whole number of at least 0"#);
}

#[test]
fn weights_that_contradict_the_configuration_are_named() {
    let check = family_error;
    insta::assert_snapshot!(check("llama31", &|c| c["vocab_size"] = 150.into()), @"tensor `lm_head.weight` is inconsistent: it has 160 rows, the configuration needs 150; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("llama31", &|c| c["vocab_size"] = 170.into()), @"tensor `model.embed_tokens.weight` is inconsistent: its shape [160, 32] does not hold rows 0..170 that `model.embedding.word_embeddings.weight` of shape [170, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("llama31", &|c| c["num_hidden_layers"] = 1.into()), @"tensor `model.layers.1.input_layernorm.weight` is inconsistent: a model of type `llama` with this configuration has no such tensor; the configuration and the weights do not belong together, or it is a variant that is not supported");
    insta::assert_snapshot!(check("llama31", &|c| c["attention_bias"] = true.into()), @"tensor `model.layers.0.self_attn.q_proj.bias` is inconsistent: the weights do not have it, and `attention_bias` is true in `FOLDER/config.json`");
    insta::assert_snapshot!(check("llama32", &|c| c["tie_word_embeddings"] = false.into()), @"tensor `lm_head.weight` is inconsistent: the weights do not have it, and `model.output_layer.weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
    insta::assert_snapshot!(check("gpt2", &|c| c["n_inner"] = 32.into()), @"tensor `transformer.h.0.mlp.c_proj.weight` is inconsistent: its shape [64, 32] does not hold rows 0..32 that `model.decoder.layers.0.mlp.linear_fc2.weight` of shape [32, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("gpt2", &|c| c["n_positions"] = 32.into()), @"tensor `transformer.wpe.weight` is inconsistent: it has 64 rows, the configuration needs 32; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("falcon40b", &|c| c["num_kv_heads"] = 4.into()), @"tensor `transformer.h.0.self_attention.query_key_value.weight` is inconsistent: its shape [64, 32] does not hold rows 0..96 that `model.decoder.layers.0.self_attention.linear_qkv.weight` of shape [96, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("falcon40b", &|c| c["new_decoder_architecture"] = false.into()), @"tensor `transformer.h.0.input_layernorm.weight` is inconsistent: the weights do not have it, and `model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
    insta::assert_snapshot!(check("nemotron", &|c| c["head_dim"] = serde_json::Value::Null), @"tensor `model.layers.0.self_attn.o_proj.weight` is inconsistent: its shape [32, 48] does not hold rows 0..32 that `model.decoder.layers.0.self_attention.linear_proj.weight` of shape [32, 32] needs; the configuration and the weights do not belong together");
}

#[test]
fn weights_or_tokenizers_that_lack_are_named() {
    let without = |names: &[&str]| {
        let folder = copy_of(&family("gpt2"));
        names.iter().for_each(|name| fs::remove_file(folder.path().join(name)).unwrap());
        let out = folder.path().join("out.nemo");
        let error = convert_checkpoint(folder.path(), &out, &ConvertOptions::default()).unwrap_err();
        error.to_string().replace(&folder.path().display().to_string(), "FOLDER")
    };
    insta::assert_snapshot!(without(&["model.safetensors"]), @"`FOLDER` has no member `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` or `pytorch_model.bin.index.json`");
    insta::assert_snapshot!(without(&["merges.txt"]), @"`FOLDER` has no member `tokenizer.model`, `tokenizer.json`, or `vocab.json` with `merges.txt`");
}

#[test]
fn the_tokenizer_of_another_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |tokenizer: &str| {
        let tokenizer = Some(PathBuf::from(format!("{FIXTURE}/{tokenizer}")));
        let options = ConvertOptions { tokenizer, ..ConvertOptions::default() };
        let error = convert_checkpoint(&family("llama31"), &folder.path().join("out.nemo"), &options);
        error.unwrap_err().to_string()
    };
    insta::assert_snapshot!(check("tokenizer.model"), @"tensor `model.embedding.word_embeddings.weight` is inconsistent: it has 160 rows, but the tokenizer `tokenizer.model` has 420 tokens and so belongs to another model; pass the right one with `--tokenizer`");
    insta::assert_snapshot!(check("tokenizer.json"), @"tensor `model.embedding.word_embeddings.weight` is inconsistent: it has 160 rows, but the tokenizer `tokenizer.json` has 420 tokens and so belongs to another model; pass the right one with `--tokenizer`");
}

#[test]
fn experts_that_contradict_their_configuration_are_named() {
    let check = family_error;
    insta::assert_snapshot!(check("mixtral", &|c| c["num_local_experts"] = 5.into()), @"tensor `model.layers.0.block_sparse_moe.gate.weight` is inconsistent: its shape [4, 32] does not hold rows 0..5 that `model.decoder.layers.0.mlp.router.weight` of shape [5, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("mixtral", &|c| c["num_local_experts"] = 3.into()), @"tensor `model.layers.0.block_sparse_moe.experts.3.w1.weight` is inconsistent: a model of type `mixtral` with this configuration has no such tensor; the configuration and the weights do not belong together, or it is a variant that is not supported");
    insta::assert_snapshot!(check("mixtral", &|c| c["num_experts_per_tok"] = 5.into()), @"`FOLDER/config.json` is not a model configuration: num_experts_per_tok is 5, expected 1 to 4, as many as there are experts");
    insta::assert_snapshot!(check("mixtral", &|c| c["num_experts"] = 5.into()), @"`FOLDER/config.json` is not a model configuration: the key `num_local_experts` is `4` and `num_experts`, another name of it, is `5`; remove the wrong one");
    insta::assert_snapshot!(check("qwen3_moe", &|c| c["mlp_only_layers"] = serde_json::json!([])), @"tensor `model.layers.1.mlp.gate.weight` is inconsistent: the weights do not have it, and `model.decoder.layers.1.mlp.router.weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
    insta::assert_snapshot!(check("qwen3_moe", &|c| c["mlp_only_layers"] = serde_json::json!(["1"])), @r#"`FOLDER/config.json` is not a model configuration: the key `mlp_only_layers` is `["1"]`, expected a list of whole numbers of at least 0"#);
    insta::assert_snapshot!(check("qwen3_moe", &|c| c["decoder_sparse_step"] = 0.into()), @"`FOLDER/config.json` is not a model configuration: decoder_sparse_step is 0, expected a number from 1");
    insta::assert_snapshot!(check("qwen3_moe", &|c| c["moe_intermediate_size"] = 20.into()), @"tensor `model.layers.0.mlp.experts.0.down_proj.weight` is inconsistent: its shape [32, 24] does not hold rows 0..32 that `model.decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight` of shape [32, 20] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("qwen2_moe", &|c| c["shared_expert_intermediate_size"] = 44.into()), @"tensor `model.layers.0.mlp.shared_expert.gate_proj.weight` is inconsistent: its shape [40, 32] does not hold rows 0..44 that `model.decoder.layers.0.mlp.shared_experts.linear_fc1.weight` of shape [88, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("qwen2_moe", &|c| c["qkv_bias"] = false.into()), @"tensor `model.layers.0.self_attn.q_proj.bias` is inconsistent: the weights have it, and `qkv_bias` is not true in `FOLDER/config.json`, so that transformers leaves it out; set `qkv_bias` to true if the model was trained with it, else remove the tensor");
    insta::assert_snapshot!(check("qwen2_moe", &|c| {
        c["use_sliding_window"] = true.into();
        c.as_object_mut().unwrap().remove("layer_types");
    }), @"layers with a window, and none of at least 1 token, in `FOLDER/config.json` cannot be read: set `use_sliding_window` and `sliding_window`, or leave windows out");
    insta::assert_snapshot!(check("phi3", &|c| c["rope_parameters"]["long_factor"] = serde_json::json!([1.0])), @"`FOLDER/config.json` is not a model configuration: rope_scaling has 1 of `long_factor` for 3 pairs of a head");
    insta::assert_snapshot!(check("phi3", &|c| c["rope_parameters"]["short_factor"] = serde_json::Value::Null), @"`FOLDER/config.json` is not a model configuration: rope_scaling has no `short_factor`");
    insta::assert_snapshot!(check("phi3", &|c| c["rope_parameters"]["short_factor"][1] = (-1.0).into()), @"`FOLDER/config.json` is not a model configuration: rope_scaling has short_factor -1, expected a number above 0");
    insta::assert_snapshot!(check("granite", &|c| c["residual_multiplier"] = 0.0.into()), @"`FOLDER/config.json` is not a model configuration: the key `residual_multiplier` is `0`, expected a number above 0");
    insta::assert_snapshot!(check("cohere", &|c| {
        c["rope_parameters"].as_object_mut().unwrap().remove("rope_theta");
    }), @"`FOLDER/config.json` is not a model configuration: the key `rope_theta` is missing");
    insta::assert_snapshot!(check("stablelm_parallel", &|c| c["use_parallel_residual"] = false.into()), @"tensor `model.layers.0.post_attention_layernorm.weight` is inconsistent: the weights do not have it, and `model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
    insta::assert_snapshot!(check("olmo2", &|c| c["hidden_act"] = "gelu".into()), @"hidden_act `gelu` in `FOLDER/config.json` cannot be read: models of this type use `silu`");
    insta::assert_snapshot!(check("nemotron_nas", &|c| c["block_configs"] = serde_json::Value::Null), @"`FOLDER/config.json` is not a model configuration: the key `block_configs` is missing");
    insta::assert_snapshot!(check("nemotron_nas", &|c| c["block_configs"][0]["attention"]["window_length"] = 8.into()), @"`FOLDER/config.json` is not a model configuration: `block_configs`: layer 0: `attention.window_length` is 8");
    insta::assert_snapshot!(check("nemotron_nas", &|c| c["block_configs"][1]["ffn"]["ffn_mult"] = 1.0.into()), @"tensor `model.layers.1.mlp.down_proj.weight` is inconsistent: its shape [32, 512] does not hold rows 0..32 that `model.decoder.layers.1.mlp.linear_fc2.weight` of shape [32, 256] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("olmoe", &|c| c["clip_qkv"] = 8.0.into()), @"`clip_qkv: 8` in `FOLDER/config.json` cannot be read: queries, keys and values are not limited; a model trained so has `clip_qkv: null`");
}

#[test]
fn what_hugging_face_cannot_express_is_named() {
    let check = |name: &str, edit: &dyn Fn(&mut Node)| {
        let folder = tempfile::tempdir().unwrap();
        let nemo = folder.path().join("model.nemo");
        convert_checkpoint(&family(name), &nemo, &ConvertOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(&nemo).unwrap();
        let mut config = checkpoint.model_config().clone();
        edit(&mut config);
        let edited = folder.path().join("edited.nemo");
        write_nemo(&edited, &config.to_yaml(), &[], checkpoint.tensors(), &WriteOptions::default()).unwrap();
        let out = folder.path().join("out");
        let error = export_huggingface(&edited, &out, &ConvertOptions::default()).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    insta::assert_snapshot!(check("gpt2", &|_| {}), @"a model with normalization `layernorm` cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is");
    insta::assert_snapshot!(check("llama31", &|c| c.set("seq_len_interpolation_factor", Node::Float(8.0))), @"a model with both `seq_len_interpolation_factor` and `scale_positional_embedding` cannot be written with `--to hf`: a Hugging Face folder can only have one: set `seq_len_interpolation_factor` to null in `model_config.yaml` if NeMo 2.0 or 2.1 wrote it for a Llama 3.1");
    insta::assert_snapshot!(check("llama31", &|c| c.set("rotary_percentage", Node::Float(0.5))), @"a model with rotary_percentage 0.5 cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is");
    insta::assert_snapshot!(check("llama31", &|c| c.set("activation", Node::from("gelu"))), @"a model with activation `gelu`, openai_gelu false, apply_embedding_scaling false, qk_layernorm false and post_layernorms false cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is");
    for (key, value) in [
        ("transformer_block_type", Node::from("post_ln")),
        ("normalize_attention_scores", Node::Bool(false)),
        ("attn_logit_softcapping", Node::Float(50.0)),
        ("rotary_interleaved", Node::Bool(true)),
        ("output_layer_bias", Node::Bool(true)),
        ("name", Node::from("te_gpt_hyena")),
        ("post_layernorms", Node::Bool(true)),
        ("mcore_customization_config.parallel_attention", Node::Bool(true)),
        ("window_size", Node::from("wide")),
    ] {
        let error = check("llama31", &|config| config.set(key, value.clone()));
        assert!(error.contains(key), "{error}");
    }
    for (name, key, value) in [
        ("mixtral", "moe_router_pre_softmax", Node::Bool(true)),
        ("mixtral", "moe_router_score_function", Node::from("sigmoid")),
        ("mixtral", "moe_router_topk_scaling_factor", Node::Float(2.5)),
        ("mixtral", "moe_router_topk", Node::Int(5)),
        ("mixtral", "moe_layer_freq", Node::List(vec![Node::Int(1), Node::Int(0)])),
        ("mixtral", "moe_layer_freq", Node::Int(0)),
        ("mixtral", "moe_router_load_balancing_type", Node::from("sinkhorn")),
        ("qwen3_moe", "moe_router_num_groups", Node::Int(2)),
        ("qwen3_moe", "shared expert", Node::Null),
        ("olmoe", "moe_layer_freq", Node::Int(2)),
        ("llama31", "qk_layernorm_across_heads", Node::Bool(true)),
    ] {
        let error = check(name, &|config| match key {
            "shared expert" => config.set("moe_shared_expert_intermediate_size", Node::Int(8)),
            key => config.set(key, value.clone()),
        });
        assert!(error.contains(key), "{error}");
    }
    let of_gemma2 = |key: &'static str, value: Node| check("gemma2", &move |c| c.set(key, value.clone()));
    insta::assert_snapshot!(of_gemma2("window_attn_skip_freq", Node::Null), @r"
a model with window_size `- 3
- 0` in every layer cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is
");
    insta::assert_snapshot!(of_gemma2("qk_layernorm", Node::Bool(true)), @"a model with activation `geglu`, openai_gelu true, apply_embedding_scaling true, qk_layernorm true and post_layernorms true cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is");
    insta::assert_snapshot!(check("gemma3", &|_| {}), @"a model with rotary_base_local `100.0` cannot be written with `--to hf`: it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is");
    insta::assert_snapshot!(check("llama31", &|c| c.set("share_embeddings_and_output_weights", Node::Bool(true))), @"a model with the tensor `model.output_layer.weight`, for which its configuration has no use, cannot be written with `--to hf`: correct `model_config.yaml`, or leave `--to hf` out to write a `.nemo`");
    insta::assert_snapshot!(check("gemma", &|c| c.set("huggingface.sliding_window", Node::Int(8))), @"a model with a window of attention and geglu cannot be written with `--to hf`: of the families that it writes only Mistral and Mixtral have a window, which have no such thing; leave `--to hf` out to write a `.nemo`");
    insta::assert_snapshot!(check("llama31", &|c| c.set("num_layers", Node::from("many"))), @"`model_config.yaml` is not a model configuration: the key `num_layers` is `many`, expected a whole number");
    insta::assert_snapshot!(check("llama31", &|c| c.set("ffn_hidden_size", Node::Int(32))), @"tensor `model.decoder.layers.0.mlp.linear_fc2.weight` is inconsistent: its shape [32, 64] does not hold rows 0..32 that `model.layers.0.mlp.down_proj.weight` of shape [32, 32] needs; the configuration and the weights do not belong together");
    insta::assert_snapshot!(check("llama31", &|c| c.set("num_layers", Node::Int(3))), @"tensor `model.decoder.layers.2.self_attention.linear_qkv.layer_norm_weight` is inconsistent: the weights do not have it, and `model.layers.2.input_layernorm.weight` is made of it; complete the files, or correct the configuration if the model has no such tensor");
}
