//! The GPU as the kernels and the engine use it: devices, streams, events, graphs, page-locked memory, uploads, and CUDA
//! source compiled by NVRTC and launched.
//!
//! NVRTC needs no GPU; feature `cuda` adds everything that runs on one. The driver and NVRTC are opened when they are
//! first used, so nothing is linked to them. Streams and graphs are libtorch's own (`torch-ext`), so that tensors'
//! operations can go onto them.

mod cache;
#[cfg(any(feature = "cuda", test))]
mod copy;
mod error;
pub mod nvrtc;

#[cfg(feature = "cuda")]
mod arg;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
mod peer;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "cuda")]
mod shared;
#[cfg(feature = "cuda")]
mod stream;
#[cfg(feature = "cuda")]
mod tensor_map;
#[cfg(feature = "cuda")]
mod upload;

pub use cache::kernel_cache;
pub use error::CudaError;
pub use nvrtc::{Arch, Program};
#[cfg(feature = "cuda")]
pub use {
    arg::{Arg, address},
    device::{Device, MemInfo, device_count, device_total_bytes, driver_version},
    driver::DeviceAddress,
    graph::Graph,
    module::{Kernel, KernelUse, Launch, Module},
    peer::{OwnMemory, PeerMemory, Watched},
    pinned::PinnedBuffer,
    shared::{OpenedMemory, SharedIn, SharedMemory},
    stream::{CurrentStream, Event, Stream},
    tensor_map::TensorMap,
    torch_ext::cuda::GraphPool,
    upload::Uploader,
};
