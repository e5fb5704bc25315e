//! The programs of the sampler, compiled and loaded.

use std::path::Path;

use cuda_runtime::{Device, Kernel, Module};

use super::programs::{SamplerTiling, seen_program, top_program};
use crate::KernelError;

/// All kernels of the sampler, compiled for one GPU.
#[derive(Debug)]
pub struct SamplerKernels {
    pub(super) num_sms: u32,
    pub(super) sample: Kernel,
    pub(super) sample_many: Kernel,
    pub(super) sample_filtered: Kernel,
    pub(super) sample_own_rules: Kernel,
    pub(super) mark_seen: Kernel,
    pub(super) top_tokens: Kernel,
}

impl SamplerKernels {
    /// Compiles the kernels for `device`, or takes them from the folder `cache_dir`.
    ///
    /// # Errors
    /// When they cannot be compiled or loaded.
    pub fn load(device: &Device, cache_dir: Option<&Path>) -> Result<Self, KernelError> {
        let plain = Module::load(device, &SamplerTiling::Plain.program(), cache_dir)?;
        let filtered = Module::load(device, &SamplerTiling::Filtered.program(), cache_dir)?;
        let own_rules = Module::load(device, &SamplerTiling::OwnRules.program(), cache_dir)?;
        let top = Module::load(device, &top_program(), cache_dir)?;
        let seen = Module::load(device, &seen_program(), cache_dir)?;
        Ok(Self {
            num_sms: device.num_sms()?,
            sample: plain.kernel("sample")?,
            sample_many: plain.kernel("sample_many")?,
            sample_filtered: filtered.kernel("sample")?,
            sample_own_rules: own_rules.kernel("sample")?,
            mark_seen: seen.kernel("mark_seen")?,
            top_tokens: top.kernel("top_tokens")?,
        })
    }
}
