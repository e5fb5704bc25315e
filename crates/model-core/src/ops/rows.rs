//! What linear layers read.

use tch::Tensor;

use crate::ModelError;
use crate::fp8::Fp8Rows;

/// Rows for the linear layers of attention and MLP, `[num_tokens, in_features]`.
#[derive(Debug)]
pub(crate) enum Rows {
    /// In the compute type.
    Plain(Tensor),
    /// In FP8 already, for layers whose weights are: the kernel that made them has seen to it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU make them"))]
    Fp8(Fp8Rows),
}

impl Rows {
    /// For a layer or a backend that takes no others.
    pub(crate) fn plain(&self) -> Result<&Tensor, ModelError> {
        match self {
            Self::Plain(x) => Ok(x),
            Self::Fp8(_) => Err(ModelError::NoBackend {
                backend: "FP8",
                reason: "rows in FP8 came to a layer that is not",
            }),
        }
    }
}
