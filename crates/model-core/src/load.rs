//! From a config and a source of weights to a model.

use cpu_kernels::MAX_HEAD_DIM;
use nemo_format::TensorSource;
use tch::Device;

#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaKernels;
use crate::backend::fused::FusedKernels;
use crate::backend::plain::PlainKernels;
use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::gpt::Gpt;
use crate::kernels::Kernels;
use crate::weights::Weights;
use crate::{AttentionSwitches, ModelError, Precision};

/// Which kernels compute the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// libtorch's own operations.
    Plain,
    /// The project's fused kernels.
    Fused,
}

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What to compute in, whatever the checkpoint is stored in.
    pub precision: Precision,
    /// Which kernels.
    pub backend: Backend,
    /// Where to compute.
    pub device: Device,
    /// Which attention the plain kernels may use.
    pub attention: AttentionSwitches,
}

impl LoadOptions {
    /// Whether decode steps can be planned on the device ([`CausalLm::decode_on_device`]).
    pub fn has_rows(&self) -> bool {
        self.backend == Backend::Fused && matches!(self.device, Device::Cuda(_))
    }
}

/// Reads the weights and builds the model.
///
/// # Errors
/// When a tensor is missing, unknown, of another shape than the config implies, or cannot be read, and when memory
/// runs out.
pub fn load_model(
    config: ModelConfig,
    source: &dyn TensorSource,
    options: LoadOptions,
) -> Result<Box<dyn CausalLm>, ModelError> {
    let on_host = options.device == Device::Cpu;
    if options.backend == Backend::Fused && on_host && config.kv_channels > MAX_HEAD_DIM {
        return Err(ModelError::Unsupported {
            key: "kv_channels",
            value: config.kv_channels.to_string(),
            feature: "a larger head than the fused kernels take",
            needs: "the plain backend (`trt_llm.enable: false`)",
        });
    }
    let kernels: Box<dyn Kernels> = match (options.backend, options.device) {
        (Backend::Plain, device) => {
            let attention = options.attention.choose(device, options.precision, config.kv_channels)?;
            Box::new(PlainKernels::new(options.precision, device, attention)?)
        }
        #[cfg(feature = "cuda")]
        (Backend::Fused, Device::Cuda(device_idx)) => {
            Box::new(CudaKernels::new(&config, options.precision, device_idx)?)
        }
        #[cfg(not(feature = "cuda"))]
        (Backend::Fused, Device::Cuda(_)) => {
            return Err(ModelError::NoBackend {
                backend: "CUDA",
                reason: "this program was built without feature `cuda`",
            });
        }
        (Backend::Fused, _) => Box::new(FusedKernels::new(options.precision)?),
    };
    let weights = Weights::load(&config, source, kernels.as_ref())?;
    Ok(Box::new(Gpt::new(config, weights, kernels)))
}
