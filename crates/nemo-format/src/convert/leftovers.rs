//! What a Hugging Face folder says and a conversion has no use for: keys, types, sampling values, buffers.
//!
//! Keys that are known to change nothing in the forward pass stand in a list here; all others are named.

use std::path::Path;

use serde_json::Value;

use super::family::Family;
use super::{GENERATION_CONFIG, TOKENIZER_CONFIG};
use crate::huggingface::{HfConfig, read_json};
use crate::names::is_buffer;
use crate::{DType, FormatError, SourceNote, TensorSource};

/// Keys of `tokenizer_config.json` that are read, or that say how Python loads, pads and cuts.
const TOKENIZER_KEYS: [&str; 41] = [
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "backend",
    "bos_token",
    "chat_template",
    "clean_up_tokenization_spaces",
    "cls_token",
    "eos_token",
    "errors",
    "extra_special_tokens",
    "from_slow",
    "is_local",
    "legacy",
    "mask_token",
    "max_length",
    "model_input_names",
    "model_max_length",
    "model_specific_special_tokens",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "sep_token",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "special_tokens_map_file",
    "split_special_tokens",
    "stride",
    "tokenizer_class",
    "tokenizer_file",
    "truncation_side",
    "truncation_strategy",
    "unk_token",
    "use_default_system_prompt",
    "use_fast",
    "vocab_file",
];

/// Keys of `config.json` about training, saving, other heads and how transformers computes the same numbers.
const INERT: [&str; 71] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "model_max_length",
    "n_ctx",
    "name_or_path",
    "nemo_version",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "rotary",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    "torch_dtype",
    "dtype",
    "architectures",
    "transformers_weights",
    "model_type",
];

/// Keys of transformers' `GenerationConfig` that choose tokens; older versions keep them in `config.json`.
const SAMPLING: [&str; 42] = [
    "assistant_confidence_threshold",
    "bad_words_ids",
    "begin_suppress_tokens",
    "constraints",
    "diversity_penalty",
    "do_sample",
    "dola_layers",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_decoder_ids",
    "forced_eos_token_id",
    "guidance_scale",
    "length_penalty",
    "low_memory",
    "max_length",
    "max_new_tokens",
    "max_time",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "penalty_alpha",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "token_healing",
    "top_k",
    "top_p",
    "typical_p",
];

/// Keys of `generation_config.json` that choose no token, or that are read elsewhere.
const NOT_SAMPLING: [&str; 15] = [
    "_from_model_config",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "decoder_start_token_id",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "return_legacy_cache",
    "transformers_version",
    "use_cache",
];

/// What `config.json` says beyond what was asked of it. To be called when everything has been asked.
pub(super) fn of_config(config: &HfConfig, family: Family) -> Vec<SourceNote> {
    let (mut keys, mut values) = (config.unasked_inside(), Vec::new());
    for (key, value) in config.unasked() {
        if SAMPLING.contains(&key.as_str()) {
            values.push(format!("{key} {value}"));
        } else if !INERT.contains(&key.as_str()) && !is_empty(value) {
            keys.push(key);
        }
    }
    let file = "config.json".to_owned();
    let mut notes = Vec::new();
    notes.extend(of_architectures(config, family));
    if !keys.is_empty() {
        notes.push(SourceNote::UnusedKeys { file: file.clone(), keys });
    }
    if !values.is_empty() {
        notes.push(SourceNote::SamplingValues { file, values });
    }
    notes
}

/// An empty list, dictionary or text says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// transformers goes by `model_type`; a class of another family beside it is noted.
fn of_architectures(config: &HfConfig, family: Family) -> Option<SourceNote> {
    let classes = family.facts().classes;
    let found = config.texts("architectures");
    let stranger = found.iter().find(|class| !classes.contains(class))?;
    Some(SourceNote::Contradiction {
        used: format!("`model_type`, {}, as in transformers,", family.name()),
        ignored: "`architectures` of `config.json`".to_owned(),
        difference: format!("it names `{stranger}`"),
    })
}

/// What `tokenizer_config.json` says that no tokenizer here follows, such as the code of `auto_map`.
pub(super) fn of_tokenizer_config(folder: &Path) -> Result<Option<SourceNote>, FormatError> {
    let Some(Value::Object(document)) = read_json(&folder.join(TOKENIZER_CONFIG))? else { return Ok(None) };
    let is_unknown = |(key, value): &(&String, &Value)| {
        // Image, audio and other tokens of one model are special tokens by their names.
        !value.is_null() && !key.ends_with("_token") && !TOKENIZER_KEYS.contains(&key.as_str())
    };
    let keys: Vec<String> = document.iter().filter(is_unknown).map(|(key, _)| key.clone()).collect();
    let file = TOKENIZER_CONFIG.to_owned();
    Ok((!keys.is_empty()).then_some(SourceNote::UnusedKeys { file, keys }))
}

/// What `generation_config.json` recommends.
pub(super) fn of_generation_config(folder: &Path) -> Result<Option<SourceNote>, FormatError> {
    let Some(Value::Object(document)) = read_json(&folder.join(GENERATION_CONFIG))? else { return Ok(None) };
    let is_said = |(key, value): &(&String, &Value)| {
        !value.is_null() && !is_empty(value) && !NOT_SAMPLING.contains(&key.as_str())
    };
    let values: Vec<String> =
        document.iter().filter(is_said).map(|(key, value)| format!("{key} {value}")).collect();
    let file = GENERATION_CONFIG.to_owned();
    Ok((!values.is_empty()).then_some(SourceNote::SamplingValues { file, values }))
}

/// What the weights are stored as, where the configuration says otherwise or they are not all the same.
pub(super) fn of_dtypes(
    config: &HfConfig,
    source: &dyn TensorSource,
    stored: DType,
    written: Option<DType>,
) -> Result<Vec<SourceNote>, FormatError> {
    let mut notes = Vec::new();
    let stated = config.text(&["dtype", "torch_dtype"])?.map(|name| name.trim_start_matches("torch."));
    if let Some(stated) =
        stated.filter(|&stated| written.is_none() && stated != stored.name() && stated != "auto")
    {
        let (stated, stored) = (stated.to_owned(), stored.name().to_owned());
        notes.push(SourceNote::StoredDtype { stated, stored });
    }
    let is_wider = |name: &&str| {
        let dtype = source.meta(name).map(|meta| meta.dtype);
        !is_buffer(name) && dtype.is_some_and(|dtype| loses_digits(dtype, stored))
    };
    let num_tensors = source.names().filter(is_wider).count();
    if written.is_none() && num_tensors > 0 {
        let first = source.names().find(is_wider).and_then(|name| source.meta(name));
        notes.push(SourceNote::MixedDtypes {
            num_tensors,
            stored: first.map_or("another type", |meta| meta.dtype.name()).to_owned(),
            written: stored.name().to_owned(),
        });
    }
    Ok(notes)
}

/// Whether rounding to `to` can change a number.
fn loses_digits(from: DType, to: DType) -> bool {
    from != to && to != DType::F32 && matches!(from, DType::F32 | DType::F16 | DType::BF16)
}

/// Buffers that are recomputed, by their names in a layer.
pub(super) fn of_buffers(source: &dyn TensorSource, used: &[&str]) -> Option<SourceNote> {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for name in source.names().filter(|name| is_buffer(name) && !used.contains(name)) {
        let parts: Vec<&str> =
            name.split('.').filter(|part| !part.bytes().all(|byte| byte.is_ascii_digit())).collect();
        let what = format!("`{}`", parts[parts.len().saturating_sub(2)..].join("."));
        match groups.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => groups.push((what, 1)),
        }
    }
    (!groups.is_empty()).then_some(SourceNote::UnusedTensors { groups })
}
