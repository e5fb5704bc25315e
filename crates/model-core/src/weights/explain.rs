//! Why a tensor that the checkpoint lacks is needed, and what one that nobody asked for means.

use std::collections::BTreeSet;

use nemo_format::TensorSource;

use crate::config::{BlockStyle, ModelConfig, Normalization, PositionEmbedding};

const LAYERS: &str = "model.decoder.layers.";

/// What the config says that makes a missing tensor necessary.
pub(super) fn needed_because(name: &str, config: &ModelConfig, source: &dyn TensorSource) -> String {
    let num_layers = stored_layers(source);
    if let Some(layer_idx) = layer_of(name)
        && layer_idx >= num_layers
    {
        return format!(
            "`num_layers: {}` needs it, and the checkpoint has {num_layers} layers",
            config.num_layers
        );
    }
    if name.ends_with("output_layer.bias") {
        "`output_layer_bias: true` needs it".to_owned()
    } else if name.ends_with("output_layer.weight") {
        "`share_embeddings_and_output_weights: false` needs it".to_owned()
    } else if name.ends_with("position_embeddings.weight") {
        "`position_embedding_type: learned_absolute` needs it".to_owned()
    } else if name.ends_with("norm_bias") || name.ends_with("layernorm.bias") {
        "`normalization: layernorm` needs it, `rmsnorm` has none".to_owned()
    } else if name.ends_with("linear_qkv.bias") && !config.bias {
        "`qkv_bias: true` needs it".to_owned()
    } else if name.ends_with(".bias") {
        "`bias: true` needs it".to_owned()
    } else if name.ends_with("linear_fc1.layer_norm_weight") {
        match config.block_style {
            BlockStyle::ParallelOwnNorm => "`new_decoder_architecture: true` needs it",
            _ => "a block without `parallel_attention` needs it",
        }
        .to_owned()
    } else {
        "every model of this kind has it".to_owned()
    }
}

/// What the config would have to say for the first of these tensors to be used.
pub(super) fn unknown_because(names: &[&str], config: &ModelConfig) -> String {
    let Some(&name) = names.first() else { return String::new() };
    let has = |part: &str| name.contains(part);
    if has(".experts.") || has(".router.") {
        return "a mixture of experts is not supported: use a dense checkpoint".to_owned();
    }
    if has("adapter") || has("lora") {
        return "adapters are not supported: merge them into the weights first".to_owned();
    }
    if has("q_layernorm") || has("k_layernorm") {
        return "norms of queries and keys are not supported: use a checkpoint trained without `qk_layernorm`"
            .to_owned();
    }
    let setting = if layer_of(name).is_some_and(|layer_idx| layer_idx >= config.num_layers) {
        format!("a larger `num_layers` than {}", config.num_layers)
    } else if name.ends_with("output_layer.weight") {
        "`share_embeddings_and_output_weights: false`".to_owned()
    } else if name.ends_with("output_layer.bias") {
        "`output_layer_bias: true`".to_owned()
    } else if name.ends_with("position_embeddings.weight") {
        "`position_embedding_type: learned_absolute`".to_owned()
    } else if has("linear_fc1.layer_norm_") && config.block_style == BlockStyle::ParallelSharedNorm {
        "`new_decoder_architecture: true`".to_owned()
    } else if (has("layer_norm_bias") || name.ends_with("layernorm.bias"))
        && config.normalization == Normalization::RmsNorm
    {
        "`normalization: layernorm`".to_owned()
    } else if name.ends_with(".bias") {
        "`bias: true`, or `qkv_bias: true` for those of `linear_qkv` alone".to_owned()
    } else {
        let position = match config.position_embedding {
            PositionEmbedding::Rope(_) => "rope",
            PositionEmbedding::LearnedAbsolute => "learned_absolute",
        };
        return format!(
            "no GPT with `position_embedding_type: {position}` has it: use the model config of this checkpoint"
        );
    };
    format!("the first is used with {setting}: correct the model config if that is what the model is")
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
}

fn stored_layers(source: &dyn TensorSource) -> usize {
    source.names().filter_map(layer_of).collect::<BTreeSet<_>>().len()
}
