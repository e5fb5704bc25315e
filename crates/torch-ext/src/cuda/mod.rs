//! What tch does not expose of libtorch's CUDA half. Devices are numbers and streams and graphs libtorch's own objects
//! here; crate `cuda-runtime` joins them with the driver's. Tensors and their operations stay tch's.

pub mod blas;
mod ffi;
pub mod flash;
mod graph;
mod memory;
mod stream;

pub use graph::{CapturedGraph, GraphPool};
pub use memory::{empty_cache, send, set_device};
pub use stream::TorchStream;
