//! libtorch's names of the number formats of `model_spec`.

use model_spec::{Float, KvFormat, WeightFormat};
use tch::Kind;

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

impl TensorFormat for WeightFormat {
    fn kind(self) -> Kind {
        match self {
            Self::Float(float) => float.kind(),
        }
    }
}

impl TensorFormat for KvFormat {
    fn kind(self) -> Kind {
        match self {
            Self::Float(float) => float.kind(),
        }
    }
}
