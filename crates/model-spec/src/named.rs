//! Known model shapes by name: small ones for tests, known ones for measurements.

use std::str::FromStr;

use crate::{
    Activation, AttentionRule, BlockStyle, ExpertsSpec, HeadLayout, ModelSpec, MoeLayers, Multipliers,
    Nonlinearity, NormSpec, Normalization, OutputSpec, PositionEmbedding, RotaryConfig, RotaryPairing,
    RouterScore, RouterSpec, TableRows, UniformSpec,
};

/// A shape by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedShape {
    /// Small enough for tests and wide enough for every kernel.
    Tiny,
    /// The same with 8 experts of which a token goes through 2.
    TinyMoe,
    /// RMSNorm, SwiGLU, grouped queries, untied.
    TinyLlama,
    /// The GPT-2B-001 kind: layernorm1p, fast-swiglu, rotary 50 %, untied, no biases.
    TinyGpt,
    /// The GPT-3 kind: layernorm, gelu, learned positions, biases, tied.
    TinyGptLearned,
    /// SmolLM2-135M.
    Smollm2_135m,
    /// GPT-2B-001.
    Gpt2b,
    /// Sheared-LLaMA-2.7B: the largest Llama of less than 6 GB.
    ShearedLlama2_7b,
    /// Llama 2 7B.
    Llama2_7b,
    /// Llama 3 8B.
    Llama3_8b,
    /// Llama 2 13B.
    Llama2_13b,
    /// Llama 3 70B.
    Llama3_70b,
    /// Nemotron-4 340B.
    Nemotron340b,
    /// Mixtral 8x7B.
    Mixtral8x7b,
    /// Qwen3-30B-A3B.
    Qwen3_30bA3b,
}

/// A model of a named shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeSpec {
    /// The model.
    pub uniform: UniformSpec,
    /// Rows of its embedding table.
    pub padded_vocab_size: u64,
    /// Tokens that a sequence may have, and learned positions, where it has them.
    pub encoder_seq_length: u64,
}

impl ShapeSpec {
    /// The model with its tables.
    pub fn spec(&self) -> ModelSpec {
        let rows = TableRows { vocab: self.padded_vocab_size, positions: self.encoder_seq_length };
        self.uniform.spec(rows)
    }
}

/// A name that no shape has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no model shape is called `{0}`")]
pub struct UnknownShape(pub String);

impl FromStr for NamedShape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        let known = Self::ALL.into_iter().find(|shape| shape.name() == text);
        known.ok_or_else(|| UnknownShape(text.to_owned()))
    }
}

impl NamedShape {
    /// Every shape.
    pub const ALL: [Self; 15] = [
        Self::Tiny,
        Self::TinyMoe,
        Self::TinyLlama,
        Self::TinyGpt,
        Self::TinyGptLearned,
        Self::Smollm2_135m,
        Self::Gpt2b,
        Self::ShearedLlama2_7b,
        Self::Llama2_7b,
        Self::Llama3_8b,
        Self::Llama2_13b,
        Self::Llama3_70b,
        Self::Nemotron340b,
        Self::Mixtral8x7b,
        Self::Qwen3_30bA3b,
    ];

    /// The name as it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::TinyMoe => "tiny-moe",
            Self::TinyLlama => "tiny-llama",
            Self::TinyGpt => "tiny-gpt",
            Self::TinyGptLearned => "tiny-gpt-learned",
            Self::Smollm2_135m => "smollm2-135m",
            Self::Gpt2b => "gpt-2b",
            Self::ShearedLlama2_7b => "sheared-llama-2.7b",
            Self::Llama2_7b => "llama2-7b",
            Self::Llama3_8b => "llama3-8b",
            Self::Llama2_13b => "llama2-13b",
            Self::Llama3_70b => "llama3-70b",
            Self::Nemotron340b => "nemotron-340b",
            Self::Mixtral8x7b => "mixtral-8x7b",
            Self::Qwen3_30bA3b => "qwen3-30b-a3b",
        }
    }

    /// The shape.
    pub fn shape(self) -> ShapeSpec {
        let tiny = || llama(Sizes { layers: 2, hidden: 32, ffn: 48, heads: 4, groups: 2, vocab: 512 }, 256);
        match self {
            Self::Tiny => {
                llama(Sizes { layers: 2, hidden: 128, ffn: 256, heads: 4, groups: 2, vocab: 512 }, 4096)
            }
            Self::TinyMoe => with_experts(Self::Tiny.shape(), 8, (2, 64)),
            Self::TinyLlama => tiny(),
            Self::TinyGpt => gpt_rotary(with_groups(tiny(), 4)),
            Self::TinyGptLearned => gpt_learned(with_groups(tiny(), 4)),
            Self::Smollm2_135m => {
                let sizes = Sizes { layers: 30, hidden: 576, ffn: 1536, heads: 9, groups: 3, vocab: 49_152 };
                let mut shape = with_rotary_base(llama(sizes, 8192), 1e5);
                shape.uniform.output.tied = true;
                shape
            }
            Self::Gpt2b => gpt_rotary(llama(
                Sizes { layers: 24, hidden: 2048, ffn: 5440, heads: 16, groups: 16, vocab: 256_000 },
                4096,
            )),
            Self::ShearedLlama2_7b => llama(
                Sizes { layers: 32, hidden: 2560, ffn: 6912, heads: 20, groups: 20, vocab: 32_000 },
                4096,
            ),
            Self::Llama2_7b => llama(
                Sizes { layers: 32, hidden: 4096, ffn: 11_008, heads: 32, groups: 32, vocab: 32_000 },
                4096,
            ),
            Self::Llama3_8b => {
                let sizes =
                    Sizes { layers: 32, hidden: 4096, ffn: 14_336, heads: 32, groups: 8, vocab: 128_256 };
                with_rotary_base(llama(sizes, 8192), 5e5)
            }
            Self::Llama2_13b => llama(
                Sizes { layers: 40, hidden: 5120, ffn: 13_824, heads: 40, groups: 40, vocab: 32_000 },
                4096,
            ),
            Self::Llama3_70b => {
                let sizes =
                    Sizes { layers: 80, hidden: 8192, ffn: 28_672, heads: 64, groups: 8, vocab: 128_256 };
                with_rotary_base(llama(sizes, 8192), 5e5)
            }
            Self::Nemotron340b => {
                let sizes =
                    Sizes { layers: 96, hidden: 18_432, ffn: 73_728, heads: 96, groups: 8, vocab: 256_000 };
                let mut shape = gpt_rotary(llama(sizes, 4096));
                shape.uniform.activation =
                    Activation { nonlinearity: Nonlinearity::SquaredRelu, gated: false };
                shape
            }
            Self::Mixtral8x7b => {
                let sizes =
                    Sizes { layers: 32, hidden: 4096, ffn: 14_336, heads: 32, groups: 8, vocab: 32_000 };
                with_experts(with_rotary_base(llama(sizes, 32_768), 1e6), 8, (2, 14_336))
            }
            Self::Qwen3_30bA3b => {
                let sizes =
                    Sizes { layers: 48, hidden: 2048, ffn: 6144, heads: 32, groups: 4, vocab: 151_936 };
                let mut shape = with_rotary_base(llama(sizes, 32_768), 1e6);
                shape.uniform.heads.kv_channels = 128;
                if let PositionEmbedding::Rope(rotary) = &mut shape.uniform.position_embedding {
                    rotary.rotary_dims = 128;
                }
                shape.uniform.qk_layernorm = true;
                with_experts(shape, 128, (8, 768))
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    groups: usize,
    vocab: u64,
}

fn llama(sizes: Sizes, encoder_seq_length: u64) -> ShapeSpec {
    let kv_channels = sizes.hidden / sizes.heads;
    let uniform = UniformSpec {
        num_layers: sizes.layers,
        hidden_size: sizes.hidden,
        ffn_hidden_size: sizes.ffn,
        moe: None,
        heads: HeadLayout { num_attention_heads: sizes.heads, num_query_groups: sizes.groups, kv_channels },
        block_style: BlockStyle::Sequential,
        norm: NormSpec { normalization: Normalization::RmsNorm, zero_centered_gamma: false, epsilon: 1e-5 },
        activation: Activation { nonlinearity: Nonlinearity::Silu, gated: true },
        bias: false,
        qkv_bias: false,
        qk_layernorm: false,
        position_embedding: PositionEmbedding::Rope(RotaryConfig {
            rotary_dims: kv_channels,
            pairing: RotaryPairing::HalfSplit,
            rotary_base: 1e4,
            seq_len_interpolation_factor: 1.0,
            rope_scaling: None,
            factors: None,
        }),
        window: None,
        apply_embedding_scaling: false,
        attention: AttentionRule::default(),
        post_layernorms: false,
        output: OutputSpec { tied: false, bias: false, softcap: None },
        pre_layernorms: true,
        multipliers: Multipliers::default(),
        blocks: None,
    };
    ShapeSpec { uniform, padded_vocab_size: sizes.vocab, encoder_seq_length }
}

/// The GPT-2B-001 kind.
fn gpt_rotary(mut shape: ShapeSpec) -> ShapeSpec {
    shape.uniform.norm.normalization = Normalization::LayerNorm;
    shape.uniform.norm.zero_centered_gamma = true;
    let kv_channels = shape.uniform.heads.kv_channels;
    if let PositionEmbedding::Rope(rotary) = &mut shape.uniform.position_embedding {
        rotary.rotary_dims = kv_channels / 2;
    }
    shape
}

/// The GPT-3 kind.
fn gpt_learned(mut shape: ShapeSpec) -> ShapeSpec {
    let uniform = &mut shape.uniform;
    uniform.norm.normalization = Normalization::LayerNorm;
    uniform.activation = Activation { nonlinearity: Nonlinearity::Gelu, gated: false };
    (uniform.bias, uniform.qkv_bias) = (true, true);
    uniform.position_embedding = PositionEmbedding::LearnedAbsolute;
    uniform.output.tied = true;
    shape
}

fn with_groups(mut shape: ShapeSpec, num_query_groups: usize) -> ShapeSpec {
    shape.uniform.heads.num_query_groups = num_query_groups;
    shape
}

/// Experts of a width in every layer, of which a token gets so many.
fn with_experts(mut shape: ShapeSpec, num_experts: usize, (topk, width): (usize, usize)) -> ShapeSpec {
    let score = RouterScore::SoftmaxOfChosen;
    let router = RouterSpec { topk, score, has_expert_bias: false, scaling: None };
    let experts = ExpertsSpec { num_experts, ffn_hidden_size: width, router, shared: None };
    let is_moe = vec![true; shape.uniform.num_layers];
    shape.uniform.moe = Some(MoeLayers { experts, is_moe });
    shape
}

fn with_rotary_base(mut shape: ShapeSpec, rotary_base: f64) -> ShapeSpec {
    if let PositionEmbedding::Rope(rotary) = &mut shape.uniform.position_embedding {
        rotary.rotary_base = rotary_base;
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, num_parameters: u64) {
        let spec = name.parse::<NamedShape>().unwrap().shape().spec();
        let count: u64 = spec.tensors().map(|tensor| tensor.num_elems()).sum();
        assert_eq!(count, num_parameters, "{name}");
    }

    #[test]
    fn known_models_have_their_known_size() {
        check("smollm2-135m", 134_515_008);
        check("sheared-llama-2.7b", 2_701_560_320);
        check("llama2-7b", 6_738_415_616);
        check("llama3-8b", 8_030_261_248);
        check("gpt-2b", 2_253_590_528);
        check("llama2-13b", 13_015_864_320);
        check("llama3-70b", 70_553_706_496);
        check("nemotron-340b", 341_029_195_776);
        check("mixtral-8x7b", 46_702_792_704);
        check("qwen3-30b-a3b", 30_532_122_624);
    }

    #[test]
    fn names_are_read_as_they_are_shown() {
        for shape in NamedShape::ALL {
            assert_eq!(shape.name().parse(), Ok(shape));
        }
        let error = "llama-2-7b".parse::<NamedShape>().unwrap_err();
        assert_eq!(error.to_string(), "no model shape is called `llama-2-7b`");
    }
}
