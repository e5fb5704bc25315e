//! The models among the fixtures, opened as they are stored.

use model_core::{ModelConfig, RawModelConfig};
use nemo_format::{Checkpoint, ConvertOptions, TensorSource, convert_checkpoint};

use super::{MemorySource, config_of, fixture};

/// Every folder with a whole model and its logits.
pub(crate) const FOLDERS: [&str; 48] = [
    "nvidia/llama",
    "nvidia/nemotron4",
    "families/nemotron_nas",
    "megatron_lm/nas",
    "families/cohere",
    "families/cohere_plus",
    "families/granite",
    "families/olmo2",
    "families/phi3",
    "families/phi3_plain",
    "families/qwen2_window",
    "families/qwen3_yarn",
    "families/stablelm",
    "families/stablelm_parallel",
    "families/starcoder2",
    "megatron_lm/gpt",
    "hf_llama",
    "mcore_llama",
    "mcore_gptnext",
    "gpt_learned",
    "mcore_families/mcore_nemotron",
    "mcore_families/mcore_gpt_classic",
    "mcore_families/mcore_llama31",
    "mcore_families/mcore_llama_interp",
    "mcore_families/mcore_interleaved",
    "families/falcon40b",
    "families/falcon7b",
    "families/gemma",
    "families/gemma2",
    "families/gemma3",
    "families/gpt2",
    "families/gpt_oss",
    "families/gpt_oss_mxfp4",
    "families/gpt_neox",
    "families/gpt_neox_sequential",
    "families/gptj",
    "families/llama31",
    "families/llama32",
    "families/mistral",
    "families/mixtral",
    "families/nemotron",
    "families/olmoe",
    "families/qwen2",
    "families/qwen2_moe",
    "families/qwen2_tied",
    "families/qwen3",
    "families/qwen3_moe",
    "families/qwen3_tied",
];

enum Weights {
    Stored(Box<Checkpoint>),
    Memory(MemorySource),
}

/// A model of a folder.
pub(crate) struct Fixture {
    pub(crate) config: ModelConfig,
    weights: Weights,
    /// Where a converted one lies.
    _converted: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn open(folder: &str) -> Self {
        let path = fixture(folder);
        let converted = tempfile::tempdir().unwrap();
        let archive = match folder {
            "hf_llama" => path.join("hf_llama_converted_bf16_torch_dist.nemo"),
            "mcore_llama" => path.join("llama_fp32_torch_dist.nemo"),
            "mcore_gptnext" => path.join("gptnext_fp32_torch_dist.nemo"),
            _ if folder.starts_with("megatron_lm/") || folder.starts_with("nvidia/") => path,
            _ if folder.starts_with("families/") => {
                let archive = converted.path().join("converted.nemo");
                convert_checkpoint(&path, &archive, &ConvertOptions::default()).unwrap();
                archive
            }
            _ => {
                let yaml = std::fs::read_to_string(path.join("model_config.yaml")).unwrap();
                let source = MemorySource::from_safetensors(&format!("{folder}/expected.safetensors"));
                return Self {
                    config: config_of(&yaml),
                    weights: Weights::Memory(source),
                    _converted: converted,
                };
            }
        };
        let checkpoint = Checkpoint::open(&archive).unwrap();
        let config: ModelConfig =
            checkpoint.model_config().deserialize_into::<RawModelConfig>().unwrap().try_into().unwrap();
        Self { config, weights: Weights::Stored(Box::new(checkpoint)), _converted: converted }
    }

    pub(crate) fn tensors(&self) -> &dyn TensorSource {
        match &self.weights {
            Weights::Stored(checkpoint) => checkpoint.tensors(),
            Weights::Memory(source) => source,
        }
    }
}
