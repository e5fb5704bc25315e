//! `trt_llm.model_type`: the family that the user says the checkpoint is of, checked against its config.
//!
//! NeMo's exporter builds another TensorRT-LLM class for each name; here one forward pass runs them all, so a name is
//! only ever refused, never obeyed. `gptj` and `gptnext` both mean the exporter's general GPT.

use model_core::ModelConfig;
use model_spec::{Activation, BlockStyle, Nonlinearity, Normalization, PositionEmbedding};

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
        const ALL: [ModelType; 11] = [
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
        ];
        ALL.into_iter().find(|model_type| model_type.name() == text).ok_or_else(|| {
            Failure::usage(format!(
                "`{KEY}` must be `gptj`, `gptnext`, `llama`, `gemma`, `falcon`, `qwen2`, `qwen3`, `mixtral`, `qwen2_moe`, \
                 `qwen3_moe` or `olmoe`, found `{text}`"
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
        let model = &config.uniform;
        let layer_norm = model.norm.normalization == Normalization::LayerNorm;
        let norm = |needed, fits| Trait {
            key: "normalization",
            needed,
            found: if layer_norm { "layernorm" } else { "rmsnorm" },
            fits,
        };
        let Activation { nonlinearity, gated } = model.activation;
        let is_gelu = matches!(nonlinearity, Nonlinearity::Gelu | Nonlinearity::GeluTanh);
        let activation = |needed, fits| Trait {
            key: "activation",
            needed,
            found: activation_name(model.activation),
            fits,
        };
        let rope = matches!(model.position_embedding, PositionEmbedding::Rope(_));
        let rope = Trait {
            key: "position_embedding_type",
            needed: "rope",
            found: if rope { "rope" } else { "learned_absolute" },
            fits: rope,
        };
        let sequential = model.block_style == BlockStyle::Sequential;
        let sequential = flag("parallel_attention", !sequential, false);
        let scaling = |wanted| flag("apply_embedding_scaling", model.apply_embedding_scaling, wanted);
        let head_norms = |wanted| flag("qk_layernorm", model.qk_layernorm, wanted);
        let has_experts = model.moe.is_some();
        let experts = |wanted| Trait {
            key: "num_moe_experts",
            needed: if wanted { "a number" } else { "null" },
            found: if has_experts { "a number" } else { "null" },
            fits: has_experts == wanted,
        };
        match self {
            Self::Gptj | Self::Gptnext => Vec::new(),
            Self::Llama
            | Self::Qwen2
            | Self::Qwen3
            | Self::Mixtral
            | Self::Qwen2Moe
            | Self::Qwen3Moe
            | Self::Olmoe => {
                let mut traits = vec![
                    norm("rmsnorm", !layer_norm),
                    activation("fast-swiglu", gated && nonlinearity == Nonlinearity::Silu),
                    rope,
                    sequential,
                    scaling(false),
                    head_norms(matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Olmoe)),
                    flag("qk_layernorm_across_heads", model.attention.norm_across_heads, self == Self::Olmoe),
                    experts(!matches!(self, Self::Llama | Self::Qwen2 | Self::Qwen3)),
                ];
                if matches!(self, Self::Qwen2 | Self::Qwen2Moe) {
                    traits.push(flag("qkv_bias", model.qkv_bias, true));
                }
                traits
            }
            Self::Gemma => vec![
                norm("rmsnorm", !layer_norm),
                activation("geglu", gated && is_gelu),
                rope,
                sequential,
                scaling(true),
                flag("share_embeddings_and_output_weights", model.output.tied, true),
            ],
            Self::Falcon => {
                vec![
                    norm("layernorm", layer_norm),
                    activation("gelu", !gated && is_gelu),
                    rope,
                    scaling(false),
                ]
            }
        }
    }
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
    const OLMOE: &str = "normalization: rmsnorm\nactivation: fast-swiglu\nposition_embedding_type: rope\nbias: false\n\
                         qk_layernorm: true\nqk_layernorm_across_heads: true\nnum_moe_experts: 4\n";
    const NEMOTRON: &str =
        "normalization: layernorm1p\nactivation: squared-relu\nposition_embedding_type: rope\n";

    #[test]
    fn every_family_runs_under_its_own_name_and_under_the_general_ones() {
        const FAMILIES: [&str; 11] =
            [GPT, LLAMA, GEMMA, FALCON, NEMOTRON, QWEN2, QWEN3, MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE];
        for (name, own) in [
            // A Llama may have biases: its only difference from a Qwen2.
            ("llama", vec![LLAMA, QWEN2]),
            ("gemma", vec![GEMMA]),
            ("falcon", vec![FALCON]),
            // The test's Llama has all biases.
            ("qwen2", vec![LLAMA, QWEN2]),
            ("qwen3", vec![QWEN3]),
            ("mixtral", vec![MIXTRAL, QWEN2_MOE]),
            ("qwen2_moe", vec![QWEN2_MOE]),
            ("qwen3_moe", vec![QWEN3_MOE]),
            ("olmoe", vec![OLMOE]),
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
        insta::assert_snapshot!(ModelType::parse("bert").unwrap_err().sentence(), @"`trainer.generation.trt_llm.model_type` must be `gptj`, `gptnext`, `llama`, `gemma`, `falcon`, `qwen2`, `qwen3`, `mixtral`, `qwen2_moe`, `qwen3_moe` or `olmoe`, found `bert`");
        insta::assert_snapshot!(message(ModelType::Llama, MIXTRAL), @"`trainer.generation.trt_llm.model_type=llama` needs `num_moe_experts: null` (the checkpoint has `a number`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
    }
}
