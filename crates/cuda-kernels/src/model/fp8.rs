//! The launcher of FP8 GEMMs, and the loaded kernels of FP8 linear layers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, Stream, TensorMap};
use tch::{Kind, Tensor};

use super::fp8_rows::RowsFrom;
use super::fp8_shape::Fp8Shape;
use super::{KernelConfig, ModelKernels};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, int, shape_of};

/// The numbers of FP8 linear layers: four bits of exponent and three of mantissa, no infinity, at most 448.
pub const E4M3: Kind = Kind::Float8e4m3fn;

/// Where the results of an FP8 GEMM go.
#[derive(Clone, Copy, Debug)]
pub enum Fp8Out<'a> {
    /// `T[n, num_out]`, rounded once.
    Rounded(&'a Tensor),
    /// `T[n, num_out]`: `residual = round(residual + round(result))`.
    Added(&'a Tensor),
    /// `float32[n, num_out]`.
    Float(&'a Tensor),
}

/// `x * weight^T`, each result times the scales of its row and its output, plus bias. 128 products at a time are summed by
/// the tensor cores, and their sums in float32, in order. Needs compute capability 9.0.
#[derive(Clone, Copy, Debug)]
pub struct GemmFp8<'a> {
    /// `e4m3[n, num_in]`; num_in a multiple of 16.
    pub x: &'a Tensor,
    /// `float32[n]`.
    pub x_scales: &'a Tensor,
    /// `e4m3[num_out, num_in]`; num_out a multiple of 8. It may be read before earlier kernels of the stream have ended.
    pub weight: &'a Tensor,
    /// `float32[num_out]`.
    pub weight_scales: &'a Tensor,
    /// `T[num_out]`.
    pub bias: Option<&'a Tensor>,
    /// Where it goes.
    pub out: Fp8Out<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmArgs {
    x_scales: Address,
    weight_scales: Address,
    bias: Address,
    residual: Address,
    out: Address,
    rows: i32,
    num_out: i32,
    num_in: i32,
    x_bytes: u32,
    num_stages: i32,
    num_early: i32,
    is_f32: i32,
    fetched_bytes: u32,
}

/// The kernels, compiled when they are first asked for.
#[derive(Debug)]
pub(super) struct Fp8Kernels {
    device: Device,
    config: KernelConfig,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<HashMap<Fp8Kernel, Arc<Kernel>>>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fp8Kernel {
    /// The GEMM of a shape.
    Gemm(Fp8Shape),
    /// Rows to FP8.
    Rows(RowsFrom),
}

impl Fp8Kernels {
    pub(super) fn new(device: &Device, config: &KernelConfig, cache_dir: Option<&Path>) -> Self {
        let cache_dir = cache_dir.map(Path::to_path_buf);
        Self { device: *device, config: *config, cache_dir, loaded: Mutex::default() }
    }

    pub(super) fn get(&self, which: Fp8Kernel) -> Result<Arc<Kernel>, KernelError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&which) {
            return Ok(Arc::clone(kernel));
        }
        let arch = self.device.arch()?;
        let (program, name) = match which {
            Fp8Kernel::Gemm(shape) => (self.config.gemm_fp8(arch, &shape)?, "gemm_fp8"),
            Fp8Kernel::Rows(from) => (self.config.quantize(arch)?, from.kernel_name()),
        };
        let kernel = Arc::new(Module::load(&self.device, &program, self.cache_dir.as_deref())?.kernel(name)?);
        loaded.insert(which, Arc::clone(&kernel));
        Ok(kernel)
    }
}

impl ModelKernels {
    /// Compiles or loads all kernels that a weight `[num_out, num_in]` may be multiplied by, so that none has to be while a
    /// graph is captured.
    ///
    /// # Errors
    /// When the layer's sizes or this GPU have none, or they cannot be compiled or loaded.
    pub fn load_fp8(&self, num_out: i64, num_in: i64) -> Result<(), KernelError> {
        check_sizes(num_out, num_in)?;
        RowsFrom::ALL.into_iter().try_for_each(|from| self.fp8.get(Fp8Kernel::Rows(from)).map(drop))?;
        let shapes = Fp8Shape::all(num_out, self.num_sms);
        shapes.into_iter().try_for_each(|shape| self.fp8.get(Fp8Kernel::Gemm(shape)).map(drop))
    }

    /// Enqueues an FP8 GEMM, of any number of rows.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn gemm_fp8(&self, stream: &Stream, gemm: &GemmFp8<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let [num_out, num_in] = shape_of(gemm.weight, "weight")?;
        let [num_rows, _] = shape_of(gemm.x, "x")?;
        check_sizes(num_out, num_in)?;
        let shape = Fp8Shape::of(num_rows, num_out, self.num_sms);
        let ring = shape
            .ring(num_rows, self.max_shared_bytes)
            .ok_or_else(|| too_little_shared(self.max_shared_bytes))?;
        let (out, out_kind, residual) = match gemm.out {
            Fp8Out::Rounded(out) => (out, kind, None),
            Fp8Out::Added(out) => (out, kind, Some(out)),
            Fp8Out::Float(out) => (out, Kind::Float, None),
        };
        let out_shape = [num_rows, num_out];
        tensors.address(gemm.x, "x", E4M3, &[num_rows, num_in])?;
        let x = TensorMap::of(gemm.x, stream.device(), ring.fetched_rows, "x")?;
        let weight = TensorMap::of(gemm.weight, stream.device(), shape.columns, "weight")?;
        let args = GemmArgs {
            x_scales: tensors.address(gemm.x_scales, "x_scales", Kind::Float, &[num_rows])?,
            weight_scales: tensors.address(gemm.weight_scales, "weight_scales", Kind::Float, &[num_out])?,
            bias: tensors.optional(gemm.bias, "bias", kind, &[num_out])?,
            residual: tensors.optional(residual, "residual", kind, &out_shape)?,
            out: tensors.address(out, "out", out_kind, &out_shape)?,
            rows: int(num_rows, "rows")?,
            num_out: int(num_out, "outputs")?,
            num_in: int(num_in, "inputs")?,
            x_bytes: ring.x_rows * Fp8Shape::LINE_BYTES,
            num_stages: ring.num_stages as i32,
            num_early: ring.num_early as i32,
            is_f32: i32::from(out_kind == Kind::Float),
            fetched_bytes: ring.fetched_rows * Fp8Shape::LINE_BYTES,
        };
        let num_tiles = shape.num_tiles(num_rows, num_out);
        let num_blocks = num_tiles.min(u64::from(self.num_sms)) as u32;
        let launch = Launch {
            shared_bytes: ring.shared_bytes,
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(num_blocks, shape.num_threads())
        };
        let kernel = self.fp8.get(Fp8Kernel::Gemm(shape))?;
        Ok(kernel.launch(&launch, stream, &[Arg::value(&x), Arg::value(&weight), Arg::value(&args)])?)
    }
}

/// What the copy engine and the stores take.
fn check_sizes(num_out: i64, num_in: i64) -> Result<(), KernelError> {
    if num_in <= 0 || num_in % 16 != 0 {
        return Err(bad("inputs of an FP8 linear layer", "a multiple of 16", num_in));
    }
    if num_out <= 0 || num_out % 8 != 0 {
        return Err(bad("outputs of an FP8 linear layer", "a multiple of 8", num_out));
    }
    Ok(())
}

fn too_little_shared(max_shared_bytes: u32) -> KernelError {
    bad(
        "shared memory of a block, bytes",
        "enough for two stages of an FP8 GEMM",
        i64::from(max_shared_bytes),
    )
}
