//! The KV cache as the attention kernel reads it.
//!
//! One layer: blocks of [`BLOCK_TOKENS`] tokens, and in a block for each key-value head one key panel
//! `[head_dim / GROUP][BLOCK_TOKENS][GROUP]` and one value panel `[BLOCK_TOKENS / GROUP][head_dim_padded][GROUP]`:
//! the micro-kernel of the linear layers then computes scores and outputs, too.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint tokens and heads")]

use half::bf16;
use torch_ext::ExtError;

use super::buffer::{Arena, Buffer, SharedPtr};
use super::elem::Elem;
use super::tile::PANEL;

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

    /// Copies whole blocks, `(from, to)`, in all layers.
    ///
    /// # Errors
    /// When a block does not exist.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), ExtError> {
        match self {
            Self::F32(kv) => kv.0.copy_blocks(pairs),
            Self::Bf16(kv) => kv.0.copy_blocks(pairs),
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
}

impl<E: Elem> Kv<E> {
    pub(crate) fn zeroed(arena: &mut Arena, shape: KvShape) -> Result<Self, ExtError> {
        let head_elems = key_elems(shape.head_dim, E::GROUP) + value_elems(shape.head_dim);
        let layer_elems = shape.num_blocks * shape.num_query_groups * head_elems;
        let layers = (0..shape.num_layers).map(|_| arena.zeroed(layer_elems)).collect::<Result<_, _>>()?;
        Ok(Self { shape, layers })
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), ExtError> {
        let num_blocks = self.shape.num_blocks;
        for &(from, to) in pairs {
            if from as usize >= num_blocks || to as usize >= num_blocks {
                return Err(ExtError::BadTensor {
                    what: "block",
                    expected: format!("below {num_blocks}"),
                    actual: from.max(to).to_string(),
                });
            }
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
    pub(crate) unsafe fn write(&self, block: u32, slot: usize, head: usize, key: &[E], value: &[E]) {
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
