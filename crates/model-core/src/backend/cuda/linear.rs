//! Linear layers on a GPU: cuBLAS's GEMMs, and the in-house one for small batches.

use cuda_kernels::{Activate, Gating, Gemm, GemmOut};
use model_spec::Activation;
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use super::CudaState;
use crate::ModelError;
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::ops::{Epilogue, LinearOp, StepState, tensor_bytes};

/// A linear layer as libtorch has it, on the GPU.
#[derive(Debug)]
pub(crate) struct CudaLinear {
    /// `[out_features, in_features]`.
    pub(super) weight: Tensor,
    /// `[out_features]`.
    pub(super) bias: Option<Tensor>,
}

impl LinearOp<CudaState> for CudaLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, at: &mut CudaState) -> Result<Tensor, ModelError> {
        if x.size2()?.0 <= at.max_small_batch {
            self.run_small(x, epilogue, at)
        } else {
            self.run_cublas(x, epilogue, at)
        }
    }

    fn embedding(&self, ids: Ids<'_>, at: &mut CudaState) -> Result<Tensor, ModelError> {
        at.embedding(ids, &self.weight)
    }

    fn out_features(&self) -> usize {
        self.weight.size().first().map_or(0, |&rows| rows as usize)
    }

    fn size_bytes(&self) -> u64 {
        std::iter::once(&self.weight).chain(&self.bias).map(tensor_bytes).sum()
    }
}

impl CudaLinear {
    /// By cuBLAS, for any number of rows from [`super::MIN_ROWS`] up.
    pub(super) fn run_cublas(
        &self,
        x: &Tensor,
        epilogue: Epilogue,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        match epilogue {
            Epilogue::Store => Ok(x.f_linear(&self.weight, self.bias.as_ref())?),
            Epilogue::AddTo(mut residual) => {
                let _ = residual.f_addmm_(x, &self.weight.f_transpose(0, 1)?)?;
                self.add_bias(residual)
            }
            Epilogue::Activate(activation) => {
                let y = x.f_linear(&self.weight, self.bias.as_ref())?;
                let (num_rows, num_columns) = y.size2()?;
                let out =
                    at.empty(&[num_rows, ffn_of(num_columns, activation)], at.numerics.compute.kind())?;
                let launch = Activate {
                    activation: activation.nonlinearity,
                    gating: gating(activation),
                    x: &y,
                    out: &out,
                };
                at.kernels()?.activate(&at.stream()?, &launch)?;
                Ok(out)
            }
            Epilogue::Logits => {
                let mut logits = at.empty(&self.out_shape(x)?, Kind::Float)?;
                blas::linear_f32_out(&mut logits, x, &self.weight)?;
                self.biased(logits)
            }
        }
    }

    /// By the in-house GEMM, for at most as many rows as it takes.
    pub(super) fn run_small(
        &self,
        x: &Tensor,
        epilogue: Epilogue,
        at: &CudaState,
    ) -> Result<Tensor, ModelError> {
        let gemm = |bias, out| -> Result<(), ModelError> {
            let launch = Gemm { x, weight: &self.weight, bias, out };
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
            Epilogue::Logits => {
                let logits = at.empty(&self.out_shape(x)?, Kind::Float)?;
                gemm(None, GemmOut::Float(&logits))?;
                self.biased(logits)
            }
        }
    }

    /// `[num_rows, out_features]`.
    fn out_shape(&self, x: &Tensor) -> Result<[i64; 2], ModelError> {
        Ok([x.size2()?.0, self.weight.size2()?.0])
    }

    /// The residual plus the bias, in place.
    fn add_bias(&self, mut residual: Tensor) -> Result<Tensor, ModelError> {
        if let Some(bias) = &self.bias {
            let _ = residual.f_add_(bias)?;
        }
        Ok(residual)
    }

    /// Logits plus the bias, whose type may be narrower.
    fn biased(&self, logits: Tensor) -> Result<Tensor, ModelError> {
        Ok(match &self.bias {
            Some(bias) => logits.f_add(bias)?,
            None => logits,
        })
    }
}

pub(super) fn gating(activation: Activation) -> Gating {
    if activation.gated { Gating::Gated } else { Gating::Plain }
}

/// The width of an MLP whose `linear_fc1` has `num_out` outputs.
fn ffn_of(num_out: i64, activation: Activation) -> i64 {
    if activation.gated { num_out / 2 } else { num_out }
}
