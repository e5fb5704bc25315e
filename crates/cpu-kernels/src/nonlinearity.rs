//! The activations of Megatron's MLPs, on float32 values.

use super::math::{erf, exp, sigmoid, tanh};

/// An activation function; whether it gates a second half is the linear layer's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// x * Phi(x) with the error function.
    Gelu,
    /// The tanh approximation of gelu (`openai_gelu`).
    GeluTanh,
    /// x * sigmoid(1.702 x) (`approx-gelu`).
    QuickGelu,
    /// x * sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
    /// max(x, 0) squared.
    SquaredRelu,
}

impl Nonlinearity {
    /// Applies the function in place. The choice is made outside the loop, so that the loop becomes vector code.
    #[inline(always)]
    pub(crate) fn apply(self, values: &mut [f32]) {
        #[inline(always)]
        fn map(values: &mut [f32], function: impl Fn(f32) -> f32) {
            values.iter_mut().for_each(|value| *value = function(*value));
        }
        match self {
            Self::Gelu => map(values, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
            Self::GeluTanh => {
                map(values, |x| 0.5 * x * (1.0 + tanh(0.797_884_6 * x * (1.0 + 0.044_715 * x * x))));
            }
            Self::QuickGelu => map(values, |x| x * sigmoid(1.702 * x)),
            Self::Silu => map(values, |x| x / (1.0 + exp(-x))),
            Self::Relu => map(values, |x| x.max(0.0)),
            Self::SquaredRelu => map(values, |x| x.max(0.0) * x.max(0.0)),
        }
    }
}
