//! A Hugging Face Llama folder, understood.
//!
//! Whatever would change the numbers and has no key in NeMo's configuration is refused by name.

use std::path::Path;

use super::arch::{LLAMA31_CONSTANTS, LlamaArch, RopeScaling};
use super::llama::LlamaNames;
use crate::huggingface::{HfConfig, HfRope};
use crate::{FormatError, TensorSource};

/// Context length of Llama-2 and the other defaults of transformers' `LlamaConfig`.
const DEFAULT_MAX_POSITIONS: u64 = 2048;
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;
const DEFAULT_INITIALIZER_RANGE: f64 = 0.02;

/// The architecture of the model in `folder`, whose weights are `source`.
pub(super) fn arch(
    folder: &Path,
    config: &HfConfig,
    source: &dyn TensorSource,
) -> Result<LlamaArch, FormatError> {
    let file = folder.join("config.json").display().to_string();
    let model_type = config.model_type.as_deref().unwrap_or("none");
    if model_type != "llama" {
        let architectures = config.architectures.as_deref().unwrap_or_default().join(", ");
        return Err(unsupported(
            format!("`{file}`, model_type `{model_type}` ({architectures}),"),
            "only Hugging Face folders of model_type `llama` are converted so far",
        ));
    }
    let activation = config.hidden_act.as_deref().unwrap_or("silu");
    if activation != "silu" {
        return Err(unsupported(format!("hidden_act `{activation}` in `{file}`"), "Llama models use `silu`"));
    }
    if config.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
        return Err(unsupported(
            format!("partial_rotary_factor in `{file}`"),
            "Llama models rotate whole heads",
        ));
    }
    let need = |key: &str, value: Option<u64>| {
        value.ok_or_else(|| FormatError::BadConfig {
            file: file.clone(),
            reason: format!("the key `{key}` is missing"),
        })
    };
    let names = LlamaNames::HuggingFace;
    let hidden_size = need("hidden_size", config.hidden_size)?;
    let num_attention_heads = need("num_attention_heads", config.num_attention_heads)?;
    let rope = config.rope();
    let arch = LlamaArch {
        num_layers: need("num_hidden_layers", config.num_hidden_layers)?,
        hidden_size,
        ffn_hidden_size: need("intermediate_size", config.intermediate_size)?,
        num_attention_heads,
        num_query_groups: config.num_key_value_heads.unwrap_or(num_attention_heads),
        head_dim: config.head_dim.unwrap_or(hidden_size / num_attention_heads.max(1)),
        vocab_size: need("vocab_size", config.vocab_size)?,
        max_position_embeddings: config.max_position_embeddings.unwrap_or(DEFAULT_MAX_POSITIONS),
        rotary_percentage: 1.0,
        rotary_base: rope.rope_theta.unwrap_or(DEFAULT_ROPE_THETA),
        rope_scaling: rope_scaling(&rope, &file)?,
        layernorm_epsilon: config.rms_norm_eps.unwrap_or(DEFAULT_RMS_NORM_EPS),
        init_method_std: config.initializer_range.unwrap_or(DEFAULT_INITIALIZER_RANGE),
        tied: config.tie_word_embeddings.unwrap_or(false),
        biases: names.biases(source),
    };
    if !arch.tied && source.meta(names.output()).is_none() {
        return Err(FormatError::MissingTensor { name: names.output().into() });
    }
    arch.check(&file)?;
    Ok(arch)
}

fn rope_scaling(rope: &HfRope, file: &str) -> Result<RopeScaling, FormatError> {
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => rope.factor.map(RopeScaling::Linear).ok_or_else(|| FormatError::BadConfig {
            file: file.to_owned(),
            reason: "rope_scaling of type `linear` has no `factor`".into(),
        }),
        Some("llama3") => {
            let constants = [
                rope.factor,
                rope.low_freq_factor,
                rope.high_freq_factor,
                rope.original_max_position_embeddings,
            ];
            if constants == LLAMA31_CONSTANTS.map(Some) {
                return Ok(RopeScaling::Llama31);
            }
            Err(unsupported(
                format!("rope_scaling `llama3` with {constants:?} in `{file}`"),
                "NeMo's `scale_positional_embedding` stands for factor 8, low 1, high 4, original length 8192",
            ))
        }
        Some(other) => Err(unsupported(
            format!("rope_scaling of type `{other}` in `{file}`"),
            "supported types are `default`, `linear` and `llama3`",
        )),
    }
}

fn unsupported(what: String, hint: &str) -> FormatError {
    FormatError::Unsupported { what, hint: hint.to_owned() }
}
