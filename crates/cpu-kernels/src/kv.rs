//! The KV cache as the attention kernel reads it.
//!
//! One layer: blocks of [`BLOCK_TOKENS`] tokens, and in a block for each key-value head one key panel
//! `[head_dim / GROUP][BLOCK_TOKENS][GROUP]` and one value panel `[BLOCK_TOKENS / GROUP][head_dim_padded][GROUP]`:
//! the micro-kernel of the linear layers then computes scores and outputs, too.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint tokens and heads")]

use half::bf16;
use torch_ext::BadTensor;

use super::buffer::{Arena, Buffer, SharedPtr};
use super::e4m3::round_head;
use super::elem::Elem;
use super::tile::PANEL;
use crate::CpuKernelError;

/// Largest head size: outputs of a tile lie on the stack.
pub const MAX_HEAD_DIM: usize = 256;
/// Tokens of a block: the columns of a panel.
pub const BLOCK_TOKENS: usize = PANEL;

/// The sizes that fix the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Key-value heads (`num_query_groups`).
    pub num_query_groups: usize,
    /// Size of a head (`kv_channels`).
    pub head_dim: usize,
}

/// Keys and values of all layers.
pub enum PackedKv {
    /// In float32.
    F32(KvF32),
    /// In bfloat16.
    Bf16(KvBf16),
}

/// A block of all layers, taken out of a cache: its bits as they lay there.
#[derive(Debug)]
pub enum PackedBlock {
    /// Of a float32 cache.
    F32(Vec<f32>),
    /// Of a bfloat16 cache.
    Bf16(Vec<bf16>),
}

/// A float32 cache.
pub struct KvF32(pub(crate) Kv<f32>);
/// A bfloat16 cache.
pub struct KvBf16(pub(crate) Kv<bf16>);

impl std::fmt::Debug for PackedKv {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("PackedKv").field(&self.shape()).finish()
    }
}

impl PackedKv {
    /// The sizes.
    pub fn shape(&self) -> KvShape {
        match self {
            Self::F32(kv) => kv.0.shape,
            Self::Bf16(kv) => kv.0.shape,
        }
    }

    /// The same with keys and values rounded to what an FP8 cache holds: e4m3 with a power of two for each token and head.
    #[must_use]
    pub fn in_e4m3(mut self) -> Self {
        match &mut self {
            Self::F32(kv) => kv.0.is_e4m3 = true,
            Self::Bf16(kv) => kv.0.is_e4m3 = true,
        }
        self
    }

    /// Copies whole blocks, `(from, to)`, in all layers.
    ///
    /// # Errors
    /// When a block does not exist.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), CpuKernelError> {
        match self {
            Self::F32(kv) => kv.0.copy_blocks(pairs),
            Self::Bf16(kv) => kv.0.copy_blocks(pairs),
        }
    }

    /// A copy of a block of all layers.
    ///
    /// # Errors
    /// When the block does not exist.
    pub fn read_block(&self, block: u32) -> Result<PackedBlock, CpuKernelError> {
        match self {
            Self::F32(kv) => kv.0.read_block(block).map(PackedBlock::F32),
            Self::Bf16(kv) => kv.0.read_block(block).map(PackedBlock::Bf16),
        }
    }

    /// Writes a block of all layers that [`read_block`](Self::read_block) took out of this cache.
    ///
    /// # Errors
    /// When the block does not exist, or what was stored is of another cache.
    pub fn write_block(&mut self, block: u32, stored: &PackedBlock) -> Result<(), CpuKernelError> {
        match (self, stored) {
            (Self::F32(kv), PackedBlock::F32(stored)) => kv.0.write_block(block, stored),
            (Self::Bf16(kv), PackedBlock::Bf16(stored)) => kv.0.write_block(block, stored),
            _ => Err(CpuKernelError::BadTensor(BadTensor {
                what: "stored block",
                expected: "elements of the cache's type".to_owned(),
                actual: "another type".to_owned(),
            })),
        }
    }

    /// Bytes of one block over all layers, with elements of `elem_bytes`.
    pub fn block_bytes(shape: &KvShape, elem_bytes: usize) -> usize {
        let group = 4 / elem_bytes.clamp(2, 4);
        let panels = key_elems(shape.head_dim, group) + value_elems(shape.head_dim);
        shape.num_layers * shape.num_query_groups * panels * elem_bytes
    }
}

fn key_elems(head_dim: usize, group: usize) -> usize {
    head_dim.next_multiple_of(group) * BLOCK_TOKENS
}

fn value_elems(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL) * BLOCK_TOKENS
}

/// A cache of one element type.
pub(crate) struct Kv<E> {
    pub(crate) shape: KvShape,
    layers: Vec<Buffer<E>>,
    /// Whether what is written is rounded to e4m3 first.
    is_e4m3: bool,
}

impl<E: Elem> Kv<E> {
    pub(crate) fn zeroed(arena: &mut Arena, shape: KvShape) -> Result<Self, CpuKernelError> {
        let head_elems = key_elems(shape.head_dim, E::GROUP) + value_elems(shape.head_dim);
        let layer_elems = shape.num_blocks * shape.num_query_groups * head_elems;
        let layers = (0..shape.num_layers).map(|_| arena.zeroed(layer_elems)).collect::<Result<_, _>>()?;
        Ok(Self { shape, layers, is_e4m3: false })
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), CpuKernelError> {
        let num_blocks = self.shape.num_blocks;
        for &(from, to) in pairs {
            self.check_block(from.max(to))?;
            for layer in &mut self.layers {
                let block_elems = layer.len() / num_blocks;
                let shared = SharedPtr::new(layer.as_mut_ptr());
                if from != to {
                    // SAFETY: both blocks exist (checked above) and differ, and nothing else holds the cache.
                    let (from, to) = unsafe {
                        (
                            shared.slice(from as usize * block_elems, block_elems),
                            shared.slice(to as usize * block_elems, block_elems),
                        )
                    };
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(())
    }

    fn check_block(&self, block: u32) -> Result<(), CpuKernelError> {
        let num_blocks = self.shape.num_blocks;
        match (block as usize) < num_blocks {
            true => Ok(()),
            false => Err(CpuKernelError::BadTensor(BadTensor {
                what: "block",
                expected: format!("below {num_blocks}"),
                actual: block.to_string(),
            })),
        }
    }

    fn read_block(&self, block: u32) -> Result<Vec<E>, CpuKernelError> {
        self.check_block(block)?;
        let mut stored = Vec::new();
        for layer in &self.layers {
            let block_elems = layer.len() / self.shape.num_blocks;
            // SAFETY: the block exists (checked above), and a shared reference to the cache only lets it be read.
            let elems = unsafe {
                std::slice::from_raw_parts(layer.as_ptr().add(block as usize * block_elems), block_elems)
            };
            stored.extend_from_slice(elems);
        }
        Ok(stored)
    }

    fn write_block(&mut self, block: u32, stored: &[E]) -> Result<(), CpuKernelError> {
        self.check_block(block)?;
        let num_blocks = self.shape.num_blocks;
        let num_elems: usize = self.layers.iter().map(|layer| layer.len() / num_blocks).sum();
        if stored.len() != num_elems {
            return Err(CpuKernelError::BadTensor(BadTensor {
                what: "stored block",
                expected: format!("{num_elems} elements"),
                actual: stored.len().to_string(),
            }));
        }
        let mut rest = stored;
        for layer in &mut self.layers {
            let block_elems = layer.len() / num_blocks;
            let (of_layer, others) = rest.split_at(block_elems);
            rest = others;
            // SAFETY: the block exists (checked above), and nothing else holds the cache.
            let elems = unsafe {
                SharedPtr::new(layer.as_mut_ptr()).slice(block as usize * block_elems, block_elems)
            };
            elems.copy_from_slice(of_layer);
        }
        Ok(())
    }

    /// One layer, for the tasks of one loop. `None` when there is no such layer.
    pub(crate) fn layer(&mut self, layer_idx: usize) -> Option<KvLayer<E>> {
        let shape = self.shape;
        let layer = self.layers.get_mut(layer_idx)?;
        Some(KvLayer {
            start: SharedPtr::new(layer.as_mut_ptr()),
            num_query_groups: shape.num_query_groups,
            head_dim: shape.head_dim,
            key_elems: key_elems(shape.head_dim, E::GROUP),
            head_elems: key_elems(shape.head_dim, E::GROUP) + value_elems(shape.head_dim),
            is_e4m3: self.is_e4m3,
        })
    }
}

/// One layer of a cache. Block and head indices are checked by the caller once a step.
#[derive(Clone, Copy)]
pub(crate) struct KvLayer<E> {
    start: SharedPtr<E>,
    num_query_groups: usize,
    head_dim: usize,
    key_elems: usize,
    head_elems: usize,
    is_e4m3: bool,
}

impl<E: Elem> KvLayer<E> {
    /// From one group of tokens to the next in a value panel.
    pub(crate) fn value_stride_elems(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL) * E::GROUP
    }

    /// Where the key panel of a block and head starts.
    ///
    /// # Safety
    /// Block and head must exist.
    pub(crate) unsafe fn keys(&self, block: u32, head: usize) -> *const E {
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.start.at((block as usize * self.num_query_groups + head) * self.head_elems).cast_const()
        }
    }

    /// Where its value panel starts.
    ///
    /// # Safety
    /// Block and head must exist.
    pub(crate) unsafe fn values(&self, block: u32, head: usize) -> *const E {
        // SAFETY: guaranteed by the caller.
        unsafe { self.keys(block, head).add(self.key_elems) }
    }

    /// Stores one token's key and value of one head. The first token of a block clears the rest of the value panel:
    /// what an earlier sequence left there is multiplied with a probability of 0, and must not be infinite.
    ///
    /// # Safety
    /// Block and head must exist, `slot` must be below [`BLOCK_TOKENS`], and no other task may touch this head of
    /// this block.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, block: u32, slot: usize, head: usize, key: &[E], value: &[E]) {
        let mut rounded = [[E::default(); MAX_HEAD_DIM]; 2];
        let (key, value) = if self.is_e4m3 {
            let [rounded_key, rounded_value] = &mut rounded;
            let (rounded_key, rounded_value) =
                (&mut rounded_key[..key.len()], &mut rounded_value[..value.len()]);
            round_head(key, rounded_key);
            round_head(value, rounded_value);
            (&*rounded_key, &*rounded_value)
        } else {
            (key, value)
        };
        let at_elems = (block as usize * self.num_query_groups + head) * self.head_elems;
        // SAFETY: guaranteed by the caller.
        let panels = unsafe { self.start.slice(at_elems, self.head_elems) };
        let (keys, values) = panels.split_at_mut(self.key_elems);
        if slot == 0 {
            values.fill(E::default());
        }
        for (group, elems) in key.chunks(E::GROUP).enumerate() {
            let at = (group * BLOCK_TOKENS + slot) * E::GROUP;
            keys[at..at + elems.len()].copy_from_slice(elems);
        }
        let first = slot / E::GROUP * self.value_stride_elems() + slot % E::GROUP;
        for (at, &elem) in values[first..].iter_mut().step_by(E::GROUP).zip(value) {
            *at = elem;
        }
    }
}
