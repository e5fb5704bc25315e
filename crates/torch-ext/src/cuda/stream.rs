//! libtorch's streams.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use std::ffi::c_void;

use super::ffi;
use crate::ExtError;

/// A stream as libtorch names it, and the driver's handle of it (`CUstream`). libtorch never destroys its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TorchStream {
    id: i64,
    device_idx: i64,
    handle: *mut c_void,
}

// SAFETY: the driver's objects may be used from every thread, and it does its own locking.
unsafe impl Send for TorchStream {}
// SAFETY: as above.
unsafe impl Sync for TorchStream {}

impl TorchStream {
    /// One of the 32 streams that libtorch keeps for a GPU, which it hands out in turn.
    ///
    /// # Errors
    /// When libtorch cannot make one.
    pub fn from_pool(device_idx: usize) -> Result<Self, ExtError> {
        Self::from_shim(device_idx, "getStreamFromPool", ffi::te_cuda_new_stream)
    }

    /// The stream that the calling thread's operations on a GPU go onto.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn current(device_idx: usize) -> Result<Self, ExtError> {
        Self::from_shim(device_idx, "getCurrentCUDAStream", ffi::te_cuda_current_stream)
    }

    fn from_shim(
        device_idx: usize,
        call: &'static str,
        entry: unsafe extern "C" fn(i64, *mut Self) -> i32,
    ) -> Result<Self, ExtError> {
        let mut stream = Self { id: 0, device_idx: 0, handle: std::ptr::null_mut() };
        // SAFETY: the pointer is valid for the call; libtorch refuses a number that no GPU has.
        ffi::check(call, unsafe { entry(device_idx as i64, &mut stream) })?;
        Ok(stream)
    }

    /// Lets the calling thread's operations on its GPU go onto this stream.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn set_current(&self) -> Result<(), ExtError> {
        // SAFETY: the numbers are libtorch's own.
        ffi::check("setCurrentCUDAStream", unsafe { ffi::te_cuda_set_current_stream(self) })
    }

    /// The driver's handle.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }
}
