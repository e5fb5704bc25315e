//! The trait through which the engine runs a model.

use tch::Tensor;

use crate::{DecodeBatch, KvCache, ModelConfig, ModelError, PrefillBatch};

/// A causal language model with a paged KV cache.
pub trait CausalLm: Send {
    /// The architecture.
    fn config(&self) -> &ModelConfig;

    /// An empty cache of `num_blocks` blocks on the model's device.
    ///
    /// # Errors
    /// When the device has no room for it.
    fn new_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError>;

    /// Logits after each prompt's last token: float32 `[num_seqs, padded_vocab_size]`.
    ///
    /// # Errors
    /// When the batch does not fit the cache or the device fails.
    fn prefill(&mut self, batch: &PrefillBatch, cache: &mut KvCache) -> Result<Tensor, ModelError>;

    /// Logits after each new token: float32 `[num_seqs, padded_vocab_size]`.
    ///
    /// # Errors
    /// When the batch does not fit the cache or the device fails.
    fn decode(&mut self, batch: &DecodeBatch, cache: &mut KvCache) -> Result<Tensor, ModelError>;
}
