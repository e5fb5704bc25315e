//! The blocks of prompts and responses: how many they need, and which of them they share.
//!
//! All responses of a request share the full blocks of their prompt. The last, partly filled block is written by each of
//! them, so each gets a copy, except the last one to start, which takes it over.

use model_spec::blocks_for;

use crate::block_pool::{BlockPool, KvBlock};

/// Whole blocks that a response gets beyond the one it writes next. With them all rows of a step go on for some time
/// without more, so that an executor's tables change rarely.
pub(crate) const GROW_AHEAD_BLOCKS: usize = 2;

/// The blocks that a prompt was prefilled into.
#[derive(Debug)]
pub(crate) struct PromptBlocks {
    full: Vec<KvBlock>,
    partial: Option<KvBlock>,
}

impl PromptBlocks {
    /// `blocks` holds the prompt in order; all but the last are full.
    pub(crate) fn new(mut blocks: Vec<KvBlock>, demand: &BlockDemand) -> Self {
        let partial = if demand.num_partial > 0 { blocks.pop() } else { None };
        Self { full: blocks, partial }
    }

    /// All blocks in order.
    pub(crate) fn blocks(&self) -> Vec<KvBlock> {
        self.full.iter().copied().chain(self.partial).collect()
    }

    /// The blocks of one more response: full prompt blocks shared, the partial one copied, `num_own` blocks of its own. The
    /// prompt is in use.
    pub(crate) fn fork(&self, pool: &mut BlockPool, num_own: usize) -> Option<Vec<KvBlock>> {
        let own = pool.allocate(num_own)?;
        pool.share(&self.full);
        if let (Some(partial), Some(&first)) = (self.partial, own.first()) {
            pool.copy(partial, first);
        }
        Some([self.full.as_slice(), own.as_slice()].concat())
    }

    /// The blocks of the last response: it takes over everything the prompt holds, the partial block among its
    /// `num_own` own ones. None if there are too few.
    pub(crate) fn fork_last(&self, pool: &mut BlockPool, num_own: usize) -> Option<Vec<KvBlock>> {
        let new = pool.allocate(num_own - usize::from(self.partial.is_some()).min(num_own))?;
        Some([self.blocks(), new].concat())
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

    /// The same where others hold some of the prompt's full blocks.
    pub(crate) fn without(self, num_held: usize) -> Self {
        Self { num_full: self.num_full.saturating_sub(num_held), ..self }
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

    /// New blocks that the last response gets when it starts.
    pub(crate) fn at_start_of_last(&self) -> usize {
        self.own_at_start().saturating_sub(self.num_partial)
    }

    /// Blocks of the prompt that all its responses share.
    pub(crate) fn num_shared(&self) -> usize {
        self.num_full
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
    use model_core::BlockMove;

    use super::*;
    use crate::{EngineLimits, testing::roomy};

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

    fn pool(num_blocks: usize) -> BlockPool {
        BlockPool::new(EngineLimits { num_blocks, ..roomy() })
    }

    #[test]
    fn forks_share_full_blocks_and_copy_the_partial_one() {
        let mut pool = pool(6);
        let demand = BlockDemand::new(6, 3, 4);
        let prompt = PromptBlocks::new(pool.allocate(demand.prompt()).unwrap(), &demand);
        let prompt_blocks = prompt.blocks();
        let first = prompt.fork(&mut pool, demand.own()).unwrap();
        assert_eq!(first[0], prompt_blocks[0]);
        let [from, to] = [pool.table(&prompt_blocks)[1], pool.table(&first)[1]];
        assert_eq!(pool.take_moves(), [BlockMove::Copy { from, to }]);
        let last = prompt.fork_last(&mut pool, demand.own()).unwrap();
        assert_eq!(last, prompt_blocks);
        pool.release(&first);
        pool.release(&last);
        assert_eq!(pool.num_free(), 6);
    }

    #[test]
    fn a_fork_that_does_not_fit_takes_nothing() {
        let mut pool = pool(3);
        let demand = BlockDemand::new(4, 9, 4);
        let prompt = PromptBlocks::new(pool.allocate(2).unwrap(), &demand);
        assert!(prompt.fork(&mut pool, demand.own()).is_none());
        assert!(prompt.fork_last(&mut pool, demand.own()).is_none());
        pool.release(&prompt.blocks());
        assert_eq!(pool.num_free(), 3);
    }
}
