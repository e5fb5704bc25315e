//! The whole model, and the kind that a configuration of NeMo states: every layer alike.

use std::sync::Arc;

use crate::{
    Activation, AttentionBlock, AttentionSpec, AttentionWindow, Block, BlockStyle, FfnBlock, FfnSpec,
    HeadLayout, LayerSpec, MlpSpec, MoeLayers, MoeSpec, NormSpec, PositionEmbedding,
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
    /// What embeddings and logits are multiplied by.
    pub multipliers: Multipliers,
}

/// Numbers that a model multiplies by, where it does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Multipliers {
    /// Embeddings.
    pub embedding: Option<f64>,
    /// Outputs of attention and MLP, before they are added to the residual stream.
    pub residual: Option<f64>,
    /// Logits.
    pub logits: Option<f64>,
}

/// The layer that makes logits of the last norm's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutputSpec {
    /// Its weight is the embedding table (`share_embeddings_and_output_weights`).
    pub tied: bool,
    /// It has a bias (`output_layer_bias`), which GPT-J has.
    pub bias: bool,
    /// Logits become `softcap * tanh(logit / softcap)`.
    pub softcap: Option<f64>,
}

/// What attention of a model does otherwise than most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionRule {
    /// What products of queries and keys are multiplied by, where that is not [the usual](HeadLayout::default_scale).
    pub scale: Option<f64>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// The layers that see a part of what is before them.
    pub local: Option<LocalLayers>,
    /// The norms of queries and keys, where there are any, are over all heads of a token together.
    pub norm_across_heads: bool,
    /// The norms of queries and keys have gains of their own for every head.
    pub norm_per_head: bool,
    /// See [`AttentionSpec::has_sinks`].
    pub has_sinks: bool,
}

/// Layers that see a part of what is before them.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalLayers {
    /// How many positions a row sees, itself among them.
    pub tokens: usize,
    /// For each layer, whether it is one of them.
    pub is_local: Vec<bool>,
    /// Their base of the rotation, without any scaling, where it is not that of the other layers.
    pub rotary_base: Option<f64>,
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
    /// The layers that have experts instead of that MLP.
    pub moe: Option<MoeLayers>,
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
    /// What attention does otherwise than most.
    pub attention: AttentionRule,
    /// The outputs of attention and MLP have a norm of the kind of all others.
    pub post_layernorms: bool,
    /// Embeddings are multiplied by the root of the hidden size.
    pub apply_embedding_scaling: bool,
    /// The output layer.
    pub output: OutputSpec,
    /// The inputs of attention and MLP have norms, as in all but OLMo 2.
    pub pre_layernorms: bool,
    /// What the model multiplies by.
    pub multipliers: Multipliers,
    /// What each layer consists of, where that is not the same.
    pub blocks: Option<Vec<Block>>,
}

impl LocalLayers {
    fn narrow(&self, attention: &mut AttentionSpec) {
        attention.local_tokens = Some(self.tokens);
        if let (Some(rotary_base), Some(rotary)) = (self.rotary_base, &mut attention.rotary) {
            rotary.rotary_base = rotary_base;
            rotary.seq_len_interpolation_factor = 1.0;
            rotary.rope_scaling = None;
            rotary.factors = None;
        }
    }
}

impl UniformSpec {
    /// The model, with tables of these sizes.
    pub fn spec(&self, rows: TableRows) -> ModelSpec {
        let (rotary, learned_positions) = match self.position_embedding {
            PositionEmbedding::Rope(rotary) => (Some(rotary), None),
            PositionEmbedding::LearnedAbsolute => (None, Some(rows.positions)),
        };
        let post_norm = self.post_layernorms.then_some(self.norm);
        let layer = LayerSpec {
            attention: Some(AttentionSpec {
                heads: self.heads,
                norm: self.norm,
                qkv_bias: self.qkv_bias,
                proj_bias: self.bias,
                qk_norm: self.qk_layernorm.then_some(self.norm),
                norm_across_heads: self.attention.norm_across_heads,
                norm_per_head: self.attention.norm_per_head,
                rotary,
                window: self.window,
                local_tokens: None,
                softcap: self.attention.softcap,
                scale: self.attention.scale.unwrap_or_else(|| self.heads.default_scale()),
                post_norm,
                has_sinks: self.attention.has_sinks,
            }),
            ffn: Some(FfnSpec::Dense(MlpSpec {
                ffn_hidden_size: self.ffn_hidden_size,
                activation: self.activation,
                norm: self.norm,
                bias: self.bias,
                post_norm,
            })),
            join: self.block_style,
            attention_linear: None,
            has_pre_norms: self.pre_layernorms,
            residual_multiplier: self.multipliers.residual,
        };
        let mut layers = vec![layer; self.num_layers];
        if let Some(local) = &self.attention.local {
            let is_local = local.is_local.iter().copied().chain(std::iter::repeat(false));
            let layers = layers.iter_mut().zip(is_local).filter(|(_, is_local)| *is_local);
            for attention in layers.filter_map(|(layer, _)| layer.attention.as_mut()) {
                local.narrow(attention);
            }
        }
        if let Some(moe) = &self.moe {
            let is_moe = moe.is_moe.iter().copied().chain(std::iter::repeat(false));
            for (layer, _) in layers.iter_mut().zip(is_moe).filter(|(_, is_moe)| *is_moe) {
                let (experts, activation, norm) = (moe.experts, self.activation, self.norm);
                layer.ffn = Some(FfnSpec::Moe(MoeSpec { experts, bias: self.bias, activation, norm }));
            }
        }
        for (layer, block) in layers.iter_mut().zip(self.blocks.iter().flatten()) {
            self.reshape(layer, *block);
        }
        ModelSpec {
            hidden_size: self.hidden_size,
            padded_vocab_size: rows.vocab,
            learned_positions,
            apply_embedding_scaling: self.apply_embedding_scaling,
            layers: layers.into(),
            final_norm: self.norm,
            output: self.output,
            multipliers: self.multipliers,
        }
    }

    /// Makes a layer what its block says.
    fn reshape(&self, layer: &mut LayerSpec, block: Block) {
        match (block.attention, &mut layer.attention) {
            (AttentionBlock::Attention { num_query_groups }, Some(attention)) => {
                attention.heads.num_query_groups = num_query_groups;
            }
            (AttentionBlock::Attention { .. }, None) => {}
            (AttentionBlock::Linear, attention) => {
                *attention = None;
                layer.attention_linear = Some(self.norm);
            }
            (AttentionBlock::NoOp, attention) => *attention = None,
        }
        match (block.ffn, &mut layer.ffn) {
            (FfnBlock::Mlp { ffn_hidden_size }, Some(FfnSpec::Dense(mlp))) => {
                mlp.ffn_hidden_size = ffn_hidden_size;
            }
            (FfnBlock::Mlp { .. }, _) => {}
            (FfnBlock::Linear, ffn) => *ffn = Some(FfnSpec::Linear(self.norm)),
            (FfnBlock::NoOp, ffn) => *ffn = None,
        }
    }
}
