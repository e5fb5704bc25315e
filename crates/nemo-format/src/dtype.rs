//! Element types of stored tensors, under the names that torch gives them.

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// FP8 of four bits of exponent and three of mantissa. Its numbers have scales beside them ([`crate::Fp8Weights`]).
    F8E4M3,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::Bool => 1,
        }
    }

    /// The type that torch gives this name, without its `torch.` prefix.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        use DType::{BF16, Bool, F8E4M3, F16, F32, F64, I8, I16, I32, I64, U8};
        let all = [F64, F32, F16, BF16, I64, I32, I16, I8, U8, F8E4M3, Bool];
        all.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The name torch gives the type, without its `torch.` prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::Bool => "bool",
        }
    }
}
