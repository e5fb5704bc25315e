//! Layers of several kinds, as a search over architectures leaves them (Llama-Nemotron).

/// What one layer consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// In the place of attention.
    pub attention: AttentionBlock,
    /// In the place of the MLP.
    pub ffn: FfnBlock,
}

/// What a layer has in the place of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBlock {
    /// Attention with so many key and value heads.
    Attention {
        /// Key and value heads; they divide the query heads.
        num_query_groups: usize,
    },
    /// One linear layer as wide as the residual stream, behind the norm.
    Linear,
    /// Nothing, not even the norm.
    NoOp,
}

/// What a layer has in the place of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnBlock {
    /// An MLP of this width.
    Mlp {
        /// Of one half when gated.
        ffn_hidden_size: usize,
    },
    /// One linear layer as wide as the residual stream, behind the norm.
    Linear,
    /// Nothing, not even the norm.
    NoOp,
}
