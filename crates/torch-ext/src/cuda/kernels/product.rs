//! The launcher of products of a few rows.

use bytemuck::{Pod, Zeroable};
use tch::{Kind, Tensor};

use super::Kernels;
use super::product_shape::{MAX_PRODUCT_ROWS, ProductShape};
use super::tensors::{Address, Tensors, bad, int, shape_of};
use crate::ExtError;
use crate::cuda::{Arg, Launch, Stream};

/// Where the product goes.
#[derive(Clone, Copy, Debug)]
pub enum ProductOut<'a> {
    /// `T[n, num_out]`, rounded once.
    Rounded(&'a Tensor),
    /// `T[n, num_out]`: `residual = round(residual + round(product))`.
    Added(&'a Tensor),
    /// `float32[n, num_out]`.
    Float(&'a Tensor),
}

/// `x * weight^T + bias` for 1 to [`MAX_PRODUCT_ROWS`] rows, sums in float32: for each output one chain of products of
/// 16 inputs in order.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `T[n, num_in]`; num_in a multiple of 16.
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
    x: Address,
    weight: Address,
    bias: Address,
    residual: Address,
    out: Address,
    rows: i32,
    num_out: i32,
    num_in: i32,
    num_pairs: i32,
    num_stages: i32,
    is_f32: i32,
}

impl Kernels {
    /// Whether kernels of a step of so many rows start before the one before them has ended. With more rows that was not
    /// seen to help.
    pub(super) fn overlaps(&self, num_rows: i64) -> bool {
        self.can_overlap && num_rows <= MAX_PRODUCT_ROWS
    }

    /// The most rows whose product with a weight `[num_out, num_in]` the kernel computes here, 0 for none.
    pub fn max_product_rows(&self, shape: [i64; 2]) -> i64 {
        if self.product.is_none() {
            return 0;
        }
        let fits = |&rows: &i64| ProductShape::of(self.num_sms, self.max_shared_bytes, rows, shape).is_some();
        (1..=MAX_PRODUCT_ROWS).rev().find(fits).unwrap_or(0)
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// When a tensor does not fit, or there are more rows than [`Self::max_product_rows`].
    pub fn product(&self, stream: &Stream, product: &Product<'_>) -> Result<(), ExtError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let sizes @ [num_out, num_in] = shape_of(product.weight, "weight")?;
        let [num_rows, _] = shape_of(product.x, "x")?;
        let kernel = self.product.as_ref().ok_or_else(|| bad("x", "of 2 bytes a number", num_rows))?;
        let shape = ProductShape::of(self.num_sms, self.max_shared_bytes, num_rows, sizes)
            .ok_or_else(|| bad("rows of `x`", "as few as `max_product_rows` says", num_rows))?;
        let (out, out_kind, residual) = match product.out {
            ProductOut::Rounded(out) => (out, kind, None),
            ProductOut::Added(out) => (out, kind, Some(out)),
            ProductOut::Float(out) => (out, Kind::Float, None),
        };
        let out_shape = [num_rows, num_out];
        let args = ProductArgs {
            x: tensors.address(product.x, "x", kind, &[num_rows, num_in])?,
            weight: tensors.address(product.weight, "weight", kind, &sizes)?,
            bias: tensors.optional(product.bias, "bias", kind, &[num_out])?,
            residual: tensors.optional(residual, "residual", kind, &out_shape)?,
            out: tensors.address(out, "out", out_kind, &out_shape)?,
            rows: int(num_rows, "rows")?,
            num_out: int(num_out, "outputs")?,
            num_in: int(num_in, "inputs")?,
            num_pairs: shape.num_pairs as i32,
            num_stages: shape.num_stages as i32,
            is_f32: i32::from(out_kind == Kind::Float),
        };
        let launch = Launch {
            shared_bytes: shape.shared_bytes,
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(shape.num_blocks, 64 * shape.num_pairs)
        };
        kernel.launch(&launch, stream, &[Arg::value(&args)])
    }
}
