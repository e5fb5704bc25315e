//! libtorch's names of the number formats of `model_spec`.

use model_spec::Float;
use nemo_format::DType;
use tch::Kind;

/// The element types that weights may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredFloat {
    F64,
    F32,
    F16,
    BF16,
}

impl StoredFloat {
    /// `None` for a type of other numbers.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F64 => Some(Self::F64),
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::F8E4M3 | DType::Bool => {
                None
            }
        }
    }

    /// libtorch's name of it.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F64 => Kind::Double,
            Self::F32 => Kind::Float,
            Self::F16 => Kind::Half,
            Self::BF16 => Kind::BFloat16,
        }
    }
}

/// A format whose numbers are the elements of a tensor.
pub(crate) trait TensorFormat {
    /// The element type.
    fn kind(self) -> Kind;
}

impl TensorFormat for Float {
    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}
