//! The arguments of Megatron-LM as the model section that NeMo 1 would have.
//!
//! They become the fields of Megatron-Core's `TransformerConfig`, and of the model around it, as
//! `core_transformer_config_from_args` and `gpt_config_from_args` make them (`megatron/training/argument_utils.py`, and
//! `arguments.py` before), read in versions 0.8 and 0.19. What is not an argument of any of these versions is named.

use hydra_config::Node;

use super::is_artifact;
use crate::archive::Archive;
use crate::bridge::{self, TOKENIZER};
use crate::{FormatError, nemo2};

/// Arguments of training, saving, data, other models, and ways to compute the same numbers: a name a line.
const INERT: &str = include_str!("inert_arguments.txt");

/// Arguments that have another name as fields. The newer name of an argument counts first.
const RENAMED: [(&str, &str); 6] = [
    ("norm_epsilon", "layernorm_epsilon"),
    ("apply_layernorm_1p", "layernorm_zero_centered_gamma"),
    ("num_experts", "num_moe_experts"),
    ("use_rope_scaling", "rope_scaling"),
    ("hybrid_layer_pattern", "hybrid_override_pattern"),
    ("retro_add_retriever", "retro"),
];

/// Arguments that are read here, beside those whose field has their name.
const READ: [&str; 28] = [
    "add_position_embedding",
    "bias_gelu_fusion",
    "disable_bias_linear",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "group_query_attention",
    "heterogeneous_layers_config_encoded_json",
    "heterogeneous_layers_config_path",
    "hybrid_layer_pattern",
    "kitchen_config_file",
    "kitchen_recipe_number",
    "make_vocab_size_divisible_by",
    "max_position_embeddings",
    "merge_file",
    "onnx_safe",
    "openai_gelu",
    "quick_geglu",
    "rope_type",
    "rotary_seq_len_interpolation_factor",
    "spec",
    "squared_relu",
    "swiglu",
    "te_precision_config_file",
    "tokenizer_model",
    "tokenizer_type",
    "untie_embeddings_and_output_weights",
    "use_rotary_position_embeddings",
    "vocab_file",
];

/// Arguments that change the numbers where they are set.
const REFUSED: [(&str, &str); 5] = [
    ("kitchen_config_file", "quantised weights"),
    ("kitchen_recipe_number", "quantised weights"),
    (
        "rotary_seq_len_interpolation_factor",
        "divided positions, which some versions of Megatron-LM compute and others do not",
    ),
    ("spec", "a layer specification of its own"),
    ("te_precision_config_file", "quantised weights"),
];

/// Which of Megatron-LM's models the arguments are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// Megatron-Core's.
    Core,
    /// The one before, `megatron/legacy/model`, which looks at more arguments.
    Legacy,
}

/// Arguments that are not understood.
pub(crate) fn unknown_arguments(args: &Node) -> Vec<String> {
    let is_known = |key: &str| {
        READ.contains(&key)
            || RENAMED.iter().any(|(from, _)| *from == key)
            || INERT.lines().any(|name| name == key)
            || bridge::is_known_field(key)
    };
    let set = args.as_map().into_iter().flatten().filter(|(_, value)| **value != Node::Null);
    set.filter(|(key, _)| !is_known(key)).map(|(key, _)| key.clone()).collect()
}

/// The model section that NeMo 1 would have for these arguments, which `file` has.
pub(crate) fn model_config(
    archive: &Archive,
    args: &Node,
    file: &str,
    model: Model,
) -> Result<Node, FormatError> {
    let bad = |reason: String| FormatError::BadConfig { file: file.to_owned(), reason };
    for (key, feature) in REFUSED {
        if let Some(value) = args.get(key).filter(|value| !is_unset(value)) {
            return Err(refused(file, key, value, feature));
        }
    }
    if let Some(value) =
        args.get("rope_type").filter(|value| !is_unset(value) && value.as_str() != Some("rope"))
    {
        return Err(refused(file, "rope_type", value, "another rule of frequencies"));
    }
    let is_set = |key: &str| args.get(key).is_some_and(|value| !is_unset(value));
    if is_set("heterogeneous_layers_config_path") && !is_set("heterogeneous_layers_config_encoded_json") {
        let reason = "it has `heterogeneous_layers_config_path`, a file of another machine, and no \
                      `heterogeneous_layers_config_encoded_json`";
        return Err(bad(reason.to_owned()));
    }
    let fields = fields(args, model).map_err(bad)?;
    bridge::refuse_switched_on(&fields, file, "args", &[])?;
    let mut config = nemo2::model_section(&fields).map_err(bad)?;
    for key in ["retro", "hybrid_override_pattern"] {
        if let Some(value) = fields.get(key).filter(|value| !is_unset(value)) {
            config.set(key, value.clone());
        }
    }
    nemo2::llama3_section(&fields, &mut config);
    if let Some(section) = tokenizer(archive, args)? {
        config.set("tokenizer", section);
    }
    Ok(config)
}

fn refused(file: &str, key: &str, value: &Node, feature: &str) -> FormatError {
    FormatError::Unsupported {
        what: format!(
            "`{file}`, whose argument `{key}` is `{}` ({feature}),",
            value.to_yaml().trim().replace('\n', " ")
        ),
        hint: "use a checkpoint trained without it".to_owned(),
    }
}

fn is_unset(value: &Node) -> bool {
    matches!(value, Node::Null | Node::Bool(false)) || value.as_str() == Some("")
}

/// The fields that the arguments become.
fn fields(args: &Node, model: Model) -> Result<Node, String> {
    let set = |key: &str| args.get(key).filter(|value| **value != Node::Null);
    let flag = |key: &str| set(key).and_then(Node::as_bool).unwrap_or(false);
    let mut fields = args.clone();
    for (from, to) in RENAMED {
        if let Some(value) = set(from)
            && set(to).is_none_or(|newer| *newer == Node::Bool(false))
        {
            fields.set(to, value.clone());
        }
    }
    if let Some(disabled) = set("disable_bias_linear").and_then(Node::as_bool) {
        fields.set("add_bias_linear", Node::Bool(!disabled));
    }
    let is_untied = flag("untie_embeddings_and_output_weights");
    fields.set("share_embeddings_and_output_weights", Node::Bool(!is_untied));
    if set("group_query_attention").and_then(Node::as_bool) == Some(false) {
        fields.set("num_query_groups", Node::Null);
    }
    // The model's greatest length; `seq_length` is that of the training's samples.
    if let Some(positions) = set("max_position_embeddings") {
        fields.set("seq_length", positions.clone());
    }
    if flag("use_rotary_position_embeddings") {
        fields.set("position_embedding_type", Node::from("rope"));
    } else if set("add_position_embedding").and_then(Node::as_bool) == Some(false)
        && set("position_embedding_type").is_none_or(|kind| kind.as_str() == Some("learned_absolute"))
    {
        fields.set("position_embedding_type", Node::from("none"));
    }
    // Of YaRN alone, which the model refuses by its type of positions.
    fields.remove("rotary_scaling_factor");
    let (name, is_gated) = activation(args, model)?;
    fields.set("activation_func", Node::from(name));
    fields.set("gated_linear_unit", Node::Bool(is_gated));
    // It has been settled.
    fields.remove("bias_activation_fusion");
    Ok(fields)
}

/// The function of the MLP, and whether it has a gate.
fn activation(args: &Node, model: Model) -> Result<(&'static str, bool), String> {
    let flag = |key: &str| args.get(key).and_then(Node::as_bool).unwrap_or(false);
    // The kernel that adds the bias has the tanh form inside (`fused_bias_gelu.py`).
    let gelu = if flag("bias_gelu_fusion") { "openai_gelu" } else { "gelu" };
    Ok(match model {
        Model::Legacy if flag("openai_gelu") => ("openai_gelu", false),
        Model::Legacy if flag("onnx_safe") => ("gelu", false),
        _ if flag("swiglu") => ("silu", true),
        _ if flag("squared_relu") => ("squared_relu", false),
        Model::Core if flag("quick_geglu") => ("quick_gelu", true),
        _ => (gelu, false),
    })
}

/// The tokenizer that lies beside the weights, as NeMo 1's section; `None` where none does.
fn tokenizer(archive: &Archive, args: &Node) -> Result<Option<Node>, FormatError> {
    let kind = args.get("tokenizer_type").and_then(Node::as_str).unwrap_or_default();
    // The file of this name is another than that of a Hugging Face tokenizer.
    if kind == "TikTokenizer" || !archive.names().any(is_artifact) {
        return Ok(None);
    }
    let is_in_folder = archive.names().any(|name| name.starts_with(TOKENIZER));
    let legacy = args.get("tokenizer_sentencepiece_legacy").and_then(Node::as_bool).unwrap_or(false);
    let stated = nemo2::StatedTokenizer { wants_json: kind == "HuggingFaceTokenizer", legacy };
    nemo2::tokenizer_section(archive, if is_in_folder { TOKENIZER } else { "" }, stated)
}

/// What the user has to give where no tokenizer lies beside the weights.
pub(crate) fn tokenizer_needed(args: &Node) -> String {
    let text = |key: &str| args.get(key).and_then(Node::as_str).filter(|text| !text.is_empty());
    let kind = text("tokenizer_type").unwrap_or("unknown");
    let file = text("tokenizer_model").or_else(|| text("vocab_file"));
    let of = file.map(|file| format!(" (`{file}`)")).unwrap_or_default();
    let give = match kind {
        "HuggingFaceTokenizer" | "HFTokenizer" => {
            "`++model.tokenizer.library=huggingface ++model.tokenizer.type=FOLDER`"
        }
        "GPT2BPETokenizer" => {
            "`++model.tokenizer.library=megatron ++model.tokenizer.type=GPT2BPETokenizer \
             ++model.tokenizer.vocab_file=vocab.json ++model.tokenizer.merge_file=merges.txt`"
        }
        "TikTokenizer" => "`++model.tokenizer.library=tiktoken ++model.tokenizer.vocab_file=FILE`",
        _ => "`++model.tokenizer.library=sentencepiece ++model.tokenizer.model=tokenizer.model`",
    };
    format!(
        "it was trained with the tokenizer `{kind}`{of}, whose files Megatron-LM does not save: put them into the folder of the \
         iteration as `tokenizer/`, or pass {give}; a conversion takes `--tokenizer PATH`"
    )
}

#[cfg(test)]
mod tests;
