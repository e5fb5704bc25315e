//! Models of 36 dimensions and any config, with made-up weights.

use model_core::{BlockStyle, ModelConfig, Normalization, PositionEmbedding, RawModelConfig};
use serde_json::{Value, json};

use super::MemorySource;

pub(crate) const VOCAB_SIZE: u64 = 50;

pub(crate) fn config(extra: &Value) -> ModelConfig {
    let mut keys = json!({
        "num_layers": 2, "hidden_size": 36, "ffn_hidden_size": 40, "num_attention_heads": 4, "kv_channels": 12,
        "encoder_seq_length": 48,
    });
    for (key, value) in extra.as_object().unwrap() {
        keys[key] = value.clone();
    }
    serde_json::from_value::<RawModelConfig>(keys).unwrap().try_into().unwrap()
}

/// Weights between -0.4 and 0.4 for a config of [`config`].
pub(crate) fn weights(config: &ModelConfig) -> MemorySource {
    made_up_weights(config, VOCAB_SIZE, 0.8)
}

/// Numbers in a range of this width (gains around what makes them neutral), from a fixed linear congruence.
pub(crate) fn made_up_weights(config: &ModelConfig, vocab_size: u64, width: f32) -> MemorySource {
    let mut source = MemorySource::default();
    let mut state = 12_345_u64;
    let mut add = |name: &str, shape: &[u64], centre: f32| {
        let values = (0..shape.iter().product::<u64>())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                centre + ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * width
            })
            .collect::<Vec<_>>();
        source.insert(name, shape, &values);
    };
    let hidden = config.hidden_size as u64;
    let gain_centre = if config.zero_centered_gamma { 0.0 } else { 1.0 };
    let has_norm_bias = config.normalization == Normalization::LayerNorm;
    add("model.embedding.word_embeddings.weight", &[vocab_size, hidden], 0.0);
    if config.position_embedding == PositionEmbedding::LearnedAbsolute {
        add("model.embedding.position_embeddings.weight", &[config.encoder_seq_length as u64, hidden], 0.0);
    }
    if !config.share_embeddings_and_output_weights {
        add("model.output_layer.weight", &[vocab_size, hidden], 0.0);
    }
    if config.output_layer_bias {
        add("model.output_layer.bias", &[vocab_size], 0.0);
    }
    add("model.decoder.final_layernorm.weight", &[hidden], gain_centre);
    if has_norm_bias {
        add("model.decoder.final_layernorm.bias", &[hidden], 0.0);
    }
    for layer in 0..config.num_layers {
        let linears = [
            ("self_attention.linear_qkv", config.qkv_size() as u64, hidden, config.qkv_bias),
            ("self_attention.linear_proj", hidden, config.query_size() as u64, config.bias),
            ("mlp.linear_fc1", config.fc1_size() as u64, hidden, config.bias),
            ("mlp.linear_fc2", hidden, config.ffn_hidden_size as u64, config.bias),
        ];
        for (module, out_features, in_features, has_bias) in linears {
            let prefix = format!("model.decoder.layers.{layer}.{module}");
            add(&format!("{prefix}.weight"), &[out_features, in_features], 0.0);
            if has_bias {
                add(&format!("{prefix}.bias"), &[out_features], 0.0);
            }
            let has_norm = module.ends_with("qkv")
                || module.ends_with("fc1") && config.block_style != BlockStyle::ParallelSharedNorm;
            if has_norm {
                add(&format!("{prefix}.layer_norm_weight"), &[hidden], gain_centre);
                if has_norm_bias {
                    add(&format!("{prefix}.layer_norm_bias"), &[hidden], 0.0);
                }
            }
        }
    }
    source
}
