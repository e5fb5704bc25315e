//! The keys of `model_config.yaml`, and of the `config` section of NeMo 2's `model.yaml`: which are read, and which are known
//! to leave the numbers of a forward pass alone. All others are named when a checkpoint is opened.
//!
//! The second list follows NeMo's example configurations (`megatron_gpt_config.yaml` and its kin), NeMo-Aligner's, and the
//! fields of Megatron-Core's `TransformerConfig`.

use hydra_config::Node;

use crate::source_note::RECORD;

/// Read by the model, the tokenizer, the run or the conversion, or refused by the model under their name.
const READ: [&str; 76] = [
    "activation",
    "activation_func_clamp_value",
    "glu_linear_offset",
    "activation_func",
    "add_bias_linear",
    "add_qkv_bias",
    "apply_embedding_scaling",
    "apply_residual_connection_post_layernorm",
    "attention_type",
    "attn_logit_softcapping",
    "bias",
    "bias_activation_fusion",
    "bias_gelu_fusion",
    RECORD,
    "embedding_multiplier",
    "encoder_seq_length",
    "ffn_hidden_size",
    "final_logit_softcapping",
    "gated_linear_unit",
    "generation",
    "headscale",
    "heterogeneous_block_specs",
    "heterogeneous_layers_config_encoded_json",
    "hidden_size",
    "huggingface",
    "hybrid_override_pattern",
    "is_hybrid_model",
    "kv_channels",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma",
    "logits_multiplier",
    "make_vocab_size_divisible_by",
    "max_position_embeddings",
    "mcore_customization_config",
    "megatron_legacy",
    "mm_cfg",
    "mrope_section",
    "multi_latent_attention",
    "name",
    "new_decoder_architecture",
    "normalization",
    "normalize_attention_scores",
    "num_attention_heads",
    "num_layers",
    "num_query_groups",
    "onnx_safe",
    "openai_gelu",
    "output_layer_bias",
    "parallel_attention",
    "position_embedding_type",
    "qk_layernorm",
    "qk_layernorm_across_heads",
    "qk_layernorm_per_head",
    "qkv_bias",
    "post_layernorms",
    "pre_layernorms",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "retro",
    "rope_scaling",
    "rotary_base",
    "rotary_base_local",
    "rotary_interleaved",
    "rotary_percent",
    "rotary_percentage",
    "scale_positional_embedding",
    "seq_len_interpolation_factor",
    "seq_length",
    "share_embeddings_and_output_weights",
    "softmax_scale",
    "softmax_type",
    "sqrt_query_pre_attn_scalar",
    "tokenizer",
    "transformer_block_type",
    "window_attn_skip_freq",
    "window_size",
];

/// The same of mixtures of experts, which NeMo 2 and Megatron-Bridge call alike.
pub(crate) const OF_EXPERTS: [&str; 22] = [
    "num_moe_experts",
    "moe_apply_probs_on_input",
    "moe_expert_capacity_factor",
    "moe_ffn_hidden_size",
    "moe_latent_size",
    "moe_layer_freq",
    "moe_mlp_glu_interleave_size",
    "moe_router_enable_expert_bias",
    "moe_router_force_biased",
    "moe_router_force_load_balancing",
    "moe_router_group_topk",
    "moe_router_load_balancing_type",
    "moe_router_num_groups",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_topk",
    "moe_router_topk_limited_devices",
    "moe_router_topk_scaling_factor",
    "moe_shared_expert_gate",
    "moe_shared_expert_glu_interleave_size",
    "moe_shared_expert_intermediate_size",
    "moe_token_dropping",
];

/// Training, precision and memory of training, ways to compute the same numbers, where things were saved.
const INERT: [&str; 160] = [
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "answer_only_loss",
    "apex_transformer_log_level",
    "apply_query_key_layer_scaling",
    "apply_rope_fusion",
    "async_grad_allreduce",
    "async_tensor_model_parallel_allreduce",
    "attention_backend",
    "attention_dropout",
    "attention_probs_dropout",
    "attention_softmax_in_fp32",
    "autocast_dtype",
    "barrier_with_L1_time",
    "batch_invariant_mode",
    "batch_p2p_comm",
    "batch_p2p_sync",
    "bf16",
    "calculate_per_token_loss",
    "clone_scatter_output_in_embedding",
    "config_logger_dir",
    "context_parallel_size",
    "cp_comm_type",
    "critic",
    "data",
    "data_step_fn",
    "deallocate_pipeline_outputs",
    "defer_embedding_wgrad_compute",
    "delay_wgrad_compute",
    "deterministic_mode",
    "disable_bf16_reduced_precision_matmul",
    "disable_parameter_transpose_cache",
    "distribute_saved_activations",
    "do_layer_norm_weight_decay",
    "dpo",
    "embedding_init_method",
    "embedding_init_method_std",
    "enable_autocast",
    "enable_cuda_graph",
    "enable_megatron_timers",
    "external_cuda_graph",
    "ffn_dropout",
    "finalize_model_grads_func",
    "first_pipeline_num_layers",
    "flash_decode",
    "forward_step_fn",
    "fp16",
    "fp16_lm_cross_entropy",
    "fp32_residual_connection",
    "gc_interval",
    "generation_config",
    "get_attention_mask_from_fusion",
    "global_batch_size",
    "grad_allreduce_chunk_size_mb",
    "grad_scale_func",
    "grad_sync_func",
    "gradient_as_bucket_view",
    "hidden_dropout",
    "hierarchical_context_parallel_sizes",
    "hysteresis",
    "inference",
    "inference_rng_tracker",
    "init_method",
    "init_method_std",
    "keep_fp8_weight_transpose_cache",
    "knowledge_distillation",
    "kto",
    "last_pipeline_num_layers",
    "mcore_gpt",
    "megatron_amp_O2",
    "memory_efficient_layer_norm",
    "micro_batch_size",
    "moe_aux_loss_coeff",
    "moe_enable_deepep",
    "moe_enable_routing_replay",
    "moe_expert_rank_capacity_factor",
    "moe_extended_tp",
    "moe_grouped_gemm",
    "moe_input_jitter_eps",
    "moe_layer_recompute",
    "moe_pad_expert_input_to_capacity",
    "moe_pad_experts_for_cuda_graph_inference",
    "moe_per_layer_logging",
    "moe_permute_fusion_into_hybridep",
    "moe_router_bias_update_rate",
    "moe_router_dtype",
    "moe_router_padding_for_fp8",
    "moe_router_padding_for_quantization",
    "moe_router_quantile_balancing_ema",
    "moe_shared_expert_overlap",
    "moe_single_grouped_bias",
    "moe_single_grouped_weight",
    "moe_token_dispatcher_type",
    "moe_token_drop_policy",
    "moe_use_legacy_grouped_gemm",
    "moe_z_loss_coeff",
    "nccl_communicator_config_path",
    "nemo_version",
    "no_sync_func",
    "nsys_profile",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "num_micro_batches_with_partial_activation_checkpoints",
    "num_microbatches_with_partial_activation_checkpoints",
    "optim",
    "output_layer_init_method",
    "overlap_p2p_comm",
    "overlap_p2p_comm_warmup_flush",
    "override_vocab_size",
    "overwrite_base_config",
    "parallel_output",
    "param_sync_func",
    "params_dtype",
    "peft",
    "perform_initialization",
    "persist_layer_norm",
    "pipeline_dtype",
    "pipeline_model_parallel_split_rank",
    "post_process",
    "ppo",
    "pre_process",
    "precision",
    "rampup_batch_size",
    "reduce_amax",
    "reinforce",
    "reset_lr",
    "reset_lr_steps",
    "restore_from_ckpt",
    "restore_from_path",
    "resume_from_checkpoint",
    "save_nemo_on_validation_end",
    "scatter_embedding_sequence_parallel",
    "seed",
    "sequence_parallel",
    "sft",
    "sharp",
    "spin",
    "steerable_attributes",
    "steerlm",
    "symmetric_ar_type",
    "sync_batch_comm",
    "target",
    "test_mode",
    "timers",
    "tp_only_amax_red",
    "transformer_engine",
    "transformer_layer_spec",
    "use_cpu_initialization",
    "use_emha",
    "use_flash_attention",
    "use_ring_exchange_p2p",
    "use_scaled_init_method",
    "use_te_rng_tracker",
    "use_transformer_engine_full_layer_spec",
    "use_transformer_engine_op_fuser",
    "validation_drop_last",
    "validation_param_sync_overlap",
    "variable_seq_lengths",
    "vocab_size",
    "wgrad_deferral_limit",
];

/// What such keys begin with.
const INERT_PREFIXES: [&str; 21] = [
    "_",
    "activation_func_fp8",
    "activations_checkpoint_",
    "cpu_offloading",
    "cuda_graph_",
    "dist_ckpt_",
    "fp4",
    "fp8",
    "fsdp",
    "megatron_timer",
    "moe_deepep_",
    "moe_flex_dispatcher_",
    "moe_hybridep_",
    "moe_ncclep_",
    "moe_paged_stash",
    "native_amp_",
    "nccl_",
    "recompute_",
    "tp_comm_",
    "ub_tp_comm_",
    "wandb",
];
/// What such keys end with.
const INERT_SUFFIXES: [&str; 2] = ["_fusion", "_parallel_size"];

/// Whether a key of a model's configuration is read, or known to change nothing.
pub fn is_known_model_key(key: &str) -> bool {
    READ.contains(&key)
        || OF_EXPERTS.contains(&key)
        || INERT.contains(&key)
        || INERT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || INERT_SUFFIXES.iter().any(|suffix| key.ends_with(suffix))
}

/// Keys of a model's configuration that are set and neither read nor known to change nothing.
pub(crate) fn unknown(config: &Node) -> Vec<String> {
    let entries = config.as_map().into_iter().flatten();
    // Keys of experts say nothing of a model without.
    let is_dense = !config.get("num_moe_experts").is_some_and(|value| *value != Node::Null);
    let is_known = |key: &str| is_known_model_key(key) || (is_dense && key.starts_with("moe_"));
    let is_unknown = |key: &str| !is_known(key);
    entries.filter(|(key, value)| !is_empty(value) && is_unknown(key)).map(|(key, _)| key.clone()).collect()
}

/// Whether a value says nothing.
fn is_empty(value: &Node) -> bool {
    match value {
        Node::Null => true,
        Node::Str(text) => text.is_empty(),
        Node::List(values) => values.is_empty(),
        Node::Map(values) => values.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_nemos_own_configuration_is_known() {
        let text = include_str!("convert/megatron_llama_config.yaml");
        assert_eq!(unknown(&hydra_config::yaml::parse(text, "x").unwrap()), [""; 0]);
    }

    #[test]
    fn strangers_are_named() {
        let text =
            "num_layers: 2\nlogit_temper: 2\nempty: {}\nnothing: null\nmoe_router_topk: 2\nfp8_dot: 1\n";
        assert_eq!(unknown(&hydra_config::yaml::parse(text, "x").unwrap()), ["logit_temper"]);
        let text = "num_moe_experts: 2\nmoe_router_topk: 2\nmoe_router_temper: 2\n";
        assert_eq!(unknown(&hydra_config::yaml::parse(text, "x").unwrap()), ["moe_router_temper"]);
    }
}
