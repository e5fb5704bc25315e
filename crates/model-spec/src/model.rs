//! The whole model, and the kind that a configuration of NeMo states: every layer alike.

use std::sync::Arc;

use crate::{
    Activation, AttentionSpec, AttentionWindow, BlockStyle, FfnSpec, HeadLayout, LayerSpec, MlpSpec,
    NormSpec, PositionEmbedding,
};

/// A model: what its tensors, its cache and its arithmetic follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding table, padding included.
    pub padded_vocab_size: u64,
    /// Rows of the table of learned positions, where there is one.
    pub learned_positions: Option<u64>,
    /// Embeddings are multiplied by the root of the hidden size.
    pub apply_embedding_scaling: bool,
    /// The layers in order.
    pub layers: Arc<[LayerSpec]>,
    /// The norm behind the last layer.
    pub final_norm: NormSpec,
    /// The output layer.
    pub output: OutputSpec,
}

/// The layer that makes logits of the last norm's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Its weight is the embedding table (`share_embeddings_and_output_weights`).
    pub tied: bool,
    /// It has a bias (`output_layer_bias`), which GPT-J has.
    pub bias: bool,
}

/// Sizes that a checkpoint's tables have and its configuration does not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRows {
    /// Rows of the embedding table.
    pub vocab: u64,
    /// Rows of the table of learned positions; unused where positions are not learned.
    pub positions: u64,
}

/// A model whose layers are all alike, as NeMo's configuration and that of transformers state it.
#[derive(Clone, Debug, PartialEq)]
pub struct UniformSpec {
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP, of one half when gated.
    pub ffn_hidden_size: usize,
    /// Query, key and value heads.
    pub heads: HeadLayout,
    /// How attention and the MLP of a layer are joined.
    pub block_style: BlockStyle,
    /// Every norm.
    pub norm: NormSpec,
    /// The function of the MLP.
    pub activation: Activation,
    /// Biases on the linear layers other than `linear_qkv`.
    pub bias: bool,
    /// A bias on `linear_qkv`.
    pub qkv_bias: bool,
    /// Queries and keys have a norm per head, of the kind of all others.
    pub qk_layernorm: bool,
    /// How positions enter.
    pub position_embedding: PositionEmbedding,
    /// How far attention reaches back, where that is not everywhere.
    pub window: Option<AttentionWindow>,
    /// Embeddings are multiplied by the root of the hidden size.
    pub apply_embedding_scaling: bool,
    /// The output layer.
    pub output: OutputSpec,
}

impl UniformSpec {
    /// The model, with tables of these sizes.
    pub fn spec(&self, rows: TableRows) -> ModelSpec {
        let (rotary, learned_positions) = match self.position_embedding {
            PositionEmbedding::Rope(rotary) => (Some(rotary), None),
            PositionEmbedding::LearnedAbsolute => (None, Some(rows.positions)),
        };
        let layer = LayerSpec {
            attention: Some(AttentionSpec {
                heads: self.heads,
                norm: self.norm,
                qkv_bias: self.qkv_bias,
                proj_bias: self.bias,
                qk_norm: self.qk_layernorm.then_some(self.norm),
                rotary,
                window: self.window,
                softcap: None,
                scale: self.heads.default_scale(),
            }),
            ffn: Some(FfnSpec::Dense(MlpSpec {
                ffn_hidden_size: self.ffn_hidden_size,
                activation: self.activation,
                norm: self.norm,
                bias: self.bias,
            })),
            join: self.block_style,
        };
        ModelSpec {
            hidden_size: self.hidden_size,
            padded_vocab_size: rows.vocab,
            learned_positions,
            apply_embedding_scaling: self.apply_embedding_scaling,
            layers: vec![layer; self.num_layers].into(),
            final_norm: self.norm,
            output: self.output,
        }
    }
}
