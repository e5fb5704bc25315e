//! Streams: queues of work on a GPU, libtorch's own, so that tensors' operations can go onto them.
#![expect(unsafe_code, reason = "the driver and the shim have C interfaces")]

use std::marker::PhantomData;

use super::driver::Handle;
use super::ffi::{self, TeStream};
use super::{Device, Event};
use crate::ExtError;

/// A queue of work on a GPU. What is enqueued on one is done in order; two know of each other by events only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    device: Device,
    raw: TeStream,
}

impl Stream {
    /// One of the 32 streams that libtorch keeps for a GPU, which it hands out in turn.
    ///
    /// # Errors
    /// When libtorch cannot make one.
    pub fn new(device: &Device) -> Result<Self, ExtError> {
        Self::from_shim(device, "getStreamFromPool", ffi::te_cuda_new_stream)
    }

    /// The stream that the calling thread's operations go onto.
    ///
    /// # Errors
    /// When libtorch does not say it.
    pub fn current(device: &Device) -> Result<Self, ExtError> {
        Self::from_shim(device, "getCurrentCUDAStream", ffi::te_cuda_current_stream)
    }

    fn from_shim(
        device: &Device,
        call: &'static str,
        entry: unsafe extern "C" fn(i64, *mut TeStream) -> i32,
    ) -> Result<Self, ExtError> {
        device.bind()?;
        let mut raw = TeStream { id: 0, device_idx: 0, handle: Handle::NULL };
        // SAFETY: the device is open and the pointer is valid for the call.
        ffi::check(call, unsafe { entry(device.index() as i64, &mut raw) })?;
        Ok(Self { device: *device, raw })
    }

    /// Its GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<(), ExtError> {
        let driver = self.device.bind()?;
        // SAFETY: libtorch never destroys its streams.
        driver.check("cuStreamSynchronize", unsafe { (driver.stream_synchronize)(self.handle()) })
    }

    /// Lets what is enqueued from now on wait for `event`; the calling thread goes on.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn wait(&self, event: &Event) -> Result<(), ExtError> {
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
    pub fn as_current(&self) -> Result<CurrentStream, ExtError> {
        let before = Self::current(&self.device)?;
        self.set_current()?;
        Ok(CurrentStream { before, not_send: PhantomData })
    }

    /// Whether what is enqueued now is captured into a graph and not run.
    ///
    /// # Errors
    /// When the driver does not say it.
    pub fn is_capturing(&self) -> Result<bool, ExtError> {
        let driver = self.device.bind()?;
        let mut status = 0;
        // SAFETY: the stream lives and the pointer is valid for the call.
        driver.check("cuStreamIsCapturing", unsafe {
            (driver.stream_is_capturing)(self.handle(), &mut status)
        })?;
        Ok(status != 0)
    }

    fn set_current(&self) -> Result<(), ExtError> {
        // SAFETY: the numbers are libtorch's own.
        ffi::check("setCurrentCUDAStream", unsafe { ffi::te_cuda_set_current_stream(&self.raw) })
    }

    pub(super) fn handle(&self) -> Handle {
        self.raw.handle
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
        // It was current before, so libtorch takes it again; there is nobody to tell otherwise.
        let _ = self.before.set_current();
    }
}
