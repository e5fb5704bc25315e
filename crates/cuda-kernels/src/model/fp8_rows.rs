//! The launchers that make rows FP8: as they are, and behind a norm.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use model_spec::Normalization;
use tch::{Kind, Tensor};

use super::ModelKernels;
use super::fp8::{E4M3, Fp8Kernel};
use super::pointwise::{NormWith, threads_for, whole_vectors};
use crate::KernelError;
use crate::tensors::{Address, Tensors, count, int, shape_of};

/// What rows are made FP8 from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RowsFrom {
    Rows,
    RmsNorm,
    LayerNorm,
}

impl RowsFrom {
    pub(super) const ALL: [Self; 3] = [Self::Rows, Self::RmsNorm, Self::LayerNorm];

    pub(super) fn kernel_name(self) -> &'static str {
        match self {
            Self::Rows => "quantize_rows",
            Self::RmsNorm => "rms_norm_fp8",
            Self::LayerNorm => "layer_norm_fp8",
        }
    }
}

/// Rows in FP8 with a scale each: `scale = max |x| / 448`, `values = round(x * (448 / max |x|))`, in float32. A row of zeros
/// stays one; a row with NaN has the scale NaN.
#[derive(Clone, Copy, Debug)]
pub struct Fp8RowsOut<'a> {
    /// `e4m3[n, h]`.
    pub values: &'a Tensor,
    /// `float32[n]`.
    pub scales: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowsArgs {
    values: Address,
    scales: Address,
}

impl Fp8RowsOut<'_> {
    fn args(&self, tensors: &Tensors<'_>, shape: [i64; 2]) -> Result<RowsArgs, KernelError> {
        Ok(RowsArgs {
            values: tensors.address(self.values, "out", E4M3, &shape)?,
            scales: tensors.address(self.scales, "scales", Kind::Float, &shape[..1])?,
        })
    }
}

/// Rows to FP8.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeRows<'a> {
    /// `T[n, h]`; h a multiple of 8.
    pub x: &'a Tensor,
    /// As wide.
    pub out: Fp8RowsOut<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QuantizeArgs {
    x: Address,
    out: RowsArgs,
    width: i32,
    reserved: i32,
}

/// The rows of [`super::Normalize`], rounded to T, to FP8.
#[derive(Clone, Copy, Debug)]
pub struct NormalizeFp8<'a> {
    /// Which one.
    pub normalization: Normalization,
    /// `T[n, h]`; h a multiple of 8 up to 16,384.
    pub x: &'a Tensor,
    /// `float32[h]`.
    pub gain: &'a Tensor,
    /// `float32[h]`.
    pub bias: Option<&'a Tensor>,
    /// Added to the mean square.
    pub eps: f32,
    /// As wide.
    pub out: Fp8RowsOut<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormArgs {
    x: Address,
    norm: NormWith,
    out: RowsArgs,
    rows: i32,
    reserved: i32,
}

impl ModelKernels {
    /// Enqueues a conversion to FP8.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn quantize_rows(&self, stream: &Stream, quantize: &QuantizeRows<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let shape @ [num_rows, width] = shape_of(quantize.x, "x")?;
        let args = QuantizeArgs {
            x: tensors.address(quantize.x, "x", self.config.kind, &shape)?,
            out: quantize.out.args(&tensors, shape)?,
            width: whole_vectors(width, i64::from(i32::MAX))?,
            reserved: 0,
        };
        self.launch_rows(stream, RowsFrom::Rows, (num_rows, threads_for(width)), Arg::value(&args))
    }

    /// Enqueues a norm and a conversion to FP8, as one kernel.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn norm_fp8(&self, stream: &Stream, norm: &NormalizeFp8<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let shape @ [num_rows, width] = shape_of(norm.x, "x")?;
        let args = NormArgs {
            x: tensors.address(norm.x, "x", self.config.kind, &shape)?,
            norm: NormWith::of(&tensors, width, (norm.gain, norm.bias), norm.eps)?,
            out: norm.out.args(&tensors, shape)?,
            rows: int(num_rows, "rows")?,
            reserved: 0,
        };
        let from = match norm.normalization {
            Normalization::RmsNorm => RowsFrom::RmsNorm,
            Normalization::LayerNorm => RowsFrom::LayerNorm,
        };
        let num_blocks = self.norm_blocks(num_rows, width);
        self.launch_rows(stream, from, (num_blocks, threads_for(width)), Arg::value(&args))
    }

    fn launch_rows(
        &self,
        stream: &Stream,
        from: RowsFrom,
        (num_blocks, num_threads): (i64, u32),
        args: Arg<'_>,
    ) -> Result<(), KernelError> {
        let launch = Launch {
            overlaps: self.overlaps(num_blocks),
            ..Launch::linear(count(num_blocks, "rows")?, num_threads)
        };
        Ok(self.fp8.get(Fp8Kernel::Rows(from))?.launch(&launch, stream, &[args])?)
    }
}
