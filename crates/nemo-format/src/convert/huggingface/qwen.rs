//! Qwen 2, 2.5 and 3, dense.
//!
//! Read from transformers' `Qwen2Config` and `Qwen3Config`, which share the keys of windows and their defaults.

use super::llama;
use crate::FormatError;
use crate::convert::arch::{ModelArch, size};
use crate::convert::family::Family;
use crate::huggingface::HfConfig;

/// Llama with biases of queries, keys and values (2), or with norms of query and key heads (3).
pub(super) fn qwen(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, family)?;
    refuse_qwen_windows(config, arch.model.num_layers as u64)?;
    if family == Family::Qwen3 {
        arch.set_head_dim(config.u64(&["head_dim"])?.unwrap_or(128));
    }
    // A null is as many as heads; 32 is the default of a key that is not there.
    let heads = &mut arch.model.heads;
    let default_groups = if config.mentions("num_key_value_heads") { heads.num_attention_heads } else { 32 };
    heads.num_query_groups = config.u64(&["num_key_value_heads"])?.map_or(default_groups, size);
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(32_768);
    Ok(arch)
}

/// A window counts in layers from `max_window_layers` on, where `use_sliding_window` is true; newer files list the layers.
/// All keys are asked for, whichever of them count.
fn refuse_qwen_windows(config: &HfConfig, num_layers: u64) -> Result<(), FormatError> {
    let is_used = config.bool("use_sliding_window")?.unwrap_or(false);
    let default_window = (!config.mentions("sliding_window")).then_some(4096);
    let window = config.u64(&["sliding_window"])?.or(default_window).filter(|_| is_used);
    let num_full = config.u64(&["max_window_layers"])?.unwrap_or(28);
    let hint = "attention over all earlier positions is computed in every layer; a model trained so has \
                `use_sliding_window: false`";
    if config.has("layer_types") {
        let kinds = config.texts("layer_types");
        if let Some(kind) = kinds.iter().find(|kind| **kind != "full_attention") {
            return Err(config.unsupported(&format!("`layer_types` with `{kind}`"), hint));
        }
        if kinds.len() as u64 != num_layers {
            return Err(config.bad(format!(
                "`layer_types` has {} entries and `num_hidden_layers` is {num_layers}",
                kinds.len()
            )));
        }
        return Ok(());
    }
    match window {
        Some(window) if num_full < num_layers => {
            let what = format!(
                "`use_sliding_window: true` with `sliding_window: {window}` from layer {num_full} on (`max_window_layers`)"
            );
            Err(config.unsupported(&what, hint))
        }
        _ => Ok(()),
    }
}
