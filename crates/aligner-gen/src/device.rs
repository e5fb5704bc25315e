//! Which device a run uses, from `trainer.accelerator` and what the machine has.

use tch::Device;

use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::plan::out_of_range;

/// The device of the rank with this number on its machine.
///
/// # Errors
/// When the accelerator is unknown, or there are GPUs but fewer than ranks.
pub(crate) fn choose(accelerator: &str, local_rank: usize) -> Result<Device, Failure> {
    match accelerator {
        "cpu" => return Ok(Device::Cpu),
        "gpu" | "cuda" | "auto" => {}
        other => {
            return Err(out_of_range("trainer.accelerator", "`gpu`, `cpu` or `auto`", &format!("`{other}`")));
        }
    }
    let num_gpus = match num_gpus() {
        Ok(num_gpus) => num_gpus,
        Err(reason) => {
            tracing::warn!("`trainer.accelerator={accelerator}`: {reason}; running on the CPU");
            return Ok(Device::Cpu);
        }
    };
    if local_rank < num_gpus {
        return Ok(Device::Cuda(local_rank));
    }
    Err(anyhow::anyhow!("local rank {local_rank} has no GPU: this machine offers {num_gpus}"))
        .exit_with(ExitStatus::Device)
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
    match torch_ext::cuda::device_count() {
        Ok(0) => Err("there is no GPU".to_owned()),
        Ok(num_gpus) => Ok(num_gpus),
        Err(error) => Err(format!("no GPU can be used: {error}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn num_gpus() -> Result<usize, String> {
    Err("this build is for the CPU (`cargo build --release --features cuda` makes one for GPUs)".to_owned())
}

/// What messages call the device.
pub(crate) fn name(device: Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let model = torch_ext::cuda::Device::open(index).and_then(|device| device.name());
            model.map_or_else(|_| format!("GPU {index}"), |model| format!("GPU {index} ({model})"))
        }
        _ => "the CPU".to_owned(),
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

/// Memory of the device that is free now, where it says so.
pub(crate) fn available_bytes(device: Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let device = torch_ext::cuda::Device::open(index).ok()?;
            // What an earlier model left in libtorch's reserve counts as free.
            device.empty_cache().ok()?;
            Some(device.mem_get_info().ok()?.free_bytes)
        }
        _ => host_available_bytes(),
    }
}

/// Memory that can be had without swapping.
fn host_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(available_bytes(Device::Cpu).is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn accelerators_are_named() {
        assert_eq!(choose("cpu", 3).unwrap(), Device::Cpu);
        let error = choose("tpu", 0).unwrap_err().sentence();
        insta::assert_snapshot!(error, @"`trainer.accelerator` must be `gpu`, `cpu` or `auto`, found `tpu`");
    }
}
