//! Every key that is read is given another value: texts may change, or its row of the table says that they do not.

use serde_json::json;

use super::*;
use crate::config::keys::{self, Status};
use crate::config::raw::RawConfig;
use crate::config::{self};
use crate::model::checkpoint::model_config;

const CHECKPOINT: &str = "num_layers: 2\nhidden_size: 64\nffn_hidden_size: 256\nnum_attention_heads: 4\n\
     encoder_seq_length: 256\nmax_position_embeddings: 256\nposition_embedding_type: rope\nbias: false\n\
     tensor_model_parallel_size: 1\npipeline_model_parallel_size: 1\n";

const TEMPLATE: &str = "model.data.train_ds.prompt_template='{input} {output}'";
const PROMPT_RESPONSE: &[&str] = &["model.data.chat=false", TEMPLATE];
const CUTTING: &[&str] = &["model.data.chat=false", TEMPLATE, "model.data.train_ds.truncation_field=input"];
const TOP: &[&str] =
    &["model.generation.output_fields=[top_logprobs]", "++model.generation.sampling_params.top_logprobs=2"];
const CHECKED: &[&str] = &["++model.generation.on_response=./check"];
const MOE: &[&str] = &["++model.num_moe_experts=4"];
const FAST: &[&str] = &["trainer.generation.trt_llm.enable=true"];

/// What of an identity does not come from the plan and the model: files, and the device that is found.
const FROM_ELSEWHERE: [&str; 5] = ["checkpoint", "adapters", "tokenizer", "data", "device"];

/// A key, what it needs to have a meaning, and another value; where there are more overrides, they go with it.
type Change = (&'static str, &'static [&'static str], &'static [&'static str]);

const OF_THE_RUN: &[Change] = &[
    ("model.generation.sampling_params.min_p", &[], &["0.1"]),
    ("model.generation.sampling_params.banned_tokens", &[], &["[3]"]),
    ("model.generation.sampling_params.logit_bias", &[], &["{x:2.5}"]),
    ("model.generation.sampling_params.structured_outputs", &[], &["{regex:a+}"]),
    ("model.generation.sampling_params.top_logprobs", TOP, &["3"]),
    ("model.generation.output_format", &[], &["parquet"]),
    ("model.data.train_ds.row_params", &[], &["true"]),
    ("model.data.format", &[], &["openai_batch"]),
    ("model.data.train_ds.on_overlength", &[], &["truncate"]),
    ("trainer.num_nodes", &[], &["2"]),
    ("trainer.devices", &[], &["2"]),
    ("trainer.precision", &[], &["32"]),
    ("trainer.generation.max_epochs", &[], &["2"]),
    ("trainer.generation.max_steps", &[], &["3"]),
    ("trainer.generation.limit_train_batches", &[], &["1"]),
    ("trainer.generation.max_batch", &[], &["3"]),
    ("trainer.generation.kv_cache_memory_bytes", &[], &["1000000"]),
    ("trainer.generation.swap_space", &[], &["0.5"]),
    ("trainer.generation.prefix_cache", &[], &["false"]),
    ("trainer.generation.lease_seconds", &[], &["5"]),
    ("trainer.generation.join_timeout_seconds", &[], &["5"]),
    ("trainer.generation.speculation.enable", FAST, &["true"]),
    ("trainer.generation.trt_llm.enable", &[], &["true"]),
    ("trainer.generation.trt_llm.max_input_len", FAST, &["100"]),
    ("trainer.generation.trt_llm.model_type", FAST, &["llama"]),
    ("trainer.generation.trt_llm.quantization", FAST, &["fp8"]),
    ("trainer.generation.trt_llm.kv_cache_dtype", FAST, &["fp8"]),
    ("exp_manager.explicit_log_dir", &[], &["/elsewhere"]),
    ("exp_manager.exp_dir", &[], &["/elsewhere"]),
    ("exp_manager.name", &[], &["other"]),
    ("exp_manager.version", &[], &["other"]),
    ("exp_manager.max_time_per_run", &[], &["'00:00:01:00'"]),
    ("exp_manager.create_wandb_logger", &[], &["true"]),
    ("exp_manager.wandb_logger_kwargs", &[], &["{name:other}"]),
    ("exp_manager.create_tensorboard_logger", &[], &["false"]),
    ("exp_manager.summary_writer_kwargs", &[], &["{filename_suffix:other}"]),
    ("exp_manager.resume_if_exists", &[], &["false"]),
    ("exp_manager.log_local_rank_0_only", &[], &["true"]),
    ("exp_manager.log_global_rank_0_only", &[], &["true"]),
    ("exp_manager.files_to_copy", &[], &["[other]"]),
    ("model.micro_batch_size", &[], &["2"]),
    ("model.global_batch_size", &[], &["8"]),
    ("model.tensor_model_parallel_size", FAST, &["2"]),
    ("model.pipeline_model_parallel_size", FAST, &["2"]),
    ("model.expert_model_parallel_size", FAST, &["2"]),
    ("model.expert_tensor_parallel_size", FAST, &["2"]),
    ("model.generation.reduction", FAST, &["tree"]),
    ("model.generation.num_responses_to_gen", &[], &["2"]),
    ("model.generation.sampling_params.use_greedy", &[], &["true"]),
    ("model.generation.sampling_params.temperature", &[], &["0.5"]),
    ("model.generation.sampling_params.top_k", &[], &["3"]),
    ("model.generation.sampling_params.top_p", &[], &["0.5"]),
    ("model.generation.sampling_params.repetition_penalty", &[], &["1.5"]),
    ("model.generation.sampling_params.add_BOS", &[], &["true"]),
    ("model.generation.sampling_params.compute_logprob", &[], &["true"]),
    ("model.generation.sampling_params.end_strings", &[], &["[x]"]),
    ("model.generation.length_params.max_length", &[], &["5"]),
    ("model.generation.length_params.min_length", &[], &["5"]),
    ("model.generation.drop_unfinished", &[], &["true"]),
    ("model.generation.output_fields", &[], &["[index]"]),
    ("model.generation.on_response", &[], &["./check"]),
    ("model.generation.on_response_timeout_seconds", CHECKED, &["7"]),
    ("model.generation.best_of_n", &[], &["mean_logprob"]),
    ("model.generation.pass_at_k", CHECKED, &["1"]),
    ("model.seed", &[], &["7"]),
    ("model.data.chat", &[TEMPLATE], &["false"]),
    ("model.data.chat_prompt_tokens.system_turn_start", &[], &["x"]),
    ("model.data.chat_prompt_tokens.turn_start", &[], &["x"]),
    ("model.data.chat_prompt_tokens.label_start", &[], &["x"]),
    ("model.data.chat_prompt_tokens.end_of_turn", &[], &["x"]),
    ("model.data.chat_prompt_tokens.end_of_name", &[], &["x"]),
    ("model.data.sample", &["trainer.generation.max_steps=3"], &["true"]),
    ("model.data.date", &[], &["2026-11-28"]),
    ("model.data.train_ds.on_bad_record", &[], &["keep"]),
    ("model.data.train_ds.length_hint_key", &[], &["tokens"]),
    ("model.data.train_ds.max_seq_length", &[], &["9"]),
    ("model.data.train_ds.drop_last", &[], &["true"]),
    (
        "model.data.train_ds.label_key",
        PROMPT_RESPONSE,
        &["answer", "model.data.train_ds.prompt_template='{input} {answer}'"],
    ),
    ("model.data.train_ds.add_eos", PROMPT_RESPONSE, &["true"]),
    ("model.data.train_ds.add_sep", PROMPT_RESPONSE, &["true"]),
    ("model.data.train_ds.add_bos", PROMPT_RESPONSE, &["true"]),
    ("model.data.train_ds.truncation_field", PROMPT_RESPONSE, &["input"]),
    ("model.data.train_ds.prompt_template", PROMPT_RESPONSE, &["'{input}{output}'"]),
    ("model.data.train_ds.truncation_method", CUTTING, &["left"]),
    ("model.data.train_ds.output_original_text", &["model.generation.output_fields=[metadata]"], &["true"]),
    ("model.overwrite_base_config", &[], &["{data:{train_ds:{file_path:false}}}"]),
];

const OF_THE_MODEL: &[Change] = &[
    ("model.num_layers", &[], &["3"]),
    ("model.hidden_size", &[], &["128"]),
    ("model.ffn_hidden_size", &[], &["512"]),
    ("model.num_attention_heads", &[], &["8"]),
    ("model.num_query_groups", &[], &["2"]),
    ("model.kv_channels", &[], &["32"]),
    ("model.encoder_seq_length", &[], &["128"]),
    ("model.max_position_embeddings", &[], &["512"]),
    ("model.normalization", &[], &["rmsnorm"]),
    ("model.layernorm_zero_centered_gamma", &[], &["true"]),
    ("model.layernorm_epsilon", &[], &["1e-6"]),
    ("model.activation", &[], &["fast-swiglu"]),
    ("model.openai_gelu", &[], &["true"]),
    (
        "model.activation_func_clamp_value",
        &[],
        &["7", "++model.glu_linear_offset=1", "++model.activation=quick-geglu"],
    ),
    (
        "model.glu_linear_offset",
        &[],
        &["1", "++model.activation_func_clamp_value=7", "++model.activation=quick-geglu"],
    ),
    ("model.softmax_type", &[], &["learnable"]),
    ("model.bias_activation_fusion", &["++model.bias=true"], &["false"]),
    ("model.bias_gelu_fusion", &["++model.bias=true"], &["false"]),
    ("model.bias", &[], &["true"]),
    ("model.qkv_bias", &[], &["true"]),
    ("model.qk_layernorm", &[], &["true"]),
    ("model.qk_layernorm_across_heads", &["++model.qk_layernorm=true"], &["true"]),
    ("model.position_embedding_type", &[], &["learned_absolute"]),
    ("model.rotary_percentage", &[], &["0.5"]),
    ("model.rotary_base", &[], &["500000"]),
    ("model.rotary_interleaved", &[], &["true"]),
    ("model.seq_len_interpolation_factor", &[], &["2"]),
    ("model.scale_positional_embedding", &[], &["true"]),
    ("model.rope_scaling", &["++model.scale_positional_embedding=true"], &["{factor:32}"]),
    ("model.share_embeddings_and_output_weights", &[], &["false"]),
    ("model.output_layer_bias", &[], &["true"]),
    ("model.apply_embedding_scaling", &[], &["true"]),
    ("model.name", &[], &["megatron_falcon_gpt"]),
    ("model.mcore_customization_config", &[], &["{parallel_attention:true}"]),
    ("model.parallel_attention", &[], &["true"]),
    ("model.new_decoder_architecture", &["++model.parallel_attention=true"], &["true"]),
    ("model.window_size", &["++model.window_attn_skip_freq=2", "++model.window_size=[8,0]"], &["[9,0]"]),
    ("model.window_attn_skip_freq", &["++model.window_size=[8,0]"], &["[0,1]"]),
    ("model.rotary_base_local", &["++model.window_attn_skip_freq=2", "++model.window_size=[8,0]"], &["77"]),
    ("model.post_layernorms", &[], &["true"]),
    ("model.pre_layernorms", &[], &["false"]),
    ("model.qk_layernorm_per_head", &["++model.qk_layernorm=true"], &["true"]),
    ("model.embedding_multiplier", &[], &["3"]),
    ("model.residual_multiplier", &[], &["0.5"]),
    ("model.logits_multiplier", &[], &["0.25"]),
    (
        "model.heterogeneous_layers_config_encoded_json",
        &[],
        &[
            "'{\"block_configs\":[{\"attention\":{\"no_op\":true},\"ffn\":{\"no_op\":true}},{\"attention\":{\"no_op\":true},\"ffn\":{\"no_op\":true}}]}'",
        ],
    ),
    ("model.attn_logit_softcapping", &[], &["50"]),
    ("model.final_logit_softcapping", &[], &["30"]),
    ("model.query_pre_attn_scalar", &[], &["144"]),
    ("model.softmax_scale", &[], &["0.5"]),
    ("model.huggingface", &[], &["{sliding_window:300}"]),
    ("model.num_moe_experts", MOE, &["8"]),
    ("model.moe_layer_freq", MOE, &["2"]),
    ("model.moe_ffn_hidden_size", MOE, &["32"]),
    ("model.moe_router_topk", MOE, &["3"]),
    ("model.moe_router_pre_softmax", MOE, &["true"]),
    ("model.moe_router_score_function", MOE, &["sigmoid"]),
    (
        "model.moe_router_enable_expert_bias",
        &["++model.num_moe_experts=4", "++model.moe_router_score_function=sigmoid"],
        &["true"],
    ),
    ("model.moe_router_topk_scaling_factor", MOE, &["2.5"]),
    ("model.moe_shared_expert_intermediate_size", MOE, &["32"]),
    (
        "model.moe_shared_expert_gate",
        &["++model.num_moe_experts=4", "++model.moe_shared_expert_intermediate_size=32"],
        &["true"],
    ),
    ("model.moe_apply_probs_on_input", MOE, &["true"]),
    ("model.moe_expert_capacity_factor", MOE, &["1.5"]),
    ("model.moe_latent_size", MOE, &["16"]),
    ("model.moe_mlp_glu_interleave_size", MOE, &["32"]),
    ("model.moe_router_force_biased", MOE, &["1.0"]),
    ("model.moe_router_force_load_balancing", MOE, &["true"]),
    ("model.moe_router_group_topk", MOE, &["2"]),
    ("model.moe_router_load_balancing_type", MOE, &["sinkhorn"]),
    ("model.moe_router_num_groups", MOE, &["2"]),
    ("model.moe_router_topk_limited_devices", MOE, &["2"]),
    ("model.moe_shared_expert_glu_interleave_size", MOE, &["32"]),
    ("model.moe_token_dropping", MOE, &["true"]),
    ("model.transformer_block_type", &[], &["post_ln"]),
    ("model.attention_type", &[], &["other"]),
    ("model.normalize_attention_scores", &[], &["false"]),
];

/// The identity of a run with these overrides, on the CPU.
fn identity(overrides: &[String]) -> Result<Identity, Failure> {
    let basic = ["trainer.devices=1", "trainer.num_nodes=1", "model.data.train_ds.file_path=d.jsonl"];
    let overrides: Vec<&str> = basic.into_iter().chain(overrides.iter().map(String::as_str)).collect();
    let resolved = config::resolve(&config::tests::user(&overrides).compose_with(CHECKPOINT)?)?;
    let plan = GenerationPlan::new(RawConfig::extract(&resolved)?)?;
    let model = model_config(resolved.node().get("model").unwrap())?;
    let options = LoadOptions {
        numerics: plan.numerics,
        backend: plan.backend,
        device: Device::Cpu,
        attention: model_core::AttentionSwitches::default(),
        isa: Isa::Portable,
    };
    // That of the plain kernels is the machine's.
    let isa = Some(options).filter(|options| options.backend == Backend::Fused).and_then(arithmetic);
    let reduction = plan.parallel.reduction(plan.parallel.tensor.unwrap_or(1))?;
    let mut identity = plan.identity();
    identity.model = model_fields(&model);
    identity.compute = compute(options, model.uniform.heads.kv_channels, "cpu".to_owned(), isa, reduction)?;
    Ok(identity)
}

/// The overrides before and after the change of a key.
fn before_and_after(key: &str) -> [Vec<String>; 2] {
    let change = OF_THE_RUN.iter().chain(OF_THE_MODEL).find(|(changed, ..)| *changed == key);
    // What is refused is a flag, most often.
    let is_flag = keys::find(key).is_some_and(|row| row.status == Status::Refused);
    let (_, before, change) = *change
        .or(is_flag.then_some(&("", &[], &["true"])))
        .unwrap_or_else(|| panic!("`{key}` is read, and no test changes it"));
    let before: Vec<String> = before.iter().map(|&text| text.to_owned()).collect();
    let (value, more) = change.split_first().unwrap();
    let mut after = before.clone();
    after.push(format!("++{key}={value}"));
    after.extend(more.iter().map(|&text| text.to_owned()));
    [before, after]
}

#[test]
fn every_key_that_is_read_changes_texts_or_is_listed() {
    for row in keys::all() {
        let key = row.path;
        let is_from_elsewhere = row.identity.is_some_and(|name| FROM_ELSEWHERE.contains(&name));
        if is_from_elsewhere || matches!(row.status, Status::Ignored | Status::Dropped | Status::Closed) {
            continue;
        }
        let [before, after] = before_and_after(key);
        let before = identity(&before).unwrap_or_else(|failure| panic!("{key}: {failure:?}"));
        match (row.status, identity(&after)) {
            (Status::Refused, Ok(_)) => panic!("`{key}` is not refused"),
            (Status::Refused, Err(_)) => {}
            (_, Err(failure)) => panic!("{key}: {failure:?}"),
            (_, Ok(after)) => {
                let changes = before.changes(&after);
                let names =
                    |name: &str| changes.iter().any(|change| change.starts_with(&format!("`{name}`")));
                match row.identity {
                    Some(name) => assert!(names(name), "`{key}` does not change `{name}`: {changes:?}"),
                    None => assert_eq!(changes, Vec::<String>::new(), "`{key}` is neutral"),
                }
            }
        }
    }
}

#[test]
fn files_device_and_attention_are_compared() {
    let mut whole = identity(&[]).unwrap().record().unwrap();
    whole["inputs"] = json!({"checkpoint": "a", "adapters": ["a"], "tokenizer": "a", "data": "a"});
    for name in FROM_ELSEWHERE.into_iter().chain(["attention backend"]) {
        let mut other = whole.clone();
        let group = if other["inputs"].get(name).is_some() { "inputs" } else { "compute" };
        let is_list = other[group][name].is_array();
        other[group][name] = if is_list { json!(["other"]) } else { json!("other") };
        let [before, after] = [&whole, &other].map(|recorded| Identity::read(recorded).unwrap());
        let changes = before.changes(&after);
        assert!(changes.len() == 1 && changes[0].starts_with(&format!("`{name}`")), "{name}: {changes:?}");
    }
}

#[test]
fn attention_is_that_of_the_plain_kernels() {
    let plain = identity(&[]).unwrap().compute;
    assert_eq!((plain.fused, plain.attention.as_deref()), (false, Some("unfused")));
    let fast = identity(&[FAST[0].to_owned()]).unwrap().compute;
    assert_eq!((fast.fused, fast.attention), (true, None));
    assert_eq!(plain.precision, "bf16");
}

/// The record of a whole identity is a contract with runs that are on disk.
#[test]
fn the_record_is_as_it_was() {
    let recorded = identity(&[]).unwrap().record().unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&recorded).unwrap());
}

/// How many ranks share a layer changes no text, but one alone adds in another order.
#[test]
fn of_the_layout_only_the_order_of_sums_counts() {
    let of = |overrides: &[&str]| {
        let fast = FAST.iter().chain(overrides).map(|&text| text.to_owned());
        identity(&fast.collect::<Vec<_>>()).unwrap()
    };
    let two = of(&["model.tensor_model_parallel_size=2"]);
    let other = ["model.tensor_model_parallel_size=4", "model.pipeline_model_parallel_size=2"];
    assert!(two.changes(&of(&other)).is_empty());
    assert!(two.changes(&of(&["++model.generation.reduction=tree"])).is_empty());
    assert!(two.changes(&of(&["++model.expert_model_parallel_size=2"])).is_empty());
    let whole = ["model.tensor_model_parallel_size=2", "++model.expert_model_parallel_size=2"];
    assert!(two.changes(&of(&whole)).is_empty());
    assert_eq!(of(&[]).changes(&two), ["`model.generation.reduction`"]);
    assert!(of(&[]).changes(&of(&["model.tensor_model_parallel_size=auto"])).is_empty());
}
