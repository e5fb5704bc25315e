//! Which device a run uses, from `trainer.accelerator` and what the machine has.

use tch::Device;

use super::host_memory;
use crate::config::range::out_of_range;
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};

/// The ranks of one machine, as far as they share its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalRanks {
    pub(crate) local_rank: u32,
    pub(crate) local_size: u32,
    /// The launcher shows each rank a GPU of its own, as the first one.
    pub(crate) has_own_gpu: bool,
}

/// A device, and how many ranks share its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedDevice {
    pub(crate) device: Device,
    pub(crate) num_ranks: u32,
    /// Why it is the CPU, where a GPU was asked for.
    pub(crate) fallback: Option<String>,
}

impl SharedDevice {
    fn gpu(index: usize, num_ranks: u32) -> Self {
        Self { device: Device::Cuda(index), num_ranks, fallback: None }
    }
}

/// The device of a rank.
///
/// # Errors
/// When the accelerator is unknown, or there are several GPUs but fewer than ranks.
pub(crate) fn choose(accelerator: &str, ranks: LocalRanks) -> Result<SharedDevice, Failure> {
    let cpu = |fallback| SharedDevice { device: Device::Cpu, num_ranks: ranks.local_size, fallback };
    match accelerator {
        "cpu" => return Ok(cpu(None)),
        "gpu" | "cuda" | "auto" => {}
        other => {
            return Err(out_of_range("trainer.accelerator", "`gpu`, `cpu` or `auto`", &format!("`{other}`")));
        }
    }
    let num_gpus = match num_gpus() {
        Ok(num_gpus) => num_gpus,
        Err(reason) => {
            // Once a machine is enough.
            if ranks.local_rank == 0 {
                tracing::warn!("`trainer.accelerator={accelerator}`: {reason}; running on the CPU");
            }
            return Ok(cpu(Some(reason)));
        }
    };
    gpu_of(ranks, num_gpus)
}

/// The GPU of a rank among those that CUDA_VISIBLE_DEVICES and the launcher's binding let it see, which count from 0.
fn gpu_of(ranks: LocalRanks, num_gpus: usize) -> Result<SharedDevice, Failure> {
    let LocalRanks { local_rank, local_size, has_own_gpu } = ranks;
    if has_own_gpu {
        return Ok(SharedDevice::gpu(0, 1));
    }
    if num_gpus >= local_size as usize {
        return Ok(SharedDevice::gpu(local_rank as usize, 1));
    }
    if num_gpus == 1 {
        if local_rank == 0 {
            tracing::warn!("{local_size} ranks share one GPU: one rank is faster");
        }
        return Ok(SharedDevice::gpu(0, local_size));
    }
    Err(anyhow::anyhow!(
        "{local_size} ranks on this machine, but {num_gpus} GPUs can be used: set `trainer.devices={num_gpus}`, or let \
         CUDA_VISIBLE_DEVICES and the launcher show more"
    ))
    .exit_with(ExitStatus::Device)
}

/// Gives libtorch no more threads than this process may run at once, unless the user has chosen their number: it counts
/// processors, but not what the quota of a container leaves of them.
pub(crate) fn limit_threads() {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = i32::try_from(num_threads).unwrap_or(i32::MAX);
    if !env::has_thread_count() && num_threads < tch::get_num_threads() {
        tch::set_num_threads(num_threads);
    }
}

/// The first GPU, where nothing else will do.
///
/// # Errors
/// When there is none.
pub(crate) fn first_gpu() -> Result<Device, Failure> {
    match num_gpus() {
        Ok(_) => Ok(Device::Cuda(0)),
        Err(reason) => Err(anyhow::anyhow!("`--device cuda`: {reason}")).exit_with(ExitStatus::Device),
    }
}

/// How many GPUs this process may use, or why it can use none.
#[cfg(feature = "cuda")]
fn num_gpus() -> Result<usize, String> {
    match cuda_runtime::device_count() {
        Ok(0) => Err("there is no GPU".to_owned()),
        Ok(num_gpus) => Ok(num_gpus),
        Err(error) => Err(format!("no GPU can be used: {error}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn num_gpus() -> Result<usize, String> {
    let built = || {
        "this build is for the CPU (`cargo build --release --features cuda` makes one for GPUs)".to_owned()
    };
    Err(env::why_cpu().unwrap_or_else(built))
}

/// The device of one of several ranks that a command starts by itself: a GPU each, as far as there are so many.
pub(crate) fn of_own_rank(device: Device, rank: u32) -> Device {
    match (device, num_gpus()) {
        (Device::Cuda(_), Ok(num_gpus)) => Device::Cuda(rank as usize % num_gpus.max(1)),
        (device, _) => device,
    }
}

/// How many of these ranks share the memory of a device.
pub(crate) fn num_own_ranks_on(device: Device, num_ranks: u32) -> u32 {
    match (device, num_gpus()) {
        (Device::Cuda(_), Ok(num_gpus)) => num_ranks.div_ceil(u32::try_from(num_gpus).unwrap_or(1).max(1)),
        _ => num_ranks,
    }
}

/// What messages call the device.
pub(crate) fn name(device: Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let model = cuda_runtime::Device::open(index).and_then(|device| device.name());
            model.map_or_else(|_| format!("GPU {index}"), |model| format!("GPU {index} ({model})"))
        }
        _ => "the CPU".to_owned(),
    }
}

/// What of a device its results depend on: `cpu`, or `gpu` and its architecture, for which kernels are compiled and chosen.
///
/// # Errors
/// When the GPU cannot be opened.
pub(crate) fn class(device: Device) -> Result<String, Failure> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let arch = cuda_runtime::Device::open(index).and_then(|device| device.arch());
            let arch = arch.map_err(anyhow::Error::from).exit_with(ExitStatus::Device)?;
            Ok(format!("gpu {arch}"))
        }
        Device::Cpu => Ok("cpu".to_owned()),
        other => Err(anyhow::anyhow!("{other:?} cannot be used by this build")).exit_with(ExitStatus::Device),
    }
}

/// Lets cuBLAS choose kernels whose sums depend on the number of rows.
///
/// # Errors
/// When this build has no GPU support, or libtorch refuses.
#[cfg(feature = "cuda")]
pub(crate) fn let_blas_choose() -> Result<(), Failure> {
    torch_ext::cuda::blas::unconstrained().map_err(anyhow::Error::from).exit_with(ExitStatus::Device)
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn let_blas_choose() -> Result<(), Failure> {
    Err(Failure::usage("`--unconstrained` is for GPUs, and this build is for the CPU"))
}

/// All memory of the device, where it says so.
pub(crate) fn total_bytes(device: Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => cuda_runtime::device_total_bytes(index).ok(),
        _ => host_memory::total_bytes(),
    }
}

/// Memory of the device that is free now, where it says so.
pub(crate) fn available_bytes(device: Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let device = cuda_runtime::Device::open(index).ok()?;
            // What an earlier model left in libtorch's reserve counts as free.
            device.empty_cache().ok()?;
            Some(device.mem_get_info().ok()?.free_bytes)
        }
        _ => host_memory::available_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_its_gpu() {
        let check = |(local_rank, local_size, has_own_gpu), num_gpus, expect: (usize, u32)| {
            let shared = gpu_of(LocalRanks { local_rank, local_size, has_own_gpu }, num_gpus).unwrap();
            assert_eq!((shared.device, shared.num_ranks), (Device::Cuda(expect.0), expect.1));
        };
        check((0, 1, false), 1, (0, 1));
        check((3, 4, false), 4, (3, 1));
        check((1, 2, false), 8, (1, 1));
        // Slurm shows each task its own, whatever its number.
        check((3, 4, true), 1, (0, 1));
        // One GPU for all.
        check((1, 2, false), 1, (0, 2));
        let ranks = LocalRanks { local_rank: 1, local_size: 8, has_own_gpu: false };
        let error = gpu_of(ranks, 4).unwrap_err();
        assert_eq!(error.status, ExitStatus::Device);
        insta::assert_snapshot!(error.sentence(), @"8 ranks on this machine, but 4 GPUs can be used: set `trainer.devices=4`, or let CUDA_VISIBLE_DEVICES and the launcher show more");
    }

    #[test]
    fn accelerators_are_named() {
        let ranks = LocalRanks { local_rank: 3, local_size: 4, has_own_gpu: false };
        let cpu = SharedDevice { device: Device::Cpu, num_ranks: 4, fallback: None };
        assert_eq!(choose("cpu", ranks).unwrap(), cpu);
        let error = choose("tpu", ranks).unwrap_err().sentence();
        insta::assert_snapshot!(error, @"`trainer.accelerator` must be `gpu`, `cpu` or `auto`, found `tpu`");
    }
}
