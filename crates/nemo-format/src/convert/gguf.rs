//! A GGUF file of architecture `llama`, understood.
//!
//! Defaults are llama.cpp's (`llm_load_hparams`). It applies Llama 3.1's frequency rule through the tensor
//! `rope_freqs.weight`, whose constants are found again in `rope_factors`.

use model_spec::{
    Activation, AttentionRule, BlockStyle, HeadLayout, Multipliers, Nonlinearity, NormSpec, Normalization,
    OutputSpec, PositionEmbedding, TableRows, UniformSpec,
};

use super::arch::{ModelArch, Rope, RopeExtension, size};
use super::canonical::biases;
use super::family::Family;
use super::{gguf_keys, rope_factors};
use crate::names::GGUF_LLAMA;
use crate::{FormatError, GgufSource, GgufValue, SourceNote, TensorSource};

/// llama.cpp's defaults for keys left out.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;
/// GGUF does not keep `initializer_range`; this is the value of every published Llama.
const INIT_METHOD_STD: f64 = 0.02;
const ROPE_FREQS: &str = "rope_freqs.weight";
/// The factors of `longrope`, one set for each length.
const LONG_ROPE: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// The architecture of the model in `source`, and what else the file says.
pub(super) fn understand(source: &GgufSource) -> Result<(ModelArch, Vec<SourceNote>), FormatError> {
    let file = source.file();
    gguf_keys::refuse_other_kinds(file)?;
    let architecture = file.require("general.architecture", GgufValue::as_str)?;
    if architecture != "llama" {
        return Err(FormatError::Unsupported {
            what: format!("`{}`, a GGUF file of architecture `{architecture}`,", file.path().display()),
            hint: "only GGUF files of architecture `llama` are converted so far".to_owned(),
        });
    }
    let mut notes = gguf_keys::check(file)?;
    let arch = arch(source)?;
    let stated = file.optional("llama.vocab_size", GgufValue::as_u64)?;
    if let Some(stated) = stated.filter(|&stated| stated != arch.tables.vocab) {
        notes.push(SourceNote::Contradiction {
            used: format!("`{}`, which has {} rows,", GGUF_LLAMA.embedding(), arch.tables.vocab),
            ignored: "`llama.vocab_size`".to_owned(),
            difference: format!("it is {stated}"),
        });
    }
    notes.extend(ignored_scaling(source)?);
    Ok((arch, notes))
}

/// llama.cpp heeds no factor where the type is `none`.
fn ignored_scaling(source: &GgufSource) -> Result<Option<SourceNote>, FormatError> {
    let factor = scaling_factor(source)?.filter(|_| scaling_type(source).ok() == Some("none"));
    Ok(factor.map(|(key, factor)| SourceNote::Contradiction {
        used: format!("`{SCALING_TYPE}` none, as in llama.cpp,"),
        ignored: format!("`{key}`"),
        difference: format!("it is {factor}"),
    }))
}

fn arch(source: &GgufSource) -> Result<ModelArch, FormatError> {
    let file = source.file();
    let path = file.path().display().to_string();
    let names = GGUF_LLAMA;
    let hidden_size = file.require("llama.embedding_length", GgufValue::as_u64)?;
    let num_attention_heads = file.require("llama.attention.head_count", GgufValue::as_same_u64)?;
    let head_dim = file
        .optional("llama.attention.key_length", GgufValue::as_u64)?
        .unwrap_or(hidden_size / num_attention_heads.max(1));
    let same_as_head =
        |key| match file.optional(key, GgufValue::as_same_u64)? {
            // The row permutation of a partly rotated head is not defined by llama.cpp's Llama converter.
            Some(value) if value != head_dim => Err(file
                .bad_key(key, &format!("is {value}, the head dimension is {head_dim}; they must be equal"))),
            _ => Ok(()),
        };
    same_as_head("llama.attention.value_length")?;
    same_as_head("llama.rope.dimension_count")?;
    check_attention_scale(source, head_dim)?;
    let window = file.optional("llama.attention.sliding_window", GgufValue::as_same_u64)?;
    let window = window.filter(|&window| window > 0);
    let embedding = source
        .meta(&names.embedding())
        .ok_or_else(|| FormatError::MissingTensor { name: names.embedding() })?;
    let rotary_base = file.optional("llama.rope.freq_base", GgufValue::as_f64)?.unwrap_or(DEFAULT_ROPE_BASE);
    let mut rope =
        Rope { percentage: 1.0, base: rotary_base, scaling: RopeExtension::None, interleaved: false };
    let family = if window.is_some() { Family::Mistral } else { Family::Llama };
    let num_query_groups = file.optional("llama.attention.head_count_kv", GgufValue::as_same_u64)?;
    let model = UniformSpec {
        num_layers: size(file.require("llama.block_count", GgufValue::as_u64)?),
        hidden_size: size(hidden_size),
        ffn_hidden_size: size(file.require("llama.feed_forward_length", GgufValue::as_same_u64)?),
        moe: None,
        heads: HeadLayout {
            num_attention_heads: size(num_attention_heads),
            num_query_groups: size(num_query_groups.unwrap_or(num_attention_heads)),
            kv_channels: size(head_dim),
        },
        block_style: BlockStyle::Sequential,
        norm: NormSpec {
            normalization: Normalization::RmsNorm,
            zero_centered_gamma: false,
            epsilon: file.require("llama.attention.layer_norm_rms_epsilon", GgufValue::as_f64)?,
        },
        activation: Activation { nonlinearity: Nonlinearity::Silu, gated: true },
        bias: false,
        qkv_bias: false,
        qk_layernorm: false,
        position_embedding: PositionEmbedding::LearnedAbsolute,
        window: None,
        attention: AttentionRule::default(),
        post_layernorms: false,
        apply_embedding_scaling: family.facts().scales_embeddings,
        output: OutputSpec {
            tied: source.meta(&names.output("weight")).is_none(),
            bias: family.facts().has_output_bias,
            softcap: None,
        },
        pre_layernorms: true,
        multipliers: Multipliers::default(),
        blocks: None,
    };
    let tables = TableRows {
        vocab: embedding.shape.first().copied().unwrap_or(0),
        positions: file.require("llama.context_length", GgufValue::as_u64)?,
    };
    let mut arch = ModelArch::new(family, model, tables, INIT_METHOD_STD);
    arch.set_sliding_window(window);
    arch.set_biases(biases(&names, source));
    arch.set_rope(rope);
    arch.check(&path)?;
    rope.scaling = rope_scaling(source, head_dim, rotary_base)?;
    arch.set_rope(rope);
    Ok(arch)
}

const SCALING_TYPE: &str = "llama.rope.scaling.type";

/// llama.cpp's default is linear: a factor alone counts.
fn scaling_type(source: &GgufSource) -> Result<&str, FormatError> {
    Ok(source.file().optional(SCALING_TYPE, GgufValue::as_str)?.unwrap_or("linear"))
}

/// The factor under its name or the one of 2023, where it is not 1. Zero means none to llama.cpp.
fn scaling_factor(source: &GgufSource) -> Result<Option<(&'static str, f64)>, FormatError> {
    let file = source.file();
    let [new, old] = ["llama.rope.scaling.factor", "llama.rope.scale_linear"];
    let value = |key| file.optional(key, GgufValue::as_f64);
    let found = match (value(new)?, value(old)?) {
        (Some(factor), Some(other)) if factor != other => {
            return Err(file.bad_key(old, &format!("is {other} and `{new}`, its newer name, is {factor}")));
        }
        (Some(factor), _) => Some((new, factor)),
        (None, other) => other.map(|factor| (old, factor)),
    };
    match found {
        Some((key, factor)) if !(factor.is_finite() && factor >= 0.0) => {
            Err(file.bad_key(key, &format!("is {factor}, expected a number above 0")))
        }
        found => Ok(found.filter(|&(_, factor)| factor != 0.0 && factor != 1.0)),
    }
}

fn rope_scaling(source: &GgufSource, head_dim: u64, rotary_base: f64) -> Result<RopeExtension, FormatError> {
    let path = source.file().path().display().to_string();
    let unsupported =
        |what: String, hint: &str| Err(FormatError::Unsupported { what, hint: hint.to_owned() });
    if let Some(name) = LONG_ROPE.into_iter().find(|name| source.meta(name).is_some()) {
        let hint =
            "rotary frequencies that depend on the length of the prompt (longrope) are not computed here";
        return unsupported(format!("tensor `{name}` of `{path}`"), hint);
    }
    let factor = match scaling_type(source)? {
        "none" => None,
        "linear" => scaling_factor(source)?,
        other => {
            let hint = "supported types are `none`, `linear` and Llama 3.1's";
            return unsupported(format!("`{SCALING_TYPE}` `{other}` in `{path}`"), hint);
        }
    };
    let linear = factor.map_or(RopeExtension::None, |(_, factor)| RopeExtension::Linear(factor));
    if source.meta(ROPE_FREQS).is_none() {
        return Ok(linear);
    }
    let stored = source.stored_values(ROPE_FREQS)?;
    let rule = rope_factors::scaling(&stored, head_dim, rotary_base);
    match (rule, factor) {
        (Some(RopeExtension::None), _) => Ok(linear),
        (Some(rule), None) => Ok(rule),
        (Some(_), Some((key, factor))) => unsupported(
            format!("tensor `{ROPE_FREQS}` of `{path}` beside `{key}`, which is {factor},"),
            "llama.cpp applies both, which no configuration of the result says; remove one with \
             `gguf_new_metadata.py --remove-metadata` of the gguf package if it is there by mistake",
        ),
        (None, _) => unsupported(
            format!("tensor `{ROPE_FREQS}` of `{path}`"),
            "its values are those of no factor and lengths under Llama 3.1's frequency rule",
        ),
    }
}

/// Scores are divided by the root of the head dimension; the key may say so, and nothing else.
fn check_attention_scale(source: &GgufSource, head_dim: u64) -> Result<(), FormatError> {
    const KEY: &str = "llama.attention.scale";
    let file = source.file();
    let Some(scale) = file.optional(KEY, GgufValue::as_f64)?.filter(|&scale| scale != 0.0) else {
        return Ok(());
    };
    let expected = (head_dim as f64).sqrt().recip();
    if (scale / expected - 1.0).abs() < 1e-6 {
        return Ok(());
    }
    Err(FormatError::Unsupported {
        what: format!("metadata key `{KEY}`, which is {scale} in `{}`,", file.path().display()),
        hint: format!(
            "attention scores are multiplied by {expected}, 1 over the root of the head dimension {head_dim}"
        ),
    })
}
