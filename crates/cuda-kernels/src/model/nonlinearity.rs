//! The activation of the MLP: its function, and whether it is gated. Needs no GPU.

/// A nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nonlinearity {
    /// By the error function.
    Gelu,
    /// By the hyperbolic tangent.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    SquaredRelu,
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
