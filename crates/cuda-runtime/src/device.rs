//! GPUs: how many there are, and what one is and has free.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use std::ffi::{CStr, c_char, c_int};

use torch_ext::cuda::TorchStream;

use super::driver::{Driver, Handle};
use super::nvrtc::Arch;
use crate::CudaError;

/// The newest version of CUDA that the driver runs: (13, 0).
///
/// # Errors
/// When the driver is missing.
pub fn driver_version() -> Result<(u32, u32), CudaError> {
    let driver = Driver::get()?;
    let mut version = 0;
    // SAFETY: the pointer is valid for the call, which needs no started driver.
    driver.check("cuDriverGetVersion", unsafe { (driver.driver_version)(&mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

/// How many GPUs this process may use (`CUDA_VISIBLE_DEVICES` counts).
///
/// # Errors
/// When the driver is missing or does not start.
pub fn device_count() -> Result<usize, CudaError> {
    let driver = Driver::get()?;
    if !driver.start()? {
        return Ok(0);
    }
    let mut count = 0;
    // SAFETY: the driver has started and the pointer is valid for the call.
    driver.check("cuDeviceGetCount", unsafe { (driver.device_count)(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// All memory of a GPU, which is not opened for it.
///
/// # Errors
/// When the driver does not start, or there is no such GPU.
pub fn device_total_bytes(index: usize) -> Result<u64, CudaError> {
    let driver = Driver::get()?;
    driver.start()?;
    let mut bytes = 0;
    // SAFETY: the driver has started and the pointer is valid for the call; it says so of a GPU that is not there.
    driver.check("cuDeviceTotalMem", unsafe { (driver.device_total_mem)(&mut bytes, index as c_int) })?;
    Ok(bytes as u64)
}

/// Free and total bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    /// What no process holds; libtorch's reserve counts as held.
    pub free_bytes: u64,
    /// What the GPU has.
    pub total_bytes: u64,
}

/// A GPU that this process uses, with libtorch's own context on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    index: usize,
    context: Handle,
}

// The numbers of `CUdevice_attribute`.
const MULTIPROCESSOR_COUNT: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_BYTES: c_int = 97;

impl Device {
    /// Opens a GPU and makes it the calling thread's current one.
    ///
    /// # Errors
    /// When there is no such GPU, or the driver or libtorch cannot use it.
    pub fn open(index: usize) -> Result<Self, CudaError> {
        let count = device_count()?;
        let (true, Ok(device_idx)) = (index < count, c_int::try_from(index)) else {
            return Err(CudaError::NoDevice { index, count });
        };
        torch_ext::cuda::set_device(index)?;
        let driver = Driver::get()?;
        let mut context = Handle::NULL;
        // SAFETY: the driver has started. The context is never released: it is libtorch's, which keeps it to the end.
        let code = unsafe { (driver.primary_context_retain)(&mut context, device_idx) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let device = Self { index, context };
        device.bind()?;
        Ok(device)
    }

    /// Its number among the GPUs of this process.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The device of tch's tensors.
    pub fn tch(&self) -> tch::Device {
        tch::Device::Cuda(self.index)
    }

    /// The model, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn name(&self) -> Result<String, CudaError> {
        let driver = Driver::get()?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the driver writes at most as many bytes as it is told, and a 0 at the end.
        let text = unsafe {
            driver.check(
                "cuDeviceGetName",
                (driver.device_name)(name.as_mut_ptr(), 256, self.index as c_int),
            )?;
            CStr::from_ptr(name.as_ptr())
        };
        Ok(text.to_string_lossy().into_owned())
    }

    /// The compute capability: (9, 0) for an H100.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn compute_capability(&self) -> Result<(u32, u32), CudaError> {
        Ok((self.attribute(CAPABILITY_MAJOR)?, self.attribute(CAPABILITY_MINOR)?))
    }

    /// The architecture that kernels are compiled for.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn arch(&self) -> Result<Arch, CudaError> {
        self.compute_capability().map(|(major, minor)| Arch { major, minor })
    }

    /// How many multiprocessors it has.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn num_sms(&self) -> Result<u32, CudaError> {
        self.attribute(MULTIPROCESSOR_COUNT)
    }

    /// The most shared memory one block of threads may have.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn max_shared_bytes(&self) -> Result<u32, CudaError> {
        self.attribute(MAX_SHARED_BYTES)
    }

    /// The memory that is free now.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn mem_get_info(&self) -> Result<MemInfo, CudaError> {
        let driver = self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: a context is current and both pointers are valid for the call.
        driver.check("cuMemGetInfo", unsafe { (driver.memory_info)(&mut free, &mut total) })?;
        Ok(MemInfo { free_bytes: free as u64, total_bytes: total as u64 })
    }

    /// Hands memory that libtorch keeps in reserve back to the GPU.
    ///
    /// # Errors
    /// When libtorch cannot.
    pub fn empty_cache(&self) -> Result<(), CudaError> {
        self.bind()?;
        Ok(torch_ext::cuda::empty_cache()?)
    }

    /// Waits for all work of the calling thread's current stream.
    ///
    /// # Errors
    /// When that work failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let driver = self.bind()?;
        let stream = TorchStream::current(self.index)?;
        // SAFETY: libtorch never destroys its streams.
        driver.check("cuStreamSynchronize", unsafe { (driver.stream_synchronize)(Handle(stream.handle())) })
    }

    /// Makes this GPU's context the calling thread's own, which most of the driver's functions need.
    pub(super) fn bind(&self) -> Result<&'static Driver, CudaError> {
        let driver = Driver::get()?;
        let mut current = Handle::NULL;
        // SAFETY: the driver has started, and the context lives to the end of the process.
        unsafe {
            driver.check("cuCtxGetCurrent", (driver.current_context)(&mut current))?;
            if current != self.context {
                driver.check("cuCtxSetCurrent", (driver.set_current_context)(self.context))?;
            }
        }
        Ok(driver)
    }

    fn attribute(&self, which: c_int) -> Result<u32, CudaError> {
        let driver = Driver::get()?;
        let mut value = 0;
        // SAFETY: the device was opened and the pointer is valid for the call.
        let code = unsafe { (driver.device_attribute)(&mut value, which, self.index as c_int) };
        driver.check("cuDeviceGetAttribute", code)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}
