//! From a config and a source of weights to a model.

use cpu_kernels::{Isa, PackedKv};
use model_spec::{
    Float, Footprint, KvFormat, KvGroup, KvTables, ModelSpec, Numerics, ShardPlace, WeightFormat,
};
use nemo_format::TensorSource;
use tch::Device;

use crate::backend::cpu::CpuLoader;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{CudaLoader, Joining};
use crate::backend::plain::PlainLoader;
use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::gpt::{Gpt, Shares};
use crate::kv_cache::packed_shape;
use crate::model_ranks::Reduction;
use crate::ops::Loader;
use crate::parallel::ModelPart;
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
    /// The instruction set of the fused kernels on a CPU.
    pub isa: Isa,
}

impl LoadOptions {
    /// Whether decode steps can be planned on the device ([`CausalLm::decode_on_device`]).
    pub fn has_rows(&self) -> bool {
        self.backend == Backend::Fused && matches!(self.device, Device::Cuda(_))
    }
}

/// Reads the weights and builds the whole model.
///
/// # Errors
/// When the formats are not one for everything, when a tensor is missing, unknown, of another shape than the config
/// implies, or cannot be read, and when memory runs out.
pub fn load_model(
    config: ModelConfig,
    source: &dyn TensorSource,
    options: LoadOptions,
) -> Result<Box<dyn CausalLm>, ModelError> {
    let part = ModelPart::whole(&config.spec_of(source), Reduction::Chain);
    load_part(config, source, options, part)
}

/// Reads a rank's part of the weights and builds its part of the model. The logits of the last pipeline stage are those of
/// the whole model, on each of its ranks; the other stages have none.
///
/// # Errors
/// As [`load_model`], and when the ranks cannot share a layer.
pub fn load_part(
    config: ModelConfig,
    source: &dyn TensorSource,
    options: LoadOptions,
    part: ModelPart,
) -> Result<Box<dyn CausalLm>, ModelError> {
    let LoadOptions { numerics, device, attention, isa, .. } = options;
    check_numerics(options)?;
    let ModelPart { place, reduction, ranks, exchange } = part;
    let is_all_layers = place.layers == (0..config.uniform.num_layers);
    check_part(options, &place, (reduction, is_all_layers))?;
    let max_seq_len_tokens = config.encoder_seq_length;
    let part = (place, reduction);
    match (options.backend, device) {
        (Backend::Plain, device) => {
            let loader = PlainLoader::new(numerics, device, attention, max_seq_len_tokens, ranks)?;
            load_for(config, source, loader, part)
        }
        #[cfg(feature = "cuda")]
        (Backend::Fused, Device::Cuda(device_idx)) => {
            let loader = CudaLoader::new(numerics, device_idx, max_seq_len_tokens)?;
            let joining = Joining {
                place: &part.0,
                reduction,
                exchange,
                num_layers: config.uniform.num_layers,
                hidden_size: config.uniform.hidden_size,
            };
            let loader = loader.join(ranks, &joining)?;
            load_for(config, source, loader, part)
        }
        #[cfg(not(feature = "cuda"))]
        (Backend::Fused, Device::Cuda(_)) => {
            let _ = exchange;
            Err(ModelError::NoBackend {
                backend: "CUDA",
                reason: "this program was built without feature `cuda`",
            })
        }
        (Backend::Fused, _) => {
            load_for(config, source, CpuLoader::new(numerics, isa, max_seq_len_tokens, ranks)?, part)
        }
    }
}

/// Refuses parts that no backend computes with the bits of the whole.
fn check_part(
    options: LoadOptions,
    place: &ShardPlace,
    (reduction, is_all_layers): (Reduction, bool),
) -> Result<(), ModelError> {
    let no_backend = |backend, reason| Err(ModelError::NoBackend { backend, reason });
    match options.backend {
        Backend::Plain if options.device != Device::Cpu && !is_all_layers => no_backend(
            "plain",
            "pipeline stages on GPUs are computed by the fast engine (`trt_llm.enable: true`)",
        ),
        _ if place.tp_size > 1 && reduction == Reduction::Chain => {
            no_backend("tensor-parallel", "ranks that share a layer add in a tree")
        }
        Backend::Plain if reduction == Reduction::Tree => no_backend(
            "plain",
            "libtorch's products have other bits for each number of tensor-parallel ranks (`trt_llm.enable: true` \
             computes them)",
        ),
        _ => Ok(()),
    }
}

/// Refuses formats that no kernels are for.
fn check_numerics(options: LoadOptions) -> Result<(), ModelError> {
    let LoadOptions { numerics, backend, device, .. } = options;
    let compute = numerics.compute;
    let has_weights =
        matches!(numerics.weights, WeightFormat::Fp8) || numerics.weights == WeightFormat::Float(compute);
    let has_kv = matches!(numerics.kv, KvFormat::Fp8) || numerics.kv == KvFormat::Float(compute);
    if !has_weights || !has_kv {
        return Err(ModelError::MixedNumerics { numerics });
    }
    if numerics.weights == WeightFormat::Fp8
        && backend == Backend::Fused
        && device.is_cuda()
        && numerics.compute != Float::Bf16
    {
        return Err(ModelError::NoBackend {
            backend: "CUDA",
            reason: "FP8 linear layers are computed with bf16 (`trainer.precision=bf16`)",
        });
    }
    Ok(())
}

/// What a rank's part of the weights takes of memory, and a block of its KV cache with one block table, known before either
/// is read or made.
///
/// # Errors
/// Only for a part of a model whose tensors cannot be shared evenly, never for the whole.
pub fn footprint(model: &ModelSpec, options: LoadOptions, at: &ShardPlace) -> Result<Footprint, ModelError> {
    footprint_in(model, options, at, KvTables::ONE)
}

/// The same of a cache with these tables.
///
/// # Errors
/// As [`footprint`].
pub fn footprint_in(
    model: &ModelSpec,
    options: LoadOptions,
    at: &ShardPlace,
    tables: KvTables,
) -> Result<Footprint, ModelError> {
    let mut footprint = model.footprint_in(&held(options), at, tables)?;
    for (group, bytes) in &mut footprint.kv {
        *bytes = bytes_per_block(group, options);
    }
    Ok(footprint)
}

/// Whether prompts may be computed in parts, whatever the model ([`CausalLm::prompt_cut_tokens`]); where this says no, some
/// models' may.
pub fn cuts_prompts(options: LoadOptions) -> bool {
    // A GPU's products in float32 have other bits with other numbers of rows.
    let is_invariant = options.device == Device::Cpu || options.numerics.compute != Float::Fp32;
    options.backend == Backend::Fused && is_invariant
}

/// The formats as a backend holds them.
fn held(options: LoadOptions) -> Numerics {
    let numerics = options.numerics;
    match (options.backend, options.device) {
        // Its panels have the numbers of FP8 in what it multiplies.
        (Backend::Fused, Device::Cpu) => {
            Numerics { weights: WeightFormat::Float(numerics.plain_weights()), ..numerics }
        }
        _ => numerics,
    }
}

/// Bytes that a block takes over the layers of a group, as a backend lays it out.
fn bytes_per_block(group: &KvGroup, options: LoadOptions) -> u64 {
    let Numerics { compute, kv, .. } = options.numerics;
    let unpacked = kv.unpacked(compute);
    match (options.backend, options.device) {
        // Its panels are padded.
        (Backend::Fused, Device::Cpu) => {
            PackedKv::block_bytes(&packed_shape(group, 1), unpacked.size_bytes()) as u64
        }
        (Backend::Fused, _) => group.bytes_per_block(kv),
        (Backend::Plain, _) => group.bytes_per_block(KvFormat::Float(unpacked)),
    }
}

fn load_for<L: Loader<State: 'static>>(
    config: ModelConfig,
    source: &dyn TensorSource,
    loader: L,
    (place, reduction): (ShardPlace, Reduction),
) -> Result<Box<dyn CausalLm>, ModelError> {
    let (weights, state) = Weights::load(&config, source, loader, (&place, reduction))?;
    let shares = Shares::new(&config.spec_of(source), &place)?;
    Ok(Box::new(Gpt::new(config, weights, state, shares)?))
}

#[cfg(test)]
mod tests {
    use model_spec::Float;

    use super::*;

    #[test]
    fn a_block_takes_the_bytes_of_all_groups() {
        let groups = [KvGroup::of_layers(&[0, 3], 2, 16), KvGroup::of_layers(&[1], 1, 24)];
        let options = |backend, float| LoadOptions {
            numerics: Numerics::uniform(float),
            backend,
            device: Device::Cpu,
            attention: AttentionSwitches::default(),
            isa: Isa::detect(),
        };
        let bytes = |options| groups.iter().map(|group| bytes_per_block(group, options)).sum::<u64>();
        let elems = 2 * 32 * (2 * 2 * 16 + 24);
        assert_eq!(bytes(options(Backend::Plain, Float::Fp32)), 4 * elems);
        assert_eq!(bytes(options(Backend::Plain, Float::Bf16)), 2 * elems);
        // The value panels of the CPU kernels have heads of whole multiples of 32.
        let padded = 32 * (2 * 2 * (16 + 32) + (24 + 32));
        assert_eq!(bytes(options(Backend::Fused, Float::Fp32)), 4 * padded);
    }
}
