//! The launcher of the GEMM of small batches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, Stream, TensorMap};
use model_spec::Nonlinearity;
use tch::{Kind, Tensor};

use super::gemm_shape::{GemmShape, GemmSizes, MAX_GEMM_ROWS};
use super::nonlinearity::Gating;
use super::{KernelConfig, ModelKernels};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, int, shape_of};

/// Where the results go.
#[derive(Clone, Copy, Debug)]
pub enum GemmOut<'a> {
    /// `T[n, num_out]`, rounded once.
    Rounded(&'a Tensor),
    /// `T[n, num_out]`: `residual = round(residual + round(sum))`.
    Added(&'a Tensor),
    /// `float32[n, num_out]`.
    Float(&'a Tensor),
    /// `T[n, ffn]`: what [`Activate`](super::Activate) makes of the rounded sums.
    Activated(&'a Tensor, Nonlinearity, Gating),
}

impl GemmOut<'_> {
    fn activated(&self) -> Option<(Nonlinearity, Gating)> {
        match *self {
            Self::Activated(_, activation, gating) => Some((activation, gating)),
            _ => None,
        }
    }
}

/// `x * weight^T + bias` for 1 to [`MAX_GEMM_ROWS`] rows, sums in float32: for each output one chain of `wgmma` over
/// 16 inputs at a time, in order. Needs compute capability 9.0.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// `T[n, num_in]`; num_in a multiple of 8.
    pub x: &'a Tensor,
    /// `T[num_out, num_in]`. It may be read before earlier kernels of the stream have ended.
    pub weight: &'a Tensor,
    /// `T[num_out]`.
    pub bias: Option<&'a Tensor>,
    /// Equal pieces of the inputs, 1, 2, 4 or 8, of which each is a chain of its own: they are added in a tree,
    /// `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`. Several end at multiples of 8 inputs.
    pub num_pieces: i64,
    /// Where it goes.
    pub out: GemmOut<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmArgs {
    bias: Address,
    residual: Address,
    out: Address,
    rows: i32,
    num_out: i32,
    num_in: i32,
    num_stages: i32,
    max_pending: i32,
    x_bytes: u32,
    is_f32: i32,
    reserved: i32,
}

/// Four warps that multiply and two that fetch.
const NUM_THREADS: u32 = 192;

/// Rows of the weight that a block takes, what the sums go through, and pieces of the inputs.
type GemmKey = (u32, Option<(Nonlinearity, Gating)>, i64);

/// What a weight is multiplied for: `[num_out, num_in]`, what its sums go through, and pieces of the inputs.
#[derive(Clone, Copy, Debug)]
pub struct GemmUse {
    /// Rows of the weight.
    pub num_out: i64,
    /// Its columns.
    pub num_in: i64,
    /// As [`GemmOut::Activated`].
    pub activated: Option<(Nonlinearity, Gating)>,
    /// As [`Gemm::num_pieces`].
    pub num_pieces: i64,
}

/// The kernels, compiled when they are first asked for.
#[derive(Debug)]
pub(super) struct GemmKernels {
    device: Device,
    config: KernelConfig,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<HashMap<GemmKey, Option<Arc<Kernel>>>>,
}

impl GemmKernels {
    pub(super) fn new(device: &Device, config: &KernelConfig, cache_dir: Option<&Path>) -> Self {
        let cache_dir = cache_dir.map(Path::to_path_buf);
        Self { device: *device, config: *config, cache_dir, loaded: Mutex::default() }
    }

    /// None where there is none for this type or GPU.
    fn get(&self, key: GemmKey) -> Result<Option<Arc<Kernel>>, KernelError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&key) {
            return Ok(kernel.clone());
        }
        let load = |program| Module::load(&self.device, &program, self.cache_dir.as_deref())?.kernel("gemm");
        let program = self.config.gemm(self.device.arch()?, key.0, key.1, key.2);
        let kernel = program.map(load).transpose()?.map(Arc::new);
        loaded.insert(key, kernel.clone());
        Ok(kernel)
    }
}

impl ModelKernels {
    /// Whether a step of this batch launches its kernels by programmatic dependent launch, each before the one before it
    /// has ended. With larger batches, whose GEMMs are cuBLAS's, that was not faster.
    pub(super) fn overlaps(&self, num_rows: i64) -> bool {
        self.can_overlap && num_rows <= MAX_GEMM_ROWS
    }

    /// None where there is no kernel for it.
    fn gemm_kernel(
        &self,
        num_rows: i64,
        of: GemmUse,
    ) -> Result<Option<(GemmShape, Arc<Kernel>)>, KernelError> {
        let GemmUse { num_out: weight_rows, num_in, activated, num_pieces } = of;
        let halves = activated.map_or(1, |(_, gating)| gating.halves());
        if weight_rows % halves != 0 {
            return Ok(None);
        }
        let Self { num_sms, max_shared_bytes, .. } = *self;
        let sizes = GemmSizes {
            num_sms,
            max_shared_bytes,
            num_out: weight_rows / halves,
            num_in,
            halves,
            num_pieces,
        };
        let Some(shape) = GemmShape::of(num_rows, &sizes) else { return Ok(None) };
        Ok(self.gemms.get((shape.weight_rows, activated, num_pieces))?.map(|kernel| (shape, kernel)))
    }

    /// The largest batch that the kernel multiplies so on this GPU, in rows; 0 for none. Loads the kernel.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or loaded.
    pub fn max_gemm_rows(&self, of: GemmUse) -> Result<i64, KernelError> {
        for num_rows in (1..=MAX_GEMM_ROWS).rev() {
            if self.gemm_kernel(num_rows, of)?.is_some() {
                return Ok(num_rows);
            }
        }
        Ok(0)
    }

    /// Enqueues a GEMM.
    ///
    /// # Errors
    /// When a tensor does not fit, or there are more rows than [`Self::max_gemm_rows`].
    pub fn gemm(&self, stream: &Stream, gemm: &Gemm<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let [weight_rows, num_in] = shape_of(gemm.weight, "weight")?;
        let [num_rows, _] = shape_of(gemm.x, "x")?;
        let activated = gemm.out.activated();
        let num_pieces = gemm.num_pieces;
        let of = GemmUse { num_out: weight_rows, num_in, activated, num_pieces };
        let (shape, kernel) = self
            .gemm_kernel(num_rows, of)?
            .ok_or_else(|| bad("rows of `x`", "as few as `max_gemm_rows` says", num_rows))?;
        let halves = activated.map_or(1, |(_, gating)| gating.halves());
        let (out, out_kind, residual) = match gemm.out {
            GemmOut::Rounded(out) | GemmOut::Activated(out, ..) => (out, kind, None),
            GemmOut::Added(out) => (out, kind, Some(out)),
            GemmOut::Float(out) => (out, Kind::Float, None),
        };
        let out_shape = [num_rows, weight_rows / halves];
        tensors.address(gemm.x, "x", kind, &[num_rows, num_in])?;
        tensors.address(gemm.weight, "weight", kind, &[weight_rows, num_in])?;
        let tile_rows = shape.weight_rows / halves as u32;
        let map = |tensor, tile_rows, what| match num_pieces {
            1 => TensorMap::of(tensor, stream.device(), tile_rows, what),
            _ => TensorMap::of_pieces(tensor, stream.device(), num_pieces, tile_rows, what),
        };
        let x = map(gemm.x, shape.x_rows, "x")?;
        let weight = map(gemm.weight, tile_rows, "weight")?;
        let args = GemmArgs {
            bias: tensors.optional(gemm.bias, "bias", kind, &[weight_rows])?,
            residual: tensors.optional(residual, "residual", kind, &out_shape)?,
            out: tensors.address(out, "out", out_kind, &out_shape)?,
            rows: int(num_rows, "rows")?,
            num_out: int(out_shape[1], "outputs")?,
            num_in: int(num_in, "inputs")?,
            num_stages: shape.num_stages as i32,
            max_pending: shape.max_pending as i32,
            x_bytes: shape.x_rows * GemmShape::LINE_BYTES as u32,
            is_f32: i32::from(out_kind == Kind::Float),
            reserved: 0,
        };
        let launch = Launch {
            shared_bytes: shape.shared_bytes,
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(shape.num_blocks, NUM_THREADS)
        };
        Ok(kernel.launch(&launch, stream, &[Arg::value(&x), Arg::value(&weight), Arg::value(&args)])?)
    }
}
