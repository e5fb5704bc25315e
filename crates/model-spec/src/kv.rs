//! How the layers of a model share the blocks of a KV cache.
//!
//! A block holds the same tokens of some layers. Where no layer has a window that is all of them, and a sequence has one
//! table of blocks. Where some have one they are divided: a sequence has several tables, some for layers that see all
//! tokens and some for layers with a window, whose blocks are given back as the window leaves them behind. All blocks are
//! of one kind, so that whoever needs more takes what another has given back.

use std::ops::Range;

use crate::{KvFormat, ModelSpec};

/// Tokens in a block of the KV cache, for every backend.
pub const BLOCK_SIZE_TOKENS: usize = 32;

/// Blocks of `block_size_tokens`, at least 1, that hold this many tokens of one sequence.
pub const fn blocks_for(num_tokens: usize, block_size_tokens: usize) -> usize {
    num_tokens.div_ceil(block_size_tokens)
}

/// Most tables of a sequence: each has a part in what a step is told.
const MAX_TABLES: usize = 8;
/// What a division must save of a sequence's memory to be worth its tables: this part of it.
const LEAST_SAVED_PART: u64 = 16;
/// Blocks that a table with a window has beyond the window, for what comes next.
pub const WINDOW_AHEAD_BLOCKS: usize = 2;

/// The block tables that each sequence of a cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvTables {
    /// Tables that keep all tokens. They come first.
    pub num_full: usize,
    /// Tables of layers with a window.
    pub num_windowed: usize,
    /// How many tokens a token of those sees, itself among them; at least 1.
    pub window_tokens: usize,
}

impl KvTables {
    /// One for all layers, which keeps all tokens.
    pub const ONE: Self = Self { num_full: 1, num_windowed: 0, window_tokens: 1 };

    /// How many there are.
    pub const fn len(self) -> usize {
        self.num_full + self.num_windowed
    }

    /// Whether there is none, which no cache has.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Tokens that nobody sees in the tables with a window who computes the token at `position` or a later one.
    pub const fn num_unseen(self, position: usize) -> usize {
        match self.num_windowed {
            0 => 0,
            _ => (position + 1).saturating_sub(self.window_tokens),
        }
    }

    /// Blocks at the front of the tables with a window of only such tokens, which nobody reads any more.
    pub const fn num_passed(self, position: usize, block_size_tokens: usize) -> usize {
        self.num_unseen(position) / block_size_tokens
    }

    /// The most blocks of a table with a window that `num_tokens` read and write which are computed at once.
    pub const fn window_blocks(self, num_tokens: usize, block_size_tokens: usize) -> usize {
        // As many tokens in a row as these, wherever in a block they begin.
        let most_tokens = (self.window_tokens + num_tokens).saturating_sub(1);
        most_tokens.saturating_sub(1).div_ceil(block_size_tokens) + 1
    }

    /// Blocks in all tables of a sequence of so many blocks of tokens, of which those with a window hold at most
    /// `most_windowed`.
    pub const fn num_blocks(self, num_token_blocks: usize, most_windowed: usize) -> usize {
        let windowed = if num_token_blocks < most_windowed { num_token_blocks } else { most_windowed };
        self.num_full * num_token_blocks + self.num_windowed * windowed
    }

    /// The same of a sequence that goes on token by token.
    pub const fn num_blocks_of(self, num_token_blocks: usize) -> usize {
        let most_windowed = self.window_blocks(1, BLOCK_SIZE_TOKENS) + WINDOW_AHEAD_BLOCKS;
        self.num_blocks(num_token_blocks, most_windowed)
    }
}

impl Default for KvTables {
    fn default() -> Self {
        Self::ONE
    }
}

/// Where the keys and values of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPlace {
    /// The layer of the model.
    pub layer: usize,
    /// Which table has its blocks.
    pub table: usize,
    /// Which part of a block is its own.
    pub slot: usize,
}

/// Layers whose keys and values have one shape, so that one tensor can hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// The layers, in order.
    pub places: Vec<KvPlace>,
    /// Layers of which a block has keys and values.
    pub num_slots: usize,
    /// Key and value heads of each.
    pub num_query_groups: usize,
    /// Dimensions of a head.
    pub kv_channels: usize,
}

impl KvGroup {
    /// Layers that share every block.
    pub fn of_layers(layers: &[usize], num_query_groups: usize, kv_channels: usize) -> Self {
        let place = |(slot, &layer): (usize, &usize)| KvPlace { layer, table: 0, slot };
        let places = layers.iter().enumerate().map(place).collect();
        Self { places, num_slots: layers.len(), num_query_groups, kv_channels }
    }

    /// Bytes that a block of [`BLOCK_SIZE_TOKENS`] takes over its layers, without padding.
    pub fn bytes_per_block(&self, format: KvFormat) -> u64 {
        let factors =
            [self.num_slots, self.num_query_groups, BLOCK_SIZE_TOKENS, format.head_bytes(self.kv_channels)];
        factors.iter().fold(2, |product: u64, &factor| product.saturating_mul(factor as u64))
    }
}

/// A layer with a KV cache.
#[derive(Clone, Copy)]
struct KvLayer {
    layer: usize,
    num_query_groups: usize,
    kv_channels: usize,
    has_window: bool,
}

impl ModelSpec {
    /// The widest window that a layer has, where one has a window shorter than `longest_tokens`.
    fn window_tokens(&self, longest_tokens: usize) -> Option<usize> {
        let layers = self.layers.iter().filter_map(|layer| layer.attention.as_ref());
        layers.filter_map(|of| of.local_tokens).filter(|&tokens| tokens < longest_tokens).max()
    }

    /// The tables with which sequences of up to `longest_tokens` take the least memory. Every rank of a model asks for
    /// those of the whole, as it has the same tables.
    pub fn kv_tables(&self, longest_tokens: usize) -> KvTables {
        let Some(window_tokens) = self.window_tokens(longest_tokens) else { return KvTables::ONE };
        let token_blocks = blocks_for(longest_tokens, BLOCK_SIZE_TOKENS) + 1;
        let bytes_of = |tables: KvTables| -> u64 {
            let groups = self.kv_groups_of(0..self.layers.len(), 1, tables);
            let block_elems =
                groups.iter().map(|group| group.num_slots * group.num_query_groups * group.kv_channels);
            block_elems.sum::<usize>() as u64 * tables.num_blocks_of(token_blocks) as u64
        };
        let layers = self.kv_layers(0..self.layers.len(), 1, window_tokens);
        // Those that keep all tokens must have a table, and others must not take one from them.
        let nums_full = if layers.iter().all(|layer| layer.has_window) { 0..1 } else { 1..MAX_TABLES };
        let divided = nums_full.flat_map(|num_full| {
            let nums_windowed = 1..=MAX_TABLES - num_full;
            nums_windowed.map(move |num_windowed| KvTables { num_full, num_windowed, window_tokens })
        });
        let Some(best) = divided.min_by_key(|&tables| (bytes_of(tables), tables.len())) else {
            return KvTables::ONE;
        };
        let whole_bytes = bytes_of(KvTables::ONE);
        let most_bytes = whole_bytes - whole_bytes / LEAST_SAVED_PART;
        if bytes_of(best) <= most_bytes { best } else { KvTables::ONE }
    }

    /// The layers with a KV cache, grouped by its shape, in order of their first layers, with one table for all. A layer
    /// without attention is in no group.
    pub fn kv_groups(&self) -> Vec<KvGroup> {
        self.kv_groups_in(KvTables::ONE)
    }

    /// The same in the tables of a cache.
    pub fn kv_groups_in(&self, tables: KvTables) -> Vec<KvGroup> {
        self.kv_groups_of(0..self.layers.len(), 1, tables)
    }

    fn kv_layers(&self, layers: Range<usize>, tp_size: usize, window_tokens: usize) -> Vec<KvLayer> {
        let of_layer = |layer: usize| {
            let attention = self.layers.get(layer)?.attention.as_ref()?;
            Some(KvLayer {
                layer,
                num_query_groups: attention.heads.of_rank(tp_size).num_query_groups,
                kv_channels: attention.heads.kv_channels,
                has_window: attention.local_tokens.is_some_and(|tokens| tokens <= window_tokens),
            })
        };
        layers.filter_map(of_layer).collect()
    }

    pub(crate) fn kv_groups_of(
        &self,
        layers: Range<usize>,
        tp_size: usize,
        tables: KvTables,
    ) -> Vec<KvGroup> {
        let mut groups: Vec<(KvGroup, [usize; 2])> = Vec::new();
        for of in self.kv_layers(layers, tp_size, tables.window_tokens) {
            let is_windowed = of.has_window && tables.num_windowed > 0;
            let shape = (of.num_query_groups, of.kv_channels);
            let known =
                groups.iter().position(|(group, _)| (group.num_query_groups, group.kv_channels) == shape);
            let idx = known.unwrap_or_else(|| {
                groups.push((KvGroup::of_layers(&[], shape.0, shape.1), [0; 2]));
                groups.len() - 1
            });
            let (group, counts) = &mut groups[idx];
            let nth = counts[usize::from(is_windowed)];
            counts[usize::from(is_windowed)] += 1;
            let (table, slot) = match (is_windowed, tables.num_full) {
                (true, num_full) => (num_full + nth % tables.num_windowed, nth / tables.num_windowed),
                // There is no table for it, and none is what a cache refuses.
                (false, 0) => (tables.len(), nth),
                (false, num_full) => (nth % num_full, nth / num_full),
            };
            group.places.push(KvPlace { layer: of.layer, table, slot });
            group.num_slots = group.num_slots.max(slot + 1);
        }
        groups.into_iter().map(|(group, _)| group).collect()
    }
}

#[cfg(test)]
mod tests;
