//! The programs of a model, compiled and loaded.

use std::path::Path;

use cuda_runtime::{Device, Kernel, Module};

use super::KernelConfig;
use super::fp8::Fp8Kernels;
use super::gemm::GemmKernels;
use super::programs::Tiling;
use crate::KernelError;

/// All kernels, compiled for one GPU, type and kind of head.
#[derive(Debug)]
pub struct ModelKernels {
    pub(super) config: KernelConfig,
    pub(super) tiling: Tiling,
    pub(super) num_sms: u32,
    pub(super) max_shared_bytes: u32,
    /// Whether a kernel can start before the one before it has ended.
    pub(super) can_overlap: bool,
    pub(super) embed: Kernel,
    pub(super) rms_norm: Kernel,
    pub(super) layer_norm: Kernel,
    pub(super) norm_heads: Kernel,
    pub(super) activate: Kernel,
    pub(super) rope_and_cache: Kernel,
    pub(super) gather_cache: Kernel,
    pub(super) plan_decode: Kernel,
    pub(super) decode_attention: Kernel,
    pub(super) decode_attention_qkv: Kernel,
    pub(super) gemms: GemmKernels,
    pub(super) fp8: Fp8Kernels,
}

impl ModelKernels {
    /// Compiles the kernels for `device`, or takes them from the folder `cache_dir`.
    ///
    /// # Errors
    /// When there are no kernels for `config`, or they cannot be compiled or loaded.
    pub fn load(
        device: &Device,
        config: &KernelConfig,
        cache_dir: Option<&Path>,
    ) -> Result<Self, KernelError> {
        config.check(device.arch()?)?;
        let pointwise = Module::load(device, &config.pointwise(), cache_dir)?;
        let attention = Module::load(device, &config.attention(), cache_dir)?;
        Ok(Self {
            config: *config,
            tiling: Tiling::of(config),
            num_sms: device.num_sms()?,
            max_shared_bytes: device.max_shared_bytes()?,
            can_overlap: device.compute_capability()?.0 >= 9,
            embed: pointwise.kernel("embed")?,
            rms_norm: pointwise.kernel("rms_norm")?,
            layer_norm: pointwise.kernel("layer_norm")?,
            norm_heads: pointwise.kernel("norm_heads")?,
            activate: pointwise.kernel("activate")?,
            rope_and_cache: pointwise.kernel("rope_and_cache")?,
            gather_cache: pointwise.kernel("gather_cache")?,
            plan_decode: attention.kernel("plan_decode")?,
            decode_attention: attention.kernel("decode_attention")?,
            decode_attention_qkv: attention.kernel("decode_attention_qkv")?,
            gemms: GemmKernels::new(device, config, cache_dir),
            fp8: Fp8Kernels::new(device, config, cache_dir),
        })
    }

    /// What they were compiled for.
    pub fn config(&self) -> &KernelConfig {
        &self.config
    }

    /// How many keys a split of decode attention has: the unit in which shared prefixes are read once.
    pub fn split_keys(&self) -> u32 {
        self.tiling.split_keys
    }
}
