//! A GGUF file of architecture `llama`, understood.
//!
//! llama.cpp applies Llama 3.1's frequency rule through the tensor `rope_freqs.weight`; it is compared with NeMo's
//! rule and refused when it says anything else.

use super::arch::{
    Activation, Block, Family, LLAMA31_CONSTANTS, ModelArch, Normalization, Positions, Rope, RopeScaling,
};
use super::canonical::biases;
use super::names::GGUF_LLAMA;
use crate::{FormatError, GgufSource, GgufValue, TensorSource};

/// llama.cpp's defaults for keys left out.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;
/// GGUF does not keep `initializer_range`; this is the value of every published Llama.
const INIT_METHOD_STD: f64 = 0.02;
const ROPE_FREQS: &str = "rope_freqs.weight";
/// bfloat16 keeps 8 bits of a factor; real differences are far above this.
const ROPE_FREQS_TOLERANCE: f64 = 1e-2;

/// The architecture of the model in `source`.
pub(super) fn arch(source: &GgufSource) -> Result<ModelArch, FormatError> {
    let file = source.file();
    let path = file.path().display().to_string();
    let unsupported = |what: String, hint: &str| FormatError::Unsupported { what, hint: hint.to_owned() };
    let architecture = file.require("general.architecture", GgufValue::as_str)?;
    if architecture != "llama" {
        return Err(unsupported(
            format!("`{path}`, a GGUF file of architecture `{architecture}`,"),
            "only GGUF files of architecture `llama` are converted so far",
        ));
    }
    if file.optional("llama.expert_count", GgufValue::as_u64)?.is_some_and(|count| count > 0) {
        return Err(unsupported(
            format!("`{path}`, a mixture of experts,"),
            "only dense models are converted",
        ));
    }
    let names = GGUF_LLAMA;
    let hidden_size = file.require("llama.embedding_length", GgufValue::as_u64)?;
    let num_attention_heads = file.require("llama.attention.head_count", GgufValue::as_u64)?;
    let head_dim = file
        .optional("llama.attention.key_length", GgufValue::as_u64)?
        .unwrap_or(hidden_size / num_attention_heads.max(1));
    if file.optional("llama.attention.value_length", GgufValue::as_u64)?.is_some_and(|dim| dim != head_dim) {
        return Err(file.bad_key("llama.attention.value_length", "differs from the key length"));
    }
    let rotary_dim = file.optional("llama.rope.dimension_count", GgufValue::as_u64)?.unwrap_or(head_dim);
    if rotary_dim != head_dim {
        // The row permutation of a partly rotated head is not defined by llama.cpp's Llama converter.
        return Err(file.bad_key("llama.rope.dimension_count", "differs from the head dimension"));
    }
    let embedding = source
        .meta(&names.embedding())
        .ok_or_else(|| FormatError::MissingTensor { name: names.embedding() })?;
    let rotary_base = file.optional("llama.rope.freq_base", GgufValue::as_f64)?.unwrap_or(DEFAULT_ROPE_BASE);
    let mut rope =
        Rope { percentage: 1.0, base: rotary_base, scaling: RopeScaling::None, interleaved: false };
    let mut arch = ModelArch {
        family: Family::Llama,
        num_layers: file.require("llama.block_count", GgufValue::as_u64)?,
        hidden_size,
        ffn_hidden_size: file.require("llama.feed_forward_length", GgufValue::as_u64)?,
        num_attention_heads,
        num_query_groups: file
            .optional("llama.attention.head_count_kv", GgufValue::as_u64)?
            .unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: embedding.shape.first().copied().unwrap_or(0),
        max_position_embeddings: file.require("llama.context_length", GgufValue::as_u64)?,
        sliding_window: None,
        positions: Positions::Rope(rope),
        normalization: Normalization::RmsNorm,
        layernorm_epsilon: file.require("llama.attention.layer_norm_rms_epsilon", GgufValue::as_f64)?,
        activation: Activation { name: "fast-swiglu", is_tanh_gelu: false },
        block: Block::Sequential,
        init_method_std: INIT_METHOD_STD,
        tied: source.meta(&names.output("weight")).is_none(),
        biases: biases(&names, source),
    };
    arch.check(&path)?;
    rope.scaling = rope_scaling(source, arch.head_dim, rotary_base)?;
    arch.positions = Positions::Rope(rope);
    Ok(arch)
}

fn rope_scaling(source: &GgufSource, head_dim: u64, rotary_base: f64) -> Result<RopeScaling, FormatError> {
    let file = source.file();
    if source.meta(ROPE_FREQS).is_some() {
        let expected = llama31_factors(head_dim, rotary_base);
        let found = f32_values(source, ROPE_FREQS)?;
        let close = |(found, expected): (&f64, &f64)| (found / expected - 1.0).abs() < ROPE_FREQS_TOLERANCE;
        if found.len() == expected.len() && found.iter().zip(&expected).all(close) {
            return Ok(RopeScaling::Llama3(LLAMA31_CONSTANTS));
        }
        return Err(FormatError::Unsupported {
            what: format!("tensor `{ROPE_FREQS}` of `{}`", file.path().display()),
            hint:
                "NeMo's `scale_positional_embedding` stands for factor 8, low 1, high 4, original length 8192"
                    .into(),
        });
    }
    match file.optional("llama.rope.scaling.type", GgufValue::as_str)? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => {
            file.require("llama.rope.scaling.factor", GgufValue::as_f64).map(RopeScaling::Linear)
        }
        Some(other) => Err(FormatError::Unsupported {
            what: format!("rope scaling `{other}` in `{}`", file.path().display()),
            hint: "supported types are `none`, `linear` and Llama 3.1's".into(),
        }),
    }
}

/// By what NeMo's rule divides each rotary frequency.
fn llama31_factors(head_dim: u64, rotary_base: f64) -> Vec<f64> {
    let [factor, low, high, original_length] = LLAMA31_CONSTANTS;
    (0..head_dim / 2)
        .map(|i| {
            let exponent = 2.0 * i as f64 / head_dim as f64;
            let wavelength = std::f64::consts::TAU * rotary_base.powf(exponent);
            if wavelength < original_length / high {
                1.0
            } else if wavelength > original_length / low {
                factor
            } else {
                let smooth = (original_length / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

fn f32_values(source: &GgufSource, name: &str) -> Result<Vec<f64>, FormatError> {
    let meta = source.meta(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
    let bytes = crate::convert_dtype::convert(&source.read_whole(name)?, meta.dtype, crate::DType::F32);
    Ok(bytes
        .chunks_exact(4)
        .map(|elem| f64::from(f32::from_le_bytes([elem[0], elem[1], elem[2], elem[3]])))
        .collect())
}
