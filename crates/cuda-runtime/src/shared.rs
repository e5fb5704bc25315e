//! Memory that kernels of several processes write: of a GPU where they reach each other's, else page-locked memory of the
//! host.
#![expect(unsafe_code, reason = "the memory is given to the driver")]

use std::ffi::c_void;
use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use memmap2::MmapMut;
use rustix::fs::MemfdFlags;

use super::driver::DeviceAddress;
use super::{Device, OwnMemory, PeerMemory};
use crate::CudaError;

/// `CU_MEMHOSTREGISTER_PORTABLE` and `CU_MEMHOSTREGISTER_DEVICEMAP`.
const PORTABLE_AND_MAPPED: u32 = 1 | 2;
/// First bytes of handles.
const OF_GPU: u8 = 0;
const OF_HOST: u8 = 1;

/// Where memory lies that ranks share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedIn {
    /// In the memory of the GPU whose rank made it; the others must reach that.
    Gpu,
    /// In the memory of the host, for GPUs that do not reach each other. Slower.
    Host,
}

/// Memory that this process shares with others.
#[derive(Debug)]
pub struct SharedMemory(Own);

#[derive(Debug)]
enum Own {
    Gpu(OwnMemory),
    /// With the file that it lies in, which others open.
    Host(Registered, File),
}

impl SharedMemory {
    /// `size_bytes` bytes, zeros.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn new(device: &Device, size_bytes: usize, place: SharedIn) -> Result<Self, CudaError> {
        let size_bytes = size_bytes.max(1);
        Ok(Self(match place {
            SharedIn::Gpu => Own::Gpu(OwnMemory::new(device, size_bytes)?),
            SharedIn::Host => {
                let no_memory = |source: Error| CudaError::HostOutOfMemory { size_bytes, source };
                let file = rustix::fs::memfd_create("aligner-gen", MemfdFlags::CLOEXEC)
                    .map_err(|code| no_memory(code.into()))?;
                let file = File::from(file);
                file.set_len(size_bytes as u64).map_err(no_memory)?;
                Own::Host(Registered::new(device, &file).map_err(no_memory)??, file)
            }
        }))
    }

    /// Where it begins, for kernels of this process.
    pub fn address(&self) -> DeviceAddress {
        match &self.0 {
            Own::Gpu(memory) => memory.address(),
            Own::Host(memory, _) => memory.address,
        }
    }

    /// What another process of this machine needs to open it.
    ///
    /// # Errors
    /// When the driver cannot share memory between processes.
    pub fn handle(&self) -> Result<Vec<u8>, CudaError> {
        Ok(match &self.0 {
            Own::Gpu(memory) => [&[OF_GPU], memory.handle()?.as_slice()].concat(),
            Own::Host(_, file) => {
                let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                [&[OF_HOST], path.as_bytes()].concat()
            }
        })
    }
}

/// Memory that another process shares.
#[derive(Debug)]
pub struct OpenedMemory(Opened);

#[derive(Debug)]
enum Opened {
    Gpu(PeerMemory),
    Host(Registered),
}

impl OpenedMemory {
    /// Opens what another process of this machine has the [`SharedMemory::handle`] of.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn open(device: &Device, handle: &[u8]) -> Result<Self, CudaError> {
        Ok(Self(match handle.split_first() {
            Some((&OF_GPU, handle)) => Opened::Gpu(PeerMemory::open(device, handle)?),
            Some((&OF_HOST, path)) => {
                let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
                let no_file = |source: Error| CudaError::File {
                    action: "open the memory in",
                    path: path.clone(),
                    source,
                };
                let file = File::options().read(true).write(true).open(&path).map_err(no_file)?;
                Opened::Host(Registered::new(device, &file).map_err(no_file)??)
            }
            _ => {
                return Err(CudaError::Call {
                    call: "the opening of shared memory",
                    reason: format!("{handle:?} is no handle: all ranks must run the same program"),
                });
            }
        }))
    }

    /// Where it begins, for kernels of this process.
    pub fn address(&self) -> DeviceAddress {
        match &self.0 {
            Opened::Gpu(memory) => memory.address(),
            Opened::Host(memory) => memory.address,
        }
    }
}

/// A file in memory that kernels read and write.
#[derive(Debug)]
struct Registered {
    device: Device,
    map: MmapMut,
    address: DeviceAddress,
}

impl Registered {
    /// Maps a file and gives it to the driver; the errors of both.
    fn new(device: &Device, file: &File) -> Result<Result<Self, CudaError>, Error> {
        // SAFETY: the file was made by a process of this program for this, and no process shortens it. This one never reads
        // or writes the memory itself: only kernels do.
        let map = unsafe { MmapMut::map_mut(file) }?;
        Ok(Self::register(device, map))
    }

    fn register(device: &Device, mut map: MmapMut) -> Result<Self, CudaError> {
        let driver = device.bind()?;
        let start: *mut c_void = map.as_mut_ptr().cast();
        // SAFETY: the mapping has that many bytes and stays until it is taken from the driver again.
        let code = unsafe { (driver.host_register)(start, map.len(), PORTABLE_AND_MAPPED) };
        driver.check("cuMemHostRegister", code)?;
        let mut registered = Self { device: *device, map, address: 0 };
        // SAFETY: the memory is registered and the pointer is valid for the call.
        let code = unsafe { (driver.host_address)(&mut registered.address, start, 0) };
        driver.check("cuMemHostGetDevicePointer", code)?;
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // A kernel that still waits may read it.
        let _ = self.device.synchronize();
        if let Ok(driver) = self.device.bind() {
            // SAFETY: the memory is registered and no kernel uses it any more.
            unsafe { (driver.host_unregister)(self.map.as_mut_ptr().cast()) };
        }
    }
}
