//! The launchers of products of a few rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use tch::{Kind, Tensor};

use super::activation::{Activation, Gating};
use super::product_shape::{MAX_PRODUCT_ROWS, MmaShape, ProductSizes, WgmmaShape};
use super::tensors::{Address, Tensors, bad, int, shape_of};
use super::{KernelConfig, Kernels};
use crate::ExtError;
use crate::cuda::{Arg, Device, Kernel, Launch, Module, Stream, TensorMap};

/// Where the product goes.
#[derive(Clone, Copy, Debug)]
pub enum ProductOut<'a> {
    /// `T[n, num_out]`, rounded once.
    Rounded(&'a Tensor),
    /// `T[n, num_out]`: `residual = round(residual + round(product))`.
    Added(&'a Tensor),
    /// `float32[n, num_out]`.
    Float(&'a Tensor),
    /// `T[n, ffn]`: what [`Activate`](super::Activate) makes of the rounded product.
    Activated(&'a Tensor, Activation, Gating),
}

impl ProductOut<'_> {
    fn activated(&self) -> Option<(Activation, Gating)> {
        match *self {
            Self::Activated(_, activation, gating) => Some((activation, gating)),
            _ => None,
        }
    }
}

/// `x * weight^T + bias` for 1 to [`MAX_PRODUCT_ROWS`] rows, sums in float32: for each output one chain of products of
/// 16 inputs in order. Up to 8 rows need compute capability 8.0, more need 9.0.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `T[n, num_in]`; num_in a multiple of 8.
    pub x: &'a Tensor,
    /// `T[num_out, num_in]`. It may be read before earlier kernels of the stream have ended.
    pub weight: &'a Tensor,
    /// `T[num_out]`.
    pub bias: Option<&'a Tensor>,
    /// Where it goes.
    pub out: ProductOut<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OutArgs {
    bias: Address,
    residual: Address,
    out: Address,
    rows: i32,
    num_out: i32,
    is_f32: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MmaArgs {
    to: OutArgs,
    x: Address,
    weight: Address,
    num_in: i32,
    num_pairs: i32,
    num_stages: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WgmmaArgs {
    to: OutArgs,
    num_in: i32,
    num_stages: i32,
    x_bytes: u32,
    reserved: i32,
}

/// Four warps that multiply and one that fetches.
const WGMMA_THREADS: u32 = 160;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Instruction {
    Mma,
    Wgmma { weight_rows: u32 },
}

type Loaded = HashMap<(Instruction, Option<(Activation, Gating)>), Option<Arc<Kernel>>>;

/// The kernels, compiled when they are first asked for.
#[derive(Debug)]
pub(super) struct Products {
    device: Device,
    config: KernelConfig,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<Loaded>,
}

impl Products {
    pub(super) fn new(device: &Device, config: &KernelConfig, cache_dir: Option<&Path>) -> Self {
        let cache_dir = cache_dir.map(Path::to_path_buf);
        Self { device: *device, config: *config, cache_dir, loaded: Mutex::default() }
    }

    /// None where there is none for this type or GPU.
    fn get(
        &self,
        instruction: Instruction,
        activated: Option<(Activation, Gating)>,
    ) -> Result<Option<Arc<Kernel>>, ExtError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&(instruction, activated)) {
            return Ok(kernel.clone());
        }
        let program = match instruction {
            Instruction::Mma => self.config.product_mma(activated),
            Instruction::Wgmma { weight_rows } => {
                self.config.product_wgmma(self.device.arch()?, weight_rows, activated)
            }
        };
        let kernel = match program {
            Some(program) => {
                let module = Module::load(&self.device, &program, self.cache_dir.as_deref())?;
                Some(Arc::new(module.kernel(program.name)?))
            }
            None => None,
        };
        loaded.insert((instruction, activated), kernel.clone());
        Ok(kernel)
    }
}

/// How a product is computed here.
enum Plan {
    Mma(MmaShape, Arc<Kernel>),
    Wgmma(WgmmaShape, Arc<Kernel>),
}

impl Kernels {
    /// Whether kernels of a step of so many rows start before the one before them has ended. With more rows, whose
    /// products are cuBLAS's, that was not seen to help.
    pub(super) fn overlaps(&self, num_rows: i64) -> bool {
        self.can_overlap && num_rows <= MAX_PRODUCT_ROWS
    }

    /// `mma` where it can, as it is the faster one with a few rows, and needs no newer GPU.
    fn product_plan(
        &self,
        num_rows: i64,
        [weight_rows, num_in]: [i64; 2],
        activated: Option<(Activation, Gating)>,
    ) -> Result<Option<Plan>, ExtError> {
        let halves = activated.map_or(1, |(_, gating)| gating.halves());
        if weight_rows % halves != 0 {
            return Ok(None);
        }
        let Self { num_sms, max_shared_bytes, .. } = *self;
        let sizes = ProductSizes { num_sms, max_shared_bytes, num_out: weight_rows / halves, num_in, halves };
        if let Some(shape) = MmaShape::of(num_rows, &sizes)
            && let Some(kernel) = self.products.get(Instruction::Mma, activated)?
        {
            return Ok(Some(Plan::Mma(shape, kernel)));
        }
        let Some(shape) = WgmmaShape::of(num_rows, &sizes) else { return Ok(None) };
        let kernel = self.products.get(Instruction::Wgmma { weight_rows: shape.weight_rows }, activated)?;
        Ok(kernel.map(|kernel| Plan::Wgmma(shape, kernel)))
    }

    /// The most rows whose product with a weight `[num_out, num_in]` the kernels compute here, 0 for none; as many work
    /// for any fewer. Loads the kernels.
    ///
    /// # Errors
    /// When a kernel cannot be compiled or loaded.
    pub fn max_product_rows(
        &self,
        shape: [i64; 2],
        activated: Option<(Activation, Gating)>,
    ) -> Result<i64, ExtError> {
        let mut most = 0;
        while most < MAX_PRODUCT_ROWS && self.product_plan(most + 1, shape, activated)?.is_some() {
            most += 1;
        }
        Ok(most)
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// When a tensor does not fit, or there are more rows than [`Self::max_product_rows`].
    pub fn product(&self, stream: &Stream, product: &Product<'_>) -> Result<(), ExtError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let sizes @ [weight_rows, num_in] = shape_of(product.weight, "weight")?;
        let [num_rows, _] = shape_of(product.x, "x")?;
        let activated = product.out.activated();
        let plan = self
            .product_plan(num_rows, sizes, activated)?
            .ok_or_else(|| bad("rows of `x`", "as few as `max_product_rows` says", num_rows))?;
        let num_out = weight_rows / activated.map_or(1, |(_, gating)| gating.halves());
        let (out, out_kind, residual) = match product.out {
            ProductOut::Rounded(out) | ProductOut::Activated(out, ..) => (out, kind, None),
            ProductOut::Added(out) => (out, kind, Some(out)),
            ProductOut::Float(out) => (out, Kind::Float, None),
        };
        let out_shape = [num_rows, num_out];
        let x = tensors.address(product.x, "x", kind, &[num_rows, num_in])?;
        let weight = tensors.address(product.weight, "weight", kind, &sizes)?;
        let num_in = int(num_in, "inputs")?;
        let to = OutArgs {
            bias: tensors.optional(product.bias, "bias", kind, &[weight_rows])?,
            residual: tensors.optional(residual, "residual", kind, &out_shape)?,
            out: tensors.address(out, "out", out_kind, &out_shape)?,
            rows: int(num_rows, "rows")?,
            num_out: int(num_out, "outputs")?,
            is_f32: i32::from(out_kind == Kind::Float),
            reserved: 0,
        };
        let overlaps = self.overlaps(num_rows);
        match plan {
            Plan::Mma(shape, kernel) => {
                let (num_pairs, num_stages) = (shape.num_pairs as i32, shape.num_stages as i32);
                let args = MmaArgs { to, x, weight, num_in, num_pairs, num_stages, reserved: 0 };
                let launch = Launch {
                    shared_bytes: shape.shared_bytes,
                    overlaps,
                    ..Launch::linear(shape.num_blocks, 64 * shape.num_pairs)
                };
                kernel.launch(&launch, stream, &[Arg::value(&args)])
            }
            Plan::Wgmma(shape, kernel) => {
                let weight_box = shape.weight_rows / (weight_rows / num_out) as u32;
                let x = TensorMap::of(product.x, stream.device(), shape.x_rows, "x")?;
                let weight = TensorMap::of(product.weight, stream.device(), weight_box, "weight")?;
                let (num_stages, x_bytes) =
                    (shape.num_stages as i32, shape.x_rows * WgmmaShape::LINE_BYTES as u32);
                let args = WgmmaArgs { to, num_in, num_stages, x_bytes, reserved: 0 };
                let launch = Launch {
                    shared_bytes: shape.shared_bytes,
                    overlaps,
                    ..Launch::linear(shape.num_blocks, WGMMA_THREADS)
                };
                kernel.launch(&launch, stream, &[Arg::value(&x), Arg::value(&weight), Arg::value(&args)])
            }
        }
    }
}
