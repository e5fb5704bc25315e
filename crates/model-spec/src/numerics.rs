//! Number formats: what is computed in, what weights are stored in, what the KV cache is stored in.

use std::str::FromStr;

/// A floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// Bytes of one number.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What the weights of linear layers and tables are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Plain numbers.
    Float(Float),
}

impl WeightFormat {
    /// Bytes of one weight.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Float(float) => float.size_bytes(),
        }
    }
}

/// What keys and values are cached in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Plain numbers.
    Float(Float),
}

impl KvFormat {
    /// Bytes of one number of a key or a value.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Float(float) => float.size_bytes(),
        }
    }
}

/// The three choices of a run. Norms, softmax and rotary run in fp32 inside whatever these say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numerics {
    /// What activations are in, and so what the layers compute in.
    pub compute: Float,
    /// What weights are held in.
    pub weights: WeightFormat,
    /// What the KV cache is held in.
    pub kv: KvFormat,
}

impl Numerics {
    /// One format for everything.
    pub const fn uniform(float: Float) -> Self {
        Self { compute: float, weights: WeightFormat::Float(float), kv: KvFormat::Float(float) }
    }
}

/// A precision that nothing here computes in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("precision `{value}` is not supported, use one of {}", Self::SUPPORTED)]
pub struct BadPrecision {
    /// The value found.
    pub value: String,
}

impl BadPrecision {
    /// The spellings that work.
    pub const SUPPORTED: &'static str = "`32`, `32-true`, `bf16`, `bf16-mixed`, `bf16-true`";
}

/// Reads the spellings of `trainer.precision` (PyTorch Lightning), which mean one format for everything.
impl FromStr for Numerics {
    type Err = BadPrecision;

    fn from_str(text: &str) -> Result<Self, BadPrecision> {
        match text.trim().to_ascii_lowercase().as_str() {
            "32" | "32-true" | "fp32" | "float32" => Ok(Self::uniform(Float::Fp32)),
            "bf16" | "bf16-mixed" | "bf16-true" | "bfloat16" => Ok(Self::uniform(Float::Bf16)),
            _ => Err(BadPrecision { value: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_spellings_of_lightning() {
        for text in ["32", "32-true"] {
            assert_eq!(text.parse(), Ok(Numerics::uniform(Float::Fp32)));
        }
        for text in ["bf16", "BF16-mixed", "bf16-true"] {
            assert_eq!(text.parse(), Ok(Numerics::uniform(Float::Bf16)));
        }
        for text in ["16", "16-mixed", "64", ""] {
            let error = text.parse::<Numerics>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("`bf16`"), "{error}");
        }
    }
}
