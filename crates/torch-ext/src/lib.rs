//! What libtorch has and `tch` does not expose, and the project's own CPU and CUDA kernels.
//!
//! The only crate with `unsafe` code (one mmap in `nemo-format` apart). It knows nothing of models or sampling.

pub mod cpu;
#[cfg(feature = "nvrtc")]
pub mod cuda;
mod error;
mod ffi;
pub mod mkl;
pub mod store;
pub mod view;

pub use error::ExtError;
