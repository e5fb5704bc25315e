//! What one step of the engine asks of the model.

use tch::Tensor;

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

impl PrefillBatch {
    /// The tokens of one prompt.
    pub fn prompt(&self, prompt_idx: usize) -> Option<&[u32]> {
        let [start, end] = *self.cu_seqlens.get(prompt_idx..prompt_idx + 2)? else { return None };
        self.tokens.get(start as usize..end as usize)
    }
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

/// One new token for each row of a table that lies on the model's device, so that the step can be recorded once and
/// replayed while the tokens stay there. The tensors are int32 and may have more rows than are computed.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRows<'a> {
    /// Rows to compute, from the first on.
    pub num_rows: usize,
    /// The newest token of each row: `[max_rows]`, below the padded vocabulary size.
    pub tokens: &'a Tensor,
    /// Tokens before it; negative where a row is not in use: `[max_rows]`.
    pub positions: &'a Tensor,
    /// KV blocks: `[max_rows, max_blocks_per_seq]`.
    pub block_tables: &'a Tensor,
    /// The first row of those that share a prompt with this one and stand one after the other, and how many blocks
    /// they share: `[max_rows, 2]`. A row alone has its own number and 0.
    pub prefix_groups: &'a Tensor,
}
