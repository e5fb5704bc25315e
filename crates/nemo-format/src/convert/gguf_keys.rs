//! Every metadata key of a GGUF file: read elsewhere, refused because it changes the arithmetic, or named in a note.
//!
//! The lists follow the gguf package 0.19 (`constants.py`) and what llama.cpp reads for architecture `llama`. A key that is
//! in none of them is refused where its name is that of arithmetic.

use crate::{FormatError, GgufFile, GgufValue, SourceNote};

/// Read by the conversion.
const READ: [&str; 19] = [
    "attention.clamp_kqv",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
];

/// Known to change nothing in a dense model whose scaling is none, linear or Llama 3.1's.
const INERT: [&str; 5] = [
    "expert_used_count",
    "attention.causal",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
];

/// The one layout of rows that llama.cpp knows for this architecture.
const LAYOUT: &str = "Meta AI original pth";

/// Factors that change nothing when they are 1, or not set.
const FACTORS: [&str; 4] = ["logit_scale", "embedding_scale", "residual_scale", "rope.scaling.attn_factor"];

/// Parts of names that stand for arithmetic.
const ARITHMETIC: [&str; 18] = [
    "activation",
    "altup",
    "attention.",
    "attn",
    "clamp",
    "deepstack",
    "expert",
    "interleave",
    "moe",
    "norm",
    "parallel_residual",
    "rescale",
    "residual",
    "rope.",
    "scale",
    "softcap",
    "ssm.",
    "nextn_predict_layers",
];

/// Kinds of files that are not models, by the first part of their keys.
const OTHER_KINDS: [(&str, &str); 4] = [
    ("adapter.", "an adapter (LoRA) without its model"),
    ("controlvector.", "a control vector"),
    ("clip.", "a model of images or sound"),
    ("imatrix.", "statistics for quantisation"),
];

/// Refuses files that hold something else than one whole model.
pub(super) fn refuse_other_kinds(file: &GgufFile) -> Result<(), FormatError> {
    let refuse = |what: &str, hint: &str| FormatError::Unsupported {
        what: format!("`{}`, {what},", file.path().display()),
        hint: hint.to_owned(),
    };
    if let Some(kind) = file.optional("general.type", GgufValue::as_str)?
        && kind != "model"
    {
        let what = format!("a GGUF file of `general.type` `{kind}`");
        return Err(refuse(&what, "give the GGUF file of the model itself, with adapters merged into it"));
    }
    for (prefix, what) in OTHER_KINDS {
        // Statistics of a quantisation may be named beside the weights.
        let is_whole = prefix == "imatrix." && file.value("llama.block_count").is_some();
        if !is_whole && file.keys().any(|key| key.starts_with(prefix)) {
            return Err(refuse(what, "give the GGUF file of the model itself, with adapters merged into it"));
        }
    }
    match file.optional("split.count", GgufValue::as_u64)? {
        Some(count) if count > 1 => {
            let what = format!("one of {count} parts of a model");
            Err(refuse(&what, "join the parts with llama.cpp's `llama-gguf-split --merge` first"))
        }
        _ => Ok(()),
    }
}

/// Refuses keys that change the arithmetic, and names those that are not understood.
pub(super) fn check(file: &GgufFile) -> Result<Vec<SourceNote>, FormatError> {
    let (mut unused, mut sampling) = (Vec::new(), Vec::new());
    for key in file.keys() {
        let Some(value) = file.value(key) else { continue };
        if let Some(name) = key.strip_prefix("general.sampling.") {
            sampling.push(format!("{name} {value}"));
        } else if let Some(name) = key.strip_prefix("llama.") {
            check_llama(file, key, name, value)?;
            let is_read = READ.contains(&name) || INERT.contains(&name) || FACTORS.contains(&name);
            let is_layout = name != "tensor_data_layout" || value.as_str() == Some(LAYOUT);
            let is_needless = value.is_off() || (is_read && is_layout);
            if !is_needless {
                unused.push(key.to_owned());
            }
        } else if !is_about_the_file(key) {
            unused.push(key.to_owned());
        }
    }
    let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut notes = Vec::new();
    if !unused.is_empty() {
        notes.push(SourceNote::UnusedKeys { file: name.clone(), keys: unused });
    }
    if !sampling.is_empty() {
        notes.push(SourceNote::SamplingValues { file: name, values: sampling });
    }
    Ok(notes)
}

fn check_llama(file: &GgufFile, key: &str, name: &str, value: &GgufValue) -> Result<(), FormatError> {
    let refuse = |hint: &str| {
        Err(FormatError::Unsupported {
            what: format!("metadata key `{key}`, which is {value} in `{}`,", file.path().display()),
            hint: hint.to_owned(),
        })
    };
    match name {
        "attention.causal" if value.as_bool() != Some(true) => {
            refuse("only models that attend to earlier positions alone generate text")
        }
        "attention.clamp_kqv" if !value.is_off() => refuse("queries, keys and values are never clamped here"),
        "expert_count" if !value.is_off() => refuse("only dense models are converted"),
        _ if FACTORS.contains(&name) => match value.as_f64() {
            Some(factor) if factor == 0.0 || factor == 1.0 => Ok(()),
            _ => refuse("no such factor is applied here; it must be 1 or absent"),
        },
        _ if READ.contains(&name) || INERT.contains(&name) || value.is_off() => Ok(()),
        _ if ARITHMETIC.iter().any(|part| name.contains(part)) => {
            refuse("its effect on the numbers is not computed here")
        }
        _ => Ok(()),
    }
}

/// Keys that describe the file, its origin or its tokenizer, which is read elsewhere.
fn is_about_the_file(key: &str) -> bool {
    ["general.", "tokenizer.", "split.", "quantize.", "imatrix."].iter().any(|prefix| key.starts_with(prefix))
}
