//! `run_config.yaml` of Megatron-Bridge as the model section that NeMo 1 would have.
//!
//! Its `model` section has every field of Megatron-Core's `TransformerConfig` and of the class that makes the model. Fields
//! that change the numbers are read, passed on, or refused here where they are switched on; the lists follow
//! megatron-core 0.19 and megatron-bridge 0.6.

use hydra_config::Node;

use super::{CONFIG, TOKENIZER};
use crate::archive::Archive;
use crate::{FormatError, model_keys, nemo2};

/// Beginnings of the names of classes that make a plain GPT of the fields alone. Those of old versions end with a size.
const PLAIN: [&str; 20] = [
    "GPTModelConfig",
    "GPTModelProvider",
    "CodeLlamaModelProvider",
    "Llama2ModelProvider",
    "Llama31ModelProvider",
    "Llama32ModelProvider",
    "Llama3ModelProvider",
    "LlamaModelProvider",
    "LlamaNemotronHeterogeneousProvider",
    "MistralModelProvider",
    "MixtralModelProvider",
    "Nemotron3ModelProvider",
    "Nemotron4ModelProvider",
    "NemotronModelProvider",
    "Qwen25ModelProvider",
    "Qwen2MoEModelProvider",
    "Qwen2ModelProvider",
    "Qwen3MoEModelProvider",
    "Qwen3ModelProvider",
    "StarCoder2ModelProvider",
];
/// The same with scaled embeddings.
const SCALED: [&str; 2] = ["CodeGemmaModelProvider", "GemmaModelProvider"];

/// OLMoE, whose norms of queries and keys are over all heads.
const OLMOE: &str = "OlMoEModelProvider";
/// What makes its layers.
const OLMOE_LAYER_SPECS: [&str; 1] = ["olmoe_layer_spec"];

/// Gemma 2 and 3, whose layers are their classes' own.
const GEMMA2: &str = "Gemma2ModelProvider";
const GEMMA3: &str = "Gemma3ModelProvider";
/// What makes these layers.
const GEMMA_LAYER_SPECS: [&str; 2] = ["gemma2_layer_spec", "gemma3_layer_spec"];

/// Functions that make the plain layers.
const LAYER_SPECS: [&str; 9] = [
    "default_layer_spec",
    "get_gpt_decoder_block_spec",
    "get_gpt_layer_local_spec",
    "get_gpt_heterogeneous_layer_spec",
    "get_gpt_layer_with_transformer_engine_spec",
    "heterogeneous_layer_spec",
    "local_layer_spec",
    "transformer_engine_full_layer_spec",
    "transformer_engine_layer_spec",
];

/// Fields that change the numbers where they are on, beside those that the model itself refuses.
const OFF: [(&str, &str); 14] = [
    ("activation_func_clamp_value", "a clamped activation"),
    ("attention_output_gate", "a gate behind attention"),
    ("experimental_attention_variant", "another attention"),
    ("glu_linear_offset", "an offset inside the MLP"),
    ("linear_attention_freq", "another attention"),
    ("no_rope_freq", "layers without positions"),
    ("qk_l2_norm", "a norm of queries and keys without gains"),
    ("quant_recipe", "quantised weights"),
    ("restore_modelopt_state", "weights that ModelOpt has changed"),
    ("rotary_scaling_factor", "another rule of frequencies"),
    ("softmax_type", "another softmax"),
    ("use_kitchen", "quantised weights"),
    ("use_kitchen_attention", "quantised attention"),
    ("use_mup", "multipliers of muP"),
];

/// Fields of training, memory, and ways to compute the same numbers, beside those that NeMo has.
const INERT: [&str; 52] = [
    "activation_offload_fraction",
    "cross_entropy_fusion_impl",
    "delay_offload_until_cuda_graph",
    "delta_offload_bytes_across_pp_ranks",
    "dense_grouped_gemm",
    "ep_overlap_early_attn_memory_release",
    "experimental_attention_variant_loss_scale_func",
    "expert_gtp_weight_remat_size",
    "expert_tensor_parallel_num_weight_shards",
    "fine_grained_activation_offloading",
    "fine_grained_offloading_max_inflight_offloads",
    "first_last_layers_bf16",
    "flash_attention_version",
    "fused_residual_rmsnorm",
    "fused_single_qkv_rope",
    "gtp_weight_remat_size",
    "hetereogenous_dist_checkpoint",
    "heterogeneous_layers_config_path",
    "hf_model_id",
    "hf_model_revision",
    "high_priority_a2a_comm_stream",
    "hybrid_context_parallel",
    "init_model_with_meta_device",
    "interleaved_attn_pattern",
    "is_vision_language",
    "kitchen_attention_backend",
    "log_max_attention_logit",
    "max_seqlen_per_dp_cp_rank",
    "microbatch_group_size_per_vp_stage",
    "min_offloaded_tensor_size",
    "mlp_chunks_for_prefill",
    "mlp_chunks_for_training",
    "num_layers_at_end_in_bf16",
    "num_layers_at_start_in_bf16",
    "offload_modules",
    "overlap_dispatch_backward_with_experts_wgrad",
    "overlap_moe_expert_parallel_comm",
    "per_block_parameters",
    "pipeline_model_parallel_comm_backend",
    "pipeline_model_parallel_layout",
    "rope_scaling_factor",
    "should_pad_vocab",
    "tensor_parallel_num_weight_shards",
    "transformer_impl",
    "transformer_layer_spec",
    "use_arbitrary_attention_mask",
    "use_fused_weighted_squared_relu",
    "use_grouped_gemm_for_dense_mlp",
    "use_grouped_gemm_for_shared_expert",
    "use_inference_optimized_layers",
    "use_mamba_mem_eff_path",
    "use_te_activation_func",
];
/// What such fields begin with. Those of other models have a switch above, or the model refuses it; more predicted tokens
/// (`mtp_`) leave the first alone.
const INERT_PREFIXES: [&str; 11] = [
    "dsa_",
    "inference_",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_",
    "linear_value_head_dim",
    "mamba_",
    "mtp_",
    "mup_",
    "qk_clip",
    "yarn_",
];

/// The fields of the model: those of the class, and those of the `TransformerConfig` that newer classes hold.
fn fields(document: &Node) -> Option<Node> {
    let model @ Node::Map(_) = document.get("model")? else { return None };
    let mut fields = model.clone();
    if let Some(Node::Map(inner)) = model.get("transformer") {
        for (key, value) in inner {
            if model.get(key).is_none() {
                fields.set(key, value.clone());
            }
        }
        fields.remove("transformer");
    }
    Some(fields)
}

/// Fields of the model that are not understood.
pub(crate) fn unknown_keys(document: &Node) -> Vec<String> {
    let keys = fields(document).map(|fields| model_keys::unknown(&fields)).unwrap_or_default();
    keys.into_iter().filter(|key| !is_known_here(key)).collect()
}

/// Whether a field of Megatron-Core is read, or known to change nothing.
pub(crate) fn is_known_field(key: &str) -> bool {
    model_keys::is_known_model_key(key) || is_known_here(key)
}

fn is_known_here(key: &str) -> bool {
    OFF.iter().any(|(name, _)| *name == key)
        || INERT.contains(&key)
        || INERT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// The model section that NeMo 1 would have for `document`, the content of `run_config.yaml`.
pub(crate) fn model_config(archive: &Archive, document: &Node) -> Result<Node, FormatError> {
    let file = archive.describe(CONFIG);
    let bad = |reason: String| FormatError::BadConfig { file: file.clone(), reason };
    let fields = fields(document)
        .ok_or_else(|| bad("it has no `model` section with the model's dimensions".to_owned()))?;
    let class = name_of(fields.get("_target_")).unwrap_or_default();
    let begins_with = |names: &[&str]| names.iter().any(|name| class.starts_with(name));
    let is_scaled = begins_with(&SCALED);
    let has_own_layers = begins_with(&[GEMMA2, GEMMA3]);
    let is_olmoe = begins_with(&[OLMOE]);
    if !is_scaled && !has_own_layers && !is_olmoe && !begins_with(&PLAIN) {
        let hint = "read are the GPT, Llama, Mistral, Mixtral, Gemma, Nemotron, Qwen 2 and 3 and StarCoder 2 providers, whose models \
                    follow from their fields";
        return Err(FormatError::Unsupported {
            what: format!("`{file}`, whose `model._target_` is `{class}`,"),
            hint: hint.to_owned(),
        });
    }
    let own = match (has_own_layers, is_olmoe) {
        (true, _) => &GEMMA_LAYER_SPECS[..],
        (_, true) => &OLMOE_LAYER_SPECS[..],
        _ => &[],
    };
    refuse_switched_on(&fields, &file, "model", own)?;
    let mut config = nemo2::model_section(&fields).map_err(bad)?;
    if begins_with(&[GEMMA2]) {
        if config.get("query_pre_attn_scalar").is_none() {
            return Err(bad("its `query_pre_attn_scalar` is missing, which a Gemma 2 needs".to_owned()));
        }
        // Layers with the window are the first, the third, and so on (`gemma2_provider.py`).
        config.set("window_attn_skip_freq", Node::Int(2));
        config.set("post_layernorms", Node::Bool(true));
        config.set("apply_embedding_scaling", Node::Bool(true));
    }
    if begins_with(&[GEMMA3]) {
        nemo2::gemma3_section(&fields, 1, &mut config).map_err(bad)?;
    }
    if is_olmoe {
        config.set("qk_layernorm_across_heads", Node::Bool(true));
    }
    if is_scaled {
        config.set("apply_embedding_scaling", Node::Bool(true));
    }
    nemo2::llama3_section(&fields, &mut config);
    if let Some(section) = tokenizer(archive, document)? {
        config.set("tokenizer", section);
    }
    Ok(config)
}

/// The last part of a Python name, as text or under `_target_`.
fn name_of(value: Option<&Node>) -> Option<String> {
    let path = match value? {
        Node::Str(path) => path.as_str(),
        other => other.get("_target_")?.as_str()?,
    };
    Some(path.rsplit('.').next().unwrap_or(path).to_owned())
}

/// Refuses fields of `section` that change the numbers. `own` are further functions that make layers which are known.
pub(crate) fn refuse_switched_on(
    fields: &Node,
    file: &str,
    section: &str,
    own: &[&str],
) -> Result<(), FormatError> {
    let refuse = |key: &str, value: &str, feature: &str| {
        Err(FormatError::Unsupported {
            what: format!("`{file}`, whose `{section}.{key}` is `{value}` ({feature}),"),
            hint: "use a checkpoint trained without it".to_owned(),
        })
    };
    for (key, feature) in OFF {
        let Some(value) = fields.get(key).filter(|value| !is_off(value)) else { continue };
        return refuse(key, value.to_yaml().trim(), feature);
    }
    // A partial application names the function in its first place.
    let spec = fields.get("transformer_layer_spec").filter(|value| **value != Node::Null);
    let Some(spec) = spec else { return Ok(()) };
    let partial = spec.get("_args_").and_then(Node::as_list).and_then(|arguments| arguments.first());
    let name = match name_of(Some(spec)) {
        Some(name) if name != "partial" => Some(name),
        _ => name_of(partial),
    };
    match name {
        Some(name) if LAYER_SPECS.contains(&name.as_str()) || own.contains(&name.as_str()) => Ok(()),
        name => {
            let shown = name.unwrap_or_else(|| spec.to_yaml().trim().to_owned());
            refuse("transformer_layer_spec", &shown, "a layer specification of its own")
        }
    }
}

/// Whether a value switches nothing on.
fn is_off(value: &Node) -> bool {
    match value {
        Node::Null | Node::Bool(false) | Node::Int(0) => true,
        Node::Float(number) => *number == 0.0,
        Node::Str(text) => ["", "vanilla", "none"].contains(&text.as_str()),
        Node::List(values) => values.iter().all(is_off),
        Node::Map(values) => values.is_empty(),
        Node::Bool(true) | Node::Int(_) => false,
    }
}

/// The tokenizer that lies beside the weights, as NeMo 1's section; `None` where none of a known kind does.
fn tokenizer(archive: &Archive, document: &Node) -> Result<Option<Node>, FormatError> {
    let kind = document.get("tokenizer.tokenizer_type").and_then(Node::as_str).unwrap_or_default();
    // Its `tokenizer.json` is another file than that of a Hugging Face tokenizer.
    if kind == "TikTokenizer" {
        return Ok(None);
    }
    nemo2::tokenizer_section(
        archive,
        TOKENIZER,
        nemo2::StatedTokenizer { wants_json: kind == "HuggingFaceTokenizer", legacy: false },
    )
}

#[cfg(test)]
mod tests;
