//! The GPU: what tch does not expose of libtorch's CUDA half, and the project's own CUDA kernels.
//!
//! Feature `nvrtc` compiles kernels and needs no GPU; feature `cuda` adds everything that runs on one. Tensors and their
//! operations stay tch's. The driver and NVRTC are opened when they are first used.

mod cache;
#[cfg(any(feature = "cuda", test))]
mod copy;
pub mod kernels;
pub mod nvrtc;

#[cfg(feature = "cuda")]
mod arg;
#[cfg(feature = "cuda")]
pub mod blas;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod event;
#[cfg(feature = "cuda")]
mod ffi;
#[cfg(feature = "cuda")]
pub mod flash;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "cuda")]
mod send;
#[cfg(feature = "cuda")]
mod stream;
#[cfg(feature = "cuda")]
mod tensor_map;
#[cfg(feature = "cuda")]
mod upload;

pub use cache::kernel_cache;
pub use nvrtc::{Arch, Program};
#[cfg(feature = "cuda")]
pub use {
    arg::Arg,
    device::{Device, MemInfo, device_count},
    event::Event,
    graph::{Graph, GraphPool},
    module::{Kernel, KernelUse, Launch, Module},
    pinned::PinnedBuffer,
    send::send,
    stream::{CurrentStream, Stream},
    tensor_map::TensorMap,
    upload::Uploader,
};
