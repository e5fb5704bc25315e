//! CUDA graphs: a sequence of operations recorded once and then enqueued as one.
#![expect(unsafe_code, reason = "the driver and the shim have C interfaces")]

use std::ffi::c_void;

use super::driver::Handle;
use super::{Device, Stream, blas, ffi};
use crate::ExtError;

/// Memory for the tensors that are made while graphs are captured. Graphs that share one may use the same bytes, so
/// they must be replayed one after another, and what one leaves there is lost when another runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphPool([u64; 2]);

impl GraphPool {
    /// A pool of its own.
    ///
    /// # Errors
    /// When libtorch cannot make one.
    pub fn new() -> Result<Self, ExtError> {
        let mut pool = [0; 2];
        // SAFETY: the entry writes two numbers.
        ffi::check("graph_pool_handle", unsafe { ffi::te_cuda_graph_pool(pool.as_mut_ptr()) })?;
        Ok(Self(pool))
    }
}

/// A captured sequence of operations.
///
/// It works on the tensors, and with the kernels, that it was captured with: tensors from outside must outlive its
/// last replay at their addresses, and it may be dropped only when its last replay is done. Scalars, shapes and the course of the host's code are as they were.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    exec: Handle,
    /// Owns `exec`.
    _graph: GraphPtr,
}

#[derive(Debug)]
struct GraphPtr(*mut c_void);
// SAFETY: libtorch's graph is an object without ties to a thread; it is used through `&mut` or dropped only.
unsafe impl Send for GraphPtr {}
// SAFETY: nothing of it is reached through a shared reference.
unsafe impl Sync for GraphPtr {}

impl Drop for GraphPtr {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `te_cuda_graph_begin` and is not used again. What fails while it is freed,
        // libtorch has already warned of.
        unsafe { ffi::te_cuda_graph_free(self.0) };
    }
}

impl Graph {
    /// Captures what `body` enqueues, with a memory pool of its own.
    ///
    /// # Errors
    /// As [`capture_in`](Self::capture_in).
    pub fn capture<E: From<ExtError>>(
        stream: &Stream,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::capture_in(GraphPool::new()?, stream, body)
    }

    /// Captures what `body` enqueues on `stream`, which is current while it runs; nothing of it is run yet. Other
    /// threads may use the GPU meanwhile.
    ///
    /// `body` must have run before outside a capture: whatever libraries set up at their first use cannot be captured.
    /// The handles and workspaces of cuBLAS are seen to here.
    ///
    /// # Errors
    /// What `body` gives, or when it does something that cannot be captured, such as waiting for the GPU.
    pub fn capture_in<E: From<ExtError>>(
        pool: GraphPool,
        stream: &Stream,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let _current = stream.as_current()?;
        blas::prepare(stream)?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pool has two numbers and the pointer is valid for the call.
        ffi::check("CUDAGraph::capture_begin", unsafe {
            ffi::te_cuda_graph_begin(pool.0.as_ptr(), &mut graph)
        })?;
        let graph = GraphPtr(graph);
        let outcome = body();
        let mut exec = Handle::NULL;
        // The capture is ended in any case: the stream could not be used otherwise.
        // SAFETY: the graph is being captured, and the pointer is valid for the call.
        let ended =
            ffi::check("CUDAGraph::capture_end", unsafe { ffi::te_cuda_graph_end(graph.0, &mut exec) });
        outcome?;
        ended?;
        Ok(Self { device: *stream.device(), exec, _graph: graph })
    }

    /// Enqueues all of it on `stream`.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work on the GPU failed.
    pub fn replay(&self, stream: &Stream) -> Result<(), ExtError> {
        let driver = self.device.bind()?;
        // SAFETY: `_graph` owns the executable graph and lives as long as this. It is libtorch's, replayed without the
        // bookkeeping for its random numbers, which nothing here draws.
        driver.check("cuGraphLaunch", unsafe { (driver.graph_launch)(self.exec, stream.handle()) })
    }

    /// Its GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
