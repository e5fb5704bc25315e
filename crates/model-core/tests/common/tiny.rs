//! Models of 36 dimensions and any config, with made-up weights.

use model_core::{ModelConfig, RawModelConfig};
use model_spec::{Part, TableRows};
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
    let gain_centre = if config.uniform.norm.zero_centered_gamma { 0.0 } else { 1.0 };
    let rows = TableRows { vocab: vocab_size, positions: config.encoder_seq_length as u64 };
    for tensor in config.spec(rows).tensors() {
        let is_gain = tensor.id.module.is_norm() && tensor.id.part == Part::Weight;
        add(&tensor.name, &tensor.shape(), if is_gain { gain_centre } else { 0.0 });
    }
    source
}
