//! Which prompts begin with the same tokens, and which blocks hold what they share.
//!
//! A tree, pure and without tensors: a node is a piece of a prompt behind the pieces of its parents. Pieces are as long as
//! prompts may be cut and blocks are shared, and are found by their tokens themselves, so no two that differ are ever
//! taken for one. A prompt enters the tree when it is queued; so it is known which prefixes are wanted before the first
//! of them is computed, and even prompts of one step share them.
//!
//! The tree holds no block: it knows which ones were computed, and asks the pool whether they still are what they were.
//! But it tells the pool which of them are wanted, by prompts that are queued or that are planned for later
//! (`plans.rs`): those stay the longest.

mod plans;

use std::{collections::HashMap, sync::Arc};

use crate::{
    PlannedPrefix,
    block_pool::{BlockPool, Kept, KeptBlock, KvBlock},
};
use plans::PrefixPlans;

/// A piece in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// Nodes that are there before the tree is swept for the first time.
const MIN_SWEPT: usize = 1024;

#[derive(Debug)]
struct Node {
    parent: Option<NodeId>,
    tokens: Arc<[u32]>,
    children: HashMap<Arc<[u32]>, NodeId>,
    /// None until it is computed.
    blocks: Vec<KeptBlock>,
    /// Queued and unfinished prompts that go through it, and plans for later ones.
    num_wanting: usize,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    piece_tokens: usize,
    blocks_per_piece: usize,
    /// None where the node is free.
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    roots: HashMap<Arc<[u32]>, NodeId>,
    /// The tree is swept when it has this many nodes.
    sweep_at: usize,
    plans: PrefixPlans,
}

/// What a prompt finds of itself in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Pieces from the front on.
    pub(crate) num_pieces: usize,
    /// Those of their blocks that somebody holds, so that they take no room.
    pub(crate) num_held_blocks: usize,
}

impl PrefixCache {
    /// For prompts that may be cut at multiples of `cut_tokens`.
    pub(crate) fn new(cut_tokens: usize, block_size_tokens: usize) -> Self {
        let blocks_per_piece = (1..=cut_tokens.max(1))
            .find(|num_blocks| (num_blocks * block_size_tokens).is_multiple_of(cut_tokens.max(1)))
            .unwrap_or(1);
        Self {
            piece_tokens: blocks_per_piece * block_size_tokens,
            blocks_per_piece,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            sweep_at: MIN_SWEPT,
            plans: PrefixPlans::default(),
        }
    }

    /// Tokens of a piece.
    pub(crate) fn piece_tokens(&self) -> usize {
        self.piece_tokens
    }

    /// Adds a prompt that is queued: its whole pieces in order. What it begins with is `planned` for others.
    pub(crate) fn enter(
        &mut self,
        prompt: &[u32],
        planned: Option<PlannedPrefix>,
        pool: &mut BlockPool,
    ) -> Vec<NodeId> {
        if self.nodes.len() - self.free.len() >= self.sweep_at {
            self.sweep(pool);
        }
        let mut path: Vec<NodeId> = Vec::with_capacity(prompt.len() / self.piece_tokens);
        for piece in prompt.chunks_exact(self.piece_tokens) {
            let parent = path.last().copied();
            let known = match parent {
                Some(parent) => self.node(parent).and_then(|node| node.children.get(piece)),
                None => self.roots.get(piece),
            };
            let id = match known {
                Some(&id) => id,
                None => self.insert(parent, piece),
            };
            self.want(&[id], pool);
            path.push(id);
        }
        let change = self.plans.enter(planned, &path);
        self.want(&change.begun, pool);
        change.ended.iter().for_each(|ended| self.leave(ended, pool));
        path
    }

    /// A prompt that entered is computed, or a plan is over.
    pub(crate) fn leave(&mut self, path: &[NodeId], pool: &mut BlockPool) {
        for &id in path {
            if let Some(node) = self.node_mut(id) {
                node.num_wanting -= 1;
                if node.num_wanting == 0 {
                    node.blocks.iter().for_each(|&block| pool.set_wanted(block, false));
                }
            }
        }
    }

    fn want(&mut self, path: &[NodeId], pool: &mut BlockPool) {
        for &id in path {
            if let Some(node) = self.node_mut(id) {
                node.num_wanting += 1;
                if node.num_wanting == 1 {
                    node.blocks.iter().for_each(|&block| pool.set_wanted(block, true));
                }
            }
        }
    }

    /// What is cached of a prompt of `prompt_len_tokens`, or will be by the prompts before it in a step, whose pieces
    /// `is_planned` knows. The last token of a prompt is always computed, for its logits.
    pub(crate) fn find(
        &self,
        path: &[NodeId],
        prompt_len_tokens: usize,
        pool: &BlockPool,
        is_planned: impl Fn(NodeId) -> bool,
    ) -> Found {
        let mut found = Found::default();
        for &id in path.iter().take(prompt_len_tokens.saturating_sub(1) / self.piece_tokens) {
            let num_held = match self.num_held(id, pool) {
                Some(num_held) => num_held,
                None if is_planned(id) => self.blocks_per_piece,
                None => break,
            };
            found.num_pieces += 1;
            found.num_held_blocks += num_held;
        }
        found
    }

    /// How many of the blocks of a piece somebody holds; None where they are not cached.
    fn num_held(&self, id: NodeId, pool: &BlockPool) -> Option<usize> {
        let blocks = &self.node(id)?.blocks;
        if blocks.is_empty() {
            return None;
        }
        blocks
            .iter()
            .try_fold(0, |num_held, &block| Some(num_held + usize::from(pool.kept(block)? == Kept::Held)))
    }

    /// The blocks of the first pieces of a prompt, which the caller holds and uses from now on.
    pub(crate) fn take(&self, pieces: &[NodeId], pool: &mut BlockPool) -> Vec<KvBlock> {
        let kept: Vec<KeptBlock> = pieces
            .iter()
            .filter_map(|&id| self.node(id))
            .flat_map(|node| node.blocks.iter().copied())
            .collect();
        pool.hold_kept(&kept)
    }

    /// The first pieces of a prompt are computed, or will be by the step that is planned: in these blocks.
    pub(crate) fn store(&mut self, pieces: &[NodeId], blocks: &[KvBlock], pool: &mut BlockPool) {
        for (&id, blocks) in pieces.iter().zip(blocks.chunks_exact(self.blocks_per_piece)) {
            if self.num_held(id, pool).is_some() {
                continue;
            }
            if let Some(node) = self.node_mut(id) {
                node.blocks = blocks.iter().map(|&block| pool.keep(block)).collect();
                let is_wanted = node.num_wanting > 0;
                node.blocks.iter().for_each(|&block| pool.set_wanted(block, is_wanted));
            }
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()
    }

    fn insert(&mut self, parent: Option<NodeId>, piece: &[u32]) -> NodeId {
        let tokens: Arc<[u32]> = piece.into();
        let node = Node {
            parent,
            tokens: Arc::clone(&tokens),
            children: HashMap::new(),
            blocks: Vec::new(),
            num_wanting: 0,
        };
        let id = self.free.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        match self.nodes.get_mut(id.0 as usize) {
            Some(slot) => *slot = Some(node),
            None => self.nodes.push(Some(node)),
        }
        match parent {
            Some(parent) => {
                if let Some(parent) = self.node_mut(parent) {
                    parent.children.insert(tokens, id);
                }
            }
            None => {
                self.roots.insert(tokens, id);
            }
        }
        id
    }

    /// Forgets pieces that nobody wants and whose blocks hold something else, from the ends on.
    fn sweep(&mut self, pool: &BlockPool) {
        let ids = 0..self.nodes.len() as u32;
        for mut id in ids.map(NodeId) {
            while let Some(node) = self.node(id)
                && node.num_wanting == 0
                && node.children.is_empty()
                && self.num_held(id, pool).is_none()
            {
                let Some(Node { parent, tokens, .. }) = self.nodes[id.0 as usize].take() else { break };
                self.free.push(id);
                let siblings = match parent {
                    Some(parent) => self.node_mut(parent).map(|parent| &mut parent.children),
                    None => Some(&mut self.roots),
                };
                if let Some(siblings) = siblings {
                    siblings.remove(&tokens);
                }
                let Some(parent) = parent else { break };
                id = parent;
            }
        }
        self.sweep_at = (2 * (self.nodes.len() - self.free.len())).max(MIN_SWEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineLimits, testing::roomy};

    fn pool(num_blocks: usize) -> BlockPool {
        BlockPool::new(EngineLimits { num_blocks, num_host_blocks: 0, ..roomy() })
    }

    /// Computes what is not cached of a prompt, and tells how much is.
    fn compute(cache: &mut PrefixCache, pool: &mut BlockPool, prompt: &[u32]) -> (Found, Vec<KvBlock>) {
        let path = cache.enter(prompt, None, pool);
        let found = cache.find(&path, prompt.len(), pool, |_| false);
        let mut blocks = cache.take(&path[..found.num_pieces], pool);
        blocks.extend(pool.allocate(prompt.len().div_ceil(4) - blocks.len()).unwrap());
        cache.store(&path, &blocks, pool);
        cache.leave(&path, pool);
        (found, blocks)
    }

    #[test]
    fn pieces_are_whole_blocks_and_cuts() {
        let sizes = |cut_tokens| {
            let cache = PrefixCache::new(cut_tokens, 32);
            (cache.piece_tokens, cache.blocks_per_piece)
        };
        assert_eq!([1, 32, 48, 128].map(sizes), [(32, 1), (32, 1), (96, 3), (128, 4)]);
    }

    #[test]
    fn prompts_share_what_they_begin_with_and_no_more() {
        let (mut cache, mut pool) = (PrefixCache::new(2, 4), pool(20));
        let prompt = |last: u32| -> Vec<u32> { (0..10).chain([last, 7, 7]).collect() };
        let (found, first) = compute(&mut cache, &mut pool, &prompt(50));
        assert_eq!(found, Found::default());
        let (found, second) = compute(&mut cache, &mut pool, &prompt(51));
        assert_eq!(found, Found { num_pieces: 2, num_held_blocks: 2 });
        assert_eq!((first[..2] == second[..2], first[2] == second[2]), (true, false));
        // The last token is computed in any case.
        let (found, third) = compute(&mut cache, &mut pool, &prompt(50)[..12]);
        assert_eq!(found.num_pieces, 2);
        assert_eq!(pool.num_held(), 4 + 2 + 1);
        for blocks in [first, second, third] {
            pool.release(&blocks);
        }
        assert_eq!((pool.num_held(), pool.num_free()), (0, 20));
        let (found, blocks) = compute(&mut cache, &mut pool, &prompt(50));
        assert_eq!(found, Found { num_pieces: 3, num_held_blocks: 0 });
        pool.release(&blocks);
    }

    #[test]
    fn what_is_kept_goes_when_its_place_is_needed_the_end_of_a_prompt_first() {
        let (mut cache, mut pool) = (PrefixCache::new(1, 4), pool(4));
        let prompt: Vec<u32> = (0..13).collect();
        let (_, blocks) = compute(&mut cache, &mut pool, &prompt);
        pool.release(&blocks);
        let other = pool.allocate(2).unwrap();
        let path = cache.enter(&prompt, None, &mut pool);
        assert_eq!(cache.find(&path, 13, &pool, |_| false), Found { num_pieces: 2, num_held_blocks: 0 });
        let planned = path[2];
        assert_eq!(
            cache.find(&path, 13, &pool, |id| id == planned),
            Found { num_pieces: 3, num_held_blocks: 1 }
        );
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
        let (mut cache, mut pool) = (PrefixCache::new(1, 4), pool(6));
        let prompt = |last: u32| -> Vec<u32> { (0..8).chain([last; 4]).collect() };
        let plan = |last, num_later, cache: &mut PrefixCache, pool: &mut BlockPool| {
            let path = cache.enter(&prompt(last), Some(PlannedPrefix { id: 7, num_later, within }), pool);
            let found = cache.find(&path, 12, pool, |_| false);
            let mut blocks = cache.take(&path[..found.num_pieces], pool);
            blocks.extend(pool.allocate(3 - blocks.len()).unwrap());
            cache.store(&path, &blocks, pool);
            cache.leave(&path, pool);
            pool.release(&blocks);
            found.num_pieces
        };
        plan(50, num_later + 1, &mut cache, &mut pool);
        assert_eq!(plan(51, num_later, &mut cache, &mut pool), 2);
        for start in 0..num_others {
            let other: Vec<u32> = (1000 + 8 * start..1008 + 8 * start).collect();
            let (_, blocks) = compute(&mut cache, &mut pool, &other);
            pool.release(&blocks);
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
        let (mut cache, mut pool) = (PrefixCache::new(1, 4), pool(6));
        let planned = Some(PlannedPrefix { id: 1, num_later: 9, within: 9 });
        let path = cache.enter(&(0..12).collect::<Vec<u32>>(), planned, &mut pool);
        let blocks = pool.allocate(3).unwrap();
        cache.store(&path, &blocks, &mut pool);
        cache.leave(&path, &mut pool);
        pool.release(&blocks);
        let all = pool.allocate(6).unwrap();
        assert_eq!(cache.find(&path, 12, &pool, |_| false), Found::default());
        pool.release(&all);
        assert_eq!((pool.num_free(), pool.num_held()), (6, 0));
    }

    #[test]
    fn the_tree_is_bounded_by_what_is_cached() {
        let (mut cache, mut pool) = (PrefixCache::new(1, 4), pool(10));
        for start in 0..20_000 {
            let prompt: Vec<u32> = (start..start + 9).collect();
            let (_, blocks) = compute(&mut cache, &mut pool, &prompt);
            pool.release(&blocks);
        }
        assert!(cache.nodes.len() <= 2 * MIN_SWEPT, "{} nodes", cache.nodes.len());
    }
}
