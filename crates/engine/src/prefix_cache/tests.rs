use super::*;
use crate::{EngineLimits, testing::roomy};

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::new(EngineLimits { num_blocks, num_host_blocks: 0, ..roomy() })
}

/// Computes what is not cached of a prompt, and tells how much is.
fn compute(cache: &mut PrefixCache, pool: &mut BlockPool, prompt: &[u32]) -> (Found, SeqBlocks) {
    let path = cache.enter(prompt, None, pool);
    let found = cache.find(&path, prompt.len(), pool, |_| false);
    let mut blocks = cache.take(&path[..found.num_pieces], pool);
    let num_new = (prompt.len().div_ceil(4) - blocks.num_columns()) * cache.tables.len();
    blocks.extend(pool.allocate(num_new).unwrap());
    cache.store(&path, &blocks, pool);
    cache.leave(&path, pool);
    (found, blocks)
}

#[test]
fn pieces_are_whole_blocks_and_cuts() {
    let sizes = |cut_tokens| {
        let limits = EngineLimits { block_size_tokens: 32, ..roomy() };
        let cache = PrefixCache::new(cut_tokens, &limits);
        (cache.piece_tokens, cache.blocks_per_piece)
    };
    assert_eq!([1, 32, 48, 128].map(sizes), [(32, 1), (32, 1), (96, 3), (128, 4)]);
}

#[test]
fn prompts_share_what_they_begin_with_and_no_more() {
    let (mut cache, mut pool) = (PrefixCache::new(2, &roomy()), pool(20));
    let prompt = |last: u32| -> Vec<u32> { (0..10).chain([last, 7, 7]).collect() };
    let (found, first) = compute(&mut cache, &mut pool, &prompt(50));
    assert_eq!(found, Found::default());
    let (found, second) = compute(&mut cache, &mut pool, &prompt(51));
    assert_eq!(found, Found { num_pieces: 2, num_held_blocks: 2 });
    let is_shared = |column| first.held()[column] == second.held()[column];
    assert_eq!([0, 1, 2].map(is_shared), [true, true, false]);
    // The last token is computed in any case.
    let (found, third) = compute(&mut cache, &mut pool, &prompt(50)[..12]);
    assert_eq!(found.num_pieces, 2);
    assert_eq!(pool.num_held(), 4 + 2 + 1);
    for blocks in [first, second, third] {
        pool.release(&blocks.held());
    }
    assert_eq!((pool.num_held(), pool.num_free()), (0, 20));
    let (found, blocks) = compute(&mut cache, &mut pool, &prompt(50));
    assert_eq!(found, Found { num_pieces: 3, num_held_blocks: 0 });
    pool.release(&blocks.held());
}

#[test]
fn what_is_kept_goes_when_its_place_is_needed_the_end_of_a_prompt_first() {
    let (mut cache, mut pool) = (PrefixCache::new(1, &roomy()), pool(4));
    let prompt: Vec<u32> = (0..13).collect();
    let (_, blocks) = compute(&mut cache, &mut pool, &prompt);
    pool.release(&blocks.held());
    let other = pool.allocate(2).unwrap();
    let path = cache.enter(&prompt, None, &mut pool);
    assert_eq!(cache.find(&path, 13, &pool, |_| false), Found { num_pieces: 2, num_held_blocks: 0 });
    let planned = path[2];
    assert_eq!(cache.find(&path, 13, &pool, |id| id == planned), Found { num_pieces: 3, num_held_blocks: 1 });
    pool.release(&other);
    let all = pool.allocate(4).unwrap();
    assert_eq!(cache.find(&path, 13, &pool, |_| false), Found::default());
    pool.release(&all);
    cache.leave(&path, &mut pool);
    cache.sweep(&pool);
    assert_eq!((cache.free.len(), cache.roots.len()), (3, 0));
}

/// Whether the first prompt's two shared pieces are still there after others, when so many prompts are planned that
/// begin with them.
fn survives(num_later: u32, within: u32, num_others: u32) -> bool {
    let (mut cache, mut pool) = (PrefixCache::new(1, &roomy()), pool(6));
    let prompt = |last: u32| -> Vec<u32> { (0..8).chain([last; 4]).collect() };
    let plan = |last, num_later, cache: &mut PrefixCache, pool: &mut BlockPool| {
        let path = cache.enter(&prompt(last), Some(PlannedPrefix { id: 7, num_later, within }), pool);
        let found = cache.find(&path, 12, pool, |_| false);
        let mut blocks = cache.take(&path[..found.num_pieces], pool);
        blocks.extend(pool.allocate(3 - blocks.num_columns()).unwrap());
        cache.store(&path, &blocks, pool);
        cache.leave(&path, pool);
        pool.release(&blocks.held());
        found.num_pieces
    };
    plan(50, num_later + 1, &mut cache, &mut pool);
    assert_eq!(plan(51, num_later, &mut cache, &mut pool), 2);
    for start in 0..num_others {
        let other: Vec<u32> = (1000 + 8 * start..1008 + 8 * start).collect();
        let (_, blocks) = compute(&mut cache, &mut pool, &other);
        pool.release(&blocks.held());
    }
    let path = cache.enter(&prompt(52), None, &mut pool);
    cache.find(&path, 12, &pool, |_| false).num_pieces == 2
}

#[test]
fn what_is_planned_stays_while_others_come_and_go() {
    assert!(survives(1, 100, 30));
    assert!(!survives(0, 100, 30), "nobody is to come any more");
    assert!(survives(1, 20, 18));
    assert!(!survives(1, 20, 30), "it did not come in time");
}

#[test]
fn planned_prefixes_give_way_when_all_room_is_needed() {
    let (mut cache, mut pool) = (PrefixCache::new(1, &roomy()), pool(6));
    let planned = Some(PlannedPrefix { id: 1, num_later: 9, within: 9 });
    let path = cache.enter(&(0..12).collect::<Vec<u32>>(), planned, &mut pool);
    let blocks = SeqBlocks::new(KvTables::ONE, pool.allocate(3).unwrap());
    cache.store(&path, &blocks, &mut pool);
    cache.leave(&path, &mut pool);
    pool.release(&blocks.held());
    let all = pool.allocate(6).unwrap();
    assert_eq!(cache.find(&path, 12, &pool, |_| false), Found::default());
    pool.release(&all);
    assert_eq!((pool.num_free(), pool.num_held()), (6, 0));
}

#[test]
fn the_tree_is_bounded_by_what_is_cached() {
    let (mut cache, mut pool) = (PrefixCache::new(1, &roomy()), pool(10));
    for start in 0..20_000 {
        let prompt: Vec<u32> = (start..start + 9).collect();
        let (_, blocks) = compute(&mut cache, &mut pool, &prompt);
        pool.release(&blocks.held());
    }
    assert!(cache.nodes.len() <= 2 * MIN_SWEPT, "{} nodes", cache.nodes.len());
}

/// The columns that tests have of a window.
const TWO: KvTables = KvTables { num_full: 1, num_windowed: 1, window_tokens: 6 };

#[test]
fn of_a_window_only_what_the_next_token_sees_must_be_there() {
    let limits = EngineLimits { tables: TWO, ..roomy() };
    let (mut cache, mut pool) = (PrefixCache::new(4, &limits), pool(20));
    let prompt = |last: u32| -> Vec<u32> { (0..16).chain([last; 4]).collect() };
    let (_, mut first) = compute(&mut cache, &mut pool, &prompt(50));
    assert_eq!(pool.num_held(), 10);
    // The token at 20 sees those at 15 to 20: three columns are behind, and stay as long as there is room.
    first.pass(20, 4, &mut pool);
    assert_eq!((pool.num_held(), pool.num_free()), (7, 13));
    let (found, second) = compute(&mut cache, &mut pool, &prompt(51));
    // Four columns of the first table are held by the first prompt, and one of the other; one more is seen.
    assert_eq!(found, Found { num_pieces: 4, num_held_blocks: 5 });
    assert_eq!((second.num_passed(), pool.num_held()), (2, 7 + 1 + 2));
    // Room is needed, and what the windows have passed goes first.
    pool.release(&second.held());
    let others = pool.allocate(pool.num_free()).unwrap();
    let path = cache.enter(&prompt(52), None, &mut pool);
    assert_eq!(cache.find(&path, 20, &pool, |_| false), Found::default(), "the third column is not there");
    pool.release(&others);
    // Whoever computes it anew leaves it for others.
    let (_, third) = compute(&mut cache, &mut pool, &prompt(53));
    assert_eq!(cache.find(&path, 20, &pool, |_| false).num_pieces, 4);
    for blocks in [first, third] {
        pool.release(&blocks.held());
    }
    cache.leave(&path, &mut pool);
    assert_eq!((pool.num_held(), pool.num_free()), (0, 20));
}

#[test]
fn pieces_without_tables_for_all_tokens_are_swept_when_they_are_gone() {
    let limits = EngineLimits { tables: KvTables { num_full: 0, ..TWO }, ..roomy() };
    let (mut cache, mut pool) = (PrefixCache::new(1, &limits), pool(10));
    for start in 0..20_000 {
        let prompt: Vec<u32> = (start..start + 9).collect();
        let (_, blocks) = compute(&mut cache, &mut pool, &prompt);
        pool.release(&blocks.held());
    }
    assert!(cache.nodes.len() <= 2 * MIN_SWEPT, "{} nodes", cache.nodes.len());
}
