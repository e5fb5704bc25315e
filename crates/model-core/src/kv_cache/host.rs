//! Blocks that are swapped out: the host keeps their bits until they come back.
//!
//! A GPU's blocks go to page-locked memory, which libtorch hands out and keeps for later ones, so that a copy waits for
//! nothing but the work before it on its stream.

use cpu_kernels::PackedBlock;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::{BlockId, KvPool, other_layout};
use crate::ModelError;

/// A place for one block in the host's memory.
pub type HostBlockId = u32;

/// What happens to the bits of a whole block of all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockMove {
    /// They are in two blocks of the cache afterwards.
    Copy {
        /// Where they are.
        from: BlockId,
        /// Where they go.
        to: BlockId,
    },
    /// The host keeps them; the block may be used for others.
    SwapOut {
        /// Where they are.
        from: BlockId,
        /// Where they go.
        to: HostBlockId,
    },
    /// They come back, and the host keeps them no longer.
    SwapIn {
        /// Where they are.
        from: HostBlockId,
        /// Where they go.
        to: BlockId,
    },
}

impl BlockMove {
    /// Whether nothing of it concerns the host.
    pub fn is_copy(&self) -> bool {
        matches!(self, Self::Copy { .. })
    }

    /// Source and destination of a copy.
    pub(super) fn copied(&self) -> Option<(BlockId, BlockId)> {
        if let Self::Copy { from, to } = *self { Some((from, to)) } else { None }
    }
}

/// One block of a pool, as it lay there.
#[derive(Debug)]
pub(super) enum StoredBlock {
    /// Keys and values of each layer, or those of all layers in one.
    Tensors(Vec<Tensor>),
    Packed(PackedBlock),
}

impl KvPool {
    /// Copies a block to the host.
    pub(super) fn store(&self, block: BlockId) -> Result<StoredBlock, ModelError> {
        let parts = match self {
            Self::Packed(packed) => return Ok(StoredBlock::Packed(packed.read_block(block)?)),
            // `[num_layers, 2, num_query_groups, BLOCK_SIZE_TOKENS, kv_channels]`, in one piece for the bus.
            Self::Device(tensor) => vec![tensor.f_select(2, i64::from(block))?.f_contiguous()?],
            Self::Tensors(layers) => {
                let of_layer = |stored: &Tensor| stored.f_select(0, i64::from(block));
                let both = layers.iter().flat_map(|layer| [&layer.keys, &layer.values]);
                both.map(of_layer).collect::<Result<_, _>>()?
            }
        };
        // A copy that does not wait goes to page-locked memory.
        let to_host = |part: &Tensor| {
            let does_not_wait = part.device() != Device::Cpu;
            part.f_to_device_(Device::Cpu, part.kind(), does_not_wait, true)
        };
        Ok(StoredBlock::Tensors(parts.iter().map(to_host).collect::<Result<_, _>>()?))
    }

    /// Writes what [`KvPool::store`] gave into a block.
    pub(super) fn restore(&mut self, block: BlockId, stored: &StoredBlock) -> Result<(), ModelError> {
        match (self, stored) {
            (Self::Packed(packed), StoredBlock::Packed(stored)) => Ok(packed.write_block(block, stored)?),
            (Self::Device(tensor), StoredBlock::Tensors(parts)) => {
                let [part] = parts.as_slice() else { return Err(other_layout("CUDA")) };
                let part = part.f_to_device_(tensor.device(), part.kind(), true, false)?;
                Ok(tensor.f_select(2, i64::from(block))?.f_copy_(&part)?)
            }
            (Self::Tensors(layers), StoredBlock::Tensors(parts)) => {
                let both = layers.iter().flat_map(|layer| [&layer.keys, &layer.values]);
                for (whole, part) in both.zip(parts) {
                    whole.f_select(0, i64::from(block))?.f_copy_(part)?;
                }
                Ok(())
            }
            _ => Err(other_layout("another")),
        }
    }
}

#[cfg(test)]
impl StoredBlock {
    pub(super) fn fill(&mut self, value: f64) {
        match self {
            Self::Tensors(parts) => parts.iter_mut().for_each(|part| {
                let _ = part.f_fill_(value).unwrap();
            }),
            Self::Packed(PackedBlock::F32(elems)) => elems.fill(value as f32),
            Self::Packed(PackedBlock::Bf16(_)) => panic!("the tests have caches in float32"),
        }
    }

    pub(super) fn bits(&self) -> Vec<f32> {
        match self {
            Self::Tensors(parts) => {
                let flat = |part: &Tensor| {
                    Vec::<f32>::try_from(part.f_view([-1]).unwrap().to_kind(tch::Kind::Float)).unwrap()
                };
                parts.iter().flat_map(flat).collect()
            }
            Self::Packed(PackedBlock::F32(elems)) => elems.clone(),
            Self::Packed(PackedBlock::Bf16(_)) => panic!("the tests have caches in float32"),
        }
    }
}
