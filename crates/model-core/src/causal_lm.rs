//! The trait through which everything above this crate runs a model.

use tch::Tensor;

use crate::config::ModelConfig;
use crate::{DecodeBatch, DecodeRows, KvCache, ModelError, Precision, PrefillBatch};

/// A decoder-only language model with its weights.
pub trait CausalLm: Send {
    /// The checked config.
    fn config(&self) -> &ModelConfig;

    /// What it computes in.
    fn precision(&self) -> Precision;

    /// Rows of the embedding table, which may exceed the tokenizer's vocabulary.
    fn padded_vocab_size(&self) -> usize;

    /// Number of parameters, a shared output layer counted once.
    fn num_params(&self) -> u64;

    /// Memory that the weights take.
    fn weight_bytes(&self) -> u64;

    /// A cache of this many blocks, in the layout that this model's kernels use.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn new_cache(&mut self, num_blocks: usize) -> Result<KvCache, ModelError>;

    /// Runs whole prompts and fills their blocks. The logits are float32 and have the rows that the batch asks for.
    ///
    /// # Errors
    /// When the batch contradicts itself, the cache or the model, or the device fails.
    fn prefill(&mut self, batch: &PrefillBatch, cache: &mut KvCache) -> Result<Tensor, ModelError>;

    /// Runs one token of each sequence: float32 `[num_seqs, padded_vocab_size]`.
    ///
    /// # Errors
    /// When the batch contradicts itself, the cache or the model, or the device fails.
    fn decode(&mut self, batch: &DecodeBatch, cache: &mut KvCache) -> Result<Tensor, ModelError>;

    /// Makes room for [`CausalLm::decode_rows`] with up to this many rows and blocks a row. Steps have the same bits with
    /// every number of rows from 32 up, and with every number up to the one returned, which may be 0.
    ///
    /// # Errors
    /// When the model does not compute on a device of its own, or that has no memory left.
    fn reserve_rows(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<usize, ModelError>;

    /// Enqueues one token of each row on the current stream: float32 `[num_rows, padded_vocab_size]`. Nothing in it
    /// waits for the device or depends on what the tables hold, so the step can be recorded.
    ///
    /// # Errors
    /// When the model does not compute on a device of its own, no room was made, or the device fails.
    fn decode_rows(&mut self, rows: &DecodeRows<'_>, cache: &mut KvCache) -> Result<Tensor, ModelError>;
}
