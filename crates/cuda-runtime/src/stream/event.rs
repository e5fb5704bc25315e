//! Events: marks in a stream that others can wait for, and whose times can be compared.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use super::Stream;
use crate::CudaError;
use crate::Device;
use crate::driver::Handle;

const DISABLE_TIMING: u32 = 2;

/// A mark in a stream. One that was never recorded counts as reached.
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: Handle,
}

impl Event {
    /// An event whose time can be compared.
    ///
    /// # Errors
    /// When the driver cannot make one.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Self::create(device, 0)
    }

    /// An event without a time, which costs less.
    ///
    /// # Errors
    /// When the driver cannot make one.
    pub fn untimed(device: &Device) -> Result<Self, CudaError> {
        Self::create(device, DISABLE_TIMING)
    }

    fn create(device: &Device, flags: u32) -> Result<Self, CudaError> {
        let driver = device.bind()?;
        let mut handle = Handle::NULL;
        // SAFETY: a context is current and the pointer is valid for the call.
        driver.check("cuEventCreate", unsafe { (driver.event_create)(&mut handle, flags) })?;
        Ok(Self { device: *device, handle })
    }

    /// Moves the mark to the end of what `stream` holds now.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        let driver = self.device.bind()?;
        // SAFETY: both objects live.
        driver.check("cuEventRecord", unsafe { (driver.event_record)(self.handle, stream.handle()) })
    }

    /// Waits until the mark is reached.
    ///
    /// # Errors
    /// When the work before it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let driver = self.device.bind()?;
        // SAFETY: the event lives.
        driver.check("cuEventSynchronize", unsafe { (driver.event_synchronize)(self.handle) })
    }

    /// Whether the mark is reached.
    ///
    /// # Errors
    /// When the work before it failed.
    pub fn query(&self) -> Result<bool, CudaError> {
        let driver = self.device.bind()?;
        // SAFETY: the event lives.
        driver.check_ready("cuEventQuery", unsafe { (driver.event_query)(self.handle) })
    }

    /// The time from this event to `end`, both reached, in milliseconds; its resolution is about half a microsecond.
    ///
    /// # Errors
    /// When one was not recorded, is not reached or has no time.
    pub fn elapsed_ms(&self, end: &Self) -> Result<f32, CudaError> {
        let driver = self.device.bind()?;
        let mut elapsed_ms = 0.0;
        // SAFETY: both events live and the pointer is valid for the call.
        let code = unsafe { (driver.event_elapsed_time)(&mut elapsed_ms, self.handle, end.handle) };
        driver.check("cuEventElapsedTime", code)?;
        Ok(elapsed_ms)
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(driver) = self.device.bind() {
            // SAFETY: the event is not used again; the driver frees it when it is reached.
            unsafe { (driver.event_destroy)(self.handle) };
        }
    }
}
