//! Qwen 2, 2.5 and 3, dense.
//!
//! Read from transformers' `Qwen2Config` and `Qwen3Config`, which share the keys of windows and their defaults.

use model_spec::LocalLayers;

use super::{listed_layers, llama};
use crate::FormatError;
use crate::convert::arch::{ModelArch, size};
use crate::convert::family::Family;
use crate::huggingface::HfConfig;

/// Llama with biases of queries, keys and values (2), or with norms of query and key heads (3).
pub(super) fn qwen(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, family)?;
    arch.model.attention.local = windows(config, arch.model.num_layers)?;
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

/// The layers with a window: those from `max_window_layers` on, where `use_sliding_window` is true; newer files list them.
/// All keys are asked for, whichever of them count.
fn windows(config: &HfConfig, num_layers: usize) -> Result<Option<LocalLayers>, FormatError> {
    let is_used = config.bool("use_sliding_window")?.unwrap_or(false);
    let default_window = (!config.mentions("sliding_window")).then_some(4096);
    let window = config.u64(&["sliding_window"])?.or(default_window).filter(|_| is_used);
    let num_full = config.u64(&["max_window_layers"])?.unwrap_or(28);
    let is_local: Vec<bool> = if config.has("layer_types") {
        listed_layers(config, num_layers)?
    } else {
        (0..num_layers as u64).map(|layer| layer >= num_full).collect()
    };
    match (window, is_local.contains(&true)) {
        (_, false) => Ok(None),
        (None, true) if !config.has("layer_types") => Ok(None),
        (Some(tokens @ 1..), true) => {
            Ok(Some(LocalLayers { tokens: size(tokens), is_local, rotary_base: None }))
        }
        _ => {
            let hint = "transformers has no window for them: set `use_sliding_window` and `sliding_window`, or list \
                        `full_attention`";
            Err(config.unsupported("`layer_types` with `sliding_attention` without a window", hint))
        }
    }
}
