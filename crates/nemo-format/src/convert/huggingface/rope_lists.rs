//! Rotations whose frequencies have a factor each: LongRoPE, which lists them for short and for long sequences, YaRN, whose
//! rule gives one list, and `dynamic`, which has none up to the length of the training.
//!
//! Rules: transformers' `modeling_rope_utils.py`. Sequences of LongRoPE up to the original length have the short list, longer
//! ones the long one from their first token on.

use std::f64::consts::TAU;

use model_spec::{MAX_ROTARY_PAIRS, PositionEmbedding};

use crate::FormatError;
use crate::convert::arch::{ModelArch, RopeFactors};
use crate::convert::family::Family;
use crate::huggingface::{HfConfig, HfRope};

/// What they are called; `su` is what Phi-3 first called LongRoPE.
pub(super) const TYPES: [&str; 4] = ["longrope", "su", "yarn", "dynamic"];

/// Reads the lists, where the rotation has some.
pub(super) fn settle(config: &HfConfig, arch: &mut ModelArch) -> Result<(), FormatError> {
    if !arch.needs_rope_factors() {
        return Ok(());
    }
    let rope = config.rope()?;
    let kind = rope.rope_type.as_deref().unwrap_or_default();
    let PositionEmbedding::Rope(rotary) = arch.model.position_embedding else { return Ok(()) };
    if arch.family == Family::Gemma3 {
        return Err(
            config.unsupported(&format!("rope_scaling of type `{kind}`"), "Gemma 3 has `linear` alone")
        );
    }
    let num_pairs = rotary.rotary_dims / 2;
    if num_pairs > MAX_ROTARY_PAIRS {
        return Err(
            config.bad(format!("{num_pairs} pairs of a head rotate, at most {MAX_ROTARY_PAIRS} are read"))
        );
    }
    if kind == "dynamic" {
        let factor =
            rope.factor.ok_or_else(|| config.bad("rope_scaling of type `dynamic` has no `factor`".into()))?;
        let factor = above_zero(config, "factor", factor)?;
        arch.rope_factors = Some(RopeFactors::UpTo { length: arch.tables.positions, factor });
        return Ok(());
    }
    // transformers reads the older configurations of Phi-3 so.
    let is_long = kind != "yarn" || arch.family == Family::Phi3;
    let original_outside = config.u64(&["original_max_position_embeddings"])?;
    arch.rope_factors = Some(if is_long {
        by_length(config, &rope, original_outside, (arch.tables.positions, num_pairs))?
    } else {
        yarn(config, &rope, (rotary.rotary_base, arch.tables.positions), num_pairs)?
    });
    Ok(())
}

fn above_zero(config: &HfConfig, key: &str, value: f64) -> Result<f64, FormatError> {
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(config.bad(format!("rope_scaling has {key} {value}, expected a number above 0"))),
    }
}

fn by_length(
    config: &HfConfig,
    rope: &HfRope,
    original_outside: Option<u64>,
    (positions, num_pairs): (u64, usize),
) -> Result<RopeFactors, FormatError> {
    let list = |key: &str, values: &Option<Vec<f64>>| -> Result<Vec<f64>, FormatError> {
        let values = values.clone().ok_or_else(|| config.bad(format!("rope_scaling has no `{key}`")))?;
        if values.len() != num_pairs {
            let reason =
                format!("rope_scaling has {} of `{key}` for {num_pairs} pairs of a head", values.len());
            return Err(config.bad(reason));
        }
        values.into_iter().map(|value| above_zero(config, key, value)).collect()
    };
    let inside = rope.original_max_position_embeddings;
    let original = inside.or(original_outside.map(|length| length as f64)).unwrap_or(positions as f64);
    let original = above_zero(config, "original_max_position_embeddings", original)?;
    let factor = rope.factor.unwrap_or(positions as f64 / original);
    let attention_factor = match rope.attention_factor {
        Some(stated) => stated,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeFactors::ByLength {
        short: list("short_factor", &rope.short_factor)?,
        long: list("long_factor", &rope.long_factor)?,
        original_length: original as u64,
        attention_factor: above_zero(config, "attention_factor", attention_factor)?,
    })
}

fn yarn(
    config: &HfConfig,
    rope: &HfRope,
    (base, positions): (f64, u64),
    num_pairs: usize,
) -> Result<RopeFactors, FormatError> {
    let original = rope.original_max_position_embeddings.unwrap_or(positions as f64);
    let original = above_zero(config, "original_max_position_embeddings", original)?;
    let factor = above_zero(config, "factor", rope.factor.unwrap_or(positions as f64 / original))?;
    let scale_of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let set = |value: Option<f64>| value.filter(|&value| value != 0.0);
    let attention_factor = match (rope.attention_factor, set(rope.mscale), set(rope.mscale_all_dim)) {
        (Some(stated), ..) => stated,
        (None, Some(scale), Some(all)) => scale_of(scale) / scale_of(all),
        _ => scale_of(1.0),
    };
    let dims = (2 * num_pairs) as f64;
    let dim_of = |turns: f64| dims * (original / (turns * TAU)).ln() / (2.0 * base.ln());
    let (mut low, mut high) =
        (dim_of(set(rope.beta_fast).unwrap_or(32.0)), dim_of(set(rope.beta_slow).unwrap_or(1.0)));
    if rope.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims - 1.0));
    if low == high {
        high += 0.001;
    }
    let factors = (0..num_pairs).map(|pair| {
        let kept = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / factor + kept)
    });
    let factors = factors.map(|value| above_zero(config, "a factor of", value)).collect::<Result<_, _>>()?;
    Ok(RopeFactors::Fixed {
        factors,
        attention_factor: above_zero(config, "attention_factor", attention_factor)?,
    })
}
