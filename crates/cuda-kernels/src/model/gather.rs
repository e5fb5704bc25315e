//! Launcher of the kernel that brings cached keys and values side by side.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use tch::{Kind, Tensor};

use super::{BLOCK_SIZE_TOKENS, LayerKv, ModelKernels};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// What stands for the slot of a key that no row sees: the gathered key and value are zeros.
pub const UNSEEN_SLOT: i32 = -2;

/// Copies cached keys and values of whole sequences, one token after the other.
#[derive(Clone, Copy, Debug)]
pub struct GatherCache<'a> {
    /// Where they are.
    pub cache: LayerKv<'a>,
    /// `int32[n]`: block * 32 + offset of each key, or [`UNSEEN_SLOT`]. Any other outside the cache gives NaN.
    pub slots: &'a Tensor,
    /// `T[n, G, d]`.
    pub k_out: &'a Tensor,
    /// The same.
    pub v_out: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatherArgs {
    keys: Address,
    values: Address,
    slots: Address,
    k_out: Address,
    v_out: Address,
    num_keys: i64,
    num_groups: i32,
    num_slots: i32,
}

impl ModelKernels {
    /// Enqueues it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn gather_cache(&self, stream: &Stream, gather: &GatherCache<'_>) -> Result<(), KernelError> {
        const NUM_THREADS: i64 = 256;
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let cache = self.layer_cache(&tensors, &gather.cache)?;
        let [num_keys] = shape_of(gather.slots, "slots")?;
        if num_keys == 0 {
            return Err(bad("slots", "of at least one key", 0));
        }
        let shape = [num_keys, cache.num_groups, self.head_dim()];
        let args = GatherArgs {
            keys: cache.keys,
            values: cache.values,
            slots: tensors.address(gather.slots, "slots", Kind::Int, &[num_keys])?,
            k_out: tensors.address(gather.k_out, "k_out", kind, &shape)?,
            v_out: tensors.address(gather.v_out, "v_out", kind, &shape)?,
            num_keys,
            num_groups: int(cache.num_groups, "groups")?,
            num_slots: int(cache.num_blocks * BLOCK_SIZE_TOKENS, "slots of the cache")?,
        };
        let bytes_per_key = cache.num_groups * self.head_dim() * i64::from(self.config.elem_bytes());
        let units = num_keys * (bytes_per_key / 16);
        let num_blocks = count((units as u64).div_ceil(NUM_THREADS as u64) as i64, "parts of the keys")?;
        let launch = Launch::linear(num_blocks, NUM_THREADS as u32);
        Ok(self.gather_cache.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}
