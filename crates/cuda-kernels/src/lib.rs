//! The CUDA kernels of the model and of the sampler, and their launchers.
//!
//! The sources are in `crates/cuda-kernels/kernels`. A launcher checks type, shape, device and contiguity of its tensors
//! and enqueues one kernel; it allocates nothing, so all of them may be captured into a graph. Sizes are those of the
//! tensors; lengths, positions and slots are read on the GPU, and ones out of range never lead outside a tensor. A row's
//! result depends on that row alone and is bitwise identical in any batch.
//!
//! Shapes: n rows (tokens), h hidden size, H query heads in G groups of q, d elements a head, blocks of 32 tokens; T is
//! the type of `KernelConfig`. All tensors are contiguous and on the stream's GPU.
//!
//! Feature `nvrtc` has the programs, which compile on a machine without a GPU; feature `cuda` adds the launchers.

mod error;
#[cfg(feature = "nvrtc")]
mod model;
#[cfg(feature = "nvrtc")]
mod sampler;
#[cfg(feature = "nvrtc")]
mod source;
#[cfg(feature = "cuda")]
mod tensors;
#[cfg(all(test, feature = "nvrtc"))]
mod test_compile;

pub use error::KernelError;
#[cfg(feature = "nvrtc")]
pub use {model::*, sampler::*};
