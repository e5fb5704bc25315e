//! The blocks of prompts and responses: how many they need, and which of them they share.
//!
//! A sequence has a block of every table for its first tokens, then for the next ones, and so on: a column for each block of
//! tokens. What a window has passed of the tables with one is given back.
//!
//! All responses of a request share the full columns of their prompt. The last, partly filled column is written by each of
//! them, so each gets a copy, except the last one to start, which takes it over.

use model_core::BlockId;
use model_spec::{KvTables, WINDOW_AHEAD_BLOCKS, blocks_for};

use crate::EngineLimits;
use crate::block_pool::{BlockPool, KvBlock};

/// Whole columns that a response gets beyond the one it writes next. With them all rows of a step go on for some time
/// without more, so that an executor's tables change rarely.
pub(crate) const GROW_AHEAD_BLOCKS: usize = WINDOW_AHEAD_BLOCKS;

/// The blocks of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeqBlocks {
    tables: KvTables,
    /// Column by column. Those of passed columns in tables with a window are not held any more and mean nothing.
    blocks: Vec<KvBlock>,
    /// Columns at the front that the window has passed.
    num_passed: usize,
}

impl SeqBlocks {
    /// `blocks` are held, column by column.
    pub(crate) fn new(tables: KvTables, blocks: Vec<KvBlock>) -> Self {
        Self { tables, blocks, num_passed: 0 }
    }

    /// The same, of whose first columns only the tables that keep all tokens have blocks that are held.
    pub(crate) fn with_passed(tables: KvTables, blocks: Vec<KvBlock>, num_passed: usize) -> Self {
        let num_passed = if tables.num_windowed > 0 { num_passed } else { 0 };
        Self { tables, blocks, num_passed }
    }

    pub(crate) fn num_columns(&self) -> usize {
        self.blocks.len() / self.tables.len()
    }

    /// Columns at the front that the window has passed.
    pub(crate) fn num_passed(&self) -> usize {
        self.num_passed
    }

    /// The blocks of each column.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &[KvBlock]> {
        self.blocks.chunks_exact(self.tables.len())
    }

    /// Adds new columns.
    pub(crate) fn extend(&mut self, blocks: Vec<KvBlock>) {
        self.blocks.extend(blocks);
    }

    /// What is held of the columns from `first` on.
    fn held_from(&self, first: usize) -> impl Iterator<Item = KvBlock> {
        let of_column = |(idx, column): (usize, &'_ [KvBlock])| {
            let num_held = if idx < self.num_passed { self.tables.num_full } else { self.tables.len() };
            column.iter().copied().take(num_held).collect::<Vec<_>>()
        };
        self.columns().enumerate().skip(first).flat_map(of_column)
    }

    /// All that is held, in order.
    pub(crate) fn held(&self) -> Vec<KvBlock> {
        self.held_from(0).collect()
    }

    /// How much is held of the columns from `first` on.
    pub(crate) fn num_held_from(&self, first: usize) -> usize {
        let num_passed = self.num_passed.saturating_sub(first);
        self.blocks.len().saturating_sub(first * self.tables.len()) - num_passed * self.tables.num_windowed
    }

    /// Where the columns from `first` on lie, for an executor. Of what is not held it says some block of the cache: nobody
    /// reads it.
    pub(crate) fn table(&self, first: usize, pool: &BlockPool) -> Vec<BlockId> {
        let num_full = self.tables.num_full;
        let mut table = Vec::with_capacity(self.blocks.len().saturating_sub(first * self.tables.len()));
        for (idx, column) in self.columns().enumerate().skip(first) {
            let (held, passed) = column.split_at(if idx < self.num_passed { num_full } else { column.len() });
            table.extend(pool.table(held));
            table.extend(std::iter::repeat_n(BlockId::default(), passed.len()));
        }
        table
    }

    /// Gives back what nobody reads who computes the token at `position` or a later one; all is in use. Returns how many
    /// columns are passed now.
    pub(crate) fn pass(&mut self, position: usize, block_size_tokens: usize, pool: &mut BlockPool) {
        let Self { tables, blocks, num_passed } = self;
        let now_passed =
            tables.num_passed(position, block_size_tokens).min(blocks.len() / tables.len()).max(*num_passed);
        let columns = blocks.chunks_exact(tables.len()).take(now_passed).skip(*num_passed);
        let left: Vec<KvBlock> = columns.flat_map(|column| &column[tables.num_full..]).copied().collect();
        if !left.is_empty() {
            pool.release(&left);
        }
        *num_passed = now_passed;
    }
}

/// The blocks that a prompt was prefilled into.
#[derive(Debug)]
pub(crate) struct PromptBlocks {
    blocks: SeqBlocks,
    /// Columns that all responses share; there may be one more.
    num_full: usize,
}

impl PromptBlocks {
    /// `blocks` holds the prompt; all columns but the last are full.
    pub(crate) fn new(blocks: SeqBlocks, demand: &BlockDemand) -> Self {
        Self { num_full: blocks.num_columns() - demand.num_partial, blocks }
    }

    /// All that is held, in order.
    pub(crate) fn held(&self) -> Vec<KvBlock> {
        self.blocks.held()
    }

    /// Gives back what no response reads, whose first token stands at `position`.
    pub(crate) fn pass(&mut self, position: usize, block_size_tokens: usize, pool: &mut BlockPool) {
        self.blocks.pass(position, block_size_tokens, pool);
    }

    /// The blocks of one more response: full columns of the prompt shared, the partial one copied, `num_own` columns of its
    /// own. The prompt is in use.
    pub(crate) fn fork(&self, pool: &mut BlockPool, num_own: usize) -> Option<SeqBlocks> {
        let SeqBlocks { tables, ref blocks, num_passed } = self.blocks;
        let own = pool.allocate(num_own * tables.len())?;
        let (full, partial) = blocks.split_at(self.num_full * tables.len());
        let mut forked =
            SeqBlocks { tables, blocks: full.to_vec(), num_passed: num_passed.min(self.num_full) };
        pool.share(&forked.held());
        for (&from, &to) in partial.iter().zip(&own) {
            pool.copy(from, to);
        }
        forked.extend(own);
        Some(forked)
    }

    /// The blocks of the last response: it takes over everything the prompt holds, the partial column among its
    /// `num_own` own ones. None if there are too few.
    pub(crate) fn fork_last(&self, pool: &mut BlockPool, num_own: usize) -> Option<SeqBlocks> {
        let num_partial = self.blocks.num_columns() - self.num_full;
        let new = pool.allocate((num_own - num_partial.min(num_own)) * self.blocks.tables.len())?;
        let mut taken = self.blocks.clone();
        taken.extend(new);
        Some(taken)
    }
}

/// How many blocks a request needs at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockDemand {
    tables: KvTables,
    /// Columns of the prompt.
    num_full: usize,
    num_partial: usize,
    /// Columns of a response beyond the shared ones.
    num_own: usize,
    /// The most blocks at once of a table with a window: of the prompt, and of what is a response's own.
    prompt_window: usize,
    own_window: usize,
    /// Blocks of the prompt that others hold.
    num_held: usize,
}

impl BlockDemand {
    /// The worst case of responses of `max_new_tokens` to a prompt of `prompt_len_tokens`, of which at most `part_tokens` are
    /// computed at once.
    pub(crate) fn new(
        prompt_len_tokens: usize,
        max_new_tokens: u32,
        part_tokens: usize,
        limits: &EngineLimits,
    ) -> Self {
        let EngineLimits { tables, block_size_tokens, .. } = *limits;
        let num_full = prompt_len_tokens / block_size_tokens;
        let num_partial = usize::from(!prompt_len_tokens.is_multiple_of(block_size_tokens));
        // The last token of a response is never fed back, so it needs no room; a response of one token never
        // decodes.
        let num_own = match max_new_tokens {
            0 | 1 => 0,
            max_new => blocks_for(prompt_len_tokens + max_new as usize - 1, block_size_tokens) - num_full,
        };
        Self {
            tables,
            num_full,
            num_partial,
            num_own,
            prompt_window: tables.window_blocks(part_tokens, block_size_tokens),
            own_window: own_window(limits),
            num_held: 0,
        }
    }

    /// The same where others hold some of the prompt's blocks.
    pub(crate) fn without(self, num_held: usize) -> Self {
        Self { num_held, ..self }
    }

    /// Columns of the prompt.
    pub(crate) fn prompt_columns(&self) -> usize {
        self.num_full + self.num_partial
    }

    /// Blocks of the prompt.
    pub(crate) fn prompt(&self) -> usize {
        self.tables.num_blocks(self.prompt_columns(), self.prompt_window).saturating_sub(self.num_held)
    }

    /// Blocks of a response beyond the shared ones, a copy of the partial prompt column included.
    pub(crate) fn own(&self) -> usize {
        self.tables.num_blocks(self.num_own, self.own_window)
    }

    /// Columns that a response gets of its own when it starts.
    pub(crate) fn own_columns_at_start(&self) -> usize {
        self.num_own.min(1 + GROW_AHEAD_BLOCKS)
    }

    /// The blocks of these.
    pub(crate) fn own_at_start(&self) -> usize {
        self.own_columns_at_start() * self.tables.len()
    }

    /// New blocks that the last response gets when it starts.
    pub(crate) fn at_start_of_last(&self) -> usize {
        self.own_at_start().saturating_sub(self.num_partial * self.tables.len())
    }

    /// Columns of the prompt that all its responses share.
    pub(crate) fn shared_columns(&self) -> usize {
        self.num_full
    }

    /// Their blocks, but for those that others hold.
    pub(crate) fn shared(&self) -> usize {
        self.tables.num_blocks(self.num_full, self.own_window).saturating_sub(self.num_held)
    }

    /// Columns of a whole response, shared ones included.
    pub(crate) fn response_columns(&self) -> usize {
        self.num_full + self.num_own
    }

    /// New blocks that the last response to start needs: it takes the partial prompt column over.
    pub(crate) fn own_of_last(&self) -> usize {
        self.own().saturating_sub(self.num_partial * self.tables.len())
    }

    /// Blocks of a request whose `num_seqs` responses all run at once.
    pub(crate) fn total(&self, num_seqs: usize) -> usize {
        self.prompt() + num_seqs.saturating_sub(1) * self.own() + self.own_of_last()
    }

    /// The least that lets a request of `num_seqs` responses make progress: its prompt and one response.
    pub(crate) fn minimum(&self, num_seqs: usize) -> usize {
        if num_seqs > 1 { self.prompt() + self.own() } else { self.total(1) }
    }
}

/// The most blocks at once that are a response's own, of a table with a window.
pub(crate) fn own_window(limits: &EngineLimits) -> usize {
    limits.tables.window_blocks(1, limits.block_size_tokens) + GROW_AHEAD_BLOCKS
}

#[cfg(test)]
mod tests;
