//! The backends: libtorch's own operations, the in-house CPU kernels, the in-house CUDA kernels.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod plain;
