//! The axes of weights, by what the config says of them: a shape that does not fit can then be explained.

use crate::config::ModelConfig;

/// One axis of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// The residual stream.
    Hidden,
    /// The MLP's inner width.
    Ffn,
    /// Outputs of `linear_fc1`.
    Fc1,
    /// Outputs of `linear_qkv`.
    Qkv,
    /// Inputs of `linear_proj`.
    Query,
    /// Rows of the embedding table, as the checkpoint has them.
    Vocab(u64),
    /// Rows of the position table, as the checkpoint has them.
    Positions(u64),
}

impl Axis {
    pub(super) fn size(self, config: &ModelConfig) -> u64 {
        match self {
            Self::Hidden => config.hidden_size as u64,
            Self::Ffn => config.ffn_hidden_size as u64,
            Self::Fc1 => config.fc1_size() as u64,
            Self::Qkv => config.qkv_size() as u64,
            Self::Query => config.query_size() as u64,
            Self::Vocab(rows) | Self::Positions(rows) => rows,
        }
    }

    /// What the size follows from.
    fn origin(self, config: &ModelConfig) -> String {
        let heads = config.num_attention_heads;
        match self {
            Self::Hidden => format!("`hidden_size: {}`", config.hidden_size),
            Self::Ffn => format!("`ffn_hidden_size: {}`", config.ffn_hidden_size),
            Self::Fc1 if config.activation.gated => {
                format!("`ffn_hidden_size: {}` with a gated `activation`", config.ffn_hidden_size)
            }
            Self::Fc1 => {
                format!("`ffn_hidden_size: {}` without a gated `activation`", config.ffn_hidden_size)
            }
            Self::Qkv => format!(
                "`num_attention_heads: {heads}`, `num_query_groups: {}` and `kv_channels: {}`",
                config.num_query_groups, config.kv_channels
            ),
            Self::Query => {
                format!("`num_attention_heads: {heads}` and `kv_channels: {}`", config.kv_channels)
            }
            Self::Vocab(rows) => {
                format!("the {rows} rows of `model.embedding.word_embeddings.weight`, which is padded alike")
            }
            Self::Positions(rows) => {
                format!("the {rows} rows of `model.embedding.position_embeddings.weight`")
            }
        }
    }
}

pub(super) fn shape(axes: &[Axis], config: &ModelConfig) -> Vec<u64> {
    axes.iter().map(|axis| axis.size(config)).collect()
}

/// What the axes that do not fit follow from; all of them, when even their number is another.
pub(super) fn contradicted(axes: &[Axis], config: &ModelConfig, actual: &[u64]) -> String {
    let mut origins: Vec<String> = Vec::new();
    for (idx, axis) in axes.iter().enumerate() {
        let fits = actual.len() == axes.len() && actual.get(idx) == Some(&axis.size(config));
        let origin = axis.origin(config);
        if !fits && !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    origins.join(" and ")
}
