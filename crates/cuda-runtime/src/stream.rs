//! Streams and events. Streams are libtorch's own, so that tensors' operations can go onto them.
#![expect(unsafe_code, reason = "the driver has a C interface")]

mod event;

use std::marker::PhantomData;

use torch_ext::cuda::TorchStream;

use crate::driver::Handle;
use crate::{CudaError, Device};

pub use event::Event;

/// A queue of work on a GPU. What is enqueued on one is done in order; two know of each other by events only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    device: Device,
    torch: TorchStream,
}

impl Stream {
    /// One of the 32 streams that libtorch keeps for a GPU, which it hands out in turn.
    ///
    /// # Errors
    /// When libtorch cannot make one.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        device.bind()?;
        Ok(Self { device: *device, torch: TorchStream::from_pool(device.index())? })
    }

    /// The stream that the calling thread's operations go onto.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn current(device: &Device) -> Result<Self, CudaError> {
        device.bind()?;
        Ok(Self { device: *device, torch: TorchStream::current(device.index())? })
    }

    /// Its GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let driver = self.device.bind()?;
        // SAFETY: libtorch never destroys its streams.
        driver.check("cuStreamSynchronize", unsafe { (driver.stream_synchronize)(self.handle()) })
    }

    /// Lets what is enqueued from now on wait for `event`; the calling thread goes on.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let driver = self.device.bind()?;
        // SAFETY: both objects live.
        driver.check("cuStreamWaitEvent", unsafe {
            (driver.stream_wait_event)(self.handle(), event.handle(), 0)
        })
    }

    /// Lets the calling thread's operations on this GPU go onto this stream until the guard is dropped.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn as_current(&self) -> Result<CurrentStream, CudaError> {
        let before = Self::current(&self.device)?;
        self.torch.set_current()?;
        Ok(CurrentStream { before, not_send: PhantomData })
    }

    /// Whether what is enqueued now is captured into a graph and not run.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn is_capturing(&self) -> Result<bool, CudaError> {
        let driver = self.device.bind()?;
        let mut status = 0;
        // SAFETY: the stream lives and the pointer is valid for the call.
        driver.check("cuStreamIsCapturing", unsafe {
            (driver.stream_is_capturing)(self.handle(), &mut status)
        })?;
        Ok(status != 0)
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle(self.torch.handle())
    }
}

/// While it lives, the calling thread's operations go onto another stream.
#[derive(Debug)]
pub struct CurrentStream {
    before: Stream,
    // The current stream is the thread's own.
    not_send: PhantomData<*const ()>,
}

impl Drop for CurrentStream {
    fn drop(&mut self) {
        // It was current before, so libtorch takes it again; a destructor could not report a failure.
        let _ = self.before.torch.set_current();
    }
}
