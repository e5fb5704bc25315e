//! A folder of NeMo 2: `weights/`, a distributed checkpoint, and `context/`, a description of Python objects.
//!
//! Of the context only `model.yaml` is read, as data: its fields are those of Megatron-Core's `TransformerConfig`, which
//! are put into the keys of NeMo 1 here. `io.json` holds the same as a graph to be executed and is not needed.

use std::path::Path;

use hydra_config::Node;

use crate::archive::Archive;
use crate::huggingface::HfTokenizer;
use crate::{FormatError, model_keys, tokenizer};

/// The description that is readable.
pub(crate) const CONFIG: &str = "context/model.yaml";
/// The distributed checkpoint.
pub(crate) const WEIGHTS: &str = "weights";
/// The description and the tokenizer lie below it.
pub(crate) const CONTEXT: &str = "context/";

/// Fields whose key is the same in both, or that the model refuses under this name.
const SAME: [&str; 35] = [
    "heterogeneous_layers_config_encoded_json",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma",
    "position_embedding_type",
    "rotary_base",
    "rotary_interleaved",
    "seq_len_interpolation_factor",
    "share_embeddings_and_output_weights",
    "make_vocab_size_divisible_by",
    "hidden_dropout",
    "attention_dropout",
    "fp32_residual_connection",
    "apply_query_key_layer_scaling",
    "qk_layernorm",
    "query_pre_attn_scalar",
    "window_size",
    "multi_latent_attention",
    "apply_rope_fusion",
    "apply_residual_connection_post_layernorm",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "heterogeneous_block_specs",
    "is_hybrid_model",
    "mrope_section",
    "softmax_scale",
    "softmax_type",
    "activation_func_clamp_value",
    "glu_linear_offset",
    "window_attn_skip_freq",
];
const RENAMED: [(&str, &str); 5] = [
    ("seq_length", "encoder_seq_length"),
    ("seq_length", "max_position_embeddings"),
    ("rotary_percent", "rotary_percentage"),
    ("add_bias_linear", "bias"),
    ("add_qkv_bias", "qkv_bias"),
];
/// Llama 3.1's rule of frequencies, with the key of the constant here.
const ROPE_SCALING: [(&str, &str); 4] = [
    ("scale_factor", "factor"),
    ("low_freq_factor", "low_freq_factor"),
    ("high_freq_factor", "high_freq_factor"),
    ("old_context_len", "original_max_position_embeddings"),
];

/// Keys of `document` that are not understood.
pub(crate) fn unknown_keys(document: &Node) -> Vec<String> {
    let is_rope = |key: &String| ROPE_SCALING.iter().any(|(from, _)| from == key);
    let keys = document.get("config").map(model_keys::unknown).unwrap_or_default();
    keys.into_iter().filter(|key| key != "tokenizer" && !is_rope(key)).collect()
}

/// Whether a member is neither a description nor a weight.
pub(crate) fn is_artifact(member: &str) -> bool {
    member.strip_prefix(CONTEXT).is_some_and(|name| !matches!(name, "io.json" | "model.yaml" | "docs"))
}

/// The model section that NeMo 1 would have for `document`, the content of `model.yaml`.
pub(crate) fn model_config(archive: &Archive, document: &Node) -> Result<Node, FormatError> {
    let bad = |reason: String| FormatError::BadConfig { file: archive.describe(CONFIG), reason };
    let Some(fields @ Node::Map(_)) = document.get("config") else {
        return Err(bad("it has no `config` section with the model's dimensions".to_owned()));
    };
    let set = |key: &str| fields.get(key).filter(|value| !matches!(value, Node::Null));
    let mut config = model_section(fields).map_err(bad)?;
    if set("scale_factor").is_some() {
        config.set("scale_positional_embedding", Node::Bool(true));
        for (from, to) in ROPE_SCALING {
            if let Some(value) = set(from) {
                config.set(&format!("rope_scaling.{to}"), value.clone());
            }
        }
    }
    let target = document.get("_target_").and_then(Node::as_str).unwrap_or_default();
    let class = target.rsplit('.').next().unwrap_or_default();
    if class.starts_with("Gemma2") {
        config.set("name", Node::from("megatron_gemma2"));
        config.set("apply_embedding_scaling", Node::Bool(true));
    } else if class.starts_with("Gemma3") {
        gemma3_section(fields, 0, &mut config).map_err(bad)?;
    } else if class.starts_with("Gemma") {
        config.set("apply_embedding_scaling", Node::Bool(true));
    }
    if let Some(tokenizer) = tokenizer(archive, document)? {
        config.set("tokenizer", tokenizer);
    }
    Ok(config)
}

/// What NeMo 1 would have for the fields of Megatron-Core's `TransformerConfig` and of the model around it, or why it can
/// have nothing.
pub(crate) fn model_section(fields: &Node) -> Result<Node, String> {
    let set = |key: &str| fields.get(key).filter(|value| !matches!(value, Node::Null));
    let flag = |key: &str| set(key).and_then(Node::as_bool).unwrap_or(false);
    let mut config = Node::empty_map();
    config.set("mcore_gpt", Node::Bool(true));
    config.set("transformer_engine", Node::Bool(true));
    let of_experts = model_keys::OF_EXPERTS.iter().filter(|_| set("num_moe_experts").is_some());
    for (from, to) in SAME.iter().chain(of_experts).map(|key| (*key, *key)).chain(RENAMED) {
        if let Some(value) = set(from) {
            config.set(to, value.clone());
        }
    }
    if let Some(normalization) = set("normalization").and_then(Node::as_str) {
        config.set("normalization", Node::Str(normalization.to_ascii_lowercase()));
    }
    let (activation, is_openai_gelu) = activation(fields)?;
    config.set("activation", Node::from(activation));
    config.set("openai_gelu", Node::Bool(is_openai_gelu));
    // It has been settled, and NeMo 1 takes a key that is not there for true.
    config.set("bias_activation_fusion", Node::Bool(false));
    let precision = match (flag("bf16"), flag("fp16")) {
        (true, _) => Node::from("bf16"),
        (_, true) => Node::Int(16),
        _ => Node::Int(32),
    };
    config.set("precision", precision);
    // NeMo 1 always has them, and its configurations refer to them.
    for key in ["tensor_model_parallel_size", "pipeline_model_parallel_size"] {
        config.set(key, set(key).cloned().unwrap_or(Node::Int(1)));
    }
    Ok(config)
}

/// What the classes of Gemma 3 mean: their layers have norms of heads and of outputs, all but the last of `interleaved_attn_pattern`
/// have a window, and `rotary_base` is one for these and one for the others, whose frequencies are scaled. `less` is what
/// the class takes off the window before Transformer Engine sees it.
pub(crate) fn gemma3_section(fields: &Node, less: i64, config: &mut Node) -> Result<(), String> {
    let pair = |key: &str| match fields.get(key).and_then(Node::as_list) {
        Some([one, two]) => Ok((one.clone(), two.clone())),
        _ => Err(format!("its `{key}` is no pair, which a Gemma 3 needs")),
    };
    let whole = |key: &str| {
        let number = fields.get(key).and_then(Node::as_i64).filter(|&number| number > less);
        number.ok_or_else(|| format!("its `{key}` is no whole number above {less}, which a Gemma 3 needs"))
    };
    if fields.get("is_vision_language").and_then(Node::as_bool) == Some(true) {
        return Err("its `is_vision_language` is true, and models of text and images are not read".to_owned());
    }
    if fields.get("seq_len_interpolation_factor").is_some_and(|value| !matches!(value, Node::Null)) {
        return Err("it has a `seq_len_interpolation_factor`, which a Gemma 3 has not".to_owned());
    }
    let (local, global) = pair("rotary_base")?;
    let (num_local, num_global) = pair("interleaved_attn_pattern")?;
    let (Some(num_local @ 1..), Some(num_global @ 1..)) = (num_local.as_i64(), num_global.as_i64()) else {
        return Err("its `interleaved_attn_pattern` is no pair of numbers of layers".to_owned());
    };
    config.set("rotary_base", global);
    config.set("rotary_base_local", local);
    if let Some(factor) = fields.get("rope_scaling_factor").filter(|value| !matches!(value, Node::Null)) {
        config.set("seq_len_interpolation_factor", factor.clone());
    }
    config.set("window_size", Node::List(vec![Node::Int(whole("window_size")? - less), Node::Int(0)]));
    config.set("window_attn_skip_freq", Node::Int(num_local.saturating_add(num_global)));
    for key in ["apply_embedding_scaling", "post_layernorms", "qk_layernorm"] {
        config.set(key, Node::Bool(true));
    }
    Ok(())
}

/// Megatron-Core's switch for Llama 3.1's rule of frequencies, with a factor of its own.
pub(crate) fn llama3_section(fields: &Node, config: &mut Node) {
    if fields.get("rope_scaling").and_then(Node::as_bool) != Some(true) {
        return;
    }
    config.set("scale_positional_embedding", Node::Bool(true));
    if let Some(factor) = fields.get("rope_scaling_factor").filter(|value| **value != Node::Null) {
        config.set("rope_scaling.factor", factor.clone());
    }
}

/// The function of the MLP in NeMo's words, and whether it is the tanh approximation.
fn activation(fields: &Node) -> Result<(&'static str, bool), String> {
    let value = fields.get("activation_func");
    let path = match value {
        Some(Node::Str(path)) => path.as_str(),
        Some(other) => other.get("_target_").and_then(Node::as_str).unwrap_or_default(),
        None => "gelu",
    };
    // The kernel that adds the bias has the tanh form inside (`fused_bias_gelu.py` line 19), and so has Transformer
    // Engine's (`common/util/math.h` line 28).
    let flag = |key: &str| fields.get(key).and_then(Node::as_bool).unwrap_or(false);
    let is_fused = flag("bias_activation_fusion") || flag("use_te_activation_func");
    let is_gated = fields.get("gated_linear_unit").and_then(Node::as_bool).unwrap_or(false);
    match (path.rsplit('.').next().unwrap_or_default(), is_gated) {
        ("silu" | "SiLU", true) => Ok(("fast-swiglu", false)),
        ("gelu", true) => Ok(("fast-geglu", is_fused)),
        // Megatron-Core's `fast_gelu` is the tanh approximation, too.
        ("openai_gelu" | "fast_gelu", true) => Ok(("fast-geglu", true)),
        ("relu", true) => Ok(("fast-reglu", false)),
        ("gelu", false) => Ok(("gelu", is_fused)),
        ("openai_gelu" | "fast_gelu", false) => Ok(("gelu", true)),
        ("squared_relu", false) => Ok(("squared-relu", false)),
        ("quick_gelu" | "approx_gelu", false) => Ok(("approx-gelu", false)),
        (name, _) => {
            let gated = if is_gated { "gated " } else { "" };
            Err(format!(
                "its `activation_func` is the {gated}function `{name}`; supported are silu (gated), gelu, openai_gelu, \
                 fast_gelu, relu (gated), squared_relu and quick_gelu"
            ))
        }
    }
}

/// The tokenizer that the context carries, as NeMo 1's section.
fn tokenizer(archive: &Archive, document: &Node) -> Result<Option<Node>, FormatError> {
    let described = document.get("tokenizer").or_else(|| document.get("config.tokenizer"));
    let wants_json = described
        .and_then(|tokenizer| tokenizer.get("_target_"))
        .and_then(Node::as_str)
        .is_some_and(|target| target.ends_with("AutoTokenizer"));
    let legacy = described.and_then(|tokenizer| tokenizer.get("legacy")).and_then(Node::as_bool);
    let stated = StatedTokenizer { wants_json, legacy: legacy.unwrap_or(false) };
    tokenizer_section(archive, CONTEXT, stated)
}

/// What a configuration says of a tokenizer whose files lie beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatedTokenizer {
    /// Transformers opens it.
    pub(crate) wants_json: bool,
    /// NeMo's `legacy` of a SentencePiece model.
    pub(crate) legacy: bool,
}

/// The tokenizer whose files lie below `folder`, as NeMo 1's section; `None` where none does.
pub(crate) fn tokenizer_section(
    archive: &Archive,
    folder: &str,
    stated: StatedTokenizer,
) -> Result<Option<Node>, FormatError> {
    let artifacts: Vec<&str> = archive.names().filter(|name| name.starts_with(folder)).collect();
    let find = |suffix: &str| artifacts.iter().find(|name| name.ends_with(suffix)).copied();
    let StatedTokenizer { wants_json, legacy } = stated;
    let (proto, json) = (find(".model"), find("tokenizer.json"));
    let mut section = Node::empty_map();
    match (proto, json) {
        // A Hugging Face folder often has both; NeMo opens it with transformers then.
        (_, Some(json)) if wants_json || proto.is_none() => {
            let folder = archive.path().join(json);
            let folder = folder.parent().unwrap_or(Path::new("."));
            section.set("library", Node::from("huggingface"));
            section.set("type", Node::from("tokenizer.json"));
            section.set("model", Node::Str(format!("nemo:{json}")));
            section.set("use_fast", Node::Bool(true));
            if let Some(found) = HfTokenizer::open_folder(folder)? {
                tokenizer::describe(&found, &mut section)?;
            }
        }
        (Some(proto), _) => {
            section.set("library", Node::from("sentencepiece"));
            section.set("type", Node::Null);
            section.set("model", Node::Str(format!("nemo:{proto}")));
            section.set("sentencepiece_legacy", Node::Bool(legacy));
        }
        (None, _) => match find("vocab.json").zip(find("merges.txt")) {
            Some((vocab, merges)) => {
                section.set("library", Node::from("megatron"));
                section.set("type", Node::from("GPT2BPETokenizer"));
                section.set("vocab_file", Node::Str(format!("nemo:{vocab}")));
                section.set("merge_file", Node::Str(format!("nemo:{merges}")));
            }
            None => return Ok(None),
        },
    }
    Ok(Some(section))
}
