//! Linear layers packed for the CPU kernels.

use cpu_kernels::{CpuKernels, Layout, PackedLinear};
use tch::Tensor;

use super::CpuState;
use crate::ModelError;
use crate::ids::Ids;
use crate::ops::{Epilogue, LinearOp};

/// A linear layer in panels; the first of a gated MLP is laid out for its activation.
#[derive(Debug)]
pub(crate) struct CpuLinear(pub(super) PackedLinear);

impl LinearOp<CpuState> for CpuLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, at: &mut CpuState) -> Result<Tensor, ModelError> {
        let is_gated = matches!(epilogue, Epilogue::Activate(activation) if activation.gated);
        if is_gated != (self.0.layout() == Layout::Gated) {
            // The kernel would put outputs in the order of the panels, or leave the second half out of the gate.
            return Err(ModelError::NoBackend {
                backend: "fused",
                reason: "a linear layer was packed for another epilogue",
            });
        }
        let kernels = &mut at.kernels;
        Ok(match epilogue {
            Epilogue::Store => kernels.linear(x, &self.0)?,
            Epilogue::AddTo(mut residual) => {
                kernels.linear_add(x, &self.0, &mut residual)?;
                residual
            }
            Epilogue::Activate(activation) => kernels.linear_activate(x, &self.0, activation.nonlinearity)?,
            Epilogue::Logits => kernels.linear_f32(x, &self.0)?,
        })
    }

    fn embedding(&self, ids: Ids<'_>, _: &mut CpuState) -> Result<Tensor, ModelError> {
        Ok(CpuKernels::select_outputs(&self.0, ids.on_host("fused")?.iter().map(|&id| id as usize))?)
    }

    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes() as u64
    }
}
