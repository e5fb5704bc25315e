//! Who holds which KV block: reference counts, sharing of prompts, copy on write.
//!
//! It holds numbers only, no tensors. All responses of a request share the full blocks of their prompt. The
//! last, partly filled block is written by each of them, so each gets a copy, except the last one to start,
//! which takes it over.

use model_core::BlockId;
use model_spec::blocks_for;

use crate::plan::BlockCopy;

/// Whole blocks that a response gets beyond the one it writes next. With them all rows of a step go on for some time
/// without more, so that an executor's tables change rarely.
pub(crate) const GROW_AHEAD_BLOCKS: usize = 2;

/// The blocks of the cache: free ones, and how many holders the others have.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    ref_counts: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockAllocator {
    /// All of `num_blocks` blocks free.
    pub(crate) fn new(num_blocks: usize) -> Self {
        // Popped from the end, so that low blocks are used first.
        Self { ref_counts: vec![0; num_blocks], free: (0..num_blocks as BlockId).rev().collect() }
    }

    /// Free blocks.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks with one holder each, or none if there are too few.
    pub(crate) fn allocate(&mut self, num_blocks: usize) -> Option<Vec<BlockId>> {
        let blocks = self.free.split_off(self.free.len().checked_sub(num_blocks)?);
        for &block in &blocks {
            self.ref_counts[block as usize] = 1;
        }
        Some(blocks)
    }

    /// Adds a holder to each of `blocks`.
    pub(crate) fn share(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            self.ref_counts[block as usize] += 1;
        }
    }

    /// Takes a holder away from each of `blocks`; a block without one is free.
    pub(crate) fn release(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            self.ref_counts[block as usize] -= 1;
            if self.ref_counts[block as usize] == 0 {
                self.free.push(block);
            }
        }
    }

    /// The table of one more response: full prompt blocks shared, the partial one copied, `num_own` blocks of
    /// its own.
    pub(crate) fn fork(
        &mut self,
        prompt: &PromptBlocks,
        num_own: usize,
    ) -> Option<(Vec<BlockId>, Option<BlockCopy>)> {
        let own = self.allocate(num_own)?;
        self.share(&prompt.full);
        let copy = prompt.partial.zip(own.first().copied());
        Some(([prompt.full.as_slice(), own.as_slice()].concat(), copy))
    }

    /// The table of the last response: it takes over everything the prompt holds, the partial block among its
    /// `num_own` own ones. With too few free blocks the prompt comes back.
    pub(crate) fn fork_last(
        &mut self,
        prompt: PromptBlocks,
        num_own: usize,
    ) -> Result<Vec<BlockId>, PromptBlocks> {
        let num_new = num_own - usize::from(prompt.partial.is_some()).min(num_own);
        match self.allocate(num_new) {
            Some(new) => Ok([prompt.table(), new].concat()),
            None => Err(prompt),
        }
    }
}

/// The blocks that a prompt was prefilled into.
#[derive(Debug)]
pub(crate) struct PromptBlocks {
    full: Vec<BlockId>,
    partial: Option<BlockId>,
}

impl PromptBlocks {
    /// `blocks` holds the prompt in order; all but the last are full.
    pub(crate) fn new(mut blocks: Vec<BlockId>, demand: &BlockDemand) -> Self {
        let partial = if demand.num_partial > 0 { blocks.pop() } else { None };
        Self { full: blocks, partial }
    }

    /// All blocks in order.
    pub(crate) fn table(&self) -> Vec<BlockId> {
        self.full.iter().copied().chain(self.partial).collect()
    }
}

/// How many blocks a request needs at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockDemand {
    num_full: usize,
    num_partial: usize,
    num_own: usize,
}

impl BlockDemand {
    /// The worst case of responses of `max_new_tokens` to a prompt of `prompt_len_tokens`.
    pub(crate) fn new(prompt_len_tokens: usize, max_new_tokens: u32, block_size_tokens: usize) -> Self {
        let num_full = prompt_len_tokens / block_size_tokens;
        let num_partial = usize::from(!prompt_len_tokens.is_multiple_of(block_size_tokens));
        // The last token of a response is never fed back, so it needs no room; a response of one token never
        // decodes.
        let num_own = match max_new_tokens {
            0 | 1 => 0,
            max_new => blocks_for(prompt_len_tokens + max_new as usize - 1, block_size_tokens) - num_full,
        };
        Self { num_full, num_partial, num_own }
    }

    /// Blocks of the prompt.
    pub(crate) fn prompt(&self) -> usize {
        self.num_full + self.num_partial
    }

    /// Blocks of a response beyond the shared ones, a copy of the partial prompt block included.
    pub(crate) fn own(&self) -> usize {
        self.num_own
    }

    /// Those of them that a response gets when it starts.
    pub(crate) fn own_at_start(&self) -> usize {
        self.num_own.min(1 + GROW_AHEAD_BLOCKS)
    }

    /// Blocks of a whole response, shared ones included.
    pub(crate) fn of_response(&self) -> usize {
        self.num_full + self.num_own
    }

    /// New blocks that the last response to start needs: it takes the partial prompt block over.
    pub(crate) fn own_of_last(&self) -> usize {
        self.num_own.saturating_sub(self.num_partial)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_counts_whole_blocks() {
        let check = |prompt, new, expect: (usize, usize, usize)| {
            let demand = BlockDemand::new(prompt, new, 4);
            assert_eq!((demand.prompt(), demand.own(), demand.own_of_last()), expect, "{prompt} + {new}");
        };
        check(3, 1, (1, 0, 0));
        check(3, 2, (1, 1, 0));
        check(3, 3, (1, 2, 1));
        check(4, 2, (1, 1, 1));
        check(8, 5, (2, 1, 1));
        check(9, 4, (3, 1, 0));
        assert_eq!(BlockDemand::new(6, 10, 4).total(3), 2 + 3 + 3 + 2);
    }

    #[test]
    fn blocks_come_back_when_the_last_holder_leaves() {
        let mut allocator = BlockAllocator::new(3);
        let blocks = allocator.allocate(2).unwrap();
        assert!(allocator.allocate(2).is_none());
        allocator.share(&blocks);
        allocator.release(&blocks);
        assert_eq!(allocator.num_free(), 1);
        allocator.release(&blocks);
        assert_eq!(allocator.num_free(), 3);
    }

    #[test]
    fn forks_share_full_blocks_and_copy_the_partial_one() {
        let mut allocator = BlockAllocator::new(6);
        let demand = BlockDemand::new(6, 3, 4);
        let prompt = PromptBlocks::new(allocator.allocate(demand.prompt()).unwrap(), &demand);
        let prompt_table = prompt.table();
        let (first, copy) = allocator.fork(&prompt, demand.own()).unwrap();
        assert_eq!(first[0], prompt_table[0]);
        assert_eq!(copy, Some((prompt_table[1], first[1])));
        let last = allocator.fork_last(prompt, demand.own()).unwrap();
        assert_eq!(last, prompt_table);
        allocator.release(&first);
        allocator.release(&last);
        assert_eq!(allocator.num_free(), 6);
    }

    #[test]
    fn a_fork_that_does_not_fit_takes_nothing() {
        let mut allocator = BlockAllocator::new(3);
        let demand = BlockDemand::new(4, 9, 4);
        let prompt = PromptBlocks::new(allocator.allocate(2).unwrap(), &demand);
        assert!(allocator.fork(&prompt, demand.own()).is_none());
        let prompt = allocator.fork_last(prompt, demand.own()).unwrap_err();
        allocator.release(&prompt.table());
        assert_eq!(allocator.num_free(), 3);
    }
}
