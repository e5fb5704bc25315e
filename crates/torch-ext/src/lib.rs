//! What libtorch has and `tch` does not expose: the memory of CPU tensors, MKL's mode, TCPStore and, with feature
//! `cuda`, streams, graph capture, variable-length flash attention and the switches of cuBLAS; and where it lies.
//!
//! Most of it goes through a C++ shim (`csrc`). It knows nothing of kernels, models or sampling.

#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod ffi;
pub mod mkl;
mod place;
pub mod store;
pub mod view;

pub use error::{BadTensor, ExtError};
pub use place::library_dir;
