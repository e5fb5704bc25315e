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

use model_spec::KvTables;

use crate::{
    EngineLimits, PlannedPrefix,
    block_pool::{BlockPool, Kept, KeptBlock, KvBlock},
    block_table::SeqBlocks,
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
    /// None until it is computed; column by column.
    blocks: Vec<KeptBlock>,
    /// Queued and unfinished prompts that go through it, and plans for later ones.
    num_wanting: usize,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    piece_tokens: usize,
    blocks_per_piece: usize,
    tables: KvTables,
    block_size_tokens: usize,
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

/// What is there of a piece, in one kind of tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cached {
    is_whole: bool,
    /// How many of the blocks somebody holds.
    num_held: usize,
}

impl PrefixCache {
    /// For prompts that may be cut at multiples of `cut_tokens`.
    pub(crate) fn new(cut_tokens: usize, limits: &EngineLimits) -> Self {
        let EngineLimits { block_size_tokens, tables, .. } = *limits;
        let blocks_per_piece = (1..=cut_tokens.max(1))
            .find(|num_blocks| (num_blocks * block_size_tokens).is_multiple_of(cut_tokens.max(1)))
            .unwrap_or(1);
        Self {
            piece_tokens: blocks_per_piece * block_size_tokens,
            blocks_per_piece,
            tables,
            block_size_tokens,
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
    /// `is_planned` knows. The last token of a prompt is always computed, for its logits. Of tables with a window only what
    /// the next token sees must be there.
    pub(crate) fn find(
        &self,
        path: &[NodeId],
        prompt_len_tokens: usize,
        pool: &BlockPool,
        is_planned: impl Fn(NodeId) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let mut num_full_held = 0;
        // Of each piece so far, and how many there are in a row, from the last one back.
        let (mut windowed, mut num_whole) = (Vec::new(), 0);
        for &id in path.iter().take(prompt_len_tokens.saturating_sub(1) / self.piece_tokens) {
            let [full, of_window] = match self.cached(id, pool) {
                [full, of_window] if full.is_whole && (of_window.is_whole || !is_planned(id)) => {
                    [full, of_window]
                }
                _ if is_planned(id) => {
                    let KvTables { num_full, num_windowed, .. } = self.tables;
                    [num_full, num_windowed].map(|num_tables| Cached {
                        is_whole: true,
                        num_held: num_tables * self.blocks_per_piece,
                    })
                }
                _ => break,
            };
            num_full_held += full.num_held;
            num_whole = if of_window.is_whole { num_whole + 1 } else { 0 };
            windowed.push(of_window.num_held);
            let num_pieces = windowed.len();
            let seen = windowed.get(self.first_seen(num_pieces)..).unwrap_or_default();
            if seen.len() <= num_whole {
                found = Found { num_pieces, num_held_blocks: num_full_held + seen.iter().sum::<usize>() };
            }
        }
        found
    }

    /// The first piece that the token behind so many pieces sees in tables with a window.
    fn first_seen(&self, num_pieces: usize) -> usize {
        let num_passed = self.tables.num_passed(num_pieces * self.piece_tokens, self.block_size_tokens);
        (num_passed / self.blocks_per_piece).min(num_pieces)
    }

    /// What is cached of a piece in the tables that keep all tokens, and in those with a window.
    fn cached(&self, id: NodeId, pool: &BlockPool) -> [Cached; 2] {
        let blocks = self.node(id).map(|node| node.blocks.as_slice()).unwrap_or_default();
        if blocks.is_empty() {
            return [Cached::default(); 2];
        }
        let of_tables = |tables: std::ops::Range<usize>| {
            let columns = blocks.chunks_exact(self.tables.len());
            let mut kept = columns.flat_map(|column| &column[tables.clone()]).map(|&block| pool.kept(block));
            let num_held =
                kept.try_fold(0, |num_held, kept| Some(num_held + usize::from(kept? == Kept::Held)));
            Cached { is_whole: num_held.is_some(), num_held: num_held.unwrap_or(0) }
        };
        [of_tables(0..self.tables.num_full), of_tables(self.tables.num_full..self.tables.len())]
    }

    /// Whether what is cached of a piece may be of use.
    fn is_alive(&self, id: NodeId, pool: &BlockPool) -> bool {
        let [full, windowed] = self.cached(id, pool);
        full.is_whole && (windowed.is_whole || self.tables.num_full > 0)
    }

    /// The blocks of the first pieces of a prompt, which the caller holds and uses from now on: all that [`Self::find`] found.
    pub(crate) fn take(&self, pieces: &[NodeId], pool: &mut BlockPool) -> SeqBlocks {
        let num_passed = self.first_seen(pieces.len()) * self.blocks_per_piece;
        let nodes = pieces.iter().filter_map(|&id| self.node(id));
        let kept: Vec<KeptBlock> = nodes.flat_map(|node| node.blocks.iter().copied()).collect();
        let blocks = kept.iter().map(|kept| kept.block()).collect();
        let blocks = SeqBlocks::with_passed(self.tables, blocks, num_passed);
        let is_held = |idx: usize| {
            let (column, table) = (idx / self.tables.len(), idx % self.tables.len());
            column >= blocks.num_passed() || table < self.tables.num_full
        };
        let held: Vec<KeptBlock> =
            kept.into_iter().enumerate().filter(|&(idx, _)| is_held(idx)).map(|(_, kept)| kept).collect();
        pool.hold_kept(&held);
        blocks
    }

    /// The first pieces of a prompt are computed, or will be by the step that is planned: in these blocks.
    pub(crate) fn store(&mut self, pieces: &[NodeId], blocks: &SeqBlocks, pool: &mut BlockPool) {
        let columns: Vec<&[KvBlock]> = blocks.columns().collect();
        for (idx, (&id, columns)) in
            pieces.iter().zip(columns.chunks_exact(self.blocks_per_piece)).enumerate()
        {
            // What a window has passed was stored when it was computed.
            let is_passed = idx * self.blocks_per_piece < blocks.num_passed();
            if is_passed || self.cached(id, pool).iter().all(|cached| cached.is_whole) {
                continue;
            }
            if let Some(node) = self.node_mut(id) {
                let blocks = columns.iter().flat_map(|column| column.iter());
                node.blocks = blocks.map(|&block| pool.keep(block)).collect();
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
                && !self.is_alive(id, pool)
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
mod tests;
