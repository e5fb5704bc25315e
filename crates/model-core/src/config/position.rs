//! How a token's position enters: the keys `position_embedding_type`, `rotary_*`, `rope_scaling` and their kin.

use model_spec::{
    MAX_ROTARY_PAIRS, PositionEmbedding, RopeScaling, RotaryConfig, RotaryFactors, RotaryPairing,
};

use super::raw::{RawModelConfig, RawNumber, RawRopeScaling};
use crate::ModelError;

pub(super) fn parse(
    raw: &RawModelConfig,
    kv_channels: usize,
    encoder_seq_length: usize,
) -> Result<PositionEmbedding, ModelError> {
    let text = raw.position_embedding_type.as_deref().unwrap_or("learned_absolute");
    match text {
        "learned_absolute" => Ok(PositionEmbedding::LearnedAbsolute),
        "rope" => Ok(PositionEmbedding::Rope(parse_rotary(raw, kv_channels, encoder_seq_length)?)),
        "alibi" | "kerple" | "sandwich" | "xpos" | "none" | "relative" => Err(ModelError::Unsupported {
            key: "position_embedding_type",
            value: text.to_owned(),
            feature: "a position embedding other than `rope` and `learned_absolute`",
            needs: "a checkpoint trained with one of those",
        }),
        _ => Err(ModelError::BadValue {
            key: "position_embedding_type",
            expected: "`rope` or `learned_absolute`".to_owned(),
            actual: text.to_owned(),
        }),
    }
}

fn parse_rotary(
    raw: &RawModelConfig,
    kv_channels: usize,
    encoder_seq_length: usize,
) -> Result<RotaryConfig, ModelError> {
    let number = |key, value: &Option<RawNumber>, default| {
        Ok::<_, ModelError>(raw.positive(key, value.as_ref())?.unwrap_or(default))
    };
    let percentage = number("rotary_percentage", &raw.rotary_percentage, 1.0)?;
    let rotary_dims = (kv_channels as f64 * percentage) as usize;
    if percentage > 1.0 || rotary_dims == 0 || !rotary_dims.is_multiple_of(2) {
        return Err(ModelError::BadValue {
            key: "rotary_percentage",
            expected: format!(
                "a share, at most 1, that makes an even number of the {kv_channels} dimensions of a head"
            ),
            actual: percentage.to_string(),
        });
    }
    let interleaved = raw.customized_flag("rotary_interleaved")?.or(raw.rotary_interleaved).unwrap_or(false);
    Ok(RotaryConfig {
        rotary_dims,
        pairing: if interleaved { RotaryPairing::Interleaved } else { RotaryPairing::HalfSplit },
        rotary_base: number("rotary_base", &raw.rotary_base, 10_000.0)?,
        seq_len_interpolation_factor: number(
            "seq_len_interpolation_factor",
            &raw.seq_len_interpolation_factor,
            1.0,
        )?,
        rope_scaling: match raw.scale_positional_embedding {
            Some(true) => Some(parse_scaling(raw)?),
            _ => None,
        },
        factors: parse_factors(raw, rotary_dims, encoder_seq_length)?,
    })
}

/// What each frequency is divided by: `rope_scaling.factors`, or one of two lists by the length that sequences may have.
///
/// transformers takes the second list for a sequence longer than the original length, from its first token on. Here the
/// longest sequence decides for all, so that none changes its keys midway.
fn parse_factors(
    raw: &RawModelConfig,
    rotary_dims: usize,
    encoder_seq_length: usize,
) -> Result<Option<RotaryFactors>, ModelError> {
    const KEY: &str = "rope_scaling";
    let bad = |expected: String, actual: String| Err(ModelError::BadValue { key: KEY, expected, actual });
    let Some(written) = &raw.rope_scaling else { return Ok(None) };
    let RawRopeScaling { factors, short_factor, long_factor, original_max_position_embeddings, .. } = written;
    if let Some(factor) = raw.positive(KEY, written.dynamic_factor.as_ref())? {
        // There the base grows with the longest sequence of a batch, and keys that are cached keep the frequencies they had:
        // no sequence has one text.
        let original = raw.size(KEY, original_max_position_embeddings.as_ref())?.unwrap_or(0);
        if factor != 1.0 && encoder_seq_length > original {
            return Err(ModelError::BadValue {
                key: "encoder_seq_length",
                expected: format!(
                    "at most {original}: beyond, `dynamic` frequencies follow from the longest sequence of a batch \
                     (`rope_scaling.dynamic_factor`)"
                ),
                actual: encoder_seq_length.to_string(),
            });
        }
    }
    let list = match (factors, short_factor, long_factor) {
        (None, None, None) => return Ok(None),
        (Some(factors), None, None) => factors,
        (None, Some(short), Some(long)) => {
            let original = raw.size(KEY, original_max_position_embeddings.as_ref())?;
            let Some(original) = original else {
                let expected = "with `short_factor` one that has `original_max_position_embeddings`";
                return bad(expected.to_owned(), "one without".to_owned());
            };
            if encoder_seq_length > original { long } else { short }
        }
        _ => {
            let expected = "either `factors`, or both `short_factor` and `long_factor`";
            return bad(expected.to_owned(), "others".to_owned());
        }
    };
    let numbers = list.iter().map(|number| raw.positive(KEY, Some(number)));
    let numbers: Vec<f32> =
        numbers.map(|number| Ok(number?.unwrap_or(1.0) as f32)).collect::<Result<_, ModelError>>()?;
    let attention_factor = raw.positive(KEY, written.attention_factor.as_ref())?.unwrap_or(1.0);
    if numbers.len() != rotary_dims / 2 || raw.scale_positional_embedding == Some(true) {
        let expected = format!(
            "{} factors, one for each pair of rotated dimensions, and no `scale_positional_embedding`",
            rotary_dims / 2
        );
        return bad(expected, numbers.len().to_string());
    }
    match RotaryFactors::new(&numbers, attention_factor) {
        Some(factors) => Ok(Some(factors)),
        None => bad(format!("at most {MAX_ROTARY_PAIRS} factors"), numbers.len().to_string()),
    }
}

fn parse_scaling(raw: &RawModelConfig) -> Result<RopeScaling, ModelError> {
    let default = RopeScaling::LLAMA_3_1;
    let Some(written) = &raw.rope_scaling else { return Ok(default) };
    let number = |value: &Option<RawNumber>, default| {
        Ok::<_, ModelError>(raw.positive("rope_scaling", value.as_ref())?.unwrap_or(default))
    };
    let scaling = RopeScaling {
        factor: number(&written.factor, default.factor)?,
        low_freq_factor: number(&written.low_freq_factor, default.low_freq_factor)?,
        high_freq_factor: number(&written.high_freq_factor, default.high_freq_factor)?,
        original_max_position_embeddings: number(
            &written.original_max_position_embeddings,
            default.original_max_position_embeddings,
        )?,
    };
    // The blend between the two lengths divides by their difference.
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        return Err(ModelError::BadValue {
            key: "rope_scaling",
            expected: format!(
                "a `high_freq_factor` above its `low_freq_factor`, {}",
                scaling.low_freq_factor
            ),
            actual: scaling.high_freq_factor.to_string(),
        });
    }
    Ok(scaling)
}
