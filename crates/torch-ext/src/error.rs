//! Errors of kernels and of libtorch calls.

/// An error of a kernel or of a libtorch call.
#[derive(Debug, thiserror::Error)]
pub enum ExtError {
    /// A tensor that a kernel cannot take.
    #[error("`{what}` must be {expected}, not {actual}")]
    BadTensor {
        /// Which argument.
        what: &'static str,
        /// What the kernel needs.
        expected: String,
        /// What it was given.
        actual: String,
    },
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
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
