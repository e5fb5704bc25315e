//! Launcher of the kernel that splits the fused QKV, rotates it and fills the cache.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use tch::{Kind, Tensor};

use super::{BLOCK_SIZE_TOKENS, ModelKernels};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Tables of the rotary position embedding, which turns elements i and i + rotary_dim / 2 of a head and passes those
/// past rotary_dim through.
#[derive(Clone, Copy, Debug)]
pub struct RotaryArrays<'a> {
    /// `float32[max_positions, rotary_dim / 2]`. A position past it makes its row NaN, which the sampler reports.
    pub cos: &'a Tensor,
    /// The same.
    pub sin: &'a Tensor,
}

/// The cache of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerKv<'a> {
    /// `T[num_blocks, G, 32, d]`; in FP8 `uint8[num_blocks, G, 32 * (d + 1)]`, see `kernels/cached.cuh`.
    pub keys: &'a Tensor,
    /// The same.
    pub values: &'a Tensor,
}

/// Splits the fused QKV, rotates queries and keys, and writes keys and values to the cache.
#[derive(Clone, Copy, Debug)]
pub struct RopeAndCache<'a> {
    /// `T[n, G * (q + 2) * d]`: of each group its queries, its key and its value, as Megatron fuses them.
    pub qkv: &'a Tensor,
    /// `int32[n]`; rows below 0 are skipped.
    pub positions: &'a Tensor,
    /// `int32[n]`: block * 32 + offset; below 0 the token is not cached.
    pub slots: &'a Tensor,
    /// None for models without.
    pub rotary: Option<RotaryArrays<'a>>,
    /// Where keys and values go.
    pub cache: LayerKv<'a>,
    /// `T[n, H, d]`.
    pub q_out: &'a Tensor,
    /// Keys and values packed, `T[n, G, d]` each, for the attention of a prefill.
    pub kv_out: Option<(&'a Tensor, &'a Tensor)>,
}

/// `Rotary` of `rotary.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RotaryArgs {
    cos: Address,
    sin: Address,
    rotary_dim: i32,
    max_positions: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeArgs {
    qkv: Address,
    positions: Address,
    slots: Address,
    keys: Address,
    values: Address,
    q_out: Address,
    k_out: Address,
    v_out: Address,
    rotary: RotaryArgs,
    num_groups: i32,
    num_slots: i32,
}

impl ModelKernels {
    /// Enqueues it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn rope_and_cache(&self, stream: &Stream, rope: &RopeAndCache<'_>) -> Result<(), KernelError> {
        const NUM_THREADS: i64 = 128;
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let cache = self.layer_cache(&tensors, &rope.cache)?;
        let [num_rows, _] = shape_of(rope.qkv, "qkv")?;
        let kv_shape = [num_rows, cache.num_groups, self.head_dim()];
        let rotary = self.rotary(&tensors, rope.rotary.as_ref())?;
        let row_elems = self.qkv_elems(cache.num_groups);
        let args = RopeArgs {
            qkv: tensors.address(rope.qkv, "qkv", kind, &[num_rows, row_elems])?,
            positions: tensors.address(rope.positions, "positions", Kind::Int, &[num_rows])?,
            slots: tensors.address(rope.slots, "slots", Kind::Int, &[num_rows])?,
            keys: cache.keys,
            values: cache.values,
            q_out: tensors.address(rope.q_out, "q_out", kind, &self.q_shape(num_rows, cache.num_groups))?,
            k_out: tensors.optional(rope.kv_out.map(|(k, _)| k), "k_out", kind, &kv_shape)?,
            v_out: tensors.optional(rope.kv_out.map(|(_, v)| v), "v_out", kind, &kv_shape)?,
            rotary,
            num_groups: int(cache.num_groups, "groups")?,
            num_slots: int(cache.num_blocks * BLOCK_SIZE_TOKENS, "slots of the cache")?,
        };
        // A thread takes 16 elements, or 2 where the halves that a rotation mixes are no whole vectors; where the cache is
        // in FP8, a warp takes a head.
        let elems_per_block = match (self.config.has_fp8_kv, rotary.rotary_dim % 16) {
            (true, _) => NUM_THREADS / 32 * self.head_dim(),
            (false, 0) => NUM_THREADS * 16,
            (false, _) => NUM_THREADS * 2,
        } as u64;
        let parts = count((row_elems as u64).div_ceil(elems_per_block) as i64, "parts of a row")?;
        let launch =
            Launch { grid: [count(num_rows, "rows")?, parts, 1], ..Launch::linear(1, NUM_THREADS as u32) };
        Ok(self.rope_and_cache.launch(&launch, stream, &[Arg::value(&args)])?)
    }

    pub(super) fn head_dim(&self) -> i64 {
        i64::from(self.config.head_dim)
    }

    /// Elements of a row of the fused QKV.
    pub(super) fn qkv_elems(&self, num_groups: i64) -> i64 {
        num_groups * (i64::from(self.config.queries_per_group) + 2) * self.head_dim()
    }

    pub(super) fn q_shape(&self, num_rows: i64, num_groups: i64) -> [i64; 3] {
        [num_rows, num_groups * i64::from(self.config.queries_per_group), self.head_dim()]
    }

    pub(super) fn rotary(
        &self,
        tensors: &Tensors<'_>,
        rotary: Option<&RotaryArrays<'_>>,
    ) -> Result<RotaryArgs, KernelError> {
        let Some(rotary) = rotary else { return Ok(RotaryArgs::zeroed()) };
        let shape @ [max_positions, half] = shape_of(rotary.cos, "cos")?;
        if half == 0 || 2 * half > self.head_dim() {
            return Err(bad("rotary dimensions", &format!("from 2 to {}", self.head_dim()), 2 * half));
        }
        Ok(RotaryArgs {
            cos: tensors.address(rotary.cos, "cos", Kind::Float, &shape)?,
            sin: tensors.address(rotary.sin, "sin", Kind::Float, &shape)?,
            rotary_dim: int(2 * half, "rotary dimensions")?,
            max_positions: int(max_positions, "positions of `cos`")?,
        })
    }

    pub(super) fn layer_cache(
        &self,
        tensors: &Tensors<'_>,
        cache: &LayerKv<'_>,
    ) -> Result<CacheArgs, KernelError> {
        let &[num_blocks, num_groups, ..] = cache.keys.size().as_slice() else {
            return Err(bad("dimensions of `keys`", "at least two", cache.keys.dim() as i64));
        };
        if num_blocks == 0 || num_groups == 0 {
            return Err(bad("keys", "of at least one block and group", 0));
        }
        let both = |kind, of_head: &[i64]| {
            let shape = [&[num_blocks, num_groups], of_head].concat();
            let address = |tensor, what| tensors.address(tensor, what, kind, &shape);
            Ok::<_, KernelError>([address(cache.keys, "keys")?, address(cache.values, "values")?])
        };
        let [keys, values] = match self.config.has_fp8_kv {
            true => both(Kind::Uint8, &[BLOCK_SIZE_TOKENS * (self.head_dim() + 1)])?,
            false => both(self.config.kind, &[BLOCK_SIZE_TOKENS, self.head_dim()])?,
        };
        Ok(CacheArgs { keys, values, num_blocks, num_groups })
    }
}

/// A checked [`LayerKv`].
pub(super) struct CacheArgs {
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) num_blocks: i64,
    pub(super) num_groups: i64,
}
