//! CUDA graphs: a sequence of operations recorded once and then enqueued as one.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use tch::{Kind, Tensor};
use torch_ext::cuda::{CapturedGraph, GraphPool};

use crate::driver::Handle;
use crate::{CudaError, Device, Stream};

/// A captured sequence of operations.
///
/// It works on the tensors, and with the kernels, that it was captured with: tensors from outside must outlive its
/// last replay at their addresses, and it may be dropped only when its last replay is done. Scalars, shapes and the course of the host's code are as they were.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    exec: Handle,
    /// Owns `exec`.
    _graph: CapturedGraph,
}

impl Graph {
    /// Captures what `body` enqueues, with a memory pool of its own.
    ///
    /// # Errors
    /// As [`capture_in`](Self::capture_in).
    pub fn capture<E: From<CudaError>>(
        stream: &Stream,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::capture_in(GraphPool::new().map_err(CudaError::from)?, stream, body)
    }

    /// Captures what `body` enqueues on `stream`, which is current while it runs; nothing of it is run yet. Other
    /// threads may use the GPU meanwhile.
    ///
    /// `body` must have run before outside a capture: whatever libraries set up at their first use cannot be captured.
    /// The handles and workspaces of cuBLAS are seen to here.
    ///
    /// # Errors
    /// What `body` gives, or when it does something that cannot be captured, such as waiting for the GPU.
    pub fn capture_in<E: From<CudaError>>(
        pool: GraphPool,
        stream: &Stream,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let _current = stream.as_current()?;
        prepare_cublas(stream)?;
        let mut graph = CapturedGraph::begin(pool).map_err(CudaError::from)?;
        let outcome = body();
        // The capture is ended in any case: the stream could not be used otherwise.
        let ended = graph.end();
        outcome?;
        let exec = Handle(ended.map_err(CudaError::from)?);
        Ok(Self { device: *stream.device(), exec, _graph: graph })
    }

    /// Enqueues all of it on `stream`.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work on the GPU failed.
    pub fn replay(&self, stream: &Stream) -> Result<(), CudaError> {
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

/// Makes the handles and workspaces of cuBLAS for `stream`, which is current, and the calling thread: both are set up at their first use,
/// which cannot be inside a capture.
fn prepare_cublas(stream: &Stream) -> Result<(), CudaError> {
    for kind in [Kind::BFloat16, Kind::Float] {
        let x = Tensor::f_zeros([32, 64], (kind, stream.device().tch()))?;
        let weight = Tensor::f_zeros([64, 64], (kind, stream.device().tch()))?;
        let bias = Tensor::f_zeros([64], (kind, stream.device().tch()))?;
        // With and without a bias: libtorch goes through cuBLASLt for the first whatever is preferred.
        drop(x.f_linear::<&Tensor>(&weight, None)?);
        drop(x.f_linear(&weight, Some(&bias))?);
    }
    stream.synchronize()
}
