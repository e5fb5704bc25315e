//! A response that decodes, or would if it were not preempted.

use model_spec::blocks_for;

use super::forecast::{Lengths, Span};
use crate::{
    EngineLimits,
    block_pool::BlockPool,
    block_table::SeqBlocks,
    plan::{GrownSeq, NewSeq, RowId, RowSpan, SeqId, TableDelta},
};

#[derive(Debug)]
pub(super) struct Seq {
    pub(super) id: SeqId,
    pub(super) blocks: SeqBlocks,
    /// Columns of them whose places the executor was told.
    pub(super) num_known_columns: usize,
    /// Those at the front that it shares with the other responses to its prompt.
    pub(super) num_shared_columns: usize,
    /// Those of them that another prompt had computed.
    pub(super) num_cached_columns: usize,
    pub(super) prompt_len_tokens: u32,
    /// Tokens in the cache after the steps whose tokens were reported.
    pub(super) context_len: u32,
    /// Tokens that steps in flight add.
    pub(super) in_flight: u32,
    /// Some of them are drafts: how many stay must be known before the next step.
    pub(super) is_verifying: bool,
    /// Tokens that it may have in the cache: all but the last it may be given.
    pub(super) max_context_len: u32,
    /// Columns for as many.
    pub(super) max_columns: usize,
    /// The most blocks of its own that it has at once.
    pub(super) max_own_blocks: usize,
    /// What was known of its length beforehand.
    pub(super) expected_tokens: Option<u32>,
}

impl Seq {
    /// Tokens in the cache after its next step; none if all that it may have are in flight, or how many it has is not known.
    pub(super) fn next_len(&self) -> Option<u32> {
        let context_len = self.context_len + self.in_flight;
        (!self.is_verifying && context_len < self.max_context_len).then_some(context_len + 1)
    }

    /// Whether it may be in another step.
    pub(super) fn goes_on(&self) -> bool {
        self.next_len().is_some()
    }

    /// Columns that it has too few for its next step and `ahead` blocks' tokens after it.
    pub(super) fn num_missing_columns(&self, ahead: usize, block_size_tokens: usize) -> usize {
        let Some(next_len) = self.next_len() else { return 0 };
        let wanted = (blocks_for(next_len as usize, block_size_tokens) + ahead).min(self.max_columns);
        wanted.saturating_sub(self.blocks.num_columns())
    }

    /// Blocks that it may still get: what it has of its own may become this much more.
    pub(super) fn num_promised_blocks(&self) -> usize {
        self.max_own_blocks.saturating_sub(self.blocks.num_held_from(self.num_shared_columns))
    }

    /// Gives back what its next step does not read any more.
    pub(super) fn pass_window(&mut self, block_size_tokens: usize, pool: &mut BlockPool) {
        if let Some(next_len) = self.next_len() {
            self.blocks.pass(next_len as usize - 1, block_size_tokens, pool);
        }
    }

    /// Its row in the next step, which is in flight from then on.
    pub(super) fn step(&mut self) -> Option<RowSpan> {
        let context_len = self.next_len()? - 1;
        self.in_flight += 1;
        Some(RowSpan { id: RowId::Response(self.id), context_len, query_len: 1, draws: 1 })
    }

    /// Tells the executor what it does not know of the blocks.
    pub(super) fn tell(&mut self, pool: &BlockPool, tables: &mut TableDelta) {
        let Self { id, num_known_columns, .. } = *self;
        if num_known_columns == 0 {
            tables.started.push(NewSeq { id, block_table: self.blocks.table(0, pool) });
        } else if num_known_columns < self.blocks.num_columns() {
            tables.grown.push(GrownSeq { id, new_blocks: self.blocks.table(num_known_columns, pool) });
        }
        self.num_known_columns = self.blocks.num_columns();
    }

    /// Tokens that it has, those in flight not counted.
    pub(super) fn num_tokens(&self) -> u32 {
        self.context_len + 1 - self.prompt_len_tokens
    }

    /// The blocks that are its own, as long as it is expected to go on. `known`: how many tokens it is likely to have.
    pub(super) fn expected_span(&self, lengths: Lengths, known: Option<u32>, limits: &EngineLimits) -> Span {
        let context_len = self.context_len + self.in_flight;
        let num_generated = context_len + 1 - self.prompt_len_tokens;
        let max_new_tokens = self.max_context_len + 1 - self.prompt_len_tokens;
        let num_left = lengths.expected(num_generated, max_new_tokens, known).saturating_sub(num_generated);
        let num_columns = blocks_for(context_len as usize + 1, limits.block_size_tokens);
        let num_own = num_columns - num_columns.min(self.num_shared_columns);
        Span::of_response(limits, num_own, num_left as usize / limits.block_size_tokens)
    }
}
