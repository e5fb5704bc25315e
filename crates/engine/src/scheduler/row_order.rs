//! In which order the rows of a decode step stand.
//!
//! A GPU's attention reads what neighbouring rows share once, a split of the keys at a time; rows that are not neighbours
//! read it each for itself. So rows stand in the order of the blocks at the ends of their prompts' first splits: whoever
//! shares some splits is among neighbours, and among them those who share more. What shares nothing longer than a split
//! stands first, by age. The order of rows decides no token.

use super::Seq;
use crate::{
    block_pool::KvBlock,
    plan::{BLOCKS_PER_SPLIT, SeqId},
};

/// The order of the sequences that run, found again only when others do: blocks of prompts keep their numbers.
#[derive(Debug, Default)]
pub(super) struct RowOrder {
    ids: Vec<SeqId>,
    order: Vec<usize>,
}

impl RowOrder {
    /// Places in `running`, which is in the order of ids.
    pub(super) fn of(&mut self, running: &[Seq]) -> &[usize] {
        if !self.ids.iter().copied().eq(running.iter().map(|seq| seq.id)) {
            self.ids.clear();
            self.ids.extend(running.iter().map(|seq| seq.id));
            self.order.clear();
            self.order.extend(0..running.len());
            // Stable: rows that share the same splits stay in the order of their ids, the responses to a prompt together.
            self.order.sort_by(|&a, &b| ends_of_splits(&running[a]).cmp(ends_of_splits(&running[b])));
        }
        &self.order
    }
}

/// The last blocks of the splits that lie wholly in the prompt.
fn ends_of_splits(seq: &Seq) -> impl Iterator<Item = KvBlock> {
    // Of the first table, as attention shares reads in it.
    let shared = seq.blocks.columns().take(seq.num_shared_columns);
    shared.skip(BLOCKS_PER_SPLIT - 1).step_by(BLOCKS_PER_SPLIT).filter_map(|column| column.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_spec::KvTables;

    use crate::{EngineLimits, block_pool::BlockPool, block_table::SeqBlocks, testing::roomy};

    /// A response to a prompt of these blocks, with one of its own.
    fn seq(pool: &mut BlockPool, group_idx: u64, response_idx: u32, prompt: &[KvBlock]) -> Seq {
        let own = pool.allocate(1).unwrap();
        Seq {
            id: SeqId { group_idx, response_idx },
            blocks: SeqBlocks::new(KvTables::ONE, [prompt, &own].concat()),
            num_known_columns: 0,
            num_shared_columns: prompt.len(),
            num_cached_columns: 0,
            prompt_len_tokens: 1,
            context_len: 1,
            in_flight: 0,
            is_verifying: false,
            max_context_len: 9,
            max_columns: prompt.len() + 1,
            max_own_blocks: 1,
            expected_tokens: None,
        }
    }

    #[test]
    fn who_shares_splits_is_among_neighbours() {
        let mut pool = BlockPool::new(EngineLimits { num_blocks: 400, ..roomy() });
        let mut blocks = |num_blocks| pool.allocate(num_blocks).unwrap();
        let (first, second) = (blocks(16), blocks(40));
        let deeper = [first.clone(), blocks(16)].concat();
        let deepest: Vec<Vec<KvBlock>> = (0..2).map(|_| [deeper.clone(), blocks(3)].concat()).collect();
        let (short, lone) = (blocks(15), blocks(17));
        let prompts = [&second, &deepest[0], &short, &first, &lone, &deepest[1], &second, &first, &short];
        let mut running: Vec<Seq> =
            (0..).zip(prompts).map(|(idx, prompt)| seq(&mut pool, idx, 0, prompt)).collect();
        running.push(seq(&mut pool, 8, 1, &short));
        let mut row_order = RowOrder::default();
        assert_eq!(row_order.of(&running), [2, 8, 9, 3, 7, 1, 5, 0, 6, 4]);
        // With others it is another order.
        running.remove(7);
        assert_eq!(row_order.of(&running), [2, 7, 8, 3, 1, 5, 0, 6, 4]);
    }
}
