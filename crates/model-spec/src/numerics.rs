//! Number formats: what is computed in, what weights are stored in, what the KV cache is stored in.

use std::fmt;
use std::str::FromStr;

use crate::Module;

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

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        })
    }
}

/// What the weights of linear layers and tables are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Plain numbers.
    Float(Float),
    /// The linear layers of attention and MLP in FP8 (e4m3) with a float32 scale for each output; their inputs are made FP8
    /// with a scale for each token. All other weights are in what is computed in.
    Fp8,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(float) => float.fmt(f),
            Self::Fp8 => f.write_str("fp8"),
        }
    }
}

/// What keys and values are cached in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Plain numbers.
    Float(Float),
    /// FP8 (e4m3) with a scale for each token and head: the least power of two that brings the largest number of the key or
    /// value down to 448, the largest of e4m3. So a number of the cache is one of bf16, too.
    Fp8,
}

impl KvFormat {
    /// Bytes of a key or a value of one head.
    pub const fn head_bytes(self, kv_channels: usize) -> usize {
        match self {
            Self::Float(float) => kv_channels.saturating_mul(float.size_bytes()),
            Self::Fp8 => kv_channels.saturating_add(EXPONENT_BYTES),
        }
    }

    /// What its numbers are held in where nothing multiplies FP8: those of the cache are among those of `compute`.
    pub const fn unpacked(self, compute: Float) -> Float {
        match self {
            Self::Float(float) => float,
            Self::Fp8 => compute,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(float) => float.fmt(f),
            Self::Fp8 => f.write_str("fp8"),
        }
    }
}

/// Of the scale of an output.
const SCALE_BYTES: u64 = 4;
/// Of the scale of a key or a value, of which the exponent is kept.
const EXPONENT_BYTES: usize = 1;

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

    /// The same with the linear layers of attention and MLP in FP8.
    pub const fn with_fp8_weights(self) -> Self {
        Self { weights: WeightFormat::Fp8, ..self }
    }

    /// The same with the KV cache in FP8.
    pub const fn with_fp8_kv(self) -> Self {
        Self { kv: KvFormat::Fp8, ..self }
    }

    /// What the weights are in that are not those of quantized linear layers: tables, the output layer, biases.
    pub const fn plain_weights(&self) -> Float {
        match self.weights {
            WeightFormat::Float(float) => float,
            WeightFormat::Fp8 => self.compute,
        }
    }

    /// Bytes of a matrix of weights as it is held.
    pub(crate) fn matrix_bytes(&self, module: Module, [rows, columns]: [u64; 2]) -> u64 {
        let elems = rows.saturating_mul(columns);
        match self.weights {
            WeightFormat::Fp8 if module.is_layer_linear() => {
                elems.saturating_add(rows.saturating_mul(SCALE_BYTES))
            }
            _ => elems.saturating_mul(self.plain_weights().size_bytes() as u64),
        }
    }
}

/// One name where one format serves for everything.
impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compute, weights, kv } = self;
        if *self == Self::uniform(*compute) {
            return compute.fmt(f);
        }
        write!(f, "{compute} (weights {weights}, KV cache {kv})")
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
    fn formats_are_named_one_by_one_where_they_differ() {
        let uniform = Numerics::uniform(Float::Bf16);
        assert_eq!(uniform.to_string(), "bf16");
        let mixed = Numerics { weights: WeightFormat::Float(Float::Fp32), ..uniform };
        assert_eq!(mixed.to_string(), "bf16 (weights fp32, KV cache bf16)");
        let quantized = Numerics { weights: WeightFormat::Fp8, ..uniform };
        assert_eq!(quantized.to_string(), "bf16 (weights fp8, KV cache bf16)");
        assert_eq!(quantized.with_fp8_kv().to_string(), "bf16 (weights fp8, KV cache fp8)");
    }

    #[test]
    fn only_the_linear_layers_of_layers_are_quantized() {
        let numerics = Numerics { weights: WeightFormat::Fp8, ..Numerics::uniform(Float::Bf16) };
        assert_eq!(numerics.plain_weights(), Float::Bf16);
        for module in [Module::Qkv, Module::Proj, Module::Fc1, Module::Fc2] {
            assert_eq!(numerics.matrix_bytes(module, [6, 32]), 6 * 32 + 4 * 6);
        }
        for module in [Module::Output, Module::WordEmbeddings, Module::PositionEmbeddings] {
            assert_eq!(numerics.matrix_bytes(module, [6, 32]), 2 * 6 * 32);
        }
    }

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
