//! Errors of the GPU: the driver, NVRTC, and libtorch's streams and graphs.

use std::path::PathBuf;

use torch_ext::{BadTensor, ExtError};

/// An error of the GPU, or of the compiler of its kernels.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A tensor that cannot be copied from, copied to or given to a kernel.
    #[error(transparent)]
    BadTensor(#[from] BadTensor),
    /// The system gives no more page-locked memory.
    #[error("cannot reserve {size_bytes} bytes of memory")]
    HostOutOfMemory {
        /// What was asked for.
        size_bytes: usize,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The driver has no memory left, on the GPU or page-locked.
    #[error("the GPU is out of memory")]
    DeviceOutOfMemory,
    /// The driver or NVRTC refused.
    #[error("`{call}` failed: {reason}")]
    Call {
        /// What was called.
        call: &'static str,
        /// Its message.
        reason: String,
    },
    /// A GPU that is not there.
    #[error("there is no GPU {index}: {count} can be used")]
    NoDevice {
        /// The GPU that was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A shared library that cannot be opened.
    #[error("cannot open `{name}`: {reason}; {help}")]
    Library {
        /// Its name.
        name: &'static str,
        /// The system's reason.
        reason: String,
        /// What to do about it.
        help: &'static str,
    },
    /// CUDA source that does not compile.
    #[error("kernels `{program}` do not compile for {arch}:\n{log}")]
    Compile {
        /// The program.
        program: &'static str,
        /// The architecture it was compiled for.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// Arguments that do not fit a kernel's parameters.
    #[error("kernel `{kernel}`: {reason}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {action} `{}`", .path.display())]
    File {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// libtorch refused.
    #[error(transparent)]
    Ext(#[from] ExtError),
}

impl From<tch::TchError> for CudaError {
    fn from(error: tch::TchError) -> Self {
        Self::Ext(error.into())
    }
}
