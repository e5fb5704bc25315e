//! The paged KV cache: blocks of tokens, found through block tables.
//!
//! How the numbers of one block lie is the backend's affair ([`CacheLayout`]); that the outermost axis counts blocks
//! is common to all, so copying blocks needs no backend.

use cpu_kernels::{KvShape, PackedKv};
pub use model_spec::BLOCK_SIZE_TOKENS;
use model_spec::{KvGroup, TableRows};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::backend::plain::to_device;
use crate::config::ModelConfig;
use crate::load::{Backend, LoadOptions};

/// Index of a block in the cache.
pub type BlockId = u32;

/// The shape that a backend gives to one block of one layer.
#[derive(Clone, Debug)]
pub(crate) struct CacheLayout {
    pub(crate) num_layers: usize,
    pub(crate) key_block_shape: Vec<i64>,
    pub(crate) value_block_shape: Vec<i64>,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

/// How the numbers of a cache lie.
#[derive(Debug)]
enum Storage {
    /// Tensors, one pair a layer.
    Tensors(Vec<LayerCache>),
    /// The layout of the CPU kernels.
    Packed(PackedKv),
    /// The layout of the CUDA kernels, keys and values of all layers in one tensor:
    /// `[num_layers, 2, num_blocks, num_query_groups, BLOCK_SIZE_TOKENS, kv_channels]`.
    Device(Tensor),
}

/// Keys and values of one layer, each `[num_blocks, ..block shape]`.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// Keys and values of all layers, in blocks of [`KvCache::block_size_tokens`] tokens.
#[derive(Debug)]
pub struct KvCache {
    num_blocks: usize,
    storage: Storage,
}

impl KvCache {
    pub(crate) fn new(num_blocks: usize, layout: &CacheLayout) -> Result<Self, ModelError> {
        let allocate = |block_shape: &[i64]| {
            let shape: Vec<i64> =
                std::iter::once(num_blocks as i64).chain(block_shape.iter().copied()).collect();
            // Kernels read whole blocks and multiply what lies beyond the sequence by 0, which a NaN would survive.
            Tensor::f_zeros(&shape, (layout.kind, layout.device))
        };
        let layers = (0..layout.num_layers)
            .map(|_| {
                Ok(LayerCache {
                    keys: allocate(&layout.key_block_shape)?,
                    values: allocate(&layout.value_block_shape)?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self { num_blocks, storage: Storage::Tensors(layers) })
    }

    /// A cache in the layout of the CPU kernels.
    pub(crate) fn packed(packed: PackedKv) -> Self {
        Self { num_blocks: packed.shape().num_blocks, storage: Storage::Packed(packed) }
    }

    /// The storage of the CPU kernels, if this is one.
    pub(crate) fn packed_mut(&mut self) -> Option<&mut PackedKv> {
        if let Storage::Packed(packed) = &mut self.storage { Some(packed) } else { None }
    }

    /// A cache in the layout of the CUDA kernels.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    pub(crate) fn on_device(
        num_blocks: usize,
        config: &ModelConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let shape = [
            config.num_layers,
            2,
            num_blocks,
            config.num_query_groups,
            BLOCK_SIZE_TOKENS,
            config.kv_channels,
        ];
        // Zeroed for the same reason as the others.
        let tensor = Tensor::f_zeros(shape.map(|dim| dim as i64), (kind, device))?;
        Ok(Self { num_blocks, storage: Storage::Device(tensor) })
    }

    /// Keys and values of one layer in the layout of the CUDA kernels, each
    /// `[num_blocks, num_query_groups, BLOCK_SIZE_TOKENS, kv_channels]`.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    pub(crate) fn device_layer(&self, layer_idx: usize) -> Result<(Tensor, Tensor), ModelError> {
        let Storage::Device(tensor) = &self.storage else {
            return Err(ModelError::NoBackend {
                backend: "CUDA",
                reason: "the KV cache is not in its layout",
            });
        };
        let layer = tensor.f_select(0, layer_idx as i64)?;
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

    /// Bytes that one block takes over all layers, for planning memory before there is a cache.
    pub fn bytes_per_block(config: &ModelConfig, options: LoadOptions) -> usize {
        let kv = options.precision.numerics().kv;
        let bytes = |group: &KvGroup| match (options.backend, options.device) {
            (Backend::Fused, Device::Cpu) => {
                let shape = KvShape {
                    num_layers: group.layers.len(),
                    num_blocks: 1,
                    num_query_groups: group.num_query_groups,
                    head_dim: group.kv_channels,
                };
                PackedKv::block_bytes(&shape, kv.size_bytes())
            }
            _ => group.bytes_per_block(kv) as usize,
        };
        // The cache does not depend on the tables.
        let spec = config.spec(TableRows { vocab: 0, positions: 0 });
        spec.kv_groups().iter().map(bytes).sum()
    }

    /// Copies whole blocks, `(from, to)` each, in order.
    ///
    /// # Errors
    /// When a block is outside the cache.
    pub fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        for &(from, to) in pairs {
            self.check_block(from)?;
            self.check_block(to)?;
        }
        let layers = match &mut self.storage {
            Storage::Packed(packed) => return Ok(packed.copy_blocks(pairs)?),
            Storage::Device(tensor) => return copy_on_device(tensor, pairs),
            Storage::Tensors(layers) => layers,
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

    pub(crate) fn check_block(&self, block: BlockId) -> Result<(), ModelError> {
        if (block as usize) < self.num_blocks {
            Ok(())
        } else {
            Err(ModelError::BadBlock { block, num_blocks: self.num_blocks })
        }
    }

    /// The storage of one layer. Tensors are shared handles: a kernel writes through them.
    pub(crate) fn layer(&self, layer_idx: usize) -> Result<&LayerCache, ModelError> {
        let layers = match &self.storage {
            Storage::Tensors(layers) => layers.as_slice(),
            Storage::Packed(_) | Storage::Device(_) => &[],
        };
        layers.get(layer_idx).ok_or_else(|| ModelError::BadBatch {
            what: "number of tensor layers in the KV cache",
            expected: format!("more than {layer_idx}"),
            actual: layers.len().to_string(),
        })
    }
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
    use super::*;

    #[test]
    fn copies_blocks_in_order_and_checks_their_ids() {
        let layout = CacheLayout {
            num_layers: 2,
            key_block_shape: vec![2, 3],
            value_block_shape: vec![6],
            kind: Kind::Float,
            device: Device::Cpu,
        };
        let mut cache = KvCache::new(3, &layout).unwrap();
        let _ = cache.layer(1).unwrap().keys.f_select(0, 0).unwrap().f_fill_(7.0).unwrap();
        cache.copy_blocks(&[(0, 1), (1, 2)]).unwrap();
        assert_eq!(cache.layer(1).unwrap().keys.f_double_value(&[2, 1, 2]).unwrap(), 7.0);
        assert_eq!(cache.layer(0).unwrap().keys.f_double_value(&[2, 1, 2]).unwrap(), 0.0);
        let error = cache.copy_blocks(&[(0, 3)]).unwrap_err();
        assert_eq!(error.to_string(), "KV block 3 is outside the cache of 3 blocks");
    }
}
