//! The paged KV cache: blocks of tokens, found through block tables.

/// Index of a block in the cache.
pub type BlockId = u32;

/// Keys and values of all layers, in blocks of [`KvCache::block_size_tokens`] tokens.
#[derive(Debug)]
pub struct KvCache {
    num_blocks: usize,
    block_size_tokens: usize,
}

impl KvCache {
    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens in a block.
    pub fn block_size_tokens(&self) -> usize {
        self.block_size_tokens
    }

    /// Copies whole blocks of every layer, `(source, destination)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn copy_blocks(&mut self, _pairs: &[(BlockId, BlockId)]) -> Result<(), crate::ModelError> {
        Ok(())
    }
}
