//! Linear layers packed for the CPU kernels.

use cpu_kernels::{CpuKernels, Layout, PackedLinear};
use tch::{Kind, Tensor};

use super::super::plain::activate;
use super::CpuState;
use crate::ModelError;
use crate::fp8::{self, Fp8Rows};
use crate::ids::Ids;
use crate::ops::{Epilogue, LinearOp, tensor_bytes};

/// A linear layer in panels.
#[derive(Debug)]
pub(crate) enum CpuLinear {
    /// The first of a gated MLP is laid out for its activation.
    Float(PackedLinear),
    /// Laid out plainly.
    Fp8 {
        /// The numbers of e4m3 in what is computed in, without a bias.
        values: PackedLinear,
        /// float32 `[out_features]`.
        scales: Tensor,
        /// `[out_features]`, in what is computed in.
        bias: Option<Tensor>,
    },
}

impl LinearOp<CpuState> for CpuLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, at: &mut CpuState) -> Result<Tensor, ModelError> {
        let packed = match self {
            Self::Float(packed) => packed,
            Self::Fp8 { values, scales, bias } => {
                let rows = Fp8Rows::of(x)?;
                // Exact: e4m3 has fewer bits than either type that is computed in.
                let products = at.kernels.linear_f32(&rows.values.f_to_kind(x.kind())?, values)?;
                let y = fp8::scaled(&products, &rows.scales, scales, bias.as_ref())?;
                return finish(y, epilogue, x.kind());
            }
        };
        let is_gated = matches!(epilogue, Epilogue::Activate(activation) if activation.gated);
        if is_gated != (packed.layout() == Layout::Gated) {
            // The kernel would put outputs in the order of the panels, or leave the second half out of the gate.
            return Err(ModelError::NoBackend {
                backend: "fused",
                reason: "a linear layer was packed for another epilogue",
            });
        }
        let kernels = &mut at.kernels;
        Ok(match epilogue {
            Epilogue::Store => kernels.linear(x, packed)?,
            Epilogue::AddTo(mut residual) => {
                kernels.linear_add(x, packed, &mut residual)?;
                residual
            }
            Epilogue::Activate(activation) => kernels.linear_activate(x, packed, activation.nonlinearity)?,
            Epilogue::Float32 => kernels.linear_f32(x, packed)?,
        })
    }

    fn embedding(&self, ids: Ids<'_>, _: &mut CpuState) -> Result<Tensor, ModelError> {
        let Self::Float(packed) = self else { return Err(fp8::NO_TABLE) };
        Ok(CpuKernels::select_outputs(packed, ids.on_host("fused")?.iter().map(|&id| id as usize))?)
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Float(packed) => packed.size_bytes() as u64,
            Self::Fp8 { values, scales, bias } => {
                values.size_bytes() as u64 + tensor_bytes(scales) + bias.as_ref().map_or(0, tensor_bytes)
            }
        }
    }
}

/// What follows results in float32, rounded to `kind` first.
fn finish(y: Tensor, epilogue: Epilogue, kind: Kind) -> Result<Tensor, ModelError> {
    match epilogue {
        Epilogue::Float32 => Ok(y),
        Epilogue::Store => Ok(y.f_to_kind(kind)?),
        Epilogue::AddTo(mut residual) => {
            let _ = residual.f_add_(&y.f_to_kind(kind)?)?;
            Ok(residual)
        }
        Epilogue::Activate(activation) => activate(&y.f_to_kind(kind)?, activation),
    }
}
