//! How a token's position enters: the keys `position_embedding_type`, `rotary_*`, `rope_scaling` and their kin.

use super::raw::{RawModelConfig, RawNumber};
use crate::ModelError;

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionEmbedding {
    /// A table added to the embeddings.
    LearnedAbsolute,
    /// Rotation of queries and keys.
    Rope(RotaryConfig),
}

/// The rotation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryConfig {
    /// How many of each head's first dimensions are rotated; even.
    pub rotary_dims: usize,
    /// Which of them are rotated together.
    pub pairing: RotaryPairing,
    /// The base of the frequencies.
    pub rotary_base: f64,
    /// Positions are divided by it.
    pub seq_len_interpolation_factor: f64,
    /// The frequency rule of Llama 3.1 (`scale_positional_embedding`).
    pub rope_scaling: Option<RopeScaling>,
}

/// Which of a head's dimensions are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairing {
    /// `(i, i + rotary_dims / 2)`.
    HalfSplit,
    /// `(2 i, 2 i + 1)` (`rotary_interleaved`).
    Interleaved,
}

/// The constants of Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Frequencies of long wavelengths are divided by it.
    pub factor: f64,
    /// The original length over this is where wavelengths are long.
    pub low_freq_factor: f64,
    /// The original length over this is where wavelengths are short.
    pub high_freq_factor: f64,
    /// Positions of the training before the context was made longer.
    pub original_max_position_embeddings: f64,
}

impl RopeScaling {
    /// The constants that NeMo has built in; Llama 3.2 has others.
    pub const LLAMA_3_1: Self = Self {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
}

impl PositionEmbedding {
    pub(super) fn parse(raw: &RawModelConfig, kv_channels: usize) -> Result<Self, ModelError> {
        let text = raw.position_embedding_type.as_deref().unwrap_or("learned_absolute");
        match text {
            "learned_absolute" => Ok(Self::LearnedAbsolute),
            "rope" => Ok(Self::Rope(RotaryConfig::parse(raw, kv_channels)?)),
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
}

impl RotaryConfig {
    fn parse(raw: &RawModelConfig, kv_channels: usize) -> Result<Self, ModelError> {
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
        let interleaved =
            raw.customized_flag("rotary_interleaved")?.or(raw.rotary_interleaved).unwrap_or(false);
        Ok(Self {
            rotary_dims,
            pairing: if interleaved { RotaryPairing::Interleaved } else { RotaryPairing::HalfSplit },
            rotary_base: number("rotary_base", &raw.rotary_base, 10_000.0)?,
            seq_len_interpolation_factor: number(
                "seq_len_interpolation_factor",
                &raw.seq_len_interpolation_factor,
                1.0,
            )?,
            rope_scaling: match raw.scale_positional_embedding {
                Some(true) => Some(RopeScaling::parse(raw)?),
                _ => None,
            },
        })
    }
}

impl RopeScaling {
    fn parse(raw: &RawModelConfig) -> Result<Self, ModelError> {
        let default = Self::LLAMA_3_1;
        let Some(written) = &raw.rope_scaling else { return Ok(default) };
        let number = |value: &Option<RawNumber>, default| {
            Ok::<_, ModelError>(raw.positive("rope_scaling", value.as_ref())?.unwrap_or(default))
        };
        let scaling = Self {
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
}
