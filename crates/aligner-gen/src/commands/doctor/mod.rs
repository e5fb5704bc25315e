//! `aligner-gen doctor`: what this machine has, what of it a job will use, and what to do where something is missing.
//!
//! It reads and asks, and changes nothing. What it finds is an answer, whatever it is, and it ends with 0.

mod findings;

use std::io::Write;
use std::path::Path;

use cpu_kernels::Isa;

use crate::config::cli::DoctorArgs;
use crate::exit::Failure;
use crate::model::host_memory;
use crate::{cluster, env};
use findings::{Findings, Gpus, Libtorch, Memory, Processor};

/// Prints what was found.
pub(crate) fn run(arguments: &DoctorArgs, out: &mut impl Write) -> Result<(), Failure> {
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        has_cuda: cfg!(feature = "cuda"),
        processor: processor(env::isa()?),
        memory: Memory {
            total_bytes: host_memory::total_bytes(),
            available_bytes: host_memory::available_bytes(),
        },
        libtorch: libtorch(),
        driver_release: driver_release(),
        gpus: gpus::find(),
        launcher: cluster::ranks::launcher(&env::of_launcher),
        omp_threads: env::thread_count(),
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&findings.json()).map_err(anyhow::Error::from)? + "\n"
    } else {
        findings.text()
    };
    Ok(out.write_all(text.as_bytes()).map_err(anyhow::Error::from)?)
}

fn processor(isa: Isa) -> Processor {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
    Processor {
        model: cpuinfo.lines().find_map(value),
        num_cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        num_usable: std::thread::available_parallelism().map_or(1, usize::from),
        isa,
    }
}

/// The libtorch that the system's loader has found for this process.
fn libtorch() -> Libtorch {
    let folder = torch_ext::library_dir();
    let version = folder.as_deref().and_then(version_beside);
    Libtorch { version, folder }
}

/// What `version.py` of a Python package or `build-version` of a libtorch archive says.
fn version_beside(lib: &Path) -> Option<String> {
    let home = lib.parent()?;
    if let Ok(text) = std::fs::read_to_string(home.join("version.py")) {
        let value = |line: &str| Some(line.strip_prefix("__version__ = ")?.trim_matches('\'').to_owned());
        return text.lines().find_map(value);
    }
    Some(std::fs::read_to_string(home.join("build-version")).ok()?.trim().to_owned())
}

/// The release of the NVIDIA driver that is loaded, such as `580.82.07`.
fn driver_release() -> Option<String> {
    let release = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(release.trim().to_owned())
}

#[cfg(feature = "cuda")]
mod gpus {
    use super::Gpus;
    use super::findings::{Gpu, GpuPart};

    pub(super) fn find() -> Option<Gpus> {
        Some(Gpus { devices: devices(), nvrtc: nvrtc(), kernel_cache: cuda_runtime::kernel_cache() })
    }

    fn devices() -> Result<GpuPart, String> {
        let text = |error: cuda_runtime::CudaError| error.to_string();
        let (major, minor) = cuda_runtime::driver_version().map_err(text)?;
        let count = cuda_runtime::device_count().map_err(text)?;
        let gpus = (0..count).map(|index| gpu(index).map_err(text)).collect();
        Ok(GpuPart { driver_cuda: format!("{major}.{minor}"), gpus })
    }

    fn gpu(index: usize) -> Result<Gpu, cuda_runtime::CudaError> {
        let device = cuda_runtime::Device::open(index)?;
        let memory = device.mem_get_info()?;
        Ok(Gpu {
            model: device.name()?,
            arch: device.arch()?.to_string(),
            total_bytes: memory.total_bytes,
            free_bytes: memory.free_bytes,
        })
    }

    fn nvrtc() -> Result<String, String> {
        let version = cuda_runtime::nvrtc::version().map_err(|error| error.to_string())?;
        Ok(format!("{}.{}", version.major, version.minor))
    }
}

#[cfg(not(feature = "cuda"))]
mod gpus {
    use super::Gpus;

    pub(super) fn find() -> Option<Gpus> {
        None
    }
}
