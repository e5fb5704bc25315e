//! The paged KV cache: blocks of tokens, found through block tables.
//!
//! How the numbers of one block lie is the backend's affair ([`CacheLayout`]); that the outermost axis counts blocks
//! is common to all, so copying blocks needs no backend.

use tch::{Device, Kind, Tensor};
use torch_ext::cpu::{KvShape, PackedKv};

use crate::ModelError;
use crate::config::ModelConfig;
use crate::load::{Backend, LoadOptions};

/// Index of a block in the cache.
pub type BlockId = u32;

/// Tokens in a block, for every backend.
pub const BLOCK_SIZE_TOKENS: usize = 32;

/// The shape that a backend gives to one block of one layer.
#[derive(Clone, Debug)]
pub(crate) struct CacheLayout {
    pub(crate) num_layers: usize,
    pub(crate) key_block_shape: Vec<i64>,
    pub(crate) value_block_shape: Vec<i64>,
    pub(crate) kind: Kind,
}

/// How the numbers of a cache lie.
#[derive(Debug)]
enum Storage {
    /// Tensors, one pair a layer.
    Tensors(Vec<LayerCache>),
    /// The layout of the CPU kernels.
    Packed(PackedKv),
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
            Tensor::f_zeros(&shape, (layout.kind, Device::Cpu))
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
        let elem_bytes = options.precision.size_bytes();
        let shape = KvShape {
            num_layers: config.num_layers,
            num_blocks: 1,
            num_query_groups: config.num_query_groups,
            head_dim: config.kv_channels,
        };
        match options.backend {
            Backend::Fused => PackedKv::block_bytes(&shape, elem_bytes),
            Backend::Plain => {
                let elems_per_token = 2 * shape.num_layers * shape.num_query_groups * shape.head_dim;
                elems_per_token * BLOCK_SIZE_TOKENS * elem_bytes
            }
        }
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
            Storage::Packed(_) => &[],
        };
        layers.get(layer_idx).ok_or_else(|| ModelError::BadBatch {
            what: "number of tensor layers in the KV cache",
            expected: format!("more than {layer_idx}"),
            actual: layers.len().to_string(),
        })
    }
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
