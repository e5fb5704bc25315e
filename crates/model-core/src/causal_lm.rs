//! The trait through which everything above this crate runs a model.

use model_spec::{KvTables, Numerics};
use tch::Tensor;

use crate::config::ModelConfig;
use crate::model_ranks::RankCheck;
use crate::{Batch, DeviceDecode, KvCache, ModelError};

/// A decoder-only language model with its weights.
pub trait CausalLm: Send {
    /// The checked config.
    fn config(&self) -> &ModelConfig;

    /// What it computes in, and what weights and cache are held in.
    fn numerics(&self) -> Numerics;

    /// Rows of the embedding table, which may exceed the tokenizer's vocabulary.
    fn padded_vocab_size(&self) -> usize;

    /// Number of parameters, a shared output layer counted once.
    fn num_params(&self) -> u64;

    /// Memory that the weights take.
    fn weight_bytes(&self) -> u64;

    /// Whether a token that is computed together with those before it in its sequence gets the bits that it gets in a step
    /// of its own. Only then may drafted tokens be verified.
    fn verifies_drafts(&self) -> bool;

    /// At multiples of how many tokens prompts may be cut into steps: the logits and the cache of a prompt then have the
    /// bits that they have when it is computed whole. None when prompts may not be cut.
    fn prompt_cut_tokens(&self) -> Option<usize>;

    /// A cache of this many blocks, in the layout that this model's kernels use, with one block table for a sequence.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn new_cache(&mut self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.new_cache_in(num_blocks, KvTables::ONE)
    }

    /// The same with these tables.
    ///
    /// # Errors
    /// When there is not enough memory, or there is no table for layers that see all tokens.
    fn new_cache_in(&mut self, num_blocks: usize, tables: KvTables) -> Result<KvCache, ModelError>;

    /// Computes the batch, caches its keys and values and returns logits, float32 `[num_logits, padded_vocab_size]`: a
    /// row for each token that [`Batch::logits_rows`] names, in that order.
    ///
    /// # Errors
    /// When the batch contradicts itself, the cache or the model, has a mixture of spans that this model's kernels do not
    /// compute, or the device fails.
    fn forward(&mut self, batch: &Batch, cache: &mut KvCache) -> Result<Tensor, ModelError>;

    /// Makes room for [`CausalLm::decode_on_device`] with up to this many rows and blocks a row. Returns n: results are
    /// bitwise identical for any batch of at most n or at least 32 rows (n = 0: no small-batch path).
    ///
    /// # Errors
    /// When the model does not compute on a device of its own, or that has no memory left.
    fn reserve_decode(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<usize, ModelError>;

    /// What tells whether the other ranks of the model came to all that was computed so far: to be asked when a step has
    /// ended on the device, before its results are used.
    fn rank_check(&self) -> RankCheck;

    /// What ranks exchange goes another way than from GPU to GPU: a sentence for each kind that does.
    fn detours(&self) -> Vec<&'static str>;

    /// Enqueues what [`CausalLm::decode_on_device`] with so many rows needs before it in a pipeline stage: the residual
    /// stream of the stage before. It may wait for that, so it is not recorded.
    ///
    /// # Errors
    /// When the stage before is lost, or the device fails.
    fn begin_decode(&mut self, num_rows: usize) -> Result<(), ModelError>;

    /// The same for what is behind it: the residual stream goes to the next stage.
    ///
    /// # Errors
    /// As [`CausalLm::begin_decode`].
    fn end_decode(&mut self, num_rows: usize) -> Result<(), ModelError>;

    /// Enqueues one token of each row on the current stream: float32 `[num_rows, padded_vocab_size]`. Nothing in it
    /// waits for the device or depends on what the tables hold, so the step can be recorded.
    ///
    /// # Errors
    /// When the model does not compute on a device of its own, no room was made, or the device fails.
    fn decode_on_device(
        &mut self,
        rows: &DeviceDecode<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError>;
}
