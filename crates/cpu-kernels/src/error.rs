//! Errors of the CPU kernels.

use torch_ext::{BadTensor, ExtError};

use crate::NoIsa;

/// An error of a CPU kernel.
#[derive(Debug, thiserror::Error)]
pub enum CpuKernelError {
    /// A tensor, or another argument, that a kernel cannot take.
    #[error(transparent)]
    BadTensor(#[from] BadTensor),
    /// The system gives no more memory.
    #[error("cannot reserve {size_bytes} bytes of memory")]
    OutOfMemory {
        /// What was asked for.
        size_bytes: usize,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The system starts no more threads.
    #[error("cannot start the kernel threads")]
    Threads(#[source] std::io::Error),
    /// An instruction set that this machine lacks.
    #[error(transparent)]
    NoIsa(#[from] NoIsa),
    /// libtorch refused.
    #[error(transparent)]
    Ext(#[from] ExtError),
}

impl From<tch::TchError> for CpuKernelError {
    fn from(error: tch::TchError) -> Self {
        Self::Ext(error.into())
    }
}
