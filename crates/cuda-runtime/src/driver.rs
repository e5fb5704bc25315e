//! The functions of the CUDA driver that are used, opened once. Signatures are those of `cuda.h` of CUDA 13.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::CudaError;

const LIBRARY: &str = "libcuda.so.1";
const HELP: &str = "is the NVIDIA driver installed?";

pub(super) type Code = c_int;
/// An address in a GPU's memory.
pub type DeviceAddress = u64;

/// An object of the driver: a context, stream, event, module, function or graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Handle(pub(super) *mut c_void);

// SAFETY: the driver's objects may be used from every thread.
unsafe impl Send for Handle {}
// SAFETY: the same; the driver does its own locking.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) const NULL: Self = Self(std::ptr::null_mut());
}

/// `CU_IPC_HANDLE_SIZE`.
pub(super) const IPC_HANDLE_BYTES: usize = 64;

/// `CUipcMemHandle`, which goes by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IpcHandle(pub(super) [u8; IPC_HANDLE_BYTES]);

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared_bytes: c_uint,
    pub(super) stream: Handle,
    pub(super) attributes: *const LaunchAttribute,
    pub(super) num_attributes: c_uint,
}

/// `CUlaunchAttribute`: which one, and a union of 64 bytes.
#[repr(C, align(8))]
pub(super) struct LaunchAttribute {
    pub(super) id: c_uint,
    pub(super) padding: c_uint,
    pub(super) value: [c_uint; 16],
}

impl LaunchAttribute {
    /// One whose value is a truth value, the first number of the union.
    pub(super) fn on(id: c_uint) -> Self {
        Self { id, padding: 0, value: std::array::from_fn(|word| c_uint::from(word == 0)) }
    }
}

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`.
pub(super) const COOPERATIVE: c_uint = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(super) const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;

const OUT_OF_MEMORY: Code = 2;
const NO_DEVICE: Code = 100;
const NOT_READY: Code = 600;

macro_rules! driver {
    ($($name:ident: $symbol:literal ($($arg:ty),*);)*) => {
        /// The driver's functions; each gives a code for [`check`](Self::check).
        pub(super) struct Driver {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> Code,)*
            // Last, so that nothing outlives it.
            _library: Library,
        }

        impl Driver {
            fn resolve(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: the names and signatures are those of `cuda.h`, where a macro maps some names to versioned ones.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!($symbol, "\0").as_bytes())?,)*
                        _library: library,
                    })
                }
            }
        }
    };
}

driver! {
    init: "cuInit" (c_uint);
    error_name: "cuGetErrorName" (Code, *mut *const c_char);
    error_string: "cuGetErrorString" (Code, *mut *const c_char);
    driver_version: "cuDriverGetVersion" (*mut c_int);
    device_count: "cuDeviceGetCount" (*mut c_int);
    device_name: "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_total_mem: "cuDeviceTotalMem_v2" (*mut usize, c_int);
    device_attribute: "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    primary_context_retain: "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    current_context: "cuCtxGetCurrent" (*mut Handle);
    set_current_context: "cuCtxSetCurrent" (Handle);
    memory_info: "cuMemGetInfo_v2" (*mut usize, *mut usize);
    mem_alloc: "cuMemAlloc_v2" (*mut DeviceAddress, usize);
    mem_free: "cuMemFree_v2" (DeviceAddress);
    memset: "cuMemsetD8_v2" (DeviceAddress, u8, usize);
    ipc_handle: "cuIpcGetMemHandle" (*mut IpcHandle, DeviceAddress);
    ipc_open: "cuIpcOpenMemHandle_v2" (*mut DeviceAddress, IpcHandle, c_uint);
    ipc_close: "cuIpcCloseMemHandle" (DeviceAddress);
    host_alloc: "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free: "cuMemFreeHost" (*mut c_void);
    host_register: "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_address: "cuMemHostGetDevicePointer_v2" (*mut DeviceAddress, *mut c_void, c_uint);
    host_unregister: "cuMemHostUnregister" (*mut c_void);
    copy_to_device: "cuMemcpyHtoDAsync_v2" (DeviceAddress, *const c_void, usize, Handle);
    copy_to_host: "cuMemcpyDtoHAsync_v2" (*mut c_void, DeviceAddress, usize, Handle);
    stream_synchronize: "cuStreamSynchronize" (Handle);
    stream_wait_event: "cuStreamWaitEvent" (Handle, Handle, c_uint);
    stream_is_capturing: "cuStreamIsCapturing" (Handle, *mut c_int);
    event_create: "cuEventCreate" (*mut Handle, c_uint);
    event_destroy: "cuEventDestroy_v2" (Handle);
    event_record: "cuEventRecord" (Handle, Handle);
    event_query: "cuEventQuery" (Handle);
    event_synchronize: "cuEventSynchronize" (Handle);
    event_elapsed_time: "cuEventElapsedTime" (*mut f32, Handle, Handle);
    graph_launch: "cuGraphLaunch" (Handle, Handle);
    module_load: "cuModuleLoadData" (*mut Handle, *const c_void);
    module_function: "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    function_attribute: "cuFuncGetAttribute" (*mut c_int, c_int, Handle);
    set_function_attribute: "cuFuncSetAttribute" (Handle, c_int, c_int);
    function_parameter: "cuFuncGetParamInfo" (Handle, usize, *mut usize, *mut usize);
    max_active_blocks: "cuOccupancyMaxActiveBlocksPerMultiprocessor" (*mut c_int, Handle, c_int, usize);
    tensor_map: "cuTensorMapEncodeTiled" (*mut c_void, c_int, c_uint, *mut c_void, *const u64, *const u64, *const u32,
        *const u32, c_int, c_int, c_int, c_int);
    launch_kernel: "cuLaunchKernelEx" (*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
}

impl Driver {
    /// The driver, ready for use.
    ///
    /// # Errors
    /// When it is not installed, too old, or does not start.
    pub(super) fn get() -> Result<&'static Self, CudaError> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        let driver = DRIVER.get_or_init(|| {
            // SAFETY: opening the driver runs no code of consequence; `init` does.
            let library = unsafe { Library::new(LIBRARY) };
            library.and_then(Self::resolve).map_err(|error| error.to_string())
        });
        driver.as_ref().map_err(|reason| CudaError::Library {
            name: LIBRARY,
            reason: reason.clone(),
            help: HELP,
        })
    }

    /// Starts the driver; `false` when it finds no GPU.
    pub(super) fn start(&self) -> Result<bool, CudaError> {
        // SAFETY: any thread may call it any number of times.
        match unsafe { (self.init)(0) } {
            NO_DEVICE => Ok(false),
            code => self.check("cuInit", code).map(|()| true),
        }
    }

    /// Turns a code into an error; `call` is the function that gave it.
    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        match code {
            0 => Ok(()),
            OUT_OF_MEMORY => Err(CudaError::DeviceOutOfMemory),
            _ => {
                let name = self.text(self.error_name, code);
                Err(CudaError::Call {
                    call,
                    reason: format!("{name}: {}", self.text(self.error_string, code)),
                })
            }
        }
    }

    /// The same for a question: `false` means not yet.
    pub(super) fn check_ready(&self, call: &'static str, code: Code) -> Result<bool, CudaError> {
        if code == NOT_READY { Ok(false) } else { self.check(call, code).map(|()| true) }
    }

    fn text(&self, which: unsafe extern "C" fn(Code, *mut *const c_char) -> Code, code: Code) -> String {
        let mut text = std::ptr::null();
        // SAFETY: the pointer is valid for the call; the driver sets it to a static string or to null.
        unsafe {
            which(code, &mut text);
            if text.is_null() {
                format!("code {code}")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        }
    }
}
