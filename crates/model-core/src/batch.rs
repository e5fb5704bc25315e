//! What one step of the engine asks of the model.

use crate::BlockId;

/// Which rows of logits a prefill returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsRows {
    /// Of each sequence's last token: `[num_seqs, padded_vocab_size]`.
    Last,
    /// Of every token: `[num_tokens, padded_vocab_size]`.
    All,
}

/// Whole prompts, packed one after the other without padding. Every sequence starts at position 0.
#[derive(Clone, Debug)]
pub struct PrefillBatch {
    /// All tokens, `[num_tokens]`.
    pub tokens: Vec<u32>,
    /// Where each sequence starts, and the end: `[num_seqs + 1]`, from 0 to `num_tokens`.
    pub cu_seqlens: Vec<u32>,
    /// The KV blocks of each sequence, enough for its tokens: `[num_seqs]`.
    pub block_tables: Vec<Vec<BlockId>>,
    /// Which logits to return.
    pub logits: LogitsRows,
}

/// One new token for each of many sequences.
#[derive(Clone, Debug)]
pub struct DecodeBatch {
    /// The newest token of each sequence, whose keys and values are not cached yet: `[num_seqs]`.
    pub tokens: Vec<u32>,
    /// Tokens of each sequence before it, which is also its position: `[num_seqs]`.
    pub context_lens: Vec<u32>,
    /// The KV blocks of each sequence, enough for `context_len + 1` tokens: `[num_seqs]`.
    pub block_tables: Vec<Vec<BlockId>>,
}
