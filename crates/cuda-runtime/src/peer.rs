//! Memory of a GPU that other processes write into (CUDA IPC), and a word of the host that kernels write.
#![expect(unsafe_code, reason = "the memory is the driver's")]

use std::ffi::c_void;
use std::ptr::NonNull;

use super::Device;
use super::driver::{DeviceAddress, IPC_HANDLE_BYTES, IpcHandle};
use crate::CudaError;

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the only flag there is.
const LAZY_PEER_ACCESS: u32 = 1;
/// Any thread's context may use the memory.
const PORTABLE: u32 = 1;

/// Memory of this process that others may be given.
#[derive(Debug)]
pub struct OwnMemory {
    device: Device,
    address: DeviceAddress,
}

impl OwnMemory {
    /// `size_bytes` bytes, zeros.
    ///
    /// # Errors
    /// When the GPU has no memory left.
    pub fn new(device: &Device, size_bytes: usize) -> Result<Self, CudaError> {
        let driver = device.bind()?;
        let mut address = 0;
        // SAFETY: a context is current and the pointer is valid for the call.
        driver.check("cuMemAlloc", unsafe { (driver.mem_alloc)(&mut address, size_bytes.max(1)) })?;
        let memory = Self { device: *device, address };
        // SAFETY: the memory has that many bytes. The call is over when they are written.
        driver.check("cuMemsetD8", unsafe { (driver.memset)(address, 0, size_bytes) })?;
        device.synchronize()?;
        Ok(memory)
    }

    /// Where it begins.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }

    /// What another process needs to open it.
    ///
    /// # Errors
    /// When the driver cannot share memory between processes.
    pub fn handle(&self) -> Result<Vec<u8>, CudaError> {
        let driver = self.device.bind()?;
        let mut handle = IpcHandle([0; IPC_HANDLE_BYTES]);
        // SAFETY: the memory is this process's and the pointer is valid for the call.
        driver.check("cuIpcGetMemHandle", unsafe { (driver.ipc_handle)(&mut handle, self.address) })?;
        Ok(handle.0.to_vec())
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        if let Ok(driver) = self.device.bind() {
            // SAFETY: the memory came from the driver and is not used again by this process; what others have open stays.
            unsafe { (driver.mem_free)(self.address) };
        }
    }
}

/// Memory of another process.
#[derive(Debug)]
pub struct PeerMemory {
    device: Device,
    address: DeviceAddress,
}

impl PeerMemory {
    /// Opens what another process has the handle of. It may lie on another GPU of this machine, which must be reached by
    /// this one.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn open(device: &Device, handle: &[u8]) -> Result<Self, CudaError> {
        let driver = device.bind()?;
        let bytes: [u8; IPC_HANDLE_BYTES] = handle.try_into().map_err(|_| CudaError::Call {
            call: "cuIpcOpenMemHandle",
            reason: format!("a handle of {} bytes is none", handle.len()),
        })?;
        let mut address = 0;
        // SAFETY: a context is current and the pointer is valid for the call.
        let code = unsafe { (driver.ipc_open)(&mut address, IpcHandle(bytes), LAZY_PEER_ACCESS) };
        driver.check("cuIpcOpenMemHandle", code)?;
        Ok(Self { device: *device, address })
    }

    /// Where it begins, for this process.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        if let Ok(driver) = self.device.bind() {
            // SAFETY: it was opened and is not used again.
            unsafe { (driver.ipc_close)(self.address) };
        }
    }
}

/// A number in the host's memory that kernels may write at any time.
#[derive(Debug)]
pub struct Watched {
    device: Device,
    word: NonNull<u32>,
}

// SAFETY: the memory is owned and is read as a whole word.
unsafe impl Send for Watched {}
// SAFETY: the same; a shared reference only reads.
unsafe impl Sync for Watched {}

impl Watched {
    /// 0 at first.
    ///
    /// # Errors
    /// When the system has no memory to lock.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let driver = device.bind()?;
        let mut start = std::ptr::null_mut::<c_void>();
        // SAFETY: a context is current and the pointer is valid for the call.
        let code = unsafe { (driver.host_alloc)(&mut start, size_of::<u32>(), PORTABLE) };
        driver.check("cuMemHostAlloc", code)?;
        let Some(word) = NonNull::new(start.cast::<u32>()) else { return Err(CudaError::DeviceOutOfMemory) };
        // SAFETY: the memory has the bytes of one word, and pages are aligned for it.
        unsafe { word.write_volatile(0) };
        Ok(Self { device: *device, word })
    }

    /// Its address for kernels: the same as for the host.
    pub fn address(&self) -> DeviceAddress {
        self.word.as_ptr() as DeviceAddress
    }

    /// What it is now.
    pub fn read(&self) -> u32 {
        // SAFETY: the memory is owned; a kernel writes whole words.
        unsafe { self.word.read_volatile() }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A kernel that still waits may write to it.
        let _ = self.device.synchronize();
        if let Ok(driver) = self.device.bind() {
            // SAFETY: the memory came from the driver and is not used again.
            unsafe { (driver.host_free)(self.word.as_ptr().cast()) };
        }
    }
}
