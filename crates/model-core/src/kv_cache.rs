//! The paged KV cache: blocks of tokens, found through block tables.
//!
//! Layers whose keys and values have one shape are a group with a pool of its own; a layer without attention is in none.
//! A block has the same number in all groups. Where layers have windows a sequence has several tables of blocks
//! ([`KvTables`]), and a layer knows its own. The layout of a block is up to the backend ([`KvPool`]); that
//! blocks are counted is common to all, so copying them needs no backend. Blocks that are swapped out lie with the host
//! until they are swapped in, bit for bit.

mod host;

use std::collections::HashMap;

use cpu_kernels::{KvShape, PackedKv};
use host::StoredBlock;
pub use host::{BlockMove, HostBlockId};
pub use model_spec::BLOCK_SIZE_TOKENS;
use model_spec::{KvFormat, KvGroup, KvPlace, KvTables};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::kinds::TensorFormat;
use crate::upload::to_device;

/// Index of a block in the cache, the same in all groups.
pub type BlockId = u32;

/// Keys and values of the layers of a group, in the layout of a backend. The layers have the order of the group.
#[derive(Debug)]
pub(crate) enum KvPool {
    /// libtorch's operations: a pair of tensors a layer.
    Tensors(Vec<LayerCache>),
    /// The CPU kernels.
    Packed(PackedKv),
    /// The CUDA kernels, keys and values of all layers in one tensor:
    /// `[num_layers, 2, num_blocks, num_query_groups, BLOCK_SIZE_TOKENS, kv_channels]`, or in FP8, with the exponents of a
    /// head behind its elements, `uint8[num_layers, 2, num_blocks, num_query_groups, BLOCK_SIZE_TOKENS * (kv_channels + 1)]`.
    Device(Tensor),
}

/// Keys and values of one layer, each `[num_blocks, BLOCK_SIZE_TOKENS, num_query_groups, kv_channels]`.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KvPool {
    /// Zeroed tensors, a pair a layer.
    pub(crate) fn tensors(
        group: &KvGroup,
        num_blocks: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let shape = [num_blocks, BLOCK_SIZE_TOKENS, group.num_query_groups, group.kv_channels];
        let shape = shape.map(|dim| dim as i64);
        // Kernels read whole blocks and multiply what lies beyond the sequence by 0, which a NaN would survive.
        let zeros = || Tensor::f_zeros(shape, (kind, device));
        let layers = (0..group.num_slots).map(|_| Ok(LayerCache { keys: zeros()?, values: zeros()? }));
        Ok(Self::Tensors(layers.collect::<Result<_, ModelError>>()?))
    }

    /// One zeroed tensor for the CUDA kernels.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "only the kernels of a GPU use it")
    )]
    pub(crate) fn device(
        group: &KvGroup,
        num_blocks: usize,
        format: KvFormat,
        device: Device,
    ) -> Result<Self, ModelError> {
        let &KvGroup { num_slots, num_query_groups, kv_channels, .. } = group;
        let (kind, of_head) = match format {
            KvFormat::Float(float) => (float.kind(), vec![BLOCK_SIZE_TOKENS, kv_channels]),
            KvFormat::Fp8 => (Kind::Uint8, vec![BLOCK_SIZE_TOKENS * format.head_bytes(kv_channels)]),
        };
        let shape = [vec![num_slots, 2, num_blocks, num_query_groups], of_head].concat();
        let shape: Vec<i64> = shape.into_iter().map(|dim| dim as i64).collect();
        // Zeroed for the same reason as the others.
        Ok(Self::Device(Tensor::f_zeros(shape, (kind, device))?))
    }

    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        let layers = match self {
            Self::Packed(packed) => return Ok(packed.copy_blocks(pairs)?),
            Self::Device(tensor) => return copy_on_device(tensor, pairs),
            Self::Tensors(layers) => layers,
        };
        for &(from, to) in pairs {
            for layer in layers.iter() {
                for stored in [&layer.keys, &layer.values] {
                    let source = stored.f_select(0, i64::from(from))?;
                    stored.f_select(0, i64::from(to))?.f_copy_(&source)?;
                }
            }
        }
        Ok(())
    }
}

/// Where the keys and values of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PoolLayer {
    pool_idx: usize,
    /// Among the layers of the pool.
    layer_idx: usize,
    /// Which table of a sequence has its blocks.
    table: usize,
}

/// Keys and values of all layers, in blocks of [`KvCache::block_size_tokens`] tokens.
#[derive(Debug)]
pub struct KvCache {
    num_blocks: usize,
    tables: KvTables,
    /// One for each group.
    pools: Vec<KvPool>,
    /// For each layer of the model, up to the last that has one.
    places: Vec<Option<PoolLayer>>,
    num_host_blocks: usize,
    /// What was swapped out, a part of each pool.
    host: HashMap<HostBlockId, Vec<StoredBlock>>,
}

impl KvCache {
    /// A cache with a pool for each of `groups`, which have these tables and which `make` allocates with `num_blocks` blocks.
    ///
    /// # Errors
    /// When there is not enough memory, or a layer has no table.
    pub(crate) fn new(
        num_blocks: usize,
        tables: KvTables,
        groups: &[KvGroup],
        make: impl FnMut(&KvGroup) -> Result<KvPool, ModelError>,
    ) -> Result<Self, ModelError> {
        let all_places = groups.iter().flat_map(|group| &group.places);
        let num_layers = all_places.map(|place| place.layer + 1).max().unwrap_or(0);
        let mut places = vec![None; num_layers];
        for (pool_idx, group) in groups.iter().enumerate() {
            for &KvPlace { layer, table, slot } in &group.places {
                if table >= tables.len() {
                    return Err(ModelError::NoKvTable { layer });
                }
                places[layer] = Some(PoolLayer { pool_idx, layer_idx: slot, table });
            }
        }
        let pools = groups.iter().map(make).collect::<Result<_, _>>()?;
        Ok(Self { num_blocks, tables, pools, places, num_host_blocks: 0, host: HashMap::new() })
    }

    /// The same cache, which may swap out as many blocks at once. Their memory is taken when they are.
    pub fn with_host_blocks(self, num_host_blocks: usize) -> Self {
        Self { num_host_blocks, ..self }
    }

    /// The pool of a layer, and which of its layers that is.
    fn pool(&self, layer_idx: usize) -> Option<(&KvPool, usize)> {
        let place = self.places.get(layer_idx).copied().flatten()?;
        Some((self.pools.get(place.pool_idx)?, place.layer_idx))
    }

    /// The block tables that each sequence has.
    pub fn tables(&self) -> KvTables {
        self.tables
    }

    /// Which table has the blocks of a layer.
    pub(crate) fn table_of(&self, layer_idx: usize) -> usize {
        self.places.get(layer_idx).copied().flatten().map_or(0, |place| place.table)
    }

    /// Keys and values of one layer where libtorch's operations compute. Tensors are shared handles: a kernel writes through
    /// them.
    pub(crate) fn layer(&self, layer_idx: usize) -> Result<&LayerCache, ModelError> {
        match self.pool(layer_idx) {
            Some((KvPool::Tensors(layers), idx)) => layers.get(idx).ok_or(other_layout("plain")),
            _ => Err(other_layout("plain")),
        }
    }

    /// The pool of one layer in the layout of the CPU kernels, and which of its layers that is.
    pub(crate) fn packed_layer(&mut self, layer_idx: usize) -> Result<(&mut PackedKv, usize), ModelError> {
        let place = self.places.get(layer_idx).copied().flatten();
        let pool = place.and_then(|place| Some((self.pools.get_mut(place.pool_idx)?, place.layer_idx)));
        match pool {
            Some((KvPool::Packed(packed), idx)) => Ok((packed, idx)),
            _ => Err(other_layout("fused")),
        }
    }

    /// Keys and values of one layer in the layout of the CUDA kernels, each
    /// `[num_blocks, num_query_groups, BLOCK_SIZE_TOKENS, kv_channels]`, or as FP8 is laid out ([`KvPool::Device`]).
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "only the kernels of a GPU use it")
    )]
    pub(crate) fn device_layer(&self, layer_idx: usize) -> Result<(Tensor, Tensor), ModelError> {
        let Some((KvPool::Device(tensor), idx)) = self.pool(layer_idx) else {
            return Err(other_layout("CUDA"));
        };
        let layer = tensor.f_select(0, idx as i64)?;
        Ok((layer.f_select(0, 0)?, layer.f_select(0, 1)?))
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens in a block.
    pub fn block_size_tokens(&self) -> usize {
        BLOCK_SIZE_TOKENS
    }

    /// Copies whole blocks in all layers, `(from, to)` each, in order.
    ///
    /// # Errors
    /// When a block is outside the cache.
    pub fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        for &(from, to) in pairs {
            self.check_block(from)?;
            self.check_block(to)?;
        }
        self.pools.iter_mut().try_for_each(|pool| pool.copy_blocks(pairs))
    }

    /// Moves whole blocks of all layers, in order. On a GPU everything is enqueued on the current stream.
    ///
    /// # Errors
    /// When a block is outside the cache or the host's part, nothing was swapped out to where one is to come from, or there
    /// is no memory.
    pub fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), ModelError> {
        for same in moves.chunk_by(|a, b| a.is_copy() && b.is_copy()) {
            match *same {
                [BlockMove::SwapOut { from, to }] => self.swap_out(from, to)?,
                [BlockMove::SwapIn { from, to }] => self.swap_in(from, to)?,
                _ => self.copy_blocks(&same.iter().filter_map(BlockMove::copied).collect::<Vec<_>>())?,
            }
        }
        Ok(())
    }

    fn swap_out(&mut self, from: BlockId, to: HostBlockId) -> Result<(), ModelError> {
        self.check_block(from)?;
        if to as usize >= self.num_host_blocks {
            return Err(self.bad_host_block(to));
        }
        let stored = self.pools.iter().map(|pool| pool.store(from)).collect::<Result<_, _>>()?;
        self.host.insert(to, stored);
        Ok(())
    }

    fn swap_in(&mut self, from: HostBlockId, to: BlockId) -> Result<(), ModelError> {
        self.check_block(to)?;
        let stored = self.host.remove(&from).ok_or_else(|| self.bad_host_block(from))?;
        self.pools.iter_mut().zip(&stored).try_for_each(|(pool, stored)| pool.restore(to, stored))
    }

    fn bad_host_block(&self, block: HostBlockId) -> ModelError {
        ModelError::BadHostBlock { block, num_host_blocks: self.num_host_blocks }
    }

    pub(crate) fn check_block(&self, block: BlockId) -> Result<(), ModelError> {
        if (block as usize) < self.num_blocks {
            Ok(())
        } else {
            Err(ModelError::BadBlock { block, num_blocks: self.num_blocks })
        }
    }
}

/// The sizes of a group's pool for the CPU kernels.
pub(crate) fn packed_shape(group: &KvGroup, num_blocks: usize) -> KvShape {
    KvShape {
        num_layers: group.num_slots,
        num_blocks,
        num_query_groups: group.num_query_groups,
        head_dim: group.kv_channels,
    }
}

fn other_layout(backend: &'static str) -> ModelError {
    ModelError::NoBackend { backend, reason: "the KV cache has not the layer in its layout" }
}

/// All at once, up to the first pair that reads what an earlier one writes.
fn copy_on_device(tensor: &mut Tensor, pairs: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
    let mut rest = pairs;
    while !rest.is_empty() {
        let is_apart = |end: &usize| {
            let (earlier, pair) = rest.split_at(*end);
            earlier
                .iter()
                .all(|(_, to)| pair.first().is_none_or(|(from, also_to)| from != to && also_to != to))
        };
        let num_pairs = (1..rest.len()).take_while(is_apart).count() + 1;
        let (now, later) = rest.split_at(num_pairs);
        let index = |blocks: Vec<i64>| to_device(&blocks, tensor.device());
        let from = index(now.iter().map(|&(from, _)| i64::from(from)).collect())?;
        let to = index(now.iter().map(|&(_, to)| i64::from(to)).collect())?;
        let blocks = tensor.f_index_select(2, &from)?;
        let _ = tensor.f_index_copy_(2, &to, &blocks)?;
        rest = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cpu_kernels::CpuKernels;
    use model_spec::Float;

    use super::*;

    const NUM_BLOCKS: usize = 5;

    /// A model of four layers: two shapes of heads, and one layer without attention.
    fn groups() -> [KvGroup; 2] {
        [KvGroup::of_layers(&[0, 3], 2, 16), KvGroup::of_layers(&[1], 1, 24)]
    }

    fn tensors() -> KvCache {
        let make = |group: &KvGroup| KvPool::tensors(group, NUM_BLOCKS, Kind::Float, Device::Cpu);
        KvCache::new(NUM_BLOCKS, KvTables::ONE, &groups(), make).unwrap()
    }

    /// The layout of the CUDA kernels, in the memory of the host.
    fn device() -> KvCache {
        device_in(KvFormat::Float(Float::Fp32))
    }

    fn device_in(format: KvFormat) -> KvCache {
        let make = |group: &KvGroup| KvPool::device(group, NUM_BLOCKS, format, Device::Cpu);
        KvCache::new(NUM_BLOCKS, KvTables::ONE, &groups(), make).unwrap()
    }

    fn packed() -> KvCache {
        let mut kernels = CpuKernels::new(1).unwrap();
        let make = |group: &KvGroup| {
            Ok(KvPool::Packed(kernels.new_kv(packed_shape(group, NUM_BLOCKS), Kind::Float)?))
        };
        KvCache::new(NUM_BLOCKS, KvTables::ONE, &groups(), make).unwrap()
    }

    /// Keys and values of a layer, blocks first.
    fn stored(cache: &KvCache, layer_idx: usize) -> [Tensor; 2] {
        match cache.device_layer(layer_idx) {
            Ok((keys, values)) => [keys, values],
            Err(_) => {
                let layer = cache.layer(layer_idx).unwrap();
                [layer.keys.shallow_clone(), layer.values.shallow_clone()]
            }
        }
    }

    #[test]
    fn each_layer_has_the_shape_of_its_group() {
        for layer_idx in [0, 3] {
            let [keys, values] = stored(&tensors(), layer_idx);
            assert_eq!([keys.size(), values.size()], [[5, 32, 2, 16], [5, 32, 2, 16]]);
            assert_eq!(stored(&device(), layer_idx)[1].size(), [5, 2, 32, 16]);
        }
        assert_eq!(stored(&tensors(), 1)[0].size(), [5, 32, 1, 24]);
        assert_eq!(stored(&device(), 1)[0].size(), [5, 1, 32, 24]);
        let fp8 = stored(&device_in(KvFormat::Fp8), 1);
        assert_eq!((fp8[0].size(), fp8[1].kind()), (vec![5, 1, 32 * 25], Kind::Uint8));
        let mut packed = packed();
        let shape = |cache: &mut KvCache, layer_idx| {
            let (pool, idx) = cache.packed_layer(layer_idx).unwrap();
            let shape = pool.shape();
            (shape.num_layers, shape.num_query_groups, shape.head_dim, idx)
        };
        assert_eq!(shape(&mut packed, 0), (2, 2, 16, 0));
        assert_eq!(shape(&mut packed, 3), (2, 2, 16, 1));
        assert_eq!(shape(&mut packed, 1), (1, 1, 24, 0));
        // A layer without attention, and one past the last.
        for layer_idx in [2, 4] {
            assert!(tensors().layer(layer_idx).is_err());
            assert!(device().device_layer(layer_idx).is_err());
            assert!(packed.packed_layer(layer_idx).is_err());
        }
        assert!(tensors().device_layer(0).is_err() && device().layer(0).is_err(), "another layout");
    }

    #[test]
    fn layers_of_several_tables_have_their_parts_of_a_block() {
        let places = [(0, 0, 0), (1, 1, 0), (2, 1, 1), (4, 0, 1)];
        let places = places.map(|(layer, table, slot)| KvPlace { layer, table, slot });
        let group = KvGroup { places: places.to_vec(), num_slots: 2, num_query_groups: 1, kv_channels: 8 };
        let tables = KvTables { num_full: 1, num_windowed: 1, window_tokens: 5 };
        let make = |group: &KvGroup| KvPool::tensors(group, NUM_BLOCKS, Kind::Float, Device::Cpu);
        let cache = KvCache::new(NUM_BLOCKS, tables, std::slice::from_ref(&group), make).unwrap();
        assert_eq!([0, 1, 2, 4].map(|layer| cache.table_of(layer)), [0, 1, 1, 0]);
        let keys = |layer| cache.layer(layer).unwrap().keys.data_ptr();
        assert!(keys(0) == keys(1) && keys(2) == keys(4) && keys(0) != keys(2));
        let error = KvCache::new(NUM_BLOCKS, KvTables::ONE, &[group], make).unwrap_err();
        insta::assert_snapshot!(error, @"layer 1 keeps keys and values for all tokens, and the KV cache has no table that does");
    }

    #[test]
    fn blocks_are_copied_in_all_groups_in_order() {
        for mut cache in [tensors(), device()] {
            for (layer_idx, value) in [(0, 7.0), (1, 8.0), (3, 9.0)] {
                for tensor in stored(&cache, layer_idx) {
                    let _ = tensor.f_select(0, 0).unwrap().f_fill_(value).unwrap();
                }
            }
            cache.copy_blocks(&[(0, 1), (1, 2), (3, 1)]).unwrap();
            for (layer_idx, value) in [(0, 7.0), (1, 8.0), (3, 9.0)] {
                for tensor in stored(&cache, layer_idx) {
                    let block = |idx| tensor.f_select(0, idx).unwrap().f_mean(Kind::Float).unwrap();
                    let means = [0, 1, 2, 3].map(|idx| block(idx).f_double_value(&[]).unwrap());
                    assert_eq!(means, [value, 0.0, value, 0.0], "layer {layer_idx}");
                }
            }
            let error = cache.copy_blocks(&[(0, 5)]).unwrap_err();
            assert_eq!(error.to_string(), "KV block 5 is outside the cache of 5 blocks");
        }
        packed().copy_blocks(&[(0, 1), (1, 4)]).unwrap();
    }

    /// The bits of a block, in all groups.
    fn bits(cache: &KvCache, block: BlockId) -> String {
        format!("{:?}", cache.pools.iter().map(|pool| pool.store(block).unwrap().bits()).collect::<Vec<_>>())
    }

    #[test]
    fn blocks_come_back_from_the_host_with_the_same_bits() {
        let fp8 = device_in(KvFormat::Fp8);
        for (layout, cache) in [("plain", tensors()), ("CUDA", device()), ("FP8", fp8), ("fused", packed())] {
            let mut cache = cache.with_host_blocks(2);
            for block in 0..NUM_BLOCKS as BlockId {
                for pool in &mut cache.pools {
                    let mut stored = pool.store(block).unwrap();
                    stored.fill(f64::from(block) + 0.5);
                    pool.restore(block, &stored).unwrap();
                }
            }
            let before: Vec<String> = (0..NUM_BLOCKS as BlockId).map(|block| bits(&cache, block)).collect();
            cache
                .move_blocks(&[
                    BlockMove::SwapOut { from: 1, to: 0 },
                    BlockMove::SwapOut { from: 2, to: 1 },
                    BlockMove::Copy { from: 3, to: 1 },
                    BlockMove::Copy { from: 1, to: 2 },
                    BlockMove::SwapIn { from: 0, to: 3 },
                    BlockMove::SwapOut { from: 4, to: 0 },
                    BlockMove::SwapIn { from: 1, to: 4 },
                ])
                .unwrap();
            let after: Vec<String> = (0..NUM_BLOCKS as BlockId).map(|block| bits(&cache, block)).collect();
            assert_eq!(after, [0, 3, 3, 1, 2].map(|block: usize| before[block].clone()), "{layout}");
            cache.move_blocks(&[BlockMove::SwapIn { from: 0, to: 0 }]).unwrap();
            assert_eq!(bits(&cache, 0), before[4], "{layout}");
            let mut refused = |block_move| cache.move_blocks(&[block_move]).unwrap_err().to_string();
            let nothing = refused(BlockMove::SwapIn { from: 0, to: 1 });
            assert_eq!(
                nothing,
                "KV block 0 is none of the 2 that the host may hold, or it holds nothing there"
            );
            assert!(
                refused(BlockMove::SwapOut { from: 0, to: 2 }).starts_with("KV block 2 is none of the 2")
            );
            assert!(refused(BlockMove::SwapOut { from: 5, to: 0 }).starts_with("KV block 5 is outside"));
            assert!(refused(BlockMove::SwapIn { from: 0, to: 5 }).starts_with("KV block 5 is outside"));
        }
    }
}
