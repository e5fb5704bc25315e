//! What one step asks of the model: tokens of many sequences, each with its place in the cache.
//!
//! A [`Batch`] is plain data of the host. Prefill, chunks of a prompt, decoding and verification of drafted tokens differ
//! only in the numbers of their [`Span`]s, and may be mixed.

use tch::Tensor;

use crate::BlockId;

/// The tokens of one sequence in a step.
///
/// | span | `context_len` | `query_len` | `num_logits` |
/// | --- | --- | --- | --- |
/// | a whole prompt | 0 | its length | 1 |
/// | a chunk of a prompt, not the last | tokens before it | its length | 0 |
/// | a decoded token | tokens before it | 1 | 1 |
/// | drafted tokens to verify | tokens before them | 1 + drafts | 1 + drafts |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens of the sequence that are cached already, which is also the position of the span's first one.
    pub context_len: u32,
    /// Tokens of this step, at least 1. Their keys and values are cached by it.
    pub query_len: u32,
    /// How many of them, counted from the last, get logits; at most `query_len`.
    pub num_logits: u32,
    /// Entries of the sequence in [`Batch::block_tables`], enough for `context_len + query_len` tokens.
    pub num_blocks: u32,
}

/// The tokens of one step, packed one span after the other without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[num_tokens]`.
    pub tokens: Vec<u32>,
    /// The sequences, in the order of their tokens; no sequence twice.
    pub spans: Vec<Span>,
    /// The KV blocks of all spans, one span after the other. Where the cache has several tables, a span has for its first
    /// tokens a block of every table, then for the next ones. Nobody reads what stands for blocks that a window has passed,
    /// but they must be some of the cache's.
    pub block_tables: Vec<BlockId>,
}

impl Batch {
    /// Adds a span: `tokens` behind `context_len` cached ones, in the blocks of `table`, with logits for the last
    /// `num_logits`.
    pub fn push(&mut self, tokens: &[u32], context_len: u32, num_logits: u32, table: &[BlockId]) {
        self.tokens.extend_from_slice(tokens);
        self.block_tables.extend_from_slice(table);
        let (query_len, num_blocks) = (tokens.len() as u32, table.len() as u32);
        self.spans.push(Span { context_len, query_len, num_logits, num_blocks });
    }

    /// Which tokens get logits, in order.
    pub fn logits_rows(&self) -> Vec<usize> {
        let mut rows = Vec::with_capacity(self.spans.len());
        let mut end = 0;
        for span in &self.spans {
            end += span.query_len as usize;
            rows.extend(end.saturating_sub(span.num_logits as usize)..end);
        }
        rows
    }
}

/// One token for each row of a table that lies on the model's device, so that the step can be recorded once and
/// replayed while the tokens stay there. The tensors are int32 and may have more rows than are computed.
#[derive(Clone, Copy, Debug)]
pub struct DeviceDecode<'a> {
    /// Rows to compute, from the first on.
    pub num_rows: usize,
    /// The newest token of each row: `[max_rows]`, below the padded vocabulary size.
    pub tokens: &'a Tensor,
    /// Tokens before it; negative where a row is not in use: `[max_rows]`.
    pub positions: &'a Tensor,
    /// KV blocks of every table of the cache: `[num_tables, max_rows, max_blocks_per_seq]`.
    pub block_tables: &'a Tensor,
    /// The first row of those that share a prompt with this one and stand one after the other, and how many blocks
    /// they share in the tables without a window: `[max_rows, 2]`. A row alone has its own number and 0.
    pub prefix_groups: &'a Tensor,
    /// Whether some rows are consecutive tokens of one sequence, as drafted tokens are. The keys and values of all rows
    /// are then cached before any of them attends.
    pub has_drafts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_of_the_last_tokens_of_each_span() {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3], 0, 1, &[7]);
        batch.push(&[4, 5], 30, 0, &[8, 9]);
        batch.push(&[6], 3, 1, &[2]);
        batch.push(&[7, 8, 9], 3, 3, &[2]);
        assert_eq!(batch.logits_rows(), [2, 5, 6, 7, 8]);
        assert_eq!(batch.spans[1], Span { context_len: 30, query_len: 2, num_logits: 0, num_blocks: 2 });
        assert_eq!(batch.block_tables, [7, 8, 9, 2, 2]);
    }
}
