//! Errors of the CUDA kernels.

use cuda_runtime::CudaError;
use torch_ext::{BadTensor, ExtError};

/// An error of a CUDA kernel's launcher, or of loading it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tensor, or another argument, that a kernel cannot take.
    #[error(transparent)]
    BadTensor(#[from] BadTensor),
    /// A model that there are no kernels for.
    #[error("no kernels: {what} must be {expected}, not {actual}")]
    BadKernelConfig {
        /// What of it.
        what: &'static str,
        /// What there are kernels for.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The GPU or NVRTC refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// libtorch refused.
    #[error(transparent)]
    Ext(#[from] ExtError),
}

impl From<tch::TchError> for KernelError {
    fn from(error: tch::TchError) -> Self {
        Self::Ext(error.into())
    }
}
