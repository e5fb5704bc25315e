//! From a config and a source of weights to a model.

use model_spec::Numerics;
use nemo_format::TensorSource;
use tch::Device;

use crate::backend::cpu::CpuLoader;
#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaLoader;
use crate::backend::plain::PlainLoader;
use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::gpt::Gpt;
use crate::ops::Loader;
use crate::weights::Weights;
use crate::{AttentionSwitches, ModelError};

/// Which kernels compute the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// libtorch's own operations.
    Plain,
    /// The in-house kernels.
    Fused,
}

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What to compute in and to hold weights and cache in, whatever the checkpoint is stored in.
    pub numerics: Numerics,
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
/// When the formats are not one for everything, when a tensor is missing, unknown, of another shape than the config
/// implies, or cannot be read, and when memory runs out.
pub fn load_model(
    config: ModelConfig,
    source: &dyn TensorSource,
    options: LoadOptions,
) -> Result<Box<dyn CausalLm>, ModelError> {
    let LoadOptions { numerics, device, attention, .. } = options;
    if numerics != Numerics::uniform(numerics.compute) {
        return Err(ModelError::MixedNumerics { numerics });
    }
    let max_seq_len_tokens = config.encoder_seq_length;
    match (options.backend, device) {
        (Backend::Plain, device) => {
            load_for(config, source, PlainLoader::new(numerics, device, attention, max_seq_len_tokens)?)
        }
        #[cfg(feature = "cuda")]
        (Backend::Fused, Device::Cuda(device_idx)) => {
            load_for(config, source, CudaLoader::new(numerics, device_idx, max_seq_len_tokens)?)
        }
        #[cfg(not(feature = "cuda"))]
        (Backend::Fused, Device::Cuda(_)) => Err(ModelError::NoBackend {
            backend: "CUDA",
            reason: "this program was built without feature `cuda`",
        }),
        (Backend::Fused, _) => load_for(config, source, CpuLoader::new(numerics, max_seq_len_tokens)?),
    }
}

fn load_for<L: Loader<State: 'static>>(
    config: ModelConfig,
    source: &dyn TensorSource,
    loader: L,
) -> Result<Box<dyn CausalLm>, ModelError> {
    let (weights, state) = Weights::load(&config, source, loader)?;
    Ok(Box::new(Gpt::new(config, weights, state)?))
}
