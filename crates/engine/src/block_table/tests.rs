use model_core::BlockMove;

use super::*;
use crate::testing::{limits, roomy};

/// A table for all tokens and one for a window.
const TWO: KvTables = KvTables { num_full: 1, num_windowed: 1, window_tokens: 5 };

fn demand(tables: KvTables, prompt: usize, new: u32) -> BlockDemand {
    BlockDemand::new(prompt, new, prompt, &EngineLimits { tables, ..roomy() })
}

#[test]
fn demand_counts_whole_blocks() {
    let check = |prompt, new, expect: (usize, usize, usize)| {
        let demand = demand(KvTables::ONE, prompt, new);
        assert_eq!((demand.prompt(), demand.own(), demand.own_of_last()), expect, "{prompt} + {new}");
    };
    check(3, 1, (1, 0, 0));
    check(3, 2, (1, 1, 0));
    check(3, 3, (1, 2, 1));
    check(4, 2, (1, 1, 1));
    check(8, 5, (2, 1, 1));
    check(9, 4, (3, 1, 0));
    assert_eq!(demand(KvTables::ONE, 6, 10).total(3), 2 + 3 + 3 + 2);
}

#[test]
fn windows_need_no_more_than_they_reach() {
    let demand = demand(TWO, 10, 90);
    // 25 columns in all; of the window two blocks and two ahead.
    assert_eq!((demand.prompt(), demand.own(), demand.own_of_last()), (6, 23 + 4, 25));
    assert_eq!((demand.own_at_start(), demand.at_start_of_last(), demand.response_columns()), (6, 4, 25));
    let in_parts = BlockDemand::new(1000, 2, 10, &EngineLimits { tables: TWO, ..roomy() });
    // 14 tokens in a row touch five blocks at the most.
    assert_eq!((in_parts.prompt(), in_parts.without(100).prompt()), (250 + 5, 155));
}

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::new(limits(64, 1000, num_blocks))
}

fn prompt(pool: &mut BlockPool, tables: KvTables, demand: &BlockDemand) -> PromptBlocks {
    let blocks = pool.allocate(demand.prompt_columns() * tables.len()).unwrap();
    PromptBlocks::new(SeqBlocks::new(tables, blocks), demand)
}

#[test]
fn forks_share_full_blocks_and_copy_the_partial_one() {
    for (tables, num_tables) in [(KvTables::ONE, 1), (TWO, 2)] {
        let mut pool = pool(12);
        let demand = demand(tables, 6, 3);
        let prompt = prompt(&mut pool, tables, &demand);
        let held = prompt.held();
        let first = prompt.fork(&mut pool, demand.own_columns_at_start()).unwrap();
        assert_eq!(first.held()[..num_tables], held[..num_tables]);
        let [from, to] = [&held, &first.held()].map(|held| pool.table(held)[num_tables..].to_vec());
        let copies = from.iter().zip(&to).map(|(&from, &to)| BlockMove::Copy { from, to });
        assert_eq!(pool.take_moves(), copies.collect::<Vec<_>>());
        let last = prompt.fork_last(&mut pool, demand.own_columns_at_start()).unwrap();
        assert_eq!(last.held(), held);
        pool.release(&first.held());
        pool.release(&last.held());
        assert_eq!(pool.num_free(), 12);
    }
}

#[test]
fn what_a_window_has_passed_is_free_when_nobody_shares_it() {
    let mut pool = pool(30);
    let demand = demand(TWO, 18, 9);
    let mut prompt = prompt(&mut pool, TWO, &demand);
    assert_eq!((pool.num_held(), prompt.held().len()), (10, 10));
    // The first token of a response sees those at 14 to 18: three columns are behind.
    prompt.pass(18, 4, &mut pool);
    assert_eq!((pool.num_held(), prompt.held().len()), (7, 7));
    let mut first = prompt.fork(&mut pool, 2).unwrap();
    let mut last = prompt.fork_last(&mut pool, 2).unwrap();
    assert_eq!([first.num_passed(), first.num_held_from(0), first.num_held_from(4)], [3, 9, 4]);
    let table = first.table(0, &pool);
    assert_eq!((table.len(), table[1], table[3], table[5]), (12, 0, 0, 0));
    assert_eq!(first.table(3, &pool), table[6..]);
    // The fourth column is shared.
    let before = pool.num_held();
    first.pass(20, 4, &mut pool);
    assert_eq!((first.num_passed(), pool.num_held()), (4, before));
    last.pass(20, 4, &mut pool);
    assert_eq!(pool.num_held(), before - 1);
    // Never more than there is, and never back.
    first.pass(1000, 4, &mut pool);
    assert_eq!((first.num_passed(), first.num_held_from(0)), (6, 6));
    first.pass(0, 4, &mut pool);
    assert_eq!(first.num_passed(), 6);
    for blocks in [first, last] {
        pool.release(&blocks.held());
    }
    assert_eq!((pool.num_held(), pool.num_free()), (0, 30));
}

#[test]
fn a_fork_that_does_not_fit_takes_nothing() {
    let mut pool = pool(3);
    let demand = demand(KvTables::ONE, 4, 9);
    let blocks = pool.allocate(2).unwrap();
    let prompt = PromptBlocks::new(SeqBlocks::new(KvTables::ONE, blocks), &demand);
    assert!(prompt.fork(&mut pool, 2).is_none());
    assert!(prompt.fork_last(&mut pool, 2).is_none());
    pool.release(&prompt.held());
    assert_eq!(pool.num_free(), 3);
}
