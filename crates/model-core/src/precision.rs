//! The number format of weights, activations and KV cache.
//!
//! Spellings are those of `trainer.precision` (PyTorch Lightning).

use std::str::FromStr;

use model_spec::{BadPrecision, Float, Numerics};
use tch::Kind;

use crate::ModelError;

/// What the model computes in. Norms, softmax and rotary run in fp32 inside whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single precision.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// Bytes of one number.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The same format for what is computed, weights and KV cache.
    pub const fn numerics(self) -> Numerics {
        match self {
            Self::Fp32 => Numerics::uniform(Float::Fp32),
            Self::Bf16 => Numerics::uniform(Float::Bf16),
        }
    }

    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

impl FromStr for Precision {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text.parse::<Numerics>() {
            Ok(Numerics { compute: Float::Fp32, .. }) => Ok(Self::Fp32),
            Ok(Numerics { compute: Float::Bf16, .. }) => Ok(Self::Bf16),
            Err(BadPrecision { value }) => {
                Err(ModelError::BadPrecision { value, supported: BadPrecision::SUPPORTED })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_spellings_of_lightning() {
        for text in ["32", "32-true"] {
            assert_eq!(text.parse::<Precision>().unwrap(), Precision::Fp32);
        }
        for text in ["bf16", "BF16-mixed", "bf16-true"] {
            assert_eq!(text.parse::<Precision>().unwrap(), Precision::Bf16);
        }
        for text in ["16", "16-mixed", "64", ""] {
            let error = text.parse::<Precision>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("`bf16`"), "{error}");
        }
    }
}
