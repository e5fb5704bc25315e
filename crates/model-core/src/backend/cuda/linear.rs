//! Linear layers on a GPU: cuBLAS's GEMMs and the in-house one for small batches. That in FP8 is in `fp8.rs`.

use cuda_kernels::{Activate, Gating, Gemm, GemmOut};
use model_spec::Activation;
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use super::CudaState;
use crate::ModelError;
use crate::fp8::{self, Fp8Rows};
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::ops::{Epilogue, LinearOp, StepState, tensor_bytes};

/// A linear layer on the GPU.
#[derive(Debug)]
pub(crate) struct CudaLinear {
    pub(super) weight: CudaWeight,
    /// `[out_features]`, in what is computed in.
    pub(super) bias: Option<Tensor>,
}

/// The weight of one.
#[derive(Debug)]
pub(super) enum CudaWeight {
    /// `[out_features, in_features]`, as libtorch has it.
    Float(Tensor),
    /// In FP8, with a scale for each output.
    Fp8(Fp8Rows),
}

impl LinearOp<CudaState> for CudaLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, at: &mut CudaState) -> Result<Tensor, ModelError> {
        match &self.weight {
            CudaWeight::Fp8(_) => self.run_fp8(&at.fp8_rows(x)?, epilogue, at),
            CudaWeight::Float(weight) if x.size2()?.0 <= at.max_small_batch => {
                self.run_small(x, weight, epilogue, at)
            }
            CudaWeight::Float(weight) => self.run_cublas(x, weight, epilogue, at),
        }
    }

    fn embedding(&self, ids: Ids<'_>, at: &mut CudaState) -> Result<Tensor, ModelError> {
        match &self.weight {
            CudaWeight::Float(table) => at.embedding(ids, table),
            CudaWeight::Fp8(_) => Err(fp8::NO_TABLE),
        }
    }

    fn size_bytes(&self) -> u64 {
        let scales = match &self.weight {
            CudaWeight::Float(_) => None,
            CudaWeight::Fp8(rows) => Some(&rows.scales),
        };
        std::iter::once(self.weight.values()).chain(scales).chain(&self.bias).map(tensor_bytes).sum()
    }
}

impl CudaWeight {
    /// `[out_features, in_features]`.
    pub(super) fn values(&self) -> &Tensor {
        match self {
            Self::Float(weight) => weight,
            Self::Fp8(rows) => &rows.values,
        }
    }
}

impl CudaLinear {
    /// By cuBLAS, for any number of rows from [`super::MIN_ROWS`] up.
    pub(super) fn run_cublas(
        &self,
        x: &Tensor,
        weight: &Tensor,
        epilogue: Epilogue,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        match epilogue {
            Epilogue::Store => Ok(x.f_linear(weight, self.bias.as_ref())?),
            Epilogue::AddTo(mut residual) => {
                let _ = residual.f_addmm_(x, &weight.f_transpose(0, 1)?)?;
                self.add_bias(residual)
            }
            Epilogue::Activate(activation) => {
                let y = x.f_linear(weight, self.bias.as_ref())?;
                activate(&y, activation, at)
            }
            Epilogue::Float32 => {
                let mut logits = at.empty(&self.out_shape(x)?, Kind::Float)?;
                blas::linear_f32_out(&mut logits, x, weight)?;
                self.biased(logits)
            }
        }
    }

    /// By the in-house GEMM, for at most as many rows as it takes.
    pub(super) fn run_small(
        &self,
        x: &Tensor,
        weight: &Tensor,
        epilogue: Epilogue,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        let gemm = |bias, out| -> Result<(), ModelError> {
            let launch = Gemm { x, weight, bias, out };
            Ok(at.kernels()?.gemm(&at.stream()?, &launch)?)
        };
        match epilogue {
            Epilogue::Store => {
                let y = at.empty(&self.out_shape(x)?, at.numerics.compute.kind())?;
                gemm(self.bias.as_ref(), GemmOut::Rounded(&y))?;
                Ok(y)
            }
            Epilogue::AddTo(residual) => {
                gemm(None, GemmOut::Added(&residual))?;
                self.add_bias(residual)
            }
            Epilogue::Activate(activation) => {
                let [num_rows, num_columns] = self.out_shape(x)?;
                let out =
                    at.empty(&[num_rows, ffn_of(num_columns, activation)], at.numerics.compute.kind())?;
                let activated = GemmOut::Activated(&out, activation.nonlinearity, gating(activation));
                gemm(self.bias.as_ref(), activated)?;
                Ok(out)
            }
            Epilogue::Float32 => {
                let logits = at.empty(&self.out_shape(x)?, Kind::Float)?;
                gemm(None, GemmOut::Float(&logits))?;
                self.biased(logits)
            }
        }
    }

    /// `[num_rows, out_features]`.
    pub(super) fn out_shape(&self, x: &Tensor) -> Result<[i64; 2], ModelError> {
        Ok([x.size2()?.0, self.weight.values().size2()?.0])
    }

    /// The residual plus the bias, in place.
    pub(super) fn add_bias(&self, mut residual: Tensor) -> Result<Tensor, ModelError> {
        if let Some(bias) = &self.bias {
            let _ = residual.f_add_(bias)?;
        }
        Ok(residual)
    }

    /// Logits plus the bias, whose type may be narrower.
    pub(super) fn biased(&self, logits: Tensor) -> Result<Tensor, ModelError> {
        Ok(match &self.bias {
            Some(bias) => logits.f_add(bias)?,
            None => logits,
        })
    }
}

/// `[num_rows, ffn]` of the outputs of `linear_fc1`, by a kernel of its own.
pub(super) fn activate(y: &Tensor, activation: Activation, at: &CudaState) -> Result<Tensor, ModelError> {
    let (num_rows, num_columns) = y.size2()?;
    let out = at.empty(&[num_rows, ffn_of(num_columns, activation)], at.numerics.compute.kind())?;
    let launch =
        Activate { activation: activation.nonlinearity, gating: gating(activation), x: y, out: &out };
    at.kernels()?.activate(&at.stream()?, &launch)?;
    Ok(out)
}

pub(super) fn gating(activation: Activation) -> Gating {
    if activation.gated { Gating::Gated } else { Gating::Plain }
}

/// The width of an MLP whose `linear_fc1` has `num_out` outputs.
pub(super) fn ffn_of(num_out: i64, activation: Activation) -> i64 {
    if activation.gated { num_out / 2 } else { num_out }
}
