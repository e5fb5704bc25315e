//! Compiled kernels on a GPU, and their launch.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use std::ffi::{CString, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::driver::{
    COOPERATIVE, Driver, Handle, LaunchAttribute, LaunchConfig, PROGRAMMATIC_STREAM_SERIALIZATION,
};
use super::{Arg, Device, Program, Stream, nvrtc};
use crate::CudaError;

/// What a block may have of shared memory without asking for more, what its kernel declares included.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

// The numbers of `CUfunction_attribute`.
const STATIC_SHARED_BYTES: c_int = 1;
const LOCAL_BYTES: c_int = 3;
const NUM_REGISTERS: c_int = 4;
const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;

/// The kernels of one program on one GPU. They stay there to the end of the process, since captured graphs go on using
/// them.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    device: Device,
    handle: Handle,
    program: &'static str,
}

impl Module {
    /// Compiles a program for the GPU, or takes it from the folder `cache_dir`, and loads it.
    ///
    /// # Errors
    /// When it does not compile, the folder cannot be used, or the driver does not take the code.
    pub fn load(device: &Device, program: &Program, cache_dir: Option<&Path>) -> Result<Self, CudaError> {
        let arch = device.arch()?;
        let cubin = match cache_dir {
            Some(dir) => nvrtc::compile_cached(program, arch, dir)?,
            None => nvrtc::compile(program, arch)?,
        };
        let driver = device.bind()?;
        let mut handle = Handle::NULL;
        // SAFETY: NVRTC made the code, and the cache gives it back only when it is whole.
        driver.check("cuModuleLoadData", unsafe {
            (driver.module_load)(&mut handle, cubin.bytes.as_ptr().cast())
        })?;
        Ok(Self { device: *device, handle, program: program.name })
    }

    /// One of its kernels.
    ///
    /// # Errors
    /// When it has none of this name.
    pub fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let bad = |reason: String| CudaError::BadLaunch { kernel: name.to_owned(), reason };
        let symbol = CString::new(name).map_err(|error| bad(error.to_string()))?;
        let driver = self.device.bind()?;
        let mut function = Handle::NULL;
        // SAFETY: the module is loaded, the name ends with 0 and the pointer is valid for the call.
        let code = unsafe { (driver.module_function)(&mut function, self.handle, symbol.as_ptr()) };
        driver
            .check("cuModuleGetFunction", code)
            .map_err(|error| bad(format!("not in `{}`: {error}", self.program)))?;
        let kernel = Kernel {
            device: self.device,
            function,
            parameter_bytes: parameter_bytes(driver, function),
            shared_bytes: AtomicU32::new(0),
            name: name.to_owned(),
        };
        let static_bytes = kernel.usage()?.static_shared_bytes;
        kernel.shared_bytes.store(DEFAULT_SHARED_BYTES.saturating_sub(static_bytes), Ordering::Relaxed);
        Ok(kernel)
    }
}

/// The sizes of a kernel's parameters.
fn parameter_bytes(driver: &Driver, function: Handle) -> Vec<usize> {
    let mut sizes = Vec::new();
    let (mut offset, mut size) = (0, 0);
    // SAFETY: the function is loaded and both pointers are valid for the call, which fails past the last parameter.
    while unsafe { (driver.function_parameter)(function, sizes.len(), &mut offset, &mut size) } == 0 {
        sizes.push(size);
    }
    sizes
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory of a block beside what the kernel declares.
    pub shared_bytes: u32,
    /// Whether its blocks may start before the kernel before it has ended. The kernel must then call
    /// `griddepcontrol.wait` before it reads what that one writes. Needs compute capability 9.
    pub overlaps: bool,
    /// Whether its blocks wait for each other, so that all of them must run at once. The launch fails if they cannot.
    pub is_cooperative: bool,
}

impl Launch {
    /// `num_blocks` blocks of `num_threads` threads.
    pub fn linear(num_blocks: u32, num_threads: u32) -> Self {
        Self {
            grid: [num_blocks, 1, 1],
            block: [num_threads, 1, 1],
            shared_bytes: 0,
            overlaps: false,
            is_cooperative: false,
        }
    }
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelUse {
    /// Registers of a thread.
    pub num_registers: u32,
    /// Local memory of a thread: more than 0 where registers did not suffice.
    pub local_bytes: u32,
    /// Shared memory that it declares itself.
    pub static_shared_bytes: u32,
}

/// A kernel that can be launched.
#[derive(Debug)]
pub struct Kernel {
    device: Device,
    function: Handle,
    parameter_bytes: Vec<usize>,
    /// How much shared memory it was allowed so far.
    shared_bytes: AtomicU32,
    name: String,
}

impl Kernel {
    /// Enqueues the kernel on `stream`. The number and the sizes of the arguments are checked, and that tensors are on
    /// this GPU; what the kernel does with them is its author's care, so a launcher checks shapes before.
    ///
    /// # Errors
    /// When the arguments do not fit, or the GPU cannot run a launch of this shape.
    pub fn launch(&self, launch: &Launch, stream: &Stream, args: &[Arg<'_>]) -> Result<(), CudaError> {
        let driver = self.device.bind()?;
        if launch.grid.contains(&0) {
            // Nothing to do; the driver would refuse it.
            return Ok(());
        }
        let values = args.iter().map(|arg| arg.bytes(&self.device)).collect::<Result<Vec<_>, _>>()?;
        let sizes = values.iter().map(|value| value.as_slice().len());
        if !sizes.clone().eq(self.parameter_bytes.iter().copied()) {
            let sizes: Vec<usize> = sizes.collect();
            return Err(self.bad(format!(
                "its parameters have {:?} bytes, the arguments {sizes:?}",
                self.parameter_bytes
            )));
        }
        self.allow_shared(driver, launch.shared_bytes)?;
        let mut pointers: Vec<*mut c_void> =
            values.iter().map(|value| value.as_slice().as_ptr().cast_mut().cast()).collect();
        let attributes: Vec<LaunchAttribute> =
            [(launch.overlaps, PROGRAMMATIC_STREAM_SERIALIZATION), (launch.is_cooperative, COOPERATIVE)]
                .into_iter()
                .filter(|(is_on, _)| *is_on)
                .map(|(_, id)| LaunchAttribute::on(id))
                .collect();
        let config = LaunchConfig {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream: stream.handle(),
            attributes: attributes.as_ptr(),
            num_attributes: attributes.len() as u32,
        };
        // SAFETY: each pointer leads to as many bytes as the parameter has (checked above); the driver copies them
        // during the call. The addresses among them are those of tensors on this GPU.
        let code = unsafe {
            (driver.launch_kernel)(&config, self.function, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        driver.check("cuLaunchKernelEx", code).map_err(|error| match error {
            CudaError::Call { reason, .. } => self.bad(format!("cannot be launched as {launch:?}: {reason}")),
            other => other,
        })
    }

    /// What it takes of a multiprocessor.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn usage(&self) -> Result<KernelUse, CudaError> {
        Ok(KernelUse {
            num_registers: self.attribute(NUM_REGISTERS)?,
            local_bytes: self.attribute(LOCAL_BYTES)?,
            static_shared_bytes: self.attribute(STATIC_SHARED_BYTES)?,
        })
    }

    /// How many blocks of this shape a multiprocessor holds at once.
    ///
    /// # Errors
    /// When the GPU cannot run a block of this shape.
    pub fn max_blocks_per_sm(&self, launch: &Launch) -> Result<u32, CudaError> {
        let driver = self.device.bind()?;
        self.allow_shared(driver, launch.shared_bytes)?;
        let num_threads = launch.block.iter().product::<u32>();
        let mut count = 0;
        // SAFETY: the function is loaded and the pointer is valid for the call.
        let code = unsafe {
            (driver.max_active_blocks)(
                &mut count,
                self.function,
                num_threads as c_int,
                launch.shared_bytes as usize,
            )
        };
        driver.check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Asks for more shared memory than every kernel may have, once for each larger size.
    fn allow_shared(&self, driver: &Driver, shared_bytes: u32) -> Result<(), CudaError> {
        if shared_bytes <= self.shared_bytes.load(Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: the function is loaded; the driver refuses more than the GPU has.
        let code = unsafe {
            (driver.set_function_attribute)(self.function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes as c_int)
        };
        driver.check("cuFuncSetAttribute", code).map_err(|error| {
            self.bad(format!("a block cannot have {shared_bytes} bytes of shared memory: {error}"))
        })?;
        self.shared_bytes.fetch_max(shared_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn attribute(&self, which: c_int) -> Result<u32, CudaError> {
        let driver = self.device.bind()?;
        let mut value = 0;
        // SAFETY: the function is loaded and the pointer is valid for the call.
        driver.check("cuFuncGetAttribute", unsafe {
            (driver.function_attribute)(&mut value, which, self.function)
        })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    fn bad(&self, reason: String) -> CudaError {
        CudaError::BadLaunch { kernel: self.name.clone(), reason }
    }
}
