//! The activations of Megatron's MLPs, on float32 values.

use model_spec::{GLU_CLAMP, Nonlinearity};

use super::math::{erf, exp, sigmoid, tanh};

/// Applies the function in place. The choice is made outside the loop, so that the loop becomes vector code.
#[inline(always)]
pub(crate) fn activate(nonlinearity: Nonlinearity, values: &mut [f32]) {
    #[inline(always)]
    fn map(values: &mut [f32], function: impl Fn(f32) -> f32) {
        values.iter_mut().for_each(|value| *value = function(*value));
    }
    match nonlinearity {
        Nonlinearity::Gelu => map(values, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        Nonlinearity::GeluTanh => {
            map(values, |x| 0.5 * x * (1.0 + tanh(0.797_884_6 * x * (1.0 + 0.044_715 * x * x))));
        }
        Nonlinearity::QuickGelu => map(values, |x| x * sigmoid(1.702 * x)),
        Nonlinearity::ClampedQuickGelu => map(values, |x| {
            let x = if x > GLU_CLAMP { GLU_CLAMP } else { x };
            x * sigmoid(1.702 * x)
        }),
        Nonlinearity::Silu => map(values, |x| x / (1.0 + exp(-x))),
        Nonlinearity::Relu => map(values, |x| x.max(0.0)),
        Nonlinearity::SquaredRelu => map(values, |x| x.max(0.0) * x.max(0.0)),
    }
}

/// What the activated half of a gated layer multiplies, in place.
#[inline(always)]
pub(crate) fn prepare_multiplied(nonlinearity: Nonlinearity, values: &mut [f32]) {
    if nonlinearity == Nonlinearity::ClampedQuickGelu {
        values.iter_mut().for_each(|value| *value = value.clamp(-GLU_CLAMP, GLU_CLAMP) + 1.0);
    }
}
