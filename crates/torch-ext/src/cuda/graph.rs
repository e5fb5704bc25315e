//! Capture of graphs, by which libtorch's allocator must know of what is captured.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use std::ffi::c_void;

use super::ffi;
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

/// libtorch's graph, which owns what it has captured and the memory for it.
#[derive(Debug)]
pub struct CapturedGraph(*mut c_void);

// SAFETY: libtorch's graph is an object without ties to a thread; it is used through `&mut` or dropped only.
unsafe impl Send for CapturedGraph {}
// SAFETY: nothing of it is reached through a shared reference.
unsafe impl Sync for CapturedGraph {}

impl CapturedGraph {
    /// Starts to capture what the calling thread enqueues on its current stream. The capture must be ended with
    /// [`end`](Self::end) in any case: the stream cannot be used otherwise.
    ///
    /// # Errors
    /// When libtorch refuses, as it does on the default stream.
    pub fn begin(pool: GraphPool) -> Result<Self, ExtError> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pool has two numbers and the pointer is valid for the call.
        ffi::check("CUDAGraph::capture_begin", unsafe {
            ffi::te_cuda_graph_begin(pool.0.as_ptr(), &mut graph)
        })?;
        Ok(Self(graph))
    }

    /// Ends the capture; gives the driver's handle (`CUgraphExec`) of the graph, ready to launch for as long as this
    /// lives.
    ///
    /// # Errors
    /// When something was enqueued that cannot be captured.
    pub fn end(&mut self) -> Result<*mut c_void, ExtError> {
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph came from `te_cuda_graph_begin`, and the pointer is valid for the call.
        ffi::check("CUDAGraph::capture_end", unsafe { ffi::te_cuda_graph_end(self.0, &mut exec) })?;
        Ok(exec)
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `te_cuda_graph_begin` and is not used again. What fails while it is freed,
        // libtorch has already warned of.
        unsafe { ffi::te_cuda_graph_free(self.0) };
    }
}
