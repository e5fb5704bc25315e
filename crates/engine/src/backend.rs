//! What the engine needs of a model and its cache, as one object.
//!
//! Tests put a fake in its place that sees every block that is written, read and copied.

use model_core::{BlockId, CausalLm, DecodeBatch, KvCache, ModelError, PrefillBatch};
use tch::Tensor;

/// A model with its KV cache.
pub(crate) trait Backend: Send {
    /// float32 `[num_seqs, padded_vocab_size]`: logits after each prompt.
    fn prefill(&mut self, batch: &PrefillBatch) -> Result<Tensor, ModelError>;

    /// float32 `[num_seqs, padded_vocab_size]`: logits after each new token.
    fn decode(&mut self, batch: &DecodeBatch) -> Result<Tensor, ModelError>;

    /// Copies whole blocks of every layer, `(source, destination)`.
    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ModelError>;
}

/// A real model and its cache.
pub(crate) struct CachedModel {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) cache: KvCache,
}

impl Backend for CachedModel {
    fn prefill(&mut self, batch: &PrefillBatch) -> Result<Tensor, ModelError> {
        self.model.prefill(batch, &mut self.cache)
    }

    fn decode(&mut self, batch: &DecodeBatch) -> Result<Tensor, ModelError> {
        self.model.decode(batch, &mut self.cache)
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        self.cache.copy_blocks(copies)
    }
}
