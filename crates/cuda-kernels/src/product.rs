//! The launcher of products of a few rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use tch::{Kind, Tensor};

use super::activation::{Activation, Gating};
use super::product_shape::{MAX_PRODUCT_ROWS, ProductShape, ProductSizes};
use super::tensors::{Address, Tensors, bad, int, shape_of};
use super::{KernelConfig, Kernels};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, Stream, TensorMap};
use torch_ext::ExtError;

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
/// 16 inputs in order. Needs compute capability 9.0.
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
struct ProductArgs {
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

/// Rows of the weight that a block takes, and what the sums go through.
type ProductKey = (u32, Option<(Activation, Gating)>);

/// The kernels, compiled when they are first asked for.
#[derive(Debug)]
pub(super) struct Products {
    device: Device,
    config: KernelConfig,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<HashMap<ProductKey, Option<Arc<Kernel>>>>,
}

impl Products {
    pub(super) fn new(device: &Device, config: &KernelConfig, cache_dir: Option<&Path>) -> Self {
        let cache_dir = cache_dir.map(Path::to_path_buf);
        Self { device: *device, config: *config, cache_dir, loaded: Mutex::default() }
    }

    /// None where there is none for this type or GPU.
    fn get(&self, key: ProductKey) -> Result<Option<Arc<Kernel>>, ExtError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&key) {
            return Ok(kernel.clone());
        }
        let load =
            |program| Module::load(&self.device, &program, self.cache_dir.as_deref())?.kernel("product");
        let program = self.config.product(self.device.arch()?, key.0, key.1);
        let kernel = program.map(load).transpose()?.map(Arc::new);
        loaded.insert(key, kernel.clone());
        Ok(kernel)
    }
}

impl Kernels {
    /// Whether kernels of a step of so many rows start before the one before them has ended. With more rows, whose
    /// products are cuBLAS's, that was not seen to help.
    pub(super) fn overlaps(&self, num_rows: i64) -> bool {
        self.can_overlap && num_rows <= MAX_PRODUCT_ROWS
    }

    /// None where there is no kernel for it.
    fn product_kernel(
        &self,
        num_rows: i64,
        [weight_rows, num_in]: [i64; 2],
        activated: Option<(Activation, Gating)>,
    ) -> Result<Option<(ProductShape, Arc<Kernel>)>, ExtError> {
        let halves = activated.map_or(1, |(_, gating)| gating.halves());
        if weight_rows % halves != 0 {
            return Ok(None);
        }
        let Self { num_sms, max_shared_bytes, .. } = *self;
        let sizes = ProductSizes { num_sms, max_shared_bytes, num_out: weight_rows / halves, num_in, halves };
        let Some(shape) = ProductShape::of(num_rows, &sizes) else { return Ok(None) };
        Ok(self.products.get((shape.weight_rows, activated))?.map(|kernel| (shape, kernel)))
    }

    /// The most rows whose product with a weight `[num_out, num_in]` the kernel computes here, 0 for none. Loads the kernel.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or loaded.
    pub fn max_product_rows(
        &self,
        shape: [i64; 2],
        activated: Option<(Activation, Gating)>,
    ) -> Result<i64, ExtError> {
        for num_rows in (1..=MAX_PRODUCT_ROWS).rev() {
            if self.product_kernel(num_rows, shape, activated)?.is_some() {
                return Ok(num_rows);
            }
        }
        Ok(0)
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
        let (shape, kernel) = self
            .product_kernel(num_rows, sizes, activated)?
            .ok_or_else(|| bad("rows of `x`", "as few as `max_product_rows` says", num_rows))?;
        let halves = activated.map_or(1, |(_, gating)| gating.halves());
        let (out, out_kind, residual) = match product.out {
            ProductOut::Rounded(out) | ProductOut::Activated(out, ..) => (out, kind, None),
            ProductOut::Added(out) => (out, kind, Some(out)),
            ProductOut::Float(out) => (out, Kind::Float, None),
        };
        let out_shape = [num_rows, weight_rows / halves];
        tensors.address(product.x, "x", kind, &[num_rows, num_in])?;
        tensors.address(product.weight, "weight", kind, &sizes)?;
        let x = TensorMap::of(product.x, stream.device(), shape.x_rows, "x")?;
        let tile_rows = shape.weight_rows / halves as u32;
        let weight = TensorMap::of(product.weight, stream.device(), tile_rows, "weight")?;
        let args = ProductArgs {
            bias: tensors.optional(product.bias, "bias", kind, &[weight_rows])?,
            residual: tensors.optional(residual, "residual", kind, &out_shape)?,
            out: tensors.address(out, "out", out_kind, &out_shape)?,
            rows: int(num_rows, "rows")?,
            num_out: int(out_shape[1], "outputs")?,
            num_in: int(num_in, "inputs")?,
            num_stages: shape.num_stages as i32,
            max_pending: shape.max_pending as i32,
            x_bytes: shape.x_rows * ProductShape::LINE_BYTES as u32,
            is_f32: i32::from(out_kind == Kind::Float),
            reserved: 0,
        };
        let launch = Launch {
            shared_bytes: shape.shared_bytes,
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(shape.num_blocks, NUM_THREADS)
        };
        kernel.launch(&launch, stream, &[Arg::value(&x), Arg::value(&weight), Arg::value(&args)])
    }
}
