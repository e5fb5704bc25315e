//! Linear layers in FP8 on a GPU, and the kernels that make rows FP8 for them: norms do that themselves.
//!
//! Rows are the same whichever kernel makes them (`gpu_check` compares their bits).

use cuda_kernels::{E4M3, Fp8Out, Fp8RowsOut, GemmFp8, NormalizeFp8, QuantizeRows};
use tch::{Kind, Tensor};

use super::linear::{CudaWeight, activate};
use super::{CudaLinear, CudaState};
use crate::ModelError;
use crate::fp8::Fp8Rows;
use crate::kinds::TensorFormat;
use crate::ops::{Epilogue, Norm};

const NOT_FP8: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "rows in FP8 came to a layer that is not" };

impl CudaLinear {
    /// By the in-house FP8 GEMM, for any number of rows.
    pub(super) fn run_fp8(
        &self,
        rows: &Fp8Rows,
        epilogue: Epilogue,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        let CudaWeight::Fp8(weight) = &self.weight else { return Err(NOT_FP8) };
        let out_shape = self.out_shape(&rows.values)?;
        let gemm = |bias: Option<&Tensor>, out: Fp8Out<'_>| -> Result<(), ModelError> {
            let launch = GemmFp8 {
                x: &rows.values,
                x_start: 0,
                x_scales: &rows.scales,
                weight: &weight.values,
                weight_scales: &weight.scales,
                bias,
                out,
            };
            Ok(at.kernels()?.gemm_fp8(&at.stream()?, &launch)?)
        };
        let rounded = || -> Result<Tensor, ModelError> {
            let y = at.empty(&out_shape, at.numerics.compute.kind())?;
            gemm(self.bias.as_ref(), Fp8Out::Rounded(&y))?;
            Ok(y)
        };
        match epilogue {
            Epilogue::Store => rounded(),
            Epilogue::AddTo(residual) => {
                gemm(None, Fp8Out::Added(&residual))?;
                self.add_bias(residual)
            }
            Epilogue::Activate(activation) => activate(&rounded()?, activation, at),
            Epilogue::Float32 => {
                let logits = at.empty(&out_shape, Kind::Float)?;
                gemm(None, Fp8Out::Float(&logits))?;
                self.biased(logits)
            }
        }
    }
}

impl CudaState {
    /// Rows in FP8, by a kernel of their own.
    pub(super) fn fp8_rows(&self, x: &Tensor) -> Result<Fp8Rows, ModelError> {
        let rows = self.empty_fp8(x.size2()?)?;
        let launch = QuantizeRows { x, out: rows_out(&rows) };
        self.kernels()?.quantize_rows(&self.stream()?, &launch)?;
        Ok(rows)
    }

    /// Normed rows in FP8.
    pub(super) fn norm_fp8(&self, x: &Tensor, norm: &Norm) -> Result<Fp8Rows, ModelError> {
        let rows = self.empty_fp8(x.size2()?)?;
        let launch = NormalizeFp8 {
            normalization: norm.normalization,
            x,
            gain: &norm.gain,
            bias: norm.bias.as_ref(),
            eps: norm.epsilon as f32,
            out: rows_out(&rows),
        };
        self.kernels()?.norm_fp8(&self.stream()?, &launch)?;
        Ok(rows)
    }

    fn empty_fp8(&self, (num_rows, width): (i64, i64)) -> Result<Fp8Rows, ModelError> {
        let values = self.empty(&[num_rows, width], E4M3)?;
        Ok(Fp8Rows { values, scales: self.empty(&[num_rows], Kind::Float)? })
    }
}

fn rows_out(rows: &Fp8Rows) -> Fp8RowsOut<'_> {
    Fp8RowsOut { values: &rows.values, scales: &rows.scales }
}
