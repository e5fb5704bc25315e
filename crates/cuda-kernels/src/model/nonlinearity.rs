//! The activation of the MLP: its function, and whether it is gated. Needs no GPU.

use model_spec::Nonlinearity;

/// The number of a function in `kernels/nonlinearity.cuh`.
pub(super) const fn number_of(nonlinearity: Nonlinearity) -> i32 {
    match nonlinearity {
        Nonlinearity::Gelu => 0,
        Nonlinearity::GeluTanh => 1,
        Nonlinearity::QuickGelu => 2,
        Nonlinearity::Silu => 3,
        Nonlinearity::Relu => 4,
        Nonlinearity::SquaredRelu => 5,
        Nonlinearity::ClampedQuickGelu => 6,
    }
}

/// Whether the input has a second half that multiplies the activated first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gating {
    /// It has not.
    Plain,
    /// It has.
    Gated,
}

impl Gating {
    /// How many rows of the weight an output has.
    #[cfg(feature = "cuda")]
    pub(super) fn halves(self) -> i64 {
        if self == Self::Gated { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        let header = include_str!("../../kernels/nonlinearity.cuh");
        let (_, list) = header.split_once("enum Activation {").unwrap();
        let (list, _) = list.split_once('}').unwrap();
        let names: Vec<&str> = list.split(',').map(str::trim).collect();
        let expect = [
            ("GELU", Nonlinearity::Gelu),
            ("GELU_TANH", Nonlinearity::GeluTanh),
            ("QUICK_GELU", Nonlinearity::QuickGelu),
            ("SILU", Nonlinearity::Silu),
            ("RELU", Nonlinearity::Relu),
            ("SQUARED_RELU", Nonlinearity::SquaredRelu),
            ("CLAMPED_QUICK_GELU", Nonlinearity::ClampedQuickGelu),
        ];
        assert_eq!(names.len(), expect.len());
        for (name, nonlinearity) in expect {
            assert_eq!(names[number_of(nonlinearity) as usize], name);
        }
    }
}
