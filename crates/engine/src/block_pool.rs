//! Where each KV block lies, in the cache or with the host, and who holds it.
//!
//! It holds numbers only, no tensors. A sequence names its blocks by [`KvBlock`], which stays the same when a block moves.
//! Each holder of a block either uses it, which keeps it in the cache, or lets it rest. A block that nobody uses stays
//! where it is until its place is needed, and then goes to the host.
//!
//! What a block holds may be kept when its last holder leaves, for who begins with the same tokens: it is free, and goes
//! when there is no other free place: what nobody is known to want before what somebody does, and among those the one
//! that became free first.
//!
//! Places are not promised here. With `num_blocks` of the cache and `num_host_blocks` of the host, a holder that uses
//! fewer than `num_blocks` can always get one more while nobody else uses any and fewer than
//! [`BlockPool::capacity`] are held in all: the one place less is what a block can leave for when another comes back.

use std::collections::BTreeMap;

use model_core::{BlockId, BlockMove, HostBlockId};

use crate::EngineLimits;

/// A block of keys and values, wherever it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KvBlock(u32);

#[derive(Clone, Copy, Debug)]
enum BlockPlace {
    Cache(BlockId),
    Host(HostBlockId),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: BlockPlace,
    num_holders: u32,
    /// Those holders that need it in the cache.
    num_users: u32,
    /// When it was used last, if it rests in the cache or is free and kept.
    rested_at: u64,
    /// Tells what it holds from what it held before.
    generation: u64,
    /// Whether what it holds is kept when nobody holds it.
    is_kept: bool,
    /// Whether somebody is known who will begin with what is kept.
    is_wanted: bool,
}

impl Entry {
    /// Its place among those that are kept and free, the first of which goes first.
    fn kept_key(&self) -> (bool, u64) {
        (self.is_wanted, self.rested_at)
    }
}

/// A block and what it held when it was kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptBlock {
    block: KvBlock,
    generation: u64,
}

impl KeptBlock {
    /// The block, if it still holds what it held.
    pub(crate) fn block(self) -> KvBlock {
        self.block
    }
}

/// In what state a kept block is that still holds what it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Somebody holds it.
    Held,
    /// It is free.
    Free,
}

/// All blocks, and how they move.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// By number of the block; a number in `unused` means nothing.
    entries: Vec<Entry>,
    unused: Vec<KvBlock>,
    free: Vec<BlockId>,
    free_on_host: Vec<HostBlockId>,
    /// Blocks of the cache that nobody uses, by when that began.
    resting: BTreeMap<u64, KvBlock>,
    /// Blocks of the cache that nobody holds and whose bits are kept, by [`Entry::kept_key`].
    kept: BTreeMap<(bool, u64), KvBlock>,
    num_allocated: u64,
    num_rests: u64,
    capacity: usize,
    moves: Vec<BlockMove>,
}

impl BlockPool {
    /// All blocks free.
    pub(crate) fn new(limits: EngineLimits) -> Self {
        let EngineLimits { num_blocks, num_host_blocks, .. } = limits;
        Self {
            entries: Vec::new(),
            unused: Vec::new(),
            // Popped from the end, so that low blocks are used first.
            free: (0..num_blocks as BlockId).rev().collect(),
            free_on_host: (0..num_host_blocks as HostBlockId).rev().collect(),
            resting: BTreeMap::new(),
            kept: BTreeMap::new(),
            num_allocated: 0,
            num_rests: 0,
            capacity: num_blocks + num_host_blocks.saturating_sub(1),
            moves: Vec::new(),
        }
    }

    /// Blocks that may be held at once.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that are held.
    pub(crate) fn num_held(&self) -> usize {
        self.entries.len() - self.unused.len() - self.kept.len()
    }

    /// Blocks of the cache that nobody holds.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Blocks of the cache that nobody holds, or that can go to the host.
    pub(crate) fn num_available(&self) -> usize {
        self.num_free() + self.resting.len().min(self.free_on_host.len())
    }

    /// Blocks with one holder each, which uses them, or none if there are too few.
    pub(crate) fn allocate(&mut self, num_blocks: usize) -> Option<Vec<KvBlock>> {
        if num_blocks > self.num_available() {
            return None;
        }
        (0..num_blocks).map(|_| self.allocate_one()).collect()
    }

    fn allocate_one(&mut self) -> Option<KvBlock> {
        let place = BlockPlace::Cache(self.vacate()?);
        self.num_allocated += 1;
        let generation = self.num_allocated;
        let entry = Entry {
            place,
            num_holders: 1,
            num_users: 1,
            rested_at: 0,
            generation,
            is_kept: false,
            is_wanted: false,
        };
        Some(match self.unused.pop() {
            Some(block) => {
                self.entries[block.0 as usize] = entry;
                block
            }
            None => {
                self.entries.push(entry);
                KvBlock(self.entries.len() as u32 - 1)
            }
        })
    }

    /// A free block of the cache, for which one that rests may have to go to the host: the one that began first, because
    /// the youngest sequences are the first to rest and the last to go on.
    fn vacate(&mut self) -> Option<BlockId> {
        if let Some(block) = self.free.pop() {
            return Some(block);
        }
        if let Some((_, block)) = self.kept.pop_first() {
            self.unused.push(block);
            let entry = &mut self.entries[block.0 as usize];
            entry.is_kept = false;
            return if let BlockPlace::Cache(place) = entry.place { Some(place) } else { None };
        }
        let to = *self.free_on_host.last()?;
        let (_, block) = self.resting.pop_first()?;
        let entry = &mut self.entries[block.0 as usize];
        let BlockPlace::Cache(from) = entry.place else { return None };
        entry.place = BlockPlace::Host(to);
        self.free_on_host.pop();
        self.moves.push(BlockMove::SwapOut { from, to });
        Some(from)
    }

    /// Adds a holder that uses them to each of `blocks`, all of which are used.
    pub(crate) fn share(&mut self, blocks: &[KvBlock]) {
        for &block in blocks {
            let entry = &mut self.entries[block.0 as usize];
            entry.num_holders += 1;
            entry.num_users += 1;
        }
    }

    /// A holder lets its blocks rest.
    pub(crate) fn rest(&mut self, blocks: &[KvBlock]) {
        for &block in blocks {
            let entry = &mut self.entries[block.0 as usize];
            entry.num_users -= 1;
            if entry.num_users == 0 {
                entry.rested_at = self.num_rests;
                self.resting.insert(self.num_rests, block);
                self.num_rests += 1;
            }
        }
    }

    /// A holder uses its blocks again, if all of them can be in the cache with `num_more` others.
    pub(crate) fn use_again(&mut self, blocks: &[KvBlock], num_more: usize) -> bool {
        let places = || blocks.iter().map(|block| self.entries[block.0 as usize]);
        let num_with_host = places().filter(|entry| matches!(entry.place, BlockPlace::Host(_))).count();
        let num_own_resting = places().filter(|entry| entry.num_users == 0).count() - num_with_host;
        // Each that comes back leaves a place with the host; one free place, here or there, lets the exchange begin.
        let num_exchangeable = match self.num_free() + self.free_on_host.len() {
            0 => 0,
            _ => (self.resting.len() - num_own_resting).min(self.free_on_host.len() + num_with_host),
        };
        if num_with_host + num_more > self.num_free() + num_exchangeable {
            return false;
        }
        // All at once, so that none of them goes to the host for another.
        for &block in blocks {
            let entry = &mut self.entries[block.0 as usize];
            if entry.num_users == 0 && matches!(entry.place, BlockPlace::Cache(_)) {
                self.resting.remove(&entry.rested_at);
            }
            entry.num_users += 1;
        }
        blocks.iter().all(|&block| self.bring(block))
    }

    /// Brings a block to the cache if it is with the host.
    fn bring(&mut self, block: KvBlock) -> bool {
        let BlockPlace::Host(from) = self.entries[block.0 as usize].place else { return true };
        let Some(to) = self.vacate() else { return false };
        self.entries[block.0 as usize].place = BlockPlace::Cache(to);
        self.free_on_host.push(from);
        self.moves.push(BlockMove::SwapIn { from, to });
        true
    }

    /// Takes a holder that uses them away from each of `blocks`; a block without a holder is free.
    pub(crate) fn release(&mut self, blocks: &[KvBlock]) {
        self.rest(blocks);
        self.release_resting(blocks);
    }

    /// Takes a holder that lets them rest away from each of `blocks`. What is kept of them goes from the last one on: what a
    /// sequence begins with is the likeliest to be wanted again.
    pub(crate) fn release_resting(&mut self, blocks: &[KvBlock]) {
        for &block in blocks.iter().rev() {
            let entry = &mut self.entries[block.0 as usize];
            entry.num_holders -= 1;
            if entry.num_holders > 0 {
                continue;
            }
            match entry.place {
                BlockPlace::Cache(place) => {
                    self.resting.remove(&entry.rested_at);
                    if entry.is_kept {
                        entry.rested_at = self.num_rests;
                        self.kept.insert(entry.kept_key(), block);
                        self.num_rests += 1;
                        continue;
                    }
                    self.free.push(place);
                }
                BlockPlace::Host(place) => self.free_on_host.push(place),
            }
            entry.is_kept = false;
            self.unused.push(block);
        }
    }

    /// Keeps what a block holds, beyond its last holder.
    pub(crate) fn keep(&mut self, block: KvBlock) -> KeptBlock {
        let entry = &mut self.entries[block.0 as usize];
        entry.is_kept = true;
        KeptBlock { block, generation: entry.generation }
    }

    /// Says whether somebody is known who will begin with what a block held, if it still holds that.
    pub(crate) fn set_wanted(&mut self, KeptBlock { block, generation }: KeptBlock, is_wanted: bool) {
        let Some(entry) = self.entries.get_mut(block.0 as usize) else { return };
        if entry.generation != generation || !entry.is_kept || entry.is_wanted == is_wanted {
            return;
        }
        let is_free = entry.num_holders == 0;
        if is_free {
            self.kept.remove(&entry.kept_key());
        }
        entry.is_wanted = is_wanted;
        if is_free {
            self.kept.insert(entry.kept_key(), block);
        }
    }

    /// Whether a block still holds what it held, in the cache.
    pub(crate) fn kept(&self, KeptBlock { block, generation }: KeptBlock) -> Option<Kept> {
        let entry = self.entries.get(block.0 as usize)?;
        let is_there =
            entry.generation == generation && entry.is_kept && matches!(entry.place, BlockPlace::Cache(_));
        is_there.then_some(if entry.num_holders > 0 { Kept::Held } else { Kept::Free })
    }

    /// Adds a holder that uses them to kept blocks, all of which still hold what they held.
    pub(crate) fn hold_kept(&mut self, kept: &[KeptBlock]) {
        for &KeptBlock { block, .. } in kept {
            let entry = &mut self.entries[block.0 as usize];
            if entry.num_holders == 0 {
                self.kept.remove(&entry.kept_key());
            } else if entry.num_users == 0 {
                self.resting.remove(&entry.rested_at);
            }
            entry.num_holders += 1;
            entry.num_users += 1;
        }
    }

    /// The bits of a block that is used go to another such block, too.
    pub(crate) fn copy(&mut self, from: KvBlock, to: KvBlock) {
        if let [Some(from), Some(to)] = [from, to].map(|block| self.place(block)) {
            self.moves.push(BlockMove::Copy { from, to });
        }
    }

    /// Where blocks that are used lie.
    pub(crate) fn table(&self, blocks: &[KvBlock]) -> Vec<BlockId> {
        blocks.iter().filter_map(|&block| self.place(block)).collect()
    }

    fn place(&self, block: KvBlock) -> Option<BlockId> {
        let Entry { place, num_users, .. } = self.entries[block.0 as usize];
        debug_assert!(num_users > 0, "{block:?} is not used and may be anywhere");
        if let BlockPlace::Cache(place) = place { Some(place) } else { None }
    }

    /// What moved since it was asked last, in order.
    pub(crate) fn take_moves(&mut self) -> Vec<BlockMove> {
        std::mem::take(&mut self.moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::roomy;

    fn pool(num_blocks: usize, num_host_blocks: usize) -> BlockPool {
        BlockPool::new(EngineLimits { num_blocks, num_host_blocks, ..roomy() })
    }

    #[test]
    fn blocks_come_back_when_the_last_holder_leaves() {
        let mut pool = pool(3, 0);
        let blocks = pool.allocate(2).unwrap();
        assert!(pool.allocate(2).is_none());
        pool.share(&blocks);
        pool.release(&blocks);
        assert_eq!((pool.num_free(), pool.num_held()), (1, 2));
        pool.rest(&blocks);
        assert_eq!(
            (pool.num_free(), pool.num_available()),
            (1, 1),
            "there is no place for them with the host"
        );
        pool.release_resting(&blocks);
        assert_eq!((pool.num_free(), pool.num_held()), (3, 0));
    }

    #[test]
    fn blocks_that_rest_go_to_the_host_when_others_need_room() {
        let mut pool = pool(3, 2);
        let [old, young] = [1, 2].map(|num_blocks| pool.allocate(num_blocks).unwrap());
        assert_eq!(pool.table(&young), [1, 2]);
        pool.rest(&young);
        assert!(pool.take_moves().is_empty(), "they stay as long as they can");
        let more = pool.allocate(1).unwrap();
        assert_eq!(pool.take_moves(), [BlockMove::SwapOut { from: 1, to: 0 }]);
        assert!(!pool.use_again(&young, 0), "the others use their places");
        pool.rest(&old);
        assert!(!pool.use_again(&young, 1));
        assert!(pool.use_again(&young, 0));
        // The second place with the host was free; then the first is.
        assert_eq!(
            pool.take_moves(),
            [BlockMove::SwapOut { from: 0, to: 1 }, BlockMove::SwapIn { from: 0, to: 0 }]
        );
        assert_eq!(pool.table(&young), [0, 2]);
        for blocks in [young, more] {
            pool.release(&blocks);
        }
        pool.release_resting(&old);
        assert_eq!((pool.num_free(), pool.num_held(), pool.free_on_host.len()), (3, 0, 2));
    }

    #[test]
    fn any_number_of_blocks_is_exchanged_through_one_place() {
        let mut pool = pool(3, 4);
        let [first, second] = [3, 3].map(|num_blocks| {
            let blocks = pool.allocate(num_blocks).unwrap();
            pool.rest(&blocks);
            blocks
        });
        assert_eq!((pool.num_held(), pool.capacity()), (6, 6));
        for blocks in [&first, &second, &first] {
            assert!(pool.use_again(blocks, 0));
            assert_eq!(pool.table(blocks).len(), 3);
            pool.rest(blocks);
        }
        assert!(!pool.use_again(&first, 1), "that would be more than the cache has");
    }
}
