//! Page-locked host memory: copies between it and a GPU run beside everything else, at the full speed of the bus.
#![expect(unsafe_code, reason = "the memory is the driver's")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Pod;
use tch::Tensor;
use torch_ext::BadTensor;

use super::{Device, Event, Stream, arg};
use crate::CudaError;

/// Any thread's context may use the memory, whichever GPU it belongs to.
const PORTABLE: u32 = 1;

/// Page-locked host memory for `len` values.
///
/// A copy is enqueued and not waited for. The memory can be looked at only when its last copy is done: the methods that
/// give a slice wait for it, [`is_ready`](Self::is_ready) asks.
#[derive(Debug)]
pub struct PinnedBuffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
    copied: Event,
    /// Whether a copy was enqueued since it was last known that none is in flight.
    pending: AtomicBool,
    device: Device,
}

// SAFETY: the memory is owned, and `T: Pod` has no ties to a thread.
unsafe impl<T: Pod + Send> Send for PinnedBuffer<T> {}
// SAFETY: a shared reference only reads the memory, and only lets the GPU read it.
unsafe impl<T: Pod + Sync> Sync for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// Memory for `len` values, zeros at first.
    ///
    /// # Errors
    /// When the system has no more memory to lock.
    pub fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        // The driver gives no empty allocation.
        let size_bytes = len.saturating_mul(size_of::<T>()).max(1);
        let driver = device.bind()?;
        let copied = Event::untimed(device)?;
        let mut start = std::ptr::null_mut::<c_void>();
        // SAFETY: a context is current and the pointer is valid for the call.
        let code = unsafe { (driver.host_alloc)(&mut start, size_bytes, PORTABLE) };
        driver.check("cuMemHostAlloc", code).map_err(|error| match error {
            CudaError::DeviceOutOfMemory => too_large(size_bytes),
            other => other,
        })?;
        let Some(start) = NonNull::new(start) else { return Err(too_large(size_bytes)) };
        // SAFETY: the memory has `size_bytes` bytes.
        unsafe { start.cast::<u8>().write_bytes(0, size_bytes) };
        Ok(Self { start: start.cast(), len, copied, pending: AtomicBool::new(false), device: *device })
    }

    /// The values, after waiting for the last copy.
    ///
    /// # Errors
    /// When the work before that copy failed.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        self.settle()?;
        // SAFETY: the memory holds `len` values, zeros at first, and any bytes are valid ones; pages are aligned for
        // every `Pod` type. No copy into it is in flight: `copy_from` takes `&mut self`, and was waited for.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The values for writing, after waiting for the last copy.
    ///
    /// # Errors
    /// When the work before that copy failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.settle()?;
        // Only here, where nobody else can enqueue a copy meanwhile.
        *self.pending.get_mut() = false;
        // SAFETY: as above, the borrow is exclusive, and no copy out of it is in flight either.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// Whether the last copy is done, so that nothing would wait.
    ///
    /// # Errors
    /// When the work before that copy failed.
    pub fn is_ready(&self) -> Result<bool, CudaError> {
        Ok(!self.pending.load(Ordering::Acquire) || self.copied.query()?)
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Enqueues a copy of the first values onto all of `to`, a contiguous tensor on the GPU.
    ///
    /// # Errors
    /// When the tensor is another, larger than the buffer, or `stream` is being captured.
    pub fn copy_to(&self, to: &Tensor, stream: &Stream) -> Result<(), CudaError> {
        let (address, size_bytes) = self.check(to, stream)?;
        self.copy_bytes_to(address, size_bytes, stream)
    }

    /// Enqueues a copy of all of `from`, a contiguous tensor on the GPU, onto the first values.
    ///
    /// # Errors
    /// When the tensor is another, larger than the buffer, or `stream` is being captured.
    pub fn copy_from(&mut self, from: &Tensor, stream: &Stream) -> Result<(), CudaError> {
        let (address, size_bytes) = self.check(from, stream)?;
        let driver = self.device.bind()?;
        let to = self.start.as_ptr().cast();
        // SAFETY: both sides have as many bytes (checked), the host's side lives until the copy is done, and nothing
        // looks at it before: `as_slice` waits.
        let code = unsafe { (driver.copy_to_host)(to, address, size_bytes, stream.handle()) };
        driver.check("cuMemcpyDtoHAsync", code)?;
        self.mark(stream)
    }

    /// Enqueues a copy of the first bytes to an address on the GPU.
    pub(super) fn copy_bytes_to(
        &self,
        address: u64,
        size_bytes: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        debug_assert!(size_bytes <= self.len * size_of::<T>(), "the copy is longer than the buffer");
        let driver = self.device.bind()?;
        let from = self.start.as_ptr().cast();
        // SAFETY: the callers know that both sides have as many bytes; the host's side lives until the copy is done,
        // since `drop` waits.
        let code = unsafe { (driver.copy_to_device)(address, from, size_bytes, stream.handle()) };
        driver.check("cuMemcpyHtoDAsync", code)?;
        self.mark(stream)
    }

    /// The address and the bytes of a tensor that fits. Inside a capture the copy would be done again by every replay,
    /// unseen by the buffer. Copies on two streams would be known by the later one alone, so the earlier is waited for
    /// by `stream`.
    fn check(&self, tensor: &Tensor, stream: &Stream) -> Result<(u64, usize), CudaError> {
        let address = arg::address(tensor, &self.device, "tensor to copy")?;
        let size_bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        if size_bytes > self.len * size_of::<T>() {
            return Err(CudaError::BadTensor(BadTensor {
                what: "tensor to copy",
                expected: format!(
                    "at most {} bytes long, as the pinned buffer is",
                    self.len * size_of::<T>()
                ),
                actual: size_bytes.to_string(),
            }));
        }
        if stream.is_capturing()? {
            return Err(CudaError::Call {
                call: "PinnedBuffer::copy",
                reason: "a copy of a pinned buffer cannot be captured into a graph".to_owned(),
            });
        }
        if self.pending.load(Ordering::Acquire) {
            stream.wait(&self.copied)?;
        }
        Ok((address, size_bytes))
    }

    fn mark(&self, stream: &Stream) -> Result<(), CudaError> {
        // Set first: should the mark fail, waiting for the older one would not do, and `settle` reports the failure.
        self.pending.store(true, Ordering::Release);
        self.copied.record(stream).or_else(|error| {
            stream.synchronize()?;
            Err(error)
        })
    }

    fn settle(&self) -> Result<(), CudaError> {
        if self.pending.load(Ordering::Acquire) {
            self.copied.synchronize()?;
        }
        Ok(())
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // When waiting fails the GPU has failed, and does not touch the memory any more.
        let _ = self.settle();
        if let Ok(driver) = self.device.bind() {
            // SAFETY: the memory came from the driver and is not used again.
            unsafe { (driver.host_free)(self.start.as_ptr().cast()) };
        }
    }
}

fn too_large(size_bytes: usize) -> CudaError {
    CudaError::HostOutOfMemory { size_bytes, source: std::io::ErrorKind::OutOfMemory.into() }
}
