//! What weights and KV cache take of memory, layer by layer.

use std::ops::Range;

use crate::{Indivisible, KvFormat, ModelSpec, Module, Numerics, ShardPlace};

/// Tokens in a block of the KV cache, for every backend.
pub const BLOCK_SIZE_TOKENS: usize = 32;

/// Norms and routers are held in float32, whatever the other weights are held in.
const FLOAT32_BYTES: u64 = 4;

/// Blocks of `block_size_tokens`, at least 1, that hold this many tokens of one sequence.
pub const fn blocks_for(num_tokens: usize, block_size_tokens: usize) -> usize {
    num_tokens.div_ceil(block_size_tokens)
}

/// Layers whose keys and values have one shape, so that one tensor can hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// The layers, in order.
    pub layers: Vec<usize>,
    /// Key and value heads of each.
    pub num_query_groups: usize,
    /// Dimensions of a head.
    pub kv_channels: usize,
    /// How far back they reach, in tokens, where that is not everywhere.
    pub window_tokens: Option<usize>,
}

impl KvGroup {
    /// Bytes that a block of [`BLOCK_SIZE_TOKENS`] takes over the group's layers, without padding.
    pub fn bytes_per_block(&self, format: KvFormat) -> u64 {
        let factors = [
            self.layers.len(),
            self.num_query_groups,
            BLOCK_SIZE_TOKENS,
            format.head_bytes(self.kv_channels),
        ];
        factors.iter().fold(2, |product: u64, &factor| product.saturating_mul(factor as u64))
    }
}

/// What a rank's part of a model takes of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the weights as they are held.
    pub weight_bytes: u64,
    /// Of these, bytes of tables of which a step reads no more than a row a token.
    pub lookup_bytes: u64,
    /// The groups of layers of its KV cache, each with the bytes a block takes without padding.
    pub kv: Vec<(KvGroup, u64)>,
}

impl Footprint {
    /// Bytes that a block takes over all layers, without padding.
    pub fn bytes_per_block(&self) -> u64 {
        self.kv.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl ModelSpec {
    /// The layers with a KV cache, grouped by its shape, in order of their first layers. A layer without attention is in
    /// no group.
    pub fn kv_groups(&self) -> Vec<KvGroup> {
        self.kv_groups_of(0..self.layers.len(), 1)
    }

    fn kv_groups_of(&self, layers: Range<usize>, tp_size: usize) -> Vec<KvGroup> {
        let mut groups: Vec<KvGroup> = Vec::new();
        for layer_idx in layers {
            let Some(attention) = self.layers.get(layer_idx).and_then(|layer| layer.attention.as_ref())
            else {
                continue;
            };
            let group = KvGroup {
                layers: vec![layer_idx],
                num_query_groups: attention.heads.of_rank(tp_size).num_query_groups,
                kv_channels: attention.heads.kv_channels,
                window_tokens: attention.window.map(|window| window.tokens),
            };
            let is_alike = |other: &KvGroup| {
                KvGroup { layers: Vec::new(), ..other.clone() }
                    == KvGroup { layers: Vec::new(), ..group.clone() }
            };
            match groups.iter_mut().find(|other| is_alike(other)) {
                Some(alike) => alike.layers.push(layer_idx),
                None => groups.push(group),
            }
        }
        groups
    }

    /// What a rank's part of the model takes.
    ///
    /// # Errors
    /// When the ranks cannot share a tensor evenly.
    pub fn footprint(&self, numerics: &Numerics, at: &ShardPlace) -> Result<Footprint, Indivisible> {
        let (mut weight_bytes, mut lookup_bytes) = (0_u64, 0_u64);
        for tensor in self.tensors().filter(|tensor| at.holds(self, tensor.id)) {
            let tensor_bytes = tensor.regions(at)?.iter().fold(0, |sum: u64, region| {
                sum.saturating_add(match *region.shape() {
                    _ if tensor.id.module.is_float32() => region.num_elems().saturating_mul(FLOAT32_BYTES),
                    [rows, columns] => numerics.matrix_bytes(tensor.id.module, [rows, columns]),
                    _ => region.num_elems().saturating_mul(numerics.plain_weights().size_bytes() as u64),
                })
            });
            weight_bytes = weight_bytes.saturating_add(tensor_bytes);
            let is_lookup = match tensor.id.module {
                Module::WordEmbeddings => !self.output.tied,
                module => module == Module::PositionEmbeddings,
            };
            lookup_bytes = lookup_bytes.saturating_add(if is_lookup { tensor_bytes } else { 0 });
        }
        let groups = self.kv_groups_of(at.layers.clone(), at.tp_size as usize);
        let sized = |group: KvGroup| {
            let bytes = group.bytes_per_block(numerics.kv);
            (group, bytes)
        };
        Ok(Footprint { weight_bytes, lookup_bytes, kv: groups.into_iter().map(sized).collect() })
    }
}

#[cfg(test)]
mod tests;
