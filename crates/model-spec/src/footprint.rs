//! What weights and KV cache take of memory, layer by layer.

use crate::{Indivisible, KvGroup, KvTables, ModelSpec, Module, Numerics, ShardPlace};

/// Norms and routers are held in float32, whatever the other weights are held in.
const FLOAT32_BYTES: u64 = 4;

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
    /// What a rank's part of the model takes, with one block table for all layers.
    ///
    /// # Errors
    /// When the ranks cannot share a tensor evenly.
    pub fn footprint(&self, numerics: &Numerics, at: &ShardPlace) -> Result<Footprint, Indivisible> {
        self.footprint_in(numerics, at, KvTables::ONE)
    }

    /// The same with these tables.
    ///
    /// # Errors
    /// When the ranks cannot share a tensor evenly.
    pub fn footprint_in(
        &self,
        numerics: &Numerics,
        at: &ShardPlace,
        tables: KvTables,
    ) -> Result<Footprint, Indivisible> {
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
        let groups = self.kv_groups_of(at.layers.clone(), at.tp_size as usize, tables);
        let sized = |group: KvGroup| {
            let bytes = group.bytes_per_block(numerics.kv);
            (group, bytes)
        };
        Ok(Footprint { weight_bytes, lookup_bytes, kv: groups.into_iter().map(sized).collect() })
    }
}

#[cfg(test)]
mod tests;
