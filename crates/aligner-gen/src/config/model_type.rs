//! `trt_llm.model_type`: the family that the user says the checkpoint is of, checked against its config.
//!
//! NeMo's exporter builds another TensorRT-LLM class for each name; here one forward pass runs them all, so a name is
//! only ever refused, never obeyed. `gptj` and `gptnext` both mean the exporter's general GPT.

use model_core::ModelConfig;
use model_spec::{Activation, BlockStyle, Nonlinearity, Normalization, PositionEmbedding, UniformSpec};

use crate::exit::Failure;

const KEY: &str = "trainer.generation.trt_llm.model_type";

/// The families that `trt_llm.model_type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelType {
    Gptj,
    Gptnext,
    Llama,
    Gemma,
    Falcon,
    Qwen2,
    Qwen3,
    Mixtral,
    Qwen2Moe,
    Qwen3Moe,
    Olmoe,
    Phi3,
    Olmo2,
    Granite,
    StarCoder2,
    StableLm,
    Cohere,
    NemotronNas,
    GptOss,
}

/// One thing that a family has in its config.
struct Trait {
    key: &'static str,
    needed: &'static str,
    found: &'static str,
    fits: bool,
}

impl ModelType {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        const ALL: [ModelType; 19] = [
            ModelType::Gptj,
            ModelType::Gptnext,
            ModelType::Llama,
            ModelType::Gemma,
            ModelType::Falcon,
            ModelType::Qwen2,
            ModelType::Qwen3,
            ModelType::Mixtral,
            ModelType::Qwen2Moe,
            ModelType::Qwen3Moe,
            ModelType::Olmoe,
            ModelType::Phi3,
            ModelType::Olmo2,
            ModelType::Granite,
            ModelType::StarCoder2,
            ModelType::StableLm,
            ModelType::Cohere,
            ModelType::NemotronNas,
            ModelType::GptOss,
        ];
        ALL.into_iter().find(|model_type| model_type.name() == text).ok_or_else(|| {
            Failure::usage(format!(
                "`{KEY}` must be `gptj`, `gptnext`, `llama`, `gemma`, `falcon`, `qwen2`, `qwen3`, `mixtral`, `qwen2_moe`, \
                 `qwen3_moe`, `olmoe`, `phi3`, `olmo2`, `granite`, `starcoder2`, `stablelm`, `cohere`, `nemotron_nas` or `gpt_oss`, found `{text}`"
            ))
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gptj => "gptj",
            Self::Gptnext => "gptnext",
            Self::Llama => "llama",
            Self::Gemma => "gemma",
            Self::Falcon => "falcon",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
            Self::Qwen2Moe => "qwen2_moe",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Olmoe => "olmoe",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::Granite => "granite",
            Self::StarCoder2 => "starcoder2",
            Self::StableLm => "stablelm",
            Self::Cohere => "cohere",
            Self::NemotronNas => "nemotron_nas",
            Self::GptOss => "gpt_oss",
        }
    }

    /// Refuses a checkpoint that is of another family.
    pub(crate) fn check(self, config: &ModelConfig) -> Result<(), Failure> {
        let contradictions = self
            .traits(config)
            .into_iter()
            .filter(|wanted| !wanted.fits)
            .map(|Trait { key, needed, found, .. }| {
                format!("`{key}: {needed}` (the checkpoint has `{found}`)")
            })
            .collect::<Vec<_>>();
        if contradictions.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "`{KEY}={}` needs {}; set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family",
            self.name(),
            contradictions.join(" and ")
        )))
    }

    fn traits(self, config: &ModelConfig) -> Vec<Trait> {
        let has = Has(&config.uniform);
        let model = has.0;
        match self {
            Self::Gptj | Self::Gptnext => Vec::new(),
            Self::Llama
            | Self::Qwen2
            | Self::Qwen3
            | Self::Mixtral
            | Self::Qwen2Moe
            | Self::Qwen3Moe
            | Self::Olmoe
            | Self::Phi3
            | Self::Olmo2
            | Self::Granite
            | Self::NemotronNas => self.traits_of_llama(has),
            Self::Gemma => vec![
                has.rmsnorm(),
                has.geglu(),
                has.rope(),
                has.sequential(),
                has.scaling(true),
                flag("share_embeddings_and_output_weights", model.output.tied, true),
            ],
            Self::StarCoder2 => vec![
                has.layernorm(),
                has.gelu(),
                has.rope(),
                has.sequential(),
                flag("bias", model.bias, true),
            ],
            Self::StableLm => vec![has.layernorm(), has.swiglu(), has.rope()],
            Self::Cohere => {
                let is_parallel = model.block_style == BlockStyle::ParallelSharedNorm;
                vec![has.layernorm(), has.swiglu(), has.rope(), flag("parallel_attention", is_parallel, true)]
            }
            Self::GptOss => vec![
                has.rmsnorm(),
                has.activation(
                    "quick-geglu",
                    model.activation.nonlinearity == Nonlinearity::ClampedQuickGelu,
                ),
                has.rope(),
                has.sequential(),
                some("num_moe_experts", "a number", model.moe.is_some(), true),
                some("softmax_type", "learnable", model.attention.has_sinks, true),
            ],
            Self::Falcon => vec![has.layernorm(), has.gelu(), has.rope(), has.scaling(false)],
        }
    }

    /// Of the families that are Llama with something more.
    fn traits_of_llama(self, has: Has<'_>) -> Vec<Trait> {
        let model = has.0;
        let has_head_norms = matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Olmoe | Self::Olmo2);
        let is_across = matches!(self, Self::Olmoe | Self::Olmo2);
        let has_experts = matches!(self, Self::Mixtral | Self::Qwen2Moe | Self::Qwen3Moe | Self::Olmoe);
        let mut traits = vec![
            has.rmsnorm(),
            has.swiglu(),
            has.rope(),
            has.sequential(),
            has.scaling(false),
            flag("qk_layernorm", model.qk_layernorm, has_head_norms),
            flag("qk_layernorm_across_heads", model.attention.norm_across_heads, is_across),
            flag("pre_layernorms", model.pre_layernorms, self != Self::Olmo2),
            some("num_moe_experts", "a number", model.moe.is_some(), has_experts),
            some(
                "heterogeneous_layers_config_encoded_json",
                "a text",
                model.blocks.is_some(),
                self == Self::NemotronNas,
            ),
        ];
        if matches!(self, Self::Qwen2 | Self::Qwen2Moe) {
            traits.push(flag("qkv_bias", model.qkv_bias, true));
        }
        traits
    }
}

/// What a model has.
#[derive(Clone, Copy)]
struct Has<'a>(&'a UniformSpec);

impl Has<'_> {
    fn is_layernorm(self) -> bool {
        self.0.norm.normalization == Normalization::LayerNorm
    }

    fn norm(self, needed: &'static str, fits: bool) -> Trait {
        let found = if self.is_layernorm() { "layernorm" } else { "rmsnorm" };
        Trait { key: "normalization", needed, found, fits }
    }

    fn rmsnorm(self) -> Trait {
        self.norm("rmsnorm", !self.is_layernorm())
    }

    fn layernorm(self) -> Trait {
        self.norm("layernorm", self.is_layernorm())
    }

    fn activation(self, needed: &'static str, fits: bool) -> Trait {
        Trait { key: "activation", needed, found: activation_name(self.0.activation), fits }
    }

    fn is_gelu(self) -> bool {
        matches!(self.0.activation.nonlinearity, Nonlinearity::Gelu | Nonlinearity::GeluTanh)
    }

    fn swiglu(self) -> Trait {
        let Activation { nonlinearity, gated } = self.0.activation;
        self.activation("fast-swiglu", gated && nonlinearity == Nonlinearity::Silu)
    }

    fn geglu(self) -> Trait {
        self.activation("geglu", self.0.activation.gated && self.is_gelu())
    }

    fn gelu(self) -> Trait {
        self.activation("gelu", !self.0.activation.gated && self.is_gelu())
    }

    fn rope(self) -> Trait {
        let fits = matches!(self.0.position_embedding, PositionEmbedding::Rope(_));
        let found = if fits { "rope" } else { "learned_absolute" };
        Trait { key: "position_embedding_type", needed: "rope", found, fits }
    }

    fn sequential(self) -> Trait {
        flag("parallel_attention", self.0.block_style != BlockStyle::Sequential, false)
    }

    fn scaling(self, wanted: bool) -> Trait {
        flag("apply_embedding_scaling", self.0.apply_embedding_scaling, wanted)
    }
}

/// A key that is null, or not.
fn some(key: &'static str, not_null: &'static str, actual: bool, wanted: bool) -> Trait {
    let text = |is_some| if is_some { not_null } else { "null" };
    Trait { key, needed: text(wanted), found: text(actual), fits: actual == wanted }
}

fn flag(key: &'static str, actual: bool, wanted: bool) -> Trait {
    let text = |flag| if flag { "true" } else { "false" };
    Trait { key, needed: text(wanted), found: text(actual), fits: actual == wanted }
}

fn activation_name(activation: Activation) -> &'static str {
    match (activation.nonlinearity, activation.gated) {
        (Nonlinearity::Gelu | Nonlinearity::GeluTanh, false) => "gelu",
        (Nonlinearity::Gelu | Nonlinearity::GeluTanh, true) => "geglu",
        (Nonlinearity::Silu, true) => "swiglu",
        (Nonlinearity::Silu, false) => "silu",
        (Nonlinearity::Relu, true) => "reglu",
        (Nonlinearity::Relu, false) => "relu",
        (Nonlinearity::SquaredRelu, _) => "squared-relu",
        (Nonlinearity::QuickGelu, _) => "approx-gelu",
        (Nonlinearity::ClampedQuickGelu, _) => "quick-geglu",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> ModelConfig {
        let sizes = "num_layers: 1\nhidden_size: 8\nnum_attention_heads: 2\nencoder_seq_length: 16\n";
        let node = hydra_config::yaml::parse(&format!("{sizes}{yaml}"), "test").unwrap();
        node.deserialize_into::<model_core::RawModelConfig>().unwrap().try_into().unwrap()
    }

    const GPT: &str = "";
    const LLAMA: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\n";
    const GEMMA: &str = "normalization: rmsnorm\nactivation: geglu\nopenai_gelu: true\nposition_embedding_type: rope\n\
                         apply_embedding_scaling: true\n";
    const FALCON: &str = "name: megatron_falcon_gpt\nposition_embedding_type: rope\n";
    const QWEN2: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                         qkv_bias: true\n";
    const QWEN3: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                         qk_layernorm: true\n";
    const MIXTRAL: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                           num_moe_experts: 4\n";
    const QWEN2_MOE: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                             qkv_bias: true\nnum_moe_experts: 4\n";
    const QWEN3_MOE: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                             qk_layernorm: true\nnum_moe_experts: 4\n";
    const GPT_OSS: &str = "normalization: rmsnorm\nactivation: quick-geglu\nactivation_func_clamp_value: 7\n\
                           glu_linear_offset: 1\nposition_embedding_type: rope\nbias: true\nnum_moe_experts: 4\n\
                           softmax_type: learnable\n";
    const OLMOE: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                         qk_layernorm: true\nqk_layernorm_across_heads: true\nnum_moe_experts: 4\n";
    const OLMO2: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                         qk_layernorm: true\nqk_layernorm_across_heads: true\npre_layernorms: false\n";
    const STARCODER2: &str = "openai_gelu: true\nposition_embedding_type: rope\nbias: true\n";
    const STABLELM: &str = "activation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n";
    const COHERE: &str =
        "activation: fast-swiglu\nposition_embedding_type: rope\nbias: false\nparallel_attention: true\n";
    const NAS: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                       heterogeneous_layers_config_encoded_json: '{\"block_configs\": [{\"attention\": {\"no_op\": true}, \
                       \"ffn\": {\"no_op\": true}}]}'\n";
    const NEMOTRON: &str =
        "normalization: layernorm1p\nactivation: squared-relu\nposition_embedding_type: rope\n";

    #[test]
    fn every_family_runs_under_its_own_name_and_under_the_general_ones() {
        const FAMILIES: [&str; 17] = [
            GPT, LLAMA, GEMMA, FALCON, NEMOTRON, QWEN2, QWEN3, MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, OLMO2,
            STARCODER2, STABLELM, COHERE, NAS, GPT_OSS,
        ];
        for (name, own) in [
            // A Llama may have biases: its only difference from a Qwen2.
            ("llama", vec![LLAMA, QWEN2]),
            ("gemma", vec![GEMMA]),
            // The name asks for less than the layers have.
            ("falcon", vec![FALCON, STARCODER2]),
            // The test's Llama has all biases.
            ("qwen2", vec![LLAMA, QWEN2]),
            ("qwen3", vec![QWEN3]),
            ("mixtral", vec![MIXTRAL, QWEN2_MOE]),
            ("qwen2_moe", vec![QWEN2_MOE]),
            ("qwen3_moe", vec![QWEN3_MOE]),
            ("olmoe", vec![OLMOE]),
            // Fused tensors and multipliers leave the keys alone.
            ("phi3", vec![LLAMA, QWEN2]),
            ("granite", vec![LLAMA, QWEN2]),
            ("olmo2", vec![OLMO2]),
            ("starcoder2", vec![STARCODER2]),
            ("stablelm", vec![STABLELM, COHERE]),
            ("cohere", vec![COHERE]),
            ("nemotron_nas", vec![NAS]),
            ("gpt_oss", vec![GPT_OSS]),
        ] {
            for family in FAMILIES {
                let fits = ModelType::parse(name).unwrap().check(&config(family)).is_ok();
                assert_eq!(fits, own.contains(&family), "{name}: {family}");
            }
        }
        for name in ["gptj", "gptnext"] {
            for family in FAMILIES {
                ModelType::parse(name).unwrap().check(&config(family)).unwrap();
            }
        }
    }

    #[test]
    fn contradictions_are_told_by_key() {
        let message = |model_type: ModelType, yaml| model_type.check(&config(yaml)).unwrap_err().sentence();
        insta::assert_snapshot!(message(ModelType::Llama, FALCON), @"`trainer.generation.trt_llm.model_type=llama` needs `normalization: rmsnorm` (the checkpoint has `layernorm`) and `activation: fast-swiglu` (the checkpoint has `gelu`) and `parallel_attention: false` (the checkpoint has `true`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Llama, GEMMA), @"`trainer.generation.trt_llm.model_type=llama` needs `activation: fast-swiglu` (the checkpoint has `geglu`) and `apply_embedding_scaling: false` (the checkpoint has `true`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Gemma, LLAMA), @"`trainer.generation.trt_llm.model_type=gemma` needs `activation: geglu` (the checkpoint has `swiglu`) and `apply_embedding_scaling: true` (the checkpoint has `false`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Falcon, GPT), @"`trainer.generation.trt_llm.model_type=falcon` needs `position_embedding_type: rope` (the checkpoint has `learned_absolute`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Falcon, NEMOTRON), @"`trainer.generation.trt_llm.model_type=falcon` needs `activation: gelu` (the checkpoint has `squared-relu`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Llama, QWEN3), @"`trainer.generation.trt_llm.model_type=llama` needs `qk_layernorm: false` (the checkpoint has `true`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(message(ModelType::Qwen2, QWEN3), @"`trainer.generation.trt_llm.model_type=qwen2` needs `qk_layernorm: false` (the checkpoint has `true`) and `qkv_bias: true` (the checkpoint has `false`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
        insta::assert_snapshot!(ModelType::parse("bert").unwrap_err().sentence(), @"`trainer.generation.trt_llm.model_type` must be `gptj`, `gptnext`, `llama`, `gemma`, `falcon`, `qwen2`, `qwen3`, `mixtral`, `qwen2_moe`, `qwen3_moe`, `olmoe`, `phi3`, `olmo2`, `granite`, `starcoder2`, `stablelm`, `cohere`, `nemotron_nas` or `gpt_oss`, found `bert`");
        insta::assert_snapshot!(message(ModelType::Llama, MIXTRAL), @"`trainer.generation.trt_llm.model_type=llama` needs `num_moe_experts: null` (the checkpoint has `a number`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
    }
}
