//! What windows save of the KV cache, as `aligner-gen inspect` says it.

use model_core::{BLOCK_SIZE_TOKENS, ModelConfig, RawModelConfig};
use model_spec::{Float, KvFormat, KvTables, ModelSpec, blocks_for};
use nemo_format::Checkpoint;

use crate::table::{human_bytes, thousands};

/// None without windows that are shorter than sequences, and where the configuration cannot be read: a job says why.
pub(super) fn line(checkpoint: &Checkpoint) -> Option<String> {
    let raw: RawModelConfig = checkpoint.model_config().deserialize_into().ok()?;
    let config = ModelConfig::try_from(raw).ok()?;
    let text = text(&config.spec_of(checkpoint.tensors()), config.encoder_seq_length)?;
    Some(format!("windows      {text}"))
}

/// Of sequences of up to `longest_tokens`.
fn text(model: &ModelSpec, longest_tokens: usize) -> Option<String> {
    let tables = model.kv_tables(longest_tokens);
    if tables == KvTables::ONE {
        return None;
    }
    let token_blocks = blocks_for(longest_tokens, BLOCK_SIZE_TOKENS);
    let bytes = |tables: KvTables| {
        let groups = model.kv_groups_in(tables);
        let of_block = groups.iter().map(|group| group.bytes_per_block(KvFormat::Float(Float::Bf16)));
        of_block.sum::<u64>().saturating_mul(tables.num_blocks_of(token_blocks) as u64)
    };
    let attentions = || model.layers.iter().filter_map(|layer| layer.attention.as_ref());
    let num_windowed = attentions().filter(|of| of.local_tokens.is_some()).count();
    Some(format!(
        "{num_windowed} of {} layers see {} tokens: in bf16 a sequence of {} takes {} of the KV cache instead of {}",
        attentions().count(),
        thousands(tables.window_tokens as u64),
        thousands(longest_tokens as u64),
        human_bytes(bytes(tables)),
        human_bytes(bytes(KvTables::ONE)),
    ))
}

#[cfg(test)]
mod tests {
    use model_spec::TableRows;
    use serde_json::json;

    use super::*;

    /// Gemma 2 9B.
    #[test]
    fn the_line_says_what_a_long_sequence_takes() {
        let config = json!({
            "num_layers": 42, "hidden_size": 3584, "ffn_hidden_size": 14336, "num_attention_heads": 16,
            "num_query_groups": 8, "kv_channels": 256, "encoder_seq_length": 8192,
            "window_size": [4095, 0], "window_attn_skip_freq": 2
        });
        let raw: RawModelConfig = serde_json::from_value(config).unwrap();
        let model = ModelConfig::try_from(raw).unwrap().spec(TableRows { vocab: 256_000, positions: 0 });
        insta::assert_snapshot!(text(&model, 8192).unwrap(), @"21 of 42 layers see 4,096 tokens: in bf16 a sequence of 8,192 takes 2.1 GB of the KV cache instead of 2.8 GB");
        assert_eq!(text(&model, 4096), None);
    }
}
