//! The architecture of a model.

/// What the forward pass needs to know about a model.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Width of the logits: the vocabulary with its padding.
    pub padded_vocab_size: usize,
}
